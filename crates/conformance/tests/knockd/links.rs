//! Interfaces, link layers and what stands between them and TCP or UDP.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;

use conformance::hits::{self, Hit};
use conformance::{CONFIG, Rule, Session, Topic};
use testbed::{Flags, Frame};

pub(crate) const TOPIC: Topic = Topic { name: "links", title: "Interfaces and packets", rules: RULES };

const DOOR: &str = "[door]\nsequence = 7000\n[udp]\nsequence = 7000:udp\n";

const RULES: &[Rule] = &[
    Rule::same(
        "ethernet",
        "Ethernet frames are decoded, with or without IP options, from every host that the interface \
         receives.",
        |t| {
            t.start(DOOR);
            let options = frame(t, false).ipv4_options(&[1, 1, 1, 0]);
            assert_eq!(opened(t, &[options]), "door");
        },
    ),
    Rule::same(
        "loopback",
        "`lo` works: its addresses 127.0.0.1 and ::1 count; other loopback addresses do not.",
        |t| {
            t.write(CONFIG, DOOR);
            let mut command = t.net.server.command(t.program());
            t.launch(command.args(["-v", "-i", "lo", "-c", CONFIG]));
            t.wait_for("listening on lo...");
            let hosts: [IpAddr; 3] = ["127.0.0.2", "127.0.0.1", "::1"].map(|host| host.parse().unwrap());
            for host in hosts {
                t.net.server.can_connect(host, 7000).unwrap();
            }
            t.wait_for("::1: door: OPEN SESAME");
            let lines = t.lines();
            let sources: Vec<_> =
                lines.iter().filter_map(|line| line.strip_suffix(": door: OPEN SESAME")).collect();
            assert_eq!(sources, ["127.0.0.1", "::1"]);
        },
    ),
    Rule::same(
        "labels",
        "The label of an address, such as `eth0:1`, stands for its interface, of which only this address counts.",
        |t| {
            t.sh("ip address add 10.9.0.11/24 dev eth0 label eth0:1");
            t.write(CONFIG, DOOR);
            let mut command = t.net.server.command(t.program());
            t.launch(command.args(["-v", "-i", "eth0:1", "-c", CONFIG]));
            t.wait_for("listening on eth0:1...");
            t.send("7000@10.9.0.1<10.9.0.7 7000@10.9.0.11<10.9.0.8");
            t.wait_for("10.9.0.8: door: OPEN SESAME");
            assert!(!t.lines().iter().any(|line| line.contains("10.9.0.7")));
            // No address need have it.
            t.write(CONFIG, "[door]\nsequence = 7000\n[at]\nsequence = 7000\ntarget = 10.9.0.1\n");
            let mut command = t.net.server.command(t.program());
            t.launch(command.args(["-v", "-i", "eth0:2", "-c", CONFIG]));
            t.wait_for("listening on eth0:2...");
            t.send("7000@10.9.0.11<10.9.0.7 7000@10.9.0.1<10.9.0.8");
            t.wait_for("10.9.0.8: at: OPEN SESAME");
            assert!(!t.lines().iter().any(|line| line.contains("10.9.0.7")));
        },
    ),
    Rule::differs(
        "alternative_names",
        "With an alternative name of an interface, it starts, but knows no address of it; `eth0@if2`, as `ip` prints a name, is \
         an error.",
        "Both mean the interface.",
        |t| {
            t.sh("ip link property add dev eth0 altname lan");
            t.write(CONFIG, DOOR);
            for name in ["lan", "eth0@if2"] {
                let mut command = t.net.server.command(t.program());
                t.launch(command.args(["-v", "-i", name, "-c", CONFIG]));
                if t.pick(true, false) {
                    t.wait_for(&format!("listening on {name}..."));
                    t.send("7000");
                    t.wait_for("10.9.0.2: door: OPEN SESAME");
                } else if name == "lan" {
                    t.wait_for("listening on lan...");
                    // There is nothing to wait for: it hears no packet.
                    t.send("1s 7000 1s");
                    assert!(!t.lines().iter().any(|line| line.contains("OPEN SESAME")));
                } else {
                    assert_eq!(t.ended().code, Some(1));
                }
            }
        },
    ),
    Rule::same(
        "tun",
        "Interfaces without an Ethernet header work: tun and other point-to-point links.",
        |t| {
            let mut tun = tun(t);
            let lines = through(t, &mut tun, "7000@192.0.2.1<192.0.2.9 7000u@192.0.2.1<192.0.2.9");
            let wanted = ["door: Stage 1", "door: OPEN SESAME", "udp: Stage 1", "udp: OPEN SESAME"];
            assert_eq!(lines, wanted.map(|line| format!("192.0.2.9: {line}")));
        },
    ),
    Rule::differs(
        "ipv6_through_a_tun",
        "IPv6 packets are misread on interfaces without an Ethernet header.",
        "They count like any other packet.",
        |t| {
            let mut tun = tun(t);
            let lines = through(t, &mut tun, "7000@2001:db8::1<2001:db8::9");
            let opened = lines.contains(&"2001:db8::9: door: OPEN SESAME".to_owned());
            assert_eq!(opened, t.pick(true, false));
        },
    ),
    Rule::same(
        "vlan",
        "A frame with a VLAN tag belongs to the VLAN interface and is invisible on the one below it.",
        |t| {
            t.start(DOOR);
            let tagged = frame(t, false).vlan(5);
            assert_eq!(opened(t, &[tagged]), "");
        },
    ),
    Rule::differs(
        "priority_tag",
        "A priority tag (VLAN 0) hides a packet.",
        "The tag is ignored, as the kernel does.",
        |t| {
            t.start(DOOR);
            let tagged = frame(t, false).vlan(0);
            assert_eq!(opened(t, &[tagged]), t.pick("door", ""));
        },
    ),
    Rule::differs(
        "ipv6_extension_headers",
        "A knock behind an IPv6 extension header is invisible.",
        "Extension headers are read.",
        |t| {
            t.start(DOOR);
            let hidden = frame(t, true).ipv6_extension(60);
            assert_eq!(opened(t, &[hidden]), t.pick("door", ""));
        },
    ),
    Rule::same("later_fragments", "Anything that is not the beginning of an IPv4 packet is ignored.", |t| {
        t.start(DOOR);
        let fragment = frame(t, false).fragment(1, false);
        assert_eq!(opened(t, &[fragment]), "");
    }),
    Rule::differs(
        "first_fragments",
        "The first fragment of a packet counts as a hit.",
        "Fragments are ignored: no knock is long enough to need any.",
        |t| {
            t.start(DOOR);
            let fragment = frame(t, false).fragment(0, true);
            assert_eq!(opened(t, &[fragment]), t.pick("", "door"));
        },
    ),
    Rule::differs(
        "sources_that_no_host_has",
        "A knock counts from any source address, also from one that no knocker can have: unspecified (0.0.0.0/8, \
         ::), multicast, broadcast (255.255.255.255) and reserved (240.0.0.0/4), loopback on an interface other than `lo`, \
         and IPv4 within IPv6 (::ffff:0:0/96, ::/96).",
        "It is ignored, because nobody could use the door; `knockd trace` says why. The broadcast address of a subnet \
         is not recognised, and counts.",
        |t| {
            t.start(DOOR);
            let v4 = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.251", "240.0.0.1", "255.255.255.255"];
            let v6 = ["::", "::1", "ff02::1", "::ffff:203.0.113.7", "::203.0.113.7"];
            for source in v4.iter().chain(&v6) {
                assert_eq!(t.opened_by(&format!("7000<{source}")), t.pick("", "door"), "{source}");
            }
            assert_eq!(t.opened_by("7000<203.0.113.7 7000<2001:db8::7 7000<10.9.0.255"), "door door door");
        },
    ),
    Rule::differs(
        "own_addresses_from_elsewhere",
        "A knock that arrives with the server's own address as its source counts.",
        "It is forged and ignored. An address of the host itself counts as a source only of packets \
         that leave the host or come over `lo`.",
        |t| {
            t.start(&format!("{DOOR}[out]\nsequence = 7000\ntarget = 10.9.0.2\n"));
            assert_eq!(t.opened_by("7000<10.9.0.1 7000<fd00:9::1"), t.pick("", "door door"));
            t.net.server.can_connect(t.net.client.ipv4, 7000).unwrap();
            t.wait_for("10.9.0.1: out: OPEN SESAME");
        },
    ),
    Rule::differs(
        "frames_for_another_machine",
        "While the interface is in promiscuous mode, a frame that is addressed to another machine counts.",
        "It counts only for a `Target` that is not an address of the host itself.",
        |t| {
            t.sh("ip link set eth0 promisc on");
            t.start(&format!("{DOOR}[target]\nsequence = 7000\ntarget = 10.9.0.77\n"));
            let stray = |frame: Frame| frame.macs([2, 0, 0, 0, 9, 2], [2, 0, 0, 0, 9, 77]);
            let aimed = Frame::tcp(t.net.client.ipv4, [10, 9, 0, 77], 7000, Flags::SYN);
            let frames = [stray(frame(t, false)), stray(aimed)];
            assert_eq!(opened(t, &frames), t.pick("target", "door target"));
        },
    ),
    Rule::differs(
        "an_address_added_later",
        "The interface's addresses are read at startup; later ones do not count.",
        "knockd follows addresses as they are added and removed.",
        |t| {
            t.start(DOOR);
            t.sh("ip address add 10.9.0.50/24 dev eth0");
            if t.pick(true, false) {
                t.wait_for("eth0 now has 10.9.0.1, 10.9.0.50");
            } else {
                t.send("1s");
            }
            let lines = t.hits("7000@10.9.0.50");
            let opened = lines.contains(&"10.9.0.2: door: OPEN SESAME".to_owned());
            assert_eq!(opened, t.pick(true, false));
        },
    ),
];

