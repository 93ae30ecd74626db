//! The layout of the live view, for any terminal size.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table, TableState, Wrap};

use super::view::{Fresh, Tab, View};
use knockd_cli::control::{DoorStatus, InterfaceStatus, LeasePhase, LeaseStatus, LogEvent, Status};
use knockd_cli::system::text::{count, harmless, span};
use knockd_cli::system::time_zone;
use knockd_cli::tools::status::{lease_state, scanner_state};

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

/// From this width on, rows are in full.
const WIDE: u16 = 60;

/// From this height on, the latest events and the summary stand below the list.
const TALL: u16 = 20;

/// Draws everything. Problems come first, whatever else has room; then the list that is shown.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View, palette: Palette) {
    let area = frame.area();
    let problems = problems(view, area.height, palette);
    view.width = area.width.into();
    let details = details(view, area);
    let is_tall = area.height >= TALL;
    let summary = if is_tall { summary(&view.fresh.status, palette) } else { Vec::new() };
    let has_events = is_tall && view.tab != Tab::Events && view.tab != Tab::Problems;
    let [top, first, bar, list, more, events, bottom, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(lines(problems.len())),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(details.as_ref().map_or(0, |details| wrapped(details, area))),
        Constraint::Length(if has_events { area.height / 4 } else { 0 }),
        Constraint::Length(lines(summary.len())),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(title(&view.fresh.status)).style(BAR), top);
    frame.render_widget(Paragraph::new(problems), first);
    frame.render_widget(Paragraph::new(tab_bar(view, area.width)), bar);
    draw_list(frame, list, view, palette);
    if let Some(details) = details {
        frame.render_widget(Paragraph::new(details).wrap(Wrap { trim: false }), more);
    }
    if has_events {
        draw_latest_events(frame, events, &view.fresh.events, palette);
    }
    frame.render_widget(Paragraph::new(summary), bottom);
    frame.render_widget(footer(view, palette), foot);
}

fn lines(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

/// Replaces everything that would move the cursor.
pub(super) fn one_line(text: &str) -> String {
    harmless(text).replace('\n', " ")
}

fn title(status: &Status) -> String {
    format!("knockd {}, up {}, pid {}", one_line(&status.version), span(status.uptime), status.pid)
}

/// Returns the problems in short, at most as many as leave room for other things.
fn problems(view: &View, height: u16, palette: Palette) -> Vec<Line<'static>> {
    let all = &view.fresh.status.problems;
    if view.tab == Tab::Problems {
        return Vec::new();
    }
    let room = usize::from((height / 5).max(1));
    let line = |text: &str| Line::styled(format!("! {}", one_line(text)), palette.bad());
    if all.len() <= room {
        return all.iter().map(|problem| line(&problem.text)).collect();
    }
    let shown = all.iter().take(room.saturating_sub(1)).map(|problem| line(&problem.text));
    let first = all.first().map(|problem| problem.text.as_str()).unwrap_or_default();
    let last = match room {
        1 => line(&format!("{} problems: {first}", all.len())),
        _ => line(&format!("{} more", count(all.len() - (room - 1), "problem"))),
    };
    shown.chain([last]).collect()
}

/// Returns the names of the lists with their lengths or, where there is no room, only that of the one that is shown.
fn tab_bar(view: &View, width: u16) -> Line<'static> {
    let Fresh { status, scanners, .. } = &view.fresh;
    let length = |tab| match tab {
        Tab::Problems => Some(status.problems.len()),
        Tab::OpenDoors => Some(status.leases.total),
        Tab::Attempts => Some(status.attempts.total),
        Tab::Scanners => Some(scanners.total),
        Tab::Events | Tab::Overview => None,
    };
    let name = |tab: Tab| match length(tab) {
        Some(length) => format!("{}: {length}", tab.title()),
        None => tab.title().to_owned(),
    };
    let names: Vec<_> = view.tabs().map(|tab| (tab, name(tab))).collect();
    if names.iter().map(|(_, name)| name.len() + 2).sum::<usize>() <= usize::from(width) + 2 {
        let style = |tab| if tab == view.tab { BAR.patch(HEADING) } else { Style::new() };
        let spans =
            names.into_iter().flat_map(|(tab, name)| [Span::styled(name, style(tab)), Span::raw("  ")]);
        return spans.collect();
    }
    let place = view.selected().map(|selected| format!(" ({} of {})", selected + 1, view.length()));
    let place = place.unwrap_or_default();
    Line::styled(format!("< {}{place} >", name(view.tab)), HEADING)
}

