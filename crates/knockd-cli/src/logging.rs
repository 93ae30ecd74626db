//! The lines of knockd 0.8, in the log file, in the system log and on the terminal.

use std::fs::{File, OpenOptions};
use std::io::{self, Stderr, Stdout, Write};
use std::net::IpAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender};
use jiff::Zoned;
use knockd_core::{EventKind, Full, LeaseKey};

use crate::args::Args;
use crate::names::Names;
use crate::outlets::{Output, SystemLog};
use crate::runner::Outcome;
use crate::setup::Setup;

/// How long a line waits for a host name.
const NAME_WAIT: Duration = Duration::from_secs(2);

/// How many lines wait for names; when there are more, they stop waiting.
const QUEUE: usize = 1024;

/// One line, and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// The knocker whose address (and name) stands in front.
    source: Option<IpAddr>,
    /// What goes to the log file and the system log behind it.
    text: Option<String>,
    terminal: Terminal,
}

/// What of a line is shown on the terminal.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Terminal {
    /// The same on stdout with `-v`.
    Verbose,
    /// Something else on stdout with `-v`.
    VerboseAs(String),
    /// The same on stderr.
    Stderr,
    Nothing,
}

impl Line {
    fn new(text: String, terminal: Terminal) -> Self {
        Self { source: None, text: Some(text), terminal }
    }

    fn of(source: IpAddr, text: String) -> Self {
        Self { source: Some(source), text: Some(text), terminal: Terminal::Verbose }
    }

    pub(crate) fn starting_up(interface: &str) -> Self {
        let shown = Terminal::VerboseAs(format!("listening on {interface}..."));
        Self::new(format!("starting up, listening on {interface}"), shown)
    }

    /// The line about what happened to an attempt, if it deserves one.
    pub(crate) fn event(source: IpAddr, door: &str, kind: EventKind) -> Option<Self> {
        let text = match kind {
            EventKind::Stage(stage) => format!("{door}: Stage {stage}"),
            EventKind::Opened => format!("{door}: OPEN SESAME"),
            EventKind::TimedOut(stage) => format!("{door}: sequence timeout (stage {stage})"),
            EventKind::Spoiled(_)
            | EventKind::Evicted(_)
            | EventKind::Repeated(_)
            | EventKind::WrongFlags(_)
            | EventKind::Cooling => return None,
        };
        Some(Self::of(source, text))
    }

    /// The line about a source that is not looked at any more.
    pub(crate) fn scanner(source: IpAddr) -> Self {
        Self::of(source, "scanner: ignored until it has been quiet for a minute".to_owned())
    }

    pub(crate) fn command_timeout(source: IpAddr, door: &str) -> Self {
        Self::of(source, format!("{door}: command timeout"))
    }

    pub(crate) fn running(door: &str, command: &str) -> Self {
        Self::new(format!("{door}: running command: {command}"), Terminal::Verbose)
    }

    /// The line about a command that did not succeed.
    pub(crate) fn failed(door: &str, outcome: &Outcome) -> Option<Self> {
        let text = match outcome {
            Outcome::Status(0) => return None,
            Outcome::Status(code) => format!("{door}: command returned non-zero status code ({code})"),
            Outcome::Signal(signal) => format!("{door}: command killed by signal {signal}"),
            Outcome::NotStarted(reason) => format!("{door}: command could not be started: {reason}"),
        };
        Some(Self::new(text, Terminal::Stderr))
    }

    /// The line about a knock that opened nothing because too much is open already.
    pub(crate) fn full(source: IpAddr, door: &str, full: Full) -> Self {
        Self { terminal: Terminal::Stderr, ..Self::of(source, format!("{door}: stays closed: {full}")) }
    }

    /// The line about a door that could not be closed.
    pub(crate) fn given_up(key: &LeaseKey) -> Self {
        let LeaseKey { door, source, stop, .. } = key;
        let text = format!(
            "{door}: the stop command has failed too often and is given up, the door may still be open: {stop}"
        );
        Self { terminal: Terminal::Stderr, ..Self::of(*source, text) }
    }

    /// The line about a command that failed because its program is missing.
    pub(crate) fn missing_program(door: &str, program: &str) -> Self {
        Self::warning(format!(
            "{door}: {program} is not there, or cannot be executed; perhaps a package has to be installed"
        ))
    }

    /// What a failed command said; it stands on stderr already.
    pub(crate) fn last_words(door: &str, words: &str) -> Self {
        Self::new(format!("{door}: command said: {words}"), Terminal::Nothing)
    }

    pub(crate) fn rereading(path: &Path) -> Self {
        Self::new(format!("re-reading config file: {}", path.display()), Terminal::Verbose)
    }

    pub(crate) fn closing_log(path: &Path) -> Self {
        Self::new(format!("closing log file: {}", path.display()), Terminal::Verbose)
    }

    pub(crate) fn reopening_log(path: &Path) -> Self {
        Self::new(format!("re-opening log file: {}", path.display()), Terminal::Verbose)
    }

    pub(crate) fn waiting_for_children() -> Self {
        let shown = Terminal::VerboseAs("waiting for child processes...".to_owned());
        Self { source: None, text: None, terminal: shown }
    }

