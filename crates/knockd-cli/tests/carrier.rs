//! Knocks from a network whose proxy passes on only complete connections, as mobile carriers' do, to a real knockd.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use common::{Knockd, hit, knock, wait_until};
use testbed::{Net, Running};

/// The far end of the client's `tun0`: behind it is the proxy, 60 ms there and back, and behind that the server.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);
const OPENED: &str = "10.9.0.2: door: OPEN SESAME";

/// The client of a carrier, whose proxy goes to the server.
struct Carrier {
    net: Net,
    knockd: Knockd,
    _proxy: [Running; 2],
}

impl Carrier {
    fn new() -> Self {
        let net = Net::new().unwrap();
        let mirror = net.client.mirror(Duration::from_millis(30)).unwrap();
        let proxy = net.client.proxy(9999, net.server.ipv4).unwrap();
        let rules = "add table ip carrier
                     add chain ip carrier in { type nat hook prerouting priority dstnat; }
                     add rule ip carrier in iifname tun0 meta l4proto tcp redirect to :9999";
        net.client.run_with_input(&["nft", "-f", "-"], rules.as_bytes()).unwrap();
        let config = "[door]\nsequence = 7000,8000,9000\ntcpflags = syn\n\
                      [later]\nsequence = 5000\n";
        let knockd = Knockd::start(&net, config);
        Self { net, knockd, _proxy: [mirror, proxy] }
    }

    /// Returns how often knockd has seen a hit at the door by the time that it sees a packet of a neighbour.
    fn stages(&mut self) -> usize {
        hit(&self.net, 3, &[5000]);
        self.knockd.wait_for("10.9.0.3: later: OPEN SESAME");
        self.knockd.count(": door: Stage")
    }

    /// Knocks again and again until the door opens: on a busy machine, the proxy may answer too late, or pass on a
    /// connection before an earlier one.
    fn opens_by(&mut self, mut knock: impl FnMut(&Net)) {
        let before = self.knockd.count(OPENED);
        wait_until("opened", || {
            knock(&self.net);
            (0..100).any(|_| {
                thread::sleep(Duration::from_millis(10));
                self.knockd.count(OPENED) > before
            })
        });
    }
}

#[test]
fn through_a_proxy_complete_connections_open_a_door_and_single_syns_do_not() {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    if device.is_err() && !common::is_root() {
        // Most machines let everybody make such a link in a network of their own, but some containers do not.
        testbed::skip("/dev/net/tun cannot be opened");
        return;
    }
    let mut carrier = Carrier::new();
    knock(&carrier.net.client, &format!("-d 500 {HOST} 7000 8000 9000"));
    assert_eq!(carrier.stages(), 0);

    carrier.opens_by(|net| {
        for port in [7000, 8000, 9000] {
            net.client.can_connect(HOST, port).unwrap();
        }
    });
    carrier.opens_by(|net| knock(&net.client, &format!("--connect {HOST} 7000 8000 9000")));
    carrier.opens_by(|net| {
        knock(&net.client, &format!("{HOST} 7000:tcp-connect 8000:tcp-connect 9000:tcp-connect"));
    });
}
