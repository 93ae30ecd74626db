//! The decoder process: what it may not do, what becomes of the daemon without it, and that commands are free of all this.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;
use std::{fs, thread};

use common::{CONFIG, KNOCKD, Knockd, hit, is_root, sh, wait_for_file, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::Net;

/// What the daemon says of packets for which the ring had no room, behind their number.
const LOST: &str = "kernel dropped ";

const DOOR: &str = "[door]\nsequence = 1,2,3\ntcpflags = syn\n";

/// The text of a file of `/proc` about a process; empty when that is gone.
fn about(pid: i32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// A line of `/proc/PID/status`, with single blanks between its words.
fn status(pid: i32, key: &str) -> String {
    let text = about(pid, "status");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
    line.unwrap_or("none").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every process below this one, with its name.
fn descendants(pid: i32) -> Vec<(i32, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children: Vec<i32> =
        lists.flat_map(|list| list.split(' ').filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect();
    let below = |child: i32| {
        let name = about(child, "comm").trim_end().to_owned();
        std::iter::once((child, name)).chain(descendants(child))
    };
    children.into_iter().flat_map(|child| below(child).collect::<Vec<_>>()).collect()
}

/// The decoders below a daemon.
fn decoders(pid: i32) -> Vec<i32> {
    descendants(pid).into_iter().filter(|(_, name)| name == "knockd-decoder").map(|(pid, _)| pid).collect()
}

/// The daemon and its decoder, once that reads packets.
fn processes(knockd: &Knockd) -> (i32, i32) {
    let daemon = i32::try_from(knockd.running.pid().unwrap()).unwrap();
    let mut found = Vec::new();
    wait_until("a decoder in its sandbox", || {
        found = decoders(daemon);
        found.len() == 1 && status(found[0], "Seccomp") == "2"
    });
    (daemon, found[0])
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Knockd on the server as `setpriv` starts it with these options.
fn start_with_less(net: &Net, setpriv: &str) -> Knockd {
    let config = format!("{DOOR}start_command = grep NoNewPrivs /proc/self/status\n");
    net.server.write_file(CONFIG, &config).unwrap();
    // The directory of the build may be closed to others.
    sh(&net.server, &format!("install -m 755 {KNOCKD} /run/knockd; chmod a+r {CONFIG}"));
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
    let mut knockd = Knockd::start(&net, DOOR);
    let (daemon, decoder) = processes(&knockd);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(decoder, set), "0000000000000000", "{set}");
    }
    assert_eq!((status(decoder, "NoNewPrivs"), status(decoder, "Seccomp")), ("1".into(), "2".into()));
    assert_eq!((status(daemon, "NoNewPrivs"), status(daemon, "Seccomp")), ("0".into(), "0".into()));
    assert_ne!(status(daemon, "CapEff"), "0000000000000000");
    assert_eq!(status(decoder, "Threads"), "1");
    if is_root() {
        let user = nix::unistd::User::from_name("knockd").unwrap();
        let user = user.or(nix::unistd::User::from_name("nobody").unwrap()).unwrap();
        assert_eq!(status(decoder, "Uid"), [user.uid.to_string().as_str(); 4].join(" "));
        assert_eq!(status(decoder, "Gid"), [user.gid.to_string().as_str(); 4].join(" "));
        assert_eq!(status(decoder, "Groups"), "");
        let open = fs::read_dir(format!("/proc/{decoder}/fd")).unwrap();
        let open: BTreeSet<_> = open.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(open, ["0", "1", "2"].map(str::to_owned).into());
        assert!(
            fs::read_link(format!("/proc/{decoder}/fd/0")).unwrap().to_str().unwrap().starts_with("socket:")
        );
        assert_eq!(about(decoder, "environ"), "");
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
    // Whether there is a decoder again or not yet: the socket has it.
    hit(&net, 9, &[2]);
    knockd.wait_for("10.9.0.9: door: Stage 2");
    assert_eq!(knockd.count("eth0: packet decoder killed by signal 9; restarting it"), 1);
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
    }
    opens(&net, &mut knockd);
}

#[test]
fn without_the_daemon_the_decoder_ends() {
    let net = Net::new().unwrap();
    let knockd = Knockd::start(&net, DOOR);
    let (daemon, decoder) = processes(&knockd);
    signal(daemon, Signal::SIGKILL);
    wait_until("the end of the decoder", || {
        ["none", "Z (zombie)"].contains(&status(decoder, "State").as_str())
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
fn a_decoder_that_was_stopped_goes_on() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    let (_, decoder) = processes(&knockd);
    signal(decoder, Signal::SIGSTOP);
    hit(&net, 9, &[1, 2, 3]);
    wait_until("the stop", || status(decoder, "State").starts_with('T'));
    signal(decoder, Signal::SIGCONT);
    knockd.wait_for("10.9.0.9: door: OPEN SESAME");
    assert_eq!(processes(&knockd).1, decoder);
}

#[test]
fn nothing_wakes_up_when_nothing_happens() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    opens(&net, &mut knockd);
    let (daemon, decoder) = processes(&knockd);
    let wake_ups = || {
        let of_thread = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("status")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        let threads = [daemon, decoder].map(|pid| fs::read_dir(format!("/proc/{pid}/task")).unwrap());
        threads.into_iter().flatten().map(|task| of_thread(task.unwrap())).sum::<u64>()
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
    let (_, decoder) = processes(&knockd);
    signal(decoder, Signal::SIGSTOP);
    wait_until("the stop", || status(decoder, "State").starts_with('T'));
    // Far more than the ring holds.
    hit(&net, 9, &vec![1; 20_000]);
    signal(decoder, Signal::SIGCONT);
    knockd.wait_for(LOST);
    // The first line may come before the last packet, and the next one ten seconds later.
    let mut counters = serde_json::Value::Null;
    wait_until("every lost packet is told", || {
        let status = net.server.run(&[KNOCKD, "status", "--format", "json"]).unwrap();
        counters = serde_json::from_str::<serde_json::Value>(&status).unwrap()["counters"].take();
        let lines = knockd.lines().into_iter().filter(|line| line.contains(LOST));
        let told: u64 = lines.map(|line| line.split(' ').nth(2).unwrap().parse::<u64>().unwrap()).sum();
        counters["dropped"] == told
    });
    let (read, lost) = (counters["packets"].as_u64().unwrap(), counters["dropped"].as_u64().unwrap());
    assert!(read >= 8192, "the ring has room for 8192: {counters}");
    // On a busy machine the kernel may lose some on their way to the socket.
    assert!(read + lost <= 20_000, "{counters}");
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
    assert_eq!(knockd.count("restarting it"), 0, "{:#?}", knockd.lines());
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
    assert_eq!(status(daemon, "CapEff"), "0000000000002000");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(decoder, set), "0000000000000000", "{set}");
    }
    assert_eq!((status(decoder, "NoNewPrivs"), status(decoder, "Seccomp")), ("1".into(), "2".into()));
    assert_eq!(status(decoder, "Uid"), "65533 65533 65533 65533");
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
        assert_eq!(status(decoder, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(decoder, "Uid"), "0 0 0 0");
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
        assert_eq!(status(decoder, "Uid") != "0 0 0 0", left_root, "{more}");
        knockd.stop();
        wait_until("the end of the decoder", || {
            let status = std::fs::read_to_string(format!("/proc/{decoder}/status")).unwrap_or_default();
            status.is_empty() || status.contains("State:\tZ")
        });
    }
}
