//! The directives of `[options]`.

use std::fmt;
use std::num::NonZeroU32;

use super::words;
use crate::exceptions::Exceptions;
use crate::text::Text;

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
    /// `ScanLimit`: how many closed ports that no door uses a source may try within a minute before it counts as a
    /// scanner; `None` (written 0) for no limit.
    pub scan_limit: Option<ScanLimit>,
    /// `StateDir`: the lease store. The path is as written.
    pub state_dir: Text,
    /// `OnExit`: what happens to open doors when the daemon exits.
    pub on_exit: OnExit,
    /// `ControlSocket`: the socket for requests; `None` (written as an empty value) for none. The path is as written.
    pub control_socket: Option<Text>,
    /// `LogFormat`: the format of log lines.
    pub log_format: LogFormat,
    /// `Firewall`: what guards the services of doors with `Open`.
    pub firewall: Firewall,
    /// `Mark`: the bits that packets of knockers get in their mark, for other firewalls to let them through.
    pub mark: Option<NonZeroU32>,
    /// `GuardExcept`: packets that the guard never looks at.
    pub guard_except: Exceptions,
    /// `Metrics`: the file with the counters, rewritten regularly. The path is as written.
    pub metrics: Option<Text>,
}

/// How many closed ports that no door uses a source may try: 1 to [`ScanLimit::MAX`].
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

/// What guards the services of doors with `Open`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Firewall {
    /// Nothing: no door may have `Open`.
    #[default]
    None,
    /// A table of our own in the kernel's nftables.
    Nftables,
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
            firewall: Firewall::default(),
            mark: None,
            guard_except: Exceptions::default(),
            metrics: None,
        }
    }
}

impl Options {
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        if self.firewall != Firewall::None {
            writeln!(f, "\tFirewall = {}", self.firewall)?;
        }
        if let Some(mark) = self.mark {
            writeln!(f, "\tMark = {mark:#010x}")?;
        }
        if self.guard_except != Exceptions::default() {
            writeln!(f, "\tGuardExcept = {}", self.guard_except)?;
        }
        if let Some(path) = &self.metrics {
            writeln!(f, "\tMetrics = {path}")?;
        }
        Ok(())
    }
}

words!(OnExit { Close = "close", Keep = "keep" });
words!(Firewall { None = "none", Nftables = "nftables" });
words!(LogFormat { Classic = "classic", Json = "json" });
