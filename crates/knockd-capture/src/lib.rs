//! Packets for knockd: a packet socket on one interface, with a filter in the kernel and a decoder that never panics.
//!
//! A [`Program`] says which packets are wanted, a [`PacketSocket`] collects them, a [`Capture`] reads them as
//! [`knockd_core::Packet`], [`interfaces`] and [`LinkWatch`] tell where that is possible. Linux only (packet(7)).

mod decode;
mod filter;
mod link;
mod masters;
mod receiver;
mod ring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use knockd_core::Packet;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use pnet::datalink::{self, DataLinkReceiver};
use rustix::net::netdevice;
use socket2::{Domain, Socket, Type};

use crate::receiver::Receiver;

pub use decode::{Ignored, decode};
pub use filter::Program;
pub use link::{Interface, LinkWatch, interfaces};
pub use ring::{Statistics, statistics};

/// How often [`Capture::take_dropped`] asks.
const DROPPED_EVERY: Duration = Duration::from_secs(1);

/// The default queue holds about 277 small packets: fewer than may come while the reader sleeps.
const QUEUE_BYTES: usize = 8 << 20;

/// Where packets wait until they are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Buffer {
    /// In 4 MiB of memory that the kernel sets aside; where it has none left, in a queue after all. Reading costs least.
    Ring,
    /// In up to 8 MiB that are taken as packets come, or what the system allows a user without `CAP_NET_ADMIN`.
    Queue,
}

/// A packet socket on one interface, not in promiscuous mode, for a [`Capture`] to read from.
///
/// It keeps the packets that nobody has read yet, also while one reader ends and another begins.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
    buffer: Buffer,
    surplus: AtomicU32,
}

