//! The receiver of a packet socket, behind pnet's trait: packets come out of its ring, or of its queue where it has no ring.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pnet::datalink::DataLinkReceiver;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv, sockopt::socket_error};

use crate::ring::Ring;

/// How long to wait for a packet.
const READ_TIMEOUT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The most that is read of a packet in a queue; all headers that are looked at fit, and what follows them is not needed.
const PACKET_BYTES: usize = 4096;

/// Returns packets from their IP header on, and tells when none is left before it waits: then is the time to deal with those
/// that came.
#[derive(Debug)]
pub(crate) struct Receiver<S> {
    pub(crate) socket: S,
    source: Source,
    state: State,
    pace: Pace,
}

/// Where the packets are.
#[derive(Debug)]
enum Source {
    Ring(Ring),
    Queue(Box<[u8; PACKET_BYTES]>),
}

/// What the last call has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// A packet; there may be more.
    Reading,
    /// No packet is left of those that came, so the next call is to wait.
    Drained,
    /// No packet has come meanwhile.
    Idle,
    /// The kernel has said that there is one.
    Called,
}

impl<S: AsFd> Receiver<S> {
    pub(crate) fn new(socket: S) -> Self {
        let source = match Ring::map(&socket) {
            Ok(ring) => Source::Ring(ring),
            Err(_) => Source::Queue(Box::new([0; PACKET_BYTES])),
        };
        Self { socket, source, state: State::Reading, pace: Pace::new(Instant::now()) }
    }

    /// Waits for a packet, for some time.
    fn wait(&mut self) -> io::Result<()> {
        if self.state == State::Drained && self.pace.is_fast(Instant::now()) {
            // Then so many have come one by one that it is better to come back for several.
            self.state = State::Idle;
            poll(&mut [], Some(&NAP))?;
            return Ok(());
        }
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut polled, Some(&READ_TIMEOUT))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let [polled] = polled;
        if polled.revents().contains(PollFlags::ERR) {
            socket_error(&self.socket)??;
        }
        self.pace.count(Instant::now());
        self.state = State::Called;
        Ok(())
    }
}

impl<S: AsFd + Send> DataLinkReceiver for Receiver<S> {
    /// Returns the next packet.
    ///
    /// Fails with `WouldBlock` once when none is left, and after a second of waiting with `TimedOut`.
    fn next(&mut self) -> io::Result<&[u8]> {
        if matches!(self.state, State::Drained | State::Idle) {
            self.wait()?;
        }
        let was = std::mem::replace(&mut self.state, State::Reading);
        let drained = if was == State::Idle { State::Idle } else { State::Drained };
        match &mut self.source {
            Source::Ring(ring) => {
                if was == State::Called && ring.is_behind() {
                    // Another processor may be about to finish this packet, while the one behind it is finished already.
                    poll(&mut [], Some(&NAP))?;
                    if ring.is_behind() {
                        ring.lose_position();
                    }
                }
                if let Some(packet) = ring.next_packet() {
                    return Ok(packet);
                }
            }
            Source::Queue(buffer) => match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((length, _)) => return Ok(buffer.get(..length).unwrap_or_default()),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => {
                    self.state = State::Idle;
                    return Err(error.into());
                }
            },
        }
        self.state = drained;
        Err(io::ErrorKind::WouldBlock.into())
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
