//! What happened to a packet and to the attempts of its source, as sentences for people and as JSON for programs.
//!
//! Nothing is decided here: this module puts into words what the decoder, the guard, the matcher and the leases report.
//! It never names a step that was not sent, neither the next one nor a later one; only a port that was hit with the
//! wrong protocol is named with the right one.

use std::fmt;
use std::net::IpAddr;

use knockd_capture::Ignored;
use knockd_core::{
    Admission, Door, Effect, Event, EventKind, Hit, Martian, OpeningResult, Outcome, Packet, Prefix,
    Protocol, RunKind, Step, TcpFlags, Visibility,
};
use serde::{Serialize, Serializer};

/// Why a frame is not a packet that counts for knocking.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Unread {
    /// The frame has a VLAN tag.
    #[error("belongs to a VLAN interface")]
    Vlan,
    /// The start of the packet is unknown.
    #[error("unknown link type")]
    LinkType,
    /// The decoder rejected the packet.
    #[error(transparent)]
    Packet(#[from] Ignored),
}

impl Unread {
    /// Returns the name for programs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Vlan => "vlan",
            Self::LinkType => "link_type",
            Self::Packet(Ignored::NotIp) => "not_ip",
            Self::Packet(Ignored::Truncated) => "truncated",
            Self::Packet(Ignored::Malformed) => "malformed",
            Self::Packet(Ignored::Fragment) => "fragment",
            Self::Packet(Ignored::NotTcpOrUdp) => "not_tcp_or_udp",
            Self::Packet(Ignored::OnItsWay) => "on_its_way",
            Self::Packet(Ignored::TooManyHeaders) => "too_many_headers",
        }
    }
}

impl Serialize for Unread {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

/// One thing that happened to a source.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Note<'a> {
    /// The source.
    pub source: IpAddr,
    /// The name of the door, if the event concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub door: Option<&'a str>,
    /// What happened.
    #[serde(flatten)]
    pub what: What<'a>,
}

impl Note<'_> {
    /// Says whether it is about this address.
    pub fn is_about(&self, address: IpAddr) -> bool {
        let network = match self.what {
            What::LetIn { network, .. } | What::Shut { network } => network,
            _ => None,
        };
        self.source == address || network.is_some_and(|network| network.contains(address))
    }
}

/// What happened, as the JSON names it; docs/json.md has the list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields say what they are")]
pub enum What<'a> {
    /// The packet does not count for knocking.
    Unread { reason: Unread },
    /// No door watches its destination.
    NotWatched,
    /// No door that watches its destination uses its port.
    NoDoorsPort,
    /// The door uses its port with the other protocol, as `wants` says; no door uses both.
    OtherProtocol { wants: String },
    /// The doors that use its port want other flags.
    OtherFlags,
    /// This packet made its source a scanner.
    Scanner,
    /// Its source is a scanner.
    FromScanner,
    /// No knocker can have sent it.
    Martian {
        #[serde(serialize_with = "martian_code")]
        reason: Martian,
    },
    /// Another interface has just shown it.
    Copy,
    /// A door sees the packet, and nothing changes.
    NoEffect,
    /// An attempt reached this stage.
    Stage { stage: u8 },
    /// The sequence is complete.
    Opened,
    /// An attempt timed out.
    TimedOut { stage: u8 },
    /// A packet ended an attempt; `by` is its port and protocol.
    Spoiled { stage: u8, by: String },
    /// An attempt was dropped to make room.
    Evicted { stage: u8 },
    /// A packet repeats the latest step.
    Repeated { stage: u8 },
    /// A door wants other flags than another door that sees the packet; stage 0 means no attempt.
    WrongFlags { stage: u8 },
    /// At an address of another interface, a packet that is not the next step spoils nothing.
    Elsewhere { stage: u8 },
    /// The door's `Cooldown` is still running.
    Cooling,
    /// A start command starts.
    Start { command: &'a str },
    /// The firewall lets the source in for this many seconds from now, and its whole network if there is one.
    LetIn {
        seconds: u64,
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "network_text")]
        network: Option<Prefix>,
    },
    /// The door was already open, and stays open for a full `Cmd_Timeout` from now.
    Extended,
    /// A command of the door is still running; the knock counts when it ends.
    Queued,
    /// The door has no start command and no service for this address.
    NothingToRun,
    /// The daemon is shutting down.
    ShuttingDown,
    /// The one-time sequence could not be struck out.
    NotStruckOut,
    /// A limit on open doors is reached.
    Full { reason: String },
    /// A stop command starts.
    Stop { command: &'a str },
    /// The firewall lets the source in no longer, and its whole network if there is one.
    Shut {
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "network_text")]
        network: Option<Prefix>,
    },
}

