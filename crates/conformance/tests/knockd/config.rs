//! The configuration file.

use conformance::{CONFIG, Rule, Session, Topic};

pub(crate) const TOPIC: Topic = Topic { name: "config", title: "The configuration file", rules: RULES };

const RULES: &[Rule] = &[
    Rule::same(
        "layout",
        "Ignored are spaces and tabs around lines, keys, values and section headers, empty lines, lines \
         that start with `#`, Windows line endings, and a missing final newline.",
        |t| {
            let plain = "[door]\nsequence = 7000\ncommand = echo a  b";
            let tabs = "\n\t[door]\t\n\n  # a comment\n\tsequence\t=\t7000\t\n\tcommand=echo a  b \n";
            for config in [plain, tabs, &plain.replace('\n', "\r\n")] {
                t.start(config);
                t.send("7000");
                t.wait_for("door: running command: echo a  b");
            }
            assert!(t.accepts(plain));
        },
    ),
    Rule::same("keys_in_any_case", "Directives are not case-sensitive.", |t| {
        t.start("[door]\nSEQUENCE = 7000\nTcpFlags = SYN\ncOMMAND = echo hi");
        assert_eq!(t.opened_by("7000/A 7000"), "door");
        t.wait_for("running command: echo hi");
    }),
    Rule::same(
        "no_trailing_comments",
        "A value extends to the end of its line: `#` and `=` in a command are part of it, and quotes are \
         left to the shell.",
        |t| {
            t.start("[door]\nsequence = 7000\ncommand = X=\"1\"; echo \"a=b=$X\" # c");
            t.send("7000");
            t.wait_for("door: running command: X=\"1\"; echo \"a=b=$X\" # c");
            assert_eq!(t.wait_for("a=b=").text, "a=b=1");
        },
    ),
    Rule::same(
        "text_after_numbers",
        "Text after a number and white space is ignored (here with a warning): `sequence = 7000,8000 # \
         mine` and `seq_timeout = 5 s` work.",
        |t| {
            t.start("[door]\nsequence = 7000 x,8000 udp # mine\nseq_timeout = 5 s\ncmd_timeout = 1 # second");
            assert_eq!(t.opened_by("7000 8000"), "door");
        },
    ),
    Rule::same("numbers", "A number may have leading zeros or a plus sign; a fraction is truncated.", |t| {
        t.start(
            "[door]\nsequence = 007000,+8000\nseq_timeout = 1.9\n[next]\nsequence = 1,2\nseq_timeout = +05",
        );
        assert_eq!(t.opened_by("7000 8000 1 1.5s 2"), "door next");
    }),
    Rule::same(
        "sequence_spelling",
        "`tcp` and `udp` are not case-sensitive, `tcp` may be omitted, and spaces may surround every \
         part.",
        |t| {
            t.start("[door]\nsequence = 1:UDP , 2 : tcp ,3,\t4:\tUdp");
            assert_eq!(t.opened_by("1u 2 3 4u"), "door");
        },
    ),
    Rule::same("a_sequence_too_long", "More than 32 ports are an error.", |t| {
        let ports: Vec<_> = (1..=33).map(|port| port.to_string()).collect();
        refuses(t, &[&format!("sequence = {}", ports.join(","))]);
    }),
    Rule::same("bad_sequences", "An unknown or missing protocol and a port above 65535 are errors.", |t| {
        refuses(t, &["sequence = 7000:sctp", "sequence = 7000:", "sequence = 7000:tcpx", "sequence = 70000"]);
    }),
    Rule::differs(
        "numbers_that_are_none",
        "Text that is not a number counts as 0, or up to the last digit: `abc`, `8000x`, `0x1b58`, an \
         empty value, an empty place between commas. Negative ports wrap around, negative timeouts are \
         accepted, and a second `:` and everything after it are ignored.",
        "An error that shows the position, because the door would not be the one that was meant.",
        |t| {
            let lines = [
                "sequence = abc,2",
                "sequence = 8000x",
                "sequence = 0x1b58",
                "sequence = 7000;8000",
                "sequence = \"7000\"",
                "sequence =",
                "sequence = 7000,",
                "sequence = ,7000",
                "sequence = 7000,,8000",
                "sequence = -1",
                "sequence = 7000:tcp:udp",
                "sequence = 7000\nseq_timeout = abc",
                "sequence = 7000\nseq_timeout =",
                "sequence = 7000\nseq_timeout = -1",
                "sequence = 7000\ncmd_timeout = 0x1",
                "sequence = 7000\ncmd_timeout = -1",
                "sequence = 7000\ncmd_timeout = 1s",
            ];
            for line in lines {
                assert_eq!(t.accepts(&format!("[door]\n{line}\n")), t.pick(false, true), "{line}");
            }
        },
    ),
    Rule::same(
        "options_in_lower_case",
        "`[options]` holds the global directives; any other name is a door, even `[Options]` and `[ \
         options ]`.",
        |t| {
            t.start("[Options]\nsequence = 1\n[ options ]\nsequence = 2");
            assert_eq!(t.opened_by("1 2"), "Options  options ");
        },
    ),
    Rule::same(
        "door_names",
        "Everything between the first `[` and the last `]` is the door's name, verbatim.",
        |t| {
            t.start("[ a ]\nsequence=1\n[b]c]\nsequence=2\n[ ]\nsequence=3\n[d e][f]\nsequence=4");
            assert_eq!(t.opened_by("1 2 3 4"), " a  b]c   d e][f");
        },
    ),
    Rule::same(
        "bad_headers",
        "A section without a name or its `]`, or with text after it, is an error.",
        |t| {
            for config in
                ["[]\nsequence = 1", "[door\nsequence = 1", "[door] # c\nsequence = 1", "[options\nusesyslog"]
            {
                assert!(!t.accepts(config), "{config}");
            }
        },
    ),
    Rule::same("doors_of_the_same_name", "Two doors may share a name; both work.", |t| {
        t.start("[door]\nsequence = 7000\n[door]\nsequence = 8000\n[door]\nsequence = 7000");
        assert_eq!(t.opened_by("7000 8000"), "door door door");
    }),
    Rule::same(
        "a_directive_given_twice",
        "If a directive appears twice in a door, the last one wins.",
        |t| {
            t.start("[door]\nsequence = 7000\nsequence = 8000\ntimeout = 0\nseq_timeout = 5\ncommand = echo a\nstart_command = echo b");
            assert_eq!(t.opened_by("7000 8000"), "door");
            t.wait_for("running command: echo b");
        },
    ),
    Rule::same(
        "aliases",
        "`Timeout`, `Command` and `Command_6` are aliases for `Seq_Timeout`, `Start_Command` and \
         `Start_Command_6`.",
        |t| {
            t.start("[door]\nsequence = 1,2\nseq_timeout = 5\ntimeout = 0\nstart_command = echo a\ncommand = echo b");
            assert_eq!(t.opened_by("1 2"), "");
            t.start("[door]\nsequence = 1\nstart_command = echo a\ncommand = echo b\nstart_command_6 = echo c\ncommand_6 = echo d");
            t.send("1 1@fd00:9::1");
            t.wait_for("running command: echo b");
            t.wait_for("running command: echo d");
        },
    ),
    Rule::same(
        "options_again",
        "`[options]` may be repeated, even after doors; the last of each directive wins, except \
         `Interface`.",
        |t| {
            t.start(
                "[options]\nlogfile = /run/first\n[door]\nsequence = 7000\n[options]\nlogfile = /run/second",
            );
            assert_eq!(t.opened_by("7000"), "door");
            assert!(t.sh("cat /run/second").contains("door: OPEN SESAME"));
            assert_eq!(t.sh("ls /run | grep first || true"), "");
        },
    ),
    Rule::same("interface_given_twice", "Of two `Interface` directives, the first one wins.", |t| {
        t.write(CONFIG, "[options]\ninterface = eth0\ninterface = lo\n");
        t.launch_plain();
        assert_eq!(t.wait_for("listening on").text, "listening on eth0...");
    }),
    Rule::same("no_doors", "An empty file, or one without doors, is valid.", |t| {
        for config in ["", "# nothing\n", "[options]\n", "[options]\nUseSyslog\n"] {
            assert!(t.accepts(config), "{config:?}");
        }
    }),
    Rule::same(
        "empty_options",
        "`Interface`, `LogFile` and `PidFile` may be empty, which is the same as omitting them.",
        |t| {
            t.start("[options]\ninterface =\nlogfile =\npidfile =\n[door]\nsequence = 7000");
            assert_eq!(t.opened_by("7000"), "door");
        },
    ),
    Rule::differs(
        "use_syslog_has_no_value",
        "`UseSyslog` with a value is an error.",
        "`UseSyslog = yes` and `UseSyslog = no` mean what they say; so do `true`, `on`, `1`, `false`, `off` and `0`. \
         Another value is accepted, with a warning that it is ignored.",
        |t| {
            for line in ["UseSyslog = yes", "UseSyslog = no", "UseSyslog ="] {
                let config = format!("[options]\n{line}\n[door]\nsequence = 1\n");
                assert_eq!(t.accepts(&config), t.pick(true, false), "{line}");
            }
        },
    ),
    Rule::same("a_comment_behind_use_syslog", "A comment cannot follow `UseSyslog`.", |t| {
        assert!(!t.accepts("[options]\nUseSyslog # c\n"));
    }),
    Rule::differs(
        "include",
        "There is no `Include`: it is an unknown directive, and so an error.",
        "It names further files, whose doors are added.",
        |t| {
            t.sh("mkdir -m 755 /run/doors; echo '[more]\nsequence = 2' >/run/doors/a.conf; chmod 600 /run/doors/a.conf");
            let config = "[options]\ninclude = /run/doors/*.conf\n[door]\nsequence = 1\n";
            if t.pick(true, false) {
                t.start(config);
                assert_eq!(t.opened_by("1 2"), "door more");
            } else {
                assert!(!t.accepts(config));
            }
        },
    ),
    Rule::same(
        "errors_name_the_line",
        "An unknown directive, one in the wrong section or before any section, and one without `=` or key \
         are errors: the message on stderr names the line, and the exit status is 1.",
        |t| {
            for (config, line) in [
                ("[door]\nfoo = x\n", 2),
                ("[door]\nsequence = 7000\nfoo\n", 3),
                ("[door]\nsequence = 7000\nlogfile = /run/x\n", 3),
                ("[door]\nsequence = 7000\n; no comment\n", 3),
                ("[door]\nsequence = 7000\n= x\n", 3),
                ("[door]\nsequence\n", 2),
                ("[door]\nsequence = 7000\ncommand = a \\\nb\n", 4),
                ("[options]\n\nsequence = 7000\n", 3),
                ("[options]\nlogfile\n", 2),
                ("logfile = /run/x\n[door]\nsequence = 7000\n", 1),
                ("UseSyslog\n", 1),
            ] {
                let ended = t.refused(config);
                assert_eq!(ended.code, Some(1), "{config}");
                let stderr = ended.stderr.join("\n");
                assert!(
                    stderr.contains(&format!("line {line}:")) || stderr.contains(&format!(":{line}:")),
                    "{stderr}"
                );
            }
        },
    ),
    Rule::differs(
        "every_error",
        "Only the first error is shown, before the whole usage text and without the file name.",
        "Every error is shown with its file, line and column, without the usage text.",
        |t| {
            let ended = t.refused("[door]\nfoo = x\nsequence = 7000\nbar = y\n");
            let starts = ended.stderr.iter().filter(|line| {
                line.starts_with("config: line 2")
                    || line.starts_with("/run/knockd.conf:2:1: error: `foo`")
                    || line.starts_with("/run/knockd.conf:4:1: error: `bar`")
            });
            assert_eq!(starts.count(), t.pick(2, 1));
            assert_eq!(ended.stdout.iter().any(|line| line.starts_with("usage: ")), t.pick(false, true));
        },
    ),
    Rule::same("no_sequence", "A door without a sequence is an error that names the door.", |t| {
        for config in ["[lonely]\ncommand = echo\n", "[lonely]\n[door]\nsequence = 7000\n"] {
            let ended = t.refused(config);
            assert_eq!(ended.code, Some(1));
            assert!(ended.stderr.join("\n").contains("lonely"), "{ended:?}");
        }
    }),
    Rule::same(
        "flag_spelling",
        "Flags are not case-sensitive; if a flag is given twice, the last one wins.",
        |t| {
            t.start("[a]\nsequence = 1\ntcpflags = SYN,!Ack\n[b]\nsequence = 2\ntcpflags = syn,!syn");
            assert_eq!(t.opened_by("1/SA 1/S 2/S 2/A"), "a b");
        },
    ),
    Rule::same("bad_flags", "Unknown flags, empty places and a missing flag after `!` are errors.", |t| {
        let flags =
            ["foo", "", "syn,", ",syn", "syn,,ack", "!", "!syn,", "syn|fin", "syn syn", "!!syn", "! syn"];
        refuses(
            t,
            &flags.map(|flags| format!("sequence = 1\ntcpflags = {flags}")).each_ref().map(String::as_str),
        );
    }),
    Rule::differs(
        "spaces_between_flags",
        "Spaces between flags are refused: `syn, ack`.",
        "They are accepted.",
        |t| {
            for flags in ["syn, ack", "syn ,ack"] {
                let config = format!("[door]\nsequence = 1\ntcpflags = {flags}\n");
                assert_eq!(t.accepts(&config), t.pick(true, false));
            }
        },
    ),
    Rule::same(
        "bad_targets",
        "A `Target` that is not an address is an error: an empty value, a list, a network, or an address \
         followed by a comment.",
        |t| {
            let targets = ["", "192.0.2.1,192.0.2.2", "10.9.0.0/24", "192.0.2.1 # c", "no-such-host.invalid"];
            refuses(
                t,
                &targets
                    .map(|target| format!("sequence = 1\ntarget = {target}"))
                    .each_ref()
                    .map(String::as_str),
            );
        },
    ),
    Rule::differs(
        "targets_that_never_match",
        "A host name that resolves and an abbreviated IPv4 address are accepted as `Target`, but such a \
         door never opens.",
        "They are errors.",
        |t| {
            for target in ["localhost", "192.0.2"] {
                let config = format!("[door]\nsequence = 1\ntarget = {target}\n");
                assert_eq!(t.accepts(&config), t.pick(false, true), "{target}");
            }
        },
    ),
    Rule::differs(
        "ipv6_targets",
        "An IPv6 `Target` matches only if it is written in its shortest form, in lower case.",
        "Any valid notation works.",
        |t| {
            t.start("[a]\nsequence = 1\ntarget = FD00:9:0:0::0077\n[b]\nsequence = 2\ntarget = fd00:9::77");
            assert_eq!(t.opened_by("1@fd00:9::77 2@fd00:9::77"), t.pick("a b", "b"));
        },
    ),
    Rule::differs(
        "long_lines",
        "A line longer than 4096 bytes is cut, and the rest is read as another line.",
        "Lines of any length work.",
        |t| {
            let config = format!("[door]\nsequence = 7000\ncommand = : {}\n", "x".repeat(5000));
            assert_eq!(t.accepts(&config), t.pick(true, false));
        },
    ),
    Rule::differs("long_names", "Door names longer than 127 bytes are truncated.", "They are kept.", |t| {
        let name = "n".repeat(200);
        t.start(&format!("[{name}]\nsequence = 7000"));
        assert_eq!(t.opened_by("7000").len(), t.pick(200, 127));
    }),
    Rule::differs(
        "a_byte_order_mark",
        "A file that starts with a UTF-8 byte order mark is refused.",
        "The mark is ignored, because some editors insert it.",
        |t| assert_eq!(t.accepts("\u{feff}[door]\nsequence = 7000\n"), t.pick(true, false)),
    ),
    Rule::differs(
        "zero_bytes",
        "A NUL byte truncates its line, even inside a command.",
        "A NUL byte is an error, because half a command may do harm.",
        |t| {
            assert_eq!(
                t.accepts("[door]\nsequence = 7000\ncommand = echo a\0; echo b\n"),
                t.pick(false, true)
            );
        },
    ),
    Rule::same("bytes_in_comments", "Comments may contain any bytes, even invalid UTF-8.", |t| {
        t.sh(&format!("printf '# caf\\351\\n[door]\\nsequence = 7000\\n' >{CONFIG}"));
        t.launch_plain();
        t.wait_for("listening on eth0...");
    }),
    Rule::differs(
        "bytes_in_commands",
        "The bytes of a command reach the shell unchanged, whatever they are.",
        "Outside comments the file must be valid UTF-8; anything else is an error.",
        |t| {
            t.sh(&format!("printf '[door]\\nsequence = 7000\\ncommand = echo caf\\351\\n' >{CONFIG}"));
            let ended = t.sh(&format!("timeout 5 '{}' -c {CONFIG} >/dev/null 2>&1; echo $?", t.program()));
            // 124 is `timeout`'s own, 15 the C program's after it; either way it was listening.
            assert_eq!(ended != "1", t.pick(false, true), "{ended}");
        },
    ),
    Rule::same("a_missing_file", "A missing file is an error that names it; the exit status is 1.", |t| {
        let ended = t.run("-v -c /run/none.conf");
        assert_eq!(ended.code, Some(1));
        assert!(
            ended.stderr[0].contains("/run/none.conf") && ended.stderr[0].contains("No such file"),
            "{ended:?}"
        );
    }),
    Rule::same("interface", "`Interface` in the file selects the interface to listen on.", |t| {
        t.sh("ip link add dummy0 type veth peer name dummy1; ip link set dummy0 up; ip link set dummy1 up");
        t.write(CONFIG, "[options]\ninterface = dummy0\n");
        t.launch_plain();
        t.wait_for("listening on dummy0...");
    }),
];

/// Shows that doors with these lines are refused with status 1.
fn refuses(t: &mut Session, lines: &[&str]) {
    for line in lines {
        let ended = t.refused(&format!("[door]\nsequence = 1\n{line}\n"));
        assert_eq!(ended.code, Some(1), "{line}");
        assert!(!ended.stderr.is_empty(), "{line}");
    }
}
