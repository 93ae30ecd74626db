//! Command templates: parsed once, expanded for many addresses.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use crate::text::{Text, TextError, check_line};

const PLACEHOLDER: &str = "%IP%";

/// A command of a door in which every `%IP%` stands for the source address.
///
/// Only an [`IpAddr`] can replace it, so nothing from a packet reaches a shell except digits, the letters a to f,
/// dots and colons. A template is never blank and has exactly one line.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CommandTemplate {
    /// The text before, between and after the placeholders: one more than there are placeholders.
    pieces: Vec<String>,
}

impl CommandTemplate {
    /// Parses a template; `None` if the text cannot be a line of a configuration.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    /// Returns the command for one source. IPv6 addresses are compressed, as RFC 5952 recommends.
    pub fn expand(&self, source: IpAddr) -> CommandLine {
        CommandLine(self.pieces.join(&source.to_string()).into())
    }
}

/// Parses a template; surrounding white space is not part of it.
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

/// A command for a shell, such as an expanded [`CommandTemplate`]: not blank, and without line feeds and NUL bytes.
///
/// Clones share the text. It takes one pointer, because every lease has room for two command lines.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CommandLine(Arc<String>);

impl CommandLine {
    /// Checks a command.
    ///
    /// # Errors
    /// When it is blank, or contains a line feed or a NUL byte.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, TextError> {
        let text = text.into();
        check_line(&text)?;
        if text.trim().is_empty() { Err(TextError::Empty) } else { Ok(Self(Arc::new(text.to_string()))) }
    }
}

impl Deref for CommandLine {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for CommandLine {
    fn as_ref(&self) -> &str {
        self
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

/// Takes the text as it is, including surrounding white space.
impl FromStr for CommandLine {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(template: &str, source: &str) -> String {
        CommandTemplate::parse(template).unwrap().expand(source.parse().unwrap()).to_string()
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
        assert_eq!(CommandLine::new(" \t"), Err(TextError::Empty));
    }

    #[test]
    fn a_command_is_one_line_for_a_shell() {
        assert_eq!(CommandLine::new("a\nb"), Err(TextError::LineFeed));
        assert_eq!(CommandLine::new("a\0"), Err(TextError::Nul));
        assert_eq!(&*CommandLine::new(" a ").unwrap(), " a ");
    }
}
