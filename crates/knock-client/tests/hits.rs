//! What hits with a delay, a payload, flags, a connection or an echo request put on the wire, and where they leave the
//! machine; see `wire.rs` for how this is seen.
#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod net;

use std::fs;
use std::net::TcpListener;
use std::process::Output;
use std::time::{Duration, Instant};

use net::{
    ACK, AT_ONCE, FIN, PSH, RST, SYN, Seen, UNTIL_REPEATED, echo, in_namespace, ip, knock, privileged_knock,
    sent, tcp, udp, udp_with,
};

/// Lets every group send echo requests, as most distributions do; a new namespace lets none.
fn allow_echo() {
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A second way to the hosts of `near`, which the kernel does not choose by itself.
fn lay_detour() {
    ip(&[
        "link add detour type veth peer name end",
        "address add 198.51.100.2/24 dev detour",
        "address add 2001:db8:1::2/64 dev detour nodad",
        "link set end up",
        "link set detour up",
        "neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev detour",
        "neighbour add 2001:db8::1 lladdr 02:00:00:00:00:01 dev detour",
        "route add 192.0.2.0/24 dev detour metric 9999",
        "route add 2001:db8::/64 dev detour metric 9999",
    ]);
}

#[test]
fn a_datagram_carries_the_payload_that_its_hit_names() {
    in_namespace("a_datagram_carries_the_payload_that_its_hit_names", |mut wire| {
        for host in ["192.0.2.1", "2001:db8::1"] {
            let hits = "1:udp:hex=00ff 2:udp:text=sesame 3:udp:base64=AP8= 4:udp:text= 5:udp";
            sent(&knock(&format!("{host} {hits}")));
            let at = |port: u16| {
                if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
            };
            let expected = [
                udp_with(&at(1), &[0, 0xff]),
                udp_with(&at(2), b"sesame"),
                udp_with(&at(3), &[0, 0xff]),
                udp_with(&at(4), &[]),
                udp(&at(5)),
            ];
            assert_eq!(wire.seen_within(AT_ONCE), expected);
        }
    });
}

#[test]
fn an_echo_request_has_the_size_that_its_hit_names_and_needs_no_privilege() {
    in_namespace("an_echo_request_has_the_size_that_its_hit_names_and_needs_no_privilege", |mut wire| {
        allow_echo();
        for host in ["192.0.2.1", "2001:db8::1"] {
            sent(&knock(&format!("{host} icmp icmp:size=0 icmp:size=1200")));
            assert_eq!(wire.seen_within(AT_ONCE), [echo(host, 56), echo(host, 0), echo(host, 1200)]);
        }
    });
}

#[test]
fn an_echo_request_is_one_that_hosts_answer_from_either_kind_of_socket() {
    in_namespace("an_echo_request_is_one_that_hosts_answer_from_either_kind_of_socket", |mut wire| {
        let mut is_answered = |knock: fn(&str) -> Output| {
            for host in ["127.0.0.1", "::1"] {
                sent(&knock(&format!("{host} icmp:size=33")));
                let reply = Seen::EchoReply { to: host.parse().unwrap(), size: 33 };
                assert_eq!(wire.seen_within(AT_ONCE), [echo(host, 33), reply]);
            }
        };
        is_answered(privileged_knock);
        allow_echo();
        is_answered(knock);
    });
}

#[test]
fn where_the_system_refuses_echo_requests_nothing_is_sent() {
    in_namespace("where_the_system_refuses_echo_requests_nothing_is_sent", |mut wire| {
        let output = knock("192.0.2.1 7000 icmp");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).starts_with("knock: cannot send echo requests: "), "{}", stderr(&output));
        assert!(stderr(&output).contains("net.ipv4.ping_group_range"), "{}", stderr(&output));
        assert_eq!(wire.seen_within(AT_ONCE), []);
    });
}

