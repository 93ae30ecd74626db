//! The rules in the kernel, as far as they matter for services that are guarded.

use std::ops::RangeInclusive;

use knockd_core::{Protocol, Service};

/// What other tables than knockd's own do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rules {
    /// Services that lead to other hosts or ports.
    redirected: Vec<Redirected>,
    /// Rules that take packets away from conntrack, each with its table.
    untracked: Vec<Untracked>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Redirected {
    protocol: Protocol,
    ports: Vec<RangeInclusive<u16>>,
    is_by_docker: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Untracked {
    table: String,
    /// `None` for any.
    ports: Option<Vec<RangeInclusive<u16>>>,
}

impl Rules {
    /// Takes what `nft list ruleset` prints.
    pub(crate) fn parse(text: &str) -> Self {
        let mut rules = Self::default();
        let (mut table, mut chain) = ("", "");
        for line in text.lines() {
            let line = line.trim();
            if let Some(name) = line.strip_prefix("table ") {
                table = name.trim_end_matches(" {");
            } else if let Some(name) = line.strip_prefix("chain ") {
                chain = name.trim_end_matches(" {");
            } else if table != "inet knockd" {
                rules.add(table, chain, line);
            }
        }
        rules
    }

    fn add(&mut self, table: &str, chain: &str, rule: &str) {
        let words: Vec<_> = rule.split_whitespace().collect();
        let ports = ports(&words);
        let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| {
            let name = protocol.to_string();
            words.windows(2).any(|words| words == [name.as_str(), "dport"])
        });
        let has = |wanted: [&str; 2]| words.windows(2).any(|words| words == wanted);
        // A target of iptables that nft cannot translate.
        let is_target = |name: &str| has(["target", &format!("\"{name}\"")]);
        let redirects = has(["dnat", "to"])
            || has(["dnat", "ip"])
            || has(["dnat", "ip6"])
            || words.contains(&"redirect")
            || is_target("DNAT")
            || is_target("REDIRECT");
        if let (Some(protocol), Some(ports), true) = (protocol, &ports, redirects) {
            let is_by_docker = chain == "DOCKER";
            self.redirected.push(Redirected { protocol, ports: ports.clone(), is_by_docker });
        }
        if words.contains(&"notrack") {
            self.untracked.push(Untracked { table: table.to_owned(), ports });
        }
    }

    /// Says whether a service leads to another host or port.
    pub(crate) fn redirects(&self, service: &Service) -> bool {
        self.redirected.iter().any(|rule| {
            rule.protocol == service.protocol()
                && rule.ports.iter().any(|ports| overlap(ports, service.ports()))
        })
    }

    /// Returns the services that Docker publishes.
    pub(crate) fn published(&self) -> Vec<Service> {
        let by_docker = self.redirected.iter().filter(|rule| rule.is_by_docker);
        let services = by_docker.flat_map(|rule| {
            rule.ports.iter().filter_map(|ports| Service::new(rule.protocol, ports.clone()))
        });
        let mut published: Vec<Service> = Vec::new();
        for service in services {
            if !published.contains(&service) {
                published.push(service);
            }
        }
        published
    }

    /// Returns a table that takes packets to a service away from conntrack.
    pub(crate) fn untracks(&self, service: &Service) -> Option<&str> {
        let is_about = |rule: &&Untracked| {
            rule.ports.as_ref().is_none_or(|all| all.iter().any(|ports| overlap(ports, service.ports())))
        };
        self.untracked.iter().find(is_about).map(|rule| rule.table.as_str())
    }
}

fn overlap(one: &RangeInclusive<u16>, other: &RangeInclusive<u16>) -> bool {
    one.start() <= other.end() && other.start() <= one.end()
}

/// Takes the ports from `dport 22`, `dport 60000-61000` or `dport { 80, 443 }`; `None` if the rule names none.
fn ports(words: &[&str]) -> Option<Vec<RangeInclusive<u16>>> {
    let start = words.iter().position(|word| ["dport", "sport"].contains(word))? + 1;
    let rest = words.get(start..)?;
    let end = match rest.first() {
        Some(&"{") => rest.iter().position(|word| *word == "}")?,
        _ => 1,
    };
    let range = |word: &&str| {
        let word = word.trim_end_matches(',');
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    Some(rest.get(..end)?.iter().filter_map(range).collect())
}

#[cfg(test)]
mod tests {
    use knockd_core::Services;

    use super::*;

    const RULES: &str = "\
table inet knockd {
\tchain to {
\t\ttype nat hook prerouting priority dstnat - 10; policy accept;
\t\ttcp dport 1 ip saddr @d1_4 dnat ip to 10.0.0.1:22
\t}
}
table ip nat {
\tchain DOCKER {
\t\tiifname != \"docker0\" tcp dport 8080 counter packets 0 bytes 0 dnat to 172.17.0.2:80
\t\tiifname != \"br-1\" tcp dport 8080 counter packets 0 bytes 0 dnat to 172.17.0.2:80
\t}
\tchain PREROUTING {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tudp dport { 53, 5300-5310 } dnat to 10.0.0.2
\t\ttcp dport 2222 redirect to :22
\t}
}
table inet raw {
\tchain prerouting {
\t\ttype filter hook prerouting priority raw; policy accept;
\t\ttcp dport 80 notrack
\t}
}
";

    fn service(text: &str) -> Service {
        text.parse::<Services>().unwrap().iter().next().unwrap().clone()
    }

    #[test]
    fn what_leads_elsewhere_is_known_without_our_own_rules() {
        let rules = Rules::parse(RULES);
        for (name, expected) in [
            ("tcp/8080", true),
            ("udp/8080", false),
            ("udp/53", true),
            ("udp/5305", true),
            ("tcp/2222", true),
            ("tcp/1", false),
            ("tcp/80", false),
        ] {
            assert_eq!(rules.redirects(&service(name)), expected, "{name}");
        }
        assert_eq!(rules.published(), [service("tcp/8080")]);
    }

    #[test]
    fn what_conntrack_does_not_see_is_known() {
        let rules = Rules::parse(RULES);
        assert_eq!(rules.untracks(&service("tcp/80")), Some("inet raw"));
        assert_eq!(rules.untracks(&service("tcp/22")), None);
        let all = Rules::parse(&RULES.replace("tcp dport 80 notrack", "notrack"));
        assert_eq!(all.untracks(&service("tcp/22")), Some("inet raw"));
    }
}
