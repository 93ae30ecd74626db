//! The recipes of docs/firewall.md, word for word: nothing is closed before the closing command,
//! the door then opens for whoever knocks and for nobody else, and the undo opens the port again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::pages::{FIREWALL, README, block, section};
use common::{KNOCKD, Knockd, firewalls, has_ipv6, knock, sh, wait_until};
use testbed::{Net, Stranger};

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
        Self::on(Net::new().unwrap(), script, config, close)
    }

    /// The same on hosts where something runs already.
    fn on(net: Net, script: &str, config: &str, close: &str) -> Self {
        let stranger = net.stranger().unwrap();
        let service = net.server.listen(22).unwrap();
        firewalls::run(&net, script);
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

    /// Knocks as the page says.
    fn knock(&mut self, server: &str) {
        let said = section(FIREWALL, "## Close the port");
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
        firewalls::run(&self.net, &self.close);
        wait_until("closed for others", || !self.is_open_for_stranger());
        assert!(self.is_open());
        self.close_doors();
        self.show_that_only_a_knock_opens();
        firewalls::run(&self.net, &self.undo);
        wait_until("undone", || self.is_open() && self.is_open_for_stranger());
    }
}

/// The recipe for nftables.
fn nftables() -> Recipe {
    let (door, close) = (section(FIREWALL, "## With nftables"), section(FIREWALL, "## Close the port"));
    let script =
        format!("cat >/run/knockd.nft <<'END'\n{}\nEND\nnft -f /run/knockd.nft", block(door, "nft", "table"));
    Recipe::prepare(&script, &block(door, "ini", "[ssh]"), &block(close, "sh", "nft"))
}

#[test]
fn the_recipe_for_nftables_closes_the_port_last_and_can_undo_it() {
    nftables().follow();
}

#[test]
fn the_recipe_for_iptables_closes_the_port_last_and_can_undo_it() {
    let (door, close) = (section(FIREWALL, "## With iptables"), section(FIREWALL, "## Close the port"));
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
fn the_page_shows_the_nftables_file_that_it_installs() {
    let shown = block(section(FIREWALL, "## With nftables"), "nft", "table");
    assert_eq!(format!("{shown}\n"), include_str!("../../../packaging/nftables/knockd.nft"));
}

#[test]
fn the_readme_shows_the_door_of_the_recipe_for_iptables() {
    let shown = block(section(README, "### Commands instead of the guard"), "ini", "[ssh]");
    assert!(block(section(FIREWALL, "## With iptables"), "ini", "[ssh]").ends_with(&shown), "{shown}");
}

/// The recipe for iptables, with rules of the machine's own and other commands that close the port.
fn iptables(script: &str, close: &str) -> Recipe {
    Recipe::prepare(script, &block(section(FIREWALL, "## With iptables"), "ini", "[ssh]"), close)
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

#[test]
fn the_recipe_for_ufw_closes_the_port_last_and_can_undo_it() {
    let net = Net::new().unwrap();
    if !firewalls::unpacked(&net) {
        return;
    }
    let page = section(FIREWALL, "## ufw");
    let (config, close) = (block(page, "ini", "[ssh]"), block(page, "sh", "ufw"));
    Recipe::on(net, "ufw allow 22/tcp && ufw --force enable", &config, &close).follow();
}

#[test]
fn the_recipe_for_firewalld_closes_the_port_last_and_can_undo_it() {
    let net = Net::new().unwrap();
    if !firewalls::unpacked(&net) {
        return;
    }
    let _firewalld = firewalls::firewalld(&net);
    let page = section(FIREWALL, "## firewalld");
    let (config, close) = (block(page, "ini", "[ssh]"), block(page, "sh", "--remove-service"));
    Recipe::on(net, "", &config.replace("/usr/bin/", "/run/bin/"), &close).follow();
}

fn closing_everything_with_iptables() -> Recipe {
    iptables("", &block(section(FIREWALL, "## Close everything, not only ssh"), "sh", "iptables"))
}

fn closing_everything_with_nftables() -> Recipe {
    let page = section(FIREWALL, "## Close everything, not only ssh");
    let door = section(FIREWALL, "## With nftables");
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
