//! The thread that waits for packets on one interface: it runs a decoder process and checks its records.

use std::io::{self, PipeReader, PipeWriter};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use knockd_capture::{Buffer, Interface, PacketSocket, Program};
use knockd_core::{Packet, Passage, Timestamp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::capture::claim::Claim;
use crate::capture::process::Decoder;
use crate::capture::record::{self, Kept, Record};
use crate::capture::slot::Slot;
use crate::capture::watch::{Event, Watch};
use crate::log::{Line, Log};
use crate::system::helper::Rights;
use crate::system::spawn;

/// How many decoders in a row are restarted at once when they end. After that, each waits, first this long, and then
/// twice as long as the one before.
const AT_ONCE: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// If a decoder has run this long, the next ones are restarted at once again.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// How long a decoder may take until it reads, and how long until it has been started.
const START_LIMIT: Duration = Duration::from_secs(10);
const EXEC_LIMIT: Duration = Duration::from_secs(20);

/// A message from a listener to the loop.
#[derive(Debug)]
pub(crate) enum Message {
    /// Packets arrived, in this order.
    Packets(Vec<Packet>),
    /// The kernel dropped this many more packets because they were not read in time.
    Dropped(u32),
    /// A decoder of the listener with this number reads from now on; the text names what it could not give up, if
    /// anything.
    Reading(u64, Option<String>),
    /// None does; another one is about to be started.
    Deaf(u64, Fault),
}

/// Why no decoder reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    pub(crate) reason: String,
    /// Whether one read until now.
    pub(crate) was_reading: bool,
}

/// An interface served by a thread and a process; dropping it ends both at once.
#[derive(Debug)]
pub(crate) struct Listener {
    /// No other listener has ever had this number.
    pub(crate) number: u64,
    pub(crate) interface: Interface,
    /// Whether the kernel accepted the latest filter.
    pub(crate) has_filter: bool,
    /// Whether it has been logged that knockd listens here.
    pub(crate) is_announced: bool,
    pub(crate) state: State,
    /// What is wrong, and since when, until a decoder has read for a while.
    pub(crate) trouble: Option<(Timestamp, String)>,
    /// Why knocks may be missed here.
    pub(crate) problem: Option<String>,
    /// Whether it has been logged that the interface is down.
    is_known_to_be_down: bool,
    slot: Arc<Slot>,
    /// How its first decoder has started.
    first: Receiver<Result<(), String>>,
    _claim: Claim,
    /// Closing it ends the thread.
    _stop: PipeWriter,
}

/// Whether packets are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// The first decoder has been starting since then.
    Starting(Timestamp),
    /// A decoder has been reading since then.
    Reading(Timestamp),
    /// None reads.
    Deaf,
}

impl Listener {
    /// Starts the thread; the socket has this filter.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub(crate) fn start(
        (number, messages): (u64, Sender<Message>),
        socket: PacketSocket,
        program: Program,
        interface: Interface,
        claim: Claim,
        now: Timestamp,
        rights: Rights,
    ) -> anyhow::Result<Self> {
        let slot = Arc::new(Slot::new(interface.clone(), socket, program));
        let (stopped, stop) = io::pipe().context("cannot start the listener thread")?;
        let (outcome, first) = bounded(1);
        let reporter = Reporter { number, interface: interface.index, outcome, messages };
        let thread =
            Thread { interface: interface.name.clone(), slot: Arc::clone(&slot), stopped, reporter, rights };
        spawn("listener", move || thread.run())?;
        Ok(Self {
            number,
            interface,
            has_filter: true,
            is_announced: false,
            state: State::Starting(now),
            trouble: None,
            problem: None,
            is_known_to_be_down: false,
            slot,
            first,
            _claim: claim,
            _stop: stop,
        })
    }

    /// Waits until its first decoder reads.
    ///
    /// # Errors
    /// When that ends or takes too long.
    pub(crate) fn wait_until_it_reads(&mut self) -> anyhow::Result<()> {
        let first = outcome_of_first(&self.first, EXEC_LIMIT);
        if let Err(reason) = first {
            bail!("cannot listen on {}: {reason}", self.interface.name);
        }
        self.state = State::Reading(Timestamp::ZERO);
        Ok(())
    }

    /// When [`Self::log_if_hanging`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        match self.state {
            State::Starting(since) if self.trouble.is_none() => Some(since.after(EXEC_LIMIT)),
            _ => None,
        }
    }

    /// Logs that the first decoder does not start, once.
    pub(crate) fn log_if_hanging(&mut self, log: &Log, now: Timestamp) {
        if let State::Starting(since) = self.state
            && self.poll_timeout().is_some_and(|due| due <= now)
        {
            let problem = format!("{}: {}", self.interface.name, not_started(EXEC_LIMIT));
            log.write(&Line::warning(problem.clone()));
            self.trouble = Some((since, problem));
        }
    }

    /// Logs that the interface is down, once until it is up again.
    pub(crate) fn log_if_down(&mut self, log: &Log) {
        let is_down = !self.interface.up;
        if is_down && !self.is_known_to_be_down {
            log.write(&Line::notice(format!("{} is down", self.interface.name)));
        }
        self.is_known_to_be_down = is_down;
    }

    /// Says whether the kernel still has the socket bound to the interface.
    pub(crate) fn is_attached(&self) -> bool {
        self.slot.socket().is_on(self.interface.index)
    }

    /// Returns where its packets wait.
    pub(crate) fn buffer(&self) -> Buffer {
        self.slot.socket().buffer()
    }

    /// Returns how many unwanted ports its filter passes.
    pub(crate) fn surplus(&self) -> u32 {
        self.slot.socket().surplus()
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub(crate) fn set_filter(&mut self, program: Program) -> anyhow::Result<()> {
        let result = self.slot.set_filter(program).context("cannot change the packet filter");
        self.has_filter = result.is_ok();
        result
    }
}

