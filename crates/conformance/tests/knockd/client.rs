//! What the client `knock` sends, prints and returns.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use conformance::{Rule, SOON, Session, Topic};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use testbed::Frame;

pub(crate) const TOPIC: Topic = Topic { name: "client", title: "The client", rules: RULES };

const RULES: &[Rule] = &[
    Rule::same(
        "hits",
        "Each hit is one TCP SYN, or one UDP datagram that contains a zero byte, in the order of the \
         arguments.",
        |t| {
            let knocked = knock(t, "10.9.0.1 7000 8000:udp 9000:tcp 7000");
            assert_eq!(knocked.wire, "7000 8000u 9000 7000");
            assert_eq!((knocked.code, knocked.stdout.as_str()), (0, ""));
        },
    ),
    Rule::same("no_answer", "An unanswered SYN is not retransmitted.", |t| {
        // Somebody who never says anything.
        t.net
            .client
            .run(&["ip", "neighbour", "add", "10.9.0.77", "lladdr", "02:00:00:00:09:77", "dev", "eth0"])
            .unwrap();
        let knocked = knock_and_wait(t, "10.9.0.77 7000 8000 9000:udp", Duration::from_millis(2500));
        assert_eq!(
            (knocked.wire.as_str(), knocked.code),
            ("7000@10.9.0.77 8000@10.9.0.77 9000u@10.9.0.77", 0)
        );
    }),
    Rule::same("all_udp", "With `-u`, every hit is UDP, whatever the argument says.", |t| {
        assert_eq!(knock(t, "-u 10.9.0.1 7000 8000:tcp 9000:udp").wire, "7000u 8000u 9000u");
    }),
    Rule::same("ipv6", "An IPv6 address is knocked over IPv6, with or without `-6`.", |t| {
        assert_eq!(knock(t, "fd00:9::1 7000 8000:udp").wire, "7000@fd00:9::1 8000u@fd00:9::1");
        assert_eq!(knock(t, "-6 fd00:9::1 7000 8000:udp").wire, "7000@fd00:9::1 8000u@fd00:9::1");
    }),
    Rule::same(
        "the_other_family",
        "An address of the wrong family is an error: nothing is sent, and the exit status is 1.",
        |t| {
            for line in ["-4 fd00:9::1 7000", "-6 10.9.0.1 7000"] {
                let knocked = knock(t, line);
                assert_eq!((knocked.code, knocked.wire.as_str()), (1, ""), "{line}");
            }
        },
    ),
    Rule::same("both_families", "Of `-4` and `-6`, the last one wins.", |t| {
        assert_eq!(knock(t, "-6 -4 10.9.0.1 7000").wire, "7000");
        assert_eq!(knock(t, "-4 -6 fd00:9::1 7000").wire, "7000@fd00:9::1");
    }),
    Rule::same("services", "A port may be a service name.", |t| {
        assert_eq!(knock(t, "10.9.0.1 ssh domain domain:udp").wire, "22 53 53u");
    }),
    Rule::same("verbose", "`-v` prints each hit with the port as it was given.", |t| {
        let knocked = knock(t, "-v 10.9.0.1 7000 8000:udp ssh:tcp");
        assert_eq!(
            knocked.stdout,
            "hitting tcp 10.9.0.1:7000\nhitting udp 10.9.0.1:8000\nhitting tcp 10.9.0.1:ssh\n"
        );
        assert_eq!(knock(t, "-v fd00:9::1 7000").stdout, "hitting tcp fd00:9::1:7000\n");
        assert_eq!(knock(t, "-uv 10.9.0.1 7000").stdout, "hitting udp 10.9.0.1:7000\n");
    }),
    Rule::same("delay", "`-d` waits that many milliseconds after each hit, including the last.", |t| {
        let knocked = knock(t, "-d 400 10.9.0.1 7000 8000:udp 9000");
        assert_eq!(knocked.wire, "7000 8000u 9000");
        assert!((1200..10_000).contains(&knocked.took.as_millis()), "{:?}", knocked.took);
    }),
    Rule::same(
        "options_anywhere",
        "Options may appear after and between the ports, and may be combined and abbreviated.",
        |t| {
            for line in [
                "10.9.0.1 7000 8000 -u -d 1",
                "10.9.0.1 7000 -ud1 8000",
                "--udp --delay=1 10.9.0.1 7000 8000",
                "10.9.0.1 --ud 7000 --del 1 8000",
            ] {
                assert_eq!(knock(t, line).wire, "7000u 8000u", "{line}");
            }
            assert_eq!(knock(t, "-- 10.9.0.1 7000").wire, "7000");
        },
    ),
    Rule::same(
        "abbreviations",
        "A long option may be abbreviated until it could be another one; then nothing is sent.",
        |t| {
            let mut script = String::new();
            let mut expected = Vec::new();
            for (port, (option, value, sent)) in (7000..).zip([
                ("--u --ud --udp", "", "u"),
                ("--d --de --del --dela --delay", "=1", ""),
                ("--ipv4", "", ""),
                ("--verb --verbo --verbos --verbose", "", ""),
                ("--vers --versi --versio --version", "", "-"),
                ("--h --he --hel --help", "", "-"),
                ("--i --ip --ipv --v --ve --ver", "", "-"),
            ]) {
                for option in option.split(' ') {
                    writeln!(script, "{} {option}{value} 10.9.0.1 {port}", program(t)).unwrap();
                    expected.extend((sent != "-").then(|| format!("{port}{sent}")));
                }
            }
            let mut shell = t.net.client.command("sh");
            shell.args(["-c", &script]);
            let knocked = run(t, shell, "", Duration::ZERO);
            assert_eq!(knocked.wire, expected.join(" "));
            assert_eq!(
                knocked.stdout.matches("hitting tcp 10.9.0.1:7003\n").count(),
                4,
                "{}",
                knocked.stdout
            );
            assert_eq!(knocked.stdout.matches("knock 0.").count(), 4, "{}", knocked.stdout);
        },
    ),
    Rule::same("names_of_hosts", "A host may have any name, such as `list` or `proxy`.", |t| {
        let names = "add list show edit remove import export proxy completions";
        t.net.client.write_file("/run/hosts", &format!("10.9.0.1 {names}\n")).unwrap();
        t.net.client.run(&["mount", "--bind", "/run/hosts", "/etc/hosts"]).unwrap();
        for name in names.split(' ') {
            assert_eq!(knock(t, &format!("{name} 7000 ssh 8000:udp")).wire, "7000 22 8000u", "{name}");
            assert_eq!(knock(t, &format!("{name} -d 1 7000 -u")).wire, "7000u", "{name}");
        }
    }),
    Rule::same("many_ports", "There is no limit to the number of ports.", |t| {
        let ports: Vec<String> = (1000..1100).rev().map(|port| port.to_string()).collect();
        assert_eq!(knock(t, &format!("10.9.0.1 {}", ports.join(" "))).wire, ports.join(" "));
    }),
    Rule::same(
        "port_zero",
        "Port 0 is hit over TCP; over UDP the kernel does not send it, but the exit status is still 0.",
        |t| {
            let knocked = knock(t, "10.9.0.1 0 0:udp 7000");
            assert_eq!((knocked.wire.as_str(), knocked.code), ("0 7000", 0));
        },
    ),
    Rule::same(
        "unreachable",
        "A host without a route and a broadcast address are not failures, although nothing is sent: the \
         exit status is 0.",
        |t| {
            for host in ["192.0.2.1", "10.9.0.255"] {
                let knocked = knock(t, &format!("{host} 7000 8000:udp"));
                assert_eq!((knocked.wire.as_str(), knocked.code), ("", 0), "{host}");
            }
        },
    ),
    Rule::same(
        "no_such_host",
        "A host name that does not resolve is an error: nothing is sent, and the exit status is 1.",
        |t| {
            let knocked = knock(t, "no-such-host.invalid 7000");
            assert_eq!((knocked.wire.as_str(), knocked.code), ("", 1));
            assert!(knocked.stderr.contains("no-such-host.invalid"), "{}", knocked.stderr);
        },
    ),
    Rule::same("no_privilege", "No privileges are needed.", |t| {
        let mut command = t.net.client.command("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", program(t)]);
        assert_eq!(run(t, command, "10.9.0.1 7000 8000:udp", Duration::ZERO).wire, "7000 8000u");
    }),
    Rule::same("version", "`-V` prints the name and version and exits with 0.", |t| {
        let knocked = knock(t, "-V");
        assert!(knocked.stdout.starts_with("knock "), "{}", knocked.stdout);
        assert_eq!((knocked.wire.as_str(), knocked.code), ("", 0));
    }),
    Rule::differs(
        "an_open_port",
        "A connection to an open port is closed with a FIN.",
        "It is closed with a reset, so the service behind the port forgets it at once.",
        |t| {
            let mut silent = t.net.server.spawn(&[env!("CARGO_BIN_EXE_silent"), "7000"]).unwrap();
            silent.wait_for_line("listening", SOON).unwrap();
            let wire = knock_and_wait(t, "10.9.0.1 7000", Duration::from_millis(300)).wire;
            assert!(wire.starts_with("7000 7000/"), "{wire}");
            let ends_by = |flag| wire.rsplit('/').next().is_some_and(|flags| flags.contains(flag));
            assert_eq!((ends_by('F'), ends_by('R')), t.pick((false, true), (true, false)), "{wire}");
        },
    ),
    Rule::differs(
        "upper_case",
        "`:udp` is recognised only in lower case: `7000:UDP` is TCP.",
        "The protocol is not case-sensitive, as in knockd.conf.",
        |t| assert_eq!(knock(t, "10.9.0.1 7000:UDP 8000:TCP").wire, t.pick("7000u 8000", "7000 8000")),
    ),
    Rule::differs(
        "an_unknown_protocol",
        "Any protocol other than `udp` means TCP: `7000:foo` sends a SYN.",
        "It is a usage error, and nothing is sent.",
        |t| {
            let knocked = knock(t, "10.9.0.1 7000:foo 8000");
            assert_eq!((knocked.code, knocked.wire.as_str()), t.pick((2, ""), (0, "7000 8000")));
        },
    ),
    Rule::differs(
        "settings_of_a_hit",
        "`4444:udp:hex=00ff` and `7000:delay=1` are also unknown protocols and send a SYN.",
        "A hit can have a delay, flags and a payload of its own.",
        |t| {
            let knocked = knock(t, "10.9.0.1 4444:udp:hex=00ff 7000:delay=1");
            assert_eq!(knocked.wire, t.pick("4444u with [0, 255] 7000", "4444 7000"));
        },
    ),
    Rule::differs(
        "a_port_that_is_none",
        "Port numbers wrap at 65536: `99999` hits port 34463.",
        "It is a usage error, and nothing is sent.",
        |t| {
            let knocked = knock(t, "10.9.0.1 99999");
            assert_eq!((knocked.code, knocked.wire.as_str()), t.pick((2, ""), (0, "34463")));
        },
    ),
    Rule::differs(
        "an_unknown_service",
        "An unknown service is noticed only when its turn comes, after the preceding hits were sent; the \
         exit status is 1.",
        "Everything is checked first; nothing is sent, and the exit status is 2.",
        |t| {
            let knocked = knock(t, "10.9.0.1 7000 no-such-service 8000");
            assert_eq!((knocked.code, knocked.wire.as_str()), t.pick((2, ""), (1, "7000")));
        },
    ),
    Rule::differs(
        "a_list",
        "A list such as `7000,8000:udp` is an unknown service: nothing is sent, and the exit status is 1.",
        "Its hits are sent, because it is the value of `Sequence`.",
        |t| {
            let knocked = knock(t, "10.9.0.1 7000,8000:udp, 9000");
            assert_eq!((knocked.code, knocked.wire.as_str()), t.pick((0, "7000 8000u 9000"), (1, "")));
        },
    ),
    Rule::differs(
        "a_delay_that_is_none",
        "`-d abc` is a delay of 0, and `-d 5x` one of 5.",
        "It is a usage error, and nothing is sent.",
        |t| {
            for delay in ["abc", "5x"] {
                let knocked = knock(t, &format!("-d {delay} 10.9.0.1 7000"));
                assert_eq!((knocked.code, knocked.wire.as_str()), t.pick((2, ""), (0, "7000")));
            }
        },
    ),
    Rule::differs(
        "usage_errors",
        "With a negative delay, an unknown option, or fewer than two arguments, nothing is sent; the exit \
         status is 1.",
        "Nothing is sent either; the exit status is 2, as for most programs.",
        |t| {
            for line in ["-d -1 10.9.0.1 7000", "--bogus 10.9.0.1 7000", "10.9.0.1", ""] {
                let knocked = knock(t, line);
                assert_eq!(knocked.wire, "", "{line}");
                assert_eq!(knocked.code, t.pick(2, 1), "{line}");
            }
        },
    ),
    Rule::differs("help", "`-h` prints the usage and exits with 1.", "The exit status is 0.", |t| {
        let knocked = knock(t, "-h");
        assert!(knocked.stdout.to_lowercase().contains("usage: knock"), "{}", knocked.stdout);
        assert_eq!(knocked.code, t.pick(0, 1));
    }),
];

