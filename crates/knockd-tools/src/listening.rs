//! The ports on which local programs listen.

use std::fs;

use knockd_core::{Protocol, Service, Step};

/// All sockets of this network namespace (`proc_net(5)`), and the state of a listening one; for UDP, which has no
/// such state, the state of a socket without a peer (the kernel's `TCP_LISTEN` and `TCP_CLOSE`).
const TABLES: [(&str, Protocol, &str); 4] = [
    ("/proc/net/tcp", Protocol::Tcp, "0A"),
    ("/proc/net/tcp6", Protocol::Tcp, "0A"),
    ("/proc/net/udp", Protocol::Udp, "07"),
    ("/proc/net/udp6", Protocol::Udp, "07"),
];

/// The ports in use, as far as they can be read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Listening {
    steps: Vec<Step>,
}

impl Listening {
    /// Reads the kernel's tables; an unreadable table counts as empty.
    pub(crate) fn read() -> Self {
        let steps = TABLES.into_iter().flat_map(|(path, protocol, state)| {
            let table = fs::read_to_string(path).unwrap_or_default();
            sockets(&table, state).map(|port| Step { port, protocol }).collect::<Vec<_>>()
        });
        Self { steps: steps.collect() }
    }

    #[cfg(test)]
    pub(crate) fn of(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect() }
    }

    /// Says whether a program listens on any port of a service.
    pub(crate) fn has_any_of(&self, service: &Service) -> bool {
        let is_meant =
            |step: &Step| step.protocol == service.protocol() && service.ports().contains(&step.port);
        self.steps.iter().any(is_meant)
    }

    pub(crate) fn is_listening(&self, step: Step) -> bool {
        self.steps.contains(&step)
    }
}

/// Returns the local ports of the sockets in this state that others can reach, which excludes those bound to a
/// loopback address.
fn sockets<'a>(table: &'a str, state: &'a str) -> impl Iterator<Item = u16> + 'a {
    table.lines().filter_map(move |line| {
        let mut columns = line.split_whitespace().skip(1);
        let (address, port) = columns.next()?.rsplit_once(':')?;
        // 32-bit words, each in the machine's byte order: 127.0.0.0/8 and ::1.
        let is_loopback = match address.len() {
            8 if cfg!(target_endian = "little") => address.ends_with("7F"),
            8 => address.starts_with("7F"),
            _ => address.trim_matches('0') == "1",
        };
        let is_meant = columns.nth(1)? == state && !is_loopback;
        u16::from_str_radix(port, 16).ok().filter(|_| is_meant)
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
         \x20  0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n\
         \x20  1: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0\n\
         \x20  2: 0F02000A:9C40 0202000A:0050 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0\n";

    #[test]
    fn a_socket_that_listens_where_others_can_reach_it_counts() {
        assert_eq!(sockets(TCP, "0A").collect::<Vec<_>>(), [22]);
        assert_eq!(sockets(TCP, "07").count(), 0);
        let six = |address: &str| format!("\n 0: {address}:0016 {}:0000 0A\n", "0".repeat(32));
        assert_eq!(sockets(&six("00000000000000000000000001000000"), "0A").count(), 0);
        assert_eq!(sockets(&six("B80D0120000000000000000001000000"), "0A").count(), 1);
        assert_eq!(sockets("\n 1: 00000000:XYZ 0 0A\n 2: 00000000", "0A").count(), 0);
    }

    #[test]
    fn a_socket_of_this_process_is_found_while_others_can_reach_it() {
        let tcp = TcpListener::bind(("0.0.0.0", 0)).unwrap();
        let local = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let udp = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        // No other socket can have these ports on all addresses meanwhile.
        let [of_tcp, of_local, of_udp] =
            [tcp.local_addr(), local.local_addr(), udp.local_addr()].map(|address| address.unwrap().port());
        let before = Listening::read();
        assert!(before.is_listening(Step::tcp(of_tcp)));
        assert!(!before.is_listening(Step::tcp(of_local)));
        assert!(before.is_listening(Step::udp(of_udp)));
        // A socket with a peer receives from nobody else.
        udp.connect(("127.0.0.1", 9)).unwrap();
        assert!(!Listening::read().is_listening(Step::udp(of_udp)));
    }
}
