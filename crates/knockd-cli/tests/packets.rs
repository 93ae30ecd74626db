//! Which packets count as hits: crafted frames on a real cable.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use common::{Ear, Knockd, has_ipv6, knock, opened, sh, syn};
use testbed::{Flags, Frame, Net};

#[test]
fn tcp_flags_that_must_be_set_or_clear_decide_and_the_others_do_not() {
    let mut ear = Ear::new(
        "[syn]\nsequence = 1\ntcpflags = syn\n\
         [synack]\nsequence = 1\ntcpflags = syn,ack\n\
         [only]\nsequence = 1\ntcpflags = syn,!ack\n\
         [null]\nsequence = 1\ntcpflags = !fin,!syn,!rst,!psh,!ack,!urg\n\
         [xmas]\nsequence = 1\ntcpflags = fin,psh,urg\n\
         [any]\nsequence = 1\n",
    );
    let (from, to) = (ear.net.client.ipv4, ear.net.server.ipv4);
    let mut doors = |flags| {
        let opened = ear.opened(&[Frame::tcp(from, to, 1, flags)]);
        opened.into_iter().map(|line| line.replace("10.9.0.2: ", "")).collect::<Vec<_>>().join(" ")
    };
    let ecn = Flags(0xc2);
    let all = Flags(0x3f);
    assert_eq!(doors(Flags::SYN), "syn only any");
    assert_eq!(doors(ecn), "syn only any");
    assert_eq!(doors(Flags::SYN_ACK), "syn synack any");
    assert_eq!(doors(Flags::ACK), "any");
    assert_eq!(doors(Flags::FIN), "any");
    assert_eq!(doors(Flags::RST), "any");
    assert_eq!(doors(Flags(0)), "null any");
    assert_eq!(doors(Flags(0x29)), "xmas any");
    assert_eq!(doors(all), "syn synack xmas any");
}

#[test]
fn a_packet_with_other_flags_neither_advances_nor_spoils() {
    let mut ear = Ear::new("[door]\nsequence = 1,2,3\ntcpflags = syn\n");
    let (from, to) = (ear.net.client.ipv4, ear.net.server.ipv4);
    let frame = |port, flags| Frame::tcp(from, to, port, flags);
    let lines = ear.hear(&[
        frame(1, Flags::SYN),
        frame(2, Flags::ACK),
        frame(3, Flags::RST),
        frame(2, Flags::SYN),
        frame(1, Flags::FIN),
        frame(3, Flags::SYN),
    ]);
    let expected = ["door: Stage 1", "door: Stage 2", "door: Stage 3", "door: OPEN SESAME"]
        .map(|line| format!("10.9.0.2: {line}"));
    assert_eq!(lines, expected);
}

#[test]
fn udp_and_tcp_on_the_same_port_are_different_steps_and_payload_does_not_matter() {
    let mut ear = Ear::new("[tcp]\nsequence = 1:tcp\n[udp]\nsequence = 1:udp\ntcpflags = syn\n");
    let (from, to) = (ear.net.client.ipv4, ear.net.server.ipv4);
    let large = vec![7; 1400];
    for payload in [&b""[..], &[0], &large] {
        assert_eq!(ear.opened(&[Frame::udp(from, to, 1, payload)]), ["10.9.0.2: udp"]);
    }
    assert_eq!(ear.opened(&[Frame::tcp(from, to, 1, Flags::SYN)]), ["10.9.0.2: tcp"]);
}

#[test]
fn a_frame_of_a_vlan_is_not_seen_on_its_parent_and_a_priority_tag_is_looked_through() {
    let mut ear = Ear::new("[door]\nsequence = 1\n");
    let frame = syn(&ear.net, 2, 1);
    assert_eq!(ear.hear(&[frame.clone().vlan(5), frame.clone().vlan(4094)]), [""; 0]);
    assert_eq!(ear.opened(&[frame.vlan(0)]), ["10.9.0.2: door"]);
}

#[test]
fn headers_before_the_transport_are_walked_over() {
    let mut ear = Ear::new("[door]\nsequence = 1\n[udp]\nsequence = 2:udp\n");
    let options = syn(&ear.net, 2, 1).ipv4_options(&[1; 40]);
    assert_eq!(ear.opened(&[options]), ["10.9.0.2: door"]);
    if !has_ipv6(&ear.net) {
        return;
    }
    let (from, to) = (ear.net.client.ipv6, ear.net.server.ipv6);
    let tcp = Frame::tcp(from, to, 1, Flags::SYN);
    for frame in [
        tcp.clone(),
        tcp.clone().ipv6_extension(0),
        tcp.clone().ipv6_extension(60),
        tcp.clone().fragment(0, false),
        tcp.ipv6_extension(0).ipv6_extension(60).fragment(0, false),
    ] {
        assert_eq!(ear.opened(std::slice::from_ref(&frame)), ["fd00:9::2: door"], "{frame:?}");
    }
    assert_eq!(ear.opened(&[Frame::udp(from, to, 2, &[0]).ipv6_extension(0)]), ["fd00:9::2: udp"]);
}

