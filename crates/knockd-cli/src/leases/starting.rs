//! Leases whose start command has not ended: what of them is stored when, and when the command may run.
//!
//! A record waits for the shell, because it says which process that is; the shell waits for the record, because a
//! command that no record knows could outlive us.

use std::collections::{BTreeMap, VecDeque};

use knockd_core::{LeaseId, LeaseRecord, ProcessId, Run, StartState};

use super::writer::Ticket;

#[derive(Default, Debug)]
pub(super) struct Starting {
    leases: BTreeMap<LeaseId, Lease>,
    /// Those whose shell waits until this ticket is done.
    unsaved: VecDeque<(Ticket, LeaseId)>,
}

#[derive(Debug)]
struct Lease {
    /// The latest record.
    record: LeaseRecord,
    /// Whether it is stored, or on its way.
    is_stored: bool,
    /// The command, until it runs.
    run: Option<Run>,
}

impl Starting {
    /// Takes a record, and returns what to store now.
    pub(super) fn take(&mut self, mut record: LeaseRecord) -> Option<LeaseRecord> {
        if record.start == StartState::Ended {
            return Some(record);
        }
        if let Some(lease) = self.leases.get_mut(&record.id) {
            record.start = lease.record.start;
            lease.record = record.clone();
            return lease.is_stored.then_some(record);
        }
        self.leases.insert(record.id, Lease { record, is_stored: false, run: None });
        None
    }

    /// Notes that the shell of a command starts; `false` if the command is not one of a lease.
    pub(super) fn prepare(&mut self, run: &Run) -> bool {
        let Some(lease) = self.leases.get_mut(&run.id) else { return false };
        lease.run = Some(run.clone());
        true
    }

    /// Notes the process of a shell that waits, and returns what to store because of that.
    pub(super) fn handle_shell(&mut self, id: LeaseId, process: Option<ProcessId>) -> Option<LeaseRecord> {
        let lease = self.leases.get_mut(&id)?;
        lease.is_stored = true;
        lease.record.start = StartState::Running(process);
        Some(lease.record.clone())
    }

    /// Lets a shell wait until this ticket is done.
    pub(super) fn wait(&mut self, id: LeaseId, ticket: Ticket) {
        self.unsaved.push_back((ticket, id));
    }

    /// Returns a command that may run now that everything up to this ticket is done; call it until there is none.
    pub(super) fn next(&mut self, done: Ticket) -> Option<Run> {
        while self.unsaved.front().is_some_and(|(ticket, _)| *ticket <= done)
            && let Some((_, id)) = self.unsaved.pop_front()
        {
            let run = self.begin(id);
            if run.is_some() {
                return run;
            }
        }
        None
    }

    /// Notes that a command runs; returns it if it did not before.
    pub(super) fn begin(&mut self, id: LeaseId) -> Option<Run> {
        self.leases.get_mut(&id)?.run.take()
    }

    /// Notes that a command has ended; returns it if it had not begun.
    pub(super) fn end(&mut self, id: LeaseId) -> Option<Run> {
        let run = self.leases.remove(&id)?.run;
        if run.is_some() {
            // The next command of the lease has to wait for its own record.
            self.unsaved.retain(|(_, other)| *other != id);
        }
        run
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    pub(super) fn ids(&self) -> impl ExactSizeIterator<Item = LeaseId> {
        self.leases.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use knockd_core::{Access, DoorName, LeaseKey, Milliseconds, RunKind, UnixTime};

    use super::*;

    const ID: LeaseId = LeaseId(1);
    const PROCESS: ProcessId = ProcessId { number: 7, started: 8, namespace: 9, boot: 10 };

    fn record(until: u64, start: StartState) -> LeaseRecord {
        let access = Access::Commands { start: "open".parse().unwrap(), stop: "close".parse().unwrap() };
        let source = "192.0.2.1".parse().unwrap();
        let key = LeaseKey { door: DoorName::new("door").unwrap(), source, access }.into();
        let until = UnixTime::new(Duration::from_secs(until));
        LeaseRecord {
            id: ID,
            key,
            cmd_timeout: Milliseconds::default(),
            until,
            failed: false,
            start,
            boot: None,
        }
    }

    fn run() -> Run {
        let (door, source) = (DoorName::new("door").unwrap(), "192.0.2.1".parse().unwrap());
        Run { id: ID, kind: RunKind::Start, door, source, command: "open".parse().unwrap() }
    }

    fn running(process: Option<ProcessId>) -> StartState {
        StartState::Running(process)
    }

    #[test]
    fn a_record_waits_for_its_process_and_a_command_for_its_record() {
        let mut starting = Starting::default();
        assert_eq!(starting.take(record(1, running(None))), None);
        assert!(starting.prepare(&run()));
        // It is extended before its process is known, and after.
        assert_eq!(starting.take(record(2, running(None))), None);
        let known = record(2, running(Some(PROCESS)));
        assert_eq!(starting.handle_shell(ID, Some(PROCESS)), Some(known));
        starting.wait(ID, Ticket(5));
        let known = record(3, running(Some(PROCESS)));
        assert_eq!(starting.take(record(3, running(None))), Some(known));
        assert_eq!((starting.next(Ticket(4)), starting.next(Ticket(5))), (None, Some(run())));
        assert_eq!((starting.next(Ticket(6)), starting.end(ID)), (None, None));
        assert_eq!(starting.take(record(4, StartState::Ended)), Some(record(4, StartState::Ended)));
        assert!(starting.is_empty() && !starting.prepare(&run()));
    }

    #[test]
    fn a_command_does_not_run_because_of_the_record_of_one_that_ended_before_it_began() {
        let mut starting = Starting::default();
        for ticket in [1, 2] {
            starting.take(record(1, running(None)));
            starting.prepare(&run());
            starting.handle_shell(ID, None);
            starting.wait(ID, Ticket(ticket));
            if ticket == 1 {
                assert_eq!(starting.end(ID), Some(run()));
            }
        }
        assert_eq!((starting.next(Ticket(1)), starting.next(Ticket(2))), (None, Some(run())));
    }
}
