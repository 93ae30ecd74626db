//! What a person runs beside the daemon: `check`, `replay`, `watch`, `trace`, `status`, and requests to a running daemon.
//!
//! They know the core, what is said on the control socket, and capture files; never the daemon.

#[doc(hidden)]
pub mod capture_file;
pub mod check;
pub mod client;
#[doc(hidden)]
pub mod link_layer;
pub mod replay;
pub(crate) mod status;
pub mod trace;
pub mod watch;
