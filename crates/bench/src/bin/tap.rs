//! A packet socket on `eth0` that wants nothing: what the kernel does for any such socket, without what a filter adds.

use std::io::{Write, stdout};
use std::os::fd::IntoRawFd;

use anyhow::{Context, Result};
use pnet::datalink;
use socket2::{Domain, SockFilter, Socket, Type};

fn main() -> Result<()> {
    let interfaces = datalink::interfaces();
    let eth0 = interfaces.iter().find(|found| found.name == "eth0").context("there is no eth0")?;
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    // The one instruction `return 0` (linux/filter.h).
    socket.attach_filter(&[SockFilter::new(6, 0, 0, 0)])?;
    let config = datalink::Config {
        socket_fd: Some(socket.try_clone()?.into_raw_fd()),
        promiscuous: false,
        ..datalink::Config::default()
    };
    datalink::channel(eth0, config)?;
    writeln!(stdout(), "listening")?;
    // Until it is killed.
    loop {
        std::thread::park();
    }
}
