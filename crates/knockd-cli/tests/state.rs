//! Open doors outlive the knockd that opened them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{CONFIG, KNOCKD, Knockd, SOON, hit, sh, wait_until};
use nix::sys::signal::Signal;
use testbed::{Net, Running};

const SECOND: &str = "/run/second.conf";

fn config(options: &str, cmd_timeout: u32, stop: &str) -> String {
    format!(
        "[options]\n{options}\n[door]\nsequence = 1\nstart_command = echo open for %IP%\ncmd_timeout = {cmd_timeout}\n\
         stop_command = {stop}\n"
    )
}

/// Starts a second knockd, with a configuration file of its own.
fn start_second(net: &Net, config: &str) -> Knockd {
    net.server.write_file(SECOND, config).unwrap();
    Knockd::run(net.server.command(KNOCKD).args(["-c", SECOND, "-v"]))
}

/// Starts knockd, opens the door for 10.9.0.2 and kills knockd.
fn open_and_crash(net: &Net, config: &str) {
    let mut knockd = Knockd::start(net, config);
    hit(net, 2, &[1]);
    knockd.wait_for_output("open for 10.9.0.2");
    // A start command whose end is not stored counts as failed.
    let stored = || sh(&net.server, "cat /var/lib/knockd/1.lease");
    wait_until("its end is stored", || !stored().contains("start_process"));
    knockd.signal(Signal::SIGKILL);
    assert_eq!(knockd.running.wait(SOON).unwrap().code(), None);
}

#[test]
fn a_door_whose_time_passed_while_no_knockd_ran_is_closed_by_the_next_at_once() {
    let net = Net::new().unwrap();
    open_and_crash(&net, &config("", 1, "echo closed for %IP%"));
    std::thread::sleep(Duration::from_millis(1100));
    // Its configuration may have forgotten the door.
    let mut knockd = Knockd::start(&net, "[other]\nsequence = 2\n");
    knockd.wait_for("10.9.0.2: door: command timeout");
    knockd.wait_for("door: running command: echo closed");
    knockd.wait_for_output("closed for 10.9.0.2");
    knockd.stop();
    let mut knockd = Knockd::start(&net, "[other]\nsequence = 2\n");
    knockd.stop();
    assert_eq!(knockd.count("command timeout"), 0, "closed once is closed for good");
}

#[test]
fn a_door_whose_time_has_not_passed_stays_open_until_then_and_a_knock_extends_it() {
    let net = Net::new().unwrap();
    let config = config("", 10, "echo closed for %IP%");
    open_and_crash(&net, &config);
    std::thread::sleep(Duration::from_secs(3));
    let mut knockd = Knockd::start(&net, &config);
    hit(&net, 2, &[1]);
    let again = knockd.wait_for("OPEN SESAME").at;
    let closed = knockd.wait_for("10.9.0.2: door: command timeout").at;
    knockd.wait_for_output("closed for 10.9.0.2");
    assert!(closed - again > Duration::from_secs(8), "{:?}", closed - again);
    assert_eq!(knockd.count("open for"), 0);
}

#[test]
fn with_onexit_keep_a_restart_closes_no_door_before_its_time() {
    let net = Net::new().unwrap();
    let config = config("OnExit = keep", 6, "echo closed for %IP%");
    let mut knockd = Knockd::start(&net, &config);
    hit(&net, 2, &[1]);
    let opened = knockd.wait_for_output("open for 10.9.0.2").at;
    knockd.stop();
    assert_eq!(knockd.count("echo closed"), 0);
    let mut knockd = Knockd::start(&net, &config);
    let closed = knockd.wait_for("10.9.0.2: door: command timeout").at;
    assert!(closed - opened > Duration::from_secs(4), "{:?}", closed - opened);
}

#[test]
fn a_stop_command_that_fails_is_tried_again() {
    let net = Net::new().unwrap();
    let stop = "test -e /run/ready && echo closed || { echo not yet >&2; exit 1; }";
    let mut knockd = Knockd::start(&net, &config("", 0, stop));
    hit(&net, 2, &[1]);
    knockd.wait_for("door: command returned non-zero status code (1)");
    net.server.write_file("/run/ready", "").unwrap();
    wait_until("another try that succeeds", || knockd.lines().iter().any(|line| line == "closed"));
}

#[test]
fn a_second_knockd_does_not_touch_the_open_doors_of_the_first() {
    let net = Net::new().unwrap();
    let mut first = Knockd::start(&net, &config("", 600, "echo closed"));
    hit(&net, 2, &[1]);
    first.wait_for_output("open for 10.9.0.2");
    let mut second = start_second(&net, &config("", 600, "echo closed"));
    second.wait_for("cannot use the state directory /var/lib/knockd: in use by another knockd");
    second.stop();
    assert_eq!(second.count("echo closed"), 0);
}

