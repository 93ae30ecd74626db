//! What the live view shows and what its keys do, apart from the terminal.

use knockd_cli::control::{LogEvent, Problem, ProblemKind, Request, ScannersStatus, Status};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::draw::one_line;

/// Everything that the daemon has said of itself, at one time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fresh {
    pub(super) status: Status,
    pub(super) scanners: ScannersStatus,
    pub(super) events: Vec<LogEvent>,
}

/// A message from the thread that talks to the daemon.
#[derive(Debug)]
pub(super) enum News {
    /// The latest state, or why there is none.
    State(Result<Box<Fresh>, String>),
    /// What became of a request.
    Answer(Result<String, String>),
}

/// A list; one of them is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tab {
    Problems,
    OpenDoors,
    Attempts,
    Scanners,
    Events,
    Overview,
}

impl Tab {
    pub(super) const ALL: [Self; 6] =
        [Self::Problems, Self::OpenDoors, Self::Attempts, Self::Scanners, Self::Events, Self::Overview];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Problems => "Problems",
            Self::OpenDoors => "Open doors",
            Self::Attempts => "Attempts",
            Self::Scanners => "Scanners",
            Self::Events => "Events",
            Self::Overview => "Overview",
        }
    }

    /// Returns the keys that do something to what is selected.
    const fn actions(self) -> &'static str {
        match self {
            Self::OpenDoors => "  c close  e extend",
            Self::Scanners => "  f forgive",
            Self::Problems => "  d dismiss",
            Self::Attempts | Self::Events | Self::Overview => "",
        }
    }
}

/// Which line of a list is selected. It stays with its subject while the list changes.
#[derive(Clone, Default, Debug)]
struct Cursor {
    index: usize,
    /// What the line is about; `None` as long as nobody has moved.
    subject: Option<String>,
}

/// A line of the list of problems.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ProblemLine {
    /// Which problem it is about.
    pub(super) problem: usize,
    /// Whether it says what is wrong.
    pub(super) is_heading: bool,
    pub(super) text: String,
}

/// A request that is made once the user has confirmed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Question {
    pub(super) text: String,
    request: Request,
}

/// What a key leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Nothing beyond the view.
    Stay,
    Quit,
    Ask(Request),
}

/// What is shown.
pub(super) struct View {
    pub(super) fresh: Fresh,
    /// Why that is out of date.
    pub(super) lost: Option<String>,
    pub(super) tab: Tab,
    pub(super) question: Option<Question>,
    /// What became of the last request, until the next key.
    pub(super) answer: Option<Result<String, String>>,
    /// How many lines of the list are visible, as of the last drawing.
    pub(super) page: usize,
    /// The first visible line.
    pub(super) offset: usize,
    /// How wide the screen is, as of the last drawing.
    pub(super) width: usize,
    cursors: [Cursor; 6],
}

impl View {
    pub(super) fn new(fresh: Fresh) -> Self {
        Self {
            fresh,
            lost: None,
            tab: Tab::OpenDoors,
            question: None,
            answer: None,
            page: 1,
            offset: 0,
            width: 80,
            cursors: Default::default(),
        }
    }

    pub(super) fn take(&mut self, news: News) {
        match news {
            News::State(Ok(fresh)) => (self.fresh, self.lost) = (*fresh, None),
            News::State(Err(reason)) => self.lost = Some(reason),
            News::Answer(answer) => self.answer = Some(answer),
        }
        if !self.tabs().any(|tab| tab == self.tab) {
            self.show(Tab::OpenDoors);
        }
    }

