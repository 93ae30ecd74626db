//! What a hit does to the attempts of its source.
//!
//! A hit at the next step of an attempt advances it. A hit at a step already done changes nothing: it may be a packet
//! that comes again, or belong to another knock from the same address. A hit at the first step also begins another
//! attempt, so a source can have several at one door. Any other hit spoils them all.
//!
//! Of a source's attempts at a door, each is further than those that began later: one that gets as far as an older one
//! has more time, so the older one goes. So the oldest decides: a step that it has neither done nor next, no other has.
//!
//! Whatever 0.8 would open has to open here. So one of the attempts, if 0.8 has any, is *strict*: it knows how far 0.8
//! has got with it, outlives an opening by another attempt, and never makes room for one.

use super::doors::{StepKey, Watched};
use super::{Event, EventKind, Matcher};
use crate::attempts::{Attempt, Attempts, COOLING, ClassId, PER_DOOR, Slot};
use crate::outcome::DoorId;
use crate::packet::{Hit, Packet};
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
    /// Whether 0.8 had one of them before the packet, and whether it still has.
    had_strict: bool,
    has_strict: bool,
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
    if stage == COOLING {
        return (Verdict::Ignored, EventKind::Cooling);
    }
    if !door.accepts(packet.hit) {
        return (Verdict::Ignored, EventKind::WrongFlags(stage));
    }
    if door.is_next(stage, packet.hit) {
        let verdict = if door.is_last(stage) { Verdict::Opened } else { Verdict::Advanced };
        (verdict, EventKind::Stage(stage + 1))
    } else if (0..stage).any(|done| door.is_next(done, packet.hit)) {
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
            let strict = door.stage_in_0_8(&attempt, packet.hit, is_lenient);
            door.judged.had_strict |= attempt.strict > 0;
            door.judged.has_strict |= strict > 0;
            match door.judged.verdict {
                Verdict::Ignored => {}
                Verdict::Spoiled => _ = self.attempts.remove(slot),
                Verdict::Opened => {
                    if strict > 0 && door.cooldown.is_none() {
                        self.attempts.move_to(slot, strict);
                        self.attempts.set_strict(slot, strict);
                    } else {
                        self.attempts.remove(slot);
                    }
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
                    self.attempts.set_strict(slot, strict);
                    let advances = door.follow(slot, &attempt, packet.hit, &mut self.attempts);
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
            // In 0.8 it may not have completed what it did here.
            let has_opened = door.judged.packet == self.packet && door.judged.verdict == Verdict::Opened;
            if completed && !single && !has_opened {
                continue;
            }
            let attempt = Attempt {
                source,
                door: id.0,
                class,
                queue: door.queue,
                stage: 1,
                strict: u8::from(!is_lenient),
                begun: self.latest,
            };
            if door.judged.packet == self.packet {
                begin_another(door, attempt, is_lenient, &mut self.attempts, &mut self.events);
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
    fn follow(&mut self, slot: Slot, attempt: &Attempt, hit: Hit, attempts: &mut Attempts) -> bool {
        let older = self.judged.youngest.replace(slot);
        self.judged.count += 1;
        if !self.is_next(attempt.stage, hit) {
            return false;
        }
        attempts.move_to(slot, attempt.stage + 1);
        let older = older.and_then(|slot| Some((slot, *attempts.get(slot)?)));
        if let Some((older, Attempt { strict, .. })) =
            older.filter(|(_, older)| older.stage <= attempt.stage + 1)
        {
            if strict == 0 {
                attempts.remove(older);
            } else {
                attempts.remove(slot);
                self.judged.youngest = Some(older);
            }
            self.judged.count -= 1;
        }
        true
    }

    /// Returns the stage that 0.8 has an attempt at after a hit; 0 if it has none any more.
    fn stage_in_0_8(&self, attempt: &Attempt, hit: Hit, is_lenient: bool) -> u8 {
        let stage = attempt.strict;
        if stage == 0 || is_lenient {
            return stage;
        }
        if self.is_next(stage, hit) && !self.is_last(stage) { stage + 1 } else { 0 }
    }

    /// Says whether the step after this stage is the last one.
    fn is_last(&self, stage: u8) -> bool {
        usize::from(stage) + 1 >= self.sequence.as_ref().map_or(0, Sequence::len)
    }

    /// Says whether a hit is the step after this stage.
    fn is_next(&self, stage: u8, hit: Hit) -> bool {
        let next = self.sequence.as_ref().and_then(|sequence| sequence.step(stage.into()));
        next.is_some_and(|step| step.matches(hit))
    }
}

/// Starts an attempt beside the others of its source at its door, after the packet has been judged there.
fn begin_another(
    door: &Watched,
    attempt: Attempt,
    is_lenient: bool,
    attempts: &mut Attempts,
    events: &mut Vec<Event>,
) {
    let Judged { verdict, event, count, youngest, had_strict, has_strict, .. } = door.judged;
    // In 0.8, a hit that ends an attempt begins none.
    let begins_in_0_8 = !is_lenient && !had_strict;
    match verdict {
        Verdict::Repeated => {}
        // It is another step of a knock, unless that went wrong before: then 0.8 has none, and begins here.
        Verdict::Advanced if !had_strict => {}
        Verdict::Opened if begins_in_0_8 && door.cooldown.is_none() => {}
        _ => return,
    }
    let attempt = Attempt { strict: u8::from(begins_in_0_8), ..attempt };
    let youngest = youngest.and_then(|slot| Some((slot, *attempts.get(slot)?)));
    let kind = match youngest.filter(|(_, youngest)| youngest.stage == 1) {
        Some((_, Attempt { strict: 1.., .. })) => return,
        Some((slot, _)) => {
            attempts.restart(slot, attempt.begun, attempt.strict);
            EventKind::Repeated(1)
        }
        None => {
            if count >= PER_DOOR {
                if has_strict {
                    return;
                }
                remove_oldest(&attempt, attempts);
            }
            add(attempts, attempt, events);
            EventKind::Stage(1)
        }
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
