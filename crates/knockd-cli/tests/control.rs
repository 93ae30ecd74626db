//! A running daemon that is asked and told on its control socket.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Output;

use common::{KNOCKD, Knockd, hit, send, sh, syn, wait_until};
use testbed::{Flags, Frame, Host, Net, Running};

/// Two commands that can be told apart, and a door that needs no command.
const DOORS: &str = "\
[the ssh door]
sequence = 7101,8202,9303
start_command = echo open %IP%
stop_command = echo close %IP%
cmd_timeout = 60
[plain]
sequence = 17101,18202
";

fn ask(host: &Host, words: &[&str]) -> Output {
    host.command(KNOCKD).args(words).output().unwrap()
}

/// What a command says, and that it succeeds.
fn told(host: &Host, words: &[&str]) -> String {
    let output = ask(host, words);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{words:?}: {said}");
    said
}

/// Why a command fails.
fn refused(host: &Host, words: &[&str]) -> String {
    let output = ask(host, words);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{words:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn status_shows_attempts_and_open_doors_and_neither_ports_nor_the_next_step() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOORS);
    hit(&net, 2, &[7101, 8202, 9303]);
    knockd.wait_for_output("open 10.9.0.2");
    hit(&net, 3, &[7101, 8202]);
    hit(&net, 4, &[7101]);
    knockd.wait_for("10.9.0.4: the ssh door: Stage 1");
    hit(&net, 5, &[7101, 17101]);
    knockd.wait_for("10.9.0.5: plain: Stage 1");
    wait_until("its start command has ended", || told(&net.server, &["status"]).contains("closes in "));
    let status = told(&net.server, &["status"]);
    let lines: Vec<_> =
        status.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let has = |line: &str| assert!(lines.iter().any(|found| found.contains(line)), "{line} in {status}");
    has("eth0 up 10.9.0.1");
    has("the ssh door 3 steps");
    has("Attempts: 3");
    has("10.9.0.3 the ssh door stage 2 started ");
    has("10.9.0.2 the ssh door open closes in ");
    has("attempts started 5");
    has("attempts spoiled by a wrong port 1");
    has("doors opened by a knock 1");
    has("commands run 1");
    let first = lines.iter().position(|line| line.starts_with("10.9.0.3")).unwrap();
    assert!(lines[first + 1].starts_with("10.9.0."), "the most advanced stands first: {status}");
    let json = told(&net.server, &["status", "--format", "json"]);
    let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(parsed["attempts"]["total"], 3);
    assert_eq!(parsed["leases"]["listed"][0]["source"], "10.9.0.2");
    for port in ["7101", "8202", "9303", "17101", "18202"] {
        assert!(!status.contains(port) && !json.contains(port), "{port} in {status} or {json}");
    }
    knockd.stop();
    let gone = refused(&net.server, &["status"]);
    assert!(
        gone.contains("cannot connect to knockd at /run/knockd/control") && gone.contains("is it running?"),
        "{gone}"
    );
}

#[test]
fn doors_are_opened_extended_and_closed_by_hand() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOORS);
    let server = &net.server;
    told(server, &["open", "the ssh door", "192.0.2.7"]);
    let lines = knockd.wait_for("192.0.2.7: the ssh door: OPEN SESAME");
    assert_eq!(lines.text, "192.0.2.7: the ssh door: OPEN SESAME");
    knockd.wait_for_output("open 192.0.2.7");
    assert_eq!(knockd.count("): open the ssh door 192.0.2.7"), 1);
    assert_eq!(told(server, &["extend", "the ssh door", "192.0.2.7", "3600"]), "extended 1 open door\n");
    let left = |text: &str| told(server, &["status"]).contains(text);
    wait_until("an hour", || left("closes in 1 h 0 min") || left("closes in 59 min"));
    // A knock does not shorten it, and neither does the next one.
    told(server, &["open", "the ssh door", "192.0.2.7"]);
    let nothing = told(server, &["extend", "the ssh door", "192.0.2.7", "5"]);
    assert!(
        nothing.starts_with("the ssh door stays open for 192.0.2.7 for ")
            && nothing.ends_with(" anyway; nothing changed\n"),
        "{nothing}"
    );
    assert!(left("closes in 1 h 0 min") || left("closes in 59 min"));
    assert_eq!(told(server, &["close", "the ssh door", "192.0.2.7"]), "closed 1 open door\n");
    knockd.wait_for_output("close 192.0.2.7");
    wait_until("the lease is gone", || left("Open doors: 0"));
    assert_eq!(knockd.count("open 192.0.2.7"), 2, "the command, and its announcement");

    hit(&net, 2, &[7101, 8202, 9303]);
    knockd.wait_for_output("open 10.9.0.2");
    told(server, &["open", "the ssh door", "192.0.2.8"]);
    knockd.wait_for_output("open 192.0.2.8");
    assert_eq!(told(server, &["close", "the ssh door", "--all"]), "closed 2 open doors\n");
    knockd.wait_for_output("close 192.0.2.8");
    wait_until("both are gone", || left("Open doors: 0"));
    assert_eq!(told(server, &["close", "--all"]), "closed 0 open doors\n");
}

