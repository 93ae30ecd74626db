//! A profile: what `knock NAME` does.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use knockd_core::TcpFlags;

use crate::value::{FOR_SHELLS, Families, HitList, Service};

/// Everything that is kept about one door of a host.
///
/// What is `None` or empty is left to the command line and to the defaults of `knock`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// The host: a name or an address.
    pub host: String,
    /// What opens the door.
    pub key: Key,
    /// What closes it.
    pub close: Option<HitList>,
    /// How long to wait after each hit.
    pub delay: Option<Duration>,
    /// The only family to use, or both.
    pub family: Option<Families>,
    /// The service that tells whether the door is open.
    pub verify: Option<Service>,
    /// How many times to knock again if it does not open.
    pub retries: Option<u32>,
    /// How long to wait for it each time.
    pub timeout: Option<Duration>,
    /// The program to run then, with its arguments.
    pub then: Vec<String>,
    /// The flags of TCP hits.
    pub tcpflags: Option<TcpFlags>,
    /// How long the door stays open.
    pub lease: Option<Duration>,
    /// Whether hits complete their connections.
    pub connect: bool,
    /// The interface to send from.
    pub interface: Option<String>,
    /// The address to send from.
    pub source: Option<IpAddr>,
}

/// What opens a door.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Key {
    /// Always the same hits.
    Sequence(HitList),
    /// The next unused line of this file.
    OneTime(PathBuf),
}

impl Profile {
    /// Creates a profile with nothing but a host and a key.
    pub fn new(host: impl Into<String>, key: Key) -> Self {
        Self {
            host: host.into(),
            key,
            close: None,
            delay: None,
            family: None,
            verify: None,
            retries: None,
            timeout: None,
            then: Vec::new(),
            tcpflags: None,
            lease: None,
            connect: false,
            interface: None,
            source: None,
        }
    }
}

/// The words that a profile cannot be called, because they begin a command.
pub const COMMANDS: [&str; 9] =
    ["add", "list", "show", "edit", "remove", "import", "export", "proxy", "completions"];

/// Checks the name of a profile.
///
/// # Errors
///
/// What is wrong with it, and what would be right.
pub fn check_name(name: &str) -> Result<(), String> {
    let wrong = if name.is_empty() {
        "empty name of a profile".to_owned()
    } else if COMMANDS.contains(&name) || name == "help" {
        format!("{name:?} is a command of knock")
    } else if name.starts_with('-') {
        format!("{name:?} would be an option")
    } else if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        format!("{name:?} has a blank or a control character in it")
    } else if name.contains(FOR_SHELLS) {
        // Completions put it onto a command line, and people copy it there.
        format!("{name:?} has a character in it that shells obey")
    } else {
        return Ok(());
    };
    Err(format!("{wrong}; expected a name such as home, without blanks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_word_that_is_neither_a_command_nor_an_option() {
        for name in ["home", "192.0.2.1", "büro", "a.b:c/d", "listing"] {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
        for name in ["", "list", "-v", "my home", "a\u{7}", "a\u{a0}b", "help", "a;reboot", "$(id)", "*"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
