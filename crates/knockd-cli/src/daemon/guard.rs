//! The scanner guard: the core's judgement, and the UDP ports of this machine that it has to know.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use knockd_core::{Interest, LocalPorts, Protocol, Scanners, Timestamp};

use crate::system::local_ports;

/// How often the list of UDP ports in use is read again.
const INTERVAL: Duration = Duration::from_secs(5);

/// Scanners, and when to look at the local ports again.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) scanners: Scanners,
    /// `None` while no local port matters.
    due: Option<Timestamp>,
}

impl Guard {
    pub(crate) fn new(limit: Option<NonZeroU32>) -> Self {
        Self { scanners: Scanners::new(limit), due: None }
    }

    /// Says what the doors look for and which addresses are our own.
    pub(crate) fn watch(
        &mut self,
        interests: &[Interest],
        own: impl IntoIterator<Item = IpAddr>,
        now: Timestamp,
    ) {
        self.scanners.watch(interests, own);
        let udp = interests.iter().any(|interest| interest.step.protocol == Protocol::Udp);
        let matters = udp && self.scanners.local_ports().is_some();
        if matters && self.due.is_none() {
            self.read_ports();
        }
        self.due = matters.then(|| self.due.unwrap_or_else(|| now.after(INTERVAL)));
    }

    /// The UDP ports in use, for the filter; `None` while the guard is off.
    pub(crate) fn local_ports(&self) -> Option<LocalPorts> {
        self.scanners.local_ports().cloned()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub(crate) const fn poll_timeout(&self) -> Option<Timestamp> {
        self.due
    }

    /// Looks at the local ports again when it is time; says whether they have changed.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) -> bool {
        if self.due.is_none_or(|due| now < due) {
            return false;
        }
        self.due = Some(now.after(INTERVAL));
        self.read_ports()
    }

    /// Reads the list; says whether it has changed. Where it cannot be read, every port counts as in use.
    fn read_ports(&mut self) -> bool {
        let ports = local_ports::read().unwrap_or_else(|error| {
            log::debug!("the UDP ports in use cannot be read: {error}");
            LocalPorts::default()
        });
        let changed = self.scanners.local_ports() != Some(&ports);
        self.scanners.set_local_ports(ports);
        changed
    }
}
