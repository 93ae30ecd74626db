//! As a service: in the background with a pid file, or under a service manager that is told what goes on.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::net::UnixDatagram;

use common::{CONFIG, KNOCKD, Knockd, SOON, hit, is_root, sh, wait_for_file, wait_until};
use nix::sys::signal::Signal;
use testbed::Net;

/// Starts `knockd -d` on the server with this configuration, in this directory; returns once it listens.
fn start(net: &Net, directory: &str, config: &str, arguments: &str) {
    net.server.write_file(CONFIG, config).unwrap();
    let printed = sh(&net.server, &format!("cd {directory} && '{KNOCKD}' -d {arguments} 2>&1"));
    assert_eq!(printed, "");
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
    // The file system of processes is the outer one: there a command finds the daemon as its parent. Then: the group,
    // the session and the terminal of the daemon (proc_pid_stat(5)).
    let command = "read -r self name state parent rest </proc/self/stat; cd /proc/$parent; \
                   { readlink cwd fd/0 fd/1 fd/2; cut -d' ' -f 5-7 stat; cut -d' ' -f 6 /proc/self/stat; } >/run/report.new; \
                   mv /run/report.new /run/report";
    let config = format!("[options]\nlogfile = /run/log\n[door]\nsequence = 1\ncommand = {command}\n");
    start(&net, "/run", &config, "-v -c /run/knockd.conf");
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
fn it_returns_once_packets_are_read_and_the_pid_file_is_written() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, "[options]\nlogfile = /run/log\n[door]\nsequence = 1\n").unwrap();
    for _ in 0..10 {
        let script =
            format!("'{KNOCKD}' -d -c {CONFIG} && cat /run/knockd.pid /run/log && '{KNOCKD}' status");
        let printed = sh(&net.server, &script);
        assert!(printed.contains("] starting up, listening on eth0\n"), "{printed}");
        assert!(printed.contains("\n  eth0  up "), "{printed}");
        let pid = printed.lines().next().unwrap().to_owned();
        sh(&net.server, &format!("kill {pid}"));
        wait_until("it has ended", || !exists(&net, "/run/knockd.pid"));
        sh(&net.server, "rm /run/log");
    }
}

#[test]
fn its_debug_messages_are_printed_until_it_detaches() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, "[options]\nlogfile = /run/log\n[door]\nsequence = 1,2\n").unwrap();
    // It returns when nothing holds stdout or stderr open any more.
    let printed = sh(&net.server, &format!("'{KNOCKD}' -d -D -c {CONFIG} 2>&1; echo $?"));
    for wanted in ["door door: 2 steps\n", "eth0: 10.9.0.1"] {
        assert!(printed.contains(wanted), "`{wanted}` is not in:\n{printed}");
    }
    assert!(printed.ends_with("\n0\n"), "{printed}");
    hit(&net, 2, &[1, 2]);
    wait_for_file(&net.server, "/run/log", "door: OPEN SESAME");
}

#[test]
fn whatever_keeps_it_from_listening_is_said_before_it_detaches() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, "[door]\nsequence = 1\n").unwrap();
    // There are too few descriptors for a listener with its decoder.
    let script = format!("ulimit -n 12; '{KNOCKD}' -d -c {CONFIG} 2>&1; echo $?");
    let printed = sh(&net.server, &script);
    assert!(printed.contains("knockd: ") && printed.ends_with("\n1\n"), "{printed}");
    assert!(!exists(&net, "/run/knockd.pid"));
}

/// Runs knockd with these arguments, which it refuses; returns what it says.
fn refused(net: &Net, arguments: &str) -> String {
    let said = sh(&net.server, &format!("timeout 60 '{KNOCKD}' {arguments} 2>&1; echo $?"));
    said.strip_suffix("\n1\n").unwrap_or_else(|| panic!("{arguments}: {said}")).to_owned()
}

#[test]
fn a_second_one_with_the_same_configuration_is_refused_with_the_pid_of_the_first() {
    let net = Net::new().unwrap();
    let config =
        "[options]\nlogfile = /run/log\n[door]\nsequence = 1\ncommand = echo for %IP% >>/run/opened\n";
    start(&net, "/", config, "-c /run/knockd.conf");
    let first = pid(&net, "/run/knockd.pid");
    let expected = format!(
        "knockd: cannot listen on eth0: another knockd already does, with /run/knockd.conf (pid {first}); to apply \
         changes, run: kill -HUP {first}; to replace it, first run: kill {first}; to run both, use another \
         configuration file"
    );
    let arguments =
        ["-v", "-i any", "-d -p /run/other.pid"].map(|more| format!("{more} -c /run/knockd.conf"));
    for arguments in &arguments {
        assert_eq!(refused(&net, arguments), expected);
    }
    // An editor puts another file in its place.
    sh(&net.server, "cp /run/knockd.conf /run/new; mv /run/new /run/knockd.conf");
    assert_eq!(refused(&net, &arguments[2]), expected);
    sh(&net.server, "ln -s /run/knockd.conf /run/link");
    let through_link = refused(&net, "-d -p /run/other.pid -c /run/link");
    assert_eq!(through_link, expected.replace("/run/knockd.conf", "/run/link"));
    assert!(!exists(&net, "/run/other.pid"));
    hit(&net, 2, &[1]);
    hit(&net, 3, &[1]);
    wait_for_file(&net.server, "/run/opened", "for 10.9.0.3\n");
    assert_eq!(sh(&net.server, "cat /run/opened"), "for 10.9.0.2\nfor 10.9.0.3\n");
}

