//! What not every kernel has. `cargo xtask test` runs these in an emulated machine, where that is possible.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::Ipv4Addr;
use std::time::Instant;

use common::{Knockd, SOON, hit, knock, sh, wait_until, with_own_user};
use testbed::{Host, Net, Running};

const DOOR: &str = "[door]\nsequence = 7101,8202:udp,9303\ntcpflags = syn\n";

#[test]
#[ignore = "needs Landlock"]
fn the_decoder_keeps_nothing_that_it_does_not_need() {
    let net = Net::new().unwrap();
    with_own_user(&net);
    let mut knockd = Knockd::start(&net, "[door]\nsequence = 7101\n");
    hit(&net, 2, &[7101]);
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
    assert_eq!(knockd.count("not fully sandboxed"), 0, "{:#?}", knockd.lines());
}

#[test]
#[ignore = "needs VLAN"]
fn a_vlan_is_listened_to_under_its_own_name_and_with_all_others_under_any() {
    let net = Net::new().unwrap();
    for (host, address) in [(&net.server, "10.5.0.1"), (&net.client, "10.5.0.2")] {
        sh(
            host,
            &format!(
                "ip link add link eth0 name eth0.5 type vlan id 5
                 ip address add {address}/24 dev eth0.5
                 ip link set eth0.5 up"
            ),
        );
    }
    let vlan = ("10.5.0.1", "10.5.0.2: door: OPEN SESAME");
    let parent = ("10.9.0.1", "10.9.0.2: door: OPEN SESAME");
    for (interface, first, unheard) in [("eth0.5", parent, true), ("eth0", vlan, true), ("any", vlan, false)]
    {
        let second = if first == vlan { parent } else { vlan };
        let mut knockd = Knockd::start_with(&net, DOOR, &["-v", "-i", interface]);
        for (address, _) in [first, second] {
            knock(&net.client, &format!("-d 100 {address} 7101 8202:udp 9303"));
        }
        knockd.wait_for(second.1);
        // Each comes through a process of its own.
        wait_until("both", || unheard || knockd.count(first.1) > 0);
        assert_eq!(knockd.count(first.1) == 0, unheard, "{interface}: {:#?}", knockd.lines());
    }
}

#[test]
#[ignore = "needs PPP"]
fn a_ppp_link_is_followed_when_it_reconnects_with_another_address() {
    let net = Net::new().unwrap();
    // The other end of the link is on the client, whose namespace is found by a process there; /proc is the outer one.
    let there = "read -r outside rest </proc/self/stat; echo $outside; exec sleep 1000";
    let mut on_client = net.client.spawn(&["sh", "-c", there]).unwrap();
    let client = on_client.wait_for_line("", SOON).unwrap().text;
    let _server = net.server.listen(80).unwrap();
    let mut knockd = Knockd::start_with(&net, DOOR, &["-v", "-i", "ppp0", "--wait"]);
    for address in [[10, 8, 0, 1], [10, 8, 0, 3]].map(Ipv4Addr::from) {
        let link = dial(&net.server, &client, address);
        // It is listened to with this address at once, or gets it a moment later.
        knockd.wait_for(&address.to_string());
        // pppd gives both ends their addresses before it lets packets through.
        let end = Instant::now() + SOON;
        while !net.client.can_connect(address, 80).unwrap() {
            assert!(Instant::now() < end, "the link carries nothing: {:#?}", link.lines());
        }
        knock(&net.client, &format!("-d 100 {address} 7101 8202:udp 9303"));
        knockd.wait_for("10.8.0.2: door: OPEN SESAME");
        drop(link);
        knockd.wait_for("no longer listening on ppp0");
    }
}

/// Connects the server, with this address, and the client by PPP, until the result is dropped.
fn dial(server: &Host, client: &str, address: Ipv4Addr) -> Running {
    let options = "nodetach noauth local nodefaultroute noipv6";
    let peer = format!("nsenter -t {client} -n pppd notty {options} 10.8.0.2:{address}");
    let words: Vec<_> = "pppd".split(' ').chain(options.split(' ')).collect();
    let ends = format!("{address}:10.8.0.2");
    server.spawn(&[words.as_slice(), &[&ends, "pty", &peer]].concat()).unwrap()
}

#[test]
#[ignore = "needs a machine that has slept"]
fn what_became_due_while_the_machine_slept_is_closed_as_soon_as_it_is_awake() {
    // What `sleep.sh` of `cargo xtask test` has seen at startup: a door was open for 30 seconds, and the machine slept
    // for 40.
    let seen = std::fs::read_to_string("/run/slept").unwrap();
    let at = |what: &str| {
        let time =
            seen.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(" at ")?.parse::<f64>().ok());
        time.unwrap_or_else(|| panic!("not {what}: {seen}"))
    };
    let (opened, awake, closed) = (at("opened"), at("awake"), at("closed"));
    assert!(awake - opened > 35.0, "it has not slept: {seen}");
    assert!(closed - awake < 10.0, "the time asleep does not count: {seen}");
}