#[test]
fn close_waits_for_the_stop_command_and_says_whether_it_worked() {
    let net = Net::new().unwrap();
    let config = "[ssh]\nsequence = 7101\nstart_command = true\ncmd_timeout = 600\n\
                  stop_command = echo bad rule >&2; [ -e /run/can-close ]\n\
                  [slow]\nsequence = 8202\nstart_command = true\ncmd_timeout = 600\nstop_command = sleep 2\n";
    let mut knockd = Knockd::start(&net, config);
    let server = &net.server;
    let is_open = |door: &str| {
        let leases = common::status_json(&net)["leases"]["listed"].take();
        leases.as_array().unwrap().iter().any(|lease| lease["door"] == door && lease["state"] == "open")
    };
    told(server, &["open", "ssh", "192.0.2.7"]);
    told(server, &["open", "slow", "192.0.2.7"]);
    wait_until("both are open", || is_open("ssh") && is_open("slow"));
    let failed = refused(server, &["close", "ssh", "192.0.2.7"]);
    let why = "knockd: ssh for 192.0.2.7: command returned non-zero status code (1): bad rule; retrying in ";
    assert!(failed.starts_with(why), "{failed}");
    sh(server, "touch /run/can-close");
    let begun = std::time::Instant::now();
    assert_eq!(told(server, &["close", "--all"]), "closed 2 open doors\n");
    assert!(begun.elapsed() > std::time::Duration::from_secs(1), "it has not waited");
    assert_eq!(common::status_json(&net)["leases"]["total"], 0);
    knockd.stop();
}

#[test]
fn what_cannot_be_done_is_said_with_the_reason_and_the_remedy() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOORS);
    let server = &net.server;
    told(server, &["open", "the ssh door", "192.0.2.7"]);
    knockd.wait_for_output("open 192.0.2.7");
    for (words, reason) in [
        (
            &["close", "the shs door", "192.0.2.7"][..],
            "no such door: \"the shs door\"; did you mean \"the ssh door\"?",
        ),
        (&["close", "zzz", "--all"], "no such door: \"zzz\"; doors: the ssh door, plain"),
        (
            &["close", "the ssh door", "192.0.2.9"],
            "the ssh door is not open for 192.0.2.9; open for 192.0.2.7",
        ),
        (&["extend", "plain", "192.0.2.9"], "plain is not open for 192.0.2.9"),
        (&["open", "plain", "192.0.2.9"], "plain has no start command or service for 192.0.2.9"),
    ] {
        assert_eq!(refused(server, words), format!("knockd: {reason}\n"));
    }
    let json = ask(server, &["close", "zzz", "--all", "--format", "json"]);
    assert_eq!(json.status.code(), Some(1));
    assert!(json.stdout.starts_with(b"{\"reply\":\"refused\",\"reason\":\"no such door: "), "{json:?}");
    for words in [
        &["close"][..],
        &["close", "plain"],
        &["close", "plain", "192.0.2.1", "--all"],
        &["open", "plain", "host"],
    ] {
        assert_eq!(ask(server, words).status.code(), Some(2), "{words:?}");
    }
    assert!(refused(server, &["status", "--socket", "/no/such"]).contains("at /no/such"));
    sh(server, "chmod 755 /run/knockd");
    let stranger =
        sh(server, &format!("setpriv --reuid 65534 --clear-groups '{KNOCKD}' status 2>&1 || echo $?"));
    // In a user namespace there is no other user to be.
    assert!(
        stranger.contains("only root and members of the group knockd") || stranger.contains("setpriv"),
        "{stranger}"
    );
}

#[test]
fn reload_waits_for_the_result_and_the_socket_moves_with_it() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOORS);
    let server = &net.server;
    server.write_file(common::CONFIG, "[door]\nsequence = x\n").unwrap();
    let why = refused(server, &["reload"]);
    assert!(why.contains("/run/knockd.conf:2:12: error:") && why.contains("^ expected"), "{why}");
    knockd.wait_for("keeping the old configuration");
    assert!(told(server, &["status"]).contains("the ssh door"));
    let other = format!("[options]\ncontrolsocket = /run/else/where\n{DOORS}");
    server.write_file(common::CONFIG, &other).unwrap();
    assert_eq!(told(server, &["reload"]), "reloaded /run/knockd.conf\n");
    assert!(refused(server, &["status"]).contains("is it running?"));
    assert!(told(server, &["status", "--socket", "/run/else/where"]).contains("the ssh door"));
    knockd.stop();
    assert_eq!(sh(server, "ls /run/else /run/knockd"), "/run/else:\n\n/run/knockd:\n");
}

