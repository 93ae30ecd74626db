//! A network namespace of a test's own, and what `knock` sends in it.
#![allow(dead_code, reason = "not every test binary uses all of it")]

use std::env;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;

/// Longer than the second after which Linux repeats a SYN or a FIN.
pub(crate) const UNTIL_REPEATED: Duration = Duration::from_millis(1500);
/// What was sent is in the socket's queue by the time `knock` has ended.
pub(crate) const AT_ONCE: Duration = Duration::from_millis(500);

#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    Tcp {
        to: SocketAddr,
        flags: u8,
    },
    Udp {
        to: SocketAddr,
        payload: Vec<u8>,
    },
    /// An echo request and its answer, with as many bytes behind their headers.
    Echo {
        to: IpAddr,
        size: usize,
    },
    EchoReply {
        to: IpAddr,
        size: usize,
    },
}

pub(crate) fn tcp(to: &str, flags: u8) -> Seen {
    Seen::Tcp { to: to.parse().unwrap(), flags }
}

pub(crate) fn udp(to: &str) -> Seen {
    udp_with(to, &[0])
}

pub(crate) fn udp_with(to: &str, payload: &[u8]) -> Seen {
    Seen::Udp { to: to.parse().unwrap(), payload: payload.to_vec() }
}

pub(crate) fn echo(to: &str, size: usize) -> Seen {
    Seen::Echo { to: to.parse().unwrap(), size }
}

/// Runs `body` with a capture in a fresh namespace: the outer call starts this very test again inside of one.
pub(crate) fn in_namespace(test: &str, body: impl FnOnce(Wire)) {
    const INSIDE: &str = "KNOCK_TEST_NAMESPACE";
    if env::var_os(INSIDE).is_some() {
        lay_cables();
        body(Wire::open());
        return;
    }
    // Root in a container may make a network namespace and no user namespace; a plain user the other way round.
    let as_user = Command::new("unshare").args(["-Urn", "true"]).status();
    let how = if as_user.is_ok_and(|status| status.success()) { "-Urn" } else { "-n" };
    let output = Command::new("unshare")
        .arg(how)
        .arg(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare(1) is needed");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
}

fn lay_cables() {
    ip(&[
        "link set lo up",
        "link add near type veth peer name far",
        "address add 192.0.2.2/24 dev near",
        "address add 2001:db8::2/64 dev near nodad",
        "address add fe80::2/64 dev near nodad",
        // In this order packets can be sent at once; in the other one the kernel connects the ends some time later.
        "link set far up",
        "link set near up",
        // Nobody at the other end has this hardware address, or any of these.
        "neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev near",
        "neighbour add 2001:db8::1 lladdr 02:00:00:00:00:01 dev near",
        "neighbour add fe80::1 lladdr 02:00:00:00:00:01 dev near",
    ]);
}

/// Runs ip(8) with each of these lines.
pub(crate) fn ip(lines: &[&str]) {
    for line in lines {
        let status = Command::new("ip").args(line.split(' ')).status().expect("ip(8) is needed");
        assert!(status.success(), "ip {line}");
    }
}

pub(crate) fn privileged_knock(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_knock")).args(line.split(' ')).output().unwrap()
}

pub(crate) fn knock(line: &str) -> Output {
    Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_knock")])
        .args(line.split(' '))
        .output()
        .expect("setpriv(1) is needed")
}

pub(crate) fn sent(output: &Output) {
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

/// Sees every TCP and UDP packet of the namespace once, when it is sent.
pub(crate) struct Wire(Socket);

impl Wire {
    fn open() -> Self {
        // linux/if_ether.h, in network byte order; with less than all protocols outgoing packets are not seen.
        const ETH_P_ALL: u16 = 3;
        // Of linux/filter.h and linux/if_packet.h: accept what skb->pkt_type calls PACKET_OUTGOING.
        const OUTGOING_ONLY: [SockFilter; 4] = [
            SockFilter::new(0x20, 0, 0, 0xffff_f004),
            SockFilter::new(0x15, 0, 1, 4),
            SockFilter::new(0x06, 0, 0, 0xffff),
            SockFilter::new(0x06, 0, 0, 0),
        ];
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
        socket.attach_filter(&OUTGOING_ONLY).unwrap();
        Self(socket)
    }

    pub(crate) fn seen_within(&mut self, time: Duration) -> Vec<Seen> {
        self.packets_within(time).into_iter().map(|(_, seen)| seen).collect()
    }

    /// Returns the source of each packet.
    pub(crate) fn sources_within(&mut self, time: Duration) -> Vec<String> {
        self.packets_within(time).into_iter().map(|(from, _)| from.to_string()).collect()
    }

    fn packets_within(&mut self, time: Duration) -> Vec<(IpAddr, Seen)> {
        let end = Instant::now() + time;
        let mut frame = [0; 2048];
        let mut seen = Vec::new();
        loop {
            // What has come by the end counts, also when it is read later.
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.0.set_read_timeout(Some(left)).unwrap();
            match self.0.read(&mut frame) {
                Ok(length) => seen.extend(decode(&frame[..length])),
                Err(_) if Instant::now() >= end => return seen,
                Err(_) => {}
            }
        }
    }
}

fn decode(frame: &[u8]) -> Option<(IpAddr, Seen)> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (from, to): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let seen = match packet.transport? {
        TransportSlice::Tcp(tcp) => {
            Seen::Tcp { to: (to, tcp.destination_port()).into(), flags: tcp.slice()[13] }
        }
        TransportSlice::Udp(udp) => {
            Seen::Udp { to: (to, udp.destination_port()).into(), payload: udp.payload().to_vec() }
        }
        TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(_) => Seen::Echo { to, size: icmp.payload().len() },
            Icmpv4Type::EchoReply(_) => Seen::EchoReply { to, size: icmp.payload().len() },
            _ => return None,
        },
        TransportSlice::Icmpv6(icmp) => match icmp.icmp_type() {
            Icmpv6Type::EchoRequest(_) => Seen::Echo { to, size: icmp.payload().len() },
            Icmpv6Type::EchoReply(_) => Seen::EchoReply { to, size: icmp.payload().len() },
            _ => return None,
        },
        TransportSlice::Igmp(_) => return None,
    };
    Some((from, seen))
}
