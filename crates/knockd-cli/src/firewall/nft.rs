//! The messages of nfnetlink for a ruleset, see `linux/netfilter/nf_tables.h`.

mod expressions;
pub(super) mod limit;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_APPEND, NLM_F_CREATE, NetlinkMessage};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::Admitted;
use super::ruleset::{Chain, Family, Hook, Ruleset, Set, TABLE};

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
