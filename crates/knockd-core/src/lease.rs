//! Leases: which door is open for whom until when, and what has to run because of it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use crate::config::{Door, Reopen};
use crate::time::Timestamp;

/// Identifies a command that was asked for, until it is reported to have ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RunId(u64);

/// A command to run now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// What to call [`Leases::handle_exit`] with when it has ended.
    pub id: RunId,
    /// Which of the door's commands it is.
    pub kind: RunKind,
    /// Name of the door.
    pub door: String,
    /// The knocker it is run for.
    pub source: IpAddr,
    /// The command line for the shell.
    pub command: String,
}

/// Which command of a door.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RunKind {
    /// `Start_Command`.
    Start,
    /// `Stop_Command`.
    Stop,
}

/// The doors that are open.
///
/// A pure state machine: the caller runs what it is handed, at once, and reports every end to [`Self::handle_exit`]; it
/// owns the clock and calls [`Self::handle_timeout`] at [`Self::poll_timeout`]. The start and the stop command of a lease
/// never run at the same time.
#[derive(Debug, Default)]
pub struct Leases {
    by_id: HashMap<RunId, Lease>,
    /// The lease that another knock of the same source extends.
    current: HashMap<Key, RunId>,
    ends: BTreeSet<(Timestamp, RunId)>,
    next_id: u64,
    closing: bool,
}

/// What a lease is to its knocker: two knocks that would run the same commands share it, and a door whose commands have
/// changed with the configuration begins a new one beside it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    door: String,
    source: IpAddr,
    start: String,
    stop: String,
}

#[derive(Debug)]
struct Lease {
    key: Key,
    cmd_timeout: Duration,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The start command is running.
    Starting,
    /// The start command has ended, well or not.
    Open { until: Timestamp, failed: bool },
    /// The stop command is running; there was another knock meanwhile, or not.
    Stopping { knocked: bool },
}

impl Leases {
    /// Makes a state in which every door is closed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a door for a source that has knocked; returns the start command, unless it is not to run (again) now.
    ///
    /// A door without a start command for the knocker's address family runs nothing. One without a stop command has no
    /// lease: every knock runs the start command. While a lease is open, a knock moves its end to a full `Cmd_Timeout`
    /// from now, except that a start command which failed runs again, and that with `Reopen = run` every knock has a
    /// lease of its own. A knock that comes while the stop command is running runs the start command after it.
    pub fn open(&mut self, door: &Door, source: IpAddr, now: Timestamp) -> Option<Run> {
        let start = door.start.expand(source)?;
        if self.closing {
            return None;
        }
        let Some(stop) = door.stop.expand(source) else {
            let id = self.fresh_id();
            return Some(Run { id, kind: RunKind::Start, door: door.name.clone(), source, command: start });
        };
        let key = Key { door: door.name.clone(), source, start, stop };
        let current = match door.reopen {
            Reopen::Extend => self.current.get(&key).copied(),
            Reopen::Run => None,
        };
        if let Some(id) = current {
            return self.knock_again(id, door.cmd_timeout, now);
        }
        let id = self.fresh_id();
        if door.reopen == Reopen::Extend {
            self.current.insert(key.clone(), id);
        }
        let lease = Lease { key, cmd_timeout: door.cmd_timeout, phase: Phase::Starting };
        let run = lease.run(id, RunKind::Start);
        self.by_id.insert(id, lease);
        Some(run)
    }

    /// Takes note that a command has ended; returns the one that was waiting for it, if any.
    ///
    /// `succeeded` is whether it ended with status 0. An unknown `id` is ignored.
    pub fn handle_exit(&mut self, id: RunId, succeeded: bool, now: Timestamp) -> Option<Run> {
        let closing = self.closing;
        let lease = self.by_id.get_mut(&id)?;
        match lease.phase {
            Phase::Starting if closing => Some(lease.stop(id)),
            Phase::Starting => {
                let until = now.after(lease.cmd_timeout);
                lease.phase = Phase::Open { until, failed: !succeeded };
                self.ends.insert((until, id));
                None
            }
            Phase::Stopping { knocked: true } if !closing => {
                lease.phase = Phase::Starting;
                Some(lease.run(id, RunKind::Start))
            }
            Phase::Stopping { .. } => {
                let lease = self.by_id.remove(&id)?;
                if self.current.get(&lease.key) == Some(&id) {
                    self.current.remove(&lease.key);
                }
                None
            }
            Phase::Open { .. } => None,
        }
    }

