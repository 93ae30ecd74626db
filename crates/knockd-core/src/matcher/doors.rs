//! The doors, and the lookups in them for every packet.

use std::cmp::Reverse;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use super::judge::Judged;
use super::{COOLING, Interest, Matcher};
use crate::attempts::{Attempt, Attempts, ClassId, QueueId};
use crate::config::{Door, Key};
use crate::outcome::DoorId;
use crate::packet::{Hit, OwnAddress};
use crate::sequence::{Protocol, Sequence, Step};
use crate::tcp_flags::{FlagRule, TcpFlags};
use crate::text::{DoorName, Text};

/// The part of a door that matters for matching.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) name: DoorName,
    pub(super) one_time: Option<Text>,
    /// `None` if a one-time door has no unused line.
    pub(super) sequence: Option<Sequence>,
    pub(super) flags: FlagRule,
    pub(super) target: Option<IpAddr>,
    pub(super) timeout: Duration,
    pub(super) class: ClassId,
    pub(super) queue: QueueId,
    /// The queue of sources that opened it and are ignored for a while.
    pub(super) cooldown: Option<QueueId>,
    /// What the last packet did that found an attempt of its source here.
    pub(super) judged: Judged,
}

impl Watched {
    pub(super) fn accepts(&self, hit: Hit) -> bool {
        match hit {
            Hit::Tcp { flags, .. } => self.flags.accepts(flags),
            Hit::Udp { .. } => true,
        }
    }

    /// Returns the number of stages at which the table may store somebody: one per step but the last, and the
    /// `Cooldown`.
    fn stages(&self) -> usize {
        let steps = self.sequence.as_ref().filter(|_| self.one_time.is_none());
        steps.map_or(Sequence::MAX_STEPS, Sequence::len) - 1 + usize::from(self.cooldown.is_some())
    }

    /// Returns what must stay the same for the attempts of one door to continue at another. For a one-time door that
    /// is the file, not the sequence.
    fn identity(&self) -> impl Eq + Hash + use<'_> {
        let secret = (self.one_time.as_ref(), self.sequence.as_ref().filter(|_| self.one_time.is_none()));
        (&self.name, secret, self.flags, self.target, self.timeout)
    }
}

/// The doors that watch a destination.
#[derive(Default, Debug)]
pub(super) struct Destination {
    /// The class of doors without a `Target`, if it is our own address.
    pub(super) own: Option<ClassId>,
    /// The class of doors with this target.
    pub(super) target: Option<ClassId>,
    /// The interfaces that have it as their address, 0 for all of them.
    interfaces: Vec<u32>,
    /// Whether packets to it can come over any interface.
    pub(super) is_global: bool,
}

impl Destination {
    /// Says whether it is an address of the interface with this number, or of one that is not known.
    pub(super) fn is_of(&self, interface: u32) -> bool {
        interface == 0 || self.interfaces.iter().any(|&own| own == 0 || own == interface)
    }
}

/// A step at the doors of one class, as a number, which hashes faster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct StepKey(u64);

impl StepKey {
    pub(super) fn new(class: ClassId, step: Step) -> Self {
        let udp = step.protocol == Protocol::Udp;
        Self(u64::from(class.0) << 32 | u64::from(udp) << 16 | u64::from(step.port))
    }
}

/// What a step means to the doors of one class.
#[derive(Debug, Default)]
pub(super) struct Meaning {
    /// One bit for each of the 64 combinations of TCP flags with which some door wants to see it; all of them for
    /// UDP.
    pub(super) visible: u64,
    /// The doors that start with it, in file order.
    pub(super) first_of: Vec<DoorId>,
}

impl Matcher {
    /// Replaces the doors, and the limit on attempts.
    ///
    /// A door keeps its attempts and its current one-time sequence if nothing that matters for matching (name,
    /// sequence, flags, target, timeout) has changed; among several equal doors, the first takes over from the first.
    /// If there are more attempts than the new limit allows, the same ones stay as if all had come in the order in
    /// which they began.
    pub fn set_doors(&mut self, doors: &[Door], max_attempts: NonZeroU32) {
        let old = std::mem::take(&mut self.doors);
        self.classes.clear();
        let mut lasts = Vec::new();
        for door in doors {
            let watched = self.watch(door, &mut lasts);
            self.doors.push(watched);
        }
        let moved = self.adopt(&old);
        let keep = |attempt: Attempt| {
            let id = (*moved.get(attempt.door as usize)?)?;
            let door = self.doors.get(id.index())?;
            let queue = if attempt.stage == COOLING { door.cooldown? } else { door.queue };
            Some(Attempt { door: id.0, class: door.class, queue, ..attempt })
        };
        let mut kept: Vec<_> = self.attempts.iter().filter_map(keep).collect();
        // A queue is in the order in which its attempts end, and of a source's attempts at a door, the first to begin
        // is the most advanced.
        kept.sort_by_key(|attempt| (attempt.begun, Reverse(attempt.stage)));
        let stages = self.doors.iter().map(Watched::stages).sum();
        self.attempts = Attempts::new(max_attempts, stages, &lasts, self.seed);
        for attempt in kept {
            self.attempts.insert(attempt);
        }
        self.index_destinations();
        self.index_steps();
    }

