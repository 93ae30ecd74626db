//! A naive matcher to compare the real one with.
//!
//! It is written from the rules and not from the code: it keeps a note of everything that ever happened and decides by
//! looking back. The fuzz target uses it too.

mod compare;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use knockd_core::config::Key;
use knockd_core::{Door, DoorId, Event, EventKind, Hit, Packet, Sequence, Step, Timestamp, Visibility};

pub use compare::{Op, compare};

/// What became of an attempt, or that a step was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mark {
    Seen(Step),
    Begun,
    Restarted,
    Advanced,
    Over,
    /// It is over, and the door does not look at the source for its `Cooldown`.
    Opened,
}

#[derive(Clone, Copy, Debug)]
struct Note {
    source: IpAddr,
    door: usize,
    at: Timestamp,
    mark: Mark,
}

/// The naive matcher. It has no bound.
pub struct Model {
    doors: Vec<(Door, Option<Sequence>)>,
    addresses: Vec<IpAddr>,
    notes: Vec<Note>,
    now: Timestamp,
}

impl Model {
    pub fn new(doors: &[Door]) -> Self {
        let mut model = Self { doors: vec![], addresses: vec![], notes: vec![], now: Timestamp::ZERO };
        model.set_doors(doors);
        model
    }

    pub fn set_addresses(&mut self, addresses: &[IpAddr]) {
        self.addresses = addresses.to_vec();
    }

    pub fn set_sequence(&mut self, door: usize, sequence: Option<Sequence>) {
        if let Some((_, current)) = self.doors.get_mut(door)
            && *current != sequence
        {
            *current = sequence;
            // Who has opened the door is still not looked at until its cooldown is over.
            self.notes.retain(|note| note.door != door || note.mark == Mark::Opened);
        }
    }

    /// Nothing is under way of the source any more; where it cools down it still does.
    pub fn forget(&mut self, source: IpAddr) {
        for (_, door, _, _) in self.attempts().into_iter().filter(|attempt| attempt.0 == source) {
            self.note(source, door, Mark::Over);
        }
    }

    pub fn is_one_time(&self, door: usize) -> bool {
        matches!(self.doors.get(door), Some((Door { key: Key::OneTime(_), .. }, _)))
    }

    /// The n-th of several old doors that match alike lives on in the n-th new door that does.
    pub fn set_doors(&mut self, doors: &[Door]) {
        let identity = |door: &Door| {
            let Door { name, key, seq_timeout, tcp_flags, target, .. } = door.clone();
            (name, key, seq_timeout, tcp_flags, target)
        };
        let mut successor = HashMap::new();
        let mut next = Vec::new();
        for (index, door) in doors.iter().enumerate() {
            let rank = doors[..index].iter().filter(|other| identity(other) == identity(door)).count();
            let old =
                (0..self.doors.len()).filter(|&old| identity(&self.doors[old].0) == identity(door)).nth(rank);
            let sequence = match (&door.key, old) {
                (Key::Sequence(sequence), _) => Some(sequence.clone()),
                (_, Some(old)) => self.doors[old].1.clone(),
                (_, None) => None,
            };
            successor.extend(old.map(|old| (old, index)));
            next.push((door.clone(), sequence));
        }
        self.notes.retain_mut(|note| {
            let Some(&door) = successor.get(&note.door) else { return false };
            // A cooldown that is over does not begin anew because it becomes longer, nor one that has never begun.
            let is_over = self.now >= note.at.after(self.doors[note.door].0.cooldown.into());
            if note.mark == Mark::Opened && (is_over || doors[door].cooldown.is_zero()) {
                note.mark = Mark::Over;
            }
            note.door = door;
            true
        });
        self.doors = next;
    }

    /// The events that a packet causes: the attempts that time out first, in no order, and then what it does itself.
    pub fn handle_packet(&mut self, packet: &Packet, now: Timestamp) -> (Vec<Event>, Vec<Event>) {
        let timed_out = self.handle_timeout(now);
        let step = packet.hit.step();
        let hit: Vec<usize> =
            (0..self.doors.len()).filter(|&door| self.is_watched_by(door, packet.destination)).collect();
        let is_visible = |&door: &usize| self.accepts(door, packet.hit) && self.steps(door).contains(&step);
        if !hit.iter().any(is_visible) {
            return (timed_out, vec![]);
        }
        let mut events = Vec::new();
        let mut used = BTreeSet::new();
        let mut completed = false;
        for &door in &hit {
            let mut report = |kind| events.push(event(packet.source, door, kind));
            let accepts = self.accepts(door, packet.hit);
            if accepts {
                self.note(packet.source, door, Mark::Seen(step));
            }
            if self.is_cooling(packet.source, door) {
                report(EventKind::Cooling);
                used.insert(door);
                continue;
            }
            let Some((stage, _)) = self.attempt(packet.source, door) else { continue };
            if !accepts {
                report(EventKind::WrongFlags(stage));
                used.insert(door);
                continue;
            }
            let steps = self.steps(door);
            let done = usize::from(stage);
            if steps[done] == step && done + 1 == steps.len() {
                report(EventKind::Stage(stage + 1));
                report(EventKind::Opened);
                self.note(packet.source, door, Mark::Opened);
                used.insert(door);
                completed = true;
            } else if steps[done] == step {
                report(EventKind::Stage(stage + 1));
                self.note(packet.source, door, Mark::Advanced);
                used.insert(door);
            } else if steps[done - 1] == step {
                report(EventKind::Repeated(stage));
                if stage == 1 {
                    self.note(packet.source, door, Mark::Restarted);
                }
                used.insert(door);
            } else {
                report(EventKind::Spoiled(stage));
                self.note(packet.source, door, Mark::Over);
            }
        }
        for door in hit.into_iter().filter(|door| !used.contains(door)) {
            let steps = self.steps(door);
            if steps.first() != Some(&step) || (completed && steps.len() > 1) {
                continue;
            }
            if !self.accepts(door, packet.hit) {
                events.push(event(packet.source, door, EventKind::WrongFlags(0)));
                continue;
            }
            events.push(event(packet.source, door, EventKind::Stage(1)));
            if steps.len() == 1 {
                events.push(event(packet.source, door, EventKind::Opened));
                self.note(packet.source, door, Mark::Opened);
            } else {
                self.note(packet.source, door, Mark::Begun);
            }
        }
        events.sort_by_key(|event| event.door);
        (timed_out, events)
    }