/// Writes the name for programs.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn martian_code<S: Serializer>(martian: &Martian, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match martian {
        Martian::Unspecified => "unspecified",
        Martian::Loopback => "loopback",
        Martian::Multicast => "multicast",
        Martian::Reserved => "reserved",
        Martian::EmbeddedIpv4 => "embedded_ipv4",
        Martian::OwnSource => "own_source",
        Martian::OtherHost => "other_host",
    })
}

#[expect(clippy::ref_option, reason = "serde passes a reference")]
fn network_text<S: Serializer>(network: &Option<Prefix>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&network.map(|network| network.to_string()).unwrap_or_default())
}

/// Explains what happened to a packet, and to attempts that ended when it arrived.
///
/// `visibility` is the gate's answer from before the packet. The result of an opening is not included: see
/// [`of_outcome`].
pub fn of_packet<'a>(
    packet: &Packet,
    visibility: Visibility,
    outcomes: &'a [Outcome],
    doors: &'a [Door],
) -> Vec<Note<'a>> {
    let mut notes = Vec::new();
    let mut what = None;
    for outcome in outcomes {
        match outcome {
            Outcome::Attempt(event) => notes.push(of_event(event, doors, Some(packet))),
            Outcome::Scanner(_) => what = Some(What::Scanner),
            Outcome::Opening { .. } | Outcome::Effect(_) | Outcome::UsedUp(_) | Outcome::Wanted(_) => {}
        }
    }
    let is_without_effect = !notes.iter().any(|note| note.source == packet.source);
    let mut door = None;
    let what = what.or(match visibility {
        Visibility::NotWatched => Some(What::NotWatched),
        Visibility::NoDoorsPort => Some(What::NoDoorsPort),
        Visibility::WrongProtocol(id) => {
            door = doors.get(id.index()).map(|door| &*door.name);
            Some(What::OtherProtocol { wants: with_other_protocol(packet.hit.step()).to_string() })
        }
        Visibility::WrongFlags => Some(What::OtherFlags),
        Visibility::Martian(reason) => Some(What::Martian { reason }),
        Visibility::FromScanner => is_without_effect.then_some(What::FromScanner),
        Visibility::Copy => Some(What::Copy),
        Visibility::Visible => is_without_effect.then_some(What::NoEffect),
    });
    notes.extend(what.map(|what| Note { source: packet.source, door, what }));
    notes
}

const fn with_other_protocol(step: Step) -> Step {
    match step.protocol {
        Protocol::Tcp => Step::udp(step.port),
        Protocol::Udp => Step::tcp(step.port),
    }
}

