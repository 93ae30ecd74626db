//! What a person or a script hears of a knock: a line that is rewritten, a verdict, errors. None of it has a hit of a
//! profile in it.

use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;

use knock_client::args::Report as Format;
use knock_client::value::Service;
use knock_client::{Failure, Outcome, Prepared, Sent, Verdict};
use serde::Serialize;

use crate::exit::Exit;

/// Reports to stderr, and in JSON to stdout.
#[derive(Debug)]
pub(crate) struct Report {
    name: String,
    format: Format,
    /// Whether a person looks on while it goes on.
    is_live: bool,
    /// Whether a verdict is worth a line even if all went well.
    has_success: bool,
    /// How many characters of the line that is rewritten are on the screen.
    drawn: usize,
}

impl Report {
    /// Creates a report on what a person calls by this name.
    pub(crate) fn new(name: &str, format: Format, is_verbose: bool) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let is_text = format == Format::Text;
        Self {
            name: name.to_owned(),
            format,
            is_live: is_terminal && is_text && !is_verbose,
            has_success: (is_terminal || is_verbose) && is_text,
            drawn: 0,
        }
    }

    /// Says nothing about what went well.
    pub(crate) fn without_success(self) -> Self {
        Self { has_success: false, ..self }
    }

    /// Says what went well also where nobody looks on.
    pub(crate) fn with_success(self) -> Self {
        Self { has_success: self.format == Format::Text, ..self }
    }

    /// Shows on a terminal what is going on, in place of what was shown so before.
    pub(crate) fn progress(&mut self, what: &str) {
        if self.is_live {
            let line = harmless(&format!("{}: {what}\u{2026}", self.name));
            let length = line.chars().count();
            // Blanks wipe out what a longer line has left, on every kind of terminal.
            let blanks = " ".repeat(self.drawn.saturating_sub(length));
            let back = if blanks.is_empty() { String::new() } else { format!("\r{line}") };
            let _ = write!(io::stderr(), "\r{line}{blanks}{back}");
            self.drawn = length;
        }
    }

    /// Says a line about the knock.
    pub(crate) fn say(&mut self, what: &str) {
        self.clear();
        // Standard error may be closed; the exit status still tells.
        let _ = writeln!(io::stderr(), "{}", harmless(&format!("{}: {what}", self.name)));
    }

    /// Shows where something is wrong.
    pub(crate) fn pointer(&mut self, pointer: &str) {
        self.clear();
        let _ = writeln!(io::stderr(), "  {}", harmless(pointer).replace('\n', "\n  "));
    }

    /// Says what is wrong.
    pub(crate) fn error(&mut self, message: &str) {
        self.clear();
        error(message);
    }

    /// Takes the line that is rewritten off the screen.
    pub(crate) fn clear(&mut self) {
        if self.drawn > 0 {
            let _ = write!(io::stderr(), "\r{}\r", " ".repeat(self.drawn));
            self.drawn = 0;
        }
    }

    /// Reports a knock whose door nobody looked at.
    pub(crate) fn sent(&mut self, prepared: &Prepared<'_>, sent: Sent) {
        self.clear();
        let target = prepared.targets().first();
        self.object(&Object {
            address: target.map(ToString::to_string),
            source: target.and_then(|target| target.source().ok()),
            knocks: Some(1),
            hits_not_sent: Some(sent.not_sent),
            ..Object::new(&self.name, "sent")
        });
    }

    /// Reports what became of a knock, and returns how to end.
    pub(crate) fn verdict(&mut self, service: &Service, outcome: &Outcome) -> Exit {
        let text = verdict_text(&self.name, service, outcome);
        let exit = Exit::from(&outcome.verdict);
        self.clear();
        if self.format == Format::Text {
            if exit != Exit::Done {
                self.error(&text);
            } else if self.has_success {
                let _ = writeln!(io::stderr(), "{}", harmless(&text));
            }
        }
        let (verdict, seconds, failure) = match &outcome.verdict {
            Verdict::Opened(after) => ("opened", Some(after.as_secs_f64()), None),
            Verdict::AlreadyOpen => ("already_open", None, None),
            Verdict::StillClosed(failure) => ("still_closed", None, Some(failure)),
            Verdict::Unreachable(failure) => ("unreachable", None, Some(failure)),
        };
        self.object(&Object {
            service: Some(service.to_string()),
            address: Some(outcome.target.to_string()),
            source: source(outcome),
            knocks: Some(outcome.knocks),
            seconds,
            reason: failure.map(|failure| failure_text(outcome, failure)),
            ..Object::new(&self.name, verdict)
        });
        exit
    }

    /// Reports what has kept a knock from being sent.
    pub(crate) fn failure(&mut self, message: &str) {
        self.error(message);
        self.object(&Object { reason: Some(message.to_owned()), ..Object::new(&self.name, "failed") });
    }

    fn object(&self, object: &Object<'_>) {
        if self.format == Format::Json
            && let Ok(json) = serde_json::to_string(object)
        {
            let _ = writeln!(io::stdout(), "{json}");
        }
    }
}

