//! Packets for knockd: a packet socket on one interface, with a filter in the kernel and a decoder that never panics.
//!
//! A [`Program`] says which packets are wanted, [`Capture`] reads them as [`knockd_core::Packet`], [`interfaces`] and
//! [`LinkWatch`] tell where that is possible. Linux only (packet(7)).
#![forbid(unsafe_code)]

mod decode;
mod filter;
mod link;
mod masters;

use std::io;
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::Duration;

use knockd_core::Packet;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use pnet::datalink::{self, Channel, DataLinkReceiver};
use socket2::{Domain, Socket, Type};

pub use decode::{Ignored, decode};
pub use filter::Program;
pub use link::{Interface, LinkWatch, interfaces};

/// How long [`Capture::next_packet`] waits, so that the thread that calls it can be stopped.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// The default buffer holds about 277 small packets: fewer than may come while the reader sleeps.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// An open packet socket on one interface, not in promiscuous mode.
pub struct Capture {
    receiver: Box<dyn DataLinkReceiver>,
    socket: Arc<Socket>,
    interface: Interface,
}

impl Capture {
    /// Starts to capture what the program accepts, in both directions.
    ///
    /// The interface may be down; then [`Self::next_packet`] says so first, and packets come once it is up.
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

        let config = datalink::Config {
            // pnet closes this descriptor, when it fails and when the receiver is dropped.
            socket_fd: Some(socket.try_clone().map_err(failed)?.into_raw_fd()),
            read_timeout: Some(READ_TIMEOUT),
            promiscuous: false,
            ..datalink::Config::default()
        };
        match datalink::channel(&interface.to_pnet(), config).map_err(failed)? {
            Channel::Ethernet(_, receiver) => {
                Ok(Self { receiver, socket: Arc::new(socket), interface: interface.clone() })
            }
            _ => Err(failed(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Waits for a packet, at most a second.
    ///
    /// `None` means that none came, or one that knocking does not look at: call again.
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
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => return Ok(None),
            io::ErrorKind::TimedOut if self.exists() => return Ok(None),
            io::ErrorKind::TimedOut => {
                return Err(CaptureError::InterfaceGone { interface: self.interface.name.clone() });
            }
            _ => {}
        }
        // pnet polls but does not fetch the error that poll tells of; until it is fetched, every poll returns at once.
        let pending = self.socket.take_error().unwrap_or_else(Some);
        let error = pending.unwrap_or(error);
        match error.kind() {
            io::ErrorKind::NetworkDown => {
                Err(CaptureError::LinkDown { interface: self.interface.name.clone() })
            }
            _ => Err(CaptureError::Other { interface: self.interface.name.clone(), source: error }),
        }
    }

    /// A handle that changes the filter while another thread reads.
    pub fn filter_handle(&self) -> FilterHandle {
        FilterHandle { socket: Arc::clone(&self.socket) }
    }

    /// Says whether the interface still exists under its name; when the kernel cannot be asked, it does.
    fn exists(&self) -> bool {
        match if_nametoindex(self.interface.name.as_str()) {
            Ok(index) => index == self.interface.index,
            Err(error) => error != Errno::ENODEV,
        }
    }
}

/// Changes the filter of a [`Capture`]; it keeps the socket open, so drop it with the capture.
#[derive(Clone, Debug)]
pub struct FilterHandle {
    socket: Arc<Socket>,
}

impl FilterHandle {
    /// Replaces the filter in one step: every packet is judged by the old program or by the new one.
    ///
    /// Packets that the old program accepted may still be waiting to be read.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the new program, for want of memory; the old one stays.
    pub fn replace(&self, program: &Program) -> io::Result<()> {
        self.socket.attach_filter(&program.to_sock_filters())
    }
}

/// Why capturing could not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The process may not open packet sockets.
    #[error("capturing packets needs root or the capability CAP_NET_RAW")]
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
    #[error("{interface} is down")]
    LinkDown {
        /// Its name.
        interface: String,
    },
    /// The interface was deleted, renamed, or moved to another network namespace.
    #[error("{interface} no longer exists")]
    InterfaceGone {
        /// Its name.
        interface: String,
    },
    /// The kernel failed for a reason that is not expected.
    #[error("cannot read packets from {interface}")]
    Other {
        /// Its name.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
}
