//! Destinations that lines are written to without waiting long for a reader: a daemon whose log is stuck still opens
//! and closes doors.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use jiff::Zoned;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::system::reopen;

/// How long a line waits for a reader that has kept up so far.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How much a pipe takes at once, if it takes anything (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;

/// Where system logs listen (syslog(3)).
const SYSTEM_LOG: &str = "/dev/log";

/// Facility daemon (3) and severity notice (5): RFC 3164, section 4.1.1.
const PRIORITY: u32 = 3 * 8 + 5;

/// One of the standard outputs: a terminal, a pipe, a socket or a file.
///
/// Lines that do not fit while nobody reads are lost; once somebody reads again, a line gives their number.
#[derive(Debug)]
pub(crate) struct Output<F> {
    to: F,
    /// The same terminal, reopened so that writing does not block.
    terminal: Option<File>,
    lost: Cell<u64>,
}

impl<F: AsFd> Output<F> {
    pub(crate) fn new(to: F) -> Self {
        let terminal = to.as_fd().is_terminal().then(|| reopen(to.as_fd()).ok()).flatten();
        Self { to, terminal, lost: Cell::new(0) }
    }

    /// Writes a line, or loses it.
    pub(crate) fn write_line(&self, text: &str) {
        let lost = self.lost.get();
        if self.takes_more() {
            if lost > 0 {
                self.write_all(format!("(lost {lost} lines that nobody read)\n").as_bytes());
            }
            // One write, so lines of several processes do not mix.
            self.write_all(format!("{text}\n").as_bytes());
        }
    }

    /// Says whether there is room; waits for a reader that has kept up so far.
    fn takes_more(&self) -> bool {
        let lost = self.lost.get();
        let takes_more = self.is_writable(if lost == 0 { PATIENCE } else { Timespec::default() });
        self.lost.set(if takes_more { 0 } else { lost.saturating_add(1) });
        takes_more
    }

    /// Writes piece by piece, and gives up midway if nobody reads any more or nobody can.
    fn write_all(&self, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE) {
            let mut rest = piece;
            while !rest.is_empty() && self.is_writable(PATIENCE) {
                match rustix::io::write(self.fd(), rest) {
                    Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return,
                }
            }
        }
    }

    fn is_writable(&self, patience: Timespec) -> bool {
        // Writing finds errors, such as a closed pipe.
        !matches!(poll(&mut [PollFd::from_borrowed_fd(self.fd(), PollFlags::OUT)], Some(&patience)), Ok(0))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_ref().map_or(self.to.as_fd(), File::as_fd)
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
    use std::time::{Duration, Instant};

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
        let line = "y".repeat(1_000_000);
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