/// Says what is wrong, or what was done.
pub(crate) fn error(message: &str) {
    // Standard error may be closed; the exit status still tells.
    let _ = writeln!(io::stderr(), "knock: {}", harmless(message));
}

/// Replaces everything that a terminal would obey; line ends stay. A name or a path in a profile may have come from
/// somewhere else.
pub(crate) fn harmless(text: &str) -> String {
    let is_obeyed = |c: char| {
        c.is_control() && c != '\n' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_obeyed(c) { '\u{fffd}' } else { c }).collect()
}

/// The report as JSON.
#[derive(Serialize)]
struct Object<'a> {
    name: &'a str,
    verdict: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    knocks: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hits_not_sent: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl<'a> Object<'a> {
    const fn new(name: &'a str, verdict: &'a str) -> Self {
        Self {
            name,
            verdict,
            service: None,
            address: None,
            source: None,
            knocks: None,
            hits_not_sent: None,
            seconds: None,
            reason: None,
        }
    }
}

fn source(outcome: &Outcome) -> Option<IpAddr> {
    let connected = outcome.connection.as_ref().and_then(|connection| connection.local_addr().ok());
    connected.map(|address| address.ip()).or_else(|| outcome.target.source().ok())
}

fn verdict_text(name: &str, service: &Service, outcome: &Outcome) -> String {
    let target = outcome.target;
    let from = source(outcome).map(|source| format!(" from {source}")).unwrap_or_default();
    match &outcome.verdict {
        Verdict::Opened(after) => {
            format!("{name}: {service} opened after {:.2} s ({target}{from})", after.as_secs_f64())
        }
        Verdict::AlreadyOpen => format!("{name}: {service} was already open ({target}{from})"),
        Verdict::Unreachable(failure) => {
            format!("{name}: cannot reach {target}: {}", failure_text(outcome, failure))
        }
        Verdict::StillClosed(failure) => {
            let knocks = match outcome.knocks {
                1 => "1 knock".to_owned(),
                knocks => format!("{knocks} knocks"),
            };
            format!(
                "{name}: {service} is still closed after {knocks}: {}; {}; {}",
                failure_text(outcome, failure),
                what_it_can_mean(failure),
                command_that_tells(target.ip(), source(outcome))
            )
        }
    }
}

fn failure_text(outcome: &Outcome, failure: &Failure) -> String {
    let target = outcome.target.ip();
    match failure {
        Failure::NotSent(reason) | Failure::Unreachable { by: None, message: reason } => reason.clone(),
        Failure::Unreachable { by: Some(by), message } => format!("{by} reports {message}"),
        Failure::Silence => format!("no answer from {}", outcome.target),
        Failure::Rejected { by, message } if *by == target => {
            format!("rejected by the firewall of {by} ({message})")
        }
        Failure::Rejected { by, message } => format!("rejected by a firewall at {by} ({message})"),
        Failure::Refused => format!("connection refused by {}", outcome.target),
    }
}

const fn what_it_can_mean(failure: &Failure) -> &'static str {
    match failure {
        Failure::Refused => {
            "the service may not be running, or the firewall still refuses this address because the knock is wrong \
             or was lost"
        }
        _ => "the knock may be wrong or lost on the way, or the door opens for another address than this one",
    }
}

/// The command for the server's side. It needs the address that the server sees, which is another one behind NAT.
fn command_that_tells(target: IpAddr, source: Option<IpAddr>) -> String {
    match source {
        Some(source) if is_private(source) && !is_private(target) => format!(
            "on the server, run: knockd trace ADDRESS, with the address it sees (behind NAT, it is not {source})"
        ),
        Some(source) => format!("on the server, run: knockd trace {source}"),
        None => "on the server, run: knockd trace".to_owned(),
    }
}

/// Says whether an address means something in its own network only.
const fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let shared = matches!(ip.octets(), [100, 64..=127, ..]);
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}