/// Waits for what has become of the first decoder.
///
/// Its thread has a limit for everything but the start of the process, which hangs as long as the disk with the program
/// does.
fn outcome_of_first(first: &Receiver<Result<(), String>>, limit: Duration) -> Result<(), String> {
    match first.recv_timeout(limit) {
        Ok(outcome) => outcome,
        // Of its own accord, the thread ends only with the loop.
        Err(RecvTimeoutError::Disconnected) => Ok(()),
        Err(RecvTimeoutError::Timeout) => Err(not_started(limit)),
    }
}

/// Says that a decoder has not been started in time.
fn not_started(limit: Duration) -> String {
    format!("packet decoder not started after {} s; is the disk with the program stuck?", limit.as_secs())
}

/// The state of the thread.
struct Thread {
    interface: String,
    slot: Arc<Slot>,
    /// Closed at the other end when the listener is dropped.
    stopped: PipeReader,
    reporter: Reporter,
    /// For its decoders.
    rights: Rights,
}

/// Why the thread stopped reading from a decoder.
#[derive(Debug)]
enum End {
    /// The listener or the loop has ended.
    Stopped,
    /// The decoder cannot continue, for this reason, or has ended; another one may.
    Failed(Option<String>),
    /// The decoder does not read.
    NotReading,
}

impl End {
    fn failed(reason: impl Into<String>) -> Self {
        Self::Failed(Some(reason.into()))
    }
}

impl Thread {
    fn run(&self) {
        let mut restarts = 0;
        let mut is_used = false;
        loop {
            let start = Instant::now();
            let Some((fault, decoder)) = self.run_decoder(&mut is_used) else { return };
            if start.elapsed() >= LONG_LIFE {
                restarts = 0;
            }
            if self.reporter.deaf(fault).is_err() {
                return;
            }
            // This may take for ever, so everybody has been told.
            drop(decoder);
            if self.is_stopped_within(pause(restarts)) {
                return;
            }
            restarts += 1;
        }
    }

    /// Reads from a decoder until it ends, and says why, and which one; `None` if the listener has ended.
    ///
    /// `is_used` says whether a decoder has read from the socket. The next one gets a new socket then, because one that
    /// was taken over can have written anything into the ring, so the next one might never find a packet in it.
    fn run_decoder(&self, is_used: &mut bool) -> Option<(Fault, Option<Decoder>)> {
        let without_decoder = |reason| Some((Fault { reason, was_reading: false }, None));
        if *is_used && let Err(error) = self.slot.renew() {
            return without_decoder(format!("{error:#}"));
        }
        *is_used = false;
        let mut decoder = match Decoder::start(self.slot.socket(), &self.interface, &self.rights) {
            Ok(decoder) => decoder,
            Err(reason) => return without_decoder(reason),
        };
        let (reason, was_reading) = match self.read_from(&decoder, is_used) {
            End::Stopped => return None,
            End::Failed(reason) => (reason, *is_used),
            End::NotReading => (Some("packet decoder has stopped reading".to_owned()), false),
        };
        // Before anything else: packets wait in it from now on, and those until now are lost.
        *is_used = *is_used && self.slot.renew().is_err();
        Some((Fault { reason: decoder.end(reason), was_reading }, Some(decoder)))
    }

