//! With the feature `serde`: whatever is serialized is read back equal, in a form that a person would write.
#![cfg(feature = "serde")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub, reason = "tests")]

mod values;

use std::fmt::Debug;
use std::time::Duration;

use knockd_core::config::{LogFormat, OnExit, Reopen, ScanLimit};
use knockd_core::{
    Burn, Config, ConfigError, DoorId, Effect, Event, EventKind, Gate, Hit, LeaseFilter, LeaseId, LeaseState,
    LocalPorts, Now, OneTime, OneTimeFiles, OpeningResult, Outcome, Packet, Run, Seed, Step, TcpFlags, Text,
    Timestamp, UnixTime, Visibility,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json, to_value};
use values::{configs, flag_rules, lines, names, seconds, sequences, steps, templates, values};

fn check<T: Serialize + DeserializeOwned + Debug + PartialEq>(value: &T) -> Result<(), TestCaseError> {
    let text = serde_json::to_string(value).unwrap();
    prop_assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), value, "{}", text);
    Ok(())
}

/// The value has this form, and is read from it.
fn has_form<T: Serialize + DeserializeOwned + Debug + PartialEq>(value: &T, form: Value) {
    assert_eq!(to_value(value).unwrap(), form);
    assert_eq!(from_value::<T>(form).unwrap(), *value);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_configuration_survives_and_so_does_all_that_it_is_made_of(
        config in configs(),
        parts in (names(), values(), templates(), lines()),
        matching in (steps(), sequences(), flag_rules(), any::<u8>()),
        time in seconds(),
    ) {
        check(&config)?;
        check(&parts)?;
        check(&(matching.0, matching.1, matching.2, TcpFlags::from_wire(matching.3)))?;
        check(&time)?;
    }

    #[test]
    fn ports_in_use_survive_in_any_order(first: u16, udp: Vec<u16>, tcp: Vec<u16>) {
        let sockets = udp.iter().copied().map(Step::udp).chain(tcp.iter().copied().map(Step::tcp));
        let ports = LocalPorts::new(first, sockets);
        check(&ports)?;
        let by_hand = json!({ "ephemeral_from": first, "udp": udp, "tcp": tcp });
        prop_assert_eq!(from_value::<LocalPorts>(by_hand).unwrap(), ports);
    }
}

#[test]
fn whatever_a_gate_says_and_shows_survives() {
    let config: Config = "
[door]
sequence = 1,2
start_command = open %IP%
stop_command = close %IP%
[once]
one_time_sequences = list
command = once
"
    .parse()
    .unwrap();
    let list = (Text::new("list").unwrap(), OneTime::parse(b"5\n"));
    let mut gate = Gate::new(config, OneTimeFiles::from([list]), Seed::new(1, 2));
    let (own, source) = ([192, 0, 2, 1].into(), [203, 0, 113, 7].into());
    let mut now = Now::default();
    gate.set_addresses([own]);
    let mut outcomes: Vec<Outcome> =
        gate.set_local_ports(LocalPorts::new(32768, [Step::udp(53), Step::tcp(80)])).collect();
    for port in [1, 2, 5] {
        let hit = Hit::Tcp { port, flags: TcpFlags::SYN };
        let packet = Packet::incoming(source, own, hit);
        check(&packet).unwrap();
        outcomes.extend(gate.handle_packet(&packet, now));
        for attempt in gate.attempts() {
            check(&attempt).unwrap();
        }
    }
    let run = |outcome: &Outcome| match outcome {
        Outcome::Effect(Effect::Run(Run { id, .. })) => Some(*id),
        _ => None,
    };
    let id = outcomes.iter().find_map(run).unwrap();
    let burn = |outcome: &Outcome| match outcome {
        Outcome::Effect(Effect::Burn(Burn { id, .. })) => Some(*id),
        _ => None,
    };
    let burn = outcomes.iter().find_map(burn).unwrap();
    outcomes.extend(gate.handle_burnt(burn, Ok(()), now));
    outcomes.extend(gate.handle_exit(id, true, now));
    outcomes.extend(gate.extend(&LeaseFilter::default(), Some(Duration::from_secs(60)), now));
    check(&now).unwrap();
    now.monotonic = gate.poll_timeout().unwrap();
    outcomes.extend(gate.handle_timeout(now));
    outcomes.extend(gate.handle_exit(id, true, now));
    for port in 100..111 {
        let hit = Hit::Tcp { port, flags: TcpFlags::SYN };
        outcomes.extend(gate.handle_packet(&Packet::incoming(source, own, hit), now));
    }
    for kind in ["attempt", "scanner", "opening", "effect", "used_up", "wanted"] {
        let is_kind = |outcome: &Outcome| to_value(outcome).unwrap().get(kind).is_some();
        assert!(outcomes.iter().any(is_kind), "{kind} in {outcomes:#?}");
    }
    for outcome in &outcomes {
        check(outcome).unwrap();
    }
    check(&LeaseState::Retrying { again: Timestamp::ZERO, failures: 2 }).unwrap();
    check(&LeaseState::Closing).unwrap();
}

