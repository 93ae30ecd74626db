//! What is wrong or doubtful in a configuration, where, and what would be right.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::value::BOM;
use super::{Source, UnknownWord};

/// The severity of a [`Diagnostic`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// For information; nothing is wrong.
    Note,
    /// The configuration is usable, but part of it is probably unintended.
    Warning,
    /// The configuration is unusable.
    Error,
}

impl Severity {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Parses the name, in lower case.
impl FromStr for Severity {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Note, Self::Warning, Self::Error]
            .into_iter()
            .find(|severity| severity.name() == text)
            .ok_or(UnknownWord)
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Creates the enum, the list of all its values and their names from one table, so none can be left out.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal,)*) => {
        /// The kind of finding that a [`Diagnostic`] is, for programs; docs/json.md lists them all.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $code,)*
        }

        impl Code {
            /// Every code, in the order of docs/json.md.
            pub const ALL: &[Self] = &[$(Self::$code,)*];

            /// Returns its name, which is stable.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)*
                }
            }
        }
    };
}

codes! {
    /// The text is invalid.
    Invalid = "invalid",
    /// Something is probably unintended.
    Doubtful = "doubtful",
    /// Everybody can read or write the file, or others than its reader own or write it.
    OpenToOthers = "open-to-others",
    /// The one-time file cannot be read, or has no sequence left.
    OneTimeFile = "one-time-file",
    /// The sequence is published in manuals and tutorials.
    KnownSequence = "known-sequence",
    /// All ports are predictable.
    EasyPorts = "easy-ports",
    /// Two consecutive steps are so close together that one scan hits both at once.
    NearPorts = "near-ports",
    /// A step is a port that scanners try first.
    WellKnownPort = "well-known-port",
    /// All steps use one protocol and ascend.
    AscendingPorts = "ascending-ports",
    /// `Seq_Timeout` is short for so many steps.
    ShortTimeout = "short-timeout",
    /// `Seq_Timeout` is long.
    LongTimeout = "long-timeout",
    /// There are TCP steps and no `TCPFlags`.
    NoTcpFlags = "no-tcp-flags",
    /// No ordinary connection attempt has the flags that `TCPFlags` requires.
    UnusualFlags = "unusual-flags",
    /// Knocking at the door also opens another one.
    OpensAnother = "opens-another",
    /// A step is also a step of another door.
    SharedPort = "shared-port",
    /// The stop command never runs.
    StopWithoutStart = "stop-without-start",
    /// A start command opens the firewall, and nothing closes it again.
    StartWithoutStop = "start-without-stop",
    /// The program of a command is not found or not executable.
    MissingProgram = "missing-program",
    /// A local program listens on a port of the sequence.
    LivePort = "live-port",
    /// Two doors open the same service.
    SharedService = "shared-service",
    /// Nothing listens on a service of a door where others could reach it.
    NothingListens = "nothing-listens",
    /// Another firewall blocks a service of a door even after a knock.
    BlockedService = "blocked-service",
    /// The kernel does not track the connections to a service of a door.
    Untracked = "untracked",
    /// A port leads to another host, but this one does not forward packets.
    NoForwarding = "no-forwarding",
    /// Ssh is closed, and no door opens it.
    LockOut = "lock-out",
    /// Our own table is in a file with rules that is loaded at boot.
    TableInFile = "table-in-file",
    /// There is a VRF, whose addresses the guard does not know.
    Vrf = "vrf",
    /// Docker publishes a port that no door guards.
    PublishedPort = "published-port",
    /// An interface that `Interface` names does not exist.
    MissingInterface = "missing-interface",
    /// Knocks may be missed at an interface: it has no address of its own, and belongs to one that has; or no address
    /// has the label that stands for it.
    WrongInterface = "wrong-interface",
    /// The machine's clock is not synchronised.
    Clock = "clock",
    /// What knockd needs for this configuration: root and a shell, or two capabilities.
    Rights = "rights",
    /// The odds that a blind guess and a scan open the door.
    Odds = "odds",
}

/// Parses the name, in lower case.
impl FromStr for Code {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        Self::ALL.iter().copied().find(|code| code.name() == text).ok_or(UnknownWord)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One finding about a configuration text.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Diagnostic {
    /// Whether the configuration is usable nevertheless.
    pub severity: Severity,
    /// The kind of finding.
    pub code: Code,
    /// The name of the included file that it is about; `None` for the configuration itself.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub file: Option<String>,
    /// Line of the finding, counted from 1.
    pub line: usize,
    /// Column of its first character, counted from 1 in characters.
    pub column: usize,
    /// The bytes of the file's text that it concerns; within one line, on character boundaries, possibly empty.
    pub span: Range<usize>,
    /// The problem, in one clause without a full stop.
    pub message: String,
    /// What was expected in place of the span.
    pub expected: String,
    /// How to fix it, if there is more to say than `expected`.
    pub help: Option<String>,
}

impl Diagnostic {
    /// Creates a finding about these bytes of a file, without help.
    pub fn new(
        source: Source<'_>,
        span: Range<usize>,
        severity: Severity,
        code: Code,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        let before = source.text.get(..span.start).unwrap_or_default();
        let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let in_line = before.get(line_start..).unwrap_or_default();
        let in_line = in_line.strip_prefix(BOM).filter(|_| line_start == 0).unwrap_or(in_line);
        Self {
            severity,
            code,
            file: source.name.map(str::to_owned),
            line: before.split(|&byte| byte == b'\n').count(),
            column: String::from_utf8_lossy(in_line).chars().count() + 1,
            span,
            message: message.into(),
            expected: expected.into(),
            help: None,
        }
    }

    /// Returns the finding with help added.
    #[must_use]
    pub fn with_help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// Compares positions: by file, the configuration itself first, and then by place.
    pub fn order(&self, other: &Self) -> Ordering {
        (&self.file, self.span.start).cmp(&(&other.file, other.span.start))
    }
}

/// Prints one line: `3:12: error: the message: expected this; help`, after the name of the file if it is an included
/// one.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.iter().try_for_each(|file| write!(f, "{file}:"))?;
        write!(f, "{}:{}: {}: {}: {}", self.line, self.column, self.severity, self.message, self.expected)?;
        self.help.iter().try_for_each(|help| write!(f, "; {help}"))
    }
}
