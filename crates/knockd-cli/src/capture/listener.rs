//! The thread that waits for packets of one interface: it keeps a decoder process and checks what that says.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::Sender;
use knockd_capture::{Buffer, Interface, PacketSocket, Program};
use knockd_core::Packet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::capture::decoder;
use crate::capture::record::{self, Kept, Record};
use crate::log::Line;

/// The pause before a decoder is started anew; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// A decoder that has lived for that long was well; the pauses begin anew.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// What the listener says.
#[derive(Debug)]
pub(crate) enum Message {
    /// Packets came, in this order.
    Packets(Vec<Packet>),
    /// The kernel has dropped so many more packets, because they were not read in time.
    Dropped(u32),
    /// Something that should be logged.
    Line(Line),
    /// A decoder begins to read; in words, what it could not give up, if anything.
    Ready(Option<String>),
    /// The interface with this number is gone, and its listener has ended.
    Gone(u32),
}

/// An interface that is being listened to by a thread and a process; dropping it ends both at once.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) interface: Interface,
    /// Whether the kernel has taken the latest filter.
    pub(crate) has_filter: bool,
    socket: Arc<PacketSocket>,
    /// Closing it tells the thread to end.
    _wanted: PipeWriter,
}

impl Listener {
    /// Starts the thread, which says everything to `heard`.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub(crate) fn start(
        socket: PacketSocket,
        interface: Interface,
        heard: Sender<Message>,
    ) -> anyhow::Result<Self> {
        let socket = Arc::new(socket);
        let (unwanted, wanted) = io::pipe().context("cannot start the listener thread")?;
        let reporter = Reporter { interface: interface.name.clone(), index: interface.index, heard };
        let job = Job { socket: Arc::clone(&socket), unwanted, reporter };
        thread::Builder::new()
            .name("listener".to_owned())
            .spawn(move || job.listen())
            .context("cannot start the listener thread")?;
        Ok(Self { interface, has_filter: true, socket, _wanted: wanted })
    }

    /// Where its packets wait.
    pub(crate) fn buffer(&self) -> Buffer {
        self.socket.buffer()
    }

    /// How many ports its filter lets through that are not wanted.
    pub(crate) fn surplus(&self) -> u32 {
        self.socket.surplus()
    }

    /// Changes what is listened for.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub(crate) fn set_filter(&mut self, program: &Program) -> anyhow::Result<()> {
        let result = self.socket.set_filter(program).context("cannot change the packet filter");
        self.has_filter = result.is_ok();
        result
    }
}

/// What the thread works with.
struct Job {
    socket: Arc<PacketSocket>,
    /// Closed at the other end when the listener is dropped.
    unwanted: PipeReader,
    reporter: Reporter,
}

/// Why a decoder is not listened to any more.
enum End {
    /// Nobody wants to hear, or there is nothing more to be heard.
    Over,
    /// The decoder cannot go on for this reason, which follows its name; another one may.
    Failed(String),
}

impl Job {
    fn listen(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let start = Instant::now();
            // The packets that come between two decoders wait in the socket.
            let end = match Decoder::start(self) {
                Ok(mut decoder) => self.listen_to(&mut decoder),
                Err(error) => End::Failed(format!("cannot be started: {error}")),
            };
            let End::Failed(reason) = end else { return };
            if start.elapsed() >= LONG_LIFE {
                pause = FIRST_PAUSE;
            }
            if self.reporter.warn(&reason).is_err() || !self.is_wanted_after(pause) {
                return;
            }
            pause = LAST_PAUSE.min(pause * 2);
        }
    }

    fn listen_to(&self, decoder: &mut Decoder) -> End {
        let mut buffer = vec![0; record::BATCH];
        loop {
            match self.wait_for(&decoder.records) {
                Ok(true) => {}
                Ok(false) => return End::Over,
                Err(error) => return End::Failed(format!("cannot be listened to: {error}")),
            }
            // What was written at once is read at once (SOCK_SEQPACKET, unix(7)), so no record is ever cut.
            let bytes = match rustix::io::read(&decoder.records, &mut buffer) {
                Ok(0) => return End::Failed(decoder.last_words()),
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(error) => return End::Failed(format!("cannot be listened to: {error}")),
            };
            if let Err(end) = self.reporter.pass_on(bytes, &mut decoder.notes) {
                return end;
            }
        }
    }

    /// Waits for the decoder to speak or to end; says whether somebody still wants to know.
    fn wait_for(&self, records: &OwnedFd) -> io::Result<bool> {
        let mut polled = [PollFd::new(records, PollFlags::IN), PollFd::new(&self.unwanted, PollFlags::IN)];
        while let Err(error) = poll(&mut polled, None) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        let [_, unwanted] = polled;
        Ok(unwanted.revents().is_empty())
    }

    fn is_wanted_after(&self, pause: Duration) -> bool {
        let pause = Timespec::try_from(pause).ok();
        // An interruption makes the pause shorter, which does no harm.
        poll(&mut [PollFd::new(&self.unwanted, PollFlags::IN)], pause.as_ref()).is_ok_and(|ready| ready == 0)
    }
}

