//! The guard where the kernel has only a part of what it would use, or nothing. `cargo xtask test` runs these in emulated machines
//! with such kernels.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

mod common;

use std::fs;

use common::{CONFIG, KNOCKD, Knockd, SOON, knock, sh, status_json, wait_until};
use nix::sys::signal::Signal;
use testbed::{Net, Running, Stranger};

/// The two lines of a person, with a lease that outlives the test.
const DOOR: &str =
    "[options]\nFirewall = nftables\n[ssh]\nSequence = 7101,8202:udp,9303\nOpen = tcp/22\nLease = 600\n";

/// What a person does who has no nftables, or only a part of it.
const REMEDY: &str = "; load its modules, or open doors by commands instead of `Open`";

const WITHOUT_OWNER: &str =
    "guarded ports are open for a moment when another program flushes nftables: Linux before 5.12";
const WITHOUT_PERSIST: &str = "guarded ports are open while knockd is dead if it is killed: Linux before 6.9";

/// A server with a service, a client that knocks, and a host that never does.
struct Hosts {
    net: Net,
    stranger: Stranger,
    _service: Running,
}

impl Hosts {
    fn new() -> Self {
        let net = Net::new().unwrap();
        let hosts = Self { stranger: net.stranger().unwrap(), _service: net.server.listen(22).unwrap(), net };
        wait_until("there is no guard yet", || hosts.stranger_reaches());
        hosts
    }

    fn knocker_reaches(&self) -> bool {
        self.net.client.can_connect(self.net.server.ipv4, 22).unwrap()
    }

    fn stranger_reaches(&self) -> bool {
        self.stranger.host.can_connect(self.net.server.ipv4, 22).unwrap()
    }

    fn is_open_for_the_knocker_alone(&self) {
        // What is open may answer late in an emulated machine.
        wait_until("the knocker reaches it", || self.knocker_reaches());
        assert!(!self.stranger_reaches());
    }

    /// Starts knockd, which has to give this warning about the guard and no other.
    fn start(&self, warning: &str) -> Knockd {
        let knockd = Knockd::start(&self.net, DOOR);
        let mut said = knockd.lines();
        said.retain(|line| line.contains("guard"));
        assert_eq!(said, [warning]);
        knockd
    }

    fn knock(&self, knockd: &mut Knockd) {
        assert!(!self.knocker_reaches());
        knock(&self.net.client, "10.9.0.1 7101 8202:udp 9303");
        knockd.wait_for("10.9.0.2: ssh: let in for 600 s");
        self.is_open_for_the_knocker_alone();
    }

    fn knock_over_ipv6(&self, knockd: &mut Knockd) {
        let (server, client) = (self.net.server.ipv6, self.net.client.ipv6);
        assert!(!self.net.client.can_connect(server, 22).unwrap());
        knock(&self.net.client, &format!("-6 {server} 7101 8202:udp 9303"));
        knockd.wait_for(&format!("{client}: ssh: let in for 600 s"));
        wait_until("it is open over IPv6", || self.net.client.can_connect(server, 22).unwrap());
    }

    fn leases(&self) -> u64 {
        status_json(&self.net)["leases"]["total"].as_u64().unwrap()
    }

    fn kill(knockd: &mut Knockd) {
        knockd.signal(Signal::SIGKILL);
        knockd.running.wait(SOON).unwrap();
    }
}

#[test]
#[ignore = "needs Linux before 5.12"]
fn without_owned_tables_a_removed_guard_stands_again_at_once_and_a_killed_knockd_leaves_it() {
    let hosts = Hosts::new();
    let mut knockd = hosts.start(WITHOUT_OWNER);
    hosts.knock(&mut knockd);
    hosts.knock_over_ipv6(&mut knockd);
    for change in ["delete table inet knockd", "flush chain inet knockd tcp_doors"] {
        sh(&hosts.net.server, &format!("nft {change}"));
        knockd.wait_for("another program has changed the guard; it stands again");
        hosts.is_open_for_the_knocker_alone();
    }
    Hosts::kill(&mut knockd);
    // The table stays.
    hosts.is_open_for_the_knocker_alone();
    let mut knockd = hosts.start(WITHOUT_OWNER);
    assert_eq!(hosts.leases(), 2);
    hosts.is_open_for_the_knocker_alone();
    knockd.stop();
    assert!(!hosts.knocker_reaches(), "the guard stays");
}