#[test]
fn the_socket_of_a_living_daemon_is_left_to_it_and_that_of_a_dead_one_is_not() {
    let net = Net::new().unwrap();
    let server = &net.server;
    let mut first = Knockd::start(&net, DOORS);
    server
        .write_file("/run/second.conf", "[options]\nstatedir = /run/second\n[second]\nsequence = 5\n")
        .unwrap();
    let mut command = server.command(KNOCKD);
    let mut second = Knockd::run(command.args(["-c", "/run/second.conf", "-v"]));
    assert_eq!(
        second.count("in use by another knockd; give each its own `ControlSocket`"),
        1,
        "{:?}",
        second.lines()
    );
    assert!(told(server, &["status"]).contains("the ssh door"));
    second.stop();
    assert!(told(server, &["status"]).contains("the ssh door"), "it has not taken the socket along");
    first.signal(nix::sys::signal::Signal::SIGKILL);
    first.running.wait(common::SOON).unwrap();
    let _third = Knockd::start(&net, "[third]\nsequence = 5\n");
    assert!(told(server, &["status"]).contains("third"));
}

#[test]
fn in_the_background_and_where_no_socket_can_be_made_it_works_as_well() {
    let net = Net::new().unwrap();
    let server = &net.server;
    let config = format!("[options]\nlogfile = /run/log\ncontrolsocket = sub/here\n{DOORS}");
    server.write_file(common::CONFIG, &config).unwrap();
    // As soon as the foreground process has ended, it can be asked.
    let status = sh(
        server,
        &format!("cd /run; '{KNOCKD}' -d -c knockd.conf && '{KNOCKD}' status --socket /run/sub/here"),
    );
    assert!(status.contains("the ssh door"), "{status}");
    sh(server, "kill $(cat /run/knockd.pid)");
    let config = format!("[options]\ncontrolsocket = /proc/nowhere/control\n{DOORS}");
    let mut knockd = Knockd::start(&net, &config);
    assert_eq!(knockd.count("cannot create control socket /proc/nowhere/control: "), 1);
    hit(&net, 2, &[7101, 8202, 9303]);
    knockd.wait_for_output("open 10.9.0.2");
    knockd.stop();
    let knockd = Knockd::start(&net, &format!("[options]\ncontrolsocket =\n{DOORS}"));
    assert_eq!(knockd.count("control socket"), 0);
    assert!(refused(server, &["status"]).contains("is it running?"));
}

