//! Whether a knock says rightly what became of it, with a real knockd behind real firewalls.
//!
//! Bounds of time are those that `knock` promises, and a minute for a busy machine.
#![cfg(target_os = "linux")]
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, missing_docs, reason = "tests")]

mod lab;

use std::time::Duration;

use lab::{COMMAND, FIREWALL, NATIVE, SOON, is_root, knock, knockd, nft, on_terminal, run, service, sh};
use nix::sys::signal::Signal;
use testbed::Net;

const RIGHT: &str = "10.9.0.1 7101 8202:udp 9303";
const WRONG: &str = "10.9.0.1 7101 8202:udp 9304";
/// As short as a verdict can be.
const QUICK: &str = "--verify tcp/22 --retries 0 --timeout 0.5";

#[test]
fn a_door_that_opens_is_opened_whether_a_firewall_or_a_command_opens_it() {
    if !is_root() {
        return;
    }
    let rejecting = format!("{NATIVE}Closed = reject\n");
    for (config, firewall) in [(NATIVE, ""), (&rejecting, ""), (COMMAND, FIREWALL)] {
        let net = Net::new().unwrap();
        nft(&net.server, firewall);
        let _service = service(&net.server);
        let _knockd = knockd(&net, config);
        let ended = knock(&net.client, &format!("{RIGHT} --verify tcp/22 --format json"));
        assert_eq!((ended.code, ended.json("verdict")), (0, "opened".into()), "{ended:?}");
        assert_eq!(ended.json("address"), "10.9.0.1");
        assert_eq!(ended.json("source"), "10.9.0.2");
        assert_eq!(ended.json("service"), "tcp/22");
        assert!(ended.json("seconds").as_f64().unwrap() < 13.0, "{ended:?}");
        assert_eq!(ended.stderr, "");
        // In a pipe, what went well says nothing.
        let ended = knock(&net.client, &format!("{RIGHT} --verify 22"));
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "", ""), "{ended:?}");
    }
}

#[test]
fn a_service_that_answers_before_the_knock_was_already_open() {
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    let ended = knock(&net.client, &format!("{WRONG} --verify tcp/22 --format json"));
    assert_eq!((ended.code, ended.json("verdict")), (0, "already_open".into()), "{ended:?}");
    // However near the host is, and although the next connection is begun before the answer is looked at.
    for _ in 0..50 {
        let ended = knock(&net.client, "10.9.0.1 7101 --verify tcp/22 --format json");
        assert_eq!(ended.json("verdict"), "already_open", "{ended:?}");
    }
    let ended = knock(&net.client, &format!("{WRONG} -v --verify tcp/22"));
    assert_eq!(ended.stderr, "10.9.0.1: tcp/22 was already open (10.9.0.1 from 10.9.0.2)\n");
}

#[test]
fn a_door_that_opens_while_the_knock_still_waits_was_not_already_open() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    let _knockd = knockd(&net, NATIVE);
    // The first SYN would be repeated 200 ms after the last hit, during the delay that follows that.
    let ended = knock(&net.client, &format!("{RIGHT} -d 400 --verify tcp/22 --format json"));
    assert_eq!((ended.code, ended.json("verdict")), (0, "opened".into()), "{ended:?}");
    assert!(ended.json("seconds").as_f64().unwrap() >= 0.4, "{ended:?}");
}

#[test]
fn a_knock_of_which_a_hit_is_lost_is_sent_again() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    let _knockd = knockd(&net, NATIVE);
    lose_one_hit(&net);
    let ended = knock(&net.client, &format!("{RIGHT} --verify tcp/22 --timeout 1 --retries 9 --format json"));
    assert_eq!((ended.code, ended.json("verdict")), (0, "opened".into()), "{ended:?}");
    assert!(ended.json("knocks").as_u64().unwrap() >= 2, "{ended:?}");
}

/// Drops the first SYN to the last port of the sequence, which is 60 bytes long.
fn lose_one_hit(net: &Net) {
    let rules = "table ip lossy { chain out { type filter hook output priority 0;\n\
                 tcp dport 9303 quota until 61 bytes drop\n}\n}\n";
    nft(&net.client, rules);
}

