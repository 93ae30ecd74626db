//! A start command that is still running when knockd stops or dies: it never outlives the stop command that undoes it.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Knockd, SOON, hit, sh, wait_for_file, wait_until};
use nix::sys::signal::Signal;
use testbed::Net;

/// How many seconds the start command below takes before it opens the door: longer than these tests wait for anything.
const LONG: u32 = 600;

/// A door that opens late. What it does is in `/run/door`, the last line tells whether it is open.
fn slow_door(options: &str) -> String {
    format!(
        "[options]\n{options}\n[door]\nsequence = 1\ncmd_timeout = 2\n\
         start_command = echo begun >>/run/door; sleep {LONG}; echo open >>/run/door\n\
         stop_command = echo closed >>/run/door; echo closed for %IP%\n"
    )
}

/// Hosts whose server has a `/proc` with the numbers of its own processes, as every machine and container has.
fn net() -> Net {
    let net = Net::new().unwrap();
    sh(&net.server, "mount -t proc proc /proc");
    net
}

/// Starts knockd and has it run the start command of that door.
fn begin(net: &Net, config: &str) -> Knockd {
    let knockd = Knockd::start(net, config);
    hit(net, 2, &[1]);
    wait_for_file(&net.server, "/run/door", "begun");
    assert_ne!(processes_of_the_start_command(net), "");
    knockd
}

fn processes_of_the_start_command(net: &Net) -> String {
    // Neither the pattern nor this shell matches itself.
    sh(&net.server, "grep -alE 'echo [b]egun|[s]leep' /proc/[0-9]*/cmdline 2>/dev/null; true")
}

/// Starts knockd again and shows that the door is closed, and that nothing opens it later.
fn is_closed_by_the_next_start(net: &Net, config: &str) {
    let mut second = Knockd::start(net, config);
    second.wait_for_output("closed for 10.9.0.2");
    wait_until("the lease is over", || sh(&net.server, "ls /var/lib/knockd") == "lock\n");
    stays_closed(net);
    second.stop();
}

/// Shows that the door is closed and that no process is left that could open it.
fn stays_closed(net: &Net) {
    wait_until("the end of the start command", || processes_of_the_start_command(net).is_empty());
    assert_eq!(sh(&net.server, "cat /run/door"), "begun\nclosed\n");
}

#[test]
fn at_shutdown_a_long_start_command_is_terminated_before_its_stop_command_runs() {
    let net = net();
    let mut knockd = begin(&net, &slow_door(""));
    knockd.stop();
    assert_eq!(knockd.count("terminating 1 start command: knockd is stopping"), 1);
    assert_eq!(knockd.count("door: command killed by signal 15"), 1);
    assert_eq!(sh(&net.server, "cat /run/door; ls /var/lib/knockd"), "begun\nclosed\nlock\n");
    stays_closed(&net);
}

#[test]
fn at_shutdown_with_onexit_keep_a_long_start_command_is_terminated_and_the_next_start_closes_its_door() {
    let net = net();
    let config = slow_door("OnExit = keep");
    let mut knockd = begin(&net, &config);
    knockd.stop();
    assert_eq!(knockd.count("terminating 1 start command: knockd is stopping"), 1);
    assert_eq!(knockd.count("leaving 1 open door for the next start"), 1);
    assert_eq!(sh(&net.server, "cat /run/door"), "begun\n");
    is_closed_by_the_next_start(&net, &config);
}

#[test]
fn a_start_command_that_outlives_a_killed_knockd_is_terminated_by_the_next_before_its_stop_command_runs() {
    for options in ["", "OnExit = keep"] {
        let net = net();
        let config = slow_door(options);
        let mut knockd = begin(&net, &config);
        knockd.signal(Signal::SIGKILL);
        knockd.running.wait(SOON).unwrap();
        is_closed_by_the_next_start(&net, &config);
    }
}

