//! `knock add` asks for a sequence on a terminal.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::User;
use nix::sys::termios::LocalFlags;

/// `knock add home` on a terminal of its own, which echoes until knock tells it not to.
struct Prompt {
    knock: Child,
    /// What a person types goes in, what they see comes out.
    screen: fs::File,
    /// The other end; the terminal is there as long as somebody has it.
    terminal: Option<OwnedFd>,
}

impl Prompt {
    /// Waits until it does not echo any more.
    fn of(user: &User) -> Self {
        let pair = nix::pty::openpty(None, None).unwrap();
        let stream = || Stdio::from(pair.slave.try_clone().unwrap());
        let mut knock = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(snapbox::cmd::cargo_bin!("knock"))
            .args(["add", "home", "192.0.2.1"])
            .env("XDG_CONFIG_HOME", user.home.path())
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .spawn()
            .unwrap();
        let screen = fs::File::from(pair.master);
        while echoes(&screen) && knock.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { knock, screen, terminal: Some(pair.slave) }
    }
}

fn echoes(screen: &fs::File) -> bool {
    nix::sys::termios::tcgetattr(screen).unwrap().local_flags.contains(LocalFlags::ECHO)
}

#[test]
fn a_terminal_does_not_show_the_sequence_that_is_typed() {
    let user = User::new();
    let mut prompt = Prompt::of(&user);
    prompt.screen.write_all(b"7101,8202:udp\n").unwrap();
    prompt.terminal = None;
    let mut screen = Vec::new();
    // It ends with an error when nobody has the terminal any more.
    let _ = prompt.screen.read_to_end(&mut screen);
    let screen = String::from_utf8(screen).unwrap();
    assert!(prompt.knock.wait().unwrap().success(), "{screen}");
    assert!(screen.contains("sequence of home") && !screen.contains("71"), "{screen}");
    assert!(user.text().contains("7101,8202:udp"), "{}", user.text());
}

#[test]
fn a_terminal_echoes_again_after_control_c() {
    let mut prompt = Prompt::of(&User::new());
    assert!(!echoes(&prompt.screen));
    prompt.screen.write_all(b"71\x03").unwrap();
    // setsid(1) waits for knock, and ends as it does.
    assert!(!prompt.knock.wait().unwrap().success());
    assert!(echoes(&prompt.screen));
}
