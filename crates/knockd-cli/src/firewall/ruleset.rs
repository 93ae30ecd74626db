//! The table as it should be: a value that can be printed as nft text and sent to the kernel.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use knockd_core::{Prefix, Protocol};

/// The name of the table, of the family `inet`.
pub(super) const TABLE: &str = "knockd";

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Ruleset {
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<Chain>,
}

/// A set of addresses, each with a time-out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) family: Family,
    pub(super) size: u32,
    /// Whether rules change it.
    pub(super) is_dynamic: bool,
    /// The name of its door.
    pub(super) comment: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Where packets enter it; other chains are entered from rules.
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Vec<Part>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hook {
    /// After conntrack, before destination NAT.
    Prerouting,
    /// After all other firewalls, for packets to this host.
    Input,
    /// The same, for those that it forwards.
    Forward,
    /// Where destinations are changed, before others do so.
    ToTarget,
    /// Where sources are changed, after others have done so.
    FromHere,
}

impl Hook {
    /// Returns type, hook and priority of its chain.
    pub(super) const fn place(self) -> (&'static str, u32, i32) {
        const PREROUTING: u32 = 0;
        const INPUT: u32 = 1;
        const FORWARD: u32 = 2;
        const POSTROUTING: u32 = 4;
        match self {
            Self::Prerouting => ("filter", PREROUTING, -160),
            Self::Input => ("filter", INPUT, 500),
            Self::Forward => ("filter", FORWARD, 500),
            Self::ToTarget => ("nat", PREROUTING, -110),
            Self::FromHere => ("nat", POSTROUTING, 110),
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Prerouting => "type filter hook prerouting priority mangle - 10; policy accept;",
            Self::Input => "type filter hook input priority 500; policy accept;",
            Self::Forward => "type filter hook forward priority 500; policy accept;",
            Self::ToTarget => "type nat hook prerouting priority dstnat - 10; policy accept;",
            Self::FromHere => "type nat hook postrouting priority srcnat + 10; policy accept;",
        }
    }
}

/// A condition or an action of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// The destination port is one of these; sorted, and they do not overlap.
    Ports(Protocol, Vec<RangeInclusive<u16>>),
    /// It is none of these.
    OtherPorts(Protocol, Vec<RangeInclusive<u16>>),
    /// It was one of these before destination NAT. nft 1.0.6 cannot print several ranges.
    OriginalPorts(Protocol, RangeInclusive<u16>),
    /// The packet is for this host: its own address, broadcast, multicast or anycast.
    ForThisHost,
    Destination(IpAddr),
    /// This was the destination before destination NAT.
    OriginalDestination(IpAddr),
    /// Destination NAT has changed its destination.
    Redirected,
    /// It came over the loopback interface.
    FromLoopback,
    /// It came over an interface with this name, or one that begins so before a `*`.
    From(String),
    SourceOf(Prefix),
    Established,
    /// It begins a connection.
    New,
    /// It resets a connection.
    Reset,
    SourceIn(Family, String),
    /// Lets the source in for so many seconds from now.
    Update(Family, String, u32),
    /// Lets the source in no longer.
    Delete(Family, String),
    /// The network of the source is in a set of networks, by their first addresses.
    NetworkIn(Family, String),
    /// The same as [`Self::Update`] and [`Self::Delete`] for the network of the source.
    UpdateNetwork(Family, String, u32),
    DeleteNetwork(Family, String),
    /// Before destination NAT, this was the destination port.
    OriginalPort(u16),
    Mark(u32),
    Counter,
    /// Answers as a port does on which nothing listens.
    Reject(Protocol),
    Accept,
    Drop,
    Jump(String),
    /// Changes the destination to this port, and to this address if there is one.
    To(Option<IpAddr>, u16),
    /// Changes the source to an address of this host.
    Masquerade,
}

impl Ruleset {
    /// Says whether a table with the sets of another can have these instead: the kernel does not change a set that is there.
    pub(super) fn can_follow(&self, before: &Self) -> bool {
        let is_changed = |set: &Set| before.sets.iter().any(|other| other.name == set.name && other != set);
        !self.sets.iter().any(is_changed)
    }
}

impl Family {
    /// Returns the family of an address.
    pub(super) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// Returns the bits of an address that say its network, where whole networks are let in.
    pub(super) const fn network_mask(self) -> IpAddr {
        match self {
            Self::Ipv4 => IpAddr::V4(Ipv4Addr::from_bits(u32::MAX << 8)),
            Self::Ipv6 => IpAddr::V6(Ipv6Addr::from_bits(u128::MAX << 64)),
        }
    }

