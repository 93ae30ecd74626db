//! `knockd replay`: what would have happened to the packets in a capture file, and why.
//!
//! Packets take the same path as in the daemon: through the decoder and the gate. The clock is the file's, commands
//! are printed and assumed to succeed at once, and nothing is executed or written.

mod print;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use knockd_capture::interfaces;
use knockd_core::{
    Admission, Config, Effect, Gate, LocalPorts, Now, OneTime, OneTimeFiles, Outcome, Packet, Run, Seed,
    Sight, Timestamp, UnixTime, Visibility,
};

use self::print::{Printer, Summary};
use crate::capture_file::{self, Captured};
use knockd_cli::Exit;
use knockd_cli::args;
use knockd_cli::control::explain;
use knockd_cli::system::config_file::ConfigFile;
use knockd_cli::system::local_ports;

/// The start of Linux's default ephemeral port range (ip(7)).
const EPHEMERAL_FROM: u16 = 32768;

/// Replays a capture file and prints what would have happened.
///
/// # Errors
/// When the configuration, a one-time file or the capture file is unusable; a damaged file is read as far as
/// possible. When the output cannot be printed.
pub fn run(args: &args::ReplayArgs) -> anyhow::Result<Exit> {
    let config = ConfigFile::read(&args.config, Path::new(""))?.parse()?.config;
    let own = Own::choose(args)?;
    let mut replay = Replay::new(config, own)?;
    let mut output = Printer::new(args.format, args.explain);
    let mut failure = None;
    let read = capture_file::read(open(&args.capture)?, |captured| {
        // Nothing is printed before the file has turned out to be a capture.
        let begun = if replay.summary.packets == 0 { replay.begin(args, &mut output) } else { Ok(()) };
        match begun.and_then(|()| replay.handle_captured(&captured, &mut output)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    failure.map_or(Ok(()), Err)?;
    let about_file = || args.capture.display().to_string();
    if replay.summary.packets == 0 {
        read.with_context(about_file)?;
        replay.begin(args, &mut output)?;
    }
    output.end_of_file()?;
    replay.finish(&mut output)?;
    output.summary(&replay.summary, read.is_ok(), &replay.own)?;
    read.map(|()| Exit::Succeeded).with_context(about_file)
}

fn open(capture: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    if capture == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(capture).with_context(|| format!("cannot read {}", capture.display()))?;
    Ok(Box::new(file))
}

/// The addresses that doors without a `Target` watch.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Own {
    /// The addresses on the command line.
    Given(Vec<IpAddr>),
    /// The addresses of this machine.
    Machine(Vec<IpAddr>),
    /// Every destination except the `Target` of a door, for a file from another machine.
    Every,
    /// The same, because standard input cannot be read twice to know where it is from.
    EveryOfStdin,
}

impl Own {
    fn choose(args: &args::ReplayArgs) -> anyhow::Result<Self> {
        if !args.address.is_empty() {
            return Ok(Self::Given(args.address.clone()));
        }
        if args.capture == Path::new("-") {
            return Ok(Self::EveryOfStdin);
        }
        let all = interfaces();
        let own = all.iter().flat_map(|interface| interface.addresses.iter().copied()).collect();
        // Every machine has a loopback address.
        let others = all.iter().filter(|interface| !interface.loopback);
        let here: Vec<_> = others.flat_map(|interface| &interface.addresses).collect();
        let mut is_from_here = false;
        // Reading the file to its end reports what is wrong with it.
        let _ = capture_file::read(open(&args.capture)?, |captured| {
            is_from_here = captured
                .packet()
                .is_ok_and(|packet| here.contains(&&packet.destination) || here.contains(&&packet.source));
            if is_from_here { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        Ok(if is_from_here { Self::Machine(own) } else { Self::Every })
    }

    /// Returns the addresses; none if every one counts.
    fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Given(own) | Self::Machine(own) => own,
            Self::Every | Self::EveryOfStdin => &[],
        }
    }

    const fn is_every(&self) -> bool {
        matches!(self, Self::Every | Self::EveryOfStdin)
    }
}

/// The daemon without its clock, sockets and commands.
struct Replay {
    gate: Gate,
    own: Own,
    /// The destination that counts as own at the moment, if every one does.
    current: Option<IpAddr>,
    /// The time of the latest packet; it never goes back.
    now: Timestamp,
    summary: Summary,
}

impl Replay {
    fn new(config: Config, own: Own) -> anyhow::Result<Self> {
        let mut files = OneTimeFiles::new();
        for door in &config.doors {
            let Some(path) = door.key.one_time_file() else { continue };
            let text = fs::read(&**path).with_context(|| format!("{}: cannot read {path}", door.name))?;
            files.insert(path.clone(), OneTime::parse(&text));
        }
        // The same file always gives the same output.
        let mut gate = Gate::new(config, files, Seed::new(0, 0));
        let local_ports = match own {
            Own::Machine(_) => local_ports::read(true).unwrap_or_default(),
            Own::Given(_) | Own::Every | Own::EveryOfStdin => LocalPorts::new(EPHEMERAL_FROM, Vec::new()),
        };
        // There is no filter here to change.
        gate.set_local_ports(local_ports).for_each(drop);
        gate.set_addresses(own.addresses().iter().copied());
        Ok(Self { gate, own, current: None, now: Timestamp::ZERO, summary: Summary::default() })
    }

    fn begin(&self, args: &args::ReplayArgs, output: &mut Printer) -> anyhow::Result<()> {
        Ok(output.begin(&args.config, &self.gate.config().doors, &self.own)?)
    }

    fn handle_captured(&mut self, captured: &Captured<'_>, output: &mut Printer) -> anyhow::Result<()> {
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
        output: &mut Printer,
    ) -> anyhow::Result<()> {
        self.follow(packet.destination);
        let now = self.clocks();
        let visibility = self.gate.visibility(packet, now);
        let outcomes: Vec<_> = self.gate.handle_packet(packet, now).collect();
        self.summary.visible += u64::from(visibility == Visibility::Visible);
        self.summary.count(&outcomes);
        let is_news = |outcome: &Outcome| matches!(outcome, Outcome::Attempt(_) | Outcome::Scanner(_));
        if outcomes.iter().any(is_news) || output.explains(packet.source) {
            let doors = &self.gate.config().doors;
            output.packet(captured, packet, &explain::of_packet(packet, visibility, &outcomes, doors))?;
        }
        let follow = outcomes.into_iter().filter(|outcome| !is_news(outcome)).collect();
        self.carry_out(follow, Some(captured), captured.time, output)
    }

    /// Treats a destination as own, if every one is.
    fn follow(&mut self, destination: IpAddr) {
        if !self.own.is_every() || self.current == Some(destination) {
            return;
        }
        self.current = Some(destination);
        let is_target = self.gate.config().doors.iter().any(|door| door.target == Some(destination));
        self.gate.set_addresses(self.current.filter(|_| !is_target));
    }

    /// Lets everything happen that is due before `until`.
    fn handle_timeouts(&mut self, until: Timestamp, output: &mut Printer) -> anyhow::Result<()> {
        while let Some(due) = self.gate.poll_timeout().filter(|&due| due <= until) {
            self.now = self.now.max(due);
            let at = self.now.since(Timestamp::ZERO);
            let now = self.clocks();
            let outcomes: VecDeque<_> = self.gate.handle_timeout(now).collect();
            self.summary.count(&outcomes);
            self.carry_out(outcomes, None, at, output)?;
        }
        Ok(())
    }

    /// Prints outcomes and their consequences, as if everything succeeded at once.
    fn carry_out(
        &mut self,
        mut outcomes: VecDeque<Outcome>,
        captured: Option<&Captured<'_>>,
        at: Duration,
        output: &mut Printer,
    ) -> anyhow::Result<()> {
        let now = self.clocks();
        while let Some(outcome) = outcomes.pop_front() {
            if let Some(note) = explain::of_outcome(&outcome, &self.gate.config().doors) {
                output.note(captured, at, &note)?;
            }
            match outcome {
                Outcome::Effect(
                    Effect::Run(Run { id, .. })
                    | Effect::Admit(Admission { id, .. }, _)
                    | Effect::Shut(Admission { id, .. }),
                ) => {
                    outcomes.extend(self.gate.handle_exit(id, true, now));
                }
                // Who has connected is in no capture file, so a door is open for the time of the knock.
                Outcome::Effect(Effect::Look(admission)) => {
                    let nobody = Sight::Connections(0);
                    outcomes.extend(self.gate.handle_sight(admission.id, nobody, now));
                }
                Outcome::Effect(Effect::Burn(burn)) => {
                    outcomes.extend(self.gate.handle_burnt(burn.id, Ok(()), now));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets everything happen that is still due if no more packets arrive.
    fn finish(&mut self, output: &mut Printer) -> anyhow::Result<()> {
        self.handle_timeouts(Timestamp::new(Duration::MAX), output)
    }

    /// Both clocks follow the file.
    fn clocks(&self) -> Now {
        Now { monotonic: self.now, calendar: UnixTime::new(self.now.since(Timestamp::ZERO)) }
    }
}
