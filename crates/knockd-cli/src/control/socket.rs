//! The daemon's side of the control socket: its threads read requests and write replies, so the engine waits for no
//! client.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{MAX_REQUEST, Reply, Request};
use crate::system::helper::{Helper, Named, Rights};
use crate::system::users;

/// The group that may use the socket, if there is one.
const GROUP: &str = "knockd";

/// The maximum number of clients; how many of them may belong to users other than root and the daemon's own; and how
/// many to one of these. So nobody can take every seat from root, or from another user alone.
const MAX_CLIENTS: usize = 16;
const MAX_OTHERS: usize = 12;
const MAX_OF_ONE: usize = 4;

/// How long a client may stay silent before its first request, and between two.
const FIRST_SILENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(60);

/// How long a request may take from its first byte to its line end, and a client to take a reply.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// How much is written at a time: the kernel starts the time for a write anew with each of its buffers.
const PIECE: usize = 16 * 1024;

/// How long the engine may take to answer; reading a configuration from a slow disk takes longest.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How many replies to [`Request::Trace`] wait for a client, of which so many are written at a time; more are skipped.
const TRACED: usize = 1024;
const TRACED_AT_ONCE: usize = 64;

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
    pub(crate) who: Who,
    /// Takes one answer, or [`TRACED`] of them, without blocking.
    pub(crate) reply: Sender<Answer>,
    /// Gone once the client is gone.
    pub(crate) connected: Weak<()>,
}

/// Who makes a request.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    /// The user, if the kernel names one.
    pub(crate) user: Option<u32>,
    /// The user and the process, for the log.
    pub(crate) text: String,
}

/// An answer of the engine.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The client's thread puts it into JSON.
    Reply(Reply),
    /// A [`Reply::Traced`] in JSON, shared by all who are told the same.
    Traced(Arc<str>),
}

/// Every source of requests: the socket, if there is one, and any other holder of a sender.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) requests: Receiver<QueuedRequest>,
    sender: Sender<QueuedRequest>,
    /// Shared by the sockets of all paths, because their clients stay.
    seats: Arc<Mutex<Seats>>,
    serving: Option<Serving>,
}

impl Control {
    /// Serves the socket, if there is one.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(bound: Option<Bound>) -> anyhow::Result<Self> {
        let (sender, requests) = bounded(QUEUE);
        let seats = Arc::default();
        let serving = bound.map(|bound| Serving::start(bound, &seats, sender.clone())).transpose()?;
        Ok(Self { requests, sender, seats, serving })
    }

    /// A control that is out of reach for everybody.
    pub(crate) fn closed() -> Self {
        let (sender, requests) = bounded(0);
        Self { requests, sender, seats: Arc::default(), serving: None }
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
    pub(crate) fn move_to(&mut self, path: Option<&Path>, rights: &Rights) -> anyhow::Result<Option<String>> {
        self.serving = None;
        let Some(path) = path else { return Ok(None) };
        let (bound, notice) = Bound::make(path, rights)?;
        self.serving = Some(Serving::start(bound, &self.seats, self.sender.clone())?);
        Ok(notice)
    }
}

/// A socket that accepts no clients yet. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: UnixListener,
    path: PathBuf,
    maker: Maker,
}

/// Who has made it, and removes it.
#[derive(Debug)]
enum Maker {
    /// This process; the numbers identify the file, because another one may replace it later.
    This((u64, u64)),
    Helper(Helper),
}

impl Bound {
    /// Creates the socket, replacing one left by a dead daemon, with its final permissions from the first moment. The
    /// second part is a notice about them.
    ///
    /// # Errors
    /// When it cannot be created, or the path is taken: by the socket of a running daemon, or by another kind of
    /// file.
    pub(crate) fn make(path: &Path, rights: &Rights) -> anyhow::Result<(Self, Option<String>)> {
        if let Rights::Helper(helper) = rights {
            let (listener, notices) = helper.open(Named::Control(path.to_owned()))?;
            let (path, maker) = (path.to_owned(), Maker::Helper(helper.clone()));
            return Ok((Self { listener: listener.into(), path, maker }, notices.into_iter().next()));
        }
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
        let maker = Maker::This((metadata.dev(), metadata.ino()));
        Ok((Self { listener, path: path.to_owned(), maker }, notice))
    }