/// Tells the engine what the decoder of an interface says, and what becomes of it.
struct Reporter {
    interface: String,
    index: u32,
    heard: Sender<Message>,
}

impl Reporter {
    /// Checks what the decoder has said, and tells it.
    fn pass_on(&self, bytes: &[u8], notes: &mut Notes) -> Result<(), End> {
        let lie = |_| End::Failed("does not say what it should, it is ended".to_owned());
        let (records, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return Err(lie(record::Malformed));
        }
        let mut packets = Vec::with_capacity(records.len());
        let mut result = Ok(());
        for record in records {
            // The packets before a lie are not believed either.
            let record = Record::from_bytes(record).map_err(lie)?;
            if matches!(record, Record::LinkDown | Record::Ready(_)) && !notes.admit(Instant::now()) {
                return Err(lie(record::Malformed));
            }
            match record {
                Record::Packet(packet) => packets.push(packet),
                Record::LinkDown => self.note(format!("{} is down", self.interface))?,
                Record::InterfaceGone => {
                    self.note(format!("{} no longer exists", self.interface))?;
                    self.say(Message::Gone(self.index))?;
                    result = Err(End::Over);
                }
                Record::Failed(number) => {
                    let error = io::Error::from_raw_os_error(number.into());
                    result = Err(End::Failed(format!("cannot read packets: {error}")));
                }
                Record::Ready(kept) => self.say(Message::Ready(explain(kept)))?,
                Record::Dropped(count) => self.say(Message::Dropped(count))?,
            }
        }
        if !packets.is_empty() {
            self.say(Message::Packets(packets))?;
        }
        result
    }

    fn warn(&self, reason: &str) -> Result<(), End> {
        let text = format!("{}: the packet decoder {reason}; another one is started", self.interface);
        self.say(Message::Line(Line::warning(text)))
    }

    fn note(&self, text: String) -> Result<(), End> {
        self.say(Message::Line(Line::notice(text)))
    }

    /// Fails when nobody listens any more.
    fn say(&self, heard: Message) -> Result<(), End> {
        self.heard.send(heard).map_err(|_| End::Over)
    }
}

/// The sentence about what a decoder has kept; none when it has kept nothing.
fn explain(kept: Kept) -> Option<String> {
    let reason = |number: u16| io::Error::from_raw_os_error(number.into()).to_string();
    let user = match i32::from(kept.user) {
        nix::libc::EPERM => {
            "changing it needs the capabilities CAP_SETUID, CAP_SETGID and CAP_KILL".to_owned()
        }
        _ => reason(kept.user),
    };
    let parts = [
        (kept.user, format!("it keeps user {}, since {user}", nix::unistd::geteuid())),
        (kept.capabilities, format!("it keeps its capabilities ({})", reason(kept.capabilities))),
        (kept.files, format!("Landlock does not keep it from files ({})", reason(kept.files))),
        (kept.calls, format!("seccomp does not restrict its system calls ({})", reason(kept.calls))),
    ];
    let parts: Vec<_> = parts.into_iter().filter(|(number, _)| *number != 0).map(|(_, text)| text).collect();
    (!parts.is_empty())
        .then(|| format!("the packet decoder has more rights than it needs: {}", parts.join("; ")))
}

/// Counts what a decoder says that makes work or a line in the log: who takes one over could say it without end.
#[derive(Debug)]
struct Notes {
    /// When it may say as much as at first again.
    even: Instant,
}

impl Notes {
    /// How much it may say at once, and how soon one thing more.
    const MOST: u32 = 16;
    const EVERY: Duration = Duration::from_secs(1);

    fn new() -> Self {
        Self { even: Instant::now() }
    }

    /// Says whether this is not too much.
    fn admit(&mut self, now: Instant) -> bool {
        self.even = self.even.max(now) + Self::EVERY;
        self.even.saturating_duration_since(now) <= Self::EVERY * Self::MOST
    }
}

