//! Command templates: parsed once, filled with an address many times.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::text::{Text, TextError};

const PLACEHOLDER: &str = "%IP%";

/// A command of a door in which every `%IP%` stands for the knocker's address.
///
/// Only an [`IpAddr`] can fill it, so nothing that a packet contains reaches a shell but digits, letters a to f, dots and
/// colons. It is never blank, and stands on one line.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CommandTemplate {
    /// The text before, between and after the placeholders: one more than there are placeholders.
    pieces: Vec<String>,
}

impl CommandTemplate {
    /// Takes a template apart; `None` when the text is no line of a configuration.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    /// Returns the command for one knocker. IPv6 addresses are written compressed, as RFC 5952 recommends.
    pub fn expand(&self, source: IpAddr) -> String {
        self.pieces.join(&source.to_string())
    }
}

/// Takes a template apart; white space around it is no part of it.
impl FromStr for CommandTemplate {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let text = Text::new(text.trim())?;
        Ok(Self { pieces: text.split(PLACEHOLDER).map(str::to_owned).collect() })
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