fn footer(view: &View, palette: Palette) -> Paragraph<'static> {
    if let Some(question) = &view.question {
        return Paragraph::new(format!("{} y/n", one_line(&question.text))).style(BAR);
    }
    match (&view.answer, &view.lost) {
        (Some(Ok(text)), _) => Paragraph::new(one_line(text)).style(palette.good()),
        (Some(Err(reason)), _) => Paragraph::new(one_line(reason)).style(palette.bad()),
        (None, Some(reason)) => {
            Paragraph::new(format!("not connected, retrying: {}", one_line(reason))).style(palette.bad())
        }
        (None, None) => Paragraph::new(view.keys()),
    }
}

/// Returns the selected event, if its line is too short for it.
fn details(view: &View, area: Rect) -> Option<String> {
    let event = view.fresh.events.get(view.selected()?).filter(|_| view.tab == Tab::Events)?;
    let text = one_line(&event.text);
    let room = usize::from(area.width).saturating_sub("00:00:00 ".len());
    (text.chars().count() > room).then_some(text)
}

/// Says how many lines a text takes, at most half of the screen. It is broken between words, so it may take one more
/// than its length tells.
fn wrapped(text: &str, area: Rect) -> u16 {
    let width = usize::from(area.width.max(1));
    lines(text.chars().count() / width + 2).min(area.height / 2)
}

/// The rows of the list that is shown, in columns; `wide` is the column that takes the remaining width.
struct List {
    rows: Vec<Vec<Line<'static>>>,
    wide: usize,
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, view: &mut View, palette: Palette) {
    let List { rows, wide } = list(view, area.width, palette);
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widest = |column| rows.iter().filter_map(|row| row.get(column).map(Line::width)).max().unwrap_or(0);
    let width = |column| match column {
        _ if column == wide => Constraint::Fill(1),
        0 => Constraint::Length(lines(widest(column)).min(area.width / 2)),
        _ => Constraint::Length(lines(widest(column)).min(area.width / 5 * 3)),
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let selected = view.selected();
    let mut state = TableState::new().with_offset(view.offset).with_selected(selected);
    let table = Table::new(rows.into_iter().map(Row::new), widths).row_highlight_style(BAR);
    frame.render_stateful_widget(table, area, &mut state);
    (view.offset, view.page) = (state.offset(), area.height.into());
}

fn list(view: &View, width: u16, palette: Palette) -> List {
    let Fresh { status, scanners, events } = &view.fresh;
    match view.tab {
        Tab::Problems => {
            let style = |is_heading| if is_heading { palette.bad() } else { Style::new() };
            let lines = view.problem_lines().into_iter();
            List {
                rows: lines.map(|line| vec![Line::styled(line.text, style(line.is_heading))]).collect(),
                wide: 0,
            }
        }
        Tab::OpenDoors => {
            let row = |lease: &LeaseStatus| {
                let style = if lease.failed { palette.bad() } else { palette.good() };
                let what_next = if width >= WIDE { lease_state(lease).1 } else { short(lease) };
                vec![
                    Line::raw(lease.source.to_string()),
                    Line::raw(one_line(&lease.door)),
                    Line::styled(what_next, style),
                ]
            };
            List { rows: status.leases.listed.iter().map(row).collect(), wide: 1 }
        }
        Tab::Attempts => {
            let rows = status.attempts.listed.iter().map(|attempt| {
                vec![
                    Line::raw(attempt.source.to_string()),
                    Line::raw(one_line(&attempt.door)),
                    Line::raw(format!("stage {}", attempt.stage)),
                    Line::raw(span(attempt.age)),
                ]
            });
            List { rows: rows.collect(), wide: 1 }
        }
        Tab::Scanners => {
            let rows = scanners.listed.iter().map(|scanner| {
                let state = if width >= WIDE { scanner_state(scanner) } else { span(scanner.left) };
                vec![Line::raw(scanner.source.to_string()), Line::raw(state)]
            });
            List { rows: rows.collect(), wide: 1 }
        }
        Tab::Events => List { rows: events.iter().map(|event| event_row(event, palette)).collect(), wide: 1 },
        Tab::Overview => {
            List { rows: overview(status, palette).into_iter().map(|line| vec![line]).collect(), wide: 0 }
        }
    }
}

/// Says briefly what comes next for a lease.
fn short(lease: &LeaseStatus) -> String {
    match lease.state {
        LeasePhase::Starting => "starting".to_owned(),
        LeasePhase::Closing => "closing".to_owned(),
        LeasePhase::Used => "used".to_owned(),
        LeasePhase::Open => span(lease.left.unwrap_or_default()),
        LeasePhase::Retrying => format!("failed, {}", span(lease.left.unwrap_or_default())),
    }
}

fn event_row(event: &LogEvent, palette: Palette) -> Vec<Line<'static>> {
    let style = match event.event.as_str() {
        "open" => palette.good(),
        "failed" | "missing" | "said" | "limit" | "full" | "given_up" => palette.bad(),
        _ => Style::new(),
    };
    vec![Line::raw(local_time(&event.time)), Line::styled(one_line(&event.text), style)]
}

