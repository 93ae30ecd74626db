//! Doors and packets at random, at knockd 0.8 and at ours side by side on the same interface.
//!
//! Each program has to open what a model of it says. Then the models are compared: ours must open whatever 0.8 opens,
//! and what it opens beyond that must follow from rules that `docs/conformance.md` names. Of ours there are two models,
//! the matcher of `knockd-core` and the model of 0.8 with those rules in force.
//!
//! The environment variable `KNOCKD_SEEDS` says how many scenes there are, or which: `100`, or `17..18` for one of
//! them.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod model;
mod pair;
mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use knockd_core::config::Options;
use knockd_core::parts::Matcher;
use knockd_core::{EventKind, Packet, Seed, Timestamp};

use crate::model::{Model, Open, Rules};
use crate::pair::{Pair, Said};
use crate::scene::{OWN, Scene};

/// Most of the time is spent waiting for the C program, which looks every 50 ms, so more than processors.
const THREADS: usize = 4;

/// What the two programs must open, by packet and door.
struct Expected {
    theirs: Vec<Open>,
    ours: Vec<Open>,
}

#[test]
fn ours_opens_what_0_8_opens_and_more_only_by_a_named_rule() {
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let scenes = || {
        let mut pair = Pair::new();
        let mut expectations = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return expectations;
            }
            let scene = Scene::new(seed, if seed % 20 == 19 { 1000 } else { 300 });
            let expected = expect(&scene, &scene.packets);
            check_programs(&mut pair, seed, &scene, &expected);
            expectations.push((seed, scene, expected));
        }
    };
    let mut total = Comparison::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(scenes)).collect();
        for thread in threads {
            let expectations = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            for (seed, scene, expected) in expectations {
                total.add(seed, &scene, &expected);
            }
        }
    });
    println!("{total}");
    assert!(total.by_both > 0, "nothing was opened");
}

#[test]
fn the_rules_that_explain_are_on_the_page() {
    let page = std::fs::read_to_string(testbed::workspace_root().join("docs/conformance.md")).unwrap();
    for name in Rules::ALL.to_string().split(" and ") {
        assert!(page.contains(&format!("`matching::{name}`")), "{name}");
    }
}

/// In the scenes of a short run every rule is the reason of something.
#[test]
fn the_scenes_show_every_rule() {
    let mut total = Comparison::default();
    for seed in 0..4 {
        let scene = Scene::new(seed, 300);
        total.add(seed, &scene, &expect(&scene, &scene.packets));
    }
    assert!(total.by_both > 0);
    for rule in [Rules::REPEAT, Rules::INDEPENDENT, Rules::ONE_STEP] {
        assert!(total.only_ours.contains_key(&rule), "{rule}");
    }
}

/// How many doors each of the models opens, and why.
#[derive(Default)]
struct Comparison {
    by_both: usize,
    only_ours: BTreeMap<Rules, usize>,
    only_theirs: BTreeMap<Rules, usize>,
}

impl Comparison {
    /// Counts what is expected of one scene, and panics where no rule explains a difference.
    fn add(&mut self, seed: u64, scene: &Scene, expected: &Expected) {
        let mut by_source: BTreeMap<IpAddr, [BTreeSet<(usize, usize)>; 2]> = BTreeMap::new();
        for (index, opens) in [&expected.ours, &expected.theirs].into_iter().enumerate() {
            for open in opens {
                by_source.entry(open.source).or_default()[index].insert((open.packet, open.door));
            }
        }
        for (source, [ours, theirs]) in by_source {
            self.by_both += ours.intersection(&theirs).count();
            if ours == theirs {
                continue;
            }
            // Sources are independent of each other, so that the story of one is enough.
            let story = of_source(&scene.packets, source);
            let models: Vec<_> =
                Rules::combinations().into_iter().map(|rules| (rules, run(scene, &story, rules))).collect();
            let fewest = |is_opened: bool, open: &Open| {
                let found = models.iter().find(|(_, opens)| is_among(opens, open) == is_opened);
                found.map(|(rules, _)| *rules).expect("the last combination is that of ours")
            };
            let Expected { theirs, ours } = expect(scene, &story);
            for open in ours.iter().filter(|open| !is_among(&theirs, open)) {
                *self.only_ours.entry(fewest(true, open)).or_default() += 1;
            }
            for open in theirs.iter().filter(|open| !is_among(&ours, open)) {
                assert!(
                    is_overlap(scene, open, &ours),
                    "seed {seed}: ours does not open d{} at packet {}, and 0.8 does\n{}",
                    open.door,
                    open.packet + 1,
                    tell(scene, &story)
                );
                *self.only_theirs.entry(fewest(false, open)).or_default() += 1;
            }
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} doors opened by both", self.by_both)?;
        for (program, reasons) in [("ours", &self.only_ours), ("0.8", &self.only_theirs)] {
            for (rules, count) in reasons {
                write!(out, "\n{count} only by {program}, by reason of {rules}")?;
            }
        }
        Ok(())
    }
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("KNOCKD_SEEDS") else { return 0..20 };
    let number = |text: &str| text.parse().expect("KNOCKD_SEEDS is a number or a range of them");
    text.split_once("..").map_or_else(|| 0..number(&text), |(first, end)| number(first)..number(end))
}

fn of_source(packets: &[Packet], source: IpAddr) -> Vec<Packet> {
    packets.iter().filter(|packet| packet.source == source).copied().collect()
}

fn is_among(opens: &[Open], open: &Open) -> bool {
    opens.iter().any(|other| (other.packet, other.door) == (open.packet, open.door))
}