    fn read_from(&self, decoder: &Decoder, is_used: &mut bool) -> End {
        let socket = self.slot.socket();
        let watch = Watch { records: &decoder.records, packets: &socket, stopped: &self.stopped };
        let failed = |error| End::failed(format!("cannot read from the packet decoder: {error}"));
        let mut buffer = vec![0; record::BATCH];
        let mut is_ready = false;
        loop {
            let event = if is_ready { watch.wait().map(Some) } else { watch.wait_for_records(START_LIMIT) };
            match event {
                Ok(Some(Event::Records)) => {}
                Ok(Some(Event::Stopped)) => return End::Stopped,
                Ok(Some(Event::Deaf)) => return End::NotReading,
                Ok(None) => {
                    return End::failed(format!(
                        "packet decoder not ready after {} s",
                        START_LIMIT.as_secs()
                    ));
                }
                Err(error) => return failed(error),
            }
            // One write is one read (SOCK_SEQPACKET, unix(7)), so no record is ever cut.
            let bytes = match rustix::io::read(&decoder.records, &mut buffer) {
                Ok(0) => return End::Failed(None),
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(error) => return failed(error),
            };
            // Before the first record, it has read nothing.
            *is_used = true;
            if let Err(end) = self.reporter.pass_on(bytes, &mut is_ready) {
                return end;
            }
        }
    }

