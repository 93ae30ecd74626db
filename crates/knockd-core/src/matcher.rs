//! The matcher: packets go in, the progress of knocks comes out.
//!
//! Its rules are those of knockd 0.8 without its faults; `docs/conformance.md` lists them one by one.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::attempts::{Attempt, Attempts, ClassId, QueueId};
use crate::config::{Door, Secret};
use crate::packet::{Hit, Packet};
use crate::sequence::{Protocol, Sequence, Step};
use crate::tcp_flags::{FlagRule, TcpFlags};
use crate::time::Timestamp;

/// A door of the matcher: its index in the list that the matcher was given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DoorId(u32);

impl DoorId {
    /// The door with this index in the list of doors.
    pub fn new(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// The index of the door in the list of doors.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Something that happened to an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Event {
    /// Whose attempt.
    pub source: IpAddr,
    /// At which door.
    pub door: DoorId,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to an attempt. Stages are the number of steps done, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EventKind {
    /// It reached this stage. Stage 1 is its beginning, the last stage comes together with [`Self::Opened`].
    Stage(u8),
    /// The whole sequence was hit in time; the attempt is over.
    Opened,
    /// The rest of the sequence did not come within the door's `Seq_Timeout`; the attempt is over.
    TimedOut(u8),
    /// A packet hit a watched port that was not the next step; the attempt is over.
    Spoiled(u8),
    /// The table of attempts was full and this one was the least advanced, of those the longest at its stage.
    Evicted(u8),
}

/// One thing that makes a packet worth looking at; input for a filter in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Interest {
    /// The port that is hit, with its protocol.
    pub step: Step,
    /// What a TCP packet has to carry.
    pub flags: FlagRule,
    /// The address that is hit; `None` stands for any of the interface's own.
    pub target: Option<IpAddr>,
}

/// Follows every source's progress at every door.
///
/// It is a pure state machine. The caller owns the clock: it passes the moment with every call, never an earlier one
/// than before (an earlier one is taken for the latest), and calls [`Self::handle_timeout`] at [`Self::poll_timeout`] or
/// whenever it likes. The cost of a packet depends on the number of doors that begin with its port and on the attempts
/// of its own source, not on how many attempts there are. Memory is bounded by the number of attempts allowed.
#[derive(Debug)]
pub struct Matcher {
    doors: Vec<Watched>,
    addresses: HashSet<IpAddr>,
    /// The class of the doors with each target, and of those without one.
    classes: HashMap<Option<IpAddr>, ClassId>,
    /// What each step means to the doors of each class.
    steps: hashbrown::HashMap<(ClassId, Step), Meaning>,
    /// The `Seq_Timeout` of each queue.
    timeouts: Vec<Duration>,
    max_attempts: NonZeroU32,
    attempts: Attempts,
    /// No attempt ends before this moment.
    next_timeout: Option<Timestamp>,
    latest: Timestamp,
    /// Counts packets, to know which doors the current one has already moved.
    packet: u64,
    events: Vec<Event>,
}

/// A door as far as matching goes.
#[derive(Clone, Debug)]
struct Watched {
    name: String,
    one_time: Option<String>,
    /// `None` while a one-time door has no unused line.
    sequence: Option<Sequence>,
    flags: FlagRule,
    target: Option<IpAddr>,
    timeout: Duration,
    class: ClassId,
    queue: QueueId,
    /// The last packet that found an attempt of its source here and did not spoil it.
    judged: u64,
}

impl Watched {
    fn accepts(&self, hit: Hit) -> bool {
        match hit {
            Hit::Tcp { flags, .. } => self.flags.accepts(flags),
            Hit::Udp { .. } => true,
        }
    }

