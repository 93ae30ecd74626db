//! `knock import`: profiles for the doors of a server's configuration.
#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests")]
#![allow(clippy::needless_raw_string_hashes, reason = "snapbox writes its snapshots with them")]

mod common;

use std::fs;

use common::User;
use snapbox::str;

const SERVER: &str = "
[options]
    Firewall = nftables
[ssh]
    Sequence = 7101,8202:udp,9303
    TCPFlags = syn,!ack
    Open     = udp/60000-60010, tcp/22
    Lease    = 45
[null]
    Sequence      = 1,2
    TCPFlags      = fin,!syn
    Target        = 192.0.2.7
    Start_Command = /bin/true %IP%
    Cmd_Timeout   = 5
    Stop_Command  = /bin/true %IP%
[only start]
    Sequence      = 2,1
    Start_Command = /bin/true %IP%
[once]
    One_Time_Sequences = /etc/knockd.once
";

#[test]
fn the_doors_of_a_server_become_profiles() {
    let user = User::new();
    let conf = user.file("knockd.conf", SERVER);
    let imported = user.knock(&["import", &conf, "--host", "gate.example.com"]);
    imported.code(1).stdout_eq("").stderr_eq(str![[r#"
knock: imported ssh: 3 steps, at gate.example.com, open for 45 s, opens tcp/22
knock: imported null: 2 steps, at gate.example.com, TCP flags fin, which need root to be sent, open for 5 s
knock: imported once: one-time file, at gate.example.com
knock: warning: once: knock needs a copy of its own of the one-time file, at /etc/knockd.once; to use another path, run: knock edit once --one-time FILE
knock: door "only start" is not imported: "only start" has a blank or a control character in it; to give it another name, run: knock import FILE "only start" --name NAME
knock: imported 3 of 4 doors of [HOME]/knockd.conf

"#]]);
    assert_eq!(
        user.text(),
        r#"[ssh]
host = "gate.example.com"
sequence = "7101,8202:udp,9303"
verify = "tcp/22"
lease = 45

[null]
host = "gate.example.com"
sequence = "1,2"
tcpflags = "fin"
lease = 5

[once]
host = "gate.example.com"
one_time = "/etc/knockd.once"
"#
    );
    // Nothing is overwritten.
    let before = user.text();
    user.knock(&["import", &conf, "ssh", "--host", "x"]).code(1).stderr_eq(str![[r#"
knock: door "ssh" is not imported: profile "ssh" exists in [HOSTS]

"#]]);
    assert_eq!(user.text(), before);
}

#[test]
fn one_door_is_imported_with_another_name_and_a_closing_sequence() {
    let user = User::new();
    let conf = user.file("knockd.conf", SERVER);
    let import = ["import", &conf, "null", "--close", "only start", "--name", "home"];
    user.knock(&import).code(0).stdout_eq("").stderr_eq(str![[r#"
knock: imported home: 2 steps, at 192.0.2.7, closed by 2 steps, TCP flags fin, which need root to be sent, open for 5 s

"#]]);
    assert_eq!(
        user.text(),
        r#"[home]
host = "192.0.2.7"
sequence = "1,2"
close = "2,1"
tcpflags = "fin"
lease = 5
"#
    );
}

#[test]
fn what_cannot_be_imported_is_named_with_the_reason() {
    let user = User::new();
    let conf = user.file("knockd.conf", SERVER);
    let broken = user.file("broken.conf", "[ssh]\nSequence = 7101,70000\n");
    for (words, expected) in [
        (
            &["import", &*conf, "sshh"][..],
            str![[r#"
knock: no door "sshh" in [HOME]/knockd.conf; did you mean "ssh"?

"#]],
        ),
        (
            &["import", &*conf, "nothing"],
            str![[r#"
knock: no door "nothing" in [HOME]/knockd.conf; it has "ssh", "null", "only start", "once"

"#]],
        ),
        (
            &["import", &*conf, "ssh"],
            str![[r#"
knock: door "ssh" is not imported: it has no Target, so the server is not known; give its name: --host HOST

"#]],
        ),
        (
            &["import", &*conf, "null", "--close", "once"],
            str![[r#"
knock: door "once" has no fixed sequence, so it cannot close another one

"#]],
        ),
        (
            &["import", &*broken],
            str![[r#"
knock: invalid configuration:
[HOME]/broken.conf:2:17: error: unexpected "70000"
  |
2 | Sequence = 7101,70000
  |                 ^^^^^ expected a port number from 0 to 65535

"#]],
        ),
        (
            &["import", "/nonexistent"],
            str![[r#"
knock: cannot read /nonexistent: No such file or directory

"#]],
        ),
    ] {
        user.knock(words).code(1).stdout_eq("").stderr_eq(expected);
        assert!(!user.hosts().exists(), "{words:?}");
    }
}

#[test]
fn included_files_are_imported_as_well() {
    let user = User::new();
    fs::create_dir(user.home.path().join("d")).unwrap();
    user.file("d/a.conf", "[a]\nSequence = 1\nTarget = 192.0.2.1\n");
    user.file("d/b.conf", "[b]\nSequence = 2\nTarget = 192.0.2.1\n");
    user.file("d/c.txt", "nothing");
    let conf = user.file("knockd.conf", "[options]\nInclude = d/*.conf\nInclude = none/*.conf\n");
    user.knock(&["import", &conf]).code(0).stdout_eq("");
    user.knock(&["list"]).code(0).stdout_eq("a  192.0.2.1  1 step\nb  192.0.2.1  1 step\n");
}
