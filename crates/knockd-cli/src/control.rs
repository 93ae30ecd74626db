//! The protocol of the control socket: one JSON object per line, a [`Request`] one way and a [`Reply`] the other.
//!
//! docs/json.md describes it; names and meanings are stable, and more may be added.

#[doc(hidden)]
pub mod explain;
pub(crate) mod metrics;
pub(crate) mod socket;
pub(crate) mod status;
pub(crate) mod trace_feed;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use self::status::{
    AttemptStatus, AttemptsStatus, CommandsStatus, CountersStatus, DoorStatus, Health, InterfaceStatus,
    KeptOpenBy, LeasePhase, LeaseStatus, LeasesStatus, LogEvent, Problem, ProblemKind, ScannerStatus,
    ScannersStatus, Status,
};

/// The longest request, in bytes, its line end included.
pub const MAX_REQUEST: usize = 4096;

/// A request from a client.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(tag = "request", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Report what the daemon is doing.
    Status {},
    /// Close doors early.
    Close {
        /// Doors with this name; `None` for all doors.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        door: Option<String>,
        /// For this source; `None` for every source.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
    },
    /// Stop reporting doors that may still be open: a person has dealt with them.
    Dismiss {
        /// Doors with this name; `None` for all doors.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        door: Option<String>,
        /// For this source; `None` for every source.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
    },
    /// Report the sources that are ignored because they are scanners.
    Scanners {},
    /// Forget what a source has tried, so it is no scanner any more.
    Forgive {
        /// The source; of IPv6, its whole /64.
        address: IpAddr,
    },
    /// Report what the log has said lately.
    Events {},
    /// Keep a door open longer.
    Extend {
        /// Doors with this name.
        door: String,
        /// For this source.
        address: IpAddr,
        /// At least this many seconds from now; `None` for the door's `Cmd_Timeout`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u32>,
    },
    /// Open a door as if it had been knocked at.
    Open {
        /// Doors with this name.
        door: String,
        /// For this source.
        address: IpAddr,
    },
    /// Read the configuration again.
    Reload {},
    /// Guard the services of doors: for good, or for a time unless somebody gets in. Only root may.
    Guard {
        /// After so many seconds, the guard is lifted; `None` for never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u32>,
    },
    /// Guard the services of doors no longer, until [`Self::Guard`] or the next start. Only root may.
    Unguard {},
    /// Report what happens to packets until the client disconnects.
    Trace {
        /// The source to report; `None` for all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
    },
}

impl Request {
    /// Parses a line. An IPv4 address in its IPv6 form (RFC 4291, section 2.5.5.2) becomes the former, which is the
    /// source of packets.
    ///
    /// # Errors
    /// When the line is not a request; the text says why.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        if line.len() > MAX_REQUEST {
            return Err(format!("request longer than {MAX_REQUEST} bytes"));
        }
        let mut request: Self =
            serde_json::from_slice(line).map_err(|error| format!("invalid request: {error}"))?;
        if let Some(address) = request.address() {
            *address = address.to_canonical();
        }
        Ok(request)
    }

    const fn address(&mut self) -> Option<&mut IpAddr> {
        match self {
            Self::Close { address, .. } | Self::Dismiss { address, .. } | Self::Trace { address } => {
                address.as_mut()
            }
            Self::Forgive { address } | Self::Extend { address, .. } | Self::Open { address, .. } => {
                Some(address)
            }
            Self::Status {}
            | Self::Scanners {}
            | Self::Events {}
            | Self::Reload {}
            | Self::Guard { .. }
            | Self::Unguard {} => None,
        }
    }
}

/// Prints the request as on the command line, without `knockd`.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status {} => write!(f, "status"),
            Self::Close { door, address } | Self::Dismiss { door, address } => {
                write!(f, "{}", if matches!(self, Self::Close { .. }) { "close" } else { "dismiss" })?;
                door.iter().try_for_each(|door| write!(f, " {door}"))?;
                match address {
                    Some(address) => write!(f, " {address}"),
                    None => write!(f, " --all"),
                }
            }
            Self::Scanners {} => write!(f, "scanners"),
            Self::Forgive { address } => write!(f, "forgive {address}"),
            Self::Events {} => write!(f, "events"),
            Self::Extend { door, address, seconds } => {
                write!(f, "extend {door} {address}")?;
                seconds.iter().try_for_each(|seconds| write!(f, " {seconds}"))
            }
            Self::Open { door, address } => write!(f, "open {door} {address}"),
            Self::Reload {} => write!(f, "reload"),
            Self::Guard { seconds } => {
                write!(f, "guard")?;
                seconds.iter().try_for_each(|seconds| write!(f, " --try {seconds}s"))
            }
            Self::Unguard {} => write!(f, "guard --remove"),
            Self::Trace { address } => {
                write!(f, "trace")?;
                address.iter().try_for_each(|address| write!(f, " {address}"))
            }
        }
    }
}

