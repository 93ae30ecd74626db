//! Configurations as they stand in tutorials, packages and container images, at knockd 0.8 and at ours.
//!
//! Each program is started with each file of `configs/`, every door is knocked at once, and both must run the same
//! commands.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use conformance::{SOON, Subject};
use knockd_core::config::{Action, Commands, Key};
use knockd_core::{Config, Door, FlagRule, OneTime, Protocol, Sequence, Step, TcpFlags};
use testbed::{Flags, Frame, Net, Running, workspace_root};

/// The one-time sequences of the configurations that have some; only the first is knocked.
const ONE_TIME: &str = "# sequences\n 3501,3502:udp,3503\n 3601,3602,3603\n";
/// How long to wait for what should not happen.
const A_WHILE: Duration = Duration::from_millis(200);

/// The doors that 0.8 cannot open: two doors begin alike, and where they part the attempt at one of them ends, which is
/// the oldest of all, so that 0.8 forgets the other too. The rule is `matching::the_oldest_attempt_of_all`.
const ONLY_OURS: [(&str, &str); 1] = [("28-common-first-port.conf", "internalSSH")];

/// A file and what it says, and where it is on the servers.
struct Real {
    name: String,
    text: Vec<u8>,
    config: Config,
}

#[test]
fn every_real_configuration_does_the_same_on_both() {
    let reals = reals();
    assert!(reals.len() >= 25, "only {} configurations", reals.len());
    let run = |subject: Subject| {
        subject.knockd().map(|program| run_all(&reals, subject, program.to_str().unwrap()))
    };
    let (ours, theirs) = thread::scope(|scope| {
        let theirs = scope.spawn(|| run(Subject::Theirs));
        (run(Subject::Ours).expect("our program"), theirs.join().unwrap())
    });
    if theirs.is_none() {
        println!("There is no knockd 0.8 here: nothing is compared, ours must open every door.");
    }
    let mut wrong = String::new();
    for real in &reals {
        let ours = &ours[&real.name];
        let mut expected = ours.clone();
        for (_, door) in ONLY_OURS.iter().filter(|(name, _)| *name == real.name) {
            expected.retain(|line| !line.contains(&format!("{door}: ")));
        }
        if let Some(theirs) = theirs.as_ref().map(|theirs| &theirs[&real.name])
            && *theirs != expected
        {
            writeln!(wrong, "{}\nours: {ours:#?}\n0.8: {theirs:#?}", real.name).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Every file says in its first line where such a form is found.
#[test]
fn every_real_configuration_says_where_it_is_from() {
    for Real { name, text, .. } in reals() {
        assert!(text.starts_with(b"# ") && text.iter().position(|&byte| byte == b'\n') > Some(20), "{name}");
    }
}

#[test]
fn the_example_of_the_migration_page_is_a_configuration() {
    let page = std::fs::read_to_string(workspace_root().join("docs/migrating.md")).unwrap();
    let (_, rest) = page.split_once("```ini\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    let parsed = Config::parse(example.as_bytes()).unwrap();
    assert_eq!((parsed.config.doors.len(), parsed.warnings), (1, vec![]));
}

fn reals() -> Vec<Real> {
    let directory = workspace_root().join("crates/conformance/configs");
    let mut reals: Vec<Real> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let text = std::fs::read(entry.path()).unwrap();
            let parsed = Config::parse(&text).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
            Real { name, text, config: parsed.config }
        })
        .collect();
    reals.sort_by(|one, other| one.name.cmp(&other.name));
    reals
}

/// Runs a program with every file, and returns what it did with each.
fn run_all(reals: &[Real], subject: Subject, program: &str) -> BTreeMap<String, Vec<String>> {
    let net = Net::with_private_dirs(&["/var/log"]).unwrap();
    for real in reals {
        net.server.run_with_input(&["tee", &format!("/run/{}", real.name)], &real.text).unwrap();
        for door in &real.config.doors {
            if let Some(path) = door.key.one_time_file() {
                net.server.write_file(path, ONE_TIME).unwrap();
            }
        }
    }
    // These commands are meant for other machines, and only the network is not this one's: no shell runs them.
    net.server.run(&["sh", "-c", "if [ -e /dev/log ]; then mount --bind /dev/null /dev/log; fi"]).unwrap();
    net.server.run(&["sh", "-c", "exec mount --bind /bin/true /bin/sh"]).unwrap();
    net.server.run(&["sh", "-c", "exit 1"]).expect("a shell that does nothing");

    reals.iter().map(|real| (real.name.clone(), run(&net, subject, program, real))).collect()
}

/// Knocks at every door once, each from an address of its own, and returns what was opened and which start commands
/// were run, in alphabetical order.
fn run(net: &Net, subject: Subject, program: &str, real: &Real) -> Vec<String> {
    let path = format!("/run/{}", real.name);
    // Whatever the file says, these hosts have one interface.
    let mut knockd = net.server.spawn(&[program, "-v", "-i", "eth0", "-c", &path]).unwrap();
    knockd.wait_for_line("listening on ", SOON).unwrap_or_else(|error| panic!("{}: {error:#}", real.name));
    let mut stops = Vec::new();
    for (door, last) in real.config.doors.iter().zip(1..) {
        let source = Ipv4Addr::new(198, 18, 0, last).into();
        stops.extend(
            commands(door).1.expand(source).map(|stop| format!("{}: running command: {stop}", door.name)),
        );
        send(net, door, source);
        if subject == Subject::Theirs && ONLY_OURS.contains(&(&real.name, &door.name)) {
            continue;
        }
        let opened = format!("{source}: {}: OPEN SESAME", door.name);
        let starts = commands(door).0.expand(source);
        let started = starts.map(|start| format!("{}: running command: {start}", door.name));
        for line in std::iter::once(opened).chain(started) {
            knockd.wait_for_line(&line, SOON).unwrap_or_else(|error| panic!("{}: {error:#}", real.name));
        }
    }
    thread::sleep(A_WHILE);
    let mut lines = said(&knockd);
    lines.retain(|line| !stops.contains(line));
    drop(knockd);
    // Of doors that are open the next daemon would have to close.
    net.server.run(&["rm", "-rf", "/var/lib/knockd"]).unwrap();
    lines
}

fn said(knockd: &Running) -> Vec<String> {
    let lines = knockd.lines().into_iter().map(|line| line.text);
    let is_counted = |line: &String| line.ends_with(": OPEN SESAME") || line.contains(": running command: ");
    // With a log file on stdout everything is there twice, once with a date.
    let mut lines: Vec<_> = lines.filter(|line| is_counted(line) && !line.starts_with('[')).collect();
    lines.sort();
    lines
}

fn send(net: &Net, door: &Door, source: IpAddr) {
    let sequence = match &door.key {
        Key::Sequence(sequence) => sequence.clone(),
        _ => first_one_time(),
    };
    let destination = door.target.unwrap_or(net.server.ipv4.into());
    let frames: Vec<_> =
        sequence.steps().map(|step| frame(source, destination, step, door.tcp_flags)).collect();
    // A knock must not begin at the end of a second, because knockd 0.8 counts seconds of the clock.
    let into_second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_millis();
    if into_second > 800 {
        thread::sleep(Duration::from_millis(u64::from(1001 - into_second)));
    }
    net.client.send_frames(&frames).unwrap();
}

/// The start and the stop commands of a door.
fn commands(door: &Door) -> (&Commands, &Commands) {
    let Action::Commands { start, stop } = &door.action else { panic!("no commands") };
    (start, stop)
}

fn first_one_time() -> Sequence {
    OneTime::parse(ONE_TIME.as_bytes()).next().expect("a sequence").sequence.clone()
}

fn frame(source: IpAddr, destination: IpAddr, step: Step, rule: FlagRule) -> Vec<u8> {
    let usual = if rule.accepts(TcpFlags::SYN) { TcpFlags::SYN } else { rule.must_be_set() };
    let frame = match step.protocol {
        Protocol::Tcp => Frame::tcp(source, destination, step.port, Flags(usual.bits())),
        Protocol::Udp => Frame::udp(source, destination, step.port, b"\0"),
    };
    frame.bytes().unwrap()
}
