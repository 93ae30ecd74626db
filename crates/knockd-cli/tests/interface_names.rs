//! Names that people give interfaces, and interfaces where knocks may be missed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::net::Ipv4Addr;

use common::{CONFIG, Ear, KNOCKD, Knockd, hit, knockd_and_tools, pcap, sh, syn, wait_until};
use testbed::{Flags, Frame, Net};

const DOOR: &str = "[door]\nsequence = 1\n";

#[test]
fn of_too_many_interfaces_those_with_addresses_come_first_and_the_message_is_short() {
    let net = Net::new().unwrap();
    // The last of them has an address.
    sh(
        &net.server,
        "for n in $(seq 40); do ip link add a$n type veth peer name b$n; done
         ip address add 192.0.2.7/32 dev a40",
    );
    let mut knockd = Knockd::start_with(&net, DOOR, &["-v", "-i", "any"]);
    let is_about_limit = |line: &String| line.ends_with("interface limit (64) reached");
    wait_until("a warning", || knockd.lines().iter().any(is_about_limit));
    let warning = knockd.lines().into_iter().find(is_about_limit).unwrap();
    assert!(warning.contains(" and 15 other interfaces: ") && warning.len() < 100, "{warning}");
    let listens = |name: &str| {
        let status = common::status_json(&net);
        let interfaces = status["interfaces"].as_array().unwrap().clone();
        interfaces.iter().any(|interface| interface["name"] == name)
    };
    assert!(listens("a40") && !listens("b40"));
    // An address moves its interface up.
    sh(&net.server, "ip address add 192.0.2.8/32 dev b40");
    knockd.wait_for("listening on b40 (192.0.2.8)");
    assert!(listens("a40") && listens("eth0"));
}

#[test]
fn a_label_stands_for_its_address_and_comes_and_goes_with_it() {
    let net = Net::new().unwrap();
    let to =
        |address: [u8; 4], source: u8| Frame::tcp([10, 9, 0, source], Ipv4Addr::from(address), 1, Flags::SYN);
    let add = "ip address add 10.9.0.11/24 dev eth0 label eth0:1";
    sh(&net.server, add);
    let mut ear =
        Ear::of(net, &format!("{DOOR}[at]\nsequence = 1\ntarget = 10.9.0.1\n"), &["-v", "-i", "eth0:1"]);
    // The frame that ends a list goes to the address of the server, which is not the label's.
    let hear = |ear: &mut Ear, frames: &[Frame]| {
        common::send(&ear.net, frames);
        ear.knockd.wait_for("OPEN SESAME").text
    };
    assert_eq!(hear(&mut ear, &[to([10, 9, 0, 1], 3)]), "10.9.0.3: at: OPEN SESAME");
    assert_eq!(hear(&mut ear, &[to([10, 9, 0, 11], 4)]), "10.9.0.4: door: OPEN SESAME");
    sh(&ear.net.server, "ip address delete 10.9.0.11/24 dev eth0");
    ear.knockd.wait_for("eth0 now has no address");
    ear.knockd.wait_for("eth0: no address has the label eth0:1");
    assert_eq!(hear(&mut ear, &[to([10, 9, 0, 1], 6)]), "10.9.0.6: at: OPEN SESAME");
    let status = common::status_json(&ear.net);
    assert_eq!(status["interfaces"][0]["problem"], "no address has the label eth0:1");
    sh(&ear.net.server, add);
    ear.knockd.wait_for("eth0 now has 10.9.0.11");
    assert_eq!(hear(&mut ear, &[to([10, 9, 0, 11], 5)]), "10.9.0.5: door: OPEN SESAME");
}

#[test]
fn an_alternative_name_and_what_ip_prints_mean_the_interface() {
    for name in ["lan", "eth0@if2"] {
        let net = Net::new().unwrap();
        sh(&net.server, "ip link property add dev eth0 altname lan");
        let mut knockd = Knockd::start_with(&net, DOOR, &["-v", "-i", name]);
        hit(&net, 2, &[1]);
        knockd.wait_for("10.9.0.2: door: OPEN SESAME");
        let status = common::status_json(&net);
        assert_eq!(status["interfaces"].as_array().unwrap().len(), 1, "nothing is missing: {status}");
    }
}

