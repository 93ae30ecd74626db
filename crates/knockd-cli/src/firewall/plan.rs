//! From the configuration to the table that guards its doors.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use knockd_core::config::{AtEnd, Closed, Extend};
use knockd_core::{Config, Door, DoorName, Exception, Forwards, Prefix, Protocol, Services};

use super::forwarding;
use super::ruleset::{Chain, Family, Hook, Part, Ruleset, Set};

/// The number of each door in the table, which its sets keep when the configuration changes.
pub(super) type Numbers = BTreeMap<DoorName, u32>;

/// The chain that every packet enters.
pub(super) const GUARD: &str = "guard";

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// A door with services, and its number.
pub(super) type Numbered<'a> = (u32, &'a Door);

/// Returns the table for this configuration. Doors without a number get one.
pub(super) fn ruleset(config: &Config, numbers: &mut Numbers) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let mut doors = Vec::new();
    for door in config.doors.iter().filter(|door| door.is_guarded()) {
        let next = numbers.values().max().map_or(1, |last| last + 1);
        let number = *numbers.entry(door.name.clone()).or_insert(next);
        doors.push((number, door));
    }
    for (number, door) in &doors {
        for family in FAMILIES {
            let name = set_name(*number, family, has_networks(door, family));
            let comment = door.name.to_string();
            let (size, is_dynamic) = (config.options.max_open.get(), changes_its_set(door));
            let set = Set { name, family, size, is_dynamic, comment };
            if !ruleset.sets.contains(&set) {
                ruleset.sets.push(set);
            }
        }
    }
    let mut guard = Vec::new();
    for protocol in PROTOCOLS {
        let watched = watch(&doors, protocol);
        if watched.is_empty() {
            continue;
        }
        guard.extend(watched);
        let mark = config.options.mark;
        let of_doors = |rules: Rules| doors.iter().flat_map(move |door| rules(*door, protocol, mark));
        let mut rules: Vec<_> = of_doors(extend).collect();
        rules.push(go_on(&doors, protocol));
        rules.extend(config.options.guard_except.iter().map(except));
        rules.extend(of_doors(admit));
        rules.extend(cut(&doors, protocol));
        rules.extend(reject(&doors, protocol));
        rules.push(vec![Part::Counter, Part::Drop]);
        ruleset.chains.push(Chain { name: chain_name(protocol), hook: None, rules });
    }
    ruleset.chains.push(Chain { name: GUARD.to_owned(), hook: Some(Hook::Prerouting), rules: guard });
    for (name, hook) in [("consume", Hook::Input), ("consume_forwarded", Hook::Forward)] {
        let rules: Vec<_> = doors.iter().flat_map(|door| consume(*door, hook)).collect();
        if !rules.is_empty() {
            ruleset.chains.push(Chain { name: name.to_owned(), hook: Some(hook), rules });
        }
    }
    ruleset.chains.extend(forwarding::chains(&doors));
    ruleset
}

fn set_name(number: u32, family: Family, has_networks: bool) -> String {
    let kind = match (family, has_networks) {
        (Family::Ipv4, false) => "4",
        (Family::Ipv4, true) => "24",
        (Family::Ipv6, false) => "6",
        (Family::Ipv6, true) => "64",
    };
    format!("d{number}_{kind}")
}

/// Returns the set for a source, or a network, that the door with this number lets in.
pub(super) fn set_for(number: u32, source: Prefix) -> String {
    set_name(number, Family::of(source.address()), !source.is_host())
}

/// Returns number and family of a set with this name, and whether it has whole networks.
pub(super) fn of_set_name(name: &str) -> Option<(u32, Family, bool)> {
    let (number, kind) = name.strip_prefix('d')?.split_once('_')?;
    let (family, has_networks) = match kind {
        "4" => (Family::Ipv4, false),
        "24" => (Family::Ipv4, true),
        "6" => (Family::Ipv6, false),
        "64" => (Family::Ipv6, true),
        _ => return None,
    };
    Some((number.parse().ok()?, family, has_networks))
}

const fn has_networks(door: &Door, family: Family) -> bool {
    match family {
        Family::Ipv4 => door.open_for.ipv4_24,
        Family::Ipv6 => door.open_for.ipv6_64,
    }
}