fn local_time(time: &str) -> String {
    let time = time.parse::<jiff::Timestamp>().unwrap_or_default();
    time.to_zoned(time_zone::local()).strftime("%H:%M:%S").to_string()
}

fn draw_latest_events(frame: &mut Frame<'_>, area: Rect, events: &[LogEvent], palette: Palette) {
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(Paragraph::new("Latest events").style(HEADING), head);
    let hidden = events.len().saturating_sub(body.height.into());
    let rows = events.iter().skip(hidden).map(|event| Row::new(event_row(event, palette)));
    let widths = [Constraint::Length(lines("00:00:00".len())), Constraint::Fill(1)];
    frame.render_widget(Table::new(rows, widths), body);
}

/// Returns the number of lines of the overview.
pub(super) fn overview_length(status: &Status) -> usize {
    overview(status, Palette { has_colour: false }).len()
}

/// Returns the doors, the interfaces and the counters, in short lines.
fn overview(status: &Status, palette: Palette) -> Vec<Line<'static>> {
    let (counters, commands) = (&status.counters, &status.commands);
    let interfaces = status.interfaces.iter().map(|interface| {
        let (state, style) = interface_state(interface, palette);
        let addresses: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
        Line::from(vec![
            Span::raw(format!("{} ", one_line(&interface.name))),
            Span::styled(state, style),
            Span::raw(format!(" {}", addresses.join(", "))),
        ])
    });
    let counters = [
        format!("knocks: {} opened, {} timed out", counters.opens, counters.timeouts),
        format!("spoiled: {}, scanners: {}", counters.spoiled, counters.scanners),
        format!("packets: {}, dropped: {}", counters.packets, counters.dropped),
        format!("commands: {}, failed: {}", commands.run, commands.failed),
    ];
    doors(status, palette).into_iter().chain(interfaces).chain(counters.map(Line::raw)).collect()
}

/// Returns the state of an interface in a word or two.
fn interface_state(interface: &InterfaceStatus, palette: Palette) -> (&'static str, Style) {
    match (interface.listening, interface.up) {
        (false, true) => ("not listening", palette.bad()),
        (false, false) => ("missing", palette.bad()),
        (true, false) => ("down", palette.bad()),
        (true, true) => ("up", palette.good()),
    }
}

fn doors(status: &Status, palette: Palette) -> Vec<Line<'static>> {
    let line = |door: &DoorStatus| match door.steps {
        Some(steps) => Line::raw(format!("{}: {}", one_line(&door.name), count(steps, "step"))),
        None => Line::styled(format!("{}: disabled (no sequence left)", one_line(&door.name)), palette.bad()),
    };
    status.doors.iter().map(line).collect()
}

