//! Which interfaces to listen on: names, patterns, or any.

use std::fs;

use anyhow::{anyhow, bail};
use knockd_capture::Interface;
use wildmatch::WildMatch;

/// The value of `Interface` or `-i`: one or more of a name, a pattern such as `eth*`, or `any`, separated by commas
/// or white space.
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

    /// Returns the selected interfaces, each once.
    pub fn of(&self, all: &[Interface]) -> Vec<Interface> {
        all.iter().filter(|interface| self.parts.iter().any(|part| part.means(interface))).cloned().collect()
    }

    /// Returns the interfaces selected by name, whether or not they exist.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
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
        let names: Vec<_> = all.iter().map(|interface| interface.name.as_str()).collect();
        let names = names.join(", ");
        for part in &self.parts {
            if waits || all.iter().any(|interface| part.means(interface)) {
                continue;
            }
            match part {
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
    let mut names = all.iter().map(|interface| interface.name.as_str());
    names.find(|other| strsim::damerau_levenshtein(name, other) == 1)
}

impl Part {
    fn means(&self, interface: &Interface) -> bool {
        match self {
            Self::Any => !interface.enslaved,
            Self::Pattern(pattern) => pattern.matches(&interface.name),
            Self::Name(name) => *name == interface.name,
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
        let interface = |name: &str, index, enslaved| Interface {
            name: name.to_owned(),
            index,
            addresses: Vec::new(),
            up: true,
            loopback: name == "lo",
            enslaved,
        };
        vec![
            interface("lo", 1, false),
            interface("enp1", 2, true),
            interface("enp2", 3, false),
            interface("br0", 4, false),
        ]
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
