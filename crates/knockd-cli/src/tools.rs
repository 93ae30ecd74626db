//! The commands for people: `status`, `trace`, and requests to a running daemon.
//!
//! They know the protocol of the control socket; never the daemon. `check`, `replay` and `watch` need far more than the
//! daemon has, and are in the program `knockd-tools`; `program` runs it.

pub mod client;
pub mod guard;
pub mod program;
pub mod status;
pub mod trace;