#[test]
fn fragments_are_ignored() {
    let mut ear = Ear::new("[door]\nsequence = 1\n[udp]\nsequence = 1:udp\n");
    let mut frames = Vec::new();
    let mut ends: Vec<(IpAddr, IpAddr)> = vec![(ear.net.client.ipv4.into(), ear.net.server.ipv4.into())];
    if has_ipv6(&ear.net) {
        ends.push((ear.net.client.ipv6.into(), ear.net.server.ipv6.into()));
    }
    for (from, to) in ends {
        for (offset, more_follow) in [(0, true), (1, true), (100, false)] {
            frames.push(Frame::tcp(from, to, 1, Flags::SYN).fragment(offset, more_follow));
            frames.push(Frame::udp(from, to, 1, &[0]).fragment(offset, more_follow));
        }
    }
    assert_eq!(ear.hear(&frames), [""; 0]);
}

#[test]
fn frames_that_are_cut_off_anywhere_are_ignored_and_do_no_harm() {
    let mut ear = Ear::new("[tcp]\nsequence = 1\n[udp]\nsequence = 1:udp\n");
    let (server, client) = (&ear.net.server, &ear.net.client);
    let whole = [
        Frame::tcp(client.ipv4, server.ipv4, 1, Flags::SYN).ipv4_options(&[1; 8]),
        Frame::udp(client.ipv4, server.ipv4, 1, &[]),
        Frame::tcp(client.ipv6, server.ipv6, 1, Flags::SYN).ipv6_extension(0),
        Frame::udp(client.ipv6, server.ipv6, 1, &[]),
        Frame::tcp(client.ipv4, server.ipv4, 1, Flags::SYN).vlan(0),
    ]
    .map(|frame| frame.bytes().unwrap());
    // The kernel sends nothing shorter than an Ethernet header.
    let cuts = whole.iter().flat_map(|frame| (14..frame.len()).map(|length| frame[..length].to_vec()));
    assert_eq!(ear.hear_bytes(cuts.collect()), [""; 0]);
    let heard = opened(ear.hear_bytes(whole.to_vec()));
    let v6 = if has_ipv6(&ear.net) { &["fd00:9::2: tcp", "fd00:9::2: udp"][..] } else { &[] };
    assert_eq!(heard, [&["10.9.0.2: tcp", "10.9.0.2: udp"], v6, &["10.9.0.2: tcp"]].concat());
}

