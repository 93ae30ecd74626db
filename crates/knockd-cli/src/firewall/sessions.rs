//! Sessions at guarded ports.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use knockd_core::{Config, Protocol, Services};

use crate::system::connections::{Connection, established};

/// Returns the TCP ports that a configuration guards.
pub(super) fn ports(config: &Config) -> Vec<RangeInclusive<u16>> {
    let services = config.doors.iter().filter_map(|door| door.open.as_ref()).flat_map(Services::iter);
    let services = services.filter(|service| service.protocol() == Protocol::Tcp);
    services.map(|service| service.ports().clone()).collect()
}

/// Returns the connections to these ports.
pub(super) fn to(ports: &[RangeInclusive<u16>]) -> HashSet<Connection> {
    established(|port| ports.iter().any(|ports| ports.contains(&port)))
}
