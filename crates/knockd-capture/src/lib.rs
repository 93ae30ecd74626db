//! Packets for knockd: a packet socket on one interface, with a filter in the kernel and a decoder that never panics.
//!
//! A [`Program`] says which packets are wanted, a [`PacketSocket`] collects them, a [`Capture`] reads them as
//! [`knockd_core::Packet`], [`interfaces`] and [`LinkWatch`] tell where that is possible. Linux only (packet(7)).
#![forbid(unsafe_code)]

mod decode;
mod filter;
mod link;
mod masters;

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd};

use knockd_core::Packet;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, RxqOvfl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};
use pnet::datalink::{self, DataLinkReceiver};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netdevice;
use socket2::{Domain, Socket, Type};

pub use decode::{Ignored, decode};
pub use filter::Program;
pub use link::{Interface, LinkWatch, interfaces};

/// How long [`Capture::next_packet`] waits before it looks whether the interface still exists.
const READ_TIMEOUT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The default buffer holds about 277 small packets: fewer than may come while the reader sleeps.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// The most that is read of a packet; all headers that are looked at fit, and what follows them is not needed.
const PACKET_BYTES: usize = 4096;

/// A packet socket on one interface, not in promiscuous mode, for a [`Capture`] to read from.
///
/// It keeps the packets that nobody has read yet, also while one reader ends and another begins.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
}

impl PacketSocket {
    /// Starts to collect what the program accepts, in both directions.
    ///
    /// The interface may be down; then [`Capture::next_packet`] says so first, and packets come once it is up.
    ///
    /// # Errors
    ///
    /// When the privilege is missing, when the interface no longer exists, and when the kernel refuses for another reason.
    pub fn open(interface: &Interface, program: &Program) -> Result<Self, OpenError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => OpenError::NotPermitted,
            _ if error.raw_os_error() == Some(Errno::ENODEV as i32) => {
                OpenError::InterfaceGone { interface: interface.name.clone() }
            }
            _ => OpenError::Other { interface: interface.name.clone(), source: error },
        };
        // Without a protocol the socket receives nothing before pnet binds it, so nothing gets past the filter.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None).map_err(failed)?;
        socket.attach_filter(&program.to_sock_filters()).map_err(failed)?;
        // The first needs CAP_NET_ADMIN; the second grants as much as the system's limit allows.
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER_BYTES)
            .map_err(io::Error::from)
            .or_else(|_| socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES))
            .map_err(failed)?;
        // The count of packets that did not fit comes with those that did (socket(7)).
        setsockopt(&socket, RxqOvfl, &1).map_err(io::Error::from).map_err(failed)?;
        let config = datalink::Config {
            // pnet closes this descriptor, when it fails and when the channel is dropped.
            socket_fd: Some(socket.try_clone().map_err(failed)?.into_raw_fd()),
            promiscuous: false,
            ..datalink::Config::default()
        };
        // Only to bind the socket: whoever reads may be another process.
        datalink::channel(&interface.to_pnet(), config).map_err(failed)?;
        Ok(Self { socket })
    }

    /// Replaces the filter in one step: every packet is judged by the old program or by the new one.
    ///
    /// Packets that the old program accepted may still be waiting to be read.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the new program, for want of memory; the old one stays.
    pub fn set_filter(&self, program: &Program) -> io::Result<()> {
        self.socket.attach_filter(&program.to_sock_filters())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads and decodes the packets of a [`PacketSocket`], in this process or in another one that got its descriptor.
///
/// It needs no privilege, and no system calls but poll(2), recvfrom(2) and ioctl(2) with `SIOCGIFINDEX`, all on that
/// descriptor.
#[derive(Debug)]
pub struct Capture<S> {
    receiver: Receiver<S>,
    /// The interface that the socket is bound to.
    name: String,
    index: u32,
}

impl<S: AsFd + Send> Capture<S> {
    /// Takes a [`PacketSocket`] or a descriptor of one, and name and number of the interface that it was opened for.
    pub fn new(socket: S, name: &str, index: u32) -> Self {
        let receiver = Receiver {
            socket,
            buffer: Box::new([0; PACKET_BYTES]),
            is_drained: false,
            control: nix::cmsg_space!(u32),
            dropped: 0,
        };
        Self { receiver, name: name.to_owned(), index }
    }

    /// How many packets the kernel has dropped since the socket was opened because nobody read them in time, as far as the
    /// packets read so far tell; the count starts over after 4294967295.
    pub const fn dropped(&self) -> u32 {
        self.receiver.dropped
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

/// A receiver that tells when no packet is left, before it waits: then is the time to deal with those that came.
#[derive(Debug)]
struct Receiver<S> {
    socket: S,
    buffer: Box<[u8; PACKET_BYTES]>,
    /// Whether the last call found nothing, so that the next one is to wait.
    is_drained: bool,
    /// Room for the count of dropped packets.
    control: Vec<u8>,
    /// How many packets the socket had dropped when the last packet came.
    dropped: u32,
}

impl<S: AsFd + Send> DataLinkReceiver for Receiver<S> {
    /// Returns the next packet, from its IP header on.
    ///
    /// Fails with `WouldBlock` once when none is left, and after a second of waiting with `TimedOut`.
    fn next(&mut self) -> io::Result<&[u8]> {
        if self.is_drained && poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&READ_TIMEOUT))? == 0
        {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut buffer = [IoSliceMut::new(self.buffer.as_mut_slice())];
        let socket = self.socket.as_fd().as_raw_fd();
        let received = recvmsg::<()>(socket, &mut buffer, Some(&mut self.control), MsgFlags::MSG_DONTWAIT);
        self.is_drained = received.is_err();
        let received = received?;
        for message in received.cmsgs()? {
            if let ControlMessageOwned::RxqOvfl(count) = message {
                self.dropped = count;
            }
        }
        let length = received.bytes;
        self.buffer.get(..length).ok_or_else(|| io::ErrorKind::InvalidData.into())
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
