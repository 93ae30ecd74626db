//! The configuration of the daemon, as types that cannot hold invalid values.

mod diagnostic;
mod parser;
mod value;

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::Range;
use std::str::FromStr;

pub use diagnostic::{Code, Diagnostic, Severity};

use crate::command::{CommandLine, CommandTemplate};
use crate::outcome::DoorId;
use crate::sequence::Sequence;
use crate::tcp_flags::FlagRule;
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

/// The position of a door in the text of its configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Places {
    /// The bytes of the section's header.
    pub header: Range<usize>,
    /// Each directive by its main spelling, with the bytes of its value.
    values: Vec<(&'static str, Range<usize>)>,
}

impl Places {
    /// Returns the bytes of a directive's value, or of the header if the directive is absent.
    pub fn of(&self, directive: &str) -> Range<usize> {
        let given = self.values.iter().rev().find(|(name, _)| *name == directive);
        given.map_or(&self.header, |(_, span)| span).clone()
    }
}

impl Config {
    /// Parses the text of a knockd.conf (man page knockd(1), section CONFIGURATION).
    ///
    /// Lines end in LF or CRLF. The text must be UTF-8, except in comments.
    ///
    /// # Errors
    /// Returns everything wrong and everything doubtful about the file.
    pub fn parse(text: &[u8]) -> Result<Parsed, ConfigError> {
        parser::parse(text).map_err(|findings| ConfigError { findings })
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

/// The directives of `[options]`. Paths and names are as written.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Options {
    /// `UseSyslog`: log to the system log as well.
    pub use_syslog: bool,
    /// `LogFile`.
    pub log_file: Option<Text>,
    /// `PidFile`.
    pub pid_file: Option<Text>,
    /// `Interface`.
    pub interface: Option<Text>,
    /// `WaitInterface`: wait for a missing interface instead of failing at startup.
    pub wait_interface: bool,
    /// `MaxAttempts`: how many attempts may be in progress at the same time, over all sources.
    pub max_attempts: NonZeroU32,
    /// `MaxOpen`: how many leases there may be at the same time, over all doors.
    pub max_open: NonZeroU32,
    /// `MaxCommands`: how many start commands may run at the same time; others wait.
    pub max_commands: NonZeroU32,
    /// `CommandLimit`: how many seconds a command may run before it is terminated; `None` (written 0) for no limit.
    pub command_limit: Option<NonZeroU32>,
    /// `ScanLimit`: how many ports that no door uses a source may try within a minute before it counts as a scanner;
    /// `None` (written 0) for no limit.
    pub scan_limit: Option<ScanLimit>,
    /// `StateDir`: the lease store. The path is as written.
    pub state_dir: Text,
    /// `OnExit`: what happens to open doors when the daemon exits.
    pub on_exit: OnExit,
    /// `ControlSocket`: the socket for requests; `None` (written as an empty value) for none. The path is as written.
    pub control_socket: Option<Text>,
    /// `LogFormat`: the format of log lines.
    pub log_format: LogFormat,
    /// `Metrics`: the file with the counters, rewritten regularly. The path is as written.
    pub metrics: Option<Text>,
}

/// How many ports that no door uses a source may try: 1 to [`ScanLimit::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(into = "u32", try_from = "u32")
)]
pub struct ScanLimit(NonZeroU32);

impl ScanLimit {
    /// The largest limit.
    pub const MAX: u32 = 64;

    /// Returns this limit; `None` if it is 0 or larger than [`Self::MAX`].
    pub const fn new(ports: u32) -> Option<Self> {
        match NonZeroU32::new(ports) {
            Some(ports) if ports.get() <= Self::MAX => Some(Self(ports)),
            _ => None,
        }
    }

    /// Returns the number of ports.
    pub const fn get(self) -> NonZeroU32 {
        self.0
    }
}

