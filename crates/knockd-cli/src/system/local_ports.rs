//! The ports that are in use on this machine.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use knockd_core::{LocalPorts, Protocol, Step, Timestamp};

/// The range of ports that the kernel gives to sockets that ask for none (ip(7)); the sysctl is for IPv6, too.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// All sockets of this network namespace, the kernel's own ones (`WireGuard`) too (`proc_net(5)`). Those for IPv6 do
/// not exist while the kernel has IPv6 switched off.
const TABLES: [(&str, Protocol, bool); 4] = [
    ("/proc/net/tcp", Protocol::Tcp, true),
    ("/proc/net/tcp6", Protocol::Tcp, false),
    ("/proc/net/udp", Protocol::Udp, true),
    ("/proc/net/udp6", Protocol::Udp, false),
];

/// The state in which a TCP socket listens; the kernel calls it `TCP_LISTEN`.
const LISTENING: &str = "0A";

/// How much of each table is read, in bytes: more than 20,000 sockets. The kernel takes the longer for a line the
/// further down it stands, seconds for a whole table of 60,000.
const MAX_TABLE: u64 = 4 << 20;

/// How old the ports in use may be when a packet comes.
const AGE: Duration = Duration::from_secs(5);

/// Reads on a thread of its own which ports are in use, since any user of the machine can make that take long.
pub(crate) struct Reader {
    /// Each says whether UDP matters.
    questions: Sender<bool>,
    pub(crate) answers: Receiver<LocalPorts>,
    /// When the latest answer came; `None` while one is waited for.
    answered: Option<Timestamp>,
}