    /// Returns the lists that there are: without a problem, there is none of them.
    pub(super) fn tabs(&self) -> impl DoubleEndedIterator<Item = Tab> + '_ {
        let has_problems = !self.fresh.status.problems.is_empty();
        Tab::ALL.into_iter().filter(move |tab| has_problems || *tab != Tab::Problems)
    }

    /// Returns what the lines of a list are about.
    fn subjects(&self, tab: Tab) -> Vec<String> {
        let Fresh { status, scanners, events } = &self.fresh;
        match tab {
            Tab::Problems => {
                let lines = self.problem_lines();
                lines.into_iter().map(|line| format!("{} {}", line.problem, line.text)).collect()
            }
            Tab::OpenDoors => {
                status.leases.listed.iter().map(|lease| format!("{} {}", lease.source, lease.door)).collect()
            }
            Tab::Attempts => {
                let listed = status.attempts.listed.iter();
                listed.map(|attempt| format!("{} {}", attempt.source, attempt.door)).collect()
            }
            Tab::Scanners => scanners.listed.iter().map(|scanner| scanner.source.to_string()).collect(),
            Tab::Events => events.iter().map(|event| format!("{} {}", event.time, event.text)).collect(),
            Tab::Overview => (0..super::draw::overview_length(status)).map(|line| line.to_string()).collect(),
        }
    }

    /// Returns the problems with all that is known about them, broken into lines that fit the screen.
    pub(super) fn problem_lines(&self) -> Vec<ProblemLine> {
        let mut lines = Vec::new();
        for (problem, Problem { text, details, .. }) in self.fresh.status.problems.iter().enumerate() {
            let mut add = |text: &str, indent: usize, is_heading| {
                let pieces = broken(&one_line(text), self.width.saturating_sub(indent)).into_iter();
                lines.extend(pieces.map(|piece| {
                    let text = format!("{:indent$}{piece}", "");
                    ProblemLine { problem, is_heading, text }
                }));
            };
            add(text, 0, true);
            for detail in details {
                add(detail, 2, false);
            }
        }
        lines
    }

    /// Returns the number of lines of the list that is shown.
    pub(super) fn length(&self) -> usize {
        self.subjects(self.tab).len()
    }

    /// Returns the selected line of the list that is shown; `None` if it is empty.
    pub(super) fn selected(&self) -> Option<usize> {
        let subjects = self.subjects(self.tab);
        let last = subjects.len().checked_sub(1)?;
        let Some(Cursor { index, subject }) = self.cursors.get(self.tab as usize) else { return Some(0) };
        Some(match subject {
            // The latest event, or the first line of another list.
            None if self.tab == Tab::Events => last,
            None => 0,
            Some(subject) if subjects.get(*index) == Some(subject) => *index,
            Some(subject) => subjects.iter().position(|other| other == subject).unwrap_or(*index).min(last),
        })
    }

    fn select(&mut self, index: usize) {
        let subjects = self.subjects(self.tab);
        let Some(last) = subjects.len().checked_sub(1) else { return };
        let index = index.min(last);
        // At its end, the list of events goes on with the latest one.
        let subject = subjects.into_iter().nth(index).filter(|_| self.tab != Tab::Events || index < last);
        if let Some(cursor) = self.cursors.get_mut(self.tab as usize) {
            *cursor = Cursor { index, subject };
        }
    }

    fn show(&mut self, tab: Tab) {
        (self.tab, self.offset) = (tab, 0);
    }

    /// Shows the list that comes this many places after the present one.
    fn turn(&mut self, places: usize) {
        let tabs: Vec<_> = self.tabs().collect();
        let present = tabs.iter().position(|tab| *tab == self.tab).unwrap_or_default();
        if let Some(tab) = tabs.get((present + places) % tabs.len().max(1)) {
            self.show(*tab);
        }
    }

    /// Returns what the last line of the screen says.
    pub(super) fn keys(&self) -> String {
        format!("q quit  Tab next{}", self.tab.actions())
    }

    pub(super) fn handle_key(&mut self, key: KeyEvent) -> Step {
        let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        if is_ctrl_c {
            return Step::Quit;
        }
        self.answer = None;
        if let Some(Question { request, .. }) = self.question.take() {
            return match key.code {
                KeyCode::Char('y' | 'Y') => Step::Ask(request),
                _ => Step::Stay,
            };
        }
        let selected = self.selected().unwrap_or_default();
        match key.code {
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => return Step::Quit,
            KeyCode::Tab | KeyCode::Right => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(self.tabs().count().saturating_sub(1)),
            KeyCode::Up | KeyCode::Char('k') => self.select(selected.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(selected.saturating_add(1)),
            KeyCode::PageUp => self.select(selected.saturating_sub(self.page.max(1))),
            KeyCode::PageDown => self.select(selected.saturating_add(self.page.max(1))),
            KeyCode::Home => self.select(0),
            KeyCode::End => self.select(usize::MAX),
            KeyCode::Char(action) => self.question = self.question_about(selected, action),
            _ => {}
        }
        Step::Stay
    }

    /// Returns the question before something is done to the selected line, if the key does something to it.
    fn question_about(&self, selected: usize, action: char) -> Option<Question> {
        let Fresh { status, scanners, .. } = &self.fresh;
        let (text, request) = match (self.tab, action) {
            (Tab::OpenDoors, 'c' | 'e') => {
                let lease = status.leases.listed.get(selected)?;
                let (door, address) = (lease.door.clone(), lease.source);
                if action == 'c' {
                    let text = format!("close {door} for {address}?");
                    (text, Request::Close { door: Some(door), address: Some(address) })
                } else {
                    let text = format!("extend {door} for {address} by its Cmd_Timeout?");
                    (text, Request::Extend { door, address, seconds: None })
                }
            }
            (Tab::Scanners, 'f') => {
                let address = scanners.listed.get(selected)?.source;
                (format!("forgive {address}?"), Request::Forgive { address })
            }
            (Tab::Problems, 'd') => {
                let problem = self.problem_lines().get(selected)?.problem;
                let ProblemKind::LeftOpen { door, source, .. } = &status.problems.get(problem)?.kind else {
                    return None;
                };
                let (door, address) = (door.clone(), *source);
                let text = format!("is {door} closed for {address}?");
                (text, Request::Dismiss { door: Some(door), address: Some(address) })
            }
            _ => return None,
        };
        Some(Question { text, request })
    }
}

