//! The hits of a knock, as a person writes them.

use dns_lookup::SockType;
use knockd_core::{Protocol, Step};

use crate::KnockError;
use crate::target::first_address;

/// One hit of a knock as the user wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hit {
    /// The port and protocol to hit.
    pub step: Step,
    /// The port as given: a number or a service name.
    pub port_text: String,
}

impl Hit {
    /// Parses `7000`, `7000:udp`, `ssh` or `domain:UDP`; the protocol is TCP if absent, and always UDP with
    /// `only_udp`.
    ///
    /// A service name is looked up for its protocol with getaddrinfo(3).
    ///
    /// # Errors
    ///
    /// [`KnockError::NotAPort`] when the port is neither a number from 0 to 65535 nor a service that the system
    /// knows, or the protocol is neither `tcp` nor `udp`.
    pub fn parse(text: &str, only_udp: bool) -> Result<Self, KnockError> {
        Self::parse_known(text, only_udp).ok_or_else(|| KnockError::NotAPort(text.to_owned()))
    }

    /// Parses a list of hits, as `Sequence` in a knockd.conf has it: `7101,8202:udp, 9303`. A list may start or end
    /// with a comma, because the shell splits one with spaces into several words.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`], and when nothing is between two commas.
    pub fn parse_list(text: &str, only_udp: bool) -> Result<Vec<Self>, KnockError> {
        let list = text.trim();
        let list = list.strip_prefix(',').unwrap_or(list);
        let list = list.strip_suffix(',').unwrap_or(list);
        if list.trim().is_empty() && text.contains(',') {
            return Ok(Vec::new());
        }
        list.split(',').map(|hit| Self::parse(hit.trim(), only_udp)).collect()
    }

    fn parse_known(text: &str, only_udp: bool) -> Option<Self> {
        let (port_text, protocol) = match text.split_once(':') {
            None => (text.trim(), Protocol::Tcp),
            // Scripts write "$port:$proto" with an empty proto; knock 0.8 reads that as TCP.
            Some((port, protocol)) if protocol.trim().is_empty() => (port.trim(), Protocol::Tcp),
            Some((port, protocol)) => (port.trim(), parse_protocol(protocol.trim())?),
        };
        let protocol = if only_udp { Protocol::Udp } else { protocol };
        // A service name contains a letter (RFC 6335, section 5.1). Without one, getaddrinfo would read 99999 as
        // 34463.
        let port = if port_text.contains(|c: char| c.is_ascii_alphabetic()) {
            service_port(port_text, protocol)?
        } else {
            port_text.parse().ok()?
        };
        Some(Self { step: Step { port, protocol }, port_text: port_text.to_owned() })
    }
}

fn parse_protocol(name: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.to_string().eq_ignore_ascii_case(name))
}

fn service_port(name: &str, protocol: Protocol) -> Option<u16> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::DGram,
    };
    first_address(None, Some(name), 0, kind).ok().map(|address| address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str) -> Option<Step> {
        Hit::parse(text, false).ok().map(|hit| hit.step)
    }

    #[test]
    fn a_hit_is_a_port_with_an_optional_protocol_in_any_case() {
        assert_eq!(step("7000"), Some(Step::tcp(7000)));
        assert_eq!(step("7000:tcp"), Some(Step::tcp(7000)));
        assert_eq!(step("7000:"), Some(Step::tcp(7000)));
        assert_eq!(step("7000:UdP"), Some(Step::udp(7000)));
        assert_eq!(step("0"), Some(Step::tcp(0)));
        assert_eq!(step("65535"), Some(Step::tcp(65535)));
    }

    #[test]
    fn a_list_is_a_sequence_of_a_configuration_whole_or_as_the_shell_splits_it() {
        let expected = [Step::tcp(7101), Step::udp(8202), Step::tcp(9303)];
        for words in [
            &["7101,8202:udp,9303"][..],
            &[" 7101 , 8202 : UDP,\t9303:tcp "],
            &["7101,", "8202:udp,", "9303"],
            &["7101", ",8202:udp", ",", "9303"],
            &["7101", "8202:udp,9303"],
        ] {
            let hits: Result<Vec<_>, _> = words.iter().map(|word| Hit::parse_list(word, false)).collect();
            let steps: Vec<_> = hits.unwrap().concat().into_iter().map(|hit| hit.step).collect();
            assert_eq!(steps, expected, "{words:?}");
        }
        for text in ["", "7101,,8202", ",,7101", "7101;8202", "7101,x", "7101 8202"] {
            assert!(Hit::parse_list(text, false).is_err(), "{text:?}");
        }
    }

    #[test]
    fn with_only_udp_the_protocol_of_the_argument_does_not_count() {
        assert_eq!(Hit::parse("7000:tcp", true).unwrap().step, Step::udp(7000));
    }

    #[test]
    fn a_service_name_is_looked_up_and_kept_for_display() {
        let hit = Hit::parse("domain:udp", false).unwrap();
        assert_eq!((hit.step, hit.port_text.as_str()), (Step::udp(53), "domain"));
        assert_eq!(step("ssh"), Some(Step::tcp(22)));
    }

    #[test]
    fn what_is_not_a_port_is_refused() {
        for text in
            ["", ":tcp", "65536", "99999", "+99999", "-1", "1:foo", "1:tcp:udp", "7000x", "no-such-service"]
        {
            assert_eq!(step(text), None, "{text:?}");
        }
    }
}
