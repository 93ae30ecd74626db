//! The combined settings of the command line and the files it names, fully checked before anything changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use knockd_capture::interfaces;
use knockd_core::config::{Code, Diagnostic, Parsed, Severity};
use knockd_core::{Config, DoorId, OneTimeFiles};

use crate::args::Args;
use crate::leases::one_time_file;
use crate::log;
use crate::system::config_file::{ConfigFile, ConfigFileError, Style, with_access};
use crate::system::helper::{Files, Named, ReadFiles, Rights};
use crate::system::last_good;
use crate::system::selection::Selection;

/// A usable configuration in which everything that depends on the command line is decided.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) config: Arc<Config>,
    /// Doubtful points.
    pub(crate) warnings: Warnings,
    /// The contents of the one-time files; the gate takes them.
    pub(crate) one_time_files: OneTimeFiles,
    pub(crate) config_path: PathBuf,
    /// Why the configuration there is unusable: this one is its last good copy.
    pub(crate) unusable: Option<String>,
    pub(crate) selection: Selection,
    /// Whether the interfaces were chosen by default.
    pub(crate) is_default_selection: bool,
    /// Whether to wait for missing interfaces.
    pub(crate) waits: bool,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) pid_file: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) control_socket: Option<PathBuf>,
    pub(crate) metrics: Option<PathBuf>,
}

/// The files of a configuration that are used while the daemon runs, without the one-time files.
struct Paths {
    log_file: Option<PathBuf>,
    pid_file: PathBuf,
    control_socket: Option<PathBuf>,
    metrics: Option<PathBuf>,
}

impl Paths {
    fn new(config: &Config, args: &Args, directory: &Path) -> Self {
        let options = &config.options;
        let in_directory = |path: &Path| directory.join(path);
        let log_file = options.log_file.as_deref().map(Path::new).or(args.logfile.as_deref());
        let pid_file = options.pid_file.as_deref().map(Path::new).or(args.pidfile.as_deref());
        Self {
            log_file: log_file.map(in_directory),
            pid_file: in_directory(pid_file.unwrap_or(Path::new("/var/run/knockd.pid"))),
            control_socket: options.control_socket.as_deref().map(Path::new).map(in_directory),
            metrics: options.metrics.as_deref().map(Path::new).map(in_directory),
        }
    }
}

/// Returns all files that the helper has to open for an engine with this configuration, each with its purpose.
pub(super) fn files(config: &Config, args: &Args, directory: &Path) -> Files {
    let Paths { log_file, pid_file, control_socket, metrics } = Paths::new(config, args, directory);
    let one_time = config.doors.iter().filter_map(|door| door.key.one_time_file());
    let mut files: Files = one_time.map(|path| Named::OneTime(directory.join(&**path))).collect();
    files.insert(Named::PidFile(pid_file));
    files.extend(log_file.map(Named::Log));
    files.extend(control_socket.map(Named::Control));
    files.extend(metrics.map(Named::Metrics));
    files
}

/// Doubtful points of a configuration.
#[derive(Debug)]
pub(crate) struct Warnings {
    file: ConfigFile,
    findings: Vec<Diagnostic>,
    /// Warnings that are not about a place in the file.
    texts: Vec<String>,
}

impl Warnings {
    /// Returns the warnings; a drawn finding has several lines.
    pub(crate) fn lines(&self, style: Style) -> impl Iterator<Item = String> {
        let drawn = self.findings.iter().map(move |finding| self.file.draw(finding, style));
        drawn.chain(self.texts.iter().cloned())
    }
}

impl Setup {
    /// Does what [`Self::load`] does, with the last good configuration if the present one is unusable.
    ///
    /// # Errors
    /// When there is none of these, or that is unusable as well.
    pub(crate) fn load_at_start(args: &Args, directory: &Path) -> Result<Self, ConfigFileError> {
        let error = match Self::load(args, directory, None, &Rights::Own) {
            Err(error) => error,
            setup => return setup,
        };
        let config_path = directory.join(&args.config);
        let Some(file) = last_good::find(&config_path, directory) else { return Err(error) };
        let reason = Some(error.to_string());
        with_access(file)
            .and_then(|read| Self::of(read, reason, config_path, args, directory, None, &Rights::Own))
            .or(Err(error))
    }

