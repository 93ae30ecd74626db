//! Which packets count, and what they do to attempts.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use conformance::{Rule, Topic};

pub(crate) const TOPIC: Topic = Topic { name: "matching", title: "Matching", rules: RULES };

const THREE: &str = "[door]\nsequence = 7000,8000,9000";

const RULES: &[Rule] = &[
    Rule::same(
        "a_sequence_opens_its_door",
        "Hitting every port of a sequence in order opens the door.",
        |t| {
            t.start("[door]\nsequence = 7000,8000:udp,9000:tcp");
            let lines = ["Stage 1", "Stage 2", "Stage 3", "OPEN SESAME"]
                .map(|what| format!("10.9.0.2: door: {what}"));
            assert_eq!(t.hits("7000 8000u 9000"), lines);
            assert_eq!(t.hits("7000 8000u 9000"), lines);
        },
    ),
    Rule::same("one_step", "A sequence with one port opens at every hit.", |t| {
        t.start("[door]\nsequence = 7000");
        assert_eq!(t.opened_by("7000 7000 7000<10.9.0.3"), "door door door");
    }),
    Rule::same("thirty_two_steps", "A sequence with 32 ports opens.", |t| {
        let ports: Vec<String> = (1..=32).map(|port| port.to_string()).collect();
        t.start(&format!("[door]\nsequence = {}", ports.join(",")));
        assert_eq!(t.opened_by(&ports[..31].join(" ")), "");
        assert_eq!(t.opened_by("32"), "door");
    }),
    Rule::same(
        "repeated_ports",
        "A port may appear in a sequence more than once, even twice in a row.",
        |t| {
            t.start("[door]\nsequence = 7000,7000,8000,7000");
            assert_eq!(t.opened_by("7000 7000 8000 7000"), "door");
            assert_eq!(t.opened_by("7000 8000 7000 7000<10.9.0.3 8000<10.9.0.3 7000<10.9.0.3"), "");
        },
    ),
    Rule::same("port_zero_and_the_highest", "Ports 0 and 65535 are ports like any other.", |t| {
        t.start("[door]\nsequence = 0,65535:udp");
        assert_eq!(t.opened_by("0 65535u"), "door");
    }),
    Rule::same(
        "a_wrong_port_spoils",
        "A port of the sequence that is not the next step spoils the attempt; the next knock works again.",
        |t| {
            t.start(THREE);
            assert_eq!(t.opened_by("7000 9000 8000 9000"), "");
            assert_eq!(t.opened_by("7000 9000 7000 8000 9000"), "door");
        },
    ),
    Rule::same("ports_of_no_door", "A port that no door uses changes nothing.", |t| {
        t.start(THREE);
        assert_eq!(t.opened_by("7000 1234 8000 4321u 9000"), "door");
    }),
    Rule::same(
        "the_other_protocol",
        "The same port number with the other protocol is a different port. If no door uses it, it changes \
         nothing.",
        |t| {
            t.start("[door]\nsequence = 7000,8000:udp,9000");
            assert_eq!(t.opened_by("7000 8000 8000u 9000u 9000"), "door");
        },
    ),
    Rule::same("a_port_of_another_door", "A port that only another door uses also spoils an attempt.", |t| {
        t.start("[a]\nsequence = 7000,8000,9000\n[b]\nsequence = 5000,6000");
        assert_eq!(t.opened_by("7000 5000 8000 9000"), "");
        assert_eq!(t.opened_by("7000<10.9.0.3 8000<10.9.0.3 6000<10.9.0.3 9000<10.9.0.3"), "");
    }),
    Rule::same(
        "equal_beginnings",
        "Doors with the same first steps advance in parallel until they diverge; identical doors open \
         together.",
        |t| {
            t.start("[a]\nsequence = 1,2,3\n[b]\nsequence = 1,2,4\n[c]\nsequence = 1,2,3");
            let lines = t.hits("1 2 3");
            let stages = ["a: Stage 1", "b: Stage 1", "c: Stage 1", "a: Stage 2", "b: Stage 2", "c: Stage 2"];
            let mut got: Vec<_> =
                lines[..6].iter().map(|line| line.trim_start_matches("10.9.0.2: ")).collect();
            // The order of the doors at one stage is nobody's contract.
            got[..3].sort_unstable();
            got[3..].sort_unstable();
            assert_eq!(got, stages);
            let mut opened: Vec<_> = lines.iter().filter(|line| line.ends_with("OPEN SESAME")).collect();
            opened.sort();
            assert_eq!(opened, ["10.9.0.2: a: OPEN SESAME", "10.9.0.2: c: OPEN SESAME"]);
            assert_eq!(t.opened_by("1 2 4"), "b");
        },
    ),
    Rule::same(
        "the_last_hit_begins_nothing",
        "The hit that completes one sequence does not start another, so a door that closes what another \
         opens can use the same ports in reverse.",
        |t| {
            t.start("[open]\nsequence = 1,2,3\n[close]\nsequence = 3,2,1");
            assert_eq!(t.opened_by("1 2 3 2 1"), "open");
            assert_eq!(
                t.opened_by("1<10.9.0.3 2<10.9.0.3 3<10.9.0.3 3<10.9.0.3 2<10.9.0.3 1<10.9.0.3"),
                "open close"
            );
        },
    ),
    Rule::same("sources_are_independent", "Every source address has its own attempts.", |t| {
        t.start(THREE);
        assert_eq!(t.opened_by("7000 7000<10.9.0.3 8000 8000<10.9.0.3 9000<10.9.0.3 9000"), "door door");
        assert_eq!(t.opened_by("7000 8000 9000<10.9.0.3"), "");
    }),
    Rule::same(
        "a_sequence_that_overlaps_itself",
        "After a failed beginning of a sequence such as 1,2,1,3, the next hit on the first port starts \
         the sequence again.",
        |t| {
            t.start("[door]\nsequence = 1,2,1,3");
            assert_eq!(t.opened_by("1 2 2 1 2 1 3"), "door");
        },
    ),
    Rule::differs(
        "the_oldest_attempt_of_all",
        "When the oldest attempt of all ends, every other source loses its attempts.",
        "Attempts are independent of one another.",
        |t| {
            t.start_unguarded(THREE);
            // 10.9.0.3 completes its knock, and 10.9.0.2 goes on.
            let hits = "7000<10.9.0.3 7000 8000<10.9.0.3 9000<10.9.0.3 8000 9000";
            assert_eq!(t.opened_by(hits), t.pick("door door", "door"));
        },
    ),
    Rule::differs(
        "a_repeat_of_a_step_done",
        "A packet that arrives twice (a retransmission, a browser's second SYN) spoils the attempt.",
        "A repeat of a step already done is ignored and not logged again, because networks and browsers \
         repeat packets, even late.",
        |t| {
            t.start(THREE);
            assert_eq!(t.opened_by("7000 7000 8000 9000"), t.pick("door", ""));
            assert_eq!(
                t.opened_by("7000<10.9.0.3 8000<10.9.0.3 8000<10.9.0.3 9000<10.9.0.3"),
                t.pick("door", "")
            );
            let lines = t.hits("7000<10.9.0.4 7000<10.9.0.4 8000<10.9.0.4");
            let stages = ["10.9.0.4: door: Stage 1", "10.9.0.4: door: Stage 2"];
            assert_eq!(lines, t.pick(&stages[..], &stages[..1]));
            t.start("[door]\nsequence = 1,2,3,4");
            assert_eq!(t.opened_by("1 2 3 2 4"), t.pick("door", ""));
        },
    ),
    Rule::differs(
        "the_first_step_again",
        "The first step spoils an attempt that is under way, and does not start a new one.",
        "It starts another attempt beside it, so a second try works at once. A source may have four at a \
         door; the first that opens ends the others.",
        |t| {
            t.start("[door]\nsequence = 1,2,3\nseq_timeout = 4");
            assert_eq!(t.opened_by("1 2 1 2 3 3"), t.pick("door", ""));
            assert_eq!(t.opened_by("1 2 2.5s 1 2s 2 3"), t.pick("door", ""));
        },
    ),
    Rule::differs(
        "two_knocks_at_once",
        "Two knocks of one address at the same door, as from behind NAT, spoil each other.",
        "Whatever their order, at least one opens.",
        |t| {
            t.start(THREE);
            assert_eq!(t.opened_by("7000 8000 7000 9000 8000 9000"), t.pick("door", ""));
            assert_eq!(t.opened_by("7000 8000 9000 7000 8000 9000"), "door door");
        },
    ),
    Rule::differs(
        "the_first_step_of_another_door",
        "While a source has an attempt in progress, it cannot start one at another door.",
        "Every door has its own attempt for every source, so overlapping sequences all open.",
        |t| {
            t.start("[a]\nsequence = 1,2,3\n[b]\nsequence = 2,3,4");
            assert_eq!(t.opened_by("1 2 3 4"), t.pick("a b", "a"));
        },
    ),
    Rule::same(
        "one_step_doors_during_an_attempt",
        "A door with one step opens when the source has no attempt in progress.",
        |t| {
            t.start("[one]\nsequence = 5000\n[door]\nsequence = 7000,8000");
            assert_eq!(t.opened_by("5000 7000 8000 5000"), "one door one");
        },
    ),
    Rule::differs(
        "a_one_step_door_during_an_attempt",
        "A hit on a door with one step is ignored while the source has an attempt in progress at another \
         door.",
        "Such a door opens at every hit. The hit still spoils the attempt at the other door, as in 0.8.",
        |t| {
            t.start("[one]\nsequence = 5000\n[door]\nsequence = 7000,8000");
            assert_eq!(t.opened_by("7000 5000 8000"), t.pick("one", ""));
        },
    ),
    Rule::same("within_the_timeout", "A knock that completes within `Seq_Timeout` opens.", |t| {
        t.start("[door]\nsequence = 1,2,3\nseq_timeout = 9");
        assert_eq!(t.opened_by("1 1.5s 2 1.5s 3"), "door");
    }),
    Rule::same(
        "after_the_timeout",
        "A knock that takes longer than `Seq_Timeout` does not open; the clock starts at the first hit. \
         The log gives the stage at which it timed out.",
        |t| {
            t.start("[door]\nsequence = 1,2,3\nseq_timeout = 2");
            let lines = t.hits("1 2 3.1s 3 1 3.1s 2");
            let stages =
                ["Stage 1", "Stage 2", "sequence timeout (stage 2)", "Stage 1", "sequence timeout (stage 1)"];
            assert_eq!(lines, stages.map(|what| format!("10.9.0.2: door: {what}")));
        },
    ),
    Rule::same("the_default_timeout", "`Seq_Timeout` defaults to 25 seconds.", |t| {
        t.start("[door]\nsequence = 1,2");
        assert_eq!(t.opened_by("1 1<10.9.0.3 22s 2"), "door");
        assert_eq!(t.opened_by("4s 2<10.9.0.3"), "");
    }),
    Rule::same(
        "no_time_at_all",
        "With `Seq_Timeout = 0`, a door with one step opens; a longer one never does.",
        |t| {
            t.start("[one]\nsequence = 1\nseq_timeout = 0\n[two]\nsequence = 2,3\nseq_timeout = 0");
            assert_eq!(t.opened_by("1 2 3 1"), "one one");
        },
    ),
    Rule::differs(
        "whole_seconds",
        "Time is measured in whole clock seconds: with a `Seq_Timeout` of 2, hits at 0.9 and 2.1 are too \
         far apart.",
        "Time is measured exactly, with a clock that cannot be set.",
        |t| {
            t.start("[door]\nsequence = 1,2\nseq_timeout = 2");
            let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            // A machine that is busy may be too slow for it, so there are several tries, each of a source of its own.
            let opened = (3..13).find_map(|source| {
                // The first hit comes when half a second of the clock has passed, the second early in the third second
                // after it.
                thread::sleep(Duration::from_millis(1500 - u64::from(clock().subsec_millis())));
                let (first, second) = (Instant::now(), clock().as_secs());
                t.send(&format!("1<10.9.0.{source}"));
                let is_in_time = clock().as_secs() == second;
                thread::sleep(Duration::from_millis(1550).saturating_sub(first.elapsed()));
                let opened = t.opened_by(&format!("2<10.9.0.{source}"));
                (is_in_time && first.elapsed() < Duration::from_millis(1950)).then_some(opened)
            });
            assert_eq!(opened.expect("a try in time"), t.pick("door", ""));
        },
    ),
    Rule::differs(
        "when_a_timeout_is_noticed",
        "A timeout is noticed when the next packet for a door arrives, whatever its source.",
        "It is noticed and logged when it happens.",
        |t| {
            t.start("[door]\nsequence = 1,2\nseq_timeout = 1");
            let line = "10.9.0.2: door: sequence timeout (stage 1)";
            t.send("1");
            if t.pick(true, false) {
                t.wait_for(line);
            } else {
                t.send("2.5s");
                assert!(!t.lines().contains(&line.to_owned()));
            }
        },
    ),
    Rule::same(
        "flags_that_must_be_set",
        "`TCPFlags` names flags that must be set; others are ignored.",
        |t| {
            t.start("[door]\nsequence = 7000\ntcpflags = syn,ack");
            assert_eq!(t.opened_by("7000/S 7000/A 7000/ 7000/FPU"), "");
            assert_eq!(t.opened_by("7000/SA 7000/SAPU 7000/SAEC"), "door door door");
        },
    ),
    Rule::same("flags_that_must_be_clear", "`!flag` means that the flag must be clear.", |t| {
        t.start("[door]\nsequence = 7000\ntcpflags = syn,!ack,!rst");
        assert_eq!(t.opened_by("7000/SA 7000/SR 7000/A 7000/"), "");
        assert_eq!(t.opened_by("7000/S 7000/SFPU"), "door door");
    }),
    Rule::same("every_flag", "Each of the six flags can be required, set or clear.", |t| {
        for (flag, letter) in
            [("fin", "F"), ("syn", "S"), ("rst", "R"), ("psh", "P"), ("ack", "A"), ("urg", "U")]
        {
            t.start(&format!(
                "[set]\nsequence = 1\ntcpflags = {flag}\n[clear]\nsequence = 2\ntcpflags = !{flag}"
            ));
            let others = "FSRPAU".replace(letter, "");
            assert_eq!(
                t.opened_by(&format!("1/{letter} 1/{others} 2/{letter} 2/{others}")),
                "set clear",
                "{flag}"
            );
        }
    }),
    Rule::same("without_flags", "Without `TCPFlags` every TCP segment counts.", |t| {
        t.start("[door]\nsequence = 7000");
        assert_eq!(
            t.opened_by("7000/S 7000/SA 7000/A 7000/R 7000/F 7000/ 7000/FPU"),
            "door ".repeat(7).trim_end()
        );
    }),
    Rule::same(
        "flags_that_do_not_fit",
        "A segment whose flags do not match is ignored: it neither advances nor spoils an attempt.",
        |t| {
            t.start("[door]\nsequence = 7000,8000,9000\ntcpflags = syn");
            assert_eq!(t.opened_by("7000 9000/A 7000/R 8000/A 8000 9000/A 9000"), "door");
        },
    ),
    Rule::same(
        "flags_of_two_doors",
        "A segment that matches the flags of one door but not of another is ignored by attempts at the \
         other.",
        |t| {
            t.start("[a]\nsequence = 1,2,3\ntcpflags = syn\n[b]\nsequence = 3,4\ntcpflags = ack");
            assert_eq!(t.opened_by("1 2 3/A 3"), "a");
        },
    ),
    Rule::same("flags_and_udp", "`TCPFlags` does not apply to the UDP ports of a sequence.", |t| {
        t.start("[door]\nsequence = 7000,8000:udp\ntcpflags = syn,!ack");
        assert_eq!(t.opened_by("7000 8000u"), "door");
    }),
    Rule::same(
        "ipv6",
        "An IPv6 knock opens like an IPv4 one; the log shows the address in its short form.",
        |t| {
            t.start("[door]\nsequence = 7000,8000:udp");
            let lines =
                ["Stage 1", "Stage 2", "OPEN SESAME"].map(|what| format!("fd00:9::1:0:0:2: door: {what}"));
            assert_eq!(t.hits("7000<fd00:9:0:0:1:0:0:2 8000u<fd00:9:0:0:1::2"), lines);
            assert_eq!(t.opened_by("7000@fd00:9::1 8000u"), "");
        },
    ),
    Rule::same(
        "own_addresses",
        "Without `Target`, every address of the interface can be hit, including secondary, IPv6 and \
         link-local addresses; the steps of a knock may go to different ones.",
        |t| {
            t.sh("ip address add 10.9.0.11/24 dev eth0; ip address add fe80::9/64 dev eth0 nodad");
            t.start("[door]\nsequence = 1,2,3");
            assert_eq!(t.opened_by("1@10.9.0.11 2@10.9.0.11 3@10.9.0.11"), "door");
            assert_eq!(t.opened_by("1 2@10.9.0.11 3"), "door");
            assert_eq!(t.opened_by("1@fe80::9 2@fd00:9::1 3@fe80::9"), "door");
        },
    ),
    Rule::same(
        "foreign_addresses",
        "Without `Target`, other destinations do not count: other hosts, broadcast and multicast \
         addresses.",
        |t| {
            t.start("[door]\nsequence = 7000:udp");
            let elsewhere = "7000u@10.9.0.77 7000u@192.0.2.1 7000u@10.9.0.255 7000u@255.255.255.255 7000u@224.0.0.1 \
                             7000u@fd00:9::77 7000u@ff02::1";
            assert_eq!(t.opened_by(elsewhere), "");
            assert_eq!(t.opened_by("7000u"), "door");
        },
    ),
    Rule::same(
        "foreign_addresses_do_not_spoil",
        "A packet to an address that no door watches does not spoil an attempt.",
        |t| {
            t.start(THREE);
            assert_eq!(t.opened_by("7000 9000@10.9.0.77 8000 9000"), "door");
        },
    ),
    Rule::same(
        "target",
        "With `Target`, only packets to that address count, whether it belongs to the interface or \
         another host, or is a broadcast or an IPv6 address.",
        |t| {
            t.sh("ip address add 10.9.0.11/24 dev eth0");
            for target in ["10.9.0.11", "10.9.0.1", "192.0.2.77", "10.9.0.255", "fd00:9::77", "fd00:9::1"] {
                t.start(&format!("[door]\nsequence = 1:udp,2:udp\ntarget = {target}"));
                assert_eq!(t.opened_by(&format!("1u@{target} 2u@{target}")), "door", "{target}");
                assert_eq!(
                    t.opened_by("1u@10.9.0.12 2u@10.9.0.12 1u@fd00:9::12 2u@fd00:9::12"),
                    "",
                    "{target}"
                );
            }
            t.start("[door]\nsequence = 1,2\ntarget = 192.0.2.77");
            assert_eq!(t.opened_by("1 2"), "");
        },
    ),
    Rule::same(
        "targets_do_not_mix",
        "A packet to one door's target does not affect an attempt at a door with another target or none.",
        |t| {
            t.start("[here]\nsequence = 1,2,3\n[there]\nsequence = 3,2,1\ntarget = 192.0.2.77");
            assert_eq!(t.opened_by("1 2 1@192.0.2.77 3"), "here");
            assert_eq!(t.opened_by("1 3@192.0.2.77 2@192.0.2.77 3 1@192.0.2.77"), "there");
        },
    ),
    Rule::same(
        "outgoing_packets",
        "Packets that the host itself sends or forwards can hit a `Target`.",
        |t| {
            t.start("[door]\nsequence = 7000\ntarget = 10.9.0.2\ntcpflags = syn");
            assert!(!t.net.server.can_connect(t.net.client.ipv4, 7000).unwrap());
            t.settle();
            let lines = t.lines();
            assert_eq!(lines, ["10.9.0.1: door: Stage 1", "10.9.0.1: door: OPEN SESAME"]);
        },
    ),
];