/// Puts the server's `eth0` into a bridge, which gets its address.
fn make_bridge(net: &Net) {
    sh(
        &net.server,
        "set -e
         ip link add br0 type bridge
         ip link set br0 up
         ip address flush dev eth0
         ip link set eth0 master br0
         ip address add 10.9.0.1/24 dev br0",
    );
}

#[test]
fn a_port_of_a_bridge_without_an_address_is_reported_by_everybody() {
    let net = Net::new().unwrap();
    make_bridge(&net);
    let problem = "no address of its own; it belongs to br0, which has 10.9.0.1: listen on br0";
    let config = "[options]\ninterface = eth0\nlogfile = /run/log\n[door]\nsequence = 1\n";
    let mut knockd = Knockd::start(&net, config);
    knockd.wait_for(&format!("eth0: {problem}"));
    assert!(sh(&net.server, &format!("'{KNOCKD}' status")).contains(&format!("eth0  up  {problem}")));
    let checked = sh(&net.server, &format!("'{}' check {CONFIG} || true", knockd_and_tools()));
    assert!(checked.contains(&format!("{CONFIG}: warning: eth0: {problem}")), "{checked}");

    // A door with a target needs no address here.
    let target = config.replace("sequence", "target = 10.9.0.1\nsequence");
    knockd.reload(&net, &target, "re-opening log file");
    hit(&net, 2, &[1]);
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
    assert_eq!(common::status_json(&net)["interfaces"][0]["problem"], serde_json::Value::Null);
    knockd.reload(&net, &config.replace("eth0", "br0"), "listening on br0 (10.9.0.1");
    hit(&net, 3, &[1]);
    knockd.wait_for("10.9.0.3: door: OPEN SESAME");
    assert_eq!(knockd.count(problem), 1, "{:#?}", knockd.lines());
}

/// What `knockd replay` says on the server to these frames.
fn replay(net: &Net, frames: &[Frame]) -> String {
    net.server.run_with_input(&["sh", "-c", "cat >/run/c.pcap"], &pcap(frames)).unwrap();
    sh(&net.server, &format!("'{}' replay /run/c.pcap -c {CONFIG}", knockd_and_tools()))
}

#[test]
fn a_replay_judges_a_recording_of_this_machine_as_the_daemon_would() {
    let net = Net::new().unwrap();
    make_bridge(&net);
    // Whichever interface the daemon listens on, it counts hits at every address of the machine.
    net.server.write_file(CONFIG, &format!("[options]\ninterface = eth0\n{DOOR}")).unwrap();
    let said = replay(&net, &[syn(&net, 2, 1)]);
    assert!(said.contains("\nOwn addresses (of this machine): ") && said.contains("10.9.0.1"), "{said}");
    assert!(said.contains("10.9.0.2: door: OPEN SESAME"), "{said}");

    // A packet that leaves this machine is for another one.
    let outgoing = Frame::tcp(net.server.ipv4, [10, 9, 0, 2], 1, Flags::SYN);
    let said = replay(&net, &[outgoing]);
    assert!(said.contains("No door saw a packet.") && !said.contains("OPEN SESAME"), "{said}");
    assert!(
        said.contains("If the file is from another machine, name its addresses with --address."),
        "{said}"
    );

    // A recording from elsewhere.
    let elsewhere = Frame::tcp([192, 0, 2, 9], Ipv4Addr::new(192, 0, 2, 1), 1, Flags::SYN);
    let said = replay(&net, &[elsewhere]);
    let every =
        "\nOwn addresses: every destination, because no packet in the file is from or for this machine; ";
    assert!(said.contains(every) && said.contains("192.0.2.9: door: OPEN SESAME"), "{said}");
}
