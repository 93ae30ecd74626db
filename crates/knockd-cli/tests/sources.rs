//! Who can knock at all, and how often one network can open a door.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::net::{IpAddr, Ipv6Addr};

use common::{Ear, KNOCKD, Knockd, has_ipv6, knock, send, sh, wait_until};
use testbed::{Flags, Frame, Net, Running};

const DOOR: &str = "[door]\nsequence = 7000\n";

fn from(source: &str, ear: &Ear) -> Frame {
    let source: IpAddr = source.parse().unwrap();
    let server = &ear.net.server;
    let destination = if source.is_ipv4() { IpAddr::from(server.ipv4) } else { server.ipv6.into() };
    Frame::tcp(source, destination, 7000, Flags::SYN)
}

#[test]
fn addresses_that_no_host_has_open_no_door_and_trace_says_why() {
    let mut ear = Ear::new(DOOR);
    let trace = Running::start(ear.net.server.command(KNOCKD).arg("trace")).unwrap();
    wait_until("it listens", || !trace.lines().is_empty());
    let mut sources = vec![
        ("0.0.0.0", "unspecified source address"),
        ("0.1.2.3", "unspecified source address"),
        ("127.0.0.1", "loopback source address on another interface"),
        ("224.0.0.251", "multicast source address"),
        ("240.0.0.1", "reserved or broadcast source address"),
        ("255.255.255.255", "reserved or broadcast source address"),
        ("10.9.0.1", "comes from elsewhere with a local source address"),
    ];
    if has_ipv6(&ear.net) {
        sources.extend([
            ("::", "unspecified source address"),
            ("::1", "loopback source address on another interface"),
            ("ff02::1", "multicast source address"),
            ("::ffff:203.0.113.7", "source is an IPv4 address written as an IPv6 one"),
            ("::203.0.113.7", "source is an IPv4 address written as an IPv6 one"),
            ("fd00:9::1", "comes from elsewhere with a local source address"),
        ]);
    }
    let frames: Vec<_> = sources.iter().map(|(source, _)| from(source, &ear)).collect();
    assert_eq!(ear.opened(&frames), [""; 0]);
    assert_eq!(ear.opened(&[from("203.0.113.7", &ear)]), ["203.0.113.7: door"]);
    for (source, why) in sources {
        let destination = if source.contains(':') { "fd00:9::1" } else { "10.9.0.1" };
        let source: IpAddr = source.parse().unwrap();
        let told = format!(" {source} to {destination}, 7000:tcp (syn)\n    ignored: {why}\n");
        wait_until(&told, || {
            let lines = trace.lines().into_iter().map(|line| line.text + "\n");
            lines.collect::<String>().contains(&told)
        });
    }
}

#[test]
fn forged_strays_in_the_name_of_the_host_do_not_keep_it_from_knocking_at_a_target() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &format!("{DOOR}[out]\nsequence = 8000\ntarget = 10.9.0.2\n"));
    let stray = |port| Frame::tcp(net.server.ipv4, net.server.ipv4, port, Flags::SYN);
    send(&net, &(100..150).map(stray).collect::<Vec<_>>());
    knock(&net.server, "10.9.0.2 8000");
    knockd.wait_for("10.9.0.1: out: OPEN SESAME");
}

#[test]
fn a_frame_for_another_machine_counts_only_for_a_target_that_is_no_local_address() {
    let net = Net::new().unwrap();
    sh(&net.server, "ip link set eth0 promisc on");
    let config = "[own]\nsequence = 7000\n[local_target]\nsequence = 7001\ntarget = 10.9.0.1\n\
                  [other_target]\nsequence = 7002\ntarget = 10.9.0.77\n";
    let mut ear = Ear::of(net, config, &["-v"]);
    let frames = |macs: bool| {
        [("10.9.0.1", 7000), ("10.9.0.1", 7001), ("10.9.0.77", 7002)].map(|(to, port)| {
            let frame = Frame::tcp([10, 9, 0, 2], to.parse::<IpAddr>().unwrap(), port, Flags::SYN);
            if macs { frame.macs([2, 0, 0, 0, 9, 2], [2, 0, 0, 0, 9, 77]) } else { frame }
        })
    };
    assert_eq!(ear.opened(&frames(true)), ["10.9.0.2: other_target"]);
    let all = ["10.9.0.2: own", "10.9.0.2: local_target", "10.9.0.2: other_target"];
    assert_eq!(ear.opened(&frames(false)), all);
}

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
    let refused = "door: stays closed: lease limit (32) for one IPv6 /64 or IPv4 address reached";
    wait_until(refused, || knockd.count(refused) > 0);
    let of_network = knockd.count("running command: echo open 2001:db8:0:1:");
    assert_eq!((of_network, knockd.count("running command: echo open 2001:db8:0:2:")), (32, 1));
    assert_eq!(common::status_json(&net)["leases"]["total"], 34);
}
