//! The doors that a caller knocks at, and the leases and commands that they lead to.

use std::net::IpAddr;
use std::num::NonZeroU32;

use knockd_core::config::{Action, Commands, Key, Reopen};
use knockd_core::{Access, CommandLine, CommandTemplate, Door, DoorName, LeaseKey, RunKind, Seconds};

/// `Max_Open` of the door `b`.
pub(super) const MAX_OPEN_OF_B: NonZeroU32 = NonZeroU32::new(2).unwrap();

fn door(name: &str, start: &str, stop: &str, reopen: Reopen, cmd_timeout: u32) -> Door {
    let commands = |text| CommandTemplate::parse(text).map(Commands::both).unwrap_or_default();
    let mut door = Door::new(DoorName::new(name).unwrap(), Key::Sequence("1,2".parse().unwrap()));
    door.action = Action::Commands { start: commands(start), stop: commands(stop) };
    door.reopen = reopen;
    door.cmd_timeout = Seconds::new(cmd_timeout);
    door
}

/// The first two are one door before and after a change of its timeout, the third one after a change of its command.
pub(crate) fn doors() -> [Door; 8] {
    let mut limited = door("b", "open %IP%", "close %IP%", Reopen::Extend, 0);
    limited.max_open = Some(MAX_OPEN_OF_B);
    let mut only_ipv6 = door("f", "", "close", Reopen::Extend, 4);
    let Action::Commands { start, .. } = &mut only_ipv6.action else { panic!("no commands") };
    start.v6 = CommandTemplate::parse("open6 %IP%");
    [
        door("a", "open %IP%", "close %IP%", Reopen::Extend, 10),
        door("a", "open %IP%", "close %IP%", Reopen::Extend, 3),
        door("a", "open %IP%", "close it", Reopen::Extend, 3),
        limited,
        door("c", "open %IP%", "close %IP%", Reopen::Run, 2),
        door("d", "open %IP%", "", Reopen::Extend, 5),
        door("e", "", "close %IP%", Reopen::Extend, 5),
        only_ipv6,
    ]
}

/// The commands of a door for one source.
pub(super) fn commands_of(door: &Door, source: IpAddr) -> (Option<CommandLine>, Option<CommandLine>) {
    let Action::Commands { start, stop } = &door.action else { panic!("no commands") };
    (start.expand(source), stop.expand(source))
}

pub(super) fn key_of(door: &Door, source: IpAddr, start: CommandLine, stop: CommandLine) -> LeaseKey {
    let access = Access::Commands { start, stop };
    LeaseKey { door: door.name.clone(), source, access }
}

pub(super) fn command_of(key: &LeaseKey, kind: RunKind) -> &str {
    let Access::Commands { start, stop } = &key.access else { panic!("no commands") };
    match kind {
        RunKind::Start => start,
        RunKind::Stop => stop,
    }
}

/// The addresses that one host may have: an IPv6 /64, or one of IPv4.
pub(super) fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(source) => std::net::Ipv6Addr::from_bits(source.to_bits() >> 64 << 64).into(),
    }
}
