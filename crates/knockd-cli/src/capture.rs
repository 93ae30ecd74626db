//! From the network to the loop: interface selection, one listener per interface, and the decoder process that reads
//! packets.
//!
//! This folder knows sockets, processes and the log. It checks what the decoder reports, passes it on, and knows
//! nothing of doors.

pub(crate) mod claim;
pub mod decoder;
pub(crate) mod listener;
pub(crate) mod listeners;
pub(crate) mod process;
#[doc(hidden)]
pub mod record;
pub(crate) mod sandbox;
mod slot;
mod watch;