/// What a run of the client did.
struct Knocked {
    /// What it sent, in the notation of [`conformance::hits`]; the destination is left out when it is the server's IPv4
    /// address.
    wire: String,
    code: i32,
    stdout: String,
    stderr: String,
    took: Duration,
}

fn program(t: &Session) -> &'static str {
    t.subject.knock().expect("the client").to_str().expect("a path in UTF-8")
}

fn knock(t: &Session, line: &str) -> Knocked {
    knock_and_wait(t, line, Duration::ZERO)
}

/// Looks at the wire for some more time after the client has ended.
fn knock_and_wait(t: &Session, line: &str, wait: Duration) -> Knocked {
    run(t, t.net.client.command(program(t)), line, wait)
}

fn run(t: &Session, mut command: Command, line: &str, wait: Duration) -> Knocked {
    // Sent last, so that everything before it has been captured.
    const END: &str = "the end";
    let mut capture = t.net.client.capture().unwrap();
    let start = Instant::now();
    let output = command.args(line.split_whitespace()).output().unwrap();
    let took = start.elapsed();
    thread::sleep(wait);
    let end = Frame::udp(t.net.client.ipv4, t.net.server.ipv4, 9, END.as_bytes()).bytes().unwrap();
    t.net.client.send_frames(&[&end]).unwrap();
    capture.wait_for_line(&hex(&end), SOON).unwrap();

    let own = [IpAddr::V4(t.net.client.ipv4), IpAddr::V6(t.net.client.ipv6)];
    let frames = capture.lines();
    let words: Vec<String> = frames
        .iter()
        .filter(|frame| frame.text != hex(&end))
        .filter_map(|frame| word(&bytes(&frame.text)?, &own, t.net.server.ipv4.into()))
        .collect();
    Knocked {
        wire: words.join(" "),
        code: output.status.code().expect("an exit status"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        took,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The bytes of a line of hexadecimal digits; `None` of another line.
fn bytes(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// Describes a TCP or UDP packet that comes from one of these addresses.
fn word(frame: &[u8], own: &[IpAddr], usual: IpAddr) -> Option<String> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    if !own.contains(&source) {
        return None;
    }
    let mut word = match packet.transport? {
        TransportSlice::Tcp(tcp) => {
            let flags = [
                (tcp.syn(), 'S'),
                (tcp.ack(), 'A'),
                (tcp.fin(), 'F'),
                (tcp.rst(), 'R'),
                (tcp.psh(), 'P'),
                (tcp.urg(), 'U'),
            ];
            let flags: String =
                flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, letter)| letter).collect();
            let flags = if flags == "S" { String::new() } else { format!("/{flags}") };
            format!("{}{flags}", tcp.destination_port())
        }
        TransportSlice::Udp(udp) if udp.payload() == [0] => format!("{}u", udp.destination_port()),
        TransportSlice::Udp(udp) => format!("{}u with {:?}", udp.destination_port(), udp.payload()),
        _ => return None,
    };
    if destination != usual {
        write!(word, "@{destination}").unwrap();
    }
    Some(word)
}
