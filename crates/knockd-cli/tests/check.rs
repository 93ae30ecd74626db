//! `knockd check`: what it finds, and how it ends.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::needless_raw_string_hashes, reason = "snapbox writes its snapshots with them")]

mod common;

use std::fs::{self, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::knockd_and_tools;
use snapbox::cmd::{Command, OutputAssert};
use snapbox::str;

/// A door that nothing is to be said about.
const GOOD: &str = "[ssh]\n\tSequence = 20011,4207:udp,11393\n\tSeq_Timeout = 5\n\tTCPFlags = syn\n\
                    \tStart_Command = echo open %IP%\n\tStop_Command = echo close %IP%\n";

fn write(directory: &Path, name: &str, text: &str) {
    fs::write(directory.join(name), text).unwrap();
    fs::set_permissions(directory.join(name), Permissions::from_mode(0o600)).unwrap();
}

/// Runs `knockd` in a directory in which `k.conf` has this text.
fn knockd_with(config: &str, arguments: &str) -> OutputAssert {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "k.conf", config);
    write(directory.path(), "used-up", "# yesterday\n#700,800\n");
    let program = Command::new(knockd_and_tools()).current_dir(directory.path());
    program.args(arguments.split_whitespace()).assert()
}

/// The codes of the findings that are no notes, from the JSON.
fn codes(config: &str) -> Vec<String> {
    let output = knockd_with(config, "check k.conf --format json");
    let findings: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let findings = findings.as_array().unwrap().iter().filter(|finding| finding["severity"] != "note");
    findings.map(|finding| finding["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_good_file_passes_and_the_odds_of_its_doors_are_told() {
    for arguments in ["check k.conf", "check --strict k.conf", "-t -c k.conf"] {
        knockd_with(GOOD, arguments).code(0).stderr_eq("").stdout_eq(str![[r#"
k.conf:1:1: note: door `ssh`: odds of a blind guess: 1 in 10^15; of a scan of all ports: 1 in 10^13 in random order, 1 in 10^12 in every order (before detection)
...
k.conf: 0 errors, 0 warnings

"#]]);
    }
}

#[test]
fn every_error_is_drawn_and_the_status_is_1() {
    let config = "[ssh]\nsequence = 700,80000\nseq_timeot = 5\n";
    knockd_with(config, "check k.conf").code(1).stderr_eq("").stdout_eq(str![[r#"
k.conf:2:16: error: unexpected "80000"
  |
2 | sequence = 700,80000
  |                ^^^^^ expected a port number from 0 to 65535
k.conf:3:1: error: `seq_timeot` is not a valid directive in a door
  |
3 | seq_timeot = 5
  | ^^^^^^^^^^ expected a known directive
  |
  = help: did you mean `Seq_Timeout`?
k.conf: 2 errors, 0 warnings

"#]]);
}

#[test]
fn what_is_unwise_is_a_warning_that_fails_only_if_that_is_asked_for() {
    let config = "[ssh]\nsequence = 7000,8000,9000\ntcpflags = syn,ack\nseq_timeout = 90\n\
                  start_command = /usr/sbin/no-such-program -I INPUT -s %IP%\n";
    let expected = str![[r#"
k.conf:2:12: warning: sequence published in examples
  |
2 | sequence = 7000,8000,9000
  |            ^^^^^^^^^^^^^^ expected your own ports; `shuf -i 1024-32767 -n 4` picks four
k.conf:3:12: warning: no ordinary client sends the flags `syn,ack`
  |
3 | tcpflags = syn,ack
  |            ^^^^^^^ expected `syn`, unless this is intended
  |
  = help: to knock, run as root: knock --tcpflags syn,ack HOST PORT...
k.conf:4:15: warning: 90 s is unusually long for a knock
  |
4 | seq_timeout = 90
  |               ^^ expected a few seconds, at most 60
k.conf:5:17: warning: /usr/sbin/no-such-program: not found or not executable
  |
5 | start_command = /usr/sbin/no-such-program -I INPUT -s %IP%
  |                 ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected an installed program; its package may be missing
k.conf:1:1: note: door `ssh`: odds of a blind guess: 1 in 10^14; of a scan of all ports: 1 in 10^12 in random order, 1 in 10^11 in every order (before detection)
...
k.conf: 0 errors, 4 warnings

"#]];
    knockd_with(config, "check k.conf").code(0).stderr_eq("").stdout_eq(expected);
    knockd_with(config, "check k.conf --strict").code(1).stderr_eq("");
}

#[test]
fn the_json_is_one_list() {
    let config = GOOD.replace("20011,4207:udp,11393", "4207,11393");
    knockd_with(&config, "check k.conf --format json").code(0).stderr_eq("").stdout_eq(str![[r#"
[{"severity":"warning","code":"ascending-ports","path":"k.conf","line":2,"column":13,"message":"ports in ascending order","expected":"ports out of order, which an ascending scan cannot hit"},{"severity":"note","code":"odds","path":"k.conf","line":1,"column":1,"message":"door `ssh`: odds of a blind guess: 1 in 10^10; of a scan of all ports: 1 in 10^8 in random order, 1 in 10^8 in every order (before detection)"}[..]]

"#]]);
    let errors = knockd_with("[ssh]\nsequence =\n", "check k.conf --format json").code(1);
    errors.stderr_eq("").stdout_eq(str![[r#"
[{"severity":"error","code":"invalid","path":"k.conf","line":2,"column":11,"message":"empty value","expected":"a port number from 0 to 65535"}]

"#]]);
}

#[test]
fn a_port_on_which_a_program_listens_is_a_warning() {
    let tcp = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let udp = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    let local = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = |address: std::io::Result<std::net::SocketAddr>| address.unwrap().port();
    let [tcp, udp, local] = [port(tcp.local_addr()), port(udp.local_addr()), port(local.local_addr())];
    for (sequence, expected) in [
        (format!("{tcp},1404"), &["live-port"][..]),
        (format!("1404,{udp}:udp"), &["live-port"]),
        (format!("1404:udp,{local}"), &[]),
    ] {
        assert_eq!(codes(&GOOD.replace("20011,4207:udp,11393", &sequence)), expected, "{sequence}");
    }
}

#[test]
fn a_program_that_is_missing_is_a_warning_where_the_command_stands() {
    let config = GOOD.replace("echo close", "/no/such/program");
    knockd_with(&config, "check k.conf").code(0).stdout_eq(str![[r#"
k.conf:6:17: warning: /no/such/program: not found or not executable
  |
6 |     Stop_Command = /no/such/program %IP%
  |                    ^^^^^^^^^^^^^^^^^^^^^ expected an installed program; its package may be missing
k.conf:1:1: note: door `ssh`: odds of a blind guess: 1 in 10^15; of a scan of all ports: 1 in 10^13 in random order, 1 in 10^12 in every order (before detection)
...
k.conf: 0 errors, 1 warning

"#]]);
}

#[test]
fn a_one_time_file_that_is_missing_is_an_error_and_a_used_up_one_is_a_warning() {
    for (file, severity, code) in [("missing", "error", 1), ("used-up", "warning", 0)] {
        let config = format!("[once]\none_time_sequences = {file}\n");
        assert_eq!(codes(&config), ["one-time-file"], "{file}");
        let output = knockd_with(&config, "check -c k.conf").code(code);
        let stdout = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        assert!(stdout.starts_with(&format!("k.conf:2:22: {severity}: ")), "{stdout}");
    }
}

#[test]
fn a_clock_that_is_not_synchronised_is_a_note() {
    let output = knockd_with(GOOD, "check k.conf --strict").code(0);
    let stdout = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    let note = "k.conf: note: the clock of this machine is not synchronised: ";
    assert_eq!(stdout.contains(note), knockd_capture::clock_is_synchronised() == Some(false), "{stdout}");
}

#[test]
fn an_interface_that_does_not_exist_is_a_warning_unless_it_is_waited_for() {
    let with = |lines: &str| format!("[options]\nInterface = no-such-interface\n{lines}\n{GOOD}");
    assert_eq!(codes(&with("")), ["missing-interface"]);
    assert_eq!(codes(&with("WaitInterface")), [""; 0]);
}

#[test]
fn files_that_others_can_read_or_write_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "k.conf", &format!("[once]\none_time_sequences = list\n{GOOD}"));
    write(directory.path(), "list", " 20011,4207\n");
    let check = |arguments: &str| {
        let program = Command::new(knockd_and_tools()).current_dir(directory.path());
        program.args(arguments.split_whitespace()).assert()
    };
    check("check --strict k.conf").code(0);
    for (file, mode, code) in
        [("k.conf", 0o644, 0), ("list", 0o644, 0), ("k.conf", 0o602, 1), ("list", 0o602, 1)]
    {
        fs::set_permissions(directory.path().join(file), Permissions::from_mode(mode)).unwrap();
        let output = check("check k.conf").code(code);
        let stdout = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        let what = if code == 0 { "world-readable" } else { "world-writable" };
        assert!(stdout.contains(what) && stdout.contains(&format!("; run: chmod o= {file}")), "{stdout}");
        fs::set_permissions(directory.path().join(file), Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn included_files_are_checked_like_the_file_itself() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let check = |arguments: &str| {
        let program = Command::new(knockd_and_tools()).current_dir(directory.path());
        program.args(arguments.split_whitespace()).assert()
    };
    let stdout = |assert: OutputAssert| String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    write(directory.path(), "k.conf", &format!("[options]\nInclude = d/*.conf\n{GOOD}"));
    check("check --strict k.conf").code(0);

    fs::create_dir(path("d")).unwrap();
    fs::set_permissions(path("d"), Permissions::from_mode(0o755)).unwrap();
    write(directory.path(), "d/b.conf", "[b]\nSequence = 20012,80000\n");
    write(directory.path(), "d/a.conf", "[a]\nSequence = 20013,1404\nTCPFlags = syn\nSeq_Timeot = 5\n");
    check("check k.conf").code(1).stderr_eq("").stdout_eq(str![[r#"
d/a.conf:4:1: error: `Seq_Timeot` is not a valid directive in a door
  |
4 | Seq_Timeot = 5
  | ^^^^^^^^^^ expected a known directive
  |
  = help: did you mean `Seq_Timeout`?
d/b.conf:2:18: error: unexpected "80000"
  |
2 | Sequence = 20012,80000
  |                  ^^^^^ expected a port number from 0 to 65535
k.conf: 2 errors, 0 warnings

"#]]);
    assert!(stdout(check("check k.conf --format json")).contains(r#""path":"d/a.conf","line":4,"column":1"#));

    write(directory.path(), "d/a.conf", "[a]\nSequence = 20013,1404:udp\nTCPFlags = syn\nSeq_Timeout = 5\n");
    fs::remove_file(path("d/b.conf")).unwrap();
    let odds = stdout(check("check --strict k.conf").code(0));
    assert!(
        odds.starts_with("k.conf:3:1: note: door `ssh`") && odds.contains("\nd/a.conf:1:1: note: door `a`"),
        "{odds}"
    );

    for (name, mode, said) in [
        (
            "d/a.conf",
            0o644,
            "d/a.conf: warning: world-readable, but contains secrets; run: chmod o= d/a.conf",
        ),
        ("d", 0o757, "d: error: world-writable, so anyone could run commands as "),
    ] {
        let before = fs::metadata(path(name)).unwrap().permissions();
        fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
        let told = stdout(check("check k.conf"));
        assert!(told.contains(said), "{told}");
        fs::set_permissions(path(name), before).unwrap();
    }
    fs::create_dir(path("d/more.conf")).unwrap();
    check("check k.conf")
        .code(1)
        .stdout_eq("")
        .stderr_eq("knockd: cannot read d/more.conf: a directory; include d/more.conf/*.conf\n");
}
