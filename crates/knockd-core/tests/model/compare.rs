//! The comparison of the real matcher with the naive one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use knockd_core::parts::Matcher;
use knockd_core::{
    Door, DoorId, Event, EventKind, Hit, Interest, OwnAddress, Packet, Protocol, Seed, Sequence, Timestamp,
    Visibility,
};

use super::Model;

/// One thing that is done to a matcher.
#[derive(Clone, Debug)]
pub enum Op {
    /// Time passes.
    Wait(Duration),
    /// A packet comes.
    Packet(Packet),
    /// The timeout handler is called, wanted or not.
    Timeout,
    /// The timeout handler is called at the moment at which it wants to be.
    TimeoutWhenDue,
    /// The door with this index gets this one-time sequence; nothing happens if it is not such a door.
    Sequence(usize, Option<Sequence>),
    /// The host has these addresses from now on.
    Addresses(Vec<OwnAddress>),
    /// What this source has begun does not count any more.
    Forget(IpAddr),
    /// The configuration is replaced.
    Doors(Vec<Door>),
}

/// Runs the operations on the real matcher and on the naive one, and panics where they differ.
///
/// A matcher whose bound may have been reached is only held to its bound and to opening nothing without a knock.
pub fn compare(doors: &[Door], max_attempts: NonZeroU32, addresses: &[IpAddr], ops: &[Op]) {
    let mut pair = Pair {
        is_exact: max_attempts.get() as usize >= 8 * (ops.len() + 1),
        max_attempts,
        addresses: vec![],
        now: Timestamp::ZERO,
        matcher: Matcher::new(doors, max_attempts, Seed::new(1, 2)),
        lazy: Matcher::new(doors, max_attempts, Seed::new(1, 2)),
        model: Model::new(doors),
        events: vec![],
        lazy_events: vec![],
    };
    pair.do_op(&Op::Addresses(addresses.iter().copied().map(Into::into).collect()));
    for op in ops {
        pair.do_op(op);
    }
    pair.do_op(&Op::Wait(Duration::from_secs(1_000_000)));
    pair.settle();
    assert_eq!(pair.matcher.attempts(), 0, "everything times out");
    if pair.is_exact {
        let of_door = |events: &[Event]| {
            let mut by_door: HashMap<_, Vec<_>> = HashMap::new();
            for event in events {
                by_door.entry((event.source, event.door)).or_default().push(event.kind);
            }
            by_door
        };
        assert_eq!(of_door(&pair.events), of_door(&pair.lazy_events), "early calls changed something");
    }
}

struct Pair {
    is_exact: bool,
    max_attempts: NonZeroU32,
    addresses: Vec<OwnAddress>,
    now: Timestamp,
    matcher: Matcher,
    /// Another matcher, which is only shown what [`Matcher::interests`] names and never called before its time.
    lazy: Matcher,
    model: Model,
    /// What happened since the doors were last numbered, and what did according to the lazy matcher.
    events: Vec<Event>,
    lazy_events: Vec<Event>,
}