impl PacketSocket {
    /// Starts to collect what the program accepts, in both directions.
    ///
    /// The interface may be down; then [`Capture::next_packet`] says so first, and packets come once it is up.
    ///
    /// # Errors
    ///
    /// When the privilege is missing, when the interface no longer exists, and when the kernel refuses for another reason.
    pub fn open(interface: &Interface, program: &Program, buffer: Buffer) -> Result<Self, OpenError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => OpenError::NotPermitted,
            _ if error.raw_os_error() == Some(Errno::ENODEV as i32) => {
                OpenError::InterfaceGone { interface: interface.name.clone() }
            }
            _ => OpenError::Other { interface: interface.name.clone(), source: error },
        };
        // Without a protocol the socket receives nothing before pnet binds it, so nothing gets past the filter.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None).map_err(failed)?;
        let surplus = program.attach(&socket).map_err(failed)?;
        let buffer = match buffer {
            Buffer::Ring if ring::request(&socket).is_ok() => Buffer::Ring,
            Buffer::Ring | Buffer::Queue => {
                // The first needs CAP_NET_ADMIN; the second grants as much as the system's limit allows.
                setsockopt(&socket, RcvBufForce, &QUEUE_BYTES)
                    .map_err(io::Error::from)
                    .or_else(|_| socket.set_recv_buffer_size(QUEUE_BYTES))
                    .map_err(failed)?;
                Buffer::Queue
            }
        };
        let config = datalink::Config {
            // pnet closes this descriptor, when it fails and when the channel is dropped.
            socket_fd: Some(socket.try_clone().map_err(failed)?.into_raw_fd()),
            promiscuous: false,
            ..datalink::Config::default()
        };
        // Only to bind the socket: whoever reads may be another process.
        datalink::channel(&interface.to_pnet(), config).map_err(failed)?;
        Ok(Self { socket, buffer, surplus: AtomicU32::new(surplus) })
    }

    /// Replaces the filter in one step: every packet is judged by the old program or by the new one.
    ///
    /// Packets that the old program accepted may still be waiting to be read.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the new program, for want of memory; the old one stays.
    pub fn set_filter(&self, program: &Program) -> io::Result<()> {
        self.surplus.store(program.attach(&self.socket)?, Ordering::Relaxed);
        Ok(())
    }

    /// How many ports the filter accepts that are not wanted: 0 but when there are too many for the kernel.
    pub fn surplus(&self) -> u32 {
        self.surplus.load(Ordering::Relaxed)
    }

    /// Where packets wait.
    pub const fn buffer(&self) -> Buffer {
        self.buffer
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads and decodes the packets of a [`PacketSocket`], in this process or in another one that got its descriptor.
///
/// It needs no privilege, and of system calls mmap(2) when it is made, and later poll(2), and on that descriptor recvfrom(2),
/// getsockopt(2) and ioctl(2) with `SIOCGIFINDEX`.
#[derive(Debug)]
pub struct Capture<S> {
    receiver: Receiver<S>,
    /// The interface that the socket is bound to.
    name: String,
    index: u32,
    /// When the kernel was asked last how many packets it has dropped.
    asked: Instant,
}

impl<S: AsFd + Send> Capture<S> {
    /// Takes a [`PacketSocket`] or a descriptor of one, and name and number of the interface that it was opened for.
    pub fn new(socket: S, name: &str, index: u32) -> Self {
        Self { receiver: Receiver::new(socket), name: name.to_owned(), index, asked: Instant::now() }
    }

    /// Asks the kernel how many more packets it has dropped because nobody read them in time; 0 within a second of the last
    /// question, since each is a system call.
    pub fn take_dropped(&mut self) -> u32 {
        if self.asked.elapsed() < DROPPED_EVERY {
            return 0;
        }
        self.asked = Instant::now();
        ring::statistics(&self.receiver.socket).map_or(0, |counts| counts.drops)
    }

    /// Returns the next packet; when none is left, says so, and waits for one when it is called again.
    ///
    /// `None` means that none is left, that none came within a second, or that one came which knocking does not look at:
    /// call again.
    ///
    /// # Errors
    ///
    /// [`CaptureError::LinkDown`] once, when the interface goes down; the same capture goes on when it is up again, and
    /// calls in between merely wait. [`CaptureError::InterfaceGone`] when the interface was deleted or renamed; within
    /// a second or two, and from then on. [`CaptureError::Other`] for what the kernel should not say; pause before
    /// calling again.
    pub fn next_packet(&mut self) -> Result<Option<Packet>, CaptureError> {
        let error = match self.receiver.next() {
            Ok(ip_packet) => return Ok(decode(ip_packet).ok()),
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(None),
            io::ErrorKind::TimedOut if self.exists() => Ok(None),
            io::ErrorKind::TimedOut => Err(CaptureError::InterfaceGone),
            io::ErrorKind::NetworkDown => Err(CaptureError::LinkDown),
            _ => Err(CaptureError::Other(error)),
        }
    }

    /// Says whether the interface still exists under its name; when the kernel cannot be asked, it does.
    fn exists(&self) -> bool {
        // if_nametoindex(3) would do the same on a socket of its own, which a sandbox refuses.
        match netdevice::name_to_index(&self.receiver.socket, &self.name) {
            Ok(index) => index == self.index,
            Err(error) => error != rustix::io::Errno::NODEV,
        }
    }
}

/// Why capturing could not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The process may not open packet sockets.
    #[error(
        "capturing packets needs root or the capability CAP_NET_RAW: start it with sudo, or as a service"
    )]
    NotPermitted,
    /// The interface went away.
    #[error("there is no interface {interface} any more")]
    InterfaceGone {
        /// Its name.
        interface: String,
    },
    /// The kernel refused for a reason that is not expected.
    #[error("cannot capture packets on {interface}")]
    Other {
        /// Its name.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why no packet could be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The interface went down.
    #[error("the interface is down")]
    LinkDown,
    /// The interface was deleted, renamed, or moved to another network namespace.
    #[error("the interface no longer exists")]
    InterfaceGone,
    /// The kernel failed for a reason that is not expected.
    #[error("cannot read packets")]
    Other(#[source] io::Error),
}
