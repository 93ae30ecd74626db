//! The daemon's side of the control socket: its threads read requests and write replies, so the engine waits for no
//! client.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{MAX_REQUEST, Reply, Request};
use crate::system::users;

/// The group that may use the socket, if there is one.
const GROUP: &str = "knockd";

/// The maximum number of clients.
const MAX_CLIENTS: usize = 16;

/// How long a client may stay silent, or leave its reply unread, before it is disconnected.
const PATIENCE: Duration = Duration::from_secs(60);
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// How long the engine may take to answer; reading a configuration from a slow disk takes longest.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How many replies to [`Request::Trace`] wait for a client; more are skipped.
const TRACED: usize = 1024;

/// How often to check whether a client that receives nothing is still there.
const LOOK: Duration = Duration::from_secs(1);

/// The pause before checking again whether a daemon is running; the second one is twice as long.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How many requests wait for the engine.
const QUEUE: usize = MAX_CLIENTS;

/// A request on its way to the engine.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    pub(crate) request: Request,
    /// The client, for the log.
    pub(crate) who: String,
    /// Takes one reply, or [`TRACED`] of them, without blocking.
    pub(crate) reply: Sender<Reply>,
    /// Gone once the client is gone.
    pub(crate) listening: Weak<()>,
}

/// Every source of requests: the socket, if there is one, and any other holder of a sender.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) requests: Receiver<QueuedRequest>,
    sender: Sender<QueuedRequest>,
    serving: Option<Serving>,
}

impl Control {
    /// Serves the socket, if there is one.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(bound: Option<Bound>) -> anyhow::Result<Self> {
        let (sender, requests) = bounded(QUEUE);
        let serving = bound.map(|bound| Serving::start(bound, sender.clone())).transpose()?;
        Ok(Self { requests, sender, serving })
    }

    /// A control that is out of reach for everybody.
    pub(crate) fn closed() -> Self {
        let (sender, requests) = bounded(0);
        Self { requests, sender, serving: None }
    }

    /// Returns a sender for others with requests.
    pub(crate) fn sender(&self) -> Sender<QueuedRequest> {
        self.sender.clone()
    }

    /// Returns the path of the socket, if there is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.serving.as_ref().map(|serving| serving.bound.path.as_path())
    }

    /// Moves the socket to another path, or closes it. Connected clients stay.
    ///
    /// # Errors
    /// When the socket cannot be created; then there is none.
    pub(crate) fn move_to(&mut self, path: Option<&Path>) -> anyhow::Result<Option<String>> {
        self.serving = None;
        let Some(path) = path else { return Ok(None) };
        let (bound, notice) = Bound::make(path)?;
        self.serving = Some(Serving::start(bound, self.sender.clone())?);
        Ok(notice)
    }
}

/// A socket that accepts no clients yet. It has no thread, so it survives the fork. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: UnixListener,
    path: PathBuf,
    /// Identifies the file, because another one may replace it later.
    identity: (u64, u64),
}

impl Bound {
    /// Creates the socket, replacing one left by a dead daemon, with its final permissions from the first moment. The
    /// second part is a notice about them.
    ///
    /// # Errors
    /// When it cannot be created, or the path is taken: by the socket of a running daemon, or by another kind of
    /// file.
    pub(crate) fn make(path: &Path) -> anyhow::Result<(Self, Option<String>)> {
        let directory =
            path.parent().filter(|parent| *parent != Path::new("")).context("path has no directory")?;
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                bail!("exists and is not a socket");
            }
            if is_served(path) {
                bail!("in use by another knockd; give each its own `ControlSocket`");
            }
        }
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        // Nobody else can reach into this directory, so nobody connects before the permissions are right.
        let workshop = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(directory)?;
        let fresh = workshop.path().join("s");
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        let mut notice = None;
        if let Some(group) = users::group(GROUP) {
            let shared = chown(&fresh, None, Some(group))
                .and_then(|()| fs::set_permissions(&fresh, Permissions::from_mode(0o660)));
            notice = shared.err().map(|error| {
                format!(
                    "cannot give the control socket {} to the group {GROUP}: {error}; knockd must be a \
                     member of the group",
                    path.display()
                )
            });
        }
        let metadata = fs::symlink_metadata(&fresh)?;
        fs::rename(&fresh, path)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok((Self { listener, path: path.to_owned(), identity }, notice))
    }
}