/// Returns the interfaces and the counters in a few lines.
fn summary(status: &Status, palette: Palette) -> Vec<Line<'static>> {
    let (counters, commands, health) = (&status.counters, &status.commands, &status.health);
    let mut interfaces: Vec<_> = status
        .interfaces
        .iter()
        .flat_map(|interface| {
            let (state, style) = interface_state(interface, palette);
            [Span::raw(format!("{} ", one_line(&interface.name))), Span::styled(format!("{state}  "), style)]
        })
        .collect();
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
    let kept = health.decoder.iter().chain(&health.engine);
    lines.extend(kept.map(|text| Line::styled(one_line(text), palette.bad())));
    lines
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::view::News;
    use super::super::view::tests::{example, press, view};
    use super::*;

    fn drawn(width: u16, height: u16, view: &mut View, has_colour: bool) -> Terminal<TestBackend> {
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

    fn screen(width: u16, height: u16, view: &mut View) -> String {
        text(&drawn(width, height, view, true))
    }

    #[test]
    fn eighty_columns_and_24_lines_show_problems_open_doors_and_the_latest_events() {
        let [first, second, third] =
            ["11:00:00", "11:00:01", "11:00:02"].map(|time| local_time(&format!("2026-11-27T{time}Z")));
        assert_eq!(
            screen(80, 24, &mut view()),
            format!(
                "knockd 0.9.0, up 1 d 2 h, pid 42
! ssh may still be open for 203.0.113.9, since 2026-11-27 11:00
! cannot save open doors in /var/lib/knockd: No space left on device
Problems: 2  Open doors: 2  Attempts: 120  Scanners: 2  Events  Overview
203.0.113.5  ssh                      closes in 25 s
203.0.113.50 ssh                      stop command failed, retrying in 1 min 1 s








Latest events
{first} 203.0.113.9: ssh: giving up on stop command
{second} 198.51.100.7: ssh: Stage 2
{third} 203.0.113.5: ssh: OPEN SESAME


eth0 up  eth1 up  wg0 down  ppp0 missing
knocks: 7 opened, 0 timed out, 0 spoiled, scanners: 0
packets: 1204, dropped: 0  commands: 14, failed: 0, waiting: 0
q quit  Tab next  c close  e extend
"
            )
        );
    }

    #[test]
    fn a_small_terminal_shows_what_matters_most() {
        assert_eq!(
            screen(40, 10, &mut view()),
            "knockd 0.9.0, up 1 d 2 h, pid 42
! ssh may still be open for 203.0.113.9,
! cannot save open doors in /var/lib/kno
< Open doors: 2 (1 of 2) >
203.0.113.5  ssh       25 s
203.0.113.50 ssh       failed, 1 min 1 s



q quit  Tab next  c close  e extend
"
        );
        let first = |height| screen(40, height, &mut view()).lines().nth(1).unwrap().to_owned();
        assert_eq!(first(9), "! 2 problems: ssh may still be open for");
    }

    #[test]
    fn a_problem_is_told_with_what_to_do_about_it() {
        let mut view = view();
        press(&mut view, "<");
        assert_eq!(
            screen(60, 12, &mut view),
            "knockd 0.9.0, up 1 d 2 h, pid 42
< Problems: 2 (1 of 8) >
ssh may still be open for 203.0.113.9, since 2026-11-27
11:00
  stop command failed: command returned non-zero status code
  (2): bad \u{fffd}[2Jrule
  stop command: close 203.0.113.9
  close it by hand, then run: knockd dismiss ssh 203.0.113.9
cannot save open doors in /var/lib/knockd: No space left on
device

q quit  Tab next  d dismiss
"
        );
    }

    #[test]
    fn no_size_is_too_small_and_no_name_too_long() {
        let mut view = view();
        view.fresh.status.doors[1].name = "\x1b]0;title\x07\u{202e}".repeat(100);
        view.fresh.status.leases.listed[0].door = "very long name ".repeat(50);
        view.fresh.status.problems[0].text = "very\nlong\x1b[2J ".repeat(50);
        view.fresh.events[0].text = "long\x1b[2J ".repeat(50);
        for _ in Tab::ALL {
            press(&mut view, ">");
            for width in [0, 1, 2, 10, 39, 60, 300] {
                for height in [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 24, 40] {
                    let screen = screen(width, height, &mut view);
                    assert!(!screen.contains(['\x1b', '\x07', '\u{202e}']), "{width}x{height}");
                }
            }
        }
    }

    #[test]
    fn without_colour_there_is_none() {
        let coloured = |has_colour| {
            let terminal = drawn(80, 24, &mut view(), has_colour);
            terminal.backend().buffer().content().iter().filter(|cell| cell.fg != Color::Reset).count()
        };
        assert_eq!(coloured(false), 0);
        assert!(coloured(true) > 0);
    }

    #[test]
    fn a_daemon_that_has_gone_is_told_until_it_is_back() {
        let mut view = view();
        let last = |view: &mut View| screen(80, 24, view).lines().last().unwrap().to_owned();
        view.take(News::State(Err("gone \x1b[2J".to_owned())));
        assert_eq!(last(&mut view), "not connected, retrying: gone \u{fffd}[2J");
        view.take(News::State(Ok(Box::new(example()))));
        assert_eq!(last(&mut view), "q quit  Tab next  c close  e extend");
    }

    #[test]
    fn a_list_that_is_longer_than_the_screen_is_scrolled() {
        let mut view = view();
        let lease = view.fresh.status.leases.listed[0].clone();
        view.fresh.status.leases.listed = (0..100)
            .map(|number| LeaseStatus { source: [192, 0, 2, number].into(), ..lease.clone() })
            .collect();
        assert!(screen(80, 24, &mut view).contains("192.0.2.0 "));
        press(&mut view, "G");
        let end = screen(80, 24, &mut view);
        assert!(end.contains("192.0.2.99 ") && !end.contains("192.0.2.0 "), "{end}");
        press(&mut view, "g");
        assert!(screen(40, 10, &mut view).contains("192.0.2.0 "));
    }
}
