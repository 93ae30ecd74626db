//! What a service manager is told (`sd_notify(3)`): readiness, reloads, a status line, and that the loop is alive.
//!
//! Without a service manager nothing happens, and one that does not listen is its own problem.

use std::time::Duration;

use knockd_core::Timestamp;
use sd_notify::{NotifyState, notify, watchdog_enabled};

/// Says that the daemon listens, after its start or a reload.
pub(crate) fn ready(status: &str) {
    let _ = notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(crate) fn reloading() {
    // `Type=notify-reload` wants to know when the reload began.
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

/// Shows the service manager regularly that the loop is alive, if it wants to know.
#[derive(Debug)]
pub(crate) struct Watchdog {
    /// How often, and when next: twice as often as the manager demands.
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

    pub(crate) fn handle_timeout(&mut self, now: Timestamp) {
        if let Some((interval, next)) = &mut self.beat
            && *next <= now
        {
            let _ = notify(&[NotifyState::Watchdog]);
            *next = now.after(*interval);
        }
    }
}