#[test]
fn doors_that_a_reload_adds_are_remembered_too() {
    let net = Net::new().unwrap();
    let with_door = config("logfile = /run/log", 1, "echo closed for %IP%");
    let mut knockd = Knockd::start(&net, "[options]\nlogfile = /run/log\n[other]\nsequence = 2\n");
    sh(&net.server, "test ! -e /var/lib/knockd");
    knockd.reload(&net, &with_door, "re-opening log file");
    hit(&net, 2, &[1]);
    knockd.wait_for_output("open for 10.9.0.2");
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    let mut knockd = Knockd::start(&net, &with_door);
    knockd.wait_for_output("closed for 10.9.0.2");
    let elsewhere = with_door.replace("[options]", "[options]\nStateDir = /run/state");
    knockd.reload(&net, &elsewhere, "restart knockd to store them in /run/state");
    knockd.stop();
}

#[test]
fn a_state_directory_that_could_not_be_used_is_once_a_reload_finds_no_open_door() {
    let net = Net::new().unwrap();
    let config = config("logfile = /run/log", 10, "echo closed for %IP%");
    let mut first = Knockd::start(&net, &config);
    let mut second = start_second(&net, &config);
    second.wait_for("cannot use the state directory /var/lib/knockd: in use by another knockd");
    hit(&net, 2, &[1]);
    for knockd in [&mut first, &mut second] {
        knockd.wait_for_output("open for 10.9.0.2");
    }
    first.signal(Signal::SIGKILL);
    first.running.wait(SOON).unwrap();
    second.signal(Signal::SIGHUP);
    second.wait_for("are still kept in memory only");
    second.wait_for_output("closed for 10.9.0.2");
    // The first has left one. A moment before, the door is still being closed.
    wait_until("the state directory is used", || {
        second.signal(Signal::SIGHUP);
        second.count("restored 1") == 1
    });
    // And so is its control socket.
    assert!(sh(&net.server, &format!("'{KNOCKD}' status")).contains("door"));
    second.wait_for_output("closed for 10.9.0.2");
    second.stop();
    assert_eq!(sh(&net.server, "ls /var/lib/knockd"), "lock\n");
}

#[test]
fn what_is_stored_is_for_its_owner_only() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, &config("StateDir = /run/state", 600, "echo closed")).unwrap();
    let mut knockd = Running::start(net.server.command("sh").args([
        "-c",
        r#"umask 0; exec "$0" -v -c "$1""#,
        KNOCKD,
        CONFIG,
    ]))
    .unwrap();
    knockd.wait_for_line("listening on", SOON).unwrap();
    hit(&net, 2, &[1]);
    wait_until("a file for the open door", || {
        sh(&net.server, "cat /run/state/*.lease 2>/dev/null || true").contains("source = 10.9.0.2\n")
    });
    assert_eq!(sh(&net.server, "stat -c %a /run/state"), "700\n");
}

#[test]
fn on_a_full_disk_doors_open_and_close_all_the_same_and_it_is_told() {
    let net = Net::new().unwrap();
    sh(
        &net.server,
        "mkdir -m 700 /var/lib/knockd
         mount -t tmpfs -o size=4k,mode=700 tmpfs /var/lib/knockd
         mkdir /run/disk
         mount -t tmpfs -o size=4k tmpfs /run/disk
         for disk in /var/lib/knockd /run/disk; do head -c 4096 /dev/zero >$disk/1.failed; done",
    );
    let options = "logfile = /run/disk/log";
    let mut knockd = Knockd::start(&net, &config(options, 5, "echo closed for %IP%"));
    hit(&net, 2, &[1]);
    knockd.wait_for("cannot save open doors in /var/lib/knockd: No space left on device");
    knockd.wait_for_output("open for 10.9.0.2");
    knockd.wait_for_output("closed for 10.9.0.2");
    // Once there is room again, doors are remembered again.
    sh(&net.server, "rm /var/lib/knockd/1.failed");
    hit(&net, 3, &[1]);
    knockd.wait_for_output("open for 10.9.0.3");
    assert_eq!(sh(&net.server, "ls /var/lib/knockd | grep -c lease").trim(), "1");
    knockd.wait_for_output("closed for 10.9.0.3");
    knockd.stop();
}

