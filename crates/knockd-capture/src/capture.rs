//! The reader of a packet socket: packets come out of its ring, or of its queue where it has no ring.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use knockd_core::Packet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{socket_domain, socket_error};
use rustix::net::{AddressFamily, RecvFlags, recv};

use crate::decode::{Ignored, decode};
use crate::ring::{self, Ring};

/// The most that is read of a packet in a queue; all headers that are looked at fit, and what follows them is not needed.
const PACKET_BYTES: usize = 4096;

/// What a [`Capture`] has received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// A packet.
    Packet(Packet),
    /// A packet that knocking does not look at, for this reason. The filter lets some of them through.
    Undecodable(Ignored),
    /// No packet is left, and the next call waits for one: now is the time to deal with those that came.
    Drained,
    /// The kernel has dropped so many more packets, because they were not read in time. It is asked once a second while
    /// packets come, and once after the last.
    Dropped(NonZeroU32),
}

/// Why no packet could be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The interface went down, or away: [`crate::LinkWatch`] and [`crate::interfaces`] tell which.
    #[error("interface is down")]
    LinkDown,
    /// The kernel failed for a reason that is not expected.
    #[error("cannot read packets")]
    Other(#[source] io::Error),
}

/// Reads and decodes the packets of a [`crate::PacketSocket`], in this process or in another one that got its descriptor.
///
/// It needs no privilege, and of system calls mmap(2) when it is made, and later poll(2), and on that descriptor recvfrom(2)
/// and getsockopt(2).
#[derive(Debug)]
pub struct Capture<S> {
    socket: S,
    source: Buffering,
    state: State,
    pace: Pace,
    drop_check: DropCheck,
}

/// Where the packets are.
#[derive(Debug)]
enum Buffering {
    Ring(Ring),
    Queue(Box<[u8; PACKET_BYTES]>),
}

/// What the last call has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// A packet; there may be more.
    Reading,
    /// No packet is left of those that came.
    Drained,
    /// No packet has come during a nap.
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

    /// Returns what comes next; it waits only in a call that follows [`Received::Drained`] or an error, then without end.
    ///
    /// # Errors
    ///
    /// [`CaptureError::LinkDown`] once, when the interface goes down or away. The same capture goes on when an interface that
    /// was down is up again. [`CaptureError::Other`] for what the kernel should not say; pause before calling again.
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
            Buffering::Queue(buffer) => {
                match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                    Ok((length, _)) => buffer.get(..length),
                    Err(rustix::io::Errno::WOULDBLOCK) => None,
                    Err(error) => {
                        self.state = State::Idle;
                        return Err(error.into());
                    }
                }
            }
        };
        let Some(packet) = packet else {
            self.state = if before == State::Reading { State::Drained } else { State::Idle };
            return Ok(Received::Drained);
        };
        self.drop_check.count();
        Ok(decode(packet).map_or_else(Received::Undecodable, Received::Packet))
    }

    /// Waits until there may be a packet, without end when none has come for a while; or returns how many were dropped.
    fn wait(&mut self) -> io::Result<Option<NonZeroU32>> {
        let now = Instant::now();
        let dropped = self.drop_check.ask_when_due(&self.socket, now);
        if dropped.is_some() {
            return Ok(dropped);
        }
        if self.state == State::Drained && self.pace.is_fast(now) {
            // Then so many have come one by one that it is better to come back for several.
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

    /// Makes sure that the packet that the kernel has announced is found in the ring.
    fn find_position(&mut self) -> io::Result<()> {
        if let Buffering::Ring(ring) = &mut self.source
            && ring.is_behind()
        {
            // Another processor may be about to finish this packet, while the one behind it is finished already.
            nap()?;
            if ring.is_behind() {
                ring.lose_position();
            }
        }
        Ok(())
    }
}

/// How long after the first packet the kernel is asked whether it has dropped any: each time is a system call.
const DROP_CHECK_EVERY: Duration = Duration::from_secs(1);

/// How many packets are read without a look at the clock, when they never end.
const MANY: u32 = 512;

/// When to ask the kernel how many packets it has dropped. It drops them only when its buffer is full, so there is no need to
/// ask again after what was in the buffer has been read.
#[derive(Debug, Default)]
struct DropCheck {
    /// `None` when no packet was read since the kernel was asked.
    due: Option<Instant>,
    /// Packets that were read since the last look at the clock.
    read: u32,
}

impl DropCheck {
    const fn count(&mut self) {
        self.read += 1;
    }

    const fn has_read_many(&self) -> bool {
        self.read >= MANY
    }

    /// Asks, if it is time to; returns how many packets were dropped, if any.
    fn ask_when_due(&mut self, socket: impl AsFd, now: Instant) -> Option<NonZeroU32> {
        if self.is_due(now) {
            NonZeroU32::new(ring::statistics(socket).map_or(0, |counts| counts.drops))
        } else {
            None
        }
    }

    /// Says whether it is time to ask, which is then taken to be done.
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

    /// How long to wait for a packet at most.
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

/// How long to nap when packets come fast: a batch costs a few wake-ups, of this process and of whoever reads what it says.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 3_000_000 };

/// How many wake-ups in a row are fine, and how often one more is: a knock never meets this limit, a flood does.
const WAKE_UPS: u32 = 16;
const WAKE_UP_EVERY: Duration = Duration::from_millis(4);

/// Counts wake-ups, as a bucket that leaks.
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

    /// Says whether the bucket is full, and counts what follows from that.
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
        // As long as naps end with packets, they go on; once it is quiet, they end.
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
