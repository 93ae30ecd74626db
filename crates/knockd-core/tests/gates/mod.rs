//! Two gates that get the same calls, of which one is called at any time besides, and a caller that carries out what
//! they say and asserts at every call what is right. The fuzz target uses it too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use knockd_core::config::Key;
use knockd_core::{
    Burn, BurnId, Config, DoorName, Effect, Event, EventKind, Gate, LeaseFilter, LeaseId, LeaseRecord,
    LocalPorts, Now, OneTime, OneTimeFiles, OpeningResult, Outcome, Packet, Run, RunKind, STRIKE, Seed, Step,
    Text, Timestamp, UnixTime,
};

/// What is called of both.
#[derive(Clone, Debug)]
pub enum Call {
    Wait(Duration),
    Packet(Packet),
    /// One of the commands that run ends.
    Exit {
        which: usize,
        succeeded: bool,
    },
    /// One of the burns is answered.
    Burnt {
        which: usize,
        how: Burnt,
    },
    Timeout,
    TimeoutWhenDue,
    Reload(usize),
    Addresses(Vec<IpAddr>),
    Ports(u16, Vec<u16>),
    Open(&'static str, IpAddr),
    Close(LeaseFilter),
    Extend(LeaseFilter, Option<Duration>),
    CloseAll,
    /// The process dies, and its successor takes over what was stored.
    Restart,
    /// What is stored is restored where it is known already.
    RestoreAgain,
}

/// How a burn is answered.
#[derive(Clone, Copy, Debug)]
pub enum Burnt {
    /// The line is struck out if it still is the first one.
    Struck,
    /// The disk fails, and the file can be read, or not.
    Failed { is_readable: bool },
}

/// The names of doors, and one that no door has.
pub const NAMES: [&str; 6] = ["long", "both", "run", "once", "twin", "nobody"];

/// Two addresses of our own, and one that is not.
pub fn destinations() -> [IpAddr; 3] {
    [[192, 0, 2, 1].into(), [192, 0, 2, 2].into(), [198, 51, 100, 1].into()]
}

/// As many attempts, leases and scanners as there may be are soon reached. The second configuration has the doors in
/// another order, and other commands; the third one is without guard and has fewer doors.
const CONFIGS: [&str; 3] = [
    "[options]\nMaxAttempts = 5\nMaxOpen = 4\nScanLimit = 3\n
[long]\nsequence = 1,2,3\nseq_timeout = 5\nstart_command = open %IP%\nstop_command = close %IP%\ncmd_timeout = 4\n
[both]\nsequence = 1,4:udp\nseq_timeout = 3\ncooldown = 2\ncommand = open\nstart_command_6 =\nstop_command = close\nmax_open = 1\n
[run]\nsequence = 2\nreopen = run\ncommand = go\nstop_command = stop\ncmd_timeout = 0\ntarget = 192.0.2.2\n
[once]\none_time_sequences = list\ncommand = once %IP%\nstop_command = close\n
[twin]\none_time_sequences = list\ncommand = twin\n",
    "[options]\nMaxAttempts = 3\nMaxOpen = 9\nScanLimit = 5\n
[twin]\none_time_sequences = list\ncommand = twin\n
[long]\nsequence = 1,2,3\nseq_timeout = 5\nstart_command = open it\nstop_command = close %IP%\ncmd_timeout = 4\n
[both]\nsequence = 1,4:udp\nseq_timeout = 0\n",
    "[options]\nScanLimit = 0\n[run]\nsequence = 3\ncommand = go\nstop_command = stop\n",
];

const FILE: &str = "# a comment\n1,5\n6\n3,3\n1,2\n6,1\n2,4\n5\n6,6\n";

fn config(number: usize) -> Config {
    CONFIGS[number % CONFIGS.len()].parse().unwrap()
}

/// What an opening has to be told of: the door and the source.
type Opening = (DoorName, IpAddr);

struct Caller {
    gates: [Gate; 2],
    seed: Seed,
    config: usize,
    addresses: Vec<IpAddr>,
    now: Timestamp,
    /// The file of one-time sequences on disk.
    file: Vec<u8>,
    stored: BTreeMap<LeaseId, LeaseRecord>,
    running: Vec<Run>,
    burning: Vec<(Burn, Vec<Opening>)>,
    burnt: BTreeSet<usize>,
    last_burn: Option<BurnId>,
    closing: bool,
}

/// Makes these calls of two gates with the same seed, and then waits until all is closed.
///
/// # Panics
///
/// When the gates differ, or one is wrong.
pub fn check(seed: Seed, calls: &[Call]) {
    let mut caller = Caller::new(seed);
    for call in calls {
        caller.call(call);
    }
    if caller.closing {
        caller.call(&Call::Restart);
    }
    for _ in 0..200 {
        if caller.gates[0].lease_count() == 0 && caller.running.is_empty() && caller.burning.is_empty() {
            assert_eq!(caller.stored, BTreeMap::new());
            return;
        }
        caller.call(&Call::Burnt { which: 0, how: Burnt::Struck });
        caller.call(&Call::Exit { which: 0, succeeded: true });
        caller.call(&Call::TimeoutWhenDue);
    }
    panic!("doors stay open: {:?}", caller.gates[0].leases().collect::<Vec<_>>());
}

impl Caller {
    fn new(seed: Seed) -> Self {
        let file = FILE.as_bytes().to_vec();
        let addresses = destinations()[..2].to_vec();
        let gates = [(); 2].map(|()| gate(0, &file, seed, &addresses));
        Self {
            gates,
            seed,
            config: 0,
            addresses,
            now: Timestamp::ZERO,
            file,
            stored: BTreeMap::new(),
            running: Vec::new(),
            burning: Vec::new(),
            burnt: BTreeSet::new(),
            last_burn: None,
            closing: false,
        }
    }

