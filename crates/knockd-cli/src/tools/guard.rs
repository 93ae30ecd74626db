//! `knockd guard`: closing the ports of doors without a daemon, trying that, and the way out.

mod ask;
mod trial;

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use knockd_core::Config;
use knockd_core::config::{Firewall, Options};

use self::ask::{Answer, ask};
use crate::args::GuardArgs;
use crate::control::Request;
use crate::firewall::{self, FirewallError, Order, Owner, Standing};
use crate::system::config_file::{ConfigFile, ConfigFileError, check_access};
use crate::system::last_good;

/// What a person can do where we cannot.
const BY_HAND: &str = "cannot borrow the socket of the table's owner; run: systemctl stop knockd; systemctl clean --what=fdstore knockd; nft delete \
                       table inet knockd";

/// Loads, tries, prints or removes the rules.
///
/// # Errors
/// When the configuration is unusable or has no firewall, or the kernel or the running daemon refuses.
pub fn run(arguments: &GuardArgs) -> anyhow::Result<()> {
    let directory = std::env::current_dir().unwrap_or_default();
    let path = directory.join(&arguments.config);
    if arguments.remove {
        return remove(&path, &directory);
    }
    if arguments.check {
        let config = with_firewall(read(&path, &directory)?, &path)?;
        return write!(anstream::stdout(), "{}", firewall::text(&config)).context("cannot print");
    }
    if let Some(time) = arguments.trial {
        return trial::run(&with_firewall(read(&path, &directory)?, &path)?, time);
    }
    keep(&with_firewall(read_or_last_good(&path, &directory)?, &path)?)
}

fn read(path: &Path, directory: &Path) -> Result<Config, ConfigFileError> {
    let file = ConfigFile::read(path, directory)?;
    file.paths().try_for_each(|path| check_access(path).map(drop))?;
    file.parse().map(|parsed| parsed.config)
}

/// Reads the configuration or, if it is unusable, its last good copy: whatever is wrong with it, a port must not be open for everybody.
fn read_or_last_good(path: &Path, directory: &Path) -> Result<Config, ConfigFileError> {
    let error = match read(path, directory) {
        Err(error) => error,
        config => return config,
    };
    let kept = last_good::find(path, directory);
    let Some(parsed) = kept.as_ref().and_then(|file| file.parse().ok()) else {
        let is_there = firewall::standing().is_ok_and(|standing| standing != Standing::Gone);
        let outcome = if is_there { "the guard stays as it is" } else { "nothing is guarded" };
        warn(format_args!("{outcome}: the configuration is unusable, and there is no last good one"));
        return Err(error);
    };
    warn(error);
    let used = kept.map(|file| file.path).unwrap_or_default();
    warn(format_args!(
        "{} is unusable; the last good configuration is in force: {}",
        path.display(),
        used.display()
    ));
    Ok(parsed.config)
}

fn with_firewall(config: Config, path: &Path) -> anyhow::Result<Config> {
    if config.options.firewall == Firewall::None {
        bail!("{}: `Firewall = nftables` is missing in `[options]`", path.display());
    }
    Ok(config)
}

fn socket(config: &Config) -> Option<PathBuf> {
    config.options.control_socket.as_deref().map(PathBuf::from)
}

/// Guards for good: by the daemon if it runs.
fn keep(config: &Config) -> anyhow::Result<()> {
    match ask(socket(config), Request::Guard { seconds: None }) {
        Answer::Done(_) => {}
        Answer::Refused(reason) => bail!("{reason}"),
        Answer::NobodyThere => match firewall::guard(config, Order::Keep) {
            // An earlier daemon has left it to the service manager, from whom only those with all rights can borrow its socket.
            Err(FirewallError::Owned) if stands() => {}
            result => result.context("cannot close the ports")?,
        },
        Answer::Silence if stands() => {
            warn("knockd does not answer");
        }
        Answer::Silence => bail!("cannot close the ports: knockd does not answer; restart it"),
    }
    say("the guard stands");
    Ok(())
}

fn stands() -> bool {
    firewall::standing().is_ok_and(|standing| standing == Standing::Firm)
}

/// Removes the guard in whatever state the daemon is.
fn remove(path: &Path, directory: &Path) -> anyhow::Result<()> {
    let config = read(path, directory).ok();
    let config = config.or_else(|| Some(last_good::find(path, directory)?.parse().ok()?.config));
    let default = || Some(PathBuf::from(Options::DEFAULT_CONTROL_SOCKET));
    // A daemon that knows of it does not wonder, and says so in its status.
    let answer = ask(config.map_or_else(default, |config| socket(&config)), Request::Unguard {});
    let removed = firewall::remove().map_err(|error| match error {
        FirewallError::Owned => anyhow!(BY_HAND),
        error => error.into(),
    });
    let (was_there, owner) = removed.context("cannot remove the guard")?;
    match (&answer, owner) {
        (Answer::Done(_), _) => say("the guard is removed; knockd goes on without it"),
        _ if !was_there => {
            say("there is no guard");
            return Ok(());
        }
        (_, Some(Owner::Process(process, name))) if process != 1 => {
            say("the guard is removed");
            let why = if answer == Answer::Silence { "does not answer" } else { "was not asked" };
            warn(format_args!(
                "{name} (pid {process}) {why} and still runs; it may guard again when it goes on"
            ));
        }
        _ => say("the guard is removed"),
    }
    say("the ports of doors are open for everybody until `knockd guard`, or the next start of knockd");
    Ok(())
}

/// Prints a line; nobody need read it.
fn say(text: impl Display) {
    let _ = writeln!(anstream::stdout(), "{text}");
}

fn warn(text: impl Display) {
    let _ = writeln!(anstream::stderr(), "knockd: {text}");
}
