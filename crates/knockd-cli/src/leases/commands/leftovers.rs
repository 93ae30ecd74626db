//! Start commands that outlive the daemon that ran them: they are ended before a stop command undoes what they do.
//!
//! Nothing is signalled that is not provably ours. A process group is ours as long as one process of it is known: at
//! first the shell, by its [`ProcessId`], then everything that was in the group while a known process was.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use knockd_core::{LeaseRecord, ProcessId, StartState};
use rustix::process::{Pid, Signal, kill_process_group};

use super::identity::{self, Place, Stat};
use crate::log::{Line, Log};
use crate::system::text::count;

/// How long a process has to exit after each signal.
const STEPS: [(Signal, Duration); 2] =
    [(Signal::TERM, Duration::from_secs(2)), (Signal::KILL, Duration::from_secs(1))];

/// How often to check whether they have.
const LOOK: Duration = Duration::from_millis(20);

/// How many there were, and which are still there.
#[derive(Default, Debug)]
struct Leftovers {
    found: usize,
    remaining: Vec<ProcessId>,
}

/// Ends start commands of stored leases that still run although their daemon does not, and logs that.
pub(in crate::leases) fn end_of(records: &[LeaseRecord], log: &Log) {
    let processes = records.iter().filter_map(|record| match record.start {
        StartState::Running(process) => process,
        StartState::Ended => None,
    });
    let left = end(processes);
    let ended = left.found - left.remaining.len();
    if ended > 0 {
        let commands = count(ended, "start command");
        log.write(&Line::notice(format!("terminated {commands} of an earlier knockd")));
    }
    for process in left.remaining {
        let text =
            format!("cannot terminate process {}, a start command of an earlier knockd", process.number);
        log.write(&Line::warning(text));
    }
}

/// Ends the process groups of those that still run. Without any, it takes no time; otherwise usually less than 3
/// seconds.
fn end(shells: impl IntoIterator<Item = ProcessId>) -> Leftovers {
    let Some(place) = Place::here() else { return Leftovers::default() };
    let shells = shells.into_iter().filter(|shell| place.has(shell));
    let mut groups: Vec<_> = shells.map(Group::new).filter(Group::is_known).collect();
    let found = groups.len();
    for (signal, limit) in STEPS {
        let all = identity::all();
        groups.retain_mut(|group| group.signal(&all, signal));
        let end = Instant::now() + limit;
        while !groups.is_empty() && Instant::now() < end {
            sleep(LOOK);
            let all = identity::all();
            groups.retain_mut(|group| group.look(&all));
        }
    }
    Leftovers { found, remaining: groups.into_iter().map(|group| group.shell).collect() }
}

/// A process group.
struct Group {
    shell: ProcessId,
    /// The processes known to be in it: number and start.
    known: BTreeMap<u32, u64>,
}

impl Group {
    fn new(shell: ProcessId) -> Self {
        Self { shell, known: BTreeMap::from([(shell.number, shell.started)]) }
    }

    /// Says whether this is a process of the group that was known before.
    fn knows(&self, number: u32, stat: Stat) -> bool {
        self.has(stat) && self.known.get(&number) == Some(&stat.started)
    }

    /// Says whether a process that still runs would be in the group, if the group is ours.
    const fn has(&self, stat: Stat) -> bool {
        stat.group == self.shell.number && !stat.is_over
    }

    /// Says whether a known process still runs, so the group's number is ours.
    fn is_known(&self) -> bool {
        self.known.keys().any(|&number| Stat::read(number).is_some_and(|stat| self.knows(number, stat)))
    }

    /// Signals the group, if it still exists.
    fn signal(&mut self, all: &[(u32, Stat)], signal: Signal) -> bool {
        // Right before the signal, the group is ours.
        if !self.look(all) || !self.is_known() {
            return false;
        }
        let group = i32::try_from(self.shell.number).ok().and_then(Pid::from_raw);
        group.is_some_and(|group| {
            let _ = kill_process_group(group, signal);
            true
        })
    }

    /// Learns which processes belong to the group by now; `false` once it is gone.
    fn look(&mut self, all: &[(u32, Stat)]) -> bool {
        let is_ours = all.iter().any(|&(number, stat)| self.knows(number, stat));
        let members = all.iter().filter(|(_, stat)| is_ours && self.has(*stat));
        self.known = members.map(|&(number, stat)| (number, stat.started)).collect();
        is_ours
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell in a group of its own, and its identity.
    fn start(script: &str) -> (Child, ProcessId) {
        let mut command = Command::new("/bin/sh");
        let shell = command.args(["-c", script]).process_group(0).stdin(Stdio::null()).spawn().unwrap();
        let identity = Place::here().unwrap().identify(shell.id()).unwrap();
        (shell, identity)
    }

    fn is_running(shell: &mut Child) -> bool {
        shell.try_wait().unwrap().is_none()
    }

    fn members(group: u32) -> usize {
        identity::all().iter().filter(|(_, stat)| stat.group == group && !stat.is_over).count()
    }

    #[test]
    fn the_whole_group_is_ended_even_if_it_ignores_the_signal() {
        for script in [
            "sleep 60 & sleep 60; :",
            "trap '' TERM; sleep 60 & sleep 60; :",
            "(trap '' TERM; sleep 60; sleep 60) & wait",
        ] {
            let (mut shell, identity) = start(script);
            while members(identity.number) < 3 {
                sleep(LOOK);
            }
            let ended = end([identity]);
            assert_eq!((ended.found, ended.remaining.len()), (1, 0), "{script}");
            assert_eq!(members(identity.number), 0, "{script}");
            assert!(!is_running(&mut shell));
        }
    }

    #[test]
    fn what_is_not_provably_ours_is_left_alone() {
        let (mut shell, identity) = start("sleep 60");
        let others = [
            ProcessId { started: identity.started - 1, ..identity },
            ProcessId { started: identity.started + 1, ..identity },
            ProcessId { namespace: identity.namespace + 1, ..identity },
            ProcessId { boot: !identity.boot, ..identity },
            ProcessId { number: u32::MAX, ..identity },
            ProcessId { number: 0, ..identity },
        ];
        assert_eq!(end(others).found, 0);
        assert!(is_running(&mut shell));
        // A process that leads no group, though everything else is right.
        let own = Place::here().unwrap().identify(std::process::id()).unwrap();
        let leads = Stat::read(own.number).unwrap().group == own.number;
        assert!(leads || end([own]).found == 0);
        assert_eq!(end([identity]).found, 1);
        assert!(!is_running(&mut shell));
    }

    #[test]
    fn what_a_shell_that_has_ended_left_in_the_background_is_left_alone() {
        let (mut shell, identity) = start("sleep 60 & :");
        shell.wait().unwrap();
        assert_eq!(end([identity]).found, 0);
        assert_eq!(members(identity.number), 1);
        let group = Pid::from_raw(i32::try_from(identity.number).unwrap()).unwrap();
        kill_process_group(group, Signal::KILL).unwrap();
    }
}
