//! The directives: two tables say what each does to its section.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::Range;

use super::value::Value;
use super::{
    AtEnd, Closed, DoorName, Extend, Firewall, Key, LogFormat, OnExit, Options, Reopen, ScanLimit, Seconds,
    Text,
};
use crate::forward::{Forwards, OpenFor};
use crate::grammar;
use crate::services::Services;
use crate::tcp_flags::FlagRule;

/// A directive: its name, its synonym, and what its value does to the section.
pub(super) struct Directive<Section> {
    pub(super) name: &'static str,
    alias: Option<&'static str>,
    /// Whether it may stand without a value.
    pub(super) is_switch: bool,
    /// Whether each one in a section counts, and not only the last.
    pub(super) repeats: bool,
    pub(super) apply: fn(&mut Section, Value<'_, '_>),
}

impl<Section> Directive<Section> {
    const fn new(name: &'static str, apply: fn(&mut Section, Value<'_, '_>)) -> Self {
        Self { name, alias: None, is_switch: false, repeats: false, apply }
    }

    const fn with_alias(self, alias: &'static str) -> Self {
        Self { alias: Some(alias), ..self }
    }

    const fn switch(self) -> Self {
        Self { is_switch: true, ..self }
    }

    const fn repeated(self) -> Self {
        Self { repeats: true, ..self }
    }

    pub(super) fn is_called(&self, key: &str) -> bool {
        self.names().any(|name| name.eq_ignore_ascii_case(key))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.alias)
    }
}

pub(super) const OPTION_DIRECTIVES: [Directive<Options>; 19] = [
    Directive::new("Include", |_: &mut Options, value| value.include()).repeated(),
    Directive::new("UseSyslog", |options: &mut Options, value| options.use_syslog = value.switch()).switch(),
    Directive::new("LogFile", |options, value| options.log_file = value.name()),
    Directive::new("PidFile", |options, value| options.pid_file = value.name()),
    Directive::new("Interface", |options, value| {
        // As in 0.8, and unlike other directives, the first one wins.
        let name = value.name();
        options.interface = options.interface.take().or(name);
    }),
    Directive::new("WaitInterface", |options: &mut Options, value| options.wait_interface = value.switch())
        .switch(),
    Directive::new("MaxAttempts", |options, value| replace(&mut options.max_attempts, value.positive())),
    Directive::new("MaxOpen", |options, value| replace(&mut options.max_open, value.positive())),
    Directive::new("MaxCommands", |options, value| replace(&mut options.max_commands, value.positive())),
    Directive::new("CommandLimit", |options, value| {
        replace(&mut options.command_limit, value.seconds().map(|limit| NonZeroU32::new(limit.get())));
    }),
    Directive::new("ScanLimit", |options, value| {
        replace(&mut options.scan_limit, value.scan_limit().map(ScanLimit::new));
    }),
    Directive::new("StateDir", |options, value| replace(&mut options.state_dir, value.path())),
    Directive::new("OnExit", |options, value| {
        replace(&mut options.on_exit, value.choice(OnExit::WORDS, "`close` or `keep`"));
    }),
    Directive::new("ControlSocket", |options, value| {
        // An empty value means no socket.
        options.control_socket = value.text.and_then(|path| Text::new(path).ok());
    }),
    Directive::new("LogFormat", |options, value| {
        replace(&mut options.log_format, value.choice(LogFormat::WORDS, "`classic` or `json`"));
    }),
    Directive::new("Firewall", |options, value| {
        replace(&mut options.firewall, value.choice(Firewall::WORDS, "`nftables` or `none`"));
    }),
    Directive::new("Mark", |options, value| set(&mut options.mark, value.parse(grammar::mark))),
    Directive::new("GuardExcept", |options, value| {
        replace(&mut options.guard_except, value.parse(grammar::exceptions));
    }),
    Directive::new("Metrics", |options, value| set(&mut options.metrics, value.path())),
];

