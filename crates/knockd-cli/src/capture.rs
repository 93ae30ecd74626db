//! From the network to the loop: which interfaces are listened to, a listener for each, and the decoder process that reads packets.
//!
//! It knows sockets, processes and the log. It hands on what the decoder says, checked, and knows nothing of doors.

pub mod decoder;
pub(crate) mod listener;
pub(crate) mod listeners;
#[doc(hidden)]
pub mod record;
mod sandbox;
