//! The gate: packets, ends of commands, requests and the present go in; things to report and to do come out.
//!
//! It joins the parts of this crate, none of which knows the next: the scanner guard sees every packet first, the
//! matcher sees what the guard lets through, and the leases see the openings. Whatever follows from doors, addresses
//! and one-time files is derived here, whenever one of them changes.

mod requests;

use std::collections::BTreeMap;
use std::iter::FusedIterator;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::vec::Drain;

use crate::config::{Config, Door, Key, ScanLimit};
use crate::copies::Copies;
use crate::exceptions::Prefix;
use crate::lease::{Burn, BurnId, Effect, LeaseId, LeaseRecord, Leases, Sight};
use crate::martian::{Martian, OwnAddresses};
use crate::matcher::Matcher;
use crate::one_time::{OneTime, Unused};
use crate::outcome::{DoorId, Event, EventKind, OpeningResult, Outcome, Visibility, Wanted};
use crate::packet::{OwnAddress, Packet};
use crate::scanners::{LocalPorts, Scanners, Sighting};
use crate::seed::Seed;
use crate::text::Text;
use crate::time::{Now, Timestamp};

/// The contents of one-time files, by the path in the configuration. If a file is missing here, its doors are
/// disabled.
pub type OneTimeFiles = BTreeMap<Text, OneTime>;

/// Decides who has knocked, and which door is open for whom until when.
///
/// A pure state machine: the same calls with the same seed have the same results. The caller owns the clocks and
/// passes the present with every call, never an earlier monotonic time than before (an earlier one counts as the
/// latest). It carries out the [`Outcome`]s in order and at once, and calls [`Self::handle_timeout`] at
/// [`Self::poll_timeout`] or at any other time.
///
/// A packet takes constant time. Memory is bounded by `MaxAttempts`, `MaxOpen`, and the scanner guard's 65,536
/// sources.
#[derive(Debug)]
pub struct Gate {
    config: Arc<Config>,
    scanners: Scanners,
    copies: Copies,
    matcher: Matcher,
    leases: Leases,
    files: OneTimeFiles,
    /// Openings that wait until their one-time sequence is struck out.
    burning: BTreeMap<BurnId, Burning>,
    last_burn: BurnId,
    own: Vec<OwnAddress>,
    /// The same, to find them.
    addresses: OwnAddresses,
    wanted: Arc<Wanted>,
    /// Reused to keep its memory; empty between calls.
    outcomes: Vec<Outcome>,
}

/// The openings that a line causes once it is struck out.
#[derive(Debug)]
struct Burning {
    file: Text,
    line: Unused,
    openings: Vec<(Door, IpAddr)>,
}

/// The decisions of a call, in order. They borrow the gate, so collect them before calling it again.
#[must_use = "an outcome that is not carried out leaves a door open or a knock lost"]
#[derive(Debug)]
pub struct Outcomes<'a>(Drain<'a, Outcome>);

impl Iterator for Outcomes<'_> {
    type Item = Outcome;

    fn next(&mut self) -> Option<Outcome> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Outcomes<'_> {}

impl FusedIterator for Outcomes<'_> {}

impl Gate {
    /// Creates a gate at which nobody has knocked.
    ///
    /// Doors without a `Target` stay closed until [`Self::set_addresses`] names our own addresses. `seed` keys the
    /// hashes of what strangers send.
    pub fn new(config: impl Into<Arc<Config>>, files: OneTimeFiles, seed: Seed) -> Self {
        let config = config.into();
        let mut gate = Self {
            scanners: Scanners::new(config.options.scan_limit.map(ScanLimit::get), seed),
            copies: Copies::new(seed),
            matcher: Matcher::new(&config.doors, config.options.max_attempts, seed),
            leases: Leases::with_seed(seed),
            files,
            burning: BTreeMap::new(),
            last_burn: BurnId(0),
            own: Vec::new(),
            addresses: OwnAddresses::default(),
            wanted: Arc::default(),
            outcomes: Vec::new(),
            config,
        };
        gate.set_sequences();
        gate.derive();
        gate.outcomes.clear();
        gate
    }

