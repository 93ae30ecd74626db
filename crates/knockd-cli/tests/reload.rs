//! SIGHUP: what a new configuration changes, and what it leaves alone.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{CONFIG, KNOCKD, Knockd, SOON, hit, knock, sh, wait_for_file, wait_until};
use nix::sys::signal::Signal;
use testbed::{Net, Stream};

const LOG: &str = "[options]\nlogfile = /run/log\n";
const REOPENED: &str = "re-opening log file: /run/log";

#[test]
fn an_attempt_lives_on_when_its_door_is_unchanged_and_ends_when_its_door_has_changed() {
    let net = Net::new().unwrap();
    let same = "[same]\nsequence = 1,2\n";
    let mut knockd = Knockd::start(&net, &format!("{LOG}{same}[changed]\nsequence = 3,4\n"));
    hit(&net, 2, &[1]);
    hit(&net, 3, &[3]);
    knockd.wait_for("10.9.0.3: changed: Stage 1");

    // Whatever runs at the end, and where in the file the door stands, makes no difference.
    let new = format!("{LOG}[changed]\nsequence = 3,4\nseq_timeout = 9\n{same}command = echo %IP% is in\n");
    knockd.reload(&net, &new, REOPENED);
    hit(&net, 3, &[4]);
    hit(&net, 2, &[2]);
    knockd.wait_for("10.9.0.2: same: OPEN SESAME");
    knockd.wait_for("10.9.0.2 is in");
    assert_eq!(knockd.count("changed: Stage 2"), 0);
}

#[test]
fn doors_come_and_go() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &format!("{LOG}[old]\nsequence = 1\n"));
    hit(&net, 2, &[1, 2]);
    knockd.wait_for("old: OPEN SESAME");
    knockd.reload(&net, &format!("{LOG}[new]\nsequence = 2\n"), REOPENED);
    hit(&net, 2, &[1, 2]);
    knockd.wait_for("new: OPEN SESAME");
    assert_eq!(knockd.count("OPEN SESAME"), 2);
}

#[test]
fn a_bad_configuration_changes_nothing_and_its_errors_are_logged() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &format!("{LOG}[door]\nsequence = 1,2\n"));
    hit(&net, 2, &[1]);
    knockd.wait_for("Stage 1");
    let stays = "keeping the old configuration";
    knockd.reload(&net, "[options]\nlogfile = /run/other\n[door]\nsequence = 1,99999\n[no]\n", stays);
    sh(&net.server, &format!("rm {CONFIG}"));
    knockd.signal(Signal::SIGHUP);
    knockd.wait_for(stays);
    hit(&net, 2, &[2]);
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");

    let log = wait_for_file(&net.server, "/run/log", "OPEN SESAME");
    for wanted in [
        "/run/knockd.conf:4:14: error: ",
        "/run/knockd.conf:5:1: error: ",
        "cannot read /run/knockd.conf: No such file",
    ] {
        assert!(log.contains(wanted), "`{wanted}` is not in:\n{log}");
    }
    assert!(log.lines().all(|line| line.starts_with('[')) && !log.contains('\x1b'), "{log}");
    assert!(net.server.run(&["cat", "/run/other"]).is_err());
    let lines = knockd.running.lines();
    assert!(lines.iter().any(|line| line.stream == Stream::Stderr && line.text.contains("knockd.conf:4:14")));
}

