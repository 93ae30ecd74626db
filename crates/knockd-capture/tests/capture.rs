//! Shows on real interfaces what a capture sees.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod network;

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{fs, iter, thread};

use etherparse::{PacketBuilder, PacketBuilderStep, VlanId};
use knockd_capture::{
    Buffer, Capture, CaptureError, Interface, OpenError, PacketSocket, Program, Received, statistics,
};
use knockd_core::{Arrival, FlagRule, Hit, Interest, Packet, Passage, Step, TcpFlags};
use network::{in_own_network, interface, ip, make_loopback, make_veth, run_under, set_knock0_up};
use pnet_datalink::{Channel, DataLinkSender};

/// The one port that nothing but [`last_packet`] hits.
const LAST: u16 = 65000;

/// Makes two tests out of each of these functions, one for either place where packets can wait.
macro_rules! from_ring_and_queue {
    ($(fn $test:ident($buffer:ident) $body:block)*) => { $(
        mod $test {
            use super::*;

            fn body($buffer: Buffer) $body

            #[test]
            fn ring() {
                run_under(&["-n", "-Urn"], concat!(stringify!($test), "::ring"), || body(Buffer::Ring));
            }

            #[test]
            fn queue() {
                run_under(&["-n", "-Urn"], concat!(stringify!($test), "::queue"), || body(Buffer::Queue));
            }
        }
    )* };
}

fn any_flags(step: Step) -> Interest {
    Interest { step, flags: FlagRule::ANY, target: None }
}

fn aimed(address: &str, step: Step) -> Interest {
    Interest { target: Some(address.parse().unwrap()), ..any_flags(step) }
}

fn open(buffer: Buffer, interface: &Interface, interests: &[Interest]) -> Capture<PacketSocket> {
    let socket = PacketSocket::open(interface, &Program::new(interests, interface, false), buffer).unwrap();
    Capture::new(socket).unwrap()
}

/// Reads until the packet to [`LAST`], which is not returned.
fn packets<S: AsFd>(capture: &mut Capture<S>) -> Vec<Packet> {
    let mut packets = Vec::new();
    loop {
        match capture.receive().unwrap() {
            Received::Packet(packet) if packet.hit.step().port == LAST => return packets,
            Received::Packet(packet) => packets.push(packet),
            Received::Undecodable(_) | Received::Drained | Received::Dropped(_) => {}
        }
    }
}

/// Reads until it fails.
fn first_error<S: AsFd>(capture: &mut Capture<S>) -> CaptureError {
    loop {
        if let Err(error) = capture.receive() {
            return error;
        }
    }
}

fn port_of(received: &Received) -> Option<u16> {
    match received {
        Received::Packet(packet) => Some(packet.hit.step().port),
        Received::Undecodable(_) | Received::Drained | Received::Dropped(_) => None,
    }
}

fn ports(capture: &mut Capture<PacketSocket>) -> Vec<u16> {
    packets(capture).iter().map(|packet| packet.hit.step().port).collect()
}

/// A sender of raw Ethernet frames.
fn sender(name: &str) -> Box<dyn DataLinkSender> {
    let interface = pnet_datalink::interfaces().into_iter().find(|interface| interface.name == name).unwrap();
    let config = pnet_datalink::Config { promiscuous: false, ..pnet_datalink::Config::default() };
    match pnet_datalink::channel(&interface, config).unwrap() {
        Channel::Ethernet(sender, _) => sender,
        _ => panic!("pnet knows only this kind"),
    }
}

fn ethernet() -> PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [0xff; 6])
}

fn udp_frame(destination: &str, port: u16) -> Vec<u8> {
    let builder = match destination.parse().unwrap() {
        IpAddr::V4(address) => ethernet().ipv4([192, 0, 2, 9], address.octets(), 64),
        IpAddr::V6(address) => ethernet().ipv6(
            "2001:db8::9".parse::<std::net::Ipv6Addr>().unwrap().octets(),
            address.octets(),
            64,
        ),
    };
    written(builder.udp(9, port))
}