#[test]
fn a_wrong_knock_ends_still_closed_in_time_with_the_command_that_tells_why() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    let _knockd = knockd(&net, NATIVE);
    let ended = knock(&net.client, &format!("{WRONG} --verify tcp/22 --retries 2 --timeout 1"));
    assert_eq!((ended.code, ended.stdout.as_str()), (3, ""), "{ended:?}");
    assert_eq!(
        ended.stderr,
        "knock: 10.9.0.1: tcp/22 is still closed after 3 knocks: no answer from 10.9.0.1; the knock may be wrong or \
         lost on the way, or the door opens for another address than this one; on the server, run: knockd trace 10.9.0.2\n"
    );
    // Three times a second, and pauses of one and two.
    assert!(ended.took >= Duration::from_secs(6), "{ended:?}");
    assert!(ended.took < Duration::from_secs(6) + SOON, "{ended:?}");
}

#[test]
fn a_service_that_refuses_is_still_closed_because_it_refuses() {
    let net = Net::new().unwrap();
    let ended = knock(&net.client, &format!("{WRONG} {QUICK}"));
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.stderr.contains("after 1 knock: connection refused by 10.9.0.1; "), "{ended:?}");
}

#[test]
fn a_firewall_that_rejects_is_still_closed_with_what_it_says_whatever_it_says() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    // Otherwise the kernel soon keeps to one message a second.
    sh(
        &net.server,
        "cd /proc/sys/net; echo 0 >ipv4/icmp_ratelimit; test ! -e ipv6/icmp || echo 0 >ipv6/icmp/ratelimit",
    );
    let codes = [
        ("10.9.0.1", "icmp type net-unreachable", "(network unreachable)"),
        ("10.9.0.1", "icmp type host-unreachable", "(host unreachable)"),
        ("10.9.0.1", "icmp type prot-unreachable", "(protocol unreachable)"),
        ("10.9.0.1", "icmp type port-unreachable", "(port unreachable)"),
        ("10.9.0.1", "icmp type net-prohibited", "(network prohibited)"),
        ("10.9.0.1", "icmp type host-prohibited", "(host prohibited)"),
        ("10.9.0.1", "icmp type admin-prohibited", "(administratively prohibited)"),
        ("10.9.0.1", "tcp reset", "connection refused by 10.9.0.1"),
        ("fd00:9::1", "icmpv6 type no-route", "(no route)"),
        ("fd00:9::1", "icmpv6 type admin-prohibited", "(administratively prohibited)"),
        ("fd00:9::1", "icmpv6 type addr-unreachable", "(address unreachable)"),
        ("fd00:9::1", "icmpv6 type port-unreachable", "(port unreachable)"),
        ("fd00:9::1", "tcp reset", "connection refused by fd00:9::1"),
    ];
    for (host, with, said) in codes {
        if host.contains(':') && !net.has_ipv6() {
            continue;
        }
        reject(&net, with);
        let ended = knock(&net.client, &format!("{host} 7101 {QUICK}"));
        assert_eq!(ended.code, 3, "{with}: {ended:?}");
        assert!(ended.stderr.contains(said), "{with}: {ended:?}");
        let is_by_firewall = ended.stderr.contains(&format!("rejected by the firewall of {host} "));
        assert!(is_by_firewall || with == "tcp reset", "{with}: {ended:?}");
        assert!(ended.took < SOON, "{with}: {ended:?}");
    }
    // All of that is no verdict before the time is over: a door may open that is rejected at first.
    reject(&net, "icmp type admin-prohibited");
    let mut client = net.client.spawn(&[
        lab::KNOCK,
        "10.9.0.1",
        "7101",
        "--verify",
        "22",
        "--format",
        "json",
        "--retries",
        "9",
    ]);
    let client = client.as_mut().unwrap();
    sh(&net.server, "nft flush ruleset");
    client.wait_for_line("\"verdict\":\"", SOON).unwrap();
    assert!(client.wait(SOON).unwrap().success());
}

fn reject(net: &Net, with: &str) {
    let family = if with.starts_with("icmp ") { "ip" } else { "inet" };
    let rules = format!(
        "flush ruleset\ntable {family} filter {{ chain input {{ type filter hook input priority 0;\n\
         tcp dport 22 reject with {with}\n}}\n}}\n"
    );
    nft(&net.server, &rules);
}

