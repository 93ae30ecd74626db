//! The guard: a table of our own in the kernel's nftables, which lets only knockers reach the services of doors.
//!
//! [`plan`] says what the table should be, [`ruleset`] prints it, and [`nft`] turns it into messages for [`netlink`]. This folder knows
//! nothing of packets, leases or the disk.

mod netlink;
mod nft;
mod plan;
mod ruleset;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use crossbeam_channel::{Receiver, Sender, unbounded};
use knockd_core::{Admission, Config, DoorName};
use nix::errno::Errno;

use self::netlink::Netlink;
use self::nft::Batch;
use self::plan::Numbers;
use self::ruleset::{Family, Ruleset, Set};
use crate::system::spawn;

/// `NFT_TABLE_F_OWNER` and `NFT_TABLE_F_PERSIST`: only our socket may change the table, and it stays when the socket is closed.
const OWNER: u32 = 2;
const PERSIST: u32 = 4;

/// How many changes share one batch.
const MOST_AT_ONCE: usize = 1000;

/// Returns the table for this configuration, as nft prints it.
pub(crate) fn text(config: &Config) -> String {
    plan::ruleset(config, &mut Numbers::new()).to_string()
}

/// Makes the table for this configuration, unless it is there. It stays until it is removed; a daemon takes it over.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn guard(config: &Config) -> Result<(), Errno> {
    Table::take_over(config).map(drop)
}

