//! Firewalld: which ports its zones let through.

use std::fs;
use std::path::Path;

use knockd_core::{Protocol, Service, Services};

/// A running firewalld.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Firewalld {
    /// The zones that are in use and do not let everything through: what each lets through.
    zones: Vec<Vec<Service>>,
}

impl Firewalld {
    /// Takes what `firewall-cmd --list-all-zones` prints; the files of its services are below `root`.
    pub(crate) fn read(zones: &str, root: &Path) -> Self {
        let starts_zone = |line: &str| !line.is_empty() && !line.starts_with(char::is_whitespace);
        let (mut active, mut is_active): (Vec<Vec<&str>>, _) = (Vec::new(), false);
        for line in zones.lines() {
            if starts_zone(line) {
                let notes = line.split_once('(').map_or("", |(_, notes)| notes);
                is_active = notes.trim_end_matches(')').split(", ").any(|note| note == "active");
                if is_active {
                    active.push(Vec::new());
                }
            } else if is_active && let Some(zone) = active.last_mut() {
                zone.push(line.trim());
            }
        }
        // A zone that lets everything through is for networks that are trusted, such as those of containers.
        active.retain(|zone| !zone.contains(&"target: ACCEPT"));
        Self { zones: active.iter().map(|zone| services(zone, root)).collect() }
    }

    /// Says whether somebody can reach a service of this host.
    pub(crate) fn lets_in(&self, service: &Service) -> bool {
        let covers = |other: &Service| {
            let (ports, others) = (service.ports(), other.ports());
            other.protocol() == service.protocol()
                && others.contains(ports.start())
                && others.contains(ports.end())
        };
        self.zones.is_empty() || self.zones.iter().flatten().any(covers)
    }
}

/// Returns what a zone lets through.
fn services(zone: &[&str], root: &Path) -> Vec<Service> {
    let mut services = Vec::new();
    for line in zone {
        if let Some(ports) = line.strip_prefix("ports:") {
            services.extend(ports.split_whitespace().filter_map(port));
        } else if let Some(names) = line.strip_prefix("services:") {
            services.extend(names.split_whitespace().flat_map(|name| named(name, root)));
        } else if line.starts_with("rule ") && line.ends_with(" accept") {
            services.extend(ports(line, "port port="));
            services.extend(attribute(line, "service name=").into_iter().flat_map(|name| named(name, root)));
        }
    }
    services
}

/// Takes `22/tcp` or `60000-61000/udp`.
fn port(text: &str) -> Option<Service> {
    let (ports, protocol) = text.split_once('/')?;
    format!("{protocol}/{ports}").parse::<Services>().ok()?.iter().next().cloned()
}

/// Returns the ports of a service by the file that defines it.
fn named(name: &str, root: &Path) -> Vec<Service> {
    let file = |directory: &str| fs::read_to_string(root.join(directory).join(format!("{name}.xml")));
    let text = file("etc/firewalld/services").or_else(|_| file("usr/lib/firewalld/services"));
    text.unwrap_or_default()
        .split('<')
        .filter(|tag| tag.starts_with("port "))
        .filter_map(|tag| ports(tag, "port="))
        .collect()
}

/// Takes the port and the protocol from a text with `port="22" protocol="tcp"`.
fn ports(text: &str, name: &str) -> Option<Service> {
    let protocol: Protocol = attribute(text, "protocol=")?.parse().ok()?;
    port(&format!("{}/{protocol}", attribute(text, name)?))
}

/// Returns the value in quotes behind a name with its `=`.
fn attribute<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(&format!(" {name}\""))?;
    rest.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONES: &str = "\
docker (active)
  target: ACCEPT
  interfaces: docker0
  ports: 1/tcp

home
  target: default
  ports: 2/tcp

public (default, active)
  target: default
  ingress-priority: 0
  interfaces: eth0
  sources: 
  services: dhcpv6-client ssh
  ports: 8080/tcp 60000-61000/udp
  protocols: 
  rich rules: 
\trule family=\"ipv4\" source address=\"192.0.2.0/24\" port port=\"3000\" protocol=\"tcp\" accept
\trule service name=\"dns\" accept
\trule port port=\"4000\" protocol=\"tcp\" reject
";

    fn firewalld(zones: &str) -> Firewalld {
        let root = tempfile::tempdir().unwrap();
        for (name, ports) in [
            ("ssh", "<port protocol=\"tcp\" port=\"22\"/>"),
            ("dns", "<port protocol=\"tcp\" port=\"53\"/>\n  <port protocol=\"udp\" port=\"53\"/>"),
        ] {
            let directory = root.path().join("usr/lib/firewalld/services");
            fs::create_dir_all(&directory).unwrap();
            let text = format!(
                "<?xml version=\"1.0\"?>\n<service>\n  <short>{name}</short>\n  {ports}\n</service>\n"
            );
            fs::write(directory.join(format!("{name}.xml")), text).unwrap();
        }
        Firewalld::read(zones, root.path())
    }

    #[test]
    fn what_a_zone_in_use_names_is_let_through_and_nothing_else() {
        let firewalld = firewalld(ZONES);
        for (service, expected) in [
            ("tcp/22", true),
            ("udp/22", false),
            ("tcp/8080", true),
            ("udp/60000-61000", true),
            ("udp/60000-61001", false),
            ("tcp/3000", true),
            ("udp/53", true),
            ("tcp/4000", false),
            ("tcp/1", false),
            ("tcp/2", false),
        ] {
            let service = service.parse::<Services>().unwrap();
            assert_eq!(firewalld.lets_in(service.iter().next().unwrap()), expected, "{service}");
        }
    }

    #[test]
    fn where_only_trusted_zones_are_in_use_everything_is_let_through() {
        let (docker, _) = ZONES.split_once("\nhome").unwrap();
        let service = "tcp/9".parse::<Services>().unwrap();
        assert!(firewalld(docker).lets_in(service.iter().next().unwrap()));
    }
}
