//! The configuration of the daemon, as types that cannot hold invalid values.

mod diagnostic;
mod directives;
mod door;
mod extend;
mod guarded;
mod options;
mod parser;
mod value;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

pub use self::diagnostic::{Code, Diagnostic, Severity};
pub use self::door::{Action, Closed, Commands, Door, Key, Reopen};
pub use self::extend::{AtEnd, Extend};
pub use self::options::{Firewall, LogFormat, OnExit, Options, ScanLimit, ScanLimitError};

use crate::outcome::DoorId;
use crate::text::{DoorName, Text};
use crate::time::Seconds;

/// The contents of a knockd.conf.
///
/// Its [`Display`](fmt::Display) form is a knockd.conf that parses back equal.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct Config {
    /// The global directives.
    pub options: Options,
    /// The doors in file order; two may share a name.
    pub doors: Vec<Door>,
}

/// A usable configuration and its doubtful points.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Parsed {
    /// The configuration.
    pub config: Config,
    /// What is probably unintended, in file order; all of severity [`Severity::Warning`].
    pub warnings: Vec<Diagnostic>,
    /// The position of each door in the text.
    pub places: Vec<Places>,
}

/// One file of a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Source<'t> {
    /// The name of an included file, for findings about it; `None` for the configuration itself.
    pub name: Option<&'t str>,
    /// Its text.
    pub text: &'t [u8],
}

impl<'t> Source<'t> {
    /// The configuration itself.
    pub const fn new(text: &'t [u8]) -> Self {
        Self { name: None, text }
    }

    /// A file that an `Include` of the configuration names.
    pub const fn included(name: &'t str, text: &'t [u8]) -> Self {
        Self { name: Some(name), text }
    }
}

/// The position of a door in the text of its configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Places {
    /// The name of the included file that the door stands in, as in [`Diagnostic::file`].
    pub file: Option<String>,
    /// The bytes of the section's header.
    pub header: Range<usize>,
    /// Each directive by its main spelling, with the bytes of its value.
    values: Vec<(&'static str, Range<usize>)>,
}

impl Places {
    /// Says whether a directive is given.
    pub(crate) fn has(&self, directive: &str) -> bool {
        self.values.iter().any(|(name, _)| *name == directive)
    }

    /// Returns the bytes of a directive's value, or of the header if the directive is absent.
    pub fn of(&self, directive: &str) -> Range<usize> {
        let given = self.values.iter().rev().find(|(name, _)| *name == directive);
        given.map_or(&self.header, |(_, span)| span).clone()
    }
}

impl Config {
    /// Parses the text of a knockd.conf (man page knockd(1), section CONFIGURATION).
    ///
    /// Lines end in LF or CRLF. The text must be UTF-8, except in comments. `Include` is refused, because this crate
    /// reads no files: see [`Self::parse_files`].
    ///
    /// # Errors
    /// Returns everything wrong and everything doubtful about the file.
    ///
    /// ```
    /// # use knockd_core::Config;
    /// fn read(text: &[u8]) -> Result<Config, Box<dyn std::error::Error + Send + Sync>> {
    ///     Ok(Config::parse(text)?.config)
    /// }
    ///
    /// let error = read(b"[ssh]\nSequence = 7000,99999\n").unwrap_err();
    /// assert!(error.to_string().starts_with("2:17: error: "), "{error}");
    /// ```
    pub fn parse(text: &[u8]) -> Result<Parsed, ConfigError> {
        parser::parse(&[Source::new(text)], false).map_err(|findings| ConfigError { findings })
    }

    /// Parses the text of a knockd.conf together with the files that it includes.
    ///
    /// The first source is the configuration itself, the others are the files that its [`Self::includes`] name, in
    /// their order. They count as if they stood at its end, but each starts outside of any section. Included files
    /// include no others.
    ///
    /// # Errors
    /// Returns everything wrong and everything doubtful about all files, file by file.
    pub fn parse_files(sources: &[Source<'_>]) -> Result<Parsed, ConfigError> {
        parser::parse(sources, true).map_err(|findings| ConfigError { findings })
    }

    /// Returns the values of `Include` in the text of a knockd.conf, as written and in their order, even if other parts
    /// of the text are invalid. The caller finds the files: each is a path whose last component may be a pattern with
    /// `*` and `?`.
    pub fn includes(text: &[u8]) -> Vec<Text> {
        parser::includes(text)
    }

    /// Says whether a daemon with this configuration executes nothing: the firewall lets knockers in, and no door has a
    /// command.
    pub fn is_native(&self) -> bool {
        self.options.firewall == Firewall::Nftables && self.door_with_command().is_none()
    }

    /// Returns a door that has a command.
    pub fn door_with_command(&self) -> Option<&Door> {
        self.doors.iter().find(|door| door.action != Action::default())
    }

    /// Returns the door of an event, if this configuration was the current one at that time.
    pub fn door(&self, id: DoorId) -> Option<&Door> {
        self.doors.get(id.index())
    }
}

/// Parses the text of a knockd.conf, as [`Config::parse`] does, and drops the warnings.
impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::parse(text.as_bytes()).map(|parsed| parsed.config)
    }
}

/// Why a text is not a configuration. Prints one line per finding.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ConfigError {
    /// Everything wrong or doubtful, in file order; at least one has severity [`Severity::Error`].
    pub findings: Vec<Diagnostic>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for finding in &self.findings {
            write!(f, "{separator}{finding}")?;
            separator = "\n";
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.write(f)?;
        self.doors.iter().try_for_each(|door| {
            writeln!(f)?;
            door.write(f)
        })
    }
}

/// Gives an enum of plain words its text form: the words of knockd.conf, in any case.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ }) => {
        impl $type {
            /// All values with their words.
            pub(crate) const WORDS: &[(&str, Self)] = &[$(($word, Self::$variant)),+];
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word),+
                })
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::config::UnknownWord;

            fn from_str(text: &str) -> Result<Self, $crate::config::UnknownWord> {
                let found = Self::WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
                found.map(|&(_, value)| value).ok_or($crate::config::UnknownWord)
            }
        }
    };
}

// A path, so that the modules above can import it.
use words;

/// The text is not one of the allowed words.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("unknown word")]
#[non_exhaustive]
pub struct UnknownWord;
