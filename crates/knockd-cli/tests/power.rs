//! What a disk has when the power fails: a loop device's backing file is copied while the start command runs, so
//! whatever has not been written to the disk by then is lost, as it would be in memory.
//!
//! Only root may mount a file system of its own; where the tests run as a plain user, they say so and show nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Knockd, hit, sh, wait_for_file};
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
