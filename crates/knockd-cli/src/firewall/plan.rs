//! From the configuration to the table that guards its doors.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use knockd_core::config::{AtEnd, Closed, Extend};
use knockd_core::{Config, Door, DoorName, Exception, Protocol, Services};

use super::ruleset::{Chain, Family, Hook, Part, Ruleset, Set};

/// The number of each door in the table, which its sets keep when the configuration changes.
pub(super) type Numbers = BTreeMap<DoorName, u32>;

/// The chain that every packet enters.
pub(super) const GUARD: &str = "guard";

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// Returns the table for this configuration. Doors without a number get one.
pub(super) fn ruleset(config: &Config, numbers: &mut Numbers) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let mut doors = Vec::new();
    for door in &config.doors {
        let Some(services) = &door.open else { continue };
        let next = numbers.values().max().map_or(1, |last| last + 1);
        let number = *numbers.entry(door.name.clone()).or_insert(next);
        doors.push((number, door, services));
    }
    for (number, door, _) in &doors {
        for family in FAMILIES {
            let (name, comment) = (set_name(*number, family), door.name.to_string());
            let is_dynamic = doors.iter().any(|(other, door, _)| other == number && changes_its_set(door));
            let set = Set { name, family, size: config.options.max_open.get(), is_dynamic, comment };
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
    ruleset
}

pub(super) fn set_name(number: u32, family: Family) -> String {
    match family {
        Family::Ipv4 => format!("d{number}_4"),
        Family::Ipv6 => format!("d{number}_6"),
    }
}

/// Returns the number and the family of a set with this name.
pub(super) fn of_set_name(name: &str) -> Option<(u32, Family)> {
    let (number, family) = name.strip_prefix('d')?.split_once('_')?;
    let family = match family {
        "4" => Family::Ipv4,
        "6" => Family::Ipv6,
        _ => return None,
    };
    Some((number.parse().ok()?, family))
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

/// A door with its number and services.
type Numbered<'a> = (u32, &'a Door, &'a Services);

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
    let (number, Door { extend: Some(Extend::Idle(seconds)), .. }, _) = door else { return Vec::new() };
    pass(door, protocol, mark, |family| {
        vec![Part::Established, Part::Update(family, set_name(number, family), seconds.get())]
    })
}

/// Returns the rules that let packets of a door's knockers pass, with `more` about each family.
fn pass(
    (number, door, services): Numbered<'_>,
    protocol: Protocol,
    mark: Option<NonZeroU32>,
    more: impl Fn(Family) -> Vec<Part>,
) -> Vec<Vec<Part>> {
    let ports = ports(services, protocol);
    if ports.is_empty() {
        return Vec::new();
    }
    let rule = |family| {
        let mut rule = vec![Part::Ports(protocol, ports.clone())];
        rule.extend(door.target.map(Part::Destination));
        rule.push(Part::SourceIn(family, set_name(number, family)));
        rule.extend(more(family));
        rule.extend(mark.map(|mark| Part::Mark(mark.get())));
        rule.push(Part::Accept);
        rule
    };
    families(door).map(rule).collect()
}

/// Returns the families of the sources that can reach the services of a door.
fn families(door: &Door) -> impl Iterator<Item = Family> {
    FAMILIES.into_iter().filter(|family| door.target.is_none_or(|target| family.has(target)))
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
    let cutting = doors.iter().filter(|(_, door, _)| door.at_end == AtEnd::Cut);
    merged(cutting.flat_map(|(.., services)| ports(services, protocol)).collect())
}

/// Returns the rules by which the first connection closes a door.
fn consume((number, door, services): Numbered<'_>, hook: Hook) -> Vec<Vec<Part>> {
    let mut rules = Vec::new();
    for protocol in PROTOCOLS.into_iter().filter(|_| door.single_use) {
        let ports = ports(services, protocol).into_iter();
        for (ports, family) in
            ports.flat_map(|ports| families(door).map(move |family| (ports.clone(), family)))
        {
            let set = set_name(number, family);
            let mut rule = vec![Part::New];
            rule.extend(door.target.map(Part::OriginalDestination));
            // The guard looks at packets that are for this host before destination NAT.
            rule.extend((hook == Hook::Forward && door.target.is_none()).then_some(Part::Redirected));
            rule.push(Part::OriginalPorts(protocol, ports));
            rule.extend([Part::SourceIn(family, set.clone()), Part::Delete(family, set)]);
            rules.push(rule);
        }
    }
    rules
}

/// Returns the rule that answers everybody else, if a door wants that.
fn reject(doors: &[Numbered<'_>], protocol: Protocol) -> Option<Vec<Part>> {
    let rejecting = doors.iter().filter(|(_, door, _)| door.closed == Closed::Reject);
    let ports = merged(rejecting.flat_map(|(.., services)| ports(services, protocol)).collect());
    (!ports.is_empty()).then(|| vec![Part::Ports(protocol, ports), Part::Counter, Part::Reject(protocol)])
}

/// Returns the rules that have the packets to guarded ports looked at.
fn watch(doors: &[Numbered<'_>], protocol: Protocol) -> Vec<Vec<Part>> {
    let mut of_target: BTreeMap<Option<IpAddr>, Vec<RangeInclusive<u16>>> = BTreeMap::new();
    for (_, door, services) in doors {
        of_target.entry(door.target).or_default().extend(ports(services, protocol));
    }
    let guarded = of_target.into_iter().filter(|(_, ports)| !ports.is_empty());
    let rule = |(target, ports): (Option<IpAddr>, _)| {
        vec![
            Part::Ports(protocol, merged(ports)),
            target.map_or(Part::ForThisHost, Part::Destination),
            Part::Jump(chain_name(protocol)),
        ]
    };
    guarded.map(rule).collect()
}

/// Returns the ports of one protocol, in order and without overlaps.
fn ports(services: &Services, protocol: Protocol) -> Vec<RangeInclusive<u16>> {
    let of_protocol = services.iter().filter(|service| service.protocol() == protocol);
    merged(of_protocol.map(|service| service.ports().clone()).collect())
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