    /// Whether an attempt at `self` can go on at `other`.
    fn is_same(&self, other: &Self) -> bool {
        let key = |door: &Self| (door.flags, door.target, door.timeout);
        self.name == other.name && self.one_time == other.one_time && key(self) == key(other)
    }
}

/// What a step means to the doors of one class.
#[derive(Debug, Default)]
struct Meaning {
    /// A bit for each of the 64 combinations of TCP flags with which some door wants to see it; all of them for UDP.
    visible: u64,
    /// The doors that begin with it, in file order.
    first_of: Vec<DoorId>,
}

impl Matcher {
    /// Makes a matcher for these doors, with room for `max_attempts` attempts.
    ///
    /// Doors with one-time sequences stay closed until [`Self::set_sequence`] gives them one, and doors without
    /// `Target` until [`Self::set_addresses`] says which addresses are our own.
    pub fn new(doors: &[Door], max_attempts: NonZeroU32) -> Self {
        let mut matcher = Self {
            doors: Vec::new(),
            addresses: HashSet::new(),
            classes: HashMap::new(),
            steps: hashbrown::HashMap::new(),
            timeouts: Vec::new(),
            max_attempts,
            attempts: Attempts::new(max_attempts, 0),
            next_timeout: None,
            latest: Timestamp::ZERO,
            packet: 0,
            events: Vec::new(),
        };
        matcher.set_doors(doors, max_attempts);
        matcher
    }

    /// Replaces the doors, and the bound on attempts.
    ///
    /// A door that is the same as before as far as matching goes (name, sequence, flags, target, timeout; doors of the
    /// same name are told apart by their order) keeps its attempts and its current one-time sequence.
    pub fn set_doors(&mut self, doors: &[Door], max_attempts: NonZeroU32) {
        let old = std::mem::take(&mut self.doors);
        self.classes.clear();
        self.timeouts.clear();
        for door in doors {
            let watched = self.watch(door);
            self.doors.push(watched);
        }
        let moved = self.adopt(&old);
        self.max_attempts = max_attempts;
        self.keep_attempts(|attempt, doors| {
            let id = (*moved.get(attempt.door as usize)?)?;
            let door = doors.get(id.index())?;
            Some(Attempt { door: id.0, class: door.class, queue: door.queue, ..attempt })
        });
        self.index_steps();
    }

    /// Gives a door with one-time sequences the one that counts from now on, or none.
    ///
    /// Attempts at the door are dropped unless the sequence is the same as before. Other doors are not affected.
    pub fn set_sequence(&mut self, door: DoorId, sequence: Option<Sequence>) {
        let Some(watched) = self.doors.get_mut(door.index()) else { return };
        if watched.sequence == sequence {
            return;
        }
        watched.sequence = sequence;
        self.keep_attempts(|attempt, _| (attempt.door != door.0).then_some(attempt));
        self.index_steps();
    }

    /// Says which addresses are the interface's own: the destinations that doors without `Target` watch.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses = addresses.into_iter().collect();
    }

    /// Everything that the doors look for at the moment, once each, in no order.
    pub fn interests(&self) -> Vec<Interest> {
        let mut interests = HashSet::new();
        for door in &self.doors {
            let steps = door.sequence.iter().flat_map(Sequence::steps);
            interests.extend(steps.map(|step| Interest { step, flags: door.flags, target: door.target }));
        }
        interests.into_iter().collect()
    }

    /// The number of attempts under way.
    pub fn attempts(&self) -> usize {
        self.attempts.len()
    }

    /// Judges a packet and returns what it did, in this order: attempts of any source that ended before `now`, attempts
    /// dropped for want of room, and then, in the order of the doors, what the packet did to its own source's attempts.
    ///
    /// A packet that no door wants to see changes nothing.
    pub fn handle_packet(&mut self, packet: &Packet, now: Timestamp) -> &[Event] {
        self.events.clear();
        self.expire(now);
        let classes = self.classes_of(packet.destination);
        let step = packet.hit.step();
        if classes.into_iter().flatten().any(|class| self.is_visible(class, packet.hit)) {
            self.packet += 1;
            let own = self.events.len();
            let mut completed = false;
            for class in classes.into_iter().flatten() {
                completed |= self.judge(packet, step, class);
            }
            for class in classes.into_iter().flatten() {
                self.begin(packet, step, class, completed);
            }
            let order = |event: &Event| match event.kind {
                EventKind::Evicted(_) => (0, event.door),
                _ => (1, event.door),
            };
            self.events.get_mut(own..).unwrap_or_default().sort_by_key(order);
        }
        &self.events
    }