#[test]
#[ignore = "needs Linux 5.12 to 6.8"]
fn without_persistent_tables_a_flush_changes_nothing_and_a_kill_opens_until_the_next_start() {
    let hosts = Hosts::new();
    hosts.net.server.write_file(CONFIG, DOOR).unwrap();
    hosts.net.server.run(&[KNOCKD, "guard", "-c", CONFIG]).unwrap();
    assert!(!hosts.stranger_reaches(), "this table stays although its command has ended");
    // It gets an owner now.
    let mut knockd = hosts.start(WITHOUT_PERSIST);
    hosts.knock(&mut knockd);
    hosts.knock_over_ipv6(&mut knockd);
    sh(&hosts.net.server, "nft flush ruleset");
    hosts.is_open_for_the_knocker_alone();
    Hosts::kill(&mut knockd);
    wait_until("what the warning says", || hosts.stranger_reaches());
    let mut knockd = hosts.start(WITHOUT_PERSIST);
    assert!(!hosts.stranger_reaches());
    hosts.knock(&mut knockd);
    knockd.stop();
    assert!(!hosts.stranger_reaches(), "an orderly end leaves the guard");
}

#[test]
#[ignore = "needs a kernel without nftables"]
fn without_nftables_one_line_says_so_with_the_remedy_and_knockd_does_not_start() {
    assert!(!has_module("nf_tables"));
    let net = Net::new().unwrap();
    let said = format!("the kernel has no nftables{REMEDY}");
    refuses_to_start(&net, &said);
    // Nor does it take a configuration whose guard would not stand.
    let commands = "[door]\nSequence = 7101,8202:udp,9303\nTCPFlags = syn\nCommand = echo opened\n";
    let mut knockd = Knockd::start(&net, commands);
    knockd.reload(&net, DOOR, &format!("cannot guard the services of doors: {said}"));
    knockd.wait_for("keeping the old configuration");
    knock(&net.client, "10.9.0.1 7101 8202:udp 9303");
    knockd.wait_for_output("opened");
}

#[test]
#[ignore = "needs a kernel that lacks a module of nftables"]
fn without_a_part_of_nftables_one_line_says_so_with_the_remedy_and_knockd_does_not_start() {
    assert!(!has_module("nft_fib_inet"));
    let net = Net::new().unwrap();
    refuses_to_start(&net, &format!("the kernel lacks a part of nftables{REMEDY}"));
    assert!(has_module("nf_tables"), "so the rest is there");
    assert_eq!(sh(&net.server, "nft list ruleset"), "", "nothing is left");
}

fn has_module(name: &str) -> bool {
    fs::read_to_string("/proc/modules").unwrap().lines().any(|line| line.starts_with(&format!("{name} ")))
}

/// Neither the daemon nor the command for the boot begins, and each ends with this line about the kernel.
fn refuses_to_start(net: &Net, said: &str) {
    net.server.write_file(CONFIG, DOOR).unwrap();
    for (arguments, what) in
        [("-v", "cannot guard the services of doors"), ("guard", "cannot close the ports")]
    {
        let text = sh(&net.server, &format!("{KNOCKD} {arguments} -c {CONFIG} 2>&1; echo ended with $?"));
        assert!(text.ends_with(&format!("knockd: {what}: {said}\nended with 1\n")), "{text}");
        assert_eq!(text.matches("kernel").count(), 1, "{text}");
    }
}
