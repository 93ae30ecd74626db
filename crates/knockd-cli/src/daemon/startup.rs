//! What is made before there are threads, so that the daemon can still fork, and tell whoever started it what is wrong.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use knockd_capture::LinkWatch;
use knockd_core::{Gate, Seed};

use super::setup::Setup;
use crate::args::Args;
use crate::capture::listeners::{FilterSpec, Sockets};
use crate::control::socket::Bound;
use crate::leases::store::LeaseStore;
use crate::system::clock::Clock;
use crate::system::local_ports;

/// What has to succeed before the daemon goes to the background. It has no thread, so it survives the fork.
pub(super) struct Prepared {
    pub(super) args: Args,
    /// Where relative paths start.
    pub(super) directory: PathBuf,
    pub(super) setup: Setup,
    pub(super) gate: Gate,
    pub(super) sockets: Sockets,
    pub(super) links: LinkWatch,
    pub(super) clock: Clock,
    /// The state directory, or why there is none; `None` when no door needs one.
    pub(super) store: Option<anyhow::Result<LeaseStore>>,
    /// The control socket with what is to be said about it, or why there is none; `None` when there is to be none.
    pub(super) control: Option<anyhow::Result<(Bound, Option<String>)>>,
}

impl Prepared {
    /// Finds the interfaces and begins to listen; what comes from now on waits in the kernel's buffers.
    ///
    /// # Errors
    /// When an interface does not exist or may not be listened to.
    pub(super) fn new(args: Args, directory: PathBuf, mut setup: Setup) -> anyhow::Result<Self> {
        let links = LinkWatch::open().context("cannot watch the network interfaces")?;
        let files = std::mem::take(&mut setup.one_time_files);
        let mut gate = Gate::new(Arc::clone(&setup.config), files, seed()?);
        // The filter is made of what the gate wants in the end, so none of its changes has to be carried out.
        gate.set_local_ports(local_ports::in_use()).for_each(drop);
        let filter = FilterSpec { wanted: Arc::clone(gate.wanted()), only_ipv4: args.only_ip_v4 };
        let sockets = Sockets::open(setup.selection.clone(), setup.waits, filter)?;
        gate.set_addresses(sockets.addresses());
        let store = setup.needs_state().then(|| LeaseStore::open(setup.state_dir.clone()));
        let control = setup.control_socket.as_deref().map(Bound::make);
        Ok(Self { args, directory, setup, gate, sockets, links, clock: Clock::start(), store, control })
    }
}

/// A seed that no stranger can know.
fn seed() -> anyhow::Result<Seed> {
    let number = || getrandom::u64().context("the system has no randomness");
    Ok(Seed::new(number()?, number()?))
}
