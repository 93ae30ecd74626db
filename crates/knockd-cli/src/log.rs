//! The log: lines go to a file, to the system log and to the terminal, for people or for programs.

mod file;
mod host_names;
mod journal;
mod line;
pub(crate) mod output;
pub(crate) mod rate_limiter;
mod recent;

use std::cell::RefCell;
use std::io::{self, Stderr, Stdout, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender};
use jiff::Zoned;
use knockd_core::Timestamp;
use knockd_core::config::LogFormat;

use self::file::LogFile;
pub(crate) use self::file::open_file;
use self::host_names::HostNames;
use self::journal::{Journal, prefixed};
pub(crate) use self::line::{Level, Line};
use self::line::{OPEN, Prefix, Terminal};
use self::output::{Output, SystemLog};
use self::rate_limiter::{Causer, RateLimiter, Topic};
use self::recent::Recent;
pub(crate) use self::recent::RecentLine;
use crate::system::clock::Clock;
use crate::system::helper::Rights;
use crate::system::text::count;
use crate::system::time_zone;

/// How long a line waits for a host name.
const NAME_WAIT: Duration = Duration::from_secs(2);

/// How many lines wait for names; if there are more, they stop waiting.
const QUEUE: usize = 1024;

/// The log settings of the command line and the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) file: Option<PathBuf>,
    pub(crate) use_syslog: bool,
    pub(crate) format: LogFormat,
    /// Whether stdout gets the lines that 0.8 prints with `-v`.
    pub(crate) verbose: bool,
    pub(crate) rights: Rights,
}

/// Where lines go.
#[derive(Debug)]
pub(crate) struct Destinations {
    stdout: Output<Stdout>,
    stderr: Output<Stderr>,
    file: Option<LogFile>,
    system_log: Option<SystemLog>,
    verbose: bool,
    format: LogFormat,
    journal: Journal,
}

/// Writes lines, with host names if asked to, and never makes the caller wait for a name. Lines that others than the
/// administrator can cause are limited.
#[derive(Debug)]
pub(crate) struct Log {
    clock: Clock,
    limiter: RefCell<RateLimiter>,
    recent: RefCell<Recent>,
    writer: LineWriter,
}

/// Who writes lines.
#[derive(Debug)]
enum LineWriter {
    /// The thread that logs them.
    Direct(Destinations),
    /// A thread of its own: lines wait for their names, in order.
    Named { names: HostNames, entries: Sender<QueuedLine>, writer: JoinHandle<()> },
}

/// A message to the thread of a [`LineWriter::Named`].
#[derive(Debug)]
enum QueuedLine {
    Line { time: Box<Zoned>, line: Box<Line>, name: Option<Receiver<String>>, until: Instant },
    Settings(Settings),
}

