//! The latest lines of the log, for those who look at the running daemon.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::Line;

/// How many lines of a kind are kept.
const KEPT: usize = 100;

/// How many characters of a line are kept.
const LENGTH: usize = 300;

/// The events that are kept. Warnings and notices of any other kind may quote the configuration, which has the
/// sequences.
const EVENTS: [&str; 20] = [
    "start",
    "stop",
    "stage",
    "open",
    "timeout",
    "spoiled",
    "scanner",
    "run",
    "failed",
    "missing",
    "said",
    "long",
    "limit",
    "close",
    "full",
    "given_up",
    "reload",
    "log_closed",
    "log_opened",
    "request",
];

/// Lines about attempts, which any packet can cause, do not displace others.
#[derive(Default, Debug)]
pub(super) struct Recent {
    attempts: VecDeque<RecentLine>,
    others: VecDeque<RecentLine>,
    last: u64,
}

/// A line that was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RecentLine {
    /// Lines are numbered, because times may go back.
    number: u64,
    pub(crate) time: Timestamp,
    pub(crate) event: &'static str,
    pub(crate) text: String,
}

impl Recent {
    pub(super) fn add_attempt(&mut self, line: &Line) {
        let line = self.number(line);
        add(&mut self.attempts, line);
    }

    pub(super) fn add(&mut self, line: &Line) {
        let line = self.number(line);
        add(&mut self.others, line);
    }

    /// Returns the lines, oldest first.
    pub(super) fn lines(&self) -> Vec<RecentLine> {
        let mut lines: Vec<_> = self.attempts.iter().chain(&self.others).cloned().collect();
        lines.sort_unstable_by_key(|line| line.number);
        lines
    }

    fn number(&mut self, line: &Line) -> Option<RecentLine> {
        let event = EVENTS.into_iter().find(|event| *event == line.facts.event)?;
        let text = line.text.as_ref()?;
        let text = line.knocker().map_or_else(|| text.clone(), |source| format!("{source}: {text}"));
        let text = text.chars().take(LENGTH).collect();
        self.last += 1;
        Some(RecentLine { number: self.last, time: Timestamp::now(), event, text })
    }
}

fn add(lines: &mut VecDeque<RecentLine>, line: Option<RecentLine>) {
    let Some(line) = line else { return };
    if lines.len() == KEPT {
        lines.pop_front();
    }
    lines.push_back(line);
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use knockd_core::EventKind;

    use super::*;

    fn source() -> IpAddr {
        "192.0.2.7".parse().unwrap()
    }

    fn stage(stage: u8) -> Line {
        Line::event(source(), "ssh", EventKind::Stage(stage)).unwrap()
    }

    fn texts(recent: &Recent) -> Vec<String> {
        recent.lines().into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn the_latest_lines_are_kept_in_order_and_stages_displace_no_others() {
        let mut recent = Recent::default();
        recent.add(&Line::opened(source(), "ssh"));
        for number in 1..=250 {
            recent.add_attempt(&stage(number));
        }
        recent.add(&Line::command_timeout(source(), "ssh"));
        let texts = texts(&recent);
        assert_eq!(texts.len(), 102);
        assert_eq!(texts[..2], ["192.0.2.7: ssh: OPEN SESAME", "192.0.2.7: ssh: Stage 151"]);
        assert_eq!(texts[100..], ["192.0.2.7: ssh: Stage 250", "192.0.2.7: ssh: command timeout"]);
    }

    #[test]
    fn what_may_quote_the_configuration_is_not_kept_and_no_line_is_too_long() {
        let mut recent = Recent::default();
        recent.add(&Line::warning("knockd.conf:2: sequence = 7101,x".to_owned()));
        recent.add(&Line::notice("sequence = 7101,x".to_owned()));
        recent.add(&Line::waiting_for_children());
        assert_eq!(texts(&recent), [""; 0]);
        recent.add(&Line::opened(source(), &"\u{e4}".repeat(1000)));
        assert_eq!(texts(&recent)[0].chars().count(), 300);
    }
}
