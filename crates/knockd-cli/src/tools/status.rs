//! The status as text for people.

use std::fmt::{self, Write as _};
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use crate::control::{
    AttemptStatus, DoorStatus, KeptOpenBy, LeasePhase, LeaseStatus, Problem, ScannerStatus, ScannersStatus,
    Status,
};
use crate::system::text::{count, harmless, span};

/// An iteration of the main loop that is shown as a problem: a knock has to wait noticeably.
const LONG_ITERATION: Duration = Duration::from_secs(1);

const HEADING: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();

/// A status with colours; print it through `anstream`, which drops them where they are not wanted.
pub struct StatusText<'a>(pub &'a Status);

impl fmt::Display for StatusText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0;
        writeln!(f, "knockd {}, up {}, pid {}", harmless(&status.version), span(status.uptime), status.pid)?;
        problems(f, status)?;
        section(f, "Interfaces", interfaces(status))?;
        section(f, "Doors", doors(status))?;
        let attempts = &status.attempts;
        let heading =
            format!("Attempts: {}{}", attempts.total, not_shown(attempts.total, attempts.listed.len()));
        section(f, &heading, attempt_rows(status))?;
        let leases = &status.leases;
        let heading = format!("Open doors: {}{}", leases.total, not_shown(leases.total, leases.listed.len()));
        section(f, &heading, lease_rows(status))?;
        section(f, "Since startup", counters(status))?;
        section(f, "Health", health(status))
    }
}

/// The scanners, for people.
pub struct ScannersText<'a>(pub &'a ScannersStatus);

impl fmt::Display for ScannersText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ScannersStatus { total, listed } = self.0;
        let heading = format!("Scanners: {total}{}", not_shown(*total, listed.len()));
        let row =
            |scanner: &ScannerStatus| vec![plain(scanner.source.to_string()), plain(scanner_state(scanner))];
        rows(f, &heading, listed.iter().map(row).collect())
    }
}

/// Says for how long a scanner is ignored.
pub fn scanner_state(scanner: &ScannerStatus) -> String {
    let network = if scanner.source.is_ipv6() { ", with its whole /64" } else { "" };
    format!("ignored for {}{network}", span(scanner.left))
}

fn not_shown(total: usize, listed: usize) -> String {
    match total.saturating_sub(listed) {
        0 => String::new(),
        left => format!(", {left} not shown"),
    }
}

/// A cell and its style.
type Cell = (String, Style);

fn plain(text: impl Into<String>) -> Cell {
    (text.into(), Style::new())
}