/// A reply from the daemon.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(tag = "reply", rename_all = "lowercase")]
pub enum Reply {
    /// The answer to [`Request::Status`].
    Status(Box<Status>),
    /// The answer to [`Request::Scanners`].
    Scanners(ScannersStatus),
    /// The answer to [`Request::Events`].
    Events {
        /// The latest lines, oldest first.
        events: Vec<LogEvent>,
    },
    /// The request succeeded.
    Done {
        /// What was done, for people.
        text: String,
    },
    /// One reply to [`Request::Trace`].
    Traced {
        /// What happened, for programs: see `knockd trace` in docs/json.md.
        event: serde_json::Value,
        /// The same for people; may have several lines.
        text: String,
    },
    /// The request failed.
    Refused {
        /// Why, for people; may have several lines.
        reason: String,
    },
}

impl Reply {
    pub(crate) fn done(text: impl Into<String>) -> Self {
        Self::Done { text: text.into() }
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests() -> impl Strategy<Value = Request> {
        let door = || any::<String>();
        let address = || any::<IpAddr>().prop_map(|address| address.to_canonical());
        let which = || (proptest::option::of(door()), proptest::option::of(address()));
        let extend = (door(), address(), proptest::option::of(any::<u32>()));
        prop_oneof![
            Just(Request::Status {}),
            Just(Request::Reload {}),
            Just(Request::Scanners {}),
            Just(Request::Events {}),
            which().prop_map(|(door, address)| Request::Close { door, address }),
            which().prop_map(|(door, address)| Request::Dismiss { door, address }),
            address().prop_map(|address| Request::Forgive { address }),
            extend.prop_map(|(door, address, seconds)| Request::Extend { door, address, seconds }),
            proptest::option::of(address()).prop_map(|address| Request::Trace { address }),
            (door(), address()).prop_map(|(door, address)| Request::Open { door, address }),
        ]
    }

    #[test]
    fn the_address_of_a_request_is_the_one_that_packets_come_from() {
        let line = br#"{"request":"open","door":"ssh","address":"::ffff:192.0.2.7"}"#;
        assert_eq!(Request::parse(line).unwrap().to_string(), "open ssh 192.0.2.7");
    }

    /// Requests with some bytes changed, so many are almost valid and some still are.
    fn damaged() -> impl Strategy<Value = Vec<u8>> {
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
        (requests(), changes).prop_map(|(request, changes)| {
            let mut line = serde_json::to_vec(&request).unwrap();
            for (index, byte) in changes {
                *index.get_mut(&mut line) = byte;
            }
            line
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_request_is_one_line_and_is_read_as_it_was_written(request in requests()) {
            let line = serde_json::to_string(&request).unwrap();
            prop_assert!(!line.contains('\n'));
            if line.len() <= MAX_REQUEST {
                prop_assert_eq!(Request::parse(line.as_bytes()), Ok(request));
            }
        }

        #[test]
        fn what_is_cut_off_or_followed_by_more_is_no_request(request in requests(), at in any::<prop::sample::Index>()) {
            let line = serde_json::to_vec(&request).unwrap();
            prop_assert!(Request::parse(&line[..at.index(line.len())]).is_err());
            let more = [&line[..], b"{}"].concat();
            prop_assert!(Request::parse(&more).is_err());
        }

        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), damaged()]) {
            match Request::parse(&bytes) {
                // An accepted request contains everything that the client sent: nothing is ignored.
                Ok(request) => {
                    let said: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                    let taken = serde_json::to_value(&request).unwrap();
                    prop_assert_eq!(&said["request"], &taken["request"]);
                    for (field, value) in said.as_object().unwrap() {
                        prop_assert!(value.is_null() || taken.get(field).is_some(), "{field} of {said}");
                    }
                    prop_assert_eq!(Request::parse(taken.to_string().as_bytes()), Ok(request));
                }
                Err(reason) => prop_assert!(reason.starts_with("invalid request: "), "{reason}"),
            }
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for line in [
            r#"{"request":"stop"}"#,
            r#"{"request":"status","more":1}"#,
            r#"{"request":"open","door":"ssh"}"#,
            r#"{"request":"open","door":"ssh","address":"example.com"}"#,
            r#"{"request":"extend","door":"ssh","address":"192.0.2.1","seconds":-1}"#,
            "",
        ] {
            assert!(Request::parse(line.as_bytes()).is_err(), "{line}");
        }
        // An attacker's favourites: depth and length.
        let deep = "[".repeat(MAX_REQUEST);
        assert!(Request::parse(deep.as_bytes()).is_err());
        assert!(Request::parse(&vec![b' '; MAX_REQUEST + 1]).unwrap_err().contains("4096"));
    }
}
