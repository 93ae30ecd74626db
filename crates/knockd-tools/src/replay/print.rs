//! The output of a replay, for people or for programs.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use jiff::tz::TimeZone;
use knockd_core::{Door, EventKind, Outcome, Packet};
use serde::Serialize;

use super::Own;
use crate::capture_file::Captured;
use knockd_cli::args::Format;
use knockd_cli::control::explain::{Note, Shown, Unread, What};
use knockd_cli::system::time_zone;

/// The totals.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    pub(super) packets: u64,
    pub(super) visible: u64,
    attempts: u64,
    opened: u64,
    spoiled: u64,
    timed_out: u64,
    evicted: u64,
    scanners: u64,
    /// Counts by the name of the reason.
    unread: BTreeMap<&'static str, u64>,
    #[serde(skip)]
    reasons: BTreeMap<&'static str, Unread>,
}

impl Summary {
    pub(super) fn add_unread(&mut self, reason: Unread) {
        *self.unread.entry(reason.code()).or_default() += 1;
        self.reasons.entry(reason.code()).or_insert(reason);
    }

    pub(super) fn count<'a>(&mut self, outcomes: impl IntoIterator<Item = &'a Outcome>) {
        for outcome in outcomes {
            let event = match outcome {
                Outcome::Attempt(event) => event,
                Outcome::Scanner(_) => {
                    self.scanners += 1;
                    continue;
                }
                _ => continue,
            };
            match event.kind {
                EventKind::Stage(1) => self.attempts += 1,
                EventKind::Opened => self.opened += 1,
                EventKind::Spoiled(_) => self.spoiled += 1,
                EventKind::TimedOut(_) => self.timed_out += 1,
                EventKind::Evicted(_) => self.evicted += 1,
                EventKind::Stage(_)
                | EventKind::Repeated(_)
                | EventKind::WrongFlags(_)
                | EventKind::Elsewhere(_)
                | EventKind::Cooling => {}
            }
        }
    }
}

/// One line of JSON.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum JsonLine<'a> {
    Begin {
        config: String,
        doors: Vec<&'a str>,
        /// `given`, `daemon`, `machine` or `every`.
        own: &'static str,
        addresses: &'a [IpAddr],
    },
    Packet {
        #[serde(flatten)]
        when: When,
        #[serde(flatten)]
        packet: Shown<'a>,
        notes: &'a [Note<'a>],
    },
    Unread {
        #[serde(flatten)]
        when: When,
        source: IpAddr,
        reason: Unread,
    },
    Note {
        #[serde(flatten)]
        when: When,
        #[serde(flatten)]
        note: &'a Note<'a>,
    },
    EndOfFile,
    Summary {
        /// Whether the file was read to its end.
        complete: bool,
        #[serde(flatten)]
        summary: &'a Summary,
    },
}

#[derive(Serialize)]
struct When {
    /// The number of the packet; a timeout has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    time: String,
    /// Seconds since the first packet.
    offset: f64,
}

/// Where everything is printed.
pub(super) struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    format: Format,
    /// The source to explain packet by packet; `None` to report events of all sources.
    explain: Option<IpAddr>,
    zone: TimeZone,
    first: Option<Duration>,
    /// Whether that source has sent anything.
    told: bool,
    /// Whether the end of the file must be announced before the next event.
    at_end: bool,
}

impl Printer {
    pub(super) fn new(format: Format, explain: Option<IpAddr>) -> Self {
        let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        Self { out, format, explain, zone: time_zone::local(), first: None, told: false, at_end: false }
    }

    /// Says whether to explain every packet of this source.
    pub(super) fn explains(&self, source: IpAddr) -> bool {
        self.explain == Some(source)
    }

    pub(super) fn begin(&mut self, config: &Path, doors: &[Door], own: &Own) -> io::Result<()> {
        let doors: Vec<_> = doors.iter().map(|door| &*door.name).collect();
        let addresses = own.addresses();
        let (name, whose) = match own {
            Own::Given(_) => ("given", "given"),
            Own::Machine(_) => ("machine", "of this machine"),
            Own::Every => ("every", "no packet in the file is from or for this machine"),
            Own::EveryOfStdin => ("every", "standard input may be from any machine"),
        };
        if self.format == Format::Json {
            let config = config.display().to_string();
            return self.json(&JsonLine::Begin { config, doors, own: name, addresses });
        }
        writeln!(self.out, "Doors in {}: {}", config.display(), doors.join(", "))?;
        if own.is_every() {
            let how = "set them with --address";
            return writeln!(self.out, "Own addresses: every destination, because {whose}; {how}\n");
        }
        let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        writeln!(self.out, "Own addresses ({whose}): {list}\n")
    }

