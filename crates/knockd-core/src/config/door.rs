//! The sections other than `[options]`.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;

use super::{AtEnd, Extend, words};
use crate::command::{CommandLine, CommandTemplate};
use crate::forward::{Forwards, OpenFor};
use crate::sequence::Sequence;
use crate::services::{Service, Services};
use crate::tcp_flags::FlagRule;
use crate::text::{DoorName, Text};
use crate::time::Seconds;

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
    /// `Open`: what the firewall lets a knocker reach.
    #[cfg_attr(feature = "serde", serde(default))]
    pub open: Option<Services>,
    /// `Forward`: where the firewall leads a knocker.
    #[cfg_attr(feature = "serde", serde(default))]
    pub forward: Option<Forwards>,
    /// `Masquerade`: whether other hosts to which it leads see this host as the source.
    #[cfg_attr(feature = "serde", serde(default))]
    pub masquerade: bool,
    /// `Open_For`: whom the firewall lets in with a knocker.
    #[cfg_attr(feature = "serde", serde(default))]
    pub open_for: OpenFor,
    /// `Closed`: what becomes of everybody else's packets to these services.
    #[cfg_attr(feature = "serde", serde(default))]
    pub closed: Closed,
    /// `Extend`: what keeps these services open beyond the time of a knock.
    #[cfg_attr(feature = "serde", serde(default))]
    pub extend: Option<Extend>,
    /// `Uses = 1`: the first new connection to these services closes the door for its source.
    #[cfg_attr(feature = "serde", serde(default))]
    pub single_use: bool,
    /// `At_End`: what becomes of connections to these services when the door closes for their source.
    #[cfg_attr(feature = "serde", serde(default))]
    pub at_end: AtEnd,
    /// What else opening does.
    #[cfg_attr(feature = "serde", serde(default))]
    pub action: Action,
    /// `Cmd_Timeout` or `Lease`: how long the door stays open after the start command has ended.
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
    /// The default of `Lease` for a door with `Open`.
    pub const DEFAULT_LEASE: Seconds = Seconds::new(30);

    /// Creates a door with this name and key, and defaults for everything else.
    pub fn new(name: DoorName, key: Key) -> Self {
        Self {
            name,
            key,
            seq_timeout: Self::DEFAULT_SEQ_TIMEOUT,
            tcp_flags: FlagRule::ANY,
            target: None,
            open: None,
            forward: None,
            masquerade: false,
            open_for: OpenFor::default(),
            closed: Closed::default(),
            extend: None,
            single_use: false,
            at_end: AtEnd::default(),
            action: Action::default(),
            cmd_timeout: Self::DEFAULT_CMD_TIMEOUT,
            reopen: Reopen::default(),
            max_open: None,
            cooldown: Seconds::ZERO,
        }
    }

    /// Says whether the firewall guards anything behind this door.
    pub const fn is_guarded(&self) -> bool {
        self.open.is_some() || self.forward.is_some()
    }

    /// Returns the services to which its knockers connect; `None` if there are none.
    pub fn services(&self) -> Option<Services> {
        let forwards = self.forward.iter().flat_map(Forwards::iter);
        let forwarded =
            forwards.filter_map(|forward| Service::new(forward.protocol(), forward.port()..=forward.port()));
        let mut all = self.open.iter().flat_map(Services::iter).cloned().chain(forwarded);
        all.next().map(|first| Services::new(first, all.collect()))
    }

    /// Returns the services of this host to which its knockers get; `None` if there are none.
    pub fn local_services(&self) -> Option<Services> {
        let forwards = self.forward.iter().flat_map(Forwards::iter);
        let here = forwards.filter(|forward| forward.target().is_none()).filter_map(|forward| {
            Service::new(forward.protocol(), forward.target_port()..=forward.target_port())
        });
        let mut all = self.open.iter().flat_map(Services::iter).cloned().chain(here);
        all.next().map(|first| Services::new(first, all.collect()))
    }

    /// Says whether a source can reach anything more when the firewall lets it in at this door.
    pub fn admits(&self, source: IpAddr) -> bool {
        let mut forwards = self.forward.iter().flat_map(Forwards::iter);
        self.open.is_some() || forwards.any(|forward| forward.applies_to(source))
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

/// What the firewall does with packets to a service whose door is closed for their source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Closed {
    /// It drops them, so the port looks as if nobody were there.
    #[default]
    Drop,
    /// It answers as a port does on which nothing listens.
    Reject,
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

impl Door {
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        if let Some(services) = &self.open {
            writeln!(f, "\tOpen = {services}")?;
        }
        if let Some(forwards) = &self.forward {
            writeln!(f, "\tForward = {forwards}")?;
        }
        if self.masquerade {
            writeln!(f, "\tMasquerade")?;
        }
        if self.open_for != OpenFor::default() {
            writeln!(f, "\tOpen_For = {}", self.open_for)?;
        }
        if self.closed == Closed::Reject {
            writeln!(f, "\tClosed = {}", self.closed)?;
        }
        if let Some(extend) = self.extend {
            writeln!(f, "\tExtend = {extend}")?;
            if let Extend::Connected { idle_limit, .. } = extend {
                writeln!(f, "\tIdle_Limit = {idle_limit}")?;
            }
        }
        if self.single_use {
            writeln!(f, "\tUses = 1")?;
        }
        if self.at_end == AtEnd::Cut {
            writeln!(f, "\tAt_End = {}", self.at_end)?;
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

words!(Closed { Drop = "drop", Reject = "reject" });
words!(Reopen { Extend = "extend", Run = "run" });