impl Reader {
    /// Starts the thread. The ports have just been read.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(now: Timestamp) -> anyhow::Result<Self> {
        let (questions, asked) = bounded(1);
        let (sender, answers) = bounded(1);
        super::spawn("sockets", move || {
            for with_udp in asked {
                if sender.send(in_use(with_udp)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { questions, answers, answered: Some(now) })
    }

    /// Asks; the answer comes on a channel. While one question waits, others do not.
    pub(crate) fn ask(&mut self, with_udp: bool) {
        self.answered = None;
        let _ = self.questions.try_send(with_udp);
    }

    /// Asks if the latest answer is old.
    pub(crate) fn ask_if_old(&mut self, with_udp: bool, now: Timestamp) {
        if self.answered.is_some_and(|answered| now >= answered.after(AGE)) {
            self.ask(with_udp);
        }
    }

    /// Takes note that an answer has come.
    pub(crate) const fn handle_answer(&mut self, now: Timestamp) {
        self.answered = Some(now);
    }
}

/// The ports in use now. Where they cannot be read, every UDP port counts as in use, and no TCP port.
pub(crate) fn in_use(with_udp: bool) -> LocalPorts {
    read(with_udp).unwrap_or_else(|error| {
        log::debug!("the ports in use cannot be read: {error}");
        LocalPorts::default()
    })
}

/// Reads which ports are in use now; without UDP, all of its ports are.
///
/// The tables need no privilege. A socket that is bound and closed between two looks is missed, so answers to a
/// resolver that takes a random port below the ephemeral range for each question can look like strays. What stands in a
/// table behind `MAX_TABLE` is not in use, so that nobody can switch the guard off with many sockets.
///
/// # Errors
///
/// When there is no `/proc`, or when the range does not start with a port number.
pub fn read(with_udp: bool) -> io::Result<LocalPorts> {
    let ephemeral_from = if with_udp { first_port(&fs::read_to_string(EPHEMERAL)?)? } else { 0 };
    let mut sockets = Vec::new();
    for (path, protocol, is_required) in TABLES {
        if protocol == Protocol::Udp && !with_udp {
            continue;
        }
        match File::open(path) {
            Ok(table) => {
                let mut steps = ports(table, protocol)?;
                sockets.append(&mut steps);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_required => {}
            Err(error) => return Err(error),
        }
    }
    Ok(LocalPorts::new(ephemeral_from, sockets))
}

/// Takes the first of two numbers separated by white space.
fn first_port(range: &str) -> io::Result<u16> {
    let first = range.split_whitespace().next().and_then(|first| first.parse().ok());
    first.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{range:?} is no range of ports")))
}

/// Takes the port from the second column, which is an address and a port in hexadecimal digits; a line that has none,
/// such as the heading, is passed over, and so is one that is cut off.
///
/// Of TCP, listening sockets come first (`Documentation/networking/proc_net_tcp.rst` in Linux), and no other is read:
/// there may be very many.
fn ports(table: impl Read, protocol: Protocol) -> io::Result<Vec<Step>> {
    let mut table = BufReader::new(table.take(MAX_TABLE));
    let mut steps = Vec::new();
    let mut line = String::new();
    while table.read_line(&mut line)? > 0 && line.ends_with('\n') {
        let mut columns = line.split_whitespace().skip(1);
        let port = columns.next().and_then(|local| local.rsplit_once(':'));
        if let Some(port) = port.and_then(|(_, port)| u16::from_str_radix(port, 16).ok()) {
            if protocol == Protocol::Tcp && columns.nth(1) != Some(LISTENING) {
                break;
            }
            steps.push(Step { port, protocol });
        }
        line.clear();
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    const UDP: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            \n\
         \x20 512: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000   113        0 22021 2 0000000000000000 0         \n\
         \x20 733: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 20567 2 0000000000000000 0         \n\
         77748: 0F02000A:0044 0202000A:0043 01 00000000:00000000 00:00000000 00000000   100        0 31337 2 0000000000000000 0         \n";

    const UDP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
         \x20 480: 00000000000000000000000000000000:CA6C 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 24060 2 0000000000000000 0\n";

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
         \x20  0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n\
         \x20  1: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0\n\
         \x20  2: 0F02000A:9C40 0202000A:0050 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0\n\
         \x20  3: 0F02000A:0050 0202000A:0050 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0\n";

    fn of(table: &str, protocol: Protocol) -> Vec<u16> {
        ports(table.as_bytes(), protocol).unwrap().into_iter().map(|step| step.port).collect()
    }

    #[test]
    fn the_port_of_each_udp_socket_is_read_whether_connected_or_not() {
        assert_eq!(of(UDP, Protocol::Udp), [5353, 53, 68]);
        assert_eq!(of(UDP6, Protocol::Udp), [51820]);
    }

    #[test]
    fn the_port_of_each_tcp_socket_that_listens_is_read() {
        assert_eq!(of(TCP, Protocol::Tcp), [22, 3306]);
    }

    #[test]
    fn lines_without_a_port_and_lines_that_are_cut_off_are_passed_over() {
        assert_eq!(of("", Protocol::Udp), [0; 0]);
        let odd = "\n  1:\n 2: 00000000\n 3: 00000000:\n 4: 0:XYZ\n 5: 0:10000 0:0\n 6: 0:000A\n 7: 0:0";
        assert_eq!(of(odd, Protocol::Udp), [10]);
        for length in 0..UDP.len() {
            let found = of(UDP.get(..length).unwrap(), Protocol::Udp);
            assert!([5353, 53, 68].starts_with(&found), "{found:?}");
        }
    }

    #[test]
    fn what_stands_far_down_in_a_long_table_is_not_read() {
        let (heading, socket) = UDP.split_once('\n').unwrap();
        let line = socket.lines().next().unwrap();
        let table = || {
            std::iter::once(heading).chain(std::iter::repeat_n(line, 100_000)).flat_map(|line| [line, "\n"])
        };
        let found = of(&table().collect::<String>(), Protocol::Udp).len();
        assert!((20_000..40_000).contains(&found), "{found}");
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
    fn a_udp_socket_of_this_process_is_found() {
        let before = read(true).unwrap();
        // From 1024 on nobody needs a privilege.
        let mut candidates = before.unused(Protocol::Udp).flatten().filter(|&port| port >= 1024);
        let socket = candidates.find_map(|port| UdpSocket::bind(("127.0.0.1", port)).ok()).unwrap();
        let step = Step::udp(socket.local_addr().unwrap().port());
        assert!(!before.is_in_use(step));
        assert!(read(true).unwrap().is_in_use(step));
    }

    #[test]
    fn a_tcp_socket_of_this_process_is_found_while_it_listens_and_its_connections_are_not() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let [of_listener, of_client] =
            [listener.local_addr(), client.local_addr()].map(|address| Step::tcp(address.unwrap().port()));
        let during = read(false).unwrap();
        assert!(during.is_in_use(of_listener) && !during.is_in_use(of_client));
        assert!(during.is_in_use(Step::udp(1)), "without UDP all of its ports are in use");
    }

    #[test]
    fn the_thread_answers_every_question_and_is_asked_no_more_than_every_five_seconds() {
        let at = |seconds| Timestamp::new(Duration::from_secs(seconds));
        let mut reader = Reader::start(at(0)).unwrap();
        let answer = |reader: &Reader| reader.answers.recv_timeout(Duration::from_secs(60));
        reader.ask_if_old(false, at(4));
        assert!(reader.answered.is_some());
        reader.ask_if_old(false, at(5));
        // However long it takes, nobody asks again until it has come.
        reader.ask_if_old(false, at(100));
        answer(&reader).unwrap();
        reader.handle_answer(at(100));
        reader.ask_if_old(false, at(104));
        assert!(reader.answers.recv_timeout(Duration::ZERO).is_err() && reader.answered.is_some());
        reader.ask(true);
        answer(&reader).unwrap();
    }
}
