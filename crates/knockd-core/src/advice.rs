//! What is unwise about a usable configuration.
//!
//! All of this follows from the configuration alone. `knockd check` adds what depends on the machine, such as which
//! programs exist.

mod odds;

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Duration;

use self::odds::Odds;
use crate::config::{
    Action, Code, Commands, Config, Diagnostic, Door, Key, Options, Parsed, Places, ScanLimit, Severity,
    Source,
};
use crate::forward::Forwards;
use crate::matcher::Matcher;
use crate::outcome::EventKind;
use crate::packet::{Arrival, Hit, Packet, Passage};
use crate::seed::Seed;
use crate::sequence::{Protocol, Sequence, Step};
use crate::services::{Service, Services};
use crate::tcp_flags::{FlagRule, TcpFlags};
use crate::time::Timestamp;

/// Sequences, as lists of ports, published in manuals, default files and tutorials: those of knockd 0.8, and ours.
const KNOWN: [&[u16]; 10] = [
    &[7000, 8000, 9000],
    &[2222, 3333, 4444],
    &[12345, 54321, 24680, 13579],
    &[8881, 7777, 9991],
    &[7123, 8754, 9002],
    &[6606, 5505, 4404],
    &[1101, 2202, 3303],
    &[4000, 2000, 3000],
    &[12345, 23456, 34567],
    &[7101, 8202, 9303],
];

/// Ports that scanners try first, besides the system ports, which end at 1023.
const WELL_KNOWN: [u16; 24] = [
    1025, 1433, 1521, 1723, 2049, 2375, 3000, 3128, 3306, 3389, 5000, 5060, 5432, 5900, 6379, 8000, 8008,
    8080, 8081, 8443, 8888, 9200, 11211, 27017,
];

/// The last system port (RFC 6335, section 6).
const LAST_SYSTEM_PORT: u16 = 1023;

/// One ascending scan hits two ports within this distance before the scanner guard detects it.
const NEAR: u16 = 10;

/// The time that one step needs on a slow network, with a pause after it.
const TIME_FOR_A_STEP: Duration = Duration::from_millis(500);
/// Within a longer timeout, an attempt is more likely to be spoiled or guessed than completed.
const LONG: Duration = Duration::from_secs(60);

/// Programs that open ports, and the words with which they do.
const FIREWALLS: [&str; 8] =
    ["iptables", "ip6tables", "nft", "ipset", "firewall-cmd", "ufw", "pfctl", "iptables-nft"];
const OPENING: [&str; 9] = ["-A", "-I", "--append", "--insert", "add", "insert", "allow", "accept", "ACCEPT"];
const CLOSING: [&str; 6] = ["-D", "--delete", "delete", "del", "remove", "destroy"];

/// Returns what is unwise about a usable configuration, and the odds of guessing its doors.
///
/// `sources` are those that were parsed. The findings have severity [`Severity::Warning`] or [`Severity::Note`].
pub fn advise(sources: &[Source<'_>], parsed: &Parsed) -> Vec<Diagnostic> {
    let Config { options, doors } = &parsed.config;
    let mut adviser = Adviser { sources, source: Source::new(&[]), findings: Vec::new() };
    for (door, places) in doors.iter().zip(&parsed.places) {
        adviser.go_to(places);
        if let Key::Sequence(sequence) = &door.key {
            adviser.sequence(sequence, places);
            adviser.seq_timeout(door, sequence, places);
            adviser.tcp_flags(door, sequence, places);
        }
        adviser.commands(door, places);
    }
    adviser.pairs(doors, &parsed.places);
    adviser.services(doors, &parsed.places);
    adviser.findings.sort_by(Diagnostic::order);
    for (door, places) in doors.iter().zip(&parsed.places) {
        adviser.go_to(places);
        if let Key::Sequence(sequence) = &door.key {
            adviser.odds(&door.name, sequence, options.scan_limit.map(ScanLimit::get), places);
        }
    }
    adviser.findings
}

struct Adviser<'t> {
    sources: &'t [Source<'t>],
    /// The file of the current door.
    source: Source<'t>,
    findings: Vec<Diagnostic>,
}

