//! How a listener waits: for the decoder's records, and for packets that the decoder does not read.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// A decoder that has written within this time is not watched: that would be a wake-up for each packet.
const QUIET: Duration = Duration::from_millis(300);

/// A decoder is deaf if packets are unread at this many looks in a row and it writes nothing between them. Many short
/// waits, because a machine that stood still for a while makes one wait long, and not all of them.
const LOOKS: u32 = 7;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a wait has ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// The decoder has written records, or has ended.
    Records,
    /// The listener was dropped.
    Stopped,
    /// The decoder does not read: packets have been waiting for 1.4 s, or 1.7 s if it had just written, and it has
    /// written nothing meanwhile.
    Deaf,
}

/// What a listener waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch<'a, R, P, S> {
    /// Readable when the decoder has written records or has ended.
    pub(super) records: &'a R,
    /// Readable while the newest packet is unread (a ring, `TPACKET_V2`), or any packet (a queue).
    pub(super) packets: &'a P,
    /// Readable when the listener was dropped.
    pub(super) stopped: &'a S,
}

impl<R: AsFd, P: AsFd, S: AsFd> Watch<'_, R, P, S> {
    /// Waits without a limit, and without waking up while nothing happens.
    ///
    /// The time that a caller spends elsewhere does not count: what the decoder has written meanwhile comes first.
    pub(super) fn wait(&self) -> Result<Event, Errno> {
        if let Some(event) = self.wait_for_records(QUIET)? {
            return Ok(event);
        }
        loop {
            let all = &mut [self.records(), self.stopped(), PollFd::new(self.packets, PollFlags::IN)];
            poll_for(all, None)?;
            let mut looks = 0;
            while self.has_unread()? {
                if looks == LOOKS {
                    return Ok(Event::Deaf);
                }
                looks += 1;
                if let Some(event) = self.wait_for_records(LOOK_EVERY)? {
                    return Ok(event);
                }
            }
            if let Some(event) = self.wait_for_records(Duration::ZERO)? {
                return Ok(event);
            }
        }
    }

    /// Waits for anything but packets; `None` if nothing happens.
    pub(super) fn wait_for_records(&self, limit: Duration) -> Result<Option<Event>, Errno> {
        let polled = &mut [self.records(), self.stopped()];
        poll_for(polled, Some(limit))?;
        let [records, stopped] = polled.each_ref().map(|polled| !polled.revents().is_empty());
        Ok(match (stopped, records) {
            (true, _) => Some(Event::Stopped),
            (false, true) => Some(Event::Records),
            (false, false) => None,
        })
    }

    fn has_unread(&self) -> Result<bool, Errno> {
        Ok(poll_for(&mut [PollFd::new(self.packets, PollFlags::IN)], Some(Duration::ZERO))? > 0)
    }

    fn records(&self) -> PollFd<'_> {
        PollFd::new(self.records, PollFlags::IN)
    }

    fn stopped(&self) -> PollFd<'_> {
        PollFd::new(self.stopped, PollFlags::IN)
    }
}

/// Waits for one of these; after an interruption, the time begins again.
fn poll_for(polled: &mut [PollFd<'_>], limit: Option<Duration>) -> Result<usize, Errno> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    loop {
        match poll(polled, limit.as_ref()) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, PipeReader, PipeWriter, Read, Write};
    use std::net::UdpSocket;
    use std::thread;

    use super::*;

    /// A listener's descriptors, and the other ends of them. Packets come from the test itself.
    struct Ends {
        records: PipeReader,
        packets: UdpSocket,
        stopped: PipeReader,
        decoder: PipeWriter,
        stop: PipeWriter,
    }

    impl Ends {
        fn new() -> Self {
            let packets = UdpSocket::bind("127.0.0.1:0").unwrap();
            packets.connect(packets.local_addr().unwrap()).unwrap();
            let ((records, decoder), (stopped, stop)) = (io::pipe().unwrap(), io::pipe().unwrap());
            Self { records, packets, stopped, decoder, stop }
        }

        fn wait(&self) -> Event {
            let Self { records, packets, stopped, .. } = self;
            Watch { records, packets, stopped }.wait().unwrap()
        }
    }

    #[test]
    fn packets_that_nobody_reads_for_a_while_show_a_deaf_decoder() {
        let ends = Ends::new();
        ends.packets.send(b"packet").unwrap();
        assert_eq!(ends.wait(), Event::Deaf);
    }

    #[test]
    fn whatever_a_decoder_writes_shows_that_it_is_not_deaf() {
        let mut ends = Ends::new();
        ends.packets.send(b"packet").unwrap();
        for _ in 0..3 {
            ends.decoder.write_all(b"x").unwrap();
            assert_eq!(ends.wait(), Event::Records);
            assert_eq!(ends.records.read(&mut [0; 64]).unwrap(), 1);
        }
        assert_eq!(ends.wait(), Event::Deaf, "when it stops");
    }

    #[test]
    fn a_listener_that_was_held_up_takes_nobody_for_deaf() {
        let mut ends = Ends::new();
        ends.packets.send(b"packet").unwrap();
        ends.decoder.write_all(b"x").unwrap();
        thread::sleep(Duration::from_secs(3));
        assert_eq!(ends.wait(), Event::Records);
    }

    #[test]
    fn packets_that_are_read_without_a_word_are_no_sign_of_deafness() {
        let Ends { records, packets, stopped, decoder: _decoder, stop } = Ends::new();
        let reader = packets.try_clone().unwrap();
        let watching = thread::spawn(move || {
            let (records, packets, stopped) = (&records, &packets, &stopped);
            Watch { records, packets, stopped }.wait().unwrap()
        });
        for _ in 0..20 {
            reader.send(b"packet").unwrap();
            reader.recv(&mut [0; 6]).unwrap();
            thread::sleep(LOOK_EVERY / 2);
        }
        drop(stop);
        assert_eq!(watching.join().unwrap(), Event::Stopped);
    }
}
