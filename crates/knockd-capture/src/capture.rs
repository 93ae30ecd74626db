//! The reader of a packet socket: it takes packets from the socket's ring, or from its queue if it has no ring.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use knockd_core::Packet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_domain, socket_error};

use crate::decode::{Ignored, decode};
use crate::ring::{self, Ring};

/// How much of a packet in a queue is read; all relevant headers fit, and what follows them is not needed.
const PACKET_BYTES: usize = 4096;

/// A result of [`Capture::receive`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// A packet.
    Packet(Packet),
    /// A packet that does not count for knocking, for this reason. The filter passes some of them.
    Undecodable(Ignored),
    /// No packet is left, and the next call waits for one: this is the time to handle those that arrived.
    Drained,
    /// The kernel dropped this many more packets because they were not read in time. The capture asks once a second
    /// while packets arrive, and once after the last.
    Dropped(NonZeroU32),
}

/// Why no packet could be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The interface went down or disappeared: [`crate::LinkWatch`] and [`crate::interfaces`] tell which.
    #[error("interface is down")]
    LinkDown,
    /// The kernel failed unexpectedly.
    #[error("cannot read packets")]
    Other(#[source] io::Error),
}

/// Reads and decodes the packets of a [`crate::PacketSocket`], in this process or in another one that has its
/// descriptor.
///
/// It needs no privilege. Its system calls are mmap(2) at creation, and later poll(2), and on that descriptor
/// recvfrom(2) and getsockopt(2).
#[derive(Debug)]
pub struct Capture<S> {
    socket: S,
    source: Buffering,
    state: State,
    pace: Pace,
    drop_check: DropCheck,
}

/// Where packets are.
#[derive(Debug)]
enum Buffering {
    Ring(Ring),
    Queue(Box<[u8; PACKET_BYTES]>),
}

/// The result of the last call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// A packet; there may be more.
    Reading,
    /// None of the packets that arrived is left.
    Drained,
    /// No packet arrived during a nap.
    Idle,
}

impl<S: AsFd> Capture<S> {
    /// Takes a packet socket, or a descriptor of one.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn new(socket: S) -> io::Result<Self> {
        if socket_domain(&socket)? != AddressFamily::PACKET {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let source = match Ring::map(&socket) {
            Ok(ring) => Buffering::Ring(ring),
            Err(_) => Buffering::Queue(Box::new([0; PACKET_BYTES])),
        };
        let (pace, drop_check) = (Pace::new(Instant::now()), DropCheck::default());
        Ok(Self { socket, source, state: State::Reading, pace, drop_check })
    }

    /// Returns the next result; it blocks only in a call after [`Received::Drained`] or an error, and then without a
    /// limit.
    ///
    /// # Errors
    ///
    /// [`CaptureError::LinkDown`] once, when the interface goes down or disappears. The same capture continues when
    /// an interface that was down comes up again. [`CaptureError::Other`] for unexpected errors; pause before calling
    /// again.
    pub fn receive(&mut self) -> Result<Received, CaptureError> {
        self.try_receive().map_err(|error| match error.kind() {
            io::ErrorKind::NetworkDown => CaptureError::LinkDown,
            _ => CaptureError::Other(error),
        })
    }

    fn try_receive(&mut self) -> io::Result<Received> {
        let dropped = match self.state {
            State::Drained | State::Idle => self.wait()?,
            State::Reading if self.drop_check.has_read_many() => {
                self.drop_check.ask_when_due(&self.socket, Instant::now())
            }
            State::Reading => None,
        };
        let before = std::mem::replace(&mut self.state, State::Reading);
        if let Some(count) = dropped {
            return Ok(Received::Dropped(count));
        }
        let packet = match &mut self.source {
            Buffering::Ring(ring) => ring.next_packet(),
            Buffering::Queue(buffer) => match ring::receive(&self.socket, buffer.as_mut_slice()) {
                Ok(received) => received.and_then(|(length, arrival)| Some((buffer.get(..length)?, arrival))),
                Err(error) => {
                    self.state = State::Idle;
                    return Err(error);
                }
            },
        };
        let Some((packet, arrival)) = packet else {
            self.state = if before == State::Reading { State::Drained } else { State::Idle };
            return Ok(Received::Drained);
        };
        self.drop_check.count();
        Ok(match decode(packet) {
            Ok(packet) => Received::Packet(Packet { arrival, ..packet }),
            Err(reason) => Received::Undecodable(reason),
        })
    }

    /// Waits until there may be a packet, without a limit if none has arrived for a while; or returns how many were
    /// dropped.
    fn wait(&mut self) -> io::Result<Option<NonZeroU32>> {
        let now = Instant::now();
        let dropped = self.drop_check.ask_when_due(&self.socket, now);
        if dropped.is_some() {
            return Ok(dropped);
        }
        if self.state == State::Drained && self.pace.is_fast(now) {
            // So many arrived one by one that it is better to wait for several.
            nap()?;
            return Ok(None);
        }
        let timeout = self.drop_check.timeout(now).and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut polled, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let [polled] = polled;
        if polled.revents().contains(PollFlags::ERR) {
            socket_error(&self.socket)??;
        }
        self.pace.count(Instant::now());
        self.find_position()?;
        Ok(None)
    }