    fn is_stopped_within(&self, pause: Duration) -> bool {
        let pause = Timespec::try_from(pause).ok();
        // An interruption shortens the pause, which does no harm.
        poll(&mut [PollFd::new(&self.stopped, PollFlags::IN)], pause.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

/// Returns how long to wait after so many restarts in a row.
fn pause(restarts: u32) -> Duration {
    let doublings = restarts.checked_sub(AT_ONCE);
    doublings.map_or(Duration::ZERO, |doublings| LAST_PAUSE.min(FIRST_PAUSE * (1 << doublings.min(16))))
}

/// Reports to the loop what the decoders of an interface send, and how they end.
struct Reporter {
    number: u64,
    /// The interface's number in the kernel.
    interface: u32,
    /// Takes only one result, that of the first decoder.
    outcome: Sender<Result<(), String>>,
    messages: Sender<Message>,
}

impl Reporter {
    /// Checks the decoder's records and passes on their contents.
    ///
    /// The first of a decoder says that it is ready, and no other one does.
    fn pass_on(&self, bytes: &[u8], is_ready: &mut bool) -> Result<(), End> {
        let malformed = || End::failed("packet decoder sent malformed records");
        let (records, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return Err(malformed());
        }
        let mut packets = Vec::with_capacity(records.len());
        let mut result = Ok(());
        for record in records {
            // A malformed record also discards the packets before it.
            let record = Record::from_bytes(record).map_err(|_| malformed())?;
            if matches!(record, Record::Ready(_)) == *is_ready {
                return Err(malformed());
            }
            match record {
                Record::Packet(packet) => {
                    let passage = Passage { interface: self.interface, ..packet.passage };
                    packets.push(Packet { passage, ..packet });
                }
                // That it came is all.
                Record::Progress => {}
                Record::Failed(number) => {
                    let error = io::Error::from_raw_os_error(number.into());
                    result = Err(End::failed(format!("packet decoder cannot read packets: {error}")));
                }
                Record::Ready(kept) => {
                    *is_ready = true;
                    let _ = self.outcome.try_send(Ok(()));
                    self.send(Message::Reading(self.number, explain(kept)))?;
                }
                Record::Dropped(count) => self.send(Message::Dropped(count))?,
            }
        }
        if !packets.is_empty() {
            self.send(Message::Packets(packets))?;
        }
        result
    }

    /// Reports that no decoder reads.
    fn deaf(&self, fault: Fault) -> Result<(), End> {
        let _ = self.outcome.try_send(Err(fault.reason.clone()));
        self.send(Message::Deaf(self.number, fault))
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
    let shared = "runs as user nobody, whose other processes can stop it; create the user knockd".to_owned();
    let parts = [
        (kept.shared_user, shared),
        (kept.user, format!("still runs as user {}: {user}", rustix::process::geteuid().as_raw())),
        (kept.capabilities, format!("keeps its capabilities: {}", reason(kept.capabilities))),
        (kept.files, format!("can open files: no Landlock: {}", reason(kept.files))),
        (kept.calls, format!("can make any system call: no seccomp: {}", reason(kept.calls))),
    ];
    let parts: Vec<_> = parts.into_iter().filter(|(number, _)| *number != 0).map(|(_, text)| text).collect();
    (!parts.is_empty()).then(|| format!("packet decoder is not fully sandboxed: {}", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::Receiver;
    use knockd_core::{Arrival, Hit};

    use super::*;

    fn reporter() -> (Reporter, Receiver<Message>) {
        let (sender, messages) = crossbeam_channel::unbounded();
        // The result of the first decoder is of no interest.
        (Reporter { number: 1, interface: 7, outcome: bounded(1).0, messages: sender }, messages)
    }

    fn packet(port: u16) -> Packet {
        let address = "192.0.2.1".parse().unwrap();
        let packet = Packet::incoming(address, address, Hit::Udp { port });
        Packet { arrival: Arrival::Loopback, ..packet }
    }

    fn bytes(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(Record::to_bytes).collect()
    }

    #[test]
    fn a_decoder_whose_start_hangs_is_given_up_with_a_reason() {
        let (sender, first) = bounded(1);
        let reason = outcome_of_first(&first, Duration::from_millis(10)).unwrap_err();
        assert!(reason.starts_with("packet decoder not started after 0 s; "), "{reason}");
        sender.send(Err("no memory".to_owned())).unwrap();
        assert_eq!(outcome_of_first(&first, EXEC_LIMIT), Err("no memory".to_owned()));
        sender.send(Ok(())).unwrap();
        assert_eq!(outcome_of_first(&first, EXEC_LIMIT), Ok(()));
    }

    #[test]
    fn packets_are_passed_on_in_order() {
        let (reporter, messages) = reporter();
        let sent = [1, 2, 3].map(packet);
        assert!(reporter.pass_on(&bytes(&sent.map(Record::Packet)), &mut true).is_ok());
        let messages: Vec<_> = messages.try_iter().collect();
        let seen_here = sent.map(|packet| Packet { passage: Passage { interface: 7, tag: 0 }, ..packet });
        assert!(
            matches!(messages.as_slice(), [Message::Packets(packets)] if *packets == seen_here),
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
            assert!(matches!(reporter.pass_on(&bytes, &mut true), Err(End::Failed(_))), "{bytes:?}");
            assert!(messages.is_empty(), "{bytes:?}");
        }
    }

    #[test]
    fn what_came_before_an_error_is_passed_on_and_the_error_wants_another_decoder() {
        let (reporter, messages) = reporter();
        let records = [Record::Dropped(7), Record::Packet(packet(1)), Record::Failed(12)];
        let end = reporter.pass_on(&bytes(&records), &mut true);
        assert!(matches!(end, Err(End::Failed(_))));
        let messages: Vec<_> = messages.try_iter().collect();
        assert!(matches!(messages.as_slice(), [Message::Dropped(7), Message::Packets(_)]), "{messages:?}");
    }

    #[test]
    fn a_loop_that_has_ended_ends_the_thread() {
        let (reporter, messages) = reporter();
        drop(messages);
        let end = reporter.pass_on(&bytes(&[Record::Packet(packet(1))]), &mut true);
        assert!(matches!(end, Err(End::Stopped)));
    }

    #[test]
    fn a_decoder_is_ready_once_and_before_anything_else() {
        let (reporter, messages) = reporter();
        let mut is_ready = false;
        let (ready, progress) = (Record::Ready(Kept::default()), Record::Progress);
        assert!(matches!(reporter.pass_on(&bytes(&[progress]), &mut is_ready), Err(End::Failed(_))));
        assert!(reporter.pass_on(&bytes(&[ready, progress]), &mut is_ready).is_ok());
        assert!(matches!(reporter.pass_on(&bytes(&[ready; 100]), &mut is_ready), Err(End::Failed(_))));
        let messages: Vec<_> = messages.try_iter().collect();
        assert!(matches!(messages.as_slice(), [Message::Reading(1, None)]), "{messages:?}");
    }

    #[test]
    fn the_first_restarts_are_immediate_and_later_ones_wait_longer_and_longer() {
        let pauses: Vec<_> = (0..100).map(pause).collect();
        assert_eq!(pauses[..5], [Duration::ZERO; 5]);
        assert_eq!(pauses[5..8], [100, 200, 400].map(Duration::from_millis));
        assert_eq!(pauses.last(), Some(&LAST_PAUSE));
        assert!(pauses.is_sorted());
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
