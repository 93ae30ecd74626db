//! What a person may do with leases: list them, close one early, keep one open longer.

use std::net::IpAddr;
use std::time::Duration;

use super::{Effect, Lease, LeaseId, LeaseKey, Leases, Phase};
use crate::config::Extend;
use crate::text::DoorName;
use crate::time::{Now, Timestamp};

/// Which leases a request concerns.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LeaseFilter {
    /// Doors with this name; `None` for all doors.
    pub door: Option<DoorName>,
    /// This source; `None` for every source.
    pub source: Option<IpAddr>,
}

impl LeaseFilter {
    /// Says whether the request concerns this lease.
    pub fn includes(&self, key: &LeaseKey) -> bool {
        self.door.as_ref().is_none_or(|door| *door == key.door)
            && self.source.is_none_or(|source| key.is_for(source))
    }
}

/// A lease, as shown to a person.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct LeaseView<'a> {
    /// The lease.
    pub id: LeaseId,
    /// What distinguishes it.
    pub key: &'a LeaseKey,
    /// Its state.
    pub state: LeaseState,
    /// What keeps it open beyond its time.
    pub extend: Option<Extend>,
    /// How many connections kept it open at the last [`Effect::Look`]; `None` if there was none.
    pub connections: Option<u32>,
}

/// The state of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum LeaseState {
    /// The start command is running.
    Starting,
    /// The door is open.
    Open {
        /// When the stop command is due. With [`Extend::Idle`], the firewall knows it better.
        until: Timestamp,
        /// Whether the start command failed.
        failed: bool,
    },
    /// The stop command is running.
    Closing,
    /// The stop command failed.
    Retrying {
        /// When it will be retried.
        again: Timestamp,
        /// How often it has failed.
        failures: usize,
    },
}

impl Leases {
    /// Returns all leases, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = LeaseView<'_>> {
        let all = self.table.oldest_first(|_| true).into_iter();
        all.filter_map(|slot| self.table.get(slot)).map(view)
    }

    /// Returns a lease, unless it has ended.
    pub fn get(&self, id: LeaseId) -> Option<LeaseView<'_>> {
        self.table.find(id).and_then(|slot| self.table.get(slot)).map(view)
    }

    /// Closes every selected lease early: returns the stop commands, each after the record of its lease.
    ///
    /// A lease whose start command is still running closes once that ends, unless another knock arrives before. A
    /// running stop command is the last one, even if a knock arrived meanwhile, and one that waits for a retry is
    /// retried at once.
    pub fn close(&mut self, which: &LeaseFilter, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        for slot in self.table.oldest_first(|lease| which.includes(&lease.key)) {
            let Some(lease) = self.table.get_mut(slot) else { continue };
            match lease.phase {
                Phase::Starting { .. } => lease.phase = Phase::Starting { closes: true },
                Phase::Stopping { failures, .. } => {
                    lease.phase = Phase::Stopping { failures, knocked: false };
                }
                Phase::Open { .. } | Phase::Failing { .. } => {
                    effects.extend(lease.close_early(now));
                }
            }
            self.table.note_due(slot);
        }
        effects
    }

    /// Keeps every selected lease open for `time` from now or, without one, for its `Cmd_Timeout`, but never shorter
    /// than before; each returns an [`Effect::EndMoved`].
    ///
    /// If its start command is still running, the time starts when that ends. A lease that is closing does not
    /// change.
    pub fn extend(&mut self, which: &LeaseFilter, time: Option<Duration>, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        for slot in self.table.oldest_first(|lease| which.includes(&lease.key)) {
            let Some(lease) = self.table.get_mut(slot) else { continue };
            let time = time.unwrap_or(lease.cmd_timeout);
            let (until, failed) = match lease.phase {
                Phase::Starting { closes: false } => {
                    lease.cmd_timeout = lease.cmd_timeout.max(time);
                    // If the daemon dies now, its successor keeps the door open as long.
                    (now.monotonic.after(lease.cmd_timeout), false)
                }
                Phase::Open { until, failed, .. } => (lease.prolong(until, failed, time, now), failed),
                Phase::Starting { closes: true } | Phase::Stopping { .. } | Phase::Failing { .. } => continue,
            };
            effects.extend(lease.move_end(until, failed, now));
            self.table.note_due(slot);
        }
        effects
    }
}