    /// The calendar has another origin.
    fn both_clocks(&self) -> Now {
        let calendar = self.now.since(Timestamp::ZERO) + Duration::from_secs(1_000_000);
        Now { monotonic: self.now, calendar: UnixTime::new(calendar) }
    }

    fn call(&mut self, call: &Call) {
        self.come_early();
        let now = self.both_clocks();
        match call {
            Call::Wait(time) => self.now = self.now.after(*time),
            Call::Packet(packet) => self.packet(packet),
            Call::Exit { which, succeeded } => {
                if !self.running.is_empty() {
                    let Run { id, .. } = self.running.remove(which % self.running.len());
                    let outcomes = self.ask(|gate| gate.handle_exit(id, *succeeded, now).collect());
                    self.carry_out(outcomes, &[]);
                }
            }
            Call::Burnt { which, how } => self.burnt(*which, *how),
            Call::Timeout => self.timeout(),
            Call::TimeoutWhenDue => {
                self.now = self.gates[0].poll_timeout().map_or(self.now, |due| due.max(self.now));
                self.timeout();
            }
            Call::Reload(number) => {
                self.config = *number;
                let file = files(&self.file);
                let outcomes = self.ask(|gate| gate.set_config(config(*number), file.clone()).collect());
                self.only_wanted(&outcomes);
            }
            Call::Addresses(addresses) => {
                self.addresses.clone_from(addresses);
                self.gates.iter_mut().for_each(|gate| gate.set_addresses(addresses.iter().copied()));
            }
            Call::Ports(from, bound) => {
                let ports = LocalPorts::new(*from, bound.iter().copied().map(Step::udp));
                let outcomes = self.ask(|gate| gate.set_local_ports(ports.clone()).collect());
                self.only_wanted(&outcomes);
            }
            Call::Open(name, source) => {
                let outcomes = self.ask(|gate| gate.open(name, *source, now).collect());
                let doors = config(self.config).doors.into_iter().filter(|door| door.name == **name);
                let openings: Vec<_> = doors.map(|door| (door.name, *source)).collect();
                self.carry_out(outcomes, &openings);
            }
            Call::Close(which) => {
                let outcomes = self.ask(|gate| gate.close(which, now).collect());
                self.carry_out(outcomes, &[]);
            }
            Call::Extend(which, time) => {
                let outcomes = self.ask(|gate| gate.extend(which, *time, now).collect());
                self.carry_out(outcomes, &[]);
            }
            Call::CloseAll => {
                self.closing = true;
                let outcomes = self.ask(|gate| gate.close_all(now).collect());
                self.carry_out(outcomes, &[]);
            }
            Call::Restart => self.restart(),
            // What has failed while all was closed is left to a successor.
            Call::RestoreAgain if self.closing => {}
            Call::RestoreAgain => {
                let records = || self.stored.values().cloned();
                self.gates.iter_mut().for_each(|gate| gate.restore(records(), LeaseId(0), now));
            }
        }
        self.come_early();
        self.compare();
    }

