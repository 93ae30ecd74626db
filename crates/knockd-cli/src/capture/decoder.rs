//! The decoder: the unprivileged process that reads packets and does nothing else.
//!
//! The daemon starts its own program again for each interface, under the name [`NAME`], with the packet socket as
//! stdin and a socket for [`crate::capture::record`]s as stdout. If a packet attacks the code that reads it, the
//! damage stays in this process.

use std::io::{self, Stdin, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use knockd_capture::{Capture, CaptureError, Received};
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::unistd::write;

use crate::capture::record::{self, Record};
use crate::capture::sandbox;

/// The program name that selects [`run`] instead of the daemon.
pub const NAME: &str = "knockd-decoder";

/// How often to show that packets are read if nothing is said about them. The daemon waits several times as long
/// before it takes the decoder to be stuck.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// How many such packets are read in an endless stream without looking at the clock.
const MANY: u32 = 512;

/// Reads and decodes packets until the daemon ends it.
///
/// It ignores its arguments; the interface name among them is for `ps` to show. The process must have no other
/// thread.
pub fn run() -> ExitCode {
    let Ok(capture) = Capture::new(io::stdin()) else {
        let _ = writeln!(io::stderr(), "{NAME}: only knockd can start this program");
        return ExitCode::FAILURE;
    };
    // A record tells the daemon why packets stopped; if it cannot be sent, the daemon is gone.
    match decode(capture) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn decode(mut capture: Capture<Stdin>) -> io::Result<()> {
    // Signals are for the daemon: `pkill -HUP knockd` and Ctrl-C reach this process as well. It ends with its parent.
    SigSet::all().thread_block()?;
    // The process was started from /proc/self/exe and would otherwise be called `exe`.
    prctl::set_name(c"knockd-decoder")?;
    let kept = sandbox::enter();
    // Not std's stdout: it flushes early at a line feed.
    let mut batch = Batch::new(|bytes| Ok(write(io::stdout(), bytes).map(drop)?));
    // If the daemon ended before the sandbox asked for a signal at its death, this fails: nobody else has the socket.
    batch.add(&Record::Ready(kept))?;
    batch.send()?;
    relay(|| capture.receive(), &mut batch)
}

/// Turns received packets into records until there are no more.
fn relay(
    mut receive: impl FnMut() -> Result<Received, CaptureError>,
    batch: &mut Batch<impl FnMut(&[u8]) -> io::Result<()>>,
) -> io::Result<()> {
    loop {
        match receive() {
            Ok(Received::Packet(packet)) => batch.add(&Record::Packet(packet))?,
            // The kernel filter passes packets that it cannot look into. They end no batch.
            Ok(Received::Undecodable(_)) => batch.count_junk()?,
            Ok(Received::Dropped(count)) => batch.add(&Record::Dropped(count.get()))?,
            // The daemon looks at the interfaces itself, and would not believe what this process says about them.
            Ok(Received::Drained) | Err(CaptureError::LinkDown) => batch.end()?,
            Err(CaptureError::Other(error)) => {
                let number = error.raw_os_error().and_then(|number| u16::try_from(number).ok());
                batch.add(&Record::Failed(number.unwrap_or_default()))?;
                return batch.send();
            }
        }
    }
}

/// Records to write together.
struct Batch<W> {
    bytes: Vec<u8>,
    /// Packets without a record since the last look at the clock.
    junk: u32,
    /// When it last wrote.
    written: Instant,
    write: W,
}

impl<W: FnMut(&[u8]) -> io::Result<()>> Batch<W> {
    fn new(write: W) -> Self {
        Self { bytes: Vec::with_capacity(record::BATCH), junk: 0, written: Instant::now(), write }
    }

    /// Adds a record, and writes the batch once it is full.
    fn add(&mut self, record: &Record) -> io::Result<()> {
        self.bytes.extend(record.to_bytes());
        if self.bytes.len() < record::BATCH { Ok(()) } else { self.send() }
    }

    /// Counts a packet without a record; in an endless stream of them, what waits is written in time.
    fn count_junk(&mut self) -> io::Result<()> {
        self.junk += 1;
        if self.junk < MANY { Ok(()) } else { self.show_progress() }
    }

    /// Writes the pending records, or shows that packets were read.
    fn end(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() && self.junk > 0 { self.show_progress() } else { self.send() }
    }

    /// Writes something, unless that happened a moment ago.
    fn show_progress(&mut self) -> io::Result<()> {
        self.junk = 0;
        if self.written.elapsed() < PROGRESS_EVERY {
            return Ok(());
        }
        if self.bytes.is_empty() {
            self.add(&Record::Progress)?;
        }
        self.send()
    }

    /// Writes the pending records.
    fn send(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            (self.write)(&self.bytes)?;
            self.bytes.clear();
            self.junk = 0;
            self.written = Instant::now();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use knockd_capture::Ignored;
    use knockd_core::{Arrival, Hit, Packet};

    use super::*;

    fn packet(port: u16) -> Packet {
        let address = "192.0.2.1".parse().unwrap();
        let packet = Packet::incoming(address, address, Hit::Udp { port });
        Packet { arrival: Arrival::Loopback, ..packet }
    }

    /// The records written before the link fails for good, one list per write. All of this takes no time, but comes
    /// long after the last write if it `was_quiet`.
    fn written_if(was_quiet: bool, received: impl IntoIterator<Item = Received>) -> Vec<Vec<Record>> {
        let mut received = received.into_iter();
        let mut writes = Vec::new();
        let mut batch = Batch::new(|bytes| {
            let (records, rest) = bytes.as_chunks();
            assert!(rest.is_empty());
            writes.push(records.iter().map(|record| Record::from_bytes(record).unwrap()).collect());
            Ok(())
        });
        let hour = Duration::from_secs(3600);
        let (before, after) = (batch.written.checked_sub(hour).unwrap(), batch.written + hour);
        batch.written = if was_quiet { before } else { after };
        let failed = || CaptureError::Other(io::Error::from_raw_os_error(5));
        relay(|| received.next().ok_or_else(failed), &mut batch).unwrap();
        assert_eq!(writes.pop(), Some(vec![Record::Failed(5)]), "everything else was written before");
        writes
    }

    fn written(received: impl IntoIterator<Item = Received>) -> Vec<Vec<Record>> {
        written_if(false, received)
    }

    #[test]
    fn packets_are_written_together_however_much_junk_comes_between_them() {
        let junk = Received::Undecodable(Ignored::NotTcpOrUdp);
        let mixed = (0..100).flat_map(|port| [junk, Received::Packet(packet(port)), junk]);
        let packets: Vec<_> = (0..100).map(|port| Record::Packet(packet(port))).collect();
        assert_eq!(written(mixed.chain([Received::Drained])), [packets]);
        assert_eq!(written([junk, Received::Drained, junk, Received::Drained]), [[]; 0]);
    }

    #[test]
    fn reading_nothing_but_junk_is_shown_now_and_then() {
        let junk = Received::Undecodable(Ignored::NotTcpOrUdp);
        let shown = [[Record::Progress]];
        assert_eq!(written_if(true, [junk, junk, Received::Drained, junk, Received::Drained]), shown);
        assert_eq!(written_if(true, [Received::Drained]), [[]; 0], "nothing was read");
        // In a stream that never ends, and with a packet that waits in it.
        assert_eq!(written_if(true, vec![junk; 5000]), shown);
        let mixed = [Received::Packet(packet(1))].into_iter().chain(vec![junk; 5000]);
        assert_eq!(written_if(true, mixed), [[Record::Packet(packet(1))]]);
    }

    #[test]
    fn a_batch_is_written_when_it_is_full_or_no_packet_is_left() {
        let flood = (0..1030).map(|port| Received::Packet(packet(port)));
        let lengths: Vec<_> = written(flood.chain([Received::Drained])).iter().map(Vec::len).collect();
        assert_eq!(lengths, [512, 512, 6]);
        let one = [Received::Packet(packet(1)), Received::Drained];
        assert_eq!(written(one.into_iter().chain(one)), [[Record::Packet(packet(1))]; 2]);
    }

    #[test]
    fn dropped_packets_are_told_with_the_batch() {
        let dropped = Received::Dropped(NonZeroU32::new(7).unwrap());
        let received = [Received::Packet(packet(1)), dropped, Received::Drained];
        assert_eq!(written(received), [[Record::Packet(packet(1)), Record::Dropped(7)]]);
    }
}
