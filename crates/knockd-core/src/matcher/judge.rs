//! What a hit does to the attempts of its source.
//!
//! A hit at the next step of an attempt advances it. A hit at a step already done changes nothing: it may be a packet
//! that comes again, or belong to another knock from the same address. A hit at the first step also begins another
//! attempt, so a source can have several at one door. Any other hit spoils them all.
//!
//! Of a source's attempts at a door, each is further than those that began later: one that gets as far as an older one
//! has more time, so the older one goes. So the oldest decides: a step that it has neither done nor next, no other has.

use super::doors::{StepKey, Watched};
use super::{Event, EventKind, Matcher};
use crate::attempts::{Attempt, Attempts, COOLING, ClassId, PER_DOOR, Slot};
use crate::outcome::DoorId;
use crate::packet::Packet;
use crate::sequence::{Sequence, Step};

/// What a packet has done at a door that had attempts of its source.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Judged {
    /// The number of the packet.
    packet: u64,
    verdict: Verdict,
    /// The index of its event.
    event: usize,
    /// How many attempts are left, and which is the youngest.
    count: u8,
    youngest: Option<Slot>,
    /// Whether one of them was strict.
    had_strict: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Verdict {
    /// The door does not look at it.
    #[default]
    Ignored,
    /// It repeats a step.
    Repeated,
    Advanced,
    Opened,
    Spoiled,
}

/// Returns what a packet does to the attempts of its source at a door, of which this is the oldest.
fn verdict_on(attempt: &Attempt, door: &Watched, packet: &Packet, is_lenient: bool) -> (Verdict, EventKind) {
    let stage = attempt.stage;
    let done = usize::from(stage);
    if stage == COOLING {
        return (Verdict::Ignored, EventKind::Cooling);
    }
    if !door.accepts(packet.hit) {
        return (Verdict::Ignored, EventKind::WrongFlags(stage));
    }
    let steps = || door.sequence.iter().flat_map(Sequence::steps);
    if steps().nth(done).is_some_and(|step| step.matches(packet.hit)) {
        let verdict = if done + 1 == steps().count() { Verdict::Opened } else { Verdict::Advanced };
        (verdict, EventKind::Stage(stage + 1))
    } else if steps().take(done).any(|step| step.matches(packet.hit)) {
        (Verdict::Repeated, EventKind::Repeated(stage))
    } else if is_lenient {
        (Verdict::Ignored, EventKind::Elsewhere(stage))
    } else {
        (Verdict::Spoiled, EventKind::Spoiled(stage))
    }
}

impl Matcher {
    /// Advances, keeps or spoils every attempt of the source; says whether one with two or more steps was completed.
    ///
    /// A packet that 0.8 does not see is judged leniently: it spoils nothing.
    pub(super) fn judge(&mut self, packet: &Packet, class: ClassId, is_lenient: bool) -> bool {
        let mut completed = false;
        let mut next = self.attempts.first_of_source(packet.source, class);
        while let Some(slot) = next {
            next = self.attempts.next_of_source(slot);
            let Some(&attempt) = self.attempts.get(slot) else { break };
            let Some(door) = self.doors.get_mut(attempt.door as usize) else { break };
            let is_oldest = door.judged.packet != self.packet;
            if is_oldest {
                let (verdict, kind) = verdict_on(&attempt, door, packet, is_lenient);
                let event = self.events.len();
                door.judged = Judged { packet: self.packet, verdict, event, ..Judged::default() };
                self.events.push(Event { source: packet.source, door: DoorId(attempt.door), kind });
            }
            // It may have begun with this packet.
            if attempt.stage == COOLING {
                continue;
            }
            match door.judged.verdict {
                Verdict::Ignored => {}
                Verdict::Spoiled => _ = self.attempts.remove(slot),
                Verdict::Opened => {
                    self.attempts.remove(slot);
                    if is_oldest {
                        completed = true;
                        let kind = EventKind::Opened;
                        self.events.push(Event { source: packet.source, door: DoorId(attempt.door), kind });
                        if let Some(queue) = door.cooldown {
                            let begun = self.latest;
                            // It takes the room of the attempt, so nobody has to make any.
                            self.attempts.insert(Attempt { queue, stage: COOLING, begun, ..attempt });
                        }
                    }
                }
                Verdict::Repeated | Verdict::Advanced => {
                    let advances = door.follow(slot, &attempt, packet, &mut self.attempts);
                    if is_lenient {
                        self.attempts.set_lenient(slot);
                    }
                    if advances
                        && let Some(event) = self.events.get_mut(door.judged.event)
                        && std::mem::replace(&mut door.judged.verdict, Verdict::Advanced) == Verdict::Repeated
                    {
                        event.kind = EventKind::Stage(attempt.stage + 1);
                    }
                }
            }
        }
        completed
    }