/// Breaks a text into lines of at most this many characters, between words where possible.
fn broken(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        // Several spaces stay, because a command may need them.
        if let (true, Some(line)) = (word.is_empty(), lines.last_mut().filter(|line| !line.is_empty())) {
            line.push(' ');
        }
        let word: Vec<_> = word.chars().collect();
        // A word that is longer than a line takes several.
        for (index, piece) in word.chunks(width).enumerate() {
            let Some(line) = lines.last_mut() else { continue };
            let length = line.chars().count();
            if length > 0 && (index > 0 || length + 1 + piece.len() > width) {
                lines.push(piece.iter().collect());
            } else {
                line.extend((length > 0).then_some(' '));
                line.extend(piece);
            }
        }
    }
    lines
}

#[cfg(test)]
pub(super) mod tests {
    use knockd_cli::control::ScannerStatus;

    use super::*;

    pub(in super::super) fn example() -> Fresh {
        let status =
            serde_json::from_str(include_str!("../../../knockd-cli/src/control/example-status.json"))
                .unwrap();
        let scanner = |source: &str, left| ScannerStatus { source: source.parse().unwrap(), left };
        let event = |time: &str, event: &str, text: &str| LogEvent {
            time: time.to_owned(),
            event: event.to_owned(),
            text: text.to_owned(),
        };
        Fresh {
            status,
            scanners: ScannersStatus {
                total: 2,
                listed: vec![scanner("198.51.100.9", 59), scanner("2001:db8:1:2::", 7)],
            },
            events: vec![
                event("2026-11-27T11:00:00Z", "given_up", "203.0.113.9: ssh: giving up on stop command"),
                event("2026-11-27T11:00:01Z", "stage", "198.51.100.7: ssh: Stage 2"),
                event("2026-11-27T11:00:02Z", "open", "203.0.113.5: ssh: OPEN SESAME"),
            ],
        }
    }

    pub(in super::super) fn view() -> View {
        View::new(example())
    }

    /// Presses keys: letters, `>` for Tab, `<` for Shift-Tab, `v` and `^` for arrows, `g` and `G` for Home and End.
    /// Returns the last one's step.
    pub(in super::super) fn press(view: &mut View, keys: &str) -> Step {
        let code = |key| match key {
            '>' => KeyCode::Tab,
            '<' => KeyCode::BackTab,
            'v' => KeyCode::Down,
            '^' => KeyCode::Up,
            'g' => KeyCode::Home,
            'G' => KeyCode::End,
            key => KeyCode::Char(key),
        };
        keys.chars().fold(Step::Stay, |_, key| view.handle_key(KeyEvent::new(code(key), KeyModifiers::NONE)))
    }

    fn close(door: &str, source: &str) -> Step {
        Step::Ask(Request::Close { door: Some(door.to_owned()), address: Some(source.parse().unwrap()) })
    }

