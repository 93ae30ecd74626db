//! Doors that may still be open although their time is over lead everything that knockd says, until a person has dealt
//! with them.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

mod common;

use common::{KNOCKD, Knockd, SOON, hit, sh, status_json, wait_for_file, wait_until};
use nix::sys::signal::Signal;
use testbed::Net;

/// A door that cannot be closed.
const DOOR: &str = "[the ssh door]\nsequence = 7101\ncmd_timeout = 600\nstart_command = echo open %IP%\n\
                    stop_command = echo no such rule >&2; exit 3 # %IP%\n";

/// Opens the door for 10.9.0.`neighbour` and has it closed in vain until its stop command is given up. A door that
/// waits for a retry is retried at once when it is to be closed.
fn leave_open(net: &Net, knockd: &mut Knockd, neighbour: u8) {
    let source = format!("10.9.0.{neighbour}");
    hit(net, neighbour, &[7101]);
    knockd.wait_for_output(&format!("open {source}"));
    let given_up = format!("{source}: the ssh door: giving up on stop command");
    wait_until("the stop command is given up", || {
        sh(&net.server, &format!("'{KNOCKD}' close 'the ssh door' {source} 2>&1 || true"));
        knockd.count(&given_up) == 1
    });
}

/// The lines of `knockd status`.
fn status(net: &Net) -> Vec<String> {
    sh(&net.server, &format!("'{KNOCKD}' status")).lines().map(str::to_owned).collect()
}

fn files(net: &Net) -> String {
    sh(&net.server, "ls /var/lib/knockd")
}

fn dismiss(net: &Net, what: &str) -> String {
    sh(&net.server, &format!("'{KNOCKD}' dismiss {what} 2>&1 || true"))
}

#[test]
fn a_door_that_could_not_be_closed_comes_first_until_it_is_dismissed_whatever_restarts() {
    let net = Net::new().unwrap();
    let config = |metrics: &str| format!("[options]\nmetrics = {metrics}\n{DOOR}");
    let mut knockd = Knockd::start(&net, &config("/run/first.prom"));
    let metrics = wait_for_file(&net.server, "/run/first.prom", "knockd_given_up_total ");
    assert!(metrics.contains("\nknockd_doors_left_open 0\n"), "{metrics}");
    assert!(!status(&net).iter().any(|line| line.contains("Problems")));
    leave_open(&net, &mut knockd, 2);
    for is_restarted in [false, true] {
        if is_restarted {
            knockd.signal(Signal::SIGKILL);
            knockd.running.wait(SOON).unwrap();
            knockd = Knockd::start(&net, &config("/run/second.prom"));
            knockd.wait_for("1 door may still be open; run: knockd status");
        }
        let lines = status(&net);
        assert_eq!(lines[2], "Problems: 1");
        assert!(lines[3].starts_with("  the ssh door may still be open for 10.9.0.2, since 20"), "{lines:?}");
        assert_eq!(
            lines[4..7],
            [
                "    stop command failed: command returned non-zero status code (3): no such rule",
                "    stop command: echo no such rule >&2; exit 3 # 10.9.0.2",
                "    close it by hand, then run: knockd dismiss 'the ssh door' 10.9.0.2",
            ]
        );
        let problem = &status_json(&net)["problems"][0];
        assert_eq!(
            [&problem["what"], &problem["door"], &problem["source"], &problem["command"]],
            ["left_open", "the ssh door", "10.9.0.2", "echo no such rule >&2; exit 3 # 10.9.0.2"]
        );
    }
    let metrics = wait_for_file(&net.server, "/run/second.prom", "\nknockd_doors_left_open 1\n");
    assert!(
        metrics.contains("\nknockd_door_left_open_timestamp_seconds{door=\"the ssh door\"} 1"),
        "{metrics}"
    );
    let refused = sh(&net.server, &format!("'{KNOCKD}' close 'the ssh door' 10.9.0.2 2>&1 || true"));
    assert!(
        refused.contains("is not open for 10.9.0.2; it may still be open, see: knockd status"),
        "{refused}"
    );
    // What status says is what a person runs.
    assert_eq!(dismiss(&net, "'the ssh door' 10.9.0.2"), "dismissed 1 problem\n");
    knockd.wait_for("): dismiss the ssh door 10.9.0.2");
    assert_eq!(status_json(&net)["problems"], serde_json::json!([]));
    wait_until("its file is gone", || files(&net) == "lock\n");
    knockd.stop();
    let knockd = Knockd::start(&net, DOOR);
    assert_eq!(knockd.count("may still be open"), 0);
    assert_eq!(status_json(&net)["problems"], serde_json::json!([]));
}

