//! One log line: its text for people, as in knockd 0.8, and its fields for programs.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use jiff::Zoned;
use knockd_core::{Admission, EventKind, Full, LeaseKey, Run};
use serde::{Serialize, Serializer};

use super::rate_limiter::{Causer, Topic};
use crate::system::text::count;

/// The event of a door that opens.
pub(super) const OPEN: &str = "open";

/// The severity of a line, as syslog(3) numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    Error = 3,
    Warning = 4,
    Notice = 5,
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
        })
    }
}

/// One line, and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(super) facts: Facts,
    pub(super) prefix: Prefix,
    /// The text after the address, for the log file and the system log; `None` if they get no line.
    pub(super) text: Option<String>,
    pub(super) terminal: Terminal,
    /// Which limit it counts towards, for whom; `None` if only the administrator or the machine can cause it.
    pub(super) limit: Option<(Topic, Causer)>,
}

/// What comes before the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Prefix {
    Nothing,
    /// The source's address.
    Address,
    /// The source's address and, with `-l`, its host name.
    ///
    /// Only on lines about a door that opens or closes: whoever has the DNS zone of an address is told of every lookup,
    /// so a lookup for a stage would tell them which hits are right.
    AddressAndName,
}

/// The fields for programs.
#[derive(Serialize, Clone, Debug)]
pub(super) struct Facts {
    pub(super) level: Level,
    pub(super) event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) door: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
}

/// What the terminal shows of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Terminal {
    /// The same text, on stdout with `-v`.
    Verbose,
    /// Another text, on stdout with `-v`.
    VerboseAs(String),
    /// The same text, on stderr.
    Stderr,
    Nothing,
}

impl Line {
    fn new(event: &'static str, text: String) -> Self {
        let facts =
            Facts { level: Level::Notice, event, source: None, door: None, stage: None, command: None };
        let (prefix, terminal) = (Prefix::Nothing, Terminal::Verbose);
        Self { facts, prefix, text: Some(text), terminal, limit: None }
    }

    /// Creates a line that starts with the source's address.
    fn of(event: &'static str, source: IpAddr, text: String) -> Self {
        let mut line = Self::new(event, text);
        line.facts.source = Some(source);
        Self { prefix: Prefix::Address, ..line }
    }

    fn with_name(self) -> Self {
        Self { prefix: Prefix::AddressAndName, ..self }
    }

    /// Returns the source, if its address comes before the text.
    pub(super) fn knocker(&self) -> Option<IpAddr> {
        self.facts.source.filter(|_| self.prefix != Prefix::Nothing)
    }

    /// Creates a line about a command.
    fn about(event: &'static str, run: &Run, text: String) -> Self {
        let mut line = Self::new(event, text).at(&run.door);
        line.facts.source = Some(run.source);
        line.facts.command = Some(run.command.to_string());
        line
    }

    /// Creates a line about a command that does not do what it should.
    fn problem(event: &'static str, run: &Run, text: String) -> Self {
        Self::about(event, run, text).limited(Topic::Commands)
    }

    /// Counts the line towards the limit on its topic.
    pub(crate) fn limited(self, topic: Topic) -> Self {
        let causer = self.facts.source.map_or(Causer::Unknown, Causer::source);
        Self { limit: Some((topic, causer)), ..self }
    }

    fn at(mut self, door: &str) -> Self {
        self.facts.door = Some(door.to_owned());
        self
    }

    fn on_stderr(mut self, level: Level) -> Self {
        self.facts.level = level;
        Self { terminal: Terminal::Stderr, ..self }
    }

    fn shown_as(self, text: String) -> Self {
        Self { terminal: Terminal::VerboseAs(text), ..self }
    }

    pub(crate) fn starting_up(interface: &str) -> Self {
        Self::new("start", format!("starting up, listening on {interface}"))
            .shown_as(format!("listening on {interface}..."))
    }

    /// The line about an event of an attempt, if it is logged. 0.8 has no line about spoiled attempts.
    pub(crate) fn event(source: IpAddr, door: &str, kind: EventKind) -> Option<Self> {
        let (event, stage, text) = match kind {
            EventKind::Stage(stage) => ("stage", stage, format!("{door}: Stage {stage}")),
            EventKind::Opened => return Some(Self::opened(source, door)),
            EventKind::TimedOut(stage) => {
                ("timeout", stage, format!("{door}: sequence timeout (stage {stage})"))
            }
            EventKind::Spoiled(stage) => {
                ("spoiled", stage, format!("{door}: sequence spoiled (stage {stage})"))
            }
            EventKind::Evicted(_)
            | EventKind::Repeated(_)
            | EventKind::WrongFlags(_)
            | EventKind::Elsewhere(_)
            | EventKind::Cooling => return None,
        };
        let mut line = Self::of(event, source, text).at(door);
        line.facts.stage = Some(stage);
        Some(line)
    }

