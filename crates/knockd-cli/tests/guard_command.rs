//! `knockd guard`: on trial, for good, and the way out, whatever the daemon does.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

mod common;

use common::sessions::{KNOCK, echo, reaches};
use common::{CONFIG, KNOCKD, Knockd, SOON, knock, sh, status_json, wait_until};
use nix::sys::signal::Signal;
use testbed::{Host, Net, Running};

const DOOR: &str =
    "[options]\nFirewall = nftables\n[ssh]\nSequence = 7101,8202:udp,9303\nOpen = tcp/22\nLease = 600\n";

/// The same door, with nothing behind it.
const UNGUARDED: &str = "[ssh]\nSequence = 7101,8202:udp,9303\nStart_Command = true\n";

/// A client that sends a line whenever a file changes, and prints what comes back.
const SESSION: &str = "import socket, time
c = socket.create_connection(('10.9.0.1', 22)); c.settimeout(60)
print('connected', flush=True)
last = ''
while True:
    try: word = open('/run/word').read()
    except OSError: word = ''
    if word and word != last:
        c.sendall(word.encode()); print('back: ' + c.recv(99).decode(), flush=True); last = word
    time.sleep(0.02)";

fn service(net: &Net) -> Running {
    // The machine's has the processes of the machine, with other numbers.
    sh(&net.server, "mount -t proc proc /proc");
    echo(&net.server)
}

fn session(net: &Net) -> Running {
    let mut session = net.client.spawn(&["python3", "-c", SESSION]).unwrap();
    session.wait_for_line("connected", SOON).unwrap();
    session
}

/// Shows that a session goes on.
fn talk(net: &Net, session: &mut Running, word: &str) {
    net.client.write_file("/run/word", word).unwrap();
    session.wait_for_line(&format!("back: {word}"), SOON).unwrap();
}

fn guard(server: &Host, arguments: &str) -> String {
    sh(server, &format!("'{KNOCKD}' guard -c {CONFIG} {arguments} 2>&1"))
}

/// Starts a trial and waits until the guard stands.
fn start_trial(net: &Net, time: &str) -> Running {
    let mut trial = net.server.spawn(&[KNOCKD, "guard", "-c", CONFIG, "--try", time]).unwrap();
    trial.wait_for_line("closed: tcp/22 (door ssh)", SOON).unwrap();
    trial.wait_for_line("or run: knockd guard", SOON).unwrap();
    trial
}

/// Has another configuration read; returns when that is in force.
fn reload(net: &Net, knockd: &mut Knockd, config: &str) {
    net.server.write_file(CONFIG, config).unwrap();
    knockd.signal(Signal::SIGHUP);
    knockd.wait_for("re-reading config file: /run/knockd.conf");
    status_json(net);
}

fn guard_problem(net: &Net) -> Option<String> {
    let status = status_json(net);
    let problems = status["problems"].as_array().unwrap().clone();
    let problem = problems.into_iter().find(|problem| problem["what"] == "guard");
    problem.map(|problem| problem["text"].as_str().unwrap().to_owned())
}

#[test]
fn the_guard_is_removed_while_knockd_runs_hangs_and_is_dead() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    let mut session = session(&net);
    let mut knockd = Knockd::start(&net, DOOR);
    assert!(!reaches(&net));
    let refused = sh(&net.server, "nft delete table inet knockd 2>&1 || true");
    assert!(refused.contains("Operation not permitted"), "what a person tries first: {refused}");

    assert!(guard(&net.server, "--remove").starts_with("the guard is removed; knockd goes on without it\n"));
    assert!(reaches(&net));
    assert_eq!(sh(&net.server, "nft list ruleset"), "");
    assert!(guard_problem(&net).unwrap().ends_with("the guard is removed"));
    reload(&net, &mut knockd, DOOR);
    knock(&net.client, KNOCK);
    knockd.wait_for("10.9.0.2: ssh: let in for 600 s");
    assert!(reaches(&net), "a reload, as by logrotate, does not shut anybody out");
    net.server.run(&[KNOCKD, "close", "ssh", "10.9.0.2"]).unwrap();
    assert_eq!(guard(&net.server, ""), "the guard stands\n");
    assert!(!reaches(&net));
    assert_eq!(guard_problem(&net), None);
    talk(&net, &mut session, "running");

    knockd.signal(Signal::SIGSTOP);
    let said = guard(&net.server, "--remove");
    assert!(
        said.starts_with("the guard is removed\n") && said.contains("does not answer and still runs"),
        "{said}"
    );
    assert!(reaches(&net));
    knockd.signal(Signal::SIGCONT);
    assert!(reaches(&net));
    assert_eq!(guard(&net.server, ""), "the guard stands\n");
    assert!(!reaches(&net));
    talk(&net, &mut session, "hung");

    // nsenter has stopped with it, and does not say when it ends.
    let pid = status_json(&net)["pid"].clone();
    sh(&net.server, &format!("kill -9 {pid}"));
    wait_until("knockd is dead", || net.server.run(&[KNOCKD, "status"]).is_err());
    assert!(!reaches(&net));
    assert!(guard(&net.server, "--remove").starts_with("the guard is removed\n"));
    assert!(reaches(&net));
    assert_eq!(guard(&net.server, "--remove"), "there is no guard\n");
    talk(&net, &mut session, "dead");
}

