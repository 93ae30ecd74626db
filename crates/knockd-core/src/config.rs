//! The configuration of the daemon, as types that cannot be wrong.

mod advice;
mod diagnostic;
mod odds;
mod parser;
mod value;

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Duration;

pub use diagnostic::{Diagnostic, Severity};

use crate::command::CommandTemplate;
use crate::sequence::Sequence;
use crate::tcp_flags::FlagRule;

/// Everything that a knockd.conf says.
///
/// Its [`Display`](fmt::Display) form is a knockd.conf that parses back equal.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// The global directives.
    pub options: Options,
    /// The doors in file order; two may have the same name.
    pub doors: Vec<Door>,
}

/// A usable configuration and what is doubtful about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// The configuration.
    pub config: Config,
    /// What is probably not meant, in file order; all of severity [`Severity::Warning`].
    pub warnings: Vec<Diagnostic>,
    /// Where each door stands in the text.
    pub places: Vec<Places>,
}

/// Where a door stands in the text of its configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// The bytes of the section's header.
    pub header: Range<usize>,
    /// Each directive by its main spelling, with the bytes of its value.
    values: Vec<(&'static str, Range<usize>)>,
}

impl Places {
    /// The bytes of a directive's value, or of the header if the directive is not given.
    pub fn of(&self, directive: &str) -> Range<usize> {
        let given = self.values.iter().rev().find(|(name, _)| *name == directive);
        given.map_or(&self.header, |(_, span)| span).clone()
    }
}

impl Parsed {
    /// Says what is unwise about a configuration that can be used, and how hard its doors are to guess.
    ///
    /// `text` is the one that was parsed. The findings are of severity [`Severity::Warning`] and [`Severity::Note`].
    pub fn advice(&self, text: &[u8]) -> Vec<Diagnostic> {
        advice::advise(text, self)
    }
}

impl Config {
    /// Parses the text of a knockd.conf (man page knockd(1), section CONFIGURATION).
    ///
    /// Lines end in LF or CRLF. The text has to be UTF-8, except in comments.
    ///
    /// # Errors
    /// Returns everything that is wrong and everything that is doubtful about the file, in file order; at least one
    /// of them is of severity [`Severity::Error`].
    pub fn parse(text: &[u8]) -> Result<Parsed, Vec<Diagnostic>> {
        parser::parse(text)
    }
}

/// The directives of `[options]`. Paths and names are as written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `UseSyslog`: log to the system log as well.
    pub use_syslog: bool,
    /// `LogFile`.
    pub log_file: Option<String>,
    /// `PidFile`.
    pub pid_file: Option<String>,
    /// `Interface`.
    pub interface: Option<String>,
    /// `WaitInterface`: wait for an interface that does not exist yet instead of failing at the start.
    pub wait_interface: bool,
    /// `MaxAttempts`: how many attempts may be under way at the same time, over all sources.
    pub max_attempts: NonZeroU32,
    /// `MaxOpen`: how many leases there may be at the same time, over all doors.
    pub max_open: NonZeroU32,
    /// `MaxCommands`: how many start commands may run at the same time; others wait.
    pub max_commands: NonZeroU32,
    /// `CommandLimit`: how long a command may run before it is ended; whole seconds; `None` (written 0) is for ever.
    pub command_limit: Option<Duration>,
    /// `ScanLimit`: how many ports that no door uses a source may try within a minute before it is taken for a scanner;
    /// `None` (written 0) never does.
    pub scan_limit: Option<NonZeroU32>,
    /// `StateDir`: where leases are stored. The path is as written.
    pub state_dir: String,
    /// `OnExit`: what happens to open doors when the daemon ends.
    pub on_exit: OnExit,
    /// `ControlSocket`: where the daemon can be asked; `None` (written as nothing) is nowhere. The path is as written.
    pub control_socket: Option<String>,
    /// `LogFormat`: how log lines are written.
    pub log_format: LogFormat,
    /// `Metrics`: the file to which the counters are written again and again. The path is as written.
    pub metrics: Option<String>,
}