pub(super) const DOOR_DIRECTIVES: [Directive<Draft>; 22] = [
    Directive::new("Sequence", |door, value| {
        let sequence = value.remarked(grammar::remarked_sequence);
        set(&mut door.key, sequence.map(Key::Sequence));
    }),
    Directive::new("One_Time_Sequences", |door, value| {
        set(&mut door.key, value.path().map(Key::OneTime));
    }),
    Directive::new("Seq_Timeout", |door: &mut Draft, value| {
        set(&mut door.seq_timeout, value.seconds());
    })
    .with_alias("Timeout"),
    Directive::new("TCPFlags", |door, value| set(&mut door.tcp_flags, value.parse(grammar::tcp_flags))),
    Directive::new("Target", |door, value| set(&mut door.target, value.address())),
    Directive::new("Start_Command", |door: &mut Draft, value| set(&mut door.start, value.command()))
        .with_alias("Command"),
    Directive::new("Start_Command_6", |door: &mut Draft, value| set(&mut door.start_6, value.command()))
        .with_alias("Command_6"),
    Directive::new("Open", |door, value| set(&mut door.open, value.parse(grammar::services))),
    Directive::new("Forward", |door, value| set(&mut door.forward, value.parse(grammar::forwards))),
    Directive::new("Masquerade", |door: &mut Draft, value| door.masquerade = value.switch()).switch(),
    Directive::new("Open_For", |door, value| set(&mut door.open_for, value.parse(grammar::open_for))),
    Directive::new("Closed", |door, value| {
        set(&mut door.closed, value.choice(Closed::WORDS, "`drop` or `reject`"));
    }),
    Directive::new("Extend", |door, value| set(&mut door.extend, value.parse(grammar::extend))),
    Directive::new("Idle_Limit", |door, value| set(&mut door.idle_limit, value.parse(grammar::time))),
    Directive::new("Uses", |door, value| door.single_use |= value.parse(grammar::uses).is_some()),
    Directive::new("At_End", |door, value| {
        set(&mut door.at_end, value.choice(AtEnd::WORDS, "`keep` or `cut`"));
    }),
    Directive::new("Cmd_Timeout", |door: &mut Draft, value| set(&mut door.cmd_timeout, value.seconds()))
        .with_alias("Lease"),
    Directive::new("Stop_Command", |door, value| set(&mut door.stop, value.command())),
    Directive::new("Stop_Command_6", |door, value| set(&mut door.stop_6, value.command())),
    Directive::new("Reopen", |door, value| {
        set(&mut door.reopen, value.choice(Reopen::WORDS, "`extend` or `run`"));
    }),
    Directive::new("Max_Open", |door, value| {
        replace(&mut door.max_open, value.count().map(NonZeroU32::new));
    }),
    Directive::new("Cooldown", |door: &mut Draft, value| set(&mut door.cooldown, value.seconds()))
        // As in the fork that container images have.
        .with_alias("Seq_Cooldown"),
];

/// Replaces the field. An invalid directive changes nothing; its error is already reported.
fn replace<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Sets the field, as [`replace`] does.
fn set<T>(field: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *field = value;
    }
}

/// A door that has not been read to its end.
pub(super) struct Draft {
    pub(super) name: DoorName,
    pub(super) header: Range<usize>,
    pub(super) given: Vec<Given>,
    pub(super) key: Option<Key>,
    pub(super) seq_timeout: Option<Seconds>,
    pub(super) tcp_flags: Option<FlagRule>,
    pub(super) target: Option<IpAddr>,
    pub(super) open: Option<Services>,
    pub(super) forward: Option<Forwards>,
    pub(super) masquerade: bool,
    pub(super) open_for: Option<OpenFor>,
    pub(super) closed: Option<Closed>,
    pub(super) extend: Option<Extend>,
    pub(super) idle_limit: Option<NonZeroU32>,
    pub(super) single_use: bool,
    pub(super) at_end: Option<AtEnd>,
    /// The commands as written: an empty one differs from an absent one.
    pub(super) start: Option<String>,
    pub(super) start_6: Option<String>,
    pub(super) stop: Option<String>,
    pub(super) stop_6: Option<String>,
    pub(super) cmd_timeout: Option<Seconds>,
    pub(super) reopen: Option<Reopen>,
    pub(super) max_open: Option<NonZeroU32>,
    pub(super) cooldown: Option<Seconds>,
}

impl Draft {
    pub(super) const fn new(name: DoorName, header: Range<usize>) -> Self {
        Self {
            name,
            header,
            given: Vec::new(),
            key: None,
            seq_timeout: None,
            tcp_flags: None,
            target: None,
            open: None,
            forward: None,
            masquerade: false,
            open_for: None,
            closed: None,
            extend: None,
            idle_limit: None,
            single_use: false,
            at_end: None,
            start: None,
            start_6: None,
            stop: None,
            stop_6: None,
            cmd_timeout: None,
            reopen: None,
            max_open: None,
            cooldown: None,
        }
    }
}

/// A directive in the text: its main spelling, and the position of its value.
pub(super) type Given = (&'static str, Range<usize>);
