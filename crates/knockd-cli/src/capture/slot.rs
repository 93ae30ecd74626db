//! The packet socket of a listener: the loop changes its filter, and the listener's thread replaces it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use knockd_capture::{Interface, PacketSocket, Program};

/// A packet socket that can be replaced, and the filter that it has. Nobody waits while holding the lock.
#[derive(Debug)]
pub(super) struct Slot {
    /// Its name and number do not change.
    interface: Interface,
    current: Mutex<Current>,
}

#[derive(Clone, Debug)]
struct Current {
    socket: Arc<PacketSocket>,
    program: Arc<Program>,
}

impl Slot {
    /// Takes a socket on this interface, which has this filter.
    pub(super) fn new(interface: Interface, socket: PacketSocket, program: Program) -> Self {
        let current = Current { socket: Arc::new(socket), program: Arc::new(program) };
        Self { interface, current: Mutex::new(current) }
    }

    pub(super) fn socket(&self) -> Arc<PacketSocket> {
        Arc::clone(&self.lock().socket)
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub(super) fn set_filter(&self, program: Program) -> std::io::Result<()> {
        let mut current = self.lock();
        current.program = Arc::new(program);
        let Current { socket, program } = current.clone();
        drop(current);
        socket.set_filter(&program)
    }

    /// Replaces the socket with a new one, which collects packets from now on.
    ///
    /// # Errors
    /// When no new socket can be opened.
    pub(super) fn renew(&self) -> anyhow::Result<()> {
        let Current { socket: old, mut program } = self.lock().clone();
        let socket = Arc::new(PacketSocket::open(&self.interface, &program, old.buffer())?);
        loop {
            let mut current = self.lock();
            if Arc::ptr_eq(&current.program, &program) {
                current.socket = socket;
                return Ok(());
            }
            // The loop has replaced the filter of the old one meanwhile.
            program = Arc::clone(&current.program);
            drop(current);
            socket.set_filter(&program)?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
