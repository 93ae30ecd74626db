//! The two examples that everybody begins with, word for word, with real firewalls and a real server behind them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Knockd, knock, sh, wait_for_file, wait_until};
use testbed::{Net, Running};

const TWO_DOORS: &str = "
[options]
	logfile = /var/log/knockd.log

[openSSH]
	sequence    = 700,800,900
	seq_timeout = 5
	command     = /sbin/iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	tcpflags    = syn

[closeSSH]
	sequence    = 900,800,700
	seq_timeout = 5
	command     = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	tcpflags    = syn
";

const ONE_DOOR: &str = "
 [options]
 	logfile = /var/log/knockd.log

 [opencloseSSH]
 	sequence      = 2222:udp,3333:tcp,4444:udp
 	seq_timeout   = 15
 	tcpflags      = syn,ack
 	start_command = /usr/sbin/iptables -A INPUT -s %IP% -p tcp --syn --dport 22 -j ACCEPT
 	cmd_timeout   = 10
 	stop_command  = /usr/sbin/iptables -D INPUT -s %IP% -p tcp --syn --dport 22 -j ACCEPT
";

const IPTABLES: &str = "iptables -A INPUT -i lo -j ACCEPT
    iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    iptables -P INPUT DROP";

const NFT: &str = "nft -f - <<'END'
    table ip filter {
        set ssh_clients { type ipv4_addr; }
        chain input {
            type filter hook input priority 0; policy drop;
            iif lo accept
            ct state established,related accept
            ip saddr @ssh_clients tcp dport 22 accept
        }
    }
END";

/// The same example with nft's commands in place of iptables'.
fn with_nft(example: &str) -> String {
    let nft = |line: &str| {
        let (key, command) = line.split_once("= ").unwrap();
        let verb = if command.contains(" -D ") { "delete" } else { "add" };
        format!("{key}= /usr/sbin/nft {verb} element ip filter ssh_clients '{{ %IP% }}'\n")
    };
    example
        .lines()
        .map(|line| if line.contains("iptables") { nft(line) } else { format!("{line}\n") })
        .collect()
}

/// Two hosts of which the server lets nobody in, though something listens on its port 22.
fn closed_net(firewall: &str) -> (Net, Running) {
    let net = Net::with_private_dirs(&["/var/log"]).unwrap();
    sh(&net.server, firewall);
    let service = net.server.listen(22).unwrap();
    assert!(!is_open(&net));
    (net, service)
}

fn is_open(net: &Net) -> bool {
    net.client.can_connect(net.server.ipv4, 22).unwrap()
}

fn open_and_close_by_knocking(firewall: &str, config: &str) {
    let (net, _service) = closed_net(firewall);
    let mut knockd = Knockd::start(&net, config);
    for _ in 0..2 {
        knock(&net.client, "10.9.0.1 700 800 900");
        knockd.wait_for("openSSH: running command");
        wait_until("open", || is_open(&net));
        knock(&net.client, "10.9.0.1 900 800 700");
        knockd.wait_for("closeSSH: running command");
        wait_until("closed", || !is_open(&net));
    }
    let log = net.server.run(&["cat", "/var/log/knockd.log"]).unwrap();
    assert_eq!(log.matches("10.9.0.2: openSSH: OPEN SESAME\n").count(), 2, "{log}");
    assert_eq!(log.matches("10.9.0.2: closeSSH: OPEN SESAME\n").count(), 2, "{log}");
    assert_eq!(log.matches("Stage 3\n").count(), 4, "{log}");
    assert!(!log.contains("returned") && !knockd.lines().iter().any(|line| line.contains("warning")));
}

fn open_for_a_while(firewall: &str, config: &str) {
    let cmd_timeout = Duration::from_secs(10);
    let (net, _service) = closed_net(firewall);
    let mut knockd = Knockd::start(&net, config);
    // A plain SYN is not what this door waits for, so it passes unseen, and what follows it is wrong.
    knock(&net.client, "10.9.0.1 2222:udp 3333:tcp 4444:udp");
    knock(&net.client, "--tcpflags syn,ack 10.9.0.1 2222:udp 3333:tcp 4444:udp");
    let opened = knockd.wait_for("opencloseSSH: running command").at;
    wait_until("open", || is_open(&net));
    let log = wait_for_file(&net.server, "/var/log/knockd.log", "10.9.0.2: opencloseSSH: command timeout\n");
    assert_eq!(log.matches("OPEN SESAME").count(), 1, "{log}");
    let waited = knockd.wait_for("command timeout").at - opened;
    // The lines' times are those of their arrival here.
    assert!(waited + Duration::from_secs(1) > cmd_timeout, "{waited:?}");
    assert!(waited < cmd_timeout + Duration::from_secs(15), "{waited:?}");
    wait_until("closed", || !is_open(&net));
}

#[test]
fn a_knock_opens_and_another_closes() {
    open_and_close_by_knocking(IPTABLES, TWO_DOORS);
}

#[test]
fn a_knock_opens_and_another_closes_with_nft() {
    open_and_close_by_knocking(NFT, &with_nft(TWO_DOORS));
}

#[test]
fn a_knock_opens_for_a_while() {
    open_for_a_while(IPTABLES, ONE_DOOR);
}

#[test]
fn a_knock_opens_for_a_while_with_nft() {
    open_for_a_while(NFT, &with_nft(ONE_DOOR));
}

#[test]
fn a_real_ssh_server_shows_its_key_only_after_the_knock() {
    if !common::is_root() {
        return;
    }
    let net = Net::with_private_dirs(&["/var/log"]).unwrap();
    if net
        .server
        .run(&["sh", "-c", "command -v ssh-keyscan && command -v ssh-keygen && command -v sshd"])
        .is_err()
    {
        testbed::skip_until_installed("an SSH server");
        return;
    }
    // Only the package that is installed makes this user; one that is just unpacked does not.
    let user = "sshd:x:64999:65534::/run/sshd:/usr/sbin/nologin";
    sh(
        &net.server,
        &format!(
            "cp /etc/passwd /run/passwd; grep -q ^sshd: /run/passwd || echo {user} >>/run/passwd
             mount --bind /run/passwd /etc/passwd"
        ),
    );
    sh(&net.server, IPTABLES);
    sh(&net.server, "mkdir /run/sshd && ssh-keygen -q -t ed25519 -N '' -f /run/key");
    let sshd = ["sh", "-c", "exec \"$(command -v sshd)\" -D -e -f /dev/null -h /run/key -o PidFile=none"];
    let mut sshd = net.server.spawn(&sshd).unwrap();
    sshd.wait_for_line("Server listening on 0.0.0.0 port 22", common::SOON).unwrap();
    let _knockd = Knockd::start(&net, TWO_DOORS);
    let keys = || sh(&net.client, "ssh-keyscan -T 1 -t ed25519 10.9.0.1 2>/dev/null || true");
    assert_eq!(keys(), "");
    knock(&net.client, "10.9.0.1 700 800 900");
    let key = sh(&net.server, "cut -d' ' -f1,2 /run/key.pub");
    wait_until("the key", || keys() == format!("10.9.0.1 {key}"));
    knock(&net.client, "10.9.0.1 900 800 700");
    wait_until("closed", || keys().is_empty());
}