fn run(scene: &Scene, packets: &[Packet], rules: Rules) -> Vec<Open> {
    let mut model = Model::new(rules, &scene.doors, &OWN);
    packets.iter().flat_map(|packet| model.handle_packet(packet)).collect()
}

/// Asks the models, and checks that the two of ours agree.
fn expect(scene: &Scene, packets: &[Packet]) -> Expected {
    let expected =
        Expected { theirs: run(scene, packets, Rules::NONE), ours: run(scene, packets, Rules::ALL) };

    let mut matcher = Matcher::new(&scene.doors, Options::DEFAULT_MAX_ATTEMPTS, Seed::new(1, 2));
    matcher.set_addresses(OWN);
    let mut opens = BTreeSet::new();
    for (index, packet) in packets.iter().enumerate() {
        let events = matcher.handle_packet(packet, Timestamp::ZERO);
        let opened = events.iter().filter(|event| event.kind == EventKind::Opened);
        opens.extend(opened.map(|event| (index, event.door.index())));
    }
    let by_model: BTreeSet<_> = expected.ours.iter().map(|open| (open.packet, open.door)).collect();
    if opens != by_model {
        let &(packet, _) = opens.symmetric_difference(&by_model).next().unwrap();
        let story = of_source(packets, packets[packet].source);
        panic!("the matcher of knockd-core and 0.8's rules with ours disagree\n{}", tell(scene, &story));
    }
    expected
}

/// Sends everything to both programs and panics unless each opens what it must.
fn check_programs(pair: &mut Pair, seed: u64, scene: &Scene, expected: &Expected) {
    let mut difference = None;
    // A machine under load can lose packets on their way to the programs. A wrong program is wrong each time.
    for _ in 0..2 {
        let said = pair.run(scene, &scene.packets);
        difference = first_difference(&said, expected);
        if difference.is_none() {
            return;
        }
        println!("seed {seed} does not come out right");
    }
    let source = difference.expect("a difference");
    let story = shrink(pair, scene, of_source(&scene.packets, source));
    let said = pair.run(scene, &story);
    let lines = |said: &Option<Said>| said.as_ref().map_or_else(String::new, |said| said.lines.join("\n  "));
    panic!(
        "seed {seed}: a program does not open what its model says\n{}\nours says:\n  {}\n0.8 says:\n  {}",
        tell(scene, &story),
        lines(&said[0]),
        lines(&said[1]),
    );
}

/// The source for which one of the programs has opened something else than it must.
fn first_difference(said: &[Option<Said>; 2], expected: &Expected) -> Option<IpAddr> {
    said.iter().zip([&expected.ours, &expected.theirs]).find_map(|(said, expected)| {
        let said = said.as_ref()?;
        let mut by_source: BTreeMap<IpAddr, Vec<Open>> = BTreeMap::new();
        for open in expected {
            by_source.entry(open.source).or_default().push(*open);
        }
        let sources: BTreeSet<_> = by_source.keys().chain(said.opens.keys()).copied().collect();
        let none = (Vec::new(), Vec::new());
        sources.into_iter().find(|source| {
            let expected = by_source.get(source).unwrap_or(&none.0);
            let mut opened = said.opens.get(source).unwrap_or(&none.1).clone();
            if opened.len() != expected.len() {
                return true;
            }
            // In which order one packet opens several doors is nobody's contract.
            let mut rest = opened.as_mut_slice();
            for doors in expected.chunk_by(|one, other| one.packet == other.packet) {
                let (of_packet, others) = rest.split_at_mut(doors.len());
                of_packet.sort_unstable();
                rest = others;
            }
            let expected: Vec<_> = expected.iter().map(|open| open.door).collect();
            opened != expected
        })
    })
}

/// Leaves out packets of a source's story for as long as one of the programs is still wrong about the rest.
fn shrink(pair: &mut Pair, scene: &Scene, story: Vec<Packet>) -> Vec<Packet> {
    let mut is_wrong = |story: &[Packet]| {
        let said = pair.run(scene, story);
        first_difference(&said, &expect(scene, story)).is_some()
    };
    let mut story = story;
    if !is_wrong(&story) {
        println!("(the story of this source alone comes out right)");
        return story;
    }
    let mut index = 0;
    while index < story.len() {
        let mut shorter = story.clone();
        shorter.remove(index);
        if is_wrong(&shorter) {
            story = shorter;
        } else {
            index += 1;
        }
    }
    story
}

/// Says whether ours may miss this opening: it has opened the door since 0.8 began, or the packet there completed
/// another sequence.
fn is_overlap(scene: &Scene, open: &Open, ours: &[Open]) -> bool {
    let knock = open.begun + 1..=open.packet;
    let has_opened = |other: &Open| other.door == open.door && knock.contains(&other.packet);
    let has_completed =
        |other: &Open| other.packet == open.begun && scene::sequence(&scene.doors[other.door]).len() > 1;
    ours.iter().any(|other| has_opened(other) || has_completed(other))
}

/// A story for people.
fn tell(scene: &Scene, story: &[Packet]) -> String {
    let words: Vec<_> = story.iter().map(scene::word).collect();
    let places = |opens: &[Open]| {
        let places: Vec<_> =
            opens.iter().map(|open| format!("d{} (packet {})", open.door, open.packet + 1)).collect();
        places.join(" ")
    };
    format!(
        "{}\npackets: {}\n0.8 must open: {}\nours must open: {}",
        scene.config,
        words.join(" "),
        places(&run(scene, story, Rules::NONE)),
        places(&run(scene, story, Rules::ALL))
    )
}
