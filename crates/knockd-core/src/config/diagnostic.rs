//! What is wrong or doubtful in a configuration, where, and what would be right.

use std::fmt;
use std::ops::Range;

/// How much a [`Diagnostic`] matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// The configuration is used, but something in it is probably not meant.
    Warning,
    /// The configuration cannot be used.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One finding about a configuration text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// Whether the configuration can be used all the same.
    pub severity: Severity,
    /// Line of the finding, counted from 1.
    pub line: usize,
    /// Column of its first character, counted from 1 in characters.
    pub column: usize,
    /// The bytes of the text that it is about; within one line, on character boundaries, possibly empty.
    pub span: Range<usize>,
    /// What is the matter, in one clause without a full stop.
    pub message: String,
    /// What was expected in place of the span.
    pub expected: String,
    /// How to mend it, if more than `expected` can be said.
    pub help: Option<String>,
}

/// Prints one line: `3:12: error: the message: expected this; help`.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}: {}", self.line, self.column, self.severity, self.message, self.expected)?;
        self.help.iter().try_for_each(|help| write!(f, "; {help}"))
    }
}
