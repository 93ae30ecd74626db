//! What is set up before there are threads.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use knockd_capture::LinkWatch;
use knockd_core::{DoorId, Gate, Seed};

use super::setup::Setup;
use crate::args::Args;
use crate::capture::claim::Claimant;
use crate::capture::listeners::{FilterSpec, Sockets};
use crate::control::socket::Bound;
use crate::leases::store::LeaseStore;
use crate::system::clock::Clock;
use crate::system::helper::Rights;
use crate::system::text::count;
use crate::system::{local_ports, lock};

/// What must succeed before anything is started.
pub(super) struct Prepared {
    pub(super) args: Args,
    /// Where relative paths start.
    pub(super) directory: PathBuf,
    pub(super) setup: Setup,
    pub(super) rights: Rights,
    pub(super) gate: Gate,
    pub(super) sockets: Sockets,
    pub(super) links: LinkWatch,
    pub(super) clock: Clock,
    /// The socket that owns the guard, from an earlier run.
    pub(super) kept_socket: Option<OwnedFd>,
    /// The lease store, or why there is none; `None` if no door needs one.
    pub(super) store: Option<anyhow::Result<LeaseStore>>,
    /// The control socket with a notice about it, or why there is none; `None` if none is configured.
    pub(super) control: Option<anyhow::Result<(Bound, Option<String>)>>,
}

impl Prepared {
    /// Finds the interfaces and starts to listen; packets wait in the kernel's buffers from now on.
    ///
    /// # Errors
    /// When an interface does not exist, the process may not listen on it, or another daemon does with the same file.
    pub(super) fn new(
        args: Args,
        directory: PathBuf,
        mut setup: Setup,
        rights: Rights,
        kept_socket: Option<OwnedFd>,
    ) -> anyhow::Result<Self> {
        let links = LinkWatch::open().context("cannot watch the network interfaces")?;
        let files = std::mem::take(&mut setup.one_time_files);
        let mut gate = Gate::new(Arc::clone(&setup.config), files, seed()?);
        // The filter is built from the gate's final wishes, so no change has to be carried out.
        let has_udp = gate.wanted().has_udp();
        gate.set_local_ports(local_ports::in_use(has_udp)).for_each(drop);
        let filter = FilterSpec { wanted: Arc::clone(gate.wanted()), only_ipv4: args.only_ip_v4 };
        let claimant = Claimant::new(&setup.config_path);
        let sockets = Sockets::open(setup.selection.clone(), setup.waits, filter, claimant)?;
        gate.set_addresses(sockets.own_addresses().iter().copied());
        for (index, door) in setup.config.doors.iter().enumerate() {
            let steps = gate.steps_of(DoorId::new(index));
            let steps = steps.map_or("no sequence left".to_owned(), |steps| count(steps, "step"));
            log::debug!("door {}: {steps}", door.name);
        }
        let store = setup.needs_state(&rights).then(|| LeaseStore::open(setup.state_dir.clone(), lock));
        let control = setup.control_socket.as_deref().map(|path| Bound::make(path, &rights));
        Ok(Self {
            args,
            directory,
            setup,
            rights,
            gate,
            sockets,
            links,
            clock: Clock::start(),
            kept_socket,
            store,
            control,
        })
    }
}

/// Returns a seed that no stranger can know.
fn seed() -> anyhow::Result<Seed> {
    let number = || getrandom::u64().context("the system has no randomness");
    Ok(Seed::new(number()?, number()?))
}