    pub(crate) fn shutting_down() -> Self {
        Self::new("shutting down".to_owned(), Terminal::VerboseAs("closing...".to_owned()))
    }

    /// Something that somebody should look at.
    pub(crate) fn warning(text: String) -> Self {
        Self::new(text, Terminal::Stderr)
    }

    /// Something that explains what follows.
    pub(crate) fn notice(text: String) -> Self {
        Self::new(text, Terminal::Verbose)
    }
}

/// Where lines go.
#[derive(Debug)]
pub(crate) struct Destinations {
    stdout: Output<Stdout>,
    stderr: Output<Stderr>,
    file: Option<File>,
    system_log: Option<SystemLog>,
    verbose: bool,
}

/// Writes lines, with host names if asked to, and never makes the caller wait for one.
#[derive(Debug)]
pub(crate) enum Log {
    /// Lines are written by whoever logs them.
    Direct(Destinations),
    /// Lines wait for their names in order.
    Named { names: Names, entries: Sender<Entry>, writer: JoinHandle<()> },
}

/// What the writer of a [`Log::Named`] gets.
#[derive(Debug)]
pub(crate) enum Entry {
    Line { time: Zoned, line: Line, name: Option<Receiver<String>>, until: Instant },
    Destinations(Destinations),
}

impl Log {
    /// Makes a log; with `lookup` it starts threads.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn new(destinations: Destinations, lookup: bool) -> anyhow::Result<Self> {
        if !lookup {
            return Ok(Self::Direct(destinations));
        }
        let (entries, incoming) = crossbeam_channel::bounded(QUEUE);
        let writer = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_named(destinations, &incoming))
            .context("cannot start the log thread")?;
        Ok(Self::Named { names: Names::start()?, entries, writer })
    }

    pub(crate) fn write(&self, line: &Line) {
        match self {
            Self::Direct(destinations) => destinations.write(&Zoned::now(), line, None),
            Self::Named { names, entries, .. } => {
                let name = line.source.map(|source| names.ask(source));
                let until = Instant::now() + NAME_WAIT;
                let entry = Entry::Line { time: Zoned::now(), line: line.clone(), name, until };
                // A full queue is emptied without waiting for names, so this waits for the disk at most.
                let _ = entries.send(entry);
            }
        }
    }

    /// Writes to other places from now on.
    pub(crate) fn redirect(&mut self, to: Destinations) {
        match self {
            Self::Direct(destinations) => *destinations = to,
            Self::Named { entries, .. } => {
                let _ = entries.send(Entry::Destinations(to));
            }
        }
    }

    /// Writes what is still waiting.
    pub(crate) fn finish(self) {
        if let Self::Named { entries, writer, .. } = self {
            drop(entries);
            // A panic in the writer has already ended the process.
            let _ = writer.join();
        }
    }
}

fn write_named(mut destinations: Destinations, incoming: &Receiver<Entry>) {
    for entry in incoming {
        match entry {
            Entry::Destinations(to) => destinations = to,
            Entry::Line { time, line, name, until } => {
                let until = if incoming.is_full() { Instant::now() } else { until };
                let name = name.and_then(|name| name.recv_deadline(until).ok());
                destinations.write(&time, &line, name.as_deref());
            }
        }
    }
}

impl Destinations {
    /// Opens what the command line and the configuration ask for. A log file that cannot be opened is reported to the
    /// others and left out.
    pub(crate) fn open(args: &Args, setup: &Setup) -> Self {
        let mut destinations = Self {
            stdout: Output::new(io::stdout()),
            stderr: Output::new(io::stderr()),
            file: None,
            system_log: setup.options.use_syslog.then(SystemLog::default),
            verbose: args.verbose,
        };
        if let Some(path) = &setup.log_file {
            match OpenOptions::new().create(true).append(true).open(path) {
                Ok(file) => destinations.file = Some(file),
                Err(error) => {
                    let text = format!("cannot open the log file {}: {error}", path.display());
                    destinations.write(&Zoned::now(), &Line::warning(text), None);
                }
            }
        }
        destinations
    }

    /// Writes a line everywhere. A full disk or a closed terminal loses the line there and nothing else.
    fn write(&self, time: &Zoned, line: &Line, name: Option<&str>) {
        let knocker = match (line.source, name) {
            (Some(source), Some(name)) => format!("{source} ({name}): "),
            (Some(source), None) => format!("{source}: "),
            (None, _) => String::new(),
        };
        let text = line.text.as_ref().map(|text| format!("{knocker}{text}"));
        let shown = match &line.terminal {
            Terminal::VerboseAs(shown) => Some(shown),
            _ => text.as_ref(),
        };
        match (&line.terminal, shown) {
            (Terminal::Verbose | Terminal::VerboseAs(_), Some(shown)) if self.verbose => {
                self.stdout.write_line(shown);
            }
            (Terminal::Stderr, Some(shown)) => self.stderr.write_line(shown),
            _ => {}
        }
        let Some(text) = text else { return };
        if let Some(file) = &self.file {
            let entry = format!("[{}] {text}\n", time.strftime("%Y-%m-%d %H:%M"));
            let _ = (&mut &*file).write_all(entry.as_bytes());
        }
        if let Some(system_log) = &self.system_log {
            system_log.write_line(time, &text);
        }
    }
}