/// Removes the table, if there is one.
///
/// # Errors
/// When the kernel refuses, with `EPERM` if a running process owns it.
pub(crate) fn remove() -> Result<(), Errno> {
    let mut batch = Batch::default();
    batch.delete_table();
    match Netlink::open()?.carry_out(batch) {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

/// The thread that changes the table.
#[derive(Debug)]
pub(crate) struct Firewall {
    jobs: Sender<Job>,
    /// What came of each admission.
    pub(crate) reports: Receiver<Report>,
}

/// Somebody whom an earlier process has let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) door: DoorName,
    pub(crate) source: IpAddr,
    pub(crate) left: Duration,
}

/// What the kernel has done.
#[derive(Debug)]
pub(crate) enum Report {
    /// It lets the source in for this time, or no longer; or refuses.
    Set { admission: Admission, time: Option<Duration>, refused: Option<Errno> },
    /// It guards the doors of another configuration, or refuses.
    Guarded(Option<Errno>),
}

#[derive(Debug)]
enum Job {
    /// Lets the source in for this time; without one, no longer.
    Set(Admission, Option<Duration>),
    Guard(Arc<Config>),
}

impl Firewall {
    /// Makes the table, unless an earlier process has, and starts the thread. Returns who is let in already.
    ///
    /// # Errors
    /// When the kernel refuses the table, or the system has no thread left.
    pub(crate) fn start(config: &Config) -> anyhow::Result<(Self, Vec<Admitted>)> {
        let (table, admitted) = Table::take_over(config).map_err(|error| anyhow!("{}", error.desc()))?;
        let (jobs, waiting) = unbounded();
        let (reporter, reports) = unbounded();
        spawn("firewall", move || table.run(&waiting, &reporter))?;
        Ok((Self { jobs, reports }, admitted))
    }

    /// Lets the source in for this time; without one, no longer. The result is in [`Self::reports`].
    pub(crate) fn set(&self, admission: Admission, time: Option<Duration>) {
        let _ = self.jobs.send(Job::Set(admission, time));
    }

    /// Guards the doors of another configuration. Those that stay keep whom they let in.
    pub(crate) fn guard(&self, config: Arc<Config>) {
        let _ = self.jobs.send(Job::Guard(config));
    }
}

/// The table, and the socket that owns it.
#[derive(Debug)]
struct Table {
    netlink: Netlink,
    ruleset: Ruleset,
    numbers: Numbers,
}

impl Table {
    fn open() -> Result<Self, Errno> {
        let mut netlink = Netlink::open()?;
        let mut result = Ok(());
        // Linux has owners since 5.12, and lets a table stay without its owner since 6.9.
        for flags in [OWNER | PERSIST, OWNER, 0] {
            let mut batch = Batch::default();
            batch.make_table(flags);
            result = netlink.carry_out(batch);
            if result.is_ok() {
                break;
            }
        }
        result?;
        Ok(Self { netlink, ruleset: Ruleset::default(), numbers: Numbers::new() })
    }

    /// Makes the table for this configuration, and returns who is let in already.
    fn take_over(config: &Config) -> Result<(Self, Vec<Admitted>), Errno> {
        let mut table = Self::open()?;
        let admitted = table.restore()?;
        table.guard(config)?;
        Ok((table, admitted))
    }

    /// Learns what an earlier process has left in the table.
    fn restore(&mut self) -> Result<Vec<Admitted>, Errno> {
        let mut admitted = Vec::new();
        for answer in self.netlink.dump(nft::get_sets())? {
            let Some((name, door)) = nft::named_set(&answer) else { continue };
            let Some((number, family)) = plan::of_set_name(name) else { continue };
            let Ok(door) = DoorName::new(door) else { continue };
            self.numbers.insert(door.clone(), number);
            let set = Set { name: name.to_owned(), family, size: 0, comment: door.to_string() };
            self.ruleset.sets.push(set);
            for part in self.netlink.dump(nft::get_addresses(name))? {
                let of_door = |(source, left)| Admitted { door: door.clone(), source, left };
                admitted.extend(nft::addresses(&part).map(of_door));
            }
        }
        Ok(admitted)
    }

    /// Makes the table what it should be, at once. The sets of doors that stay keep their addresses.
    fn guard(&mut self, config: &Config) -> Result<(), Errno> {
        let ruleset = plan::ruleset(config, &mut self.numbers);
        let mut batch = Batch::default();
        batch.make(&ruleset, &self.ruleset);
        self.netlink.carry_out(batch)?;
        self.ruleset = ruleset;
        Ok(())
    }

    fn run(mut self, jobs: &Receiver<Job>, reports: &Sender<Report>) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| jobs.recv().ok()) {
            match job {
                Job::Guard(config) => {
                    let result = self.guard(&config);
                    let _ = reports.send(Report::Guarded(result.err()));
                }
                Job::Set(admission, time) => {
                    let mut changes = vec![(admission, time)];
                    while changes.len() < MOST_AT_ONCE
                        && let Ok(job) = jobs.try_recv()
                    {
                        match job {
                            Job::Set(admission, time) => changes.push((admission, time)),
                            Job::Guard(_) => {
                                next = Some(job);
                                break;
                            }
                        }
                    }
                    self.set(changes, reports);
                }
            }
        }
    }

    /// Carries out changes together if possible, and reports each.
    fn set(&mut self, changes: Vec<(Admission, Option<Duration>)>, reports: &Sender<Report>) {
        let together = self.carry_out(&changes);
        for change in changes {
            // If the kernel refuses a batch, only some of it are to blame.
            let result = together.or_else(|_| self.carry_out(std::slice::from_ref(&change)));
            let (admission, time) = change;
            // Its time was over.
            let is_gone = time.is_none() && result == Err(Errno::ENOENT);
            let refused = result.err().filter(|_| !is_gone);
            let _ = reports.send(Report::Set { admission, time, refused });
        }
    }

    fn carry_out(&mut self, changes: &[(Admission, Option<Duration>)]) -> Result<(), Errno> {
        let mut batch = Batch::default();
        for (Admission { door, source, .. }, time) in changes {
            // Of a door that is gone, the set is as well.
            let number = self.numbers.get(door).copied().unwrap_or_default();
            let set = plan::set_name(number, Family::of(*source));
            match time {
                Some(time) => batch.admit(&set, *source, *time),
                None => batch.shut(&set, *source),
            }
        }
        self.netlink.carry_out(batch)
    }
}
