//! The two worlds: a daemon with commands keeps its rights; one whose doors only the firewall opens gives them up.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::fs;

use common::processes::{descendants, next_decoder, proc_status, processes, signal};
use common::{
    CONFIG, KNOCKD, Knockd, SOON, is_root, knock, knockd_and_tools, sh, status_json, wait_for_content,
    wait_for_file, wait_until,
};
use nix::sys::signal::Signal;
use testbed::{Net, Running};

const OPTIONS: &str = "[options]\nFirewall = nftables\n";
const DOOR: &str = "[ssh]\nSequence = 7101,8202,9303\nOpen = tcp/22\nLease = 60\n";
const KNOCK: &str = "10.9.0.1 7101 8202 9303";

/// `CAP_NET_ADMIN` and `CAP_NET_RAW` (capability.h).
const TWO: &str = "0000000000003000";

/// Gives the server the users of the decoder and of the engine.
fn with_users(net: &Net) {
    let script = "grep -v '^knockd' /etc/passwd >/run/passwd
                  echo knockd:x:64999:64999::/nonexistent:/usr/sbin/nologin >>/run/passwd
                  echo knockd-engine:x:64998:64998::/nonexistent:/usr/sbin/nologin >>/run/passwd
                  mount --bind /run/passwd /etc/passwd";
    sh(&net.server, script);
}

/// Hosts whose server has these users; `None` if nobody can become them.
fn net_with_users() -> Option<Net> {
    is_root().then(|| {
        let net = Net::new().unwrap();
        with_users(&net);
        net
    })
}

fn native(more_options: &str) -> String {
    format!("{OPTIONS}{more_options}\n{DOOR}")
}

/// The helper of a daemon.
fn helper(daemon: i32) -> i32 {
    let found = descendants(daemon).into_iter().find(|(_, name)| name == "knockd-helper");
    found.unwrap_or_else(|| panic!("{:?}", descendants(daemon))).0
}

fn threads(process: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

fn opens(net: &Net, knockd: &mut Knockd) {
    knock(&net.client, KNOCK);
    knockd.wait_for("10.9.0.2: ssh: let in for 60 s");
    net.server.run(&[KNOCKD, "close", "ssh", "10.9.0.2"]).unwrap();
    wait_until("closed", || status_json(net)["leases"]["total"] == 0);
}

#[test]
fn an_engine_for_native_doors_has_its_own_user_two_capabilities_and_no_execve() {
    let Some(net) = net_with_users() else { return };
    let mut knockd = Knockd::start(&net, &native(""));
    let (daemon, decoder) = processes(&knockd);
    let helper = helper(daemon);
    for thread in threads(daemon) {
        assert_eq!(proc_status(thread, "Uid"), [64998; 4].map(|id| id.to_string()).join(" "));
        assert_eq!(proc_status(thread, "Gid"), "65534 65534 65534 65534");
        assert_eq!(proc_status(thread, "Groups"), "");
        for (set, expected) in [("CapPrm", TWO), ("CapEff", TWO), ("CapBnd", "0000000000000000")] {
            assert_eq!(proc_status(thread, set), expected, "{set}");
        }
        assert_eq!((proc_status(thread, "CapInh"), proc_status(thread, "CapAmb")), (zero(), zero()));
        assert_eq!((proc_status(thread, "NoNewPrivs"), proc_status(thread, "Seccomp")), two_and_one());
    }
    assert_eq!(proc_status(helper, "PPid"), daemon.to_string());
    assert_eq!(proc_status(helper, "Uid"), "0 0 0 0");
    assert_eq!(proc_status(helper, "Threads"), "1");
    assert_eq!((proc_status(helper, "NoNewPrivs"), proc_status(helper, "Seccomp")), two_and_one());
    let capabilities = u64::from_str_radix(&proc_status(helper, "CapEff"), 16).unwrap();
    assert_eq!(capabilities & 0x3000, 0, "it has no network");
    assert_eq!(proc_status(decoder, "PPid"), helper.to_string());
    assert_eq!(proc_status(decoder, "Uid"), [64999; 4].map(|id| id.to_string()).join(" "));
    assert_eq!(knockd.count("sandboxed"), 0, "there is nothing to explain: {:#?}", knockd.lines());
    assert!(net.server.run(&[KNOCKD, "status"]).unwrap().contains("\n  engine is fully sandboxed\n"));
    opens(&net, &mut knockd);
    knockd.stop();
    wait_until("the end of the helper", || {
        ["none", "Z (zombie)"].contains(&proc_status(helper, "State").as_str())
    });
    assert_eq!(sh(&net.server, "ls /run/knockd"), "", "the control socket is gone");
}

fn zero() -> String {
    "0000000000000000".to_owned()
}

fn two_and_one() -> (String, String) {
    ("1".to_owned(), "2".to_owned())
}

#[test]
fn a_decoder_of_a_helper_is_replaced_when_it_is_killed_and_ends_with_its_interface() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &native(""));
    for _ in 0..3 {
        let (_, decoder) = processes(&knockd);
        signal(decoder, Signal::SIGKILL);
        knockd.wait_for("eth0: packet decoder killed by signal 9; retrying");
        next_decoder(&knockd, decoder);
        opens(&net, &mut knockd);
    }
    let (daemon, decoder) = processes(&knockd);
    knockd.reload(&net, &native("Interface = lo\nLogFile = /run/log"), "re-opening log file");
    next_decoder(&knockd, decoder);
    wait_until("a helper and a decoder and no zombie", || descendants(daemon).len() == 2);
}

