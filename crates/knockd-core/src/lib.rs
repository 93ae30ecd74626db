//! Port knocking without I/O: the configuration of knockd, who has knocked what, and which door is open until when.
//!
//! Nothing here opens a file or a socket, starts a process or a thread, or asks a clock: time is an argument, text and packets
//! come from the caller, and what is to be done is returned as plain values. So the same calls always have the same results. No
//! public function panics, whatever it is given, and what strangers can make grow is bounded.
//!
//! - [`Config::parse`] reads a knockd.conf.
//! - [`Matcher`] takes packets and says what they mean: an attempt reached a stage, a door opened.
//! - [`Leases`] takes openings and the ends of commands, and says what to run and what to remember.
//! - Both say when they want to be called again ([`Matcher::poll_timeout`], [`Leases::poll_timeout`]).
//!
//! # Example
//!
//! A knock opens a door for ten seconds.
//!
//! ```
//! use std::time::Duration;
//!
//! use knockd_core::{
//!     Config, Effect, EventKind, Hit, Leases, Matcher, Packet, Run, RunKind, TcpFlags, Timestamp,
//! };
//!
//! let text = b"
//! [ssh]
//!     Sequence      = 7101,8202:udp,9303
//!     TCPFlags      = syn
//!     Start_Command = /usr/local/sbin/gate open %IP%
//!     Cmd_Timeout   = 10
//!     Stop_Command  = /usr/local/sbin/gate close %IP%
//! ";
//! let Config { options, doors } = Config::parse(text).unwrap().config;
//! let (server, knocker) = ("192.0.2.1".parse().unwrap(), "198.51.100.7".parse().unwrap());
//!
//! let mut matcher = Matcher::new(&doors, options.max_attempts);
//! matcher.set_addresses([server]);
//! let mut leases = Leases::new();
//!
//! // Three packets come, one second after the other.
//! let hits = [
//!     Hit::Tcp { port: 7101, flags: TcpFlags::SYN },
//!     Hit::Udp { port: 8202 },
//!     Hit::Tcp { port: 9303, flags: TcpFlags::SYN },
//! ];
//! let mut now = Timestamp::ZERO;
//! let mut opened = Vec::new();
//! for hit in hits {
//!     now = now.after(Duration::from_secs(1));
//!     let packet = Packet { source: knocker, destination: server, hit };
//!     let events = matcher.handle_packet(&packet, now);
//!     opened.extend(events.iter().filter(|event| event.kind == EventKind::Opened).copied());
//! }
//! assert_eq!(opened.len(), 1);
//!
//! // The lease says what to store, in case of a crash, and what to run.
//! let door = &doors[opened[0].door.index()];
//! let effects = leases.open(door, opened[0].source, options.max_open, now).unwrap();
//! let [Effect::Store(_), Effect::Run(Run { id, kind: RunKind::Start, command, .. })] = &effects[..] else {
//!     panic!("{effects:?}");
//! };
//! assert_eq!(command, "/usr/local/sbin/gate open 198.51.100.7");
//!
//! // The command ends well; ten seconds later the stop command is due.
//! leases.handle_exit(*id, true, now);
//! let due = leases.poll_timeout().unwrap();
//! assert_eq!(due, now.after(Duration::from_secs(10)));
//! let effects = leases.handle_timeout(due);
//! let [Effect::Run(Run { id, kind: RunKind::Stop, command, .. })] = &effects[..] else {
//!     panic!("{effects:?}");
//! };
//! assert_eq!(command, "/usr/local/sbin/gate close 198.51.100.7");
//!
//! // When that has ended, the door is closed and what was stored is forgotten.
//! assert_eq!(leases.handle_exit(*id, true, due), [Effect::Forget(*id)]);
//! assert!(leases.is_empty());
//! ```
#![forbid(unsafe_code)]

mod attempts;
mod command;
pub mod config;
mod event;
mod grammar;
mod lease;
mod matcher;
mod one_time;
mod packet;
mod scanners;
mod sequence;
mod similar;
mod tcp_flags;
mod time;

pub use command::CommandTemplate;
pub use config::{Config, Door};
pub use event::{DoorId, Event, EventKind, Visibility};
pub use lease::{Effect, Full, LeaseId, LeaseKey, LeaseRecord, LeaseState, LeaseView, Leases, Run, RunKind};
pub use matcher::{Interest, Matcher, Underway};
pub use one_time::{OneTime, STRIKE, Unused};
pub use packet::{Hit, Packet};
pub use scanners::{LocalPorts, Scanners, Sighting};
pub use sequence::{Protocol, Sequence, SequenceError, Step};
pub use similar::similar;
pub use tcp_flags::{FlagRule, TcpFlags};
pub use time::Timestamp;
