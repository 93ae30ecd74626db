//! Whether the guard stands, and how it gets there: it can be on trial, and then the kernel lifts it by itself, whatever becomes of us.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use knockd_core::{Config, Door, DoorName, Prefix, Protocol};
use nix::errno::Errno;

use super::answers;
use super::connections::{self, Connection};
use super::earlier::Earlier;
use super::netlink::Netlink;
use super::nft::{Batch, limit};
use super::plan;
use super::queue::Queue;
use super::ruleset::Ruleset;
use super::table::Table;
use super::{Change, Job, Report, follow, sessions};

/// How often to look whether somebody has got in. The kernel remembers each connection for longer after its end.
const LOOK: Duration = Duration::from_secs(1);

/// How often to ask the kernel while the table changes.
const TRIES: u32 = 10;

/// Whether the guard stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// For good.
    Firm,
    /// Until then.
    OnTrial(Instant),
    /// Nobody has confirmed it in time.
    Lifted,
    /// There is no table: nothing was guarded, or a person has removed the guard.
    Gone,
}

/// What a person wants of the guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// Guard, for good.
    Keep,
    /// Guard, and lift the guard after this time unless somebody gets in.
    Try(Duration),
    Remove,
}

impl Order {
    /// What it makes of the guard.
    pub(super) fn standing(self) -> Standing {
        match self {
            Self::Keep => Standing::Firm,
            Self::Try(time) => Standing::OnTrial(Instant::now() + time),
            Self::Remove => Standing::Gone,
        }
    }
}

impl Standing {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn find(netlink: &mut Netlink) -> Result<Self, Errno> {
        for _ in 0..TRIES {
            match Self::look(netlink) {
                // The table has changed meanwhile.
                Err(Errno::EINTR | Errno::ENOENT) => {}
                result => return result,
            }
        }
        Err(Errno::EINTR)
    }

    fn look(netlink: &mut Netlink) -> Result<Self, Errno> {
        if !answers::has_table(&netlink.dump(&answers::get_tables())?) {
            return Ok(Self::Gone);
        }
        let sets = netlink.dump(&answers::get_sets())?;
        if sets.iter().any(|set| answers::is_set(set, limit::SET)) {
            let elements = netlink.dump(&answers::get_addresses(limit::SET))?;
            let left = elements.iter().flat_map(|part| answers::times(part)).max();
            return Ok(left.map_or(Self::Lifted, |left| Self::OnTrial(Instant::now() + left)));
        }
        // A table without sets guards nothing.
        Ok(if sets.is_empty() { Self::Gone } else { Self::Firm })
    }

    /// Whether the table has the set for this.
    const fn has_limit(self) -> bool {
        matches!(self, Self::OnTrial(_) | Self::Lifted)
    }

    /// Adds this to a batch that has made the chains; before, the table was as `before`, or it has just been made.
    pub(super) fn put(self, batch: &mut Batch, before: Option<Self>) {
        if before.is_some_and(Self::has_limit) {
            batch.forget_limit();
        }
        match self {
            Self::Firm | Self::Gone => {}
            Self::Lifted => batch.limit_guard(plan::GUARD, None),
            Self::OnTrial(until) => {
                let left = until.saturating_duration_since(Instant::now());
                batch.limit_guard(plan::GUARD, Some(left));
            }
        }
    }
}

/// Looks for somebody who gets in while the guard is on trial.
#[derive(Debug)]
pub(super) struct Trial {
    /// Whom the doors have let in so far: one with a single use forgets that.
    let_in: BTreeSet<(DoorName, Prefix)>,
    /// Connections from before.
    known: BTreeSet<Ends>,
    /// When to look next.
    next: Instant,
}

/// What tells a connection from others.
type Ends = (Protocol, SocketAddr, SocketAddr);

fn ends(connection: &Connection) -> Ends {
    (connection.protocol, connection.source, connection.destination)
}

impl Trial {
    pub(super) fn new(netlink: &mut Netlink, doors: &[Door]) -> Self {
        let admitted = Earlier::find(netlink).unwrap_or_default().admitted;
        // A kernel that does not tell of connections will not tell of a new one either.
        let known = connections::to(netlink, doors).unwrap_or_default();
        Self {
            let_in: admitted.into_iter().map(|(_, admitted)| (admitted.door, admitted.source)).collect(),
            known: known.iter().map(ends).collect(),
            next: Instant::now() + LOOK,
        }
    }

