//! What `knockd replay` says of real captures is what the daemon has said of the packets themselves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Knockd, SOON, hit, knock, knockd_and_tools, send, sh, syn, wait_until};
use nix::sys::signal::Signal;
use testbed::{Flags, Frame, Net, Running};

/// Doors with the same beginnings and ports, over TCP and UDP, with and without flags, a stop command, a cooldown, and
/// a file of one-time sequences whose name takes the place of FILE.
const DOORS: &str = "\
[options]\nScanLimit = 5\n\
[ssh]\nsequence = 1101,1202:udp,1303\nseq_timeout = 1\ntcpflags = syn\nstart_command = : open %IP%\n\
cmd_timeout = 1\nstop_command = : close %IP%\n\
[web]\nsequence = 1101,1202:udp,1404\ntcpflags = syn\ncommand = : web %IP%\n\
[wake]\nsequence = 1505\ntcpflags = syn\ncooldown = 1\ncommand = : wake %IP%\n\
[once]\none_time_sequences = FILE\ncommand = : once %IP%\n\
[target]\nsequence = 1606,1101\ntarget = 10.9.0.250\ncommand = : target %IP%\n\
[last]\nsequence = 65000:udp\n";

/// Captures by tcpdump: the files, and how they are made. They differ in their link types and in the precision of time.
const CAPTURES: [(&str, &str); 3] = [
    ("ethernet.pcap", "-i eth0"),
    ("cooked.pcap", "-i any -y LINUX_SLL --time-stamp-precision=nano"),
    ("cooked-2.pcap", "-i any -y LINUX_SLL2"),
];

const SEQUENCES: &str = " 1701,1702\n 1801,1802\n";

/// A capture of all that the server sees, as tcpdump writes it.
struct Tcpdump {
    running: Running,
}

impl Tcpdump {
    fn start(net: &Net, file: &str, arguments: &str) -> Self {
        let line =
            format!("tcpdump -Z root -n -U --immediate-mode -s 256 -B 8192 -w /run/{file} {arguments}");
        let words: Vec<_> = line.split_whitespace().collect();
        let mut running = net.server.spawn(&words).unwrap();
        running.wait_for_line("listening on", SOON).unwrap();
        Self { running }
    }

    fn stop(mut self) {
        self.running.signal(Signal::SIGINT).unwrap();
        self.running.wait(SOON).unwrap();
    }
}

/// What the daemon would have logged according to the JSON of a replay.
fn as_log(json: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in json.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        if value["type"] != "note" {
            continue;
        }
        let text = |key: &str| value[key].as_str().unwrap().to_owned();
        let source = text("source");
        let door = value["door"].as_str().unwrap_or_default();
        match value["what"].as_str().unwrap() {
            "stage" => lines.push(format!("{source}: {door}: Stage {}", value["stage"])),
            "opened" => lines.push(format!("{source}: {door}: OPEN SESAME")),
            "timed_out" => {
                lines.push(format!("{source}: {door}: sequence timeout (stage {})", value["stage"]));
            }
            "scanner" => {
                lines.push(format!("{source}: scanner: ignored while it scans and for a minute after"));
            }
            "start" => lines.push(format!("{door}: running command: {}", text("command"))),
            "stop" => lines.extend([
                format!("{source}: {door}: command timeout"),
                format!("{door}: running command: {}", text("command")),
            ]),
            "spoiled" | "extended" | "nothing_to_run" => {}
            other => panic!("{other}"),
        }
    }
    lines
}

/// The lines that packets cause, and in alphabetical order those that come when a time is over or the disk has stored
/// something: the daemon's clock and disk are not exactly those of the capture.
fn in_two(lines: Vec<String>) -> (Vec<String>, Vec<String>) {
    let comes_with_time =
        |line: &String| [" timeout", ": running command: "].iter().any(|text| line.contains(text));
    let (mut by_time, by_packets): (Vec<_>, Vec<_>) = lines.into_iter().partition(comes_with_time);
    by_time.sort();
    (by_packets, by_time)
}

