//! Values as options and the keys of a profile spell them; each parser's error says what would be right.

use std::fmt;
use std::net::Ipv6Addr;
use std::num::NonZeroU32;
use std::time::Duration;

use dns_lookup::SockType;
use knockd_core::{Protocol, Sequence, TcpFlags};

use crate::target::first_address;
use crate::{Family, Hit, hit};

/// Hits with the text that they were made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HitList {
    text: String,
    hits: Vec<Hit>,
}

impl HitList {
    /// Parses a list as `Sequence` in a knockd.conf has it: `7101,8202:udp,9303`.
    ///
    /// # Errors
    ///
    /// When it is empty, or a part of it is no hit.
    pub fn parse(text: &str) -> Result<Self, HitListError> {
        let list = text.trim().trim_matches(',');
        let mut offset = text.find(list).unwrap_or_default();
        let mut hits = Vec::new();
        let mut words = Vec::new();
        for word in list.split(',') {
            let hit = Hit::parse(word, false).map_err(|error| HitListError {
                offset: offset + error.place().start,
                length: error.place().len(),
                number: hits.len() + 1,
                message: error.to_string(),
            })?;
            hits.push(hit);
            words.push(word.trim());
            offset += word.len() + 1;
        }
        Ok(Self { text: words.join(","), hits })
    }

    /// Returns the list of these steps.
    pub fn of(sequence: &Sequence) -> Self {
        let text = sequence.steps().map(|step| match step.protocol {
            Protocol::Tcp => step.port.to_string(),
            Protocol::Udp => step.to_string(),
        });
        let text: Vec<_> = text.collect();
        Self { text: text.join(","), hits: sequence.steps().map(Hit::from).collect() }
    }

    /// The hits, at least one.
    pub fn hits(&self) -> &[Hit] {
        &self.hits
    }
}

/// Prints the list without blanks around its hits: `7101,8202:udp,9303`.
impl fmt::Display for HitList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a text is not a list of hits.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct HitListError {
    /// The first byte in the text of what is wrong.
    pub offset: usize,
    /// The length of what is wrong, in bytes.
    pub length: usize,
    number: usize,
    message: String,
}

impl HitListError {
    /// Says which step is wrong, without the word itself, which is a secret.
    pub fn discreet(&self) -> String {
        // A message without a hint names nothing of the word.
        let expected = self.message.split_once("; ").map_or(self.message.as_str(), |(_, expected)| expected);
        format!("invalid step {}; {expected}", self.number)
    }
}

/// The TCP service behind a door, which tells whether the door is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its port.
    pub port: u16,
    text: String,
}

impl Service {
    /// Returns the service at a port.
    pub fn at(port: u16) -> Self {
        Self { port, text: format!("tcp/{port}") }
    }

    /// Parses `tcp/22`, `22` or a service name.
    ///
    /// # Errors
    ///
    /// When it is none of these, or is a UDP service, which gives no sign of being open.
    pub fn parse(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let name = match trimmed.split_once('/') {
            None => trimmed,
            Some((protocol, name)) if protocol.trim().eq_ignore_ascii_case("tcp") => name.trim(),
            Some((protocol, _)) if protocol.trim().eq_ignore_ascii_case("udp") => {
                return Err(
                    "a UDP service need not answer, so nothing tells whether it is open; expected a \
                            TCP service, such as tcp/22"
                        .to_owned(),
                );
            }
            Some(_) => return Err(NOT_A_SERVICE.to_owned()),
        };
        // As in `Hit`: without a letter, getaddrinfo would read 99999 as 34463.
        let port = if name.contains(|c: char| c.is_ascii_alphabetic()) {
            first_address(None, Some(name), 0, SockType::Stream).ok().map(|address| address.port())
        } else {
            name.parse().ok()
        };
        let port = port.filter(|&port| port > 0).ok_or(NOT_A_SERVICE)?;
        Ok(Self { port, text: format!("{}/{name}", Protocol::Tcp) })
    }
}

const NOT_A_SERVICE: &str = "expected a TCP service, such as tcp/22, 22 or ssh";

/// Prints `tcp/22` or, if it was given by name, `tcp/ssh`.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The families to knock with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Families {
    /// This one only.
    Only(Family),
    /// Both, one after the other.
    Both,
}

impl Families {
    /// All values with their words.
    pub const WORDS: [(&str, Self); 3] =
        [("ipv4", Self::Only(Family::V4)), ("ipv6", Self::Only(Family::V6)), ("both", Self::Both)];

    /// Returns the only family allowed, if it is one.
    pub const fn only(families: Option<Self>) -> Option<Family> {
        match families {
            Some(Self::Only(family)) => Some(family),
            Some(Self::Both) | None => None,
        }
    }