#[test]
fn included_files_are_read_again_and_one_that_cannot_be_used_changes_nothing() {
    let net = Net::new().unwrap();
    let config = format!("{LOG}Include = /run/d/*.conf\nInclude = d/*.conf\n[main]\nsequence = 5\n");
    let mut knockd = Knockd::start(&net, &config);
    sh(&net.server, "mkdir -m 755 /run/d");
    net.server.write_file("/run/d/b.conf", "[b]\nsequence = 6\n").unwrap();
    knockd.reload(&net, &config, REOPENED);
    hit(&net, 2, &[5, 6]);
    knockd.wait_for("10.9.0.2: main: OPEN SESAME");
    knockd.wait_for("10.9.0.2: b: OPEN SESAME");

    // Opening a pipe for reading waits for somebody to write to it, and nobody can tell how long.
    sh(&net.server, "mkfifo /run/d/a.conf; rm /run/d/b.conf");
    knockd.reload(&net, &config, "cannot read /run/d/a.conf: not a regular file");
    knockd.wait_for("keeping the old configuration");
    sh(&net.server, "rm /run/d/a.conf; truncate -s 1T /run/d/a.conf");
    knockd.reload(&net, &config, "cannot read /run/d/a.conf: included files are longer than 4 MiB");
    sh(&net.server, "rm /run/d/a.conf");
    net.server.write_file("/run/d/a.conf", "[a]\nsequence = 7,x\n").unwrap();
    knockd.reload(&net, &config, "/run/d/a.conf:2:14: error: unexpected \"x\"");
    sh(&net.server, "chmod 777 /run/d; echo '[a]\nsequence = 7' >/run/d/a.conf");
    knockd.reload(&net, &config, "/run/d is world-writable, so anyone could run commands as root");
    hit(&net, 3, &[7, 6]);
    knockd.wait_for("10.9.0.3: b: OPEN SESAME");

    sh(&net.server, "chmod 755 /run/d");
    knockd.reload(&net, &config, REOPENED);
    hit(&net, 4, &[6, 7]);
    knockd.wait_for("10.9.0.4: a: OPEN SESAME");
    assert_eq!((knockd.count("a: OPEN SESAME"), knockd.count("b: OPEN SESAME")), (1, 2));
}

#[test]
fn a_changed_interface_is_applied() {
    let net = Net::new().unwrap();
    let door = "[door]\nsequence = 1:udp\n";
    let on = |interface: &str| format!("[options]\ninterface = {interface}\nlogfile = /run/log\n{door}");
    let mut knockd = Knockd::start(&net, &on("eth0"));
    knockd.reload(&net, &on("lo"), "listening on lo (127.0.0.1");
    knock(&net.client, "10.9.0.1 1:udp");
    knock(&net.server, "127.0.0.1 1:udp");
    knockd.wait_for("127.0.0.1: door: OPEN SESAME");
    knockd.reload(&net, &on("eth0"), "listening on eth0 (10.9.0.1");
    knock(&net.server, "127.0.0.1 1:udp");
    knock(&net.client, "10.9.0.1 1:udp");
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
    assert_eq!(knockd.count("OPEN SESAME"), 2);
}

#[test]
fn an_interface_that_does_not_exist_is_refused_and_the_old_one_stays() {
    let net = Net::new().unwrap();
    let on = |interface: &str| {
        format!("[options]\ninterface = {interface}\nlogfile = /run/log\n[d]\nsequence = 1\n")
    };
    let mut knockd = Knockd::start(&net, &on("eth0"));
    knockd.reload(&net, &on("eth7").replace("[d]", "[other]"), "no such interface: eth7");
    hit(&net, 2, &[1]);
    knockd.wait_for("10.9.0.2: d: OPEN SESAME");
}

#[test]
fn a_guard_that_the_kernel_refuses_changes_nothing() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, "[old]\nsequence = 1\ncommand = echo still there\n").unwrap();
    let mut command = net.server.command("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-all", KNOCKD, "-v", "-c", CONFIG]);
    let mut knockd = Knockd::run(&mut command);
    let guarded = "[options]\nFirewall = nftables\n[new]\nSequence = 1\nOpen = tcp/22\n";
    knockd.reload(
        &net,
        guarded,
        "cannot guard the services of doors: permission denied; CAP_NET_ADMIN is missing",
    );
    knockd.wait_for("keeping the old configuration");
    hit(&net, 2, &[1]);
    knockd.wait_for_output("still there");
}

#[test]
fn a_changed_interface_does_not_matter_with_i() {
    let net = Net::new().unwrap();
    let config = "[options]\ninterface = lo\nlogfile = /run/log\n[door]\nsequence = 1\n";
    let mut knockd = Knockd::start_with(&net, config, &["-v", "-i", "eth0"]);
    knockd.reload(&net, &config.replace("lo\n", "eth7\n"), REOPENED);
    hit(&net, 2, &[1]);
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
}

#[test]
fn a_door_that_is_open_is_closed_in_time_though_it_is_gone_from_the_configuration() {
    let net = Net::new().unwrap();
    let doors = "[door]\nsequence = 1\nstart_command = echo open\ncmd_timeout = 8\nstop_command = echo closed for %IP%\n";
    let mut knockd = Knockd::start(&net, &format!("{LOG}{doors}"));
    hit(&net, 2, &[1]);
    let opened = knockd.wait_for("door: running command: echo open").at;
    knockd.reload(&net, LOG, REOPENED);
    let closed = knockd.wait_for("10.9.0.2: door: command timeout").at;
    knockd.wait_for_output("closed for 10.9.0.2");
    assert!(closed - opened > Duration::from_secs(6), "{:?}", closed - opened);
}

