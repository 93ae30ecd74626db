//! A naive matcher to compare the real one with.
//!
//! It is written from the rules and not from the code: it keeps a note of every hit, and looks at all attempts for
//! everything. The fuzz target uses it too.

mod compare;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use knockd_core::config::Key;
use knockd_core::{
    Door, DoorId, Event, EventKind, Hit, OwnAddress, Packet, Sequence, Step, Timestamp, Visibility,
};

pub use compare::{Op, compare};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mark {
    Seen(Step),
    /// The door does not look at the source for its `Cooldown`.
    Opened,
    /// It does again.
    Over,
}

#[derive(Clone, Copy, Debug)]
struct Note {
    source: IpAddr,
    door: usize,
    at: Timestamp,
    mark: Mark,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    source: IpAddr,
    door: usize,
    begun: Timestamp,
    /// The number of steps done.
    stage: usize,
    /// The number of steps that knockd 0.8 has done with the same beginning; 0 if it has no such attempt.
    strict: usize,
}

/// The naive matcher. It has no bound but that on the attempts of one source at one door.
pub struct Model {
    doors: Vec<(Door, Option<Sequence>)>,
    addresses: Vec<OwnAddress>,
    notes: Vec<Note>,
    /// In the order in which they began.
    attempts: Vec<Attempt>,
    now: Timestamp,
}

impl Model {
    pub fn new(doors: &[Door]) -> Self {
        let mut model =
            Self { doors: vec![], addresses: vec![], notes: vec![], attempts: vec![], now: Timestamp::ZERO };
        model.set_doors(doors);
        model
    }

    pub fn set_addresses(&mut self, addresses: &[OwnAddress]) {
        self.addresses = addresses.to_vec();
    }

    pub fn set_sequence(&mut self, door: usize, sequence: Option<Sequence>) {
        if let Some((_, current)) = self.doors.get_mut(door)
            && *current != sequence
        {
            *current = sequence;
            // Who has opened the door is still not looked at until its cooldown is over.
            self.notes.retain(|note| note.door != door || note.mark == Mark::Opened);
            self.attempts.retain(|attempt| attempt.door != door);
        }
    }

    /// Nothing is under way of the source any more; where it cools down it still does.
    pub fn forget(&mut self, source: IpAddr) {
        self.attempts.retain(|attempt| attempt.source != source);
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
        self.attempts.retain_mut(|attempt| {
            let Some(&door) = successor.get(&attempt.door) else { return false };
            attempt.door = door;
            true
        });
        self.doors = next;
    }

    /// The events that a packet causes: the attempts that time out first, in no order, and then what it does itself.
    pub fn handle_packet(&mut self, packet: &Packet, now: Timestamp) -> (Vec<Event>, Vec<Event>) {
        let timed_out = self.handle_timeout(now);
        let step = packet.hit.step();
        let hit: Vec<usize> =
            (0..self.doors.len()).filter(|&door| self.is_watched_by(door, packet)).collect();
        let is_visible = |&door: &usize| self.accepts(door, packet.hit) && self.steps(door).contains(&step);
        if !hit.iter().any(is_visible) {
            return (timed_out, vec![]);
        }
        let source = packet.source;
        let mut events = Vec::new();
        let mut to_begin = Vec::new();
        let mut completed = false;
        for &door in &hit {
            let accepts = self.accepts(door, packet.hit);
            if accepts {
                self.note(source, door, Mark::Seen(step));
            }
            let steps = self.steps(door);
            let mut mine = self.take_attempts(source, door);
            let furthest = mine.iter().map(|attempt| attempt.stage).max().unwrap_or(0);
            let stage = u8::try_from(furthest).unwrap();
            let next = |attempt: &Attempt| steps.get(attempt.stage) == Some(&step);
            let is_lenient = self.is_lenient(door, packet);
            let had_strict = mine.iter().any(|attempt| attempt.strict > 0);
            for attempt in mine.iter_mut().filter(|_| accepts && !is_lenient) {
                // It goes on with the next step only, and has none left after the last one.
                let goes_on = steps.get(attempt.strict) == Some(&step) && attempt.strict + 1 < steps.len();
                attempt.strict = if attempt.strict > 0 && goes_on { attempt.strict + 1 } else { 0 };
            }
            let kind = if self.is_cooling(source, door) {
                EventKind::Cooling
            } else if mine.is_empty() {
                to_begin.push((door, usize::from(!is_lenient)));
                continue;
            } else if !accepts {
                EventKind::WrongFlags(stage)
            } else if steps[furthest] == step && furthest + 1 == steps.len() {
                completed = true;
                // 0.8 goes on with what it has, or begins.
                let ignores = !self.doors[door].0.cooldown.is_zero();
                mine.retain(|attempt| attempt.strict > 0 && !ignores);
                for attempt in &mut mine {
                    attempt.stage = attempt.strict;
                }
                if !had_strict && !is_lenient && !ignores {
                    to_begin.push((door, 1));
                }
                self.note(source, door, Mark::Opened);
                events.push(event(source, door, EventKind::Stage(stage + 1)));
                EventKind::Opened
            } else if !steps[..=furthest].contains(&step) && is_lenient {
                EventKind::Elsewhere(stage)
            } else if !steps[..=furthest].contains(&step) {
                mine.clear();
                EventKind::Spoiled(stage)
            } else {
                let advanced =
                    mine.iter().filter(|attempt| next(attempt)).map(|attempt| attempt.stage + 1).max();
                for attempt in &mut mine {
                    attempt.stage += usize::from(next(attempt));
                }
                // Who began later and is as far has more time, but what 0.8 has stays.
                let all = mine.clone();
                mine = (0..all.len())
                    .filter(|&index| {
                        let Attempt { stage, strict, .. } = all[index];
                        let has_more_time = all[index + 1..].iter().all(|later| later.stage < stage);
                        let stays = |older: &Attempt| older.strict > 0 && older.stage <= stage;
                        strict > 0 || has_more_time && !all[..index].iter().any(stays)
                    })
                    .map(|index| all[index])
                    .collect();
                if advanced.is_none() || !had_strict {
                    to_begin.push((door, usize::from(!had_strict && !is_lenient)));
                }
                advanced
                    .map_or(EventKind::Repeated(stage), |stage| EventKind::Stage(stage.try_into().unwrap()))
            };
            events.push(event(source, door, kind));
            self.attempts.extend(mine);
        }
        self.begin(packet, &to_begin, completed, &mut events);
        events.sort_by_key(|event| event.door);
        (timed_out, events)
    }