#[test]
fn a_reload_opens_what_only_root_may_the_configuration_the_log_and_one_time_files() {
    let Some(net) = net_with_users() else { return };
    sh(
        &net.server,
        "mkdir -m 700 /run/secret; printf '1,2\\n3,4\\n5,6\\n' >/run/secret/once; chmod 600 /run/secret/once",
    );
    let one_time = "[once]\nOne_Time_Sequences = /run/secret/once\nOpen = tcp/23\nTCPFlags = syn\n";
    let config =
        native("LogFile = /run/secret/log\nMetrics = /run/secret/prom\nInclude = /run/secret/*.conf");
    sh(&net.server, "touch /run/secret/a.conf; chmod 600 /run/secret/a.conf");
    let mut knockd = Knockd::start(&net, &(config.clone() + one_time));
    sh(&net.server, &format!("chmod 600 {CONFIG}"));
    wait_for_file(&net.server, "/run/secret/prom", "knockd_");
    knock(&net.client, "10.9.0.1 1 2");
    knockd.wait_for("10.9.0.2: once: let in for 30 s");
    wait_for_content(&net.server, "/run/secret/once", "#,2\n3,4\n5,6\n");
    // A door in a new file of the pattern, with a one-time file that no configuration has named so far.
    sh(
        &net.server,
        "mv /run/secret/log /run/secret/log.1; printf '7,8\\n' >/run/secret/more; chmod 600 /run/secret/more",
    );
    let door = "[more]\nOne_Time_Sequences = /run/secret/more\nOpen = tcp/24\nTCPFlags = syn\n";
    net.server.write_file("/run/secret/b.conf", door).unwrap();
    sh(&net.server, "chmod 600 /run/secret/b.conf");
    let moved = config
        .replace("/run/secret/prom", "/run/secret/other")
        .replace("[ssh]", "ControlSocket = /run/secret/s\n[ssh]");
    knockd.reload(&net, &(moved + one_time), "re-opening log file: /run/secret/log");
    knock(&net.client, "10.9.0.1 7 8");
    knockd.wait_for("10.9.0.2: more: let in for 30 s");
    wait_for_content(&net.server, "/run/secret/more", "#,8\n");
    wait_for_file(&net.server, "/run/secret/log", "more: let in for 30 s");
    wait_for_file(&net.server, "/run/secret/other", "knockd_");
    assert_eq!(sh(&net.server, "ls /run/secret"), "a.conf\nb.conf\nlog\nlog.1\nmore\nonce\nother\ns\n");
    knockd.stop();
    assert_eq!(sh(&net.server, "ls /run/secret"), "a.conf\nb.conf\nlog\nlog.1\nmore\nonce\n");
}

