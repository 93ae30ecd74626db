//! The conditions and actions of rules, as the expressions that the kernel knows (`net/netfilter/nft_*.c`).

use std::net::IpAddr;
use std::ops::RangeInclusive;

use knockd_core::Protocol;
use netlink_packet_core::DefaultNla;

use super::{
    ANONYMOUS, Batch, NF_ACCEPT, NF_DROP, NFT_JUMP, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME, REG_1,
    REG_2, REG_VERDICT, TCP, UDP, bytes, data, nested, number, octets, text,
};
use crate::firewall::ruleset::{Family, Part};

impl Batch {
    pub(super) fn expressions(&mut self, part: &Part) -> Vec<Vec<DefaultNla>> {
        match part {
            Part::Ports(protocol, ports) => {
                self.compare_ports(*protocol, payload(TRANSPORT, 2, 2), EQ, ports)
            }
            Part::OtherPorts(protocol, ports) => {
                self.compare_ports(*protocol, payload(TRANSPORT, 2, 2), NEQ, ports)
            }
            Part::OriginalPorts(protocol, ports) => {
                self.compare_ports(*protocol, ct_original(CT_PROTO_DST), EQ, std::slice::from_ref(ports))
            }
            Part::OriginalDestination(address) => {
                let key = if address.is_ipv4() { CT_DST_IP } else { CT_DST_IP6 };
                vec![ct_original(key), cmp(EQ, &octets(*address))]
            }
            Part::Redirected => ct(CT_STATUS, DST_NAT),
            Part::ForThisHost => {
                const FIB_ADDRESS: u32 = 38;
                const ADDRESS_TYPE: u32 = 3;
                const DESTINATION: u32 = 2;
                // RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST of linux/rtnetlink.h
                let types = [2_u32, 3, 4, 5].map(|kind| vec![data(1, &kind.to_ne_bytes())]);
                let id = self.make_anonymous(0, FIB_ADDRESS, 4, types.into());
                let fib =
                    expression("fib", &[number(3, DESTINATION), number(2, ADDRESS_TYPE), number(1, REG_1)]);
                vec![fib, lookup(ANONYMOUS, id, EQ)]
            }
            Part::Destination(IpAddr::V4(address)) => {
                vec![
                    meta_load(META_NFPROTO),
                    cmp(EQ, &[2]),
                    payload(NETWORK, 16, 4),
                    cmp(EQ, &address.octets()),
                ]
            }
            Part::Destination(IpAddr::V6(address)) => {
                vec![
                    meta_load(META_NFPROTO),
                    cmp(EQ, &[10]),
                    payload(NETWORK, 24, 16),
                    cmp(EQ, &address.octets()),
                ]
            }
            // In every network namespace it is the first.
            Part::FromLoopback => vec![meta_load(META_IIF), cmp(EQ, &1_u32.to_ne_bytes())],
            Part::From(name) => {
                // A whole name ends in a NUL byte; of one with `*`, only the beginning is compared.
                let beginning = name.strip_suffix('*').map(|name| name.as_bytes().to_vec());
                let whole = || {
                    let mut bytes = name.as_bytes().to_vec();
                    bytes.resize(INTERFACE_NAME, 0);
                    bytes
                };
                vec![meta_load(META_IIFNAME), cmp(EQ, &beginning.unwrap_or_else(whole))]
            }
            Part::SourceOf(network) => {
                let mut all = Vec::from(source(Family::of(network.address())));
                if !network.is_host() {
                    let mask = octets(network.mask());
                    all.push(bitwise(&mask, &vec![0; mask.len()]));
                }
                all.push(cmp(EQ, &octets(network.address())));
                all
            }
            Part::Established => ct(CT_STATE, ESTABLISHED),
            Part::New => ct(CT_STATE, NEW),
            Part::OriginalPort(number) => vec![ct_original(CT_PROTO_DST), cmp(EQ, &number.to_be_bytes())],
            Part::Reset => {
                let flags = [meta_load(META_L4PROTO), cmp(EQ, &[TCP]), payload(TRANSPORT, 13, 1)];
                flags.into_iter().chain(any_of(&[0x04])).collect()
            }
            Part::SourceIn(family, set) => source(*family).into_iter().chain([lookup_named(set)]).collect(),
            Part::NetworkIn(family, set) => {
                source(*family).into_iter().chain([network(*family), lookup_named(set)]).collect()
            }
            Part::Update(family, set, time) => change(*family, false, set, UPDATE, Some(*time)),
            Part::Delete(family, set) => change(*family, false, set, DELETE, None),
            Part::UpdateNetwork(family, set, time) => change(*family, true, set, UPDATE, Some(*time)),
            Part::DeleteNetwork(family, set) => change(*family, true, set, DELETE, None),
            Part::Mark(mark) => {
                let set = expression("meta", &[number(2, META_MARK), number(3, REG_1)]);
                vec![meta_load(META_MARK), bitwise(&(!mark).to_ne_bytes(), &mark.to_ne_bytes()), set]
            }
            Part::Counter => vec![expression("counter", &[])],
            Part::Reject(protocol) => {
                // NFT_REJECT_TCP_RST, NFT_REJECT_ICMPX_UNREACH with NFT_REJECT_ICMPX_PORT_UNREACH
                let (kind, code) = match protocol {
                    Protocol::Tcp => (1, 0),
                    Protocol::Udp => (2, 1),
                };
                vec![expression("reject", &[number(1, kind), bytes(2, [code])])]
            }
            Part::Accept => vec![verdict(NF_ACCEPT, None)],
            Part::Drop => vec![verdict(NF_DROP, None)],
            Part::Jump(chain) => vec![verdict(NFT_JUMP, Some(chain))],
            Part::To(target, target_port) => to(*target, *target_port),
            Part::Masquerade => vec![expression("masq", &[])],
        }
    }

