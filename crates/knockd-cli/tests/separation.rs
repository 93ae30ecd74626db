//! The decoder process: what it may not do, what becomes of the daemon without it, and that commands are free of all
//! this.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;
use std::{fs, thread};

use common::processes::{about, descendants, next_decoder, proc_status, processes, signal, socket_of};
use common::{
    CONFIG, KNOCKD, Knockd, hit, is_root, sh, status_json, wait_for_file, wait_until, with_own_user,
};
use nix::sys::signal::Signal;
use testbed::Net;

/// What the daemon says of packets for which the ring had no room, behind their number.
const LOST: &str = "kernel dropped ";

const DOOR: &str = "[door]\nsequence = 1,2,3\ntcpflags = syn\n";

/// Knockd on the server as `setpriv` starts it with these options.
fn start_with_less(net: &Net, setpriv: &str) -> Knockd {
    let config = format!("{DOOR}start_command = grep NoNewPrivs /proc/self/status\n");
    net.server.write_file(CONFIG, &config).unwrap();
    // The directory of the build may be closed to others.
    sh(&net.server, &format!("install -m 755 '{KNOCKD}' /run/knockd; chmod a+r {CONFIG}"));
    let mut command = net.server.command("setpriv");
    Knockd::run(command.args(setpriv.split(' ')).args(["/run/knockd", "-v", "-c", CONFIG]))
}

fn opens(net: &Net, knockd: &mut Knockd) {
    hit(net, 9, &[1, 2, 3]);
    knockd.wait_for("10.9.0.9: door: OPEN SESAME");
}

#[test]
fn the_decoder_has_no_privilege_and_no_file_and_the_daemon_keeps_its_own() {
    let net = Net::new().unwrap();
    let own_user = with_own_user(&net);
    let mut knockd = Knockd::start(&net, DOOR);
    let (daemon, decoder) = processes(&knockd);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(proc_status(decoder, set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (proc_status(decoder, "NoNewPrivs"), proc_status(decoder, "Seccomp")),
        ("1".into(), "2".into())
    );
    assert_eq!((proc_status(daemon, "NoNewPrivs"), proc_status(daemon, "Seccomp")), ("0".into(), "0".into()));
    assert_ne!(proc_status(daemon, "CapEff"), "0000000000000000");
    assert_eq!(proc_status(decoder, "Threads"), "1");
    if is_root() {
        assert_eq!(proc_status(decoder, "Uid"), [own_user; 4].join(" "));
        assert_eq!(proc_status(decoder, "Gid"), "65534 65534 65534 65534");
        assert_eq!(proc_status(decoder, "Groups"), "");
        let open = fs::read_dir(format!("/proc/{decoder}/fd")).unwrap();
        let open: BTreeSet<_> = open.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(open, ["0", "1", "2"].map(str::to_owned).into());
        assert!(socket_of(decoder).starts_with("socket:"));
        assert_eq!(about(decoder, "environ"), "");
        let limits = about(decoder, "limits");
        let limit = |name: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().ok()
        };
        for (name, expected) in [("Max file size", 0), ("Max processes", 0), ("Max open files", 3)] {
            assert_eq!(limit(name), Some(expected), "{name}");
        }
        assert!(
            limit("Max address space") < Some(1 << 30) && limit("Max address space").is_some(),
            "{limits}"
        );
        assert_eq!(knockd.count("decoder"), 0, "there is nothing to explain: {:#?}", knockd.lines());
    }
    opens(&net, &mut knockd);
}

#[test]
fn a_command_has_neither_the_socket_nor_the_pipe_and_may_change_its_user() {
    let net = Net::new().unwrap();
    let command = "grep NoNewPrivs /proc/self/status; ls -l /proc/self/fd | grep -c socket:; setpriv --reuid 65534 id -u";
    let mut knockd = Knockd::start(&net, &format!("{DOOR}start_command = {command}\n"));
    let (_, decoder) = processes(&knockd);
    let pipe = fs::read_link(format!("/proc/{decoder}/fd/1"));
    opens(&net, &mut knockd);
    knockd.wait_for("NoNewPrivs:\t0");
    knockd.wait_for("0");
    if is_root() {
        assert!(pipe.is_ok());
        knockd.wait_for("65534");
    }
}

#[test]
fn an_attempt_outlives_a_decoder_that_is_killed() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    hit(&net, 9, &[1]);
    knockd.wait_for("10.9.0.9: door: Stage 1");
    let (daemon, decoder) = processes(&knockd);
    signal(decoder, Signal::SIGKILL);
    knockd.wait_for("eth0: packet decoder killed by signal 9; retrying");
    // Whether there is a decoder again or not yet: the new socket has it.
    hit(&net, 9, &[2]);
    knockd.wait_for("10.9.0.9: door: Stage 2");
    let (same, another) = processes(&knockd);
    assert_eq!(same, daemon);
    assert_ne!(another, decoder);
    hit(&net, 9, &[3]);
    knockd.wait_for("10.9.0.9: door: OPEN SESAME");
}