#[test]
fn a_reload_that_brings_a_command_is_refused_with_the_advice_to_restart() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &native(""));
    let command = format!("{}[log]\nSequence = 1\nCommand = echo ran\n", native(""));
    knockd.reload(&net, &command, "keeping the old configuration");
    let text = "door `log` has a command, and knockd has given up the right to run any; to run commands, restart knockd";
    assert_eq!(knockd.count(text), 1, "{:#?}", knockd.lines());
    let refused = sh(&net.server, &format!("'{KNOCKD}' reload 2>&1 || true"));
    assert!(refused.contains(text), "{refused}");
    opens(&net, &mut knockd);
    // Not in two steps either.
    knockd.reload(&net, "[options]\nLogFile = /run/log\n[x]\nSequence = 1\n", "re-opening log file");
    knockd.reload(&net, &command, "keeping the old configuration");
    knockd.stop();
    let mut knockd = Knockd::start(&net, &command);
    let (daemon, _) = processes(&knockd);
    assert_eq!((proc_status(daemon, "NoNewPrivs"), proc_status(daemon, "Seccomp")), ("0".into(), "0".into()));
    assert!(
        net.server.run(&[KNOCKD, "status"]).unwrap().contains("\n  engine keeps its rights, for commands\n")
    );
    knock(&net.client, "10.9.0.1 1");
    knockd.wait_for_output("ran");
}

#[test]
fn the_rights_of_the_narrower_unit_are_enough() {
    let Some(net) = net_with_users() else { return };
    let unit = include_str!("../../../packaging/knockd.service.d/native.conf");
    let set =
        unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet=")).next_back().unwrap();
    let set: Vec<_> =
        set.split(' ').map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase())).collect();
    net.server.write_file(CONFIG, &native("LogFile = /run/log")).unwrap();
    // The directory of the build may be closed to others.
    sh(&net.server, &format!("install -m 755 '{KNOCKD}' /run/knockd-program; chmod 600 {CONFIG}"));
    let mut command = net.server.command("setpriv");
    command.args(["--no-new-privs", "--bounding-set", &format!("-all,{}", set.join(","))]);
    let mut knockd = Knockd::run(command.args(["/run/knockd-program", "-v", "-c", CONFIG]));
    let (daemon, decoder) = processes(&knockd);
    assert_eq!(proc_status(daemon, "Uid"), "64998 64998 64998 64998");
    assert_eq!(proc_status(decoder, "Uid"), "64999 64999 64999 64999");
    assert_eq!(knockd.count("sandboxed"), 0, "{:#?}", knockd.lines());
    opens(&net, &mut knockd);
    sh(&net.server, "mv /run/log /run/log.1");
    knockd.reload(&net, &native("LogFile = /run/log"), "re-opening log file");
    opens(&net, &mut knockd);
    signal(decoder, Signal::SIGKILL);
    next_decoder(&knockd, decoder);
    opens(&net, &mut knockd);
    knockd.stop();
}

#[test]
fn an_engine_without_rights_looks_up_names() {
    let net = Net::new().unwrap();
    if is_root() {
        with_users(&net);
    }
    sh(&net.server, "echo 10.9.0.2 knocker.example >/run/hosts; mount --bind /run/hosts /etc/hosts");
    let mut knockd = Knockd::start_with(&net, &native(""), &["-v", "-l"]);
    knock(&net.client, KNOCK);
    knockd.wait_for("10.9.0.2 (knocker.example): ssh: OPEN SESAME");
    knockd.stop();
}

#[test]
fn a_second_knockd_finds_an_engine_of_another_user() {
    let Some(net) = net_with_users() else { return };
    let mut first = Knockd::start(&net, &native(""));
    // With and without the right to look into processes of others.
    for (capabilities, reason) in [
        ("", "another knockd already does"),
        ("-all,+net_raw,+net_admin,+setuid,+setgid,+kill", "cannot guard the services of doors"),
    ] {
        let mut command = net.server.command("setpriv");
        if !capabilities.is_empty() {
            command.args(["--bounding-set", capabilities]);
        }
        let mut second = Running::start(command.args([KNOCKD, "-v", "-c", CONFIG])).unwrap();
        assert_eq!(second.wait(SOON).unwrap().code(), Some(1));
        let lines: Vec<_> = second.lines().into_iter().map(|line| line.text).collect();
        assert!(lines.iter().any(|line| line.contains(reason)), "{lines:#?}");
    }
    opens(&net, &mut first);
}

#[test]
fn without_its_helper_knockd_ends_and_says_why() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &native(""));
    let (daemon, decoder) = processes(&knockd);
    signal(helper(daemon), Signal::SIGKILL);
    knockd.wait_for("the helper process has ended, so knockd ends");
    assert_eq!(knockd.running.wait(SOON).unwrap().code(), Some(1));
    wait_until("the end of the decoder", || {
        ["none", "Z (zombie)"].contains(&proc_status(decoder, "State").as_str())
    });
}

