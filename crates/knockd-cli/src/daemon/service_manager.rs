//! Messages to the service manager (`sd_notify(3)`): readiness, reloads, a status text, and watchdog keep-alives; and the socket that it
//! keeps for the next daemon.
//!
//! Without a service manager nothing is sent, and errors in sending are ignored.

use std::env;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use knockd_core::Timestamp;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::close;
use sd_notify::{NotifyState, notify, watchdog_enabled};

use crate::system::descriptors;

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

/// The name under which the service manager keeps the socket that owns the guard.
const GUARD: &str = "guard";

/// Has the service manager keep the socket that owns the guard, over a crash as well as a stop: so nobody can flush it while there is no
/// daemon.
pub(crate) fn keep(socket: &OwnedFd) -> std::io::Result<()> {
    let Some(address) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let to = UnixDatagram::unbound()?;
    to.connect(address)?;
    // FDPOLL: what the kernel may report on the socket is no reason to drop it.
    let text = format!("FDSTORE=1\nFDNAME={GUARD}\nFDPOLL=0");
    let (text, sockets) = ([IoSlice::new(text.as_bytes())], [socket.as_raw_fd()]);
    let message = [ControlMessage::ScmRights(&sockets)];
    sendmsg::<()>(to.as_raw_fd(), &text, &message, MsgFlags::empty(), None)?;
    Ok(())
}

/// Takes the socket that the service manager has kept. Before there are threads: a command would inherit what it has passed.
pub(crate) fn kept() -> Option<OwnedFd> {
    let passed = sd_notify::listen_fds_with_names().ok()?;
    let mut found = None;
    for (number, name) in passed {
        if name == GUARD {
            // As a number it is nobody's, so a copy is ours.
            let own = std::process::id().try_into().unwrap_or_default();
            found = descriptors::copy(own, number).ok().or(found);
        }
        let _ = close(number);
    }
    found
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
