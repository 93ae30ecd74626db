//! As a service: in the background with a pid file, or under a service manager that is told what goes on.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::net::UnixDatagram;

use common::{CONFIG, KNOCKD, Knockd, SOON, hit, sh, wait_for_file, wait_until};
use nix::sys::signal::Signal;
use testbed::Net;

/// Starts `knockd -d` on the server with this configuration, in this directory; returns once it listens.
fn start(net: &Net, directory: &str, config: &str, arguments: &str) {
    net.server.write_file(CONFIG, config).unwrap();
    let printed = sh(&net.server, &format!("cd {directory} && '{KNOCKD}' -d {arguments} 2>&1"));
    assert_eq!(printed, "");
    wait_for_file(&net.server, "/run/log", "starting up, listening on eth0\n");
}

fn pid(net: &Net, path: &str) -> String {
    let content = net.server.run(&["cat", path]).unwrap();
    let pid = content.strip_suffix('\n').unwrap();
    assert!(pid.parse::<u32>().is_ok(), "{content:?}");
    pid.to_owned()
}

fn exists(net: &Net, path: &str) -> bool {
    net.server.run(&["test", "-e", path]).is_ok()
}

#[test]
fn it_detaches_from_its_terminal_and_directory() {
    let net = Net::new().unwrap();
    // The file system of processes is the outer one: there a command finds the daemon as its parent. Then: the group, the
    // session and the terminal of the daemon (proc_pid_stat(5)).
    let command = "read -r self name state parent rest </proc/self/stat; cd /proc/$parent; \
                   { readlink cwd fd/0 fd/1 fd/2; cut -d' ' -f 5-7 stat; cut -d' ' -f 6 /proc/self/stat; } >/run/report.new; \
                   mv /run/report.new /run/report";
    let config = format!("[options]\nlogfile = /run/log\n[door]\nsequence = 1\ncommand = {command}\n");
    start(&net, "/run", &config, "-v -D -c /run/knockd.conf");
    hit(&net, 2, &[1]);
    let report = wait_for_file(&net.server, "/run/report", "\n");
    let lines: Vec<_> = report.lines().collect();
    assert_eq!(lines[..4], ["/", "/dev/null", "/dev/null", "/dev/null"]);
    let [_group, session, terminal] = lines[4].split(' ').collect::<Vec<_>>()[..] else { panic!("{report}") };
    let sid = |text: &str| text.split(' ').nth(5).unwrap().to_owned();
    assert_ne!(session, sid(&std::fs::read_to_string("/proc/self/stat").unwrap()));
    assert_eq!(terminal, "0");
}

#[test]
fn its_pid_file_is_locked_while_it_lives_and_gone_afterwards() {
    let net = Net::new().unwrap();
    let config = "[options]\nlogfile = /run/log\n[door]\nsequence = 1\n";
    start(&net, "/", config, "-c /run/knockd.conf");
    let pid = pid(&net, "/run/knockd.pid");
    assert_eq!(sh(&net.server, "flock -n /run/knockd.pid echo free || echo held"), "held\n");
    sh(&net.server, &format!("kill -0 {pid} && kill -TERM {pid}"));
    wait_for_file(&net.server, "/run/log", "shutting down\n");
    wait_until("no pid file", || !exists(&net, "/run/knockd.pid"));
}

#[test]
fn a_second_one_leaves_the_pid_file_of_the_first_alone_and_works() {
    let net = Net::new().unwrap();
    let config = "[options]\nlogfile = /run/log\n[door]\nsequence = 1\n";
    start(&net, "/", config, "-c /run/knockd.conf");
    let first = pid(&net, "/run/knockd.pid");
    net.server.write_file("/run/second.conf", &config.replace("/run/log", "/run/second.log")).unwrap();
    sh(&net.server, &format!("'{KNOCKD}' -d -c /run/second.conf"));
    let log = wait_for_file(&net.server, "/run/second.log", "starting up");
    assert!(log.contains("cannot create pid file /var/run/knockd.pid: in use by another knockd"), "{log}");
    hit(&net, 2, &[1]);
    wait_for_file(&net.server, "/run/second.log", "OPEN SESAME");
    assert_eq!(pid(&net, "/run/knockd.pid"), first);
}

#[test]
fn a_pid_file_that_cannot_be_written_is_a_warning() {
    let net = Net::new().unwrap();
    let config = "[options]\nlogfile = /run/log\npidfile = /no/such/pid\n[door]\nsequence = 1\n";
    start(&net, "/", config, "-c /run/knockd.conf");
    let log = wait_for_file(&net.server, "/run/log", "cannot create pid file /no/such/pid: ");
    assert!(log.contains("starting up"), "{log}");
    hit(&net, 2, &[1]);
    wait_for_file(&net.server, "/run/log", "OPEN SESAME");
}

#[test]
fn relative_paths_mean_the_directory_it_was_started_in() {
    let net = Net::new().unwrap();
    sh(&net.server, "mkdir -p /run/here/sub");
    net.server.write_file("/run/here/once", " 1\n 2\n").unwrap();
    let config = "[options]\npidfile = sub/pid\n[door]\none_time_sequences = once\n";
    start(&net, "/run/here", config, "-c ../knockd.conf -g ../log");
    hit(&net, 2, &[1]);
    wait_for_file(&net.server, "/run/here/once", "#1");
    sh(&net.server, "kill -HUP $(cat /run/here/sub/pid)");
    wait_for_file(&net.server, "/run/log", "re-reading config file: ");
    hit(&net, 2, &[2]);
    wait_for_file(&net.server, "/run/here/once", "#1\n#2\n");
    sh(&net.server, "kill $(cat /run/here/sub/pid)");
    wait_until("no pid file", || !exists(&net, "/run/here/sub/pid"));
}

#[test]
fn without_d_there_is_no_pid_file() {
    let net = Net::new().unwrap();
    let _knockd = Knockd::start_with(&net, "[door]\nsequence = 1\n", &["-v", "-p", "/run/pid"]);
    assert!(!exists(&net, "/run/pid") && !exists(&net, "/run/knockd.pid"));
}

#[test]
fn a_service_manager_is_told_what_goes_on_and_that_the_loop_is_alive() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, "[door]\nsequence = 1\n").unwrap();
    // The hosts see the machine's files outside of their private directories.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let wait_for = |expected: &str| {
        let mut buffer = [0; 512];
        loop {
            let length = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("{expected}: {error}"));
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.contains(expected) {
                return message;
            }
        }
    };
    let mut command = net.server.command(KNOCKD);
    command.args(["-c", CONFIG, "-v"]).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let mut knockd = Knockd::run(&mut command);
    assert!(wait_for("READY=1").contains("STATUS=Listening on eth0; 1 door"));
    wait_for("WATCHDOG=1");
    wait_for("WATCHDOG=1");
    knockd.signal(Signal::SIGHUP);
    assert!(wait_for("RELOADING=1").contains("MONOTONIC_USEC="));
    wait_for("READY=1");
    knockd.stop();
    wait_for("STOPPING=1");
}