#[test]
fn a_decoder_that_dies_again_and_again_is_started_again_and_again() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    for _ in 0..4 {
        let (_, decoder) = processes(&knockd);
        signal(decoder, Signal::SIGKILL);
        knockd.wait_for("packet decoder killed by signal 9");
        // Now the next one reads; one that died before that would be the same trouble, and have no line of its own.
        opens(&net, &mut knockd);
    }
}

#[test]
fn without_the_daemon_the_decoder_ends() {
    let net = Net::new().unwrap();
    let knockd = Knockd::start(&net, DOOR);
    let (daemon, decoder) = processes(&knockd);
    signal(daemon, Signal::SIGKILL);
    wait_until("the end of the decoder", || {
        ["none", "Z (zombie)"].contains(&proc_status(decoder, "State").as_str())
    });
}

#[test]
fn signals_for_the_daemon_do_not_end_the_decoder() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    let (_, decoder) = processes(&knockd);
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGTSTP] {
        signal(decoder, number);
    }
    opens(&net, &mut knockd);
    assert_eq!(processes(&knockd).1, decoder);
}

#[test]
fn whatever_a_decoder_has_written_into_the_ring_the_next_one_has_another() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    let (_, mut decoder) = processes(&knockd);
    for _ in 0..3 {
        // One that has not read yet leaves its socket to the next.
        opens(&net, &mut knockd);
        let socket = socket_of(decoder);
        signal(decoder, Signal::SIGKILL);
        decoder = next_decoder(&knockd, decoder);
        assert_ne!(socket_of(decoder), socket);
    }
    // It has the filter that is wanted now.
    let config = DOOR.replace("1,2,3", "4,5,6");
    knockd.reload(&net, &format!("[options]\nlogfile = /run/log\n{config}"), "re-opening log file");
    signal(decoder, Signal::SIGKILL);
    next_decoder(&knockd, decoder);
    hit(&net, 9, &[4, 5, 6]);
    knockd.wait_for("10.9.0.9: door: OPEN SESAME");
}

#[test]
fn of_what_a_decoder_says_on_stderr_a_line_is_read_and_it_waits_for_nobody() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    let (_, decoder) = processes(&knockd);
    // In its name, as if it had been taken over.
    let mut stderr = fs::File::options();
    stderr.write(true).custom_flags(nix::libc::O_NONBLOCK);
    let mut stderr = stderr.open(format!("/proc/{decoder}/fd/2")).unwrap();
    let mut written = 0;
    let error = loop {
        match stderr.write(&b"\x1b[31mmuch to say\n".repeat(100)) {
            Ok(length) => written += length,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "nobody reads it");
    assert!(written <= 64 << 10, "{written}");
    drop(stderr);
    opens(&net, &mut knockd);
    signal(decoder, Signal::SIGKILL);
    let line =
        knockd.wait_for("eth0: packet decoder killed by signal 9, saying \" [31mmuch to say  [31mmuch").text;
    assert!(line.len() < 400 && line.ends_with("retrying"), "{line}");
    assert_eq!(knockd.count("much to say"), 1);
    opens(&net, &mut knockd);
}

#[test]
fn nothing_wakes_up_when_nothing_happens() {
    nothing_wakes_up_with(DOOR);
    // With a helper.
    nothing_wakes_up_with(&format!("[options]\nFirewall = nftables\n{DOOR}open = tcp/22\n"));
}

fn nothing_wakes_up_with(config: &str) {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, config);
    opens(&net, &mut knockd);
    let (daemon, _) = processes(&knockd);
    let mut all = vec![daemon];
    all.extend(descendants(daemon).into_iter().map(|(pid, _)| pid));
    let wake_ups = || {
        let of_thread = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("status")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        let threads = all.iter().map(|pid| fs::read_dir(format!("/proc/{pid}/task")).unwrap());
        threads.flatten().map(|task| of_thread(task.unwrap())).sum::<u64>()
    };
    // After a knock there is something left to do for a moment.
    wait_until("three seconds without a wake-up", || {
        let before = wake_ups();
        thread::sleep(Duration::from_secs(3));
        wake_ups() == before
    });
}

#[test]
fn packets_that_are_lost_are_counted_and_told() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    let (daemon, decoder) = processes(&knockd);
    // The decoder goes on until nobody takes what it writes, so it is not deaf.
    signal(daemon, Signal::SIGSTOP);
    wait_until("the stop", || proc_status(daemon, "State").starts_with('T'));
    // Far more than the ring holds.
    hit(&net, 9, &vec![1; 40_000]);
    signal(daemon, Signal::SIGCONT);
    knockd.wait_for(LOST);
    // The first line may come before the last packet, and the next one ten seconds later.
    let mut counters = serde_json::Value::Null;
    wait_until("every lost packet is told", || {
        counters = status_json(&net)["counters"].take();
        let lines = knockd.lines().into_iter().filter(|line| line.contains(LOST));
        let told: u64 = lines.map(|line| line.split(' ').nth(2).unwrap().parse::<u64>().unwrap()).sum();
        counters["dropped"] == told
    });
    let (read, lost) = (counters["packets"].as_u64().unwrap(), counters["dropped"].as_u64().unwrap());
    assert!(read >= 8192, "the ring has room for 8192: {counters}");
    // On a busy machine the kernel may lose some on their way to the socket.
    assert!(read + lost <= 40_000, "{counters}");
    assert_eq!(processes(&knockd), (daemon, decoder), "{:#?}", knockd.lines());
}

