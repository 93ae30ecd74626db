//! Messages to the service manager (`sd_notify(3)`): readiness, reloads, a status text, and watchdog keep-alives.
//!
//! Without a service manager nothing is sent, and errors in sending are ignored.

use std::time::Duration;

use knockd_core::Timestamp;
use sd_notify::{NotifyState, notify, watchdog_enabled};

/// Reports that the daemon is ready, at startup or after a reload.
pub(crate) fn ready(status: &str) {
    let _ = notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(crate) fn reloading() {
    // `Type=notify-reload` needs the start time of the reload.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        let _ = notify(&[NotifyState::Reloading, now]);
    }
}

pub(crate) fn status(status: &str) {
    let _ = notify(&[NotifyState::Status(status)]);
}

pub(crate) fn stopping() {
    let _ = notify(&[NotifyState::Stopping]);
}

/// Sends the service manager keep-alives, if it wants them.
#[derive(Debug)]
pub(crate) struct Watchdog {
    /// How often, and when next: twice as often as required.
    beat: Option<(Duration, Timestamp)>,
}

impl Watchdog {
    pub(crate) fn new(now: Timestamp) -> Self {
        let interval = watchdog_enabled().map(|limit| limit / 2);
        Self { beat: interval.map(|interval| (interval, now.after(interval))) }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.beat.map(|(_, next)| next)
    }

    /// Sends a keep-alive if one is due and the daemon does its work; without it, the service manager restarts the
    /// daemon.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp, works: bool) {
        if let Some((interval, next)) = &mut self.beat
            && *next <= now
        {
            if works {
                let _ = notify(&[NotifyState::Watchdog]);
            }
            *next = now.after(*interval);
        }
    }
}