    /// Ends the attempts whose time is up and returns them as [`EventKind::TimedOut`], for each `Seq_Timeout` the oldest
    /// first. Calling it early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Timestamp) -> &[Event] {
        self.events.clear();
        self.expire(now);
        &self.events
    }

    /// The moment at which [`Self::handle_timeout`] wants to be called; `None` while no attempt is under way.
    ///
    /// It may be earlier than needed, never later.
    pub const fn poll_timeout(&self) -> Option<Timestamp> {
        self.next_timeout
    }

    /// Lets every attempt of the source move on, stay or be spoiled; says whether one of two or more steps was completed.
    fn judge(&mut self, packet: &Packet, step: Step, class: ClassId) -> bool {
        let source = packet.source;
        let mut completed = false;
        let mut next = self.attempts.first_of_source(source, class);
        while let Some(slot) = next {
            next = self.attempts.next_of_source(slot);
            let Some(&Attempt { door, stage, .. }) = self.attempts.get(slot) else { break };
            let id = DoorId(door);
            let Some(door) = self.doors.get_mut(id.index()) else { break };
            let Some(sequence) = &door.sequence else { break };
            let mut report = |kind| self.events.push(Event { source, door: id, kind });
            let done = usize::from(stage);
            if !door.accepts(packet.hit) {
                door.judged = self.packet;
            } else if sequence.step(done) == Some(step) {
                door.judged = self.packet;
                report(EventKind::Stage(stage + 1));
                if done + 1 == sequence.len() {
                    report(EventKind::Opened);
                    self.attempts.remove(slot);
                    completed = true;
                } else {
                    self.attempts.advance(slot);
                }
            } else if sequence.step(done - 1) == Some(step) {
                // A retransmission, or a browser's second SYN.
                door.judged = self.packet;
                if stage == 1 {
                    self.attempts.restart_clock(slot, self.latest);
                }
            } else {
                report(EventKind::Spoiled(stage));
                self.attempts.remove(slot);
            }
        }
        completed
    }

    /// Begins an attempt at each door whose first step this is and where the packet has not already been used.
    fn begin(&mut self, packet: &Packet, step: Step, class: ClassId, completed: bool) {
        let source = packet.source;
        let Some(meaning) = self.steps.get(&(class, step)) else { return };
        for &id in &meaning.first_of {
            let Some(door) = self.doors.get(id.index()) else { continue };
            let single = door.sequence.as_ref().is_some_and(|sequence| sequence.len() == 1);
            if door.judged == self.packet || !door.accepts(packet.hit) || (completed && !single) {
                continue;
            }
            self.events.push(Event { source, door: id, kind: EventKind::Stage(1) });
            if single {
                self.events.push(Event { source, door: id, kind: EventKind::Opened });
                continue;
            }
            let begun = self.latest;
            let evicted = self.attempts.insert(Attempt {
                source,
                door: id.0,
                class,
                queue: door.queue,
                stage: 1,
                begun,
            });
            if let Some(Attempt { source, door, stage, .. }) = evicted {
                self.events.push(Event { source, door: DoorId(door), kind: EventKind::Evicted(stage) });
            }
            let end = begun.after(door.timeout);
            self.next_timeout = Some(self.next_timeout.map_or(end, |next| next.min(end)));
        }
    }

    fn expire(&mut self, now: Timestamp) {
        self.latest = self.latest.max(now);
        if self.next_timeout.is_none_or(|next| self.latest < next) {
            return;
        }
        for (queue, timeout) in (0..).map(QueueId).zip(&self.timeouts) {
            while let Some(slot) = self.attempts.oldest_in_queue(queue) {
                let Some(&Attempt { source, door, stage, begun, .. }) = self.attempts.get(slot) else {
                    break;
                };
                if self.latest < begun.after(*timeout) {
                    break;
                }
                self.attempts.remove(slot);
                self.events.push(Event { source, door: DoorId(door), kind: EventKind::TimedOut(stage) });
            }
        }
        self.next_timeout = self.earliest_end();
    }

    fn earliest_end(&self) -> Option<Timestamp> {
        let ends = (0..).map(QueueId).zip(&self.timeouts).filter_map(|(queue, timeout)| {
            let oldest = self.attempts.oldest_in_queue(queue)?;
            Some(self.attempts.get(oldest)?.begun.after(*timeout))
        });
        ends.min()
    }

    /// The classes of doors that watch a destination: those without `Target` if it is our own, those whose target it is.
    fn classes_of(&self, destination: IpAddr) -> [Option<ClassId>; 2] {
        let own = self.addresses.contains(&destination).then(|| self.classes.get(&None).copied()).flatten();
        [own, self.classes.get(&Some(destination)).copied()]
    }

    fn is_visible(&self, class: ClassId, hit: Hit) -> bool {
        let flags = match hit {
            Hit::Tcp { flags, .. } => flags,
            Hit::Udp { .. } => TcpFlags::NONE,
        };
        self.steps.get(&(class, hit.step())).is_some_and(|meaning| meaning.visible >> flags.bits() & 1 == 1)
    }

    fn watch(&mut self, door: &Door) -> Watched {
        let next_class = ClassId(u32::try_from(self.classes.len()).unwrap_or(u32::MAX));
        let class = *self.classes.entry(door.target).or_insert(next_class);
        let queue = self.timeouts.iter().position(|&timeout| timeout == door.seq_timeout);
        let queue = queue.unwrap_or_else(|| {
            self.timeouts.push(door.seq_timeout);
            self.timeouts.len() - 1
        });
        let (sequence, one_time) = match &door.secret {
            Secret::Sequence(sequence) => (Some(sequence.clone()), None),
            Secret::OneTime(path) => (None, Some(path.clone())),
        };
        Watched {
            name: door.name.clone(),
            one_time,
            sequence,
            flags: door.tcp_flags,
            target: door.target,
            timeout: door.seq_timeout,
            class,
            queue: QueueId(u32::try_from(queue).unwrap_or(u32::MAX)),
            judged: 0,
        }
    }

    /// Finds for each old door the new one that takes over its attempts, and lets it take over its one-time sequence.
    fn adopt(&mut self, old: &[Watched]) -> Vec<Option<DoorId>> {
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, door) in self.doors.iter().enumerate().rev() {
            by_name.entry(&door.name).or_default().push(index);
        }
        let pairs: Vec<_> =
            old.iter().map(|door| by_name.get_mut(door.name.as_str()).and_then(Vec::pop)).collect();
        old.iter()
            .zip(pairs)
            .map(|(before, index)| {
                let index = index?;
                let door = self.doors.get_mut(index)?;
                if !before.is_same(door) {
                    return None;
                }
                if door.one_time.is_some() {
                    door.sequence.clone_from(&before.sequence);
                }
                (door.sequence == before.sequence).then(|| DoorId::new(index))
            })
            .collect()
    }

    /// Makes the table anew with what `keep` makes of each attempt.
    fn keep_attempts(&mut self, keep: impl Fn(Attempt, &[Watched]) -> Option<Attempt>) {
        let mut kept: Vec<_> =
            self.attempts.iter().filter_map(|attempt| keep(attempt, &self.doors)).collect();
        // A queue is in the order in which its attempts end.
        kept.sort_by_key(|attempt| attempt.begun);
        self.attempts = Attempts::new(self.max_attempts, self.timeouts.len());
        for attempt in kept {
            self.attempts.insert(attempt);
        }
        self.next_timeout = self.earliest_end();
    }

    fn index_steps(&mut self) {
        self.steps.clear();
        for (index, door) in self.doors.iter().enumerate() {
            let Some(sequence) = &door.sequence else { continue };
            for step in sequence.steps() {
                self.steps.entry((door.class, step)).or_default().visible |= visible_flags(step, door.flags);
            }
            let first = self.steps.entry((door.class, sequence.first())).or_default();
            first.first_of.push(DoorId::new(index));
        }
    }
}

fn visible_flags(step: Step, rule: FlagRule) -> u64 {
    match step.protocol {
        Protocol::Udp => u64::MAX,
        Protocol::Tcp => (0..64)
            .filter(|&bits| rule.accepts(TcpFlags::from_wire(bits)))
            .fold(0, |flags, bits| flags | 1 << bits),
    }
}