#[test]
fn a_session_from_before_the_guard_goes_on_although_only_its_client_speaks() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    net.server.write_file(CONFIG, DOOR).unwrap();
    let mut first = session(&net);
    let text = net.server.run(&[KNOCKD, "guard", "--check", "-c", CONFIG]).unwrap();
    net.server.run_with_input(&["nft", "-f", "-"], text.as_bytes()).unwrap();
    net.client.write_file("/run/word", "lost").unwrap();
    let drops = || {
        sh(&net.server, "nft list table inet knockd | grep 'counter packets' | grep -c 'packets 0 ' || true")
    };
    wait_until("the fault: to conntrack, it is a stranger", || drops().trim() == "0");
    assert_eq!(first.lines().len(), 1);
    sh(&net.server, "nft delete table inet knockd");
    first.wait_for_line("back: lost", SOON).unwrap();

    let mut sessions = vec![session(&net)];
    if common::has_ipv6(&net) {
        let six = SESSION.replace("10.9.0.1", &net.server.ipv6.to_string());
        sessions.push(net.client.spawn(&["python3", "-c", &six]).unwrap());
        sessions[1].wait_for_line("connected", SOON).unwrap();
    }
    assert_eq!(guard(&net.server, ""), "the guard stands\n");
    assert!(!reaches(&net));
    for session in &mut sessions {
        talk(&net, session, "goes on");
    }
}

#[test]
fn a_configuration_without_a_guard_removes_that_of_the_one_before() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    Knockd::start(&net, DOOR).stop();
    assert!(!reaches(&net));
    let mut knockd = Knockd::start(&net, UNGUARDED);
    assert!(reaches(&net), "what was no door any more would stay shut for everybody");
    assert_eq!(sh(&net.server, "nft list ruleset"), "");
    knockd.stop();
    // A table that is not ours stays.
    sh(&net.server, "nft add table inet knockd");
    Knockd::start(&net, UNGUARDED).stop();
    assert_eq!(sh(&net.server, "nft list tables"), "table inet knockd\n");
}

#[test]
fn the_way_out_needs_no_configuration() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    let knockd = Knockd::start(&net, DOOR);
    net.server.write_file(CONFIG, "[broken").unwrap();
    assert!(guard(&net.server, "--remove").contains("knockd goes on without it"));
    assert!(reaches(&net));
    sh(&net.server, &format!("rm {CONFIG}"));
    assert!(guard(&net.server, "--remove").contains("knockd goes on without it"));
    drop(knockd);
}

#[test]
fn a_trial_without_a_daemon_is_ended_by_the_kernel_although_its_command_was_killed() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    let mut session = session(&net);
    net.server.write_file(CONFIG, DOOR).unwrap();
    let mut trial = start_trial(&net, "5s");
    assert!(!reaches(&net));
    trial.signal(Signal::SIGKILL).unwrap();
    trial.wait(SOON).unwrap();
    wait_until("the guard is lifted", || reaches(&net));
    talk(&net, &mut session, "lifted");
    assert_eq!(guard(&net.server, ""), "the guard stands\n");
    assert!(!reaches(&net));
    talk(&net, &mut session, "guarded");
}

#[test]
fn a_trial_is_confirmed_by_enter_and_by_the_command_and_by_no_end_of_the_input() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    net.server.write_file(CONFIG, DOOR).unwrap();
    let try_for = |time: &str, input: &[u8]| {
        net.server.run_with_input(&[KNOCKD, "guard", "-c", CONFIG, "--try", time], input)
    };
    let refused = try_for("1s", b"").unwrap_err().to_string();
    assert!(refused.contains("the guard is lifted"), "{refused}");
    assert!(reaches(&net));
    assert!(try_for("600s", b"\n").unwrap().ends_with("\nthe guard stands\n"));
    assert!(!reaches(&net));
    guard(&net.server, "--remove");
    let mut trial = start_trial(&net, "600s");
    guard(&net.server, "");
    trial.wait_for_line("the guard stands", SOON).unwrap();
    assert!(trial.wait(SOON).unwrap().success());
    assert!(!sh(&net.server, "nft list table inet knockd").contains("trial"));
}

