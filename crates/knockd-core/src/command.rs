//! Command templates: parsed once, filled with an address many times.

use std::fmt;
use std::net::IpAddr;

const PLACEHOLDER: &str = "%IP%";

/// A command of a door in which every `%IP%` stands for the knocker's address.
///
/// Only an [`IpAddr`] can fill it, so nothing that a packet contains reaches a shell but digits, letters a to f, dots and
/// colons. It is never blank.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CommandTemplate {
    /// The text before, between and after the placeholders: one more than there are placeholders.
    pieces: Vec<String>,
}

impl CommandTemplate {
    /// Takes a template apart; `None` when the text is blank.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self { pieces: text.split(PLACEHOLDER).map(str::to_owned).collect() })
    }

    /// Returns the command for one knocker. IPv6 addresses are written compressed, as RFC 5952 recommends.
    pub fn expand(&self, source: IpAddr) -> String {
        self.pieces.join(&source.to_string())
    }
}

/// Prints the template as it was written.
impl fmt::Display for CommandTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pieces.join(PLACEHOLDER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(template: &str, source: &str) -> String {
        CommandTemplate::parse(template).unwrap().expand(source.parse().unwrap())
    }

    #[test]
    fn every_placeholder_becomes_the_address() {
        assert_eq!(expanded("a %IP% b%IP%%IP%", "192.0.2.1"), "a 192.0.2.1 b192.0.2.1192.0.2.1");
        assert_eq!(expanded("%IP%", "2001:db8:0:0::1"), "2001:db8::1");
    }

    #[test]
    fn anything_else_stays_as_it_is() {
        assert_eq!(expanded("echo %ip% 100% %IP $IP", "192.0.2.1"), "echo %ip% 100% %IP $IP");
    }

    #[test]
    fn a_blank_text_is_no_command() {
        assert_eq!(CommandTemplate::parse(" \t"), None);
    }
}
