//! How the table follows connections: what keeps a door open for a source, and what ends with it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use knockd_core::config::{AtEnd, Extend};
use knockd_core::{Admission, Config, Door, DoorName, Prefix, Sight};
use nix::errno::Errno;

use super::connections::{self, Wanted};
use super::table::Table;
use super::{Admitted, Change, Report, answers, plan, sockets};

/// How long the kernel lets a source in beyond its time while somebody looks whether it is still connected.
const GRACE: Duration = Duration::from_secs(15);

/// Looks at connections begin at least this long after one another, and at most that long.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Looks at connections take this part of the time at most, unless that would be too seldom.
const SHARE: u32 = 24;

/// How often to try what can be disturbed.
const TRIES: usize = 3;

/// Whose connections to look for, and when.
#[derive(Debug, Default)]
pub(super) struct Looks {
    wanted: Vec<Admission>,
    /// When the next look may begin; `None` before the first.
    next: Option<Instant>,
}

impl Looks {
    /// Returns when to look; `None` if nobody asks.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next.filter(|_| !self.wanted.is_empty())
    }
}

/// Returns the doors with services.
pub(super) fn doors(config: &Config) -> Vec<Door> {
    config.doors.iter().filter(|door| door.is_guarded()).cloned().collect()
}

impl Table {
    /// Looks what keeps a door open: at once in the set, or soon at all connections.
    pub(super) fn begin_look(&mut self, admission: Admission, reports: &Sender<Report>) {
        let extend = self.door(&admission.door).and_then(|door| door.extend);
        if let Some(Extend::Connected { .. }) = extend {
            self.looks.next.get_or_insert_with(Instant::now);
            return self.looks.wanted.push(admission);
        }
        let sight = self.left(&admission.door, admission.source).map(Sight::Left);
        let _ = reports.send(Report::Seen(admission, sight));
    }

    /// Looks at the connections of all who are waited for.
    pub(super) fn look_at_connections(&mut self, reports: &Sender<Report>) {
        let begin = Instant::now();
        let looks = std::mem::take(&mut self.looks.wanted);
        let mut result = Err(Errno::EINTR);
        for _ in 0..TRIES {
            result = self.count(&looks);
            if result != Err(Errno::EINTR) {
                break;
            }
        }
        let (least, most) = REST;
        self.looks.next = Some(begin + (begin.elapsed() * SHARE).clamp(least, most));
        let mut counts = result.clone().unwrap_or_default().into_iter();
        for admission in looks {
            let sight = result.as_ref().map_or_else(|&error| Err(error), |_| Ok(counts.next().unwrap_or(0)));
            let _ = reports.send(Report::Seen(admission, sight.map(Sight::Connections)));
        }
    }

    /// Counts the connections of each.
    fn count(&mut self, looks: &[Admission]) -> Result<Vec<u32>, Errno> {
        let wanted = looks.iter().map(|Admission { door, source, .. }| {
            let door = self.doors.iter().find(|other| other.name == *door);
            let (services, target) = (door.and_then(Door::services), door.and_then(|it| it.target));
            let idle_limit = match door.and_then(|door| door.extend) {
                Some(Extend::Connected { idle_limit, .. }) => Duration::from_secs(idle_limit.get().into()),
                _ => Duration::ZERO,
            };
            Wanted { source: *source, services, target, idle_limit }
        });
        connections::count(&mut self.netlink, &wanted.collect::<Vec<_>>())
    }

    /// Lets a source in for this time because it is connected.
    pub(super) fn prolong(&mut self, admission: Admission, time: Duration, reports: &Sender<Report>) {
        let id = admission.id;
        let change = Change { admission, time: Some(time), refused: None };
        let report = match self.carry_out(std::slice::from_ref(&change)) {
            Ok(()) => Report::Prolonged(id),
            Err(error) => Report::Set(vec![Change { refused: Some(error), ..change }]),
        };
        let _ = reports.send(report);
    }

    /// Returns for how long the kernel still lets a source in; zero if it does not.
    pub(super) fn left(&mut self, door: &DoorName, source: Prefix) -> Result<Duration, Errno> {
        let number = self.numbers.get(door).copied().unwrap_or_default();
        let set = plan::set_for(number, source);
        match self.netlink.find(&answers::get_address(&set, source.address())) {
            Ok(found) => Ok(answers::addresses(&found).next().map_or(Duration::ZERO, |(_, left)| left)),
            Err(Errno::ENOENT) => Ok(Duration::ZERO),
            Err(error) => Err(error),
        }
    }

    /// Returns which doors have closed for whom.
    pub(super) fn closed(&self, changes: &[Change]) -> Vec<(Admission, Door)> {
        let closed = changes.iter().filter(|change| change.time.is_none()).map(|change| &change.admission);
        closed.filter_map(|it| Some((it.clone(), self.door(&it.door)?.clone()))).collect()
    }

    /// Does what follows when doors have closed for sources.
    pub(super) fn cut(&mut self, closed: &[(Admission, Door)], reports: &Sender<Report>) {
        for (Admission { door: name, source, .. }, _) in closed.iter().filter(|(_, door)| is_idle(door)) {
            // A packet that was on its way when the address was removed may have added it again.
            for _ in 0..TRIES {
                if self.left(name, *source).is_ok_and(|left| left.is_zero()) {
                    break;
                }
                let again = closed.iter().filter(|(it, _)| it.door == *name && it.source == *source);
                let again = again.map(|(admission, _)| admission.clone());
                let again = again.map(|admission| Change { admission, time: None, refused: None });
                let _ = self.carry_out(&again.collect::<Vec<_>>());
            }
        }
        let cut: Vec<_> = closed.iter().filter(|(_, door)| door.at_end == AtEnd::Cut).collect();
        if cut.is_empty() {
            return;
        }
        // What is led to other hosts has no socket here.
        let of = cut.iter().map(|(admission, door)| (admission.source, door.local_services()));
        let result = sockets::end(&of.collect::<Vec<_>>());
        let mut counts = result.clone().unwrap_or_default().into_iter();
        for (admission, _) in cut {
            let ended = result.as_ref().map_or_else(|&error| Err(error), |_| Ok(counts.next().unwrap_or(0)));
            let _ = reports.send(Report::Cut(admission.clone(), ended));
        }
    }

    /// Returns how much longer than told the kernel lets a source in at this door.
    pub(super) fn grace(&self, door: &DoorName) -> Duration {
        match self.door(door).and_then(|door| door.extend) {
            Some(Extend::Connected { .. }) => GRACE,
            Some(Extend::Idle(_)) | None => Duration::ZERO,
        }
    }

    /// Returns who is let in, with the time that was told.
    pub(super) fn without_grace(&self, admitted: Admitted) -> Admitted {
        Admitted { left: admitted.left.saturating_sub(self.grace(&admitted.door)), ..admitted }
    }

    /// Returns whom a door lets in with a source.
    pub(super) fn admitted_with(&self, door: &DoorName, source: IpAddr) -> Prefix {
        let network = self.door(door).and_then(|door| door.open_for.network_of(source));
        network.unwrap_or_else(|| source.into())
    }

    fn door(&self, name: &DoorName) -> Option<&Door> {
        self.doors.iter().find(|door| door.name == *name)
    }
}

const fn is_idle(door: &Door) -> bool {
    matches!(door.extend, Some(Extend::Idle(_)))
}
