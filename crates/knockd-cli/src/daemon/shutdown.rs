//! The end of the daemon: what becomes of open doors and of commands that are still running.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use knockd_core::config::OnExit;
use signal_hook::consts::SIGHUP;

use super::dispatcher::Dispatcher;
use super::engine::Engine;
use super::pid_file::PidFile;
use super::service_manager;
use crate::control::socket::Control;
use crate::log::Line;
use crate::system::text::count;

/// How long start commands may take at shutdown and, if they took longer, how long the stop commands after them may.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

impl Engine {
    /// Deals with open doors, waits for the disk and ends.
    pub(super) fn shut_down(mut self, signals: &Receiver<i32>) {
        // From now on, clients learn that knockd is shutting down.
        drop(std::mem::replace(&mut self.control, Control::closed()));
        service_manager::stopping();
        // The next daemon may start now: this one only closes doors.
        self.dispatcher.listeners.close();
        self.pid_file.iter().for_each(PidFile::release);
        self.log(&Line::waiting_for_children());
        self.dispatcher.executor.refuse_waiting();
        self.end_refused();
        let mut keeps = self.setup.config.options.on_exit == OnExit::Keep;
        if keeps {
            self.wait_for_commands(false, signals);
            // What the firewall lets in, the kernel remembers.
            let is_stored = |lease: knockd_core::LeaseView<'_>| lease.key.admitted().is_none();
            keeps =
                !self.gate.leases().any(is_stored) || self.dispatcher.executor.has_saved_all(SHUTDOWN_LIMIT);
        }
        if !keeps {
            self.apply(knockd_core::Gate::close_all);
            self.wait_for_commands(true, signals);
        }
        if self.gate.lease_count() > 0 {
            self.log(&if keeps {
                let left = count(self.gate.lease_count(), "open door");
                Line::notice(format!("leaving {left} for the next start"))
            } else {
                let left = count(self.gate.lease_count(), "door");
                Line::warning(format!("{left} not closed yet: stop commands are still running"))
            });
        }
        let Dispatcher { executor, log, .. } = self.dispatcher;
        executor.finish();
        log.finish(&Line::shutting_down());
    }

    /// Waits until no start command runs and, if they are being closed, no door is open.
    ///
    /// This takes at most [`SHUTDOWN_LIMIT`]; start commands that are still running then are terminated, and there is
    /// as much time again. Each further signal cuts one of the two short.
    fn wait_for_commands(&mut self, closes: bool, signals: &Receiver<i32>) {
        let mut end = Instant::now() + SHUTDOWN_LIMIT;
        let mut has_ended_starts = false;
        while self.dispatcher.executor.is_starting() || closes && self.gate.lease_count() > 0 {
            select! {
                recv(self.dispatcher.executor.reports) -> report => if let Ok(report) = report {
                    self.handle_report(&report);
                },
                // Shells of start commands wait for the disk.
                recv(self.dispatcher.executor.progress) -> progress => if let Ok(progress) = progress {
                    self.handle_progress(progress);
                },
                recv(self.firewall_reports) -> report => if let Ok(report) = report {
                    self.handle_firewall(&report);
                },
                recv(signals) -> signal => if !matches!(signal, Ok(SIGHUP)) { end = Instant::now() },
                default(end.saturating_duration_since(Instant::now())) => {}
            }
            if Instant::now() < end {
                continue;
            }
            if has_ended_starts || !self.dispatcher.executor.is_starting() {
                return;
            }
            let running = count(self.dispatcher.executor.end_start_commands(), "start command");
            self.log(&Line::warning(format!("terminating {running}: knockd is stopping")));
            has_ended_starts = true;
            end = Instant::now() + SHUTDOWN_LIMIT;
        }
    }
}
