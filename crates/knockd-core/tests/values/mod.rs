//! Random values of all that a configuration is made of.

use std::net::IpAddr;
use std::num::NonZeroU32;

use knockd_core::config::{Action, Commands, Key, LogFormat, OnExit, Options, Reopen, ScanLimit};
use knockd_core::{
    CommandTemplate, Config, Door, DoorName, FlagRule, Protocol, Seconds, Sequence, Step, TcpFlags, Text,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// Text of one line.
pub fn lines() -> impl Strategy<Value = String> {
    let chars = prop_oneof![
        3 => select("aZ09/=#[]%IP,:!\"' \t\r\u{b}é\u{a0}\u{3000}\u{feff}".chars().collect::<Vec<_>>()),
        1 => any::<char>(),
    ];
    vec(chars.prop_filter("ends a line or is refused", |&c| c != '\n' && c != '\0'), 1..12)
        .prop_map(String::from_iter)
}

/// What can stand behind a `=`: white space around it is not part of it.
pub fn values() -> impl Strategy<Value = Text> {
    lines().prop_filter_map("means that there is none", |line| Text::new(line.trim()).ok())
}

pub fn templates() -> impl Strategy<Value = Option<CommandTemplate>> {
    lines().prop_map(|line| CommandTemplate::parse(&line))
}

fn commands() -> impl Strategy<Value = Commands> {
    let both = templates().prop_map(|command| command.map(Commands::both).unwrap_or_default());
    prop_oneof![
        both,
        (templates(), templates()).prop_map(|(v4, v6)| Commands { v4, v6 }),
        Just(Commands::default())
    ]
}

fn keys() -> impl Strategy<Value = Key> {
    prop_oneof![sequences().prop_map(Key::Sequence), values().prop_map(Key::OneTime)]
}

pub fn sequences() -> impl Strategy<Value = Sequence> {
    vec(steps(), 1..=Sequence::MAX_STEPS)
        .prop_map(|steps| Sequence::new(steps[0], steps[1..].to_vec()).unwrap())
}

pub fn steps() -> impl Strategy<Value = Step> {
    (any::<u16>(), any::<bool>()).prop_map(|(port, is_tcp)| Step {
        port,
        protocol: if is_tcp { Protocol::Tcp } else { Protocol::Udp },
    })
}

pub fn flag_rules() -> impl Strategy<Value = FlagRule> {
    (any::<u8>(), any::<u8>()).prop_map(|(set, clear)| {
        FlagRule::ANY.and_set(TcpFlags::from_wire(set)).and_clear(TcpFlags::from_wire(clear))
    })
}

pub fn seconds() -> impl Strategy<Value = Seconds> {
    prop_oneof![Just(0), 0..100_u32, any::<u32>()].prop_map(Seconds::new)
}

pub fn names() -> impl Strategy<Value = DoorName> {
    lines().prop_filter_map("is not a door", |name| DoorName::new(name).ok())
}

fn doors() -> impl Strategy<Value = Door> {
    let reopen = select(vec![Reopen::Extend, Reopen::Run]);
    let times = (seconds(), seconds(), seconds());
    let looks = (flag_rules(), option::of(any::<IpAddr>()));
    (names(), keys(), times, looks, (commands(), commands()), reopen, counts()).prop_map(
        |(name, key, times, (tcp_flags, target), (start, stop), reopen, max_open)| {
            let mut door = Door::new(name, key);
            (door.seq_timeout, door.cmd_timeout, door.cooldown) = times;
            (door.tcp_flags, door.target) = (tcp_flags, target);
            door.action = Action::Commands { start, stop };
            (door.reopen, door.max_open) = (reopen, max_open);
            door
        },
    )
}

/// A number that is written 0 when there is none.
fn counts() -> impl Strategy<Value = Option<NonZeroU32>> {
    (0..=u32::MAX).prop_map(NonZeroU32::new)
}

fn positive() -> impl Strategy<Value = NonZeroU32> {
    (1..=u32::MAX).prop_map(|count| NonZeroU32::new(count).unwrap())
}

pub fn configs() -> impl Strategy<Value = Config> {
    let value = || option::of(values());
    let places = (value(), value(), value(), values(), value(), value());
    let scan_limit = (0..=ScanLimit::MAX).prop_map(ScanLimit::new);
    let limits = (positive(), positive(), positive(), counts(), scan_limit);
    let choices =
        (select(vec![OnExit::Close, OnExit::Keep]), select(vec![LogFormat::Classic, LogFormat::Json]));
    let options = (any::<bool>(), any::<bool>(), places, limits, choices).prop_map(
        |(use_syslog, wait_interface, places, limits, (on_exit, log_format))| {
            let mut options = Options::default();
            (options.use_syslog, options.wait_interface) = (use_syslog, wait_interface);
            (options.log_file, options.pid_file, options.interface) = (places.0, places.1, places.2);
            (options.state_dir, options.control_socket, options.metrics) = (places.3, places.4, places.5);
            (options.max_attempts, options.max_open, options.max_commands) = (limits.0, limits.1, limits.2);
            (options.command_limit, options.scan_limit) = (limits.3, limits.4);
            (options.on_exit, options.log_format) = (on_exit, log_format);
            options
        },
    );
    (options, vec(doors(), 0..4)).prop_map(|(options, doors)| Config { options, doors })
}
