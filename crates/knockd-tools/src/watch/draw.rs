//! The layout of the live view, for any terminal size.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};

use super::News;
use knockd_cli::control::{DoorStatus, LeasePhase, LeaseStatus, Status};
use knockd_cli::system::text::{count, harmless, span};
use knockd_cli::tools::status::lease_state;

/// What is shown.
pub(super) struct View {
    pub(super) status: Status,
    /// Why the status is out of date.
    pub(super) lost: Option<String>,
}

impl View {
    pub(super) fn take(&mut self, news: News) {
        match news {
            Ok(status) => *self = Self { status: *status, lost: None },
            Err(reason) => self.lost = Some(reason),
        }
    }
}

/// The styles; without colour, important text is bold.
#[derive(Clone, Copy)]
pub(super) struct Palette {
    has_colour: bool,
}

impl Palette {
    /// Follows `NO_COLOR` (no-color.org).
    pub(super) fn of_the_environment() -> Self {
        Self { has_colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    fn coloured(self, color: Color) -> Style {
        if self.has_colour { Style::new().fg(color) } else { Style::new() }
    }

    fn good(self) -> Style {
        self.coloured(Color::Green)
    }

    fn bad(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }
}

const HEADING: Style = Style::new().add_modifier(Modifier::BOLD);
const BAR: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything; what does not fit is left out, open doors last.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, palette: Palette) {
    let area = frame.area();
    let status = &view.status;
    let summary = summary(status, palette);
    let doors = doors(status, palette);
    let room = area.height.saturating_sub(2);
    // A heading and at least two lines for open doors and for attempts come first.
    let for_summary = if room >= 6 + lines(summary.len()) { lines(summary.len()) } else { 0 };
    let left = room - for_summary;
    let for_doors = if left >= 9 { (lines(doors.len()) + 1).min(left / 3) } else { 0 };
    let left = left - for_doors;
    let wanted = lines(status.attempts.listed.len()) + 1;
    let for_attempts = wanted.clamp(2.min(left), (left / 2).max(2.min(left)));
    let [top, leases, attempts, door_list, bottom, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(for_attempts),
        Constraint::Length(for_doors),
        Constraint::Length(for_summary),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(title(status)).style(BAR), top);
    draw_leases(frame, leases, status, palette);
    draw_attempts(frame, attempts, status);
    section(frame, door_list, &format!("Doors: {}", status.doors.len()), doors, status.doors.len());
    frame.render_widget(Paragraph::new(summary), bottom);
    frame.render_widget(footer(view, palette), foot);
}

fn lines(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

fn title(status: &Status) -> String {
    format!("knockd {}, up {}, pid {}", harmless(&status.version), span(status.uptime), status.pid)
}

fn footer(view: &View, palette: Palette) -> Paragraph<'static> {
    match &view.lost {
        Some(reason) => {
            Paragraph::new(format!("not connected, retrying: {}", harmless(reason))).style(palette.bad())
        }
        None => Paragraph::new("press q to quit"),
    }
}

/// Draws a heading and as many of the lines as fit below it.
fn section(frame: &mut Frame<'_>, area: Rect, heading: &str, rows: Vec<Line<'static>>, total: usize) {
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(Paragraph::new(headed(heading, total, body)).style(HEADING), head);
    frame.render_widget(Paragraph::new(rows), body);
}

/// Returns the heading, with the number of lines that do not fit below it.
fn headed(heading: &str, total: usize, body: Rect) -> String {
    match total.saturating_sub(body.height.into()) {
        0 => heading.to_owned(),
        more => format!("{heading} ({more} more)"),
    }
}

fn draw_leases(frame: &mut Frame<'_>, area: Rect, status: &Status, palette: Palette) {
    let leases = &status.leases;
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let heading = headed(&format!("Open doors: {}", leases.total), leases.total, body);
    frame.render_widget(Paragraph::new(heading).style(HEADING), head);
    let what_next = |lease: &LeaseStatus| if area.width >= 60 { lease_state(lease).1 } else { short(lease) };
    let rows = leases.listed.iter().take(body.height.into()).map(|lease| {
        let style = if lease.failed { palette.bad() } else { palette.good() };
        Row::new([
            Span::raw(lease.source.to_string()),
            Span::raw(harmless(&lease.door)),
            Span::styled(what_next(lease), style),
        ])
    });
    let widest = leases.listed.iter().map(|lease| lease.source.to_string().len()).max();
    let next = leases.listed.iter().map(|lease| what_next(lease).chars().count()).max();
    let next = Constraint::Length(lines(next.unwrap_or(0)).min(area.width / 5 * 3));
    frame.render_widget(Table::new(rows, [source_width(widest, area), Constraint::Fill(1), next]), body);
}

/// Says briefly what comes next for a lease.
fn short(lease: &LeaseStatus) -> String {
    match lease.state {
        LeasePhase::Starting => "starting".to_owned(),
        LeasePhase::Closing => "closing".to_owned(),
        LeasePhase::Open => span(lease.left.unwrap_or_default()),
        LeasePhase::Retrying => format!("failed, {}", span(lease.left.unwrap_or_default())),
    }
}

fn draw_attempts(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let attempts = &status.attempts;
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let heading = headed(&format!("Attempts: {}", attempts.total), attempts.total, body);
    frame.render_widget(Paragraph::new(heading).style(HEADING), head);
    let rows = attempts.listed.iter().take(body.height.into()).map(|attempt| {
        Row::new([
            attempt.source.to_string(),
            harmless(&attempt.door),
            format!("stage {}", attempt.stage),
            span(attempt.age),
        ])
    });
    let widest = attempts.listed.iter().map(|attempt| attempt.source.to_string().len()).max();
    let widths = [
        source_width(widest, area),
        Constraint::Fill(1),
        Constraint::Length(lines("stage 32".len())),
        Constraint::Length(lines("59 min 59 s".len()).min(area.width / 5)),
    ];
    frame.render_widget(Table::new(rows, widths), body);
}

/// The width of the widest address, but at most half of the terminal.
fn source_width(widest: Option<usize>, area: Rect) -> Constraint {
    Constraint::Length(lines(widest.unwrap_or(0)).min(area.width / 2))
}

fn doors(status: &Status, palette: Palette) -> Vec<Line<'static>> {
    let line = |door: &DoorStatus| match door.steps {
        Some(steps) => Line::raw(format!("{}: {}", harmless(&door.name), count(steps, "step"))),
        None => Line::styled(format!("{}: disabled (no sequence left)", harmless(&door.name)), palette.bad()),
    };
    status.doors.iter().map(line).collect()
}