    /// Returns the stop commands whose time has come, the earliest first. Calling it early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Timestamp) -> Vec<Run> {
        let mut runs = Vec::new();
        while let Some(&(end, id)) = self.ends.first()
            && end <= now
        {
            self.ends.pop_first();
            runs.extend(self.by_id.get_mut(&id).map(|lease| lease.stop(id)));
        }
        runs
    }

    /// The moment at which [`Self::handle_timeout`] wants to be called; `None` while no lease is waiting for its end.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.ends.first().map(|&(end, _)| end)
    }

    /// Closes every door before its time: returns the stop commands of all leases that are open.
    ///
    /// From now on nothing opens, and a lease whose start command is still running is closed when that has ended.
    pub fn close_all(&mut self) -> Vec<Run> {
        self.closing = true;
        std::mem::take(&mut self.ends)
            .into_iter()
            .filter_map(|(_, id)| self.by_id.get_mut(&id).map(|lease| lease.stop(id)))
            .collect()
    }

    /// The number of leases, those included whose stop command is still running.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Says whether every door is closed and no stop command is running.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn knock_again(&mut self, id: RunId, cmd_timeout: Duration, now: Timestamp) -> Option<Run> {
        let lease = self.by_id.get_mut(&id)?;
        lease.cmd_timeout = cmd_timeout;
        match &mut lease.phase {
            // The time runs from the end of the start command, which is still to come.
            Phase::Starting => None,
            Phase::Open { until, failed } => {
                self.ends.remove(&(*until, id));
                if *failed {
                    lease.phase = Phase::Starting;
                    return Some(lease.run(id, RunKind::Start));
                }
                *until = now.after(cmd_timeout);
                self.ends.insert((*until, id));
                None
            }
            Phase::Stopping { knocked } => {
                *knocked = true;
                None
            }
        }
    }

    fn fresh_id(&mut self) -> RunId {
        self.next_id += 1;
        RunId(self.next_id)
    }
}

impl Lease {
    fn run(&self, id: RunId, kind: RunKind) -> Run {
        let Key { door, source, start, stop } = self.key.clone();
        let command = match kind {
            RunKind::Start => start,
            RunKind::Stop => stop,
        };
        Run { id, kind, door, source, command }
    }

    fn stop(&mut self, id: RunId) -> Run {
        self.phase = Phase::Stopping { knocked: false };
        self.run(id, RunKind::Stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::CommandTemplate;
    use crate::config::{Commands, Secret};

    const SECOND: Duration = Duration::from_secs(1);

    fn door(start: &str, stop: &str) -> Door {
        let commands = |text| CommandTemplate::parse(text).map(Commands::both).unwrap_or_default();
        Door {
            start: commands(start),
            stop: commands(stop),
            ..Door::new("ssh", Secret::Sequence("1,2".parse().unwrap()))
        }
    }

    fn at(seconds: u32) -> Timestamp {
        Timestamp::ZERO.after(SECOND * seconds)
    }

    fn source() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    /// The command that is to run, and the id to report its end with.
    fn parts(run: Option<Run>) -> Option<(String, RunId)> {
        run.map(|run| (run.command, run.id))
    }

    #[test]
    fn the_stop_command_runs_cmd_timeout_after_the_start_command_has_ended() {
        let mut leases = Leases::new();
        let (command, id) = parts(leases.open(&door("open %IP%", "close %IP%"), source(), at(0))).unwrap();
        assert_eq!((command.as_str(), leases.poll_timeout()), ("open 192.0.2.1", None));
        assert_eq!(leases.handle_exit(id, true, at(3)), None);
        assert_eq!(leases.poll_timeout(), Some(at(13)));
        assert_eq!(leases.handle_timeout(at(12)), []);
        let runs = leases.handle_timeout(at(13));
        assert_eq!((runs.len(), runs[0].command.as_str()), (1, "close 192.0.2.1"));
        assert_eq!(leases.handle_timeout(at(14)), []);
        assert_eq!(leases.handle_exit(id, true, at(14)), None);
        assert!(leases.is_empty());
    }

    #[test]
    fn a_knock_at_an_open_door_moves_its_end_and_runs_nothing() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let (_, id) = parts(leases.open(&door, source(), at(0))).unwrap();
        assert_eq!(leases.open(&door, source(), at(1)), None, "while the start command is running");
        leases.handle_exit(id, true, at(2));
        assert_eq!(leases.open(&door, source(), at(8)), None);
        assert_eq!(leases.poll_timeout(), Some(at(18)));
        assert_eq!((leases.len(), leases.handle_timeout(at(18)).len()), (1, 1));
    }

    #[test]
    fn sources_have_leases_of_their_own() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        assert!(leases.open(&door, source(), at(0)).is_some());
        assert!(leases.open(&door, "192.0.2.2".parse().unwrap(), at(0)).is_some());
        assert_eq!(leases.len(), 2);
    }

