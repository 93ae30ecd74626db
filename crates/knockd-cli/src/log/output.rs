//! Destinations that lines are written to without waiting long for a reader: a daemon whose log is stuck still opens
//! and closes doors.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use jiff::Zoned;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::system::reopen;
use crate::system::text::count;

/// How much a pipe takes at once, if it takes anything (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;

/// Where system logs listen (syslog(3)).
const SYSTEM_LOG: &str = "/dev/log";

/// Facility daemon (3) and severity notice (5): RFC 3164, section 4.1.1.
const PRIORITY: u32 = 3 * 8 + 5;

/// The time that may be spent waiting for a reader: a second at once, and a twentieth of the time that passes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    left: Duration,
    at: Instant,
}

impl Patience {
    const MOST: Duration = Duration::from_secs(1);
    const SHARE: u32 = 20;

    pub(super) const fn new(now: Instant) -> Self {
        Self { left: Self::MOST, at: now }
    }

    /// Returns how long somebody may wait from now on.
    pub(super) fn left(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at);
        (self.left, self.at) = (Self::MOST.min(self.left + passed / Self::SHARE), now);
        self.left
    }

    /// Counts the time until `now` as spent.
    pub(super) fn spend_until(&mut self, now: Instant) {
        let spent = now.saturating_duration_since(self.at);
        (self.left, self.at) = (self.left.saturating_sub(spent), now);
    }
}

/// One of the standard outputs: a terminal, a pipe, a socket or a file.
///
/// Lines that do not fit while nobody reads are lost; once somebody reads again, a line gives their number. A reader
/// that is slow costs at most a twentieth of the time.
#[derive(Debug)]
pub(crate) struct Output<F> {
    to: F,
    /// The same terminal or pipe, reopened so that writing does not block.
    own: Option<File>,
    patience: Cell<Patience>,
    lost: Cell<u64>,
    /// Whether the latest line was cut off.
    is_cut: Cell<bool>,
}

impl<F: AsFd> Output<F> {
    pub(crate) fn new(to: F) -> Self {
        Self { own: reopen(to.as_fd()), ..Self::shared(to) }
    }

    /// Uses the descriptor as it is, so it may be replaced at any time; writing may block for a moment.
    pub(crate) fn shared(to: F) -> Self {
        let patience = Cell::new(Patience::new(Instant::now()));
        Self { to, own: None, patience, lost: Cell::new(0), is_cut: Cell::new(false) }
    }

    /// Writes a line, or loses it.
    pub(crate) fn write_line(&self, text: &str) {
        let lost = self.lost.get();
        // Only a reader that has kept up so far is waited for.
        if !self.is_writable(lost == 0) {
            self.lost.set(lost.saturating_add(1));
            return;
        }
        let end = if self.is_cut.get() { "\n" } else { "" };
        let line = if lost == 0 {
            format!("{end}{text}\n")
        } else {
            let lines = count(usize::try_from(lost).unwrap_or(usize::MAX), "line");
            format!("{end}(lost {lines} that nobody read)\n{text}\n")
        };
        // One write, so lines of several processes do not mix.
        let written = self.write_all(line.as_bytes());
        let is_complete = written == line.len();
        if written > 0 {
            self.is_cut.set(!is_complete);
            self.lost.set(u64::from(!is_complete));
        } else {
            self.lost.set(lost.saturating_add(1));
        }
    }

