//! The log file, the system log and the terminal.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use conformance::{LOG, Rule, SOON, Topic};
use testbed::Stream;

pub(crate) const TOPIC: Topic = Topic { name: "logging", title: "Log and output", rules: RULES };

/// A door whose every kind of line can be seen within seconds.
const DOOR: &str =
    "[door]\nsequence = 1,2\nseq_timeout = 2\ncommand = exit 3\ncmd_timeout = 0\nstop_command = true\n";

/// A script that lets the server know the client's name.
const NAMES: &str = "mount -t tmpfs tmpfs /etc
    echo 'hosts: files' >/etc/nsswitch.conf
    echo '10.9.0.2 client.example' >/etc/hosts";

const RULES: &[Rule] = &[
    Rule::same("verbose", "`-v` prints the status lines on stdout.", |t| {
        t.write(conformance::CONFIG, DOOR);
        t.launch_plain();
        assert_eq!(t.wait_for("listening on").text, "listening on eth0...");
        // It takes a while until the first packet is looked at.
        t.send("1");
        t.wait_for("Stage 1");
        t.send("3.5s 1 2");
        t.wait_for("non-zero");
        t.wait_for("running command: true");
        let lines = [
            "listening on eth0...",
            "10.9.0.2: door: Stage 1",
            "10.9.0.2: door: sequence timeout (stage 1)",
            "10.9.0.2: door: Stage 1",
            "10.9.0.2: door: Stage 2",
            "10.9.0.2: door: OPEN SESAME",
            "door: running command: exit 3",
            "10.9.0.2: door: command timeout",
            "door: running command: true",
        ];
        assert_eq!(t.lines(), lines);
        assert_eq!(t.stderr(), ["door: command returned non-zero status code (3)"]);
    }),
    Rule::same(
        "not_verbose",
        "Without `-v`, only warnings, errors and the output of commands are printed.",
        |t| {
            t.start_with(
                "-g /run/knockd.log",
                "[door]\nsequence = 1\ncommand = echo from the command; exit 3",
            );
            t.send("1");
            t.wait_for("from the command");
            t.wait_for("door: command returned non-zero status code (3)");
            assert_eq!(t.lines(), ["from the command"]);
            assert_eq!(t.stderr(), ["door: command returned non-zero status code (3)"]);
        },
    ),
    Rule::same(
        "debug",
        "`-D` prints debug messages on stdout, and status lines only together with `-v`.",
        |t| {
            for (arguments, wanted) in [("-D -g /run/knockd.log", 0), ("-D -v", 1)] {
                t.start_with(arguments, "[door]\nsequence = 1\ncommand = echo from 'the' command");
                t.send("1");
                t.wait_for("from the command");
                let lines = t.lines();
                assert!(lines.len() > 2, "{lines:?}");
                let status = lines.iter().filter(|line| *line == "10.9.0.2: door: OPEN SESAME");
                assert_eq!(status.count(), wanted, "{lines:?}");
            }
        },
    ),
    Rule::same("log_file", "`LogFile` receives the status lines, with date and time, and failures.", |t| {
        t.start(&format!("[options]\nlogfile = {LOG}\n{DOOR}"));
        t.send("1");
        t.wait_for("Stage 1");
        t.send("3.5s 1 2");
        t.wait_for("running command: true");
        t.wait_for_file(LOG, "running command: true");
        let lines: Vec<_> = t.log().into_iter().filter(|line| !line.is_empty()).collect();
        let wanted = [
            "starting up, listening on eth0",
            "10.9.0.2: door: Stage 1",
            "10.9.0.2: door: sequence timeout (stage 1)",
            "10.9.0.2: door: Stage 1",
            "10.9.0.2: door: Stage 2",
            "10.9.0.2: door: OPEN SESAME",
            "door: running command: exit 3",
            "door: command returned non-zero status code (3)",
            "10.9.0.2: door: command timeout",
            "door: running command: true",
        ];
        assert_eq!(lines, wanted);
    }),
    Rule::differs(
        "empty_lines",
        "In the log file, an empty line follows `running command:` and some other lines.",
        "There are no empty lines.",
        |t| {
            t.start(&format!("[options]\nlogfile = {LOG}\n{DOOR}"));
            t.send("1 2");
            t.wait_for_file(LOG, "running command: true");
            assert_eq!(t.log().contains(&String::new()), t.pick(false, true));
        },
    ),
    Rule::differs(
        "what_a_failing_command_said",
        "The stderr output of a failing command appears only on knockd's stderr.",
        "Its first and its last line also appear in the log, as `command said:`.",
        |t| {
            t.start(&format!(
                "[options]\nlogfile = {LOG}\n[door]\nsequence = 1\ncommand = echo no luck >&2; exit 3\n"
            ));
            t.send("1");
            t.wait_for("no luck");
            t.wait_for("non-zero");
            t.send("1");
            t.wait_for("non-zero");
            assert_eq!(t.log().contains(&"door: command said: no luck".to_owned()), t.pick(true, false));
        },
    ),
    Rule::same("local_time", "The time in the log file is local time.", |t| {
        t.write(conformance::CONFIG, &format!("[options]\nlogfile = {LOG}\n"));
        let program = t.program();
        let mut command = t.net.server.command("env");
        command.args(["TZ=KNOCK-9:30", program, "-v", "-c", conformance::CONFIG]);
        let now = |t: &conformance::Session| t.sh("TZ=KNOCK-9:30 date '+[%Y-%m-%d %H:%M] '");
        let before = now(t);
        t.launch(&mut command);
        let log = t.wait_for_file(LOG, "starting up");
        assert!([before, now(t)].iter().any(|date| log.starts_with(date)), "{log}");
    }),
    Rule::same("appending", "knockd appends to an existing log file.", |t| {
        t.sh(&format!("echo '[2001-01-01 01:01] before' >{LOG}"));
        t.start_with("-g /run/knockd.log", "");
        assert_eq!(t.log()[..2], ["before", "starting up, listening on eth0"]);
    }),
    Rule::same(
        "an_impossible_log_file",
        "A log file that cannot be opened causes a warning on stderr and is not fatal.",
        |t| {
            t.start("[options]\nlogfile = /nonexistent/x.log\n[door]\nsequence = 7000");
            assert_eq!(t.opened_by("7000"), "door");
            let stderr = t.stderr();
            assert!(stderr.len() == 1 && stderr[0].contains("No such file or directory"), "{stderr:?}");
        },
    ),
    Rule::same("dev_null", "`/dev/null` works as a log file.", |t| {
        t.start("[options]\nlogfile = /dev/null\n[door]\nsequence = 7000");
        assert_eq!(t.opened_by("7000"), "door");
        assert!(t.stderr().is_empty());
    }),
    Rule::same("no_log_at_all", "Without a log file or the system log, knockd works silently.", |t| {
        t.start("[door]\nsequence = 7000");
        assert_eq!(t.opened_by("7000"), "door");
        assert_eq!(t.sh("ls /run | grep -e log -e pid || true"), "");
    }),
    Rule::same(
        "syslog",
        "`UseSyslog` sends the same lines to the system log: facility daemon, priority notice, ident `knockd`.",
        |t| {
            let syslog = listen_as_syslog(t);
            t.start(&format!("[options]\nusesyslog\n{DOOR}"));
            t.send("1 2");
            let mut texts = Vec::new();
            while !texts.last().is_some_and(|text: &String| text.ends_with("running command: true")) {
                let mut bytes = [0; 2000];
                let length = syslog.recv(&mut bytes).unwrap();
                let text = String::from_utf8_lossy(&bytes[..length]);
                assert!(text.starts_with("<29>"), "{text}");
                texts.push(text.split_once(" knockd: ").unwrap().1.trim_end().to_owned());
            }
            texts.retain(|text| conformance::is_of_test(text));
            let wanted = [
                "starting up, listening on eth0",
                "10.9.0.2: door: Stage 1",
                "10.9.0.2: door: Stage 2",
                "10.9.0.2: door: OPEN SESAME",
                "door: running command: exit 3",
                "door: command returned non-zero status code (3)",
                "10.9.0.2: door: command timeout",
                "door: running command: true",
            ];
            assert_eq!(texts, wanted);
        },
    ),
    Rule::same("names", "`-l` adds the host name of the source after its address, if it has one.", |t| {
        t.sh(NAMES);
        t.start_with(
            "-v -l",
            "[door]\nsequence = 1,2\ncommand = echo %IP%\ncmd_timeout = 0\nstop_command = true",
        );
        t.send("1 1<10.9.0.3 2 2<10.9.0.3");
        t.wait_for("10.9.0.2 (client.example): door: OPEN SESAME");
        t.wait_for("10.9.0.2 (client.example): door: command timeout");
        t.wait_for("10.9.0.3: door: OPEN SESAME");
    }),
    Rule::differs(
        "names_of_stages",
        "`-l` adds the host name to every line that begins with an address.",
        "Only to lines about a door that opens or closes: the owner of a DNS zone sees each lookup, and would learn from \
         those at stages which hits are right.",
        |t| {
            t.sh(NAMES);
            t.start_with("-v -l", "[door]\nsequence = 1,2");
            t.send("1");
            t.wait_for(t.pick("10.9.0.2: door: Stage 1", "10.9.0.2 (client.example): door: Stage 1"));
        },
    ),
    Rule::differs(
        "slow_names",
        "With `-l`, everything, including the command, waits until the name server answers or times out.",
        "Commands never wait; a log line waits at most 2 seconds for a name.",
        |t| {
            // A name server that does not exist.
            t.sh("mount -t tmpfs tmpfs /etc
                echo 'hosts: dns' >/etc/nsswitch.conf
                printf 'nameserver 10.9.0.77\\noptions timeout:6 attempts:1\\n' >/etc/resolv.conf
                ip neighbour add 10.9.0.77 lladdr 02:00:00:00:09:77 dev eth0");
            t.start_with("-v -l", "[door]\nsequence = 1\ncommand = echo $((40 + 2))");
            let knocked = Instant::now();
            t.send("1");
            let waited = t.wait_for("42").at - knocked;
            assert_eq!(waited < Duration::from_secs(4), t.pick(true, false), "{waited:?}");
        },
    ),
    Rule::differs(
        "dates_of_debug_lines",
        "Dates in the output of `-D` are a month early.",
        "They are correct.",
        |t| {
            let month: u32 = t.sh("date +%m").parse().unwrap();
            let month_before = format!("{}-{:02}-", t.sh("date +%Y"), month - 1);
            t.start_with("-v -D", "[door]\nsequence = 1");
            let lines = t.hits("1");
            assert_eq!(
                lines.iter().any(|line| line.contains(&month_before)),
                t.pick(false, true),
                "{lines:?}"
            );
        },
    ),
    Rule::same(
        "one_line_at_a_time",
        "Lines on stdout are available as soon as they are printed, even through a pipe.",
        |t| {
            t.start("[door]\nsequence = 1,2");
            t.send("1");
            assert_eq!(t.wait_for("10.9.0.2: door: Stage 1").stream, Stream::Stdout);
        },
    ),
];

/// Takes the place of the system log on the server.
fn listen_as_syslog(t: &conformance::Session) -> UnixDatagram {
    // A /dev of the server's own; its devices are still the machine's.
    t.sh("set -e
        mkdir /run/dev; mount -t tmpfs tmpfs /run/dev
        for name in null zero random urandom; do : >/run/dev/$name; mount --bind /dev/$name /run/dev/$name; done
        mount --rbind /run/dev /dev");
    let inside = t.net.server.spawn(&["sleep", "100"]).unwrap();
    let socket = UnixDatagram::bind(inside.root().unwrap().join("dev/log")).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}
