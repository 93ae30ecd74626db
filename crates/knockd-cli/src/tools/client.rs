//! The client's side of the control socket: `knockd status` and other requests to a running daemon.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};

use super::status;
use crate::Exit;
use crate::args::Format;
use crate::control::{Reply, Request};
use crate::system::text::harmless;

/// How long to wait for a reply.
const PATIENCE: Duration = Duration::from_secs(40);

/// A connection to a daemon.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the daemon at this socket.
    ///
    /// # Errors
    /// When there is none, or this user may not talk to it; the message says what to do.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).map_err(|error| explain(path, error))?;
        stream.set_read_timeout(Some(PATIENCE)).context("cannot talk to knockd")?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and waits for the reply: its line, and its meaning.
    ///
    /// # Errors
    /// When the daemon closes the connection or sends an unknown reply.
    pub fn ask(&mut self, request: &Request) -> anyhow::Result<(String, Reply)> {
        let mut line = serde_json::to_vec(request).context("cannot write the request")?;
        line.push(b'\n');
        // A daemon that disconnects us has said why.
        let _ = self.stream.get_mut().write_all(&line);
        self.receive()
    }

    /// Waits for further replies without a time limit from now on.
    ///
    /// # Errors
    /// When the system refuses that.
    pub fn wait_for_ever(&mut self) -> anyhow::Result<()> {
        self.stream.get_mut().set_read_timeout(None).context("cannot talk to knockd")
    }

    /// Waits for the next reply: its line, and its meaning.
    ///
    /// # Errors
    /// When the daemon closes the connection or sends an unknown reply.
    pub fn receive(&mut self) -> anyhow::Result<(String, Reply)> {
        let mut answer = String::new();
        self.stream.read_line(&mut answer).context("no answer from knockd")?;
        if answer.is_empty() {
            return Err(anyhow!("knockd closed the connection"));
        }
        let reply = serde_json::from_str(&answer)
            .context("unexpected reply from knockd; are both the same version?")?;
        Ok((answer, reply))
    }
}

fn explain(path: &Path, error: io::Error) -> anyhow::Error {
    let path = path.display();
    let help = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "is it running? If its configuration sets `ControlSocket`, name that path with --socket"
        }
        io::ErrorKind::PermissionDenied => "only root and members of the group knockd may use it",
        _ => return anyhow!(error).context(format!("cannot talk to knockd at {path}")),
    };
    anyhow!("cannot connect to knockd at {path}: {error}; {help}")
}

/// Sends one request and prints the reply.
///
/// # Errors
/// When no daemon is reachable, or it refuses; the message says why.
pub fn run(socket: &Path, request: &Request, format: Format) -> anyhow::Result<Exit> {
    let (line, reply) = Connection::open(socket)?.ask(request)?;
    let mut out = anstream::stdout();
    // A reader that closes the pipe, such as `head`, has seen enough.
    let _ = match (format, &reply) {
        (Format::Json, Reply::Status(status)) => {
            writeln!(out, "{}", serde_json::to_string_pretty(status).context("cannot print the status")?)
        }
        (Format::Json, _) => write!(out, "{line}"),
        (Format::Text, Reply::Status(status)) => write!(out, "{}", status::StatusText(status)),
        (Format::Text, Reply::Scanners(scanners)) => write!(out, "{}", status::ScannersText(scanners)),
        (Format::Text, Reply::Events { events }) => {
            events.iter().try_for_each(|event| writeln!(out, "{} {}", event.time, harmless(&event.text)))
        }
        (Format::Text, Reply::Done { text } | Reply::Traced { text, .. }) => {
            writeln!(out, "{}", harmless(text))
        }
        (Format::Text, Reply::Refused { reason }) => return Err(anyhow!("{}", harmless(reason))),
    };
    Ok(if matches!(reply, Reply::Refused { .. }) { Exit::Failed } else { Exit::Succeeded })
}
