//! Runs a client again and again, each time for a knock of three hits at this host without a delay: prints the
//! nanoseconds from before its start to the arrival of the last hit.

use std::io::{self, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;

/// Measures how long a client takes from its start to its last packet
#[derive(Parser)]
struct Arguments {
    /// The client
    program: PathBuf,
    /// How often to run it
    count: u32,
}

fn main() -> Result<()> {
    let Arguments { program, count } = Arguments::parse();
    let last = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    last.set_read_timeout(Some(Duration::from_secs(20)))?;
    let hits = ["7000".to_owned(), "8000".to_owned(), format!("{}:udp", last.local_addr()?.port())];
    for _ in 0..count {
        let start = Instant::now();
        let mut knock = Command::new(&program).arg("127.0.0.1").args(&hits).spawn()?;
        last.recv(&mut [0; 16]).context("the last hit does not come")?;
        let taken = start.elapsed();
        ensure!(knock.wait()?.success(), "the client fails");
        writeln!(io::stdout(), "{}", taken.as_nanos())?;
    }
    Ok(())
}
