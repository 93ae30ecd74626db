//! Which interfaces to listen on: names, patterns, or any.

use std::fs;
use std::net::IpAddr;

use anyhow::{anyhow, bail};
use knockd_capture::Interface;
use wildmatch::WildMatch;

/// A port of a bond that is a port of a bridge has two masters; more than these would be a circle.
const MAX_MASTERS: usize = 8;

/// The value of `Interface` or `-i`: one or more of a name, a pattern such as `eth*`, or `any`, separated by commas
/// or white space. A name may be an alternative one; that of a label (`eth0:1`) means the addresses with the label.
#[derive(Clone, PartialEq, Debug)]
pub struct Selection {
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Debug)]
enum Part {
    /// Every interface except ports of others, where each packet would appear twice.
    Any,
    Pattern(WildMatch),
    Name(String),
}

impl Selection {
    /// Reads the value; `None` if it names nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
        let parts: Vec<_> = words
            .map(|word| match word {
                "any" => Part::Any,
                _ if word.contains(['*', '?']) => Part::Pattern(WildMatch::new(word)),
                _ => Part::Name(word.to_owned()),
            })
            .collect();
        (!parts.is_empty()).then_some(Self { parts })
    }

    /// Returns the default: `eth0`, as in 0.8, or else the interface of the default route; the second part warns
    /// about the latter.
    pub fn by_default(all: &[Interface]) -> (Self, Option<String>) {
        let eth0 = Self { parts: vec![Part::Name("eth0".to_owned())] };
        if all.iter().any(|interface| interface.name == "eth0") {
            return (eth0, None);
        }
        match default_route(all) {
            Some(name) => {
                let warning = format!(
                    "no interface configured and no eth0: listening on {name}, the interface of the default route; choose \
                     one with -i or `Interface`"
                );
                (Self { parts: vec![Part::Name(name)] }, Some(warning))
            }
            None => (eth0, None),
        }
    }

    /// Returns the selected interfaces, each once; one that is selected by labels alone has only their addresses.
    pub fn of(&self, all: &[Interface]) -> Vec<Interface> {
        let chosen = |interface: &Interface| {
            if self.parts.iter().any(|part| part.means(interface, all)) {
                return Some(interface.clone());
            }
            if !self.names().any(|name| is_label_of(name, interface)) {
                return None;
            }
            let is_chosen = |label: &str| self.names().any(|name| name == label);
            let labels = interface.labels.iter().filter(|(label, _)| is_chosen(label));
            let addresses = labels.map(|(_, address)| *address).collect();
            Some(Interface { addresses, ..interface.clone() })
        };
        all.iter().filter_map(chosen).collect()
    }

    /// Says why knocks may be missed at an interface of [`Self::of`]: no address has the label by which it is selected,
    /// or it has no address of its own, and belongs to an interface that has.
    pub fn problem(&self, interface: &Interface, all: &[Interface]) -> Option<String> {
        let is_unused = |name: &&str| {
            is_label_of(name, interface) && interface.labels.iter().all(|(label, _)| label != name)
        };
        let unused = self.names().find(is_unused).map(|label| format!("no address has the label {label}"));
        unused.or_else(|| port_of_another(interface, all))
    }

    /// Returns the names that mean none of these interfaces.
    pub(crate) fn missing<'a>(&'a self, all: &[Interface]) -> Vec<&'a str> {
        self.names().filter(|name| !is_there(name, all)).collect()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Name(name) => Some(name.as_str()),
            Part::Any | Part::Pattern(_) => None,
        })
    }

    /// Returns the selected interfaces at startup.
    ///
    /// # Errors
    /// When a named interface does not exist or a pattern matches none; the message lists those that exist. With
    /// `waits`, nothing is an error.
    pub fn at_start(&self, all: &[Interface], waits: bool) -> anyhow::Result<Vec<Interface>> {
        let names: Vec<_> = all.iter().flat_map(names_of).collect();
        let names = names.join(", ");
        for part in &self.parts {
            if waits || all.iter().any(|interface| part.means(interface, all)) {
                continue;
            }
            match part {
                Part::Name(name) if is_there(name, all) => {}
                Part::Name(name) => {
                    let meant = similar(name, all).map(|meant| format!(" (did you mean {meant}?)"));
                    return Err(anyhow!(
                        "no such interface: {name}{}; available: {names}; choose one with -i or `Interface`, or wait \
                         for it with --wait or `WaitInterface`",
                        meant.unwrap_or_default()
                    ));
                }
                Part::Pattern(pattern) => {
                    bail!("no interface matches {pattern}; available: {names}")
                }
                Part::Any => bail!("no network interface found"),
            }
        }
        Ok(self.of(all))
    }
}

