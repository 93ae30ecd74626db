//! The helper process: it opens the files that the configuration names and starts decoders, for an engine without
//! rights, and does nothing else.
//!
//! It believes nothing that the engine says once it reads packets: which files there are it learns before, and then
//! from the configuration itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::anyhow;
use knockd_core::Config;
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, getppid};
use tempfile::NamedTempFile;

use super::guarding::keep_or_forget;
use super::{rights, setup};
use crate::args::Args;
use crate::capture::process::Process;
use crate::control::{metrics, socket::Bound};
use crate::leases::one_time_file;
use crate::log;
use crate::system::config_file::{check_access, read_files};
use crate::system::helper::{self, Files, Job, Named, Reply, Rights, from_memory, receive, to_memory};

/// How many decoders there may be: twice as many as listeners, because some may be ending.
const MOST_DECODERS: usize = 128;

/// Does what the daemon asks until that ends.
///
/// It has the daemon's arguments, and as stdin the socket on which the daemon asks. The process must have no other
/// thread.
pub fn run() -> ExitCode {
    // Signals are for the daemon: `pkill -HUP knockd` and Ctrl-C reach this process as well.
    let _ = SigSet::all().thread_block();
    let Ok(directory) = std::env::current_dir() else { return ExitCode::FAILURE };
    let stdin = io::stdin();
    // Not for people.
    let Ok(Some((Job::Begin, mut descriptors))) = receive(&stdin) else {
        let _ = writeln!(io::stderr(), "{}: only knockd can start this program", helper::NAME);
        return ExitCode::FAILURE;
    };
    let _ = prctl::set_name(c"knockd-helper");
    rights::confine_helper();
    let named = descriptors.pop().map(from_memory::<Files>);
    let Some((Ok(named), reply)) = named.zip(descriptors.pop()) else { return ExitCode::FAILURE };
    let (args, engine) = (Args::of_process(), getppid());
    let mut server = Server::new(args, directory, engine, named);
    let _ = helper::reply(&reply, &Reply::default(), &[]);
    drop(reply);
    while let Ok(Some((job, descriptors))) = receive(&stdin) {
        server.answer(job, descriptors);
    }
    drop(server.control);
    // Decoders end with this process; waiting for them might take for ever.
    std::process::exit(0);
}

/// What the helper has made, and what it may.
struct Server {
    args: Args,
    directory: PathBuf,
    /// The process that asks.
    engine: Pid,
    /// All that it opens.
    named: Files,
    /// What it has read last, if that was usable.
    config: Option<Config>,
    control: Option<Bound>,
    /// Metrics that are being written.
    metrics: Option<NamedTempFile>,
    decoders: BTreeMap<u64, Process>,
    /// Those that have not ended yet.
    ending: Vec<Process>,
}

/// Remarks, and a descriptor.
type Done = (Vec<String>, Option<OwnedFd>);

impl Server {
    const fn new(args: Args, directory: PathBuf, engine: Pid, named: Files) -> Self {
        Self {
            args,
            directory,
            engine,
            named,
            config: None,
            control: None,
            metrics: None,
            decoders: BTreeMap::new(),
            ending: Vec::new(),
        }
    }

    fn answer(&mut self, job: Job, descriptors: Vec<OwnedFd>) {
        self.ending.retain_mut(|process| !process.is_gone());
        let mut descriptors = descriptors.into_iter();
        let Some(reply) = descriptors.next() else { return };
        // The one who has asked may have given up.
        let _ = match self.carry_out(job, descriptors.next()) {
            Ok((texts, descriptor)) => {
                let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
                helper::reply(&reply, &Reply::done(texts), &descriptors)
            }
            Err(error) => helper::reply(&reply, &Reply::failed(&error), &[]),
        };
    }

