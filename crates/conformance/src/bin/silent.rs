//! Listens on a TCP port of the host it runs on and never says anything to those who connect.

use std::net::{Ipv6Addr, TcpListener};

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let port: u16 = std::env::args().nth(1).context("no port was named")?.parse()?;
    // Of IPv4 too, unless the machine has switched that off (ipv6(7), IPV6_V6ONLY).
    let _listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    println!("listening");
    loop {
        std::thread::park();
    }
}