    pub(super) fn has(self, address: IpAddr) -> bool {
        Self::of(address) == self
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }

    const fn type_name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
        }
    }
}

fn range(range: &RangeInclusive<u16>) -> String {
    let (start, end) = range.clone().into_inner();
    if start == end { start.to_string() } else { format!("{start}-{end}") }
}

fn ranges(ports: &[RangeInclusive<u16>]) -> String {
    match ports {
        [one] => range(one),
        several => format!("{{ {} }}", several.iter().map(range).collect::<Vec<_>>().join(", ")),
    }
}

fn network(family: Family) -> String {
    format!("{} saddr & {}", family.prefix(), family.network_mask())
}

/// Prints seconds as nft does: `1d2h3m4s`.
fn time(seconds: u32) -> String {
    let units =
        [(seconds / 86400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let units = units.iter().filter(|(number, _)| *number > 0);
    units.flat_map(|(number, unit)| [number.to_string(), (*unit).to_owned()]).collect()
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(protocol, ports) => write!(f, "{protocol} dport {}", ranges(ports)),
            Self::OtherPorts(protocol, ports) => write!(f, "{protocol} dport != {}", ranges(ports)),
            Self::OriginalPorts(protocol, ports) => {
                write!(f, "meta l4proto {protocol} ct original proto-dst {}", range(ports))
            }
            Self::ForThisHost => f.write_str("fib daddr type { local, broadcast, anycast, multicast }"),
            Self::Destination(IpAddr::V4(address)) => write!(f, "ip daddr {address}"),
            Self::Destination(IpAddr::V6(address)) => write!(f, "ip6 daddr {address}"),
            Self::OriginalDestination(address) => {
                write!(f, "ct original {} daddr {address}", Family::of(*address).prefix())
            }
            Self::Redirected => f.write_str("ct status dnat"),
            Self::FromLoopback => f.write_str("iif \"lo\""),
            Self::From(name) => write!(f, "iifname \"{name}\""),
            Self::SourceOf(network) => {
                write!(f, "{} saddr {network}", Family::of(network.address()).prefix())
            }
            Self::Established => f.write_str("ct state established"),
            Self::New => f.write_str("ct state new"),
            Self::Reset => f.write_str("tcp flags rst"),
            Self::SourceIn(family, set) => write!(f, "{} saddr @{set}", family.prefix()),
            Self::Update(family, set, seconds) => {
                write!(f, "update @{set} {{ {} saddr timeout {} }}", family.prefix(), time(*seconds))
            }
            Self::Delete(family, set) => write!(f, "delete @{set} {{ {} saddr }}", family.prefix()),
            Self::NetworkIn(family, set) => write!(f, "{} == @{set}", network(*family)),
            Self::UpdateNetwork(family, set, seconds) => {
                write!(f, "update @{set} {{ {} timeout {} }}", network(*family), time(*seconds))
            }
            Self::DeleteNetwork(family, set) => write!(f, "delete @{set} {{ {} }}", network(*family)),
            Self::OriginalPort(port) => write!(f, "ct original proto-dst {port}"),
            Self::Mark(mark) => write!(f, "meta mark set meta mark | 0x{mark:08x}"),
            Self::Counter => f.write_str("counter"),
            Self::Reject(Protocol::Tcp) => f.write_str("reject with tcp reset"),
            Self::Reject(Protocol::Udp) => f.write_str("reject"),
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::To(None, port) => write!(f, "dnat to :{port}"),
            Self::To(Some(IpAddr::V4(address)), port) => write!(f, "dnat ip to {address}:{port}"),
            Self::To(Some(IpAddr::V6(address)), port) => write!(f, "dnat ip6 to [{address}]:{port}"),
            Self::Masquerade => f.write_str("masquerade"),
        }
    }
}

/// The text that `nft -s list table inet knockd` prints of it.
impl Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        let mut between = "";
        for Set { name, family, size, is_dynamic, comment } in &self.sets {
            let flags = if *is_dynamic { "dynamic,timeout" } else { "timeout" };
            write!(f, "{between}\tset {name} {{\n\t\ttype {}\n\t\tsize {size}\n", family.type_name())?;
            write!(f, "\t\tflags {flags}\n\t\tcomment \"{comment}\"\n\t}}\n")?;
            between = "\n";
        }
        for Chain { name, hook, rules } in &self.chains {
            writeln!(f, "{between}\tchain {name} {{")?;
            between = "\n";
            if let Some(hook) = hook {
                writeln!(f, "\t\t{}", hook.text())?;
            }
            for rule in rules {
                let parts: Vec<_> = rule.iter().map(Part::to_string).collect();
                writeln!(f, "\t\t{}", parts.join(" "))?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}
