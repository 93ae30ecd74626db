//! The decoder process, as the daemon sees it: how it is started, ended, and what it says when it ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::capture::decoder;
use crate::system::helper::{Helper, Rights};

/// How much is read of what a decoder has written to stderr.
const WORDS: usize = 256;

/// How long a decoder that is killed may take to end before that is news, and how often to look.
const END_LIMIT: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A decoder, as its listener sees it; dropping it ends it.
pub(super) struct Decoder {
    parent: Parent,
    /// Where its records arrive.
    pub(super) records: OwnedFd,
}

/// Who has started it.
enum Parent {
    This(Process),
    /// The helper, under this number.
    Helper(Helper, u64),
}

/// A decoder process; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

/// Why a decoder could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot start the packet decoder without /proc; run: mount -t proc proc /proc")]
    NoProc,
    #[error("cannot start the packet decoder: {0}")]
    Other(#[from] io::Error),
}

impl Decoder {
    /// Starts a process that reads from this socket. It ends with the calling thread, or with the helper.
    ///
    /// # Errors
    /// Says why it cannot be started.
    pub(super) fn start(socket: impl AsFd, interface: &str, rights: &Rights) -> Result<Self, String> {
        match rights {
            Rights::Own => {
                let (process, records) =
                    Process::start(socket, interface).map_err(|error| error.to_string())?;
                Ok(Self { parent: Parent::This(process), records })
            }
            Rights::Helper(helper) => {
                let number = helper.next_number();
                let records = helper
                    .start_decoder(number, interface, socket.as_fd())
                    .map_err(|error| error.to_string())?;
                Ok(Self { parent: Parent::Helper(helper.clone(), number), records })
            }
        }
    }

    /// Ends the process, and says why in one line, as [`Process::end`] does.
    pub(super) fn end(&mut self, reason: Option<String>) -> String {
        match &mut self.parent {
            Parent::This(process) => process.end(reason),
            Parent::Helper(helper, number) => helper.end_decoder(*number, reason),
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        if let Parent::Helper(helper, number) = &self.parent {
            helper.drop_decoder(*number);
        }
    }
}

impl Process {
    /// Starts a process that reads from this socket, and returns where its records arrive. It ends with the calling
    /// thread.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(socket: impl AsFd, interface: &str) -> Result<(Self, OwnedFd), StartError> {
        let (records, output) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(io::Error::from)?;
        let socket = socket.as_fd().try_clone_to_owned()?;
        // Exactly this program, even if an upgrade has replaced its file: both sides must agree on the records.
        let child = Command::new("/proc/self/exe")
            .arg0(decoder::NAME)
            .arg(interface)
            .env_clear()
            .stdin(socket)
            .stdout(output)
            // Nobody reads this before the end. If it writes more than the pipe holds, it stops reading packets, and
            // is replaced for that.
            .stderr(Stdio::piped())
            .spawn();
        match child {
            Ok(child) => Ok((Self { child }, records)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !Path::new("/proc/self").exists() => {
                Err(StartError::NoProc)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the process, and says why in one line: for this reason, or by its exit status.
    ///
    /// One that cannot be killed, because it hangs in the kernel, is still there afterwards; only dropping waits for
    /// it.
    pub(crate) fn end(&mut self, reason: Option<String>) -> String {
        // If it is ending already, its status is set. No other process can get its number before it is reaped.
        let _ = self.child.kill();
        let status = self.status_within(END_LIMIT);
        let is_gone = !matches!(status, Ok(None));
        let reason = reason.unwrap_or_else(|| match status {
            Ok(None) => "packet decoder ended its output".to_owned(),
            Ok(Some(status)) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("packet decoder killed by signal {signal}"),
                (None, code) => format!("packet decoder exited with status {}", code.unwrap_or_default()),
            },
            Err(error) => format!("packet decoder ended: {error}"),
        });
        if !is_gone {
            return format!("{reason}; it hangs in the kernel and cannot be killed");
        }
        match self.child.stderr.take().map(|stderr| words(&stderr)) {
            Some(words) if !words.is_empty() => format!("{reason}, saying {words:?}"),
            _ => reason,
        }
    }
}

impl Process {
    /// Ends the process without waiting for that; says whether it has ended.
    pub(crate) fn is_gone(&mut self) -> bool {
        let _ = self.child.kill();
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the exit status; `None` if it has none by then.
    fn status_within(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            match self.child.try_wait()? {
                None if Instant::now() < end => std::thread::sleep(LOOK_AGAIN),
                status => return Ok(status),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended and been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the beginning of what was written to a pipe, without waiting for more.
fn words(pipe: impl AsFd) -> String {
    let mut buffer = [0; WORDS];
    let has_some = poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&Timespec::default()))
        .is_ok_and(|ready| ready > 0);
    let length = if has_some { rustix::io::read(&pipe, &mut buffer).unwrap_or(0) } else { 0 };
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn of_its_words_only_the_beginning_is_read_and_nothing_is_obeyed() {
        let (reader, mut writer) = io::pipe().unwrap();
        assert_eq!(words(&reader), "", "it does not wait");
        writer.write_all(b"\x1b[2Jone\ntwo\xff\n").unwrap();
        assert_eq!(words(&reader), " [2Jone two\u{fffd}");
        writer.write_all(&vec![b'x'; 60_000]).unwrap();
        assert_eq!(words(&reader).len(), WORDS);
        drop(writer);
        while !words(&reader).is_empty() {}
    }
}
