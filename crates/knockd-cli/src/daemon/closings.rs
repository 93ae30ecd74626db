//! Requests to close doors: their replies wait until the stop commands have ended, and say whether they worked.

use std::collections::BTreeMap;
use std::time::Duration;

use crossbeam_channel::Sender;
use knockd_core::{LeaseId, LeaseKey, LeaseState, Timestamp};

use crate::control::Reply;
use crate::control::socket::Answer;
use crate::system::text::{count, span};

/// How long a client waits. A command that takes longer may take for ever.
const LIMIT: Duration = Duration::from_secs(10);

/// How many doors a reply names.
const NAMED: usize = 20;

/// Every request that waits. A client makes one request at a time, so there are no more than clients.
#[derive(Default)]
pub(super) struct Closings(Vec<Closing>);

/// A request to close doors.
struct Closing {
    reply: Sender<Answer>,
    /// The leases whose stop command has not ended, with their doors and sources.
    left: BTreeMap<LeaseId, String>,
    closed: usize,
    /// What became of the others.
    failed: Vec<String>,
    due: Timestamp,
}

impl Closings {
    /// Replies once all these leases have closed, or have failed to.
    pub(super) fn add<'a>(
        &mut self,
        leases: impl IntoIterator<Item = (LeaseId, &'a LeaseKey)>,
        reply: Sender<Answer>,
        now: Timestamp,
    ) {
        let left = leases
            .into_iter()
            .map(|(id, LeaseKey { door, source, .. })| (id, format!("{door} for {source}")));
        let (left, failed, due) = (left.collect(), Vec::new(), now.after(LIMIT));
        self.0.push(Closing { reply, left, closed: 0, failed, due });
        self.reply_to(|closing| closing.left.is_empty());
    }

    /// Says whether no request waits.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Handles the end of what was done for a lease, or why that failed; `state` is what has become of the lease, `None` if it has
    /// ended.
    pub(super) fn handle_exit(
        &mut self,
        id: LeaseId,
        failure: Option<&str>,
        state: Option<LeaseState>,
        now: Timestamp,
    ) {
        // When the start command has ended, the stop command follows.
        if state == Some(LeaseState::Closing) {
            return;
        }
        for closing in &mut self.0 {
            let Some(name) = closing.left.remove(&id) else { continue };
            match outcome(failure, state, now) {
                None => closing.closed += 1,
                Some(failure) => closing.failed.push(format!("{name}: {failure}")),
            }
        }
        self.reply_to(|closing| closing.left.is_empty());
    }

    /// Tells clients that have waited long enough what has become of their requests so far.
    pub(super) fn handle_timeout(&mut self, now: Timestamp) {
        self.reply_to(|closing| closing.due <= now);
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.0.iter().map(|closing| closing.due).min()
    }

    fn reply_to(&mut self, which: impl Fn(&Closing) -> bool) {
        self.0.retain(|closing| {
            let is_meant = which(closing);
            if is_meant {
                // The client may be gone.
                let _ = closing.reply.try_send(Answer::Reply(closing.result()));
            }
            !is_meant
        });
    }
}

impl Closing {
    fn result(&self) -> Reply {
        let closed = format!("closed {}", count(self.closed, "open door"));
        let running = self.left.values().map(|name| format!("{name}: its command is still running"));
        let mut lines: Vec<_> = self.failed.iter().cloned().chain(running).collect();
        if lines.is_empty() {
            return Reply::done(closed);
        }
        let more = lines.len().saturating_sub(NAMED);
        lines.truncate(NAMED);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        if self.closed > 0 {
            lines.insert(0, format!("{closed}, but not all"));
        }
        Reply::refused(lines.join("\n"))
    }
}

