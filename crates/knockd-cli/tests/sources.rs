//! How often one network can open a door.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::net::Ipv6Addr;

use common::{KNOCKD, Knockd, has_ipv6, send, wait_until};
use testbed::{Flags, Frame, Net};

#[test]
fn one_network_opens_a_door_32_times_and_others_still_get_in() {
    let net = Net::new().unwrap();
    if !has_ipv6(&net) {
        return;
    }
    let config = "[options]\nMaxOpen = 100\n[door]\nsequence = 7000\nstart_command = echo open %IP%\n\
                  cmd_timeout = 600\nstop_command = echo close %IP%\n";
    let mut knockd = Knockd::start(&net, config);
    let of = |network: u128, host: u128| {
        Frame::tcp(
            Ipv6Addr::from_bits(0x2001_0db8 << 96 | network << 64 | host),
            net.server.ipv6,
            7000,
            Flags::SYN,
        )
    };
    // The one-step door opens for each of them, as it would for somebody who knows a longer sequence.
    send(&net, &(1..=500).map(|host| of(1, host << 48 | host)).collect::<Vec<_>>());
    send(&net, &[of(2, 1), Frame::tcp([10, 9, 0, 2], net.server.ipv4, 7000, Flags::SYN)]);
    knockd.wait_for("open 10.9.0.2");
    wait_until("all are running", || knockd.count("running command: echo open") == 34);
    let refused = "door: stays closed: limit of 32 leases for one IPv6 /64 or IPv4 address reached";
    wait_until(refused, || knockd.count(refused) > 0);
    let of_network = knockd.count("running command: echo open 2001:db8:0:1:");
    assert_eq!((of_network, knockd.count("running command: echo open 2001:db8:0:2:")), (32, 1));
    let status: serde_json::Value =
        serde_json::from_str(&net.server.run(&[KNOCKD, "status", "--format", "json"]).unwrap()).unwrap();
    assert_eq!(status["leases"]["total"], 34);
}