/// Says whether a running daemon has this socket. A child that a killed daemon was starting holds its files for a
/// moment, so this checks repeatedly.
fn is_served(path: &Path) -> bool {
    (0..3).all(|round| {
        thread::sleep(LOOK_AGAIN * round);
        UnixStream::connect(path).is_ok()
    })
}

impl Drop for Bound {
    fn drop(&mut self) {
        let is_ours = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).as_ref().is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A thread that accepts clients; dropping it stops the thread and removes the socket.
#[derive(Debug)]
struct Serving {
    bound: Bound,
    /// Closing it tells the thread to end.
    _wanted: PipeWriter,
}

impl Serving {
    fn start(bound: Bound, sender: Sender<QueuedRequest>) -> anyhow::Result<Self> {
        let listener = bound.listener.try_clone().context("cannot serve the control socket")?;
        let (unwanted, wanted) = io::pipe().context("cannot serve the control socket")?;
        crate::system::spawn("control", move || accept(&listener, &unwanted, &sender))?;
        Ok(Self { bound, _wanted: wanted })
    }
}

fn accept(listener: &UnixListener, unwanted: &PipeReader, asking: &Sender<QueuedRequest>) {
    // Every client holds a copy.
    let seats = Arc::new(());
    loop {
        let mut polled = [PollFd::new(listener, PollFlags::IN), PollFd::new(unwanted, PollFlags::IN)];
        let ready = poll(&mut polled, None);
        if polled.get(1).is_some_and(|unwanted| !unwanted.revents().is_empty()) {
            return;
        }
        let Some(client) = ready.ok().and_then(|_| listener.accept().ok()).map(|(client, _)| client) else {
            // Perhaps no descriptor is left; there may be one in a moment.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        let _ = client.set_write_timeout(Some(WRITE_LIMIT)).and(client.set_read_timeout(Some(PATIENCE)));
        if Arc::strong_count(&seats) > MAX_CLIENTS {
            let _ = write(&client, &Reply::refused(format!("too many clients: the limit is {MAX_CLIENTS}")));
            continue;
        }
        let (seat, asking) = (Arc::clone(&seats), asking.clone());
        // Without a thread, the client is disconnected.
        let _ = thread::Builder::new().name("control-client".to_owned()).spawn(move || {
            serve(&client, &asking);
            drop(seat);
        });
    }
}

/// Answers one request after another until the client disconnects or misbehaves.
fn serve(client: &UnixStream, asking: &Sender<QueuedRequest>) {
    let who = who_is(client);
    let listening = Arc::new(());
    let mut lines = BufReader::new(client);
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_REQUEST).unwrap_or(u64::MAX) + 1;
        match (&mut lines).take(limit).read_until(b'\n', &mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        let (reply, is_well) = match Request::parse(&line) {
            Ok(request) => {
                let room = if matches!(request, Request::Trace { .. }) { TRACED } else { 1 };
                let (reply, replies) = bounded(room);
                let ask =
                    QueuedRequest { request, who: who.clone(), reply, listening: Arc::downgrade(&listening) };
                let first = answer(ask, asking, &replies);
                if matches!(first, Reply::Traced { .. }) {
                    return pass_on(client, &first, &replies);
                }
                (first, true)
            }
            Err(reason) => (Reply::refused(reason), false),
        };
        if write(client, &reply).is_err() || !is_well {
            return;
        }
    }
}

/// Passes a request to the engine and waits for its reply.
fn answer(ask: QueuedRequest, asking: &Sender<QueuedRequest>, replies: &Receiver<Reply>) -> Reply {
    // The receiver is gone once the daemon is shutting down.
    let asked = asking.send_timeout(ask, ANSWER_LIMIT).is_ok();
    let reply = asked.then(|| replies.recv_timeout(ANSWER_LIMIT).ok()).flatten();
    reply.unwrap_or_else(|| Reply::refused("knockd is shutting down, or too busy to answer"))
}

/// Forwards the engine's replies until the client disconnects.
fn pass_on(client: &UnixStream, first: &Reply, replies: &Receiver<Reply>) {
    let mut written = write(client, first);
    while written.is_ok() {
        written = match replies.recv_timeout(LOOK) {
            Ok(reply) => write(client, &reply),
            // The client has nothing more to say: anything that it does is the end.
            Err(RecvTimeoutError::Timeout) if is_silent(client) => Ok(()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
        };
    }
}

fn is_silent(client: &UnixStream) -> bool {
    let now = Timespec::default();
    poll(&mut [PollFd::new(client, PollFlags::IN | PollFlags::RDHUP)], Some(&now))
        .is_ok_and(|ready| ready == 0)
}

fn write(mut client: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    client.write_all(&line)
}

/// Returns the user and the process at the other end, for the log.
fn who_is(client: &UnixStream) -> String {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(client) else { return "unknown user".to_owned() };
    let uid = peer.uid.as_raw();
    let name = users::name_of(uid).unwrap_or_else(|| format!("user {uid}"));
    format!("{name} (pid {})", peer.pid.as_raw_nonzero())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A control socket whose engine refuses every request, with the request as the reason.
    fn served() -> (tempfile::TempDir, PathBuf, Control) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/control");
        let (bound, _) = Bound::make(&path).unwrap();
        let control = Control::start(Some(bound)).unwrap();
        let requests = control.requests.clone();
        thread::spawn(move || {
            for QueuedRequest { request, reply, .. } in requests {
                let _ = reply.try_send(Reply::refused(request.to_string()));
            }
        });
        (directory, path, control)
    }

    fn line(client: &UnixStream) -> String {
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).unwrap();
        line
    }

