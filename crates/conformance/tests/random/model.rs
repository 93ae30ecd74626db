//! What knockd 0.8 opens, written from its observed behaviour, and the rules by which ours opens more.
//!
//! Time does not exist here: nothing times out. So of the attempts of a source that ours has at a door, the first stands
//! for all but the one that 0.8 has: those begun later are only of use when it times out.

use std::collections::HashMap;
use std::net::IpAddr;

use knockd_core::{Door, Hit, Packet, Step};

use crate::scene::sequence;

/// Which of the rules by which ours differs from 0.8 are in force. Their tests are in the topic `matching`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Rules(u8);

impl Rules {
    /// As knockd 0.8.
    pub(crate) const NONE: Self = Self(0);
    /// A repeat of a step already done is ignored: `a_repeat_of_a_step_done`.
    pub(crate) const REPEAT: Self = Self(1);
    /// Attempts at other doors do not matter, except that the packet that completes one sequence begins no other:
    /// `the_first_step_of_another_door`.
    pub(crate) const INDEPENDENT: Self = Self(2);
    /// A door of one step opens at every hit: `a_one_step_door_during_an_attempt`.
    pub(crate) const ONE_STEP: Self = Self(4);
    /// As ours.
    pub(crate) const ALL: Self = Self(7);

    /// Every combination, those of fewer rules first.
    pub(crate) fn combinations() -> Vec<Self> {
        let mut all: Vec<_> = (0..=Self::ALL.0).map(Self).collect();
        all.sort_by_key(|rules| rules.0.count_ones());
        all
    }

    fn has(self, rule: Self) -> bool {
        self.0 & rule.0 != 0
    }
}

/// The rules by the names of their tests.
impl std::fmt::Display for Rules {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [
            (Self::REPEAT, "a_repeat_of_a_step_done"),
            (Self::INDEPENDENT, "the_first_step_of_another_door"),
            (Self::ONE_STEP, "a_one_step_door_during_an_attempt"),
        ];
        let names: Vec<_> = names.iter().filter(|(rule, _)| self.has(*rule)).map(|(_, name)| *name).collect();
        out.write_str(&names.join(" and "))
    }
}

/// A door that was opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Open {
    /// Who knocked.
    pub(crate) source: IpAddr,
    /// The packet that completed the sequence, counted from 0.
    pub(crate) packet: usize,
    /// The index of the door.
    pub(crate) door: usize,
    /// The packet that began the attempt.
    pub(crate) begun: usize,
}

/// The model.
#[derive(Debug)]
pub(crate) struct Model<'doors> {
    rules: Rules,
    doors: &'doors [Door],
    own: &'doors [IpAddr],
    attempts: HashMap<IpAddr, Vec<Attempt>>,
    packets: usize,
}

/// What a source has done at a door.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// The index of the door.
    pub(crate) door: usize,
    /// The packet that began it.
    pub(crate) begun: usize,
    stage: usize,
    /// What 0.8 has there: the packet that began it, and its stage.
    strict: Option<(usize, usize)>,
}

impl<'doors> Model<'doors> {
    /// Makes a model of these doors on an interface with the addresses `own`.
    pub(crate) fn new(rules: Rules, doors: &'doors [Door], own: &'doors [IpAddr]) -> Self {
        Self { rules, doors, own, attempts: HashMap::new(), packets: 0 }
    }

    /// What a source has under way.
    pub(crate) fn attempts(&self, source: IpAddr) -> &[Attempt] {
        self.attempts.get(&source).map_or(&[], Vec::as_slice)
    }

    /// Says which doors a packet opens, in file order.
    pub(crate) fn handle_packet(&mut self, packet: &Packet) -> Vec<Open> {
        let (index, step, source) = (self.packets, packet.hit.step(), packet.source);
        self.packets += 1;
        let hit: Vec<usize> =
            (0..self.doors.len()).filter(|&door| self.is_watched_by(door, packet.destination)).collect();
        let is_visible = |&door: &usize| self.fits(door, packet.hit) && self.steps(door).contains(&step);
        if !hit.iter().any(is_visible) {
            return Vec::new();
        }

        let mut opens = Vec::new();
        // The doors at which 0.8 has nothing under way.
        let mut free = Vec::new();
        let (concerned, mut remaining): (Vec<_>, Vec<_>) =
            self.attempts(source).iter().partition(|attempt| hit.contains(&attempt.door));
        for attempt in &concerned {
            let Attempt { door, begun, stage, strict } = *attempt;
            let steps = self.steps(door);
            if !self.fits(door, packet.hit) {
                remaining.push(*attempt);
                continue;
            }
            free.extend(strict.is_none().then_some(door));
            let strict = strict.filter(|&(_, stage)| steps[stage] == step && stage + 1 < steps.len());
            let strict = strict.map(|(begun, stage)| (begun, stage + 1));
            if steps[stage] == step && stage + 1 == steps.len() {
                opens.push(Open { source, packet: index, door, begun });
                // 0.8 goes on with what it has.
                remaining.extend(strict.map(|(begun, stage)| Attempt { door, begun, stage, strict }));
            } else if steps[stage] == step {
                remaining.push(Attempt { stage: stage + 1, strict, ..*attempt });
            } else if self.rules.has(Rules::REPEAT) && steps[..stage].contains(&step) {
                remaining.push(Attempt { strict, ..*attempt });
            }
        }

        let has_completed = !opens.is_empty();
        for door in hit {
            let steps = self.steps(door);
            let may_begin = if concerned.is_empty() {
                true
            } else if steps.len() == 1 {
                self.rules.has(Rules::ONE_STEP)
            } else {
                let is_under_way = concerned.iter().any(|attempt| attempt.door == door);
                let has_opened = opens.iter().any(|open| open.door == door);
                self.rules.has(Rules::INDEPENDENT)
                    && (!has_completed || has_opened)
                    && (!is_under_way || free.contains(&door))
            };
            if !may_begin || steps[0] != step || !self.fits(door, packet.hit) {
                continue;
            }
            if steps.len() == 1 {
                opens.push(Open { source, packet: index, door, begun: index });
                continue;
            }
            let strict = Some((index, 1));
            match remaining.iter_mut().find(|attempt| attempt.door == door) {
                Some(attempt) => attempt.strict = strict,
                None => remaining.push(Attempt { door, begun: index, stage: 1, strict }),
            }
        }
        self.attempts.insert(source, remaining);
        opens.sort();
        opens
    }

    fn steps(&self, door: usize) -> Vec<Step> {
        sequence(&self.doors[door]).steps().collect()
    }

    fn is_watched_by(&self, door: usize, destination: IpAddr) -> bool {
        match self.doors[door].target {
            Some(target) => target == destination,
            None => self.own.contains(&destination),
        }
    }

    fn fits(&self, door: usize, hit: Hit) -> bool {
        match hit {
            Hit::Tcp { flags, .. } => self.doors[door].tcp_flags.accepts(flags),
            Hit::Udp { .. } => true,
        }
    }
}
