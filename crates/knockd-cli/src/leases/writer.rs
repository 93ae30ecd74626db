//! The thread that makes things durable: leases, and used lines of one-time files.
//!
//! It has one rule: durable first, then go on. Everything that arrives while it waits for the disk is one batch, with
//! only the latest change of each lease, and shares the next wait. Every change has a ticket, and the writer reports
//! the ticket up to which everything is done.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use knockd_core::{BurnId, LeaseId, LeaseRecord, Unused};

use super::one_time_file::{StrikeError, strike_out};
use super::store::LeaseStore;
use crate::system::helper::Rights;

/// The pause before failed writes are retried.
const RETRY: Duration = Duration::from_secs(5);

/// Numbers changes: a later one has a larger ticket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ticket(pub(super) u64);

/// A report from the writer.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Everything up to this ticket is durable, or cannot be written and is kept in memory for a retry.
    Done(Ticket),
    /// A line was struck out, or could not be.
    Burnt(BurnId, Result<(), StrikeError>),
    /// Leases cannot be written, for this reason; or all of them can again. Reported once per change.
    Problem(Result<(), String>),
}

/// Passes changes to the writer thread without waiting for the disk.
#[derive(Debug)]
pub(crate) struct Writer {
    pending: Arc<Mutex<Pending>>,
    last: Ticket,
    /// Wakes the thread; one message is enough for everything pending.
    wake: Sender<()>,
    thread: JoinHandle<()>,
}

/// What the thread has to do next. Only the latest change of a lease counts, so this is bounded by the leases and the
/// knocks at one-time doors, however slow the disk is.
#[derive(Debug)]
struct Pending {
    /// Where to keep leases from now on.
    store: Option<LeaseStore>,
    changes: BTreeMap<LeaseId, Change>,
    burns: Vec<(BurnId, PathBuf, Unused)>,
    /// The ticket of the latest change.
    ticket: Ticket,
    /// Who wants to know whether everything is on disk.
    asks: Vec<Sender<bool>>,
}

#[derive(Debug)]
pub(crate) enum Change {
    Store(LeaseRecord),
    Forget,
    /// Keep it for a person, with the reason why it was given up.
    SetAside(LeaseRecord, String),
    /// A person has dealt with it.
    Dismiss,
}

impl Writer {
    /// Starts the thread. Until it has a store, leases are kept only in memory.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(rights: Rights) -> anyhow::Result<(Self, Receiver<Progress>)> {
        let pending = Arc::new(Mutex::new(Pending::new(Ticket(0))));
        let (wake, woken) = bounded(1);
        let (progress, told) = unbounded();
        let work = Arc::clone(&pending);
        let mut job = Job {
            rights,
            store: None,
            progress,
            undone: BTreeMap::new(),
            tried: Instant::now(),
            has_complained: false,
        };
        let thread = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || job.work(&woken, &work))
            .context("cannot start the writer thread")?;
        Ok((Self { pending, last: Ticket(0), wake, thread }, told))
    }

    /// Keeps leases there from now on.
    pub(crate) fn remember(&self, store: LeaseStore) {
        lock(&self.pending).store = Some(store);
        self.wake();
    }

    /// Queues a change of a lease to be made durable.
    pub(crate) fn change(&mut self, id: LeaseId, change: Change) -> Ticket {
        self.last.0 += 1;
        let mut pending = lock(&self.pending);
        pending.ticket = self.last;
        pending.changes.insert(id, change);
        drop(pending);
        self.wake();
        self.last
    }

    /// Queues a line of a one-time file to be struck out; exactly one [`Progress::Burnt`] follows.
    pub(crate) fn burn(&self, id: BurnId, path: PathBuf, line: Unused) {
        lock(&self.pending).burns.push((id, path, line));
        self.wake();
    }

    /// Says whether everything is on disk, after retrying failed writes; `false` if that takes too long.
    pub(crate) fn has_saved_all(&self, limit: Duration) -> bool {
        let (ask, answer) = bounded(1);
        lock(&self.pending).asks.push(ask);
        self.wake();
        answer.recv_timeout(limit).unwrap_or(false)
    }

    fn wake(&self) {
        // If a message is already pending, the thread will look.
        let _ = self.wake.try_send(());
    }

    /// Waits until everything has been written.
    pub(crate) fn finish(self) {
        drop(self.wake);
        // A panic in the thread has already ended the process.
        let _ = self.thread.join();
    }
}

/// Nobody holds the lock longer than it takes to add an entry or take all of them.
fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pending {
    const fn new(ticket: Ticket) -> Self {
        Self { store: None, changes: BTreeMap::new(), burns: Vec::new(), ticket, asks: Vec::new() }
    }

    /// Takes everything.
    fn take(&mut self) -> Self {
        let ticket = self.ticket;
        std::mem::replace(self, Self::new(ticket))
    }
}

/// The state of the thread.
struct Job {
    rights: Rights,
    store: Option<LeaseStore>,
    progress: Sender<Progress>,
    /// Changes that could not be written.
    undone: BTreeMap<LeaseId, Change>,
    /// When they were last tried.
    tried: Instant,
    /// Whether that was reported.
    has_complained: bool,
}