#[test]
fn a_knock_after_such_a_start_runs_the_start_command_again() {
    let net = net();
    let config = slow_door("").replace("cmd_timeout = 2", "cmd_timeout = 600");
    let mut knockd = begin(&net, &config);
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    // The next one dies as well, and the one after it has nothing more to terminate.
    let second = Knockd::start(&net, &config);
    assert_eq!(second.count("terminated 1 start command of an earlier knockd"), 1, "{:#?}", second.lines());
    drop(second);
    let mut third = Knockd::start(&net, &config);
    assert_eq!((third.count("restored 1 open door"), third.count("terminated")), (1, 0));
    hit(&net, 2, &[1]);
    third.wait_for("door: running command: echo begun");
    wait_for_file(&net.server, "/run/door", "begun\nbegun\n");
}

#[test]
fn a_start_command_that_ignores_sigterm_is_killed_with_all_its_processes() {
    let net = net();
    let deaf = |options: &str| slow_door(options).replace("echo begun", "trap '' TERM; echo begun");
    let mut knockd = begin(&net, &deaf(""));
    knockd.stop();
    stays_closed(&net);
    sh(&net.server, "rm /run/door");
    let mut knockd = begin(&net, &deaf(""));
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    is_closed_by_the_next_start(&net, &deaf(""));
}

#[test]
fn nothing_but_what_knockd_has_started_is_ended_although_it_has_the_number() {
    let net = net();
    let config = slow_door("");
    let mut knockd = begin(&net, &config);
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    let lease = sh(&net.server, "cat /var/lib/knockd/1.lease");
    let process = lease.lines().find_map(|line| line.strip_prefix("start_process = ")).unwrap().to_owned();
    let words: Vec<_> = process.split(' ').collect();
    let [number, started, namespace, boot] = words.as_slice() else { panic!("{process}") };
    // As if the number had been given to another process, here, in another container, or after a reboot.
    let others = [
        format!("{number} {} {namespace} {boot}", started.parse::<u64>().unwrap() - 1),
        format!("{number} {started} 1 {boot}"),
        format!("{number} {started} {namespace} {:032x}", 1),
        format!("1 0 {namespace} {boot}"),
        "unknown".to_owned(),
    ];
    for other in others {
        let lease = lease.replace(&process, &other);
        net.server.write_file("/var/lib/knockd/1.lease", &lease).unwrap();
        let mut second = Knockd::start(&net, &config);
        second.wait_for_output("closed for 10.9.0.2");
        second.stop();
        assert_eq!(second.count("restored 1 open door"), 1);
        assert_eq!(second.count("start command"), 0, "{other}");
        assert!(sh(&net.server, &format!("cat /proc/{number}/stat")).contains("(sh) S"), "{other}");
    }
    // Nor is anything that an earlier version stored.
    let line = format!("start_process = {process}\n");
    net.server.write_file("/var/lib/knockd/1.lease", &lease.replace(&line, "")).unwrap();
    let mut second = Knockd::start(&net, &config);
    second.wait_for_output("closed for 10.9.0.2");
    second.stop();
}

#[test]
fn at_shutdown_the_command_of_a_door_that_nothing_closes_goes_on() {
    let net = net();
    let config = "[door]\nsequence = 1\ncommand = echo begun >>/run/door; sleep 7; echo closed >>/run/door\n";
    let mut knockd = begin(&net, config);
    knockd.stop();
    wait_for_file(&net.server, "/run/door", "closed");
}

#[test]
fn a_second_sigterm_terminates_start_commands_at_once_and_still_closes_their_doors() {
    // With one signal it takes five seconds each time. With two it may on a machine that is held up, but not always.
    assert!((0..5).any(|_| delay_with_two_signals() < Duration::from_millis(4500)));
}

/// Sends two signals while a start command runs; returns how long after the first it is terminated.
fn delay_with_two_signals() -> Duration {
    let net = net();
    let mut knockd = begin(&net, &slow_door(""));
    knockd.signal(Signal::SIGTERM);
    let waiting = knockd.wait_for("waiting for child processes...");
    knockd.signal(Signal::SIGTERM);
    assert_eq!(knockd.running.wait(SOON).unwrap().code(), Some(0));
    assert_eq!(sh(&net.server, "cat /run/door"), "begun\nclosed\n");
    let terminating = knockd.wait_for("terminating 1 start command");
    terminating.at.saturating_duration_since(waiting.at)
}