#[test]
fn after_many_reloads_there_is_one_decoder_and_no_zombie() {
    let net = Net::new().unwrap();
    let on = |interface: &str| format!("[options]\ninterface = {interface}\nlogfile = /run/log\n{DOOR}");
    let mut knockd = Knockd::start(&net, &on("eth0"));
    for number in 0..20 {
        // Every other one changes the interface, and with it the decoder.
        let interface = if number % 4 < 2 { "lo" } else { "eth0" };
        knockd.reload(&net, &on(interface), "re-opening log file: /run/log");
    }
    knockd.reload(&net, &on("eth0"), "re-opening log file: /run/log");
    let (daemon, _) = processes(&knockd);
    wait_until("a decoder and nothing else", || descendants(daemon).len() == 1);
    opens(&net, &mut knockd);
    assert_eq!(knockd.count("retrying"), 0, "{:#?}", knockd.lines());
}

#[test]
fn in_the_background_it_is_the_same() {
    let net = Net::new().unwrap();
    let config = format!("[options]\nlogfile = /run/log\npidfile = /run/knockd.pid\n{DOOR}");
    net.server.write_file(CONFIG, &config).unwrap();
    net.server.run(&[KNOCKD, "-d", "-c", CONFIG]).unwrap();
    wait_for_file(&net.server, "/run/log", "starting up, listening on eth0");
    hit(&net, 9, &[1, 2]);
    wait_for_file(&net.server, "/run/log", "10.9.0.9: door: Stage 2");
    // The host's processes have their own numbers, and its /proc is not its own.
    sh(&net.server, "kill -HUP $(cat /run/knockd.pid)");
    wait_for_file(&net.server, "/run/log", "re-opening log file");
    hit(&net, 9, &[3]);
    wait_for_file(&net.server, "/run/log", "10.9.0.9: door: OPEN SESAME");
    sh(&net.server, "kill $(cat /run/knockd.pid)");
    wait_for_file(&net.server, "/run/log", "shutting down");
}

#[test]
fn a_user_with_nothing_but_cap_net_raw_is_enough_and_what_is_kept_is_said() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let mut knockd = start_with_less(
        &net,
        "--reuid 65533 --regid 65533 --clear-groups --inh-caps -all,+net_raw --ambient-caps -all,+net_raw",
    );
    let (daemon, decoder) = processes(&knockd);
    assert_eq!(proc_status(daemon, "CapEff"), "0000000000002000");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(proc_status(decoder, set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (proc_status(decoder, "NoNewPrivs"), proc_status(decoder, "Seccomp")),
        ("1".into(), "2".into())
    );
    assert_eq!(proc_status(decoder, "Uid"), "65533 65533 65533 65533");
    opens(&net, &mut knockd);
    knockd.wait_for("NoNewPrivs:\t0");
    let text = "still runs as user 65533: changing it needs CAP_SETUID, CAP_SETGID and CAP_KILL";
    assert_eq!(knockd.count(text), 1, "{:#?}", knockd.lines());
}

#[test]
fn root_that_may_not_change_its_user_is_enough_and_what_is_kept_is_said() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let mut knockd =
        start_with_less(&net, "--bounding-set -all,+net_raw,+net_admin,+sys_module --no-new-privs");
    let (_, decoder) = processes(&knockd);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(proc_status(decoder, set), "0000000000000000", "{set}");
    }
    assert_eq!(proc_status(decoder, "Uid"), "0 0 0 0");
    opens(&net, &mut knockd);
    assert_eq!(knockd.count("still runs as user 0: changing it needs"), 1, "{:#?}", knockd.lines());
}

#[test]
fn a_decoder_ends_with_the_daemon_whatever_the_daemon_may_do() {
    if !is_root() {
        return;
    }
    // Without the right to end it, it does not leave root; with that of our unit it does.
    for (more, left_root) in [("+setuid,+setgid", false), ("+setuid,+setgid,+kill", true)] {
        let net = Net::new().unwrap();
        let set = format!("--bounding-set -all,+net_raw,+net_admin,{more}");
        let mut knockd = start_with_less(&net, &set);
        let (_, decoder) = processes(&knockd);
        opens(&net, &mut knockd);
        assert_eq!(proc_status(decoder, "Uid") != "0 0 0 0", left_root, "{more}");
        knockd.stop();
        wait_until("the end of the decoder", || {
            let status = std::fs::read_to_string(format!("/proc/{decoder}/status")).unwrap_or_default();
            status.is_empty() || status.contains("State:\tZ")
        });
    }
}
