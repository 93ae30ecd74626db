//! What an opening would do.

use std::net::IpAddr;

use super::{Access, LeaseKey};
use crate::command::CommandLine;
use crate::config::{Action, Door, Reopen};

/// What an opening would do for one source.
pub(super) enum Wish {
    /// It has to be undone later; a knock meanwhile does this.
    Lease(LeaseKey, Reopen),
    /// It is over once it has run.
    Once(CommandLine),
}

/// Returns what an opening does for this source, in order.
pub(super) fn wishes(door: &Door, source: IpAddr) -> [Option<Wish>; 2] {
    // The time of the firewall cannot be counted twice for one source.
    let firewall = firewall_key(door, source).map(|key| Wish::Lease(key, Reopen::Extend));
    let Action::Commands { start, stop } = &door.action;
    let commands = start.expand(source).map(|start| match stop.expand(source) {
        Some(stop) => {
            let access = Access::Commands { start, stop };
            Wish::Lease(LeaseKey { door: door.name.clone(), source, access }, door.reopen)
        }
        None => Wish::Once(start),
    });
    if firewall.is_some() { [firewall, commands] } else { [commands, None] }
}

/// Returns the lease by which the firewall lets a source in, if it does.
pub(super) fn firewall_key(door: &Door, source: IpAddr) -> Option<LeaseKey> {
    let (source, access) = match door.open_for.network_of(source) {
        Some(network) => (network.address(), Access::Network),
        None => (source, Access::Firewall),
    };
    door.admits(source).then(|| LeaseKey { door: door.name.clone(), source, access })
}
