//! The stderr of commands: it is copied to ours, and the first and the last line of each command are kept.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::system::reopen;

/// How much of a line is kept, in bytes.
const LINE_LIMIT: usize = 256;

/// How long bytes wait for a reader of our stderr that has kept up so far.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many bytes wait for that reader; more are lost.
const BACKLOG: usize = 64 * 1024;

/// How many bytes commands may say within [`WINDOW`]: a door that opens at every packet, with a command that complains,
/// would fill the disk of whoever keeps our stderr.
const VOLUME: usize = 1024 * 1024;
const WINDOW: Duration = Duration::from_secs(60);

/// How much a pipe takes at once, if it takes anything (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;

/// The first and the last line of a stream that have a letter or a digit: `^^^` under a mistake says nothing by itself.
///
/// Some programs name the reason first, such as iptables, nft and mount, others last.
#[derive(Default, Debug)]
pub(super) struct Words {
    first: Vec<u8>,
    last: Vec<u8>,
    /// Whether there are lines between these two.
    is_apart: bool,
    current: Vec<u8>,
}

impl Words {
    pub(super) fn push(&mut self, chunk: &[u8]) {
        for &byte in chunk {
            if byte == b'\n' {
                self.end_line();
            } else if self.current.len() < LINE_LIMIT {
                self.current.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        if self.current.iter().any(|byte| byte.is_ascii_alphanumeric() || !byte.is_ascii()) {
            if self.first.is_empty() {
                std::mem::swap(&mut self.first, &mut self.current);
            } else {
                self.is_apart = !self.last.is_empty();
                std::mem::swap(&mut self.last, &mut self.current);
            }
        }
        self.current.clear();
    }

    /// Returns the lines as one, without control characters; empty if there is none.
    pub(super) fn text(mut self) -> String {
        self.end_line();
        let [first, last] = [self.first, self.last].map(|line| {
            let line = String::from_utf8_lossy(&line);
            let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            line.trim().to_owned()
        });
        match last.as_str() {
            "" => first,
            last => format!("{first}{}{last}", if self.is_apart { " [...] " } else { " / " }),
        }
    }
}

/// Our stderr, shared by all commands: writing to it never blocks.
///
/// While it takes nothing, its owner should read nothing more, for at most [`PATIENCE`]: commands then wait for their
/// full pipes. After that, everything is lost until somebody reads again.
#[derive(Debug)]
pub(super) struct Sink {
    to: File,
    pending: Vec<u8>,
    /// Since when `pending` waits.
    waiting_since: Option<Instant>,
    /// Whether waiting for the reader was in vain.
    is_stuck: bool,
    /// When the current window ends; `None` if nothing has been said lately.
    window_ends: Option<Instant>,
    /// How many bytes have been said in it, and how many were too many.
    said: usize,
    left_out: usize,
}

impl Sink {
    pub(super) fn new(stderr: OwnedFd) -> Self {
        let to = reopen(stderr.as_fd()).unwrap_or_else(|| File::from(stderr));
        Self {
            to,
            pending: Vec::new(),
            waiting_since: None,
            is_stuck: false,
            window_ends: None,
            said: 0,
            left_out: 0,
        }
    }

    /// Writes the chunk, keeps it for later, or loses it.
    pub(super) fn write(&mut self, chunk: &[u8], now: Instant) {
        self.renew(now);
        self.window_ends.get_or_insert(now + WINDOW);
        if self.said + chunk.len() > VOLUME {
            self.left_out += chunk.len();
            return;
        }
        self.said += chunk.len();
        if self.pending.len() + chunk.len() <= BACKLOG {
            self.pending.extend(chunk);
            self.flush(now);
        }
    }

    /// Starts a new window if the current one is over, and tells what that has left out.
    fn renew(&mut self, now: Instant) {
        if self.window_ends.is_some_and(|ends| now >= ends) {
            let left_out = std::mem::take(&mut self.left_out);
            (self.window_ends, self.said) = (None, 0);
            if left_out > 0 {
                let text = format!("\nknockd: suppressed {left_out} bytes of stderr output from commands\n");
                self.pending.extend(text.as_bytes());
            }
        }
    }

    /// Writes what is pending, or loses it after too long a wait.
    pub(super) fn flush(&mut self, now: Instant) {
        self.renew(now);
        while let Some(piece) = self.pending.chunks(PIECE).next() {
            match write(&self.to, piece) {
                Ok(written) => {
                    self.pending.drain(..written.min(self.pending.len()));
                    (self.waiting_since, self.is_stuck) = (None, false);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.is_stuck |= self.waiting_since.is_some_and(|since| now >= since + PATIENCE);
                    if !self.is_stuck {
                        self.waiting_since.get_or_insert(now);
                        return;
                    }
                    self.pending.clear();
                }
                // It is closed.
                Err(_) => self.pending.clear(),
            }
        }
        self.waiting_since = None;
    }

    /// Says whether anything is pending; call [`Self::flush`] when [`Self::as_fd`] is writable.
    pub(super) const fn is_waiting(&self) -> bool {
        self.waiting_since.is_some()
    }

    /// The latest time to call [`Self::flush`].
    pub(super) fn deadline(&self) -> Option<Instant> {
        let summary = self.window_ends.filter(|_| self.left_out > 0);
        self.waiting_since.map(|since| since + PATIENCE).into_iter().chain(summary).min()
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.to.as_fd()
    }
}

/// Writes without blocking: a descriptor that could not be reopened may have no room, and would block.
fn write(to: &File, piece: &[u8]) -> Result<usize, Errno> {
    if poll(&mut [PollFd::new(to, PollFlags::OUT)], Some(&Timespec::default()))? == 0 {
        return Err(Errno::AGAIN);
    }
    rustix::io::write(to, piece)
}

/// Our own stderr; that of a daemon in the background is `/dev/null`, or will be before a command runs.
pub(super) fn ours(is_in_background: bool) -> io::Result<Sink> {
    let stderr = if is_in_background {
        File::options().write(true).open("/dev/null").map(OwnedFd::from)
    } else {
        io::stderr().as_fd().try_clone_to_owned()
    };
    stderr.map(Sink::new)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom};

    use super::*;

    fn words(said: &str) -> String {
        let mut words = Words::default();
        words.push(said.as_bytes());
        words.text()
    }

    #[test]
    fn of_a_long_line_the_beginning_is_kept() {
        let mut words = Words::default();
        for _ in 0..LINE_LIMIT {
            words.push(b"xyz");
        }
        assert_eq!(words.current.len(), LINE_LIMIT);
        words.push(b"\n\n  \nshort\n");
        let text = words.text();
        assert_eq!(text.len(), LINE_LIMIT + " / short".len());
        assert!(text.starts_with("xyzxyz") && text.ends_with("x / short"), "{text}");
    }

    #[test]
    fn the_reason_is_kept_whether_it_is_said_first_or_last() {
        for (said, kept) in [
            ("", ""),
            ("\n \t\n", ""),
            ("why", "why"),
            ("  why\n", "why"),
            ("first\nlast\n", "first / last"),
            ("\x1bfirst\r\n\nand\nmore\nlast", "first [...] last"),
            // As nft, iptables and mount put it.
            (
                "Error: Could not process rule: No such file or directory\nadd element inet filter ssh4 { 192.0.2.1 }\n\
                 \x20                ^^^^^^\n",
                "Error: Could not process rule: No such file or directory / add element inet filter ssh4 { 192.0.2.1 }",
            ),
            (
                "iptables v1.8.9 (nf_tables): unknown option \"--dprt\"\nTry `iptables -h' or 'iptables --help' for more information.\n",
                "iptables v1.8.9 (nf_tables): unknown option \"--dprt\" / Try `iptables -h' or 'iptables --help' for more information.",
            ),
            (
                "mount: /mnt: permission denied.\n       dmesg(1) may have more information after failed mount system call.\n",
                "mount: /mnt: permission denied. / dmesg(1) may have more information after failed mount system call.",
            ),
            ("\u{444}\n^\n", "\u{444}"),
        ] {
            assert_eq!(words(said), kept, "{said:?}");
        }
    }

    /// A sink whose pipe is full, and the other end of the pipe.
    fn full(now: Instant) -> (Sink, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let mut sink = Sink::new(writer.into());
        while !sink.is_waiting() {
            sink.write(&[b'x'; PIECE], now);
        }
        (sink, reader)
    }

    #[test]
    fn what_does_not_fit_waits_for_the_reader_and_is_then_written() {
        let now = Instant::now();
        let (mut sink, mut reader) = full(now);
        sink.write(b"more", now);
        assert_eq!(sink.pending.len(), PIECE + 4);
        reader.read_exact(&mut [0; 2 * PIECE]).unwrap();
        sink.flush(now + PATIENCE / 2);
        assert!(!sink.is_waiting() && sink.pending.is_empty());
        drop(sink);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"xmore"));
    }

    #[test]
    fn when_nobody_reads_all_is_lost_at_once_after_a_second_until_somebody_reads_again() {
        let now = Instant::now();
        let (mut sink, mut reader) = full(now);
        for _ in 0..2 * BACKLOG / PIECE {
            sink.write(&[b'y'; PIECE], now);
        }
        assert_eq!(sink.pending.len(), BACKLOG);
        assert_eq!(sink.deadline(), Some(now + PATIENCE));
        sink.flush(now + PATIENCE);
        sink.write(b"lost", now + PATIENCE);
        assert!(!sink.is_waiting() && sink.pending.is_empty());
        reader.read_exact(&mut [0; 2 * PIECE]).unwrap();
        sink.write(b"heard", now + PATIENCE);
        drop(sink);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"xheard"));
    }

    #[test]
    fn commands_say_a_mebibyte_a_minute_and_what_is_more_is_counted() {
        let now = Instant::now();
        let file = tempfile::tempfile().unwrap();
        let mut sink = Sink::new(file.try_clone().unwrap().into());
        for _ in 0..1000 {
            sink.write(&[b'x'; PIECE], now);
        }
        assert_eq!(file.metadata().unwrap().len(), 1024 * 1024);
        assert_eq!(sink.deadline(), Some(now + WINDOW));
        sink.flush(now + WINDOW);
        assert_eq!((sink.deadline(), sink.window_ends), (None, None));
        sink.write(b"more", now + WINDOW);
        let mut said = String::new();
        (&file).seek(SeekFrom::Start(1024 * 1024)).unwrap();
        (&file).read_to_string(&mut said).unwrap();
        let left_out = 1000 * PIECE - 1024 * 1024;
        assert_eq!(
            said,
            format!("\nknockd: suppressed {left_out} bytes of stderr output from commands\nmore")
        );
    }

    #[test]
    fn a_closed_pipe_does_no_harm() {
        let now = Instant::now();
        let (mut sink, reader) = full(now);
        drop(reader);
        sink.write(b"nobody", now);
        assert!(!sink.is_waiting() && sink.pending.is_empty());
    }
}