fn vlan_frame(vlan: u16, port: u16) -> Vec<u8> {
    let vlan = VlanId::try_new(vlan).unwrap();
    written(ethernet().single_vlan(vlan).ipv4([192, 0, 2, 9], [192, 0, 2, 1], 64).udp(9, port))
}

fn written(builder: PacketBuilderStep<etherparse::UdpHeader>) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &[0]).unwrap();
    bytes
}

fn send(sender: &mut dyn DataLinkSender, frame: &[u8]) {
    sender.send_to(frame, None).unwrap().unwrap();
}

fn send_last(sender: &mut dyn DataLinkSender) {
    send(sender, &udp_frame("192.0.2.1", LAST));
}

from_ring_and_queue! {
    fn packets_that_arrive_for_own_addresses_are_read(buffer) {
        let interface = make_veth();
        let steps = [Step::tcp(7000), Step::udp(7000), Step::udp(LAST)];
        let mut capture = open(buffer, &interface, &steps.map(any_flags));
        let mut peer = sender("peer0");
        let mut syn = Vec::new();
        let tcp = ethernet().ipv4([192, 0, 2, 9], [192, 0, 2, 1], 64).tcp(9, 7000, 1, 1024).syn();
        tcp.write(&mut syn, &[]).unwrap();
        send(&mut *peer, &udp_frame("192.0.2.1", 7001));
        send(&mut *peer, &syn);
        send(&mut *peer, &udp_frame("192.0.2.2", 7000));
        send(&mut *peer, &udp_frame("2001:db8::1", 7000));
        send(&mut *peer, &udp_frame("2001:db8::2", 7000));
        send_last(&mut *peer);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(packets(&mut capture), [
            Packet {
                source: address("192.0.2.9"),
                destination: address("192.0.2.1"),
                hit: Hit::Tcp { port: 7000, flags: TcpFlags::SYN },
                arrival: Arrival::Incoming,
                passage: Passage { interface: 0, tag: Passage::tag_of(9, 1) },
            },
            Packet {
                source: address("2001:db8::9"),
                destination: address("2001:db8::1"),
                hit: Hit::Udp { port: 7000 },
                arrival: Arrival::Incoming,
                passage: Passage { interface: 0, tag: Passage::tag_of(9, 0) },
            },
        ]);
    }

    fn outgoing_packets_to_a_target_are_seen(buffer) {
        let interface = make_veth();
        ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev knock0 nud permanent");
        let wanted = [7000, LAST].map(|port| aimed("192.0.2.9", Step::udp(port)));
        let mut capture = open(buffer, &interface, &wanted);
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        for port in [7000, 7001, LAST] {
            socket.send_to(&[0], ("192.0.2.9", port)).unwrap();
        }
        let arrivals: Vec<_> = packets(&mut capture).iter().map(|packet| packet.arrival).collect();
        assert_eq!(arrivals, [Arrival::Outgoing]);
    }

    fn a_frame_for_another_machine_is_told_apart_in_promiscuous_mode(buffer) {
        let interface = make_veth();
        ip("link set knock0 promisc on");
        let mut capture = open(buffer, &interface, &[7000, LAST].map(|port| any_flags(Step::udp(port))));
        let mut peer = sender("peer0");
        let other = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 77]);
        send(&mut *peer, &written(other.ipv4([192, 0, 2, 9], [192, 0, 2, 1], 64).udp(9, 7000)));
        send_last(&mut *peer);
        let arrivals: Vec<_> = packets(&mut capture).iter().map(|packet| packet.arrival).collect();
        assert_eq!(arrivals, [Arrival::OtherHost]);
    }

    fn loopback_packets_are_seen_once_even_those_to_a_target(buffer) {
        let interface = make_loopback();
        ip("route add local 198.51.100.0/24 dev lo");
        let own = [7000, LAST].map(|port| any_flags(Step::udp(port)));
        let mut capture = open(buffer, &interface, &[own[0], own[1], aimed("198.51.100.7", Step::udp(7000))]);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for to in [("127.0.0.1", 7000), ("198.51.100.7", 7000), ("127.0.0.1", 7000), ("127.0.0.1", LAST)] {
            socket.send_to(&[0], to).unwrap();
        }
        let packets = packets(&mut capture);
        assert!(packets.iter().all(|packet| packet.arrival == Arrival::Loopback), "{packets:?}");
        let destinations: Vec<_> = packets.iter().map(|p| p.destination.to_string()).collect();
        assert_eq!(destinations, ["127.0.0.1", "198.51.100.7", "127.0.0.1"]);
    }

    fn a_frame_of_a_vlan_is_not_seen_and_one_with_a_priority_tag_is(buffer) {
        let interface = make_veth();
        let steps = [Step::udp(7000), Step::udp(7001), Step::udp(LAST)];
        let mut capture = open(buffer, &interface, &steps.map(any_flags));
        let mut peer = sender("peer0");
        send(&mut *peer, &vlan_frame(5, 7000));
        send(&mut *peer, &vlan_frame(0, 7001));
        send_last(&mut *peer);
        assert_eq!(ports(&mut capture), [7001]);
    }

    fn an_interface_without_link_headers_is_captured_in_both_directions(buffer) {
        let tun = tappers::Tun::new_named(tappers::Interface::new("tun0").unwrap()).unwrap();
        ip("addr add 192.0.2.1/24 dev tun0");
        ip("addr add 2001:db8::1/64 dev tun0 nodad");
        ip("link set tun0 up");
        let interface = interface("tun0");
        let out = ["192.0.2.9", "2001:db8::9"].map(|address| aimed(address, Step::udp(7002)));
        let own = [7000, 7001, LAST].map(|port| any_flags(Step::udp(port)));
        let mut capture = open(buffer, &interface, &[&out[..], &own].concat());

        let without_link_header = |frame: &[u8]| frame.split_at(14).1.to_vec();
        tun.send(&without_link_header(&udp_frame("192.0.2.1", 7000))).unwrap();
        tun.send(&without_link_header(&udp_frame("2001:db8::1", 7001))).unwrap();
        UdpSocket::bind("192.0.2.1:0").unwrap().send_to(&[0], "192.0.2.9:7002").unwrap();
        UdpSocket::bind("[2001:db8::1]:0").unwrap().send_to(&[0], "[2001:db8::9]:7002").unwrap();
        tun.send(&without_link_header(&udp_frame("192.0.2.1", LAST))).unwrap();
        assert_eq!(ports(&mut capture), [7000, 7001, 7002, 7002]);
    }

    fn the_filter_can_be_replaced_while_another_thread_reads(buffer) {
        let interface = make_veth();
        let program = |port| Program::new(&[any_flags(Step::udp(port))], &interface, false);
        let socket = Arc::new(PacketSocket::open(&interface, &program(7000), buffer).unwrap());
        let mut capture = Capture::new(Arc::clone(&socket)).unwrap();
        let (seen, ports) = mpsc::channel();
        thread::spawn(move || {
            while let Ok(received) = capture.receive() {
                if let Received::Packet(packet) = received {
                    seen.send(packet.hit.step().port).unwrap();
                }
            }
        });
        let mut peer = sender("peer0");
        let mut send_both_and_wait = || {
            send(&mut *peer, &udp_frame("192.0.2.1", 7000));
            send(&mut *peer, &udp_frame("192.0.2.1", 7001));
            ports.recv_timeout(Duration::from_secs(10)).unwrap()
        };
        assert_eq!(send_both_and_wait(), 7000);
        socket.set_filter(&program(7001)).unwrap();
        assert_eq!(send_both_and_wait(), 7001);
        socket.set_filter(&program(7000)).unwrap();
        assert_eq!(send_both_and_wait(), 7000);
        assert!(ports.try_recv().is_err());
    }

    fn a_link_that_goes_down_is_told_once_and_the_same_capture_goes_on_when_it_is_up_again(buffer) {
        let interface = make_veth();
        let mut capture = open(buffer, &interface, &[any_flags(Step::udp(LAST))]);
        ip("link set knock0 down");
        let error = first_error(&mut capture);
        assert!(matches!(error, CaptureError::LinkDown), "{error}");
        let (seen, received) = mpsc::channel();
        thread::spawn(move || while seen.send(capture.receive().unwrap()).is_ok() {});
        let meanwhile = received.recv_timeout(Duration::from_millis(1500));
        assert!(meanwhile.is_err(), "it must wait, not spin: {meanwhile:?}");
        set_knock0_up();
        send_last(&mut *sender("peer0"));
        let mut next = iter::repeat_with(|| received.recv_timeout(Duration::from_secs(60)).unwrap());
        assert_eq!(next.find_map(|received| port_of(&received)), Some(LAST));
    }

    fn a_capture_can_be_opened_before_the_link_is_up(buffer) {
        make_veth();
        ip("link set knock0 down");
        let interface = interface("knock0");
        assert!(!interface.up);
        let mut capture = open(buffer, &interface, &[any_flags(Step::udp(LAST))]);
        assert!(matches!(first_error(&mut capture), CaptureError::LinkDown));
        set_knock0_up();
        send_last(&mut *sender("peer0"));
        assert_eq!(packets(&mut capture), []);
    }

    fn a_socket_is_taken_off_its_interface_when_that_is_deleted(buffer) {
        let interface = make_veth();
        let socket = PacketSocket::open(&interface, &Program::new(&[], &interface, false), buffer).unwrap();
        let mut capture = Capture::new(&socket).unwrap();
        ip("link set knock0 down");
        assert!(matches!(first_error(&mut capture), CaptureError::LinkDown));
        assert!(socket.is_on(interface.index), "it is merely down");
        ip("link del knock0");
        assert!(!socket.is_on(interface.index));
        let program = Program::new(&[], &interface, false);
        let error = PacketSocket::open(&interface, &program, buffer).err().unwrap();
        assert!(matches!(error, OpenError::InterfaceGone { .. }), "{error}");
        assert_eq!(error.to_string(), "interface knock0 no longer exists");
        // A new interface of that name is another one.
        make_veth();
        assert!(matches!(PacketSocket::open(&interface, &program, buffer), Err(OpenError::InterfaceGone { .. })));
    }

    fn packets_that_nobody_has_read_wait_for_the_next_reader_and_those_that_did_not_fit_are_counted(buffer) {
        let interface = make_veth();
        let program = Program::new(&[any_flags(Step::udp(7000)), any_flags(Step::udp(LAST))], &interface, false);
        let socket = PacketSocket::open(&interface, &program, buffer).unwrap();
        assert_eq!(socket.buffer(), buffer);
        let mut peer = sender("peer0");
        let frame = udp_frame("192.0.2.1", 7000);
        let sent = 100_000;
        for _ in 0..sent {
            send(&mut *peer, &frame);
        }
        let mut read = 0;
        // Three readers, of which each is dropped while it holds a packet.
        for _ in 0..3 {
            let mut capture = Capture::new(&socket).unwrap();
            for _ in 0..100 {
                assert_eq!(port_of(&capture.receive().unwrap()), Some(7000));
                read += 1;
            }
        }
        let repeated = if buffer == Buffer::Ring { 3 } else { 0 };
        let mut capture = Capture::new(&socket).unwrap();
        // With nothing more to read, the question about drops ends the wait.
        let dropped = loop {
            match capture.receive().unwrap() {
                Received::Dropped(count) => break count.get(),
                received => read += u32::from(port_of(&received).is_some()),
            }
        };
        while capture.receive().unwrap() != Received::Drained {
            read += 1;
        }
        assert_eq!(read - repeated + dropped, sent, "{read} read");
        send_last(&mut *peer);
        assert_eq!(packets(&mut capture), []);
    }

    fn a_batch_ends_only_when_no_packet_is_left_whatever_is_among_them(buffer) {
        let interface = make_veth();
        let program = Program::new(&[any_flags(Step::udp(7000))], &interface, false);
        let socket = PacketSocket::open(&interface, &program, buffer).unwrap();
        let mut peer = sender("peer0");
        let good = udp_frame("2001:db8::1", 7000);
        // The filter does not look behind a hop-by-hop header; this one is longer than the packet.
        let mut junk = good.clone();
        junk.splice(20..21, [0]);
        for _ in 0..20 {
            send(&mut *peer, &junk);
            send(&mut *peer, &good);
        }
        let mut arrived = 0;
        while arrived < 40 {
            arrived += statistics(&socket).unwrap().packets;
        }
        let mut capture = Capture::new(&socket).unwrap();
        let batch: Vec<_> =
            iter::from_fn(|| Some(capture.receive().unwrap()).filter(|next| *next != Received::Drained)).collect();
        assert_eq!(batch.len(), 40);
        for pair in batch.chunks(2) {
            assert!(matches!(pair, [Received::Undecodable(_), Received::Packet(_)]), "{pair:?}");
        }
    }

    fn a_packet_longer_than_its_room_is_read_as_far_as_its_headers(buffer) {
        let interface = make_veth();
        let steps = [Step::udp(7000), Step::udp(LAST)];
        let mut capture = open(buffer, &interface, &steps.map(any_flags));
        let mut bytes = Vec::new();
        let long = ethernet().ipv4([192, 0, 2, 9], [192, 0, 2, 1], 64).udp(9, 7000);
        long.write(&mut bytes, &[7; 1400]).unwrap();
        let mut peer = sender("peer0");
        send(&mut *peer, &bytes);
        send_last(&mut *peer);
        assert_eq!(ports(&mut capture), [7000]);
    }
}

