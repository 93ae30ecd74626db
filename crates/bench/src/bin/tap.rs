//! A packet socket on `eth0` that wants nothing: the kernel's cost of any such socket, without the cost of a filter.

use std::io::{Write, stdout};

use anyhow::{Context, Result};
use bench::deaf_socket;
use pnet::datalink;
use socket2::Type;

fn main() -> Result<()> {
    let interfaces = datalink::interfaces();
    let eth0 = interfaces.iter().find(|found| found.name == "eth0").context("there is no eth0")?;
    let _socket = deaf_socket(eth0, Type::DGRAM)?;
    writeln!(stdout(), "listening")?;
    // Until it is killed.
    loop {
        std::thread::park();
    }
}
