//! The guard of the services of doors, as a person wants it, and what stands in for an unusable configuration.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use knockd_core::{Config, config};
use nix::errno::Errno;

use super::dispatcher::Dispatcher;
use super::engine::Engine;
use super::service_manager;
use crate::control::socket::{Answer, Who};
use crate::control::{Problem, ProblemKind, Reply, Request};
use crate::firewall::{self, Admitted, Firewall, Order, Standing};
use crate::log::Line;
use crate::system::helper::Rights;
use crate::system::last_good;
use crate::system::text::span;

/// The guard, as far as the loop knows.
#[derive(Default)]
pub(super) struct Guarding {
    /// How it stands; `None` without a firewall.
    pub(super) standing: Option<Standing>,
    /// Where to reply when the firewall has carried out an order, the first one first.
    waiting: VecDeque<Sender<Answer>>,
}

impl Engine {
    /// Guards the services of the doors of this configuration, with the socket of an earlier run if that has left one.
    ///
    /// # Errors
    /// When nothing guarded them so far, and the kernel refuses.
    pub(super) fn guard(&mut self, config: &Arc<Config>, kept_socket: Option<OwnedFd>) -> anyhow::Result<()> {
        let Self { dispatcher: Dispatcher { executor, log, .. }, gate, guarding, .. } = self;
        if let Some(firewall) = executor.firewall() {
            firewall.guard(Arc::clone(config));
        } else if config.options.firewall == config::Firewall::Nftables {
            let (mut firewall, admitted) = Firewall::start(config, kept_socket)?;
            if let Some(Err(error)) = firewall.socket.take().map(|socket| service_manager::keep(&socket)) {
                log.write(&Line::warning(format!("the service manager cannot keep the guard: {error}")));
            }
            guarding.standing = Some(firewall.standing);
            self.firewall_reports = firewall.reports.clone();
            if let Some(warning) = firewall.hold.warning() {
                log.write(&Line::warning(warning.to_owned()));
            }
            executor.guard(firewall);
            for Admitted { door, source, left } in admitted {
                gate.restore_admission(&door, source, left, self.clock.both());
            }
        } else if kept_socket.is_some() {
            self.abandon_guard(kept_socket);
        }
        Ok(())
    }

    /// Has the firewall guard, or guard no longer, and replies when it has done so.
    ///
    /// # Errors
    /// When this user may not do that, or nothing is to be guarded.
    pub(super) fn order(
        &mut self,
        request: &Request,
        who: &Who,
        reply: &Sender<Answer>,
    ) -> Result<(), String> {
        // Whoever may open a door may not open it to everybody.
        let own = nix::unistd::geteuid().as_raw();
        if !who.user.is_some_and(|user| user == 0 || user == own) {
            return Err("only root may change the guard".to_owned());
        }
        self.log(&Line::request(who.user, &who.text, &request.to_string()));
        let order = match request {
            Request::Guard { seconds: Some(seconds) } => {
                // What is tried is what is in the file.
                self.reload()?;
                Order::Try(Duration::from_secs((*seconds).into()))
            }
            Request::Guard { seconds: None } => Order::Keep,
            _ => Order::Remove,
        };
        let config = Arc::clone(&self.setup.config);
        if order != Order::Remove && config.options.firewall == config::Firewall::None {
            let path = self.setup.config_path.display();
            return Err(format!(
                "knockd runs without `Firewall = nftables`; see {path}, then run: knockd reload"
            ));
        }
        let Some(firewall) = self.dispatcher.executor.firewall() else {
            return Err("knockd guards nothing".to_owned());
        };
        firewall.obey(order, config);
        self.guarding.waiting.push_back(reply.clone());
        Ok(())
    }

