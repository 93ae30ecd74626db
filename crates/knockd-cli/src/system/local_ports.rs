//! The UDP ports in use on this machine.

use std::fs;
use std::io;

use knockd_core::LocalPorts;

/// The range of ports for sockets that ask for none (ip(7)); the sysctl applies to IPv6 as well.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// All UDP sockets of this network namespace, including the kernel's own (`WireGuard`); see `proc_net(5)`.
const SOCKETS: [&str; 2] = ["/proc/net/udp", "/proc/net/udp6"];

/// Returns the UDP ports in use now. If they cannot be read, every port counts as in use.
pub(crate) fn in_use() -> LocalPorts {
    read().unwrap_or_else(|error| {
        log::debug!("cannot read the UDP ports in use: {error}");
        LocalPorts::default()
    })
}

/// Reads the UDP ports in use now.
///
/// The tables need no privilege. The one for IPv6 does not exist while IPv6 is disabled. A socket that is bound and
/// closed between two reads is missed, so answers to a resolver that takes a random port below the ephemeral range
/// for each question can look like strays.
///
/// # Errors
///
/// When there is no `/proc`, or the range does not start with a port number.
pub(crate) fn read() -> io::Result<LocalPorts> {
    let ephemeral_from = first_port(&fs::read_to_string(EPHEMERAL)?)?;
    let mut bound = Vec::new();
    for (path, is_required) in SOCKETS.into_iter().zip([true, false]) {
        match fs::read_to_string(path) {
            Ok(table) => bound.extend(bound_ports(&table)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_required => {}
            Err(error) => return Err(error),
        }
    }
    Ok(LocalPorts::new(ephemeral_from, bound))
}

/// Returns the first of two numbers separated by white space.
fn first_port(range: &str) -> io::Result<u16> {
    let first = range.split_whitespace().next().and_then(|first| first.parse().ok());
    first.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("invalid port range {range:?}")))
}

/// Returns the port in the second column, which is an address and a port in hexadecimal; lines without one, such as
/// the heading, are skipped.
fn bound_ports(table: &str) -> impl Iterator<Item = u16> + '_ {
    table.lines().filter_map(|line| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    const UDP: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            \n\
         \x20 512: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000   113        0 22021 2 0000000000000000 0         \n\
         \x20 733: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 20567 2 0000000000000000 0         \n\
         77748: 0F02000A:0044 0202000A:0043 01 00000000:00000000 00:00000000 00000000   100        0 31337 2 0000000000000000 0         \n";

    const UDP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
         \x20 480: 00000000000000000000000000000000:CA6C 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 24060 2 0000000000000000 0\n";

    fn ports(table: &str) -> Vec<u16> {
        bound_ports(table).collect()
    }

    #[test]
    fn the_port_of_each_socket_is_read_whether_connected_or_not() {
        assert_eq!(ports(UDP), [5353, 53, 68]);
        assert_eq!(ports(UDP6), [51820]);
    }

    #[test]
    fn lines_without_a_port_are_passed_over() {
        assert_eq!(ports(""), [0; 0]);
        assert_eq!(
            ports("\n  1:\n 2: 00000000\n 3: 00000000:\n 4: 0:XYZ\n 5: 0:10000 0:0\n 6: 0:000A"),
            [10]
        );
        let cut = UDP.get(..UDP.len() - 150).unwrap();
        assert_eq!(ports(cut), [5353, 53]);
    }

    #[test]
    fn the_ephemeral_range_starts_with_its_first_number() {
        assert_eq!(first_port("32768\t60999\n").unwrap(), 32768);
        assert_eq!(first_port("1 65535\n").unwrap(), 1);
        for odd in ["", "\n", "many", "65536 70000", "-1 5"] {
            assert_eq!(first_port(odd).unwrap_err().kind(), io::ErrorKind::InvalidData, "{odd:?}");
        }
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        let before = read().unwrap();
        // Ports from 1024 on need no privilege.
        let mut candidates = before.unused().flatten().filter(|&port| port >= 1024);
        let socket = candidates.find_map(|port| UdpSocket::bind(("127.0.0.1", port)).ok()).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(!before.is_in_use(port));
        assert!(read().unwrap().is_in_use(port));
    }
}