    /// Notes whom the doors let in.
    pub(super) fn note(&mut self, changes: &[Change]) {
        let admitted = changes.iter().filter(|change| change.time.is_some()).map(|change| &change.admission);
        self.let_in.extend(admitted.map(|admission| (admission.door.clone(), admission.source)));
    }

    /// Returns somebody who was let in and has got in since the trial began, for however short a time.
    fn newcomer(&self, netlink: &mut Netlink, doors: &[Door]) -> Option<IpAddr> {
        if self.let_in.is_empty() {
            return None;
        }
        let connections = connections::to(netlink, doors).ok()?;
        let mut new = connections.iter().filter(|connection| !self.known.contains(&ends(connection)));
        let is_let_in = |connection: &Connection| {
            let source = connection.source.ip();
            let of_source = self.let_in.iter().filter(|(_, prefix)| prefix.contains(source));
            let mut doors = of_source.filter_map(|(name, _)| doors.iter().find(|door| door.name == *name));
            doors.any(|door| door.services().is_some_and(|services| connection.is_to(&services, door.target)))
        };
        new.find(|connection| is_let_in(connection)).map(|connection| connection.source.ip())
    }
}

impl Table {
    /// Makes the table guard by these rules, in this way, all at once.
    pub(super) fn load(&mut self, ruleset: Ruleset, standing: Standing) -> Result<(), Errno> {
        let mut batch = Batch::default();
        let mut before = Some(self.standing);
        if self.standing == Standing::Gone {
            batch.make_table(self.hold.flags());
            batch.make(&ruleset, &Ruleset::default());
        } else if ruleset.can_follow(&self.ruleset) {
            batch.make(&ruleset, &self.ruleset);
        } else {
            let earlier = Earlier::find(&mut self.netlink)?;
            batch.replace_table(self.hold.flags(), &ruleset, &earlier.admitted);
            before = None;
        }
        standing.put(&mut batch, before);
        self.netlink.carry_out(batch)?;
        (self.ruleset, self.standing) = (ruleset, standing);
        Ok(())
    }

    /// Does what a person wants.
    pub(super) fn obey(&mut self, order: Order, config: &Config) -> Result<Standing, Errno> {
        let standing = order.standing();
        if standing == Standing::Gone {
            let mut batch = Batch::default();
            batch.delete_table();
            match self.netlink.carry_out(batch) {
                Err(Errno::ENOENT) => {}
                result => result?,
            }
            (self.ruleset, self.standing, self.trial) = (Ruleset::default(), standing, None);
            return Ok(standing);
        }
        sessions::keep(&mut self.netlink, config);
        let ruleset = plan::ruleset(config, &mut self.numbers);
        self.load(ruleset, standing)?;
        self.doors = follow::doors(config);
        let is_trial = matches!(standing, Standing::OnTrial(_));
        self.trial = is_trial.then(|| Trial::new(&mut self.netlink, &self.doors));
        Ok(standing)
    }

    /// Waits for the next job, and meanwhile for the end of a trial and for looks at connections.
    pub(super) fn next_job(&mut self, jobs: &Queue, reports: &Sender<Report>) -> Job {
        loop {
            let now = Instant::now();
            // Looks that are due at the same time are one.
            if let Some(job) = jobs.pop(Some(now)) {
                return job;
            }
            let trial = self.trial.as_ref().map(|trial| trial.next);
            if self.looks.next().is_some_and(|next| next <= now) {
                self.look_at_connections(reports);
            } else if trial.is_some_and(|next| next <= now) {
                self.look(reports);
            } else if let Some(job) = jobs.pop(trial.into_iter().chain(self.looks.next()).min()) {
                return job;
            }
        }
    }

    fn look(&mut self, reports: &Sender<Report>) {
        let (Some(trial), Standing::OnTrial(until)) = (&mut self.trial, self.standing) else { return };
        let now = Instant::now();
        trial.next = (now + LOOK).min(until.max(now));
        if let Some(source) = trial.newcomer(&mut self.netlink, &self.doors)
            && self.load(self.ruleset.clone(), Standing::Firm).is_ok()
        {
            self.trial = None;
            let _ = reports.send(Report::TrialEnded(Standing::Firm, Some(source)));
        } else if until <= now {
            // The kernel has lifted it.
            (self.standing, self.trial) = (Standing::Lifted, None);
            let _ = reports.send(Report::TrialEnded(Standing::Lifted, None));
        }
    }
}