    /// Calls the second gate before anything is due, twice.
    fn come_early(&mut self) {
        let now = self.both_clocks();
        let [_, restless] = &mut self.gates;
        if restless.poll_timeout().is_none_or(|due| due > now.monotonic) {
            for _ in 0..2 {
                assert_eq!(told_by_time(restless, now), [], "something was due before its time");
            }
        }
    }

    /// Asks both gates the same.
    fn ask(&mut self, mut ask: impl FnMut(&mut Gate) -> Vec<Outcome>) -> Vec<Outcome> {
        let [one, other] = self.gates.each_mut().map(&mut ask);
        assert_eq!(one, other, "the same calls had other results");
        one
    }

    fn packet(&mut self, packet: &Packet) {
        let now = self.both_clocks();
        let outcomes = self.ask(|gate| gate.handle_packet(packet, now).collect());
        let doors = config(self.config).doors;
        let (mut openings, mut waiting) = (Vec::new(), Vec::new());
        for outcome in &outcomes {
            let Outcome::Attempt(Event { source, door, kind: EventKind::Opened }) = outcome else { continue };
            assert_eq!(*source, packet.source);
            let door = &doors[door.index()];
            let opening = (door.name.clone(), *source);
            match door.key {
                Key::OneTime(_) => waiting.push(opening),
                _ => openings.push(opening),
            }
        }
        let burns = self.carry_out(outcomes, &openings);
        assert_eq!(burns.len(), usize::from(!waiting.is_empty()), "one line for all doors of the file");
        for burn in burns {
            assert!(!self.burnt.contains(&burn.line.offset), "a line that is struck out was knocked");
            assert!(self.burning.iter().all(|(other, _)| other.line != burn.line), "it is being struck out");
            assert!(self.last_burn.is_none_or(|last| last < burn.id));
            self.last_burn = Some(burn.id);
            self.burning.push((burn, std::mem::take(&mut waiting)));
        }
    }

    /// Every burn is answered by its openings, once.
    fn burnt(&mut self, which: usize, how: Burnt) {
        if self.burning.is_empty() {
            return;
        }
        let (Burn { id, line, .. }, openings) = self.burning.remove(which % self.burning.len());
        let is_first = OneTime::parse(&self.file).next() == Some(&line);
        let result = match how {
            Burnt::Struck if is_first => {
                self.file[line.offset] = STRIKE;
                assert!(self.burnt.insert(line.offset), "it opens twice");
                Ok(())
            }
            Burnt::Struck | Burnt::Failed { is_readable: true } => Err(Some(OneTime::parse(&self.file))),
            Burnt::Failed { is_readable: false } => Err(None),
        };
        let now = self.both_clocks();
        let outcomes = self.ask(|gate| gate.handle_burnt(id, result.clone(), now).collect());
        for outcome in &outcomes {
            if let Outcome::Opening { result: told, .. } = outcome {
                assert_eq!(*told == OpeningResult::NotBurnt, result.is_err());
            }
        }
        self.carry_out(outcomes, &openings);
        assert_eq!(self.ask(|gate| gate.handle_burnt(id, result.clone(), now).collect()), []);
    }

    fn timeout(&mut self) {
        let now = self.both_clocks();
        let outcomes = self.ask(|gate| gate.handle_timeout(now).collect());
        self.carry_out(outcomes, &[]);
        for gate in &mut self.gates {
            assert_eq!(told_by_time(gate, now), [], "a second call did something");
            assert!(gate.poll_timeout().is_none_or(|due| due > self.now), "it asks for the present again");
        }
    }

    fn restart(&mut self) {
        let now = self.both_clocks();
        for slot in &mut self.gates {
            *slot = gate(self.config, &self.file, self.seed, &self.addresses);
            slot.restore(self.stored.values().cloned(), LeaseId(0), now);
        }
        self.closing = false;
        self.running.clear();
        self.burning.clear();
        self.last_burn = None;
    }

