//! Texts that a configuration can hold as they are: printing and parsing returns them unchanged.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

/// A value on one line of a configuration, such as a path: not empty, and without surrounding white space, line feeds
/// and NUL bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Text(String);

/// The name of a door: neither empty nor `options`, and without line feeds and NUL bytes.
///
/// Clones share the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DoorName(Arc<str>);

/// Why a configuration cannot hold a text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// It is empty.
    #[error("empty text")]
    Empty,
    /// It starts or ends with white space, which a parser would drop.
    #[error("leading or trailing white space")]
    Padded,
    /// It has more than one line.
    #[error("unexpected line feed")]
    LineFeed,
    /// It contains a NUL byte.
    #[error("unexpected NUL byte")]
    Nul,
    /// The section with this name holds the global directives.
    #[error("`options` is not a valid door name")]
    Options,
}

impl Text {
    /// Checks a text.
    ///
    /// # Errors
    /// When it is empty, or has surrounding white space, a line feed or a NUL byte.
    pub fn new(text: impl Into<String>) -> Result<Self, TextError> {
        let text = text.into();
        check_line(&text)?;
        if text.trim().len() == text.len() { Ok(Self(text)) } else { Err(TextError::Padded) }
    }
}

impl Text {
    /// Takes one of our own texts, which a test has checked.
    pub(crate) fn from_static(text: &'static str) -> Self {
        debug_assert!(Self::new(text).is_ok(), "{text:?}");
        Self(text.to_owned())
    }
}

impl DoorName {
    /// Checks a name.
    ///
    /// # Errors
    /// When it is empty or `options`, or has a line feed or a NUL byte.
    pub fn new(name: impl Into<String>) -> Result<Self, TextError> {
        let name = name.into();
        check_line(&name)?;
        if name == "options" { Err(TextError::Options) } else { Ok(Self(name.into())) }
    }
}

pub(crate) fn check_line(text: &str) -> Result<(), TextError> {
    match text {
        "" => Err(TextError::Empty),
        _ if text.contains('\n') => Err(TextError::LineFeed),
        _ if text.contains('\0') => Err(TextError::Nul),
        _ => Ok(()),
    }
}

/// What both kinds of text share.
macro_rules! text {
    ($type:ident) => {
        impl Deref for $type {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                self
            }
        }

        /// Allows lookups in a map with a `&str`.
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                self
            }
        }

        impl TryFrom<String> for $type {
            type Error = TextError;

            fn try_from(text: String) -> Result<Self, TextError> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(text: $type) -> Self {
                text.to_string()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = TextError;

            fn from_str(text: &str) -> Result<Self, TextError> {
                Self::new(text)
            }
        }

        impl PartialEq<str> for $type {
            fn eq(&self, other: &str) -> bool {
                **self == *other
            }
        }

        impl PartialEq<&str> for $type {
            fn eq(&self, other: &&str) -> bool {
                **self == **other
            }
        }
    };
}

text!(Text);
text!(DoorName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_would_read_otherwise_is_refused() {
        for (text, error) in [
            ("", TextError::Empty),
            (" a", TextError::Padded),
            ("a\u{a0}", TextError::Padded),
            ("a\nb", TextError::LineFeed),
            ("a\0b", TextError::Nul),
        ] {
            assert_eq!(Text::new(text), Err(error), "{text:?}");
        }
        assert_eq!(DoorName::new("options"), Err(TextError::Options));
        assert_eq!(DoorName::new(" a ").unwrap(), " a ");
        assert_eq!(Text::new("/etc/a b").unwrap(), "/etc/a b");
    }
}