#[test]
fn a_trial_with_a_daemon_reads_the_configuration_and_ends_well_once_a_knock_has_let_somebody_in() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    let mut old = session(&net);
    let mut knockd = Knockd::start(&net, UNGUARDED);
    net.server.write_file(CONFIG, DOOR).unwrap();
    let mut trial = start_trial(&net, "600s");
    assert!(!reaches(&net));
    assert!(guard_problem(&net).unwrap().starts_with("the guard is on trial, and lifted in "));
    talk(&net, &mut old, "old");
    knock(&net.client, KNOCK);
    knockd.wait_for("10.9.0.2: ssh: let in for 600 s");
    // Neither the old session nor a knock alone shows that anybody can get in.
    talk(&net, &mut old, "older");
    assert!(guard_problem(&net).is_some());
    let _new = session(&net);
    knockd.wait_for("the guard stands: 10.9.0.2 has got in");
    trial.wait_for_line("the guard stands", SOON).unwrap();
    assert!(trial.wait(SOON).unwrap().success());
    assert_eq!(guard_problem(&net), None);
    assert!(!sh(&net.server, "nft list table inet knockd").contains("trial"));
    talk(&net, &mut old, "oldest");
}

#[test]
fn who_gets_in_for_an_instant_over_udp_or_to_a_forwarded_port_ends_a_trial_as_well() {
    let instant = "import socket, struct; c = socket.create_connection(('10.9.0.1', 22), 60)\n\
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close()";
    let over_udp = "import socket; c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.settimeout(60)\n\
        c.connect(('10.9.0.1', 22)); c.send(b'x'); c.recv(9)";
    let forwarded = "import socket; socket.create_connection(('10.9.0.1', 2222), 60).close()";
    let answer = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 22)); print('ready', flush=True)\n\
        while True: s.sendto(*s.recvfrom(9))";
    for (services, visit) in [
        ("tcp/22", instant),
        ("tcp/22\nUses = 1", instant),
        ("udp/22", over_udp),
        ("tcp/22\nForward = tcp/2222 > 10.9.1.2:80", forwarded),
    ] {
        let net = Net::new().unwrap();
        let _service = echo(&net.server);
        let mut answering = net.server.spawn(&["python3", "-c", answer]).unwrap();
        answering.wait_for_line("ready", SOON).unwrap();
        let inner = net.stranger().unwrap();
        sh(&net.server, "echo 1 >/proc/sys/net/ipv4/ip_forward");
        sh(&inner.host, "ip route add 10.9.0.0/24 via 10.9.1.1");
        let _inner = inner.host.listen(80).unwrap();
        let mut knockd = Knockd::start(&net, UNGUARDED);
        net.server.write_file(CONFIG, &DOOR.replace("tcp/22", services)).unwrap();
        let mut trial = net.server.spawn(&[KNOCKD, "guard", "-c", CONFIG, "--try", "600s"]).unwrap();
        trial.wait_for_line("or run: knockd guard", SOON).unwrap();
        knock(&net.client, KNOCK);
        knockd.wait_for("10.9.0.2: ssh: let in for 600 s");
        assert!(guard_problem(&net).unwrap().starts_with("the guard is on trial"), "{services}");
        net.client.run(&["python3", "-c", visit]).unwrap();
        knockd.wait_for("the guard stands: 10.9.0.2 has got in");
        assert!(trial.wait(SOON).unwrap().success(), "{services}");
    }
}

#[test]
fn a_trial_that_nobody_confirms_stays_lifted_over_a_reload_and_a_crash() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    let mut knockd = Knockd::start(&net, UNGUARDED);
    net.server.write_file(CONFIG, DOOR).unwrap();
    let mut trial = start_trial(&net, "2s");
    knockd.wait_for("the guard is lifted: nobody has got in or confirmed it");
    assert_eq!(trial.wait(SOON).unwrap().code(), Some(1));
    assert!(reaches(&net));
    reload(&net, &mut knockd, DOOR);
    assert!(guard_problem(&net).unwrap().contains("open for everybody"));
    assert!(reaches(&net));
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    let knockd = Knockd::start(&net, DOOR);
    assert!(guard_problem(&net).unwrap().contains("open for everybody"));
    assert!(reaches(&net));
    guard(&net.server, "");
    assert!(!reaches(&net));
    drop(knockd);
}

#[test]
fn a_daemon_that_takes_a_trial_over_ends_it_as_well() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    net.server.write_file(CONFIG, DOOR).unwrap();
    let mut trial = start_trial(&net, "600s");
    let mut knockd = Knockd::start(&net, DOOR);
    assert!(guard_problem(&net).unwrap().starts_with("the guard is on trial"));
    knock(&net.client, KNOCK);
    knockd.wait_for("10.9.0.2: ssh: let in for 600 s");
    let _session = session(&net);
    knockd.wait_for("the guard stands: 10.9.0.2 has got in");
    assert!(trial.wait(SOON).unwrap().success());
}

