//! From the command line to a knock: a profile is looked up, a one-time file is read.

use knock_client::args::Args;
use knock_client::hosts::{Hosts, HostsError};
use knock_client::one_time::{OneTimeError, OneTimeLine};
use knock_client::profile::Key;
use knock_client::{Knock, KnockError};

/// What a command line with a host or a profile asks for.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What to send.
    pub(crate) knock: Knock,
    /// Whether it comes from a profile, so that its ports are not to be shown.
    pub(crate) is_profile: bool,
    /// The line to strike out once it is used.
    pub(crate) line: Option<OneTimeLine>,
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
    #[error("--close needs a profile; to knock the closing sequence of a host, give its ports")]
    CloseOfHost,
}

impl Plan {
    /// Makes a plan; `warn` is told what is unwise about the file of profiles.
    pub(crate) fn of(args: &Args, warn: impl FnOnce(&str)) -> Result<Self, PlanError> {
        if !args.ports.is_empty() {
            if args.close {
                return Err(PlanError::CloseOfHost);
            }
            return Ok(Self { knock: Knock::of_line(args)?, is_profile: false, line: None });
        }
        let hosts = Hosts::read()?;
        let profile = hosts.profile(&args.host)?;
        if let Some(exposure) = hosts.exposure() {
            warn(&exposure);
        }
        let (hits, line) = match (&profile.key, &profile.close) {
            (_, Some(close)) if args.close => (close.hits().to_vec(), None),
            _ if args.close => return Err(PlanError::NoClose(args.host.clone())),
            (Key::Sequence(list), _) => (list.hits().to_vec(), None),
            (Key::OneTime(path), _) => {
                let line = OneTimeLine::next(path)?;
                (line.hits(), Some(line))
            }
        };
        Ok(Self { knock: Knock::of_profile(&profile, hits, args), is_profile: true, line })
    }
}