    /// Parses a word, in any case.
    ///
    /// # Errors
    ///
    /// When the text is none of the words.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let known = Self::WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text.trim()));
        known.map(|&(_, families)| families).ok_or("expected ipv4, ipv6 or both")
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::WORDS.iter().find(|(_, families)| families == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

/// What does not stand for itself on the command line of a shell.
pub(crate) const FOR_SHELLS: &[char] =
    &['"', '\'', '`', '\\', '$', '&', ';', '|', '<', '>', '(', ')', '*', '?', '[', ']', '{', '}', '!', '#'];

/// Takes what can be the name or address of a host.
pub(crate) fn host(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    let is_no_part = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == '@';
    // A colon is for addresses only: after a name, it would be a port.
    let address = text.split('%').next().unwrap_or_default();
    let is_name_or_address = !text.contains(':') || address.parse::<Ipv6Addr>().is_ok();
    // As an option, it would be more than a host to programs such as ssh.
    let is_option = text.starts_with('-');
    if text.is_empty()
        || is_option
        || !is_name_or_address
        || text.contains(is_no_part)
        || text.contains(FOR_SHELLS)
    {
        return Err("expected the name or address of a host");
    }
    Ok(text.to_owned())
}

/// Parses a time in milliseconds.
pub(crate) fn milliseconds(text: &str) -> Result<Duration, &'static str> {
    text.parse().map(Duration::from_millis).map_err(|_| NOT_MILLISECONDS)
}

pub(crate) const NOT_MILLISECONDS: &str = "expected a non-negative whole number of milliseconds";

/// Parses a time in seconds, at least one.
pub(crate) fn seconds(text: &str) -> Result<Duration, &'static str> {
    text.parse().map(|seconds: NonZeroU32| Duration::from_secs(seconds.get().into())).map_err(|_| NOT_SECONDS)
}

pub(crate) const NOT_SECONDS: &str = "expected a positive whole number of seconds";

pub(crate) const NOT_OWN_ADDRESS: &str = "expected an IP address of this host";

/// Parses TCP flags separated by commas, or `none`.
pub(crate) fn tcp_flags(text: &str) -> Result<TcpFlags, String> {
    hit::flags(text, ',')
}

/// Spells TCP flags as options and profiles do: `syn,ack` or `none`.
pub fn spell_flags(flags: TcpFlags) -> String {
    if flags.is_empty() { "none".to_owned() } else { flags.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_a_list_in_any_case_with_spaces_or_none() {
        assert_eq!(tcp_flags("syn"), Ok(TcpFlags::SYN));
        assert_eq!(tcp_flags("SYN, ack"), Ok(TcpFlags::SYN.union(TcpFlags::ACK)));
        assert_eq!(tcp_flags("None"), Ok(TcpFlags::NONE));
        for text in ["", "syn,", "!ack", "syn,none", "ece"] {
            assert!(tcp_flags(text).is_err(), "{text:?}");
        }
        for flags in [TcpFlags::NONE, TcpFlags::SYN.union(TcpFlags::ACK)] {
            assert_eq!(tcp_flags(&spell_flags(flags)), Ok(flags));
        }
    }

    #[test]
    fn a_list_keeps_its_text_without_blanks_and_an_error_says_where_it_is() {
        let list = HitList::parse(" 7101 , 8202:UDP,domain:udp ").unwrap();
        assert_eq!((list.hits().len(), list.to_string().as_str()), (3, "7101,8202:UDP,domain:udp"));
        assert_eq!(HitList::parse(&list.to_string()), Ok(list));
        for (text, wrong) in
            [("7101,x:tcp,2", "x"), (" 1, 70000", "70000"), ("", ""), ("1,,2", ""), (" ,", "")]
        {
            let HitListError { offset, length, .. } = HitList::parse(text).unwrap_err();
            assert_eq!(text.get(offset..offset + length), Some(wrong), "{text:?}");
        }
    }

    #[test]
    fn a_service_is_a_tcp_port_or_name() {
        for (text, port, spelt) in [
            ("tcp/22", 22, "tcp/22"),
            ("22", 22, "tcp/22"),
            ("TCP/ssh", 22, "tcp/ssh"),
            (" ssh ", 22, "tcp/ssh"),
        ] {
            let service = Service::parse(text).unwrap();
            assert_eq!((service.port, service.to_string().as_str()), (port, spelt), "{text:?}");
        }
        for text in ["", "0", "tcp/", "tcp/99999", "sctp/22", "no-such-service", "22/tcp", "tcp/22-30"] {
            assert_eq!(Service::parse(text), Err(NOT_A_SERVICE.to_owned()), "{text:?}");
        }
        assert!(Service::parse("udp/53").unwrap_err().contains("need not answer"));
    }
}