#[test]
fn a_router_that_knows_no_way_makes_a_host_unreachable_and_one_that_prohibits_leaves_it_closed() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let stranger = net.stranger().unwrap();
    sh(&net.server, "echo 1 >/proc/sys/net/ipv4/ip_forward");
    sh(&stranger.host, "ip route add 10.9.0.0/24 via 10.9.1.1");
    for (with, code, said) in [
        (
            "net-unreachable",
            4,
            "knock: 10.9.0.2: cannot reach 10.9.0.2: 10.9.1.1 reports network unreachable\n",
        ),
        (
            "host-unreachable",
            4,
            "knock: 10.9.0.2: cannot reach 10.9.0.2: 10.9.1.1 reports host unreachable\n",
        ),
        ("admin-prohibited", 3, "rejected by a firewall at 10.9.1.1 (administratively prohibited); "),
    ] {
        let rules = format!(
            "flush ruleset\ntable ip filter {{ chain forward {{ type filter hook forward priority 0;\n\
             reject with icmp type {with}\n}}\n}}\n"
        );
        nft(&net.server, &rules);
        let ended = knock(&stranger.host, "10.9.0.2 7101 --verify 22 --retries 0 --timeout 3");
        assert_eq!(ended.code, code, "{with}: {ended:?}");
        assert!(ended.stderr.contains(said), "{with}: {ended:?}");
    }
}

#[test]
fn without_a_network_a_host_is_unreachable_at_once_and_the_reason_is_said_once() {
    let net = Net::new().unwrap();
    // The usual retries and timeouts would take twelve seconds.
    let ended = knock(&net.client, "203.0.113.1 7101 8202:udp 9303 --verify tcp/22 --retries 100");
    assert_eq!(
        ended.stderr,
        "knock: 203.0.113.1: cannot reach 203.0.113.1: Network is unreachable; is the network up?\n"
    );
    assert_eq!(ended.code, 4, "{ended:?}");
    assert!(ended.took < SOON, "{ended:?}");
}

#[test]
fn an_address_of_the_local_network_at_which_nobody_is_is_unreachable() {
    let net = Net::new().unwrap();
    let ended = knock(&net.client, "10.9.0.77 7101 --verify tcp/22 --timeout 2");
    assert_eq!(
        ended.stderr,
        "knock: 10.9.0.77: cannot reach 10.9.0.77: no answer in the local network; is it switched on?\n"
    );
    assert_eq!(ended.code, 4, "{ended:?}");
    assert!(ended.took < Duration::from_secs(9) + SOON, "{ended:?}");
}

#[test]
fn over_both_families_the_one_that_works_gives_the_verdict() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    if !net.has_ipv6() {
        testbed::skip("IPv6 is switched off in the kernel");
        return;
    }
    sh(&net.client, "echo '10.9.0.1 gate\nfd00:9::1 gate' >/run/hosts; mount --bind /run/hosts /etc/hosts");
    let _service = service(&net.server);
    for (broken, works) in [("ip6", "10.9.0.1"), ("ip", "fd00:9::1")] {
        let mut knockd = knockd(&net, NATIVE);
        let drop = format!(
            "table {broken} broken {{ chain out {{ type filter hook prerouting priority -400;\ndrop\n}}\n}}\n"
        );
        nft(&net.server, &drop);
        // Of one family, the first address is tried; here, that is the one of IPv6.
        let ended = knock(&net.client, "gate 7101 8202:udp 9303 --both --verify tcp/22 --format json");
        assert_eq!((ended.code, ended.json("verdict")), (0, "opened".into()), "{broken}: {ended:?}");
        assert_eq!(ended.json("address"), works, "{broken}: {ended:?}");
        sh(&net.server, &format!("nft delete table {broken} broken"));
        knockd.signal(Signal::SIGTERM).unwrap();
        knockd.wait(SOON).unwrap();
        sh(&net.server, "nft delete table inet knockd 2>/dev/null || true");
    }
}

#[test]
fn of_both_families_the_one_with_a_route_is_knocked_at() {
    let net = Net::new().unwrap();
    sh(&net.client, "echo '2001:db8::1 gate\n10.9.0.1 gate' >/run/hosts; mount --bind /run/hosts /etc/hosts");
    let _service = service(&net.server);
    let ended = knock(&net.client, "gate 7101 --verify tcp/22 --format json");
    assert_eq!((ended.code, ended.json("address")), (0, "10.9.0.1".into()), "{ended:?}");
    // One that could be tried as well is named if nothing has opened.
    let ended = knock(&net.client, "gate 7101 --verify tcp/23 --retries 0 --timeout 0.5");
    assert!(ended.code == 3 && !ended.stderr.contains("--both"), "{ended:?}");
    if net.has_ipv6() {
        sh(&net.client, "echo '10.9.0.1 gate\nfd00:9::1 gate' >/run/hosts");
        let other = |address: &str| if address == "10.9.0.1" { "fd00:9::1" } else { "10.9.0.1" };
        let ended = knock(&net.client, "gate 7101 --verify tcp/23 --retries 0 --timeout 0.5 --format json");
        let hint = format!(
            "knock: gate also has the address {}; to knock at both, add --both\n",
            other(ended.json("address").as_str().unwrap())
        );
        assert!(ended.code == 3 && ended.stderr == hint, "{ended:?}");
    }
}

