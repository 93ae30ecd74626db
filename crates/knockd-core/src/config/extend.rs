//! What may keep a door open when its time is over, and what becomes of connections at its end.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use super::words;
use crate::grammar;
use crate::sequence::SequenceError;

/// `Extend`: what keeps the services of a door open for a source beyond the time of its knock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Extend {
    /// Its packets: from its first connection on, the door closes this many seconds after the latest packet of any.
    Idle(NonZeroU32),
    /// Its connections: while there is one, the door stays open for this time from now.
    Connected {
        /// The time in seconds.
        time: NonZeroU32,
        /// `Idle_Limit`: after how many seconds without a packet a connection does not count any more.
        idle_limit: NonZeroU32,
    },
}

impl Extend {
    /// The default of `Idle_Limit`.
    #[allow(clippy::unwrap_used, reason = "evaluated at compile time")]
    pub const DEFAULT_IDLE_LIMIT: NonZeroU32 = NonZeroU32::new(3600).unwrap();

    /// Returns how long the door stays open from a packet or a look at its connections on.
    pub fn time(self) -> Duration {
        let (Self::Idle(time) | Self::Connected { time, .. }) = self;
        Duration::from_secs(time.get().into())
    }
}

/// Prints `idle 300` or `connected 60`, without the idle limit.
impl fmt::Display for Extend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle(time) => write!(f, "idle {time}"),
            Self::Connected { time, .. } => write!(f, "connected {time}"),
        }
    }
}

/// Parses `idle 300` or `CONNECTED 60`; the idle limit is the default.
impl FromStr for Extend {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        grammar::whole(text, grammar::extend).map_err(|error| SequenceError::new(text, &error))
    }
}

/// `At_End`: what becomes of connections to the services of a door when it closes for their source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum AtEnd {
    /// They go on.
    #[default]
    Keep,
    /// They end.
    Cut,
}

words!(AtEnd { Keep = "keep", Cut = "cut" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_extends_a_lease_is_read_and_printed() {
        for (text, printed) in [
            ("idle 300", "idle 300"),
            ("Connected  +60", "connected 60"),
            ("CONNECTED\t4294967295", "connected 4294967295"),
        ] {
            let extend: Extend = text.parse().unwrap();
            assert_eq!(extend.to_string(), printed);
            assert_eq!(printed.parse(), Ok(extend));
        }
    }

    #[test]
    fn what_extends_no_lease_is_an_error_at_its_place() {
        for (text, at) in [
            ("", 0),
            ("300", 0),
            ("idle", 4),
            ("idle300", 0),
            ("idle 0", 5),
            ("idle -1", 5),
            ("idle 4294967296", 5),
            ("idle 5s", 5),
            ("idle, 5", 4),
            ("idle 5 6", 7),
            ("connected five", 10),
            ("none", 0),
        ] {
            let error = grammar::whole(text, grammar::extend).unwrap_err();
            assert_eq!(text.len() - error.at.len(), at, "{text:?}: {error:?}");
        }
    }
}