    pub(super) fn packet(
        &mut self,
        captured: &Captured<'_>,
        packet: &Packet,
        notes: &[Note<'_>],
    ) -> io::Result<()> {
        if self.explain.is_none() {
            let worth_a_line = notes.iter().filter(|note| is_progress(&note.what));
            return worth_a_line
                .into_iter()
                .try_for_each(|note| self.note(Some(captured), captured.time, note));
        }
        if self.explain == Some(packet.source) {
            self.told = true;
            let notes: Vec<_> = notes.iter().filter(|note| note.source == packet.source).cloned().collect();
            let when = self.when(Some(captured.number), captured.time);
            if self.format == Format::Json {
                return self.json(&JsonLine::Packet { when, packet: Shown(packet), notes: &notes });
            }
            self.heading(&when, captured.time)?;
            writeln!(self.out, "{}", Shown(packet))?;
            return notes.iter().try_for_each(|note| writeln!(self.out, "    {note}"));
        }
        // Other events for the source, such as an attempt dropped because of somebody else's packet.
        notes.iter().try_for_each(|note| self.note(None, captured.time, note))
    }

    /// Reports a packet that could not be read, if it is from the source to explain.
    pub(super) fn unread(&mut self, captured: &Captured<'_>, reason: Unread) -> io::Result<()> {
        let Some(explain) = self.explain else { return Ok(()) };
        if captured.carried.ok().and_then(|carried| claimed_source(carried.ip_packet)) != Some(explain) {
            return Ok(());
        }
        self.told = true;
        let when = self.when(Some(captured.number), captured.time);
        if self.format == Format::Json {
            return self.json(&JsonLine::Unread { when, source: explain, reason });
        }
        self.heading(&when, captured.time)?;
        writeln!(self.out, "{explain}\n    {}", What::Unread { reason })
    }

    /// Reports an event, unless it is about a source other than the one to explain.
    pub(super) fn note(
        &mut self,
        captured: Option<&Captured<'_>>,
        time: Duration,
        note: &Note<'_>,
    ) -> io::Result<()> {
        if self.explain.is_some_and(|explain| !note.is_about(explain)) {
            return Ok(());
        }
        let when = self.when(captured.map(|captured| captured.number), time);
        if self.format == Format::Json {
            return self.json(&JsonLine::Note { when, note });
        }
        if self.explain.is_some() && captured.is_some() {
            return writeln!(self.out, "    {note}");
        }
        self.heading(&when, time)?;
        writeln!(self.out, "{}: {note}", note.source)
    }

    pub(super) fn end_of_file(&mut self) -> io::Result<()> {
        match self.format {
            Format::Json => self.json(&JsonLine::EndOfFile),
            Format::Text => {
                self.at_end = true;
                Ok(())
            }
        }
    }

    pub(super) fn summary(&mut self, summary: &Summary, complete: bool, own: &Own) -> io::Result<()> {
        if self.format == Format::Json {
            self.json(&JsonLine::Summary { complete, summary })?;
            return self.out.flush();
        }
        if let Some(explain) = self.explain.filter(|_| !self.told) {
            writeln!(
                self.out,
                "No packet in the file comes from {explain}. The source may have been translated on the way (NAT)."
            )?;
        }
        let Summary { packets, visible, attempts, opened, spoiled, timed_out, evicted, scanners, .. } =
            summary;
        writeln!(
            self.out,
            "\nPackets: {packets}, visible to a door: {visible}\nAttempts: {attempts}, opened: {opened}, \
             spoiled: {spoiled}, timed out: {timed_out}, dropped: {evicted}\nScanners: \
             {scanners}"
        )?;
        for (code, count) in &summary.unread {
            if let Some(reason) = summary.reasons.get(code) {
                writeln!(self.out, "Skipped: {count} ({reason})")?;
            }
        }
        if *packets > 0 && *visible == 0 && self.explain.is_none() {
            writeln!(
                self.out,
                "No door saw a packet. To see why, run with --explain and the source address of the knock."
            )?;
            if matches!(own, Own::Machine(_)) {
                writeln!(
                    self.out,
                    "If the file is from another machine, name its addresses with --address."
                )?;
            }
        }
        self.out.flush()
    }

    fn when(&mut self, number: Option<u64>, time: Duration) -> When {
        let first = *self.first.get_or_insert(time);
        let offset = seconds(time.saturating_sub(first)) - seconds(first.saturating_sub(time));
        When { number, time: moment(time).to_string(), offset }
    }

    fn heading(&mut self, when: &When, time: Duration) -> io::Result<()> {
        if std::mem::take(&mut self.at_end) {
            writeln!(self.out, "End of file. If no more packets arrive:")?;
        }
        let local = moment(time).to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.6f").to_string();
        let number = when.number.map(|number| format!("#{number}")).unwrap_or_default();
        write!(self.out, "{local} {:+12.6} {number:>8} ", when.offset)
    }

    fn json(&mut self, object: &JsonLine<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, object)?;
        writeln!(self.out)
    }
}

/// Returns the number that prints as these seconds do: a difference of two such numbers has binary noise in its last
/// digits.
fn seconds(time: Duration) -> f64 {
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos()).parse().unwrap_or(f64::MAX)
}

fn moment(time: Duration) -> jiff::Timestamp {
    let nanoseconds = i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
    jiff::Timestamp::from_nanosecond(nanoseconds).unwrap_or(jiff::Timestamp::MAX)
}

/// Says whether the daemon logs this, or it ends an attempt.
const fn is_progress(what: &What<'_>) -> bool {
    matches!(
        what,
        What::Stage { .. }
            | What::Opened
            | What::TimedOut { .. }
            | What::Spoiled { .. }
            | What::Evicted { .. }
            | What::Scanner
    )
}

/// The source address of a packet that is not decoded (RFC 791, section 3.1; RFC 8200, section 3).
fn claimed_source(ip_packet: &[u8]) -> Option<IpAddr> {
    match ip_packet.first()? >> 4 {
        4 => ip_packet.get(12..)?.first_chunk::<4>().map(|&bytes| bytes.into()),
        6 => ip_packet.get(8..)?.first_chunk::<16>().map(|&bytes| bytes.into()),
        _ => None,
    }
}
