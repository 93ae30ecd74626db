//! The files that knockd reads and writes: who may use them, and what happens when they cannot grow.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{CONFIG, KNOCKD, Knockd, hit, is_root, knockd_and_tools, sh, wait_for_file, wait_until};
use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use testbed::{Net, Stream};

const FILES: &str = "[options]\nLogFile = /run/k.log\nPidFile = /run/k.pid\nStateDir = /run/state\n\
                     Metrics = /run/k.prom\nControlSocket = /run/k.socket\n";

/// A door whose start command prints the signals that it ignores.
const DOOR: &str = "[door]\nsequence = 7000\ncmd_timeout = 600\n\
                    start_command = grep SigIgn /proc/self/status; echo open %IP%\nstop_command = echo closed %IP%\n";

/// A shell on the server that becomes `knockd` with these arguments after this.
fn after(net: &Net, first: &str, arguments: &str) -> String {
    net.server.write_file(CONFIG, &format!("{FILES}{DOOR}")).unwrap();
    format!("{first}; exec '{KNOCKD}' {arguments} -c {CONFIG}")
}

#[test]
fn files_that_may_not_grow_end_neither_knockd_nor_its_doors_and_each_is_reported_once() {
    let net = Net::new().unwrap();
    let script = after(&net, "ulimit -f 0", "-v");
    let mut knockd = Knockd::run(net.server.command("sh").args(["-c", &script]));
    for neighbour in [2, 3] {
        hit(&net, neighbour, &[7000]);
        knockd.wait_for_output(&format!("open 10.9.0.{neighbour}"));
    }
    for neighbour in [2, 3] {
        let address = format!("10.9.0.{neighbour}");
        sh(&net.server, &format!("'{KNOCKD}' close door {address} --socket /run/k.socket || true"));
        knockd.wait_for_output(&format!("closed {address}"));
    }
    wait_until("the metrics are tried", || knockd.count("cannot write metrics to /run/k.prom: ") > 0);
    for what in [
        "cannot write to log file /run/k.log: ",
        "cannot save open doors in /run/state: ",
        "cannot write metrics to /run/k.prom: ",
    ] {
        let lines = knockd.running.lines().into_iter().filter(|line| line.stream == Stream::Stderr);
        let lines: Vec<_> = lines.map(|line| line.text).filter(|line| line.contains(what)).collect();
        assert!(matches!(&lines[..], [line] if line.contains("File too large")), "{what}: {lines:?}");
    }
    let ignored: Vec<_> =
        knockd.lines().iter().filter_map(|line| Some(line.strip_prefix("SigIgn:\t")?.to_owned())).collect();
    let file_size = 1 << (Signal::SIGXFSZ as u64 - 1);
    let is_ignored = |mask: &String| u64::from_str_radix(mask, 16).unwrap() & file_size != 0;
    assert!(
        ignored.len() == 2 && !ignored.iter().any(is_ignored),
        "commands meet the limit as ever: {ignored:?}"
    );
    knockd.stop();
}

#[test]
fn a_log_file_that_may_grow_again_gets_whole_lines_again() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &format!("{FILES}{DOOR}"));
    let pid = Pid::from_raw(knockd.running.pid().unwrap().try_into().unwrap());
    let may_grow_to = |size| prlimit(pid, Resource::Fsize, Rlimit { current: size, maximum: None }).unwrap();
    let before = wait_for_file(&net.server, "/run/k.log", "starting up, listening on eth0\n");
    may_grow_to(Some(before.len() as u64 + 10));
    for neighbour in [2, 3] {
        hit(&net, neighbour, &[7000]);
        knockd.wait_for_output(&format!("open 10.9.0.{neighbour}"));
    }
    may_grow_to(None);
    hit(&net, 4, &[7000]);
    let after = wait_for_file(&net.server, "/run/k.log", "10.9.0.4: door: OPEN SESAME\n");
    let new = after.strip_prefix(&before).unwrap();
    let (torn, whole) = new.split_once('\n').unwrap();
    assert_eq!(torn.len(), 10, "{new}");
    assert!(whole.lines().all(|line| line.starts_with('[')) && !whole.contains("10.9.0.3"), "{new}");
    assert_eq!(knockd.count("cannot write to log file /run/k.log: File too large"), 1);
}

