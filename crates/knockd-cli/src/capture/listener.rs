//! The thread that waits for packets on one interface: it runs a decoder process and checks its records.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::Sender;
use knockd_capture::{Buffer, Interface, PacketSocket, Program};
use knockd_core::Packet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::capture::decoder;
use crate::capture::record::{self, Kept, Record};
use crate::log::Line;
use crate::system::spawn;

/// The pause before a decoder is restarted; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// If a decoder has run this long, the pauses start over.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// A message from a listener to the loop.
#[derive(Debug)]
pub(crate) enum Message {
    /// Packets arrived, in this order.
    Packets(Vec<Packet>),
    /// The kernel dropped this many more packets because they were not read in time.
    Dropped(u32),
    /// A line for the log.
    Line(Line),
    /// A decoder is about to read; the text names what it could not give up, if anything.
    Ready(Option<String>),
}

/// An interface served by a thread and a process; dropping it ends both at once.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) interface: Interface,
    /// Whether the kernel accepted the latest filter.
    pub(crate) has_filter: bool,
    socket: Arc<PacketSocket>,
    /// Closing it ends the thread.
    _stop: PipeWriter,
}

impl Listener {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub(crate) fn start(
        socket: PacketSocket,
        interface: Interface,
        messages: Sender<Message>,
    ) -> anyhow::Result<Self> {
        let socket = Arc::new(socket);
        let (stopped, stop) = io::pipe().context("cannot start the listener thread")?;
        let reporter = Reporter { interface: interface.name.clone(), messages };
        let thread = Thread { socket: Arc::clone(&socket), stopped, reporter };
        spawn("listener", move || thread.run())?;
        Ok(Self { interface, has_filter: true, socket, _stop: stop })
    }

    /// Says whether the kernel still has the socket bound to the interface.
    pub(crate) fn is_attached(&self) -> bool {
        self.socket.is_on(self.interface.index)
    }

    /// Returns where its packets wait.
    pub(crate) fn buffer(&self) -> Buffer {
        self.socket.buffer()
    }

    /// Returns how many unwanted ports its filter passes.
    pub(crate) fn surplus(&self) -> u32 {
        self.socket.surplus()
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub(crate) fn set_filter(&mut self, program: &Program) -> anyhow::Result<()> {
        let result = self.socket.set_filter(program).context("cannot change the packet filter");
        self.has_filter = result.is_ok();
        result
    }
}

/// The state of the thread.
struct Thread {
    socket: Arc<PacketSocket>,
    /// Closed at the other end when the listener is dropped.
    stopped: PipeReader,
    reporter: Reporter,
}

/// Why the thread stopped reading from a decoder.
enum End {
    /// The listener or the loop has ended.
    Stopped,
    /// The decoder cannot continue, for this reason; another one may.
    Failed(String),
}

impl Thread {
    fn run(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let start = Instant::now();
            // Packets that arrive between two decoders wait in the socket.
            let end = match Decoder::start(self) {
                Ok(mut decoder) => self.read_from(&mut decoder),
                Err(error) => End::Failed(format!("cannot start the packet decoder: {error}")),
            };
            let End::Failed(reason) = end else { return };
            if start.elapsed() >= LONG_LIFE {
                pause = FIRST_PAUSE;
            }
            if self.reporter.warn(&reason).is_err() || self.is_stopped_within(pause) {
                return;
            }
            pause = LAST_PAUSE.min(pause * 2);
        }
    }

    fn read_from(&self, decoder: &mut Decoder) -> End {
        let mut buffer = vec![0; record::BATCH];
        let failed = |error| End::Failed(format!("cannot read from the packet decoder: {error}"));
        loop {
            match self.wait_for(&decoder.records) {
                Ok(true) => {}
                Ok(false) => return End::Stopped,
                Err(error) => return failed(error),
            }
            // One write is one read (SOCK_SEQPACKET, unix(7)), so no record is ever cut.
            let bytes = match rustix::io::read(&decoder.records, &mut buffer) {
                Ok(0) => return End::Failed(decoder.exit_reason()),
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(error) => return failed(error),
            };
            if let Err(end) = self.reporter.pass_on(bytes, &mut decoder.notice_limit) {
                return end;
            }
        }
    }