fn view(lease: &Lease) -> LeaseView<'_> {
    let state = match lease.phase {
        Phase::Starting { .. } => LeaseState::Starting,
        Phase::Open { until, failed, .. } => LeaseState::Open { until, failed },
        Phase::Stopping { .. } => LeaseState::Closing,
        Phase::Failing { failures, again } => LeaseState::Retrying { again, failures },
    };
    LeaseView { id: lease.id, key: &lease.key, state, extend: lease.extend, connections: lease.connections }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::command::CommandTemplate;
    use crate::config::{Action, Commands, Door, Key, Options};
    use crate::lease::{Run, RunKind};
    use crate::outcome::OpeningResult;
    use crate::time::UnixTime;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO.after(Duration::from_secs(seconds))
    }

    /// The calendar has the same origin.
    fn on(seconds: u64) -> Now {
        Now { monotonic: at(seconds), calendar: UnixTime::new(Duration::from_secs(seconds)) }
    }

    fn source() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    /// A door that stays open for ten seconds.
    fn door() -> Door {
        let command = |text| Commands::both(CommandTemplate::parse(text).unwrap());
        let sequence = Key::Sequence("1,2".parse().unwrap());
        let action = Action::Commands { start: command("a"), stop: command("b") };
        Door { action, ..Door::new(DoorName::new("door").unwrap(), sequence) }
    }

    /// Knocks at time 0.
    fn knocked() -> (Leases, LeaseId) {
        let mut leases = Leases::new();
        let effects = leases.open(&door(), source(), Options::DEFAULT_MAX_OPEN, on(0)).1;
        let Some(&Effect::Run(Run { id, .. })) = effects.last() else { panic!("{effects:?}") };
        (leases, id)
    }

    fn opened() -> (Leases, LeaseId) {
        let (mut leases, id) = knocked();
        leases.handle_exit(id, true, on(0));
        (leases, id)
    }

    fn knock(leases: &mut Leases, seconds: u64) {
        let (result, _) = leases.open(&door(), source(), Options::DEFAULT_MAX_OPEN, on(seconds));
        assert!(!matches!(result, OpeningResult::Full(_)));
    }

    /// Returns the kinds of commands to run.
    fn runs(effects: &[Effect]) -> Vec<RunKind> {
        let runs = effects.iter().filter_map(|effect| match effect {
            Effect::Run(run) => Some(run.kind),
            _ => None,
        });
        runs.collect()
    }

    fn all() -> LeaseFilter {
        LeaseFilter::default()
    }

    fn of_door(name: &str) -> LeaseFilter {
        LeaseFilter { door: Some(DoorName::new(name).unwrap()), source: Some(source()) }
    }

    #[test]
    fn an_open_door_is_closed_at_once_and_only_the_one_that_is_meant() {
        let (mut leases, id) = opened();
        assert_eq!(leases.close(&of_door("other"), on(0)), []);
        let effects = leases.close(&of_door("door"), on(0));
        assert_eq!((runs(&effects), leases.poll_timeout()), (vec![RunKind::Stop], None));
        assert_eq!(leases.iter().next().unwrap().state, LeaseState::Closing);
        assert_eq!(leases.close(&all(), on(0)), [], "it is being closed");
        assert_eq!(leases.handle_exit(id, true, on(1)), [Effect::Forget(id)]);
    }

    #[test]
    fn a_door_that_is_just_opening_is_closed_when_its_start_command_has_ended_unless_somebody_knocks() {
        for knocks in [false, true] {
            let (mut leases, id) = knocked();
            assert_eq!(leases.close(&all(), on(0)), []);
            assert_eq!(leases.extend(&all(), None, on(0)), []);
            if knocks {
                knock(&mut leases, 0);
            }
            let stops = runs(&leases.handle_exit(id, true, on(1)));
            assert_eq!(stops.is_empty(), knocks);
        }
    }

    #[test]
    fn closing_takes_back_a_knock_during_the_stop_command_and_hurries_a_retry() {
        let (mut leases, id) = opened();
        leases.handle_timeout(at(10));
        knock(&mut leases, 10);
        assert_eq!(leases.close(&all(), on(10)), []);
        assert_eq!(leases.handle_exit(id, false, on(11)), []);
        assert_eq!(leases.iter().next().unwrap().state, LeaseState::Retrying { again: at(13), failures: 1 });
        assert_eq!(leases.extend(&all(), None, on(11)), []);
        assert_eq!(runs(&leases.close(&all(), on(11))), [RunKind::Stop]);
        assert_eq!(leases.poll_timeout(), None);
        assert_eq!(leases.handle_exit(id, true, on(12)), [Effect::Forget(id)]);
    }

    #[test]
    fn a_lease_is_extended_by_its_own_time_or_another_and_never_shortened_not_even_by_a_knock() {
        let (mut leases, _) = opened();
        let until = |leases: &Leases| leases.poll_timeout().unwrap();
        assert_eq!((leases.extend(&all(), None, on(5)).len(), until(&leases)), (2, at(15)));
        let effects = leases.extend(&all(), Some(Duration::from_secs(3600)), on(5));
        assert!(
            matches!(&effects[..], [Effect::Store(record), Effect::EndMoved(_, end)] if *end == at(3605) && record.until == on(3605).calendar && record.cmd_timeout.duration().as_secs() == 3600)
        );
        assert_eq!(leases.extend(&all(), Some(Duration::from_secs(1)), on(6)).len(), 2);
        assert_eq!(until(&leases), at(3605));
        knock(&mut leases, 7);
        assert_eq!(until(&leases), at(3605));
        knock(&mut leases, 3600);
        assert_eq!(until(&leases), at(3610));
    }

    #[test]
    fn a_lease_that_is_starting_gets_its_longer_time_when_it_has_started() {
        let (mut leases, id) = knocked();
        let effects = leases.extend(&all(), Some(Duration::from_secs(60)), on(0));
        assert!(
            matches!(&effects[..], [Effect::Store(record), Effect::EndMoved(_, end)] if *end == at(60) && record.until == on(60).calendar)
        );
        leases.handle_exit(id, true, on(2));
        assert_eq!(leases.poll_timeout(), Some(at(62)));
    }
}