    #[test]
    fn with_reopen_run_every_knock_has_a_lease_of_its_own() {
        let mut leases = Leases::new();
        let door = Door { reopen: Reopen::Run, ..door("a", "b") };
        let ids: Vec<_> = (0..3).filter_map(|_| parts(leases.open(&door, source(), at(0)))).collect();
        for (_, id) in &ids {
            leases.handle_exit(*id, true, at(0));
        }
        assert_eq!((ids.len(), leases.handle_timeout(at(10)).len()), (3, 3));
    }

    #[test]
    fn a_failed_start_command_runs_again_at_the_next_knock_and_the_stop_command_once() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let (_, id) = parts(leases.open(&door, source(), at(0))).unwrap();
        leases.handle_exit(id, false, at(0));
        assert_eq!(parts(leases.open(&door, source(), at(5))), Some(("a".to_owned(), id)));
        leases.handle_exit(id, true, at(5));
        assert_eq!(leases.handle_timeout(at(14)), []);
        assert_eq!(leases.handle_timeout(at(15)).len(), 1);
        assert_eq!(leases.handle_timeout(at(100)), []);
    }

    #[test]
    fn a_failed_start_command_is_followed_by_its_stop_command() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let (_, id) = parts(leases.open(&door, source(), at(0))).unwrap();
        leases.handle_exit(id, false, at(0));
        assert_eq!(leases.handle_timeout(at(10)).len(), 1);
    }

    #[test]
    fn a_door_without_a_stop_command_runs_at_every_knock_and_has_no_lease() {
        let (mut leases, door) = (Leases::new(), door("a", ""));
        let first = parts(leases.open(&door, source(), at(0))).unwrap();
        let second = parts(leases.open(&door, source(), at(0))).unwrap();
        assert_ne!(first.1, second.1);
        assert_eq!((leases.handle_exit(first.1, true, at(1)), leases.is_empty()), (None, true));
    }

    #[test]
    fn a_door_without_a_start_command_runs_nothing_at_all() {
        let mut leases = Leases::new();
        assert_eq!(leases.open(&door("", "b"), source(), at(0)), None);
        assert!(leases.is_empty());
    }

    #[test]
    fn a_knock_during_the_stop_command_runs_the_start_command_after_it() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let (_, id) = parts(leases.open(&door, source(), at(0))).unwrap();
        leases.handle_exit(id, true, at(0));
        leases.handle_timeout(at(10));
        assert_eq!(leases.open(&door, source(), at(11)), None);
        assert_eq!(parts(leases.handle_exit(id, true, at(12))), Some(("a".to_owned(), id)));
        leases.handle_exit(id, true, at(12));
        assert_eq!(leases.poll_timeout(), Some(at(22)));
    }

    #[test]
    fn an_ipv6_knocker_gets_the_commands_for_ipv6() {
        let mut leases = Leases::new();
        let mut door = door("four", "stop");
        door.start.v6 = CommandTemplate::parse("six %IP%");
        let (command, _) = parts(leases.open(&door, "2001:db8::1".parse().unwrap(), at(0))).unwrap();
        assert_eq!(command, "six 2001:db8::1");
        door.start.v6 = None;
        assert_eq!(leases.open(&door, "2001:db8::2".parse().unwrap(), at(0)), None);
    }

    #[test]
    fn closing_stops_what_is_open_now_and_what_is_starting_when_it_has_started() {
        let mut leases = Leases::new();
        let opened = parts(leases.open(&door("a", "b"), source(), at(0))).unwrap().1;
        leases.handle_exit(opened, true, at(0));
        let starting = parts(leases.open(&door("c", "d"), source(), at(0))).unwrap().1;
        let runs = leases.close_all();
        assert_eq!(runs.iter().map(|run| run.command.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(leases.open(&door("e", "f"), source(), at(1)), None);
        assert_eq!(parts(leases.handle_exit(starting, true, at(1))), Some(("d".to_owned(), starting)));
        assert_eq!(leases.len(), 2);
        leases.handle_exit(starting, true, at(1));
        leases.handle_exit(opened, false, at(1));
        assert!(leases.is_empty());
    }
}