impl From<ScanLimit> for u32 {
    fn from(limit: ScanLimit) -> Self {
        limit.0.get()
    }
}

/// The number is 0 or larger than [`ScanLimit::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("expected a whole number from 1 to {}", ScanLimit::MAX)]
#[non_exhaustive]
pub struct ScanLimitError;

impl TryFrom<u32> for ScanLimit {
    type Error = ScanLimitError;

    fn try_from(ports: u32) -> Result<Self, ScanLimitError> {
        Self::new(ports).ok_or(ScanLimitError)
    }
}

/// The format of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum LogFormat {
    /// As in knockd 0.8, for people.
    #[default]
    Classic,
    /// One JSON object per line, for programs.
    Json,
}

/// What happens to open doors when the daemon exits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum OnExit {
    /// Their stop commands run at once.
    #[default]
    Close,
    /// They stay open; after the next start, the daemon closes them at their deadline.
    Keep,
}

impl Options {
    /// The default of `MaxAttempts`.
    #[allow(clippy::unwrap_used, reason = "evaluated at compile time")]
    pub const DEFAULT_MAX_ATTEMPTS: NonZeroU32 = NonZeroU32::new(262_144).unwrap();
    /// The default of `MaxOpen`.
    #[allow(clippy::unwrap_used, reason = "evaluated at compile time")]
    pub const DEFAULT_MAX_OPEN: NonZeroU32 = NonZeroU32::new(16_384).unwrap();
    /// The default of `MaxCommands`.
    #[allow(clippy::unwrap_used, reason = "evaluated at compile time")]
    pub const DEFAULT_MAX_COMMANDS: NonZeroU32 = NonZeroU32::new(256).unwrap();
    /// The default of `ScanLimit`.
    pub const DEFAULT_SCAN_LIMIT: Option<ScanLimit> = ScanLimit::new(10);
    /// The default of `StateDir`.
    pub const DEFAULT_STATE_DIR: &str = "/var/lib/knockd";
    /// The default of `ControlSocket`.
    pub const DEFAULT_CONTROL_SOCKET: &str = "/run/knockd/control";
}

impl Default for Options {
    fn default() -> Self {
        Self {
            use_syslog: false,
            log_file: None,
            pid_file: None,
            interface: None,
            wait_interface: false,
            max_attempts: Self::DEFAULT_MAX_ATTEMPTS,
            max_open: Self::DEFAULT_MAX_OPEN,
            max_commands: Self::DEFAULT_MAX_COMMANDS,
            command_limit: None,
            scan_limit: Self::DEFAULT_SCAN_LIMIT,
            state_dir: Text::from_static(Self::DEFAULT_STATE_DIR),
            on_exit: OnExit::default(),
            control_socket: Some(Text::from_static(Self::DEFAULT_CONTROL_SOCKET)),
            log_format: LogFormat::default(),
            metrics: None,
        }
    }
}

/// A section other than `[options]`: a key, and the action that it triggers.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct Door {
    /// Name of the section, as it appears in the log.
    pub name: DoorName,
    /// What opens the door.
    pub key: Key,
    /// `Seq_Timeout`: how long a knock may take from its first to its last step.
    #[cfg_attr(feature = "serde", serde(default = "default_seq_timeout"))]
    pub seq_timeout: Seconds,
    /// `TCPFlags`: the flags that every TCP step must have.
    #[cfg_attr(feature = "serde", serde(default))]
    pub tcp_flags: FlagRule,
    /// `Target`: the destination to watch, instead of the interface's own addresses.
    #[cfg_attr(feature = "serde", serde(default))]
    pub target: Option<IpAddr>,
    /// What opening does.
    #[cfg_attr(feature = "serde", serde(default))]
    pub action: Action,
    /// `Cmd_Timeout`: how long the door stays open after the start command has ended.
    #[cfg_attr(feature = "serde", serde(default = "default_cmd_timeout"))]
    pub cmd_timeout: Seconds,
    /// `Reopen`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub reopen: Reopen,
    /// `Max_Open`: how many leases this door may have at the same time; `None` (written 0) for no limit except
    /// `MaxOpen`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub max_open: Option<NonZeroU32>,
    /// `Cooldown`: how long this door ignores a source after the source opened it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub cooldown: Seconds,
}