/// Says why a door is not closed, if it is not, after something was done for it.
fn outcome(failure: Option<&str>, state: Option<LeaseState>, now: Timestamp) -> Option<String> {
    match (state, failure) {
        (None | Some(LeaseState::Starting), None) => None,
        (None, Some(failure)) => Some(format!("{failure}; the door may still be open")),
        (Some(LeaseState::Retrying { again, .. }), Some(failure)) => {
            let left = again.since(now).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX);
            Some(format!("{failure}; retrying in {}", span(left)))
        }
        _ => Some("opened again meanwhile".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;
    use knockd_core::Access;

    use super::*;

    fn key() -> LeaseKey {
        let [start, stop] = ["open", "close"].map(|command| command.parse().unwrap());
        let (door, source) = ("ssh".parse().unwrap(), "192.0.2.7".parse().unwrap());
        LeaseKey { door, source, access: Access::Commands { start, stop } }
    }

    const FAILED: Option<&str> = Some("command returned non-zero status code (3): why");

    const START: Timestamp = Timestamp::ZERO;

    fn said(reply: &crossbeam_channel::Receiver<Answer>) -> Option<Result<String, String>> {
        match reply.try_recv().ok()? {
            Answer::Reply(Reply::Done { text }) => Some(Ok(text)),
            Answer::Reply(Reply::Refused { reason }) => Some(Err(reason)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reply_waits_for_every_stop_command() {
        let mut closings = Closings::default();
        let (sender, reply) = bounded(1);
        let key = key();
        closings.add([(LeaseId(1), &key), (LeaseId(2), &key)], sender, START);
        closings.handle_exit(LeaseId(1), None, Some(LeaseState::Closing), START);
        closings.handle_exit(LeaseId(2), None, None, START);
        closings.handle_exit(LeaseId(3), FAILED, None, START);
        assert_eq!((said(&reply), closings.poll_timeout()), (None, Some(START.after(LIMIT))));
        closings.handle_exit(LeaseId(1), None, None, START);
        assert_eq!(said(&reply), Some(Ok("closed 2 open doors".to_owned())));
        assert_eq!(closings.poll_timeout(), None);
        let (sender, reply) = bounded(1);
        closings.add([], sender, START);
        assert_eq!(said(&reply), Some(Ok("closed 0 open doors".to_owned())));
    }

    #[test]
    fn a_stop_command_that_fails_or_does_not_end_is_told() {
        let mut closings = Closings::default();
        let (sender, reply) = bounded(1);
        let key = key();
        closings.add((1..=5).map(|id| (LeaseId(id), &key)), sender, START);
        let again = START.after(Duration::from_secs(2));
        let retrying = LeaseState::Retrying { again, failures: 1 };
        closings.handle_exit(LeaseId(1), FAILED, Some(retrying), START);
        closings.handle_exit(LeaseId(2), FAILED, None, START);
        closings.handle_exit(LeaseId(3), None, Some(LeaseState::Starting), START);
        closings.handle_exit(LeaseId(4), None, Some(LeaseState::Open { until: again, failed: false }), START);
        closings.handle_timeout(START.after(LIMIT / 2));
        assert_eq!(said(&reply), None);
        closings.handle_timeout(START.after(LIMIT));
        let failed = "ssh for 192.0.2.7: command returned non-zero status code (3): why";
        let lines = [
            "closed 1 open door, but not all".to_owned(),
            format!("{failed}; retrying in 2 s"),
            format!("{failed}; the door may still be open"),
            "ssh for 192.0.2.7: opened again meanwhile".to_owned(),
            "ssh for 192.0.2.7: its command is still running".to_owned(),
        ];
        assert_eq!(said(&reply), Some(Err(lines.join("\n"))));
    }

    #[test]
    fn a_reply_names_no_more_doors_than_a_person_can_read() {
        let mut closings = Closings::default();
        let (sender, reply) = bounded(1);
        let key = key();
        closings.add((0..100).map(|id| (LeaseId(id), &key)), sender, START);
        closings.handle_timeout(START.after(LIMIT));
        let text = said(&reply).unwrap().unwrap_err();
        assert_eq!((text.lines().count(), text.lines().last()), (NAMED + 1, Some("and 80 more")));
    }
}