/// The interface that a mistyped name probably means: the same name with two characters exchanged, or one wrong,
/// missing or extra.
fn similar<'a>(name: &str, all: &'a [Interface]) -> Option<&'a str> {
    let mut names = all.iter().flat_map(names_of);
    names.find(|other| strsim::damerau_levenshtein(name, other) == 1)
}

/// Returns the names that an interface and parts of it go by.
fn names_of(interface: &Interface) -> impl Iterator<Item = &str> {
    let labels = interface.labels.iter().map(|(label, _)| label);
    let others = interface.alternative_names.iter().chain(labels);
    std::iter::once(&interface.name).chain(others).map(String::as_str)
}

/// Says whether a name is that of an interface or of a label.
fn is_there(name: &str, all: &[Interface]) -> bool {
    all.iter().any(|interface| is_name_of(name, interface, all) || is_label_of(name, interface))
}

/// Says whether a name is that of a label of an interface: no interface has a colon in its name. As in 0.8, there need
/// not be an address with it; it may come later.
fn is_label_of(name: &str, interface: &Interface) -> bool {
    name.split_once(':').is_some_and(|(parent, _)| parent == interface.name)
        || interface.labels.iter().any(|(label, _)| label == name)
}

/// Says whether a name means an interface as a whole. What ip(8) prints as `eth0@if2` is one; it has the name of the
/// other end behind the `@`.
fn is_name_of(name: &str, interface: &Interface, all: &[Interface]) -> bool {
    let is_exact = |interface: &Interface| {
        interface.name == name || interface.alternative_names.iter().any(|other| other == name)
    };
    let shown = name.split_once('@').map(|(before, _)| before);
    is_exact(interface) || shown == Some(interface.name.as_str()) && !all.iter().any(is_exact)
}

/// Says whether an interface has an address that not every interface gets: any but a link-local one.
pub(crate) fn has_own_address(interface: &Interface) -> bool {
    own_address(interface).is_some()
}

fn own_address(interface: &Interface) -> Option<IpAddr> {
    let is_link_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    interface.addresses.iter().copied().find(|address| !is_link_local(address))
}

/// Says that an interface has no address of its own, and belongs to one that has.
fn port_of_another(interface: &Interface, all: &[Interface]) -> Option<String> {
    if has_own_address(interface) {
        return None;
    }
    let mut port = interface;
    for _ in 0..MAX_MASTERS {
        let master = all.iter().find(|other| Some(other.index) == port.master)?;
        if let Some(address) = own_address(master).filter(|address| !address.is_loopback()) {
            let name = &master.name;
            return Some(format!(
                "no address of its own; it belongs to {name}, which has {address}: listen on {name}"
            ));
        }
        port = master;
    }
    None
}

impl Part {
    fn means(&self, interface: &Interface, all: &[Interface]) -> bool {
        match self {
            Self::Any => interface.master.is_none(),
            Self::Pattern(pattern) => pattern.matches(&interface.name),
            Self::Name(name) => is_name_of(name, interface, all),
        }
    }
}

/// Prints the selection in the form that [`Selection::parse`] reads.
impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<_> = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Any => "any".to_owned(),
                Part::Pattern(pattern) => pattern.to_string(),
                Part::Name(name) => name.clone(),
            })
            .collect();
        f.write_str(&words.join(", "))
    }
}

