//! Real port scans, by nmap, at doors of all kinds.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::Ipv6Addr;
use std::time::Duration;

use common::{Ear, SOON, hit, sh, syn};
use testbed::{Flags, Frame, Net, Running};

/// Sequences that ascend: neighbours, which every ascending scan hits at once, others further apart, and one over UDP.
const DOORS: &str = "[neighbours]\nsequence = 700,701,702\n\
                     [syn]\nsequence = 700,701,702\ntcpflags = syn\n\
                     [apart]\nsequence = 1000,1400,1900\nseq_timeout = 1000\n\
                     [udp]\nsequence = 700:udp,701:udp,702:udp\n";

/// Runs nmap from 10.9.0.`neighbour` at the server, which answers.
fn nmap(net: &Net, neighbour: u8, arguments: &str) {
    start_nmap(net, neighbour, arguments).wait(SOON).unwrap();
}

fn start_nmap(net: &Net, neighbour: u8, arguments: &str) -> Running {
    let from = format!("10.9.0.{neighbour}");
    sh(&net.client, &format!("ip address replace {from}/24 dev eth0"));
    let line = format!("nmap -S {from} -e eth0 -Pn -n --max-retries 0 {arguments} 10.9.0.1");
    net.client.spawn(&line.split(' ').collect::<Vec<_>>()).unwrap()
}

/// The addresses that opened a door, each with the door, and those that were called scanners.
fn result(ear: &mut Ear) -> (Vec<String>, Vec<String>) {
    let lines = ear.hear(&[]);
    let scanners =
        lines.iter().filter_map(|line| line.split_once(": scanner").map(|(who, _)| who.to_owned()));
    (scanners.collect(), common::opened(lines))
}

#[test]
fn without_the_guard_one_ascending_scan_opens_every_ascending_sequence() {
    let mut ear = Ear::new(&format!("[options]\nScanLimit = 0\n{DOORS}"));
    nmap(&ear.net, 3, "-sS -p 1-2000 -r --min-rate 1000");
    let (scanners, mut opened) = result(&mut ear);
    opened.sort();
    assert_eq!(opened, ["10.9.0.3: apart", "10.9.0.3: neighbours", "10.9.0.3: syn"]);
    assert_eq!(scanners, [""; 0]);
}

#[test]
fn no_fast_scan_opens_a_door_in_whatever_order_and_with_whatever_flags() {
    let mut ear = Ear::new(DOORS);
    let scans = [
        "-sS -p- -r --min-rate 10000",
        "-sS -p- --min-rate 10000",
        "-sS -p 1-2000 -r --min-rate 1000",
        "-sS -p 1-2000 --min-rate 1000",
        "-sS -p 680-720 -r --min-rate 1000",
        "-sS -p 680-720 -r --scan-delay 50ms",
        "-sF -p 1-2000 -r --min-rate 1000",
        "-sN -p 1-2000 -r --min-rate 1000",
        "-sX -p 1-2000 -r --min-rate 1000",
        "-sS --scanflags SYNRST -p 600-2000 -r --min-rate 1000",
        "-sU -p 600-1000 -r --min-rate 1000",
        "-sU -p 600-1000 --min-rate 1000",
        // What people type.
        "-sS",
        "-sT",
        "-sS -F -T5",
    ];
    let mut sources = Vec::new();
    for (neighbour, scan) in (3..).zip(scans) {
        nmap(&ear.net, neighbour, scan);
        sources.push(format!("10.9.0.{neighbour}"));
        let (scanners, opened) = result(&mut ear);
        assert_eq!(opened, [""; 0], "{scan}");
        assert_eq!(scanners, sources[sources.len() - 1..], "{scan}");
    }
}

#[test]
fn while_a_scan_runs_others_get_in_although_they_use_services_of_the_host() {
    let mut ear = Ear::new(DOORS);
    let services = [22, 25, 53, 80, 143, 443, 587, 853, 993, 8443];
    let _listening: Vec<_> = services.iter().map(|&port| ear.net.server.listen(port).unwrap()).collect();
    let mut scan = start_nmap(&ear.net, 3, "-sS -p- --min-rate 3000 --max-rate 3000");
    ear.knockd.wait_for("10.9.0.3: scanner");
    for (neighbour, port) in (101..=110).zip(services) {
        let net = &ear.net;
        assert!(net.client.can_connect(net.server.ipv4, port).unwrap());
        hit(net, neighbour, &services);
        hit(net, neighbour, &[700]);
        hit(net, neighbour, &services);
        hit(net, neighbour, &[701, 702]);
    }
    hit(&ear.net, 2, &[700, 701, 702]);
    scan.wait(SOON).unwrap();
    let (_, opened) = result(&mut ear);
    let expected = |who: u8| ["neighbours", "syn"].map(|door| format!("10.9.0.{who}: {door}"));
    assert_eq!(opened, (101..=110).chain([2]).flat_map(expected).collect::<Vec<_>>());
}

