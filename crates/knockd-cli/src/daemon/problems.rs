//! What `knockd status` leads with: everything that a person has to look at, in one list.

use jiff::Timestamp;
use knockd_core::{LeaseRecord, UnixTime};

use super::engine::Engine;
use crate::control::{Problem, ProblemKind};
use crate::leases::left_open::LeftOpen;
use crate::system::text::{count, quoted};
use crate::system::time_zone;

impl Engine {
    /// Returns the problems, the worst first.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let executor = &self.dispatcher.executor;
        let left_open = executor.left_open();
        let mut problems: Vec<_> =
            self.configuration_problem().into_iter().chain(self.guard_problem()).collect();
        problems.extend(left_open.iter().map(Problem::from));
        if left_open.more() > 0 {
            problems.push(Problem {
                text: format!("{} more may still be open", count(left_open.more(), "door")),
                details: vec![format!("listed after the next start; see {}", self.setup.state_dir.display())],
                kind: ProblemKind::MoreLeftOpen { count: left_open.more() },
            });
        }
        let plain = |text: &str, kind| Problem { text: text.to_owned(), details: Vec::new(), kind };
        problems.extend(executor.state_problem().map(|text| plain(text, ProblemKind::State)));
        let capture = self.dispatcher.listeners.problem(self.clock.now());
        problems.extend(capture.map(|text| plain(text, ProblemKind::Capture)));
        problems
    }
}

impl From<&LeftOpen> for Problem {
    fn from(left_open: &LeftOpen) -> Self {
        match left_open {
            LeftOpen::GivenUp { record, reason } => given_up(record, reason),
            LeftOpen::Unreadable(path) => Self {
                text: format!("a door may still be open: {} cannot be read", path.display()),
                details: vec![
                    "look at the file, close it by hand, then run: knockd dismiss --all".to_owned(),
                ],
                kind: ProblemKind::Unreadable { path: path.display().to_string() },
            },
        }
    }
}

fn given_up(record: &LeaseRecord, reason: &str) -> Problem {
    let (door, source) = (&record.key.door, record.key.source);
    let stop = record.key.access.stop_command();
    let since = timestamp(record.until);
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    // As in the log file, so people find the line there.
    let local = since.to_zoned(time_zone::local()).strftime("%Y-%m-%d %H:%M").to_string();
    let failed = reason.map(|reason| format!("stop command failed: {reason}"));
    let command = stop.map(|stop| format!("stop command: {stop}"));
    let by_hand = format!("close it by hand, then run: knockd dismiss {} {source}", quoted(door));
    Problem {
        text: format!("{door} may still be open for {source}, since {local}"),
        details: failed.into_iter().chain(command).chain([by_hand]).collect(),
        kind: ProblemKind::LeftOpen {
            door: door.to_string(),
            source,
            since: since.to_string(),
            reason: reason.map(str::to_owned),
            command: stop.map(ToString::to_string).unwrap_or_default(),
        },
    }
}

/// Whole seconds are enough. What a calendar cannot show is the epoch: only a damaged record has such a time.
fn timestamp(time: UnixTime) -> Timestamp {
    let seconds = i64::try_from(time.since_epoch().as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use knockd_core::{Access, DoorName, LeaseId, LeaseKey, Milliseconds, StartState};

    use super::*;

    fn record(until: UnixTime) -> LeaseRecord {
        let access =
            Access::Commands { start: "open".parse().unwrap(), stop: "close 192.0.2.7".parse().unwrap() };
        let key =
            LeaseKey { door: DoorName::new("the door").unwrap(), source: [192, 0, 2, 7].into(), access };
        LeaseRecord {
            id: LeaseId(1),
            key: key.into(),
            cmd_timeout: Milliseconds::default(),
            until,
            failed: true,
            start: StartState::Ended,
            boot: None,
        }
    }

    #[test]
    fn a_door_that_was_left_open_is_told_with_the_reason_and_the_way_to_close_it() {
        let record = record(UnixTime::new(Duration::from_millis(1_795_777_200_123)));
        let problem = Problem::from(&LeftOpen::GivenUp { record, reason: "status 2: why".to_owned() });
        assert!(
            problem.text.starts_with("the door may still be open for 192.0.2.7, since 2026-11-2"),
            "{problem:?}"
        );
        assert_eq!(
            problem.details,
            [
                "stop command failed: status 2: why",
                "stop command: close 192.0.2.7",
                "close it by hand, then run: knockd dismiss 'the door' 192.0.2.7"
            ]
        );
        let ProblemKind::LeftOpen { since, .. } = problem.kind else { panic!("{problem:?}") };
        assert_eq!(since, "2026-11-27T11:00:00Z");
    }

    #[test]
    fn what_an_earlier_version_left_without_a_reason_or_damaged_is_told_too() {
        let record = record(UnixTime::new(Duration::MAX));
        let problem = Problem::from(&LeftOpen::GivenUp { record, reason: String::new() });
        assert_eq!(problem.details.len(), 2, "{problem:?}");
        let problem = Problem::from(&LeftOpen::Unreadable(PathBuf::from("/x/7.damaged")));
        assert_eq!(problem.text, "a door may still be open: /x/7.damaged cannot be read");
    }
}
