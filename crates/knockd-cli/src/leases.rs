//! What an open door needs from the system: leases and used sequences on disk, start and stop commands.
//!
//! The core decides; this folder carries out its effects. It knows the disk, processes and the log, and nothing of
//! packets.

pub(crate) mod commands;
pub(crate) mod executor;
pub(crate) mod left_open;
pub(crate) mod one_time_file;
mod starting;
pub mod store;
pub(crate) mod writer;