#[test]
fn a_trial_of_an_unusable_configuration_changes_nothing() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    let knockd = Knockd::start(&net, UNGUARDED);
    net.server.write_file(CONFIG, "[broken").unwrap();
    let refused = net.server.run(&[KNOCKD, "guard", "-c", CONFIG, "--try"]).unwrap_err().to_string();
    assert!(refused.contains("invalid configuration"), "{refused}");
    assert!(reaches(&net));
    // A file that has become good for the command and not for the daemon is refused by that.
    net.server
        .write_file(CONFIG, &format!("{DOOR}[b]\nOne_Time_Sequences = /run/none\nOpen = tcp/23\n"))
        .unwrap();
    let refused = net.server.run(&[KNOCKD, "guard", "-c", CONFIG, "--try"]).unwrap_err().to_string();
    assert!(refused.contains("cannot read and write /run/none"), "{refused}");
    assert!(reaches(&net));
    drop(knockd);
}

/// A service manager that keeps what it is given, and starts knockd with it when a file appears.
const MANAGER: &str = "import os, socket, subprocess, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind('/run/notify')
print('ready', flush=True)
kept = None
while True:
    s.settimeout(0.05)
    try:
        text, fds, _, _ = socket.recv_fds(s, 4096, 1)
        if b'FDSTORE=1' in text.splitlines():
            assert b'FDNAME=guard' in text.splitlines() and b'FDPOLL=0' in text.splitlines()
            kept = fds[0]
            print('kept', flush=True)
    except TimeoutError: pass
    if kept and os.path.exists('/run/start'):
        os.remove('/run/start')
        def pass_on():
            os.dup2(kept, 3)
            os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='guard', NOTIFY_SOCKET='/run/notify')
            os.execv(sys.argv[1], [sys.argv[1], '-v', '-c', sys.argv[2]])
        if os.fork() == 0: pass_on()";

#[test]
fn what_the_service_manager_keeps_holds_the_guard_and_the_next_knockd_takes_it_back() {
    let net = Net::new().unwrap();
    let _service = service(&net);
    // Without one, what a dead knockd leaves goes with the next flush.
    let mut knockd = Knockd::start(&net, DOOR);
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    assert!(!reaches(&net));
    sh(&net.server, "nft flush ruleset");
    assert!(reaches(&net), "the fault");

    let mut manager = net.server.spawn(&["python3", "-c", MANAGER, KNOCKD, CONFIG]).unwrap();
    manager.wait_for_line("ready", SOON).unwrap();
    let mut command = net.server.command(KNOCKD);
    let mut knockd = Knockd::run(command.args(["-v", "-c", CONFIG]).env("NOTIFY_SOCKET", "/run/notify"));
    manager.wait_for_line("kept", SOON).unwrap();
    knock(&net.client, KNOCK);
    knockd.wait_for("10.9.0.2: ssh: let in for 600 s");
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    sh(&net.server, "nft flush ruleset");
    assert!(reaches(&net), "the door is still open");
    let refused = sh(&net.server, "nft delete table inet knockd 2>&1 || true");
    assert!(refused.contains("Operation not permitted"), "{refused}");

    net.server.write_file("/run/start", "").unwrap();
    manager.wait_for_line("listening on eth0", SOON).unwrap();
    assert_eq!(status_json(&net)["leases"]["total"], 1);
    net.server.run(&[KNOCKD, "close", "ssh", "10.9.0.2"]).unwrap();
    assert!(!reaches(&net));

    // Dead again, the way out borrows what is kept.
    let pid = status_json(&net)["pid"].clone();
    sh(&net.server, &format!("kill -9 {pid}"));
    wait_until("dead", || net.server.run(&[KNOCKD, "status"]).is_err());
    assert!(!reaches(&net));
    let said = guard(&net.server, "--remove");
    assert!(said.starts_with("the guard is removed\n"), "{said}");
    assert!(reaches(&net));
}

#[test]
fn only_root_may_change_the_guard_of_a_running_daemon() {
    let net = Net::new().unwrap();
    if !common::is_root() {
        return;
    }
    let _service = service(&net);
    let knockd = Knockd::start(&net, DOOR);
    sh(&net.server, "chmod 666 /run/knockd/control");
    let ask = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/knockd/control'); \
               s.sendall(b'{\"request\":\"unguard\"}\\n'); print(s.recv(999).decode())";
    let mut command = net.server.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", ask]);
    let mut asking = Running::start(&mut command).unwrap();
    asking.wait_for_line("only root may change the guard", SOON).unwrap();
    assert!(!reaches(&net));
    drop(knockd);
}
