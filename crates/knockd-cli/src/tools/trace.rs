//! `knockd trace`: what happens to packets, live from the running daemon.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, anyhow};

use super::client::Connection;
use crate::Exit;
use crate::args::Format;
use crate::control::{Reply, Request};
use crate::system::text::harmless;

/// Prints what happens to the packets of a source, or of all, until it is interrupted.
///
/// # Errors
/// When no daemon is reachable, or it closes the connection.
pub fn run(socket: &Path, address: Option<IpAddr>, format: Format) -> anyhow::Result<Exit> {
    let mut connection = Connection::open(socket)?;
    let mut reply = connection.ask(&Request::Trace { address })?.1;
    connection.wait_for_ever()?;
    // One line at a time, so a reader at the other end of a pipe does not wait.
    let mut out = io::stdout().lock();
    loop {
        let printed = match (format, reply) {
            (Format::Json, Reply::Traced { event, .. }) => writeln!(out, "{event}"),
            (Format::Text, Reply::Traced { text, .. }) => writeln!(out, "{}", harmless(&text)),
            (_, Reply::Refused { reason }) => return Err(anyhow!("{}", harmless(&reason))),
            (_, Reply::Status(_) | Reply::Scanners(_) | Reply::Events { .. } | Reply::Done { .. }) => Ok(()),
        };
        printed.and_then(|()| out.flush())?;
        reply = connection.receive().context("trace ended")?.1;
    }
}
