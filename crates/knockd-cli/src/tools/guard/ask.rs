//! Asking a daemon that may be dead or hung.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;

use crate::control::{Reply, Request};
use crate::system::text::harmless;
use crate::tools::client::Connection;

/// How long a daemon may take that does its work.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a daemon says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Done(String),
    Refused(String),
    /// There is no daemon, or it has no control socket.
    NobodyThere,
    /// There is one, but it does not do its work.
    Silence,
}

/// Asks the daemon with this control socket.
pub(super) fn ask(socket: Option<PathBuf>, request: Request) -> Answer {
    let Some(socket) = socket else { return Answer::NobodyThere };
    let (sender, answer) = bounded(1);
    // Even connecting can block: a daemon that is hung for long accepts nobody.
    let asking = thread::Builder::new().spawn(move || {
        let answer = match Connection::open(&socket) {
            Ok(mut daemon) => match daemon.ask(&request) {
                Ok((_, Reply::Done { text })) => Answer::Done(harmless(&text)),
                Ok((_, Reply::Refused { reason })) => Answer::Refused(harmless(&reason)),
                Ok(_) | Err(_) => Answer::Silence,
            },
            Err(_) => Answer::NobodyThere,
        };
        let _ = sender.send(answer);
    });
    asking.ok().and_then(|_| answer.recv_timeout(PATIENCE).ok()).unwrap_or(Answer::Silence)
}