    /// The line about a door opened by a knock or by hand.
    pub(crate) fn opened(source: IpAddr, door: &str) -> Self {
        let line = Self::of(OPEN, source, format!("{door}: OPEN SESAME"));
        line.at(door).with_name().limited(Topic::Openings)
    }

    /// The line about a source that is now ignored.
    pub(crate) fn scanner(source: IpAddr) -> Self {
        Self::of("scanner", source, "scanner: ignored while it scans and for a minute after".to_owned())
    }

    pub(crate) fn used_up(door: &str) -> Self {
        Self::warning(format!(
            "no more sequences left in the one time sequences file for door {door} --> disabling the door"
        ))
    }

    pub(crate) fn command_timeout(source: IpAddr, door: &str) -> Self {
        let line = Self::of("close", source, format!("{door}: command timeout"));
        line.at(door).with_name().limited(Topic::Openings)
    }

    pub(crate) fn running(run: &Run) -> Self {
        let text = format!("{}: running command: {}", run.door, run.command);
        Self::about("run", run, text).limited(Topic::Openings)
    }

    /// The line about a command that failed.
    pub(crate) fn failed(run: &Run, how: &str) -> Self {
        Self::problem("failed", run, format!("{}: {how}", run.door)).on_stderr(Level::Warning)
    }

    /// The line about a command that has been running for a minute.
    pub(crate) fn long(run: &Run) -> Self {
        let text = format!("{}: command still running after a minute: {}", run.door, run.command);
        Self::problem("long", run, text)
    }

    /// The line about a command that is terminated because it takes too long.
    pub(crate) fn limit(run: &Run) -> Self {
        let Run { door, command, .. } = run;
        let text = format!("{door}: `CommandLimit` exceeded, terminating command: {command}");
        Self::problem("limit", run, text).on_stderr(Level::Warning)
    }

    /// The line about a knock that opened nothing because a limit is reached.
    pub(crate) fn full(source: IpAddr, door: &str, full: Full) -> Self {
        let line = Self::of("full", source, format!("{door}: stays closed: {full}"));
        line.at(door).on_stderr(Level::Warning).limited(Topic::Refusals)
    }

    /// The line about what the firewall did.
    pub(crate) fn admission(admission: &Admission, time: Option<Duration>, refused: Option<&str>) -> Self {
        let Admission { door, source, .. } = admission;
        let (event, text) = match (time, refused) {
            (Some(time), None) if !source.is_host() => {
                let (length, time) = (source.length(), time.as_secs());
                ("admit", format!("{door}: let in with its whole /{length} for {time} s"))
            }
            (Some(time), None) => ("admit", format!("{door}: let in for {} s", time.as_secs())),
            (None, None) => ("shut", format!("{door}: let in no longer")),
            (Some(_), Some(reason)) => ("refused", format!("{door}: stays closed: {reason}")),
            (None, Some(reason)) => ("refused", format!("{door}: cannot close: {reason}")),
        };
        let line = Self::of(event, source.address(), text).at(door);
        if refused.is_some() {
            return line.on_stderr(Level::Warning).limited(Topic::Refusals);
        }
        line.limited(Topic::Openings)
    }

    /// The line about connections that have ended with a lease, or why they have not.
    pub(crate) fn cut(admission: &Admission, ended: Result<usize, &str>) -> Self {
        let Admission { door, source, .. } = admission;
        match ended {
            Ok(number) => {
                let text = format!("{door}: cut {}", count(number, "connection"));
                Self::of("cut", source.address(), text).at(door).limited(Topic::Openings)
            }
            Err(reason) => {
                let text = format!(
                    "{door}: cannot end its connections on this host, only refuse their packets: {reason}"
                );
                let line = Self::of("refused", source.address(), text).at(door);
                line.on_stderr(Level::Warning).limited(Topic::Refusals)
            }
        }
    }

    /// The line about connections that cannot be seen.
    pub(crate) fn not_seen(admission: &Admission, reason: &str) -> Self {
        let Admission { door, source, .. } = admission;
        let text = format!("{door}: cannot see what keeps it open: {reason}");
        let line = Self::of("refused", source.address(), text).at(door);
        line.on_stderr(Level::Warning).limited(Topic::Refusals)
    }

    /// The line about a door that could not be closed.
    pub(crate) fn given_up(key: &LeaseKey) -> Self {
        let LeaseKey { door, source, access } = key;
        let stop = access.stop_command().map(ToString::to_string);
        let command = stop.as_deref().unwrap_or_default();
        let text = format!("{door}: giving up on stop command; the door may still be open: {command}");
        let mut line = Self::of("given_up", *source, text).at(door).on_stderr(Level::Error);
        line.facts.command = stop;
        line.limited(Topic::Commands)
    }

    /// The line about a start command that waits because so many are running.
    pub(crate) fn queued(run: &Run, running: u32) -> Self {
        let text = format!("{}: command queued: {running} already running (`MaxCommands`)", run.door);
        Self::problem("notice", run, text).limited(Topic::Refusals)
    }

