//! Properties of the leases: whatever happens, every start command is followed by its stop command.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

mod caller;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use caller::{Caller, Op};
use knockd_core::LeaseId;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

fn ops() -> impl Strategy<Value = Op> {
    let sources = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|text| text.parse().unwrap());
    let names = || select(vec!["a", "b", "c", "d", "e", "f", "unknown"]);
    let someone = proptest::option::of(select(sources.to_vec()));
    let time = proptest::option::of((0..20_u64).prop_map(Duration::from_secs));
    prop_oneof![
        20 => (0..4000_u64).prop_map(|milliseconds| Op::Wait(Duration::from_millis(milliseconds))),
        40 => (any::<Index>(), select(sources.to_vec())).prop_map(|(door, source)| Op::Knock { door, source }),
        40 => (any::<usize>(), any::<bool>()).prop_map(|(which, succeeded)| Op::Exit { which, succeeded }),
        10 => (names(), someone).prop_map(|(name, source)| Op::Close { name, source }),
        10 => (names(), select(sources.to_vec()), time)
            .prop_map(|(name, source, time)| Op::Extend { name, source, time }),
        10 => Just(Op::Timeout),
        20 => Just(Op::TimeoutWhenDue),
        1 => Just(Op::CloseAll),
        2 => Just(Op::Restart),
    ]
}

/// What many hosts of one network do at every door, and one host of another network now and then.
fn crowd() -> impl Strategy<Value = Op> {
    let members = (0..60_u16).prop_map(|host| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, host, 1]));
    let sources = prop_oneof![
        8 => members,
        1 => Just([0x2001, 0xdb8, 0, 2, 0, 0, 0, 1].into()),
        1 => Just([192, 0, 2, 1].into()),
    ];
    prop_oneof![
        100 => (any::<Index>(), sources).prop_map(|(door, source)| Op::Knock { door, source }),
        10 => (any::<usize>(), any::<bool>()).prop_map(|(which, succeeded)| Op::Exit { which, succeeded }),
        5 => (0..1000_u64).prop_map(|milliseconds| Op::Wait(Duration::from_millis(milliseconds))),
        5 => Just(Op::TimeoutWhenDue),
        1 => Just(Op::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_lease_ends_with_its_stop_command(ops in vec(ops(), 0..120), stops_succeed in any::<bool>()) {
        let mut caller = Caller::default();
        for op in &ops {
            caller.do_op(op);
        }
        // A shutdown leaves failed stop commands to the next start.
        if caller.closing {
            caller.do_op(&Op::Restart);
        }
        // From now on nobody knocks, every command ends and time passes.
        let mut rounds = 0;
        while !caller.leases.is_empty() || !caller.running.is_empty() {
            while !caller.running.is_empty() {
                caller.do_op(&Op::Exit { which: 0, succeeded: stops_succeed });
            }
            caller.do_op(&Op::TimeoutWhenDue);
            rounds += 1;
            prop_assert!(rounds < 10_000, "it never ends");
        }
        prop_assert!(caller.has_closed_all());
    }

    #[test]
    fn no_network_has_more_leases_of_a_door_than_its_limit(ops in vec(crowd(), 0..400)) {
        let mut caller = Caller::new(NonZeroU32::new(120).unwrap());
        for op in &ops {
            caller.do_op(op);
        }
    }

    #[test]
    fn the_end_of_an_unknown_command_changes_nothing(ops in vec(ops(), 0..60), succeeded in any::<bool>()) {
        let mut caller = Caller::default();
        for op in &ops {
            caller.do_op(op);
            for id in (0..30).map(LeaseId).filter(|id| caller.running.iter().all(|run| run.id != *id)) {
                prop_assert_eq!(caller.leases.handle_exit(id, succeeded, caller.both_clocks()), []);
            }
            caller.check();
        }
    }
}