    /// What a packet begins at doors, each with the number of steps that 0.8 has done there then.
    fn begin(
        &mut self,
        packet: &Packet,
        to_begin: &[(usize, usize)],
        completed: bool,
        events: &mut Vec<Event>,
    ) {
        let (source, step) = (packet.source, packet.hit.step());
        for &(door, strict) in to_begin {
            let steps = self.steps(door);
            let is_used =
                completed && steps.len() > 1 && !events.contains(&event(source, door, EventKind::Opened));
            if steps.first() != Some(&step) || is_used {
                continue;
            }
            if !self.accepts(door, packet.hit) {
                events.push(event(source, door, EventKind::WrongFlags(0)));
                continue;
            }
            let mut mine = self.take_attempts(source, door);
            let is_restart = mine.last().is_some_and(|youngest| youngest.stage == 1);
            let makes_way = |attempt: &Attempt| attempt.strict == 0;
            if is_restart && mine.last().is_some_and(makes_way) {
                mine.pop();
            } else if is_restart || mine.len() == 4 && !mine.iter().all(makes_way) {
                self.attempts.extend(mine);
                continue;
            } else if mine.len() == 4 {
                mine.remove(0);
            }
            let kind = if is_restart { EventKind::Repeated(1) } else { EventKind::Stage(1) };
            let told = events.iter_mut().find(|event| event.door.index() == door);
            match told {
                Some(told) if matches!(told.kind, EventKind::Repeated(_)) => told.kind = kind,
                Some(_) if is_restart => (),
                _ => events.push(event(source, door, kind)),
            }
            if steps.len() == 1 {
                events.push(event(source, door, EventKind::Opened));
                self.note(source, door, Mark::Opened);
            } else {
                mine.push(Attempt { source, door, begun: self.now, stage: 1, strict });
            }
            self.attempts.extend(mine);
        }
    }

    /// The attempts of a source at a door, which the caller gives back.
    fn take_attempts(&mut self, source: IpAddr, door: usize) -> Vec<Attempt> {
        let is_it = |attempt: &mut Attempt| attempt.source == source && attempt.door == door;
        self.attempts.extract_if(.., is_it).collect()
    }

    /// How near a packet comes to what some door looks at.
    pub fn visibility(&self, packet: &Packet) -> Visibility {
        let watching: Vec<usize> =
            (0..self.doors.len()).filter(|&door| self.is_watched_by(door, packet)).collect();
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
        let (ended, rest): (Vec<_>, Vec<_>) =
            self.attempts.iter().copied().partition(|attempt| self.end(attempt) <= self.now);
        self.attempts = rest;
        let timed_out = |attempt: Attempt| {
            let stage = attempt.stage.try_into().unwrap();
            event(attempt.source, attempt.door, EventKind::TimedOut(stage))
        };
        ended.into_iter().map(timed_out).collect()
    }

    /// All attempts under way, ordered by source and door, the most advanced first: source, door, stage, and when it
    /// ends.
    pub fn attempts(&self) -> Vec<(IpAddr, usize, u8, Timestamp)> {
        let mut attempts: Vec<_> = self.attempts.iter().collect();
        attempts.sort_by_key(|attempt| (attempt.source, attempt.door));
        let shown = |attempt: &Attempt| {
            (attempt.source, attempt.door, attempt.stage.try_into().unwrap(), self.end(attempt))
        };
        attempts.into_iter().map(shown).collect()
    }

    fn end(&self, attempt: &Attempt) -> Timestamp {
        attempt.begun.after(self.doors[attempt.door].0.seq_timeout.into())
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

    fn is_watched_by(&self, door: usize, packet: &Packet) -> bool {
        match self.doors[door].0.target {
            Some(target) => target == packet.destination,
            None => self.addresses.iter().any(|own| own.address == packet.destination),
        }
    }

    /// Whether the door has no target, and the packet was sent to an address of another interface than shows it.
    fn is_lenient(&self, door: usize, packet: &Packet) -> bool {
        let shown = packet.passage.interface;
        let is_of =
            |own: &OwnAddress| [0, shown].contains(&own.interface) && own.address == packet.destination;
        self.doors[door].0.target.is_none() && shown != 0 && !self.addresses.iter().any(is_of)
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
