//! `knockd check` on a machine whose firewalls, rules and files are real: what keeps guarded services from being reached.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use common::{CONFIG, knockd_and_tools, sh};
use testbed::{Net, Running};

const DOOR: &str = "[options]\nFirewall = nftables\n[ssh]\nSequence = 20011,4207:udp,11393\nSeq_Timeout = 5\nOpen = tcp/22\n";

/// A machine with an `/etc` of its own and an ssh server.
struct Machine {
    net: Net,
    _ssh: Running,
}

impl Machine {
    fn new() -> Self {
        let net = Net::new().unwrap();
        let own_etc = "mkdir /run/etc; cp -a /etc/passwd /etc/group /etc/ld.so.* /etc/nsswitch.conf /run/etc; mount --bind /run/etc /etc";
        sh(&net.server, own_etc);
        let ssh = net.server.listen(22).unwrap();
        Self { net, _ssh: ssh }
    }

    /// Returns the findings that are no notes, as `code: message`, with what helps.
    fn check(&self, config: &str, more: &[&str]) -> Vec<String> {
        self.net.server.write_file(CONFIG, config).unwrap();
        let line = ["check", "--format", "json", CONFIG];
        let mut command = self.net.server.command(knockd_and_tools());
        let output = command.args(line).args(more).env_remove("SSH_CONNECTION").output().unwrap();
        let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        let has_errors = findings.iter().any(|finding| finding["severity"] == "error");
        assert_eq!(output.status.code(), Some(i32::from(has_errors)), "{findings:?}");
        let told = |finding: &serde_json::Value| {
            let help = finding["help"].as_str().map_or_else(String::new, |help| format!("; {help}"));
            let [code, message] =
                ["code", "message"].map(|field| finding[field].as_str().unwrap().to_owned());
            (finding["code"] == "published-port" || finding["severity"] != "note")
                .then(|| format!("{code}: {message}{help}"))
        };
        findings.iter().filter_map(told).collect()
    }
}

#[test]
fn on_a_machine_where_all_is_well_nothing_is_found() {
    assert_eq!(Machine::new().check(DOOR, &[]), [""; 0]);
}

#[test]
fn a_service_that_ufw_blocks_is_found_until_ufw_allows_it() {
    let machine = Machine::new();
    let ufw = "mkdir -p /etc/ufw /etc/default; echo ENABLED=yes >/etc/ufw/ufw.conf
               echo 'DEFAULT_INPUT_POLICY=\"DROP\"' >/etc/default/ufw; echo '### RULES ###' >/etc/ufw/user.rules";
    sh(&machine.net.server, ufw);
    let blocked = "blocked-service: ufw blocks tcp/22 even after a knock; run: ufw allow 22/tcp";
    assert_eq!(machine.check(DOOR, &[]), [blocked]);
    sh(
        &machine.net.server,
        "echo '### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in' >>/etc/ufw/user.rules",
    );
    assert_eq!(machine.check(DOOR, &[]), [""; 0]);
}

