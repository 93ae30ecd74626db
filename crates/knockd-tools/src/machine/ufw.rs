//! Ufw: which ports it lets through, by its own files.

use std::fs;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use knockd_core::{Forward, Protocol, Service};

/// An active ufw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ufw {
    /// What it lets through without a rule: to this host, and through it.
    accepts: [bool; 2],
    /// In order; the first that matches decides. `None` if they cannot be read, which only root can.
    rules: Option<Vec<Rule>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    lets_in: bool,
    is_route: bool,
    /// `None` for any.
    protocol: Option<Protocol>,
    /// `None` for any.
    ports: Option<Vec<RangeInclusive<u16>>>,
    /// `None` for any.
    destination: Option<IpAddr>,
    is_for_everybody: bool,
}

impl Ufw {
    /// Reads its files below `root`; `None` if it is not there, or not active.
    pub(crate) fn read(root: &Path) -> Option<Self> {
        let file = |name: &str| fs::read_to_string(root.join(name));
        if value(&file("etc/ufw/ufw.conf").ok()?, "ENABLED") != Some("yes") {
            return None;
        }
        let defaults = file("etc/default/ufw").unwrap_or_default();
        let accepts = ["DEFAULT_INPUT_POLICY", "DEFAULT_FORWARD_POLICY"]
            .map(|policy| value(&defaults, policy) == Some("ACCEPT"));
        let rules = file("etc/ufw/user.rules").ok();
        let rules = rules.map(|text| text.lines().filter_map(Rule::parse).collect());
        Some(Self { accepts, rules })
    }

    /// Says whether its rules are known.
    pub(crate) const fn is_readable(&self) -> bool {
        self.rules.is_some()
    }

    /// Says whether somebody can reach a service of this host; `None` if that is not known.
    pub(crate) fn lets_in(&self, service: &Service) -> Option<bool> {
        let ports = service.ports();
        let matches = |rule: &&Rule| !rule.is_route && rule.is_about(service.protocol(), ports);
        self.decide(0, matches)
    }

    /// Says whether somebody can be led to another host; `None` if that is not known.
    pub(crate) fn lets_through(&self, forward: Forward) -> Option<bool> {
        let ports = forward.target_port()..=forward.target_port();
        let leads_there = |rule: &Rule| rule.destination.is_none() || rule.destination == forward.target();
        let matches =
            |rule: &&Rule| rule.is_route && rule.is_about(forward.protocol(), &ports) && leads_there(rule);
        self.decide(1, matches)
    }

    fn decide(&self, default: usize, matches: impl Fn(&&Rule) -> bool) -> Option<bool> {
        // A rule against some does not decide for the others, but one for some is what its author has thought of.
        let decides = |rule: &&Rule| rule.lets_in || rule.is_for_everybody;
        let rule = self.rules.as_ref()?.iter().filter(matches).find(decides);
        rule.map(|rule| rule.lets_in).or_else(|| self.accepts.get(default).copied())
    }
}

impl Rule {
    /// Takes a line such as `### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("### tuple ### ")?.split_whitespace();
        let action = words.next()?;
        let (is_route, action) = match action.strip_prefix("route:") {
            Some(action) => (true, action),
            None => (false, action),
        };
        let lets_in = ["allow", "limit"].contains(&action.split('_').next()?);
        let protocol = words.next()?.parse().ok();
        let ports = match words.next()? {
            "any" => None,
            list => Some(list.split(',').filter_map(range).collect()),
        };
        let destination = words.next()?.parse().ok();
        let (_, source) = (words.next()?, words.next()?);
        let is_for_everybody = ["0.0.0.0/0", "any"].contains(&source);
        let is_outgoing = words.any(|word| word == "out" || word.starts_with("out_"));
        (!is_outgoing).then_some(Self { lets_in, is_route, protocol, ports, destination, is_for_everybody })
    }

    fn is_about(&self, protocol: Protocol, ports: &RangeInclusive<u16>) -> bool {
        let covers =
            |range: &RangeInclusive<u16>| range.contains(ports.start()) && range.contains(ports.end());
        self.protocol.is_none_or(|own| own == protocol)
            && self.ports.as_ref().is_none_or(|own| own.iter().any(covers))
    }
}