    fn carry_out(&mut self, job: Job, descriptor: Option<OwnedFd>) -> io::Result<Done> {
        if let Job::Check(file) | Job::Open(file) | Job::Publish(file) | Job::Remove(file) = &job
            && !self.named.contains(file)
        {
            return Err(io::Error::other("the configuration does not name it"));
        }
        match job {
            Job::Begin => Err(io::Error::other("it has begun")),
            Job::ReadConfig => self.read_config(),
            Job::KeepConfig => self.keep_config(),
            Job::Check(Named::OneTime(path)) => Ok((check_access(&path).map_err(told)?, None)),
            Job::Open(file) => self.open(&file),
            Job::Publish(Named::Metrics(path)) => {
                let unfinished = self.metrics.take().ok_or_else(|| io::Error::other("nothing is open"))?;
                unfinished.persist(path)?;
                Ok(Done::default())
            }
            Job::Remove(file) => self.remove(&file),
            Job::Check(_) | Job::Publish(_) => Err(io::Error::other("it is no such file")),
            Job::StartDecoder { number, interface } => {
                let socket = descriptor.ok_or_else(|| io::Error::other("a decoder needs a socket"))?;
                if self.decoders.len() + self.ending.len() >= MOST_DECODERS
                    || self.decoders.contains_key(&number)
                {
                    return Err(io::Error::other("too many packet decoders"));
                }
                let (process, records) = Process::start(socket, &interface).map_err(told)?;
                self.decoders.insert(number, process);
                Ok((Vec::new(), Some(records)))
            }
            Job::EndDecoder { number, reason } => {
                let process = self.decoders.get_mut(&number);
                let process = process.ok_or_else(|| io::Error::other("there is no such decoder"))?;
                Ok((vec![process.end(reason)], None))
            }
            Job::DropDecoder { number } => {
                if let Some(mut process) = self.decoders.remove(&number) {
                    process.end(None);
                    self.ending.extend((!process.is_gone()).then_some(process));
                }
                Ok(Done::default())
            }
        }
    }

    fn read_config(&mut self) -> io::Result<Done> {
        let path = self.directory.join(&self.args.config);
        let (file, warnings) = read_files(&path, &self.directory, true).map_err(told)?;
        if let Ok(parsed) = file.parse() {
            self.named.extend(setup::files(&parsed.config, &self.args, &self.directory));
            self.config = Some(parsed.config);
        }
        Ok((Vec::new(), Some(to_memory(&(file, warnings))?)))
    }

    fn keep_config(&mut self) -> io::Result<Done> {
        if self.config.is_none() {
            self.read_config()?;
        }
        let config = self.config.as_ref().ok_or_else(|| io::Error::other("it is unusable"))?;
        let state_dir = self.directory.join(&*config.options.state_dir);
        let had_guard = keep_or_forget(config, &self.directory.join(&self.args.config), &state_dir)?;
        Ok((had_guard.then(String::new).into_iter().collect(), None))
    }

    fn open(&mut self, file: &Named) -> io::Result<Done> {
        match file {
            Named::OneTime(path) => Ok(opened(one_time_file::open(path)?)),
            Named::Log(path) => Ok(opened(log::open_file(path)?)),
            Named::Control(path) => {
                self.control = None;
                let (bound, notice) = Bound::make(path, &Rights::Own)
                    .map_err(|error| io::Error::other(format!("{error:#}")))?;
                let listener = bound.listener().try_clone()?;
                self.control = Some(bound);
                Ok((notice.into_iter().collect(), Some(listener.into())))
            }
            Named::Metrics(path) => {
                let unfinished = metrics::unfinished(path)?;
                let file = unfinished.as_file().try_clone()?;
                self.metrics = Some(unfinished);
                Ok(opened(file))
            }
            Named::PidFile(_) => Err(io::Error::other("it is written already")),
        }
    }

