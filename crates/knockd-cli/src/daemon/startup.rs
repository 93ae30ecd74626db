//! What is made before there are threads, so that the daemon can still fork, and tell whoever started it what is wrong.

use std::path::PathBuf;

use anyhow::Context;
use knockd_capture::LinkWatch;
use knockd_core::Matcher;

use crate::args::Args;
use crate::capture::listeners::{Sockets, Wanted};
use crate::control::socket::Bound;
use crate::daemon::guard::Guard;
use crate::daemon::setup::Setup;
use crate::leases::store::LeaseStore;
use crate::system::clock::Clock;

/// What has to succeed before the daemon goes to the background. It has no thread, so it survives the fork.
pub(crate) struct Prepared {
    pub(crate) args: Args,
    /// Where relative paths start.
    pub(crate) directory: PathBuf,
    pub(crate) setup: Setup,
    pub(super) matcher: Matcher,
    pub(super) guard: Guard,
    pub(super) sockets: Sockets,
    pub(super) links: LinkWatch,
    pub(super) clock: Clock,
    /// The state directory, or why there is none; `None` when no door needs one.
    pub(super) state: Option<anyhow::Result<LeaseStore>>,
    /// The control socket with what is to be said about it, or why there is none; `None` when there is to be none.
    pub(super) control: Option<anyhow::Result<(Bound, Option<String>)>>,
}

impl Prepared {
    /// Finds the interfaces and begins to listen; what comes from now on waits in the kernel's buffers.
    ///
    /// # Errors
    /// When an interface does not exist or may not be listened to.
    pub(crate) fn new(args: Args, directory: PathBuf, setup: Setup) -> anyhow::Result<Self> {
        let links = LinkWatch::open().context("cannot watch the network interfaces")?;
        let mut matcher = Matcher::new(&setup.doors, setup.options.max_attempts);
        arm(&mut matcher, &setup);
        let clock = Clock::start();
        let mut guard = Guard::new(setup.options.scan_limit);
        let interests = matcher.interests();
        guard.watch(&interests, [], clock.now());
        let wanted = Wanted { interests, guard: guard.local_ports(), ipv4_only: args.only_ip_v4 };
        let sockets = Sockets::open(setup.selection.clone(), setup.waits, wanted)?;
        matcher.set_addresses(sockets.addresses());
        guard.watch(&matcher.interests(), sockets.addresses(), clock.now());
        let state = setup.needs_state().then(|| LeaseStore::open(setup.state_dir.clone(), clock));
        let control = setup.control_socket.as_deref().map(Bound::make);
        Ok(Self { args, directory, setup, matcher, guard, sockets, links, clock, state, control })
    }
}

/// Gives the doors with one-time sequences the ones that their files say.
pub(super) fn arm(matcher: &mut Matcher, setup: &Setup) {
    for (door, file) in &setup.one_time {
        matcher.set_sequence(*door, file.sequence().cloned());
    }
}
