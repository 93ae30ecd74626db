//! The messages of nfnetlink for a ruleset, see `linux/netfilter/nf_tables.h`.

pub(super) mod limit;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_APPEND, NLM_F_CREATE, NetlinkMessage};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use knockd_core::Protocol;

use super::Admitted;
use super::ruleset::{Chain, Family, Hook, Part, Ruleset, Set, TABLE};

/// What a message does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    DeleteChain = 5,
    NewRule = 6,
    DeleteRule = 8,
    NewSet = 9,
    DeleteSet = 11,
    NewElement = 12,
    DeleteElement = 14,
}

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

const NLA_F_NESTED: u16 = 0x8000;

const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const REG_2: u32 = 2;

/// Verdicts, see `linux/netfilter.h`.
const NF_DROP: i32 = 0;
const NF_ACCEPT: i32 = 1;
const NFT_JUMP: i32 = -3;

/// `IPPROTO_TCP` and `IPPROTO_UDP`
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// Flags of sets.
const TIMEOUT: u32 = 0x10;
pub(super) const DYNAMIC: u32 = 0x20;

pub(super) fn bytes(kind: u16, value: impl AsRef<[u8]>) -> DefaultNla {
    DefaultNla::new(kind, value.as_ref().to_vec())
}

pub(super) fn text(kind: u16, value: &str) -> DefaultNla {
    bytes(kind, [value.as_bytes(), &[0]].concat())
}

pub(super) fn number(kind: u16, value: u32) -> DefaultNla {
    bytes(kind, value.to_be_bytes())
}

pub(super) fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    bytes(kind | NLA_F_NESTED, value)
}

pub(super) fn list(kind: u16, items: impl IntoIterator<Item = Vec<DefaultNla>>) -> DefaultNla {
    let items: Vec<_> = items.into_iter().map(|item| nested(NFTA_LIST_ELEM, &item)).collect();
    nested(kind, &items)
}

pub(super) fn data(kind: u16, value: &[u8]) -> DefaultNla {
    nested(kind, &[bytes(NFTA_DATA_VALUE, value)])
}

fn expression(name: &str, attributes: &[DefaultNla]) -> Vec<DefaultNla> {
    vec![text(NFTA_EXPR_NAME, name), nested(NFTA_EXPR_DATA, attributes)]
}

fn cmp(operator: u32, value: &[u8]) -> Vec<DefaultNla> {
    expression("cmp", &[number(1, REG_1), number(2, operator), data(3, value)])
}
const EQ: u32 = 0;
const NEQ: u32 = 1;

fn meta_load(key: u32) -> Vec<DefaultNla> {
    expression("meta", &[number(2, key), number(1, REG_1)])
}
const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_IIFNAME: u32 = 6;
/// `IFNAMSIZ`
const INTERFACE_NAME: usize = 16;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

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