#[test]
fn the_delay_of_a_hit_replaces_that_of_its_knock() {
    in_namespace("the_delay_of_a_hit_replaces_that_of_its_knock", |mut wire| {
        let start = Instant::now();
        sent(&knock("192.0.2.1 -d 3600000 1:delay=0 2:udp:delay=700 3:delay=0"));
        assert!(start.elapsed() >= Duration::from_millis(700));
        let expected = [tcp("192.0.2.1:1", SYN), udp("192.0.2.1:2"), tcp("192.0.2.1:3", SYN)];
        assert_eq!(wire.seen_within(AT_ONCE), expected);
    });
}

#[test]
fn flags_of_one_hit_leave_the_others_as_they_are() {
    in_namespace("flags_of_one_hit_leave_the_others_as_they_are", |mut wire| {
        let expected = |others| {
            [
                tcp("192.0.2.1:1", FIN | PSH),
                tcp("192.0.2.1:2", others),
                tcp("192.0.2.1:3", 0),
                udp("192.0.2.1:4"),
            ]
        };
        sent(&privileged_knock("192.0.2.1 1:flags=fin+psh 2 3:tcp:flags=none 4:udp"));
        assert_eq!(wire.seen_within(AT_ONCE), expected(SYN));
        sent(&privileged_knock("192.0.2.1 1:flags=fin+psh 2 3:tcp:flags=none 4:udp --tcpflags rst"));
        assert_eq!(wire.seen_within(AT_ONCE), expected(RST));
    });
}

#[test]
fn flags_of_one_hit_without_the_privilege_are_an_error_and_nothing_is_sent() {
    in_namespace("flags_of_one_hit_without_the_privilege_are_an_error_and_nothing_is_sent", |mut wire| {
        let output = knock("192.0.2.1 7000 8000:flags=syn");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).starts_with("knock: TCP flags require permission"), "{}", stderr(&output));
        assert_eq!(wire.seen_within(AT_ONCE), []);
    });
}

#[test]
fn a_connection_that_nobody_answers_is_given_up_before_its_syn_is_repeated() {
    in_namespace("a_connection_that_nobody_answers_is_given_up_before_its_syn_is_repeated", |mut wire| {
        sent(&knock("--connect 192.0.2.1 7000 8000:udp"));
        sent(&knock("2001:db8::1 7000:tcp-connect 9000"));
        let expected = [
            tcp("192.0.2.1:7000", SYN),
            udp("192.0.2.1:8000"),
            tcp("[2001:db8::1]:7000", SYN),
            tcp("[2001:db8::1]:9000", SYN),
        ];
        assert_eq!(wire.seen_within(UNTIL_REPEATED), expected);
    });
}

#[test]
fn a_connection_stays_open_until_the_next_hit_and_the_last_one_until_its_delay_is_over() {
    let name = "a_connection_stays_open_until_the_next_hit_and_the_last_one_until_its_delay_is_over";
    in_namespace(name, |mut wire| {
        let (first, last) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let [first_port, last_port] = [&first, &last].map(|listener| listener.local_addr().unwrap().port());
        sent(&knock(&format!("--connect 127.0.0.1 {first_port} 9:udp {last_port}:delay=1")));
        let to = |port, flags| tcp(&format!("127.0.0.1:{port}"), flags);
        let seen: Vec<Seen> = wire
            .seen_within(AT_ONCE)
            .into_iter()
            .filter(|seen| match seen {
                Seen::Tcp { to, .. } => [first_port, last_port].contains(&to.port()),
                _ => true,
            })
            .collect();
        let expected = [
            to(first_port, SYN),
            to(first_port, ACK),
            udp("127.0.0.1:9"),
            to(first_port, FIN | ACK),
            to(last_port, SYN),
            to(last_port, ACK),
            to(last_port, FIN | ACK),
        ];
        assert_eq!(seen, expected);
    });
}