    /// Returns the socket, for another process.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
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
        let identity = match &self.maker {
            Maker::This(identity) => *identity,
            Maker::Helper(helper) => return helper.remove(Named::Control(self.path.clone())),
        };
        let is_ours = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino()) == identity;
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
    fn start(bound: Bound, seats: &Arc<Mutex<Seats>>, sender: Sender<QueuedRequest>) -> anyhow::Result<Self> {
        let seats = Arc::clone(seats);
        let listener = bound.listener.try_clone().context("cannot serve the control socket")?;
        let (unwanted, wanted) = io::pipe().context("cannot serve the control socket")?;
        crate::system::spawn("control", move || accept(&listener, &unwanted, &seats, &sender))?;
        Ok(Self { bound, _wanted: wanted })
    }
}

fn accept(
    listener: &UnixListener,
    unwanted: &PipeReader,
    seats: &Mutex<Seats>,
    asking: &Sender<QueuedRequest>,
) {
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
        let who = who_is(&client);
        let seat = seats.lock().unwrap_or_else(PoisonError::into_inner).take(who.user);
        let seat = match seat {
            Ok(seat) => seat,
            Err(reason) => {
                let _ = write_reply(&client, &Reply::refused(reason));
                continue;
            }
        };
        let asking = asking.clone();
        // Without a thread, the client is disconnected.
        let _ = thread::Builder::new().name("control-client".to_owned()).spawn(move || {
            serve(&client, &who, &asking);
            drop(seat);
        });
    }
}

/// Who is being served: every client holds a copy of its user's seat.
#[derive(Default, Debug)]
struct Seats(BTreeMap<Option<u32>, Arc<()>>);

impl Seats {
    /// Returns a seat, or the reason why there is none for this user.
    fn take(&mut self, user: Option<u32>) -> Result<Arc<()>, String> {
        let is_owner = |user: Option<u32>| {
            user.is_some_and(|user| user == 0 || user == rustix::process::geteuid().as_raw())
        };
        self.0.retain(|_, seat| Arc::strong_count(seat) > 1);
        let taken = |counts: &dyn Fn(Option<u32>) -> bool| -> usize {
            let seats = self.0.iter().filter(|(user, _)| counts(**user));
            seats.map(|(_, seat)| Arc::strong_count(seat) - 1).sum()
        };
        if taken(&|_| true) >= MAX_CLIENTS {
            return Err(format!("too many clients: the limit is {MAX_CLIENTS}"));
        }
        if !is_owner(user) && taken(&|other| !is_owner(other)) >= MAX_OTHERS {
            return Err(format!("too many clients: the limit is {MAX_OTHERS} for users other than root"));
        }
        if !is_owner(user) && taken(&|other| other == user) >= MAX_OF_ONE {
            return Err(format!("too many clients: the limit is {MAX_OF_ONE} for one user"));
        }
        Ok(Arc::clone(self.0.entry(user).or_default()))
    }
}

/// Answers one request after another until the client disconnects or misbehaves.
fn serve(client: &UnixStream, who: &Who, asking: &Sender<QueuedRequest>) {
    let connected = Arc::new(());
    let mut requests = Requests { client, buffer: Vec::new(), silence: FIRST_SILENCE };
    while let Some(line) = requests.next() {
        let (reply, is_well) = match Request::parse(&line) {
            Ok(request) => {
                let room = if matches!(request, Request::Trace { .. }) { TRACED } else { 1 };
                let (reply, replies) = bounded(room);
                let ask =
                    QueuedRequest { request, who: who.clone(), reply, connected: Arc::downgrade(&connected) };
                match answer(ask, asking, &replies) {
                    Answer::Traced(first) => return pass_on(client, &first, &replies),
                    Answer::Reply(reply) => (reply, true),
                }
            }
            Err(reason) => (Reply::refused(reason), false),
        };
        if write_reply(client, &reply).is_err() || !is_well {
            return;
        }
    }
}

/// Reads a client's requests, within limits on their length and their time.
struct Requests<'a> {
    client: &'a UnixStream,
    /// What has arrived of the next ones.
    buffer: Vec<u8>,
    /// How long the client may be silent before the next one.
    silence: Duration,
}

