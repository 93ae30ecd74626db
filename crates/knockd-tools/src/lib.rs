//! The tools that need neither the daemon's rights nor its address space: `knockd check`, `replay` and `watch`.
//!
//! The program `knockd-tools` is a program of its own so that the daemon does not contain what only these need:
//! terminals and capture files. `knockd` runs it in its place.

#[doc(hidden)]
pub mod capture_file;
pub mod check;
mod guarded;
#[doc(hidden)]
pub mod link_layer;
mod listening;
mod machine;
pub mod replay;
pub mod watch;
