//! From the command line to a knock: a profile is looked up, a one-time file is read.

use std::ffi::OsString;
use std::time::Duration;

use knock_client::args::Args;
use knock_client::hosts::{Hosts, HostsError};
use knock_client::one_time::{OneTimeError, OneTimeLine};
use knock_client::profile::{Key, Profile};
use knock_client::{Knock, KnockError};

use crate::lock::Lock;

/// What a command line with a host or a profile asks for.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What to send.
    pub(crate) knock: Knock,
    /// The line to strike out once it is used.
    pub(crate) line: Option<OneTimeLine>,
    /// The program to run then, with its arguments.
    pub(crate) then: Vec<OsString>,
    /// How long the door stays open, if anybody knows.
    pub(crate) lease: Option<Duration>,
    lock: Option<Lock>,
}

/// Why there is nothing to send.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each prints what it says")]
pub(crate) enum PlanError {
    #[error(transparent)]
    Knock(#[from] KnockError),
    #[error(transparent)]
    Hosts(#[from] HostsError),
    #[error(transparent)]
    OneTime(#[from] OneTimeError),
    #[error("no closing sequence in profile {0:?}; add one: knock edit {0} --close PORT,...")]
    NoClose(String),
    #[error("{0} needs a profile; {hint}", hint = if *.0 == "--close" {
        "to knock the closing sequence of a host, give its ports"
    } else {
        "make one: knock add NAME HOST"
    })]
    NeedsProfile(&'static str),
    #[error("nothing to verify for --retries or --timeout; add a service: --verify tcp/22")]
    NothingToVerify,
}

impl Plan {
    /// Makes a plan; `warn` is told what is unwise about the file of profiles, and `on_wait` is called before it waits for
    /// another knock of the profile.
    pub(crate) fn of(
        args: &Args,
        warn: impl FnOnce(&str),
        on_wait: impl FnOnce(),
    ) -> Result<Self, PlanError> {
        let plan = if args.ports.is_empty() {
            let hosts = Hosts::read()?;
            let profile = hosts.profile(&args.host)?;
            if let Some(exposure) = hosts.exposure() {
                warn(&exposure);
            }
            let lock = Lock::take(&args.host, on_wait);
            Self::of_profile(&args.host, &profile, args, Some(lock))?
        } else if args.close {
            return Err(PlanError::NeedsProfile("--close"));
        } else if args.watch {
            return Err(PlanError::NeedsProfile("--watch"));
        } else {
            let knock = Knock::of_line(args)?;
            Self { knock, line: None, then: args.then.clone(), lease: None, lock: None }
        };
        if plan.knock.verify.is_none() && (args.retries.is_some() || args.timeout.is_some()) {
            return Err(PlanError::NothingToVerify);
        }
        Ok(plan)
    }

    /// Makes the plan of a profile; options of the line override it. The lock, if any, is held as long as the plan.
    pub(crate) fn of_profile(
        name: &str,
        profile: &Profile,
        args: &Args,
        lock: Option<Lock>,
    ) -> Result<Self, PlanError> {
        let (hits, line) = match (&profile.key, &profile.close) {
            (_, Some(close)) if args.close => (close.hits().to_vec(), None),
            _ if args.close => return Err(PlanError::NoClose(name.to_owned())),
            (Key::Sequence(list), _) => (list.hits().to_vec(), None),
            (Key::OneTime(path), _) => {
                let line = OneTimeLine::next(path)?;
                (line.hits(), Some(line))
            }
        };
        let knock = Knock::of_profile(profile, hits, args);
        let then = match &args.then {
            // The closing sequence opens nothing that could be used.
            none if none.is_empty() && !args.close && !args.watch => {
                profile.then.iter().map(OsString::from).collect()
            }
            line => line.clone(),
        };
        Ok(Self { knock, line, then, lease: profile.lease, lock })
    }

    /// Says whether another knock of the profile was under way, which may have opened the door.
    pub(crate) fn has_waited(&self) -> bool {
        self.lock.as_ref().is_some_and(|lock| lock.has_waited)
    }
}
