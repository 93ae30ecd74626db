//! Connections that are tried to find out whether a service can be reached, and why not.

use std::io;
use std::net::{IpAddr, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Protocol, Socket, Type};

use crate::Target;
use crate::icmp;
use crate::send::{has_left, reason};

/// Why a connection was not made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// This system did not send the packet; the text says why.
    NotSent(String),
    /// The network does not lead to the host, says the system or a router.
    Unreachable {
        /// Who says so, if it was another host.
        by: Option<IpAddr>,
        /// What it says, in words.
        message: String,
    },
    /// Nobody answered.
    Silence,
    /// A firewall rejected the packet, says an ICMP message.
    Rejected {
        /// Who says so.
        by: IpAddr,
        /// What it says, in words.
        message: String,
    },
    /// The host answered that nobody listens at the port: the service, or a firewall that plays a closed port.
    Refused,
}

impl Failure {
    /// Says whether no packet gets as far as the host.
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::NotSent(_) | Self::Unreachable { .. })
    }

    /// Orders failures by how near to the service the packet got.
    pub(crate) const fn nearness(&self) -> u8 {
        match self {
            Self::NotSent(_) => 0,
            Self::Unreachable { .. } => 1,
            Self::Silence => 2,
            Self::Rejected { .. } => 3,
            Self::Refused => 4,
        }
    }

    /// Tells what an error means that a connection has ended with before it was made.
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::Refused,
            io::ErrorKind::TimedOut => Self::Silence,
            _ => Self::Unreachable { by: None, message: reason(error) },
        }
    }
}

/// Connections that are being tried at the same time, each for a limited time.
#[derive(Debug)]
pub(crate) struct Race {
    sender: Sender<Finish>,
    finishes: Receiver<Finish>,
    running: usize,
    /// Those that were begun before the knock, while they are tried.
    early: Vec<(Weak<Socket>, Instant)>,
}

/// What became of one connection of a [`Race`].
#[derive(Debug)]
pub(crate) struct Finish {
    /// The address that it was for.
    pub(crate) target: Target,
    /// Whether it was begun before the knock.
    pub(crate) is_early: bool,
    /// The connection.
    pub(crate) result: Result<TcpStream, Failure>,
}

impl Race {
    pub(crate) fn new() -> Self {
        let (sender, finishes) = mpsc::channel();
        Self { sender, finishes, running: 0, early: Vec::new() }
    }

    /// Begins a connection; its SYN has been sent when this returns. It is given up after `patience`.
    pub(crate) fn start(&mut self, target: Target, port: u16, is_early: bool, patience: Duration) {
        self.running += 1;
        let until = Instant::now() + patience;
        let sender = self.sender.clone();
        // Later, an answer may be to a repeated SYN.
        let is_early = move || is_early && Instant::now() < until;
        let finish = move |result| drop(sender.send(Finish { target, is_early: is_early(), result }));
        let begun = begin(target, port).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => Failure::Refused,
            _ => Failure::NotSent(reason(&error)),
        });
        match begun {
            Ok(socket) => {
                let socket = Arc::new(socket);
                if is_early() {
                    self.early.push((Arc::downgrade(&socket), until));
                }
                // It lives until what became of it has been sent, so `has_early` cannot miss it.
                let wait = move || finish(wait(&socket, target, until));
                // Without a thread, nobody hears of it: that is silence.
                drop(thread::Builder::new().spawn(wait));
            }
            Err(failure) => finish(Err(failure)),
        }
    }

    /// Says whether a connection that was begun before the knock has been made and its thread is yet to say so.
    pub(crate) fn is_early_made(&self) -> bool {
        let now = Instant::now();
        let early = self.early.iter().filter(|(_, until)| now < *until);
        early.filter_map(|(socket, _)| socket.upgrade()).any(|socket| socket.peer_addr().is_ok())
    }

    /// Says whether a connection that was begun before the knock has been made, although another one was heard of first.
    pub(crate) fn has_early(&self) -> bool {
        // One that is not there any more has told.
        self.is_early_made()
            || self.finishes.try_iter().any(|finish| finish.is_early && finish.result.is_ok())
    }

    /// Returns the next connection that is made or has failed, or `None` after this moment.
    pub(crate) fn next(&mut self, until: Instant) -> Option<Finish> {
        let finish = self.finishes.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?;
        self.running -= 1;
        Some(finish)
    }

    /// Says whether any connection is still being tried.
    pub(crate) const fn is_on(&self) -> bool {
        self.running > 0
    }
}

fn begin(target: Target, port: u16) -> io::Result<Socket> {
    let address = target.at(port);
    let socket = target.socket(port, Type::STREAM, Protocol::TCP)?;
    socket.set_nonblocking(true)?;
    icmp::ask_for_messages(&socket, target);
    match socket.connect(&address.into()) {
        Err(error) if !has_left(&error) || error.kind() == io::ErrorKind::ConnectionRefused => Err(error),
        _ => Ok(socket),
    }
}

/// Waits for the end of a connection that has begun.
fn wait(socket: &Socket, target: Target, until: Instant) -> Result<TcpStream, Failure> {
    /// Every system can be asked for the state of a connection, but each has its own call that waits for it.
    const BETWEEN_LOOKS: Duration = Duration::from_millis(2);
    loop {
        match socket.take_error() {
            Ok(Some(error)) | Err(error) => {
                return Err(icmp::message(socket, target).unwrap_or_else(|| Failure::of(&error)));
            }
            Ok(None) => {}
        }
        if socket.peer_addr().is_ok() {
            let made = socket.set_nonblocking(false).and_then(|()| socket.try_clone());
            return made.map(TcpStream::from).map_err(|error| Failure::of(&error));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Silence);
        }
        thread::sleep(left.min(BETWEEN_LOOKS));
    }
}
