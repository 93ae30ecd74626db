//! Which attempt makes room in a full table.
//!
//! The attempts that came last to a stage of a door have a *share* of the table, of the same size for each stage of each door.
//! All other attempts are the *crowd*, and a full table drops the one that has been in the crowd longest.
//!
//! ```text
//!                     each door's stage: the newest            all that did not stay there
//!   comes to     ┌──────────────────┬────────────────┐
//!   door 0 ────▶ │ stage 1   young  │  old           │ ─┐    ┌──────────────────────┐
//!   door 0 ────▶ │ stage 2   young  │  old           │  ├──▶ │ crowd     the oldest │ ──▶ makes room
//!   door 1 ────▶ │ stage 1   young  │  old           │ ─┘    └──────────────────────┘
//!                └──────────────────┴────────────────┘
//! ```
//!
//! When as many have come to a stage as a share counts, the old ones join the crowd, and the young ones are the old ones: two
//! chains of entries are hung up elsewhere, without a look at what is in them. An eighth of the table is divided evenly among the
//! stages, so that the old ones and the young ones together have a quarter of it at most, and the crowd three quarters.
//!
//! So a flood takes room from nobody else, whatever it consists of:
//!
//! - An attempt is in its share until as many as a share counts have come to the same stage of the same door after it. What comes
//!   to other doors, or to other stages of this one, does not push it out, at whatever rate. With the default of 262,144
//!   attempts and three doors of three steps, a share counts 5,461.
//! - Then it stays until all that is in the crowd has come there after it. That is three quarters of the table; no more than an
//!   eighth can have been waiting in other shares. So more than half of the table has to come anew between two steps of a knock
//!   that fails: 131,072 attempts, which is 5.2 s at 25,000 a second and 0.26 s at 500,000. Hits 100 ms apart are safe up to
//!   1,310,000 a second. It does not matter how many doors and stages are flooded, or were filled beforehand with attempts that
//!   last long. A packet that begins attempts at several doors counts as often.
//!
//! Sources in a `Cooldown` have a share at their door as well, but a crowd of their own, which goes first.
//!
//! Two other ways were tried. If the longest of all lists makes room, somebody who has filled the stages of ten doors leaves a
//! twentieth of the table at the one that they flood then. If attempts join the crowd one by one, each packet touches one more
//! entry, which costs a third more when the table is full.

use super::entries::{Entries, Slot};
use super::list::{List, Order};
use super::{Attempt, COOLING};

/// How many of the crowd [`Shares::iter`] puts in order: more than anybody looks at, and few enough for every call.
const MOST_SORTED: usize = 1024;

#[derive(Debug)]
pub(super) struct Shares {
    /// How many may come to a stage until those that came before them join the crowd.
    size: u32,
    /// How many stages may still get a share: as many as were promised to exist.
    left: usize,
    /// The stages of each door, as far as anybody has come.
    doors: Vec<Vec<Stage>>,
    crowd: List,
    /// The same for those in a `Cooldown`.
    cooling_crowd: List,
    /// How many are in a `Cooldown`, wherever they are.
    cooling: usize,
}

/// Who came to a stage last; who came first is at the front. `young` has the last ones, and `old` those before them.
#[derive(Clone, Copy, Default, Debug)]
struct Stage {
    young: List,
    old: List,
    /// How many have come to be young, even if they have gone since.
    came: u32,
    /// How many may; none where no share was left; not known where nobody has come yet.
    most: Option<u32>,
}

impl Shares {
    /// Divides a table for that many attempts among so many stages of doors; it takes memory only as they are reached.
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

    /// The number of sources in a `Cooldown`.
    pub(super) const fn cooling(&self) -> usize {
        self.cooling
    }

    /// The attempt that a full table does without. The crowd of a full table is never empty.
    pub(super) fn first_to_go(&self) -> Option<Slot> {
        self.cooling_crowd.first.or(self.crowd.first)
    }

    /// Adds an attempt that has come to its stage.
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

    /// Takes an attempt out that will be removed, or will join again.
    pub(super) fn leave(&mut self, slot: Slot, attempt: &Attempt, entries: &mut Entries) {
        self.cooling -= usize::from(attempt.stage == COOLING);
        let Some((Stage { young, old, .. }, crowd)) = self.find(attempt) else { return };
        List::unlink_from([crowd, young, old], slot, Order::Share, entries);
    }

    /// All attempts, the most advanced first, of those at one stage of a door the longest there; sources in a `Cooldown` come
    /// last. Of a larger crowd, as there is in a flood, only the part that goes next is in this order; the rest follows on all
    /// other attempts.
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

    /// The stage that an attempt is at, and the crowd that follows on it.
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
    /// Checks the lists and what is counted, and returns all attempts.
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
