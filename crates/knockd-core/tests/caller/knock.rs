//! What a knock must come to.

use std::net::IpAddr;

use knockd_core::config::Reopen;
use knockd_core::parts::Leases;
use knockd_core::{Door, Effect, Full, OpeningResult, RunKind};

use super::doors::{commands_of, key_of, network};
use super::{Caller, Known, State, prolong};

impl Caller {
    pub(super) fn knock(&mut self, door: &Door, source: IpAddr) {
        self.reopen = door.reopen;
        let (result, effects) = self.leases.open(door, source, self.max_open, self.both_clocks());
        if let OpeningResult::Full(full) = result {
            assert_eq!(effects, []);
            return self.check_full(full, door, source);
        }
        let (start, stop) = commands_of(door, source);
        let Some(start) = start.filter(|_| !self.closing) else {
            let expected = if self.closing { OpeningResult::Closing } else { OpeningResult::NothingToRun };
            assert_eq!((result, effects), (expected, vec![]));
            return;
        };
        let Some(stop) = stop else {
            assert_eq!(result, OpeningResult::Opened);
            assert!(matches!(effects.as_slice(), [Effect::Run(run)] if run.command == start), "{effects:?}");
            self.carry_out(effects);
            return;
        };
        let key = key_of(door, source, start, stop);
        let now = self.both_clocks();
        let mut alike = self.known.values_mut().filter(|known| *known.key == key);
        let current = alike.next().filter(|_| door.reopen == Reopen::Extend);
        let runs = match current {
            None => true,
            Some(Known { state, cmd_timeout, .. }) => match state {
                State::Open { until, failed } => {
                    let failed = *failed;
                    prolong(until, cmd_timeout, door.cmd_timeout.into(), self.now);
                    if !failed {
                        assert_eq!(result, OpeningResult::Extended { until: *until });
                        let [Effect::Store(record), Effect::EndMoved(id, end)] = effects.as_slice() else {
                            panic!("{effects:?}");
                        };
                        assert_eq!((record.id, record.until, *end), (*id, now.calendar_at(*until), *until));
                    }
                    failed
                }
                State::Running { knocked, closes, kind } => {
                    (*knocked, *closes) = (true, false);
                    *cmd_timeout = match kind {
                        RunKind::Start => door.cmd_timeout.duration().max(*cmd_timeout),
                        RunKind::Stop => door.cmd_timeout.into(),
                    };
                    assert_eq!((result, effects.as_slice()), (OpeningResult::Queued, [].as_slice()));
                    false
                }
                State::Failing => {
                    *cmd_timeout = door.cmd_timeout.into();
                    true
                }
                State::Ended { .. } => panic!("{state:?}"),
            },
        };
        if runs {
            let [Effect::Store(record), Effect::Run(run)] = effects.as_slice() else { panic!("{effects:?}") };
            assert_eq!(result, OpeningResult::Opened);
            let until = now.calendar_at(self.now.after(record.cmd_timeout.duration()));
            assert_eq!((&*record.key, record.until), (&key, until));
            assert!(record.cmd_timeout.duration() >= door.cmd_timeout.into());
            assert_eq!((run.id, run.kind), (record.id, RunKind::Start));
        }
        self.carry_out(effects);
    }

    /// There must be no room for a new lease, and the knock must have needed one.
    fn check_full(&self, full: Full, door: &Door, source: IpAddr) {
        let of_door = self.known.values().filter(|known| known.key.door == door.name);
        match full {
            Full::Everywhere => assert!(self.known.len() >= self.max_open.get() as usize),
            Full::Door => assert!(of_door.clone().count() >= door.max_open.unwrap().get() as usize),
            Full::Network => {
                let of_network = of_door.clone().filter(|known| network(known.key.source) == network(source));
                assert_eq!(of_network.count(), Leases::MAX_OF_NETWORK as usize);
            }
        }
        let (start, stop) = commands_of(door, source);
        let key = key_of(door, source, start.unwrap(), stop.unwrap());
        assert!(door.reopen == Reopen::Run || of_door.clone().all(|known| *known.key != key));
    }
}