impl Adviser<'_> {
    /// Lets the next findings be about the file of this door.
    fn go_to(&mut self, places: &Places) {
        let of_door = |source: &&Source<'_>| source.name == places.file.as_deref();
        self.source = self.sources.iter().find(of_door).copied().unwrap_or(Source::new(&[]));
    }

    fn warn(
        &mut self,
        code: Code,
        span: Range<usize>,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.findings.push(Diagnostic::new(self.source, span, Severity::Warning, code, message, expected));
    }

    /// Adds at most one finding about the ports of a sequence: choosing other ports fixes all of them. A door with
    /// one step is meant to be hit by chance.
    fn sequence(&mut self, sequence: &Sequence, places: &Places) {
        if sequence.len() < 2 {
            return;
        }
        let span = places.of("Sequence");
        let steps: Vec<_> = sequence.steps().collect();
        let expected = "your own ports; `shuf -i 1024-32767 -n 4` picks four";
        let consecutive = || steps.iter().zip(steps.iter().skip(1));
        let near = consecutive()
            .find(|(a, b)| a.protocol == b.protocol && (1..=NEAR).contains(&a.port.abs_diff(b.port)));
        let well_known = steps.iter().find(|step| is_well_known(step.port));
        let of_one_protocol = consecutive().all(|(a, b)| a.protocol == b.protocol);
        if is_known(&steps) {
            self.warn(Code::KnownSequence, span, "sequence published in examples", expected);
        } else if steps.iter().all(|step| is_easy(step.port)) {
            self.warn(Code::EasyPorts, span, "predictable ports", expected);
        } else if let Some((a, b)) = near {
            let message = format!("{a} and {b} are too close: one ascending scan hits both");
            self.warn(Code::NearPorts, span, message, expected);
        } else if let Some(step) = well_known {
            let message = format!("well-known port {step}: every scan tries it");
            self.warn(Code::WellKnownPort, span, message, expected);
        } else if of_one_protocol && consecutive().all(|(a, b)| a.port < b.port) {
            let expected = "ports out of order, which an ascending scan cannot hit";
            self.warn(Code::AscendingPorts, span, "ports in ascending order", expected);
        }
    }

    fn seq_timeout(&mut self, door: &Door, sequence: &Sequence, places: &Places) {
        let seconds = door.seq_timeout.get();
        // The parser reports that a longer sequence with timeout 0 can never open.
        if sequence.len() < 2 || seconds == 0 {
            return;
        }
        let steps = u32::try_from(sequence.len()).unwrap_or(u32::MAX);
        let needed = TIME_FOR_A_STEP.saturating_mul(steps);
        if door.seq_timeout.duration() < needed {
            let message = format!("{seconds} s is short for {steps} steps");
            let expected = format!("{} or more, for slow networks", needed.as_millis().div_ceil(1000));
            self.warn(Code::ShortTimeout, places.of("Seq_Timeout"), message, expected);
        } else if door.seq_timeout.duration() > LONG {
            let message = format!("{seconds} s is unusually long for a knock");
            self.warn(Code::LongTimeout, places.of("Seq_Timeout"), message, "a few seconds, at most 60");
        }
    }

    fn tcp_flags(&mut self, door: &Door, sequence: &Sequence, places: &Places) {
        if sequence.steps().all(|step| step.protocol == Protocol::Udp) {
            return;
        }
        let rule = door.tcp_flags;
        if rule == FlagRule::ANY {
            let message = format!("door `{}` counts every TCP packet, even from open connections", door.name);
            let expected = "`TCPFlags = syn`, to count only connection attempts";
            self.warn(Code::NoTcpFlags, places.header.clone(), message, expected);
        } else if !rule.accepts(TcpFlags::SYN) {
            let flags = rule.must_be_set();
            let flags = if flags.is_empty() { "none".to_owned() } else { flags.to_string() };
            let message = format!("no ordinary client sends the flags `{rule}`");
            let expected = "`syn`, unless this is intended";
            let finding = Diagnostic::new(
                self.source,
                places.of("TCPFlags"),
                Severity::Warning,
                Code::UnusualFlags,
                message,
                expected,
            );
            let help = format!("to knock, run as root: knock --tcpflags {flags} HOST PORT...");
            self.findings.push(finding.with_help(help));
        }
    }

    fn commands(&mut self, door: &Door, places: &Places) {
        let Action::Commands { start, stop } = &door.action;
        let Commands { v4: start, v6: start_6 } = start;
        let Commands { v4: stop, v6: stop_6 } = stop;
        for (family, directive, start, stop) in
            [("", "Stop_Command", start, stop), (" for IPv6", "Stop_Command_6", start_6, stop_6)]
        {
            if start.is_none() && stop.is_some() {
                let span = places.of(directive);
                let message =
                    format!("command never runs: door `{}` has no start command{family}", door.name);
                self.warn(Code::StopWithoutStart, span, message, "a `Start_Command` in this door as well");
                return;
            }
        }
        for (directive, start, stop) in [("Start_Command", start, stop), ("Start_Command_6", start_6, stop_6)]
        {
            if let (Some(start), None) = (start, stop)
                && opens_for_good(&start.to_string())
            {
                let message = format!("door `{}` opens the firewall and never closes it", door.name);
                let expected = "a `Stop_Command`, or a rule that expires by itself, such as nft's `timeout`";
                self.warn(Code::StartWithoutStop, places.of(directive), message, expected);
                return;
            }
        }
    }

    /// Finds doors that get in each other's way when a source knocks at one of them; at most one finding of each kind
    /// per door.
    fn pairs(&mut self, doors: &[Door], places: &[Places]) {
        let opened: Vec<_> = doors.iter().map(|door| opened_by(door, doors)).collect();
        let opens =
            |door: usize, other: usize| opened.get(door).is_some_and(|opened| opened.contains(&other));
        for (index, (door, place)) in doors.iter().zip(places).enumerate() {
            let Key::Sequence(sequence) = &door.key else { continue };
            self.go_to(place);
            let others = || doors.iter().enumerate().filter(|&(other, _)| other != index);
            let span = place.of("Sequence");
            if let Some((_, other)) = others().find(|&(other, _)| opens(index, other)) {
                let message = format!("knocking at door `{}` also opens door `{}`", door.name, other.name);
                self.warn(
                    Code::OpensAnother,
                    span.clone(),
                    message,
                    "a sequence that does not contain another door's",
                );
            }
            let shared = others().find_map(|(other_index, other)| {
                let Key::Sequence(other_sequence) = &other.key else { return None };
                let meet = other_index > index && door.target == other.target;
                let told = opens(index, other_index) || opens(other_index, index);
                let has = |step: &Step| other_sequence.steps().any(|other| other == *step);
                Some((sequence.steps().find(has).filter(|_| meet && !told)?, other))
            });
            if let Some((step, other)) = shared {
                let message = format!(
                    "{step} is also a step of door `{}`: a knock at one can spoil a knock at the other",
                    other.name
                );
                self.warn(Code::SharedPort, span, message, "ports that no other door uses");
            }
        }
    }

    /// Finds doors that open the same service; at most one finding per door.
    fn services(&mut self, doors: &[Door], places: &[Places]) {
        for (index, (door, place)) in doors.iter().zip(places).enumerate() {
            self.go_to(place);
            let others = || doors.iter().skip(index + 1).filter(|other| other.target == door.target);
            let shared = opened_services(door).find_map(|(directive, service)| {
                let is_shared =
                    |other: &&Door| opened_services(other).any(|(_, other)| service.overlaps(&other));
                Some((directive, others().find(is_shared)?, service.clone()))
            });
            if let Some((directive, other, service)) = shared {
                let message = format!("door `{}` also opens {service}", other.name);
                let expected = "a service of its own, unless both doors are meant to open it";
                self.warn(Code::SharedService, place.of(directive), message, expected);
            }
        }
    }

    fn odds(&mut self, name: &str, sequence: &Sequence, limit: Option<NonZeroU32>, places: &Places) {
        let guess = Odds::of_a_guess(sequence);
        let scan = Odds::of_a_scan(sequence, limit);
        let every_order = Odds::of_every_order(sequence, limit);
        let how = if limit.is_some() { "before detection" } else { "`ScanLimit` is 0" };
        let message = format!(
            "door `{name}`: odds of a blind guess: 1 in {guess}; of a scan of all ports: 1 in {scan} in random order, \
             1 in {every_order} in every order ({how})"
        );
        let header = places.header.clone();
        self.findings.push(Diagnostic::new(self.source, header, Severity::Note, Code::Odds, message, ""));
    }
}

