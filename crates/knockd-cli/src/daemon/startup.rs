//! What is set up before there are threads, so the daemon can still fork and report errors to its caller.

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
use crate::system::{local_ports, lock};

/// What must succeed before the daemon detaches. It has no thread, so it survives the fork.
pub(super) struct Prepared {
    pub(super) args: Args,
    /// Where relative paths start.
    pub(super) directory: PathBuf,
    pub(super) setup: Setup,
    pub(super) gate: Gate,
    pub(super) sockets: Sockets,
    pub(super) links: LinkWatch,
    pub(super) clock: Clock,
    /// The lease store, or why there is none; `None` if no door needs one.
    pub(super) store: Option<anyhow::Result<LeaseStore>>,
    /// The control socket with a notice about it, or why there is none; `None` if none is configured.
    pub(super) control: Option<anyhow::Result<(Bound, Option<String>)>>,
}

impl Prepared {
    /// Finds the interfaces and starts to listen; packets wait in the kernel's buffers from now on.
    ///
    /// # Errors
    /// When an interface does not exist, or the process may not listen on it.
    pub(super) fn new(args: Args, directory: PathBuf, mut setup: Setup) -> anyhow::Result<Self> {
        let links = LinkWatch::open().context("cannot watch the network interfaces")?;
        let files = std::mem::take(&mut setup.one_time_files);
        let mut gate = Gate::new(Arc::clone(&setup.config), files, seed()?);
        // The filter is built from the gate's final wishes, so no change has to be carried out.
        let has_udp = gate.wanted().has_udp();
        gate.set_local_ports(local_ports::in_use(has_udp)).for_each(drop);
        let filter = FilterSpec { wanted: Arc::clone(gate.wanted()), only_ipv4: args.only_ip_v4 };
        let sockets = Sockets::open(setup.selection.clone(), setup.waits, filter)?;
        if args.daemon {
            // The decoders end with the thread that starts them, so they come after the fork. What keeps them from
            // starting is found out here.
            sockets.try_decoder()?;
        }
        gate.set_addresses(sockets.addresses());
        let store = setup.needs_state().then(|| LeaseStore::open(setup.state_dir.clone(), lock));
        let control = setup.control_socket.as_deref().map(Bound::make);
        Ok(Self { args, directory, setup, gate, sockets, links, clock: Clock::start(), store, control })
    }
}

/// Returns a seed that no stranger can know.
fn seed() -> anyhow::Result<Seed> {
    let number = || getrandom::u64().context("the system has no randomness");
    Ok(Seed::new(number()?, number()?))
}