/// Lets all kinds of packets come in.
///
/// Where a time ends, no packet comes that would mean something else a moment earlier or later.
fn make_traffic(net: &Net, knockd: &mut Knockd) {
    let server = net.server.ipv4;
    let udp = |neighbour: u8, port| Frame::udp([10, 9, 0, neighbour], server, port, &[0]);
    knock(&net.client, &format!("-d 20 {server} 1101 1202:udp 1303"));
    knock(&net.client, &format!("-d 20 {server} 1101 1202:udp 1303"));
    knockd.wait_for("ssh: command timeout");
    // Two attempts at once, one of which is spoiled by a port of a third door; repeats; wrong flags; strays.
    send(net, &[syn(net, 10, 1101), syn(net, 10, 1101), udp(10, 1202), udp(10, 1202), syn(net, 10, 4444)]);
    send(net, &[Frame::tcp([10, 9, 0, 10], server, 1404, Flags::ACK), syn(net, 10, 1404)]);
    hit(net, 11, &[1505, 1505, 1701, 1702, 1801]);
    hit(net, 11, &[1802, 1701, 1702]);
    send(
        net,
        &[syn(net, 12, 1101).vlan(5), syn(net, 12, 1101).fragment(0, true), syn(net, 12, 1101).vlan(0)],
    );
    hit(net, 13, &[1101, 21, 22, 23, 25, 53, 80, 110]);
    send(net, &[udp(13, 1202)]);
    let to_target = |port| Frame::tcp([10, 9, 0, 14], [10, 9, 0, 250], port, Flags::SYN);
    send(net, &[to_target(1606).macs([2, 0, 0, 0, 0, 9], net.server.mac), to_target(1101)]);
    // A little of everything in no order, but all at once; not more than 20 lines about a source, which are all logged.
    let ports = [1101, 1303, 1404, 1505, 1606, 1701];
    let mut random = 12345_u64;
    let frames = (0..50).map(|_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let choice = usize::try_from(random >> 40).unwrap();
        let neighbour = 20 + u8::try_from(choice % 5).unwrap();
        match choice / 5 % 3 {
            0 => udp(neighbour, 1202),
            _ => syn(net, neighbour, ports[choice / 15 % ports.len()]),
        }
    });
    send(net, &frames.collect::<Vec<_>>());
    std::thread::sleep(Duration::from_secs(3));
    send(net, &[udp(30, 65000)]);
}

#[test]
fn a_replay_says_what_the_daemon_has_logged() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/sequences", SEQUENCES).unwrap();
    net.server.write_file("/run/sequences-before", SEQUENCES).unwrap();
    net.server.write_file("/run/replay.conf", &DOORS.replace("FILE", "/run/sequences-before")).unwrap();
    sh(&net.server, "chmod 600 /run/sequences* /run/*.conf");
    let captures = CAPTURES.map(|(file, arguments)| Tcpdump::start(&net, file, arguments));
    let mut knockd = Knockd::start(&net, &DOORS.replace("FILE", "/run/sequences"));
    make_traffic(&net, &mut knockd);
    knockd.wait_for("10.9.0.30: last: OPEN SESAME");
    let knockd_program = knockd_and_tools();
    let replay =
        |file: &str| format!("'{knockd_program}' replay /run/{file} -c /run/replay.conf --format json");
    for (file, _) in CAPTURES {
        wait_until("the last packet", || {
            as_log(&sh(&net.server, &format!("{} 2>/dev/null || true", replay(file))))
                .contains(&"10.9.0.30: last: OPEN SESAME".to_owned())
        });
    }
    captures.into_iter().for_each(Tcpdump::stop);
    let (logged_by_packets, logged_by_time) = in_two(knockd.take_lines());
    assert!(
        logged_by_packets.len() > 60 && logged_by_time.len() >= 4,
        "{logged_by_packets:#?} {logged_by_time:#?}"
    );
    for (file, _) in CAPTURES {
        let mut said = as_log(&sh(&net.server, &replay(file)));
        // What comes after the last packet is not awaited.
        let last = said.iter().position(|line| line.contains("last: OPEN SESAME")).unwrap();
        said.truncate(last + 1);
        let (by_packets, by_time) = in_two(said);
        assert_eq!(by_packets, logged_by_packets, "{file}");
        assert_eq!(by_time, logged_by_time, "{file}");
    }
}
