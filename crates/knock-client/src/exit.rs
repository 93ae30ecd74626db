//! The exit status of `knock`.

use std::process::ExitCode;

use knock_client::{KnockError, Verdict};

use crate::plan::PlanError;

/// How `knock` ends. clap itself exits with the same `Usage`, and with `Done` after `--help` and `--version`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// The service to verify is open; or, with nothing to verify, every hit was sent or reported as not sent.
    Done = 0,
    /// This side is to blame: the host does not resolve, the privilege is missing, a file or a command is not usable; or,
    /// with `--strict`, a hit was not sent.
    Failed = 1,
    /// The command line is invalid; nothing was sent.
    Usage = 2,
    /// The service does not answer, or is refused.
    StillClosed = 3,
    /// The network does not lead to the host.
    Unreachable = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<&Verdict> for Exit {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Opened(_) | Verdict::AlreadyOpen => Self::Done,
            Verdict::StillClosed(_) => Self::StillClosed,
            Verdict::Unreachable(_) => Self::Unreachable,
        }
    }
}

impl From<&PlanError> for Exit {
    fn from(error: &PlanError) -> Self {
        use knock_client::hosts::HostsError::NoProfile;
        match error {
            PlanError::Knock(KnockError::NotAHit(_))
            | PlanError::Hosts(NoProfile { .. })
            | PlanError::NothingToVerify
            | PlanError::NeedsProfile(_) => Self::Usage,
            _ => Self::Failed,
        }
    }
}