fn verdict(code: i32, chain: Option<&str>) -> Vec<DefaultNla> {
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

/// Messages that the kernel carries out all together or not at all.
#[derive(Default)]
pub(super) struct Batch {
    messages: Vec<NetlinkMessage<NetfilterMessage>>,
    /// The number of the latest set that the batch has made.
    last_set: u32,
}

impl Batch {
    fn add(&mut self, kind: Kind, flags: u16, attributes: Vec<DefaultNla>) {
        let inner = NfTablesMessage::Other { message_type: kind as u8, attributes };
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        let mut message = NetlinkMessage::from(NetfilterMessage::new(header, inner));
        message.header.flags = flags;
        self.messages.push(message);
    }

    /// Makes the table, unless it exists.
    pub(super) fn make_table(&mut self, flags: u32) {
        self.add(Kind::NewTable, NLM_F_CREATE, vec![text(1, TABLE), number(2, flags)]);
    }

    /// Deletes the table with everything in it.
    pub(super) fn delete_table(&mut self) {
        self.add(Kind::DeleteTable, 0, vec![text(1, TABLE)]);
    }

    /// Replaces the table by one with this content, and keeps who is let in through a set that it still has.
    pub(super) fn replace_table(&mut self, flags: u32, ruleset: &Ruleset, admitted: &[(String, Admitted)]) {
        self.delete_table();
        self.make_table(flags);
        self.make(ruleset, &Ruleset::default());
        for (set, Admitted { source, left, .. }) in admitted {
            if ruleset.sets.iter().any(|other| other.name == *set) {
                self.add_element(set, element(source.address(), *left));
            }
        }
    }

    /// Makes the table's content what it should be. Sets that stay keep their addresses.
    pub(super) fn make(&mut self, ruleset: &Ruleset, before: &Ruleset) {
        self.add(Kind::DeleteRule, 0, vec![text(1, TABLE)]);
        for Chain { name, hook, .. } in &ruleset.chains {
            let mut attributes = vec![text(1, TABLE), text(3, name)];
            if let Some((kind, hook, priority)) = hook.map(Hook::place) {
                let place = [number(1, hook), bytes(2, priority.to_be_bytes())];
                attributes.extend([text(7, kind), number(5, 1), nested(4, &place)]);
            }
            self.add(Kind::NewChain, NLM_F_CREATE, attributes);
        }
        for set in &ruleset.sets {
            self.make_set(set);
        }
        for Chain { name, rules, .. } in &ruleset.chains {
            for rule in rules {
                let expressions: Vec<_> = rule.iter().flat_map(|part| self.expressions(part)).collect();
                let attributes = vec![text(1, TABLE), text(2, name), list(4, expressions)];
                self.add(Kind::NewRule, NLM_F_CREATE | NLM_F_APPEND, attributes);
            }
        }
        let is_gone = |chain: &&Chain| ruleset.chains.iter().all(|other| other.name != chain.name);
        for Chain { name, .. } in before.chains.iter().filter(is_gone) {
            self.add(Kind::DeleteChain, 0, vec![text(1, TABLE), text(3, name)]);
        }
        let is_gone = |set: &&Set| ruleset.sets.iter().all(|other| other.name != set.name);
        for Set { name, .. } in before.sets.iter().filter(is_gone) {
            self.add(Kind::DeleteSet, 0, vec![text(1, TABLE), text(2, name)]);
        }
    }

    fn make_set(&mut self, Set { name, family, size, is_dynamic, comment }: &Set) {
        let flags = if *is_dynamic { TIMEOUT | DYNAMIC } else { TIMEOUT };
        let (key_type, len) = match family {
            Family::Ipv4 => (7, 4),
            Family::Ipv6 => (8, 16),
        };
        self.last_set += 1;
        let attributes = vec![
            text(1, TABLE),
            text(2, name),
            number(3, flags),
            number(4, key_type),
            number(5, len),
            number(10, self.last_set),
            nested(9, &[number(1, *size)]),
            bytes(13, user_data(comment)),
        ];
        self.add(Kind::NewSet, NLM_F_CREATE, attributes);
    }

    /// Makes a set without a name; returns its number.
    fn make_anonymous(&mut self, flags: u32, key_type: u32, len: u32, elements: Vec<Vec<DefaultNla>>) -> u32 {
        const ANONYMOUS_AND_CONSTANT: u32 = 3;
        self.last_set += 1;
        let attributes = vec![
            text(1, TABLE),
            text(2, ANONYMOUS),
            number(3, ANONYMOUS_AND_CONSTANT | flags),
            number(4, key_type),
            number(5, len),
            number(10, self.last_set),
            nested(9, &[number(1, u32::try_from(elements.len()).unwrap_or(u32::MAX))]),
        ];
        self.add(Kind::NewSet, NLM_F_CREATE, attributes);
        let id = self.last_set;
        let attributes = vec![text(1, TABLE), text(2, ANONYMOUS), number(4, id), list(3, elements)];
        self.add(Kind::NewElement, NLM_F_CREATE, attributes);
        id
    }

    fn expressions(&mut self, part: &Part) -> Vec<Vec<DefaultNla>> {
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

    fn make_ports(&mut self, ports: &[RangeInclusive<u16>]) -> u32 {
        const PORT: u32 = 13;
        const INTERVAL: u32 = 4;
        const INTERVAL_END: u32 = 1;
        let has_ranges = ports.iter().any(|range| range.start() != range.end());
        let mut elements = Vec::new();
        for range in ports {
            elements.push(vec![data(1, &range.start().to_be_bytes())]);
            if has_ranges && let Some(end) = range.end().checked_add(1) {
                elements.push(vec![number(3, INTERVAL_END), data(1, &end.to_be_bytes())]);
            }
        }
        self.make_anonymous(if has_ranges { INTERVAL } else { 0 }, PORT, 2, elements)
    }

    /// Returns the messages, without numbers.
    pub(super) fn into_messages(self) -> Vec<NetlinkMessage<NetfilterMessage>> {
        self.messages
    }

    /// Lets an address in for this time, however long it was let in so far.
    pub(super) fn admit(&mut self, set: &str, address: IpAddr, time: Duration) {
        let element = element(address, time);
        // Before Linux 6.12, adding an address that is there does not change its time.
        self.add_element(set, element.clone());
        self.shut(set, address);
        self.add_element(set, element);
    }

    /// Lets an address in no longer.
    pub(super) fn shut(&mut self, set: &str, address: IpAddr) {
        let element = vec![data(1, &octets(address))];
        self.add(Kind::DeleteElement, 0, vec![text(1, TABLE), text(2, set), list(3, [element])]);
    }

    fn add_element(&mut self, set: &str, element: Vec<DefaultNla>) {
        self.add(Kind::NewElement, NLM_F_CREATE, vec![text(1, TABLE), text(2, set), list(3, [element])]);
    }
}

/// nft's own notes about a set, of which ours has one: type, length, and the text with a NUL byte.
pub(super) const COMMENT: u8 = 7;

fn user_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let text = comment.as_bytes().get(..usize::from(length) - 1).unwrap_or_default();
    [&[COMMENT, length], text, &[0]].concat()
}

fn element(address: IpAddr, time: Duration) -> Vec<DefaultNla> {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    vec![data(1, &octets(address)), bytes(4, milliseconds.to_be_bytes())]
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

const ANONYMOUS: &str = "__set%d";