    /// Waits until the decoder writes or ends; `false` if the listener was dropped.
    fn wait_for(&self, records: &OwnedFd) -> Result<bool, Errno> {
        let mut polled = [PollFd::new(records, PollFlags::IN), PollFd::new(&self.stopped, PollFlags::IN)];
        while let Err(error) = poll(&mut polled, None) {
            if error != Errno::INTR {
                return Err(error);
            }
        }
        let [_, stopped] = polled;
        Ok(stopped.revents().is_empty())
    }

    fn is_stopped_within(&self, pause: Duration) -> bool {
        let pause = Timespec::try_from(pause).ok();
        // An interruption shortens the pause, which does no harm.
        poll(&mut [PollFd::new(&self.stopped, PollFlags::IN)], pause.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

/// Reports to the loop what the decoder of an interface sends, and how it ends.
struct Reporter {
    interface: String,
    messages: Sender<Message>,
}

impl Reporter {
    /// Checks the decoder's records and passes on their contents.
    fn pass_on(&self, bytes: &[u8], notice_limit: &mut NoticeLimit) -> Result<(), End> {
        let malformed = |_| End::Failed("packet decoder sent malformed records".to_owned());
        let (records, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return Err(malformed(record::Malformed));
        }
        let mut packets = Vec::with_capacity(records.len());
        let mut result = Ok(());
        for record in records {
            // A malformed record also discards the packets before it.
            let record = Record::from_bytes(record).map_err(malformed)?;
            if matches!(record, Record::LinkDown | Record::Ready(_)) && !notice_limit.admits(Instant::now()) {
                return Err(End::Failed("packet decoder sent too many notices".to_owned()));
            }
            match record {
                Record::Packet(packet) => packets.push(packet),
                Record::LinkDown => {
                    self.send(Message::Line(Line::notice(format!("{} is down", self.interface))))?;
                }
                Record::Failed(number) => {
                    let error = io::Error::from_raw_os_error(number.into());
                    result = Err(End::Failed(format!("packet decoder cannot read packets: {error}")));
                }
                Record::Ready(kept) => self.send(Message::Ready(explain(kept)))?,
                Record::Dropped(count) => self.send(Message::Dropped(count))?,
            }
        }
        if !packets.is_empty() {
            self.send(Message::Packets(packets))?;
        }
        result
    }

    fn warn(&self, reason: &str) -> Result<(), End> {
        let text = format!("{}: {reason}; restarting it", self.interface);
        self.send(Message::Line(Line::warning(text)))
    }

    /// Fails if the loop has ended.
    fn send(&self, message: Message) -> Result<(), End> {
        self.messages.send(message).map_err(|_| End::Stopped)
    }
}

/// Describes what a decoder kept; `None` if it kept nothing.
fn explain(kept: Kept) -> Option<String> {
    let reason = |number: u16| io::Error::from_raw_os_error(number.into()).to_string();
    let user = if i32::from(kept.user) == Errno::PERM.raw_os_error() {
        "changing it needs CAP_SETUID, CAP_SETGID and CAP_KILL".to_owned()
    } else {
        reason(kept.user)
    };
    let parts = [
        (kept.user, format!("still runs as user {}: {user}", rustix::process::geteuid().as_raw())),
        (kept.capabilities, format!("keeps its capabilities: {}", reason(kept.capabilities))),
        (kept.files, format!("can open files: no Landlock: {}", reason(kept.files))),
        (kept.calls, format!("can make any system call: no seccomp: {}", reason(kept.calls))),
    ];
    let parts: Vec<_> = parts.into_iter().filter(|(number, _)| *number != 0).map(|(_, text)| text).collect();
    (!parts.is_empty()).then(|| format!("packet decoder is not fully sandboxed: {}", parts.join("; ")))
}

/// Limits the records of a decoder that cause work or log lines: a compromised decoder could send them endlessly.
#[derive(Debug)]
struct NoticeLimit {
    /// When the full burst is available again.
    full: Instant,
}

impl NoticeLimit {
    /// How many it may send at once, and how soon another one.
    const BURST: u32 = 16;
    const INTERVAL: Duration = Duration::from_secs(1);

    fn new() -> Self {
        Self { full: Instant::now() }
    }

    /// Counts a record and says whether it is within the limit.
    fn admits(&mut self, now: Instant) -> bool {
        self.full = self.full.max(now) + Self::INTERVAL;
        self.full.saturating_duration_since(now) <= Self::INTERVAL * Self::BURST
    }
}

/// A decoder process; dropping it ends it.
struct Decoder {
    child: Child,
    records: OwnedFd,
    notice_limit: NoticeLimit,
}

impl Decoder {
    /// Starts the process. It ends with the calling thread.
    fn start(thread: &Thread) -> io::Result<Self> {
        let (records, output) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let socket = thread.socket.as_fd().try_clone_to_owned()?;
        // Exactly this program, even if an upgrade has replaced its file: both sides must agree on the records.
        let child = Command::new("/proc/self/exe")
            .arg0(decoder::NAME)
            .arg(&thread.reporter.interface)
            .env_clear()
            .stdin(socket)
            .stdout(output)
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self { child, records, notice_limit: NoticeLimit::new() })
    }

    /// Says how the process ended, once it has closed its socket.
    fn exit_reason(&mut self) -> String {
        // In case it survives without the socket; if it is already ending, its status is set.
        let _ = self.child.kill();
        match self.child.wait() {
            Ok(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("packet decoder killed by signal {signal}"),
                (None, code) => format!("packet decoder exited with status {}", code.unwrap_or_default()),
            },
            Err(error) => format!("packet decoder ended: {error}"),
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // It may have ended and been reaped already.
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
        let (sender, messages) = crossbeam_channel::unbounded();
        (Reporter { interface: "eth0".to_owned(), messages: sender }, messages)
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
        let (reporter, messages) = reporter();
        let sent = [1, 2, 3].map(packet);
        assert!(reporter.pass_on(&bytes(&sent.map(Record::Packet)), &mut NoticeLimit::new()).is_ok());
        let messages: Vec<_> = messages.try_iter().collect();
        assert!(
            matches!(messages.as_slice(), [Message::Packets(packets)] if *packets == sent),
            "{messages:?}"
        );
    }

    #[test]
    fn nothing_is_taken_from_a_batch_with_anything_malformed_in_it() {
        let good = bytes(&[Record::Packet(packet(1))]);
        let cut = good.split_last().unwrap().1;
        let unknown = [9; record::SIZE];
        for bytes in [[&good, cut].concat(), [&good[..], &unknown].concat(), vec![0]] {
            let (reporter, messages) = reporter();
            assert!(
                matches!(reporter.pass_on(&bytes, &mut NoticeLimit::new()), Err(End::Failed(_))),
                "{bytes:?}"
            );
            assert!(messages.is_empty(), "{bytes:?}");
        }
    }

    #[test]
    fn what_came_before_an_error_is_passed_on_and_the_error_wants_another_decoder() {
        let (reporter, messages) = reporter();
        let records = [Record::LinkDown, Record::Packet(packet(1)), Record::Failed(12)];
        let end = reporter.pass_on(&bytes(&records), &mut NoticeLimit::new());
        assert!(matches!(end, Err(End::Failed(_))));
        let messages: Vec<_> = messages.try_iter().collect();
        assert!(matches!(messages.as_slice(), [Message::Line(_), Message::Packets(_)]), "{messages:?}");
    }

    #[test]
    fn a_loop_that_has_ended_ends_the_thread() {
        let (reporter, messages) = reporter();
        drop(messages);
        let end = reporter.pass_on(&bytes(&[Record::Packet(packet(1))]), &mut NoticeLimit::new());
        assert!(matches!(end, Err(End::Stopped)));
    }

    #[test]
    fn a_decoder_that_fills_the_log_is_ended() {
        let (reporter, messages) = reporter();
        let mut limit = NoticeLimit::new();
        for record in [Record::LinkDown, Record::Ready(Kept::default())] {
            assert!(reporter.pass_on(&bytes(&[record]), &mut limit).is_ok());
        }
        let flood = bytes(&[Record::LinkDown; 100]);
        assert!(matches!(reporter.pass_on(&flood, &mut limit), Err(End::Failed(_))));
        assert!(messages.try_iter().count() <= 16);
        assert!(limit.admits(limit.full));
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
