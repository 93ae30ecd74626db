//! The command line, the background, and the pid file.

use conformance::{CONFIG, LOG, Rule, Session, Topic};

pub(crate) const TOPIC: Topic = Topic { name: "command_line", title: "The command line", rules: RULES };

const DOOR: &str = "[door]\nsequence = 7000\n";

const RULES: &[Rule] = &[
    Rule::differs(
        "version",
        "`-V` and `--version` print `knockd 0.8` and exit with 0.",
        "They print our own version.",
        |t| {
            for argument in ["-V", "--version", "-dvV", "-c /run/none -V"] {
                let ended = t.run(argument);
                assert_eq!(ended.code, Some(0));
                assert!(ended.stdout[0].starts_with("knockd "));
                assert_eq!(ended.stdout[0] == "knockd 0.8", t.pick(false, true));
            }
        },
    ),
    Rule::same(
        "help",
        "`-h` and `--help` print the usage with every option on stdout and exit with 0.",
        |t| {
            for argument in ["-h", "--help", "-h -V"] {
                let ended = t.run(argument);
                assert_eq!(ended.code, Some(0));
                let text = ended.stdout.join("\n").to_lowercase();
                assert!(text.contains("usage: knockd"));
                for option in [
                    "-i, --interface",
                    "-d, --daemon",
                    "-c, --config",
                    "-D, --debug",
                    "-l, --lookup",
                    "-p, --pidfile",
                    "-g, --logfile",
                    "-v, --verbose",
                    "-4, --only-ip-v4",
                    "-V, --version",
                    "-h, --help",
                ] {
                    assert!(text.contains(&option.to_lowercase()), "{option}");
                }
            }
        },
    ),
    Rule::same(
        "spellings",
        "Options may be combined, abbreviated, or joined to their value with `=`; if a value is given \
         twice, the last one wins.",
        |t| {
            for arguments in [
                "-v -i lo -i eth0",
                "-v --interface=eth0",
                "-v --int eth0",
                "-vieth0",
                "--verb --only -lDi eth0",
                "-v -i eth0 --",
            ] {
                t.start_with(arguments, DOOR);
                assert!(t.opened_by("7000").ends_with("door"), "{arguments}");
            }
        },
    ),
    Rule::differs(
        "unknown_options",
        "An unknown or ambiguous option, or one without its value, prints the usage and exits with 0.",
        "The exit status is 2, so scripts notice.",
        |t| {
            for arguments in ["-Z", "--bogus", "-i", "--lo", "--verbose=1"] {
                assert_eq!(t.run(arguments).code, Some(t.pick(2, 0)), "{arguments}");
            }
        },
    ),
    Rule::differs(
        "extra_arguments",
        "Extra arguments are ignored.",
        "They are an error; the exit status is 2.",
        |t| {
            t.write(CONFIG, DOOR);
            let program = t.program();
            let status = t.sh(&format!("timeout 5 '{program}' -v -c {CONFIG} extra >/run/out 2>&1; echo $?"));
            assert_eq!(status, t.pick("2", "124"));
        },
    ),
    Rule::differs(
        "save_mem",
        "`-s` and `--save-mem`, known only to the fork 0.8.2, are unknown options.",
        "They are accepted and ignored.",
        |t| {
            t.write(CONFIG, DOOR);
            for argument in ["-s", "--save-mem"] {
                let status = t.sh(&format!(
                    "timeout 5 '{}' -c {CONFIG} {argument} >/run/out 2>&1; echo $?",
                    t.program()
                ));
                assert_eq!(status, t.pick("124", "0"));
            }
        },
    ),
    Rule::same("the_default_files", "Without `-c`, the file is `/etc/knockd.conf`.", |t| {
        t.sh("mount -t tmpfs tmpfs /etc");
        t.write("/etc/knockd.conf", DOOR);
        let mut command = t.net.server.command(t.program());
        t.launch(command.arg("-v"));
        t.wait_for("listening on eth0...");
        t.send("7000");
        t.wait_for("10.9.0.2: door: OPEN SESAME");
    }),
    Rule::same("interface", "`-i` overrides `Interface` in the file; without both it is `eth0`.", |t| {
        t.start("");
        t.start_with("-v -i eth0", "[options]\ninterface = nosuch\n[door]\nsequence = 7000");
        assert_eq!(t.opened_by("7000"), "door");
    }),
    Rule::same(
        "no_such_interface",
        "An interface that does not exist is an error that names it; the exit status is 1.",
        |t| {
            t.write(CONFIG, DOOR);
            for (arguments, config) in
                [("-i nosuch0", DOOR), ("-d -i nosuch0", DOOR), ("", "[options]\ninterface = nosuch0\n")]
            {
                t.write(CONFIG, config);
                let ended = t.run(&format!("-c {CONFIG} {arguments}"));
                assert_eq!(ended.code, Some(1));
                assert!(ended.stderr.join("\n").contains("nosuch0") && ended.stdout.is_empty(), "{ended:?}");
            }
        },
    ),
    Rule::differs(
        "long_interface_names",
        "Interface names longer than 31 bytes are truncated.",
        "They are kept, and refused because no such interface exists.",
        |t| {
            let name = "n".repeat(40);
            let ended = t.refused(&format!("[options]\ninterface = {name}\n{DOOR}"));
            assert_eq!(ended.code, Some(1));
            assert_eq!(ended.stderr.join("\n").contains(&name), t.pick(true, false));
        },
    ),
    Rule::same(
        "privilege",
        "Without permission to open a packet socket, the exit status is 1; CAP_NET_RAW is sufficient.",
        |t| {
            t.write(CONFIG, DOOR);
            let mut command = t.net.server.command("setpriv");
            command.args([
                "--bounding-set=-all,+net_raw",
                "--inh-caps=-all",
                t.program(),
                "-v",
                "-c",
                CONFIG,
            ]);
            t.launch(&mut command);
            t.wait_for("listening on eth0...");
            t.send("7000");
            t.wait_for("10.9.0.2: door: OPEN SESAME");
            let mut command = t.net.server.command("setpriv");
            command.args(["--bounding-set=-net_raw", "--inh-caps=-all", t.program(), "-v", "-c", CONFIG]);
            t.launch(&mut command);
            let ended = t.ended();
            assert_eq!(ended.code, Some(1));
            assert_eq!(ended.stderr.len(), 1, "{ended:?}");
        },
    ),
    Rule::same("only_ipv4", "`-4` ignores IPv6.", |t| {
        for argument in ["-4", "--only-ip-v4"] {
            t.start_with(&format!("-v {argument}"), DOOR);
            assert_eq!(t.hits("7000@fd00:9::1 7000").len(), 2);
        }
    }),
    Rule::same("log_file", "`-g` names the log file, unless the configuration does.", |t| {
        t.start_with("-v -g /run/other.log", &format!("[options]\nlogfile = {LOG}\n{DOOR}"));
        assert_eq!(t.log()[0], "starting up, listening on eth0");
        assert_eq!(t.sh("ls /run | grep other || true"), "");
        t.start_with("-v --logfile /run/other.log", DOOR);
        assert!(t.sh("cat /run/other.log").contains("starting up"));
    }),
    Rule::same("no_pid_file", "In the foreground, no PID file is written.", |t| {
        t.start_with("-v -p /run/x.pid", &format!("[options]\npidfile = /run/y.pid\n{DOOR}"));
        assert_eq!(t.sh("ls /run | grep pid || true"), "");
    }),
    Rule::same(
        "background",
        "`-d` prints nothing and exits with 0. The daemon continues in its own session, with `/` as its \
         working directory and `/dev/null` as stdin, stdout and stderr.",
        |t| {
            // The command inherits from knockd what it writes down.
            let command = "for fd in 0 1; do test /proc/self/fd/$fd -ef /dev/null && echo null >>/run/out; done; \
                           cut -d ' ' -f 6 /proc/self/stat >>/run/out; pwd >>/run/out";
            t.write(CONFIG, &format!("[options]\nlogfile = {LOG}\n{DOOR}command = {command}\n"));
            // It returns when nothing holds stdout or stderr open any more.
            assert_eq!(t.sh(&format!("'{}' -d -v -c {CONFIG}; echo $?", t.program())), "0");
            t.wait_for_file(LOG, "starting up, listening on eth0");
            t.send("7000");
            let out = t.wait_for_file("/run/out", "/\n");
            let lines: Vec<_> = out.lines().collect();
            assert_eq!((&lines[..2], lines[3]), (&["null"; 2][..], "/"));
            assert_ne!(lines[2], t.sh("cut -d ' ' -f 6 /proc/self/stat"));
        },
    ),
    Rule::same(
        "pid_file",
        "The PID file is `/var/run/knockd.pid` unless `-p` or the configuration names another; it is \
         removed at exit.",
        |t| {
            let with_option = format!("[options]\nlogfile = {LOG}\npidfile = /run/c.pid\n{DOOR}");
            let without = format!("[options]\nlogfile = {LOG}\n{DOOR}");
            for (arguments, config, path) in [
                ("", &without, "/run/knockd.pid"),
                ("-p /run/p.pid", &without, "/run/p.pid"),
                ("-p /run/p.pid", &with_option, "/run/c.pid"),
            ] {
                in_background(t, arguments, config, path);
                t.sh(&format!("kill $(cat {path})"));
                t.wait_for_file(LOG, "shutting down");
                t.wait_until("no pid file", |t| t.sh("ls /run | grep pid || true").is_empty());
                t.sh(&format!("rm {LOG}"));
            }
        },
    ),
    Rule::same(
        "an_old_pid_file",
        "A stale PID file is overwritten; one that cannot be written is not fatal.",
        |t| {
            t.sh("echo 4194304 >/run/knockd.pid");
            in_background(t, "", &format!("[options]\nlogfile = {LOG}\n{DOOR}"), "/run/knockd.pid");
            t.write("/run/second.conf", &format!("[options]\nlogfile = /run/second.log\n{DOOR}"));
            assert_eq!(t.run("-d -c /run/second.conf -p /nonexistent/x.pid").code, Some(0));
            t.wait_for_file("/run/second.log", "starting up");
            t.send("7000");
            t.wait_for_file("/run/second.log", "door: OPEN SESAME");
            assert!(t.sh("cat /run/second.log").contains("/nonexistent/x.pid"));
        },
    ),
    Rule::differs(
        "a_second_daemon",
        "A second daemon with the same configuration file or, with `-d`, the same PID file starts beside the first, and \
         every command runs twice.",
        "On the same interface it is an error that names the process ID of the first.",
        |t| {
            let config = format!("[options]\nlogfile = {LOG}\n{DOOR}");
            in_background(t, "", &config, "/run/knockd.pid");
            let first = t.sh("cat /run/knockd.pid");
            t.write("/run/second.conf", &config);
            for arguments in
                [format!("-d -c {CONFIG} -p /run/second.pid"), "-d -c /run/second.conf".to_owned()]
            {
                let ended = t.run(&arguments);
                assert_eq!(ended.code, Some(t.pick(1, 0)), "{ended:?}");
                assert_eq!(ended.stderr.join("\n").contains(&format!("(pid {first})")), t.pick(true, false));
            }
        },
    ),
    Rule::same(
        "several_daemons",
        "Several daemons run beside each other: with other configuration and PID files, or on other interfaces.",
        |t| {
            let config = |log: &str| format!("[options]\nlogfile = {log}\n{DOOR}");
            in_background(t, "", &config(LOG), "/run/knockd.pid");
            t.write("/run/second.conf", &config("/run/second.log"));
            assert_eq!(t.run("-d -c /run/second.conf -p /run/second.pid").code, Some(0));
            assert_eq!(t.run(&format!("-d -c {CONFIG} -p /run/third.pid -i lo")).code, Some(0));
            t.wait_until("it listens on lo", |t| t.sh(&format!("cat {LOG}")).contains("listening on lo"));
            t.wait_for_file("/run/second.log", "listening on eth0");
            t.send("7000");
            t.wait_for_file(LOG, "10.9.0.2: door: OPEN SESAME");
            t.wait_for_file("/run/second.log", "10.9.0.2: door: OPEN SESAME");
            t.net.server.can_connect("127.0.0.1".parse::<std::net::IpAddr>().unwrap(), 7000).unwrap();
            t.wait_for_file(LOG, "127.0.0.1: door: OPEN SESAME");
        },
    ),
    Rule::same(
        "debugging_in_the_background",
        "With `-d`, `-D` prints its messages before knockd detaches.",
        |t| {
            t.write(CONFIG, &format!("[options]\nlogfile = {LOG}\n{DOOR}"));
            let printed = t.sh(&format!("'{}' -d -D -c {CONFIG} 2>&1", t.program()));
            assert!(printed.contains("door"), "{printed}");
        },
    ),
    Rule::same(
        "errors_before_the_background",
        "With `-d`, an invalid configuration is still an error with exit status 1.",
        |t| {
            t.write(CONFIG, "[door]\nfoo = x\n");
            let ended = t.run(&format!("-d -c {CONFIG}"));
            assert_eq!((ended.code, ended.stderr.is_empty()), (Some(1), false));
        },
    ),
    Rule::differs(
        "relative_paths",
        "With `-d`, SIGHUP looks for a relative configuration file in `/`, and a relative PID file is \
         written there.",
        "Paths are made absolute at startup.",
        |t| {
            t.write(CONFIG, &format!("[options]\nlogfile = knockd.log\n{DOOR}"));
            t.sh("mkdir /run/pid");
            t.sh(&format!("cd /run && '{}' -d -c knockd.conf -p pid/file", t.program()));
            t.wait_for_file(LOG, "starting up");
            t.send("7000");
            t.wait_for_file(LOG, "OPEN SESAME");
            // In `/` there is no directory `pid`, so nothing is left behind on this machine.
            if t.pick(true, false) {
                t.sh("kill -HUP $(cat /run/pid/file)");
                t.wait_for_file(LOG, "re-reading config file: /run/knockd.conf");
                t.send("0.3s 7000");
                t.wait_until("two lines", |t| {
                    t.log().iter().filter(|line| line.ends_with("OPEN SESAME")).count() == 2
                });
            } else {
                assert!(t.log().iter().any(|line| line.contains("pid/file")), "{:?}", t.log());
                assert_eq!(t.sh("ls /run/pid"), "");
            }
        },
    ),
];

/// Runs knockd with `-d` and these arguments; returns once it has written its pid file.
fn in_background(t: &mut Session, arguments: &str, config: &str, pid_file: &str) {
    t.write(CONFIG, config);
    let ended = t.run(&format!("-d -c {CONFIG} {arguments}"));
    assert_eq!((ended.code, ended.stdout, ended.stderr), (Some(0), vec![], vec![]));
    t.wait_for_file(LOG, "starting up, listening on eth0");
    let text = t.wait_for_file(pid_file, "\n");
    assert!(text.trim_end_matches('\n').bytes().all(|byte| byte.is_ascii_digit()), "{text}");
}
