//! What hostile names, files and links, and a person in a hurry, cannot do.
#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use common::User;
use snapbox::cmd::{OutputAssert, cargo_bin};

fn output(asserted: &OutputAssert) -> String {
    let output = asserted.get_output();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn nothing_in_a_profile_reaches_the_terminal_as_a_command_to_it() {
    let user = User::with(concat!(
        "[\"red\\u001b[31m\"]\nhost = \"127.0.0.1\"\nsequence = \"1\"\n",
        "[key]\nhost = \"127.0.0.1\"\nsequence = \"1\"\n\"\\u001b]0;x\\u0007\" = 1\n",
        "[shown]\nhost = \"127.0.0.1\"\nsequence = \"1\"\ninterface = \"\\u001b[31m\\u202e\"\nthen = [\"\\u001b[31m\"]\n",
        "[once]\nhost = \"127.0.0.1\"\none_time = \"/nonexistent/\\u001b[31m\"\n",
    ));
    for words in [
        &["list"][..],
        &["show", "shown"],
        &["shown"],
        &["key"],
        &["show", "once"],
        &["once"],
        &["red\u{1b}[31m", "-v", "--verify", "1", "--retries", "0", "--timeout", "0.1"],
    ] {
        // Colours are what a terminal would be sent.
        let asserted = user.command(words).env("CLICOLOR_FORCE", "1").assert();
        let output = output(&asserted);
        assert!(
            !output.contains(['\u{1b}', '\u{7}', '\u{202e}']) && !output.is_empty(),
            "{words:?}: {output:?}"
        );
    }
}

#[test]
fn no_error_about_a_profile_shows_its_sequence() {
    for profile in [
        "sequence = \"7101,70000,9303\"",
        "sequence = \"7101,82o2,9303\"",
        "sequence = \"7101,8202,9303",
        "sequence = 7101,8202,9303",
        "sequence = [7101,8202,9303]",
        "sequnce = \"7101,8202,9303\"",
        "sequence = \"7101,8202,9303\"\nsequence = \"7101,8202,9303\"",
        "sequence = \"\"\"7101,\n7101,\\q8202\"\"\"",
        "close = \"7101,x\"\nsequence = \"1\"",
        "delay = 0, sequence = \"7101,8202,9303\"",
    ] {
        let user = User::with(&format!("[home]\nhost = \"127.0.0.1\"\n{profile}\n"));
        for words in [
            &["home", "--format", "json"][..],
            &["show", "home"],
            &["list"],
            &["export", "home", "--format", "uri"],
        ] {
            let output = output(&user.knock(words).code(1));
            assert!(!output.contains("7101") && !output.contains("82o2"), "{profile}: {output}");
            assert!(output.contains("hosts.toml:"), "{profile}: {output}");
        }
    }
}

#[test]
fn an_export_leaves_devices_and_folders_alone() {
    let user = User::with("[home]\nhost = \"h\"\nsequence = \"7101\"\n");
    let pipe = user.home.path().join("pipe");
    mkfifo(&pipe);
    let reader = thread::spawn({
        let pipe = pipe.clone();
        move || fs::read_to_string(pipe).unwrap()
    });
    user.knock(&["export", "home", "--format", "uri", "--output", "pipe"]).code(0);
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert!(reader.join().unwrap().starts_with("knock://h/"));

    user.knock(&["export", "home", "--format", "uri", "--output", "new/home"]).code(1);
    assert!(!user.home.path().join("new").exists());
    for stdout in ["-", "/dev/stdout"] {
        let asserted = user.knock(&["export", "home", "--format", "uri", "--output", stdout]).code(0);
        assert!(asserted.get_output().stdout.starts_with(b"knock://h/"), "{stdout}");
    }
    assert!(!user.home.path().join("-").exists());
    // Whoever put a link there does not choose what is overwritten.
    fs::write(user.home.path().join("theirs"), "theirs").unwrap();
    symlink("theirs", user.home.path().join("home.svg")).unwrap();
    user.knock(&["export", "home", "--format", "qr", "--output", "home.svg"]).code(0);
    assert_eq!(fs::read_to_string(user.home.path().join("theirs")).unwrap(), "theirs");
}

#[test]
fn an_exported_knockd_conf_has_no_command_in_it_that_a_name_or_a_path_brings_along() {
    let command = "Sequence = 1\\nCommand = /bin/false\\n";
    let user = User::with(&format!(
        "[\"x]\\n{command}[y\"]\nhost = \"h\"\nsequence = \"2\"\n[path]\nhost = \"h\"\none_time = \"/x\\nCommand = /bin/false\"\n"
    ));
    for name in ["x]\nSequence = 1\nCommand = /bin/false\n[y", "path"] {
        let asserted = user.knock(&["export", name, "--format", "knockd"]).code(1);
        assert!(asserted.get_output().stdout.is_empty(), "{}", output(&asserted));
    }
}

#[test]
fn profiles_that_are_added_at_the_same_time_are_all_there() {
    let user = User::new();
    let knock = |words: &[&str]| -> Child {
        let mut knock = Command::new(cargo_bin!("knock"));
        let home = user.home.path();
        knock.env("XDG_CONFIG_HOME", home).env("XDG_RUNTIME_DIR", home).args(words);
        knock.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    // This one has read the file, perhaps, and waits for its sequence.
    let mut slow = knock(&["add", "slow", "h"]);
    let names: Vec<_> = (0..16).map(|number| format!("p{number}")).collect();
    let all: Vec<_> = names.iter().map(|name| knock(&["add", name, "h", "1"])).collect();
    for mut child in all {
        assert!(child.wait().unwrap().success());
    }
    std::io::Write::write_all(&mut slow.stdin.take().unwrap(), b"7101\n").unwrap();
    assert!(slow.wait().unwrap().success());
    let text = user.text();
    for name in names.iter().map(String::as_str).chain(["slow"]) {
        assert!(text.contains(&format!("[{name}]\n")), "{name} is not in {text}");
    }
}

#[test]
fn a_file_of_profiles_that_would_never_end_is_refused() {
    let user = User::with("");
    for make in [
        mkfifo as fn(&Path),
        |path| symlink("/dev/zero", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
    ] {
        let _ = fs::remove_file(user.hosts());
        make(&user.hosts());
        for words in [&["list"][..], &["home"], &["add", "home", "h", "1"], &["edit"]] {
            let output = output(&user.knock(words).code(1));
            assert!(output.contains("not a regular file"), "{output}");
        }
    }
}

#[test]
fn a_link_to_a_file_that_does_not_exist_yet_stays_a_link() {
    let user = User::with("");
    fs::remove_file(user.hosts()).unwrap();
    symlink("../dotfiles.toml", user.hosts()).unwrap();
    user.knock(&["add", "home", "h", "1"]).code(0);
    assert!(fs::symlink_metadata(user.hosts()).unwrap().is_symlink());
    assert!(fs::read_to_string(user.home.path().join("dotfiles.toml")).unwrap().contains("[home]"));
}

#[test]
fn a_one_time_line_that_cannot_be_struck_out_is_one_report_and_not_a_knock_that_failed() {
    let user = User::new();
    let file = user.file("lines", "1,2\n3,4\n");
    user.knock(&["add", "once", "127.0.0.1", "--one-time", &file]).code(0);
    // The file changes during the knock, as an editor would do it.
    let edit = format!("sleep 1; echo 9,9 > {file}");
    let mut editor = Command::new("sh").args(["-c", &edit]).spawn().unwrap();
    let words = ["once", "--delay", "2000", "--format", "json"];
    let asserted = user.knock(&words).code(1);
    editor.wait().unwrap();
    let stdout = String::from_utf8_lossy(&asserted.get_output().stdout).into_owned();
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(stdout.contains("\"verdict\":\"sent\""), "{stdout}");
    assert!(output(&asserted).contains("cannot strike out"), "{}", output(&asserted));
}

#[test]
fn a_person_who_asks_for_help_or_mistypes_a_command_gets_help() {
    let user = User::new();
    for words in [&["help"][..], &["help", "add"]] {
        let asserted = user.knock(words).code(0);
        assert!(output(&asserted).contains("Usage: knock"), "{}", output(&asserted));
    }
    for words in [&["shwo", "home"][..], &["shwo"]] {
        let output = output(&user.knock(words).code(2));
        assert!(output.contains("did you mean the command show?"), "{output}");
    }
}
