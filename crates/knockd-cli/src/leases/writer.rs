//! The thread that carries out what the leases ask for: first on disk, then as a command.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use knockd_core::{Effect, LeaseId, LeaseRecord, Run};

use crate::leases::commands::Runner;
use crate::leases::store::LeaseStore;

/// The pause before what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How long the thread waits when it has nothing to try again.
const IDLE: Duration = Duration::from_secs(3600);

/// Hands effects to the keeper's thread without waiting for the disk.
#[derive(Debug)]
pub(crate) struct Writer {
    pending: Arc<Mutex<Pending>>,
    /// Wakes the thread; one message is enough for all that is pending.
    wake: Sender<()>,
    thread: JoinHandle<()>,
}

/// What the thread is to do next. Only the latest change of a lease counts, so this is bounded by the leases and the commands,
/// however slow the disk is.
#[derive(Default, Debug)]
struct Pending {
    /// Where leases are kept from now on.
    state: Option<LeaseStore>,
    changes: BTreeMap<LeaseId, Change>,
    /// Commands that run after the changes, and how long they may.
    runs: Vec<(Run, Option<Duration>)>,
    /// Who wants to know whether everything is on disk.
    asks: Vec<Sender<bool>>,
}

#[derive(Debug)]
enum Change {
    Store(LeaseRecord),
    Forget,
    SetAside,
}

impl Writer {
    /// Starts the thread. Until it is given a state directory, leases are kept in memory only. What the disk cannot do is
    /// told, in words, once until all of it is done, and then that it is.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(runner: Runner) -> anyhow::Result<(Self, Receiver<Result<(), String>>)> {
        let pending = Arc::new(Mutex::new(Pending::default()));
        let (wake, woken) = bounded(1);
        let (complaints, problems) = unbounded();
        let work = Arc::clone(&pending);
        let mut hands = Hands {
            state: None,
            runner,
            complaints,
            undone: BTreeMap::new(),
            tried: Instant::now(),
            has_complained: false,
        };
        let thread = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || hands.work(&woken, &work))
            .context("cannot start the keeper thread")?;
        Ok((Self { pending, wake, thread }, problems))
    }

    /// Keeps leases there from now on.
    pub(crate) fn remember(&self, state: LeaseStore) {
        self.add(|pending| pending.state = Some(state));
    }

    /// Carries out an effect soon; a command may run for as long as `limit`.
    pub(crate) fn carry_out(&self, effect: Effect, limit: Option<Duration>) {
        self.add(|pending| {
            let (id, change) = match effect {
                Effect::Run(run) => return pending.runs.push((run, limit)),
                Effect::Store(record) => (record.id, Change::Store(record)),
                Effect::Forget(id) => (id, Change::Forget),
                Effect::SetAside(id, _) => (id, Change::SetAside),
            };
            pending.changes.insert(id, change);
        });
    }

    /// Says whether everything is on disk, after trying again what could not be written; `false` when that takes too long.
    pub(crate) fn has_saved_all(&self, limit: Duration) -> bool {
        let (ask, answer) = bounded(1);
        self.add(|pending| pending.asks.push(ask));
        answer.recv_timeout(limit).unwrap_or(false)
    }

    fn add(&self, to_do: impl FnOnce(&mut Pending)) {
        to_do(&mut lock(&self.pending));
        // When there is a message already, the thread will look.
        let _ = self.wake.try_send(());
    }

    /// Waits until everything has been carried out.
    pub(crate) fn finish(self) {
        drop(self.wake);
        // A panic in the thread has already ended the process.
        let _ = self.thread.join();
    }
}

/// Nobody holds the lock for longer than it takes to put something in or to take all out.
fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Hands {
    state: Option<LeaseStore>,
    runner: Runner,
    complaints: Sender<Result<(), String>>,
    /// What could not be written.
    undone: BTreeMap<LeaseId, Change>,
    /// When all of that was tried last.
    tried: Instant,
    /// Whether that was told.
    has_complained: bool,
}

