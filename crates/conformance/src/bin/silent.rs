//! Listens on a TCP port of its host and never says anything to clients.

use std::net::{Ipv6Addr, TcpListener};

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let port: u16 = std::env::args().nth(1).context("no port was named")?.parse()?;
    // This includes IPv4, unless the machine has disabled that (ipv6(7), IPV6_V6ONLY).
    let _listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    println!("listening");
    loop {
        std::thread::park();
    }
}
