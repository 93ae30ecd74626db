//! What `knockd check` says about services that the firewall guards: whether they can be reached, and whether they are closed.

use std::path::{Path, PathBuf};

use knockd_core::config::{Code, Diagnostic, Firewall, Key, Parsed, Places, Severity, Source};
use knockd_core::{Config, Door, Forward, Forwards, Protocol, Seconds, Service, Services};

use crate::machine::Machine;
use crate::machine::ufw::Ufw;

/// Something about the machine, and not about a door.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct About {
    /// The file that it is about; `None` for the configuration.
    pub(crate) path: Option<PathBuf>,
    pub(crate) severity: Severity,
    pub(crate) code: Code,
    pub(crate) message: String,
}

/// Looks for what is wrong with guarded services.
pub(crate) struct Guarded<'a> {
    pub(crate) parsed: &'a Parsed,
    pub(crate) sources: Vec<Source<'a>>,
    pub(crate) machine: &'a Machine,
    /// Whether a one-time file has a line left.
    pub(crate) has_line: &'a dyn Fn(&Path) -> bool,
    /// Whether somebody has said that ssh may be closed for good.
    pub(crate) accepts_lockout: bool,
}

impl Guarded<'_> {
    /// Returns the findings about doors, and about the machine.
    pub(crate) fn findings(&self) -> (Vec<Diagnostic>, Vec<About>) {
        let Config { options, doors } = &self.parsed.config;
        let is_guarded = options.firewall == Firewall::Nftables && doors.iter().any(Door::is_guarded);
        if !is_guarded {
            return Default::default();
        }
        let mut findings = Vec::new();
        for (door, places) in doors.iter().zip(&self.parsed.places) {
            // With a target, it is about another host.
            if door.target.is_none() {
                for service in door.open.iter().flat_map(Services::iter) {
                    findings.extend(self.service(service, "Open", places));
                }
            }
            for forward in door.forward.iter().flat_map(Forwards::iter) {
                findings.extend(self.forward(*forward, door, places));
            }
        }
        findings.extend(self.lockout());
        (findings, self.machine())
    }

    /// Looks at a service of this host, to which a directive of a door leads.
    fn service(&self, service: &Service, directive: &str, places: &Places) -> Vec<Diagnostic> {
        let mut findings = Vec::new();
        // What leads to a container is not let in here, but through.
        if !self.machine.rules.redirects(service) {
            if !self.machine.listening.has_any_of(service) {
                let message = format!("nothing listens on {service}");
                let expected = "a running service that others can reach";
                findings.push(self.finding(places, directive, Code::NothingListens, message, expected));
            }
            findings.extend(self.blocked(service, directive, places));
        }
        if let Some(table) = self.machine.rules.untracks(service) {
            let message =
                format!("`notrack` in table {table} concerns {service}: connections end with the lease");
            let expected = "a service whose connections the kernel tracks";
            findings.push(self.finding(places, directive, Code::Untracked, message, expected));
        }
        findings
    }

    /// Looks whether another firewall stops who has knocked.
    fn blocked(&self, service: &Service, directive: &str, places: &Places) -> Option<Diagnostic> {
        let (first, last) = service.ports().clone().into_inner();
        let protocol = service.protocol();
        let ports = |to: char| if first == last { first.to_string() } else { format!("{first}{to}{last}") };
        let expected = "a firewall that lets it through; knockd closes it for everybody else";
        let by_ufw = self.ufw().and_then(|ufw| ufw.lets_in(service)) == Some(false);
        let by_firewalld = self.machine.firewalld.as_ref().is_some_and(|other| !other.lets_in(service));
        let (who, remedy) = if by_ufw {
            ("ufw", format!("ufw allow {}/{protocol}", ports(':')))
        } else if by_firewalld && self.has_no_mark() {
            let port = format!("{}/{protocol}", ports('-'));
            ("firewalld", format!("firewall-cmd --permanent --add-port={port} && firewall-cmd --reload"))
        } else {
            return None;
        };
        let message = format!("{who} blocks {service} even after a knock");
        let finding = self.finding(places, directive, Code::BlockedService, message, expected);
        Some(finding.with_help(format!("run: {remedy}")))
    }

    /// Looks at a forwarded port.
    fn forward(&self, forward: Forward, door: &Door, places: &Places) -> Vec<Diagnostic> {
        let port = forward.target_port();
        let Some(target) = forward.target() else {
            let service = Service::new(forward.protocol(), port..=port);
            let service = service.filter(|_| door.target.is_none());
            return service.map_or_else(Vec::new, |service| self.service(&service, "Forward", places));
        };
        let mut findings = Vec::new();
        if self.ufw().and_then(|ufw| ufw.lets_through(forward)) == Some(false) {
            let message = format!("ufw blocks the way to {target} even after a knock");
            let expected = "a firewall that lets it through";
            let finding = self.finding(places, "Forward", Code::BlockedService, message, expected);
            let protocol = forward.protocol();
            let remedy = format!("ufw route allow proto {protocol} from any to {target} port {port}");
            findings.push(finding.with_help(format!("run: {remedy}")));
        }
        let [ipv4, ipv6] = self.machine.forwards;
        let (forwards, name) = if target.is_ipv4() {
            (ipv4, "net.ipv4.ip_forward")
        } else {
            (ipv6, "net.ipv6.conf.all.forwarding")
        };
        if forwards == Some(false) {
            let message = format!("this host forwards no packets to {target}: {name} is 0");
            let finding =
                self.finding(places, "Forward", Code::NoForwarding, message, "a host that forwards");
            findings.push(finding.with_help(format!("run: sysctl -w {name}=1")));
        }
        findings
    }

    /// Looks whether ssh is closed and no door opens it.
    fn lockout(&self) -> Option<Diagnostic> {
        let doors = || self.parsed.config.doors.iter().zip(&self.parsed.places);
        let (port, places, directive) = self.machine.ssh.iter().find_map(|&port| {
            let is_opened = doors().any(|(door, _)| opens(door, port) && self.can_open(door));
            let mut closing = doors().filter_map(|(door, places)| Some((places, closes(door, port)?)));
            closing.next().filter(|_| !is_opened).map(|(places, directive)| (port, places, directive))
        })?;
        let message = format!("ssh (tcp/{port}) is closed, and no door opens it: a lock-out");
        let expected = format!("a door that can be opened, with `Open = tcp/{port}`");
        let mut finding = self.finding(places, directive, Code::LockOut, message, &expected);
        if !self.accepts_lockout {
            finding.severity = Severity::Error;
            finding = finding.with_help("if there is another way in, run: knockd check --accept-lockout");
        }
        Some(finding)
    }

    /// Says whether a knock can open the door at all.
    fn can_open(&self, door: &Door) -> bool {
        match &door.key {
            Key::Sequence(sequence) => door.seq_timeout != Seconds::ZERO || sequence.len() == 1,
            Key::OneTime(path) => (self.has_line)(Path::new(&**path)),
            _ => true,
        }
    }

    /// Looks at what is not about one door.
    fn machine(&self) -> Vec<About> {
        let mut all = Vec::new();
        for file in &self.machine.rule_files {
            if let Some(line) = file.line_of_own_table() {
                let message = format!(
                    "`table inet knockd` in line {line}: knockd owns that table, so the kernel refuses the whole file at boot; remove \
                     the table from it"
                );
                let (path, severity) = (Some(file.path.clone()), Severity::Error);
                all.push(About { path, severity, code: Code::TableInFile, message });
            }
        }
        let about = |severity, code, message| About { path: None, severity, code, message };
        for vrf in &self.machine.vrfs {
            let message = format!(
                "{vrf} is a VRF: knockd cannot tell its addresses from others, so nothing guards services there"
            );
            all.push(about(Severity::Error, Code::Vrf, message));
        }
        for service in self.machine.rules.published() {
            let doors = &self.parsed.config.doors;
            let is_guarded = doors.iter().any(|door| {
                door.target.is_none()
                    && service.ports().clone().all(|port| guards(door, service.protocol(), port))
            });
            if !is_guarded {
                let message = format!(
                    "Docker publishes {service}, and no door guards it: everybody can reach it, whatever other firewalls say"
                );
                all.push(about(Severity::Note, Code::PublishedPort, message));
            }
        }
        if self.machine.ufw.as_ref().is_some_and(|ufw| !ufw.is_readable()) {
            let message =
                "cannot read the rules of ufw, so it may block services even after a knock; run this as root";
            all.push(about(Severity::Note, Code::BlockedService, message.to_owned()));
        }
        all
    }

    /// Returns ufw, unless packets of knockers have a mark by which it may know them.
    fn ufw(&self) -> Option<&Ufw> {
        self.machine.ufw.as_ref().filter(|_| self.has_no_mark())
    }

    const fn has_no_mark(&self) -> bool {
        self.parsed.config.options.mark.is_none()
    }

    fn finding(
        &self,
        places: &Places,
        directive: &str,
        code: Code,
        message: String,
        expected: &str,
    ) -> Diagnostic {
        let of_door = |source: &&Source<'_>| source.name == places.file.as_deref();
        let source = self.sources.iter().find(of_door).copied().unwrap_or(Source::new(&[]));
        Diagnostic::new(source, places.of(directive), Severity::Warning, code, message, expected)
    }
}