/// Returns the services that a door opens, each with the directive that says so.
fn opened_services(door: &Door) -> impl Iterator<Item = (&'static str, Service)> {
    let services = door.open.iter().flat_map(Services::iter).cloned();
    let forwards = door.forward.iter().flat_map(Forwards::iter);
    let forwards = forwards.filter_map(|forward| {
        let port = forward.port();
        Service::new(forward.protocol(), port..=port)
    });
    services.map(|service| ("Open", service)).chain(forwards.map(|service| ("Forward", service)))
}

/// Says whether these are the ports of a published example, in any order.
fn is_known(steps: &[Step]) -> bool {
    let sorted = |ports: &mut dyn Iterator<Item = u16>| {
        let mut ports: Vec<_> = ports.collect();
        ports.sort_unstable();
        ports
    };
    let ports = sorted(&mut steps.iter().map(|step| step.port));
    KNOWN.iter().any(|known| sorted(&mut known.iter().copied()) == ports)
}

fn is_well_known(port: u16) -> bool {
    port <= LAST_SYSTEM_PORT || WELL_KNOWN.contains(&port)
}

/// Says whether a port is a number such as 3000, 4444 or 12345.
fn is_easy(port: u16) -> bool {
    let digits = port.to_string();
    let by =
        |distance: u8| digits.bytes().zip(digits.bytes().skip(1)).all(|(a, b)| a.abs_diff(b) == distance);
    port.is_multiple_of(500) || by(0) || by(1)
}