/// Explains what an outcome means for its source, if anything.
pub fn of_outcome<'a>(outcome: &'a Outcome, doors: &'a [Door]) -> Option<Note<'a>> {
    match outcome {
        Outcome::Attempt(event) => Some(of_event(event, doors, None)),
        Outcome::Scanner(source) => Some(Note { source: *source, door: None, what: What::Scanner }),
        Outcome::Opening { door, source, result } => {
            let what = match result {
                // The start command or the firewall reports this.
                OpeningResult::Opened => return None,
                OpeningResult::Extended { .. } => What::Extended,
                OpeningResult::Queued => What::Queued,
                OpeningResult::NothingToRun => What::NothingToRun,
                OpeningResult::Full(full) => What::Full { reason: full.to_string() },
                OpeningResult::Closing => What::ShuttingDown,
                OpeningResult::NotBurnt => What::NotStruckOut,
            };
            Some(Note { source: *source, door: Some(door), what })
        }
        Outcome::Effect(Effect::Run(run)) => {
            let what = match run.kind {
                RunKind::Start => What::Start { command: &run.command },
                RunKind::Stop => What::Stop { command: &run.command },
            };
            Some(Note { source: run.source, door: Some(&run.door), what })
        }
        Outcome::Effect(Effect::Admit(admission, time)) => {
            Some(of_admission(admission, |network| What::LetIn { seconds: time.as_secs(), network }))
        }
        Outcome::Effect(Effect::Shut(admission)) => {
            Some(of_admission(admission, |network| What::Shut { network }))
        }
        Outcome::Effect(_) | Outcome::UsedUp(_) | Outcome::Wanted(_) => None,
    }
}

fn of_admission<'a>(admission: &'a Admission, what: impl FnOnce(Option<Prefix>) -> What<'a>) -> Note<'a> {
    let admitted = admission.source;
    let what = what((!admitted.is_host()).then_some(admitted));
    Note { source: admitted.address(), door: Some(&admission.door), what }
}

/// Explains what happened to an attempt; `packet` is the packet that caused it, if one did.
fn of_event<'a>(event: &Event, doors: &'a [Door], packet: Option<&Packet>) -> Note<'a> {
    let what = match event.kind {
        EventKind::Stage(stage) => What::Stage { stage },
        EventKind::Opened => What::Opened,
        EventKind::TimedOut(stage) => What::TimedOut { stage },
        EventKind::Spoiled(stage) => What::Spoiled {
            stage,
            by: packet.map(|packet| packet.hit.step().to_string()).unwrap_or_default(),
        },
        EventKind::Evicted(stage) => What::Evicted { stage },
        EventKind::Repeated(stage) => What::Repeated { stage },
        EventKind::WrongFlags(stage) => What::WrongFlags { stage },
        EventKind::Elsewhere(stage) => What::Elsewhere { stage },
        EventKind::Cooling => What::Cooling,
    };
    let door = doors.get(event.door.index()).map(|door| &*door.name);
    Note { source: event.source, door, what }
}

