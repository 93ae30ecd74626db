//! What is wrong or doubtful in a configuration, where, and what would be right.

use std::fmt;
use std::ops::Range;

use super::value::BOM;

/// How much a [`Diagnostic`] matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Something to know; nothing is the matter.
    Note,
    /// The configuration is used, but something in it is probably not meant.
    Warning,
    /// The configuration cannot be used.
    Error,
}

impl Severity {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes the enum, the list of all its values and their names from one table, so that none can be left out.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal,)*) => {
        /// What kind of finding a [`Diagnostic`] is, for programs; docs/json.md has all of them.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Code {
            $($(#[$doc])* $code,)*
        }

        impl Code {
            /// Every code, in the order of docs/json.md.
            pub const ALL: &[Self] = &[$(Self::$code,)*];

            /// The word for it, which stays as it is.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)*
                }
            }
        }
    };
}

codes! {
    /// The text is wrong.
    Invalid = "invalid",
    /// Something is probably not meant.
    Doubtful = "doubtful",
    /// Everybody can read the file, or write it.
    OpenToOthers = "open-to-others",
    /// The file of one-time sequences cannot be read, or none is left.
    OneTimeFile = "one-time-file",
    /// The sequence stands in manuals and walk-throughs.
    KnownSequence = "known-sequence",
    /// All ports are such as people think of first.
    EasyPorts = "easy-ports",
    /// Two steps in a row are so near to each other that one scan hits both at once.
    NearPorts = "near-ports",
    /// A step is a port that scanners try first.
    WellKnownPort = "well-known-port",
    /// The steps are of one protocol and ascend.
    AscendingPorts = "ascending-ports",
    /// `Seq_Timeout` is short for so many steps.
    ShortTimeout = "short-timeout",
    /// `Seq_Timeout` is long.
    LongTimeout = "long-timeout",
    /// There are TCP steps and no `TCPFlags`.
    NoTcpFlags = "no-tcp-flags",
    /// No ordinary attempt to connect has the flags that `TCPFlags` wants.
    UnusualFlags = "unusual-flags",
    /// A knock at the door opens another one, too.
    OpensAnother = "opens-another",
    /// A step is a step of another door, too.
    SharedPort = "shared-port",
    /// The stop command never runs.
    StopWithoutStart = "stop-without-start",
    /// A start command opens a firewall, and nothing closes it again.
    StartWithoutStop = "start-without-stop",
    /// The program of a command cannot be executed.
    MissingProgram = "missing-program",
    /// A program of this machine listens on a port of the sequence.
    LivePort = "live-port",
    /// An interface that `Interface` names does not exist.
    MissingInterface = "missing-interface",
    /// How likely a guess and a scan are to open the door.
    Odds = "odds",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One finding about a configuration text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// Whether the configuration can be used all the same.
    pub severity: Severity,
    /// Which kind of finding it is.
    pub code: Code,
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

impl Diagnostic {
    /// Makes a finding about these bytes of a text, without help.
    pub fn new(
        text: &[u8],
        span: Range<usize>,
        severity: Severity,
        code: Code,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        let before = text.get(..span.start).unwrap_or_default();
        let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let in_line = before.get(line_start..).unwrap_or_default();
        let in_line = in_line.strip_prefix(BOM).filter(|_| line_start == 0).unwrap_or(in_line);
        Self {
            severity,
            code,
            line: before.split(|&byte| byte == b'\n').count(),
            column: String::from_utf8_lossy(in_line).chars().count() + 1,
            span,
            message: message.into(),
            expected: expected.into(),
            help: None,
        }
    }

    /// Returns the finding with this help.
    #[must_use]
    pub fn with_help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// Prints one line: `3:12: error: the message: expected this; help`.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}: {}", self.line, self.column, self.severity, self.message, self.expected)?;
        self.help.iter().try_for_each(|help| write!(f, "; {help}"))
    }
}
