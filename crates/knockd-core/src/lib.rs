//! Port knocking without I/O.
#![forbid(unsafe_code)]

mod attempts;
mod command;
pub mod config;
mod grammar;
mod lease;
mod matcher;
mod one_time;
mod packet;
mod sequence;
mod tcp_flags;
mod time;

pub use command::CommandTemplate;
pub use config::{Config, Door};
pub use lease::{Effect, Full, LeaseId, LeaseKey, LeaseRecord, Leases, Run, RunKind};
pub use matcher::{DoorId, Event, EventKind, Interest, Matcher};
pub use one_time::{OneTime, STRIKE, Unused};
pub use packet::{Hit, Packet};
pub use sequence::{Protocol, Sequence, SequenceError, Step};
pub use tcp_flags::{FlagRule, TcpFlags};
pub use time::Timestamp;
