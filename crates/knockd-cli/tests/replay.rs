//! `knockd replay`: what it prints, for people and for programs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![allow(clippy::needless_raw_string_hashes, reason = "snapbox writes its snapshots with them")]

mod common;

use common::{knockd_and_tools, pcap};
use snapbox::cmd::{Command, OutputAssert};
use snapbox::str;
use testbed::{Flags, Frame};

/// Runs `knockd replay` in a directory with these files.
struct Desk {
    directory: tempfile::TempDir,
}

impl Desk {
    fn new(config: &str, capture: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("k.conf"), config).unwrap();
        std::fs::write(directory.path().join("c.pcap"), capture).unwrap();
        Self { directory }
    }

    fn replay(&self, arguments: &str) -> OutputAssert {
        let command = Command::new(knockd_and_tools()).current_dir(self.directory.path()).env("TZ", "UTC");
        let words = ["replay", "c.pcap", "-c", "k.conf"].into_iter().chain(arguments.split_whitespace());
        command.args(words).assert()
    }
}

const SSH: &str = "[ssh]\nsequence = 1101,1202:udp,1303\nseq_timeout = 2\ntcpflags = syn\n\
                   start_command = open %IP%\nstop_command = close %IP%\n[web]\nsequence = 1404,1505\n";

/// A knock that works after some mistakes, by 192.0.2.7 at 198.51.100.1.
fn story() -> Vec<Frame> {
    let [source, server] = [[192, 0, 2, 7], [198, 51, 100, 1]];
    let tcp = |port, flags| Frame::tcp(source, server, port, flags);
    let syn = |port| tcp(port, Flags::SYN);
    let udp = |port| Frame::udp(source, server, port, &[0]);
    vec![
        Frame::tcp(source, [198, 51, 100, 9], 1101, Flags::SYN),
        tcp(1101, Flags::ACK),
        udp(1202),
        syn(1101),
        syn(1101),
        syn(1404),
        syn(1101).fragment(0, true),
        syn(1101).vlan(9),
        syn(2222),
        syn(1101),
        udp(1202),
        syn(1303),
        Frame::tcp([192, 0, 2, 8], server, 1101, Flags::SYN),
        syn(1101),
        udp(1202),
        syn(1303),
    ]
}