/// How log lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum LogFormat {
    /// As in knockd 0.8, for people.
    #[default]
    Classic,
    /// A JSON object a line, for programs.
    Json,
}

/// What happens to open doors when the daemon is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum OnExit {
    /// Their stop commands run at once.
    #[default]
    Close,
    /// They stay open; the next start of the daemon closes them at their time.
    Keep,
}

impl Options {
    /// The value of `MaxAttempts` when it is not given.
    #[allow(clippy::unwrap_used, reason = "evaluated at compile time")]
    pub const DEFAULT_MAX_ATTEMPTS: NonZeroU32 = NonZeroU32::new(262_144).unwrap();
    /// The value of `MaxOpen` when it is not given.
    #[allow(clippy::unwrap_used, reason = "evaluated at compile time")]
    pub const DEFAULT_MAX_OPEN: NonZeroU32 = NonZeroU32::new(16_384).unwrap();
    /// The value of `MaxCommands` when it is not given.
    #[allow(clippy::unwrap_used, reason = "evaluated at compile time")]
    pub const DEFAULT_MAX_COMMANDS: NonZeroU32 = NonZeroU32::new(256).unwrap();
    /// The value of `ScanLimit` when it is not given.
    pub const DEFAULT_SCAN_LIMIT: Option<NonZeroU32> = NonZeroU32::new(10);
    /// The value of `StateDir` when it is not given.
    pub const DEFAULT_STATE_DIR: &str = "/var/lib/knockd";
    /// The value of `ControlSocket` when it is not given.
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
            state_dir: Self::DEFAULT_STATE_DIR.to_owned(),
            on_exit: OnExit::default(),
            control_socket: Some(Self::DEFAULT_CONTROL_SOCKET.to_owned()),
            log_format: LogFormat::default(),
            metrics: None,
        }
    }
}

/// A section that is not `[options]`: a secret, and what happens when somebody knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Door {
    /// Name of the section, as it appears in the log; never empty.
    pub name: String,
    /// What has to be knocked.
    pub secret: Secret,
    /// `Seq_Timeout`: how long a knock may take from its first to its last step; whole seconds.
    pub seq_timeout: Duration,
    /// `TCPFlags`: what every TCP step has to carry.
    pub tcp_flags: FlagRule,
    /// `Target`: the address that has to be hit, instead of the interface's own.
    pub target: Option<IpAddr>,
    /// `Start_Command` and `Start_Command_6`.
    pub start: Commands,
    /// `Stop_Command` and `Stop_Command_6`.
    pub stop: Commands,
    /// `Cmd_Timeout`: how long the door stays open after the start command has ended; whole seconds.
    pub cmd_timeout: Duration,
    /// `Reopen`.
    pub reopen: Reopen,
    /// `Max_Open`: how many leases this door may have at the same time; `None` (written 0) is as many as `MaxOpen` allows.
    pub max_open: Option<NonZeroU32>,
    /// `Cooldown`: how long a source is not looked at by this door after it has opened it; whole seconds.
    pub cooldown: Duration,
}

impl Door {
    /// The value of `Seq_Timeout` when it is not given.
    pub const DEFAULT_SEQ_TIMEOUT: Duration = Duration::from_secs(25);
    /// The value of `Cmd_Timeout` when it is not given.
    pub const DEFAULT_CMD_TIMEOUT: Duration = Duration::from_secs(10);

    /// Makes a door with these two and the default of everything else.
    pub fn new(name: impl Into<String>, secret: Secret) -> Self {
        Self {
            name: name.into(),
            secret,
            seq_timeout: Self::DEFAULT_SEQ_TIMEOUT,
            tcp_flags: FlagRule::ANY,
            target: None,
            start: Commands::default(),
            stop: Commands::default(),
            cmd_timeout: Self::DEFAULT_CMD_TIMEOUT,
            reopen: Reopen::default(),
            max_open: None,
            cooldown: Duration::ZERO,
        }
    }
}