/// Says whether knocking at a door lets its source reach a TCP port of this host.
fn opens(door: &Door, port: u16) -> bool {
    let mut forwards = door.forward.iter().flat_map(Forwards::iter);
    let leads_here = |forward: &Forward| {
        (forward.protocol(), forward.target(), forward.target_port()) == (Protocol::Tcp, None, port)
    };
    door.target.is_none() && (has(door, Protocol::Tcp, port) || forwards.any(leads_here))
}

/// Returns the directive of a door that closes a TCP port of this host for who has not knocked.
fn closes(door: &Door, port: u16) -> Option<&'static str> {
    let directive = if has(door, Protocol::Tcp, port) { "Open" } else { "Forward" };
    guards(door, Protocol::Tcp, port).then_some(directive).filter(|_| door.target.is_none())
}

fn has(door: &Door, protocol: Protocol, port: u16) -> bool {
    let mut services = door.open.iter().flat_map(Services::iter);
    services.any(|service| service.protocol() == protocol && service.ports().contains(&port))
}

/// Says whether a port is closed for who has not knocked.
fn guards(door: &Door, protocol: Protocol, port: u16) -> bool {
    let mut forwards = door.forward.iter().flat_map(Forwards::iter);
    let is_meant = |forward: &Forward| {
        let is_inner = forward.target().is_none() && forward.target_port() == port;
        forward.protocol() == protocol && (forward.port() == port || is_inner)
    };
    has(door, protocol, port) || forwards.any(is_meant)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::listening::Listening;
    use crate::machine::RuleFile;
    use crate::machine::firewalld::Firewalld;
    use crate::machine::rules::Rules;

    const SSH: &str = "Open = tcp/22";

    /// A machine on which all is well.
    fn machine() -> Machine {
        let listening = [("tcp", 22), ("tcp", 80), ("udp", 53)];
        let steps = listening.map(|(protocol, port)| format!("{port}:{protocol}").parse().unwrap());
        Machine {
            listening: Listening::of(steps),
            ssh: vec![22],
            forwards: [Some(true); 2],
            ..Machine::default()
        }
    }

    /// Returns what is said about a door with these lines: severity, code, message and what helps.
    fn said(lines: &str, machine: &Machine) -> Vec<String> {
        said_with("", lines, machine, false)
    }

    fn said_with(options: &str, lines: &str, machine: &Machine, accepts_lockout: bool) -> Vec<String> {
        let text =
            format!("[options]\nFirewall = nftables\n{options}\n[a]\nSequence = 20011,4207\n{lines}\n");
        let parsed = Config::parse(text.as_bytes()).unwrap();
        let guarded = Guarded {
            parsed: &parsed,
            sources: vec![Source::new(text.as_bytes())],
            machine,
            has_line: &|path| path.ends_with("full"),
            accepts_lockout,
        };
        let (findings, about) = guarded.findings();
        let findings = findings.into_iter().map(|finding| {
            let Diagnostic { severity, code, message, help, span, .. } = finding;
            let help = help.map_or_else(String::new, |help| format!("; {help}"));
            let at = text.get(span).unwrap();
            format!("{severity} {code} at {at}: {message}{help}")
        });
        let about = about.into_iter().map(|About { path, severity, code, message }| {
            let path = path.map_or_else(String::new, |path| format!("{}: ", path.display()));
            format!("{severity} {code}: {path}{message}")
        });
        findings.chain(about).collect()
    }

    fn ufw(rules: &str) -> Option<Ufw> {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/ufw")).unwrap();
        fs::write(root.path().join("etc/ufw/ufw.conf"), "ENABLED=yes\n").unwrap();
        if !rules.is_empty() {
            fs::write(root.path().join("etc/ufw/user.rules"), rules).unwrap();
        }
        Ufw::read(root.path())
    }

    const NO_RULES: &str = "### RULES ###\n";

    #[test]
    fn where_all_is_well_nothing_is_said() {
        assert_eq!(said(SSH, &machine()), [""; 0]);
        let lines = "Open = tcp/22, udp/53\nForward = tcp/2222 > self:80, tcp/3333 > 10.0.0.1:22";
        assert_eq!(said(lines, &machine()), [""; 0]);
    }

    #[test]
    fn what_does_not_concern_guarded_services_is_not_told() {
        let machine = Machine { ufw: ufw(NO_RULES), vrfs: vec!["blue".into()], ..Machine::default() };
        assert_eq!(said("Start_Command = echo", &machine), [""; 0]);
        let of_others = said("Target = 192.0.2.1\nOpen = tcp/22", &Machine { vrfs: vec![], ..machine });
        assert_eq!(of_others, [""; 0]);
    }

    #[test]
    fn a_service_that_ufw_blocks_is_told_with_the_command_that_lets_it_through() {
        let blocked = Machine { ufw: ufw(NO_RULES), ..machine() };
        assert_eq!(
            said("Open = tcp/22, udp/50-60", &blocked),
            [
                "warning blocked-service at tcp/22, udp/50-60: ufw blocks tcp/22 even after a knock; run: ufw allow 22/tcp",
                "warning blocked-service at tcp/22, udp/50-60: ufw blocks udp/50-60 even after a knock; run: ufw allow 50:60/udp",
            ]
        );
        assert_eq!(
            said("Open = tcp/22\nForward = tcp/2222 > self:80, tcp/3333 > 10.0.0.1:22", &blocked)[1..],
            [
                "warning blocked-service at tcp/2222 > self:80, tcp/3333 > 10.0.0.1:22: ufw blocks tcp/80 even after a knock; \
                 run: ufw allow 80/tcp",
                "warning blocked-service at tcp/2222 > self:80, tcp/3333 > 10.0.0.1:22: ufw blocks the way to 10.0.0.1 even after a \
                 knock; run: ufw route allow proto tcp from any to 10.0.0.1 port 22",
            ]
        );
        assert_eq!(said_with("Mark = 0x1", SSH, &blocked, false), [""; 0], "it may know the mark");
        let allowed = "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in\n";
        assert_eq!(said(SSH, &Machine { ufw: ufw(allowed), ..machine() }), [""; 0]);
        let unreadable = Machine { ufw: ufw(""), ..machine() };
        assert_eq!(
            said(SSH, &unreadable),
            [
                "note blocked-service: cannot read the rules of ufw, so it may block services even after a knock; run this as root"
            ]
        );
    }

    #[test]
    fn a_service_that_firewalld_blocks_is_told_with_the_command_that_lets_it_through() {
        let zones = |ports| format!("public (active)\n  target: default\n  ports: {ports}\n");
        let with = |ports| Machine {
            firewalld: Some(Firewalld::read(&zones(ports), Path::new("/nonexistent"))),
            ..machine()
        };
        assert_eq!(
            said(SSH, &with("80/tcp")),
            ["warning blocked-service at tcp/22: firewalld blocks tcp/22 even after a knock; \
              run: firewall-cmd --permanent --add-port=22/tcp && firewall-cmd --reload"]
        );
        assert_eq!(said(SSH, &with("22/tcp")), [""; 0]);
    }

    #[test]
    fn a_service_on_which_nothing_listens_is_told_unless_it_leads_elsewhere() {
        let lines = "Open = tcp/22, tcp/8080";
        let told = "warning nothing-listens at tcp/22, tcp/8080: nothing listens on tcp/8080";
        assert_eq!(said(lines, &machine()), [told]);
        let docker = "table ip nat {\nchain DOCKER {\ntcp dport 8080 dnat to 172.17.0.2:80\n}\n}\n";
        assert_eq!(said(lines, &Machine { rules: Rules::parse(docker), ..machine() }), [""; 0]);
        assert_eq!(said("Open = tcp/20-30", &machine()), [""; 0], "one of them is enough");
        assert_eq!(
            said("Open = tcp/22\nForward = tcp/1 > self:2", &machine()),
            ["warning nothing-listens at tcp/1 > self:2: nothing listens on tcp/2"]
        );
    }

    #[test]
    fn our_table_in_a_file_that_is_loaded_at_boot_is_an_error() {
        let file = |text: &str| RuleFile { path: "/etc/nftables.conf".into(), text: text.to_owned() };
        let with = |text| Machine { rule_files: vec![file(text)], ..machine() };
        assert_eq!(
            said(SSH, &with("flush ruleset\ntable inet knockd {\n}\n")),
            [
                "error table-in-file: /etc/nftables.conf: `table inet knockd` in line 2: knockd owns that table, so the kernel refuses \
              the whole file at boot; remove the table from it"
            ]
        );
        assert_eq!(said(SSH, &with("flush ruleset\ntable inet filter {\n}\n")), [""; 0]);
    }

    #[test]
    fn what_the_guard_cannot_see_is_told() {
        let rules = Rules::parse("table inet raw {\nchain prerouting {\ntcp dport 22 notrack\n}\n}\n");
        assert_eq!(
            said(SSH, &Machine { rules, ..machine() }),
            [
                "warning untracked at tcp/22: `notrack` in table inet raw concerns tcp/22: connections end with the lease"
            ]
        );
        assert_eq!(
            said(SSH, &Machine { vrfs: vec!["blue".into()], ..machine() }),
            [
                "error vrf: blue is a VRF: knockd cannot tell its addresses from others, so nothing guards services there"
            ]
        );
    }

    #[test]
    fn ssh_that_no_door_opens_is_an_error_until_it_is_accepted() {
        let error = |at: &str| {
            format!(
                "error lock-out at {at}: ssh (tcp/22) is closed, and no door opens it: a lock-out; \
                 if there is another way in, run: knockd check --accept-lockout"
            )
        };
        let led_away = "Forward = tcp/22 > 10.0.0.1:22";
        assert_eq!(said(led_away, &machine()), [error("tcp/22 > 10.0.0.1:22")]);
        let never = "Seq_Timeout = 0\nOpen = tcp/22";
        assert_eq!(said(never, &machine()), [error("tcp/22")]);
        let used_up = "One_Time_Sequences = empty\nOpen = tcp/22";
        assert_eq!(said(used_up, &machine()), [error("tcp/22")]);
        assert_eq!(said("One_Time_Sequences = full\nOpen = tcp/22", &machine()), [""; 0]);
        assert_eq!(said("Forward = tcp/2222 > self:22", &machine()), [""; 0]);
        let another = format!("{led_away}\n[b]\nSequence = 1\n{SSH}");
        assert_eq!(said(&another, &machine()), [""; 0]);
        assert_eq!(
            said_with("", led_away, &machine(), true),
            [
                "warning lock-out at tcp/22 > 10.0.0.1:22: ssh (tcp/22) is closed, and no door opens it: a lock-out"
            ]
        );
        assert_eq!(said(led_away, &Machine { ssh: vec![2022], ..machine() }), [""; 0]);
    }

    #[test]
    fn what_docker_publishes_is_told_unless_a_door_guards_it() {
        let rules =
            Rules::parse("table ip nat {\nchain DOCKER {\ntcp dport 8080 dnat to 172.17.0.2:80\n}\n}\n");
        let machine = Machine { rules, ..machine() };
        assert_eq!(
            said(SSH, &machine),
            [
                "note published-port: Docker publishes tcp/8080, and no door guards it: everybody can reach it, whatever other firewalls \
              say"
            ]
        );
        assert_eq!(said("Open = tcp/22, tcp/8080", &machine), [""; 0]);
    }

    #[test]
    fn a_host_that_does_not_forward_is_told_with_the_command_that_makes_it() {
        let lines = "Forward = tcp/2222 > 10.0.0.1:22, tcp/2222 > [fd00::1]:22";
        let with = |forwards| Machine { forwards, ..machine() };
        assert_eq!(
            said(lines, &with([Some(false), Some(true)])),
            [format!(
                "warning no-forwarding at {}: this host forwards no packets to 10.0.0.1: net.ipv4.ip_forward is 0; \
                 run: sysctl -w net.ipv4.ip_forward=1",
                lines.trim_start_matches("Forward = ")
            )]
        );
        assert_eq!(said(lines, &with([Some(true), Some(false)])).len(), 1);
        assert_eq!(said(lines, &with([None, None])), [""; 0]);
    }
}