    /// Starts an attempt at each door whose first step this is, unless the packet has already been used there.
    pub(super) fn begin(
        &mut self,
        packet: &Packet,
        step: Step,
        class: ClassId,
        completed: bool,
        is_lenient: bool,
    ) {
        let source = packet.source;
        let Some(meaning) = self.steps.get(&StepKey::new(class, step)) else { return };
        for &id in &meaning.first_of {
            let Some(door) = self.doors.get(id.index()) else { continue };
            let single = door.sequence.as_ref().is_some_and(|sequence| sequence.len() == 1);
            if completed && !single {
                continue;
            }
            let attempt = Attempt {
                source,
                door: id.0,
                class,
                queue: door.queue,
                stage: 1,
                strict: !is_lenient,
                begun: self.latest,
            };
            if door.judged.packet == self.packet {
                begin_another(&door.judged, attempt, &mut self.attempts, &mut self.events);
                continue;
            }
            if !door.accepts(packet.hit) {
                self.events.push(Event { source, door: id, kind: EventKind::WrongFlags(0) });
                continue;
            }
            self.events.push(Event { source, door: id, kind: EventKind::Stage(1) });
            if !single {
                add(&mut self.attempts, attempt, &mut self.events);
                continue;
            }
            self.events.push(Event { source, door: id, kind: EventKind::Opened });
            if let Some(queue) = door.cooldown {
                add(&mut self.attempts, Attempt { queue, stage: COOLING, ..attempt }, &mut self.events);
            }
        }
    }
}

impl Watched {
    /// Advances an attempt if the hit is its next step, and says whether it was.
    fn follow(&mut self, slot: Slot, attempt: &Attempt, packet: &Packet, attempts: &mut Attempts) -> bool {
        let older = self.judged.youngest.replace(slot);
        self.judged.count += 1;
        self.judged.had_strict |= attempt.strict;
        let next = self.sequence.as_ref().and_then(|sequence| sequence.step(attempt.stage.into()));
        if next.is_none_or(|step| !step.matches(packet.hit)) {
            attempts.set_lenient(slot);
            return false;
        }
        attempts.advance(slot);
        let is_as_far =
            |older: &Slot| attempts.get(*older).is_some_and(|older| older.stage <= attempt.stage + 1);
        if let Some(older) = older.filter(is_as_far) {
            attempts.remove(older);
            self.judged.count -= 1;
        }
        true
    }
}

/// Starts an attempt beside the others of its source at its door, after the packet has been judged there.
fn begin_another(judged: &Judged, attempt: Attempt, attempts: &mut Attempts, events: &mut Vec<Event>) {
    let Judged { verdict, event, count, youngest, had_strict, .. } = *judged;
    match verdict {
        Verdict::Repeated => {}
        // It is another step of a knock, unless that went wrong before: then 0.8 has none, and begins here.
        Verdict::Advanced if !had_strict => {}
        _ => return,
    }
    // In 0.8, a hit that ends an attempt begins none.
    let is_lenient = !attempt.strict;
    let attempt = Attempt { strict: !is_lenient && !had_strict, ..attempt };
    let is_at_first = |slot: &Slot| attempts.get(*slot).is_some_and(|youngest| youngest.stage == 1);
    let kind = if let Some(youngest) = youngest.filter(is_at_first) {
        attempts.restart(youngest, attempt.begun, attempt.strict);
        EventKind::Repeated(1)
    } else {
        if count >= PER_DOOR {
            // 0.8 may have the oldest, and does not see the packet.
            if is_lenient {
                return;
            }
            remove_oldest(&attempt, attempts);
        }
        add(attempts, attempt, events);
        EventKind::Stage(1)
    };
    match events.get_mut(event) {
        Some(event) if verdict == Verdict::Repeated => event.kind = kind,
        _ if kind == EventKind::Stage(1) => {
            events.push(Event { source: attempt.source, door: DoorId(attempt.door), kind });
        }
        _ => {}
    }
}

/// Removes the oldest attempt of this one's source at its door.
fn remove_oldest(of: &Attempt, attempts: &mut Attempts) {
    let first = attempts.first_of_source(of.source, of.class);
    let mut slots = std::iter::successors(first, |&slot| attempts.next_of_source(slot));
    let oldest = slots.find(|&slot| attempts.get(slot).is_some_and(|attempt| attempt.door == of.door));
    if let Some(oldest) = oldest {
        attempts.remove(oldest);
    }
}

/// Adds an attempt, and reports the one that it evicted.
fn add(attempts: &mut Attempts, attempt: Attempt, events: &mut Vec<Event>) {
    let evicted = attempts.insert(attempt).filter(|evicted| evicted.stage != COOLING);
    events.extend(evicted.map(|Attempt { source, door, stage, .. }| Event {
        source,
        door: DoorId(door),
        kind: EventKind::Evicted(stage),
    }));
}