    #[test]
    fn a_text_is_broken_between_words_and_a_long_word_where_the_line_ends() {
        assert_eq!(broken("one two three", 7), ["one two", "three"]);
        assert_eq!(broken("one seventeen x", 5), ["one", "seven", "teen", "x"]);
        assert_eq!(broken("one   two", 80), ["one   two"]);
        assert_eq!((broken("ab", 0), broken("", 5)), (vec!["a".into(), "b".into()], vec![String::new()]));
    }

    #[test]
    fn nothing_is_done_without_a_yes() {
        for keys in ["c", "cn", "cc", "cq", "e", "en", ">>fn", "<dn", "x"] {
            assert_eq!(press(&mut view(), keys), Step::Stay, "{keys}");
        }
        assert_eq!(press(&mut view(), "cny"), Step::Stay);
        assert_eq!(press(&mut view(), "q"), Step::Quit);
    }

    #[test]
    fn what_is_selected_is_closed_extended_forgiven_or_dismissed() {
        let address = |text: &str| text.parse().unwrap();
        assert_eq!(press(&mut view(), "cy"), close("ssh", "203.0.113.5"));
        assert_eq!(press(&mut view(), "vcy"), close("ssh", "203.0.113.50"));
        let request =
            Request::Extend { door: "ssh".to_owned(), address: address("203.0.113.5"), seconds: None };
        assert_eq!(press(&mut view(), "vvvg^ey"), Step::Ask(request));
        let request = Request::Forgive { address: address("2001:db8:1:2::") };
        assert_eq!(press(&mut view(), ">>vfy"), Step::Ask(request));
        let request =
            Request::Dismiss { door: Some("ssh".to_owned()), address: Some(address("203.0.113.9")) };
        assert_eq!(press(&mut view(), "<dy"), Step::Ask(request));
        assert_eq!(press(&mut view(), "<vvdy"), press(&mut view(), "<dy"), "a line about the same");
        assert_eq!(press(&mut view(), "<Gdy"), Step::Stay, "that is not a door");
    }

    #[test]
    fn the_selection_stays_with_its_subject_and_a_question_with_what_it_was_about() {
        let mut view = view();
        press(&mut view, "v");
        let mut fresh = example();
        fresh.status.leases.listed.reverse();
        view.take(News::State(Ok(Box::new(fresh.clone()))));
        assert_eq!(view.selected(), Some(0));
        press(&mut view, "c");
        fresh.status.leases.listed.remove(0);
        view.take(News::State(Ok(Box::new(fresh.clone()))));
        assert_eq!((view.selected(), press(&mut view, "y")), (Some(0), close("ssh", "203.0.113.50")));
        fresh.status.leases.listed.clear();
        view.take(News::State(Ok(Box::new(fresh))));
        assert_eq!((view.selected(), press(&mut view, "cy")), (None, Step::Stay));
    }

    #[test]
    fn the_latest_event_is_selected_until_somebody_moves_up() {
        let mut view = view();
        press(&mut view, ">>>");
        assert_eq!((view.tab, view.selected()), (Tab::Events, Some(2)));
        let mut fresh = example();
        fresh.events.push(LogEvent { text: "new".to_owned(), ..fresh.events[0].clone() });
        view.take(News::State(Ok(Box::new(fresh.clone()))));
        assert_eq!(view.selected(), Some(3));
        press(&mut view, "^");
        fresh.events.remove(0);
        view.take(News::State(Ok(Box::new(fresh))));
        assert_eq!(view.selected(), Some(1));
        press(&mut view, "v");
        assert_eq!(view.cursors[Tab::Events as usize].subject, None);
    }

    #[test]
    fn the_list_of_problems_goes_with_the_last_one() {
        let mut view = view();
        press(&mut view, "<");
        assert_eq!(view.tab, Tab::Problems);
        let mut fresh = example();
        fresh.status.problems.clear();
        view.take(News::State(Ok(Box::new(fresh))));
        assert_eq!((view.tab, view.tabs().count()), (Tab::OpenDoors, 5));
    }

    #[test]
    fn what_became_of_a_request_is_told_until_the_next_key() {
        let mut view = view();
        view.take(News::Answer(Err("ssh is not open".to_owned())));
        view.take(News::State(Ok(Box::new(example()))));
        assert_eq!(view.answer, Some(Err("ssh is not open".to_owned())));
        press(&mut view, "v");
        assert_eq!(view.answer, None);
    }
}