#[test]
fn a_log_file_that_was_moved_away_is_made_again() {
    let net = Net::new().unwrap();
    let config = format!("{LOG}[door]\nsequence = 1\n");
    let mut knockd = Knockd::start(&net, &config);
    sh(&net.server, "mv /run/log /run/log.1");
    knockd.reload(&net, &config, REOPENED);
    hit(&net, 2, &[1]);
    wait_for_file(&net.server, "/run/log", "10.9.0.2: door: OPEN SESAME");
    let old = net.server.run(&["cat", "/run/log.1"]).unwrap();
    assert!(
        old.contains("] re-reading config file: /run/knockd.conf\n") && !old.contains("OPEN SESAME"),
        "{old}"
    );
}

/// Starts knockd with its configuration from a pipe, as `knockd -c <(…)` in a shell.
fn start_from_pipe(net: &Net, config: &str) -> Knockd {
    net.server.write_file(CONFIG, config).unwrap();
    let script = format!("exec '{KNOCKD}' -v -c <(cat {CONFIG})");
    Knockd::run(net.server.command("bash").args(["-c", &script]))
}

#[test]
fn a_configuration_from_a_pipe_stays_when_a_reload_finds_the_pipe_empty() {
    let net = Net::new().unwrap();
    let mut knockd = start_from_pipe(&net, &format!("{LOG}[door]\nsequence = 1,2\n"));
    hit(&net, 2, &[1]);
    knockd.wait_for("10.9.0.2: door: Stage 1");
    knockd.signal(Signal::SIGHUP);
    knockd.wait_for(": not a regular file, and it is empty");
    knockd.wait_for("keeping the old configuration");
    hit(&net, 2, &[2]);
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
}

#[test]
fn in_the_background_it_is_the_same() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, &format!("{LOG}[door]\nsequence = 1\n")).unwrap();
    let script = format!("'{KNOCKD}' -d -c <(cat {CONFIG}); kill -HUP $(cat /run/knockd.pid)");
    net.server.run(&["bash", "-c", &script]).unwrap();
    wait_for_file(&net.server, "/run/log", "keeping the old configuration");
    hit(&net, 2, &[1]);
    wait_for_file(&net.server, "/run/log", "10.9.0.2: door: OPEN SESAME");
    sh(&net.server, "kill $(cat /run/knockd.pid)");
}

#[test]
fn what_a_reload_finds_in_a_named_pipe_is_the_configuration_if_it_comes_to_an_end() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &format!("{LOG}[old]\nsequence = 1\n"));
    sh(&net.server, &format!("rm {CONFIG}; mkfifo {CONFIG}"));
    // Opened for both, it does not wait for a reader.
    let mut writer =
        net.server.spawn(&["sh", "-c", &format!("exec 3<>{CONFIG}; echo open; exec sleep 1000")]).unwrap();
    writer.wait_for_line("open", SOON).unwrap();
    knockd.signal(Signal::SIGHUP);
    knockd.wait_for("cannot read /run/knockd.conf: not a regular file, and its end does not come");
    knockd.wait_for("keeping the old configuration");
    drop(writer);
    let new = format!("printf '{LOG}[new]\nsequence = 2\n' >{CONFIG}").replace('\n', "\\n");
    let writer = net.server.spawn(&["sh", "-c", &new]).unwrap();
    // It waits for a reader, as the reload does for its words.
    wait_until("the new configuration", || {
        knockd.signal(Signal::SIGHUP);
        std::thread::sleep(Duration::from_millis(200));
        knockd.count(REOPENED) > 0
    });
    drop(writer);
    hit(&net, 2, &[1, 2]);
    knockd.wait_for("10.9.0.2: new: OPEN SESAME");
    assert_eq!(knockd.count("old: OPEN SESAME"), 0);
}

#[test]
fn an_empty_file_is_a_configuration_without_doors_as_in_0_8() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start_with(&net, "[door]\nsequence = 1\n", &["-v", "-g", "/run/log"]);
    knockd.reload(&net, "", REOPENED);
    hit(&net, 2, &[1]);
    knockd.reload(&net, "[other]\nsequence = 2\n", REOPENED);
    hit(&net, 2, &[2]);
    knockd.wait_for("10.9.0.2: other: OPEN SESAME");
    assert_eq!(knockd.count("OPEN SESAME"), 1);
}