/// Says whether a command opens a port and nothing in it closes the port again.
fn opens_for_good(command: &str) -> bool {
    let words = || command.split(|c: char| c.is_whitespace() || "'\";=/".contains(c));
    let has = |list: &[&str]| words().any(|word| list.contains(&word));
    let opens = has(&OPENING) || words().any(|word| word.starts_with("--add-"));
    has(&FIREWALLS) && opens && !has(&CLOSING) && !words().any(|word| word.ends_with("timeout"))
}

/// Returns the doors that a plain knock at this door opens, according to the matcher.
fn opened_by(door: &Door, doors: &[Door]) -> Vec<usize> {
    let Key::Sequence(sequence) = &door.key else { return Vec::new() };
    let own = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut matcher = Matcher::new(doors, Options::DEFAULT_MAX_ATTEMPTS, Seed::new(0, 0));
    matcher.set_addresses([own]);
    let flags =
        if door.tcp_flags.accepts(TcpFlags::SYN) { TcpFlags::SYN } else { door.tcp_flags.must_be_set() };
    let mut opened = Vec::new();
    for Step { port, protocol } in sequence.steps() {
        let hit = match protocol {
            Protocol::Tcp => Hit::Tcp { port, flags },
            Protocol::Udp => Hit::Udp { port },
        };
        let packet = Packet {
            source: own,
            destination: door.target.unwrap_or(own),
            hit,
            arrival: Arrival::Loopback,
            passage: Passage::default(),
        };
        let events = matcher.handle_packet(&packet, Timestamp::ZERO).iter();
        opened.extend(events.filter(|event| event.kind == EventKind::Opened).map(|event| event.door.index()));
    }
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A door with no finding except its odds; `lines` replace its default lines.
    fn door(name: &str, lines: &[&str]) -> String {
        let mut all = vec!["Sequence = 20011,4207:udp,11393", "Seq_Timeout = 5", "TCPFlags = syn"];
        let key = |line: &str| line.split(' ').next().unwrap().to_owned();
        all.retain(|line| !lines.iter().any(|other| key(other) == key(line)));
        format!("[{name}]\n{}\n", [&all, lines].concat().join("\n"))
    }

    fn advice(text: &str) -> Vec<Diagnostic> {
        advise(&[Source::new(text.as_bytes())], &Config::parse(text.as_bytes()).unwrap())
    }

    /// Returns the codes of the warnings, each with the text that it is about.
    fn warnings(text: &str) -> Vec<(&'static str, &str)> {
        let warnings = advice(text).into_iter().filter(|finding| finding.severity == Severity::Warning);
        warnings.map(|finding| (finding.code.name(), text.get(finding.span).unwrap())).collect()
    }

    #[test]
    fn of_a_good_door_only_the_odds_are_told() {
        let text = door("a", &[]);
        assert_eq!(warnings(&text), []);
        let notes = advice(&text);
        assert_eq!(notes.len(), 1);
        assert_eq!(
            notes[0].message,
            "door `a`: odds of a blind guess: 1 in 10^15; of a scan of all ports: 1 in 10^13 in random order, 1 in 10^12 in every order (before detection)"
        );
        let unguarded = format!("[options]\nScanLimit = 0\n{text}");
        assert!(
            advice(&unguarded)[0]
                .message
                .ends_with("1 in 6 in random order, 1 in 1 in every order (`ScanLimit` is 0)")
        );
    }

    #[test]
    fn a_sequence_that_is_easy_to_find_is_a_warning_for_its_best_reason() {
        for (sequence, code) in [
            ("7000,8000,9000", "known-sequence"),
            ("9000:udp,8000,7000", "known-sequence"),
            ("7101,8202:udp,9303", "known-sequence"),
            ("4000,2000:udp,6500", "easy-ports"),
            ("4444,5678,54321", "easy-ports"),
            ("20011,20012,4207", "near-ports"),
            ("20011,20003", "near-ports"),
            ("20011,443,4207", "well-known-port"),
            ("20011,8080:udp,4207", "well-known-port"),
            ("4207,11393,20011", "ascending-ports"),
            ("4207:udp,11393:udp", "ascending-ports"),
        ] {
            let text = door("a", &[&format!("Sequence = {sequence}")]);
            assert_eq!(warnings(&text), [(code, sequence)]);
        }
        for sequence in ["20011,4207,11393", "4207,11393:udp,20011", "22", "20011,20012:udp,4207"] {
            assert_eq!(warnings(&door("a", &[&format!("Sequence = {sequence}")])), [], "{sequence}");
        }
    }

    #[test]
    fn a_time_that_is_too_short_for_the_steps_or_too_long_is_a_warning() {
        let six = "Sequence = 20011,4207,11393,17011,9001,30011";
        for (lines, expected) in [
            (&["Seq_Timeout = 1"][..], vec![("short-timeout", "1")]),
            (&["Seq_Timeout = 2"], vec![]),
            (&["Seq_Timeout = 60"], vec![]),
            (&["Seq_Timeout = 61"], vec![("long-timeout", "61")]),
            (&["Seq_Timeout = 2", six], vec![("short-timeout", "2")]),
            (&["Seq_Timeout = 1", "Sequence = 4207"], vec![]),
        ] {
            assert_eq!(warnings(&door("a", lines)), expected, "{lines:?}");
        }
    }

    #[test]
    fn flags_that_every_packet_or_no_plain_client_has_are_a_warning() {
        let without = "[a]\nSequence = 20011,4207:udp,11393\n";
        assert_eq!(warnings(without), [("no-tcp-flags", "[a]")]);
        assert_eq!(warnings("[a]\nSequence = 20011:udp,4207:udp\n"), []);
        for (flags, help) in [("syn,ack", "syn,ack"), ("fin,!ack", "fin"), ("!syn", "none")] {
            let text = door("a", &[&format!("TCPFlags = {flags}")]);
            let advice = advice(&text);
            assert_eq!(
                (advice[0].code.name(), text.get(advice[0].span.clone())),
                ("unusual-flags", Some(flags))
            );
            let help = format!("to knock, run as root: knock --tcpflags {help} HOST PORT...");
            assert_eq!(advice[0].help.as_deref(), Some(help.as_str()));
        }
        for flags in ["syn", "syn,!ack", "!ack"] {
            assert_eq!(warnings(&door("a", &[&format!("TCPFlags = {flags}")])), [], "{flags}");
        }
    }

    #[test]
    fn a_stop_command_that_never_runs_is_a_warning() {
        let stop = "Stop_Command = /bin/close";
        assert_eq!(warnings(&door("a", &[stop])), [("stop-without-start", "/bin/close")]);
        let lines = [stop, "Start_Command = /bin/open", "Start_Command_6 ="];
        assert_eq!(warnings(&door("a", &lines)), [("stop-without-start", "[a]")]);
        assert_eq!(warnings(&door("a", &[stop, "Start_Command = /bin/open"])), []);
    }

    #[test]
    fn what_is_opened_and_never_closed_is_a_warning() {
        for command in [
            "/usr/sbin/iptables -w -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
            "nft 'add element inet filter ssh4 { %IP% }'",
            "sudo ufw allow from %IP%",
            "firewall-cmd --add-source=%IP%",
        ] {
            let line = format!("Start_Command = {command}");
            assert_eq!(warnings(&door("a", &[&line])), [("start-without-stop", command)]);
            assert_eq!(warnings(&door("a", &[&line, "Stop_Command = /bin/close"])), []);
        }
        for command in [
            "nft 'add element inet filter ssh4 { %IP% timeout 30s }'",
            "ipset add ssh %IP% timeout 30 -exist",
            "firewall-cmd --add-source=%IP% --timeout=30",
            "iptables -D INPUT -s %IP% -j ACCEPT",
            "/usr/local/bin/wake-server",
        ] {
            assert_eq!(warnings(&door("a", &[&format!("Start_Command = {command}")])), [], "{command}");
        }
    }

    #[test]
    fn a_finding_about_a_door_in_an_included_file_names_the_file() {
        let (main, other) =
            (door("a", &["Sequence = 20011,4207"]), door("b", &["Sequence = 20011,4207,11393"]));
        let sources = [Source::new(main.as_bytes()), Source::included("b.conf", other.as_bytes())];
        let advice = advise(&sources, &Config::parse_files(&sources).unwrap());
        let said: Vec<_> =
            advice.iter().map(|finding| (finding.file.as_deref(), finding.line, finding.code)).collect();
        assert_eq!(
            said,
            [(Some("b.conf"), 4, Code::OpensAnother), (None, 1, Code::Odds), (Some("b.conf"), 1, Code::Odds)]
        );
    }

    #[test]
    fn doors_that_open_or_disturb_each_other_are_a_warning() {
        let pair = |first: &str, second: &str| {
            let line = |sequence: &str| format!("Sequence = {sequence}");
            let text = door("a", &[&line(first)]) + &door("b", &[&line(second)]);
            let codes = advice(&text).into_iter().filter(|finding| finding.severity == Severity::Warning);
            codes.map(|finding| (finding.code.name(), finding.line)).collect::<Vec<_>>()
        };
        // A door has four lines.
        assert_eq!(pair("20011,4207", "20011,4207,11393"), [("opens-another", 8)]);
        assert_eq!(pair("20011,4207", "20011,4207"), [("opens-another", 4), ("opens-another", 8)]);
        assert_eq!(pair("20011,4207", "4207"), [("opens-another", 4)]);
        assert_eq!(pair("20011,4207,11393", "30011,4207,1500:udp"), [("shared-port", 4)]);
        assert_eq!(pair("20011,4207,11393", "30011,4207:udp,15000"), []);
        let apart = door("a", &[]) + &door("b", &["Target = 192.0.2.1"]);
        assert_eq!(warnings(&apart), []);
    }

    #[test]
    fn doors_that_open_the_same_service_are_a_warning() {
        let pair = |first: &str, second: &str| {
            let text = format!(
                "[options]\nFirewall = nftables\n{}{}",
                door("a", &["Sequence = 20011,4207", first]),
                door("b", &["Sequence = 30011,14208", second])
            );
            let codes = advice(&text).into_iter().filter(|finding| finding.severity == Severity::Warning);
            codes
                .map(|finding| format!("{} {}", finding.code, text.get(finding.span).unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(pair("Open = tcp/22", "Open = udp/22, tcp/20-30"), ["shared-service tcp/22"]);
        assert_eq!(pair("Forward = tcp/22 > self:2", "Open = tcp/22"), ["shared-service tcp/22 > self:2"]);
        for (first, second) in [
            ("Open = tcp/22", "Open = udp/22, tcp/23-30"),
            ("Open = tcp/22", "Forward = tcp/2222 > 10.0.0.1:22"),
            ("Open = tcp/22", "Open = tcp/22\nTarget = 192.0.2.1"),
        ] {
            assert_eq!(pair(first, second), [""; 0], "{first}, {second}");
        }
    }
}
