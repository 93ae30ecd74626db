//! What a lease is, and what its caller has to do for it.

use std::net::IpAddr;
use std::time::Duration;

use super::LeaseRecord;
use crate::command::CommandLine;
use crate::exceptions::Prefix;
use crate::one_time::Unused;
use crate::text::{DoorName, Text};
use crate::time::Timestamp;

/// Identifies a lease and its commands; unique as long as the lease's [`LeaseRecord`] is stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LeaseId(pub u64);

/// What the caller has to do, in the order returned.
///
/// A [`Self::Run`] waits until everything before it in the same list is durable and done; nothing else waits.
#[must_use = "an effect that is not carried out leaves a door open or a knock lost"]
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Effect {
    /// Strike out this line of a one-time file, durably, and report to [`crate::Gate::handle_burnt`].
    Burn(Burn),
    /// Store this durably, replacing an older record of the same lease. If its start command is running, or is about
    /// to, the caller adds the process.
    Store(LeaseRecord),
    /// The deadline of an open lease has moved to this time, or will once its start command ends. The updated record
    /// comes before.
    EndMoved(LeaseId, Timestamp),
    /// Remove the stored record of a lease: its door is closed.
    Forget(LeaseId),
    /// Keep this record for a person to deal with, instead of the stored one of its lease, and do not restore it: the
    /// stop command failed for good, so the door may still be open. Nothing more will be done about it. The record's
    /// `until` is the present.
    SetAside(LeaseRecord),
    /// Run this command, and report its end to [`crate::Gate::handle_exit`].
    Run(Run),
    /// Have the firewall let the source reach the services of the door for this time from now, however long it did so far, and report
    /// the result to [`crate::Gate::handle_exit`].
    Admit(Admission, Duration),
    /// Do the same because connections keep the door open.
    Prolong(Admission, Duration),
    /// Look whether anything keeps the services of the door open for the source, and report to
    /// [`crate::Gate::handle_sight`], or to [`crate::Gate::handle_exit`] that it fails. Until then, the firewall lets the
    /// source reach them.
    Look(Admission),
    /// Have the firewall let the source reach the services of the door no longer, and report the result to
    /// [`crate::Gate::handle_exit`]. It is a success if the time was over already.
    Shut(Admission),
}

/// What keeps the services of a door open for a source, as the caller has seen after an [`Effect::Look`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Sight {
    /// At a door with [`Extend::Idle`](crate::config::Extend::Idle): for how long from now the firewall still lets the
    /// source reach them if no packet comes; zero if it does not any more.
    Left(Duration),
    /// At a door with [`Extend::Connected`](crate::config::Extend::Connected): how many connections the source has to
    /// them that are not idle for longer than the limit.
    Connections(u32),
}

/// Whom the firewall lets through which door.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Admission {
    /// The ID for [`crate::Gate::handle_exit`].
    pub id: LeaseId,
    /// Name of the door.
    pub door: DoorName,
    /// The source, or the network that is let in with it.
    pub source: Prefix,
}

/// A knocked line of a one-time file.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Burn {
    /// The ID for [`crate::Gate::handle_burnt`].
    pub id: BurnId,
    /// The file's path, as in the configuration.
    pub file: Text,
    /// The line. Write [`crate::STRIKE`] over the byte at its offset, if it is still the file's first unused line.
    pub line: Unused,
}

/// Identifies a [`Burn`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BurnId(pub(crate) u64);

/// A command to run.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Run {
    /// The ID for [`crate::Gate::handle_exit`] when it ends.
    pub id: LeaseId,
    /// Which of the door's commands it is.
    pub kind: RunKind,
    /// Name of the door.
    pub door: DoorName,
    /// The source that it runs for.
    pub source: IpAddr,
    /// The command line for the shell.
    pub command: CommandLine,
}

/// Which command of a door.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum RunKind {
    /// `Start_Command`.
    Start,
    /// `Stop_Command`.
    Stop,
}

/// What distinguishes leases: two knocks with the same effect share one, and a door whose action changed with the
/// configuration starts a new one beside the old.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LeaseKey {
    /// Name of the door.
    pub door: DoorName,
    /// The source; the first address of its network if that is let in as a whole.
    pub source: IpAddr,
    /// What opening has done, and closing undoes.
    pub access: Access,
}

impl LeaseKey {
    /// Returns whom the firewall lets in; `None` if it lets in nobody.
    pub fn admitted(&self) -> Option<Prefix> {
        match self.access {
            Access::Commands { .. } => None,
            Access::Firewall => Some(self.source.into()),
            Access::Network => Some(Prefix::around(self.source)),
        }
    }

    /// Says whether it is a lease for this source.
    pub fn is_for(&self, source: IpAddr) -> bool {
        self.source == source || self.admitted().is_some_and(|admitted| admitted.contains(source))
    }
}

/// A door's [`Action`](crate::config::Action) for one source, at a door that closes again.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Access {
    /// Commands, expanded.
    Commands {
        /// The start command.
        start: CommandLine,
        /// The stop command.
        stop: CommandLine,
    },
    /// The firewall lets the source reach the services of the door. It closes by itself when the time is over, so nothing is stored.
    Firewall,
    /// The same for the whole network of the source: its IPv4 /24 or its IPv6 /64.
    Network,
}

impl Access {
    /// Returns the stop command, if a command ends the access.
    pub const fn stop_command(&self) -> Option<&CommandLine> {
        match self {
            Self::Commands { stop, .. } => Some(stop),
            Self::Firewall | Self::Network => None,
        }
    }
}
