//! What the daemon reports about itself, without ports or remaining steps.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The contents of `knockd status`. Durations are in whole seconds.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// What a person has to look at, the worst first; empty if all is well.
    pub problems: Vec<Problem>,
    /// The daemon's version.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
    /// Its configuration file.
    pub config: String,
    /// Time since startup.
    pub uptime: u64,
    /// The interfaces that it listens on or waits for.
    pub interfaces: Vec<InterfaceStatus>,
    /// The doors of its configuration, in file order.
    pub doors: Vec<DoorStatus>,
    /// Attempts in progress.
    pub attempts: AttemptsStatus,
    /// Doors that are open.
    pub leases: LeasesStatus,
    /// Counters since startup.
    pub counters: CountersStatus,
    /// The commands of doors.
    pub commands: CommandsStatus,
    /// Problems.
    pub health: Health,
}

/// Something that a person has to look at.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What is wrong, in one line for people.
    pub text: String,
    /// What more is known about it and what to do, a line each.
    pub details: Vec<String>,
    /// The same for programs.
    #[serde(flatten)]
    pub kind: ProblemKind,
}

/// The kind of a problem.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum ProblemKind {
    /// A door may still be open although its time is over, until a person has dealt with it and dismisses it.
    LeftOpen {
        /// Name of the door.
        door: String,
        /// The source for which it may be open.
        source: IpAddr,
        /// When its stop command was given up, as in RFC 3339.
        since: String,
        /// How the stop command failed; null if that is not known.
        reason: Option<String>,
        /// The stop command.
        command: String,
    },
    /// A door may still be open, and which one is not known, because its file cannot be read.
    Unreadable {
        /// The file.
        path: String,
    },
    /// More doors may still be open than are listed.
    MoreLeftOpen {
        /// Their number.
        count: usize,
    },
    /// The configuration is unusable, and the last good one is in force.
    Configuration {
        /// The file.
        path: String,
    },
    /// The services of doors are not guarded, or not for good.
    Guard,
    /// Open doors cannot be stored.
    State,
    /// Packets are not read on an interface that exists.
    Capture,
}

/// A network interface that the daemon listens on or waits for.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Whether the daemon reads its packets. It does not while the interface is missing or has no decoder that works.
    pub listening: bool,
    /// Whether it is up.
    pub up: bool,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Why knocks may be missed there, such as: it has no address of its own, and belongs to an interface that has.
    pub problem: Option<String>,
}

/// A door of the configuration.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct DoorStatus {
    /// Its name; two may have the same.
    pub name: String,
    /// The number of steps in its sequence; null if no one-time sequence is left.
    pub steps: Option<usize>,
    /// Whether it uses one-time sequences.
    pub one_time: bool,
}

/// The attempts in progress.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct AttemptsStatus {
    /// Their number.
    pub total: usize,
    /// The first hundred, most advanced first.
    pub listed: Vec<AttemptStatus>,
}

/// An attempt in progress.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct AttemptStatus {
    /// The source.
    pub source: IpAddr,
    /// The door.
    pub door: String,
    /// The number of steps done.
    pub stage: u8,
    /// Time since the first hit.
    pub age: u64,
}

/// The open doors.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct LeasesStatus {
    /// Their number.
    pub total: usize,
    /// How many are running their start command.
    pub starting: usize,
    /// How many are open.
    pub open: usize,
    /// How many are running their stop command.
    pub closing: usize,
    /// How many will retry a failed stop command.
    pub retrying: usize,
    /// The first thousand, earliest deadline first.
    pub listed: Vec<LeaseStatus>,
}

/// A door that is open for one source.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct LeaseStatus {
    /// Name of the door.
    pub door: String,
    /// The source for which it is open.
    pub source: IpAddr,
    /// Its state.
    pub state: LeasePhase,
    /// Time until its stop command runs or is retried, or until the firewall closes it; null while a command is running.
    pub left: Option<u64>,
    /// What moves that time: packets of its connections, or its connections; null if nothing does.
    pub kept_open_by: Option<KeptOpenBy>,
    /// How many connections kept it open at the last look; null if nobody has looked.
    pub connections: Option<u32>,
    /// Whether its first connection closes it.
    pub single_use: bool,
    /// Whether its last command failed.
    pub failed: bool,
}

/// The state of a lease.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum LeasePhase {
    /// The start command is running.
    Starting,
    /// The door is open.
    Open,
    /// The only connection that it was open for has been made.
    Used,
    /// The stop command is running.
    Closing,
    /// The stop command failed and will be retried.
    Retrying,
}

/// What keeps a door open beyond its time.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum KeptOpenBy {
    /// Packets of its connections.
    Packets,
    /// Its connections.
    Connections,
}

/// The sources that are ignored because they are scanners.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Default, Debug)]
pub struct ScannersStatus {
    /// Their number.
    pub total: usize,
    /// The first thousand; those that are ignored longest come first.
    pub listed: Vec<ScannerStatus>,
}

/// A source that is ignored because it is a scanner.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct ScannerStatus {
    /// The source; of IPv6, the first address of its /64, all of which is ignored.
    pub source: IpAddr,
    /// How long it will be ignored, if it tries no further port.
    pub left: u64,
}

/// A line of the log.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct LogEvent {
    /// When it was written, as in RFC 3339.
    pub time: String,
    /// What it is about, as in the log for programs.
    pub event: String,
    /// The line.
    pub text: String,
}

/// Counters since startup.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CountersStatus {
    /// Packets that passed the kernel filter.
    pub packets: u64,
    /// Packets dropped by the kernel because they were not read in time.
    pub dropped: u64,
    /// Packets visible to a door.
    pub visible: u64,
    /// Attempts started.
    pub attempts: u64,
    /// Doors opened by a knock.
    pub opens: u64,
    /// Attempts that timed out.
    pub timeouts: u64,
    /// Attempts spoiled by a wrong port.
    pub spoiled: u64,
    /// Attempts dropped because there were too many.
    pub evicted: u64,
    /// Sources detected as scanners.
    pub scanners: u64,
}

/// The commands of doors.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CommandsStatus {
    /// Commands run since startup.
    pub run: u64,
    /// How many of those failed.
    pub failed: u64,
    /// Doors closed by their stop command since startup.
    pub closed: u64,
    /// Doors that may still be open because their stop command failed for good since startup.
    pub given_up: u64,
    /// Start commands running.
    pub starting: usize,
    /// Commands waiting for others to end.
    pub waiting: usize,
}

/// Problems.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// The directory with the leases; null if there is nothing to store.
    pub state_directory: Option<String>,
    /// The problem with storing leases.
    pub state_problem: Option<String>,
    /// Whether the kernel filter passes only wanted packets.
    pub filter_exact: bool,
    /// The privileges that the packet decoder could not give up.
    pub decoder: Option<String>,
    /// Whether the engine has given up its rights, because no door had a command at startup.
    pub native: bool,
    /// The privileges that such an engine could not give up.
    pub engine: Option<String>,
    /// Why packets are not read on an interface that exists.
    pub capture_problem: Option<String>,
    /// The longest time since startup for which the loop did one thing and nothing else, in microseconds.
    pub longest_iteration_us: u64,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A status that has something of everything, as a client reads it.
    const EXAMPLE: &str = include_str!("example-status.json");

    pub(crate) fn example() -> Status {
        serde_json::from_str(EXAMPLE).unwrap()
    }

    #[test]
    fn a_status_is_written_as_it_was_read() {
        let example_as_read: serde_json::Value = serde_json::from_str(EXAMPLE).unwrap();
        assert_eq!(serde_json::to_value(example()).unwrap(), example_as_read);
    }
}