#[test]
fn without_a_user_of_its_own_the_engine_says_that_it_stays_root_and_has_two_capabilities_all_the_same() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &native(""));
    let (daemon, _) = processes(&knockd);
    let text = "engine is not fully sandboxed: stays root, because there is no user knockd-engine";
    assert_eq!(knockd.count(text), 1, "{:#?}", knockd.lines());
    assert!(
        net.server
            .run(&[KNOCKD, "status"])
            .unwrap()
            .contains(&format!("\n  {text}; run: systemd-sysusers\n"))
    );
    let health = &status_json(&net)["health"];
    assert!(health["native"] == true && health["engine"].as_str().unwrap().starts_with(text), "{health}");
    for thread in threads(daemon) {
        assert_eq!((proc_status(thread, "CapEff"), proc_status(thread, "CapPrm")), (TWO.into(), TWO.into()));
        assert_eq!(proc_status(thread, "Seccomp"), "2");
    }
    opens(&net, &mut knockd);
}

#[test]
fn doors_that_commands_have_left_open_are_closed_by_a_knockd_that_keeps_its_rights() {
    let net = Net::new().unwrap();
    let command = "[a]\nSequence = 1\nStart_Command = true\nCmd_Timeout = 600\nStop_Command = echo closed\n";
    let mut knockd = Knockd::start(&net, &format!("[options]\nOnExit = keep\n{command}"));
    knock(&net.client, "10.9.0.1 1");
    knockd.wait_for("running command: true");
    wait_until("stored", || sh(&net.server, "ls /var/lib/knockd").contains("1.lease"));
    knockd.stop();
    let mut knockd = Knockd::start(&net, &native(""));
    assert_eq!(
        knockd.count("keeps the rights to close them until it is restarted"),
        1,
        "{:#?}",
        knockd.lines()
    );
    knockd.stop();
    assert_eq!(knockd.count("closed"), 2, "the command and its output: {:#?}", knockd.lines());
    let knockd = Knockd::start(&net, &native(""));
    assert_eq!(knockd.count("keeps the rights"), 0);
    helper(processes(&knockd).0);
}

#[test]
fn in_the_background_the_pid_file_and_the_socket_go_with_the_engine() {
    let net = Net::new().unwrap();
    if is_root() {
        with_users(&net);
    }
    sh(&net.server, "mkdir -m 755 /run/place");
    let config = native("LogFile = /run/log\nPidFile = /run/place/pid\nControlSocket = /run/place/s");
    net.server.write_file(CONFIG, &config).unwrap();
    net.server.run(&[KNOCKD, "-d", "-c", CONFIG]).unwrap();
    wait_for_file(&net.server, "/run/log", "starting up, listening on eth0");
    assert_eq!(sh(&net.server, "ls /run/place"), "pid\ns\n");
    sh(&net.server, "mv /run/log /run/log.1; kill -HUP $(cat /run/place/pid)");
    wait_for_file(&net.server, "/run/log", "re-opening log file");
    sh(&net.server, "kill $(cat /run/place/pid)");
    wait_for_file(&net.server, "/run/log", "shutting down");
    wait_until("both are gone", || sh(&net.server, "ls /run/place").is_empty());
}

#[test]
fn check_says_in_which_world_a_configuration_is() {
    let net = Net::new().unwrap();
    let says = |config: &str| {
        net.server.write_file(CONFIG, config).unwrap();
        sh(&net.server, &format!("'{}' check -c {CONFIG} 2>&1 || true", knockd_and_tools()))
    };
    let native_says = says(&native(""));
    let expected = "note: no door has a command: knockd executes nothing and keeps two capabilities, CAP_NET_ADMIN and CAP_NET_RAW";
    assert!(native_says.contains(expected), "{native_says}");
    let mixed = says(&native("").replace("Lease", "Command = true\nLease"));
    assert!(mixed.contains("note: door `ssh` has a command: knockd stays root and runs a shell"), "{mixed}");
    let commands = says("[ssh]\nSequence = 1,2,3\nCommand = true\n");
    assert!(!commands.contains("has a command"), "{commands}");
}