/// The interface of the default route of IPv4, or else of IPv6 (proc(5), `/proc/net/route`).
fn default_route(all: &[Interface]) -> Option<String> {
    let ipv4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let ipv6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let name = default_in(&ipv4, &ipv6)?;
    all.iter().any(|interface| interface.name == name).then_some(name)
}

fn default_in(ipv4: &str, ipv6: &str) -> Option<String> {
    let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    // Interface, destination, gateway, flags, three numbers, mask.
    let is_default_4 = |columns: &[String]| {
        columns.get(1).is_some_and(|to| to == "00000000")
            && columns.get(7).is_some_and(|mask| mask == "00000000")
    };
    let found =
        ipv4.lines().map(columns).find(|columns| is_default_4(columns)).and_then(|c| c.first().cloned());
    // Destination, its prefix length, …, interface; the kernel's own unreachable default leads to lo.
    let is_default_6 = |columns: &[String]| {
        columns.first().is_some_and(|to| to.bytes().all(|byte| byte == b'0'))
            && columns.get(1).is_some_and(|length| length == "00")
            && columns.get(9).is_some_and(|name| name != "lo")
    };
    found.or_else(|| {
        ipv6.lines().map(columns).find(|columns| is_default_6(columns)).and_then(|c| c.get(9).cloned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Interface> {
        let interface = |name: &str, index, master| Interface {
            name: name.to_owned(),
            index,
            addresses: Vec::new(),
            up: true,
            loopback: name == "lo",
            master,
            alternative_names: Vec::new(),
            labels: Vec::new(),
        };
        vec![
            interface("lo", 1, None),
            interface("enp1", 2, Some(4)),
            interface("enp2", 3, None),
            interface("br0", 4, None),
        ]
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn picked(text: &str) -> Vec<String> {
        Selection::parse(text).unwrap().of(&all()).into_iter().map(|interface| interface.name).collect()
    }

    #[test]
    fn names_patterns_and_any_can_be_listed() {
        assert_eq!(picked("enp1"), ["enp1"]);
        assert_eq!(picked("br0, lo br0"), ["lo", "br0"]);
        assert_eq!(picked("enp*"), ["enp1", "enp2"]);
        assert_eq!(picked("enp?,br?"), ["enp1", "enp2", "br0"]);
        assert_eq!(picked("eth0"), [""; 0]);
    }

    #[test]
    fn a_label_means_its_addresses_and_not_the_others_of_its_interface() {
        let mut all = all();
        all[2].addresses = ["192.0.2.1", "192.0.2.7", "192.0.2.8", "192.0.2.9"].map(address).to_vec();
        all[2].labels = vec![
            ("enp2:1".to_owned(), address("192.0.2.7")),
            ("enp2:web".to_owned(), address("192.0.2.8")),
            ("enp2:web".to_owned(), address("192.0.2.9")),
        ];
        let picked = |text: &str| -> Vec<_> {
            let selection = Selection::parse(text).unwrap();
            let found = selection.at_start(&all, false).unwrap();
            assert_eq!(selection.missing(&all), [""; 0]);
            found.into_iter().map(|found| (found.name, found.addresses)).collect()
        };
        let of = |addresses: &[IpAddr]| vec![("enp2".to_owned(), addresses.to_vec())];
        let addresses = &all[2].addresses;
        assert_eq!(picked("enp2:1"), of(&addresses[1..2]));
        assert_eq!(picked("enp2:web"), of(&addresses[2..]));
        assert_eq!(picked("enp2:1,enp2:web"), of(&addresses[1..]));
        assert_eq!(picked("enp2,enp2:web"), of(addresses));
        assert_eq!(picked("enp2*"), of(addresses));
        assert_eq!(picked("enp2:2"), of(&[]));
        let problem = |text: &str| Selection::parse(text).unwrap().problem(&all[2], &all);
        assert_eq!(problem("enp2:1,enp2:2").as_deref(), Some("no address has the label enp2:2"));
        assert_eq!(problem("enp2:1,enp2:web"), None);
        let error = Selection::parse("enp3:1").unwrap().at_start(&all, false).unwrap_err().to_string();
        assert!(error.starts_with("no such interface: enp3:1 (did you mean enp2:1?); "), "{error}");
        assert!(error.contains("available: lo, enp1, enp2, enp2:1, enp2:web"), "{error}");
    }

    #[test]
    fn an_interface_has_its_alternative_names_and_what_ip_prints_for_it() {
        let mut all = all();
        all[1].alternative_names = vec!["lan".to_owned(), "odd@name".to_owned()];
        let picked = |text: &str| -> Vec<_> {
            Selection::parse(text).unwrap().of(&all).into_iter().map(|found| found.name).collect()
        };
        for text in ["lan", "enp1@if7", "enp1@enp2", "odd@name", "lan,enp1"] {
            assert_eq!(picked(text), ["enp1"], "{text}");
        }
        all[2].name = "enp1@if7".to_owned();
        let found = Selection::parse("enp1@if7").unwrap().of(&all);
        assert_eq!(found, all[2..3], "a name can have an @ in it");
    }

    #[test]
    fn an_interface_without_an_address_that_belongs_to_one_with_an_address_is_the_wrong_one() {
        let mut all = all();
        let problem = |all: &[Interface]| port_of_another(&all[1], all);
        assert_eq!(problem(&all), None, "nobody has an address");
        all[3].addresses = vec![address("fe80::1")];
        assert_eq!(problem(&all), None, "nobody has one of their own");
        all[3].addresses.push(address("192.0.2.1"));
        let expected = "no address of its own; it belongs to br0, which has 192.0.2.1: listen on br0";
        all[1].addresses = vec![address("fe80::2")];
        assert_eq!(problem(&all).as_deref(), Some(expected));
        assert_eq!(port_of_another(&all[3], &all), None);
        // A bond in between.
        (all[1].master, all[2].master) = (Some(3), Some(4));
        assert_eq!(problem(&all).as_deref(), Some(expected));
        all[1].addresses.push(address("192.0.2.2"));
        assert_eq!(problem(&all), None, "it has an address");
        (all[1].addresses, all[2].master) = (Vec::new(), Some(2));
        assert_eq!(problem(&all), None, "a circle");
    }

    #[test]
    fn any_leaves_out_the_ports_of_a_bridge() {
        assert_eq!(picked("any"), ["lo", "enp2", "br0"]);
    }

    #[test]
    fn a_name_that_is_almost_that_of_an_interface_is_answered_with_it() {
        for (text, expected) in [
            ("enp3", "enp3 (did you mean enp1?);"),
            ("epn1", "epn1 (did you mean enp1?);"),
            ("wlan0", "wlan0; available"),
        ] {
            let error = Selection::parse(text).unwrap().at_start(&all(), false).unwrap_err().to_string();
            assert!(error.contains(&format!("no such interface: {expected}")), "{error}");
        }
    }

    #[test]
    fn what_does_not_exist_is_an_error_that_lists_what_does_unless_it_is_waited_for() {
        for text in ["eth0", "enp1,eth0", "wlan*"] {
            let selection = Selection::parse(text).unwrap();
            let error = selection.at_start(&all(), false).unwrap_err().to_string();
            assert!(error.contains("available: lo, enp1, enp2, br0"), "{error}");
            assert!(selection.at_start(&all(), true).is_ok());
        }
    }

    #[test]
    fn the_default_route_is_found_in_either_table() {
        let ipv4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    ens5\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
                    ens4\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n";
        assert_eq!(default_in(ipv4, "").as_deref(), Some("ens4"));
        let zeros = "0".repeat(32);
        let ipv6 = format!(
            "{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n\
             {zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     ens6\n"
        );
        assert_eq!(default_in("", &ipv6).as_deref(), Some("ens6"));
        assert_eq!(default_in("", ""), None);
    }
}
