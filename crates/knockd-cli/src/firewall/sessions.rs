//! Sessions from before the guard. On a machine whose firewall has never asked for the state of connections, conntrack knows none; and to
//! a guard that lets only those go on which conntrack knows, the next packet of a client that has been there for long is that of a stranger.

use std::net::{IpAddr, SocketAddr};

use knockd_core::{Config, Protocol};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NetlinkMessage};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::netlink::Netlink;
use super::nft::{bytes, nested, number};
use super::plan;
use crate::system::connections::established;

/// Tells conntrack of the connections to ports that are about to be guarded.
pub(super) fn keep(netlink: &mut Netlink, config: &Config) {
    let ports = plan::guarded(config, Protocol::Tcp);
    for (own, other) in established(|port| ports.iter().any(|ports| ports.contains(&port))) {
        // It knows most of them already. Without conntrack over netlink, they go on as soon as the server has something to say.
        if let Err(error) = netlink.tell(entry(own, other)) {
            log::debug!("the connection of {other} to {own}: {}", error.desc());
        }
    }
}

/// Returns the message that makes an established connection known, see `linux/netfilter/nfnetlink_conntrack.h`.
fn entry(own: SocketAddr, other: SocketAddr) -> NetlinkMessage<NetfilterMessage> {
    // IPS_SEEN_REPLY, IPS_ASSURED and IPS_CONFIRMED
    const STATUS: u32 = 2 | 4 | 8;
    const ESTABLISHED: u8 = 3;
    // Nothing is known of its windows: IP_CT_TCP_FLAG_BE_LIBERAL, and the mask of what is set.
    const LIBERAL: [u8; 2] = [8, 8];
    // What the kernel gives an established connection: five days.
    const TIMEOUT: u32 = 5 * 24 * 3600;
    let tcp = [bytes(1, [ESTABLISHED]), bytes(4, LIBERAL), bytes(5, LIBERAL)];
    let attributes = vec![
        nested(1, &tuple(other, own)),
        nested(2, &tuple(own, other)),
        number(3, STATUS),
        nested(4, &[nested(1, &tcp)]),
        number(7, TIMEOUT),
    ];
    let family = if own.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
    let inner = ConntrackMessage::Other { message_type: 0, attributes };
    let mut message = NetlinkMessage::from(NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner));
    message.header.flags = NLM_F_CREATE | NLM_F_EXCL;
    message
}

fn tuple(from: SocketAddr, to: SocketAddr) -> [DefaultNla; 2] {
    const TCP: u8 = 6;
    let addresses = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [bytes(1, from.octets()), bytes(2, to.octets())],
        (from, to) => [bytes(3, octets(from)), bytes(4, octets(to))],
    };
    let (from, to) = (bytes(2, from.port().to_be_bytes()), bytes(3, to.port().to_be_bytes()));
    [nested(1, &addresses), nested(2, &[bytes(1, [TCP]), from, to])]
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