#[test]
fn a_service_that_firewalld_blocks_is_found_until_firewalld_allows_it() {
    let machine = Machine::new();
    // In the place of the program, which needs a bus: what it prints.
    let program = "mkdir -p /run/bin; cat >/run/bin/firewall-cmd <<'END'
#!/bin/sh
[ \"$*\" = --list-all-zones ] || exit 2
printf 'public (default, active)\\n  target: default\\n  services: %s\\n  ports: %s\\n' '' \"$(cat /run/ports)\"
END
chmod +x /run/bin/firewall-cmd; echo 80/tcp >/run/ports; mount --bind /run/bin /usr/local/sbin";
    sh(&machine.net.server, program);
    assert_eq!(
        machine.check(DOOR, &[]),
        ["blocked-service: firewalld blocks tcp/22 even after a knock; \
          run: firewall-cmd --permanent --add-port=22/tcp && firewall-cmd --reload"]
    );
    sh(&machine.net.server, "echo 20-30/tcp >/run/ports");
    assert_eq!(machine.check(DOOR, &[]), [""; 0]);
}

#[test]
fn a_service_on_which_nothing_listens_is_found_until_something_does() {
    let machine = Machine::new();
    let door = DOOR.replace("tcp/22", "tcp/22, tcp/8080");
    assert_eq!(machine.check(&door, &[]), ["nothing-listens: nothing listens on tcp/8080"]);
    let _service = machine.net.server.listen(8080).unwrap();
    assert_eq!(machine.check(&door, &[]), [""; 0]);
}

#[test]
fn rules_of_others_that_matter_are_found() {
    let machine = Machine::new();
    let load =
        |rules: &str| machine.net.server.run_with_input(&["nft", "-f", "-"], rules.as_bytes()).unwrap();
    let docker = "table ip nat { chain DOCKER { tcp dport 8080 dnat to 172.17.0.2:80; }
        chain PREROUTING { type nat hook prerouting priority dstnat; fib daddr type local jump DOCKER; }; }";
    load(docker);
    let published = "published-port: Docker publishes tcp/8080, and no door guards it: everybody can reach it, whatever other firewalls say";
    assert_eq!(machine.check(DOOR, &[]), [published]);
    assert_eq!(machine.check(&DOOR.replace("tcp/22", "tcp/22, tcp/8080"), &[]), [""; 0]);
    load(
        "flush ruleset; table inet raw { chain c { type filter hook prerouting priority raw; tcp dport 22 notrack; }; }",
    );
    assert_eq!(
        machine.check(DOOR, &[]),
        ["untracked: `notrack` in table inet raw concerns tcp/22: connections end with the lease"]
    );
    load("flush ruleset");
    assert_eq!(machine.check(DOOR, &[]), [""; 0]);
}

#[test]
fn our_table_in_a_saved_ruleset_is_an_error() {
    let machine = Machine::new();
    let guard = "/usr/bin/env printf '%s' \"$0\" >/run/k.conf; \"$1\" guard -c /run/k.conf; nft list ruleset >/etc/nftables.conf";
    machine.net.server.run(&["sh", "-c", guard, DOOR, common::KNOCKD]).unwrap();
    let found = machine.check(DOOR, &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("table-in-file: `table inet knockd` in line 1: knockd owns that table"),
        "{found:?}"
    );
    sh(&machine.net.server, "echo 'table inet filter {' >/etc/nftables.conf");
    assert_eq!(machine.check(DOOR, &[]), [""; 0]);
}

#[test]
fn ssh_that_no_door_opens_is_an_error_until_that_is_accepted() {
    let machine = Machine::new();
    sh(&machine.net.server, "echo 1 >/proc/sys/net/ipv4/ip_forward");
    let door = DOOR.replace("Open = tcp/22", "Forward = tcp/22 > 10.9.0.7:22");
    let lockout = "lock-out: ssh (tcp/22) is closed, and no door opens it: a lock-out";
    let help = "; if there is another way in, run: knockd check --accept-lockout";
    assert_eq!(machine.check(&door, &[]), [format!("{lockout}{help}")]);
    assert_eq!(machine.check(&door, &["--accept-lockout"]), [lockout]);
    sh(&machine.net.server, "mkdir /etc/ssh; echo Port 2022 >/etc/ssh/sshd_config");
    assert_eq!(machine.check(&door, &[]), [""; 0]);
}

#[test]
fn a_host_that_does_not_forward_is_found_until_it_does() {
    let machine = Machine::new();
    sh(&machine.net.server, "echo 0 >/proc/sys/net/ipv4/ip_forward");
    let door = format!("{DOOR}Forward = tcp/2222 > 10.9.0.7:22\n");
    assert_eq!(
        machine.check(&door, &[]),
        [
            "no-forwarding: this host forwards no packets to 10.9.0.7: net.ipv4.ip_forward is 0; run: sysctl -w net.ipv4.ip_forward=1"
        ]
    );
    sh(&machine.net.server, "echo 1 >/proc/sys/net/ipv4/ip_forward");
    assert_eq!(machine.check(&door, &[]), [""; 0]);
}

#[test]
fn a_service_that_two_doors_open_is_found() {
    let machine = Machine::new();
    let two = format!("{DOOR}[other]\nSequence = 30011,5207:udp,12393\nSeq_Timeout = 5\nOpen = tcp/20-30\n");
    assert_eq!(machine.check(&two, &[]), ["shared-service: door `other` also opens tcp/22"]);
    let apart = machine.check(&two.replace("tcp/20-30", "tcp/80"), &[]);
    assert_eq!(apart, ["nothing-listens: nothing listens on tcp/80"]);
}
