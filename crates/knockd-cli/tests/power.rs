//! Disks that fail. When the power fails, a disk has what has been written to it by then: a loop device's backing file
//! is copied while the start command runs, so the rest is lost, as it would be in memory. A disk that hangs is a frozen
//! one.
//!
//! Only root may mount a file system of its own; where the tests run as a plain user, they say so and show nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Knockd, SOON, hit, sh, status_json, wait_for_file, wait_until};
use nix::sys::signal::Signal;
use testbed::Net;

/// Mounts a new disk at `/run/disk`, or says why that is not possible.
fn with_disk() -> Option<Net> {
    let net = Net::new().unwrap();
    let made = net.server.run(&[
        "sh",
        "-ec",
        "truncate -s 16M /run/image; mkfs.ext4 -q -E lazy_journal_init=0,lazy_itable_init=0 /run/image
         mkdir /run/disk; mount -o loop,commit=300 /run/image /run/disk; sync",
    ]);
    if !nix::unistd::geteuid().is_root()
        && let Err(error) = &made
    {
        testbed::skip(format_args!("a plain user may not mount a disk: {}", error.root_cause()));
        return None;
    }
    made.unwrap();
    Some(net)
}

/// Takes the power from the machine after the command that has copied the disk: what is mounted at `/run/disk`
/// afterwards is what was on it then.
fn lose_power(net: &Net, knockd: Knockd) {
    wait_for_file(&net.server, "/run/copied", "yes");
    drop(knockd);
    sh(&net.server, "umount /run/disk; mount -o loop /run/copy /run/disk");
}

const COPY: &str = "cp /run/image /run/copy; echo yes >/run/copied";

#[test]
fn after_a_power_cut_in_its_start_command_a_door_is_closed_by_the_next_start() {
    let Some(net) = with_disk() else { return };
    sh(&net.server, "mkdir -m 700 /run/disk/state; sync");
    let config = format!(
        "[options]\nstatedir = /run/disk/state\n[door]\nsequence = 1\nstart_command = {COPY}\ncmd_timeout = 0\n\
         stop_command = echo closed for %IP%\n"
    );
    let knockd = Knockd::start(&net, &config);
    hit(&net, 2, &[1]);
    lose_power(&net, knockd);
    let mut knockd = Knockd::start(&net, &config);
    knockd.wait_for("closed for 10.9.0.2");
    knockd.stop();
}

#[test]
fn after_a_power_cut_in_its_start_command_a_one_time_sequence_is_used_up() {
    let Some(net) = with_disk() else { return };
    sh(&net.server, "printf ' 1,2\\n 3,4\\n' >/run/disk/once; sync");
    let config = format!("[once]\none_time_sequences = /run/disk/once\nstart_command = {COPY}\n");
    let knockd = Knockd::start(&net, &config);
    hit(&net, 2, &[1, 2]);
    lose_power(&net, knockd);
    assert_eq!(sh(&net.server, "cat /run/disk/once"), "#1,2\n 3,4\n");
}

#[test]
fn what_was_not_synced_is_lost_in_such_a_power_cut() {
    let Some(net) = with_disk() else { return };
    sh(&net.server, &format!("echo unsynced >/run/disk/file; {COPY}; umount /run/disk"));
    sh(&net.server, "mount -o loop /run/copy /run/disk; test ! -s /run/disk/file");
}

/// A file system that hangs when something is written to it, until this is dropped.
struct Frozen<'a>(&'a Net);

impl<'a> Frozen<'a> {
    fn new(net: &'a Net) -> Self {
        sh(&net.server, "fsfreeze --freeze /run/disk");
        Self(net)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        sh(&self.0.server, "fsfreeze --unfreeze /run/disk");
    }
}

#[test]
fn a_log_file_whose_disk_hangs_holds_up_no_knock() {
    let Some(net) = with_disk() else { return };
    let config = "[options]\nlogfile = /run/disk/log\n[door]\nsequence = 1\nstart_command = echo open %IP%\n";
    let mut knockd = Knockd::start(&net, config);
    {
        let _frozen = Frozen::new(&net);
        for source in 2..20 {
            hit(&net, source, &[1]);
            knockd.wait_for_output(&format!("open 10.9.0.{source}"));
        }
        let longest = status_json(&net)["health"]["longest_iteration_us"].as_u64().unwrap();
        assert!(longest < 900_000, "{longest} µs");
    }
    wait_for_file(&net.server, "/run/disk/log", "10.9.0.19: door: OPEN SESAME");
    knockd.stop();
}

#[test]
fn a_reload_and_the_end_do_not_wait_for_a_log_file_whose_disk_hangs() {
    let Some(net) = with_disk() else { return };
    let config = "[options]\nlogfile = /run/disk/log\n[door]\nsequence = 1\nstart_command = echo open %IP%\n\
                  cmd_timeout = 600\nstop_command = echo closed %IP%\n";
    let mut knockd = Knockd::start(&net, config);
    {
        let _frozen = Frozen::new(&net);
        for source in 2..5 {
            knockd.reload(&net, config, "re-opening log file: /run/disk/log");
            hit(&net, source, &[1]);
            knockd.wait_for_output(&format!("open 10.9.0.{source}"));
        }
        knockd.signal(Signal::SIGTERM);
        wait_until("all doors are closed", || {
            (2..5).all(|source| knockd.lines().contains(&format!("closed 10.9.0.{source}")))
        });
    }
    assert_eq!(knockd.running.wait(SOON).unwrap().code(), Some(0), "{:#?}", knockd.lines());
}

#[test]
fn a_log_file_whose_disk_hangs_for_long_loses_lines_and_says_how_many() {
    let Some(net) = with_disk() else { return };
    // Each of its lines is a warning.
    sh(&net.server, "{ yes x | head -n 2000; echo 2; } >/run/once");
    let config = "[options]\nlogfile = /run/disk/log\n[door]\nsequence = 1\nstart_command = true\n\
                  [once]\none_time_sequences = /run/once\nstart_command = true\n";
    let mut knockd = Knockd::start(&net, config);
    let last_warning = "/run/once:2000: not a sequence";
    let before = wait_for_file(&net.server, "/run/disk/log", last_warning);
    assert_eq!(before.matches("not a sequence").count(), 2000, "a disk that does not hang gets all");
    {
        let _frozen = Frozen::new(&net);
        knockd.wait_for(last_warning);
        knockd.reload(&net, config, last_warning);
    }
    let told = "cannot write to log file /run/disk/log: disk too slow; lines are lost";
    assert_eq!(knockd.count(told), 1);
    // Which says that there is room again.
    wait_for_file(&net.server, "/run/disk/log", "re-opening log file: /run/disk/log");
    hit(&net, 2, &[1]);
    let log = wait_for_file(&net.server, "/run/disk/log", "10.9.0.2: door: OPEN SESAME");
    knockd.stop();
    let lost = log.split_once("] disk too slow: lost ").unwrap().1.split_once(" lines\n").unwrap().0;
    let written = log.matches("not a sequence").count() - 2000;
    assert_eq!(
        written + lost.parse::<usize>().unwrap(),
        2001,
        "the warning that lines are lost is one of them"
    );
    assert!((900..=1100).contains(&written), "{written}");
}
