//! What the daemon reports about itself, without ports or remaining steps.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The contents of `knockd status`. Durations are in whole seconds.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
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

/// A network interface that the daemon listens on or waits for.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Whether the daemon listens on it; it waits for one that does not exist.
    pub listening: bool,
    /// Whether it is up.
    pub up: bool,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
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
    /// Time until its stop command runs or is retried; null while a command is running.
    pub left: Option<u64>,
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
    /// The stop command is running.
    Closing,
    /// The stop command failed and will be retried.
    Retrying,
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
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A status that has something of everything.
    pub(crate) fn example() -> Status {
        Status {
            version: "0.9.0".to_owned(),
            pid: 42,
            uptime: 93_784,
            interfaces: vec![
                InterfaceStatus {
                    name: "eth0".to_owned(),
                    listening: true,
                    up: true,
                    addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
                },
                InterfaceStatus { name: "wg0".to_owned(), listening: true, up: false, addresses: vec![] },
                InterfaceStatus { name: "ppp0".to_owned(), listening: false, up: false, addresses: vec![] },
            ],
            doors: vec![
                DoorStatus { name: "ssh".to_owned(), steps: Some(3), one_time: false },
                DoorStatus { name: "a \x1b[31mdoor".to_owned(), steps: None, one_time: true },
            ],
            attempts: AttemptsStatus {
                total: 120,
                listed: vec![AttemptStatus {
                    source: "198.51.100.7".parse().unwrap(),
                    door: "ssh".to_owned(),
                    stage: 2,
                    age: 4,
                }],
            },
            leases: LeasesStatus {
                total: 2,
                starting: 0,
                open: 1,
                closing: 0,
                retrying: 1,
                listed: vec![
                    LeaseStatus {
                        door: "ssh".to_owned(),
                        source: "203.0.113.5".parse().unwrap(),
                        state: LeasePhase::Open,
                        left: Some(25),
                        failed: false,
                    },
                    LeaseStatus {
                        door: "ssh".to_owned(),
                        source: "203.0.113.50".parse().unwrap(),
                        state: LeasePhase::Retrying,
                        left: Some(61),
                        failed: true,
                    },
                ],
            },
            counters: CountersStatus { packets: 1204, opens: 7, ..CountersStatus::default() },
            commands: CommandsStatus { run: 14, ..CommandsStatus::default() },
            health: Health {
                state_directory: Some("/var/lib/knockd".to_owned()),
                state_problem: None,
                filter_exact: true,
                decoder: None,
            },
        }
    }
}
