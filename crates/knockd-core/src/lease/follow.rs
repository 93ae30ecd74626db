//! What keeps a lease of the firewall open beyond its time: what the caller has seen comes in, and moves its end or not.

use super::{Effect, LeaseId, Leases, Phase, Sight};
use crate::config::Door;
use crate::time::Now;

impl Leases {
    /// Has what keeps leases open be what these doors now say, because the firewall does it.
    pub fn follow(&mut self, doors: &[Door]) {
        for lease in self.table.iter_mut().filter(|lease| lease.key.admitted().is_some()) {
            let door = doors.iter().find(|door| door.name == lease.key.door && door.is_guarded());
            lease.extend = door.and_then(|door| door.extend);
        }
    }

    /// Handles what the caller has seen after an [`Effect::Look`]. An unknown `id` is ignored, and so is one whose lease
    /// has been closed or extended meanwhile.
    pub fn handle_sight(&mut self, id: LeaseId, sight: Sight, now: Now) -> Vec<Effect> {
        let Some(slot) = self.table.find(id) else { return Vec::new() };
        let Some(lease) = self.table.get_mut(slot) else { return Vec::new() };
        let Phase::Open { until, failed, is_looked_at: true, .. } = lease.phase else { return Vec::new() };
        let (until, extends) = match sight {
            Sight::Left(left) => (now.monotonic.after(left), false),
            Sight::Connections(number) => {
                lease.connections = Some(number);
                let extend = lease.extend.filter(|_| number > 0);
                let longer = extend.map(|extend| now.monotonic.after(extend.time()));
                (longer.map_or(until, |longer| until.max(longer)), longer.is_some())
            }
        };
        let mut effects = Vec::new();
        if until <= now.monotonic {
            effects.push(lease.stop(0));
        } else {
            lease.keep_open(until, failed, now);
            if extends && let Phase::Open { next, .. } = &mut lease.phase {
                *next = (*next).min(now.monotonic.after(until.since(now.monotonic) / 2));
                effects = lease.prolong_admission(until, now);
            }
        }
        self.table.note_due(slot);
        effects
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;
    use crate::config::{Extend, Key, Options};
    use crate::lease::{Admission, LeaseFilter};
    use crate::text::DoorName;
    use crate::time::{Timestamp, UnixTime};

    const ID: LeaseId = LeaseId(1);

    fn at(milliseconds: u64) -> Timestamp {
        Timestamp::ZERO.after(Duration::from_millis(milliseconds))
    }

    fn on(milliseconds: u64) -> Now {
        Now { monotonic: at(milliseconds), calendar: UnixTime::new(Duration::from_millis(milliseconds)) }
    }

    fn source() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    /// A door whose lease is 30 seconds.
    fn door(extend: &str) -> Door {
        let key = Key::Sequence("1,2".parse().unwrap());
        let mut door = Door::new(DoorName::new("ssh").unwrap(), key);
        door.open = Some("tcp/22".parse().unwrap());
        door.cmd_timeout = Door::DEFAULT_LEASE;
        door.extend = extend.parse::<Extend>().ok();
        door
    }

    /// Returns the effects in short form, with times in milliseconds.
    fn told(effects: Vec<Effect>) -> Vec<String> {
        let tell = |effect: Effect| match effect {
            Effect::Admit(Admission { id: ID, .. }, time) => format!("admit {}", time.as_millis()),
            Effect::Prolong(Admission { id: ID, .. }, time) => format!("prolong {}", time.as_millis()),
            Effect::Look(Admission { id: ID, .. }) => "look".to_owned(),
            Effect::Shut(Admission { id: ID, .. }) => "shut".to_owned(),
            Effect::EndMoved(ID, until) => format!("until {}", until.since(Timestamp::ZERO).as_millis()),
            other => panic!("{other:?}"),
        };
        effects.into_iter().map(tell).collect()
    }

    fn knock(leases: &mut Leases, door: &Door, now: u64) -> Vec<String> {
        told(leases.open(door, source(), Options::DEFAULT_MAX_OPEN, on(now)).1)
    }

    /// Knocks at time 0, and is let in.
    fn opened(extend: &str) -> (Leases, Door) {
        let (mut leases, door) = (Leases::new(), door(extend));
        assert_eq!(knock(&mut leases, &door, 0), ["admit 30000"]);
        assert!(leases.handle_exit(ID, true, on(0)).is_empty());
        (leases, door)
    }

    /// Looks at the time when something is due, and returns what comes of what is seen then.
    fn look(leases: &mut Leases, due: u64, sight: Sight) -> Vec<String> {
        assert_eq!(leases.poll_timeout(), Some(at(due)));
        assert_eq!(told(leases.handle_timeout(at(due))), ["look"]);
        assert_eq!((leases.poll_timeout(), told(leases.handle_timeout(at(due)))), (None, vec![]));
        told(leases.handle_sight(ID, sight, on(due)))
    }

    const fn connections(number: u32) -> Sight {
        Sight::Connections(number)
    }

    const fn left(milliseconds: u64) -> Sight {
        Sight::Left(Duration::from_millis(milliseconds))
    }

    #[test]
    fn a_connection_at_the_end_of_a_lease_keeps_it_open_until_none_is_seen_any_more() {
        let (mut leases, _) = opened("connected 5");
        assert_eq!(look(&mut leases, 30_000, connections(2)), ["prolong 5000", "until 35000"]);
        assert_eq!(leases.get(ID).unwrap().connections, Some(2));
        assert_eq!(look(&mut leases, 32_500, connections(1)), ["prolong 5000", "until 37500"]);
        assert!(leases.handle_exit(ID, true, on(32_500)).is_empty());
        assert_eq!(look(&mut leases, 35_000, connections(0)), [""; 0]);
        assert_eq!(look(&mut leases, 37_500, connections(0)), ["shut"]);
        assert!(leases.handle_exit(ID, true, on(37_500)).is_empty());
        assert!(leases.is_empty());
    }

    #[test]
    fn who_connects_again_in_time_keeps_the_door_open() {
        let (mut leases, _) = opened("connected 5");
        look(&mut leases, 30_000, connections(1));
        assert_eq!(look(&mut leases, 32_500, connections(0)), [""; 0]);
        assert_eq!(look(&mut leases, 35_000, connections(1)), ["prolong 5000", "until 40000"]);
    }

    #[test]
    fn without_a_connection_a_door_closes_at_the_end_of_its_lease() {
        let (mut leases, _) = opened("connected 5");
        assert_eq!(look(&mut leases, 30_000, connections(0)), ["shut"]);
    }

    #[test]
    fn the_firewall_knows_the_end_of_a_lease_that_packets_extend() {
        let (mut leases, _) = opened("idle 4");
        // A first packet would have replaced the 30 seconds by 4.
        assert_eq!(look(&mut leases, 4_000, left(26_000)), [""; 0]);
        assert_eq!(look(&mut leases, 8_000, left(3_900)), [""; 0]);
        assert_eq!(look(&mut leases, 11_900, left(1)), [""; 0]);
        assert_eq!(look(&mut leases, 11_901, left(0)), ["shut"]);
    }

    #[test]
    fn a_knock_while_the_caller_looks_counts_and_the_answer_does_not() {
        for (extend, due, sight) in [("connected 5", 30_000, connections(0)), ("idle 4", 4_000, left(0))] {
            let (mut leases, door) = opened(extend);
            assert_eq!(told(leases.handle_timeout(at(due))), ["look"]);
            let until = due + 30_100;
            assert_eq!(
                knock(&mut leases, &door, due + 100),
                ["admit 30000".to_owned(), format!("until {until}")]
            );
            assert_eq!(told(leases.handle_sight(ID, sight, on(due + 200))), [""; 0]);
            assert!(leases.poll_timeout().is_some());
            assert_eq!(leases.len(), 1);
        }
    }

    #[test]
    fn what_a_person_asks_for_while_the_caller_looks_counts_and_the_answer_does_not() {
        let all = LeaseFilter::default();
        let (mut leases, _) = opened("connected 5");
        leases.handle_timeout(at(30_000)).clear();
        let longer = leases.extend(&all, Some(Duration::from_secs(60)), on(30_000));
        assert_eq!(told(longer), ["admit 60000", "until 90000"]);
        assert_eq!(told(leases.handle_sight(ID, connections(0), on(30_001))), [""; 0]);
        assert_eq!(told(leases.handle_timeout(at(90_000))), ["look"]);
        assert_eq!(told(leases.close(&all, on(90_000))), ["shut"]);
        assert_eq!(told(leases.handle_sight(ID, connections(1), on(90_001))), [""; 0]);
        let (mut leases, _) = opened("connected 5");
        leases.handle_timeout(at(30_000)).clear();
        assert_eq!(told(leases.close_all(on(30_000))), ["shut"]);
    }

    #[test]
    fn a_caller_that_cannot_look_closes_the_door_in_time() {
        let (mut leases, _) = opened("connected 5");
        look(&mut leases, 30_000, connections(1));
        assert_eq!(told(leases.handle_timeout(at(32_500))), ["look"]);
        assert_eq!(told(leases.handle_exit(ID, false, on(32_500))), [""; 0]);
        assert_eq!(told(leases.handle_timeout(at(35_000))), ["look"]);
        assert_eq!(told(leases.handle_exit(ID, false, on(35_000))), ["shut"]);
    }

    #[test]
    fn a_refusal_to_prolong_makes_the_next_knock_open_anew() {
        let (mut leases, door) = opened("connected 5");
        look(&mut leases, 30_000, connections(1));
        assert_eq!(told(leases.handle_exit(ID, false, on(30_000))), [""; 0]);
        assert_eq!(knock(&mut leases, &door, 31_000), ["admit 30000"]);
    }

    #[test]
    fn a_door_that_changes_with_the_configuration_changes_what_keeps_its_leases_open() {
        let (mut leases, _) = opened("connected 5");
        leases.follow(&[door("")]);
        assert_eq!(told(leases.handle_timeout(at(30_000))), ["shut"]);
        let (mut leases, _) = opened("");
        leases.follow(&[door("connected 7")]);
        assert_eq!(look(&mut leases, 30_000, connections(1)), ["prolong 7000", "until 37000"]);
        leases.follow(&[]);
        assert_eq!(told(leases.handle_timeout(at(33_500))), ["shut"]);
    }

    #[test]
    fn a_lease_of_an_earlier_process_is_followed() {
        let mut leases = Leases::new();
        leases.restore_admission(&door("connected 5"), source().into(), Duration::from_secs(2), on(0));
        assert_eq!(look(&mut leases, 2_000, connections(1)), ["prolong 5000", "until 7000"]);
    }
}
