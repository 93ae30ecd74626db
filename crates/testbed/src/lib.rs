//! Two real hosts for demonstrations, tests and benchmarks, made of Linux namespaces.
//!
//! A [`Net`] is a `server` and a `client` joined by a virtual cable. Programs run on them as on machines of their own,
//! with own interfaces, own firewall and own `/run`; nothing of the real machine's network is touched, and everything
//! is gone when the `Net` is dropped or its process ends, however it ends. It works as root, and as a plain user
//! wherever the kernel allows user namespaces. It needs `unshare` and `nsenter` (util-linux) and `ip` (iproute2).
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//!
//! let net = testbed::Net::new()?;
//! let mut echo = net.server.spawn(&["sh", "-c", "ip -brief address show eth0; sleep 60"])?;
//! echo.wait_for_line("10.9.0.1/24", Duration::from_secs(5))?;
//! # Ok(())
//! # }
//! ```

mod build;
mod frame;
mod host;
mod net;
mod running;
mod scale;
mod skip;

pub use build::{
    Built, build, build_release, build_tests, firewalls, original, target_directory, workspace_root,
};
pub use frame::{Flags, Frame};
pub use host::Host;
pub use net::{Net, Stranger};
pub use running::{Line, Running, Stream};
pub use scale::scale;
pub use skip::{SKIPPED, is_ci, skip, skip_until_installed};
