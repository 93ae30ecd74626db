//! The tools for people: `check`, `replay`, `watch`, `trace`, `status`, and requests to a running daemon.
//!
//! They know the core, the protocol of the control socket, and capture files; never the daemon.

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