    /// Compares what `load` loads with these ports; `operator` is [`EQ`] or [`NEQ`].
    fn compare_ports(
        &mut self,
        protocol: Protocol,
        load: Vec<DefaultNla>,
        operator: u32,
        ports: &[RangeInclusive<u16>],
    ) -> Vec<Vec<DefaultNla>> {
        let protocol = match protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        let comparison = match ports {
            [one] if one.start() == one.end() => cmp(operator, &one.start().to_be_bytes()),
            [one] => {
                let ends = [data(3, &one.start().to_be_bytes()), data(4, &one.end().to_be_bytes())];
                expression("range", &[&[number(1, REG_1), number(2, operator)], &ends[..]].concat())
            }
            several => lookup(ANONYMOUS, self.make_ports(several), operator),
        };
        vec![meta_load(META_L4PROTO), cmp(EQ, &[protocol]), load, comparison]
    }
}

pub(super) fn expression(name: &str, attributes: &[DefaultNla]) -> Vec<DefaultNla> {
    vec![text(NFTA_EXPR_NAME, name), nested(NFTA_EXPR_DATA, attributes)]
}

fn cmp(operator: u32, value: &[u8]) -> Vec<DefaultNla> {
    expression("cmp", &[number(1, REG_1), number(2, operator), data(3, value)])
}
const EQ: u32 = 0;
const NEQ: u32 = 1;

pub(super) fn meta_load(key: u32) -> Vec<DefaultNla> {
    expression("meta", &[number(2, key), number(1, REG_1)])
}
const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_IIFNAME: u32 = 6;
/// `IFNAMSIZ`
const INTERFACE_NAME: usize = 16;
const META_NFPROTO: u32 = 15;
pub(super) const META_L4PROTO: u32 = 16;

fn payload(base: u32, offset: u32, len: u32) -> Vec<DefaultNla> {
    expression("payload", &[number(1, REG_1), number(2, base), number(3, offset), number(4, len)])
}
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

fn bitwise(mask: &[u8], xor: &[u8]) -> Vec<DefaultNla> {
    let len = number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
    let attributes = [number(1, REG_1), number(2, REG_1), len, number(6, 0), data(4, mask), data(5, xor)];
    expression("bitwise", &attributes)
}