    fn only_wanted(&self, outcomes: &[Outcome]) {
        assert!(outcomes.len() <= 1, "{outcomes:?}");
        for outcome in outcomes {
            assert!(matches!(outcome, Outcome::Wanted(wanted) if wanted == self.gates[0].wanted()));
        }
    }

    /// Carries out what was said, in order, and returns what is to be struck out. What opens has to be exactly this.
    fn carry_out(&mut self, outcomes: Vec<Outcome>, openings: &[Opening]) -> Vec<Burn> {
        let now = self.both_clocks();
        let (mut told, mut burns) = (Vec::new(), Vec::new());
        let mut opened = None;
        let mut last_stored: Option<LeaseRecord> = None;
        for outcome in outcomes {
            match outcome {
                Outcome::Opening { door, source, result } => {
                    assert_eq!(opened, None, "it has opened, and nothing runs");
                    if self.closing && result != OpeningResult::NotBurnt {
                        assert_eq!(result, OpeningResult::Closing);
                    }
                    opened = (result == OpeningResult::Opened).then(|| (door.clone(), source));
                    told.push((door, source));
                }
                Outcome::Effect(Effect::Store(record)) => {
                    last_stored = Some(record.clone());
                    self.stored.insert(record.id, record);
                }
                Outcome::Effect(Effect::EndMoved(id, until)) => {
                    let stored = last_stored.take().unwrap();
                    assert_eq!((stored.id, stored.until), (id, now.calendar_at(until)));
                }
                Outcome::Effect(Effect::Forget(id) | Effect::SetAside(LeaseRecord { id, .. })) => {
                    assert!(self.stored.remove(&id).is_some(), "it is not stored");
                }
                Outcome::Effect(Effect::Run(run)) => {
                    assert!(self.running.iter().all(|other| other.id != run.id), "two commands of one lease");
                    if run.kind == RunKind::Start
                        && let Some(opened) = opened.take()
                    {
                        assert_eq!(opened, (run.door.clone(), run.source));
                    }
                    self.running.push(run);
                }
                Outcome::Effect(Effect::Burn(burn)) => burns.push(burn),
                Outcome::Effect(
                    Effect::Admit(..) | Effect::Prolong(..) | Effect::Look(_) | Effect::Shut(_),
                ) => panic!("no door has a firewall"),
                Outcome::Attempt(_) | Outcome::Scanner(_) | Outcome::UsedUp(_) | Outcome::Wanted(_) => {}
            }
        }
        assert_eq!(opened, None, "it has opened, and nothing runs");
        assert_eq!(told, openings);
        burns
    }

    /// Both are the same to whoever asks, what is stored is what is open, and no bound is exceeded.
    fn compare(&self) {
        let [one, other] = &self.gates;
        assert_eq!(one.poll_timeout(), other.poll_timeout());
        assert_eq!(one.wanted(), other.wanted());
        assert_eq!(one.one_time_files(), other.one_time_files());
        assert_eq!(one.visible_packets(), other.visible_packets());
        assert!(one.attempts().eq(other.attempts()) && one.leases().eq(other.leases()));
        assert_eq!((one.attempts().count(), one.leases().count()), (one.attempt_count(), one.lease_count()));
        let limit = one.config().options.max_attempts.get() as usize;
        assert!(one.attempt_count() <= limit);
        for lease in one.leases() {
            assert_eq!(self.stored.get(&lease.id).map(|record| &*record.key), Some(lease.key));
        }
        assert!(self.closing || self.stored.len() == one.lease_count(), "{:?}", self.stored);
        for record in self.stored.values() {
            assert_eq!(LeaseRecord::parse(record.id, &record.to_string()).as_ref(), Ok(record));
        }
    }
}

fn told_by_time(gate: &mut Gate, now: Now) -> Vec<Outcome> {
    gate.handle_timeout(now).collect()
}

fn files(text: &[u8]) -> OneTimeFiles {
    [(Text::new("list").unwrap(), OneTime::parse(text))].into()
}

fn gate(number: usize, file: &[u8], seed: Seed, addresses: &[IpAddr]) -> Gate {
    let mut gate = Gate::new(config(number), files(file), seed);
    gate.set_addresses(addresses.iter().copied());
    assert_eq!(
        gate.set_local_ports(LocalPorts::new(200, [Step::udp(9)])).count(),
        usize::from(number % 3 != 2)
    );
    gate
}