#[test]
fn only_what_is_meant_is_dismissed() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    leave_open(&net, &mut knockd, 2);
    leave_open(&net, &mut knockd, 3);
    let left = || status_json(&net)["problems"].as_array().unwrap().len();
    for nothing in ["'the ssh door' 10.9.0.4", "other 10.9.0.2", "other --all"] {
        let refused = dismiss(&net, nothing);
        assert!(refused.starts_with("knockd: no such door may still be open; `knockd status`"), "{refused}");
    }
    assert_eq!(left(), 2);
    dismiss(&net, "'the ssh door' 10.9.0.2");
    assert_eq!(status_json(&net)["problems"][0]["source"], "10.9.0.3");
    assert_eq!(dismiss(&net, "'the ssh door' --all"), "dismissed 1 problem\n");
    assert_eq!((left(), dismiss(&net, "--all")), (0, "dismissed 0 problems\n".to_owned()));
}

#[test]
fn a_door_that_cannot_be_closed_is_told_even_if_nothing_can_be_stored() {
    let net = Net::new().unwrap();
    let mut first = Knockd::start(&net, DOOR);
    let elsewhere = format!("[options]\ncontrolsocket = /run/second\n{DOOR}");
    net.server.write_file("/run/second.conf", &elsewhere).unwrap();
    let mut second = Knockd::run(net.server.command(KNOCKD).args(["-c", "/run/second.conf", "-v"]));
    hit(&net, 2, &[7101]);
    first.wait_for_output("open 10.9.0.2");
    second.wait_for_output("open 10.9.0.2");
    let ask = |what: &str| sh(&net.server, &format!("'{KNOCKD}' {what} --socket /run/second 2>&1 || true"));
    wait_until("the stop command is given up", || {
        ask("close --all");
        second.count("giving up on stop command") == 1
    });
    let problems = |text: &str| -> Vec<String> {
        let status: serde_json::Value = serde_json::from_str(text).unwrap();
        let problems = status["problems"].as_array().unwrap();
        problems.iter().map(|problem| problem["what"].as_str().unwrap().to_owned()).collect()
    };
    let status = "status --format json";
    assert_eq!(problems(&ask(status)), ["left_open", "state"], "another knockd has the directory");
    assert_eq!(ask("dismiss --all"), "dismissed 1 problem\n");
    assert_eq!(problems(&ask(status)), ["state"]);
}

#[test]
fn a_stored_door_that_cannot_be_read_comes_first_too() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    hit(&net, 2, &[7101]);
    knockd.wait_for_output("open 10.9.0.2");
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    sh(&net.server, "sed -i 's/^source = .*/source = ?/' /var/lib/knockd/1.lease");
    for _ in 0..2 {
        let mut knockd = Knockd::start(&net, DOOR);
        let problem = &status_json(&net)["problems"][0];
        assert_eq!(
            [&problem["what"], &problem["path"]],
            ["unreadable", "/var/lib/knockd/1.damaged"],
            "{problem}"
        );
        knockd.stop();
    }
    let _knockd = Knockd::start(&net, DOOR);
    let refused = dismiss(&net, "'the ssh door' --all");
    assert!(refused.contains("no such door"), "nobody knows whether it is this one: {refused}");
    assert_eq!(dismiss(&net, "--all"), "dismissed 1 problem\n");
    wait_until("its file is gone", || files(&net) == "lock\n");
}
