//! The decoder: the process that reads packets, which has no privilege and no other task.
//!
//! The daemon starts its own program once more for each interface, under the name [`NAME`], with the packet socket as
//! stdin and a socket for [`crate::capture::record`]s as stdout. What a packet can do to the code that reads it, it can do here only.

use std::io::{self, Write};
use std::process::ExitCode;

use knockd_capture::{Capture, CaptureError};
use nix::sys::prctl;
use nix::sys::signal::SigSet;

use crate::capture::record::{self, Record};
use crate::capture::sandbox;

/// The name under which [`run`] is wanted instead of the daemon.
pub const NAME: &str = "knockd-decoder";

/// Reads and decodes packets until the daemon ends or the interface goes.
///
/// Its arguments are the number and the name of the interface. The process must have no other thread.
pub fn run() -> ExitCode {
    let mut arguments =
        std::env::args_os().skip(1).map(|argument| argument.into_string().unwrap_or_default());
    let index = arguments.next().and_then(|number| number.parse().ok());
    let (Some(index), Some(name)) = (index, arguments.next()) else {
        let _ = writeln!(io::stderr(), "{NAME}: only knockd starts this");
        return ExitCode::FAILURE;
    };
    // The daemon is told in a record why there are no more packets; if it cannot be told, it is gone.
    match decode(&name, index) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn decode(name: &str, index: u32) -> io::Result<()> {
    // Signals are for the daemon: `pkill -HUP knockd` and Ctrl-C reach this process, too. It ends with its parent.
    SigSet::all().thread_block()?;
    // It was started from /proc/self/exe, and would be called `exe`.
    prctl::set_name(c"knockd-decoder")?;
    let mut capture = Capture::new(io::stdin(), name, index);
    let mut report = Report { bytes: Vec::with_capacity(record::BATCH) };
    let kept = sandbox::enter();
    // Should the daemon have ended before the sandbox asked to be killed then, this fails: nobody else has the socket.
    report.add(&Record::Ready(kept))?;
    report.send()?;
    loop {
        match capture.next_packet() {
            Ok(packet) => {
                if let Some(packet) = packet {
                    report.add(&Record::Packet(packet))?;
                }
                // After each batch, whether it was full or none was left.
                if packet.is_none() || report.bytes.is_empty() {
                    let dropped = capture.take_dropped();
                    if dropped > 0 {
                        report.add(&Record::Dropped(dropped))?;
                    }
                    // The next call may wait.
                    report.send()?;
                }
            }
            Err(CaptureError::LinkDown) => {
                report.add(&Record::LinkDown)?;
                report.send()?;
            }
            Err(CaptureError::InterfaceGone) => {
                report.add(&Record::InterfaceGone)?;
                return report.send();
            }
            Err(CaptureError::Other(error)) => {
                let number = error.raw_os_error().and_then(|number| u16::try_from(number).ok());
                report.add(&Record::Failed(number.unwrap_or_default()))?;
                return report.send();
            }
        }
    }
}

/// Records on their way to the daemon.
struct Report {
    bytes: Vec<u8>,
}

impl Report {
    fn add(&mut self, record: &Record) -> io::Result<()> {
        self.bytes.extend(record.to_bytes());
        if self.bytes.len() < record::BATCH { Ok(()) } else { self.send() }
    }

    fn send(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            // Not std's stdout, which sends what ends in a line feed first.
            rustix::io::write(io::stdout(), &self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }
}