#[test]
fn doors_that_could_not_be_stored_are_closed_in_spite_of_onexit_keep() {
    let net = Net::new().unwrap();
    sh(
        &net.server,
        "mkdir -m 700 /var/lib/knockd
         mount -t tmpfs -o size=4k,mode=700 tmpfs /var/lib/knockd
         head -c 4096 /dev/zero >/var/lib/knockd/1.failed || true",
    );
    let mut knockd = Knockd::start(&net, &config("OnExit = keep", 600, "echo closed for %IP%"));
    hit(&net, 2, &[1]);
    knockd.wait_for("cannot save open doors in /var/lib/knockd: ");
    knockd.wait_for_output("open for 10.9.0.2");
    knockd.signal(Signal::SIGTERM);
    knockd.wait_for_output("closed for 10.9.0.2");
}

#[test]
fn a_door_that_was_being_closed_early_when_knockd_was_killed_is_closed_by_the_next_at_once() {
    let net = Net::new().unwrap();
    // The stop command hangs the first time.
    let config = "[door]\nsequence = 1\ncmd_timeout = 600\nstart_command = echo open\n\
                  stop_command = echo closing; mkdir /run/closing 2>/dev/null && sleep 600; echo closed\n";
    let mut first = Knockd::start(&net, config);
    hit(&net, 2, &[1]);
    first.wait_for_output("open");
    let lease = || sh(&net.server, "cat /var/lib/knockd/1.lease");
    wait_until("the end of the start command is stored", || !lease().contains("start_process"));
    let open = lease();
    // It would wait for the stop command.
    sh(&net.server, &format!("'{KNOCKD}' close door 10.9.0.2 >/dev/null 2>&1 &"));
    first.wait_for_output("closing");
    wait_until("it is stored", || lease() != open);
    first.signal(Signal::SIGKILL);
    drop(first);
    let mut second = Knockd::start(&net, config);
    second.wait_for_output("closed");
    wait_until("the lease is over", || sh(&net.server, "ls /var/lib/knockd") == "lock\n");
    hit(&net, 2, &[1]);
    second.wait_for_output("open");
}

#[test]
fn after_a_restart_of_the_machine_a_door_is_closed_at_once_and_the_next_knock_opens_it_anew() {
    let net = Net::new().unwrap();
    // The first time, the stop command takes until the knock has come.
    let config = config("", 600, "while test -e /run/slow; do sleep 0.1; done; echo closed for %IP%");
    open_and_crash(&net, &config);
    sh(
        &net.server,
        "touch /run/slow; sed -i 's/^boot = .*/boot = 1/' /var/lib/knockd/1.lease; grep '^boot = 1$' /var/lib/knockd/1.lease",
    );
    let mut knockd = Knockd::start(&net, &config);
    knockd.wait_for("10.9.0.2: door: command timeout");
    hit(&net, 2, &[1]);
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
    sh(&net.server, "rm /run/slow");
    knockd.wait_for_output("closed for 10.9.0.2");
    knockd.wait_for_output("open for 10.9.0.2");
    // Now it was opened in this run of the machine.
    let stored = || sh(&net.server, "cat /var/lib/knockd/1.lease");
    wait_until("its end is stored", || !stored().contains("start_process"));
    assert!(!stored().contains("boot = 1\n") && stored().contains("\nboot = "), "{}", stored());
}

#[test]
fn a_door_that_was_stored_without_the_run_of_the_machine_is_extended_by_a_knock() {
    let net = Net::new().unwrap();
    let config = config("", 600, "echo closed for %IP%");
    open_and_crash(&net, &config);
    sh(&net.server, "sed -i '/^boot = /d' /var/lib/knockd/1.lease");
    let mut knockd = Knockd::start(&net, &config);
    hit(&net, 2, &[1]);
    hit(&net, 3, &[1]);
    knockd.wait_for_output("open for 10.9.0.3");
    assert_eq!((knockd.count("open for 10.9.0.2"), knockd.count("closed for")), (0, 0));
}

#[test]
fn a_door_whose_stop_command_fails_after_a_restart_of_the_machine_is_told_with_that() {
    let net = Net::new().unwrap();
    let config = config("", 600, "exit 1");
    open_and_crash(&net, &config);
    sh(&net.server, "sed -i 's/^boot = .*/boot = 1/' /var/lib/knockd/1.lease");
    let knockd = Knockd::start(&net, &config);
    wait_until("the stop command is given up", || {
        sh(&net.server, &format!("'{KNOCKD}' close --all 2>&1 || true"));
        knockd.count("giving up on stop command") == 1
    });
    let status = common::status_json(&net);
    let reason = status["problems"][0]["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.ends_with("the machine has restarted since the door opened, which may have closed it"),
        "{reason}"
    );
}
