//! Packets for knockd: a packet socket on one interface, with a kernel filter and a decoder that never panics.
//!
//! A [`Program`] says which packets are wanted, a [`PacketSocket`] collects them, a [`Capture`] reads them as
//! [`knockd_core::Packet`], and [`interfaces`] and [`LinkWatch`] say where that is possible. Linux only (packet(7)).

mod attributes;
mod capture;
mod decode;
mod filter;
mod link;
mod ring;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{LinkAddr, SockaddrStorage, getsockname, setsockopt};
use socket2::{Domain, Socket, Type};

pub use capture::{Capture, CaptureError, Received};
pub use decode::{Ignored, decode};
pub use filter::Program;
pub use link::{Interface, LinkWatch, interfaces};
pub use ring::{Statistics, clock_is_synchronised, statistics};

/// The default queue holds about 277 small packets: fewer than may arrive while the reader sleeps.
const QUEUE_BYTES: usize = 8 << 20;

/// Where packets wait until they are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Buffer {
    /// In 4 MiB of memory that the kernel reserves, or in a queue if it has none left. Reading costs least.
    Ring,
    /// In up to 8 MiB that are allocated as packets arrive, or whatever the system allows a user without
    /// `CAP_NET_ADMIN`.
    Queue,
}

/// A packet socket on one interface, not in promiscuous mode, for a [`Capture`] to read from.
///
/// It keeps unread packets, also while one reader ends and another starts.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
    buffer: Buffer,
    surplus: AtomicU32,
}

impl PacketSocket {
    /// Starts to collect what the program accepts, in both directions.
    ///
    /// The interface may be down; then [`Capture::receive`] says so first, and packets arrive once it is up.
    ///
    /// # Errors
    ///
    /// When the privilege is missing, the interface no longer exists, or the kernel refuses for another reason.
    pub fn open(interface: &Interface, program: &Program, buffer: Buffer) -> Result<Self, OpenError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => OpenError::NotPermitted,
            _ if error.raw_os_error() == Some(Errno::ENODEV as i32) => {
                OpenError::InterfaceGone { interface: interface.name.clone() }
            }
            _ => OpenError::Other { interface: interface.name.clone(), source: error },
        };
        // Without a protocol the socket receives nothing before pnet binds it, so nothing bypasses the filter.
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
        let config = pnet_datalink::Config {
            // pnet closes this descriptor, on failure and when the channel is dropped.
            socket_fd: Some(socket.try_clone().map_err(failed)?.into_raw_fd()),
            promiscuous: false,
            ..pnet_datalink::Config::default()
        };
        // Only to bind the socket: the reader may be another process.
        pnet_datalink::channel(&interface.to_pnet(), config).map_err(failed)?;
        Ok(Self { socket, buffer, surplus: AtomicU32::new(surplus) })
    }

    /// Replaces the filter atomically: either the old or the new program judges every packet.
    ///
    /// Packets that the old program accepted may still be waiting.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the new program for lack of memory; the old one stays.
    pub fn set_filter(&self, program: &Program) -> io::Result<()> {
        self.surplus.store(program.attach(&self.socket)?, Ordering::Relaxed);
        Ok(())
    }

    /// Returns how many unwanted ports the filter accepts: 0 unless there are too many for the kernel.
    pub fn surplus(&self) -> u32 {
        self.surplus.load(Ordering::Relaxed)
    }

    /// Says whether the socket is still on the interface with this number. The kernel removes it when the interface
    /// is deleted or leaves the network namespace, and does not put it on a new interface with the same number.
    pub fn is_on(&self, index: u32) -> bool {
        // As a `LinkAddr` it would be refused: the kernel omits the end that a hardware address does not need.
        let address = getsockname::<SockaddrStorage>(self.socket.as_raw_fd()).ok();
        let bound_to = address.as_ref().and_then(SockaddrStorage::as_link_addr).map(LinkAddr::ifindex);
        bound_to.and_then(|bound_to| bound_to.try_into().ok()) == Some(index)
    }

    /// Returns where packets wait.
    pub const fn buffer(&self) -> Buffer {
        self.buffer
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Why capturing could not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The process may not open packet sockets.
    #[error("capturing packets requires root or CAP_NET_RAW; start knockd with sudo or as a service")]
    NotPermitted,
    /// The interface disappeared.
    #[error("interface {interface} no longer exists")]
    InterfaceGone {
        /// Its name.
        interface: String,
    },
    /// The kernel refused unexpectedly.
    #[error("cannot capture packets on {interface}")]
    Other {
        /// Its name.
        interface: String,
        /// The kernel's error.
        source: io::Error,
    },
}
