//! One-time sequences.

use conformance::{CONFIG, Rule, Session, Topic};

pub(crate) const TOPIC: Topic = Topic { name: "one_time", title: "One-time sequences", rules: RULES };

const FILE: &str = "/run/sequences";
const DOOR: &str = "[door]\none_time_sequences = /run/sequences\n";

const RULES: &[Rule] = &[
    Rule::same(
        "one_after_the_other",
        "The first line of the file is the sequence. Once knocked, its first byte is overwritten with \
         `#`, and the next line becomes current.",
        |t| {
            t.write(FILE, " 1,2\n 3,4\n 5,6\n");
            t.start(DOOR);
            assert_eq!(t.opened_by("3 4 1 2"), "door");
            assert_file(t, "#1,2\n 3,4\n 5,6\n");
            assert_eq!(t.opened_by("1 2 3 4"), "door");
            assert_file(t, "#1,2\n#3,4\n 5,6\n");
        },
    ),
    Rule::same("only_a_whole_knock", "Failed attempts use up nothing.", |t| {
        t.write(FILE, " 1,2,3\n 4,5,6\n");
        t.start(DOOR);
        assert_eq!(t.opened_by("1 3 2 1 2"), "");
        assert_file(t, " 1,2,3\n 4,5,6\n");
        assert_eq!(t.opened_by("1<10.9.0.3 2<10.9.0.3 3<10.9.0.3"), "door");
    }),
    Rule::same(
        "lines_that_do_not_count",
        "Empty lines and lines that start with `#`, even after spaces, are skipped.",
        |t| {
            t.write(FILE, "# comment\n#1,2\n\n   \n  # 3,4\n\t5,6\n 7,8\n");
            t.start(DOOR);
            assert_eq!(t.opened_by("1 2 3 4"), "");
            assert_eq!(t.opened_by("5 6"), "door");
            assert_file(t, "# comment\n#1,2\n\n   \n  # 3,4\n#5,6\n 7,8\n");
        },
    ),
    Rule::same(
        "spelling",
        "Lines may contain protocols, spaces, Windows line endings, and text after white space.",
        |t| {
            t.write(FILE, " 1:udp , 2:TCP\r\n 3,4 # mine\n 5,6\n");
            t.start(DOOR);
            assert_eq!(t.opened_by("1u 2"), "door");
            assert_eq!(t.opened_by("3 4"), "door");
            assert_file(t, "#1:udp , 2:TCP\r\n#3,4 # mine\n 5,6\n");
        },
    ),
    Rule::same(
        "without_a_leading_space",
        "Without a leading space, the `#` replaces the first digit.",
        |t| {
            t.write(FILE, "1,2\n3,4\n");
            t.start(DOOR);
            assert_eq!(t.opened_by("1 2"), "door");
            assert_file(t, "#,2\n3,4\n");
        },
    ),
    Rule::same("no_last_newline", "The last line needs no newline.", |t| {
        t.write(FILE, "#1,2\n 3,4");
        t.start(DOOR);
        t.send("3 4");
        t.wait_for("door: OPEN SESAME");
        t.wait_for_file(FILE, "#1,2\n#3,4");
    }),
    Rule::differs(
        "used_up",
        "When the last sequence has been used, the program crashes.",
        "The door is disabled, a message says so, and the other doors keep working.",
        |t| {
            t.write(FILE, " 1,2\n");
            t.start(&format!("{DOOR}[other]\nsequence = 7"));
            t.send("1 2");
            t.wait_for(
                "no more sequences left in the one time sequences file for door door --> disabling the door",
            );
            t.send("7");
            if t.pick(true, false) {
                t.settle();
                t.lines();
                assert_eq!(t.opened_by("1 2 7"), "other");
            } else {
                // SIGABRT, as `nsenter` passes it on.
                assert_ne!(t.ended().code, Some(0));
            }
        },
    ),
    Rule::differs(
        "used_up_at_the_start",
        "A file without a usable line is an error at startup.",
        "The door is disabled, a message says so, and the other doors keep working. Otherwise, a restart \
         after the last knock would disable the other doors and leave open what an earlier run had \
         opened.",
        |t| {
            for text in ["", "#1,2\n", "\n\n"] {
                t.write(FILE, text);
                if t.pick(true, false) {
                    t.start(&format!("{DOOR}[other]\nsequence = 7"));
                    t.wait_for("for door door --> disabling the door");
                    t.lines();
                    assert_eq!(t.opened_by("1 2 7"), "other");
                } else {
                    let ended = t.refused(DOOR);
                    assert_eq!(ended.code, Some(1), "{text:?}");
                    assert!(ended.stderr.join("\n").contains("door"), "{ended:?}");
                }
            }
        },
    ),
    Rule::same("nothing_to_begin_with", "A file that is missing at startup is an error.", |t| {
        let ended = t.refused("[door]\none_time_sequences = /run/none\n");
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.join("\n").contains("/run/none: No such file or directory"), "{ended:?}");
        assert_eq!(t.refused("[door]\none_time_sequences =\n").code, Some(1));
    }),
    Rule::differs(
        "a_bad_line",
        "An invalid line is skipped, but it is the line that is struck out when the next one is used, so \
         that knock can be used again.",
        "The line that was used is struck out.",
        |t| {
            t.write(FILE, " 1:sctp\n 2,3\n 4,5\n");
            t.start(DOOR);
            assert_eq!(t.opened_by("2 3"), "door");
            assert_file(t, t.pick(" 1:sctp\n#2,3\n 4,5\n", "#1:sctp\n 2,3\n 4,5\n"));
            assert_eq!(t.opened_by("2 3"), t.pick("", "door"));
        },
    ),
    Rule::differs(
        "a_line_of_text",
        "A line of text counts as a sequence with port 0.",
        "It is skipped with a warning.",
        |t| {
            t.write(FILE, " hello\n 1,2\n 3,4\n");
            t.start(DOOR);
            assert_eq!(t.opened_by("0"), t.pick("", "door"));
        },
    ),
    Rule::same(
        "the_command_sees_it",
        "By the time the start command reads the file, the line is struck out.",
        |t| {
            t.write(FILE, " 1,2\n 3,4\n");
            t.start(&format!("{DOOR}command = sleep 0.5; head -n 1 /run/sequences"));
            t.send("1 2");
            t.wait_for("running command");
            t.wait_for("#1,2");
        },
    ),
    Rule::differs(
        "an_attempt_meanwhile",
        "An attempt by another source continues at the same stage of the next sequence.",
        "It is dropped, because its first steps belong to a used sequence.",
        |t| {
            t.write(FILE, " 1,2,3\n 1,2,4\n 5,6,7\n");
            t.start(DOOR);
            assert_eq!(t.opened_by("1<10.9.0.3 2<10.9.0.3 1 2 3"), "door");
            assert_eq!(t.opened_by("4<10.9.0.3"), t.pick("", "door"));
        },
    ),
    Rule::same(
        "together_with_a_sequence",
        "If a door has both `Sequence` and `One_Time_Sequences`, the last one wins.",
        |t| {
            t.write(FILE, " 1,2\n 3,4\n");
            t.start("[door]\nsequence = 8,9\none_time_sequences = /run/sequences");
            assert_eq!(t.opened_by("8 9 1 2"), "door");
            t.start("[door]\none_time_sequences = /run/sequences\nsequence = 8,9");
            assert_eq!(t.opened_by("3 4 8 9"), "door");
        },
    ),
    Rule::differs(
        "a_sequence_given_last",
        "If `Sequence` follows `One_Time_Sequences`, it works only once: after its first knock the file \
         applies.",
        "It stays in effect.",
        |t| {
            t.write(FILE, " 1,2\n 3,4\n");
            t.start("[door]\none_time_sequences = /run/sequences\nsequence = 8,9");
            assert_eq!(t.opened_by("8 9"), "door");
            assert_eq!(t.opened_by("8 9"), t.pick("door", ""));
        },
    ),
    Rule::same("a_file_that_cannot_be_written", "A file that is not writable at startup is an error.", |t| {
        t.sh("mkdir /run/ro; mount -t tmpfs tmpfs /run/ro; echo ' 1,2' >/run/ro/file; mount -o remount,ro tmpfs /run/ro");
        assert!(!t.accepts("[door]\none_time_sequences = /run/ro/file\n"));
    }),
    Rule::same("after_a_restart", "Struck-out lines stay used after a restart.", |t| {
        t.write(FILE, " 1,2\n 3,4\n 5,6\n");
        t.start(DOOR);
        assert_eq!(t.opened_by("1 2"), "door");
        t.signal(nix::sys::signal::Signal::SIGTERM);
        t.ended();
        t.launch_plain();
        t.wait_for("listening on");
        t.lines();
        assert_eq!(t.opened_by("1 2 3 4"), "door");
        assert!(t.sh(&format!("cat {CONFIG}")).contains(FILE));
    }),
];

/// Waits until the file is this. Ours is written to by a thread of its own, before the command runs.
fn assert_file(t: &Session, text: &str) {
    t.wait_until(&format!("{FILE} is {text:?}"), |t| t.net.server.run(&["cat", FILE]).unwrap() == text);
}