#[cfg(feature = "serde")]
const fn default_seq_timeout() -> Seconds {
    Door::DEFAULT_SEQ_TIMEOUT
}

#[cfg(feature = "serde")]
const fn default_cmd_timeout() -> Seconds {
    Door::DEFAULT_CMD_TIMEOUT
}

impl Door {
    /// The default of `Seq_Timeout`.
    pub const DEFAULT_SEQ_TIMEOUT: Seconds = Seconds::new(25);
    /// The default of `Cmd_Timeout`.
    pub const DEFAULT_CMD_TIMEOUT: Seconds = Seconds::new(10);

    /// Creates a door with this name and key, and defaults for everything else.
    pub fn new(name: DoorName, key: Key) -> Self {
        Self {
            name,
            key,
            seq_timeout: Self::DEFAULT_SEQ_TIMEOUT,
            tcp_flags: FlagRule::ANY,
            target: None,
            action: Action::default(),
            cmd_timeout: Self::DEFAULT_CMD_TIMEOUT,
            reopen: Reopen::default(),
            max_open: None,
            cooldown: Seconds::ZERO,
        }
    }
}

/// What opens a door.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Key {
    /// `Sequence`: always the same steps.
    Sequence(Sequence),
    /// `One_Time_Sequences`: the next unused line of this file. The path is as written.
    OneTime(Text),
}

impl Key {
    /// Returns the one-time file, if the key is one.
    pub const fn one_time_file(&self) -> Option<&Text> {
        match self {
            Self::Sequence(_) => None,
            Self::OneTime(path) => Some(path),
        }
    }
}

/// What opening a door does.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Action {
    /// Commands run.
    Commands {
        /// `Start_Command` and `Start_Command_6`.
        start: Commands,
        /// `Stop_Command` and `Stop_Command_6`.
        stop: Commands,
    },
}

/// Nothing: the door only logs.
impl Default for Action {
    fn default() -> Self {
        Self::Commands { start: Commands::default(), stop: Commands::default() }
    }
}

impl Action {
    /// Says whether any of it has to be undone later.
    pub fn is_undone(&self) -> bool {
        match self {
            Self::Commands { stop, .. } => *stop != Commands::default(),
        }
    }

    /// Says whether it does anything for a source of this address family.
    pub fn applies_to(&self, source: IpAddr) -> bool {
        match self {
            Self::Commands { start, .. } => start.of(source).is_some(),
        }
    }
}

/// A command for sources of either address family.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Commands {
    /// The command for IPv4 sources, if any.
    pub v4: Option<CommandTemplate>,
    /// The command for IPv6 sources, if any: the `_6` directive, or the plain one if that is absent.
    pub v6: Option<CommandTemplate>,
}

impl Commands {
    /// Returns the same command for both families.
    pub fn both(command: CommandTemplate) -> Self {
        Self { v4: Some(command.clone()), v6: Some(command) }
    }

    /// Returns the command for the source's address family; `None` if there is none.
    pub fn of(&self, source: IpAddr) -> Option<&CommandTemplate> {
        if source.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    /// Returns the expanded command for the source; `None` if there is none.
    pub fn expand(&self, source: IpAddr) -> Option<CommandLine> {
        self.of(source).map(|template| template.expand(source))
    }
}

/// What a knock does at a door that is already open for its source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Reopen {
    /// The door stays open for a full `Cmd_Timeout` from now; no command runs.
    #[default]
    Extend,
    /// The start command runs again, with its own stop command, as in knockd 0.8.
    Run,
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.write(f)?;
        self.doors.iter().try_for_each(|door| {
            writeln!(f)?;
            door.write(f)
        })
    }
}