#[test]
fn one_beside_one_in_the_foreground_is_refused_until_that_is_killed() {
    let net = Net::new().unwrap();
    let mut first = Knockd::start(&net, "[door]\nsequence = 1\n");
    let said = refused(&net, "-d -c /run/knockd.conf");
    assert!(said.contains("another knockd already does, with /run/knockd.conf (pid "), "{said}");
    first.signal(Signal::SIGKILL);
    first.running.wait(SOON).unwrap();
    sh(&net.server, &format!("'{KNOCKD}' -d -c /run/knockd.conf"));
    sh(&net.server, "kill $(cat /run/knockd.pid)");
}

#[test]
fn a_stranger_who_takes_its_address_keeps_no_knockd_from_starting() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let config = "[door]\nsequence = 1\n";
    let mut knockd = Knockd::start(&net, config);
    let address = sh(&net.server, "grep -o '@knockd-.*' /proc/net/unix");
    let address = address.trim_start_matches('@').trim_end();
    knockd.stop();
    let bind = format!(
        "use Socket; socket(S, AF_UNIX, SOCK_DGRAM, 0); bind(S, pack_sockaddr_un(\"\\0{address}\")) or die; \
         $| = 1; print \"bound\\n\"; sleep"
    );
    let stranger = ["setpriv", "--reuid=65534", "--clear-groups", "perl", "-e", &bind];
    let mut stranger = net.server.spawn(&stranger).unwrap();
    stranger.wait_for_line("bound", SOON).unwrap();
    let mut knockd = Knockd::start(&net, config);
    hit(&net, 2, &[1]);
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
}

#[test]
fn a_second_one_with_the_pid_file_of_the_first_is_refused() {
    let net = Net::new().unwrap();
    start(&net, "/", "[options]\nlogfile = /run/log\n[door]\nsequence = 1\n", "-c /run/knockd.conf");
    let first = pid(&net, "/run/knockd.pid");
    net.server.write_file("/run/second.conf", "[door]\nsequence = 1\n").unwrap();
    let said = refused(&net, "-d -c /run/second.conf");
    let expected =
        format!("knockd: pid file /var/run/knockd.pid belongs to a running knockd (pid {first}); to apply");
    assert!(said.starts_with(&expected), "{said}");
    assert_eq!(pid(&net, "/run/knockd.pid"), first);
}

#[test]
fn several_on_purpose_run_beside_each_other() {
    let net = Net::new().unwrap();
    let config = "[options]\nlogfile = /run/log\n[door]\nsequence = 1\n";
    start(&net, "/", config, "-c /run/knockd.conf");
    net.server.write_file("/run/second.conf", &config.replace("/run/log", "/run/second.log")).unwrap();
    sh(&net.server, &format!("'{KNOCKD}' -d -c /run/second.conf -p /run/second.pid"));
    // As with 0.8, which has one interface each.
    sh(&net.server, &format!("'{KNOCKD}' -d -c /run/knockd.conf -p /run/third.pid -i lo"));
    hit(&net, 2, &[1]);
    for log in ["/run/log", "/run/second.log"] {
        wait_for_file(&net.server, log, "10.9.0.2: door: OPEN SESAME");
    }
    common::knock(&net.server, "127.0.0.1 1");
    wait_for_file(&net.server, "/run/log", "127.0.0.1: door: OPEN SESAME");
    sh(&net.server, "kill $(cat /run/knockd.pid /run/second.pid /run/third.pid)");
}

#[test]
fn the_next_one_starts_while_the_one_before_still_closes_doors() {
    let net = Net::new().unwrap();
    let config = "[options]\nlogfile = /run/log\n[door]\nsequence = 1\nstart_command = echo >/run/open\n\
                  stop_command = until test -e /run/go; do sleep 0.1; done; echo >/run/closed\n";
    start(&net, "/", config, "-c /run/knockd.conf");
    let first = pid(&net, "/run/knockd.pid");
    hit(&net, 2, &[1]);
    wait_for_file(&net.server, "/run/open", "\n");
    sh(&net.server, &format!("kill {first} && '{KNOCKD}' -d -c /run/knockd.conf 2>/dev/null"));
    let second = pid(&net, "/run/knockd.pid");
    assert_ne!(second, first);
    sh(&net.server, "echo >/run/go");
    wait_for_file(&net.server, "/run/log", "shutting down\n");
    wait_until("the first has ended", || net.server.run(&["kill", "-0", &first]).is_err());
    assert_eq!(pid(&net, "/run/knockd.pid"), second);
    sh(&net.server, &format!("kill {second}"));
}

#[test]
fn a_pid_file_that_cannot_be_written_is_a_warning() {
    let net = Net::new().unwrap();
    let config = "[options]\nlogfile = /run/log\npidfile = /no/such/pid\n[door]\nsequence = 1\n";
    net.server.write_file(CONFIG, config).unwrap();
    let printed = sh(&net.server, &format!("'{KNOCKD}' -d -c {CONFIG} 2>&1"));
    let warning = "cannot create pid file /no/such/pid: No such file or directory";
    assert!(printed.starts_with(warning), "{printed}");
    let log = sh(&net.server, "cat /run/log");
    assert!(log.contains(warning) && log.contains("starting up"), "{log}");
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