impl Hands {
    fn work(&mut self, woken: &Receiver<()>, pending: &Mutex<Pending>) {
        loop {
            let pause = if self.undone.is_empty() { IDLE } else { RETRY };
            let is_over = woken.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected);
            // What has come meanwhile shares one wait for the disk.
            let batch = std::mem::take(&mut *lock(pending));
            self.carry_out(batch);
            if is_over {
                return;
            }
        }
    }

    fn carry_out(&mut self, batch: Pending) {
        let Pending { state, mut changes, runs, asks } = batch;
        if state.is_some() {
            self.state = state;
        }
        self.undone.retain(|id, _| !changes.contains_key(id));
        if self.tried.elapsed() >= RETRY || !asks.is_empty() {
            self.tried = Instant::now();
            changes.append(&mut self.undone);
        }
        self.write(changes);
        for (run, limit) in runs {
            self.runner.start(run, limit);
        }
        for ask in asks {
            let _ = ask.send(self.undone.is_empty());
        }
    }

    fn write(&mut self, changes: BTreeMap<LeaseId, Change>) {
        let Some(state) = &self.state else { return };
        let mut stored = BTreeMap::new();
        let mut problem = None;
        for (id, change) in changes {
            match apply(state, id, &change) {
                Ok(()) if matches!(change, Change::Store(_)) => drop(stored.insert(id, change)),
                Ok(()) => {}
                Err(error) => {
                    problem = Some(error);
                    self.undone.insert(id, change);
                }
            }
        }
        if !stored.is_empty()
            && let Err(error) = state.sync()
        {
            problem = Some(error);
            self.undone.append(&mut stored);
        }
        // The engine is gone only when the process is about to end.
        if let Some(error) = problem.filter(|_| !self.has_complained) {
            let path = state.path().display();
            let text = format!(
                "open doors cannot be remembered in {path}: {error}; should knockd be killed now, they stay open"
            );
            let _ = self.complaints.send(Err(text));
        } else if self.has_complained && self.undone.is_empty() {
            let _ = self.complaints.send(Ok(()));
        }
        self.has_complained = !self.undone.is_empty();
    }
}

fn apply(state: &LeaseStore, id: LeaseId, change: &Change) -> io::Result<()> {
    match change {
        Change::Store(record) => state.store(record),
        Change::Forget => state.forget(id),
        Change::SetAside => state.set_aside(id),
    }
}

#[cfg(test)]
mod tests {
    use knockd_core::{LeaseKey, Timestamp};

    use super::*;
    use crate::system::clock::Clock;

    fn store(id: u64) -> Effect {
        let key = LeaseKey {
            door: "door".to_owned(),
            source: "192.0.2.1".parse().unwrap(),
            start: "open".to_owned(),
            stop: "close".to_owned(),
        };
        let (cmd_timeout, until) = (Duration::from_secs(60), Timestamp::ZERO);
        Effect::Store(LeaseRecord { id: LeaseId(id), key, cmd_timeout, until, failed: false })
    }

    #[test]
    fn a_problem_is_over_when_all_is_written_and_not_before() {
        let soon = Duration::from_secs(10);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let (keeper, problems) = Writer::start(Runner::new().0).unwrap();
        keeper.remember(LeaseStore::open(path.clone(), Clock::start()).unwrap());
        assert!(keeper.has_saved_all(soon));
        std::fs::remove_dir_all(&path).unwrap();
        keeper.carry_out(store(1), None);
        assert!(problems.recv_timeout(soon).unwrap().is_err());
        keeper.carry_out(Effect::Forget(LeaseId(2)), None);
        assert!(!keeper.has_saved_all(soon));
        assert!(problems.is_empty(), "it is told once, and is not over");
        std::fs::create_dir(&path).unwrap();
        assert!(keeper.has_saved_all(soon));
        assert_eq!(problems.recv_timeout(soon).unwrap(), Ok(()));
        assert!(path.join("1.lease").exists());
        keeper.finish();
    }

    #[test]
    fn however_often_leases_change_no_more_than_the_latest_of_each_waits() {
        let (wake, _woken) = bounded(1);
        let pending = Arc::default();
        let keeper = Writer { pending: Arc::clone(&pending), wake, thread: std::thread::spawn(|| {}) };
        for _ in 0..1000 {
            for id in 0..3 {
                keeper.carry_out(store(id), None);
            }
        }
        keeper.carry_out(Effect::Forget(LeaseId(1)), None);
        let waiting = std::mem::take(&mut lock(&pending).changes);
        assert!(matches!(
            waiting.values().collect::<Vec<_>>().as_slice(),
            [Change::Store(_), Change::Forget, Change::Store(_)]
        ));
    }
}
