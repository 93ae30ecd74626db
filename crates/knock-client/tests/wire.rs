//! What `knock` puts on the wire, seen by a packet socket in a network namespace of the test's own.
//!
//! Each test runs itself again under `unshare`; where no namespace can be made it fails. There are two links: `lo`, and
//! `near`, the end of a cable whose other end never answers. `knock` runs without any capability unless a test says so.
#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod net;

use std::net::TcpListener;
use std::time::Instant;

use net::{
    ACK, AT_ONCE, FIN, PSH, RST, SYN, Seen, UNTIL_REPEATED, URG, in_namespace, knock, privileged_knock, sent,
    tcp, udp,
};

#[test]
fn every_hit_is_one_packet_in_order_and_is_not_repeated() {
    in_namespace("every_hit_is_one_packet_in_order_and_is_not_repeated", |mut wire| {
        sent(&knock("192.0.2.1 7000 8000:udp 0 9000:TCP 65535:UDP domain domain:udp"));
        let expected = [
            tcp("192.0.2.1:7000", SYN),
            udp("192.0.2.1:8000"),
            tcp("192.0.2.1:0", SYN),
            tcp("192.0.2.1:9000", SYN),
            udp("192.0.2.1:65535"),
            tcp("192.0.2.1:53", SYN),
            udp("192.0.2.1:53"),
        ];
        assert_eq!(wire.seen_within(UNTIL_REPEATED), expected);
    });
}

#[test]
fn over_ipv6_every_hit_is_one_packet_in_order_and_is_not_repeated() {
    in_namespace("over_ipv6_every_hit_is_one_packet_in_order_and_is_not_repeated", |mut wire| {
        sent(&knock("-6 2001:db8::1 7000 8000:udp 9000"));
        let expected =
            [tcp("[2001:db8::1]:7000", SYN), udp("[2001:db8::1]:8000"), tcp("[2001:db8::1]:9000", SYN)];
        assert_eq!(wire.seen_within(UNTIL_REPEATED), expected);
    });
}

#[test]
fn a_syn_is_not_repeated_during_a_slow_knock() {
    in_namespace("a_syn_is_not_repeated_during_a_slow_knock", |mut wire| {
        sent(&knock("192.0.2.1 7000 8000 -d 1500"));
        let expected = [tcp("192.0.2.1:7000", SYN), tcp("192.0.2.1:8000", SYN)];
        assert_eq!(wire.seen_within(AT_ONCE), expected);
    });
}

#[test]
fn a_long_knock_keeps_its_order_without_delay() {
    in_namespace("a_long_knock_keeps_its_order_without_delay", |mut wire| {
        let ports: Vec<String> = (1000..1100).rev().map(|port| port.to_string()).collect();
        sent(&knock(&format!("192.0.2.1 {}", ports.join(" "))));
        let expected: Vec<Seen> = ports.iter().map(|port| tcp(&format!("192.0.2.1:{port}"), SYN)).collect();
        assert_eq!(wire.seen_within(AT_ONCE), expected);
    });
}

#[test]
fn with_u_every_hit_is_udp() {
    in_namespace("with_u_every_hit_is_udp", |mut wire| {
        sent(&knock("192.0.2.1 7000 8000:tcp 9000:udp -u"));
        let expected = [udp("192.0.2.1:7000"), udp("192.0.2.1:8000"), udp("192.0.2.1:9000")];
        assert_eq!(wire.seen_within(AT_ONCE), expected);
    });
}

#[test]
fn the_delay_follows_every_hit() {
    in_namespace("the_delay_follows_every_hit", |_| {
        let start = Instant::now();
        sent(&knock("192.0.2.1 1 2 3 -d 500"));
        let millis = start.elapsed().as_millis();
        assert!((1500..10_000).contains(&millis), "{millis} ms");
    });
}

#[test]
fn verbose_prints_each_hit_as_it_was_written() {
    in_namespace("verbose_prints_each_hit_as_it_was_written", |_| {
        for (line, printed) in [
            ("-v 192.0.2.1 7000 8000:udp", "hitting tcp 192.0.2.1:7000\nhitting udp 192.0.2.1:8000\n"),
            ("-v 2001:db8::1 ssh", "hitting tcp 2001:db8::1:ssh\n"),
            ("-v fe80::1%near 1", "hitting tcp fe80::1%near:1\n"),
        ] {
            assert_eq!(String::from_utf8(knock(line).stdout).unwrap(), printed);
        }
    });
}

#[test]
fn a_usage_error_sends_nothing() {
    in_namespace("a_usage_error_sends_nothing", |mut wire| {
        for hits in ["7000 1:foo", "7000 99999", "7000 no-such-service", "7000 -d -1", "7000 --bogus"] {
            let output = knock(&format!("192.0.2.1 {hits}"));
            assert_eq!(output.status.code(), Some(2), "{hits}");
        }
        assert_eq!(wire.seen_within(AT_ONCE), []);
    });
}

#[test]
fn a_hit_that_cannot_be_sent_is_reported_and_the_rest_is_sent() {
    in_namespace("a_hit_that_cannot_be_sent_is_reported_and_the_rest_is_sent", |mut wire| {
        let output = knock("192.0.2.1 7000 0:udp 8000");
        assert_eq!(output.status.code(), Some(0));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.starts_with("knock: cannot send udp 192.0.2.1:0: "), "{message}");
        assert_eq!(wire.seen_within(AT_ONCE), [tcp("192.0.2.1:7000", SYN), tcp("192.0.2.1:8000", SYN)]);
    });
}

