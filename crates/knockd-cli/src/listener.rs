//! The thread that waits for packets.

use std::convert::Infallible;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use knockd_capture::{Capture, CaptureError, FilterHandle, Interface, Program};
use knockd_core::Packet;

/// The pause after an error that should not happen, so that one that stays does not keep a processor busy.
const PAUSE: Duration = Duration::from_secs(1);

/// How many packets wait for the engine; behind them the kernel's buffer waits.
const QUEUE: usize = 4096;

/// What the listener says.
#[derive(Debug)]
pub(crate) enum Heard {
    Packet(Packet),
    /// Nothing can be heard at the moment, or for good when the interface is gone.
    Failed(CaptureError),
}

/// A capture that is being read by a thread of its own; dropping it ends the thread within a second.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) interface: Interface,
    pub(crate) heard: Receiver<Heard>,
    filter: FilterHandle,
    /// Disconnecting it tells the thread to end.
    _alive: Sender<Infallible>,
}

impl Listener {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(capture: Capture, interface: Interface) -> anyhow::Result<Self> {
        let (packets, heard) = crossbeam_channel::bounded(QUEUE);
        let (alive, wanted) = crossbeam_channel::bounded(0);
        let filter = capture.filter_handle();
        thread::Builder::new()
            .name("listener".to_owned())
            .spawn(move || listen(capture, &packets, &wanted))
            .context("cannot start the listener thread")?;
        Ok(Self { interface, heard, filter, _alive: alive })
    }

    /// Changes what is listened for.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub(crate) fn set_filter(&self, program: &Program) -> anyhow::Result<()> {
        self.filter.replace(program).context("cannot change the packet filter")
    }
}

fn listen(mut capture: Capture, packets: &Sender<Heard>, wanted: &Receiver<Infallible>) {
    while wanted.try_recv() == Err(TryRecvError::Empty) {
        let sent = match capture.next_packet() {
            Ok(Some(packet)) => packets.send(Heard::Packet(packet)),
            Ok(None) => continue,
            Err(error) => {
                let gone = matches!(error, CaptureError::InterfaceGone { .. });
                let sent = packets.send(Heard::Failed(error));
                if gone {
                    return;
                }
                thread::sleep(PAUSE);
                sent
            }
        };
        if sent.is_err() {
            return;
        }
    }
}