/// A decoder process; dropping it ends it.
struct Decoder {
    child: Child,
    records: OwnedFd,
    notes: Notes,
}

impl Decoder {
    /// Starts it. It ends with the thread that calls this.
    fn start(job: &Job) -> io::Result<Self> {
        let (records, speak) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let socket = job.socket.as_fd().try_clone_to_owned()?;
        // This very program, even if an upgrade has replaced its file: both sides have to agree on the records.
        let child = Command::new("/proc/self/exe")
            .arg0(decoder::NAME)
            .args([&job.reporter.index.to_string(), &job.reporter.interface])
            .env_clear()
            .stdin(socket)
            .stdout(speak)
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self { child, records, notes: Notes::new() })
    }

    /// Says how it ended, after it has closed its socket.
    fn last_words(&mut self) -> String {
        // In case it lives on without the socket; one that is ending has its status already.
        let _ = self.child.kill();
        match self.child.wait() {
            Ok(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("was killed by signal {signal}"),
                (None, code) => format!("has ended with status {}", code.unwrap_or_default()),
            },
            Err(error) => format!("has ended: {error}"),
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // It may have ended and been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::Receiver;
    use knockd_core::Hit;

    use super::*;

    fn reporter() -> (Reporter, Receiver<Message>) {
        let (sender, heard) = crossbeam_channel::unbounded();
        (Reporter { interface: "eth0".to_owned(), index: 2, heard: sender }, heard)
    }

    fn packet(port: u16) -> Packet {
        let address = "192.0.2.1".parse().unwrap();
        Packet { source: address, destination: address, hit: Hit::Udp { port } }
    }

    fn bytes(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(Record::to_bytes).collect()
    }

    #[test]
    fn packets_are_passed_on_in_order() {
        let (reporter, heard) = reporter();
        let said = [1, 2, 3].map(packet);
        assert!(reporter.pass_on(&bytes(&said.map(Record::Packet)), &mut Notes::new()).is_ok());
        let heard: Vec<_> = heard.try_iter().collect();
        assert!(matches!(heard.as_slice(), [Message::Packets(packets)] if *packets == said), "{heard:?}");
    }

    #[test]
    fn a_decoder_that_says_anything_else_is_not_believed_at_all() {
        let good = bytes(&[Record::Packet(packet(1))]);
        let cut = good.split_last().unwrap().1;
        let unknown = [9; record::SIZE];
        for said in [[&good, cut].concat(), [&good[..], &unknown].concat(), vec![0]] {
            let (reporter, heard) = reporter();
            assert!(matches!(reporter.pass_on(&said, &mut Notes::new()), Err(End::Failed(_))), "{said:?}");
            assert!(heard.is_empty(), "{said:?}");
        }
    }

    #[test]
    fn an_interface_that_is_gone_ends_it_and_an_error_wants_another_decoder() {
        let (reporter, heard) = reporter();
        let said = bytes(&[Record::Packet(packet(1)), Record::InterfaceGone]);
        assert!(matches!(reporter.pass_on(&said, &mut Notes::new()), Err(End::Over)));
        let heard: Vec<_> = heard.try_iter().collect();
        assert!(
            matches!(heard.as_slice(), [Message::Line(_), Message::Gone(2), Message::Packets(_)]),
            "{heard:?}"
        );
        let failed = reporter.pass_on(&bytes(&[Record::Failed(12)]), &mut Notes::new());
        assert!(matches!(failed, Err(End::Failed(_))));
    }

    #[test]
    fn a_decoder_that_fills_the_log_is_not_believed() {
        let (reporter, heard) = reporter();
        let mut notes = Notes::new();
        for record in [Record::LinkDown, Record::Ready(Kept::default())] {
            assert!(reporter.pass_on(&bytes(&[record]), &mut notes).is_ok());
        }
        let flood = bytes(&[Record::LinkDown; 100]);
        assert!(matches!(reporter.pass_on(&flood, &mut notes), Err(End::Failed(_))));
        assert!(heard.try_iter().count() <= 16);
        assert!(notes.admit(notes.even));
    }

    #[test]
    fn what_is_kept_is_told_and_nothing_else() {
        assert_eq!(explain(Kept::default()), None);
        let text = explain(Kept { files: 38, ..Kept::default() }).unwrap();
        assert!(text.contains("Landlock") && !text.contains("seccomp") && !text.contains("user"), "{text}");
        let text = explain(Kept { user: 1, ..Kept::default() }).unwrap();
        assert!(text.ends_with("CAP_SETUID, CAP_SETGID and CAP_KILL"), "{text}");
    }
}
