//! The table in the kernel, and the thread that changes it.

use std::net::IpAddr;

use crossbeam_channel::Sender;
use knockd_core::{Admission, Config, Door, DoorName};
use nix::errno::Errno;

use super::earlier::Earlier;
use super::follow::{self, Looks};
use super::hold::strongest;
use super::netlink::Netlink;
use super::nft::Batch;
use super::plan::{self, Numbers};
use super::queue::Queue;
use super::ruleset::Ruleset;
use super::trial::Trial;
use super::{Admitted, Change, FirewallError, Hold, Job, Question, Report, Standing, answers, sessions};

/// The table, and the socket that owns it.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) netlink: Netlink,
    pub(super) ruleset: Ruleset,
    pub(super) numbers: Numbers,
    pub(super) hold: Hold,
    pub(super) standing: Standing,
    /// While it is on trial.
    pub(super) trial: Option<Trial>,
    /// Doors with services.
    pub(super) doors: Vec<Door>,
    pub(super) looks: Looks,
}

impl Table {
    /// Makes the table for this configuration, with the best of these holds that the kernel grants. Returns who is let in already.
    ///
    /// All of it is one batch, so at no time is anything open that was closed, and nobody who is let in is shut out.
    ///
    /// It stands as it did, unless a person wants something else.
    pub(super) fn make(
        mut netlink: Netlink,
        config: &Config,
        holds: &[Hold],
        wanted: Option<Standing>,
    ) -> Result<(Self, Vec<Admitted>), FirewallError> {
        let before = Standing::find(&mut netlink).map_err(FirewallError::when_asking)?;
        let standing = wanted.unwrap_or(if before == Standing::Gone { Standing::Firm } else { before });
        let earlier = Earlier::find(&mut netlink).map_err(FirewallError::when_asking)?;
        let mut numbers = earlier.numbers;
        let ruleset = plan::ruleset(config, &mut numbers);
        sessions::keep(&mut netlink, config);
        let hold = strongest(holds, |hold, replaces| {
            let mut batch = Batch::default();
            if replaces {
                batch.replace_table(hold.flags(), &ruleset, &earlier.admitted);
            } else if ruleset.can_follow(&earlier.ruleset) {
                batch.make_table(hold.flags());
                batch.make(&ruleset, &earlier.ruleset);
            } else {
                return Err(Errno::EEXIST);
            }
            standing.put(&mut batch, (!replaces).then_some(before));
            netlink.carry_out(batch)
        });
        let hold = hold.map_err(FirewallError::when_changing)?;
        let (doors, looks) = (follow::doors(config), Looks::default());
        let table = Self { netlink, ruleset, numbers, hold, standing, trial: None, doors, looks };
        let admitted = earlier.admitted.into_iter().map(|(_, admitted)| table.without_grace(admitted));
        let admitted = admitted.collect();
        Ok((table, admitted))
    }

    /// Makes the table what it should be, at once. The sets of doors that stay keep their addresses. One that a person has removed
    /// does not come back by itself.
    pub(super) fn guard(&mut self, config: &Config) -> Result<(), Errno> {
        if self.standing == Standing::Gone {
            return Ok(());
        }
        sessions::keep(&mut self.netlink, config);
        let ruleset = plan::ruleset(config, &mut self.numbers);
        self.load(ruleset, self.standing)?;
        self.doors = follow::doors(config);
        Ok(())
    }

    /// Leaves the table to whoever comes next, although the kernel would remove it with its owner.
    pub(super) fn finish(mut self) -> Result<(), Errno> {
        if self.hold == Hold::Owned && self.standing != Standing::Gone {
            let earlier = Earlier::find(&mut self.netlink)?;
            let mut batch = Batch::default();
            batch.replace_table(Hold::Shared.flags(), &self.ruleset, &earlier.admitted);
            self.standing.put(&mut batch, None);
            self.netlink.carry_out(batch)?;
        }
        Ok(())
    }

    pub(super) fn run(mut self, jobs: &Queue, reports: &Sender<Report>) {
        self.work(jobs, reports);
        jobs.close();
        if let Err(error) = self.finish() {
            let _ = reports.send(Report::Guarded(Some(error)));
        }
    }

    fn work(&mut self, jobs: &Queue, reports: &Sender<Report>) {
        loop {
            match self.next_job(jobs, reports) {
                Job::Prolong(admission, time) => self.prolong(admission, time, reports),
                Job::Look(admission) => self.begin_look(admission, reports),
                Job::Ask(Question { of, answer }) => {
                    let left = |(door, source): &(DoorName, IpAddr)| {
                        let source = self.admitted_with(door, *source);
                        self.left(door, source).unwrap_or_default()
                    };
                    answer(of.iter().map(left).collect());
                }
                Job::Guard(config) => {
                    let result = self.guard(&config);
                    let _ = reports.send(Report::Guarded(result.err()));
                }
                Job::Check => self.mend(reports),
                Job::End => return,
                Job::Obey(order, config) => {
                    let result = self.obey(order, &config);
                    let _ = reports.send(Report::Obeyed(result));
                }
                Job::Set(changes) => self.set(changes, reports),
            }
        }
    }

    /// Makes changes together if possible, and reports them.
    pub(super) fn set(&mut self, mut changes: Vec<Change>, reports: &Sender<Report>) {
        let mut together = self.carry_out(&changes);
        if together == Err(Errno::ENOENT) && self.is_gone() {
            self.mend(reports);
            together = self.carry_out(&changes);
        }
        if together.is_err() {
            // If the kernel refuses a batch, only some of it are to blame.
            for change in &mut changes {
                let result = self.carry_out(std::slice::from_ref(change));
                // Its time was over.
                let is_gone = change.time.is_none() && result == Err(Errno::ENOENT);
                change.refused = result.err().filter(|_| !is_gone);
            }
        }
        self.trial.iter_mut().for_each(|trial| trial.note(&changes));
        let closed = self.closed(&changes);
        let _ = reports.send(Report::Set(changes));
        self.cut(&closed, reports);
    }

    fn is_gone(&mut self) -> bool {
        let sets = self.netlink.dump(&answers::get_sets());
        !sets.is_ok_and(|sets| sets.iter().any(|it| answers::named_set(it).is_some()))
    }

    /// Makes the table again, with those who are still let in.
    pub(super) fn mend(&mut self, reports: &Sender<Report>) {
        if self.ruleset.sets.is_empty() {
            return;
        }
        let mend = |table: &mut Self| {
            let earlier = Earlier::find(&mut table.netlink)?;
            let mut batch = Batch::default();
            // What is not there cannot be replaced.
            batch.make_table(table.hold.flags());
            batch.replace_table(table.hold.flags(), &table.ruleset, &earlier.admitted);
            table.standing.put(&mut batch, None);
            table.netlink.carry_out(batch)
        };
        let _ = reports.send(Report::Lost(mend(self).err()));
    }

    pub(super) fn carry_out(&mut self, changes: &[Change]) -> Result<(), Errno> {
        // Nobody is shut out.
        if self.standing == Standing::Gone {
            return Ok(());
        }
        let mut batch = Batch::default();
        for Change { admission: Admission { door, source, .. }, time, .. } in changes {
            // Of a door that is gone, the set is as well.
            let number = self.numbers.get(door).copied().unwrap_or_default();
            let set = plan::set_for(number, *source);
            match time {
                Some(time) => batch.admit(&set, source.address(), *time + self.grace(door)),
                None => batch.shut(&set, source.address()),
            }
        }
        self.netlink.carry_out(batch)
    }
}
