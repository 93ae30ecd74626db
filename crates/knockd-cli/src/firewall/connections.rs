//! Which connections of a source there are, as the kernel tracks them: looked at when somebody asks, never listened to.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::time::Duration;

use knockd_core::{Door, Prefix, Protocol, Service, Services};
use netlink_packet_core::{DefaultNla, NetlinkMessage};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use nix::errno::Errno;

use super::answers::attribute;
use super::netlink::Netlink;
use super::nft::{TCP, UDP, bytes, nested};
use super::ruleset::Family;

/// Whose connections to look for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) source: Prefix,
    /// None if their door is gone.
    pub(super) services: Option<Services>,
    /// Where the services are, if not on this host.
    pub(super) target: Option<IpAddr>,
    /// A connection that was silent for longer does not count.
    pub(super) idle_limit: Duration,
}

impl Wanted {
    fn has(&self, connection: &Connection) -> bool {
        connection.is_alive
            && connection.idle <= self.idle_limit
            && self.services.as_ref().is_some_and(|services| connection.is_to(services, self.target))
    }
}

/// Says whether this host has the address. Connections that it forwards to others do not count.
fn is_local(address: IpAddr) -> bool {
    // Nobody forwards to a link-local address, and binding one takes an interface.
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
        || UdpSocket::bind((address, 0)).is_ok()
}

/// Counts the connections of each, with one look at all.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn count(netlink: &mut Netlink, wanted: &[Wanted]) -> Result<Vec<u32>, Errno> {
    let mut of_source: BTreeMap<Prefix, Vec<usize>> = BTreeMap::new();
    for (index, Wanted { source, .. }) in wanted.iter().enumerate() {
        of_source.entry(*source).or_default().push(index);
    }
    let mut counts = vec![0; wanted.len()];
    let ports = |protocol, family: Family| {
        let of_family = wanted.iter().filter(move |wanted| family.has(wanted.source.address()));
        of_family.filter_map(|wanted| wanted.services.as_ref()).flat_map(move |it| ports(it, protocol))
    };
    for_each(netlink, ports, |connection| {
        let source = connection.source.ip();
        let sources = [source.into(), Prefix::around(source)];
        for &index in sources.iter().filter_map(|source| of_source.get(source)).flatten() {
            if let (Some(count), Some(wanted)) = (counts.get_mut(index), wanted.get(index))
                && wanted.has(&connection)
            {
                *count += 1;
            }
        }
    })?;
    Ok(counts)
}

/// Returns the connections to the services of doors that have got in.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn to(netlink: &mut Netlink, doors: &[Door]) -> Result<Vec<Connection>, Errno> {
    let services: Vec<_> = doors.iter().filter_map(Door::services).collect();
    let ports = |protocol, _| services.iter().flat_map(move |it| ports(it, protocol));
    let mut found = Vec::new();
    for_each(netlink, ports, |connection| found.extend(connection.has_got_in.then_some(connection)))?;
    Ok(found)
}

fn ports(services: &Services, protocol: Protocol) -> impl Iterator<Item = &RangeInclusive<u16>> {
    services.iter().filter(move |service| service.protocol() == protocol).map(Service::ports)
}

/// Looks at all connections that the kernel does not filter out: those to the port, if there is one alone, else all of the protocol.
fn for_each<'a, P: Iterator<Item = &'a RangeInclusive<u16>>>(
    netlink: &mut Netlink,
    ports: impl Fn(Protocol, Family) -> P,
    mut each: impl FnMut(Connection),
) -> Result<(), Errno> {
    let timeouts = Timeouts::read();
    for (protocol, family) in KINDS {
        let mut ports = ports(protocol, family);
        let Some(first) = ports.next() else { continue };
        let is_one = first.start() == first.end() && ports.all(|other| other == first);
        let port = is_one.then_some(*first.start());
        let mut read = |entry: &[u8]| {
            let connection = Connection::read(entry, timeouts);
            connection.filter(|connection| connection.protocol == protocol).into_iter().for_each(&mut each);
        };
        // Linux before 5.8 ignores the filter or refuses it.
        match netlink.for_each(&get(family, filter(protocol, port)), &mut read) {
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
                netlink.for_each(&get(family, Vec::new()), &mut read)?;
            }
            result => result?,
        }
    }
    Ok(())
}

