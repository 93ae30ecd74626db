//! Replaces `raw.rs` on systems whose raw sockets do not send TCP, such as Windows.

use std::convert::Infallible;
use std::io;

use knockd_core::TcpFlags;

use crate::Target;

/// A raw socket that cannot exist here.
#[derive(Debug)]
pub(crate) struct RawTcp(Infallible);

impl RawTcp {
    pub(crate) fn open(_target: Target) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn send(&self, _port: u16, _flags: TcpFlags) -> io::Result<()> {
        match self.0 {}
    }
}