    /// Returns the current configuration.
    pub const fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Replaces the configuration and the one-time files.
    ///
    /// A door that is the same as before as far as matching goes (name, key, flags, target, timeout) keeps its
    /// attempts, and all leases live on; the services of a door with `Open` are kept open by what the door now says. What the scanner guard knows stays, unless the guard is off.
    pub fn set_config(&mut self, config: impl Into<Arc<Config>>, files: OneTimeFiles) -> Outcomes<'_> {
        self.config = config.into();
        self.files = files;
        self.use_up_burning();
        self.scanners.set_limit(self.config.options.scan_limit.map(ScanLimit::get));
        self.matcher.set_doors(&self.config.doors, self.config.options.max_attempts);
        self.leases.follow(&self.config.doors);
        self.set_sequences();
        self.derive();
        self.take_outcomes()
    }

    /// Sets our own addresses: the destinations that doors without a `Target` watch, and sources that nobody else has.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = impl Into<OwnAddress>>) {
        self.own = addresses.into_iter().map(Into::into).collect();
        self.addresses = self.own.iter().map(|own| own.address).collect();
        self.watch();
    }

    /// Says which ports are in use on this machine. Until then all UDP ports are, and no TCP port is.
    pub fn set_local_ports(&mut self, ports: LocalPorts) -> Outcomes<'_> {
        self.scanners.set_local_ports(ports);
        self.derive();
        self.take_outcomes()
    }

    /// Restores the leases that an earlier process stored; one whose deadline has passed is due at once, and
    /// [`LeaseRecord::in_boot`] says when else it is. IDs up to `last_id`, and those of the records, are not reused. A
    /// record whose ID is already in use is ignored, so call this before anything that can open a door.
    pub fn restore(&mut self, records: impl IntoIterator<Item = LeaseRecord>, last_id: LeaseId, now: Now) {
        self.leases.restore(records, last_id, now);
    }

    /// Takes over a source, or a network, that the firewall lets in at a door for this time, because an earlier process has told it
    /// to. Doors that do not exist any more, or let in others now, are ignored. Call this after [`Self::restore`].
    pub fn restore_admission(&mut self, door: &str, source: Prefix, left: Duration, now: Now) {
        if let Some(door) = self.config.doors.iter().find(|other| other.name == *door) {
            self.leases.restore_admission(door, source, left, now);
        }
    }

    /// Returns what a packet filter must pass at present; every change is an [`Outcome::Wanted`].
    pub const fn wanted(&self) -> &Arc<Wanted> {
        &self.wanted
    }

    /// Judges a packet.
    ///
    /// Packets from a scanner are ignored, except that they can keep open what the scanner has opened. The outcomes
    /// are, in order: timeouts of attempts of any source, then what the packet did, in door order, then the openings. A
    /// packet that no knocker can have sent changes nothing: see [`Martian`]. Nor does one that another interface has
    /// shown within the last five seconds: see [`Passage`](crate::Passage).
    pub fn handle_packet(&mut self, packet: &Packet, now: Now) -> Outcomes<'_> {
        if self.martian(packet).is_some() {
            return self.take_outcomes();
        }
        let is_scanner = match self.scanners.handle_packet(packet, now.monotonic) {
            Sighting::Elsewhere => return self.take_outcomes(),
            Sighting::NewScanner => {
                self.matcher.forget(packet.source);
                self.outcomes.push(Outcome::Scanner(packet.source));
                return self.take_outcomes();
            }
            Sighting::Ignored if !self.leases.holds_any(packet.source) => return self.take_outcomes(),
            Sighting::Ignored => true,
            Sighting::AtDoor => false,
        };
        if self.copies.take(packet, now.monotonic) {
            return self.take_outcomes();
        }
        let (config, leases) = (&self.config, &self.leases);
        let keeps_open =
            |event: &Event| config.door(event.door).is_some_and(|door| leases.holds(door, event.source));
        let counts = |event: &&Event| !is_scanner || event.kind != EventKind::Opened || keeps_open(event);
        let events = self.matcher.handle_packet(packet, now.monotonic).iter().filter(counts);
        self.outcomes.extend(events.copied().map(Outcome::Attempt));
        self.open_completed(now);
        self.take_outcomes()
    }

    /// Says whether any door sees a packet at present, and if not, why. A scanner's packet can at most keep open what
    /// its source has opened.
    pub fn visibility(&self, packet: &Packet, now: Now) -> Visibility {
        if let Some(martian) = self.martian(packet) {
            return Visibility::Martian(martian);
        }
        if self.scanners.is_scanner(packet.source, now.monotonic) {
            return Visibility::FromScanner;
        }
        match self.matcher.visibility(packet) {
            Visibility::NoDoorsPort => {
                let door = self.matcher.door_for_other_protocol(packet);
                door.map_or(Visibility::NoDoorsPort, Visibility::WrongProtocol)
            }
            Visibility::Visible if self.copies.is_copy(packet, now.monotonic) => Visibility::Copy,
            visibility => visibility,
        }
    }

    /// Handles the end of a command. `succeeded` says whether its exit status was 0. An unknown `id` is ignored.
    pub fn handle_exit(&mut self, id: LeaseId, succeeded: bool, now: Now) -> Outcomes<'_> {
        let effects = self.leases.handle_exit(id, succeeded, now);
        self.outcomes.extend(effects.into_iter().map(Outcome::Effect));
        self.take_outcomes()
    }

    /// Handles what keeps a lease open, as the caller has seen after an [`Effect::Look`]. An unknown `id` is ignored.
    pub fn handle_sight(&mut self, id: LeaseId, sight: Sight, now: Now) -> Outcomes<'_> {
        let effects = self.leases.handle_sight(id, sight, now);
        self.outcomes.extend(effects.into_iter().map(Outcome::Effect));
        self.take_outcomes()
    }

    /// Handles the result of striking out a line of a one-time file: success, once that is durable, or failure with
    /// the file's current content, if it can be read. An unknown `id` is ignored.
    pub fn handle_burnt(
        &mut self,
        id: BurnId,
        result: Result<(), Option<OneTime>>,
        now: Now,
    ) -> Outcomes<'_> {
        let Some(Burning { file, openings, .. }) = self.burning.remove(&id) else {
            return self.take_outcomes();
        };
        match result {
            Ok(()) => {
                for (door, source) in openings {
                    self.open_door(&door, source, now);
                }
            }
            Err(content) => {
                for (Door { name: door, .. }, source) in openings {
                    let result = OpeningResult::NotBurnt;
                    self.outcomes.push(Outcome::Opening { door, source, result });
                }
                self.files.insert(file, content.unwrap_or_default());
                self.use_up_burning();
                self.set_sequences();
                self.derive();
            }
        }
        self.take_outcomes()
    }

    /// Ends the attempts and leases that are due. Calling it early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Now) -> Outcomes<'_> {
        let events = self.matcher.handle_timeout(now.monotonic);
        self.outcomes.extend(events.iter().copied().map(Outcome::Attempt));
        let effects = self.leases.handle_timeout(now.monotonic);
        self.outcomes.extend(effects.into_iter().map(Outcome::Effect));
        self.take_outcomes()
    }

    /// Returns when [`Self::handle_timeout`] wants to be called; `None` if nothing has a deadline.
    ///
    /// It may be too early, never too late.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.matcher.poll_timeout().into_iter().chain(self.leases.poll_timeout()).min()
    }

    fn martian(&self, packet: &Packet) -> Option<Martian> {
        Martian::of(packet, &self.addresses)
    }

    fn take_outcomes(&mut self) -> Outcomes<'_> {
        Outcomes(self.outcomes.drain(..))
    }

    /// Opens the doors whose sequence the current packet completed.
    fn open_completed(&mut self, now: Now) {
        let last_burn = self.last_burn;
        for index in 0..self.outcomes.len() {
            let Some(Outcome::Attempt(event)) = self.outcomes.get(index) else { continue };
            let &Event { source, door, kind } = event;
            let config = Arc::clone(&self.config);
            let Some(door) = config.door(door).filter(|_| kind == EventKind::Opened) else {
                continue;
            };
            match &door.key {
                Key::Sequence(_) => self.open_door(door, source, now),
                Key::OneTime(file) => self.burn(file, door, source, last_burn),
            }
        }
    }

    fn open_door(&mut self, door: &Door, source: IpAddr, now: Now) {
        let (result, effects) = self.leases.open(door, source, self.config.options.max_open, now);
        self.outcomes.push(Outcome::Opening { door: door.name.clone(), source, result });
        self.outcomes.extend(effects.into_iter().map(Outcome::Effect));
    }

    /// Moves the doors of a one-time file on to its next line. The door opens once the used line is struck out.
    ///
    /// Doors that share a file share its lines: those that one packet completes, after the burn `since`, open with
    /// one line.
    fn burn(&mut self, file: &Text, door: &Door, source: IpAddr, since: BurnId) {
        let mut new = self.burning.range_mut(BurnId(since.0 + 1)..).map(|(_, burning)| burning);
        if let Some(burning) = new.find(|burning| burning.file == *file) {
            burning.openings.push((door.clone(), source));
            return;
        }
        let Some(content) = self.files.get_mut(file) else { return };
        let Some(line) = content.use_up() else { return };
        if content.next().is_none() {
            let doors = (0..).map(DoorId::new).zip(&self.config.doors);
            let disabled = doors.filter(|(_, door)| door.key.one_time_file() == Some(file));
            self.outcomes.extend(disabled.map(|(id, _)| Outcome::UsedUp(id)));
        }
        self.last_burn.0 += 1;
        let id = self.last_burn;
        self.outcomes.push(Outcome::Effect(Effect::Burn(Burn {
            id,
            file: file.clone(),
            line: line.clone(),
        })));
        self.burning.insert(id, Burning { file: file.clone(), line, openings: vec![(door.clone(), source)] });
        self.set_sequences();
        self.derive();
    }

    /// Skips the lines that are being struck out: their file may have been read before that.
    fn use_up_burning(&mut self) {
        for burning in self.burning.values() {
            if let Some(file) = self.files.get_mut(&burning.file) {
                file.pass_over(&burning.line);
            }
        }
    }

    /// Gives one-time doors the current sequences of their files.
    fn set_sequences(&mut self) {
        for (index, door) in self.config.doors.iter().enumerate() {
            let Some(path) = door.key.one_time_file() else { continue };
            let next = self.files.get(path).and_then(OneTime::next);
            self.matcher.set_sequence(DoorId::new(index), next.map(|line| line.sequence.clone()));
        }
    }

    /// Derives everything that depends on doors, one-time lines and ports in use.
    fn derive(&mut self) {
        let strays = self.scanners.local_ports().cloned();
        let wanted = Wanted { interests: self.matcher.interests(), strays };
        if wanted != *self.wanted {
            self.wanted = Arc::new(wanted);
            self.outcomes.push(Outcome::Wanted(Arc::clone(&self.wanted)));
        }
        self.watch();
    }

    /// Derives everything that also depends on our own addresses.
    fn watch(&mut self) {
        self.matcher.set_addresses(self.own.iter().copied());
        self.scanners.watch(&self.wanted.interests, self.addresses.iter());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lease::{Admission, LeaseFilter, Run};
    use crate::packet::{Arrival, Hit, Passage};
    use crate::tcp_flags::TcpFlags;

    const CONFIG: &str = "
[ssh]
    Sequence = 7101,8202:udp,9303
    Start_Command = open %IP%
    Stop_Command = close %IP%
[four]
    Sequence = 4004
    Start_Command = four %IP%
    Start_Command_6 =
[once]
    One_Time_Sequences = list
    Start_Command = once %IP%
[twin]
    One_Time_Sequences = list
    Start_Command = twin %IP%
";

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> Now {
        let since = Duration::from_secs(seconds);
        Now { monotonic: Timestamp::new(since), calendar: crate::UnixTime::new(since) }
    }

    fn list(text: &str) -> OneTimeFiles {
        [(Text::new("list").unwrap(), OneTime::parse(text.as_bytes()))].into()
    }

    fn gate(lines: &str) -> Gate {
        let mut gate = Gate::new(CONFIG.parse::<Config>().unwrap(), list(lines), Seed::new(1, 2));
        gate.set_addresses([address("192.0.2.1"), address("2001:db8::1")]);
        gate
    }

    fn tcp(source: &str, port: u16) -> Packet {
        let source = address(source);
        let destination = address(if source.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" });
        Packet::incoming(source, destination, Hit::Tcp { port, flags: TcpFlags::SYN })
    }

    fn udp(source: &str, port: u16) -> Packet {
        Packet { hit: Hit::Udp { port }, ..tcp(source, port) }
    }

    const SOMEBODY: &str = "203.0.113.7";

    /// Returns the outcomes of these packets in short form, without filters and stages.
    fn told(outcomes: impl Iterator<Item = Outcome>) -> Vec<String> {
        let tell = |outcome: Outcome| match outcome {
            Outcome::Attempt(Event { door, kind: EventKind::Opened, .. }) => {
                Some(format!("open {}", door.index()))
            }
            Outcome::Attempt(_) | Outcome::Wanted(_) => None,
            Outcome::Scanner(source) => Some(format!("scanner {source}")),
            Outcome::Opening { door, result, .. } => Some(format!("{door}: {result:?}")),
            Outcome::UsedUp(door) => Some(format!("used up {}", door.index())),
            Outcome::Effect(Effect::Burn(burn)) => {
                Some(format!("burn {} at {}", burn.file, burn.line.offset))
            }
            Outcome::Effect(Effect::Store(record)) => Some(format!("store {}", record.until)),
            Outcome::Effect(Effect::EndMoved(..)) => Some("moved".to_owned()),
            Outcome::Effect(Effect::Forget(_)) => Some("forget".to_owned()),
            Outcome::Effect(Effect::SetAside(_)) => Some("set aside".to_owned()),
            Outcome::Effect(Effect::Run(Run { command, .. })) => Some(format!("run {command}")),
            Outcome::Effect(Effect::Admit(Admission { door, source, .. }, time)) => {
                Some(format!("admit {source} at {door} for {} s", time.as_secs()))
            }
            Outcome::Effect(Effect::Prolong(Admission { door, source, .. }, time)) => {
                Some(format!("prolong {source} at {door} for {} s", time.as_secs()))
            }
            Outcome::Effect(Effect::Look(Admission { door, source, .. })) => {
                Some(format!("look at {door} for {source}"))
            }
            Outcome::Effect(Effect::Shut(Admission { door, source, .. })) => {
                Some(format!("shut {door} for {source}"))
            }
        };
        outcomes.filter_map(tell).collect()
    }

    fn send(gate: &mut Gate, packets: &[Packet], now: Now) -> Vec<String> {
        packets.iter().flat_map(|packet| told(gate.handle_packet(packet, now))).collect()
    }

    fn knock(gate: &mut Gate, now: Now) -> Vec<String> {
        send(gate, &[tcp(SOMEBODY, 7101), udp(SOMEBODY, 8202), tcp(SOMEBODY, 9303)], now)
    }

    /// Ends a command of the latest lease: each opening takes a number.
    fn end(gate: &mut Gate, id: u64, succeeded: bool, now: Now) -> Vec<String> {
        told(gate.handle_exit(LeaseId(id), succeeded, now))
    }

    #[test]
    fn what_an_opening_comes_to_is_told_whatever_the_lease_is_doing() {
        let mut gate = gate("");
        assert_eq!(knock(&mut gate, at(0)), ["open 0", "ssh: Opened", "store 10000", "run open 203.0.113.7"]);
        assert_eq!(knock(&mut gate, at(1)), ["open 0", "ssh: Queued"], "while the start command runs");
        assert_eq!(end(&mut gate, 1, true, at(2)), ["store 12000"]);
        let until = at(15).monotonic;
        assert_eq!(
            knock(&mut gate, at(5)),
            ["open 0", &format!("ssh: {:?}", OpeningResult::Extended { until }), "store 15000", "moved"]
        );
        assert_eq!(told(gate.handle_timeout(at(15))), ["run close 203.0.113.7"]);
        assert_eq!(knock(&mut gate, at(16)), ["open 0", "ssh: Queued"], "while the stop command runs");
        assert_eq!(end(&mut gate, 1, true, at(17)), ["store 27000", "run open 203.0.113.7"]);
        assert_eq!(send(&mut gate, &[tcp("2001:db8::7", 4004)], at(17)), ["open 1", "four: NothingToRun"]);
        assert_eq!(told(gate.close_all(at(17))), [""; 0]);
        assert_eq!(knock(&mut gate, at(18)), ["open 0", "ssh: Closing"]);
    }

    #[test]
    fn what_no_knocker_can_have_sent_opens_nothing_makes_no_scanner_and_has_a_reason() {
        let mut gate = gate("");
        let forged = |port| tcp("192.0.2.1", port);
        assert_eq!(gate.visibility(&forged(7101), at(0)), Visibility::Martian(Martian::OwnSource));
        let strays: Vec<_> = (1..100).chain([4004]).map(forged).collect();
        assert_eq!(send(&mut gate, &strays, at(0)), [""; 0]);
        let over_lo = Packet { arrival: Arrival::Loopback, ..forged(4004) };
        assert_eq!(send(&mut gate, &[over_lo], at(0))[0], "open 1", "it is no scanner");
    }

    #[test]
    fn one_ascending_scan_opens_nothing_and_ends_in_a_scanner() {
        let mut gate = gate("");
        let strays: Vec<_> = (7000..7101).map(|port| tcp(SOMEBODY, port)).collect();
        assert_eq!(send(&mut gate, &strays, at(0)), ["scanner 203.0.113.7"]);
        assert_eq!(gate.visibility(&tcp(SOMEBODY, 7101), at(0)), Visibility::FromScanner);
        assert_eq!(knock(&mut gate, at(1)), [""; 0]);
        assert_eq!(gate.visibility(&tcp("203.0.113.8", 7101), at(1)), Visibility::Visible);
        assert_eq!(knock(&mut gate, at(70))[0], "open 0", "its strays are a minute old");
    }

    #[test]
    fn a_scanner_keeps_what_it_has_opened_and_opens_nothing_else() {
        let mut gate = gate("");
        knock(&mut gate, at(0));
        assert_eq!(end(&mut gate, 1, true, at(0)), ["store 10000"]);
        let strays: Vec<_> = (1..=11).map(|port| tcp(SOMEBODY, port)).collect();
        assert_eq!(send(&mut gate, &strays, at(1)), ["scanner 203.0.113.7"]);
        assert_eq!(send(&mut gate, &[tcp(SOMEBODY, 4004)], at(2)), [""; 0]);
        assert_eq!(knock(&mut gate, at(2)).len(), 4);
    }

    #[test]
    fn a_one_time_door_opens_when_its_line_is_struck_out_and_not_before() {
        let mut gate = gate("1,2\n3,4\n");
        let burnt = send(&mut gate, &[tcp(SOMEBODY, 1), tcp(SOMEBODY, 2)], at(0));
        assert_eq!(burnt, ["open 2", "open 3", "burn list at 0"], "both doors share the line");
        assert_eq!(send(&mut gate, &[tcp(SOMEBODY, 1), tcp(SOMEBODY, 2)], at(1)), [""; 0], "it is used");
        let opened = told(gate.handle_burnt(BurnId(1), Ok(()), at(1)));
        assert_eq!(opened, ["once: Opened", "run once 203.0.113.7", "twin: Opened", "run twin 203.0.113.7"]);
        assert_eq!(told(gate.handle_burnt(BurnId(1), Ok(()), at(1))), [""; 0], "an unknown burn");
        let last = send(&mut gate, &[tcp(SOMEBODY, 3), tcp(SOMEBODY, 4)], at(2));
        assert_eq!(last, ["open 2", "open 3", "used up 2", "used up 3", "burn list at 4"]);
        assert_eq!(gate.steps_of(DoorId::new(2)), None);
    }

    #[test]
    fn of_two_knocks_at_once_with_a_line_one_opens() {
        let mut gate = gate("1,2,3\n4,5\n");
        let hits = [1, 1, 2, 1, 2, 3, 2, 3].map(|port| tcp(SOMEBODY, port));
        assert_eq!(send(&mut gate, &hits, at(0)), ["open 2", "open 3", "burn list at 0"]);
    }

    #[test]
    fn a_packet_that_passes_two_interfaces_is_one_hit_and_one_that_comes_again_is_two() {
        let mut gate = gate("");
        let seen = |interface, tag| Packet { passage: Passage { interface, tag }, ..tcp(SOMEBODY, 4004) };
        assert_eq!(send(&mut gate, &[seen(1, 7)], at(0)), ["open 1", "four: Opened", "run four 203.0.113.7"]);
        assert_eq!(gate.visibility(&seen(2, 7), at(0)), Visibility::Copy);
        assert_eq!(send(&mut gate, &[seen(2, 7)], at(0)), [""; 0]);
        assert_eq!(send(&mut gate, &[seen(1, 7), seen(2, 8)], at(0)).len(), 6);
        assert_eq!(gate.visibility(&seen(2, 7), at(5)), Visibility::Visible);
    }

    #[test]
    fn a_door_of_the_firewall_admits_its_knocker_and_then_runs_commands() {
        let config = "[options]\nFirewall = nftables\n[ssh]\nSequence = 1\nOpen = tcp/22\nLease = 20\n\
             [web]\nSequence = 2\nOpen = tcp/80\nStart_Command = start\nStop_Command = stop\n";
        let config = config.parse::<Config>().unwrap();
        let mut gate = Gate::new(config, OneTimeFiles::new(), Seed::new(1, 2));
        gate.set_addresses([address("192.0.2.1")]);
        let knock = |gate: &mut Gate, port, seconds| send(gate, &[tcp(SOMEBODY, port)], at(seconds));
        let opened = ["open 0", "ssh: Opened", "admit 203.0.113.7 at ssh for 20 s"];
        assert_eq!(knock(&mut gate, 1, 0), opened);
        assert!(told(gate.handle_exit(LeaseId(1), true, at(0))).is_empty());
        assert_eq!(knock(&mut gate, 1, 5)[2..], ["admit 203.0.113.7 at ssh for 20 s", "moved"]);
        // The firewall refuses, so the next knock begins anew.
        assert!(told(gate.handle_exit(LeaseId(1), false, at(5))).is_empty());
        assert_eq!(knock(&mut gate, 1, 6), opened);
        assert!(told(gate.handle_exit(LeaseId(1), true, at(6))).is_empty());
        let extended = told(gate.extend(&LeaseFilter::default(), Some(Duration::from_secs(60)), at(6)));
        assert_eq!(extended, ["admit 203.0.113.7 at ssh for 60 s", "moved"]);
        let again = told(gate.admit_again(at(16)));
        assert_eq!(again, ["admit 203.0.113.7 at ssh for 50 s"]);
        assert_eq!(told(gate.handle_timeout(at(66))), ["shut ssh for 203.0.113.7"]);
        assert!(told(gate.handle_exit(LeaseId(1), true, at(66))).is_empty());
        assert_eq!(gate.lease_count(), 0);
        let both = knock(&mut gate, 2, 70);
        assert_eq!(both[1..3], ["web: Opened", "admit 203.0.113.7 at web for 30 s"]);
        assert!(both[3].starts_with("store ") && both[4] == "run start", "{both:?}");
        assert_eq!(gate.lease_count(), 2);
    }

    #[test]
    fn a_door_that_is_open_for_a_network_has_one_lease_for_all_who_knock_from_it() {
        let config = "[options]\nFirewall = nftables\nScanLimit = 5\n[ssh]\nSequence = 1\nOpen = tcp/22\nOpen_For = /24, /64\n\
             [web]\nSequence = 2\nForward = tcp/80 > 10.0.0.1:80\n";
        let config = config.parse::<Config>().unwrap();
        let mut gate = Gate::new(config, OneTimeFiles::new(), Seed::new(1, 2));
        gate.set_addresses([address("192.0.2.1"), address("2001:db8::1")]);
        let knock = |gate: &mut Gate, source, port, seconds| send(gate, &[tcp(source, port)], at(seconds));
        let first = knock(&mut gate, "198.51.100.7", 1, 0);
        assert_eq!(first[1..], ["ssh: Opened", "admit 198.51.100.0/24 at ssh for 30 s"]);
        assert!(told(gate.handle_exit(LeaseId(1), true, at(0))).is_empty());
        let neighbour = knock(&mut gate, "198.51.100.200", 1, 5);
        assert_eq!(neighbour[2..], ["admit 198.51.100.0/24 at ssh for 30 s", "moved"]);
        let stranger = knock(&mut gate, "198.51.101.7", 1, 5);
        assert_eq!(stranger[1..], ["ssh: Opened", "admit 198.51.101.0/24 at ssh for 30 s"]);
        let of = |source| LeaseFilter { door: None, source: Some(address(source)) };
        assert_eq!(told(gate.close(&of("198.51.100.99"), at(6))), ["shut ssh for 198.51.100.0/24"]);
        assert_eq!(gate.lease_count(), 2);
        // What leads to an IPv4 host does nothing for IPv6.
        assert_eq!(knock(&mut gate, "203.0.113.7", 2, 7)[2..], ["admit 203.0.113.7 at web for 30 s"]);
        let source = address("2001:db8:1::7");
        let six =
            |port| Packet::incoming(source, address("2001:db8::1"), Hit::Tcp { port, flags: TcpFlags::SYN });
        let told_of = |gate: &mut Gate, port| told(gate.handle_packet(&six(port), at(8)));
        assert_eq!(told_of(&mut gate, 2)[1..], ["web: NothingToRun"]);
        assert_eq!(told_of(&mut gate, 1)[1..], ["ssh: Opened", "admit 2001:db8:1::/64 at ssh for 30 s"]);
    }

    #[test]
    fn what_an_earlier_process_let_in_is_taken_over_only_if_the_door_still_lets_it_in_like_that() {
        let config = |open_for| {
            format!(
                "[options]\nFirewall = nftables\n[ssh]\nSequence = 1\nOpen = tcp/22\nOpen_For = {open_for}\n"
            )
        };
        for (open_for, source, count) in [
            ("address", "198.51.100.0", 1),
            ("address", "198.51.100.0/24", 0),
            ("/24", "198.51.100.0/24", 1),
            ("/24", "198.51.100.0", 0),
            ("/24", "2001:db8::7", 1),
            ("/64", "2001:db8::/64", 1),
            ("/64", "198.51.100.7", 1),
        ] {
            let config = config(open_for).parse::<Config>().unwrap();
            let mut gate = Gate::new(config, OneTimeFiles::new(), Seed::new(1, 2));
            let left = Duration::from_secs(9);
            gate.restore_admission("ssh", source.parse().unwrap(), left, at(0));
            gate.restore_admission("gone", source.parse().unwrap(), left, at(0));
            assert_eq!(gate.lease_count(), count, "{source} with {open_for}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_struck_out_opens_nothing_and_what_the_file_says_now_counts() {
        for (now, next) in [(Some(OneTime::parse(b"5\n")), Some(1)), (None, None)] {
            let mut gate = gate("1,2\n3,4\n");
            send(&mut gate, &[tcp(SOMEBODY, 1), tcp(SOMEBODY, 2)], at(0));
            assert_eq!(
                told(gate.handle_burnt(BurnId(1), Err(now), at(0))),
                ["once: NotBurnt", "twin: NotBurnt"]
            );
            assert_eq!(gate.steps_of(DoorId::new(2)), next);
        }
    }

    #[test]
    fn a_line_that_is_being_struck_out_does_not_come_back_with_a_reload() {
        let mut gate = gate("1,2\n3,4,5\n");
        send(&mut gate, &[tcp(SOMEBODY, 1), tcp(SOMEBODY, 2)], at(0));
        let config = Arc::clone(gate.config());
        gate.set_config(config, list("1,2\n3,4,5\n")).count();
        assert_eq!(gate.steps_of(DoorId::new(2)), Some(3));
        assert_eq!(told(gate.handle_burnt(BurnId(1), Ok(()), at(0))).len(), 4);
    }

    #[test]
    fn whatever_changes_what_is_wanted_tells_so_and_nothing_else_does() {
        let wanted = |outcomes: Outcomes<'_>| {
            outcomes
                .filter_map(|outcome| match outcome {
                    Outcome::Wanted(wanted) => Some(wanted),
                    _ => None,
                })
                .last()
        };
        let mut gate = gate("1,2\n3,4\n");
        let before = Arc::clone(gate.wanted());
        assert_eq!((before.interests.len(), before.has_udp()), (6, true));
        let ports = LocalPorts::new(32768, [crate::Step::udp(53), crate::Step::tcp(80)]);
        assert_eq!(wanted(gate.set_local_ports(ports.clone())).unwrap().strays, Some(ports.clone()));
        assert_eq!(wanted(gate.set_local_ports(ports)), None);
        let mut used = None;
        for port in [1, 2] {
            used = wanted(gate.handle_packet(&tcp(SOMEBODY, port), at(0)));
        }
        let ports: Vec<_> = used.unwrap().interests.iter().map(|interest| interest.step.port).collect();
        assert_eq!(ports, [7101, 8202, 9303, 4004, 3, 4]);
        let off: Config = CONFIG.replace("[ssh]", "[options]\nScanLimit = 0\n[ssh]").parse().unwrap();
        assert_eq!(wanted(gate.set_config(off, OneTimeFiles::new())).unwrap().strays, None);
        assert_eq!(gate.wanted().interests.len(), 4);
    }

    #[test]
    fn a_door_opened_by_hand_uses_up_no_line() {
        let mut gate = gate("1,2\n");
        assert_eq!(
            told(gate.open("once", address(SOMEBODY), at(0))),
            ["once: Opened", "run once 203.0.113.7"]
        );
        assert_eq!(gate.steps_of(DoorId::new(2)), Some(2));
        assert_eq!(told(gate.open("nobody", address(SOMEBODY), at(0))), [""; 0]);
    }

    #[test]
    fn a_restored_lease_is_closed_at_its_time() {
        let mut before = gate("");
        let mut records = Vec::new();
        for packet in [tcp(SOMEBODY, 7101), udp(SOMEBODY, 8202), tcp(SOMEBODY, 9303)] {
            records.extend(before.handle_packet(&packet, at(0)).filter_map(|outcome| match outcome {
                Outcome::Effect(Effect::Store(record)) => Some(record),
                _ => None,
            }));
        }
        let mut after = gate("");
        // The new process has a new monotonic origin.
        let now = |seconds| Now { monotonic: at(seconds).monotonic, calendar: at(4 + seconds).calendar };
        after.restore(records, LeaseId(0), now(0));
        assert_eq!(told(after.handle_timeout(now(5))), [""; 0]);
        assert_eq!((after.lease_count(), after.poll_timeout()), (1, Some(at(6).monotonic)));
        assert_eq!(told(after.handle_timeout(now(6))), ["run close 203.0.113.7"]);
    }

    #[test]
    fn eleven_forged_strays_cost_their_victim_a_minute_whatever_it_sends_meanwhile() {
        let mut gate = gate("");
        gate.set_local_ports(LocalPorts::new(32768, [80, 443].map(crate::Step::tcp))).count();
        let strays: Vec<_> = (1..=11).map(|port| tcp(SOMEBODY, port)).collect();
        assert_eq!(send(&mut gate, &strays, at(0)), ["scanner 203.0.113.7"]);
        let knock = [tcp(SOMEBODY, 7101), udp(SOMEBODY, 8202), tcp(SOMEBODY, 9303)];
        let acknowledgement = Hit::Tcp { port: 443, flags: TcpFlags::ACK };
        let web =
            [tcp(SOMEBODY, 80), tcp(SOMEBODY, 443), Packet { hit: acknowledgement, ..tcp(SOMEBODY, 443) }];
        for second in 1..=60 {
            assert_eq!(send(&mut gate, &web, at(second)), [""; 0]);
            assert_eq!(send(&mut gate, &knock, at(second)), [""; 0]);
        }
        assert_eq!(gate.visibility(&knock[0], at(60)), Visibility::FromScanner);
        assert_eq!(gate.visibility(&knock[0], at(61)), Visibility::Visible);
        assert!(send(&mut gate, &knock, at(61)).contains(&"ssh: Opened".to_owned()));
    }
}
