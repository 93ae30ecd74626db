//! What `knock` does with a hosts.toml. Packets go to the loopback interface only.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::needless_raw_string_hashes, reason = "snapbox writes its snapshots with them")]

mod common;

use std::fs;
use std::path::Path;

use common::User;
use snapbox::str;

const HOME: &str = r#"
# my server
[home]
host = "127.0.0.1"
sequence = "7101,8202:udp, 9303"   # secret
close = "9303,7101"
family = "ipv4"
"#;

#[test]
fn a_profile_stands_for_a_host_and_its_ports_which_are_not_shown() {
    let user = User::with(HOME);
    user.knock(&["home"]).code(0).stdout_eq("").stderr_eq("");
    user.knock(&["-v", "home"]).code(0).stderr_eq("").stdout_eq(str![[r#"
hitting step 1 of 3 at 127.0.0.1
hitting step 2 of 3 at 127.0.0.1
hitting step 3 of 3 at 127.0.0.1

"#]]);
    user.knock(&["home", "-v", "--close"]).code(0).stderr_eq("").stdout_eq(str![[r#"
hitting step 1 of 2 at 127.0.0.1
hitting step 2 of 2 at 127.0.0.1

"#]]);
}

#[test]
fn an_option_of_the_line_overrides_the_profile() {
    let user = User::with(HOME);
    user.knock(&["-6", "home"]).code(1).stdout_eq("").stderr_eq(str![[r#"
knock: cannot resolve host "127.0.0.1" to an IPv6 address: [..]

"#]]);
}

#[test]
fn a_word_that_is_no_profile_is_a_usage_error() {
    User::new().knock(&["192.0.2.1"]).code(2).stdout_eq("").stderr_eq(str![[r#"
knock: no profile "192.0.2.1" in [HOSTS]; to knock at a host, add its ports: knock 192.0.2.1 PORT...

"#]]);
    User::with(HOME).knock(&["hone"]).code(2).stdout_eq("").stderr_eq(str![[r#"
knock: no profile "hone" in [HOSTS]; did you mean "home"?
knock: to knock at a host, add its ports: knock hone PORT...

"#]]);
}

#[test]
fn a_closing_sequence_is_knocked_only_where_there_is_one() {
    let user = User::with("[home]\nhost = \"127.0.0.1\"\nsequence = \"7101\"\n");
    user.knock(&["--close", "home"]).code(1).stdout_eq("").stderr_eq(str![[r#"
knock: no closing sequence in profile "home"; add one: knock edit home --close PORT,...

"#]]);
    user.knock(&["--close", "127.0.0.1", "7101"]).code(2).stdout_eq("").stderr_eq(str![[r#"
knock: --close needs a profile; to knock the closing sequence of a host, give its ports

"#]]);
}

#[cfg(unix)]
#[test]
fn a_file_that_others_can_use_gets_a_warning() {
    let user = User::with(HOME);
    user.set_mode(0o640);
    user.knock(&["home"]).code(0).stdout_eq("").stderr_eq(str![[r#"
knock: warning: [HOSTS] can be read by others; run: chmod 600 [HOSTS]

"#]]);
    user.set_mode(0o622);
    user.knock(&["home"]).code(0).stdout_eq("").stderr_eq(str![[r#"
knock: warning: [HOSTS] can be changed by others; run: chmod 600 [HOSTS]

"#]]);
}

#[cfg(unix)]
#[test]
fn a_one_time_file_that_others_can_read_gets_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let user = User::new();
    let lines = user.file("lines", "7101\n7102\n");
    fs::set_permissions(&lines, fs::Permissions::from_mode(0o644)).unwrap();
    user.knock(&["add", "once", "127.0.0.1", "--one-time", &lines]).code(0);
    user.knock(&["once"]).code(0).stdout_eq("").stderr_eq(str![[r#"
knock: warning: [HOME]/lines can be read by others; run: chmod 600 [HOME]/lines

"#]]);
    fs::set_permissions(&lines, fs::Permissions::from_mode(0o600)).unwrap();
    user.knock(&["once"]).code(0).stdout_eq("").stderr_eq("");
}

#[test]
fn what_is_wrong_in_a_profile_is_shown_at_its_place() {
    let wrong = r#"[a]
host = "my server"
sequence = "7101,82O2:udp"
dealy = 5
delay = "200"
family = "ipv5"
verify = "udp/53"
retries = -1
timeout = 0
then = "ssh home"
tcpflags = "syn,foo"
connect = 1
source = "eth0"
one_time = "x"

[b]
delay = 1

[good]
host = "127.0.0.1"
sequence = "7101"
"#;
    let user = User::with(wrong);
    user.knock(&["good"]).code(0).stdout_eq("").stderr_eq("");
    user.knock(&["a"]).code(1).stdout_eq("").stderr_eq(str![[r#"
knock: invalid profile:
[HOSTS]:2:8: error: invalid `host`
  |
2 | host = "my server"
  |        ^^^^^^^^^^^ expected the name or address of a host
[HOSTS]:3:18: error: invalid step 2
  |
3 | sequence = "****,****:***"
  |                  ^^^^ expected 0 to 65535 or a service name
[HOSTS]:4:1: error: unknown key `dealy`
  |
4 | dealy = *
  | ^^^^^ expected a key of a profile
  |
  = help: did you mean `delay`?
[HOSTS]:5:9: error: invalid `delay`
  |
5 | delay = "200"
  |         ^^^^^ expected a non-negative whole number of milliseconds
[HOSTS]:6:10: error: invalid `family`
  |
6 | family = "ipv5"
  |          ^^^^^^ expected ipv4, ipv6 or both
[HOSTS]:7:10: error: a UDP service need not answer, so nothing tells whether it is open
  |
7 | verify = "udp/53"
  |          ^^^^^^^^ expected a TCP service, such as tcp/22
[HOSTS]:8:11: error: invalid `retries`
  |
8 | retries = -1
  |           ^^ expected a non-negative whole number
[HOSTS]:9:11: error: invalid `timeout`
  |
9 | timeout = 0
  |           ^ expected a positive whole number of seconds
[HOSTS]:10:8: error: invalid `then`
   |
10 | then = "ssh home"
   |        ^^^^^^^^^^ expected a program and its arguments, such as ["ssh", "home"]
[HOSTS]:11:12: error: "foo" is not a TCP flag
   |
11 | tcpflags = "syn,foo"
   |            ^^^^^^^^^ expected fin, syn, rst, psh, ack, urg or none
[HOSTS]:12:11: error: invalid `connect`
   |
12 | connect = 1
   |           ^ expected true or false
[HOSTS]:13:10: error: invalid `source`
   |
13 | source = "eth0"
   |          ^^^^^^ expected an IP address of this host
[HOSTS]:14:1: error: `sequence` and `one_time` in one profile
   |
14 | one_time = "x"
   | ^^^^^^^^ expected one of them
[HOSTS]:14:12: error: invalid `one_time`
   |
14 | one_time = "x"
   |            ^^^ expected the absolute path of a one-time file

"#]]);
    user.knock(&["b"]).code(1).stdout_eq("").stderr_eq(str![[r#"
knock: invalid profile:
[HOSTS]:16:2: error: no host
   |
16 | [b]
   |  ^ expected `host` in this profile
[HOSTS]:16:2: error: nothing to knock
   |
16 | [b]
   |  ^ expected `sequence` or `one_time` in this profile

"#]]);
}

#[test]
fn a_file_that_is_not_toml_or_has_no_tables_is_shown_at_its_place() {
    for (text, expected) in [
        (
            "host = \"a\"\n",
            str![[r#"
knock: invalid profile:
[HOSTS]:1:1: error: `host` is outside of a profile
  |
1 | host = "a"
  | ^^^^ expected the name of a profile before it, such as [home]

"#]],
        ),
        (
            "[home\nhost = \"a\"\n",
            str![[r#"
knock: invalid profile:
[HOSTS]:1:6: error: unclosed table
  |
1 | [home
  |      ^ expected `]`

"#]],
        ),
        (
            "[home]\nhost = server\n",
            str![[r#"
knock: invalid profile:
[HOSTS]:2:8: error: text without quotation marks
  |
2 | host = server
  |        ^^^^^^ expected quotation marks around it

"#]],
        ),
        (
            "[home]\nhost = \"a\n",
            str![[r#"
knock: invalid profile:
[HOSTS]:2:10: error: invalid basic string
  |
2 | host = "a
  |          ^ expected `"`

"#]],
        ),
        (
            "[home]\nhost = \"a\"\nhost = \"b\"\n",
            str![[r#"
knock: invalid profile:
[HOSTS]:3:1: error: duplicate name
  |
3 | host = "b"
  | ^^^^ expected each name once

"#]],
        ),
        (
            "[home]\nhost = \"a\"\n[home]\n",
            str![[r#"
knock: invalid profile:
[HOSTS]:3:2: error: duplicate name
  |
3 | [home]
  |  ^^^^ expected each name once

"#]],
        ),
    ] {
        User::with(text).knock(&["home"]).code(1).stdout_eq("").stderr_eq(expected);
    }
}

#[test]
fn lines_of_a_one_time_file_are_struck_out_as_they_are_used() {
    let user = User::new();
    let file = user.home.path().join("lines");
    fs::write(&file, "7101,8202:udp\n9303\n").unwrap();
    User::make_private(&file);
    fs::create_dir_all(user.hosts().parent().unwrap()).unwrap();
    let text = format!("[once]\nhost = \"127.0.0.1\"\none_time = '{}'\n", file.display());
    fs::write(user.hosts(), text).unwrap();
    user.set_mode(0o600);
    for left in ["#101,8202:udp\n9303\n", "#101,8202:udp\n#303\n"] {
        user.knock(&["once"]).code(0).stdout_eq("").stderr_eq("");
        assert_eq!(fs::read_to_string(&file).unwrap(), left);
    }
    user.knock(&["once"]).code(1).stdout_eq("").stderr_eq(str![[r#"
knock: no sequence left in one-time file [..]lines; get a new file from the server

"#]]);
}

#[test]
fn a_path_of_a_one_time_file_is_absolute() {
    let user = User::with("[once]\nhost = \"127.0.0.1\"\none_time = 'lines'\n");
    user.knock(&["once"]).code(1).stdout_eq("").stderr_eq(str![[r#"
knock: invalid profile:
[HOSTS]:3:12: error: invalid `one_time`
  |
3 | one_time = 'lines'
  |            ^^^^^^^ expected the absolute path of a one-time file

"#]]);
    assert!(Path::new(&user.hosts()).is_file() && !user.text().is_empty());
}