/// Writes the problems, each with what to do about it; nothing if all is well.
fn problems(f: &mut fmt::Formatter<'_>, status: &Status) -> fmt::Result {
    let problems = &status.problems;
    if problems.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{HEADING}Problems: {}{HEADING:#}", problems.len())?;
    for Problem { text, details, .. } in problems {
        writeln!(f, "  {BAD}{}{BAD:#}", harmless(text))?;
        details.iter().try_for_each(|detail| writeln!(f, "    {}", harmless(detail)))?;
    }
    Ok(())
}

/// Writes an empty line, a heading and its rows.
fn section(f: &mut fmt::Formatter<'_>, heading: &str, cells: Vec<Vec<Cell>>) -> fmt::Result {
    writeln!(f)?;
    rows(f, heading, cells)
}

/// Writes a heading and its rows with their columns aligned.
fn rows(f: &mut fmt::Formatter<'_>, heading: &str, rows: Vec<Vec<Cell>>) -> fmt::Result {
    writeln!(f, "{HEADING}{heading}{HEADING:#}")?;
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, (text, _)) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    for row in rows {
        let mut line = String::from(" ");
        for (index, ((text, style), width)) in row.iter().zip(&widths).enumerate() {
            // Nothing follows the last cell, not even spaces.
            let width = if index + 1 == row.len() { 0 } else { *width };
            let gap = width.saturating_sub(text.chars().count());
            write!(line, " {style}{text}{style:#}{:gap$} ", "")?;
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

fn interfaces(status: &Status) -> Vec<Vec<Cell>> {
    let rows = status.interfaces.iter().map(|interface| {
        let state = match (interface.listening, interface.up) {
            (false, true) => ("not listening".to_owned(), BAD),
            (false, false) => ("missing".to_owned(), BAD),
            (true, false) => ("down".to_owned(), BAD),
            (true, true) => ("up".to_owned(), GOOD),
        };
        let addresses: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
        let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
        let addresses = match &interface.problem {
            Some(problem) => (harmless(problem), BAD),
            None => plain(addresses),
        };
        vec![plain(harmless(&interface.name)), state, addresses]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() { vec![vec![("none".to_owned(), BAD)]] } else { rows }
}

fn doors(status: &Status) -> Vec<Vec<Cell>> {
    let row = |door: &DoorStatus| {
        let state = match (door.steps, door.one_time) {
            (None, _) => ("disabled (no sequence left)".to_owned(), BAD),
            (Some(steps), false) => plain(count(steps, "step")),
            (Some(steps), true) => plain(format!("{}, one-time", count(steps, "step"))),
        };
        vec![plain(harmless(&door.name)), state]
    };
    status.doors.iter().map(row).collect()
}

fn attempt_rows(status: &Status) -> Vec<Vec<Cell>> {
    let row = |attempt: &AttemptStatus| {
        vec![
            plain(attempt.source.to_string()),
            plain(harmless(&attempt.door)),
            plain(format!("stage {}", attempt.stage)),
            plain(format!("started {} ago", span(attempt.age))),
        ]
    };
    status.attempts.listed.iter().map(row).collect()
}

fn lease_rows(status: &Status) -> Vec<Vec<Cell>> {
    let row = |lease: &LeaseStatus| {
        let (state, what_next) = lease_state(lease);
        let style = if lease.failed { BAD } else { GOOD };
        vec![
            plain(lease.source.to_string()),
            plain(harmless(&lease.door)),
            (state.to_owned(), style),
            plain(what_next),
        ]
    };
    status.leases.listed.iter().map(row).collect()
}

/// Returns a lease's state in a word, and what comes next.
pub fn lease_state(lease: &LeaseStatus) -> (&'static str, String) {
    let left = span(lease.left.unwrap_or_default());
    let failed = |what: &str| {
        if lease.failed { format!("{what}, start command failed") } else { what.to_owned() }
    };
    match lease.state {
        LeasePhase::Starting => ("starting", "start command running".to_owned()),
        LeasePhase::Open => ("open", failed(&open_until(lease, &left))),
        LeasePhase::Used => ("used", "its one connection was made".to_owned()),
        LeasePhase::Closing => ("closing", "stop command running".to_owned()),
        LeasePhase::Retrying => ("retrying", format!("stop command failed, retrying in {left}")),
    }
}

/// Says until when a door is open, and what keeps it open.
fn open_until(lease: &LeaseStatus, left: &str) -> String {
    match (lease.kept_open_by, lease.connections) {
        (Some(KeptOpenBy::Packets), _) => format!("closes in {left} unless packets come"),
        (Some(KeptOpenBy::Connections), Some(1)) => {
            format!("1 connection keeps it open for {left} or longer")
        }
        (Some(KeptOpenBy::Connections), Some(number @ 2..)) => {
            format!("{number} connections keep it open for {left} or longer")
        }
        (Some(KeptOpenBy::Connections), _) => format!("closes in {left} unless connected"),
        (None, _) if lease.single_use => format!("closes in {left} or with the first connection"),
        (None, _) => format!("closes in {left}"),
    }
}

fn counters(status: &Status) -> Vec<Vec<Cell>> {
    let row = |name: &str, count: u64, is_bad: bool| {
        vec![plain(name), (count.to_string(), if is_bad && count > 0 { BAD } else { Style::new() })]
    };
    let (counters, commands) = (&status.counters, &status.commands);
    let waiting = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    vec![
        row("packets past the kernel filter", counters.packets, false),
        row("of these, visible to a door", counters.visible, false),
        row("packets dropped by the kernel", counters.dropped, true),
        row("attempts started", counters.attempts, false),
        row("attempts timed out", counters.timeouts, false),
        row("attempts spoiled by a wrong port", counters.spoiled, false),
        row("attempts dropped (`MaxAttempts`)", counters.evicted, true),
        row("doors opened by a knock", counters.opens, false),
        row("scanners detected", counters.scanners, false),
        row("commands run", commands.run, false),
        row("commands failed", commands.failed, true),
        row("start commands running", waiting(commands.starting), false),
        row("commands waiting", waiting(commands.waiting), true),
        row("doors closed", commands.closed, false),
        row("doors not closed (stop command failed)", commands.given_up, true),
    ]
}

fn health(status: &Status) -> Vec<Vec<Cell>> {
    let health = &status.health;
    let state = match (&health.state_directory, &health.state_problem) {
        (_, Some(problem)) => (harmless(problem), BAD),
        (Some(path), None) => plain(format!("open doors are stored in {}", harmless(path))),
        (None, None) => plain("nothing to store"),
    };
    let filter = if health.filter_exact {
        plain("kernel filter passes only wanted packets")
    } else {
        ("kernel filter passes unwanted packets: too many ports".to_owned(), BAD)
    };
    let decoder = match &health.decoder {
        Some(text) => (harmless(text), BAD),
        None => plain("packet decoder is fully sandboxed"),
    };
    let engine = match (&health.engine, health.native) {
        (Some(text), _) => (harmless(text), BAD),
        (None, true) => plain("engine is fully sandboxed"),
        (None, false) => plain("engine keeps its rights, for commands"),
    };
    let capture = match &health.capture_problem {
        Some(text) => (harmless(text), BAD),
        None => plain("packets are read"),
    };
    // Knocks and commands wait that long.
    let longest = Duration::from_micros(health.longest_iteration_us);
    let is_bad = longest >= LONG_ITERATION;
    let text = format!("longest iteration of the main loop: {} ms", longest.as_millis().max(1));
    let longest = (text, if is_bad { BAD } else { Style::new() });
    [state, capture, filter, decoder, engine, longest].into_iter().map(|cell| vec![cell]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::tests::example;

    #[test]
    fn columns_are_aligned_and_nothing_is_obeyed_by_a_terminal() {
        let text = anstream::adapter::strip_str(&StatusText(&example()).to_string()).to_string();
        let (before, after) = text.split_once("\nSince startup\n").unwrap();
        assert_eq!(
            before,
            "knockd 0.9.0, up 1 d 2 h, pid 42

Problems: 2
  ssh may still be open for 203.0.113.9, since 2026-11-27 11:00
    stop command failed: command returned non-zero status code (2): bad \u{fffd}[2Jrule
    stop command: close 203.0.113.9
    close it by hand, then run: knockd dismiss ssh 203.0.113.9
  cannot save open doors in /var/lib/knockd: No space left on device

Interfaces
  eth0  up       192.0.2.1, 2001:db8::1
  eth1  up       no address of its own; it belongs to br0, which has 192.0.2.2: listen on br0
  wg0   down     no address
  ppp0  missing  no address

Doors
  ssh          3 steps
  a \u{fffd}[31mdoor  disabled (no sequence left)

Attempts: 120, 119 not shown
  198.51.100.7  ssh  stage 2  started 4 s ago

Open doors: 2
  203.0.113.5   ssh  open      closes in 25 s
  203.0.113.50  ssh  retrying  stop command failed, retrying in 1 min 1 s
"
        );
        assert!(after.starts_with("  packets past the kernel filter          1204\n"), "{after}");
        assert!(after.ends_with("  longest iteration of the main loop: 1 ms\n"), "{after}");
    }
}