#[test]
fn a_pid_file_that_cannot_be_written_is_not_left_empty() {
    let net = Net::new().unwrap();
    let script = after(&net, "ulimit -f 0", "-d");
    sh(&net.server, &script);
    let ask = [KNOCKD, "status", "--socket", "/run/k.socket"];
    wait_until("it listens", || net.server.run(&ask).is_ok());
    assert_eq!(
        sh(&net.server, "ls -s /run/k.log; test -e /run/k.pid || echo no pid file").trim(),
        "0 /run/k.log\nno pid file"
    );
}

#[test]
fn no_file_is_for_everybody_to_write_whatever_the_umask() {
    let net = Net::new().unwrap();
    let script = after(&net, "umask 0", "-d");
    sh(&net.server, &script);
    wait_for_file(&net.server, "/run/k.prom", "knockd_doors");
    hit(&net, 2, &[7000]);
    wait_until("a lease", || !sh(&net.server, "find /run/state -name '*.lease'").is_empty());
    let list = "cd /run; find k.log k.pid k.prom k.socket state -printf '%p %m\\n' | sort";
    let found = sh(&net.server, list);
    let expected = [
        "k.log 640",
        "k.pid 644",
        "k.prom 644",
        "k.socket 600",
        "state 700",
        "state/1.lease 600",
        "state/lock 600",
    ];
    // Where there is a group `knockd`, its members may use the socket.
    assert_eq!(found.replace("k.socket 660", "k.socket 600").lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_configuration_of_somebody_else_or_of_a_group_is_obeyed_with_a_warning() {
    let net = Net::new().unwrap();
    if !is_root() {
        return;
    }
    let config = "[door]\none_time_sequences = /run/list\n";
    net.server.write_file(CONFIG, config).unwrap();
    net.server.write_file("/run/list", " 7000\n 7001\n").unwrap();
    sh(
        &net.server,
        &format!("chmod 660 {CONFIG}; chgrp 27 {CONFIG}; chmod 600 /run/list; chown 1000 /run/list"),
    );
    let warnings = [
        "/run/knockd.conf: warning: writable by group 27, whose members could run commands as root; run: chmod g-w /run/knockd.conf",
        "/run/list: warning: owned by user 1000, who could run commands as root; run: chown root /run/list",
    ];
    let checked = sh(&net.server, &format!("'{}' check {CONFIG}", knockd_and_tools()));
    for warning in warnings {
        assert!(checked.contains(warning), "{warning} in {checked}");
    }
    let mut knockd = Knockd::run(net.server.command(KNOCKD).args(["-v", "-c", CONFIG]));
    let count = |knockd: &Knockd| warnings.map(|warning| knockd.count(warning));
    assert_eq!(count(&knockd), [1, 1]);
    hit(&net, 2, &[7000]);
    knockd.wait_for("door: OPEN SESAME");
    knockd.signal(Signal::SIGHUP);
    wait_until("the warnings after a reload", || count(&knockd) == [2, 2]);
}

#[test]
fn a_log_file_that_everybody_may_read_is_reported_and_used() {
    let net = Net::new().unwrap();
    sh(&net.server, "umask 022; echo 0.8 >/run/k.log");
    let mut knockd = Knockd::start(&net, &format!("{FILES}{DOOR}"));
    let warning = "/run/k.log is world-readable and tells which hits were right; run: chmod o= /run/k.log";
    assert_eq!(knockd.count(warning), 1, "{:#?}", knockd.lines());
    wait_for_file(&net.server, "/run/k.log", "starting up, listening on eth0");
    sh(&net.server, "chmod o= /run/k.log");
    knockd.signal(Signal::SIGHUP);
    knockd.wait_for("re-reading config file");
    hit(&net, 2, &[7000]);
    knockd.wait_for_output("open 10.9.0.2");
    assert_eq!(knockd.count(warning), 1, "{:#?}", knockd.lines());
}

#[test]
fn a_named_pipe_in_place_of_a_file_that_a_reload_reads_holds_up_nothing() {
    let net = Net::new().unwrap();
    let once = "[once]\none_time_sequences = /run/list\n";
    net.server.write_file("/run/list", " 7001\n").unwrap();
    let mut knockd = Knockd::start(&net, &format!("{DOOR}{once}"));
    for (file, error) in [
        ("/run/list", "cannot read and write /run/list: not a regular file"),
        (CONFIG, "cannot read /run/knockd.conf: not a regular file"),
    ] {
        sh(&net.server, &format!("mv {file} {file}.old; mkfifo {file}"));
        knockd.signal(Signal::SIGHUP);
        knockd.wait_for(error);
        sh(&net.server, &format!("mv {file}.old {file}"));
    }
    hit(&net, 2, &[7000]);
    knockd.wait_for_output("open 10.9.0.2");
    knockd.stop();
}
