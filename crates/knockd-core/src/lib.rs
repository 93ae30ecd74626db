//! Port knocking without I/O: the configuration of knockd, who has knocked, and which door is open until when.
//!
//! Nothing here opens a file or a socket, starts a process or a thread, or reads a clock: time is an argument, text and
//! packets come from the caller, and everything to be done is returned as plain values. So the same calls always have
//! the same results, given the same [`Seed`]. No public function panics on any input, and everything that strangers can
//! make grow is bounded.
//!
//! - [`Config::parse`] reads a knockd.conf.
//! - [`Gate`] takes packets, ends of commands, requests and the present, and returns what to report and what to do: an
//!   attempt reached a stage, a door opened, run this command, store that. It owns the scanner guard, the attempts and the
//!   leases.
//! - [`advise`] returns what is unwise about a configuration, and the odds of guessing its doors.
//!
//! # Example
//!
//! A knock opens a door for ten seconds.
//!
//! ```
//! use std::time::Duration;
//!
//! use knockd_core::{
//!     Config, Effect, Gate, Hit, Now, OneTimeFiles, Outcome, Packet, Run, Seed, TcpFlags,
//! };
//!
//! let config: Config = "
//! [ssh]
//!     Sequence      = 7101,8202:udp,9303
//!     TCPFlags      = syn
//!     Start_Command = /usr/local/sbin/gate open %IP%
//!     Cmd_Timeout   = 10
//!     Stop_Command  = /usr/local/sbin/gate close %IP%
//! "
//! .parse()?;
//! let (server, client) = ("192.0.2.1".parse()?, "198.51.100.7".parse()?);
//!
//! // A daemon takes the seed from the system's randomness, and sets up a packet filter for what is wanted.
//! let mut gate = Gate::new(config, OneTimeFiles::new(), Seed::new(1, 2));
//! gate.set_addresses([server]);
//! assert_eq!(gate.wanted().interests.len(), 3);
//!
//! // Three packets arrive, one second apart.
//! let hits = [
//!     Hit::Tcp { port: 7101, flags: TcpFlags::SYN },
//!     Hit::Udp { port: 8202 },
//!     Hit::Tcp { port: 9303, flags: TcpFlags::SYN },
//! ];
//! let mut now = Now::default();
//! let mut runs = Vec::new();
//! for hit in hits {
//!     now.monotonic = now.monotonic.after(Duration::from_secs(1));
//!     let packet = Packet::incoming(client, server, hit);
//!     for outcome in gate.handle_packet(&packet, now) {
//!         match outcome {
//!             // In order: the record is on disk before the command runs, in case of a crash.
//!             Outcome::Effect(Effect::Store(record)) => println!("{record}"),
//!             Outcome::Effect(Effect::Run(run)) => runs.push(run),
//!             other => println!("{other:?}"),
//!         }
//!     }
//! }
//! let [Run { id, command, .. }] = &runs[..] else { panic!("{runs:?}") };
//! assert_eq!(&**command, "/usr/local/sbin/gate open 198.51.100.7");
//!
//! // The command succeeds; ten seconds later the stop command is due.
//! let stored = gate.handle_exit(*id, true, now).count();
//! assert_eq!((stored, gate.poll_timeout()), (1, Some(now.monotonic.after(Duration::from_secs(10)))));
//! now.monotonic = now.monotonic.after(Duration::from_secs(10));
//! let stop: Vec<_> = gate.handle_timeout(now).collect();
//! assert!(matches!(&stop[..], [Outcome::Effect(Effect::Run(run))] if run.command.ends_with("close 198.51.100.7")));
//!
//! // When that has ended, the door is closed and its record is removed.
//! let end: Vec<_> = gate.handle_exit(*id, true, now).collect();
//! assert_eq!(end, [Outcome::Effect(Effect::Forget(*id))]);
//! assert_eq!(gate.lease_count(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod advice;
mod attempts;
mod command;
pub mod config;
mod copies;
mod exceptions;
mod forward;
mod gate;
mod grammar;
mod lease;
mod martian;
mod matcher;
mod network;
mod one_time;
mod outcome;
mod packet;
mod scanners;
mod seed;
mod sequence;
#[cfg(feature = "serde")]
mod serde_text;
mod services;
mod similar;
mod tcp_flags;
mod text;
mod time;
mod typography;

pub use advice::advise;
pub use command::{CommandLine, CommandTemplate};
pub use config::{Config, ConfigError, Door};
pub use exceptions::{Exception, Exceptions, Prefix};
pub use forward::{Forward, Forwards, OpenFor};
pub use gate::{Gate, OneTimeFiles, Outcomes};
pub use lease::{
    Access, Admission, Burn, BurnId, Effect, Full, LeaseFilter, LeaseId, LeaseKey, LeaseRecord,
    LeaseRecordError, LeaseState, LeaseView, ProcessId, ProcessIdError, Run, RunKind, Sight, StartState,
};
pub use martian::Martian;
pub use matcher::{Interest, Underway};
pub use one_time::{OneTime, STRIKE, Unused};
pub use outcome::{DoorId, Event, EventKind, OpeningResult, Outcome, Visibility, Wanted};
pub use packet::{Arrival, Hit, OwnAddress, Packet, Passage};
pub use scanners::{LocalPorts, Scanner};
pub use seed::Seed;
pub use sequence::{Protocol, Sequence, SequenceError, Step};
pub use services::{Service, Services};
pub use similar::similar;
pub use tcp_flags::{FlagRule, TcpFlags};
pub use text::{DoorName, Text, TextError};
pub use time::{Milliseconds, Now, Seconds, Timestamp, UnixTime};
pub use typography::{Pasted, pasted};

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The parts of a [`Gate`], for the tests, fuzz targets and benchmarks of this project; they may change at any time.
#[doc(hidden)]
pub mod parts {
    pub use crate::lease::Leases;
    pub use crate::matcher::Matcher;
    pub use crate::scanners::{Scanners, Sighting};
}