    /// Sets the current sequence of a one-time door, or `None`.
    ///
    /// Attempts at the door are dropped unless the sequence is the same as before. Other doors are not affected, and
    /// a door with a fixed sequence keeps it.
    pub fn set_sequence(&mut self, door: DoorId, sequence: Option<Sequence>) {
        let Some(watched) = self.doors.get_mut(door.index()) else { return };
        if watched.one_time.is_none() || watched.sequence == sequence {
            return;
        }
        watched.sequence = sequence;
        self.attempts.remove_where(|attempt| attempt.door == door.0 && attempt.stage != COOLING);
        self.index_steps();
    }

    /// Sets our own addresses: the destinations that doors without a `Target` watch.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = impl Into<OwnAddress>>) {
        self.addresses = addresses.into_iter().map(Into::into).collect();
        self.index_destinations();
    }

    /// Returns everything that the doors want to see at present, each once, in the order of the doors and their
    /// steps.
    pub fn interests(&self) -> Vec<Interest> {
        let mut known = hashbrown::HashSet::new();
        let interests = self.doors.iter().flat_map(|door| {
            let steps = door.sequence.iter().flat_map(Sequence::steps);
            steps.map(|step| Interest { step, flags: door.flags, target: door.target })
        });
        interests.filter(|interest| known.insert(*interest)).collect()
    }

    /// `lasts` holds the duration of each queue so far; those that the door needs are added.
    fn watch(&mut self, door: &Door, lasts: &mut Vec<Duration>) -> Watched {
        let next_class = ClassId(u32::try_from(self.classes.len()).unwrap_or(u32::MAX));
        let class = *self.classes.entry(door.target).or_insert(next_class);
        let mut queue_of = |duration| {
            let known = lasts.iter().position(|&known| known == duration);
            let index = known.unwrap_or_else(|| {
                lasts.push(duration);
                lasts.len() - 1
            });
            QueueId(u32::try_from(index).unwrap_or(u32::MAX))
        };
        let queue = queue_of(door.seq_timeout.into());
        let cooldown = (!door.cooldown.is_zero()).then(|| queue_of(door.cooldown.into()));
        let (sequence, one_time) = match &door.key {
            Key::Sequence(sequence) => (Some(sequence.clone()), None),
            Key::OneTime(path) => (None, Some(path.clone())),
        };
        Watched {
            name: door.name.clone(),
            one_time,
            sequence,
            flags: door.tcp_flags,
            target: door.target,
            timeout: door.seq_timeout.into(),
            class,
            queue,
            cooldown,
            judged: Judged::default(),
        }
    }

    /// Finds for each old door the new one that takes over its attempts, and passes on its one-time sequence.
    fn adopt(&mut self, old: &[Watched]) -> Vec<Option<DoorId>> {
        let heirs: Vec<Option<usize>> = {
            let mut candidates: hashbrown::HashMap<_, Vec<usize>> = hashbrown::HashMap::new();
            for (index, door) in self.doors.iter().enumerate().rev() {
                candidates.entry(door.identity()).or_default().push(index);
            }
            old.iter().map(|door| candidates.get_mut(&door.identity()).and_then(Vec::pop)).collect()
        };
        for (before, heir) in old.iter().zip(&heirs) {
            if let Some(door) = heir.and_then(|index| self.doors.get_mut(index)) {
                door.sequence.clone_from(&before.sequence);
            }
        }
        heirs.into_iter().map(|index| index.map(DoorId::new)).collect()
    }

    fn index_destinations(&mut self) {
        let own = self.classes.get(&None).copied();
        self.watched.clear();
        for (target, class) in &self.classes {
            if let Some(target) = target {
                self.watched.entry(*target).or_default().target = Some(*class);
            }
        }
        for address in &self.addresses {
            let destination = self.watched.entry(address.address).or_default();
            destination.own = own;
            destination.is_global = address.is_global();
            destination.interfaces.push(address.interface);
        }
    }

    fn index_steps(&mut self) {
        self.steps.clear();
        for (index, door) in self.doors.iter().enumerate() {
            let Some(sequence) = &door.sequence else { continue };
            for step in sequence.steps() {
                self.steps.entry(StepKey::new(door.class, step)).or_default().visible |=
                    visible_flags(step, door.flags);
            }
            let first = self.steps.entry(StepKey::new(door.class, sequence.first())).or_default();
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