impl Log {
    /// Creates a log; for a log file and with `lookup`, it starts threads.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn new(settings: &Settings, lookup: bool, clock: Clock) -> anyhow::Result<Self> {
        let destinations = Destinations::open(settings, None);
        let writer = if lookup { LineWriter::named(destinations)? } else { LineWriter::Direct(destinations) };
        Ok(Self { clock, limiter: RefCell::default(), recent: RefCell::default(), writer })
    }

    /// Writes the line, unless it is limited and there are too many.
    pub(crate) fn write(&self, line: &Line) {
        let is_admitted = line.limit.is_none_or(|(topic, causer)| {
            let (door, opens) = (line.facts.door.as_deref(), line.facts.event == OPEN);
            self.limiter.borrow_mut().admits(topic, causer, door, opens, self.clock.now())
        });
        if is_admitted {
            self.recent.borrow_mut().add(line);
            self.writer.write(line);
        }
    }

    /// Writes a line that a single packet of this source has caused, unless there are too many. In a flood, nearly all
    /// are: these are not even made.
    pub(crate) fn write_attempt(&self, source: IpAddr, now: Timestamp, line: impl FnOnce() -> Option<Line>) {
        let causer = Causer::source(source);
        if self.limiter.borrow_mut().admits(Topic::Attempts, causer, None, false, now)
            && let Some(line) = line()
        {
            self.recent.borrow_mut().add_attempt(&line);
            self.writer.write(&line);
        }
    }

    /// Returns the latest lines, oldest first; none that may quote the configuration.
    pub(crate) fn recent(&self) -> Vec<RecentLine> {
        self.recent.borrow().lines()
    }

    /// Says what was left out, when that is due.
    pub(crate) fn handle_timeout(&self, now: Timestamp) {
        let summaries = self.limiter.borrow_mut().handle_timeout(now);
        self.write_summaries(summaries);
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` while nothing was left out.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.limiter.borrow().poll_timeout()
    }

    /// Opens the destinations again, with these settings.
    pub(crate) fn reopen(&mut self, settings: Settings) {
        match &mut self.writer {
            LineWriter::Direct(destinations) => destinations.reopen(&settings),
            LineWriter::Named { entries, .. } => {
                let _ = entries.send(QueuedLine::Settings(settings));
            }
        }
    }

    /// Writes everything that is still queued, and what was left out; `last` is the last line.
    pub(crate) fn finish(self, last: &Line) {
        let summaries = self.limiter.borrow_mut().finish();
        self.write_summaries(summaries);
        self.writer.write(last);
        if let LineWriter::Named { entries, writer, .. } = self.writer {
            drop(entries);
            // A panic in the writer has already ended the process.
            let _ = writer.join();
        }
    }

    fn write_summaries(&self, summaries: Vec<String>) {
        for summary in summaries {
            self.writer.write(&Line::notice(summary));
        }
    }
}

impl LineWriter {
    fn named(destinations: Destinations) -> anyhow::Result<Self> {
        let (entries, incoming) = crossbeam_channel::bounded(QUEUE);
        let writer = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_named(destinations, &incoming))
            .context("cannot start the log thread")?;
        Ok(Self::Named { names: HostNames::start()?, entries, writer })
    }

    fn write(&self, line: &Line) {
        match self {
            Self::Direct(destinations) => destinations.write(&time_zone::now(), line, None),
            Self::Named { names, entries, .. } => {
                let source = line.knocker().filter(|_| line.prefix == Prefix::AddressAndName);
                let name = source.map(|source| names.ask(source));
                let until = Instant::now() + NAME_WAIT;
                let entry = QueuedLine::Line {
                    time: time_zone::now().into(),
                    line: line.clone().into(),
                    name,
                    until,
                };
                // A full queue is drained without waiting for names, so this waits at most for a slow reader.
                let _ = entries.send(entry);
            }
        }
    }
}

fn write_named(mut destinations: Destinations, incoming: &Receiver<QueuedLine>) {
    for entry in incoming {
        match entry {
            QueuedLine::Settings(settings) => destinations.reopen(&settings),
            QueuedLine::Line { time, line, name, until } => {
                let until = if incoming.is_full() { Instant::now() } else { until };
                let name = name.and_then(|name| name.recv_deadline(until).ok());
                destinations.write(&time, &line, name.as_deref());
            }
        }
    }
}

impl Destinations {
    /// Opens the configured destinations, keeping the thread of an `old` log file. A log file that cannot be opened is
    /// reported to the others.
    fn open(settings: &Settings, old: Option<LogFile>) -> Self {
        let mut destinations = Self {
            stdout: Output::new(io::stdout()),
            stderr: Output::new(io::stderr()),
            file: None,
            system_log: settings.use_syslog.then(SystemLog::default),
            verbose: settings.verbose,
            format: settings.format,
            journal: Journal::find(),
        };
        if let Some(path) = &settings.file {
            let opened = match old {
                Some(mut file) => {
                    file.reopen(path);
                    Ok(file)
                }
                None => LogFile::open(path, settings.rights.clone()),
            };
            match opened {
                Ok(file) => {
                    destinations.warn(file.problems());
                    destinations.file = Some(file);
                }
                Err(error) => {
                    let text = format!("cannot open log file {}: {error:#}", path.display());
                    destinations.warn([text]);
                }
            }
        }
        destinations
    }

    fn reopen(&mut self, settings: &Settings) {
        let file = self.file.take();
        *self = Self::open(settings, file);
    }

    fn warn(&self, problems: impl IntoIterator<Item = String>) {
        for problem in problems {
            self.write(&time_zone::now(), &Line::warning(problem), None);
        }
    }

    /// Writes a line to every destination. A full disk loses the line there, which the others are told once; a closed
    /// terminal loses it and has no other effect.
    fn write(&self, time: &Zoned, line: &Line, name: Option<&str>) {
        self.warn(self.file.iter().flat_map(LogFile::problems));
        let knocker = match (line.knocker(), name) {
            (Some(source), Some(name)) => format!("{source} ({name}): "),
            (Some(source), None) => format!("{source}: "),
            (None, _) => String::new(),
        };
        let text = line.text.as_ref().map(|text| format!("{knocker}{text}"));
        let shown = match &line.terminal {
            Terminal::VerboseAs(shown) => shown,
            _ => text.as_deref().unwrap_or_default(),
        };
        let level = line.facts.level;
        // A program that reads the terminal gets the same as from the file.
        let as_json = || line.to_json(time, name, text.as_deref().unwrap_or(shown));
        let shown = |is_journal| match self.format {
            LogFormat::Classic => prefixed(shown, level, is_journal),
            LogFormat::Json => prefixed(&as_json(), level, is_journal),
        };
        match &line.terminal {
            Terminal::Verbose | Terminal::VerboseAs(_) if self.verbose => {
                self.stdout.write_line(&shown(self.journal.stdout));
            }
            Terminal::Stderr => self.stderr.write_line(&shown(self.journal.stderr)),
            _ => {}
        }
        let Some(text) = &text else { return };
        if let Some(file) = &self.file {
            self.write_to_file(file, time, self.entry(time, line, name, text));
        }
        if let Some(system_log) = &self.system_log {
            system_log.write_line(time, text);
        }
    }

    /// Returns a line as the log file has it.
    fn entry(&self, time: &Zoned, line: &Line, name: Option<&str>, text: &str) -> String {
        match self.format {
            LogFormat::Classic => format!("[{}] {text}\n", time.strftime("%Y-%m-%d %H:%M")),
            LogFormat::Json => line.to_json(time, name, text) + "\n",
        }
    }

    /// Has an entry written to the log file, after one that counts those that were lost before it. If its disk hangs,
    /// the other destinations get a warning, once until it takes lines again.
    fn write_to_file(&self, file: &LogFile, time: &Zoned, mut entry: String) {
        let lost = file.lost();
        if lost > 0 {
            let text =
                format!("disk too slow: lost {}", count(usize::try_from(lost).unwrap_or(usize::MAX), "line"));
            entry.insert_str(0, &self.entry(time, &Line::warning(text.clone()), None, &text));
        }
        if !file.write(entry) && lost == 0 {
            self.warn([format!(
                "cannot write to log file {}: disk too slow; lines are lost",
                file.path().display()
            )]);
        }
    }
}

/// Returns where debug messages go: standard output, without waiting for a slow reader any longer than lines do. A
/// process that `detaches` must not keep it open after that.
pub(crate) fn debug_output(detaches: bool) -> Output<Stdout> {
    if detaches { Output::shared(io::stdout()) } else { Output::new(io::stdout()) }
}

/// Prints on standard error, which may be closed.
pub(crate) fn complain(text: &str, level: Level) {
    let text = prefixed(text, level, Journal::find().stderr);
    let _ = writeln!(anstream::stderr(), "{text}");
}
