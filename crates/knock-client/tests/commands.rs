//! The commands with which a person keeps profiles.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::too_many_lines, reason = "tests")]
#![allow(clippy::needless_raw_string_hashes, reason = "snapbox writes its snapshots with them")]

mod common;

use std::fs;
use std::path::Path;

use common::User;
use snapbox::str;

#[test]
fn a_profile_is_added_with_a_sequence_from_a_pipe_and_shown_without_it() {
    let user = User::new();
    let add =
        user.command(&["add", "home", "gate.example.com", "--verify", "22", "--then", "ssh", "-v", "home"]);
    add.stdin("7101,8202:udp 9303\n").assert().code(0).stdout_eq("").stderr_eq(str![[r#"
knock: added home to [HOSTS]; to knock, run: knock home

"#]]);
    assert_eq!(
        user.text(),
        r#"[home]
host = "gate.example.com"
sequence = "7101,8202:udp,9303"
verify = "tcp/22"
then = ["ssh", "-v", "home"]
"#
    );
    user.knock(&["list"]).code(0).stderr_eq("").stdout_eq(str![[r#"
home  gate.example.com  3 steps  tcp/22

"#]]);
    user.knock(&["show", "home"]).code(0).stderr_eq("").stdout_eq(str![[r#"
home
  host      gate.example.com
  sequence  3 steps
  verify    tcp/22
  then      ["ssh", "-v", "home"]

"#]]);
    user.knock(&["show", "home", "--reveal"])
        .code(0)
        .stderr_eq(str![[r#"
knock: warning: anyone who sees this can knock at home

"#]])
        .stdout_eq(str![[r#"
home
  host      gate.example.com
  sequence  7101,8202:udp,9303
  verify    tcp/22
  then      ["ssh", "-v", "home"]

"#]]);
}

#[test]
fn a_sequence_on_the_command_line_is_taken_with_a_warning() {
    let user = User::new();
    let added = user.knock(&["add", "home", "192.0.2.1", "7101", "8202:udp"]);
    added.code(0).stdout_eq("").stderr_eq(str![[r#"
knock: warning: the sequence may be in your shell's history, and other users could see it while knock ran
knock: added home to [HOSTS]; to knock, run: knock home

"#]]);
    assert!(user.text().contains("sequence = \"7101,8202:udp\""), "{}", user.text());
}

#[cfg(unix)]
#[test]
fn the_file_and_its_folder_are_readable_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let user = User::new();
    user.knock(&["add", "home", "192.0.2.1", "7101"]).code(0);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&user.hosts()), 0o600);
    assert_eq!(mode(user.hosts().parent().unwrap()), 0o700);
}

#[cfg(unix)]
#[test]
fn a_link_to_the_file_stays_a_link() {
    let user = User::with("");
    let elsewhere = user.home.path().join("dotfiles.toml");
    fs::rename(user.hosts(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, user.hosts()).unwrap();
    user.knock(&["add", "home", "192.0.2.1", "7101"]).code(0);
    assert!(user.hosts().is_symlink());
    assert!(fs::read_to_string(elsewhere).unwrap().contains("[home]"));
}

#[test]
fn nothing_is_added_from_bad_input() {
    let user = User::with("[home]\nhost = \"a\"\nsequence = \"1\"\n");
    let before = user.text();
    for (words, stdin, code, expected) in [
        (
            &["add", "home", "b", "1"][..],
            "",
            1,
            str![[r#"
knock: profile "home" exists in [HOSTS]; to change it, run: knock edit home

"#]],
        ),
        (
            &["add", "list", "b", "1"],
            "",
            2,
            str![[r#"
error: invalid value 'list' for '<NAME>': "list" is a command of knock; expected a name such as home, without blanks

For more information, try '--help'.

"#]],
        ),
        (
            &["add", "my home", "b", "1"],
            "",
            2,
            str![[r#"
error: invalid value 'my home' for '<NAME>': "my home" has a blank or a control character in it; expected a name such as home, without blanks

For more information, try '--help'.

"#]],
        ),
        (
            &["add", "x", "b"],
            "",
            2,
            str![[r#"
knock: empty sequence; expected ports, such as 7101,8202:udp

"#]],
        ),
        (
            &["add", "x", "b"],
            "7101,82x,9303",
            2,
            str![[r#"
knock: invalid step 2; expected 0 to 65535 or a service name

"#]],
        ),
        (
            &["add", "x", "b", "7101,82x"],
            "",
            2,
            str![[r#"
knock: invalid port "82x"; expected 0 to 65535 or a service name

"#]],
        ),
        (
            &["add", "x", "b", "1", "--one-time", "y"],
            "",
            2,
            str![[r#"
knock: ports and --one-time; expected one of them

"#]],
        ),
        (
            &["add", "x", "a b", "1"],
            "",
            2,
            str![[r#"
error: invalid value 'a b' for '<HOST>': expected the name or address of a host

For more information, try '--help'.

"#]],
        ),
        (
            &["add", "x", "knock://b"],
            "",
            1,
            str![[r#"
knock: not a knock:// link; expected knock://HOST/NAME?v=p1&sequence=PORT,...

"#]],
        ),
        (
            &["add", "x", "knock://b?v=p1&sequence=1", "2"],
            "",
            2,
            str![[r#"
knock: a link has a sequence of its own; expected no ports

"#]],
        ),
        (
            &["show", "hme"],
            "",
            2,
            str![[r#"
knock: no profile "hme" in [HOSTS]; did you mean "home"?

"#]],
        ),
        (
            &["remove", "x"],
            "",
            2,
            str![[r#"
knock: no profile "x" in [HOSTS]

"#]],
        ),
        (
            &["edit", "x", "--delay", "1"],
            "",
            2,
            str![[r#"
knock: no profile "x" in [HOSTS]

"#]],
        ),
        (
            &["edit", "--delay", "1"],
            "",
            2,
            str![[r#"
knock: options without a profile; expected: knock edit NAME ...

"#]],
        ),
        (
            &["export", "x", "--format", "uri"],
            "",
            2,
            str![[r#"
knock: no profile "x" in [HOSTS]

"#]],
        ),
        (
            &["export", "home", "--format", "qr", "--output", "x.gif"],
            "",
            2,
            str![[r#"
knock: unknown kind of picture x.gif; expected .png or .svg

"#]],
        ),
    ] {
        user.command(words).stdin(stdin).assert().code(code).stdout_eq("").stderr_eq(expected);
        assert_eq!(user.text(), before, "{words:?}");
    }
}

#[test]
fn without_profiles_list_says_how_to_add_one() {
    User::new().knock(&["list"]).code(0).stdout_eq("").stderr_eq(str![[r#"
knock: no profile in [HOSTS]; to add one, run: knock add NAME HOST

"#]]);
}

#[test]
fn comments_and_order_survive_edits() {
    let user = User::with(
        "# mine\n\n[b]   # second\nsequence = '1'  # secret\nhost = \"h\"\ndelay = 5 # ms\n\n[a]\nhost = \"h\"\nsequence = \"2\"\n",
    );
    user.knock(&["edit", "b", "--delay", "6", "--lease", "30"]).code(0);
    user.knock(&["add", "c", "h", "3"]).code(0);
    user.knock(&["edit", "a", "--host", "i"]).code(0);
    assert_eq!(
        user.text(),
        "# mine\n\n[b]   # second\nsequence = '1'  # secret\nhost = \"h\"\ndelay = 6 # ms\nlease = 30\n\n[a]\n\
         host = \"i\"\nsequence = \"2\"\n\n[c]\nhost = \"h\"\nsequence = \"3\"\n"
    );
    user.knock(&["remove", "b"]).code(0);
    assert!(
        user.text().ends_with("[a]\nhost = \"i\"\nsequence = \"2\"\n\n[c]\nhost = \"h\"\nsequence = \"3\"\n")
    );
}

#[test]
fn a_new_sequence_can_come_from_a_pipe_and_a_one_time_file_takes_its_place() {
    let user = User::with("[a]\nhost = \"h\"\nsequence = \"2\"\n");
    user.command(&["edit", "a", "--sequence"]).stdin("7,8:udp").assert().code(0);
    assert_eq!(user.text(), "[a]\nhost = \"h\"\nsequence = \"7,8:udp\"\n");
    user.knock(&["edit", "a", "--one-time", "lines"]).code(0);
    let path = user.home.path().join("lines");
    assert_eq!(user.text(), format!("[a]\nhost = \"h\"\none_time = \"{}\"\n", path.display()));
}

/// An editor that runs this sed script on the file.
#[cfg(unix)]
fn editor(user: &User, script: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = user.file("editor", &format!("#!/bin/sh\nsed -i '{script}' \"$1\"\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

#[cfg(unix)]
fn files(user: &User) -> usize {
    fs::read_dir(user.hosts().parent().unwrap()).unwrap().count()
}

#[cfg(unix)]
#[test]
fn an_editor_changes_the_file_only_to_a_valid_one_and_nothing_is_lost() {
    let user = User::with("[a]\nhost = \"h\" # here\nsequence = \"2\"\n");
    let before = user.text();
    let edit = |script| user.command(&["edit", "a"]).env("EDITOR", editor(&user, script)).stdin("").assert();
    edit("").code(0).stdout_eq("").stderr_eq("knock: nothing changed\n");
    edit("s/\"2\"/\"x2\"/").code(1).stdout_eq("").stderr_eq(str![[r#"
knock: invalid profile:
[HOSTS]:3:13: error: invalid step 1
  |
3 | sequence = "**"
  |             ^^ expected 0 to 65535 or a service name
knock: the file is as it was; your version is in [HOME]/knock/hosts-[..].toml

"#]]);
    assert_eq!((user.text(), files(&user)), (before.clone(), 2));
    edit("s/\"2\"/\"3\"/").code(0).stdout_eq("").stderr_eq("knock: changed [HOSTS]\n");
    assert_eq!((user.text(), files(&user)), (before.replace("\"2\"", "\"3\""), 2));
}

#[cfg(unix)]
#[test]
fn an_editor_that_fails_changes_nothing() {
    let user = User::with("[a]\nhost = \"h\"\nsequence = \"2\"\n");
    let edit = |editor: &str| user.command(&["edit"]).env("EDITOR", editor).stdin("").assert();
    edit("false").code(1).stderr_eq(str![[r#"
knock: the editor failed, exit status: 1; nothing changed

"#]]);
    edit("/nonexistent/editor --wait").code(1).stderr_eq(str![[r#"
knock: cannot run the editor "/nonexistent/editor --wait": No such file or directory; to use another one, set EDITOR

"#]]);
    assert_eq!(files(&user), 1);
}

#[cfg(unix)]
#[test]
fn a_file_that_is_no_toml_can_be_mended_in_the_editor() {
    let user = User::with("[a\nhost = \"h\"\nsequence = \"2\"\n");
    let edit = user.command(&["edit", "a"]).env("EDITOR", editor(&user, "1s/$/]/")).stdin("").assert();
    edit.code(0).stderr_eq("knock: changed [HOSTS]\n");
    user.knock(&["show", "a"]).code(0);
}

#[test]
fn a_used_up_one_time_file_is_seen_in_the_list() {
    let user = User::new();
    let lines = user.file("lines", "1,2\n");
    user.knock(&["add", "once", "h", "--one-time", &lines]).code(0);
    user.knock(&["list"]).code(0).stdout_eq("once  h  one-time file\n");
    user.file("lines", "#,2\n");
    user.knock(&["list"]).code(0).stdout_eq("once  h  one-time file (unusable)\n");
    user.knock(&["show", "once"]).code(1).stderr_eq(str![[r#"
knock: no sequence left in one-time file [HOME]/lines; get a new file from the server

"#]]);
}

#[test]
fn a_shell_is_offered_commands_options_and_profiles() {
    let user = User::with("[home]\nhost = \"a\"\nsequence = \"1\"\n[hut]\nhost = \"b\"\nsequence = \"1\"\n");
    let complete = |words: &[&str]| {
        let mut line = vec!["--", "knock"];
        line.extend(words);
        let output =
            user.command(&line).env("KNOCK_COMPLETE", "fish").assert().code(0).get_output().stdout.clone();
        let output = String::from_utf8(output).unwrap();
        output.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["h"]), ["home", "hut"]);
    assert_eq!(complete(&["ex"]), ["export"]);
    for command in ["show", "edit", "remove", "export"] {
        assert_eq!(complete(&[command, "hu"]), ["hut"], "{command}");
    }
    assert_eq!(complete(&["proxy", "--profile", "hu"]), ["hut"]);
    assert_eq!(complete(&["export", "home", "--format", "k"]), ["knockd", "knockonports"]);
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = user.knock(&["completions", shell]).code(0).stderr_eq("").get_output().stdout.clone();
        assert!(String::from_utf8(script).unwrap().contains("KNOCK_COMPLETE"), "{shell}");
    }
}
