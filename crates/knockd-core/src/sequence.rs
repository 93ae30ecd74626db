//! Sequences of steps: the secret of a door, the arguments of `knock`, the lines of a one-time file.

use std::fmt;
use std::str::FromStr;

use crate::grammar::{self, Expected};
use crate::packet::Hit;

/// The transport protocol of a step or a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// TCP, the default where a protocol can be omitted.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Parses `tcp` or `udp`, in any case.
impl FromStr for Protocol {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        grammar::whole(text, grammar::protocol).map_err(|error| SequenceError::new(text, &error))
    }
}

/// One hit of a knock: a destination port with its protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Step {
    /// Destination port, in host byte order.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl Step {
    /// A TCP step.
    pub const fn tcp(port: u16) -> Self {
        Self { port, protocol: Protocol::Tcp }
    }

    /// A UDP step.
    pub const fn udp(port: u16) -> Self {
        Self { port, protocol: Protocol::Udp }
    }

    /// Says whether a packet hits this step. The door checks its TCP flags.
    pub fn matches(self, hit: Hit) -> bool {
        hit.step() == self
    }
}

/// Prints `7000:tcp`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.port, self.protocol)
    }
}

/// Parses `7000`, `7000:udp` or `7000 : TCP`; the protocol is TCP if absent.
impl FromStr for Step {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        grammar::whole(text, grammar::step).map_err(|error| SequenceError::new(text, &error))
    }
}

/// An ordered list of 1 to [`Sequence::MAX_STEPS`] steps.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Sequence {
    first: Step,
    rest: Vec<Step>,
}

impl Sequence {
    /// The maximum number of steps in a sequence, as in knockd 0.8.
    pub const MAX_STEPS: usize = 32;

    /// Creates a sequence of `first` and the steps after it; `None` if there are more than [`Self::MAX_STEPS`].
    pub fn new(first: Step, rest: Vec<Step>) -> Option<Self> {
        (rest.len() < Self::MAX_STEPS).then_some(Self { first, rest })
    }

    /// Returns the first step.
    pub const fn first(&self) -> Step {
        self.first
    }

    /// Returns the number of steps, 1 to [`Self::MAX_STEPS`].
    #[allow(clippy::len_without_is_empty, reason = "a sequence is never empty")]
    pub const fn len(&self) -> usize {
        self.rest.len() + 1
    }

    /// Returns the step with this index, from 0.
    pub fn step(&self, index: usize) -> Option<Step> {
        match index.checked_sub(1) {
            None => Some(self.first),
            Some(index) => self.rest.get(index).copied(),
        }
    }

    /// Returns all steps in order.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        std::iter::once(self.first).chain(self.rest.iter().copied())
    }
}

/// Prints `7000:tcp,8000:udp`.
impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.rest.iter().try_for_each(|step| write!(f, ",{step}"))
    }
}

/// Parses `7000,8000:udp,9000 : tcp`.
impl FromStr for Sequence {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        grammar::whole(text, grammar::sequence).map_err(|error| SequenceError::new(text, &error))
    }
}

/// Why a text is not a protocol, a step, a sequence, or a list of TCP flags.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected {expected}, found {found}")]
#[non_exhaustive]
pub struct SequenceError {
    /// Byte offset in the text where something else was expected.
    pub offset: usize,
    /// What was expected there.
    pub expected: &'static str,
    /// What was found there, quoted, or `the end`.
    pub found: String,
}

impl SequenceError {
    pub(crate) fn new(text: &str, error: &Expected<'_>) -> Self {
        Self { offset: text.len() - error.at.len(), expected: error.what, found: error.found() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_without_protocol_is_tcp() {
        assert_eq!("7000".parse(), Ok(Step::tcp(7000)));
        assert_eq!(" 53 : UDP ".parse(), Ok(Step::udp(53)));
    }

    #[test]
    fn an_error_says_where_and_what() {
        let error = "7000,70000".parse::<Sequence>().unwrap_err();
        assert_eq!(error.offset, 5);
        assert_eq!(error.to_string(), "expected a port number from 0 to 65535, found \"70000\"");
        let error = "7000,".parse::<Sequence>().unwrap_err();
        assert_eq!(error.to_string(), "expected a port number from 0 to 65535, found the end");
    }

    #[test]
    fn a_sequence_has_at_most_32_steps() {
        let steps = |count| vec!["1"; count].join(",").parse::<Sequence>();
        assert_eq!(steps(32).unwrap().len(), 32);
        assert_eq!(steps(33).unwrap_err().offset, 64);
    }

    #[test]
    fn steps_are_counted_from_zero() {
        let sequence: Sequence = "1,2:udp,3".parse().unwrap();
        assert_eq!(sequence.step(0), Some(Step::tcp(1)));
        assert_eq!(sequence.step(1), Some(Step::udp(2)));
        assert_eq!(sequence.step(3), None);
        assert_eq!(sequence.steps().count(), sequence.len());
    }
}