#[test]
fn forms_are_such_as_a_person_would_write() {
    has_form(&OnExit::Keep, json!("keep"));
    has_form(&LogFormat::Json, json!("json"));
    has_form(&Reopen::Run, json!("run"));
    has_form(&ScanLimit::new(10), json!(10));
    has_form(&EventKind::TimedOut(3), json!({ "timed_out": 3 }));
    has_form(&EventKind::Opened, json!("opened"));
    has_form(&Visibility::NoDoorsPort, json!("no_doors_port"));
    has_form(&Visibility::WrongProtocol(DoorId::new(2)), json!({ "wrong_protocol": 2 }));
    has_form(&OpeningResult::NothingToRun, json!("nothing_to_run"));
    has_form(&Outcome::Effect(Effect::Forget(LeaseId(7))), json!({ "effect": { "forget": 7 } }));
    has_form(&UnixTime::new(Duration::from_secs(1)), json!(1000));
    has_form(&Hit::Tcp { port: 7, flags: TcpFlags::SYN }, json!({ "tcp": { "port": 7, "flags": "syn" } }));
    let form = json!({ "source": "192.0.2.7", "door": 1, "kind": { "stage": 2 } });
    let door = knockd_core::DoorId::new(1);
    has_form(&Event { source: [192, 0, 2, 7].into(), door, kind: EventKind::Stage(2) }, form);
    let error: ConfigError = "[a]".parse::<Config>().unwrap_err();
    let finding = to_value(&error.findings[0]).unwrap();
    assert_eq!((&finding["severity"], &finding["code"]), (&json!("error"), &json!("invalid")));
    check(&error.findings).unwrap();
}

#[test]
fn a_configuration_can_leave_out_what_has_a_default_and_nothing_is_misspelt_in_silence() {
    let written = json!({
        "options": { "scan_limit": 5 },
        "doors": [{
            "name": "ssh",
            "key": { "sequence": "1,2:udp" },
            "action": { "commands": { "start": { "v4": "open %IP%" }, "stop": {} } },
        }],
    });
    let parsed: Config =
        "[options]\nScanLimit = 5\n[ssh]\nsequence = 1,2:udp\nstart_command = open %IP%\nstart_command_6 =\n"
            .parse()
            .unwrap();
    assert_eq!(from_value::<Config>(written.clone()).unwrap(), parsed);
    for (path, value) in [
        ("/options/scan_limit", json!(65)),
        ("/options/scan_limit", json!(0)),
        ("/options", json!({ "scanlimit": 5 })),
        ("/doors/0/name", json!("options")),
        ("/doors/0/key", json!({ "sequence": "" })),
        ("/doors/0", json!({ "name": "a", "key": { "sequence": "1" }, "targt": "192.0.2.1" })),
        ("/doors/0/action/commands/start", json!({ "v4": "two\nlines" })),
    ] {
        let mut wrong = written.clone();
        *wrong.pointer_mut(path).unwrap() = value;
        assert!(from_value::<Config>(wrong).is_err(), "{path}");
    }
}