#[test]
fn the_story_of_a_source_is_told_packet_by_packet() {
    let desk = Desk::new(SSH, &pcap(&story()));
    desk.replay("--explain 192.0.2.7 --address 198.51.100.1").code(0).stderr_eq("").stdout_eq(str![[r#"
Doors in k.conf: ssh, web
Own addresses (given): 198.51.100.1

2026-09-21 14:13:20.000000    +0.000000       #1 192.0.2.7 to 198.51.100.9, 1101:tcp (syn)
    not seen: the destination is neither a local address nor the `Target` of a door
2026-09-21 14:13:20.500000    +0.500000       #2 192.0.2.7 to 198.51.100.1, 1101:tcp (ack)
    not seen: the doors that use this port want other TCP flags
2026-09-21 14:13:21.000000    +1.000000       #3 192.0.2.7 to 198.51.100.1, 1202:udp
    no effect: starts no sequence, and there is no attempt to advance or spoil
2026-09-21 14:13:21.500000    +1.500000       #4 192.0.2.7 to 198.51.100.1, 1101:tcp (syn)
    ssh: Stage 1
2026-09-21 14:13:22.000000    +2.000000       #5 192.0.2.7 to 198.51.100.1, 1101:tcp (syn)
    ssh: ignored: repeated step; the sequence timeout restarts
2026-09-21 14:13:22.500000    +2.500000       #6 192.0.2.7 to 198.51.100.1, 1404:tcp (syn)
    ssh: spoiled at stage 1 by 1404:tcp, which is not the next step
    web: Stage 1
2026-09-21 14:13:23.000000    +3.000000       #7 192.0.2.7
    not seen: fragment
2026-09-21 14:13:23.500000    +3.500000       #8 192.0.2.7
    not seen: belongs to a VLAN interface
2026-09-21 14:13:24.000000    +4.000000       #9 192.0.2.7 to 198.51.100.1, 2222:tcp (syn)
    not seen: no door uses this port
2026-09-21 14:13:24.500000    +4.500000      #10 192.0.2.7 to 198.51.100.1, 1101:tcp (syn)
    ssh: Stage 1
    web: spoiled at stage 1 by 1101:tcp, which is not the next step
2026-09-21 14:13:25.000000    +5.000000      #11 192.0.2.7 to 198.51.100.1, 1202:udp
    ssh: Stage 2
2026-09-21 14:13:25.500000    +5.500000      #12 192.0.2.7 to 198.51.100.1, 1303:tcp (syn)
    ssh: Stage 3
    ssh: OPEN SESAME
    ssh: start command: open 192.0.2.7
2026-09-21 14:13:26.500000    +6.500000      #14 192.0.2.7 to 198.51.100.1, 1101:tcp (syn)
    ssh: Stage 1
2026-09-21 14:13:27.000000    +7.000000      #15 192.0.2.7 to 198.51.100.1, 1202:udp
    ssh: Stage 2
2026-09-21 14:13:27.500000    +7.500000      #16 192.0.2.7 to 198.51.100.1, 1303:tcp (syn)
    ssh: Stage 3
    ssh: OPEN SESAME
    ssh: already open: stays open for a full `Cmd_Timeout` from now
End of file. If no more packets arrive:
2026-09-21 14:13:37.500000   +17.500000          192.0.2.7: ssh: stop command: close 192.0.2.7

Packets: 16, visible to a door: 11
Attempts: 5, opened: 2, spoiled: 2, timed out: 1, dropped: 0
Scanners: 0
Skipped: 1 (fragment)
Skipped: 1 (belongs to a VLAN interface)

"#]]);
}

#[test]
fn without_a_source_it_is_told_what_the_log_would_have_and_why_attempts_ended() {
    let desk = Desk::new(SSH, &pcap(&story()));
    desk.replay("").code(0).stderr_eq("").stdout_eq(str![[r#"
Doors in k.conf: ssh, web
Own addresses: every destination, because no packet in the file is from or for this machine; set them with --address

2026-09-21 14:13:20.000000    +0.000000       #1 192.0.2.7: ssh: Stage 1
2026-09-21 14:13:21.000000    +1.000000       #3 192.0.2.7: ssh: Stage 2
2026-09-21 14:13:21.500000    +1.500000       #4 192.0.2.7: ssh: Stage 1
2026-09-21 14:13:22.000000    +2.000000          192.0.2.7: ssh: sequence timeout (stage 2)
2026-09-21 14:13:22.500000    +2.500000       #6 192.0.2.7: ssh: spoiled at stage 1 by 1404:tcp, which is not the next step
2026-09-21 14:13:22.500000    +2.500000       #6 192.0.2.7: web: Stage 1
2026-09-21 14:13:24.500000    +4.500000      #10 192.0.2.7: ssh: Stage 1
2026-09-21 14:13:24.500000    +4.500000      #10 192.0.2.7: web: spoiled at stage 1 by 1101:tcp, which is not the next step
2026-09-21 14:13:25.000000    +5.000000      #11 192.0.2.7: ssh: Stage 2
2026-09-21 14:13:25.500000    +5.500000      #12 192.0.2.7: ssh: Stage 3
2026-09-21 14:13:25.500000    +5.500000      #12 192.0.2.7: ssh: OPEN SESAME
2026-09-21 14:13:25.500000    +5.500000      #12 192.0.2.7: ssh: start command: open 192.0.2.7
2026-09-21 14:13:26.000000    +6.000000      #13 192.0.2.8: ssh: Stage 1
2026-09-21 14:13:26.500000    +6.500000      #14 192.0.2.7: ssh: Stage 1
2026-09-21 14:13:27.000000    +7.000000      #15 192.0.2.7: ssh: Stage 2
2026-09-21 14:13:27.500000    +7.500000      #16 192.0.2.7: ssh: Stage 3
2026-09-21 14:13:27.500000    +7.500000      #16 192.0.2.7: ssh: OPEN SESAME
2026-09-21 14:13:27.500000    +7.500000      #16 192.0.2.7: ssh: already open: stays open for a full `Cmd_Timeout` from now
End of file. If no more packets arrive:
2026-09-21 14:13:28.000000    +8.000000          192.0.2.8: ssh: sequence timeout (stage 1)
2026-09-21 14:13:37.500000   +17.500000          192.0.2.7: ssh: stop command: close 192.0.2.7

Packets: 16, visible to a door: 12
Attempts: 6, opened: 2, spoiled: 2, timed out: 2, dropped: 0
Scanners: 0
Skipped: 1 (fragment)
Skipped: 1 (belongs to a VLAN interface)

"#]]);
}

#[test]
fn the_json_has_one_object_a_line() {
    let desk = Desk::new(SSH, &pcap(&story()));
    desk.replay("--explain 192.0.2.7 -a 198.51.100.1 --format json")
        .code(0)
        .stderr_eq("")
        .stdout_eq(str![[r#"
{"type":"begin","config":"k.conf","doors":["ssh","web"],"own":"given","addresses":["198.51.100.1"]}
{"type":"packet","number":1,"time":"2026-09-21T14:13:20Z","offset":0.0,"source":"192.0.2.7","destination":"198.51.100.9","protocol":"tcp","port":1101,"flags":["syn"],"notes":[{"source":"192.0.2.7","what":"not_watched"}]}
{"type":"packet","number":2,"time":"2026-09-21T14:13:20.5Z","offset":0.5,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"tcp","port":1101,"flags":["ack"],"notes":[{"source":"192.0.2.7","what":"other_flags"}]}
{"type":"packet","number":3,"time":"2026-09-21T14:13:21Z","offset":1.0,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"udp","port":1202,"notes":[{"source":"192.0.2.7","what":"no_effect"}]}
{"type":"packet","number":4,"time":"2026-09-21T14:13:21.5Z","offset":1.5,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"tcp","port":1101,"flags":["syn"],"notes":[{"source":"192.0.2.7","door":"ssh","what":"stage","stage":1}]}
{"type":"packet","number":5,"time":"2026-09-21T14:13:22Z","offset":2.0,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"tcp","port":1101,"flags":["syn"],"notes":[{"source":"192.0.2.7","door":"ssh","what":"repeated","stage":1}]}
{"type":"packet","number":6,"time":"2026-09-21T14:13:22.5Z","offset":2.5,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"tcp","port":1404,"flags":["syn"],"notes":[{"source":"192.0.2.7","door":"ssh","what":"spoiled","stage":1,"by":"1404:tcp"},{"source":"192.0.2.7","door":"web","what":"stage","stage":1}]}
{"type":"unread","number":7,"time":"2026-09-21T14:13:23Z","offset":3.0,"source":"192.0.2.7","reason":"fragment"}
{"type":"unread","number":8,"time":"2026-09-21T14:13:23.5Z","offset":3.5,"source":"192.0.2.7","reason":"vlan"}
{"type":"packet","number":9,"time":"2026-09-21T14:13:24Z","offset":4.0,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"tcp","port":2222,"flags":["syn"],"notes":[{"source":"192.0.2.7","what":"no_doors_port"}]}
{"type":"packet","number":10,"time":"2026-09-21T14:13:24.5Z","offset":4.5,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"tcp","port":1101,"flags":["syn"],"notes":[{"source":"192.0.2.7","door":"ssh","what":"stage","stage":1},{"source":"192.0.2.7","door":"web","what":"spoiled","stage":1,"by":"1101:tcp"}]}
{"type":"packet","number":11,"time":"2026-09-21T14:13:25Z","offset":5.0,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"udp","port":1202,"notes":[{"source":"192.0.2.7","door":"ssh","what":"stage","stage":2}]}
{"type":"packet","number":12,"time":"2026-09-21T14:13:25.5Z","offset":5.5,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"tcp","port":1303,"flags":["syn"],"notes":[{"source":"192.0.2.7","door":"ssh","what":"stage","stage":3},{"source":"192.0.2.7","door":"ssh","what":"opened"}]}
{"type":"note","number":12,"time":"2026-09-21T14:13:25.5Z","offset":5.5,"source":"192.0.2.7","door":"ssh","what":"start","command":"open 192.0.2.7"}
{"type":"packet","number":14,"time":"2026-09-21T14:13:26.5Z","offset":6.5,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"tcp","port":1101,"flags":["syn"],"notes":[{"source":"192.0.2.7","door":"ssh","what":"stage","stage":1}]}
{"type":"packet","number":15,"time":"2026-09-21T14:13:27Z","offset":7.0,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"udp","port":1202,"notes":[{"source":"192.0.2.7","door":"ssh","what":"stage","stage":2}]}
{"type":"packet","number":16,"time":"2026-09-21T14:13:27.5Z","offset":7.5,"source":"192.0.2.7","destination":"198.51.100.1","protocol":"tcp","port":1303,"flags":["syn"],"notes":[{"source":"192.0.2.7","door":"ssh","what":"stage","stage":3},{"source":"192.0.2.7","door":"ssh","what":"opened"}]}
{"type":"note","number":16,"time":"2026-09-21T14:13:27.5Z","offset":7.5,"source":"192.0.2.7","door":"ssh","what":"extended"}
{"type":"end_of_file"}
{"type":"note","time":"2026-09-21T14:13:37.5Z","offset":17.5,"source":"192.0.2.7","door":"ssh","what":"stop","command":"close 192.0.2.7"}
{"type":"summary","complete":true,"packets":16,"visible":11,"attempts":5,"opened":2,"spoiled":2,"timed_out":1,"evicted":0,"scanners":0,"unread":{"fragment":1,"vlan":1}}

"#]]);
}

#[test]
fn of_a_damaged_file_what_could_be_read_is_told_and_then_where_it_is_damaged() {
    let whole = pcap(&story());
    let desk = Desk::new(SSH, &whole[..whole.len() - 10]);
    let output = desk.replay("--explain 192.0.2.7 -a 198.51.100.1").code(1).stderr_eq(str![[r#"
knockd: c.pcap: packet 16 is truncated

"#]]);
    let stdout = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert!(stdout.contains("Packets: 15,") && stdout.contains("ssh: OPEN SESAME"), "{stdout}");
}

#[test]
fn no_truncation_of_a_capture_does_any_harm() {
    let whole = pcap(&story());
    for length in (0..whole.len()).step_by(13) {
        let desk = Desk::new(SSH, &whole[..length]);
        let output = desk.replay("").code(1);
        let stderr = String::from_utf8(output.get_output().stderr.clone()).unwrap();
        let reason = stderr.strip_prefix("knockd: c.pcap: ").unwrap_or_else(|| panic!("{length}: {stderr}"));
        let is_named = ["empty file\n", "truncated file header\n"].contains(&reason)
            || reason.starts_with("packet ") && reason.ends_with(" is truncated\n");
        assert!(is_named, "{length}: {stderr}");
    }
}

#[test]
fn what_cannot_be_read_at_all_is_named() {
    let desk = Desk::new(SSH, b"");
    desk.replay("").code(1).stdout_eq("").stderr_eq(str![[r#"
knockd: c.pcap: empty file

"#]]);
    let desk = Desk::new(SSH, b"\x1f\x8b\x08 something else, long enough to be looked at");
    desk.replay("--format json").code(1).stdout_eq("");
    desk.replay("").code(1).stdout_eq("").stderr_eq(str![[r#"
knockd: c.pcap: not a pcap or pcapng file, as written by tcpdump -w or Wireshark; if it is compressed, decompress it first

"#]]);
    let desk = Desk::new("[ssh]\nsequence = 80000\n", b"");
    desk.replay("").code(1).stdout_eq("").stderr_eq(str![[r#"
knockd: invalid configuration:
k.conf:2:12: error: unexpected "80000"
  |
2 | sequence = 80000
  |            ^^^^^ expected a port number from 0 to 65535

"#]]);
    Command::new(knockd_and_tools())
        .current_dir(desk.directory.path())
        .args(["replay", "no-such.pcap", "-c", "/dev/null"])
        .assert()
        .code(1)
        .stderr_eq(str![[r#"
knockd: cannot read no-such.pcap: No such file or directory (os error 2)

"#]]);
}

#[test]
fn a_capture_without_packets_is_a_capture() {
    let desk = Desk::new(SSH, &pcap(&[]));
    let stdout = String::from_utf8(desk.replay("").code(0).get_output().stdout.clone()).unwrap();
    assert!(stdout.starts_with("Doors in k.conf: ssh, web\n") && stdout.contains("Packets: 0,"), "{stdout}");
}

#[test]
fn times_in_json_have_the_digits_of_the_capture() {
    let mut capture = pcap(&story()[..2]);
    // The microseconds of the first and of the second packet, which starts at this length.
    let second = pcap(&story()[..1]).len();
    for (record, microseconds) in [(24, 123_457_u32), (second, 323_691)] {
        capture[record + 4..record + 8].copy_from_slice(&microseconds.to_le_bytes());
    }
    let desk = Desk::new(SSH, &capture);
    let output = desk.replay("--explain 192.0.2.7 --format json").code(0);
    let stdout = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert!(stdout.contains(r#""time":"2026-09-21T14:13:20.323691Z","offset":0.200234,"#), "{stdout}");
}

#[test]
fn a_port_that_was_hit_with_the_wrong_protocol_is_explained() {
    let [source, server] = [[192, 0, 2, 7], [198, 51, 100, 1]];
    let frames = [Frame::udp(source, server, 1101, &[0]), Frame::tcp(source, server, 1202, Flags::SYN)];
    let desk = Desk::new(SSH, &pcap(&frames));
    let told = |arguments: &str| {
        let output = desk.replay(&format!("--explain 192.0.2.7 {arguments}")).code(0);
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let text = told("");
    assert!(text.contains("\n    ssh: not seen: this door wants 1101:tcp\n"), "{text}");
    assert!(text.contains("\n    ssh: not seen: this door wants 1202:udp\n"), "{text}");
    let json = told("--format json");
    assert!(
        json.contains(r#"{"source":"192.0.2.7","door":"ssh","what":"other_protocol","wants":"1101:tcp"}"#),
        "{json}"
    );
}

#[test]
fn a_source_that_is_not_in_the_file_is_said_to_be_missing() {
    let desk = Desk::new(SSH, &pcap(&story()));
    let output = desk.replay("--explain 203.0.113.1").code(0);
    let stdout = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert!(stdout.contains("No packet in the file comes from 203.0.113.1."), "{stdout}");
}

#[test]
fn a_packet_that_no_knocker_can_have_sent_is_explained_and_one_from_a_local_address_is_taken_to_leave_the_host()
 {
    let to = |source: [u8; 4], target: [u8; 4]| Frame::tcp(source, target, 7000, Flags::SYN);
    let own = [198, 51, 100, 1];
    let frames = [to([224, 0, 0, 1], own), to([127, 0, 0, 1], own), to(own, [203, 0, 113, 7])];
    let lo = to([127, 0, 0, 1], own).macs([0; 6], [0; 6]);
    let doors = "[door]\nsequence = 7000\n[out]\nsequence = 7000\ntarget = 203.0.113.7\n";
    let desk = Desk::new(doors, &pcap(&[&frames[..], &[lo]].concat()));
    let explained = |source: &str| {
        let output = desk.replay(&format!("--explain {source} --address 198.51.100.1")).code(0);
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let multicast = explained("224.0.0.1");
    assert!(multicast.contains("\n    ignored: multicast source address\n"), "{multicast}");
    let loopback = explained("127.0.0.1");
    assert!(loopback.contains("\n    ignored: loopback source address on another interface\n"), "{loopback}");
    assert!(loopback.contains("\n    door: OPEN SESAME\n"), "over lo: {loopback}");
    let local = explained("198.51.100.1");
    assert!(local.contains("\n    out: OPEN SESAME\n"), "{local}");
}

#[test]
fn doors_in_included_files_are_replayed() {
    let desk = Desk::new("[options]\nInclude = *.door\n", &pcap(&story()));
    std::fs::write(desk.directory.path().join("ssh.door"), SSH).unwrap();
    let text = String::from_utf8(desk.replay("").code(0).get_output().stdout.clone()).unwrap();
    assert!(text.starts_with("Doors in k.conf: ssh, web\n") && text.contains("ssh: OPEN SESAME"), "{text}");
}

#[test]
fn whom_the_firewall_would_let_in_and_for_how_long_is_told() {
    let config = "[options]\nFirewall = nftables\n[ssh]\nSequence = 1101,1202:udp,1303\nOpen = tcp/22\n";
    let desk = Desk::new(config, &pcap(&story()));
    let text = String::from_utf8(desk.replay("-a 198.51.100.1").code(0).get_output().stdout.clone()).unwrap();
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once("192.0.2.7: ssh: ")).collect();
    let told: Vec<_> =
        lines.iter().map(|(_, told)| *told).filter(|told| !told.starts_with("Stage")).collect();
    let extended = "already open: stays open for a full `Cmd_Timeout` from now";
    let expected =
        ["OPEN SESAME", "let in for 30 s", "OPEN SESAME", extended, "let in for 30 s", "let in no longer"];
    assert_eq!(told, expected, "{text}");
}

#[test]
fn who_is_let_in_with_a_network_is_told_so_in_the_explanation_of_an_address() {
    let config = "[options]\nFirewall = nftables\n[ssh]\nSequence = 1101,1202:udp,1303\nOpen = tcp/22\nOpen_For = /24\n";
    let desk = Desk::new(config, &pcap(&story()));
    let explained = |arguments: &str| {
        let output = desk.replay(&format!("-a 198.51.100.1 --explain 192.0.2.7 {arguments}")).code(0);
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let text = explained("");
    assert_eq!(text.matches("let in with its whole /24 for 30 s").count(), 2, "{text}");
    let json = explained("--format json");
    let note = r#""source":"192.0.2.0","door":"ssh","what":"let_in","seconds":30,"network":"192.0.2.0/24""#;
    assert_eq!(json.matches(note).count(), 2, "{json}");
}
