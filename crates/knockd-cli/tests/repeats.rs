//! Packets that come again, knocks that come together, and packets that pass several interfaces.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Ear, Knockd, SOON, knock, sh, syn};
use testbed::Net;

const DOOR: &str = "[door]\nsequence = 7101,8202,9303\ntcpflags = syn\n";

#[test]
fn connection_attempts_that_outlive_the_pauses_between_them_open_the_door() {
    let net = Net::new().unwrap();
    // So nothing answers, as behind a firewall that drops, and the client's kernel sends each SYN again after 1 and 3
    // s.
    sh(&net.server, "ip route add blackhole 10.9.0.2/32");
    let mut knockd = Knockd::start(&net, DOOR);
    let connect = "for port in 7101 8202 9303; do
                     timeout 4 bash -c \"exec 3<>/dev/tcp/10.9.0.1/$port\" 2>/dev/null &
                     sleep 1.8
                   done
                   wait";
    net.client.run(&["bash", "-c", connect]).unwrap();
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
}

#[test]
fn of_two_knocks_at_once_one_opens() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    std::thread::scope(|scope| {
        let knocking = || knock(&net.client, "-d 200 10.9.0.1 7101 8202 9303");
        scope.spawn(knocking);
        // The second knock begins while the first is under way.
        knockd.wait_for("10.9.0.2: door: Stage 1");
        knockd.wait_for("10.9.0.2: door: Stage 2");
        scope.spawn(knocking);
    });
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
}

#[test]
fn a_sequence_of_a_one_time_file_opens_once_for_two_knocks_at_once() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/lines", " 7101,8202,9303\n 5001,5002\n").unwrap();
    let door = "[door]\none_time_sequences = /run/lines\nstart_command = echo opened for %IP%\n";
    let mut ear = Ear::of(net, door, &["-v"]);
    let frames = [7101, 8202, 7101, 9303, 8202, 9303].map(|port| syn(&ear.net, 3, port));
    assert_eq!(ear.opened(&frames), ["10.9.0.3: door"]);
    ear.knockd.wait_for("opened for 10.9.0.3");
}

/// A net whose server routes between the client and 198.51.100.0/24, which is behind its interface `behind`.
fn with_router() -> Net {
    let net = Net::new().unwrap();
    // The other end of the cable has to be somewhere else, so it is on the client, which does not listen there.
    let mut on_client = net.client.spawn(&["sh", "-c", "echo $$; exec sleep 1000"]).unwrap();
    let client = on_client.wait_for_line("", SOON).unwrap().text;
    let router = format!(
        "set -e
         ip link add behind type veth peer name beyond netns {client}
         ip address add 198.51.100.1/24 dev behind
         ip link set behind up
         ip neighbour add 198.51.100.7 lladdr 02:00:00:00:00:77 dev behind nud permanent
         echo 1 >/proc/sys/net/ipv4/ip_forward"
    );
    sh(&net.server, &router);
    sh(&net.client, "ip link set beyond up; ip route add 198.51.100.0/24 via 10.9.0.1");
    net
}

/// Doors behind the router, and one for the last packet.
const BEHIND: &str = "[one]\nsequence = 7101\ntarget = 198.51.100.7\n\
                      [three]\nsequence = 8202,8202,9303\ntarget = 198.51.100.7\n\
                      [last]\nsequence = 5001\ntarget = 198.51.100.7\n";

#[test]
fn a_packet_that_a_router_passes_on_is_one_hit_on_whatever_interfaces_it_is_seen() {
    for interfaces in ["eth0,behind", "any", "behind", "eth0"] {
        let net = with_router();
        let mut knockd = Knockd::start_with(&net, BEHIND, &["-v", "-i", interfaces]);
        let mut assert_opened = |expected: usize| {
            knock(&net.client, "198.51.100.7 5001");
            knockd.wait_for("10.9.0.2: last: OPEN SESAME");
            let count = |door| knockd.count(&format!("10.9.0.2: {door}: OPEN SESAME"));
            assert_eq!((count("one"), count("three")), (expected, 0), "{interfaces}: {:#?}", knockd.lines());
        };
        knock(&net.client, "198.51.100.7 7101 8202 9303");
        assert_opened(1);
        // A SYN that the client's kernel sends again a second later is another hit, as in 0.8.
        let connect = "timeout 1.5 bash -c 'exec 3<>/dev/tcp/198.51.100.7/7101'; true";
        net.client.run(&["bash", "-c", connect]).unwrap();
        assert_opened(3);
    }
}