/// Takes `22` or `60000:61000`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// Returns the value of a variable in a file for a shell, without quotes.
fn value<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let mut values = text.lines().filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
    values.next_back().map(|value| value.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ufw with these rules, as its files have them after `ufw default deny` and `ufw enable`.
    fn ufw(rules: &str) -> Ufw {
        let root = tempfile::tempdir().unwrap();
        for directory in ["etc/ufw", "etc/default"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        assert_eq!(Ufw::read(root.path()), None, "not installed");
        let write = |path: &str, text: &str| fs::write(root.path().join(path), text).unwrap();
        write("etc/ufw/ufw.conf", "# comment\nENABLED=no\nLOGLEVEL=low\n");
        assert_eq!(Ufw::read(root.path()), None, "not active");
        write("etc/ufw/ufw.conf", "# comment\nENABLED=yes\nLOGLEVEL=low\n");
        write(
            "etc/default/ufw",
            "IPV6=yes\nDEFAULT_INPUT_POLICY=\"DROP\"\nDEFAULT_OUTPUT_POLICY=\"ACCEPT\"\nDEFAULT_FORWARD_POLICY=\"DROP\"\n",
        );
        assert_eq!(Ufw::read(root.path()).unwrap().lets_in(&service("tcp/22")), None, "not readable");
        write("etc/ufw/user.rules", &format!("*filter\n### RULES ###\n\n{rules}\n### END RULES ###\n"));
        Ufw::read(root.path()).unwrap()
    }

    fn service(text: &str) -> Service {
        text.parse::<knockd_core::Services>().unwrap().iter().next().unwrap().clone()
    }

    fn tuple(words: &str) -> String {
        format!("### tuple ### {words}\n-A ufw-user-input -p tcp --dport 22 -j ACCEPT\n")
    }

    #[test]
    fn the_first_rule_that_matches_everybody_decides() {
        for (rules, expected) in [
            (&[][..], false),
            (&["allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in"], true),
            (&["allow any 22 0.0.0.0/0 any 0.0.0.0/0 OpenSSH - in"], true),
            (&["limit tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=73736820"], true),
            (&["allow_log tcp 20:30 0.0.0.0/0 any 0.0.0.0/0 in_eth0"], true),
            (&["allow any any 0.0.0.0/0 any 0.0.0.0/0 in"], true),
            (&["allow tcp 22 0.0.0.0/0 any 10.0.0.0/8 in"], true),
            (&["allow udp 22 0.0.0.0/0 any 0.0.0.0/0 in"], false),
            (&["allow tcp 80,443 0.0.0.0/0 any 0.0.0.0/0 in"], false),
            (&["allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 out"], false),
            (&["route:allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in"], false),
            (&["deny tcp 22 0.0.0.0/0 any 0.0.0.0/0 in", "allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in"], false),
            (&["deny tcp 22 0.0.0.0/0 any 10.0.0.1 in", "allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in"], true),
        ] {
            let rules: String = rules.iter().map(|rule| tuple(rule)).collect();
            assert_eq!(ufw(&rules).lets_in(&service("tcp/22")), Some(expected), "{rules}");
        }
        let range = ufw(&tuple("allow udp 60000:61000 0.0.0.0/0 any 0.0.0.0/0 in"));
        assert_eq!(range.lets_in(&service("udp/60000-61000")), Some(true));
        assert_eq!(range.lets_in(&service("udp/60000-61001")), Some(false));
    }

    #[test]
    fn who_is_led_to_another_host_needs_a_rule_for_routes() {
        let forward: knockd_core::Forwards = "tcp/2222 > 172.17.0.2:22".parse().unwrap();
        let forward = *forward.iter().next().unwrap();
        for (rule, expected) in [
            ("allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in", false),
            ("route:allow tcp 22 172.17.0.2 any 0.0.0.0/0 in", true),
            ("route:allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in", true),
            ("route:allow tcp 22 172.17.0.3 any 0.0.0.0/0 in", false),
            ("route:allow tcp 2222 172.17.0.2 any 0.0.0.0/0 in", false),
        ] {
            assert_eq!(ufw(&tuple(rule)).lets_through(forward), Some(expected), "{rule}");
        }
    }
}