/// Compares the family, and loads the source.
fn source(family: Family) -> [Vec<DefaultNla>; 3] {
    let (protocol, offset, len) = match family {
        Family::Ipv4 => (2, 12, 4),
        Family::Ipv6 => (10, 8, 16),
    };
    [meta_load(META_NFPROTO), cmp(EQ, &[protocol]), payload(NETWORK, offset, len)]
}

/// Keeps of a loaded source what says its network.
fn network(family: Family) -> Vec<DefaultNla> {
    let mask = octets(family.network_mask());
    bitwise(&mask, &vec![0; mask.len()])
}

/// Changes the destination of a connection.
fn to(address: Option<IpAddr>, port: u16) -> Vec<Vec<DefaultNla>> {
    const DESTINATION: u32 = 1;
    const IPV4: u32 = 2;
    const IPV6: u32 = 10;
    const ANY: u32 = 1;
    let load = |register, value: &[u8]| expression("immediate", &[number(1, register), data(2, value)]);
    let family = address.map_or(ANY, |address| if address.is_ipv4() { IPV4 } else { IPV6 });
    let mut nat = vec![number(1, DESTINATION), number(2, family)];
    let mut all = Vec::new();
    if let Some(address) = address {
        all.push(load(REG_1, &octets(address)));
        nat.extend([number(3, REG_1), number(4, REG_1)]);
    }
    all.push(load(REG_2, &port.to_be_bytes()));
    nat.extend([number(5, REG_2), number(6, REG_2)]);
    all.push(expression("nat", &nat));
    all
}

pub(super) fn verdict(code: i32, chain: Option<&str>) -> Vec<DefaultNla> {
    let mut attributes = vec![bytes(1, code.to_be_bytes())];
    attributes.extend(chain.map(|chain| text(2, chain)));
    let verdict = nested(2, &[nested(NFTA_DATA_VERDICT, &attributes)]);
    expression("immediate", &[number(1, REG_VERDICT), verdict])
}

/// `operator` is [`EQ`] or [`NEQ`].
fn lookup(set: &str, id: u32, operator: u32) -> Vec<DefaultNla> {
    expression("lookup", &[text(1, set), number(2, REG_1), number(4, id), number(5, operator)])
}

/// Compares whether any of these bits of the connection is set.
fn ct(key: u32, bits: u32) -> Vec<Vec<DefaultNla>> {
    let load = expression("ct", &[number(2, key), number(1, REG_1)]);
    [load].into_iter().chain(any_of(&bits.to_ne_bytes())).collect()
}
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const ESTABLISHED: u32 = 1 << 1;
const NEW: u32 = 1 << 3;
const DST_NAT: u32 = 1 << 5;

/// Loads what the connection was before NAT.
fn ct_original(key: u32) -> Vec<DefaultNla> {
    expression("ct", &[number(2, key), number(1, REG_1), bytes(3, [0])])
}
const CT_PROTO_DST: u32 = 12;
const CT_DST_IP: u32 = 20;
const CT_DST_IP6: u32 = 22;

/// Compares whether any of the bits is set.
fn any_of(bits: &[u8]) -> [Vec<DefaultNla>; 2] {
    let none = vec![0; bits.len()];
    [bitwise(bits, &none), cmp(NEQ, &none)]
}

/// Changes the set as the packet says whose source is loaded.
fn dynset(set: &str, operation: u32, timeout: Option<u32>) -> Vec<DefaultNla> {
    let mut attributes = vec![text(1, set), number(3, operation), number(4, REG_1)];
    attributes.extend(timeout.map(|seconds| bytes(6, (u64::from(seconds) * 1000).to_be_bytes())));
    expression("dynset", &attributes)
}
const UPDATE: u32 = 1;
const DELETE: u32 = 2;

/// Changes the set for the source of the packet, whose family is known, or for its network.
fn change(
    family: Family,
    is_network: bool,
    set: &str,
    operation: u32,
    timeout: Option<u32>,
) -> Vec<Vec<DefaultNla>> {
    let [.., load] = source(family);
    let mut all = vec![load];
    all.extend(is_network.then(|| network(family)));
    all.push(dynset(set, operation, timeout));
    all
}

fn lookup_named(set: &str) -> Vec<DefaultNla> {
    expression("lookup", &[text(1, set), number(2, REG_1), number(5, 0)])
}
