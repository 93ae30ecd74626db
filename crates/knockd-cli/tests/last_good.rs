//! The last good configuration, with which a broken file leaves no port shut without a door.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

mod common;

use common::{CONFIG, KNOCKD, Knockd, SOON, knock, sh, status_json};
use nix::sys::signal::Signal;
use testbed::{Host, Net};

const OPTIONS: &str = "[options]\nFirewall = nftables\n";
const DOOR: &str = "[ssh]\nSequence = 7101,8202:udp,9303\nOpen = tcp/22\nLease = 600\n";
const KNOCK: &str = "10.9.0.1 7101 8202:udp 9303";
const KEPT: &str = "/var/lib/knockd/last-good.conf";

fn reaches(net: &Net) -> bool {
    net.client.can_connect(net.server.ipv4, 22).unwrap()
}

/// What is there after knockd has run with a configuration and the machine has been started again, with another one.
fn restarted(net: &Net, good: &str, now: &str) {
    Knockd::start(net, good).stop();
    sh(&net.server, &format!("'{KNOCKD}' guard -c {CONFIG} --remove"));
    net.server.write_file(CONFIG, now).unwrap();
}

/// Has another configuration read; returns when that is in force.
fn reload(net: &Net, knockd: &mut Knockd, config: &str) {
    net.server.write_file(CONFIG, config).unwrap();
    knockd.signal(Signal::SIGHUP);
    knockd.wait_for("re-reading config file: /run/knockd.conf");
    status_json(net);
}

fn guard(server: &Host) -> String {
    sh(server, &format!("'{KNOCKD}' guard -c {CONFIG} 2>&1; echo status $?"))
}

/// Starts a knockd that will not run.
fn fail(net: &Net) -> Vec<String> {
    let mut knockd = net.server.spawn(&[KNOCKD, "-v", "-c", CONFIG]).unwrap();
    assert_eq!(knockd.wait(SOON).unwrap().code(), Some(1));
    knockd.lines().into_iter().map(|line| line.text).collect()
}

#[test]
fn with_a_broken_configuration_at_boot_the_last_good_one_guards_and_opens() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    let good = format!("{OPTIONS}LogFile = /run/log\n{DOOR}");
    restarted(&net, &good, "[options]\nFirewall = nftables\n[ssh\n");
    assert!(reaches(&net));
    let said = guard(&net.server);
    assert!(said.contains("/run/knockd.conf:3:5: error: "), "{said}");
    assert!(
        said.contains("is unusable; the last good configuration is in force: /var/lib/knockd/last-good.conf"),
        "{said}"
    );
    assert!(said.ends_with("the guard stands\nstatus 0\n"), "{said}");
    assert!(!reaches(&net));

    let mut knockd = Knockd::run(net.server.command(KNOCKD).args(["-v", "-c", CONFIG]));
    let log = sh(
        &net.server,
        "tail -n +$(grep -n 'shutting down' /run/log | cut -d: -f1) /run/log | cut -d' ' -f3-",
    );
    let lines: Vec<_> = log.lines().skip(1).collect();
    assert!(
        lines[0].ends_with("/run/knockd.conf is unusable; the last good configuration is in force"),
        "{lines:#?}"
    );
    assert!(lines.iter().any(|line| line.contains("/run/knockd.conf:3:5: error: ")), "{lines:#?}");
    knock(&net.client, KNOCK);
    knockd.wait_for("10.9.0.2: ssh: let in for 600 s");
    assert!(reaches(&net));
    let problem = &status_json(&net)["problems"][0];
    assert_eq!((&problem["what"], &problem["path"]), (&"configuration".into(), &CONFIG.into()));
    let status = net.server.run(&[KNOCKD, "status"]).unwrap();
    assert!(status.contains("\nProblems: 1\n  /run/knockd.conf is unusable; "), "{status}");

    reload(&net, &mut knockd, &good);
    assert_eq!(status_json(&net)["problems"], serde_json::json!([]));
    assert!(reaches(&net));
}