impl Pair {
    fn do_op(&mut self, op: &Op) {
        // Time alone ends nothing that is counted.
        let is_current = !matches!(op, Op::Wait(_));
        match op {
            Op::Wait(wait) => self.now = self.now.after(*wait),
            Op::Packet(packet) => self.do_packet(packet),
            Op::Timeout => self.do_timeout(),
            Op::TimeoutWhenDue => {
                self.now = self.matcher.poll_timeout().map_or(self.now, |due| due.max(self.now));
                self.do_timeout();
            }
            Op::Sequence(door, _) if !self.model.is_one_time(*door) => (),
            Op::Sequence(door, sequence) => {
                self.settle();
                self.matcher.set_sequence(DoorId::new(*door), sequence.clone());
                self.lazy.set_sequence(DoorId::new(*door), sequence.clone());
                self.model.set_sequence(*door, sequence.clone());
            }
            Op::Addresses(addresses) => {
                self.addresses.clone_from(addresses);
                self.matcher.set_addresses(addresses.iter().copied());
                self.lazy.set_addresses(addresses.iter().copied());
                self.model.set_addresses(addresses);
            }
            Op::Forget(source) => {
                self.settle();
                self.matcher.forget(*source);
                self.lazy.forget(*source);
                self.model.forget(*source);
            }
            Op::Doors(doors) => {
                self.settle();
                self.matcher.set_doors(doors, self.max_attempts);
                self.lazy.set_doors(doors, self.max_attempts);
                self.model.set_doors(doors);
            }
        }
        assert!(self.matcher.attempts() <= self.max_attempts.get() as usize, "more attempts than allowed");
        if self.is_exact {
            let attempts = self.model.attempts();
            if is_current {
                assert_eq!(self.matcher.attempts(), attempts.len() + self.model.cooling());
                assert_eq!(self.matcher.underway_count(), attempts.len());
                let mut shown: Vec<_> = self.matcher.underway().collect();
                assert!(shown.is_sorted_by(|a, b| a.stage >= b.stage), "the most advanced stand first");
                shown.sort_by_key(|attempt| (attempt.source, attempt.door));
                let shown = shown.iter().map(|attempt| {
                    let door = attempt.door.index();
                    let end = attempt.begun.after(self.model.doors[door].0.seq_timeout.into());
                    (attempt.source, door, attempt.stage, end)
                });
                assert_eq!(shown.collect::<Vec<_>>(), attempts);
            }
            let due = attempts.iter().map(|&(_, _, _, end)| end).min();
            assert!(due.is_none_or(|due| self.matcher.poll_timeout().is_some_and(|poll| poll <= due)));
        }
    }

    fn do_packet(&mut self, packet: &Packet) {
        let interests = self.matcher.interests();
        let is_of_interest = interests.iter().any(|interest| self.is_meant(interest, packet));
        let visibility = self.matcher.visibility(packet);
        assert_eq!(visibility == Visibility::Visible, is_of_interest, "{packet:?}");
        assert_eq!(visibility, self.model.visibility(packet), "{packet:?}");
        let events = self.matcher.handle_packet(packet, self.now).to_vec();
        if is_of_interest {
            self.lazy_events.extend(self.lazy.handle_packet(packet, self.now));
        }
        let (timed_out, own) = self.model.handle_packet(packet, self.now);
        for event in &events {
            let has_opened = event.kind == EventKind::Opened;
            assert!(!has_opened || self.model.has_knocked(event.source, event.door.index()), "{event:?}");
        }
        if self.is_exact {
            let (first, rest) = events.split_at(timed_out.len());
            assert_eq!(sorted(first), sorted(&timed_out));
            assert_eq!(rest, own);
        }
        self.events.extend(events);
    }

    fn do_timeout(&mut self) {
        let events = self.matcher.handle_timeout(self.now).to_vec();
        let timed_out = self.model.handle_timeout(self.now);
        if self.is_exact {
            assert_eq!(sorted(&events), sorted(&timed_out));
        }
        self.events.extend(events);
        assert!(self.matcher.poll_timeout().is_none_or(|due| due > self.now), "asks for the present again");
        assert_eq!(self.matcher.handle_timeout(self.now), [], "a second call did something");
    }

    /// Lets the lazy matcher catch up, since what comes next may drop attempts or give doors other numbers.
    fn settle(&mut self) {
        self.do_timeout();
        self.lazy_events.extend(self.lazy.handle_timeout(self.now));
    }

    fn is_meant(&self, interest: &Interest, packet: &Packet) -> bool {
        let flags = match packet.hit {
            Hit::Tcp { flags, .. } => interest.flags.accepts(flags),
            Hit::Udp { .. } => interest.step.protocol == Protocol::Udp,
        };
        let destination = match interest.target {
            Some(target) => target == packet.destination,
            None => self.addresses.iter().any(|own| own.address == packet.destination),
        };
        interest.step == packet.hit.step() && flags && destination
    }
}

fn sorted(events: &[Event]) -> Vec<Event> {
    let mut events = events.to_vec();
    events.sort_by_key(|event| (event.source, event.door));
    events
}
