//! What the daemon tells about itself. Ports and what is still to be knocked are no part of it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Everything that `knockd status` shows. Times are in whole seconds.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process number.
    pub pid: u32,
    /// How long ago it was started.
    pub uptime: u64,
    /// What it listens to.
    pub interfaces: Vec<InterfaceStatus>,
    /// The doors of its configuration, in file order.
    pub doors: Vec<DoorStatus>,
    /// Knocks that have begun.
    pub attempts: Attempts,
    /// Doors that are open.
    pub leases: Leases,
    /// What has happened since the start.
    pub counters: Counters,
    /// The commands of doors.
    pub commands: Commands,
    /// What is not as it should be.
    pub health: Health,
}

/// A network interface that is listened to or waited for.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Whether it is listened to; one that does not exist is waited for.
    pub listening: bool,
    /// Whether it is set up.
    pub up: bool,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

/// A door of the configuration.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct DoorStatus {
    /// Its name; two may have the same.
    pub name: String,
    /// How many steps its sequence has; null while it has none, since all of its one-time sequences are used up.
    pub steps: Option<usize>,
    /// Whether each of its sequences counts once.
    pub one_time: bool,
}

/// The attempts under way.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Attempts {
    /// How many there are.
    pub total: usize,
    /// The first hundred of them, the most advanced first.
    pub listed: Vec<AttemptStatus>,
}

/// An attempt under way.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct AttemptStatus {
    /// Who knocks.
    pub source: IpAddr,
    /// At which door.
    pub door: String,
    /// How many steps are done.
    pub stage: u8,
    /// How long ago the first step was hit.
    pub age: u64,
}

/// The doors that are open for somebody.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Leases {
    /// How many there are.
    pub total: usize,
    /// How many of them have a start command that is running.
    pub starting: usize,
    /// How many are open.
    pub open: usize,
    /// How many have a stop command that is running.
    pub closing: usize,
    /// How many have a stop command that has failed and is tried again.
    pub retrying: usize,
    /// The first thousand of them, those first that end first.
    pub listed: Vec<LeaseStatus>,
}

/// A door that is open for somebody.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct LeaseStatus {
    /// Name of the door.
    pub door: String,
    /// For whom it is open.
    pub source: IpAddr,
    /// How far it is.
    pub state: LeaseState,
    /// How long until its stop command runs, for the first time or again; null while a command is running.
    pub left: Option<u64>,
    /// Whether its last command has failed.
    pub failed: bool,
}

/// How far a lease is.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// The start command is running.
    Starting,
    /// The door is open.
    Open,
    /// The stop command is running.
    Closing,
    /// The stop command has failed and is tried again.
    Retrying,
}

/// What has happened since the start.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Packets that passed the filter in the kernel.
    pub packets: u64,
    /// Packets that the kernel has dropped, because they came faster than they could be read.
    pub dropped: u64,
    /// Packets that some door wanted to see.
    pub visible: u64,
    /// Attempts that have begun.
    pub attempts: u64,
    /// Doors that were opened by a knock.
    pub opens: u64,
    /// Attempts that took too long.
    pub timeouts: u64,
    /// Attempts that a wrong port has ended.
    pub spoiled: u64,
    /// Attempts that were forgotten, since there were too many.
    pub evicted: u64,
    /// Sources that were recognised as scanners.
    pub scanners: u64,
}

/// The commands of doors.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Commands {
    /// How many were run since the start.
    pub run: u64,
    /// How many of those have failed.
    pub failed: u64,
    /// How many doors were closed by their stop command since the start.
    pub closed: u64,
    /// How many doors may still be open, since their stop command has failed for good since the start.
    pub given_up: u64,
    /// How many start commands are running.
    pub starting: usize,
    /// How many commands wait until fewer are running.
    pub waiting: usize,
}

/// What is not as it should be.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// Where leases are stored; null if nowhere.
    pub state_directory: Option<String>,
    /// What is wrong with that.
    pub state_problem: Option<String>,
    /// Whether the filter in the kernel lets only those packets through that are wanted.
    pub filter_exact: bool,
    /// What the packet decoder could not give up.
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
            attempts: Attempts {
                total: 120,
                listed: vec![AttemptStatus {
                    source: "198.51.100.7".parse().unwrap(),
                    door: "ssh".to_owned(),
                    stage: 2,
                    age: 4,
                }],
            },
            leases: Leases {
                total: 2,
                starting: 0,
                open: 1,
                closing: 0,
                retrying: 1,
                listed: vec![
                    LeaseStatus {
                        door: "ssh".to_owned(),
                        source: "203.0.113.5".parse().unwrap(),
                        state: LeaseState::Open,
                        left: Some(25),
                        failed: false,
                    },
                    LeaseStatus {
                        door: "ssh".to_owned(),
                        source: "203.0.113.50".parse().unwrap(),
                        state: LeaseState::Retrying,
                        left: Some(61),
                        failed: true,
                    },
                ],
            },
            counters: Counters { packets: 1204, opens: 7, ..Counters::default() },
            commands: Commands { run: 14, ..Commands::default() },
            health: Health {
                state_directory: Some("/var/lib/knockd".to_owned()),
                state_problem: None,
                filter_exact: true,
                decoder: None,
            },
        }
    }
}