in_own_network! {
    fn the_largest_program_fits_and_can_be_replaced_where_old_kernels_draw_the_line() {
        // Older kernels know this limit only for the whole machine; there it has this value already.
        let _ = fs::write("/proc/sys/net/core/optmem_max", "20480");
        let interface = make_veth();
        let programs = [3, 61, 97].map(|distance| {
            let steps = (0..=u16::MAX).step_by(distance).flat_map(|port| [Step::tcp(port), Step::udp(port)]);
            let targets = (1..=30).flat_map(|n| {
                [aimed(&format!("198.51.100.{n}"), Step::tcp(1)), aimed(&format!("2001:db8::{n:x}"), Step::tcp(1))]
            });
            Program::new(&steps.map(any_flags).chain(targets).collect::<Vec<_>>(), &interface, false)
        });
        let socket = PacketSocket::open(&interface, &programs[0], Buffer::Ring).unwrap();
        assert!(socket.surplus() > 0, "it must be the largest");
        for program in &programs {
            socket.set_filter(program).unwrap();
        }
    }

    fn commands_do_not_inherit_the_socket() {
        let interface = make_loopback();
        let sockets = || {
            let output = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().matches("socket:").count()
        };
        let before = sockets();
        let capture = open(Buffer::Ring, &interface, &[]);
        assert_eq!(sockets(), before);
        drop(capture);
    }
}

#[test]
fn only_a_packet_socket_can_be_read() {
    assert!(Capture::new(UdpSocket::bind("127.0.0.1:0").unwrap()).is_err());
    assert!(Capture::new(fs::File::open("/dev/null").unwrap()).is_err());
}

#[test]
fn a_missing_privilege_is_named() {
    // A user namespace of its own gives no power over the network namespace of somebody else.
    run_under(&["-Ur"], "a_missing_privilege_is_named", || {
        let interface = interface("lo");
        let error = PacketSocket::open(&interface, &Program::new(&[], &interface, false), Buffer::Ring)
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("capturing packets requires root or CAP_NET_RAW"));
    });
}
