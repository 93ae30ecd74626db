//! `knockd trace`: what becomes of packets, live from the running daemon.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, anyhow};

use super::client::Connection;
use crate::Exit;
use crate::args::Format;
use crate::control::{Reply, Request};
use crate::system::text::harmless;

/// Prints what becomes of the packets of a source, or of all, until somebody ends it.
///
/// # Errors
/// When no daemon can be asked, or when it goes away.
pub fn run(socket: &Path, address: Option<IpAddr>, format: Format) -> anyhow::Result<Exit> {
    let mut connection = Connection::open(socket)?;
    let mut reply = connection.ask(&Request::Trace { address })?.1;
    connection.wait_for_ever()?;
    // A line at a time, so that whoever reads them through a pipe does not wait.
    let mut out = io::stdout().lock();
    loop {
        let printed = match (format, reply) {
            (Format::Json, Reply::Traced { event, .. }) => writeln!(out, "{event}"),
            (Format::Text, Reply::Traced { text, .. }) => writeln!(out, "{}", harmless(&text)),
            (_, Reply::Refused { reason }) => return Err(anyhow!("{}", harmless(&reason))),
            (_, Reply::Status(_) | Reply::Done { .. }) => Ok(()),
        };
        printed.and_then(|()| out.flush())?;
        reply = connection.next().context("trace ended")?.1;
    }
}