#[test]
fn forty_connections_to_open_ports_are_no_scan_and_the_knock_after_them_opens() {
    let net = Net::new().unwrap();
    // One of them is in the ephemeral range.
    let open: Vec<u16> = [22, 80, 443, 50000].into_iter().chain(8000..8036).collect();
    let _listening: Vec<_> = open.iter().map(|&port| net.server.listen(port).unwrap()).collect();
    let mut ear = Ear::of(net, DOORS, &["-v"]);
    let list = open.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    for scan in ["-sT", "-sS", "-sF"] {
        nmap(&ear.net, 3, &format!("{scan} -p {list}"));
    }
    let knock = [700, 701, 702].map(|port| syn(&ear.net, 3, port));
    assert_eq!(ear.opened(&knock), ["10.9.0.3: neighbours", "10.9.0.3: syn"]);
    assert_eq!(ear.knockd.count(": scanner"), 0, "{:#?}", ear.knockd.lines());
    // The kernel has not even shown them.
    let counters = &common::status_json(&ear.net)["counters"];
    assert_eq!(counters["packets"], 4, "{counters}");
}

#[test]
fn programs_that_begin_to_listen_are_known_within_seconds_while_packets_come() {
    let mut ear = Ear::new(DOORS);
    let ports: Vec<u16> = (8000..8011).collect();
    hit(&ear.net, 3, &ports);
    ear.knockd.wait_for("10.9.0.3: scanner");
    let _listening: Vec<_> = ports.iter().map(|&port| ear.net.server.listen(port).unwrap()).collect();
    let mut neighbours = 4..;
    common::wait_until("connections to them are no strays", || {
        std::thread::sleep(Duration::from_millis(500));
        hit(&ear.net, neighbours.next().unwrap(), &ports);
        result(&mut ear).0.is_empty()
    });
}

#[test]
fn a_scanner_keeps_its_lease_and_can_extend_it_but_opens_nothing_else() {
    let config = format!(
        "[mine]\nsequence = 900,901\ncommand = echo open\nstop_command = echo close\ncmd_timeout = 1000\n\
         [other]\nsequence = 910,911\ncommand = echo other\n{DOORS}"
    );
    let mut ear = Ear::new(&config);
    hit(&ear.net, 3, &[900, 901]);
    ear.knockd.wait_for("mine: running command: echo open");
    nmap(&ear.net, 3, "-sS -p 1-600 -r --min-rate 1000");
    ear.knockd.wait_for("10.9.0.3: scanner");
    ear.knockd.take_lines();
    let knocks = [910, 911, 900, 901].map(|port| syn(&ear.net, 3, port));
    assert!(ear.opened(&knocks).contains(&"10.9.0.3: mine".to_owned()));
    hit(&ear.net, 4, &[910, 911]);
    ear.knockd.wait_for("other: running command: echo other");
    assert_eq!(ear.knockd.count("running command"), 2, "{:#?}", ear.knockd.lines());
}

#[test]
fn the_addresses_of_one_ipv6_network_are_one_scanner() {
    let mut ear = Ear::new(DOORS);
    if !common::has_ipv6(&ear.net) {
        return;
    }
    let to = ear.net.server.ipv6;
    let syn =
        |host, port| Frame::tcp(Ipv6Addr::new(0x2001, 0xdb8, 1, 1, 0, 0, 0, host), to, port, Flags::SYN);
    let scan: Vec<_> = (1..=11).map(|number| syn(number, number)).collect();
    let knock: Vec<_> = (700..=702).map(|port| syn(99, port)).collect();
    assert_eq!(ear.opened(&knock).len(), 2);
    assert_eq!(ear.opened(&[scan, knock].concat()), [""; 0]);
}

#[test]
fn scanners_are_listed_and_one_that_is_forgiven_can_knock_at_once() {
    let mut ear = Ear::new(DOORS);
    let ask = |net: &Net, what: &str| sh(&net.server, &format!("'{}' {what} 2>&1 || true", common::KNOCKD));
    assert_eq!(ask(&ear.net, "scanners"), "Scanners: 0\n");
    for neighbour in [3, 4] {
        hit(&ear.net, neighbour, &(100..111).collect::<Vec<_>>());
        ear.knockd.wait_for(&format!("10.9.0.{neighbour}: scanner"));
    }
    let listed = ask(&ear.net, "scanners");
    assert!(listed.starts_with("Scanners: 2\n  10.9.0.") && listed.contains("  ignored for "), "{listed}");
    let json: serde_json::Value = serde_json::from_str(&ask(&ear.net, "scanners --format json")).unwrap();
    assert_eq!((&json["reply"], &json["total"]), (&"scanners".into(), &2.into()));
    assert!(json["listed"][0]["left"].as_u64().is_some_and(|left| left <= 61), "{json}");
    assert_eq!(ask(&ear.net, "forgive 10.9.0.3"), "10.9.0.3 is no longer ignored\n");
    assert_eq!(ask(&ear.net, "forgive 10.9.0.3"), "knockd: 10.9.0.3 is not ignored: it is no scanner\n");
    for _ in 0..2 {
        ear.knockd.wait_for("): forgive 10.9.0.3");
    }
    ear.knockd.take_lines();
    let knocks: Vec<_> =
        [3, 4].into_iter().flat_map(|who| [700, 701, 702].map(|port| syn(&ear.net, who, port))).collect();
    assert_eq!(ear.opened(&knocks), ["10.9.0.3: neighbours", "10.9.0.3: syn"]);
    assert!(ask(&ear.net, "scanners").contains("Scanners: 1\n  10.9.0.4"));
}