impl Job {
    fn work(&mut self, woken: &Receiver<()>, pending: &Mutex<Pending>) {
        loop {
            let woken = if self.undone.is_empty() {
                woken.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                woken.recv_timeout(RETRY)
            };
            let batch = lock(pending).take();
            self.carry_out(batch);
            if woken == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    fn carry_out(&mut self, batch: Pending) {
        let Pending { store, mut changes, burns, ticket, asks } = batch;
        if store.is_some() {
            self.store = store;
        }
        self.undone.retain(|id, _| !changes.contains_key(id));
        if self.tried.elapsed() >= RETRY || !asks.is_empty() {
            self.tried = Instant::now();
            changes.append(&mut self.undone);
        }
        self.write(changes);
        // A change of a lease does not wait for lines of one-time files.
        self.tell(Progress::Done(ticket));
        for (id, path, line) in burns {
            let burnt = strike_out(&path, &line, &self.rights);
            self.tell(Progress::Burnt(id, burnt));
        }
        for ask in asks {
            let _ = ask.send(self.undone.is_empty());
        }
    }

    fn write(&mut self, changes: BTreeMap<LeaseId, Change>) {
        let Some(store) = &self.store else { return };
        let mut stored = BTreeMap::new();
        let mut problem = None;
        for (id, change) in changes {
            match apply(store, id, &change) {
                Ok(()) if matches!(change, Change::Store(_) | Change::SetAside(..)) => {
                    drop(stored.insert(id, change));
                }
                Ok(()) => {}
                Err(error) => {
                    problem = Some(error);
                    self.undone.insert(id, change);
                }
            }
        }
        if !stored.is_empty()
            && let Err(error) = store.sync()
        {
            problem = Some(error);
            self.undone.append(&mut stored);
        }
        let path = store.path().display();
        if let Some(error) = problem.filter(|_| !self.has_complained) {
            let text = format!("cannot save open doors in {path}: {error}");
            self.tell(Progress::Problem(Err(text)));
        } else if self.has_complained && self.undone.is_empty() {
            self.tell(Progress::Problem(Ok(())));
        }
        self.has_complained = !self.undone.is_empty();
    }

    fn tell(&self, progress: Progress) {
        // The loop is gone only when the process is about to exit.
        let _ = self.progress.send(progress);
    }
}

fn apply(store: &LeaseStore, id: LeaseId, change: &Change) -> io::Result<()> {
    match change {
        Change::Store(record) => store.store(record),
        Change::Forget => store.forget(id),
        Change::SetAside(record, reason) => store.set_aside(record, reason),
        Change::Dismiss => store.dismiss(id),
    }
}

#[cfg(test)]
mod tests {
    use knockd_core::{Access, DoorName, LeaseKey, Milliseconds, StartState, UnixTime};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn record(id: u64) -> Change {
        let access = Access::Commands { start: "open".parse().unwrap(), stop: "close".parse().unwrap() };
        let source = "192.0.2.1".parse().unwrap();
        let key = LeaseKey { door: DoorName::new("door").unwrap(), source, access }.into();
        let (cmd_timeout, until) = (Milliseconds::new(Duration::from_secs(60)), UnixTime::default());
        Change::Store(LeaseRecord {
            id: LeaseId(id),
            key,
            cmd_timeout,
            until,
            failed: false,
            start: StartState::Ended,
            boot: None,
        })
    }

    /// Returns the writer's next report other than `Done`.
    fn next(progress: &Receiver<Progress>) -> Progress {
        loop {
            match progress.recv_timeout(SOON).unwrap() {
                Progress::Done(_) => {}
                other => return other,
            }
        }
    }

    #[test]
    fn what_has_been_done_is_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let (mut writer, progress) = Writer::start(Rights::Own).unwrap();
        writer.remember(LeaseStore::open(path.clone(), std::fs::File::try_lock).unwrap());
        for id in 0..20 {
            let ticket = writer.change(LeaseId(id), record(id));
            while !matches!(progress.recv_timeout(SOON).unwrap(), Progress::Done(done) if done >= ticket) {}
            assert!(path.join(format!("{id}.lease")).exists());
        }
        writer.finish();
    }

    #[test]
    fn a_problem_is_over_when_all_is_written_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let (mut writer, progress) = Writer::start(Rights::Own).unwrap();
        writer.remember(LeaseStore::open(path.clone(), std::fs::File::try_lock).unwrap());
        assert!(writer.has_saved_all(SOON));
        std::fs::remove_dir_all(&path).unwrap();
        writer.change(LeaseId(1), record(1));
        assert!(matches!(next(&progress), Progress::Problem(Err(_))));
        writer.change(LeaseId(2), Change::Forget);
        assert!(!writer.has_saved_all(SOON));
        assert!(
            progress.try_iter().all(|told| matches!(told, Progress::Done(_))),
            "it is told once, and is not over"
        );
        std::fs::create_dir(&path).unwrap();
        assert!(writer.has_saved_all(SOON));
        assert!(matches!(next(&progress), Progress::Problem(Ok(()))));
        assert!(path.join("1.lease").exists());
        writer.finish();
    }

    #[test]
    fn however_often_leases_change_no_more_than_the_latest_of_each_waits() {
        let (wake, _woken) = bounded(1);
        let pending = Arc::new(Mutex::new(Pending::new(Ticket(0))));
        let thread = std::thread::spawn(|| {});
        let mut writer = Writer { pending: Arc::clone(&pending), last: Ticket(0), wake, thread };
        for _ in 0..1000 {
            for id in 0..3 {
                writer.change(LeaseId(id), record(id));
            }
        }
        assert_eq!(writer.change(LeaseId(1), Change::Forget), Ticket(3001));
        let waiting = lock(&pending).take().changes;
        assert!(matches!(
            waiting.values().collect::<Vec<_>>().as_slice(),
            [Change::Store(_), Change::Forget, Change::Store(_)]
        ));
    }
}
