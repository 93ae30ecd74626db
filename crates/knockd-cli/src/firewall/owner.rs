//! Who owns the table. Only the socket that has made it may change it, and processes that have this socket can be dead, hung, or the
//! service manager; so whoever may debug them borrows it.

use std::fs;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::answers;
use super::netlink::Netlink;
use crate::system::descriptors;

/// `NETLINK_NETFILTER`
const NETFILTER: &str = "12";

/// Who has the socket that owns the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// A process with this ID and name.
    Process(i32, String),
    /// A process that cannot be seen from here, such as one of another container.
    Unseen,
}

impl Owner {
    /// Whether it is the service manager; the first process of a container may be a daemon that needs its socket.
    fn is_service_manager(&self) -> bool {
        matches!(self, Self::Process(1, name) if name != "knockd")
    }
}

/// Opens a socket to change the table with: the one that owns it, if a daemon that has ended has left that with the service manager.
///
/// # Errors
/// When the kernel has no nfnetlink, or does not answer.
pub(super) fn open() -> Result<Netlink, Errno> {
    let mut netlink = Netlink::open()?;
    left(&mut netlink)?.map_or(Ok(netlink), Netlink::of)
}

/// Returns a copy of the socket that owns the table, if a daemon that has ended has left that with the service manager.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn left(netlink: &mut Netlink) -> Result<Option<OwnedFd>, Errno> {
    let found = find(netlink)?.filter(|(owner, _)| owner.is_service_manager());
    Ok(found.and_then(|(_, socket)| socket))
}

/// Returns who owns the table, with a copy of the owning socket if it can be had; `None` if nobody does, or there is no table.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn find(netlink: &mut Netlink) -> Result<Option<(Owner, Option<OwnedFd>)>, Errno> {
    let answers = netlink.dump(&answers::get_tables())?;
    let Some(port) = answers::owner(&answers) else { return Ok(None) };
    let sockets = fs::read_to_string("/proc/thread-self/net/netlink").unwrap_or_default();
    let found = inode(&sockets, port).and_then(holder);
    Ok(Some(found.map_or((Owner::Unseen, None), |(process, descriptor)| {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        (Owner::Process(process, name.trim_end().to_owned()), descriptors::copy(process, descriptor).ok())
    })))
}

/// Says whether there is a table.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn has_table(netlink: &mut Netlink) -> Result<bool, Errno> {
    Ok(answers::has_table(&netlink.dump(&answers::get_tables())?))
}

/// Returns the number of the socket with this port, from the table of netlink sockets: columns for protocol and port come second and
/// third, that for the number last.
fn inode(sockets: &str, port: u32) -> Option<&str> {
    let port = port.to_string();
    sockets.lines().find_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        match columns.as_slice() {
            [_, NETFILTER, of, .., inode] if *of == port => Some(*inode),
            _ => None,
        }
    })
}

/// Returns a process and its descriptor for the socket with this number, if possible one other than the service manager.
fn holder(inode: &str) -> Option<(i32, i32)> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let descriptor = |process: i32| {
        let entries = fs::read_dir(format!("/proc/{process}/fd")).ok()?.flatten();
        let is_it = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
        };
        let mut found = entries.into_iter().filter(is_it);
        found.find_map(|entry| entry.file_name().to_str()?.parse().ok())
    };
    processes.filter_map(|process| Some((process, descriptor(process)?))).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_by_its_protocol_and_port() {
        let sockets = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                       0000000000000000 0   4242       00000111 0        0        0     2        0        11\n\
                       0000000000000000 12  42         00000000 0        0        0     2        0        12\n\
                       0000000000000000 12  4242       00000000 0        0        0     2        0        13\n";
        assert_eq!(inode(sockets, 4242), Some("13"));
        assert_eq!(inode(sockets, 42), Some("12"));
        assert_eq!(inode(sockets, 4), None);
        assert_eq!(inode("", 0), None);
    }
}