    /// Writes piece by piece, and gives up midway if nobody reads any more or nobody can. Returns how much was written.
    fn write_all(&self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while let Some(piece) = bytes.get(written..).and_then(|rest| rest.chunks(PIECE).next())
            && self.is_writable(true)
        {
            match rustix::io::write(self.fd(), piece) {
                Ok(length) => written += length,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        written
    }

    /// Says whether there is room, after waiting for it if there is patience left.
    fn is_writable(&self, waits: bool) -> bool {
        if self.is_writable_within(Duration::ZERO) {
            return true;
        }
        let mut patience = self.patience.get();
        let left = patience.left(Instant::now());
        let is_writable = waits && self.is_writable_within(left);
        patience.spend_until(Instant::now());
        self.patience.set(patience);
        is_writable
    }

    fn is_writable_within(&self, time: Duration) -> bool {
        let time = Timespec::try_from(time).unwrap_or_default();
        // Writing finds errors, such as a closed pipe.
        !matches!(poll(&mut [PollFd::from_borrowed_fd(self.fd(), PollFlags::OUT)], Some(&time)), Ok(0))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.own.as_ref().map_or(self.to.as_fd(), File::as_fd)
    }
}

/// For messages that another program formats, each with a line end.
impl<F: AsFd> Write for Output<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.write_line(text.strip_suffix('\n').unwrap_or(&text));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The system log.
///
/// syslog(3) would block if the system log has stopped reading, so here each line is a datagram of its own, lost if
/// there is no room for it.
#[derive(Debug, Default)]
pub(crate) struct SystemLog {
    socket: RefCell<Option<UnixDatagram>>,
}

impl SystemLog {
    /// Sends a line, or loses it. Reconnects after a restart of the system log.
    pub(crate) fn write_line(&self, time: &Zoned, text: &str) {
        // The format of syslog(3): RFC 3164 without a host name.
        let message = format!("<{PRIORITY}>{} knockd: {text}", time.strftime("%b %e %H:%M:%S"));
        let mut socket = self.socket.borrow_mut();
        let send = |socket: &UnixDatagram| socket.send(message.as_bytes());
        match socket.as_ref().map(send) {
            Some(Ok(_)) => return,
            Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => return,
            _ => {}
        }
        *socket = connect().ok();
        let _ = socket.as_ref().map(send);
    }
}

fn connect() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SYSTEM_LOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_reader_that_stops_costs_lines_and_no_time_and_learns_how_many() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::new(writer);
        let start = Instant::now();
        for _ in 0..100 {
            output.write_line(&"x".repeat(4095));
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        let lost = output.lost.get();
        assert!((1..100).contains(&lost), "{lost}");
        let mut read = vec![0; (100 - usize::try_from(lost).unwrap()) * 4096];
        reader.read_exact(&mut read).unwrap();
        output.write_line("more");
        drop(output);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, format!("(lost {lost} lines that nobody read)\nmore\n"));
    }

    #[test]
    fn a_reader_that_is_slow_costs_a_second_and_a_twentieth_of_the_time() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut patience = Patience::new(start);
        assert_eq!(patience.left(at(5000)), Duration::from_secs(1));
        patience.spend_until(at(5900));
        assert_eq!(patience.left(at(5900)), Duration::from_millis(100));
        patience.spend_until(at(6000));
        assert_eq!(patience.left(at(6000)), Duration::ZERO);
        assert_eq!(patience.left(at(8000)), Duration::from_millis(100));
        assert_eq!(patience.left(at(100_000)), Duration::from_secs(1));
    }

    #[test]
    fn a_reader_that_takes_a_line_now_and_then_does_not_pace_the_writer() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::new(writer);
        let (done, is_done) = crossbeam_channel::bounded::<()>(0);
        let thread = std::thread::spawn(move || {
            let mut line = [0; 4096];
            while is_done.recv_timeout(Duration::from_millis(100)).is_err_and(|error| error.is_timeout()) {
                reader.read_exact(&mut line).unwrap();
            }
        });
        // At the pace of the reader, these would take 100 seconds.
        let start = Instant::now();
        for _ in 0..1000 {
            output.write_line(&"x".repeat(4095));
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert!(output.lost.get() > 0);
        drop(done);
        thread.join().unwrap();
    }

    #[test]
    fn a_pipe_that_others_have_filled_meanwhile_does_not_block() {
        let (mut reader, writer) = io::pipe().unwrap();
        let other = Output::new(writer.try_clone().unwrap());
        while other.lost.get() == 0 {
            other.write_line(&"x".repeat(4095));
        }
        let output = Output::new(writer);
        // As if there had been room just before.
        assert_eq!(rustix::io::write(output.fd(), b"x"), Err(rustix::io::Errno::AGAIN));
        reader.read_exact(&mut [0; 4096]).unwrap();
        output.write_line("more");
        assert_eq!(output.lost.get(), 0);
    }

    #[test]
    fn a_line_that_is_cut_off_ends_before_the_next_one() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::new(writer);
        output.write_line(&"x".repeat(100_000));
        assert!(output.is_cut.get());
        let mut written = vec![0; 65536];
        reader.read_exact(&mut written).unwrap();
        output.write_line("next");
        drop(output);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "\n(lost 1 line that nobody read)\nnext\n");
    }

    #[test]
    fn a_terminal_that_nobody_reads_costs_lines_and_no_time() {
        let pair = nix::pty::openpty(None, None).unwrap();
        let output = Output::new(&pair.slave);
        let start = Instant::now();
        for _ in 0..1000 {
            output.write_line(&"x".repeat(1000));
        }
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(output.lost.get() > 0);
    }

    #[test]
    fn a_long_line_is_written_whole_to_a_reader_that_keeps_up() {
        let (mut reader, writer) = io::pipe().unwrap();
        let line = "y".repeat(200_000);
        let wanted = format!("{line}\n");
        let thread = std::thread::spawn(move || Output::new(writer).write_line(&line));
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        thread.join().unwrap();
        assert!(read == wanted, "{} bytes", read.len());
    }

    #[test]
    fn a_closed_pipe_does_no_harm() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        Output::new(writer).write_line("nobody");
    }
}
