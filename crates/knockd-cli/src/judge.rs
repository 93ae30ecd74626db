//! How a packet is judged, by the daemon and by a replay alike: the guard first, then the matcher.

use knockd_core::{Door, Event, EventKind, Leases, Matcher, Packet, Scanners, Sighting, Timestamp};

/// What the guard and the matcher say of a packet.
#[derive(Debug)]
pub(crate) struct Judgement<'a> {
    pub(crate) sighting: Sighting,
    events: &'a [Event],
    leases: &'a Leases,
    doors: &'a [Door],
}

/// Shows a packet to the guard and, if that lets it through, to the matcher.
///
/// A scanner is not looked at, except that it can keep open what it has opened.
pub(crate) fn judge<'a>(
    packet: &Packet,
    now: Timestamp,
    scanners: &mut Scanners,
    matcher: &'a mut Matcher,
    leases: &'a Leases,
    doors: &'a [Door],
) -> Judgement<'a> {
    let sighting = scanners.handle_packet(packet, now);
    let events = match sighting {
        Sighting::Elsewhere => &[],
        Sighting::NewScanner => {
            matcher.forget(packet.source);
            &[]
        }
        Sighting::Ignored if !leases.holds_any(packet.source) => &[],
        Sighting::Ignored | Sighting::AtDoor => matcher.handle_packet(packet, now),
    };
    Judgement { sighting, events, leases, doors }
}

impl<'a> Judgement<'a> {
    /// The events that count: those of the matcher, without the openings that a scanner may not have.
    pub(crate) fn events(&self) -> impl Iterator<Item = &'a Event> {
        let Self { sighting, events, leases, doors } = *self;
        events.iter().filter(move |event| {
            sighting != Sighting::Ignored
                || event.kind != EventKind::Opened
                || doors.get(event.door.index()).is_some_and(|door| leases.holds(door, event.source))
        })
    }
}