impl Requests<'_> {
    /// Returns the next line, whole or longer than allowed; `None` if the client has gone or takes too long.
    fn next(&mut self) -> Option<Vec<u8>> {
        let silence = std::mem::replace(&mut self.silence, SILENCE);
        let mut end = Instant::now() + if self.buffer.is_empty() { silence } else { REQUEST_LIMIT };
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(at + 1);
                return Some(std::mem::replace(&mut self.buffer, rest));
            }
            if self.buffer.len() > MAX_REQUEST {
                return Some(std::mem::take(&mut self.buffer));
            }
            let left = end.saturating_duration_since(Instant::now());
            // A limit of zero is an error.
            self.client.set_read_timeout(Some(left)).ok()?;
            let mut chunk = [0; MAX_REQUEST];
            match self.client.read(&mut chunk) {
                Ok(0) if self.buffer.is_empty() => return None,
                Ok(0) => return Some(std::mem::take(&mut self.buffer)),
                Ok(length) => {
                    if self.buffer.is_empty() {
                        end = Instant::now() + REQUEST_LIMIT;
                    }
                    self.buffer.extend(chunk.get(..length).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}

/// Passes a request to the engine and waits for its answer.
fn answer(ask: QueuedRequest, asking: &Sender<QueuedRequest>, replies: &Receiver<Answer>) -> Answer {
    // The receiver is gone once the daemon is shutting down.
    let asked = asking.send_timeout(ask, ANSWER_LIMIT).is_ok();
    let answer = asked.then(|| replies.recv_timeout(ANSWER_LIMIT).ok()).flatten();
    let refused = || Reply::refused("knockd is shutting down, or too busy to answer");
    answer.unwrap_or_else(|| Answer::Reply(refused()))
}

/// Forwards what the engine tells until the client disconnects.
fn pass_on(client: &UnixStream, first: &str, answers: &Receiver<Answer>) {
    let line = |line: &str| [line, "\n"].concat().into_bytes();
    let mut written = write(client, &line(first));
    while written.is_ok() {
        written = match answers.recv_timeout(LOOK) {
            Ok(answer) => {
                let waiting = std::iter::once(answer).chain(answers.try_iter()).take(TRACED_AT_ONCE);
                let lines = waiting.flat_map(|answer| match answer {
                    Answer::Traced(text) => line(&text),
                    Answer::Reply(_) => Vec::new(),
                });
                write(client, &lines.collect::<Vec<_>>())
            }
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

fn write_reply(client: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    write(client, &line)
}

/// Writes everything, or fails after [`WRITE_LIMIT`], however little the client takes at a time.
fn write(mut client: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    let end = Instant::now() + WRITE_LIMIT;
    let mut written = 0;
    while let Some(piece) = bytes.get(written..).and_then(|rest| rest.chunks(PIECE).next()) {
        // A limit of zero is an error.
        client.set_write_timeout(Some(end.saturating_duration_since(Instant::now())))?;
        match client.write(piece) {
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns the user and the process at the other end.
fn who_is(client: &UnixStream) -> Who {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(client) else {
        return Who { user: None, text: "unknown user".to_owned() };
    };
    let user = peer.uid.as_raw();
    let name = users::name_of(user).unwrap_or_else(|| format!("user {user}"));
    Who { user: Some(user), text: format!("{name} (pid {})", peer.pid.as_raw_nonzero()) }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    /// A control socket whose engine refuses every request, with the request as the reason.
    fn served() -> (tempfile::TempDir, PathBuf, Control) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/control");
        let (bound, _) = Bound::make(&path, &Rights::Own).unwrap();
        let control = Control::start(Some(bound)).unwrap();
        let requests = control.requests.clone();
        thread::spawn(move || {
            for QueuedRequest { request, reply, .. } in requests {
                let _ = reply.try_send(Answer::Reply(Reply::refused(request.to_string())));
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
        let (bound, _) = Bound::make(&path, &Rights::Own).unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        let group = users::group(GROUP);
        assert!(mode == 0o600 || group.is_some() && mode == 0o660, "{mode:o}");
        let names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["control"]);
        let error = Bound::make(&path, &Rights::Own).unwrap_err().to_string();
        assert!(error.contains("another knockd"), "{error}");
        drop(bound);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(Bound::make(&path, &Rights::Own).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn what_another_has_put_in_its_place_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let (first, _) = Bound::make(&path, &Rights::Own).unwrap();
        fs::remove_file(&path).unwrap();
        let (_second, _) = Bound::make(&path, &Rights::Own).unwrap();
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

    #[test]
    fn who_is_connected_keeps_its_seat_when_the_socket_moves() {
        let (directory, path, mut control) = served();
        let _silent: Vec<_> = (0..MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let is_refused = |path: &Path| line(&UnixStream::connect(path).unwrap()).contains("too many clients");
        assert!(is_refused(&path));
        let elsewhere = directory.path().join("elsewhere");
        control.move_to(Some(&elsewhere), &Rights::Own).unwrap();
        assert!(is_refused(&elsewhere));
    }

    /// Takes seats for these users as long as there are some.
    fn take(seats: &mut Seats, users: impl IntoIterator<Item = u32>) -> Vec<Arc<()>> {
        users.into_iter().filter_map(|user| seats.take(Some(user)).ok()).collect()
    }

    #[test]
    fn no_user_has_more_than_four_seats_and_all_together_leave_four_for_root() {
        let mut seats = Seats::default();
        let one = take(&mut seats, [1000; 100]);
        assert_eq!(one.len(), 4);
        assert!(seats.take(Some(1000)).unwrap_err().contains("the limit is 4 for one user"));
        let others = take(&mut seats, 2000..2100);
        assert_eq!(others.len(), 8);
        assert!(seats.take(None).unwrap_err().contains("the limit is 12 for users other than root"));
        let root = take(&mut seats, [0; 100]);
        assert_eq!(root.len(), 4);
        assert!(seats.take(Some(0)).unwrap_err().ends_with("the limit is 16"));
        drop(one);
        assert_eq!(take(&mut seats, [0, 3000]).len(), 2);
        drop((others, root));
        assert_eq!(take(&mut seats, [0; 100]).len(), 16);
        assert_eq!(seats.0.len(), 1, "who has gone is forgotten");
    }

    #[test]
    fn who_sends_a_request_bit_by_bit_is_let_go_after_some_seconds() {
        let (_directory, path, _control) = served();
        let mut client = UnixStream::connect(&path).unwrap();
        let start = Instant::now();
        let end = start + Duration::from_secs(60);
        // Blanks before a request are a part of it, so each of these could be the start of one.
        while client.write_all(b" ").is_ok() {
            assert!(Instant::now() < end, "it is still served");
            thread::sleep(Duration::from_millis(100));
        }
        assert!(start.elapsed() >= REQUEST_LIMIT);
    }

    #[test]
    fn who_takes_a_reply_bit_by_bit_is_let_go_after_some_seconds() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let (done, is_done) = bounded::<()>(0);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 8192];
            while is_done.recv_timeout(Duration::from_millis(100)).is_err_and(|error| error.is_timeout()) {
                let _ = theirs.read(&mut bytes);
            }
        });
        assert!(write(&ours, &vec![b'x'; 64 << 20]).is_err());
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
        drop(done);
        reader.join().unwrap();
    }

    #[test]
    fn a_client_may_be_silent_between_two_requests_for_longer_than_one_may_take() {
        let (_directory, path, _control) = served();
        let client = UnixStream::connect(path).unwrap();
        assert_eq!(status(&client), ANSWER);
        thread::sleep(REQUEST_LIMIT + Duration::from_secs(1));
        assert_eq!(status(&client), ANSWER);
    }

    #[test]
    fn who_never_says_anything_is_let_go_after_some_seconds() {
        let (_directory, path, _control) = served();
        let mut client = UnixStream::connect(path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        // Before, this took a minute.
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
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
        let (bound, _) = Bound::make(&path, &Rights::Own).unwrap();
        let mut control = Control::start(Some(bound)).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        control.requests = crossbeam_channel::never();
        assert!(status(&client).contains("knockd is shutting down"));
        drop(control);
        assert!(!path.exists());
    }
}
