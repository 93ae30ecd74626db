//! One-time sequences, end to end.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Ear, Knockd, SOON, hit, syn, wait_for_content, wait_until};
use nix::sys::signal::Signal;
use testbed::Net;

const DOOR: &str = "[once]\none_time_sequences = /run/once\nstart_command = echo file:; cat /run/once\n";

#[test]
fn a_sequence_is_struck_out_before_the_command_runs_and_the_next_one_counts_then() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/once", "# mine\n 1,2\n 3,4:tcp\n").unwrap();
    let mut knockd = Knockd::start(&net, &format!("{DOOR}[always]\nsequence = 9\n"));
    hit(&net, 2, &[1, 2]);
    knockd.wait_for("once: running command");
    for line in ["file:", "# mine", "#1,2", " 3,4:tcp"] {
        knockd.wait_for_output(line);
    }
    hit(&net, 2, &[1, 2]);
    hit(&net, 3, &[3, 4]);
    knockd.wait_for("10.9.0.3: once: OPEN SESAME");
    knockd.wait_for(
        "no more sequences left in the one time sequences file for door once --> disabling the door",
    );
    for line in ["file:", "# mine", "#1,2", "#3,4:tcp"] {
        knockd.wait_for_output(line);
    }
    // Then there is nothing left to open it, and other doors go on.
    hit(&net, 4, &[1, 2, 3, 4, 9]);
    knockd.wait_for("10.9.0.4: always: OPEN SESAME");
    assert_eq!(knockd.count("once: OPEN SESAME"), 2);
    wait_for_content(&net.server, "/run/once", "# mine\n#1,2\n#3,4:tcp\n");
}

/// Who gets in when two knockers hit 1 before either of them hits 2, and these lines become those.
fn race_for(lines: &str, after: &str) -> Vec<String> {
    let net = Net::new().unwrap();
    net.server.write_file("/run/once", lines).unwrap();
    let mut ear = Ear::of(net, DOOR, &["-v"]);
    let frames = [(2, 1), (3, 1), (2, 2), (3, 2)].map(|(neighbour, port)| syn(&ear.net, neighbour, port));
    let opened = ear.opened(&frames);
    wait_for_content(&ear.net.server, "/run/once", after);
    opened
}

#[test]
fn two_knocks_cannot_use_one_line() {
    assert_eq!(race_for(" 1,2\n 1,3\n", "#1,2\n 1,3\n"), ["10.9.0.2: once"]);

    // Where a sequence stands on several lines, each of them is good for one knock.
    let opened = race_for(" 1,2\n 1,2\n 1,2\n", "#1,2\n#1,2\n 1,2\n");
    assert_eq!(opened, ["10.9.0.2: once", "10.9.0.3: once"]);
    assert_eq!(race_for(" 1,2\n", "#1,2\n"), ["10.9.0.2: once"]);
}

#[test]
fn a_line_that_is_no_sequence_is_passed_over_and_named() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/once", "hello\n 1\n").unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    knockd.wait_for("once: /run/once:1: not a sequence; skipped");
    hit(&net, 2, &[1]);
    knockd.wait_for("disabling the door");
    wait_for_content(&net.server, "/run/once", "hello\n#1\n");
}

#[test]
fn a_door_whose_file_cannot_be_struck_out_stays_closed() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/once", " 1\n 1\n").unwrap();
    let mut knockd = Knockd::start(&net, &format!("{DOOR}[always]\nsequence = 9\ncommand = echo always\n"));
    net.server.run(&["mv", "/run/once", "/run/away"]).unwrap();
    hit(&net, 2, &[1, 9]);
    knockd.wait_for("; its doors are disabled until the next reload");
    knockd.wait_for("always: running command");
    assert_eq!(knockd.count("once: running command"), 0);
    assert_eq!(net.server.run(&["cat", "/run/away"]).unwrap(), " 1\n 1\n");
}

#[test]
fn a_file_that_is_used_up_stops_neither_the_next_start_nor_a_reload() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/once", " 1\n").unwrap();
    let config = format!("{DOOR}cmd_timeout = 1\nstop_command = echo closed\n[other]\nsequence = 9\n");
    let mut knockd = Knockd::start(&net, &config);
    hit(&net, 2, &[1]);
    knockd.wait_for("disabling the door");
    knockd.wait_for_output("file:");
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    // The next one closes the door, and the other doors work.
    let mut knockd = Knockd::start(&net, &config);
    knockd.wait_for("disabling the door");
    knockd.wait_for_output("closed");
    knockd.reload(&net, &config.replace("= 9", "= 10"), "disabling the door");
    hit(&net, 2, &[1, 9, 10]);
    knockd.wait_for("other: OPEN SESAME");
    assert_eq!(knockd.count("OPEN SESAME"), 1);
}

#[test]
fn doors_with_the_same_file_share_its_lines_and_all_open_with_one_knock() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/once", " 1\n 2\n").unwrap();
    let mut ear = Ear::of(net, &format!("{DOOR}{}", DOOR.replace("[once]", "[twin]")), &["-v"]);
    let runs = |ear: &Ear, count| {
        for door in ["once", "twin"] {
            wait_until(door, || ear.knockd.count(&format!("{door}: running command")) == count);
        }
    };
    for (port, count, content) in [(1, 1, "#1\n 2\n"), (2, 2, "#1\n#2\n")] {
        let frame = syn(&ear.net, 2, port);
        assert_eq!(ear.opened(&[frame]), ["10.9.0.2: once", "10.9.0.2: twin"]);
        runs(&ear, count);
        wait_for_content(&ear.net.server, "/run/once", content);
    }
}

#[test]
fn new_lines_count_after_sighup() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/once", " 1\n").unwrap();
    let config = format!("[options]\nlogfile = /run/log\n{DOOR}");
    let mut knockd = Knockd::start(&net, &config);
    hit(&net, 2, &[1]);
    knockd.wait_for("disabling the door");
    net.server.write_file("/run/once", "#1\n 2\n").unwrap();
    knockd.reload(&net, &config, "re-opening log file");
    hit(&net, 2, &[1, 2]);
    knockd.wait_for("once: OPEN SESAME");
    knockd.wait_for_output("#2");
    assert_eq!(knockd.count("once: OPEN SESAME"), 2);
}