    /// How near a packet comes to what some door looks at.
    pub fn visibility(&self, packet: &Packet) -> Visibility {
        let watching: Vec<usize> =
            (0..self.doors.len()).filter(|&door| self.is_watched_by(door, packet.destination)).collect();
        let step = packet.hit.step();
        let with_step = || watching.iter().filter(|&&door| self.steps(door).contains(&step));
        match with_step().next() {
            None if watching.is_empty() => Visibility::NotWatched,
            None => Visibility::NoDoorsPort,
            Some(_) if with_step().any(|&door| self.accepts(door, packet.hit)) => Visibility::Visible,
            Some(_) => Visibility::WrongFlags,
        }
    }

    /// The attempts that time out, in no order.
    pub fn handle_timeout(&mut self, now: Timestamp) -> Vec<Event> {
        self.now = self.now.max(now);
        let ended: Vec<_> = self.attempts().into_iter().filter(|&(_, _, _, end)| end <= self.now).collect();
        for &(source, door, _, _) in &ended {
            self.note(source, door, Mark::Over);
        }
        ended
            .into_iter()
            .map(|(source, door, stage, _)| event(source, door, EventKind::TimedOut(stage)))
            .collect()
    }

    /// All attempts under way: source, door, stage, and when it ends.
    pub fn attempts(&self) -> Vec<(IpAddr, usize, u8, Timestamp)> {
        let pairs: BTreeSet<_> = self.notes.iter().map(|note| (note.source, note.door)).collect();
        let attempts = pairs.into_iter().filter_map(|(source, door)| {
            let (stage, begun) = self.attempt(source, door)?;
            Some((source, door, stage, begun.after(self.doors[door].0.seq_timeout.into())))
        });
        attempts.collect()
    }

    /// Whether what the source sent until now contains the steps of the door in order and within its time.
    pub fn has_knocked(&self, source: IpAddr, door: usize) -> bool {
        let steps = self.steps(door);
        let mut wanted = steps.iter().rev();
        let mut next = wanted.next();
        for note in self.notes_of(source, door) {
            let Some(&step) = next else { break };
            let in_time = self.now < note.at.after(self.doors[door].0.seq_timeout.into()) || steps.len() == 1;
            if note.mark == Mark::Seen(step) && in_time {
                next = wanted.next();
            }
        }
        !steps.is_empty() && next.is_none()
    }

    fn is_cooling(&self, source: IpAddr, door: usize) -> bool {
        let opened = self.notes_of(source, door).find(|note| note.mark == Mark::Opened);
        opened.is_some_and(|note| self.now < note.at.after(self.doors[door].0.cooldown.into()))
    }

    /// How many sources are not looked at, each counted for every door that does not.
    fn cooling(&self) -> usize {
        let pairs: BTreeSet<_> = self.notes.iter().map(|note| (note.source, note.door)).collect();
        pairs.into_iter().filter(|&(source, door)| self.is_cooling(source, door)).count()
    }

    /// Stage and beginning of an attempt.
    fn attempt(&self, source: IpAddr, door: usize) -> Option<(u8, Timestamp)> {
        let (mut stage, mut restarted) = (0, None);
        for note in self.notes_of(source, door) {
            match note.mark {
                Mark::Seen(_) => (),
                Mark::Over | Mark::Opened => return None,
                Mark::Advanced => stage += 1,
                Mark::Restarted => restarted = restarted.or(Some(note.at)),
                Mark::Begun => return Some((stage + 1, restarted.unwrap_or(note.at))),
            }
        }
        None
    }

    /// The newest first.
    fn notes_of(&self, source: IpAddr, door: usize) -> impl Iterator<Item = &Note> {
        self.notes.iter().rev().filter(move |note| note.source == source && note.door == door)
    }

    fn note(&mut self, source: IpAddr, door: usize, mark: Mark) {
        self.notes.push(Note { source, door, at: self.now, mark });
    }

    fn steps(&self, door: usize) -> Vec<Step> {
        self.doors[door].1.iter().flat_map(Sequence::steps).collect()
    }

    fn is_watched_by(&self, door: usize, destination: IpAddr) -> bool {
        match self.doors[door].0.target {
            Some(target) => target == destination,
            None => self.addresses.contains(&destination),
        }
    }

    fn accepts(&self, door: usize, hit: Hit) -> bool {
        match hit {
            Hit::Tcp { flags, .. } => self.doors[door].0.tcp_flags.accepts(flags),
            Hit::Udp { .. } => true,
        }
    }
}

fn event(source: IpAddr, door: usize, kind: EventKind) -> Event {
    Event { source, door: DoorId::new(door), kind }
}
