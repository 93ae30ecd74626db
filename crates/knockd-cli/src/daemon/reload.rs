//! Reading the configuration again while the daemon runs.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use knockd_capture::interfaces;

use super::engine::Engine;
use super::service_manager;
use super::setup::Setup;
use crate::control::metrics::Metrics;
use crate::leases::store::LeaseStore;
use crate::log::Line;
use crate::system::config_file::Style;
use crate::system::helper::Rights;

impl Engine {
    /// Reads the configuration again. An unusable one changes nothing.
    ///
    /// # Errors
    /// When it is unusable; the reason is already in the log.
    pub(super) fn reload(&mut self) -> Result<(), String> {
        service_manager::reloading();
        self.log(&Line::rereading(&self.setup.config_path));
        let result = self.read_again();
        if let Err(reason) = &result {
            // Whoever has moved the old file away does not want more lines in it, whatever the configuration is like.
            self.reopen_log();
            for line in reason.lines().chain(["keeping the old configuration"]) {
                self.log(&Line::warning(line.to_owned()));
            }
        }
        service_manager::ready(&self.summary());
        result
    }

    fn read_again(&mut self) -> Result<(), String> {
        let setup = Setup::load(&self.args, &self.directory, Some(&self.setup), &self.rights)
            .map_err(|error| format!("{:#}", anyhow!(error)))?;
        if let (Rights::Helper(_), Some(door)) = (&self.rights, setup.config.door_with_command()) {
            return Err(format!(
                "door `{}` has a command, and knockd has given up the right to run any; to run commands, restart knockd",
                door.name
            ));
        }
        if setup.selection != self.setup.selection {
            let found = setup.selection.at_start(&interfaces(), setup.waits);
            found.map_err(|error| format!("{error:#}"))?;
        }
        // Only from here on, nothing is refused.
        self.guard(&setup.config, None)
            .map_err(|error| format!("cannot guard the services of doors: {error:#}"))?;
        for warning in setup.warnings.lines(Style::Plain) {
            self.log(&Line::warning(warning));
        }
        let old = std::mem::replace(&mut self.setup, setup);
        if let Some(path) = &old.log_file {
            self.log(&Line::closing_log(path));
        }
        self.reopen_log();
        if let Some(path) = &self.setup.log_file {
            self.log(&Line::reopening_log(path));
        }
        let config = Arc::clone(&self.setup.config);
        self.dispatcher.set_config(Arc::clone(&config));
        let files = std::mem::take(&mut self.setup.one_time_files);
        self.apply(|gate, _| gate.set_config(config, files));
        self.ask_for_ports();
        self.remember_doors();
        self.move_control();
        self.move_metrics(old.metrics.as_deref());
        self.log_one_time_files();
        self.dispatcher.listeners.select(self.setup.selection.clone());
        self.follow_interfaces();
        self.log_filter();
        self.keep_configuration();
        Ok(())
    }

    /// Starts to store open doors, if the new configuration wants that and it has not been possible or necessary so
    /// far.
    fn remember_doors(&mut self) {
        let wanted = self.setup.state_dir.clone();
        match self.dispatcher.executor.state() {
            Some(path) if path != wanted => {
                let text = format!(
                    "open doors are still stored in {}; restart knockd to store them in {}",
                    path.display(),
                    wanted.display()
                );
                self.log(&Line::warning(text));
            }
            None if self.setup.needs_state(&self.rights) && self.is_at_rest() => {
                let store = LeaseStore::open(wanted, File::try_lock);
                let restored = self.dispatcher.executor.remember(store, &self.dispatcher.log);
                self.gate.restore(restored.records, restored.last_id, self.clock.both());
            }
            None if self.setup.needs_state(&self.rights) => {
                let text = format!(
                    "open doors are still kept in memory only; reload while no door is open to store them in {}",
                    wanted.display()
                );
                self.log(&Line::warning(text));
            }
            _ => {}
        }
    }

    /// Says whether no door is open and no command runs, so the doors of an earlier run can be restored.
    fn is_at_rest(&self) -> bool {
        self.gate.lease_count() == 0 && self.dispatcher.executor.is_at_rest()
    }

    /// Serves the control socket of the new configuration, unless it does so already.
    fn move_control(&mut self) {
        let path = self.setup.control_socket.as_deref();
        if path == self.control.path() {
            return;
        }
        match self.control.move_to(path, &self.rights) {
            Ok(None) => {}
            Ok(Some(notice)) => self.log(&Line::notice(notice)),
            Err(error) => self.log(&Line::no_control(path, &error)),
        }
    }

    /// Writes the metrics to another file, if the new configuration names one.
    fn move_metrics(&mut self, old: Option<&Path>) {
        let path = self.setup.metrics.clone();
        if path.as_deref() == old {
            return;
        }
        // Remove the old file first.
        self.metrics = None;
        let sender = (self.control.sender(), self.line_sender.clone());
        match path.map(|path| Metrics::start(path, sender, self.rights.clone())).transpose() {
            Ok(metrics) => self.metrics = metrics,
            Err(error) => self.log(&Line::warning(format!("{error:#}"))),
        }
    }
}