/// Prints `door: what happened`, in the words of the log where it has them.
impl fmt::Display for Note<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(door) = self.door {
            write!(f, "{door}: ")?;
        }
        write!(f, "{}", self.what)
    }
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread { reason } => write!(f, "not seen: {reason}"),
            Self::NotWatched => {
                f.write_str("not seen: the destination is neither a local address nor the `Target` of a door")
            }
            Self::NoDoorsPort => f.write_str("not seen: no door uses this port"),
            Self::OtherProtocol { wants } => write!(f, "not seen: this door wants {wants}"),
            Self::OtherFlags => f.write_str("not seen: the doors that use this port want other TCP flags"),
            Self::Scanner => f.write_str(
                "scanner: tried more than `ScanLimit` closed ports; attempts dropped, ignored \
                 while it scans and for a minute after",
            ),
            Self::FromScanner => f.write_str("ignored: the source is a scanner"),
            Self::Martian { reason } => write!(f, "ignored: {reason}"),
            Self::Copy => f.write_str("ignored: the same packet, seen on another interface"),
            Self::NoEffect => {
                f.write_str("no effect: starts no sequence, and there is no attempt to advance or spoil")
            }
            Self::Stage { stage } => write!(f, "Stage {stage}"),
            Self::Opened => f.write_str("OPEN SESAME"),
            Self::TimedOut { stage } => write!(f, "sequence timeout (stage {stage})"),
            Self::Spoiled { stage, by } => {
                write!(f, "spoiled at stage {stage} by {by}, which is not the next step")
            }
            Self::Evicted { stage } => {
                write!(f, "dropped at stage {stage}: `MaxAttempts` reached")
            }
            Self::Repeated { stage: 1 } => {
                f.write_str("ignored: repeated step; the sequence timeout restarts")
            }
            Self::Repeated { .. } => f.write_str("ignored: repeated step"),
            Self::WrongFlags { stage: 0 } => f.write_str("not started: this door wants other TCP flags"),
            Self::WrongFlags { .. } => f.write_str("ignored: this door wants other TCP flags"),
            Self::Elsewhere { .. } => {
                f.write_str("ignored: not the next step, but sent to an address of another interface")
            }
            Self::Cooling => f.write_str("ignored: still in `Cooldown` after opening this door"),
            Self::Start { command } => write!(f, "start command: {command}"),
            Self::LetIn { seconds, network: None } => write!(f, "let in for {seconds} s"),
            Self::LetIn { seconds, network: Some(network) } => {
                write!(f, "let in with its whole /{} for {seconds} s", network.length())
            }
            Self::Extended => f.write_str("already open: stays open for a full `Cmd_Timeout` from now"),
            Self::Queued => f.write_str("queued: a command of this door is still running for this address"),
            Self::NothingToRun => f.write_str("no start command or service for this address"),
            Self::ShuttingDown => f.write_str("stays closed: knockd is shutting down"),
            Self::NotStruckOut => f.write_str("stays closed: cannot strike out the one-time sequence"),
            Self::Full { reason } => write!(f, "stays closed: {reason}"),
            Self::Stop { command } => write!(f, "stop command: {command}"),
            Self::Shut { .. } => f.write_str("let in no longer"),
        }
    }
}

