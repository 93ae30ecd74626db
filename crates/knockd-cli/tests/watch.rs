//! `knockd watch` in a terminal, used by keys.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Knockd, hit, knockd_and_tools, sh, wait_until};
use testbed::Net;

const DOORS: &str = "\
[ssh]
sequence = 7101,8202,9303
start_command = echo open %IP%
stop_command = test -e /run/works || { echo no such rule >&2; exit 3; }; echo close %IP%
cmd_timeout = 600
";

/// `knockd watch` on the server, in a terminal that is drawn by tmux.
struct Terminal<'a>(&'a Net);

impl<'a> Terminal<'a> {
    fn start(net: &'a Net, columns: u16, lines: u16) -> Self {
        let knockd = knockd_and_tools();
        let script = format!(
            "tmux -S /run/tmux -f /dev/null new-session -d -x {columns} -y {lines} \"env TERM=screen '{knockd}' watch\""
        );
        sh(&net.server, &script);
        Self(net)
    }

    fn press(&self, keys: &str) {
        sh(&self.0.server, &format!("tmux -S /run/tmux send-keys {keys}"));
    }

    fn screen(&self) -> String {
        sh(&self.0.server, "tmux -S /run/tmux capture-pane -p 2>/dev/null || true")
    }

    /// Waits until the screen has this text, and returns it.
    fn wait_for(&self, text: &str) -> String {
        let mut screen = String::new();
        wait_until(&format!("`{text}` on the screen"), || {
            screen = self.screen();
            screen.contains(text)
        });
        screen
    }
}

fn has_tmux(net: &Net) -> bool {
    // This may take longer than a scanner stays one.
    knockd_and_tools();
    let is_there = net.server.run(&["tmux", "-V"]).is_ok();
    if !is_there {
        testbed::skip_until_installed("tmux");
    }
    is_there
}

#[test]
fn doors_are_extended_and_closed_and_scanners_forgiven_by_keys_and_only_after_a_yes() {
    let net = Net::new().unwrap();
    if !has_tmux(&net) {
        return;
    }
    sh(&net.server, "touch /run/works");
    let mut knockd = Knockd::start(&net, DOORS);
    hit(&net, 2, &[7101, 8202, 9303]);
    knockd.wait_for_output("open 10.9.0.2");
    hit(&net, 3, &(100..111).collect::<Vec<_>>());
    knockd.wait_for("10.9.0.3: scanner");
    let terminal = Terminal::start(&net, 80, 24);
    let screen = terminal.wait_for("closes in ");
    for text in ["Open doors: 1", "Scanners: 1", "10.9.0.2: ssh: OPEN SESAME", "10.9.0.3: scanner: ignored"] {
        assert!(screen.contains(text), "{text} in {screen}");
    }
    for port in ["7101", "8202", "9303"] {
        assert!(!screen.contains(port), "{port} in {screen}");
    }
    terminal.press("e");
    terminal.wait_for("extend ssh for 10.9.0.2 by its Cmd_Timeout? y/n");
    terminal.press("y");
    terminal.wait_for("extended 1 open door");
    terminal.press("c");
    terminal.wait_for("close ssh for 10.9.0.2? y/n");
    terminal.press("n");
    terminal.wait_for("c close  e extend");
    terminal.press("c y");
    knockd.wait_for_output("close 10.9.0.2");
    assert_eq!(knockd.count("): close ssh 10.9.0.2"), 1, "once, after the yes");
    terminal.wait_for("Open doors: 0");
    terminal.press("Tab Tab f");
    terminal.wait_for("forgive 10.9.0.3? y/n");
    terminal.press("y");
    terminal.wait_for("10.9.0.3 is no longer ignored");
    hit(&net, 3, &[7101, 8202, 9303]);
    knockd.wait_for_output("open 10.9.0.3");
    terminal.wait_for("Open doors: 1");
    terminal.press("q");
    wait_until("it has ended", || terminal.screen().is_empty());
}

#[test]
fn on_a_small_terminal_a_door_that_may_still_be_open_comes_first_and_lists_are_scrolled() {
    let net = Net::new().unwrap();
    if !has_tmux(&net) {
        return;
    }
    let mut knockd = Knockd::start(&net, DOORS);
    hit(&net, 2, &[7101, 8202, 9303]);
    knockd.wait_for_output("open 10.9.0.2");
    wait_until("the stop command is given up", || {
        sh(&net.server, &format!("'{}' close --all 2>&1 || true", common::KNOCKD));
        knockd.count("giving up on stop command") == 1
    });
    for source in 3..40 {
        hit(&net, source, &[7101, 8202, 9303]);
        knockd.wait_for_output(&format!("open 10.9.0.{source}"));
    }
    let terminal = Terminal::start(&net, 40, 10);
    let screen = terminal.wait_for("ssh may still be open for 10.9.0.2");
    assert!(screen.lines().nth(1).unwrap().starts_with("! ssh may still be open for 10.9.0.2"), "{screen}");
    terminal.wait_for("Open doors: 37 (1 of 37)");
    terminal.press("End");
    let screen = terminal.wait_for("Open doors: 37 (37 of 37)");
    assert!(screen.contains("10.9.0.39") && !screen.contains("10.9.0.3 "), "{screen}");
    terminal.press("BTab");
    terminal.wait_for("stop command failed");
    terminal.press("End");
    // Lines are broken between words.
    terminal.wait_for("dismiss ssh 10.9.0.2");
    terminal.press("d");
    terminal.wait_for("is ssh closed for 10.9.0.2? y/n");
    terminal.press("y");
    terminal.wait_for("dismissed 1 problem");
    wait_until("the problem is gone", || !terminal.screen().contains("may still be open"));
    terminal.wait_for("Open doors: 37");
}