#[test]
fn the_command_that_follows_runs_only_behind_an_open_door_and_gives_its_status() {
    let net = Net::new().unwrap();
    let ended = knock(&net.client, &format!("{WRONG} {QUICK} --then echo ran"));
    assert_eq!((ended.code, ended.stdout.as_str()), (3, ""), "{ended:?}");
    let ended = knock(&net.client, &format!("{WRONG} --then echo -n --verify x"));
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "--verify x"), "{ended:?}");
    let _service = service(&net.server);
    let argv = [lab::KNOCK, "10.9.0.1", "7101", "--verify", "22", "--then", "sh", "-c", "exit 7"];
    assert_eq!(run(&net.client, &argv).code, 7);
    let ended = knock(&net.client, &format!("{WRONG} --verify 22 --then /nonexistent/x"));
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(ended.stderr, "knock: cannot run /nonexistent/x: No such file or directory\n");
}

#[test]
fn on_a_terminal_one_line_is_rewritten_and_only_the_verdict_stays() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    let _knockd = knockd(&net, NATIVE);
    let on_terminal = |line: &str| {
        let ended =
            on_terminal(&net.client, &[&[lab::KNOCK], &line.split(' ').collect::<Vec<_>>()[..]].concat());
        // What stays of each line is what was written after the cursor has gone back for the last time.
        let lines = ended.stdout.lines().map(|line| line.rsplit('\r').next().unwrap_or_default().to_owned());
        (ended.code, ended.stdout.clone(), lines.collect::<Vec<_>>())
    };
    let (code, all, lines) = on_terminal(&format!("{WRONG} --verify 22 --retries 1 --timeout 0.5"));
    assert_eq!(code, 3, "{all:?}");
    assert!(all.contains("\r10.9.0.1: knocking at 10.9.0.1 (try 1 of 2)\u{2026}"), "{all:?}");
    assert!(all.contains("\r10.9.0.1: knocking at 10.9.0.1 (try 2 of 2)\u{2026}"), "{all:?}");
    assert!(
        matches!(&lines[..], [only] if only.starts_with("knock: 10.9.0.1: tcp/22 is still closed ")),
        "{lines:?}"
    );
    let (code, all, lines) = on_terminal(&format!("{RIGHT} --verify 22"));
    assert_eq!(code, 0, "{all:?}");
    let [only] = &lines[..] else { panic!("{lines:?}") };
    let (before, after) = only.split_once(" after ").unwrap();
    assert_eq!(before, "10.9.0.1: tcp/22 opened");
    assert!(after.ends_with(" s (10.9.0.1 from 10.9.0.2)"), "{only}");
    // With JSON, nothing but the object.
    let (code, all, lines) = on_terminal(&format!("{RIGHT} --verify 22 --format json"));
    assert_eq!((code, lines.len()), (0, 1), "{all:?}");
    assert!(lines[0].starts_with('{') && !all.contains("knocking"), "{all:?}");
    // Nothing to verify: as quiet as ever.
    let (code, all, _) = on_terminal(RIGHT);
    assert_eq!(code, 0);
    assert_eq!(all.trim(), "", "{all:?}");
}

#[test]
fn the_address_that_is_knocked_at_is_the_one_that_a_connection_uses() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    sh(&net.client, "echo '10.9.0.1 gate\nfd00:9::1 gate' >/run/hosts; mount --bind /run/hosts /etc/hosts");
    let first = sh(&net.client, "getent ahosts gate | head -n 1 | cut -d' ' -f1");
    let _service = service(&net.server);
    let mut knockd = knockd(&net, NATIVE);
    let ended = knock(&net.client, "gate 7101 8202:udp 9303 --verify tcp/22 --format json");
    assert_eq!((ended.code, ended.json("verdict")), (0, "opened".into()), "{ended:?}");
    assert_eq!(ended.json("address"), first.trim());
    let source = ended.json("source");
    knockd.wait_for_line(&format!("{}: ssh: OPEN SESAME", source.as_str().unwrap()), SOON).unwrap();
}
