//! Which attempt makes room in a full table.
//!
//! Each stage of each door has a *share* of the table for the attempts that reached it last. All other attempts are the
//! *crowd*, and a full table drops the attempt that has been in the crowd longest.
//!
//! ```text
//!                     share of each stage                     everything else
//!   reaches      ┌──────────────────┬────────────────┐
//!   door 0 ────▶ │ stage 1   young  │  old           │ ─┐    ┌──────────────────────┐
//!   door 0 ────▶ │ stage 2   young  │  old           │  ├──▶ │ crowd     the oldest │ ──▶ makes room
//!   door 1 ────▶ │ stage 1   young  │  old           │ ─┘    └──────────────────────┘
//!                └──────────────────┴────────────────┘
//! ```
//!
//! After every [`Shares::size`] attempts that reach a stage, its old ones join the crowd and its young ones become old.
//! That moves two whole lists, whatever their length. The sizes of all shares add up to an eighth of the table, so
//! young and old ones together fill at most a quarter, and the crowd of a full table has the other three quarters.
//!
//! Whatever a flood consists of, an attempt is dropped only after both of these:
//!
//! - As many attempts as the size of a share have reached the same stage of the same door. So attempts at other doors, or at other
//!   stages, never drop it, at any rate. With the default of 262,144 attempts and three doors of three steps, the size is 5,461.
//! - Three quarters of the table have joined the crowd after it. At most an eighth can have waited for that in shares, so more than
//!   half of the table is new: 131,072 attempts between two hits of a knock. At 25,000 a second that takes 5.2 s, at 500,000 it takes
//!   0.26 s; hits 100 ms apart are safe up to 1,310,000 a second. It does not matter how many doors and stages the flood reaches,
//!   or which of them were filled beforehand. (If several doors begin with the same steps, one packet starts an attempt at each.)
//!
//! With more stages than an eighth of the table, there are no shares, and only the second holds. Sources in a
//! `Cooldown` have a share at their door, too, but a crowd of their own, which a full table drops first.
//!
//! Why not let the longest of all lists make room? Somebody who has filled the stages of ten doors would leave a
//! twentieth of the table to the one that they flood next. Why does the crowd not take attempts one by one? That was
//! tried: each packet touches one more entry, and starting an attempt in a full table takes up to a third longer.

use super::entries::{Entries, Slot};
use super::list::{List, Order};
use super::{Attempt, COOLING};

/// How many attempts of the crowd [`Shares::iter`] sorts: more than anybody looks at, and few enough for every call.
const MOST_SORTED: usize = 1024;

#[derive(Debug)]
pub(super) struct Shares {
    /// After how many attempts at a stage the old ones join the crowd.
    size: u32,
    /// How many more stages may get a share.
    left: usize,
    /// The stages of each door that somebody has reached.
    doors: Vec<Vec<Stage>>,
    crowd: List,
    /// The crowd of sources in a `Cooldown`.
    cooling_crowd: List,
    /// The number of sources in a `Cooldown`, in shares and in the crowd.
    cooling: usize,
}

/// The share of a stage, longest there first.
#[derive(Clone, Copy, Default, Debug)]
struct Stage {
    young: List,
    old: List,
    /// How many attempts have joined `young`, including those that have left it since.
    came: u32,
    /// How many may; 0 if no share was left, `None` until somebody reaches the stage.
    most: Option<u32>,
}

impl Shares {
    /// Divides a table of `limit` attempts among `stages` stages; a stage takes memory once somebody reaches it.
    pub(super) fn new(limit: usize, stages: usize) -> Self {
        let size = limit / 8 / stages.max(1);
        Self {
            size: u32::try_from(size).unwrap_or(u32::MAX),
            left: stages,
            doors: Vec::new(),
            crowd: List::default(),
            cooling_crowd: List::default(),
            cooling: 0,
        }
    }

    /// Returns the number of sources in a `Cooldown`.
    pub(super) const fn cooling(&self) -> usize {
        self.cooling
    }

    /// Returns the attempt that a full table drops. The crowd of a full table is never empty.
    pub(super) fn first_to_go(&self) -> Option<Slot> {
        self.cooling_crowd.first.or(self.crowd.first)
    }

    /// Adds an attempt that has reached its stage.
    pub(super) fn join(&mut self, slot: Slot, attempt: &Attempt, entries: &mut Entries) {
        self.cooling += usize::from(attempt.stage == COOLING);
        let Some((stage, crowd)) = self.find(attempt) else { return };
        if stage.most == Some(0) {
            return crowd.push_back(slot, Order::Share, entries);
        }
        stage.young.push_back(slot, Order::Share, entries);
        stage.came += 1;
        if Some(stage.came) == stage.most {
            crowd.append(stage.old, Order::Share, entries);
            stage.old = std::mem::take(&mut stage.young);
            stage.came = 0;
        }
    }