#[test]
fn a_refused_connection_is_a_hit_like_any_other() {
    in_namespace("a_refused_connection_is_a_hit_like_any_other", |_| {
        sent(&knock("--strict --connect 127.0.0.1 7000 8000"));
    });
}

#[test]
fn every_kind_of_hit_takes_the_interface_or_source_that_was_asked_for() {
    in_namespace("every_kind_of_hit_takes_the_interface_or_source_that_was_asked_for", |mut wire| {
        allow_echo();
        lay_detour();
        let hits = "1 2:udp 3:tcp-connect 4:flags=syn icmp";
        for (host, near, detour) in
            [("192.0.2.1", "192.0.2.2", "198.51.100.2"), ("2001:db8::1", "2001:db8::2", "2001:db8:1::2")]
        {
            for (options, from) in [
                (String::new(), near),
                ("--interface detour ".to_owned(), detour),
                (format!("--source {detour} "), detour),
                (format!("--source {near} --interface detour "), near),
            ] {
                sent(&privileged_knock(&format!("{options}{host} {hits}")));
                assert_eq!(wire.sources_within(AT_ONCE), [from; 5], "{options}{host}");
            }
        }
        // Nor does it take a privilege.
        sent(&knock("--interface detour --source 198.51.100.2 192.0.2.1 1 2:udp"));
        assert_eq!(wire.sources_within(AT_ONCE), ["198.51.100.2"; 2]);
    });
}

#[test]
fn a_source_decides_the_family_that_a_host_resolves_to() {
    in_namespace("a_source_decides_the_family_that_a_host_resolves_to", |_| {
        let output = knock("--source 2001:db8::2 192.0.2.1 7000");
        let expected = "knock: cannot resolve host \"192.0.2.1\" to an IPv6 address: ";
        assert!(stderr(&output).starts_with(expected), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(1));
    });
}

#[test]
fn a_link_local_address_is_knocked_on_its_interface_with_one_packet_a_hit() {
    in_namespace("a_link_local_address_is_knocked_on_its_interface_with_one_packet_a_hit", |mut wire| {
        let expected = [tcp("[fe80::1]:7000", SYN), udp("[fe80::1]:8000")];
        for line in [
            "fe80::1%near 7000 8000:udp",
            "--interface near fe80::1 7000 8000:udp",
            "--source fe80::2 fe80::1%near 7000 8000:udp",
            "--source fe80::2 --interface near fe80::1 7000 8000:udp",
        ] {
            sent(&knock(line));
            assert_eq!(wire.seen_within(AT_ONCE), expected, "{line}");
        }
        assert_eq!(wire.seen_within(UNTIL_REPEATED), []);
    });
}

#[test]
fn a_route_that_is_none_is_an_error_and_nothing_is_sent() {
    in_namespace("a_route_that_is_none_is_an_error_and_nothing_is_sent", |mut wire| {
        for (options, error) in [
            (
                "--interface wlan9",
                "cannot use interface \"wlan9\": No such device; expected one of lo, far, near\n",
            ),
            (
                "--source 203.0.113.9",
                "cannot send from 203.0.113.9: Cannot assign requested address; expected an address of this machine\n",
            ),
            (
                "-4 --source 2001:db8::2",
                "cannot send from 2001:db8::2 to 192.0.2.1: one is IPv4, the other IPv6\n",
            ),
        ] {
            let output = knock(&format!("{options} 192.0.2.1 7000"));
            assert_eq!(
                (output.status.code(), stderr(&output)),
                (Some(1), format!("knock: {error}").as_str())
            );
        }
        let output = knock("fe80::1 7000");
        let error = "fe80::1 is a link-local address, which needs an interface: fe80::1%NAME; expected one of lo, far, near";
        assert_eq!((output.status.code(), stderr(&output)), (Some(1), format!("knock: {error}\n").as_str()));
        assert_eq!(wire.seen_within(AT_ONCE), []);
    });
}
