//! What knockd runs, and when.

use std::time::{Duration, Instant};

use conformance::{Rule, Topic};
use nix::sys::signal::Signal;
use testbed::Stream;

pub(crate) const TOPIC: Topic = Topic { name: "commands", title: "Commands", rules: RULES };

const RULES: &[Rule] = &[
    Rule::same("the_start_command", "A completed sequence runs the start command, after logging it.", |t| {
        t.start("[door]\nsequence = 1,2\nstart_command = echo hello");
        t.send("1 2");
        t.wait_for("running command: echo hello");
        t.wait_for("hello");
        let lines = [
            "10.9.0.2: door: Stage 1",
            "10.9.0.2: door: Stage 2",
            "10.9.0.2: door: OPEN SESAME",
            "door: running command: echo hello",
            "hello",
        ];
        assert_eq!(t.hits(""), lines);
    }),
    Rule::same(
        "no_command",
        "A door without commands only logs. Without a start command, the stop command does not run.",
        |t| {
            t.start(
                "[a]\nsequence = 1\n[b]\nsequence = 2\ncmd_timeout = 0\nstop_command = echo stop\n\
             [c]\nsequence = 3\ncmd_timeout = 0\nstart_command =\nstop_command = echo stop",
            );
            let lines = t.hits("1 2 3 1s 1");
            assert!(
                lines.iter().all(|line| line.ends_with("Stage 1") || line.ends_with("OPEN SESAME")),
                "{lines:?}"
            );
        },
    ),
    Rule::same(
        "the_address",
        "Every `%IP%` is replaced with the source address, an IPv6 address in its short form; nothing \
         else is replaced.",
        |t| {
            t.start("[door]\nsequence = 7000\ncommand = echo %IP%%IP% %ip% %IP %%IP%% IP%");
            t.send("7000 7000<fd00:9:0:0:1:0:0:2");
            t.wait_for("door: running command: echo 10.9.0.210.9.0.2 %ip% %IP %10.9.0.2% IP%");
            let v6 = "fd00:9::1:0:0:2";
            t.wait_for(&format!("door: running command: echo {v6}{v6} %ip% %IP %{v6}% IP%"));
        },
    ),
    Rule::same(
        "the_shell",
        "Commands run under `sh -c` with knockd's environment, working directory and umask.",
        |t| {
            t.start("[door]\nsequence = 1\ncommand = echo \"$0: $HOME $PWD $(umask)\"");
            let wanted = t.sh("echo \": $HOME $PWD $(umask)\"");
            t.send("1");
            t.wait_for(&format!("sh{wanted}"));
        },
    ),
    Rule::same("the_name_of_the_shell", "In its own messages the shell calls itself `sh`.", |t| {
        t.start("[door]\nsequence = 1\ncommand = /no/such/program");
        t.send("1");
        let line = t.wait_for("not found").text;
        assert!(line.starts_with("sh: "), "{line}");
    }),
    Rule::differs(
        "session_of_commands",
        "Every command has its own session.",
        "It has its own process group in knockd's session, so Ctrl-C does not reach it here either.",
        |t| {
            t.start("[door]\nsequence = 1\ncommand = cut -d ' ' -f 5,6 /proc/self/stat | sed s/^/ids:/");
            t.send("1");
            t.wait_for("running command");
            let line = t.wait_for("ids:").text;
            let (group, session) = line.trim_start_matches("ids:").split_once(' ').unwrap();
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", t.pid())).unwrap();
            let of_knockd: Vec<_> = stat.split(' ').skip(4).take(2).collect();
            // All process ids are those of the machine, because /proc is.
            assert_ne!(of_knockd[0], group);
            assert_eq!(of_knockd[1] == session, t.pick(true, false));
        },
    ),
    Rule::same("stdin", "If knockd's stdin is empty, so is that of its commands.", |t| {
        t.start("[door]\nsequence = 7000\ncommand = readlink /proc/self/fd/0");
        t.send("7000");
        t.wait_for("/dev/null");
    }),
    Rule::same(
        "output",
        "The output of commands goes to knockd's stdout and stderr, however long it is.",
        |t| {
            t.start("[door]\nsequence = 7000\ncommand = seq 100000; echo oo''ps >&2; echo do''ne");
            t.send("7000");
            assert_eq!(t.wait_for("oops").stream, Stream::Stderr);
            t.wait_for("done");
            let lines = t.lines();
            let numbers = lines.iter().filter(|line| line.parse::<u32>().is_ok());
            assert_eq!(numbers.count(), 100_000);
            assert!(!lines.contains(&"oops".to_owned()));
            assert_eq!(t.opened_by("7000"), "door");
        },
    ),
    Rule::same("at_the_same_time", "Commands do not wait for one another.", |t| {
        t.start(
            "[a]\nsequence = 1\ncommand = sleep 30; echo slept\n[b]\nsequence = 2\ncommand = echo quick %IP%",
        );
        t.send("1 2 1<10.9.0.3 2<10.9.0.3");
        t.wait_for("b: running command: echo quick 10.9.0.2");
        t.wait_for("a: running command: sleep 30");
        t.wait_for("quick 10.9.0.3");
        assert!(!t.lines().contains(&"slept".to_owned()));
    }),
    Rule::same(
        "a_failing_command",
        "A command that fails is reported on stderr with its status; the stop command runs regardless.",
        |t| {
            t.start("[door]\nsequence = 1\ncommand = exit 3\ncmd_timeout = 1\nstop_command = echo stopped\n[no]\nsequence = 2\ncommand = /no/such/program");
            t.send("1 2");
            let line = t.wait_for("door: command returned non-zero status code (3)");
            assert_eq!(line.stream, Stream::Stderr);
            t.wait_for("no: command returned non-zero status code (127)");
            t.wait_for("10.9.0.2: door: command timeout");
            t.wait_for("door: running command: echo stopped");
            t.wait_for("stopped");
        },
    ),
    Rule::differs(
        "a_killed_command",
        "A command killed by a signal is reported as `status code (0)`.",
        "The signal is named.",
        |t| {
            t.start("[door]\nsequence = 1\ncommand = kill -9 $$");
            t.send("1");
            let text = t.wait_for("door: command ").text;
            assert_eq!(
                text,
                t.pick("door: command killed by signal 9", "door: command returned non-zero status code (0)")
            );
        },
    ),
    Rule::same(
        "the_stop_command",
        "The stop command runs `Cmd_Timeout` seconds after the start command has ended.",
        |t| {
            t.start("[door]\nsequence = 1\ncommand = sleep 1; echo started\ncmd_timeout = 2\nstop_command = echo stop %IP%");
            t.send("1");
            t.wait_for("running command: sleep 1");
            let started = t.wait_for("started").at;
            let timeout = t.wait_for("10.9.0.2: door: command timeout").at;
            t.wait_for("door: running command: echo stop 10.9.0.2");
            t.wait_for("stop 10.9.0.2");
            assert_seconds(timeout - started, 2);
        },
    ),
    Rule::same("the_default_cmd_timeout", "`Cmd_Timeout` defaults to 10 seconds; 0 means at once.", |t| {
        t.start("[door]\nsequence = 1\ncommand = echo started\nstop_command = echo\n[now]\nsequence = 2\ncmd_timeout = 0\ncommand = :\nstop_command = :");
        t.send("2");
        let ran = t.wait_for("now: running command: :").at;
        assert_seconds(t.wait_for("now: command timeout").at - ran, 0);
        t.send("1");
        t.wait_for("running command: echo started");
        let started = t.wait_for("started").at;
        assert_seconds(t.wait_for("door: command timeout").at - started, 10);
    }),
    Rule::same(
        "a_command_that_goes_to_the_background",
        "`Cmd_Timeout` counts from the end of the shell, not of its background processes.",
        |t| {
            t.start("[door]\nsequence = 1\ncommand = sleep 30 & echo started\ncmd_timeout = 1\nstop_command = echo stopped");
            t.send("1");
            t.wait_for("running command: sleep 30");
            let started = t.wait_for("started").at;
            assert_seconds(t.wait_for("command timeout").at - started, 1);
            t.wait_for("running command: echo stopped");
        },
    ),
    Rule::same("commands_for_ipv6", "`Start_Command_6` and `Stop_Command_6` run for IPv6 sources.", |t| {
        t.start("[door]\nsequence = 1\ncmd_timeout = 0\ncommand = echo A\nstart_command_6 = echo B\nstop_command = echo C\nstop_command_6 = echo D");
        t.send("1");
        t.wait_for("running command: echo A");
        t.wait_for("running command: echo C");
        t.send("1@fd00:9::1");
        t.wait_for("running command: echo B");
        t.wait_for("fd00:9::2: door: command timeout");
        t.wait_for("running command: echo D");
    }),
    Rule::same("commands_for_both", "Without a command for IPv6, the other one runs.", |t| {
        t.start("[door]\nsequence = 1\ncmd_timeout = 0\ncommand = echo A\nstop_command = echo C %IP%\n[six]\nsequence = 2\ncommand_6 = echo B");
        t.send("1@fd00:9::1");
        t.wait_for("running command: echo A");
        t.wait_for("running command: echo C fd00:9::2");
        t.wait_for("C fd00:9::2");
        t.lines();
        assert_eq!(t.hits("2").len(), 2);
        t.send("2@fd00:9::1");
        t.wait_for("six: running command: echo B");
    }),
    Rule::same(
        "an_empty_command_for_ipv6",
        "An empty `Start_Command_6` runs nothing for IPv6 sources, not even a stop command.",
        |t| {
            t.start("[door]\nsequence = 1\ncmd_timeout = 0\ncommand = echo A\ncommand_6 =\nstop_command = echo C\nstop_command_6 = echo D");
            let lines = t.hits("1@fd00:9::1 1s");
            assert_eq!(lines, ["fd00:9::2: door: Stage 1", "fd00:9::2: door: OPEN SESAME"]);
            t.send("1");
            t.wait_for("running command: echo C");
        },
    ),
    Rule::differs(
        "an_empty_stop_command",
        "An empty `Stop_Command_6` runs an empty command after `Cmd_Timeout`.",
        "Nothing runs.",
        |t| {
            t.start("[door]\nsequence = 1\ncmd_timeout = 0\ncommand = echo A\nstop_command = echo C\nstop_command_6 =");
            let lines = t.hits("1@fd00:9::1 1s");
            assert_eq!(lines.contains(&"door: running command: ".to_owned()), t.pick(false, true));
            assert!(!lines.contains(&"C".to_owned()));
        },
    ),
    Rule::differs(
        "knocking_again",
        "Knocking again while a door is open runs the start command again, and each run has its own stop \
         command.",
        "The time for which the door stays open restarts and nothing runs, so firewall rules do not pile \
         up; `Reopen = run` restores 0.8's behaviour.",
        |t| {
            t.start("[door]\nsequence = 1\ncommand = echo start\ncmd_timeout = 4\nstop_command = echo stop");
            t.send("1 0.3s 1");
            for _ in 0..t.pick(1, 2) {
                t.wait_for("running command: echo stop");
                t.wait_for("stop");
            }
            let lines = t.hits("1s");
            let count = |text: &str| lines.iter().filter(|line| *line == text).count();
            assert_eq!(
                (count("10.9.0.2: door: OPEN SESAME"), count("start"), count("stop")),
                t.pick((2, 1, 1), (2, 2, 2))
            );
        },
    ),
    Rule::differs(
        "one_network",
        "A door opens for any number of addresses, also of one IPv6 /64.",
        "A door is open for at most 32 addresses of an IPv6 /64, all of which a single host can have, so nobody can fill \
         the firewall or use up `MaxOpen`. Other networks still get in. With `Reopen = run`, an IPv4 address has at most \
         32 leases of a door.",
        |t| {
            t.start("[door]\nsequence = 1\ncommand = :\ncmd_timeout = 600\nstop_command = echo stop");
            let hits: Vec<_> = (1..=40).map(|host| format!("1<2001:db8::{host:x}")).collect();
            t.send(&hits.join(" "));
            t.send("1<2001:db8:0:1::1");
            t.wait_for("2001:db8:0:1::1: door: OPEN SESAME");
            let lines = t.hits("1s");
            let runs = lines.iter().filter(|line| *line == "door: running command: :").count();
            assert_eq!(runs, t.pick(33, 41));
        },
    ),
    Rule::differs(
        "a_failing_stop_command",
        "A stop command that fails is reported but not retried: the door stays open.",
        "It is retried after 2 seconds, then at increasing intervals.",
        |t| {
            t.start("[door]\nsequence = 1\ncommand = :\ncmd_timeout = 0\nstop_command = echo stop; exit 4");
            t.send("1");
            t.wait_for("door: command returned non-zero status code (4)");
            if t.pick(true, false) {
                t.wait_for("door: command returned non-zero status code (4)");
            } else {
                let lines = t.hits("4s");
                assert_eq!(lines.iter().filter(|line| *line == "stop").count(), 1);
            }
        },
    ),
    Rule::differs(
        "leaked_files",
        "Commands inherit knockd's packet socket.",
        "They inherit only stdin, stdout and stderr.",
        |t| {
            t.start("[door]\nsequence = 1\ncommand = ls -l /proc/self/fd | grep -c socket:; echo end");
            t.send("1");
            t.wait_for("running command");
            t.wait_for("end");
            assert_eq!(t.lines().contains(&"0".to_owned()), t.pick(true, false));
        },
    ),
    Rule::differs(
        "open_doors_at_the_end",
        "When stopped, knockd waits for the command of one door; others go on by themselves, if the \
         process that stops it lets them live.",
        "knockd runs the stop commands of all open doors at once, then exits.",
        |t| {
            t.start(
                "[door]\nsequence = 1\ncommand = echo start\ncmd_timeout = 12\nstop_command = echo stop %IP%",
            );
            t.send("1 1<10.9.0.3");
            t.wait_for("start");
            t.wait_for("10.9.0.3: door: OPEN SESAME");
            t.wait_for("start");
            let signalled = Instant::now();
            t.signal(Signal::SIGTERM);
            t.ended();
            assert_eq!(signalled.elapsed() < Duration::from_secs(6), t.pick(true, false));
            t.wait_for("stop 10.9.0.");
            t.wait_for("stop 10.9.0.");
        },
    ),
];

/// Shows that a duration is about this many seconds, on a machine that may be busy: a line can be seen late.
fn assert_seconds(duration: Duration, seconds: u64) {
    assert!((seconds.saturating_sub(1)..seconds + 7).contains(&duration.as_secs()), "{duration:?}");
}
