//! What other programs read: log lines as JSON, priorities for the journal, metrics.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod common;

use common::{KNOCKD, Knockd, hit, sh, wait_for_file};
use testbed::Net;

const DOORS: &str = "\
[the ssh door]
sequence = 7101,8202,9303
start_command = echo open %IP%
stop_command = echo close %IP%
[plain]
sequence = 17101,18202
";

#[test]
fn lines_for_programs_are_objects_and_classic_ones_are_as_ever() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start_with(
        &net,
        &format!("[options]\nlogformat = json\nlogfile = /run/log\n{DOORS}"),
        &["-v"],
    );
    hit(&net, 2, &[7101, 8202, 9303]);
    knockd.wait_for_output("open 10.9.0.2");
    hit(&net, 3, &[7101, 17101]);
    knockd.wait_for("\"event\":\"spoiled\"");
    knockd.stop();
    let log = sh(&net.server, "cat /run/log");
    let objects: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let event = |name: &str| {
        objects.iter().find(|object| object["event"] == name).unwrap_or_else(|| panic!("{name}: {log}"))
    };
    assert_eq!(
        (&event("start")["text"], &event("start")["level"]),
        (&"starting up, listening on eth0".into(), &"notice".into())
    );
    let stage = event("stage");
    assert_eq!(
        (&stage["source"], &stage["door"], &stage["stage"]),
        (&"10.9.0.2".into(), &"the ssh door".into(), &1.into())
    );
    assert_eq!(event("open")["text"], "10.9.0.2: the ssh door: OPEN SESAME");
    assert_eq!(event("run")["command"], "echo open 10.9.0.2");
    assert_eq!(event("spoiled")["stage"], 1);
    let time = event("stop")["time"].as_str().unwrap().to_owned();
    assert!(time.len() == "2026-11-25T09:05:07.042+01:00".len() && time.contains('T'), "{time}");
    // What is on stdout are objects, too, but for what commands print.
    assert!(
        knockd
            .lines()
            .iter()
            .all(|line| line.starts_with('{') || line.contains("10.9.0.2") && !line.contains("the ssh door"))
    );
}

#[test]
fn the_journal_is_told_priorities_and_nobody_else_is() {
    let net = Net::new().unwrap();
    let server = &net.server;
    server.write_file(common::CONFIG, &format!("[options]\nlogfile = /no/such/log\n{DOORS}")).unwrap();
    // The outputs of the shell are those of the daemon.
    let run = |stream: &str| {
        let script = format!(
            "export JOURNAL_STREAM={stream}
             '{KNOCKD}' -v -c {} >/run/out 2>/run/err &
             for try in $(seq 600); do grep -q 'listening on' /run/out && break; sleep 0.1; done
             kill $!; wait; cat /run/out /run/err",
            common::CONFIG
        );
        // What an earlier run has said would look like this one.
        sh(server, &format!(": >/run/out; : >/run/err; {script}"))
    };
    let of_file = "$(stat -c %d:%i /run/out)";
    let said = run(of_file);
    assert!(said.contains("<5>listening on eth0...\n") && said.contains("\ncannot open log file"), "{said}");
    let said = run("$(stat -c %d:%i /run/err)");
    assert!(said.contains("<4>cannot open log file") && said.starts_with("listening on eth0"), "{said}");
    let said = run("1:2");
    assert!(!said.contains('<'), "{said}");
}

#[test]
fn metrics_stand_in_a_file_while_the_daemon_runs() {
    let net = Net::new().unwrap();
    let server = &net.server;
    let mut knockd = Knockd::start(&net, &format!("[options]\nmetrics = /run/knockd.prom\n{DOORS}"));
    let text = wait_for_file(server, "/run/knockd.prom", "knockd_opens_total 0\n");
    assert!(text.contains("knockd_interface_up{interface=\"eth0\"} 1\n"), "{text}");
    hit(&net, 3, &[7101, 8202, 9303]);
    wait_for_file(server, "/run/knockd.prom", "knockd_opens_total 1\n");
    knockd.reload(
        &net,
        &format!("[options]\nmetrics = /no/such/knockd.prom\n{DOORS}"),
        "cannot write metrics to",
    );
    assert_eq!(sh(server, "ls /run/knockd.prom 2>&1 || true").matches("No such file").count(), 1);
    hit(&net, 2, &[7101, 8202, 9303]);
    knockd.wait_for_output("open 10.9.0.2");
}

#[test]
fn the_metrics_are_the_same_before_and_after_right_and_wrong_hits() {
    let net = Net::new().unwrap();
    let server = &net.server;
    let config = |path: &str| format!("[options]\nmetrics = {path}\n{DOORS}");
    let mut knockd = Knockd::start(&net, &config("/run/before.prom"));
    // Everything but the time since the start.
    let metrics = |path: &str| {
        let text = wait_for_file(server, path, "knockd_given_up_total ");
        let lines = text.lines().filter(|line| !line.starts_with("knockd_uptime_seconds "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = metrics("/run/before.prom");
    hit(&net, 2, &[7101, 8202]);
    hit(&net, 3, &[7101, 18202]);
    hit(&net, 4, &(2000..2020).collect::<Vec<_>>());
    knockd.wait_for("10.9.0.4: scanner: ignored");
    let status = common::status_json(&net);
    for counter in ["packets", "visible", "attempts", "spoiled", "scanners"] {
        assert!(status["counters"][counter].as_u64() > Some(0), "{counter} in {status}");
    }
    // A new file is written at once.
    server.write_file(common::CONFIG, &config("/run/after.prom")).unwrap();
    sh(server, &format!("'{KNOCKD}' reload"));
    assert_eq!(metrics("/run/after.prom"), before);
}

#[test]
fn the_filter_for_fail2ban_finds_those_who_fail_and_scan_and_nobody_else() {
    let filter = include_str!("../../../packaging/fail2ban/filter.d/knockd.conf");
    if Net::new().unwrap().server.run(&["sh", "-c", "command -v fail2ban-regex"]).is_err() {
        testbed::skip_until_installed("fail2ban");
        return;
    }
    for (format, expected) in
        [("classic", "10.9.0.4\n10.9.0.5\n"), ("json", "10.9.0.3\n10.9.0.4\n10.9.0.5\n")]
    {
        let net = Net::new().unwrap();
        let config = format!("[options]\nlogfile = /run/log\nlogformat = {format}\n{DOORS}seq_timeout = 1\n");
        let mut knockd = Knockd::start(&net, &config);
        hit(&net, 2, &[7101, 8202, 9303]);
        knockd.wait_for("10.9.0.2: the ssh door: OPEN SESAME");
        hit(&net, 3, &[7101, 9303]);
        hit(&net, 4, &[17101]);
        knockd.wait_for("10.9.0.4: plain: sequence timeout (stage 1)");
        hit(&net, 5, &(1..=20).collect::<Vec<_>>());
        knockd.wait_for("10.9.0.5: scanner: ignored");
        knockd.stop();
        // It takes no path with a blank in it.
        net.server.write_file("/run/filter.conf", filter).unwrap();
        let found = net.server.run(&["fail2ban-regex", "-o", "ip", "/run/log", "/run/filter.conf"]).unwrap();
        assert_eq!(found, expected, "{}", sh(&net.server, "cat /run/log"));
    }
}