/// Returns the counters in a few lines, and any problems.
fn summary(status: &Status, palette: Palette) -> Vec<Line<'static>> {
    let (counters, commands, health) = (&status.counters, &status.commands, &status.health);
    let mut interfaces = Vec::new();
    for interface in &status.interfaces {
        let (state, style) = match (interface.listening, interface.up) {
            (false, true) => ("not listening", palette.bad()),
            (false, false) => ("missing", palette.bad()),
            (true, false) => ("down", palette.bad()),
            (true, true) => ("up", palette.good()),
        };
        interfaces.push(Span::raw(format!("{} ", harmless(&interface.name))));
        interfaces.push(Span::styled(format!("{state}  "), style));
    }
    if interfaces.is_empty() {
        interfaces.push(Span::styled("no interface", palette.bad()));
    }
    let mut lines = vec![
        Line::from(interfaces),
        Line::raw(format!(
            "knocks: {} opened, {} timed out, {} spoiled, scanners: {}",
            counters.opens, counters.timeouts, counters.spoiled, counters.scanners
        )),
        Line::raw(format!(
            "packets: {}, dropped: {}  commands: {}, failed: {}, waiting: {}",
            counters.packets, counters.dropped, commands.run, commands.failed, commands.waiting
        )),
    ];
    let given_up = (commands.given_up > 0).then(|| {
        format!(
            "{} not closed (stop command failed)",
            count(usize::try_from(commands.given_up).unwrap_or(usize::MAX), "door")
        )
    });
    let problems =
        [given_up, health.state_problem.clone(), health.capture_problem.clone(), health.decoder.clone()];
    lines.extend(
        problems.into_iter().flatten().map(|problem| Line::styled(harmless(&problem), palette.bad())),
    );
    lines
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn example() -> Status {
        serde_json::from_str(include_str!("../../../knockd-cli/src/control/example-status.json")).unwrap()
    }

    fn drawn(width: u16, height: u16, view: &View, has_colour: bool) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view, Palette { has_colour })).unwrap();
        terminal
    }

    fn text(terminal: &Terminal<TestBackend>) -> String {
        let buffer = terminal.backend().buffer();
        let mut text = String::new();
        for row in buffer.content().chunks(usize::from(buffer.area.width).max(1)) {
            let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }

    fn view() -> View {
        View { status: example(), lost: None }
    }

    #[test]
    fn eighty_columns_and_24_lines_show_everything() {
        assert_eq!(
            text(&drawn(80, 24, &view(), true)),
            "knockd 0.9.0, up 1 d 2 h, pid 42
Open doors: 2
203.0.113.5  ssh                      closes in 25 s
203.0.113.50 ssh                      stop command failed, retrying in 1 min 1 s











Attempts: 120 (119 more)
198.51.100.7 ssh                                            stage 2  4 s
Doors: 2
ssh: 3 steps
a \u{fffd}[31mdoor: disabled (no sequence left)
eth0 up  eth1 up  wg0 down  ppp0 missing
knocks: 7 opened, 0 timed out, 0 spoiled, scanners: 0
packets: 1204, dropped: 0  commands: 14, failed: 0, waiting: 0
press q to quit
"
        );
    }

    #[test]
    fn a_small_terminal_shows_what_matters_most() {
        assert_eq!(
            text(&drawn(40, 10, &view(), true)),
            "\
knockd 0.9.0, up 1 d 2 h, pid 42
Open doors: 2
203.0.113.5  ssh       25 s
203.0.113.50 ssh       failed, 1 min 1 s



Attempts: 120 (119 more)
198.51.100.7 ssh       stage 2  4 s
press q to quit
"
        );
    }

    #[test]
    fn no_size_is_too_small_and_no_name_too_long() {
        let mut view = view();
        view.status.doors[1].name = "\x1b]0;title\x07\u{202e}".repeat(100);
        view.status.leases.listed[0].door = "very long name ".repeat(50);
        for width in [0, 1, 2, 10, 39, 60, 300] {
            for height in [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 24, 40] {
                let terminal = drawn(width, height, &view, true);
                assert!(!text(&terminal).contains(['\x1b', '\x07', '\u{202e}']), "{width}x{height}");
            }
        }
    }

    #[test]
    fn without_colour_there_is_none() {
        let coloured = |has_colour| {
            let terminal = drawn(80, 24, &view(), has_colour);
            terminal.backend().buffer().content().iter().filter(|cell| cell.fg != Color::Reset).count()
        };
        assert_eq!(coloured(false), 0);
        assert!(coloured(true) > 0);
    }

    #[test]
    fn a_daemon_that_has_gone_is_told_until_it_is_back() {
        let mut view = view();
        view.take(Err("gone \x1b[2J".to_owned()));
        let last = |view: &View| text(&drawn(80, 24, view, false)).lines().last().unwrap().to_owned();
        assert_eq!(last(&view), "not connected, retrying: gone \u{fffd}[2J");
        view.take(Ok(Box::new(example())));
        assert_eq!(last(&view), "press q to quit");
    }
}