    /// Removes an attempt.
    pub(super) fn leave(&mut self, slot: Slot, attempt: &Attempt, entries: &mut Entries) {
        self.cooling -= usize::from(attempt.stage == COOLING);
        let Some((Stage { young, old, .. }, crowd)) = self.find(attempt) else { return };
        List::unlink_from([crowd, young, old], slot, Order::Share, entries);
    }

    /// Returns all attempts, most advanced first, and within a stage of a door the longest there first; sources in a
    /// `Cooldown` come last. If a flood makes the crowd large, only the part that is dropped next is sorted like this;
    /// the rest follows after all other attempts.
    pub(super) fn iter<'a>(&'a self, entries: &'a Entries) -> impl Iterator<Item = Slot> + 'a {
        let stages = self.doors.iter().map(Vec::len).max().unwrap_or_default();
        let mut sorted: Vec<Vec<Slot>> = vec![Vec::new(); stages];
        for slot in self.crowd.iter(Order::Share, entries).take(MOST_SORTED) {
            let stage = entries.get(slot).map_or(0, |attempt| usize::from(attempt.stage));
            if let Some(stage) = sorted.get_mut(stage) {
                stage.push(slot);
            }
        }
        let shares_at = move |stage: usize| {
            let lists = self.doors.iter().filter_map(move |door| door.get(stage));
            lists.flat_map(|stage| [stage.old, stage.young]).flat_map(|list| list.iter(Order::Share, entries))
        };
        let at = move |stage: usize| {
            let crowd = sorted.get_mut(stage).map(std::mem::take).unwrap_or_default();
            crowd.into_iter().chain(shares_at(stage))
        };
        let rest = self.crowd.iter(Order::Share, entries).skip(MOST_SORTED);
        let cooling = self.cooling_crowd.iter(Order::Share, entries).chain(shares_at(usize::from(COOLING)));
        (1..stages).rev().flat_map(at).chain(rest).chain(cooling)
    }

    /// Returns the stage of an attempt, and the crowd that its old ones join.
    fn find(&mut self, attempt: &Attempt) -> Option<(&mut Stage, &mut List)> {
        let stages = at_or_new(&mut self.doors, attempt.door as usize)?;
        let stage = at_or_new(stages, usize::from(attempt.stage))?;
        if stage.most.is_none() {
            stage.most = Some(if self.left == 0 { 0 } else { self.size });
            self.left = self.left.saturating_sub(1);
        }
        Some((stage, if attempt.stage == COOLING { &mut self.cooling_crowd } else { &mut self.crowd }))
    }
}

fn at_or_new<T: Clone + Default>(items: &mut Vec<T>, index: usize) -> Option<&mut T> {
    if items.len() <= index {
        items.resize(index + 1, T::default());
    }
    items.get_mut(index)
}

#[cfg(test)]
impl Shares {
    /// Checks the lists and the counters, and returns all attempts.
    pub(super) fn checked(&self, limit: usize, entries: &Entries) -> Vec<Slot> {
        let attempt = |slot: &Slot| entries.get(*slot).unwrap();
        let mut all = Vec::new();
        let mut shares = 0;
        for (door, stages) in (0..).zip(&self.doors) {
            for (index, stage) in (0..).zip(stages) {
                let (young, old) =
                    (stage.young.checked(Order::Share, entries), stage.old.checked(Order::Share, entries));
                let most = stage.most.unwrap_or_default();
                shares += most;
                assert!(young.len() <= stage.came as usize && old.len() <= most as usize);
                assert!(stage.came < most.max(1), "{} have come", stage.came);
                let members = old.into_iter().chain(young);
                all.extend(
                    members
                        .inspect(|slot| assert_eq!((attempt(slot).door, attempt(slot).stage), (door, index))),
                );
            }
        }
        assert!(
            shares as usize <= limit / 8 && all.len() <= limit / 4,
            "{} are in shares of {shares}",
            all.len()
        );
        for (list, is_cooling) in [(self.crowd, false), (self.cooling_crowd, true)] {
            let members = list.checked(Order::Share, entries).into_iter();
            all.extend(members.inspect(|slot| assert_eq!(attempt(slot).stage == COOLING, is_cooling)));
        }
        assert_eq!(self.cooling, all.iter().filter(|slot| attempt(slot).stage == COOLING).count());
        all
    }
}