    /// The line about a start command that does not run because so many are waiting.
    pub(crate) fn not_run(run: &Run, waiting: usize) -> Self {
        let text = format!("{}: command not run: queue is full ({waiting})", run.door);
        Self::problem("warning", run, text).on_stderr(Level::Warning).limited(Topic::Refusals)
    }

    /// The line about a command that failed because its program is missing.
    pub(crate) fn missing_program(run: &Run, program: &str) -> Self {
        let text = format!("{}: {program}: not found or not executable; is its package installed?", run.door);
        Self::problem("missing", run, text).on_stderr(Level::Warning)
    }

    /// The line about a command that failed perhaps because of a setting in the unit of systemd.
    pub(crate) fn restricted(run: &Run, unit: &str, setting: &str) -> Self {
        let text = format!(
            "{}: {setting} in the systemd unit may forbid this; run: systemctl edit {unit}",
            run.door
        );
        Self::problem("restricted", run, text).on_stderr(Level::Warning)
    }

    /// What a failed command said first and last; this is already on stderr.
    pub(crate) fn words(run: &Run, words: &str) -> Self {
        let line = Self::problem("said", run, format!("{}: command said: {words}", run.door));
        Self { terminal: Terminal::Nothing, ..line }
    }

    pub(crate) fn rereading(path: &Path) -> Self {
        Self::new("reload", format!("re-reading config file: {}", path.display()))
    }

    pub(crate) fn closing_log(path: &Path) -> Self {
        Self::new("log_closed", format!("closing log file: {}", path.display()))
    }

    pub(crate) fn reopening_log(path: &Path) -> Self {
        Self::new("log_opened", format!("re-opening log file: {}", path.display()))
    }

    pub(crate) fn waiting_for_children() -> Self {
        let line = Self::new("waiting", String::new()).shown_as("waiting for child processes...".to_owned());
        Self { text: None, ..line }
    }

    pub(crate) fn shutting_down() -> Self {
        Self::new("stop", "shutting down".to_owned()).shown_as("closing...".to_owned())
    }

    /// The line about a control socket that could not be created.
    pub(crate) fn no_control(path: Option<&Path>, error: &anyhow::Error) -> Self {
        let path = path.unwrap_or(Path::new("")).display();
        Self::notice(format!(
            "cannot create control socket {path}: {error:#}; `knockd status` and similar commands will not work"
        ))
    }

    /// The line about a request on the control socket.
    pub(crate) fn request(user: Option<u32>, who: &str, request: &str) -> Self {
        let causer = user.map_or(Causer::Unknown, Causer::User);
        let line = Self::new("request", format!("request from {who}: {request}"));
        Self { limit: Some((Topic::Requests, causer)), ..line }
    }

    /// A line about something that needs attention.
    pub(crate) fn warning(text: String) -> Self {
        Self::new("warning", text).on_stderr(Level::Warning)
    }

    /// A line that informs.
    pub(crate) fn notice(text: String) -> Self {
        Self::new("notice", text)
    }

    /// Returns the line as a JSON object without a line end.
    pub(super) fn to_json(&self, time: &Zoned, name: Option<&str>, text: &str) -> String {
        #[derive(Serialize)]
        struct Json<'a> {
            time: String,
            #[serde(flatten)]
            facts: &'a Facts,
            #[serde(skip_serializing_if = "Option::is_none")]
            name: Option<&'a str>,
            text: &'a str,
        }
        let time = time.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string();
        let object = Json { time, facts: &self.facts, name, text };
        // Serialisation cannot fail: the keys are strings, and it writes to memory.
        serde_json::to_string(&object).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use knockd_core::{DoorName, LeaseId, RunKind};

    use super::*;

    fn json(line: &Line, name: Option<&str>) -> String {
        let time: Zoned = "2026-11-25T09:05:07.0421+01:00[+01:00]".parse().unwrap();
        line.to_json(&time, name, line.text.as_deref().unwrap_or_default())
    }

    #[test]
    fn a_line_for_programs_has_what_is_known_and_nothing_else() {
        let source = "192.0.2.7".parse().unwrap();
        let line = Line::event(source, "a \"door\"\x1b", EventKind::TimedOut(2)).unwrap();
        assert_eq!(
            json(&line, Some("host")),
            r#"{"time":"2026-11-25T09:05:07.042+01:00","level":"notice","event":"timeout","source":"192.0.2.7","door":"a \"door\"\u001b","stage":2,"name":"host","text":"a \"door\"\u001b: sequence timeout (stage 2)"}"#
        );
        let run = Run {
            id: LeaseId(1),
            kind: RunKind::Start,
            door: DoorName::new("ssh").unwrap(),
            source,
            command: "x\ty".parse().unwrap(),
        };
        let line = Line::failed(&run, "command returned non-zero status code (3)");
        assert_eq!(
            json(&line, None),
            r#"{"time":"2026-11-25T09:05:07.042+01:00","level":"warning","event":"failed","source":"192.0.2.7","door":"ssh","command":"x\ty","text":"ssh: command returned non-zero status code (3)"}"#
        );
    }
}
