//! TCP flags as a packet carries them, and a door's rule about them.

use std::fmt;
use std::ops::BitOr;
use std::str::FromStr;

use crate::grammar::{self, Expected};
use crate::sequence::SequenceError;

/// The six TCP flags that knockd.conf can name (RFC 9293, section 3.1), with their bits on the wire.
///
/// ECE and CWR are not represented: no door can ask for them, and a SYN that offers ECN counts like any other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TcpFlags(u8);

impl TcpFlags {
    /// No flag, as in a NULL scan.
    pub const NONE: Self = Self(0);
    /// The sender has finished.
    pub const FIN: Self = Self(0x01);
    /// The sender opens a connection.
    pub const SYN: Self = Self(0x02);
    /// The sender refuses or resets the connection.
    pub const RST: Self = Self(0x04);
    /// The sender asks for the data to be pushed.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement field is valid.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer is valid.
    pub const URG: Self = Self(0x20);

    /// All six flags with their names in knockd.conf and `knock --tcpflags`, in bit order.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("fin", Self::FIN),
        ("syn", Self::SYN),
        ("rst", Self::RST),
        ("psh", Self::PSH),
        ("ack", Self::ACK),
        ("urg", Self::URG),
    ];

    const ALL: u8 = 0x3f;

    /// Takes the flags from byte 13 of a TCP header; the two upper bits (CWR, ECE) are dropped.
    pub const fn from_wire(byte: u8) -> Self {
        Self(byte & Self::ALL)
    }

    /// Returns the flags as the lower six bits of byte 13 of a TCP header.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Finds a flag by its name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|&(_, flag)| flag)
    }

    /// Returns the union of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Says whether every flag of `other` is set in `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Says whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Returns the union of both.
impl BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

/// Prints the names of the set flags, separated by commas: `syn,ack`.
impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, flag) in Self::NAMES {
            if self.contains(flag) {
                write!(f, "{separator}{name}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

/// Parses names separated by commas, in any case; an empty text is [`TcpFlags::NONE`].
impl FromStr for TcpFlags {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rule: FlagRule = text.parse()?;
        if rule.clear.is_empty() {
            return Ok(rule.set);
        }
        let at = text.find('!').and_then(|at| text.get(at..)).unwrap_or_default();
        Err(SequenceError::new(text, &Expected { at, what: "the name of a TCP flag" }))
    }
}

impl fmt::Debug for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpFlags({self})")
    }
}

/// What a door's `TCPFlags` requires of a TCP packet: flags that must be set, and flags that must be clear; the rest
/// may be either.
///
/// No flag is ever in both sets, so some packet satisfies every rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FlagRule {
    set: TcpFlags,
    clear: TcpFlags,
}

impl FlagRule {
    /// The rule of a door without `TCPFlags`: every packet satisfies it.
    pub const ANY: Self = Self { set: TcpFlags::NONE, clear: TcpFlags::NONE };

    /// Requires SYN to be set.
    pub const SYN: Self = Self::ANY.and_set(TcpFlags::SYN);

    /// Returns this rule with `flags` required, whatever it said about them before.
    #[must_use]
    pub const fn and_set(self, flags: TcpFlags) -> Self {
        Self { set: self.set.union(flags), clear: self.clear.without(flags) }
    }

    /// Returns this rule with `flags` forbidden, whatever it said about them before.
    #[must_use]
    pub const fn and_clear(self, flags: TcpFlags) -> Self {
        Self { set: self.set.without(flags), clear: self.clear.union(flags) }
    }

    /// Returns the flags that must be set.
    pub const fn must_be_set(self) -> TcpFlags {
        self.set
    }

    /// Returns the flags that must be clear.
    pub const fn must_be_clear(self) -> TcpFlags {
        self.clear
    }

    /// Says whether a TCP packet with these flags satisfies the rule.
    pub const fn accepts(self, flags: TcpFlags) -> bool {
        flags.contains(self.set) && !flags.intersects(self.clear)
    }
}

/// Prints the rule as knockd.conf spells it: `syn,!ack`.
impl fmt::Display for FlagRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, flag) in TcpFlags::NAMES {
            let not = match (self.set.contains(flag), self.clear.contains(flag)) {
                (true, _) => "",
                (false, true) => "!",
                (false, false) => continue,
            };
            write!(f, "{separator}{not}{name}")?;
            separator = ",";
        }
        Ok(())
    }
}

/// Parses the spelling of knockd.conf; an empty text is [`FlagRule::ANY`].
impl FromStr for FlagRule {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Ok(Self::ANY);
        }
        grammar::whole(text, grammar::tcp_flags).map_err(|error| SequenceError::new(text, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_looks_at_the_flags_it_names_and_at_no_others() {
        let rule = FlagRule::ANY.and_set(TcpFlags::SYN).and_clear(TcpFlags::ACK);
        for bits in 0..=0x3f {
            let expected = bits & 0x02 != 0 && bits & 0x10 == 0;
            assert_eq!(rule.accepts(TcpFlags::from_wire(bits)), expected, "flags {bits:#04x}");
        }
    }

    #[test]
    fn ecn_bits_of_a_syn_are_not_looked_at() {
        assert_eq!(TcpFlags::from_wire(0xc2), TcpFlags::SYN);
    }

    #[test]
    fn of_contradictory_words_about_a_flag_the_last_one_counts() {
        let rule = FlagRule::ANY.and_set(TcpFlags::SYN).and_clear(TcpFlags::SYN);
        assert_eq!(rule.to_string(), "!syn");
        assert_eq!(rule.and_set(TcpFlags::SYN).to_string(), "syn");
    }
}
