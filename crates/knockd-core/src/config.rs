//! The configuration of the daemon, as types that cannot be wrong.

mod diagnostic;
mod parser;

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
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
    /// `MaxAttempts`: how many attempts may be under way at the same time, over all sources.
    pub max_attempts: NonZeroU32,
}

impl Options {
    /// The value of `MaxAttempts` when it is not given.
    #[allow(clippy::unwrap_used, reason = "evaluated at compile time")]
    pub const DEFAULT_MAX_ATTEMPTS: NonZeroU32 = NonZeroU32::new(262_144).unwrap();
}

impl Default for Options {
    fn default() -> Self {
        Self {
            use_syslog: false,
            log_file: None,
            pid_file: None,
            interface: None,
            max_attempts: Self::DEFAULT_MAX_ATTEMPTS,
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
        writeln!(f, "\tMaxAttempts = {}", self.max_attempts)
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
        Ok(())
    }
}
