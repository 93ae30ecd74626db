//! What has come of what the engine has ordered: of commands, of the firewall, and of the disk.

use knockd_core::{Gate, LeaseId};

use super::engine::Engine;
use crate::firewall;
use crate::leases::commands::Report;
use crate::leases::one_time_file::StrikeError;
use crate::leases::writer::Progress;
use crate::log::Line;
use crate::log::rate_limiter::Topic;

impl Engine {
    pub(super) fn handle_report(&mut self, report: &Report) {
        if let Some((id, succeeded)) = self.dispatcher.handle_report(report) {
            self.apply(|gate, now| gate.handle_exit(id, succeeded, now));
            if let Report::Ended(ended) = report {
                self.reply_to_closings(id, || ended.problem());
            }
        }
    }

    /// Tells clients who wait for this lease to close what has become of it.
    fn reply_to_closings(&mut self, id: LeaseId, failure: impl FnOnce() -> Option<String>) {
        if !self.closings.is_empty() {
            let state = self.gate.lease(id).map(|lease| lease.state);
            self.closings.handle_exit(id, failure().as_deref(), state, self.clock.now());
        }
    }

    pub(super) fn handle_firewall(&mut self, report: &firewall::Report) {
        match report {
            firewall::Report::Set(changes) => {
                for firewall::Change { admission, time, refused } in changes {
                    let reason = refused.map(firewall::reason);
                    self.log(&Line::admission(admission, *time, reason));
                    self.apply(|gate, now| gate.handle_exit(admission.id, refused.is_none(), now));
                    self.reply_to_closings(admission.id, || reason.map(str::to_owned));
                }
            }
            firewall::Report::Prolonged(id) => self.apply(|gate, now| gate.handle_exit(*id, true, now)),
            firewall::Report::Seen(admission, Ok(sight)) => {
                self.apply(|gate, now| gate.handle_sight(admission.id, *sight, now));
            }
            firewall::Report::Seen(admission, Err(error)) => {
                self.log(&Line::not_seen(admission, firewall::reason(*error)));
                self.apply(|gate, now| gate.handle_exit(admission.id, false, now));
            }
            firewall::Report::Cut(_, Ok(0)) | firewall::Report::Guarded(None) => {}
            firewall::Report::Cut(admission, ended) => {
                self.log(&Line::cut(admission, ended.map_err(firewall::reason)));
            }
            firewall::Report::Lost(refused) => {
                let text = "another program has changed the guard";
                let refused = refused.map(firewall::reason);
                let then = refused
                    .map_or("it stands again".to_owned(), |reason| format!("cannot restore it: {reason}"));
                self.log(&Line::warning(format!("{text}; {then}")));
                self.apply(Gate::admit_again);
            }
            firewall::Report::Obeyed(result) => self.handle_obeyed(result),
            firewall::Report::TrialEnded(standing, newcomer) => {
                self.guarding.standing = Some(*standing);
                let text = match newcomer {
                    Some(source) => format!("the guard stands: {source} has got in"),
                    None => "the guard is lifted: nobody has got in or confirmed it".to_owned(),
                };
                self.log(&Line::warning(text));
            }
            firewall::Report::Guarded(Some(error)) => {
                let text = format!(
                    "cannot guard the services of doors as now configured: {}",
                    firewall::reason(*error)
                );
                self.log(&Line::warning(text));
            }
        }
    }

    pub(super) fn handle_progress(&mut self, progress: Progress) {
        if let Some((id, result)) = self.dispatcher.handle_progress(progress) {
            let result = result.map_err(|error| self.log_not_struck_out(error));
            self.apply(|gate, now| gate.handle_burnt(id, result, now));
        }
    }

    /// Logs why a one-time sequence could not be struck out, and returns the current content of its file.
    fn log_not_struck_out(&self, error: StrikeError) -> Option<knockd_core::OneTime> {
        let StrikeError { path, error, content } = error;
        let outcome = if content.is_some() {
            "using the file as it is now"
        } else {
            "its doors are disabled until the next reload"
        };
        let text = format!("{}: cannot strike out the used sequence: {error}; {outcome}", path.display());
        self.log(&Line::warning(text).limited(Topic::Refusals));
        content
    }
}
