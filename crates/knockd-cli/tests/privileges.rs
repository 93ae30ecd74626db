//! Which privileges knockd needs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::Command;

use common::{CONFIG, KNOCKD, Knockd, SOON, hit, sh};
use testbed::{Net, Running};

/// A command that runs knockd on the server without any privilege but these capabilities, as a plain user.
fn unprivileged(net: &Net, capabilities: &str) -> Command {
    // The directory of the build may be closed to others.
    net.server.run(&["install", "-m", "755", KNOCKD, "/run/knockd"]).unwrap();
    let capabilities = format!("-all{capabilities}");
    let mut command = net.server.command("setpriv");
    if nix::unistd::geteuid().is_root() {
        net.server.run(&["chown", "65534", CONFIG]).unwrap();
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    // Without root the testbed's only user is its own root, but one without capabilities is no better than others.
    for set in ["inh-caps", "ambient-caps", "bounding-set"] {
        command.arg(format!("--{set}={capabilities}"));
    }
    command.args(["/run/knockd", "-v", "-c", CONFIG]);
    command
}

#[test]
fn a_plain_user_with_cap_net_raw_can_run_it() {
    let net = Net::new().unwrap();
    net.server
        .write_file(CONFIG, "[door]\nsequence = 1,2:tcp,3\ncommand = grep CapEff /proc/self/status\n")
        .unwrap();
    let mut knockd = Knockd::run(&mut unprivileged(&net, ",+net_raw"));
    hit(&net, 2, &[1, 2, 3]);
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
    knockd.wait_for("door: running command");
    // The thirteenth capability is CAP_NET_RAW (capability.h), and there is no other.
    knockd.wait_for("CapEff:\t0000000000002000");
    knockd.stop();
}

#[test]
fn a_plain_user_who_cannot_keep_the_state_is_warned_and_the_door_is_closed_all_the_same() {
    let net = Net::new().unwrap();
    // So it is for the testbed's own root too, who may write everywhere.
    sh(&net.server, "mount -t tmpfs -o ro tmpfs /var/lib");
    let config = "[door]\nsequence = 1\nstart_command = true\ncmd_timeout = 0\nstop_command = echo closed\n";
    net.server.write_file(CONFIG, config).unwrap();
    let mut knockd = Knockd::run(&mut unprivileged(&net, ",+net_raw"));
    knockd.wait_for("keeping open doors in memory only");
    hit(&net, 2, &[1]);
    knockd.wait_for("door: running command: echo closed");
    knockd.wait_for("closed");
}

#[test]
fn a_plain_user_without_it_is_told_what_is_missing() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, "[door]\nsequence = 1\n").unwrap();
    let mut knockd = Running::start(&mut unprivileged(&net, "")).unwrap();
    assert_eq!(knockd.wait(SOON).unwrap().code(), Some(1));
    let lines: Vec<_> = knockd.lines().into_iter().map(|line| line.text).collect();
    assert_eq!(
        lines,
        ["knockd: capturing packets requires root or CAP_NET_RAW; start knockd with sudo or as a service"]
    );
}
