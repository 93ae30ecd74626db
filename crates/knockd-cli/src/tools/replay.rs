//! `knockd replay`: what would have happened to the packets of a capture file, and why.
//!
//! The packets go the same way as in the daemon: decoder, guard, matcher, leases. The clock is that of the file, commands are
//! named and taken to succeed at once, and nothing is executed or written.

mod print;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use knockd_capture::interfaces;
use knockd_core::config::{Options, Secret};
use knockd_core::{
    Config, Door, DoorId, Effect, Event, EventKind, Interest, Leases, LocalPorts, Matcher, OneTime, Packet,
    STRIKE, Scanners, Sighting, Timestamp, Visibility,
};

use crate::Exit;
use crate::args;
use crate::capture::selection::Selection;
use crate::control::explain;
use crate::judge::judge;
use crate::system::config_file;
use crate::system::local_ports;
use crate::tools::capture_file::{self, Captured};
use print::{Output, Summary};

/// Where the ephemeral ports begin with Linux unless somebody has changed that (ip(7)).
const EPHEMERAL_FROM: u16 = 32768;

/// Replays a capture file and prints what would have happened.
///
/// # Errors
/// When the configuration, a one-time file or the capture file cannot be used; a file that is damaged is read as far as
/// that goes. When the answer cannot be printed.
pub fn run(args: &args::Replay) -> anyhow::Result<Exit> {
    let text = config_file::read(&args.config)?;
    let Config { options, doors } = config_file::parse(&args.config, &text)?.config;
    let own = Own::choose(args, &options)?;
    let mut replay = Replay::new(doors, &options, own)?;
    let mut output = Output::new(args.format, args.explain);
    output.begin(&args.config, &replay.doors, &replay.own)?;
    let mut failure = None;
    let read = capture_file::read(open(&args.capture)?, |captured| {
        match replay.handle_captured(&captured, &mut output) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    failure.map_or(Ok(()), Err)?;
    output.end_of_file()?;
    replay.finish(&mut output)?;
    output.summary(&replay.summary, read.is_ok())?;
    read.map(|()| Exit::Succeeded).with_context(|| format!("{}", args.capture.display()))
}

fn open(capture: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    if capture == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(capture).with_context(|| format!("cannot read {}", capture.display()))?;
    Ok(Box::new(file))
}

/// The addresses that doors without `Target` watch.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Own {
    /// Those that the command line names.
    Given(Vec<IpAddr>),
    /// Those of this machine, on the interfaces that the daemon would listen on.
    Machine(Vec<IpAddr>),
    /// Every destination that is not the `Target` of a door.
    Every,
}

impl Own {
    fn choose(args: &args::Replay, options: &Options) -> anyhow::Result<Self> {
        if !args.address.is_empty() {
            return Ok(Self::Given(args.address.clone()));
        }
        // Standard input can be read only once.
        if args.capture == Path::new("-") {
            return Ok(Self::Every);
        }
        let all = interfaces();
        let selection = options.interface.as_deref().and_then(Selection::parse);
        let meant = selection.unwrap_or_else(|| Selection::by_default(&all).0).of(&all);
        let machine: Vec<_> = meant.into_iter().flat_map(|interface| interface.addresses).collect();
        let mut is_of_machine = false;
        // What is wrong with the file is told when it is read to its end.
        let _ = capture_file::read(open(&args.capture)?, |captured| {
            is_of_machine = captured.packet().is_ok_and(|packet| machine.contains(&packet.destination));
            if is_of_machine { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        Ok(if is_of_machine { Self::Machine(machine) } else { Self::Every })
    }
}

/// The daemon without its clock, its sockets and its commands.
struct Replay<'o> {
    doors: Vec<Door>,
    options: &'o Options,
    /// What the one-time files say, with what has been used struck out.
    one_time: HashMap<DoorId, Vec<u8>>,
    own: Own,
    /// The destination that counts as own at the moment, while every one does.
    current: Option<IpAddr>,
    interests: Vec<Interest>,
    matcher: Matcher,
    scanners: Scanners,
    leases: Leases,
    /// The time of the latest packet; time never goes back.
    now: Timestamp,
    summary: Summary,
}

impl<'o> Replay<'o> {
    fn new(doors: Vec<Door>, options: &'o Options, own: Own) -> anyhow::Result<Self> {
        let mut matcher = Matcher::new(&doors, options.max_attempts);
        let mut one_time = HashMap::new();
        for (index, door) in doors.iter().enumerate() {
            if let Secret::OneTime(path) = &door.secret {
                let text = fs::read(path).with_context(|| format!("{}: cannot read {path}", door.name))?;
                let id = DoorId::new(index);
                matcher.set_sequence(id, next_sequence(&text));
                one_time.insert(id, text);
            }
        }
        let mut scanners = Scanners::new(options.scan_limit);
        let local_ports = match own {
            Own::Machine(_) => local_ports::read().unwrap_or_default(),
            Own::Given(_) | Own::Every => LocalPorts::new(EPHEMERAL_FROM, Vec::new()),
        };
        scanners.set_local_ports(local_ports);
        let mut replay = Self {
            doors,
            options,
            one_time,
            own,
            current: None,
            interests: Vec::new(),
            matcher,
            scanners,
            leases: Leases::new(),
            now: Timestamp::ZERO,
            summary: Summary::default(),
        };
        if let Own::Given(own) | Own::Machine(own) = &replay.own {
            replay.matcher.set_addresses(own.iter().copied());
        }
        replay.watch();
        Ok(replay)
    }

    /// Tells the guard what the doors look for.
    fn watch(&mut self) {
        self.interests = self.matcher.interests();
        self.watch_addresses();
    }

    fn watch_addresses(&mut self) {
        match &self.own {
            Own::Given(own) | Own::Machine(own) => self.scanners.watch(&self.interests, own.iter().copied()),
            Own::Every => self.scanners.watch(&self.interests, self.current),
        }
    }

    fn handle_captured(&mut self, captured: &Captured<'_>, output: &mut Output) -> anyhow::Result<()> {
        let at = Timestamp::new(captured.time);
        self.handle_timeouts(at, output)?;
        self.now = self.now.max(at);
        self.summary.packets += 1;
        match captured.packet() {
            Ok(packet) => self.handle_packet(captured, &packet, output),
            Err(reason) => {
                self.summary.add_unread(reason);
                Ok(output.unread(captured, reason)?)
            }
        }
    }

    fn handle_packet(
        &mut self,
        captured: &Captured<'_>,
        packet: &Packet,
        output: &mut Output,
    ) -> anyhow::Result<()> {
        self.follow(packet.destination);
        let visibility = self.matcher.visibility(packet);
        let Self { scanners, matcher, leases, doors, .. } = self;
        let judgement = judge(packet, self.now, scanners, matcher, leases, doors);
        let events: Vec<Event> = judgement.events().copied().collect();
        let sighting = judgement.sighting;
        let is_visible = matches!(sighting, Sighting::AtDoor) && visibility == Visibility::Visible;
        self.summary.visible += u64::from(is_visible);
        self.summary.scanners += u64::from(sighting == Sighting::NewScanner);
        self.summary.count(&events);
        if events.is_empty() && !output.wants(packet.source, sighting) {
            return Ok(());
        }
        let notes = explain::of_packet(packet, sighting, visibility, events.iter(), &self.doors);
        output.packet(captured, packet, &notes)?;
        for event in events {
            if event.kind == EventKind::Opened {
                self.open(captured, event.door, event.source, output)?;
            }
        }
        Ok(())
    }

    /// Takes a destination for an own one, while every one is.
    fn follow(&mut self, destination: IpAddr) {
        if self.own != Own::Every || self.current == Some(destination) {
            return;
        }
        self.current = Some(destination);
        let is_target = self.doors.iter().any(|door| door.target == Some(destination));
        self.matcher.set_addresses(self.current.filter(|_| !is_target));
        self.watch_addresses();
    }

    fn open(
        &mut self,
        captured: &Captured<'_>,
        id: DoorId,
        source: IpAddr,
        output: &mut Output,
    ) -> anyhow::Result<()> {
        if let Some(text) = self.one_time.get_mut(&id) {
            if let Some(used) = OneTime::parse(text).next
                && let Some(byte) = text.get_mut(used.offset)
            {
                *byte = STRIKE;
            }
            self.matcher.set_sequence(id, next_sequence(text));
            self.watch();
        }
        let Some(door) = self.doors.get(id.index()) else { return Ok(()) };
        let effects = self.leases.open(door, source, self.options.max_open, self.now);
        output.note(Some(captured), captured.time, &explain::of_opening(door, source, &effects))?;
        self.end_commands(&effects.unwrap_or_default(), self.now);
        Ok(())
    }

    /// Lets everything happen whose time comes until `until`.
    fn handle_timeouts(&mut self, until: Timestamp, output: &mut Output) -> anyhow::Result<()> {
        while let Some(due) = self.due().filter(|&due| due <= until) {
            self.now = self.now.max(due);
            let at = self.now.since(Timestamp::ZERO);
            let events = self.matcher.handle_timeout(self.now).to_vec();
            self.summary.count(&events);
            for event in &events {
                output.note(None, at, &explain::of_event(event, &self.doors, None))?;
            }
            let effects = self.leases.handle_timeout(self.now);
            for note in effects.iter().filter_map(explain::of_effect) {
                output.note(None, at, &note)?;
            }
            self.end_commands(&effects, self.now);
        }
        Ok(())
    }

    fn due(&self) -> Option<Timestamp> {
        self.matcher.poll_timeout().into_iter().chain(self.leases.poll_timeout()).min()
    }

    /// Every command has succeeded at once.
    fn end_commands(&mut self, effects: &[Effect], now: Timestamp) {
        for effect in effects {
            if let Effect::Run(run) = effect {
                self.leases.handle_exit(run.id, true, now);
            }
        }
    }

    /// Lets everything happen that is still to come, if nobody sends another packet.
    fn finish(&mut self, output: &mut Output) -> anyhow::Result<()> {
        self.handle_timeouts(Timestamp::new(Duration::MAX), output)
    }
}

fn next_sequence(text: &[u8]) -> Option<knockd_core::Sequence> {
    OneTime::parse(text).next.map(|unused| unused.sequence)
}