/// A SYN from client to server.
fn frame(t: &Session, v6: bool) -> Frame {
    let (client, server) = (&t.net.client, &t.net.server);
    if v6 {
        Frame::tcp(client.ipv6, server.ipv6, 7000, Flags::SYN)
    } else {
        Frame::tcp(client.ipv4, server.ipv4, 7000, Flags::SYN)
    }
}

/// The doors that these frames open.
fn opened(t: &mut Session, frames: &[Frame]) -> String {
    t.send_frames(frames);
    t.opened_by("")
}

/// Makes a tun interface on the server, starts knockd there, and returns where packets go in.
fn tun(t: &mut Session) -> std::process::Child {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| testbed::build("conformance", "tun").unwrap());
    let mut tun = t.net.server.command(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(tun.stdout.take().unwrap()), &mut ready)
        .unwrap();
    assert_eq!(ready, "ready\n");
    t.write(CONFIG, &format!("{DOOR}[end]\nsequence = 9:udp\n"));
    let mut command = t.net.server.command(t.program());
    t.launch(command.args(["-v", "-i", "tun0", "-c", CONFIG]));
    t.wait_for("listening on tun0...");
    t.lines();
    tun
}

/// Lets packets in through the tun interface and returns what knockd says to them.
fn through(t: &mut Session, tun: &mut std::process::Child, packets: &str) -> Vec<String> {
    let mut text = String::new();
    for hit in hits::parse(&format!("{packets} 9u@192.0.2.1<192.0.2.99")) {
        let Hit::Packet(frame) = hit else { panic!("only packets") };
        // Without its Ethernet header.
        for byte in &frame.bytes().unwrap()[14..] {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    tun.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    t.wait_for("192.0.2.99: end: OPEN SESAME");
    let mut lines = t.lines();
    lines.retain(|line| !line.contains(": end: "));
    lines
}