    /// Takes note of what has come of an order, and replies.
    pub(super) fn handle_obeyed(&mut self, result: &Result<Standing, Errno>) {
        let answer = match result {
            Ok(standing) => {
                self.guarding.standing = Some(*standing);
                let text = match standing {
                    Standing::OnTrial(_) => "the guard is on trial",
                    Standing::Firm => "the guard stands",
                    Standing::Lifted | Standing::Gone => "the guard is removed",
                };
                let line = match standing {
                    Standing::Firm | Standing::OnTrial(_) => Line::notice,
                    Standing::Lifted | Standing::Gone => Line::warning,
                };
                self.log(&line(text.to_owned()));
                Reply::done(text)
            }
            Err(error) => {
                let text = format!("cannot change the guard: {}", firewall::reason(*error));
                self.log(&Line::warning(text.clone()));
                Reply::refused(text)
            }
        };
        if let Some(reply) = self.guarding.waiting.pop_front() {
            let _ = reply.try_send(Answer::Reply(answer));
        }
    }

    /// Returns what a person has to know about the guard.
    pub(super) fn guard_problem(&self) -> Option<Problem> {
        let now = Instant::now();
        let (text, hint) = match self.guarding.standing? {
            // The kernel has lifted it, and the firewall is about to say so.
            Standing::OnTrial(until) if now < until => {
                let left =
                    span(until.saturating_duration_since(now).as_millis().div_ceil(1000).try_into().ok()?);
                (format!("the guard is on trial, and lifted in {left}"), "to keep it, run: knockd guard")
            }
            Standing::OnTrial(_) | Standing::Lifted => (
                "the ports of doors are open for everybody: nobody has confirmed the guard in time"
                    .to_owned(),
                "to close them, run: knockd guard",
            ),
            Standing::Gone => (
                "the ports of doors are open for everybody: the guard is removed".to_owned(),
                "to close them, run: knockd guard",
            ),
            Standing::Firm => return None,
        };
        Some(Problem { text, details: vec![hint.to_owned()], kind: ProblemKind::Guard })
    }

    /// Returns what a person has to know about the configuration.
    pub(super) fn configuration_problem(&self) -> Option<Problem> {
        let reason = self.setup.unusable.as_ref()?;
        let path = self.setup.config_path.display().to_string();
        Some(Problem {
            text: format!("{path} is unusable; the last good configuration is in force"),
            details: reason
                .lines()
                .map(str::to_owned)
                .chain(["correct it, then run: knockd reload".to_owned()])
                .collect(),
            kind: ProblemKind::Configuration { path },
        })
    }

    /// Removes the guard that an earlier run has left, which would keep ports shut that are no longer those of a door.
    pub(super) fn abandon_guard(&self, kept_socket: Option<OwnedFd>) {
        match firewall::abandon(kept_socket) {
            Ok(false) => {}
            Ok(true) => self.log(&Line::notice("removed the guard of an earlier configuration".to_owned())),
            Err(error) => {
                let text = format!("cannot remove the guard of an earlier configuration: {error}");
                self.log(&Line::warning(text));
            }
        }
    }

    /// Logs that the last good configuration is in force, if it is; otherwise keeps this one for the next start.
    pub(super) fn keep_configuration(&self) {
        if let Some(problem) = self.configuration_problem() {
            for line in [problem.text].into_iter().chain(problem.details) {
                self.log(&Line::warning(line));
            }
            return;
        }
        let (config, path, state_dir) = (&self.setup.config, &self.setup.config_path, &self.setup.state_dir);
        let result = match &self.rights {
            Rights::Own => keep_or_forget(config, path, state_dir),
            Rights::Helper(helper) => helper.keep_config(),
        };
        match result {
            // With a firewall, that has made its table empty.
            Ok(had_guard) if had_guard && self.dispatcher.executor.firewall().is_none() => {
                self.abandon_guard(None);
            }
            Ok(_) => {}
            Err(error) => {
                let text = format!("cannot keep this configuration in {}: {error}", state_dir.display());
                self.log(&Line::warning(text));
            }
        }
    }
}

/// Keeps a configuration with a guard for the next start. Without one, nothing is shut when knockd cannot start, so there
/// is nothing to keep; says whether there was.
pub(super) fn keep_or_forget(config: &Config, path: &Path, state_dir: &Path) -> io::Result<bool> {
    match config.options.firewall {
        config::Firewall::Nftables => last_good::keep(config, path, state_dir).map(|()| false),
        config::Firewall::None => last_good::forget(path, state_dir),
    }
}
