//! Properties of the configuration: printing and parsing are inverse, and no text confuses the parser.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod placement;

use std::net::IpAddr;
use std::num::NonZeroU32;

use knockd_core::config::{Action, Commands, Key, LogFormat, OnExit, Options, Parsed, Reopen, Severity};
use knockd_core::{
    CommandTemplate, Config, Door, DoorName, FlagRule, Protocol, Seconds, Sequence, Step, TcpFlags, Text,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// Text of one line.
fn lines() -> impl Strategy<Value = String> {
    let chars = prop_oneof![
        3 => select("aZ09/=#[]%IP,:!\"' \t\r\u{b}é\u{a0}\u{3000}\u{feff}".chars().collect::<Vec<_>>()),
        1 => any::<char>(),
    ];
    vec(chars.prop_filter("ends a line or is refused", |&c| c != '\n' && c != '\0'), 1..12)
        .prop_map(String::from_iter)
}

/// What can stand behind a `=`: white space around it is not part of it.
fn values() -> impl Strategy<Value = Text> {
    lines().prop_filter_map("means that there is none", |line| Text::new(line.trim()).ok())
}

fn commands() -> impl Strategy<Value = Commands> {
    let command = || lines().prop_map(|line| CommandTemplate::parse(&line));
    let both = command().prop_map(|command| command.map(Commands::both).unwrap_or_default());
    prop_oneof![
        both,
        (command(), command()).prop_map(|(v4, v6)| Commands { v4, v6 }),
        Just(Commands::default())
    ]
}

fn keys() -> impl Strategy<Value = Key> {
    let step = (any::<u16>(), any::<bool>()).prop_map(|(port, is_tcp)| Step {
        port,
        protocol: if is_tcp { Protocol::Tcp } else { Protocol::Udp },
    });
    let sequence = vec(step, 1..=Sequence::MAX_STEPS)
        .prop_map(|steps| Key::Sequence(Sequence::new(steps[0], steps[1..].to_vec()).unwrap()));
    prop_oneof![sequence, values().prop_map(Key::OneTime)]
}

fn flag_rules() -> impl Strategy<Value = FlagRule> {
    (any::<u8>(), any::<u8>()).prop_map(|(set, clear)| {
        FlagRule::ANY.and_set(TcpFlags::from_wire(set)).and_clear(TcpFlags::from_wire(clear))
    })
}

fn seconds() -> impl Strategy<Value = Seconds> {
    prop_oneof![Just(0), 0..100_u32, any::<u32>()].prop_map(Seconds::new)
}

fn doors() -> impl Strategy<Value = Door> {
    let names = lines().prop_filter_map("is not a door", |name| DoorName::new(name).ok());
    let reopen = select(vec![Reopen::Extend, Reopen::Run]);
    let times = (seconds(), seconds(), seconds());
    let looks = (flag_rules(), option::of(any::<IpAddr>()));
    (names, keys(), times, looks, (commands(), commands()), reopen, counts()).prop_map(
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

fn configs() -> impl Strategy<Value = Config> {
    let value = || option::of(values());
    let places = (value(), value(), value(), values(), value(), value());
    let scan_limit = (0..=Options::MAX_SCAN_LIMIT).prop_map(NonZeroU32::new);
    let limits = (positive(), positive(), positive(), seconds(), scan_limit);
    let choices =
        (select(vec![OnExit::Close, OnExit::Keep]), select(vec![LogFormat::Classic, LogFormat::Json]));
    let options = (any::<bool>(), any::<bool>(), places, limits, choices).prop_map(
        |(use_syslog, wait_interface, places, limits, (on_exit, log_format))| {
            let mut options = Options::default();
            (options.use_syslog, options.wait_interface) = (use_syslog, wait_interface);
            (options.log_file, options.pid_file, options.interface) = (places.0, places.1, places.2);
            (options.state_dir, options.control_socket, options.metrics) = (places.3, places.4, places.5);
            (options.max_attempts, options.max_open, options.max_commands) = (limits.0, limits.1, limits.2);
            options.command_limit = (!limits.3.is_zero()).then_some(limits.3);
            options.scan_limit = limits.4;
            (options.on_exit, options.log_format) = (on_exit, log_format);
            options
        },
    );
    (options, vec(doors(), 0..4)).prop_map(|(options, doors)| Config { options, doors })
}

/// Bytes that look like a configuration often enough to get far.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let words = b"[options]|[a]|[|]|[]|sequence|seq_timeout|Start_Command_6|target|tcpflags|logfile|UseSyslog|maxattempts\
        |one_time_sequences|reopen|seqence|=| = |= |\n|\n|\r\n|\r|\t| |#|1|7000|65536|8000:udp|,|:|!|syn|192.0.2.1|run|\0|\xff\
        |\xc3\xa9|\xc2\xa0|\xe3\x80\x80|\xef\xbb\xbf|\x0b";
    let words: Vec<_> = words.split(|&byte| byte == b'|').collect();
    let piece = prop_oneof![9 => select(words).prop_map(<[u8]>::to_vec), 1 => vec(any::<u8>(), 1..4)];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_printed_config_parses_back_equal(config in configs()) {
        let text = config.to_string();
        let parsed = Config::parse(text.as_bytes()).map(|parsed| parsed.config);
        prop_assert_eq!(parsed, Ok(config), "{}", text);
    }

    #[test]
    fn what_is_parsed_prints_as_something_that_parses_equal(text in texts()) {
        if let Ok(Parsed { config, .. }) = Config::parse(&text) {
            let again = Config::parse(config.to_string().as_bytes()).map(|parsed| parsed.config);
            prop_assert_eq!(again, Ok(config));
        }
    }

    #[test]
    fn every_finding_about_any_text_points_into_it_in_file_order(text in texts()) {
        let (findings, is_usable) = match Config::parse(&text) {
            Ok(parsed) => (parsed.warnings, true),
            Err(error) => (error.findings, false),
        };
        placement::check(&findings, &text);
        let has_errors = findings.iter().any(|finding| finding.severity == Severity::Error);
        prop_assert_eq!(has_errors, !is_usable);
    }
}