#[test]
fn the_value_of_a_sequence_is_knocked_as_it_stands() {
    in_namespace("the_value_of_a_sequence_is_knocked_as_it_stands", |mut wire| {
        let expected = || [tcp("192.0.2.1:7101", SYN), udp("192.0.2.1:8202"), tcp("192.0.2.1:9303", SYN)];
        for list in ["7101,8202:udp,9303", "7101, 8202:udp, 9303", "7101 , 8202:udp 9303"] {
            sent(&knock(&format!("192.0.2.1 {list}")));
            assert_eq!(wire.seen_within(AT_ONCE), expected(), "{list}");
        }
    });
}

#[test]
fn why_nothing_was_sent_is_said_in_words_and_is_a_failure_only_of_a_strict_knock() {
    let name = "why_nothing_was_sent_is_said_in_words_and_is_a_failure_only_of_a_strict_knock";
    in_namespace(name, |_| {
        for (options, code) in [("", 0), (" --strict", 1)] {
            let output = knock(&format!("203.0.113.1 7000 8000:udp{options}"));
            assert_eq!(output.status.code(), Some(code), "{options}");
            let why = "Network is unreachable; is the network up?";
            let expected = format!(
                "knock: cannot send tcp 203.0.113.1:7000: {why}\nknock: cannot send udp 203.0.113.1:8000: {why}\n"
            );
            assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
        }
        sent(&knock("--strict 192.0.2.1 7000 8000:udp"));
        assert_eq!(knock("--strict 192.0.2.1 7000 0:udp").status.code(), Some(1));
    });
}

#[test]
fn a_closed_udp_port_does_not_disturb_the_next_hits() {
    in_namespace("a_closed_udp_port_does_not_disturb_the_next_hits", |mut wire| {
        sent(&knock("127.0.0.1 53:udp 53:udp 54:udp -d 20"));
        let expected = [udp("127.0.0.1:53"), udp("127.0.0.1:53"), udp("127.0.0.1:54")];
        assert_eq!(wire.seen_within(AT_ONCE), expected);
    });
}

#[test]
fn an_open_port_is_left_by_a_reset_that_is_not_repeated() {
    in_namespace("an_open_port_is_left_by_a_reset_that_is_not_repeated", |mut wire| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        sent(&knock(&format!("127.0.0.1 {}", open.port())));
        let to_open: Vec<u8> = wire
            .seen_within(UNTIL_REPEATED)
            .into_iter()
            .filter_map(|seen| match seen {
                Seen::Tcp { to, flags } if to == open => Some(flags),
                _ => None,
            })
            .collect();
        // Whether the ACK of the handshake stands between them depends on who is faster.
        assert_eq!(to_open.first(), Some(&SYN), "{to_open:02x?}");
        assert!(to_open.len() <= 3, "{to_open:02x?}");
        assert!(to_open.last().unwrap() & RST != 0, "{to_open:02x?}");
        assert!(to_open.iter().all(|flags| flags & FIN == 0), "{to_open:02x?}");
    });
}

#[test]
fn chosen_flags_are_on_tcp_hits_exactly_and_udp_hits_are_as_ever() {
    in_namespace("chosen_flags_are_on_tcp_hits_exactly_and_udp_hits_are_as_ever", |mut wire| {
        for (names, flags) in [
            ("syn", SYN),
            ("syn,ack", SYN | ACK),
            ("FIN,psh,urg", FIN | PSH | URG),
            ("rst", RST),
            ("none", 0),
        ] {
            sent(&privileged_knock(&format!("192.0.2.1 7000 8000:udp --tcpflags {names}")));
            sent(&privileged_knock(&format!("2001:db8::1 7000 8000:udp --tcpflags {names}")));
            let expected = [
                tcp("192.0.2.1:7000", flags),
                udp("192.0.2.1:8000"),
                tcp("[2001:db8::1]:7000", flags),
                udp("[2001:db8::1]:8000"),
            ];
            assert_eq!(wire.seen_within(AT_ONCE), expected, "{names}");
        }
    });
}

#[test]
fn a_segment_with_chosen_flags_has_a_checksum_that_the_peer_accepts() {
    in_namespace("a_segment_with_chosen_flags_has_a_checksum_that_the_peer_accepts", |mut wire| {
        for host in ["127.0.0.1", "::1"] {
            let listener = TcpListener::bind((host, 0)).unwrap();
            let open = listener.local_addr().unwrap();
            sent(&privileged_knock(&format!("--tcpflags syn {host} {}", open.port())));
            let flags: Vec<u8> = wire
                .seen_within(AT_ONCE)
                .into_iter()
                .map(|seen| match seen {
                    Seen::Tcp { flags, .. } => flags,
                    _ => panic!("{seen:?}"),
                })
                .collect();
            // The listener answers only what it believes; the kernel refuses an answer that no socket of it waits for.
            assert_eq!(flags, [SYN, SYN | ACK, RST], "{host}");
        }
    });
}

#[test]
fn chosen_flags_without_the_privilege_are_an_error_and_nothing_is_sent() {
    in_namespace("chosen_flags_without_the_privilege_are_an_error_and_nothing_is_sent", |mut wire| {
        let output = knock("--tcpflags syn,ack 192.0.2.1 8000:udp 7000");
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "knock: TCP flags require permission to send raw packets; run knock as root (sudo knock ...) or with CAP_NET_RAW\n"
        );
        assert_eq!(wire.seen_within(AT_ONCE), []);
    });
}
