//! Stopping and reloading.

use conformance::{CONFIG, LOG, Rule, Topic};
use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};

pub(crate) const TOPIC: Topic = Topic { name: "signals", title: "Stopping and reloading", rules: RULES };

const RULES: &[Rule] = &[
    Rule::same("stopping", "SIGTERM and SIGINT stop it, and the last lines say so.", |t| {
        for signal in [SIGTERM, SIGINT] {
            t.sh(&format!("rm -f {LOG}"));
            t.start(&format!("[options]\nlogfile = {LOG}\n"));
            t.signal(signal);
            let ended = t.ended();
            let stdout = &ended.stdout;
            assert_eq!(stdout[stdout.len() - 2..], ["waiting for child processes...", "closing..."]);
            assert_eq!(t.log().last().unwrap(), "shutting down");
        }
    }),
    Rule::differs(
        "exit_status",
        "The exit status is 15 after SIGTERM and 2 after SIGINT.",
        "It is 0, because being stopped is not a failure.",
        |t| {
            for (signal, theirs) in [(SIGTERM, 15), (SIGINT, 2)] {
                t.start("");
                t.signal(signal);
                assert_eq!(t.ended().code, Some(t.pick(0, theirs)));
            }
        },
    ),
    Rule::same(
        "reloading",
        "SIGHUP reads the configuration again: doors appear, disappear and change.",
        |t| {
            t.start("[a]\nsequence = 1\n[b]\nsequence = 2\ncommand = echo old");
            t.reload("[b]\nsequence = 2\ncommand = echo new\n[c]\nsequence = 3");
            t.wait_for_reload();
            let lines = t.hits("1 2 3");
            assert!(!lines.contains(&"10.9.0.2: a: OPEN SESAME".to_owned()), "{lines:?}");
            assert!(lines.contains(&"10.9.0.2: c: OPEN SESAME".to_owned()), "{lines:?}");
            t.send("2");
            t.wait_for("new");
        },
    ),
    Rule::differs(
        "attempts_at_a_reload",
        "SIGHUP forgets all attempts.",
        "Attempts at unchanged doors continue.",
        |t| {
            let config = "[door]\nsequence = 1,2,3";
            t.start(config);
            assert_eq!(t.opened_by("1 2"), "");
            t.reload(config);
            t.wait_for_reload();
            assert_eq!(t.opened_by("3"), t.pick("door", ""));
        },
    ),
    Rule::differs(
        "a_bad_configuration",
        "SIGHUP terminates the program if the configuration is invalid or missing.",
        "Nothing changes, and the errors are logged.",
        |t| {
            for config in ["[door]\nfoo = x", ""] {
                t.start("[door]\nsequence = 7000");
                if config.is_empty() {
                    t.sh(&format!("rm {CONFIG}"));
                    t.signal(SIGHUP);
                } else {
                    t.reload(config);
                }
                t.wait_for("re-reading");
                if t.pick(true, false) {
                    t.settle();
                    assert_eq!(t.opened_by("7000"), "door");
                } else {
                    assert_eq!(t.ended().code, Some(1));
                }
            }
        },
    ),
    Rule::differs(
        "a_configuration_from_a_pipe",
        "A configuration from a pipe, such as `<(...)` in a shell, is read at startup; SIGHUP finds the pipe empty, and \
         there are no doors any more.",
        "The old configuration stays.",
        |t| {
            t.write(CONFIG, "[door]\nsequence = 7000\n[last]\nsequence = 65000:udp\n");
            let mut command = t.net.server.command("bash");
            let script = format!("exec '{}' -v -c <(cat {CONFIG})", t.program());
            t.launch(command.args(["-c", &script]));
            t.wait_for("listening on ");
            t.send("7000");
            t.wait_for("10.9.0.2: door: OPEN SESAME");
            t.signal(SIGHUP);
            t.wait_for("re-reading config file: ");
            if t.pick(true, false) {
                t.wait_for("keeping the old configuration");
                t.send("7000");
                t.wait_for("10.9.0.2: door: OPEN SESAME");
            } else {
                // There is nothing to wait for: it has no door.
                t.send("1s 7000 1s");
                assert!(!t.lines().iter().skip(4).any(|line| line.contains("OPEN SESAME")));
            }
        },
    ),
    Rule::same(
        "an_empty_configuration",
        "After SIGHUP, an empty file is a configuration without doors.",
        |t| {
            t.start("[door]\nsequence = 7000");
            t.reload("");
            t.wait_for_reload();
            assert_eq!(t.opened_by("7000"), "");
        },
    ),
    Rule::same(
        "rotating_the_log",
        "SIGHUP reopens the log file, which may have been moved away; the lines on stdout say so.",
        |t| {
            t.start(&format!("[options]\nlogfile = {LOG}\n[door]\nsequence = 7000"));
            t.send("7000");
            t.settle();
            t.lines();
            t.sh(&format!("mv {LOG} {LOG}.1"));
            t.signal(SIGHUP);
            t.wait_for(&format!("re-opening log file: {LOG}"));
            t.wait_for_reload();
            let mut lines: Vec<_> = t.lines().into_iter().take(3).collect();
            lines.sort();
            // Which of them comes first is nobody's contract.
            let wanted = [
                "closing log file: /run/knockd.log",
                "re-opening log file: /run/knockd.log",
                "re-reading config file: /run/knockd.conf",
            ];
            assert_eq!(lines, wanted);
            assert_eq!(t.hits("7000").len(), 2);
            let old = t.sh(&format!("cat {LOG}.1"));
            assert!(
                old.contains("starting up") && old.contains("re-reading config file: /run/knockd.conf"),
                "{old}"
            );
            assert_eq!(t.log().iter().filter(|line| line.ends_with("OPEN SESAME")).count(), 1);
        },
    ),
    Rule::differs(
        "reloading_without_a_log",
        "Without a log file, SIGHUP still reports closing and reopening one without a name, and warns \
         that it cannot be opened.",
        "It does not mention log files.",
        |t| {
            t.start("");
            t.reload("");
            t.wait_for_reload();
            let said = t.lines().contains(&"closing log file: ".to_owned());
            assert_eq!((said, t.stderr().len()), t.pick((false, 0), (true, 1)));
        },
    ),
    Rule::same("another_log_file", "SIGHUP applies a changed `LogFile`.", |t| {
        t.start(&format!("[options]\nlogfile = {LOG}\n[door]\nsequence = 7000"));
        t.reload("[options]\nlogfile = /run/other.log\n[door]\nsequence = 7000");
        t.wait_for("re-opening log file: /run/other.log");
        t.wait_for_reload();
        assert_eq!(t.opened_by("7000"), "door");
        assert!(t.sh("cat /run/other.log").contains("door: OPEN SESAME"));
        assert!(!t.sh(&format!("cat {LOG}")).contains("door: OPEN SESAME"));
    }),
    Rule::differs(
        "options_that_are_gone",
        "After SIGHUP, `LogFile` and `UseSyslog` stay in force even if the new configuration no longer \
         sets them.",
        "The new configuration applies.",
        |t| {
            t.start(&format!("[options]\nlogfile = {LOG}\n[door]\nsequence = 7000"));
            t.reload("[door]\nsequence = 7000");
            t.wait_for_reload();
            assert_eq!(t.opened_by("7000"), "door");
            let logged = t.log().contains(&"10.9.0.2: door: OPEN SESAME".to_owned());
            assert_eq!(logged, t.pick(false, true));
        },
    ),
    Rule::differs(
        "another_interface",
        "SIGHUP ignores a changed `Interface`.",
        "It is applied, unless `-i` was given.",
        |t| {
            t.start("[options]\ninterface = lo\n[door]\nsequence = 7000");
            t.reload("[options]\ninterface = eth0\n[door]\nsequence = 7000");
            t.wait_for("re-reading");
            if t.pick(true, false) {
                t.settle();
                assert_eq!(t.opened_by("7000"), "door");
            } else {
                // There is nothing to wait for: it hears no packet.
                t.send("1s 7000 1s");
                assert!(!t.lines().contains(&"10.9.0.2: door: OPEN SESAME".to_owned()));
            }
        },
    ),
    Rule::same(
        "the_interface_of_the_command_line",
        "With `-i`, SIGHUP ignores a changed `Interface`.",
        |t| {
            t.start_with("-v -i eth0", "[door]\nsequence = 7000");
            t.reload("[options]\ninterface = lo\n[door]\nsequence = 7000");
            t.wait_for_reload();
            assert_eq!(t.opened_by("7000"), "door");
        },
    ),
];