    /// Makes sure that the ring position points to the packet that the kernel announced.
    fn find_position(&mut self) -> io::Result<()> {
        if let Buffering::Ring(ring) = &mut self.source
            && ring.is_behind()
        {
            // Another processor may be about to finish this packet, while the next one is already finished.
            nap()?;
            if ring.is_behind() {
                ring.lose_position();
            }
        }
        Ok(())
    }
}

/// How long after the first packet to ask the kernel for drops: each time is a system call.
const DROP_CHECK_EVERY: Duration = Duration::from_secs(1);

/// How many packets are read without looking at the clock, in an endless stream.
const MANY: u32 = 512;

/// When to ask the kernel how many packets it dropped. It drops packets only when its buffer is full, so there is no
/// need to ask again once the buffer has been read.
#[derive(Debug, Default)]
struct DropCheck {
    /// `None` if no packet was read since the last time.
    due: Option<Instant>,
    /// Packets read since the last look at the clock.
    read: u32,
}

impl DropCheck {
    const fn count(&mut self) {
        self.read += 1;
    }

    const fn has_read_many(&self) -> bool {
        self.read >= MANY
    }

    /// Asks if it is time to; returns how many packets were dropped, if any.
    fn ask_when_due(&mut self, socket: impl AsFd, now: Instant) -> Option<NonZeroU32> {
        if self.is_due(now) {
            NonZeroU32::new(ring::statistics(socket).map_or(0, |counts| counts.drops))
        } else {
            None
        }
    }

    /// Says whether it is time to ask, and assumes that this will be done.
    fn is_due(&mut self, now: Instant) -> bool {
        if std::mem::take(&mut self.read) > 0 {
            self.due.get_or_insert(now + DROP_CHECK_EVERY);
        }
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due {
            self.due = None;
        }
        is_due
    }

    /// Returns the longest time to wait for a packet.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }
}

/// Sleeps for a moment.
fn nap() -> io::Result<()> {
    match poll(&mut [], Some(&NAP)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How long to nap when packets arrive fast: a batch costs few wake-ups, of this process and of the reader of its
/// output.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 3_000_000 };

/// How many wake-ups in a row are fine, and how soon another one is: a knock never reaches this limit, a flood does.
const WAKE_UPS: u32 = 16;
const WAKE_UP_EVERY: Duration = Duration::from_millis(4);

/// Counts wake-ups, as a leaky bucket.
#[derive(Debug)]
struct Pace {
    /// When the bucket will be empty.
    empty: Instant,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self { empty: now }
    }

    fn count(&mut self, now: Instant) {
        self.empty = self.empty.max(now) + WAKE_UP_EVERY;
    }

    /// Counts a wake-up, and says whether the bucket is full.
    fn is_fast(&mut self, now: Instant) -> bool {
        let is_full = self.empty.saturating_duration_since(now) >= WAKE_UP_EVERY * WAKE_UPS;
        if is_full {
            self.count(now);
        }
        is_full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knock_is_read_step_by_step_and_a_flood_in_batches() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for step in 0..15 {
            let now = start + Duration::from_micros(step);
            pace.count(now);
            assert!(!pace.is_fast(now), "step {step}");
        }
        for step in 15..20 {
            pace.count(start + Duration::from_micros(step));
        }
        assert!(pace.is_fast(start + Duration::from_millis(1)));
        // Naps continue as long as they end with packets, and stop once it is quiet.
        for nap in 1..1000 {
            assert!(pace.is_fast(start + Duration::from_millis(1 + 3 * nap)), "nap {nap}");
        }
        assert!(!pace.is_fast(start + Duration::from_secs(10)));
    }

    #[test]
    fn the_kernel_is_asked_for_drops_a_second_after_packets_and_never_while_none_come() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut check = DropCheck::default();
        assert!(!check.is_due(at(5000)));
        assert_eq!(check.timeout(at(5000)), None);
        check.count();
        assert!(!check.is_due(at(6000)));
        check.count();
        assert!(!check.is_due(at(6999)));
        assert_eq!(check.timeout(at(6999)), Some(Duration::from_millis(1)));
        assert!(check.is_due(at(7000)));
        assert_eq!((check.is_due(at(90_000)), check.timeout(at(90_000))), (false, None));
    }

    #[test]
    fn a_flood_that_never_ends_does_not_keep_the_kernel_from_being_asked() {
        let start = Instant::now();
        let mut check = DropCheck::default();
        let mut asked = 0;
        for packet in 0..1_000_000 {
            check.count();
            if check.has_read_many() {
                asked += u32::from(check.is_due(start + packet * Duration::from_micros(10)));
            }
        }
        assert!((9..=10).contains(&asked), "asked {asked} times in ten seconds");
    }

    #[test]
    fn packets_that_come_slowly_are_never_waited_for() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for packet in 0..1000 {
            let now = start + packet * Duration::from_millis(5);
            pace.count(now);
            assert!(!pace.is_fast(now), "packet {packet}");
        }
    }
}