/// The kernel filters by protocol only within a family.
const KINDS: [(Protocol, Family); 4] = [
    (Protocol::Tcp, Family::Ipv4),
    (Protocol::Tcp, Family::Ipv6),
    (Protocol::Udp, Family::Ipv4),
    (Protocol::Udp, Family::Ipv6),
];

/// How long the kernel remembers connections without packets.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    established: Duration,
    /// Of those in which data has not been acknowledged.
    unanswered: Duration,
    udp_stream: Duration,
}

impl Timeouts {
    fn read() -> Self {
        let read = |name: &str, default| {
            let text = fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
            let seconds = text.ok().and_then(|text| text.trim().parse().ok());
            Duration::from_secs(seconds.unwrap_or(default))
        };
        Self {
            established: read("tcp_timeout_established", 432_000),
            unanswered: read("tcp_timeout_unacknowledged", 300).max(read("tcp_timeout_max_retrans", 300)),
            udp_stream: read("udp_timeout_stream", 120),
        }
    }

    /// Returns for how long a connection has been silent that the kernel will forget in this time.
    fn idle(self, protocol: Protocol, left: Duration) -> Duration {
        let all = match protocol {
            Protocol::Udp => self.udp_stream,
            Protocol::Tcp if left <= self.unanswered && self.unanswered < self.established => self.unanswered,
            Protocol::Tcp => self.established,
        };
        all.saturating_sub(left)
    }
}

/// A connection, or what is left of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Connection {
    pub(super) protocol: Protocol,
    pub(super) source: SocketAddr,
    /// Where its first packet went.
    pub(super) destination: SocketAddr,
    /// Whether both ends have agreed to it, and neither has ended it.
    is_alive: bool,
    /// Whether the other end has agreed to it, even if it has ended since.
    has_got_in: bool,
    idle: Duration,
}

/// Attributes of an entry, see `linux/netfilter/nfnetlink_conntrack.h`.
const TUPLE_ORIGINAL: u16 = 1;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const TIMEOUT: u16 = 7;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

/// Attributes of a tuple.
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;

impl Connection {
    /// Says whether it is one to these services of a door; of this host, unless the door has a target.
    pub(super) fn is_to(&self, services: &Services, target: Option<IpAddr>) -> bool {
        let destination = self.destination.ip();
        ports(services, self.protocol).any(|ports| ports.contains(&self.destination.port()))
            && target.map_or_else(|| is_local(destination), |target| target == destination)
    }

    fn read(entry: &[u8], timeouts: Timeouts) -> Option<Self> {
        const TCP_ESTABLISHED: u8 = 3;
        const SEEN_REPLY: u32 = 1 << 1;
        const ASSURED: u32 = 1 << 2;
        // The guard sees the default zone.
        if attribute(entry, ZONE).is_some_and(|zone| zone.iter().any(|&byte| byte != 0)) {
            return None;
        }
        let tuple = attribute(entry, TUPLE_ORIGINAL)?;
        let number = |value: &[u8]| Some(u32::from_be_bytes(value.try_into().ok()?));
        let status = number(attribute(entry, STATUS)?)?;
        let is_assured = status & ASSURED != 0;
        let (protocol, is_alive, has_got_in) = match *attribute(attribute(tuple, TUPLE_PROTOCOL)?, 1)? {
            [TCP] => {
                let state = attribute(attribute(attribute(entry, PROTOCOL_INFO)?, 1)?, 1)?;
                (Protocol::Tcp, *state == [TCP_ESTABLISHED], is_assured)
            }
            [UDP] => (Protocol::Udp, is_assured, status & SEEN_REPLY != 0),
            _ => return None,
        };
        let addresses = attribute(tuple, TUPLE_ADDRESSES)?;
        let address = |v4, v6| match attribute(addresses, v4) {
            Some(octets) => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
            None => Some(IpAddr::from(<[u8; 16]>::try_from(attribute(addresses, v6)?).ok()?)),
        };
        let port = |kind| {
            let port = attribute(attribute(tuple, TUPLE_PROTOCOL)?, kind)?;
            Some(u16::from_be_bytes(port.try_into().ok()?))
        };
        let left = Duration::from_secs(number(attribute(entry, TIMEOUT)?)?.into());
        Some(Self {
            protocol,
            source: SocketAddr::new(address(1, 3)?, port(2)?),
            destination: SocketAddr::new(address(2, 4)?, port(3)?),
            is_alive,
            has_got_in,
            idle: timeouts.idle(protocol, left),
        })
    }
}

