//! The configuration is read again while the daemon runs.

use std::path::Path;

use anyhow::anyhow;
use knockd_capture::interfaces;

use super::Engine;
use crate::control::metrics::Metrics;
use crate::daemon::service_manager;
use crate::daemon::setup::Setup;
use crate::daemon::startup::arm;
use crate::leases::store::LeaseStore;
use crate::log::{Destinations, Line};

impl Engine {
    /// Reads the configuration again. One that cannot be used changes nothing.
    ///
    /// # Errors
    /// When it cannot be used; the reason, without colours, is in the log already.
    pub(super) fn reload(&mut self) -> Result<(), String> {
        service_manager::reloading();
        self.log(&Line::rereading(&self.setup.config_path));
        let result = self.read_again().inspect_err(|reason| {
            for line in reason.lines().chain(["the old configuration stays in force"]) {
                self.log(&Line::warning(line.to_owned()));
            }
        });
        service_manager::ready(&self.summary());
        result
    }

    fn read_again(&mut self) -> Result<(), String> {
        let setup = Setup::load(&self.args, &self.directory, Some(&self.setup))
            .map_err(|error| plain(&format!("{:#}", anyhow!(error))))?;
        if setup.selection != self.setup.selection {
            let found = setup.selection.at_start(&interfaces(), setup.waits);
            found.map_err(|error| format!("{error:#}"))?;
        }
        for warning in &setup.warnings {
            self.log(&Line::warning(plain(warning)));
        }
        self.matcher.set_doors(&setup.doors, setup.options.max_attempts);
        arm(&mut self.matcher, &setup);
        let old = std::mem::replace(&mut self.setup, setup);
        if let Some(path) = &old.log_file {
            self.log(&Line::closing_log(path));
        }
        self.log.redirect(Destinations::open(&self.setup.log_settings(&self.args)));
        if let Some(path) = &self.setup.log_file {
            self.log(&Line::reopening_log(path));
        }
        self.remember_doors();
        self.move_control();
        self.move_metrics(old.metrics.as_deref());
        self.log_one_time_files();
        self.guard.scanners.set_limit(self.setup.options.scan_limit);
        self.ears.select(self.setup.selection.clone());
        self.refresh_filter();
        self.follow_interfaces();
        self.log_filter();
        Ok(())
    }

    /// Begins to remember open doors, if the new configuration wants that and the old one did not, or it could not be done.
    fn remember_doors(&mut self) {
        let wanted = self.setup.state_dir.clone();
        match self.doors.state() {
            Some(path) if path != wanted => {
                let text = format!(
                    "open doors are still remembered in {}; restart knockd to have them in {}",
                    path.display(),
                    wanted.display()
                );
                self.log(&Line::warning(text));
            }
            None if self.setup.needs_state() && self.doors.are_at_rest() => {
                self.doors.remember(LeaseStore::open(wanted, self.clock), &self.log);
            }
            None if self.setup.needs_state() => {
                let text = format!(
                    "open doors are still kept in memory only; reload when none is open, to have them in {}",
                    wanted.display()
                );
                self.log(&Line::warning(text));
            }
            _ => {}
        }
    }

    /// Serves the control socket that the new configuration names, unless it does so already.
    fn move_control(&mut self) {
        let path = self.setup.control_socket.as_deref();
        if path == self.control.path() {
            return;
        }
        match self.control.move_to(path) {
            Ok(None) => {}
            Ok(Some(notice)) => self.log(&Line::notice(notice)),
            Err(error) => self.log(&Line::no_control(path, &error)),
        }
    }

    /// Writes the counters to another file after a reload, if the configuration names another.
    fn move_metrics(&mut self, old: Option<&Path>) {
        let path = self.setup.metrics.clone();
        if path.as_deref() == old {
            return;
        }
        // First the old file goes.
        self.metrics = None;
        let asking = (self.control.asking(), self.ears.speaker());
        match path.map(|path| Metrics::start(path, asking)).transpose() {
            Ok(metrics) => self.metrics = metrics,
            Err(error) => self.log(&Line::warning(format!("{error:#}"))),
        }
    }
}

/// Drops the colours of a drawing.
fn plain(drawn: &str) -> String {
    anstream::adapter::strip_str(drawn).to_string()
}