/// A packet for display: `192.0.2.7 to 192.0.2.1, 7000:tcp (syn)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown<'a>(pub &'a Packet);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { source, destination, hit, .. } = self.0;
        write!(f, "{source} to {destination}, {}", hit.step())?;
        match hit {
            Hit::Tcp { flags, .. } if flags.is_empty() => f.write_str(" (no flags)"),
            Hit::Tcp { flags, .. } => write!(f, " ({flags})"),
            Hit::Udp { .. } => Ok(()),
        }
    }
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields {
            source: IpAddr,
            destination: IpAddr,
            protocol: String,
            port: u16,
            #[serde(skip_serializing_if = "Option::is_none")]
            flags: Option<Vec<&'static str>>,
        }
        let Packet { source, destination, hit, .. } = *self.0;
        let step = hit.step();
        let names =
            |flags: TcpFlags| TcpFlags::NAMES.into_iter().filter(move |&(_, flag)| flags.contains(flag));
        let flags = match hit {
            Hit::Tcp { flags, .. } => Some(names(flags).map(|(name, _)| name).collect()),
            Hit::Udp { .. } => None,
        };
        let protocol = step.protocol.to_string();
        Fields { source, destination, protocol, port: step.port, flags }.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use knockd_core::config::Key;
    use knockd_core::{DoorId, DoorName, Sequence};

    use super::*;

    fn packet(flags: TcpFlags) -> Packet {
        let [source, destination] = ["192.0.2.7", "192.0.2.1"].map(|address| address.parse().unwrap());
        Packet::incoming(source, destination, Hit::Tcp { port: 9000, flags })
    }

    fn doors() -> Vec<Door> {
        let key = Key::Sequence("7000,8123,9000".parse::<Sequence>().unwrap());
        vec![Door::new(DoorName::new("ssh").unwrap(), key)]
    }

    fn told(visibility: Visibility, kinds: &[EventKind]) -> Vec<String> {
        let packet = packet(TcpFlags::SYN);
        let of = |&kind| Outcome::Attempt(Event { source: packet.source, door: DoorId::new(0), kind });
        let outcomes: Vec<_> = kinds.iter().map(of).collect();
        let doors = doors();
        let notes = of_packet(&packet, visibility, &outcomes, &doors);
        notes.iter().map(Note::to_string).collect()
    }

    #[test]
    fn what_a_packet_did_is_told_in_the_words_of_the_log() {
        let kinds = [EventKind::Stage(3), EventKind::Opened];
        assert_eq!(told(Visibility::Visible, &kinds), ["ssh: Stage 3", "ssh: OPEN SESAME"]);
    }

    #[test]
    fn what_spoils_is_named_and_what_was_wanted_is_not() {
        let told = told(Visibility::Visible, &[EventKind::Spoiled(1)]);
        assert_eq!(told, ["ssh: spoiled at stage 1 by 9000:tcp, which is not the next step"]);
        let doors = doors();
        for kind in
            [EventKind::Spoiled(1), EventKind::TimedOut(1), EventKind::Stage(1), EventKind::Repeated(1)]
        {
            let packet = packet(TcpFlags::SYN);
            let event = Event { source: packet.source, door: DoorId::new(0), kind };
            let note = of_event(&event, &doors, Some(&packet));
            let said = format!("{note} {}", serde_json::to_string(&note).unwrap());
            assert!(!said.contains("8123"), "{said}");
        }
    }

    #[test]
    fn a_packet_that_did_nothing_has_a_reason() {
        for (visibility, expected) in [
            (Visibility::NoDoorsPort, "not seen: no door uses this port"),
            (Visibility::WrongProtocol(DoorId::new(0)), "ssh: not seen: this door wants 9000:udp"),
            (Visibility::WrongFlags, "not seen: the doors that use this port want other TCP flags"),
            (Visibility::FromScanner, "ignored: the source is a scanner"),
            (Visibility::Martian(Martian::Multicast), "ignored: multicast source address"),
            (Visibility::Copy, "ignored: the same packet, seen on another interface"),
        ] {
            assert_eq!(told(visibility, &[]), [expected]);
        }
        assert!(told(Visibility::Visible, &[])[0].starts_with("no effect"));
        assert!(told(Visibility::NotWatched, &[])[0].contains("`Target`"));
    }

    #[test]
    fn the_time_that_is_over_for_others_is_no_effect_of_the_packet() {
        let packet = packet(TcpFlags::SYN);
        let source = "192.0.2.99".parse().unwrap();
        let event = Event { source, door: DoorId::new(0), kind: EventKind::TimedOut(1) };
        let doors = doors();
        let outcomes = [Outcome::Attempt(event)];
        let notes = of_packet(&packet, Visibility::Visible, &outcomes, &doors);
        assert_eq!(notes.len(), 2);
        assert_eq!(notes[1].what, What::NoEffect);
    }

    #[test]
    fn a_packet_and_a_note_are_flat_objects_of_json() {
        let text = serde_json::to_string(&Shown(&packet(TcpFlags::SYN.union(TcpFlags::ACK)))).unwrap();
        assert_eq!(
            text,
            r#"{"source":"192.0.2.7","destination":"192.0.2.1","protocol":"tcp","port":9000,"flags":["syn","ack"]}"#
        );
        let event =
            Event { source: "192.0.2.7".parse().unwrap(), door: DoorId::new(0), kind: EventKind::Stage(2) };
        let text = serde_json::to_string(&of_event(&event, &doors(), None)).unwrap();
        assert_eq!(text, r#"{"source":"192.0.2.7","door":"ssh","what":"stage","stage":2}"#);
    }

    #[test]
    fn a_knock_that_waits_for_a_command_is_told_apart_from_a_door_without_one() {
        let told = |result| {
            let door = DoorName::new("ssh").unwrap();
            let outcome = Outcome::Opening { door, source: "192.0.2.7".parse().unwrap(), result };
            of_outcome(&outcome, &doors()).map(|note| note.to_string())
        };
        assert!(told(OpeningResult::Queued).unwrap().starts_with("ssh: queued: "));
        assert_eq!(
            told(OpeningResult::NothingToRun).unwrap(),
            "ssh: no start command or service for this address"
        );
        assert_eq!(told(OpeningResult::Opened), None);
    }
}