    fn remove(&mut self, file: &Named) -> io::Result<Done> {
        match file {
            Named::Control(_) => self.control = None,
            Named::Metrics(path) => fs::remove_file(path)?,
            Named::PidFile(path) if is_of(path, self.engine) => fs::remove_file(path)?,
            Named::PidFile(_) | Named::OneTime(_) | Named::Log(_) => {
                return Err(io::Error::other("it is not to be removed"));
            }
        }
        Ok(Done::default())
    }
}

/// Says whether a PID file has the number of this process.
fn is_of(path: &Path, process: Pid) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == process.to_string())
}

fn opened(file: File) -> Done {
    (Vec::new(), Some(file.into()))
}

/// The whole message, for people.
fn told(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(format!("{:#}", anyhow!(error)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser as _;

    use super::*;

    fn server(directory: &Path, config: &str) -> Server {
        fs::write(directory.join("knockd.conf"), config).unwrap();
        fs::set_permissions(directory.join("knockd.conf"), fs::Permissions::from_mode(0o600)).unwrap();
        let args = Args::parse_from(["knockd", "-c", "knockd.conf"]);
        let named = setup::files(&config.parse().unwrap(), &args, directory);
        Server::new(args, directory.to_owned(), nix::unistd::getpid(), named)
    }

    #[test]
    fn a_helper_opens_what_the_configuration_names_each_for_its_purpose_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let door = "[door]\nOne_Time_Sequences = once\nOpen = tcp/22\n";
        let config =
            format!("[options]\nFirewall = nftables\nLogFile = log\nPidFile = pid\nMetrics = prom\n{door}");
        let mut server = server(directory.path(), &config);
        for name in ["once", "other", "secret"] {
            fs::write(path(name), "1,2\n").unwrap();
        }
        let mut can = |job: Job| server.carry_out(job, None).is_ok();
        assert!(
            can(Job::Open(Named::OneTime(path("once")))) && can(Job::Check(Named::OneTime(path("once"))))
        );
        assert!(can(Job::Open(Named::Log(path("log")))));
        // Another file, another purpose, another way to write a path.
        for file in [
            Named::OneTime(path("secret")),
            Named::Log(path("once")),
            Named::Control(path("once")),
            Named::Metrics(path("once")),
            Named::Log(path("../secret")),
            Named::PidFile(path("once")),
        ] {
            let jobs = [Job::Open, Job::Check, Job::Publish, Job::Remove];
            assert!(jobs.into_iter().all(|job| !can(job(file.clone()))), "{file:?}");
        }
        assert!(
            !can(Job::Remove(Named::OneTime(path("once")))) && !can(Job::Remove(Named::Log(path("log"))))
        );
        assert!(path("once").exists() && path("log").exists());
        // The PID file is removed for its own process only.
        fs::write(path("pid"), "1\n").unwrap();
        assert!(
            !can(Job::Open(Named::PidFile(path("pid")))) && !can(Job::Remove(Named::PidFile(path("pid"))))
        );
        fs::write(path("pid"), format!("{}\n", std::process::id())).unwrap();
        assert!(can(Job::Remove(Named::PidFile(path("pid")))) && !path("pid").exists());
        // Metrics take the place of others when they are complete, and go.
        let prom = || Named::Metrics(path("prom"));
        assert!(!can(Job::Publish(prom())));
        assert!(
            can(Job::Open(prom()))
                && !path("prom").exists()
                && can(Job::Publish(prom()))
                && path("prom").exists()
        );
        assert!(can(Job::Remove(prom())) && !path("prom").exists());
        // What the configuration names later, the helper knows when it has read that itself.
        fs::write(path("knockd.conf"), config.replace("once", "other")).unwrap();
        assert!(!can(Job::Open(Named::OneTime(path("other")))));
        assert!(can(Job::ReadConfig) && can(Job::Open(Named::OneTime(path("other")))));
        assert!(!can(Job::Begin) && !can(Job::EndDecoder { number: 1, reason: None }));
        assert!(!can(Job::StartDecoder { number: 1, interface: "eth0".to_owned() }), "without a socket");
    }
}