    /// Reads the configuration and the one-time files; relative paths start at `directory`. If neither chooses
    /// interfaces, a default selection of `before` stays.
    ///
    /// # Errors
    /// When a file cannot be read, or the configuration is invalid.
    pub(crate) fn load(
        args: &Args,
        directory: &Path,
        before: Option<&Self>,
        rights: &Rights,
    ) -> Result<Self, ConfigFileError> {
        let config_path = directory.join(&args.config);
        let read = rights.read_config(&config_path, directory, before.is_some())?;
        Self::of(read, None, config_path, args, directory, before, rights)
    }

    /// Loads this file, which is the one at `config_path` or, if that is `unusable`, its last good copy.
    fn of(
        (file, mut texts): ReadFiles,
        unusable: Option<String>,
        config_path: PathBuf,
        args: &Args,
        directory: &Path,
        before: Option<&Self>,
        rights: &Rights,
    ) -> Result<Self, ConfigFileError> {
        let Parsed { config, warnings: mut findings, places, .. } = file.parse()?;
        let mut one_time_files = OneTimeFiles::new();
        let mut are_usable = true;
        for (door, places) in config.doors.iter().zip(&places) {
            let Some(name) = door.key.one_time_file() else { continue };
            let path = directory.join(&**name);
            match rights.check_one_time(&path) {
                Err(error) if unusable.is_none() => return Err(error),
                access => texts.extend(access.unwrap_or_default()),
            }
            match one_time_file::read(&path, rights) {
                Ok(content) => drop(one_time_files.insert(name.clone(), content)),
                // The other doors are needed all the more.
                Err(error) if unusable.is_some() => {
                    texts.push(format!("cannot read and write {}: {error}", path.display()));
                }
                Err(error) => {
                    let (source, span) =
                        (file.source(places.file.as_deref()), places.of("One_Time_Sequences"));
                    let message = format!("cannot read and write {}: {error}", path.display());
                    let (severity, code) = (Severity::Error, Code::OneTimeFile);
                    let expected = "a file with one sequence per line";
                    findings.push(Diagnostic::new(source, span, severity, code, message, expected));
                    are_usable = false;
                }
            }
        }
        if !are_usable {
            findings.sort_by(Diagnostic::order);
            return Err(ConfigFileError::Invalid { file, findings });
        }
        let options = &config.options;
        let paths = Paths::new(&config, args, directory);
        let interface = args.interface.as_deref().or(options.interface.as_deref());
        let configured = interface.and_then(Selection::parse);
        let is_default_selection = configured.is_none();
        let kept = before.filter(|before| before.is_default_selection).map(|before| before.selection.clone());
        let selection = configured.or(kept).unwrap_or_else(|| {
            let (selection, warning) = Selection::by_default(&interfaces());
            texts.extend(warning);
            selection
        });
        Ok(Self {
            selection,
            is_default_selection,
            waits: args.wait || options.wait_interface,
            log_file: paths.log_file,
            pid_file: paths.pid_file,
            state_dir: directory.join(&*options.state_dir),
            control_socket: paths.control_socket,
            metrics: paths.metrics,
            config: Arc::new(config),
            warnings: Warnings { file, findings, texts },
            one_time_files,
            config_path,
            unusable,
        })
    }

    /// Says whether open doors have to be stored: a container without a writable directory needs no store as long as
    /// no door has anything to undo.
    ///
    /// With a helper, nothing is stored: see [`LeaseStore::has_leases`].
    ///
    /// [`LeaseStore::has_leases`]: crate::leases::store::LeaseStore::has_leases
    pub(crate) fn needs_state(&self, rights: &Rights) -> bool {
        if matches!(rights, Rights::Helper(_)) {
            return false;
        }
        self.config.doors.iter().any(|door| door.action.is_undone()) || self.state_dir.exists()
    }

    /// Returns where log lines go.
    pub(crate) fn log_settings(&self, args: &Args, rights: Rights) -> log::Settings {
        log::Settings {
            rights,
            file: self.log_file.clone(),
            use_syslog: self.config.options.use_syslog,
            format: self.config.options.log_format,
            // In the background, there is no stdout.
            verbose: args.verbose && !args.daemon,
        }
    }

    /// Returns the name of a door, for the log.
    pub(crate) fn door_name(&self, door: DoorId) -> &str {
        self.config.door(door).map_or("?", |door| &door.name)
    }
}
