//! The thread that waits for packets.

use std::convert::Infallible;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use knockd_capture::{Capture, CaptureError, Interface, PacketSocket, Program};
use knockd_core::Packet;

/// The pause after an error that should not happen, so that one that stays does not keep a processor busy.
const PAUSE: Duration = Duration::from_secs(1);

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
    socket: Arc<PacketSocket>,
    /// Disconnecting it tells the thread to end.
    _alive: Sender<Infallible>,
}

impl Listener {
    /// Starts the thread, which says everything to `heard`.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(
        socket: PacketSocket,
        interface: Interface,
        heard: Sender<Heard>,
    ) -> anyhow::Result<Self> {
        let (alive, wanted) = crossbeam_channel::bounded(0);
        let socket = Arc::new(socket);
        let capture = Capture::new(Arc::clone(&socket));
        thread::Builder::new()
            .name("listener".to_owned())
            .spawn(move || listen(capture, &heard, &wanted))
            .context("cannot start the listener thread")?;
        Ok(Self { interface, socket, _alive: alive })
    }

    /// Changes what is listened for.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub(crate) fn set_filter(&self, program: &Program) -> anyhow::Result<()> {
        self.socket.set_filter(program).context("cannot change the packet filter")
    }
}

fn listen(mut capture: Capture<Arc<PacketSocket>>, heard: &Sender<Heard>, wanted: &Receiver<Infallible>) {
    while wanted.try_recv() == Err(TryRecvError::Empty) {
        let sent = match capture.next_packet() {
            Ok(Some(packet)) => heard.send(Heard::Packet(packet)),
            Ok(None) => continue,
            Err(error) => {
                let gone = matches!(error, CaptureError::InterfaceGone);
                let sent = heard.send(Heard::Failed(error));
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