#[test]
fn every_source_has_attempts_of_its_own_whoever_sends_for_it() {
    let mut ear = Ear::new("[door]\nsequence = 1,2\n");
    let to = ear.net.server.ipv4;
    let from = |source: [u8; 4], port| Frame::tcp(source, to, port, Flags::SYN);
    let (one, other) = ([203, 0, 113, 1], [203, 0, 113, 2]);
    let lines = ear.hear(&[from(one, 1), from(other, 2), from(other, 1), from(one, 2), from(other, 2)]);
    let expected = [
        "203.0.113.1: door: Stage 1",
        "203.0.113.2: door: Stage 1",
        "203.0.113.1: door: Stage 2",
        "203.0.113.1: door: OPEN SESAME",
        "203.0.113.2: door: Stage 2",
        "203.0.113.2: door: OPEN SESAME",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn the_knockers_address_of_either_family_is_in_the_command() {
    let net = Net::new().unwrap();
    let config = "[door]\nsequence = 1,2:udp\ncommand = echo open for %IP%, yes %IP%\n\
                  [six]\nsequence = 3\ncommand = echo four %IP%\ncommand_6 = echo six %IP%\n\
                  [four]\nsequence = 4\ncommand = echo only four %IP%\ncommand_6 =\n";
    let mut knockd = Knockd::start(&net, config);
    knock(&net.client, "10.9.0.1 1:tcp 2:udp 3 4");
    knockd.wait_for("open for 10.9.0.2, yes 10.9.0.2");
    if has_ipv6(&net) {
        knock(&net.client, "fd00:9::1 1:tcp 2:udp 4 3");
        knockd.wait_for("door: running command: echo open for fd00:9::2, yes fd00:9::2");
        knockd.wait_for("fd00:9::2: four: OPEN SESAME");
        knockd.wait_for("six: running command: echo six fd00:9::2");
        assert_eq!(knockd.count("only four fd00"), 0);
    }
}

#[test]
fn ipv6_is_ignored_with_4() {
    let mut ear = Ear::with("[door]\nsequence = 1\n", &["-4", "-v"]);
    if has_ipv6(&ear.net) {
        let six = Frame::tcp(ear.net.client.ipv6, ear.net.server.ipv6, 1, Flags::SYN);
        assert_eq!(ear.hear(&[six]), [""; 0]);
    }
    let four = syn(&ear.net, 2, 1);
    assert_eq!(ear.opened(&[four]), ["10.9.0.2: door"]);
}

#[test]
fn a_target_is_hit_instead_of_the_own_addresses_and_need_not_be_local() {
    let mut ear = Ear::new("[behind]\nsequence = 1\ntarget = 203.0.113.7\n[own]\nsequence = 1\n");
    let own = syn(&ear.net, 2, 1);
    let behind = Frame::tcp(ear.net.client.ipv4, Ipv4Addr::new(203, 0, 113, 7), 1, Flags::SYN);
    let other = Frame::tcp(ear.net.client.ipv4, Ipv4Addr::new(203, 0, 113, 8), 1, Flags::SYN);
    let broadcast = Frame::udp(ear.net.client.ipv4, Ipv4Addr::BROADCAST, 1, &[]);
    assert_eq!(ear.opened(&[own, behind, other, broadcast]), ["10.9.0.2: own", "10.9.0.2: behind"]);

    // The same with a client that believes the server to be a router.
    sh(&ear.net.client, "ip route add 203.0.113.0/24 via 10.9.0.1");
    knock(&ear.net.client, "203.0.113.8 1");
    knock(&ear.net.client, "203.0.113.7 1");
    assert_eq!(ear.opened(&[]), ["10.9.0.2: behind"]);
}

#[test]
fn the_hosts_own_outgoing_packets_hit_a_target() {
    let net = Net::new().unwrap();
    let config =
        "[out]\nsequence = 1,2:udp\ntarget = 10.9.0.2\ntcpflags = syn\n[in]\nsequence = 1\ntcpflags = syn\n";
    let mut knockd = Knockd::start(&net, config);
    knock(&net.server, "10.9.0.2 1 2:udp");
    knockd.wait_for("10.9.0.1: out: OPEN SESAME");
    knock(&net.client, "10.9.0.1 1");
    knockd.wait_for("10.9.0.2: in: OPEN SESAME");
    assert_eq!(knockd.count("OPEN SESAME"), 2);
}

#[test]
fn on_the_loopback_interface_every_packet_counts_once() {
    let net = Net::new().unwrap();
    let config = "[door]\nsequence = 123:tcp,456:udp,789:tcp\ntcpflags = syn\n\
                  [thrice]\nsequence = 5:udp,5:udp,5:udp\n[six]\nsequence = 6:udp\n";
    let mut knockd = Knockd::start_with(&net, config, &["-v", "-i", "lo"]);
    knock(&net.server, "127.0.0.1 123:tcp 456:udp 789:tcp");
    knockd.wait_for("door: OPEN SESAME");
    let expected =
        ["Stage 1", "Stage 2", "Stage 3", "OPEN SESAME"].map(|what| format!("127.0.0.1: door: {what}"));
    assert_eq!(knockd.take_lines(), expected);

    knock(&net.server, "127.0.0.1 5:udp 5:udp");
    knock(&net.server, "::1 6:udp");
    knockd.wait_for("::1: six: OPEN SESAME");
    assert_eq!(knockd.count("thrice: Stage 2"), 1);
    assert_eq!(knockd.count("thrice: Stage 3"), 0);
}

#[test]
fn on_a_link_without_ethernet_headers_both_directions_are_heard() {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    if device.is_err() && !nix::unistd::geteuid().is_root() {
        // Most machines let everybody make such a link in a network of their own, but some containers do not.
        testbed::skip("/dev/net/tun cannot be opened");
        return;
    }
    let net = Net::new().unwrap();
    let _mirror = net.server.mirror(Duration::ZERO).unwrap();
    let config = "[out]\nsequence = 1,2:udp\ntarget = 10.8.0.2\ntcpflags = syn,!ack\n\
                  [in]\nsequence = 1,2:udp\ntcpflags = syn,!ack\n";
    let mut knockd = Knockd::start_with(&net, config, &["-v", "-i", "tun0"]);
    knock(&net.server, "10.8.0.2 1 2:udp");
    knockd.wait_for("10.8.0.1: out: OPEN SESAME");
    knockd.wait_for("10.8.0.2: in: OPEN SESAME");
    assert_eq!(knockd.count("OPEN SESAME"), 2);
}
