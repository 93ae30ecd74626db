//! The firewall recipes of README.md and docs/firewall.md, word for word: nothing is closed before the closing command,
//! the door then opens for whoever knocks and for nobody else, and the undo opens the port again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{KNOCKD, Knockd, has_ipv6, knock, sh, wait_until};
use testbed::{Net, Stranger};

const README: &str = include_str!("../../../README.md");
const FIREWALL: &str = include_str!("../../../docs/firewall.md");

/// What a page says below this heading, up to the next one of the same level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let level = heading.split(' ').next().unwrap();
    rest.split(&format!("\n{level} ")).next().unwrap()
}

/// The blocks in a section that are fenced as this language, as they are typed by root of a testbed's host, where only
/// `/run` may be written to.
fn blocks(section: &str, language: &str) -> Vec<String> {
    let fence = format!("\n```{language}\n");
    let fenced = section.split(&fence).skip(1);
    let blocks = fenced.map(|rest| rest.split("\n```").next().unwrap());
    blocks.map(|block| block.replace("sudo ", "").replace("/etc/knockd.", "/run/knockd.")).collect()
}

/// The only such block that has these words.
fn block(section: &str, language: &str, with: &str) -> String {
    let mut found = blocks(section, language);
    found.retain(|block| block.contains(with));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

struct Recipe {
    net: Net,
    stranger: Stranger,
    knockd: Knockd,
    undo: String,
    close: String,
    _service: testbed::Running,
}

impl Recipe {
    /// Prepares the firewall, and shows that a knock works while the port is still open for everybody.
    fn prepare(script: &str, config: &str, close: &str) -> Self {
        let net = Net::new().unwrap();
        let stranger = net.stranger().unwrap();
        let service = net.server.listen(22).unwrap();
        sh(&net.server, script);
        let knockd = Knockd::start_with(&net, config, &["-v", "-i", "any"]);
        // The timer is the service manager's, which a testbed lacks; what it runs is tried.
        let (timed, close) = close.split_once('\n').unwrap();
        let undo = timed.strip_prefix("systemd-run --on-active=5min --unit=undo-close ").unwrap();
        let (undo, close) = (undo.to_owned(), close.to_owned());
        let mut recipe = Self { net, stranger, knockd, undo, close, _service: service };
        recipe.knock("10.9.0.1");
        assert!(recipe.is_open() && recipe.is_open_for_stranger());
        recipe
    }

    fn is_open(&self) -> bool {
        self.net.client.can_connect(self.net.server.ipv4, 22).unwrap()
    }

    fn is_open_for_stranger(&self) -> bool {
        self.stranger.host.can_connect(self.net.server.ipv4, 22).unwrap()
    }

    /// Knocks as the README says.
    fn knock(&mut self, server: &str) {
        let said = section(README, "### 4. Close the port");
        let (_, command) = said.split_once("\n    knock -d 200 server.example.com ").unwrap();
        let (ports, _) = command.split_once(" && ssh").unwrap();
        knock(&self.net.client, &format!("-d 200 {server} {ports}"));
        self.knockd.wait_for("ssh: running command");
    }

    fn close_doors(&mut self) {
        self.net.server.run(&[KNOCKD, "close", "ssh", "--all"]).unwrap();
        let leases = || common::status_json(&self.net)["leases"]["open"] == 0;
        wait_until("no door is open", leases);
        assert_eq!(self.knockd.count("returned non-zero"), 0, "{:#?}", self.knockd.lines());
    }

    /// Shows who gets in while the port is closed.
    fn show_that_only_a_knock_opens(&mut self) {
        wait_until("closed", || !self.is_open() && !self.is_open_for_stranger());
        self.knock("10.9.0.1");
        wait_until("open", || self.is_open());
        assert!(!self.is_open_for_stranger());
        if has_ipv6(&self.net) {
            let server = self.net.server.ipv6;
            assert!(!self.net.client.can_connect(server, 22).unwrap());
            self.knock("fd00:9::1");
            wait_until("open over IPv6", || self.net.client.can_connect(server, 22).unwrap());
        }
        self.close_doors();
        wait_until("closed again", || !self.is_open());
    }

    /// Closes the port while the door of the first knock is still open, shows that only a knock opens it, and undoes
    /// it.
    fn follow(&mut self) {
        sh(&self.net.server, &self.close);
        wait_until("closed for others", || !self.is_open_for_stranger());
        assert!(self.is_open());
        self.close_doors();
        self.show_that_only_a_knock_opens();
        sh(&self.net.server, &self.undo);
        wait_until("undone", || self.is_open() && self.is_open_for_stranger());
    }
}

/// The recipe of the README for nftables.
fn nftables() -> Recipe {
    let (door, close) = (section(README, "#### With nftables"), section(README, "### 4. Close the port"));
    let script =
        format!("cat >/run/knockd.nft <<'END'\n{}\nEND\nnft -f /run/knockd.nft", block(door, "nft", "table"));
    Recipe::prepare(&script, &block(door, "ini", "[ssh]"), &block(close, "sh", "nft"))
}

#[test]
fn the_readme_for_nftables_closes_the_port_last_and_can_undo_it() {
    nftables().follow();
}

#[test]
fn the_readme_for_iptables_closes_the_port_last_and_can_undo_it() {
    let (door, close) = (section(README, "#### With iptables"), section(README, "### 4. Close the port"));
    Recipe::prepare("", &block(door, "ini", "[ssh]"), &block(close, "sh", "iptables")).follow();
}

#[test]
fn without_the_mark_before_its_last_rule_the_nftables_file_closes_the_port() {
    let mut recipe = nftables();
    recipe.close_doors();
    sh(&recipe.net.server, "sed -i 's/#tcp/tcp/' /run/knockd.nft; nft -f /run/knockd.nft");
    recipe.show_that_only_a_knock_opens();
}

#[test]
fn the_readme_shows_the_nftables_file_that_it_installs() {
    let shown = block(section(README, "#### With nftables"), "nft", "table");
    assert_eq!(format!("{shown}\n"), include_str!("../../../packaging/nftables/knockd.nft"));
}

/// The recipe of the README for iptables, with rules of the machine's own and other commands that close the port.
fn iptables(script: &str, close: &str) -> Recipe {
    Recipe::prepare(script, &block(section(README, "#### With iptables"), "ini", "[ssh]"), close)
}

#[test]
fn where_rules_drop_everything_the_rule_that_accepts_ssh_goes_last() {
    let script = "iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
        iptables -A INPUT -p tcp --dport 22 -j ACCEPT
        iptables -P INPUT DROP
        ip6tables -A INPUT -p ipv6-icmp -j ACCEPT
        ip6tables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
        ip6tables -P INPUT DROP";
    let close = block(section(FIREWALL, "## Rules that already drop everything"), "sh", "iptables");
    iptables(script, &close).follow();
}

fn closing_everything_with_iptables() -> Recipe {
    iptables("", &block(section(FIREWALL, "## Close everything, not only ssh"), "sh", "iptables"))
}

fn closing_everything_with_nftables() -> Recipe {
    let page = section(FIREWALL, "## Close everything, not only ssh");
    let door = section(README, "#### With nftables");
    let script = format!(
        "cat >/run/knockd.nft.open <<'END'\n{}\nEND\ncat >/run/knockd.nft <<'END'\n{}\nEND\nnft -f /run/knockd.nft.open",
        block(door, "nft", "table"),
        block(page, "nft", "table")
    );
    Recipe::prepare(&script, &block(door, "ini", "[ssh]"), &block(page, "sh", "nft"))
}

#[test]
fn everything_can_be_closed_with_iptables() {
    closing_everything_with_iptables().follow();
}

#[test]
fn everything_can_be_closed_with_nftables() {
    closing_everything_with_nftables().follow();
}

#[test]
fn closing_everything_cuts_no_idle_session_that_the_kernel_has_not_followed() {
    for mut recipe in [closing_everything_with_iptables(), closing_everything_with_nftables()] {
        recipe.close_doors();
        let server = "import socket
server = socket.create_server(('', 2022))
print('listening', flush=True)
session, _ = server.accept()
session.sendall(session.recv(9))";
        let client = "import os, socket, time
session = socket.create_connection(('10.9.0.1', 2022))
print('connected', flush=True)
while not os.path.exists('/run/go'):
    time.sleep(.02)
session.sendall(b'hello')
print(session.recv(9), flush=True)";
        let mut server = recipe.net.server.spawn(&["python3", "-c", server]).unwrap();
        server.wait_for_line("listening", common::SOON).unwrap();
        let mut client = recipe.net.client.spawn(&["python3", "-c", client]).unwrap();
        client.wait_for_line("connected", common::SOON).unwrap();
        sh(&recipe.net.server, &recipe.close);
        recipe.net.client.write_file("/run/go", "").unwrap();
        client.wait_for_line("hello", common::SOON).unwrap();
    }
}

#[test]
fn the_kernel_closes_a_door_with_a_timeout_and_knockd_does_not_see_it() {
    let mut recipe = nftables();
    recipe.close_doors();
    sh(&recipe.net.server, &recipe.close);
    let config = block(section(FIREWALL, "## Let the kernel close the door"), "ini", "[ssh]");
    recipe.net.server.write_file(common::CONFIG, &config.replace("timeout 30s", "timeout 9s")).unwrap();
    recipe.net.server.run(&[KNOCKD, "reload"]).unwrap();
    recipe.knock("10.9.0.1");
    wait_until("open", || recipe.is_open());
    assert_eq!(common::status_json(&recipe.net)["leases"]["open"], 0);
    wait_until("closed", || !recipe.is_open());
}