#[test]
fn with_a_broken_configuration_and_no_last_good_one_nothing_is_guarded() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    restarted(&net, &format!("{OPTIONS}{DOOR}"), "[broken");
    sh(&net.server, &format!("rm {KEPT}"));
    let said = guard(&net.server);
    assert!(
        said.contains("nothing is guarded: the configuration is unusable, and there is no last good one"),
        "{said}"
    );
    assert!(said.ends_with("status 1\n"), "{said}");
    assert!(fail(&net).iter().any(|line| line.contains("invalid configuration")));
    assert!(reaches(&net));
}

#[test]
fn the_copy_has_what_was_included_and_is_for_root_alone() {
    let net = Net::new().unwrap();
    sh(&net.server, "mkdir /run/d");
    net.server.write_file("/run/d/ssh.conf", DOOR).unwrap();
    let config = format!("{OPTIONS}Include = /run/d/*.conf\nStateDir = /var/lib/other\n");
    restarted(&net, &config, &config);
    assert_eq!(sh(&net.server, "stat -c %a /var/lib/other/last-good.conf").trim_end(), "600");
    net.server.write_file("/run/d/ssh.conf", "[ssh]\nnonsense = 1\n").unwrap();
    assert!(guard(&net.server).ends_with("status 0\n"));
    let mut knockd = Knockd::run(net.server.command(KNOCKD).args(["-v", "-c", CONFIG]));
    knock(&net.client, KNOCK);
    knockd.wait_for("10.9.0.2: ssh: let in for 600 s");
}

#[test]
fn a_one_time_file_that_is_gone_costs_no_other_door() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/once", "7001,7002\n").unwrap();
    let config = format!("{OPTIONS}{DOOR}[once]\nOne_Time_Sequences = /run/once\nOpen = tcp/23\n");
    restarted(&net, &config, &config);
    sh(&net.server, "rm /run/once");
    assert!(guard(&net.server).ends_with("status 0\n"));
    let mut knockd = Knockd::run(net.server.command(KNOCKD).args(["-v", "-c", CONFIG]));
    knock(&net.client, KNOCK);
    knockd.wait_for("10.9.0.2: ssh: let in for 600 s");
    let problem = &status_json(&net)["problems"][0];
    assert!(problem["details"].to_string().contains("cannot read and write /run/once"), "{problem}");
}

#[test]
fn only_a_configuration_that_guards_is_kept_and_only_for_its_own_file() {
    let net = Net::new().unwrap();
    let is_kept = || net.server.run(&["test", "-e", KEPT]).is_ok();
    let commands = "[ssh]\nSequence = 7101\nStart_Command = true\nStop_Command = true\n";
    let mut knockd = Knockd::start(&net, commands);
    assert!(!is_kept());
    reload(&net, &mut knockd, &format!("{OPTIONS}{DOOR}"));
    common::wait_until("kept", is_kept);
    knockd.reload(&net, "[broken", "keeping the old configuration");
    assert!(is_kept());
    net.server.write_file("/run/other.conf", "[broken").unwrap();
    let mut other = net.server.spawn(&[KNOCKD, "-c", "/run/other.conf"]).unwrap();
    assert_eq!(other.wait(SOON).unwrap().code(), Some(1), "another file has no copy");
    reload(&net, &mut knockd, commands);
    common::wait_until("not kept", || !is_kept());
    knockd.stop();
}

#[test]
fn a_disk_that_takes_no_copy_is_one_line_in_the_log() {
    let net = Net::new().unwrap();
    sh(&net.server, "mkdir -p -m 700 /var/lib/knockd; mkdir /var/lib/knockd/last-good.new");
    // It says so on stderr and, on stdout, that it listens all the same.
    let mut knockd = Knockd::start(&net, &format!("{OPTIONS}{DOOR}"));
    knockd.wait_for("cannot keep this configuration in /var/lib/knockd: Is a directory");
}