impl Options {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[options]")?;
        if self.use_syslog {
            writeln!(f, "\tUseSyslog")?;
        }
        for (key, value) in
            [("LogFile", &self.log_file), ("PidFile", &self.pid_file), ("Interface", &self.interface)]
        {
            if let Some(value) = value {
                writeln!(f, "\t{key} = {value}")?;
            }
        }
        if self.wait_interface {
            writeln!(f, "\tWaitInterface")?;
        }
        writeln!(f, "\tMaxAttempts = {}", self.max_attempts)?;
        writeln!(f, "\tMaxOpen = {}", self.max_open)?;
        writeln!(f, "\tMaxCommands = {}", self.max_commands)?;
        writeln!(f, "\tCommandLimit = {}", self.command_limit.map_or(0, NonZeroU32::get))?;
        writeln!(f, "\tScanLimit = {}", self.scan_limit.map_or(0, |limit| limit.get().get()))?;
        writeln!(f, "\tStateDir = {}", self.state_dir)?;
        writeln!(f, "\tOnExit = {}", self.on_exit)?;
        writeln!(f, "\tControlSocket = {}", self.control_socket.as_deref().unwrap_or_default())?;
        if self.log_format == LogFormat::Json {
            writeln!(f, "\tLogFormat = {}", self.log_format)?;
        }
        if let Some(path) = &self.metrics {
            writeln!(f, "\tMetrics = {path}")?;
        }
        Ok(())
    }
}

impl Door {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[{}]", self.name)?;
        match &self.key {
            Key::Sequence(sequence) => writeln!(f, "\tSequence = {sequence}")?,
            Key::OneTime(path) => writeln!(f, "\tOne_Time_Sequences = {path}")?,
        }
        writeln!(f, "\tSeq_Timeout = {}", self.seq_timeout)?;
        if self.tcp_flags != FlagRule::ANY {
            writeln!(f, "\tTCPFlags = {}", self.tcp_flags)?;
        }
        if let Some(target) = self.target {
            writeln!(f, "\tTarget = {target}")?;
        }
        let Action::Commands { start, stop } = &self.action;
        for (key, Commands { v4, v6 }) in [("Start_Command", start), ("Stop_Command", stop)] {
            if let Some(command) = v4 {
                writeln!(f, "\t{key} = {command}")?;
            }
            match v6 {
                Some(command) if v4.as_ref() != Some(command) => writeln!(f, "\t{key}_6 = {command}")?,
                None if v4.is_some() => writeln!(f, "\t{key}_6 =")?,
                _ => (),
            }
        }
        writeln!(f, "\tCmd_Timeout = {}", self.cmd_timeout)?;
        if self.reopen == Reopen::Run {
            writeln!(f, "\tReopen = {}", self.reopen)?;
        }
        if let Some(max_open) = self.max_open {
            writeln!(f, "\tMax_Open = {max_open}")?;
        }
        if !self.cooldown.is_zero() {
            writeln!(f, "\tCooldown = {}", self.cooldown)?;
        }
        Ok(())
    }
}

/// Gives an enum of plain words its text form: the words of knockd.conf, in any case.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ }) => {
        impl $type {
            /// All values with their words.
            pub(crate) const WORDS: &[(&str, Self)] = &[$(($word, Self::$variant)),+];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word),+
                })
            }
        }

        impl FromStr for $type {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                let found = Self::WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
                found.map(|&(_, value)| value).ok_or(UnknownWord)
            }
        }
    };
}

words!(OnExit { Close = "close", Keep = "keep" });
words!(LogFormat { Classic = "classic", Json = "json" });
words!(Reopen { Extend = "extend", Run = "run" });

/// The text is not one of the allowed words.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("unknown word")]
#[non_exhaustive]
pub struct UnknownWord;
