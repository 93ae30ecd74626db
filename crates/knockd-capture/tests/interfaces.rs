//! Shows on real interfaces what is known of them, and how their changes are noticed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod network;

use std::process::{self, Command};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use knockd_capture::{LinkWatch, interfaces};
use network::{find, in_own_network, interface, ip, make_veth};

in_own_network! {
    fn labelled_and_link_local_addresses_belong_to_their_interface() {
        make_veth();
        ip("addr add 198.51.100.1/24 dev knock0 label knock0:1");
        ip("addr add fe80::7/64 dev knock0 nodad");
        let found = interface("knock0");
        assert!(found.up && !found.loopback && found.master.is_none());
        assert_eq!(found.labels, [("knock0:1".to_owned(), "198.51.100.1".parse().unwrap())]);
        for address in ["192.0.2.1", "198.51.100.1", "2001:db8::1", "fe80::7"] {
            assert!(found.addresses.contains(&address.parse().unwrap()), "{address} of {found:?}");
        }
        assert_eq!(interfaces().iter().filter(|interface| interface.index == found.index).count(), 1);
        assert!(find("knock0:1").is_none());
    }

    fn a_change_of_links_or_addresses_ends_the_wait_and_no_change_does_not() {
        let watch = LinkWatch::open().unwrap();
        let (woken, wakes) = mpsc::channel();
        thread::spawn(move || while watch.wait().is_ok_and(|()| woken.send(()).is_ok()) {});
        let until_quiet = || while wakes.recv_timeout(Duration::from_millis(300)).is_ok() {};
        let must_wake = |change: &str| {
            until_quiet();
            ip(change);
            wakes.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|_| panic!("ip {change} woke nobody"));
        };
        must_wake("link add knock0 type veth peer name peer0");
        must_wake("link set peer0 up");
        must_wake("addr add 192.0.2.1/24 dev knock0");
        must_wake("addr del 192.0.2.1/24 dev knock0");
        must_wake("addr add 2001:db8::1/64 dev peer0 nodad");
        must_wake("link set knock0 up");
        must_wake("link set knock0 down");
        must_wake("link set knock0 name knock1");
        must_wake("link set knock1 name knock0");
        let mut elsewhere = Command::new("unshare").args(["-n", "sleep", "1000"]).spawn().unwrap();
        let is_elsewhere = || {
            let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
            of(elsewhere.id()) != of(process::id())
        };
        while !is_elsewhere() {
            thread::yield_now();
        }
        must_wake(&format!("link set peer0 netns {}", elsewhere.id()));
        must_wake("link del knock0");
        elsewhere.kill().unwrap();
        elsewhere.wait().unwrap();
        // What is still to be said about that comes late on a busy machine, but ends.
        let late = std::iter::from_fn(|| wakes.recv_timeout(Duration::from_secs(2)).ok()).take(50);
        assert!(late.count() < 50);
    }

    fn more_changes_than_the_watch_can_queue_are_one_change() {
        let watch = LinkWatch::open().unwrap();
        ip("link add knock0 type veth peer name peer0");
        for round in 0..400 {
            ip(["link set knock0 mtu 1400", "link set knock0 mtu 1500"][round % 2]);
        }
        watch.wait().unwrap();
        let (woken, wakes) = mpsc::channel();
        thread::spawn(move || while watch.wait().is_ok_and(|()| woken.send(()).is_ok()) {});
        assert!(wakes.recv_timeout(Duration::from_millis(500)).is_err(), "the queue was not drained");
    }

    fn ports_of_a_bridge_are_known_as_such() {
        make_veth();
        ip("link add bridge0 type bridge");
        ip("link set peer0 master bridge0");
        let ports: Vec<_> = interfaces().into_iter().filter(|i| i.master.is_some()).map(|i| i.name).collect();
        assert_eq!(ports, ["peer0"]);
        assert_eq!(interface("peer0").master, Some(interface("bridge0").index));
        ip("link set peer0 nomaster");
        assert_eq!(interface("peer0").master, None);
    }

    fn other_names_of_an_interface_are_known() {
        make_veth();
        ip("link property add dev knock0 altname lan altname a-name-that-is-longer-than-a-name-may-be");
        assert_eq!(interface("knock0").alternative_names, ["lan", "a-name-that-is-longer-than-a-name-may-be"]);
        assert_eq!(interface("peer0").alternative_names, [""; 0]);
        ip("link property del dev knock0 altname lan");
        assert_eq!(interface("knock0").alternative_names.len(), 1);
    }
}
