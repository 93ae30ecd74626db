//! Whatever has a text form is read back equal from it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub, reason = "tests")]

mod values;

use std::fmt::{Debug, Display};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use knockd_core::config::{AtEnd, Code, LogFormat, OnExit, Reopen, Severity};
use knockd_core::{
    Access, CommandLine, LeaseId, LeaseKey, LeaseRecord, Milliseconds, ProcessId, Protocol, StartState,
    TcpFlags, UnixTime,
};
use proptest::prelude::*;
use values::{configs, flag_rules, lines, names, seconds, sequences, steps, templates, values};

fn check<T: FromStr<Err: Debug + PartialEq> + Display + Debug + PartialEq>(
    value: T,
) -> Result<(), TestCaseError> {
    let text = value.to_string();
    prop_assert_eq!(text.parse(), Ok(value), "{}", text);
    Ok(())
}

fn command_lines() -> impl Strategy<Value = CommandLine> {
    lines().prop_filter_map("is blank", |line| CommandLine::new(line).ok())
}

/// Any length of time that a caller may hand over, the longest included.
fn times() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(seconds, rest)| Duration::new(seconds, rest)),
        (0..100_000_u64).prop_map(Duration::from_micros),
        Just(Duration::MAX),
    ]
}

fn start_states() -> impl Strategy<Value = StartState> {
    let process = any::<(u32, u64, u64, u128)>().prop_map(|(number, started, namespace, boot)| ProcessId {
        number,
        started,
        namespace,
        boot,
    });
    prop_oneof![Just(StartState::Ended), proptest::option::of(process).prop_map(StartState::Running)]
}

fn records() -> impl Strategy<Value = LeaseRecord> {
    let commands = (command_lines(), command_lines());
    let commands = commands.prop_map(|(start, stop)| Access::Commands { start, stop });
    let access = prop_oneof![commands, Just(Access::Firewall), Just(Access::Network)];
    let state = (any::<bool>(), start_states(), any::<Option<u128>>());
    (any::<u64>(), names(), any::<IpAddr>(), access, (times(), times()), state).prop_map(
        |(id, door, source, access, (cmd_timeout, until), (failed, start, boot))| LeaseRecord {
            id: LeaseId(id),
            key: Arc::new(LeaseKey { door, source, access }),
            cmd_timeout: Milliseconds::new(cmd_timeout),
            until: UnixTime::new(until),
            failed,
            start,
            boot,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn steps_and_flags_are_read_back_equal(
        step in steps(),
        sequence in sequences(),
        flags: u8,
        rule in flag_rules(),
    ) {
        check(step)?;
        check(sequence)?;
        check(TcpFlags::from_wire(flags))?;
        check(rule)?;
    }

    #[test]
    fn names_and_commands_are_read_back_equal(
        name in names(),
        value in values(),
        template in templates(),
        command in command_lines(),
    ) {
        check(name)?;
        check(value)?;
        template.map_or(Ok(()), check)?;
        check(command)?;
    }

    #[test]
    fn a_template_that_is_filled_in_is_read_back_as_a_command(template in templates(), source: IpAddr) {
        template.map_or(Ok(()), |template| check(template.expand(source)))?;
    }

    #[test]
    fn times_are_read_back_equal(seconds in seconds(), time in times()) {
        check(seconds)?;
        check(UnixTime::new(time))?;
        check(Milliseconds::new(time))?;
    }

    #[test]
    fn a_configuration_is_read_back_equal(config in configs()) {
        check(config)?;
    }

    #[test]
    fn a_stored_lease_is_read_back_equal_by_whoever_knows_its_name(record in records()) {
        prop_assert_eq!(LeaseRecord::parse(record.id, &record.to_string()), Ok(record));
    }
}

#[test]
fn every_word_is_read_back_equal() {
    [Protocol::Tcp, Protocol::Udp].into_iter().try_for_each(check).unwrap();
    [Severity::Note, Severity::Warning, Severity::Error].into_iter().try_for_each(check).unwrap();
    [OnExit::Close, OnExit::Keep].into_iter().try_for_each(check).unwrap();
    [LogFormat::Classic, LogFormat::Json].into_iter().try_for_each(check).unwrap();
    [Reopen::Extend, Reopen::Run].into_iter().try_for_each(check).unwrap();
    [AtEnd::Keep, AtEnd::Cut].into_iter().try_for_each(check).unwrap();
    Code::ALL.iter().copied().try_for_each(check).unwrap();
    assert!("closes".parse::<OnExit>().is_err() && "".parse::<Code>().is_err());
}

#[test]
fn every_error_is_one() {
    fn text(result: Result<(), impl std::error::Error + Send + Sync + 'static>) -> String {
        result.unwrap_err().to_string()
    }
    let messages = [
        text("1,".parse::<knockd_core::Sequence>().map(drop)),
        text("[a]".parse::<knockd_core::Config>().map(drop)),
        text("".parse::<knockd_core::Text>().map(drop)),
        text("".parse::<CommandLine>().map(drop)),
        text("never".parse::<OnExit>().map(drop)),
        text("-1".parse::<UnixTime>().map(drop)),
        text(knockd_core::config::ScanLimit::try_from(65).map(drop)),
        text(LeaseRecord::parse(LeaseId(1), "").map(drop)),
        text(Err(knockd_core::Full::Door)),
    ];
    assert!(messages.iter().all(|message| !message.is_empty()), "{messages:?}");
}