/// Returns the condition that a door lets the source in.
pub(super) fn is_admitted((number, door): Numbered<'_>, family: Family) -> Part {
    let has_networks = has_networks(door, family);
    let set = set_name(number, family, has_networks);
    if has_networks { Part::NetworkIn(family, set) } else { Part::SourceIn(family, set) }
}

/// Returns the families of the sources that can reach the door.
pub(super) fn families(door: &Door) -> impl Iterator<Item = Family> + use<> {
    let target = door.target;
    FAMILIES.into_iter().filter(move |family| target.is_none_or(|target| family.has(target)))
}

fn chain_name(protocol: Protocol) -> String {
    format!("{protocol}_doors")
}

/// Returns the rule that lets packets pass for which no door is closed.
fn except(exception: &Exception) -> Vec<Part> {
    let condition = match exception {
        // Comparing its number is faster, and it is always there.
        Exception::Interface(name) if &**name == "lo" => Part::FromLoopback,
        Exception::Interface(name) => Part::From(name.to_string()),
        Exception::Network(network) => Part::SourceOf(*network),
    };
    vec![condition, Part::Accept]
}

/// Makes rules for a door.
type Rules = fn(Numbered<'_>, Protocol, Option<NonZeroU32>) -> Vec<Vec<Part>>;

/// Says whether packets change who is let in at a door.
fn changes_its_set(door: &Door) -> bool {
    door.single_use || matches!(door.extend, Some(Extend::Idle(_)))
}

/// Returns the rules that let a door's knockers in.
fn admit(door: Numbered<'_>, protocol: Protocol, mark: Option<NonZeroU32>) -> Vec<Vec<Part>> {
    pass(door, protocol, mark, |_| Vec::new())
}

/// Returns the rules by which a packet of their connections lets them in for longer.
fn extend(door: Numbered<'_>, protocol: Protocol, mark: Option<NonZeroU32>) -> Vec<Vec<Part>> {
    let (number, Door { extend: Some(Extend::Idle(seconds)), .. }) = door else { return Vec::new() };
    pass(door, protocol, mark, |family| {
        let (has_networks, seconds) = (has_networks(door.1, family), seconds.get());
        let set = set_name(number, family, has_networks);
        let update = if has_networks {
            Part::UpdateNetwork(family, set, seconds)
        } else {
            Part::Update(family, set, seconds)
        };
        vec![Part::Established, update]
    })
}

/// Returns the rules that let packets of a door's knockers pass, with `more` about each family.
fn pass(
    (number, door): Numbered<'_>,
    protocol: Protocol,
    mark: Option<NonZeroU32>,
    more: impl Fn(Family) -> Vec<Part>,
) -> Vec<Vec<Part>> {
    let rule = |family| {
        let ports = opened(door, protocol, family);
        let mut rule = vec![Part::Ports(protocol, ports.clone())];
        rule.extend(door.target.map(Part::Destination));
        rule.push(is_admitted((number, door), family));
        rule.extend(more(family));
        rule.extend(mark.map(|mark| Part::Mark(mark.get())));
        rule.push(Part::Accept);
        (!ports.is_empty()).then_some(rule)
    };
    families(door).filter_map(rule).collect()
}

/// Returns the rule by which what has been let in once goes on, except where a door cuts it.
fn go_on(doors: &[Numbered<'_>], protocol: Protocol) -> Vec<Part> {
    let cut = cut_ports(doors, protocol);
    let condition = (!cut.is_empty()).then_some(Part::OtherPorts(protocol, cut));
    condition.into_iter().chain([Part::Established, Part::Accept]).collect()
}

/// Returns the rules that end connections of those who are let in no longer.
fn cut(doors: &[Numbered<'_>], protocol: Protocol) -> Vec<Vec<Part>> {
    let ports = cut_ports(doors, protocol);
    if protocol != Protocol::Tcp || ports.is_empty() {
        return Vec::new();
    }
    // The service has to hear that the client has ended its part.
    let reset = vec![Part::Reset, Part::Established, Part::Accept];
    vec![reset, vec![Part::Ports(protocol, ports), Part::Established, Part::Reject(protocol)]]
}

fn cut_ports(doors: &[Numbered<'_>], protocol: Protocol) -> Vec<RangeInclusive<u16>> {
    let cutting = doors.iter().filter(|(_, door)| door.at_end == AtEnd::Cut);
    let families = |door| FAMILIES.into_iter().flat_map(move |family| opened(door, protocol, family));
    merged(cutting.flat_map(|&(_, door)| families(door)).collect())
}

/// Returns the rules by which the first connection closes a door.
fn consume((number, door): Numbered<'_>, hook: Hook) -> Vec<Vec<Part>> {
    let mut rules = Vec::new();
    for protocol in PROTOCOLS.into_iter().filter(|_| door.single_use) {
        let each = families(door)
            .flat_map(|family| opened(door, protocol, family).into_iter().map(move |ports| (ports, family)));
        for (ports, family) in each {
            let has_networks = has_networks(door, family);
            let set = set_name(number, family, has_networks);
            let mut rule = vec![Part::New];
            rule.extend(door.target.map(Part::OriginalDestination));
            // The guard looks at packets that are for this host before destination NAT.
            rule.extend((hook == Hook::Forward && door.target.is_none()).then_some(Part::Redirected));
            rule.push(Part::OriginalPorts(protocol, ports));
            rule.push(is_admitted((number, door), family));
            rule.push(if has_networks {
                Part::DeleteNetwork(family, set)
            } else {
                Part::Delete(family, set)
            });
            rules.push(rule);
        }
    }
    rules
}

/// Returns the rule that answers everybody else, if a door wants that.
fn reject(doors: &[Numbered<'_>], protocol: Protocol) -> Option<Vec<Part>> {
    let rejecting = doors.iter().filter(|(_, door)| door.closed == Closed::Reject);
    let ports = merged(rejecting.flat_map(|(_, door)| closed(door, protocol)).collect());
    (!ports.is_empty()).then(|| vec![Part::Ports(protocol, ports), Part::Counter, Part::Reject(protocol)])
}

/// Returns the rules that have the packets to guarded ports looked at.
fn watch(doors: &[Numbered<'_>], protocol: Protocol) -> Vec<Vec<Part>> {
    let mut of_target: BTreeMap<Option<IpAddr>, Vec<RangeInclusive<u16>>> = BTreeMap::new();
    for (_, door) in doors {
        of_target.entry(door.target).or_default().extend(closed(door, protocol));
    }
    let guarded = of_target.into_iter().filter(|(_, ports)| !ports.is_empty());
    let rule = |(target, ports): (Option<IpAddr>, _)| {
        vec![Part::Ports(protocol, merged(ports)), destination(target), Part::Jump(chain_name(protocol))]
    };
    guarded.map(rule).collect()
}

/// Returns the condition that a packet is for what a door watches.
pub(super) fn destination(target: Option<IpAddr>) -> Part {
    target.map_or(Part::ForThisHost, Part::Destination)
}

/// Returns the ports that knockers of this family can reach, in order and without overlaps.
fn opened(door: &Door, protocol: Protocol, family: Family) -> Vec<RangeInclusive<u16>> {
    let services = door.open.iter().flat_map(Services::iter);
    let services = services.filter(|service| service.protocol() == protocol);
    let forwards = door.forward.iter().flat_map(Forwards::iter);
    let forwards = forwards.filter(|forward| forward.protocol() == protocol);
    let forwards = forwards.filter(|forward| forward.target().is_none_or(|target| family.has(target)));
    let forwarded = forwards.map(|forward| forward.port()..=forward.port());
    merged(services.map(|service| service.ports().clone()).chain(forwarded).collect())
}

/// Returns the ports that a configuration closes, in order and without overlaps.
pub(super) fn guarded(config: &Config, protocol: Protocol) -> Vec<RangeInclusive<u16>> {
    merged(config.doors.iter().flat_map(|door| closed(door, protocol)).collect())
}

/// Returns the ports that are closed for everybody else, in order and without overlaps: also those of this host to which others
/// lead, so that they can only be reached through these.
fn closed(door: &Door, protocol: Protocol) -> Vec<RangeInclusive<u16>> {
    let opened = FAMILIES.into_iter().flat_map(|family| opened(door, protocol, family));
    let forwards = door.forward.iter().flat_map(Forwards::iter);
    let here = forwards.filter(|forward| forward.protocol() == protocol && forward.target().is_none());
    let here = here.map(|forward| forward.target_port()..=forward.target_port());
    merged(opened.chain(here).collect())
}

fn merged(mut ports: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ports.sort_by_key(|range| (*range.start(), *range.end()));
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ports {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}