/// Asks for the connections of a family that pass the filter.
fn get(family: Family, filter: Vec<DefaultNla>) -> NetlinkMessage<NetfilterMessage> {
    const GET: u8 = 1;
    let family = match family {
        Family::Ipv4 => NetfilterProtoFamily::IPv4,
        Family::Ipv6 => NetfilterProtoFamily::IPv6,
    };
    let inner = ConntrackMessage::Other { message_type: GET, attributes: filter };
    NetlinkMessage::from(NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner))
}

/// Lets the connections of a protocol pass, or of these only those to the port.
fn filter(protocol: Protocol, port: Option<u16>) -> Vec<DefaultNla> {
    // What of the tuple counts, see `linux/netfilter/nfnetlink_conntrack.h` for the order.
    const PROTOCOL: u32 = 1 << 3;
    const DESTINATION_PORT: u32 = 1 << 5;
    let number = match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    };
    let mut parts = vec![bytes(1, [number])];
    parts.extend(port.map(|port| bytes(3, port.to_be_bytes())));
    let flags = PROTOCOL | port.map_or(0, |_| DESTINATION_PORT);
    let tuple = nested(TUPLE_ORIGINAL, &[nested(TUPLE_PROTOCOL, &parts)]);
    vec![tuple, nested(FILTER, &[bytes(1, flags.to_ne_bytes())])]
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;

    use super::super::tests::{in_namespace, nft};
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        established: Duration::from_secs(432_000),
        unanswered: Duration::from_secs(300),
        udp_stream: Duration::from_secs(120),
    };

    fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// An entry as the kernel tells it.
    fn entry(protocol: u8, state: u8, status: u32, left: u32, zone: Option<u16>) -> Vec<u8> {
        let addresses = [attribute_of(1, &[192, 0, 2, 7]), attribute_of(2, &[192, 0, 2, 1])].concat();
        let ports = [
            attribute_of(1, &[protocol]),
            attribute_of(2, &40000_u16.to_be_bytes()),
            attribute_of(3, &22_u16.to_be_bytes()),
        ];
        let tuple =
            [attribute_of(TUPLE_ADDRESSES, &addresses), attribute_of(TUPLE_PROTOCOL, &ports.concat())];
        let info = attribute_of(1, &attribute_of(1, &[state]));
        let mut all = vec![
            attribute_of(TUPLE_ORIGINAL, &tuple.concat()),
            attribute_of(STATUS, &status.to_be_bytes()),
            attribute_of(PROTOCOL_INFO, &info),
            attribute_of(TIMEOUT, &left.to_be_bytes()),
        ];
        all.extend(zone.map(|zone| attribute_of(ZONE, &zone.to_be_bytes())));
        all.concat()
    }

    fn read(entry: &[u8]) -> Option<Connection> {
        Connection::read(entry, TIMEOUTS)
    }

    fn is_alive(entry: &[u8]) -> bool {
        read(entry).unwrap().is_alive
    }

    fn has_got_in(entry: &[u8]) -> bool {
        read(entry).unwrap().has_got_in
    }

    #[test]
    fn an_established_connection_in_the_default_zone_counts_and_nothing_else_does() {
        let connection = Connection {
            protocol: Protocol::Tcp,
            source: "192.0.2.7:40000".parse().unwrap(),
            destination: "192.0.2.1:22".parse().unwrap(),
            is_alive: true,
            has_got_in: false,
            idle: Duration::from_secs(60),
        };
        assert_eq!(read(&entry(TCP, 3, 0, 431_940, None)), Some(connection));
        assert_eq!(read(&entry(TCP, 3, 0, 431_940, Some(0))), Some(connection));
        assert_eq!(read(&entry(TCP, 3, 0, 431_940, Some(7))), None);
        for state in (0..=10).filter(|state| *state != 3) {
            assert!(!is_alive(&entry(TCP, state, u32::MAX, 100, None)), "{state}");
        }
        let udp = Connection { protocol: Protocol::Udp, has_got_in: true, ..connection };
        assert_eq!(read(&entry(UDP, 0, 0b1110, 60, None)), Some(udp));
        assert!(!is_alive(&entry(UDP, 3, 0b1010, 60, None)), "one that was answered once");
        assert_eq!(read(&entry(132, 3, u32::MAX, 60, None)), None);
    }

    #[test]
    fn a_connection_has_got_in_once_the_server_has_agreed_to_it_whatever_has_become_of_it() {
        const TIME_WAIT: u8 = 7;
        assert!(has_got_in(&entry(TCP, TIME_WAIT, 0b1110, 100, None)));
        assert!(!has_got_in(&entry(TCP, 2, 0b1010, 60, None)), "the client has not answered");
        assert!(has_got_in(&entry(UDP, 0, 0b1010, 30, None)));
        assert!(!has_got_in(&entry(UDP, 0, 0b1000, 30, None)), "the server has not answered");
    }

    #[test]
    fn the_kernel_tells_only_what_is_asked_for_and_an_old_one_that_tells_all_does_no_harm() {
        in_namespace(|| {
            Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            // The kernel tracks connections only for those who ask for their state.
            nft("add table inet t");
            nft("add chain inet t c { type filter hook input priority 0; }");
            nft("add rule inet t c ct state established accept");
            let servers = [22, 23].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
            let connect = |server: &TcpListener| TcpStream::connect(server.local_addr().unwrap()).unwrap();
            let _connections = [&servers[0], &servers[0], &servers[1]].map(connect);
            let mut netlink = Netlink::open().unwrap();
            let flow = UdpSocket::bind("127.0.0.1:0").unwrap();
            flow.send_to(b"", flow.local_addr().unwrap()).unwrap();
            let mut told = |family, filter| {
                let mut number = 0;
                netlink.for_each(&get(family, filter), |_| number += 1).unwrap();
                number
            };
            let (four, six) = (Family::Ipv4, Family::Ipv6);
            let tcp = |port| filter(Protocol::Tcp, port);
            let in_all = (told(four, tcp(Some(22))), told(four, tcp(None)), told(four, Vec::new()));
            assert_eq!(in_all, (2, 3, 4));
            assert_eq!((told(six, tcp(Some(22))), told(six, Vec::new())), (0, 0));
            let services: [Services; 2] = ["tcp/22", "tcp/1-22, tcp/23"].map(|text| text.parse().unwrap());
            let wanted = |source: [u8; 4], services: Option<&Services>| Wanted {
                source: IpAddr::from(source).into(),
                services: services.cloned(),
                target: None,
                idle_limit: Duration::from_secs(3600),
            };
            let [one, all] = [Some(&services[0]), Some(&services[1])];
            let wanted = [
                wanted([127, 0, 0, 1], one),
                wanted([127, 0, 0, 1], all),
                wanted([127, 0, 0, 2], all),
                wanted([127, 0, 0, 1], None),
            ];
            assert_eq!(count(&mut netlink, &wanted), Ok(vec![2, 3, 0, 0]));
            assert_eq!(count(&mut netlink, &wanted[..1]), Ok(vec![2]));
        });
    }

    #[test]
    fn connections_to_this_host_count_and_those_that_it_forwards_do_not() {
        for (address, is_own) in
            [("127.0.0.1", true), ("127.9.9.9", true), ("::1", true), ("fe80::7", true), ("192.0.2.7", false)]
        {
            assert_eq!(is_local(address.parse().unwrap()), is_own, "{address}");
        }
    }

    #[test]
    fn how_long_a_connection_was_silent_follows_from_when_the_kernel_forgets_it() {
        let idle = |protocol, left| TIMEOUTS.idle(protocol, Duration::from_secs(left)).as_secs();
        assert_eq!(idle(Protocol::Tcp, 432_000), 0);
        assert_eq!(idle(Protocol::Tcp, 428_400), 3600);
        // Data was not acknowledged yet.
        assert_eq!((idle(Protocol::Tcp, 300), idle(Protocol::Tcp, 290)), (0, 10));
        assert_eq!(idle(Protocol::Tcp, 500_000), 0, "somebody has set a shorter time meanwhile");
        assert_eq!((idle(Protocol::Udp, 120), idle(Protocol::Udp, 20)), (0, 100));
        let short = Timeouts { established: Duration::from_secs(200), ..TIMEOUTS };
        assert_eq!(short.idle(Protocol::Tcp, Duration::from_secs(150)).as_secs(), 50);
    }

    #[test]
    fn what_the_kernel_tells_is_read_to_its_end_and_no_further() {
        let whole = entry(TCP, 3, 0, 431_940, Some(0));
        let last = attribute_of(ZONE, &[0, 0]).len();
        for length in 0..whole.len() - last {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
    }
}