    fn status(mut client: &UnixStream) -> String {
        client.write_all(b"{\"request\":\"status\"}\n").unwrap();
        line(client)
    }

    const ANSWER: &str = "{\"reply\":\"refused\",\"reason\":\"status\"}\n";

    #[test]
    fn the_socket_is_for_its_owner_replaces_a_dead_one_and_goes_with_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        drop(UnixListener::bind(&path).unwrap());
        let (bound, _) = Bound::make(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        let group = users::group(GROUP);
        assert!(mode == 0o600 || group.is_some() && mode == 0o660, "{mode:o}");
        let names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["control"]);
        let error = Bound::make(&path).unwrap_err().to_string();
        assert!(error.contains("another knockd"), "{error}");
        drop(bound);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(Bound::make(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn what_another_has_put_in_its_place_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let (first, _) = Bound::make(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let (_second, _) = Bound::make(&path).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn requests_are_answered_one_after_the_other() {
        let (_directory, path, _control) = served();
        let client = UnixStream::connect(path).unwrap();
        assert_eq!([status(&client), status(&client)], [ANSWER, ANSWER]);
    }

    #[test]
    fn garbage_is_refused_and_its_sender_let_go() {
        let (_directory, path, _control) = served();
        for garbage in [&b"what?\n"[..], &[0xff; 10_000], &[b'['; 10_000], b"\n"] {
            let mut client = UnixStream::connect(&path).unwrap();
            // The daemon may close the connection before everything is written.
            let _ = client.write_all(garbage);
            let _ = client.shutdown(std::net::Shutdown::Write);
            let mut said = Vec::new();
            let _ = client.read_to_end(&mut said);
            assert!(said.is_empty() || said.starts_with(b"{\"reply\":\"refused\""), "{said:?}");
        }
        assert_eq!(status(&UnixStream::connect(&path).unwrap()), ANSWER);
    }

    #[test]
    fn those_who_say_nothing_or_read_nothing_take_seats_and_no_more() {
        let (_directory, path, _control) = served();
        let silent: Vec<_> = (0..MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let refused = line(&UnixStream::connect(&path).unwrap());
        assert!(refused.contains("too many clients: the limit is 16"), "{refused}");
        drop(silent);
        let end = Instant::now() + Duration::from_secs(20);
        while status_if_seated(&path).as_deref() != Some(ANSWER) {
            assert!(Instant::now() < end);
        }
    }

    fn status_if_seated(path: &Path) -> Option<String> {
        let mut client = UnixStream::connect(path).ok()?;
        client.write_all(b"{\"request\":\"status\"}\n").ok()?;
        let mut answer = String::new();
        BufReader::new(client).read_line(&mut answer).ok()?;
        Some(answer)
    }

    #[test]
    fn when_the_engine_is_gone_the_client_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let (bound, _) = Bound::make(&path).unwrap();
        let mut control = Control::start(Some(bound)).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        control.requests = crossbeam_channel::never();
        assert!(status(&client).contains("knockd is shutting down"));
        drop(control);
        assert!(!path.exists());
    }
}
