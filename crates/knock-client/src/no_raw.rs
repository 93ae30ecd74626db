//! Replaces `raw.rs` on systems whose raw sockets do not send TCP, such as Windows.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use knockd_core::TcpFlags;
use socket2::Domain;

/// A raw socket that cannot exist here.
#[derive(Debug)]
pub(crate) struct RawTcp(Infallible);

impl RawTcp {
    pub(crate) fn open(_domain: Domain, _flags: TcpFlags) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn send(&self, _destination: SocketAddr) -> io::Result<()> {
        match self.0 {}
    }
}