/// What has to be knocked at a door.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Secret {
    /// `Sequence`: always the same steps.
    Sequence(Sequence),
    /// `One_Time_Sequences`: the next unused line of this file. The path is as written.
    OneTime(String),
}

/// A command for knockers of either address family.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Commands {
    /// What runs for IPv4 knockers, if anything does.
    pub v4: Option<CommandTemplate>,
    /// What runs for IPv6 knockers, if anything does: the `_6` directive, or the plain one when that is absent.
    pub v6: Option<CommandTemplate>,
}

impl Commands {
    /// The same command for both families.
    pub fn both(command: CommandTemplate) -> Self {
        Self { v4: Some(command.clone()), v6: Some(command) }
    }

    /// The command for this knocker, filled in; `None` when nothing is to run.
    pub fn expand(&self, source: IpAddr) -> Option<String> {
        let template = if source.is_ipv4() { &self.v4 } else { &self.v6 };
        template.as_ref().map(|template| template.expand(source))
    }
}

/// What a knock does at a door that is already open for its source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Reopen {
    /// The door stays open for a full `Cmd_Timeout` from now; no command runs.
    #[default]
    Extend,
    /// The start command runs again, with a stop command of its own, as in knockd 0.8.
    Run,
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.options)?;
        self.doors.iter().try_for_each(|door| write!(f, "\n{door}"))
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        writeln!(f, "\tCommandLimit = {}", self.command_limit.unwrap_or_default().as_secs())?;
        writeln!(f, "\tScanLimit = {}", self.scan_limit.map_or(0, NonZeroU32::get))?;
        writeln!(f, "\tStateDir = {}", self.state_dir)?;
        let on_exit = match self.on_exit {
            OnExit::Close => "close",
            OnExit::Keep => "keep",
        };
        writeln!(f, "\tOnExit = {on_exit}")?;
        writeln!(f, "\tControlSocket = {}", self.control_socket.as_deref().unwrap_or_default())?;
        if self.log_format == LogFormat::Json {
            writeln!(f, "\tLogFormat = json")?;
        }
        if let Some(path) = &self.metrics {
            writeln!(f, "\tMetrics = {path}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[{}]", self.name)?;
        match &self.secret {
            Secret::Sequence(sequence) => writeln!(f, "\tSequence = {sequence}")?,
            Secret::OneTime(path) => writeln!(f, "\tOne_Time_Sequences = {path}")?,
        }
        writeln!(f, "\tSeq_Timeout = {}", self.seq_timeout.as_secs())?;
        if self.tcp_flags != FlagRule::ANY {
            writeln!(f, "\tTCPFlags = {}", self.tcp_flags)?;
        }
        if let Some(target) = self.target {
            writeln!(f, "\tTarget = {target}")?;
        }
        for (key, Commands { v4, v6 }) in [("Start_Command", &self.start), ("Stop_Command", &self.stop)] {
            if let Some(command) = v4 {
                writeln!(f, "\t{key} = {command}")?;
            }
            match v6 {
                Some(command) if v4.as_ref() != Some(command) => writeln!(f, "\t{key}_6 = {command}")?,
                None if v4.is_some() => writeln!(f, "\t{key}_6 =")?,
                _ => (),
            }
        }
        writeln!(f, "\tCmd_Timeout = {}", self.cmd_timeout.as_secs())?;
        if self.reopen == Reopen::Run {
            writeln!(f, "\tReopen = run")?;
        }
        if let Some(max_open) = self.max_open {
            writeln!(f, "\tMax_Open = {max_open}")?;
        }
        if !self.cooldown.is_zero() {
            writeln!(f, "\tCooldown = {}", self.cooldown.as_secs())?;
        }
        Ok(())
    }
}