#[test]
fn clients_that_misbehave_harm_nobody() {
    let net = Net::new().unwrap();
    // The hosts see the machine's files outside of their private directories.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("control");
    let mut knockd = Knockd::start(&net, &format!("[options]\ncontrolsocket = {}\n{DOORS}", path.display()));
    let client = || {
        let client = UnixStream::connect(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    };
    // They ask again and again and never read, send garbage, or say nothing.
    let deaf: Vec<_> = (0..5).map(|_| client()).collect();
    for mut client in &deaf {
        while client.write_all(&b"{\"request\":\"status\"}\n".repeat(100)).is_ok() {}
    }
    let garbage: Vec<_> = (0..3).map(|_| client()).collect();
    for mut client in &garbage {
        client.write_all(b"\xff\n").unwrap();
    }
    let _silent: Vec<_> = (0..3).map(|_| client()).collect();
    hit(&net, 2, &[7101, 8202, 9303]);
    knockd.wait_for_output("open 10.9.0.2");
    let socket = path.to_str().unwrap();
    assert!(told(&net.server, &["status", "--socket", socket]).contains("10.9.0.2"));
    knockd.stop();
}

#[test]
fn the_status_of_a_full_table_lists_the_most_advanced_hundred_and_counts_all() {
    const ROOM: u32 = 20_000;
    let net = Net::new().unwrap();
    let _knockd = Knockd::start(&net, &format!("[options]\nmaxattempts = {ROOM}\n{DOORS}"));
    let begin = |number: u32| {
        let source = std::net::Ipv4Addr::from_bits(0x0a80_0000 + number);
        Frame::tcp(source, net.server.ipv4, 7101, Flags::SYN)
    };
    let attempts = || {
        let status = told(&net.server, &["status", "--format", "json"]);
        serde_json::from_str::<serde_json::Value>(&status).unwrap()["attempts"].take()
    };
    let mut chunks =
        (0..).map(|chunk| (0..2048).map(|number| begin(chunk * 2048 + number)).collect::<Vec<_>>());
    // Some may be lost on the way, so there are as many as it takes.
    wait_until("the table is full", || {
        send(&net, &chunks.next().unwrap());
        attempts()["total"] == ROOM
    });
    send(&net, &[syn(&net, 3, 7101), syn(&net, 3, 8202)]);
    wait_until("the most advanced stands first", || {
        let attempts = attempts();
        let listed = attempts["listed"].as_array().unwrap();
        assert_eq!((listed.len(), &attempts["total"]), (100, &ROOM.into()));
        listed[0]["source"] == "10.9.0.3" && listed[0]["stage"] == 2
    });
}

#[test]
fn trace_tells_live_what_becomes_of_packets_and_never_the_next_step() {
    let net = Net::new().unwrap();
    let server = &net.server;
    let mut knockd = Knockd::start(&net, &DOORS.replace("cmd_timeout = 60", "cmd_timeout = 1"));
    let trace = |words: &[&str]| {
        let trace = Running::start(server.command(KNOCKD).arg("trace").args(words)).unwrap();
        wait_until("it listens", || !trace.lines().is_empty());
        trace
    };
    let all = trace(&[]);
    let one = trace(&["10.9.0.3", "--format", "json"]);
    let text = |trace: &Running| trace.lines().into_iter().map(|line| line.text + "\n").collect::<String>();
    let begin = text(&all);
    assert!(
        begin.starts_with("Tracing packets to 10.9.0.1, ") && begin.contains("the kernel filter"),
        "{begin}"
    );
    hit(&net, 2, &[7101, 7101, 8202, 9303]);
    knockd.wait_for_output("open 10.9.0.2");
    hit(&net, 3, &[7101, 8202, 17101]);
    wait_until("the stop command", || {
        text(&all).contains("10.9.0.2: the ssh door: stop command: echo close 10.9.0.2")
    });
    let told = text(&all);
    for line in [
        " 10.9.0.2 to 10.9.0.1, 7101:tcp (syn)\n    the ssh door: Stage 1\n",
        " 10.9.0.2 to 10.9.0.1, 7101:tcp (syn)\n    the ssh door: ignored: repeated step",
        "    the ssh door: OPEN SESAME\n",
        " 10.9.0.2: the ssh door: start command: echo open 10.9.0.2\n",
        "    the ssh door: spoiled at stage 2 by 17101:tcp, which is not the next step\n",
    ] {
        assert!(told.contains(line), "{line} in {told}");
    }
    wait_until("the other one is told", || text(&one).contains("17101"));
    let objects: Vec<serde_json::Value> =
        text(&one).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = objects.iter().map(|object| object["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["begin", "packet", "packet", "packet"]);
    assert_eq!(objects[0]["addresses"][0], "10.9.0.1");
    assert_eq!((&objects[2]["port"], &objects[2]["notes"][0]["stage"]), (&8202.into(), &2.into()));
    assert!(!text(&one).contains("9303") && !text(&one).contains("10.9.0.2"));
    knockd.stop();
    let ended = |mut trace: Running| trace.wait(common::SOON).unwrap().code();
    assert_eq!([ended(all), ended(one)], [Some(1), Some(1)]);
}

#[test]
fn the_members_of_the_group_may_use_it_and_others_may_not() {
    let net = Net::new().unwrap();
    let server = &net.server;
    // Only root can have another group, and only on a host of its own.
    let group =
        "cp /etc/group /run/group && echo knockd:x:4242: >>/run/group && mount --bind /run/group /etc/group";
    sh(server, group);
    if !sh(server, "touch /run/probe; chgrp 4242 /run/probe 2>&1 || true").is_empty() {
        testbed::skip("it takes root: there are no other groups here");
        return;
    }
    let _knockd = Knockd::start(&net, DOORS);
    assert_eq!(sh(server, "stat -c '%a %G' /run/knockd/control"), "660 knockd\n");
    // The program stands where others may not go, so it is copied.
    sh(server, &format!("cp '{KNOCKD}' /run/k && chmod 755 /run/k"));
    let as_user = |groups: &str| {
        sh(server, &format!("setpriv --reuid 65534 --regid 65534 {groups} /run/k status 2>&1 || true"))
    };
    assert!(as_user("--groups 4242").contains("the ssh door"));
    assert!(as_user("--clear-groups").contains("only root and members of the group knockd"));
}

#[test]
fn status_shows_an_interface_that_is_down_and_one_that_is_waited_for() {
    let net = Net::new().unwrap();
    let _knockd = Knockd::start_with(&net, DOORS, &["-v", "--wait", "-i", "eth0,ppp0"]);
    sh(&net.server, "ip link set eth0 down");
    wait_until("both are seen", || {
        let status = told(&net.server, &["status"]);
        let words = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = status.lines().map(words).collect();
        ["eth0 down", "ppp0 missing"].iter().all(|line| lines.iter().any(|found| found == line))
    });
}
