//! Questions to the kernel about the table, and its answers.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::NetlinkMessage;
use netlink_packet_netfilter::nftables::{
    NfTablesMessage, SetAttribute, SetElementList, SetElementMessage, SetMessage, TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::nft::{COMMENT, DYNAMIC, NFTA_DATA_VALUE, data, list, octets, text};
use super::ruleset::TABLE;

/// Returns the comment of a set.
fn comment(user_data: &[u8]) -> Option<&str> {
    let [COMMENT, _, text @ .., 0] = user_data else { return None };
    std::str::from_utf8(text).ok()
}

/// Asks for the sets of the table.
pub(super) fn get_sets() -> NetlinkMessage<NetfilterMessage> {
    request(NfTablesMessage::GetSet(SetMessage { attributes: vec![SetAttribute::Table(TABLE.to_owned())] }))
}

/// Asks for the tables.
pub(super) fn get_tables() -> NetlinkMessage<NetfilterMessage> {
    request(NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() }))
}

/// Says whether our table is among these.
pub(super) fn has_table(tables: &[Vec<u8>]) -> bool {
    table(tables).is_some()
}

/// Returns the port of the socket that owns our table, if it is among these and has an owner.
pub(super) fn owner(tables: &[Vec<u8>]) -> Option<u32> {
    const OWNER: u16 = 7;
    attribute(table(tables)?, OWNER)?.try_into().ok().map(u32::from_be_bytes)
}

fn table(tables: &[Vec<u8>]) -> Option<&[u8]> {
    let is_ours =
        |table: &&Vec<u8>| attribute(table, 1) == Some([TABLE.as_bytes(), &[0]].concat().as_slice());
    tables.iter().find(is_ours).map(Vec::as_slice)
}

/// Asks for the addresses in a set.
pub(super) fn get_addresses(set: &str) -> NetlinkMessage<NetfilterMessage> {
    let attributes = vec![SetElementList::Table(TABLE.to_owned()), SetElementList::Set(set.to_owned())];
    request(NfTablesMessage::GetSetElement(SetElementMessage { attributes }))
}

/// Asks for an address in a set, with the time that it has left.
pub(super) fn get_address(set: &str, address: IpAddr) -> NetlinkMessage<NetfilterMessage> {
    const GET_ELEMENT: u8 = 13;
    let element = vec![data(1, &octets(address))];
    let attributes = vec![text(1, TABLE), text(2, set), list(3, [element])];
    request(NfTablesMessage::Other { message_type: GET_ELEMENT, attributes })
}

fn request(message: NfTablesMessage) -> NetlinkMessage<NetfilterMessage> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    NetlinkMessage::from(NetfilterMessage::new(header, message))
}

/// Returns the kind and the value of each attribute.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    const HEADER: usize = 4;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & KIND;
        let value = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(HEADER)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Returns the value of the first attribute of this kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(other, value)| (other == kind).then_some(value))
}

/// Returns name, comment and size of a set, and whether rules change it.
pub(super) fn named_set(set: &[u8]) -> Option<(&str, &str, u32, bool)> {
    let name = attribute(set, 2)?.strip_suffix(&[0])?;
    let size = attribute(attribute(set, 9)?, 1)?;
    let size = u32::from_be_bytes(size.try_into().ok()?);
    let flags = u32::from_be_bytes(attribute(set, 3)?.try_into().ok()?);
    let comment = comment(attribute(set, 13)?)?;
    Some((std::str::from_utf8(name).ok()?, comment, size, flags & DYNAMIC != 0))
}

/// Says whether a set has this name.
pub(super) fn is_set(set: &[u8], name: &str) -> bool {
    attribute(set, 2).is_some_and(|found| found.strip_suffix(&[0]) == Some(name.as_bytes()))
}

/// Returns the times that the elements of a part of a set have left.
pub(super) fn times(part: &[u8]) -> impl Iterator<Item = Duration> {
    attributes(attribute(part, 3).unwrap_or_default()).filter_map(|(_, element)| time_left(element))
}

/// Returns the addresses of a part of a set, with the time that each has left.
pub(super) fn addresses(part: &[u8]) -> impl Iterator<Item = (IpAddr, Duration)> {
    let elements = attribute(part, 3).unwrap_or_default();
    attributes(elements).filter_map(|(_, element)| address(element))
}

fn address(element: &[u8]) -> Option<(IpAddr, Duration)> {
    let key = attribute(attribute(element, 1)?, NFTA_DATA_VALUE)?;
    let address = match key.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(key).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(key).ok()?),
    };
    Some((address, time_left(element)?))
}

fn time_left(element: &[u8]) -> Option<Duration> {
    let left = u64::from_be_bytes(attribute(element, 5)?.try_into().ok()?);
    Some(Duration::from_millis(left))
}
