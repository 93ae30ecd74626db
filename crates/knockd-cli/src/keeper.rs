//! The thread that carries out what the leases ask for: first on disk, then as a command.

use std::collections::HashSet;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender};
use knockd_core::{Effect, LeaseId};

use crate::runner::Runner;
use crate::state::StateDir;

/// Hands effects to the keeper's thread, in order and without waiting for the disk.
#[derive(Debug)]
pub(crate) struct Keeper {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
enum Job {
    /// Leases are kept on disk from now on.
    Remember(StateDir),
    /// An effect, and how long the command may run that it starts.
    CarryOut(Effect, Option<Duration>),
}

impl Keeper {
    /// Starts the thread. Until it is given a state directory, leases are kept in memory only. What the disk cannot do is
    /// told, in words, once until it can again, and then that it can.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(runner: Runner) -> anyhow::Result<(Self, Receiver<Result<(), String>>)> {
        let (jobs, work) = crossbeam_channel::unbounded();
        let (complaints, problems) = crossbeam_channel::unbounded();
        let mut hands = Hands { state: None, runner, complaints, failing: false };
        let thread = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || hands.work(&work))
            .context("cannot start the keeper thread")?;
        Ok((Self { jobs, thread }, problems))
    }

    /// Keeps leases there from now on.
    pub(crate) fn remember(&self, state: StateDir) {
        self.give(Job::Remember(state));
    }

    /// Carries out an effect soon; a command may run for as long as `limit`.
    pub(crate) fn carry_out(&self, effect: Effect, limit: Option<Duration>) {
        self.give(Job::CarryOut(effect, limit));
    }

    fn give(&self, job: Job) {
        // The thread ends only when this sender is dropped.
        let _ = self.jobs.send(job);
    }

    /// Waits until everything has been carried out.
    pub(crate) fn finish(self) {
        drop(self.jobs);
        // A panic in the thread has already ended the process.
        let _ = self.thread.join();
    }
}

struct Hands {
    state: Option<StateDir>,
    runner: Runner,
    complaints: Sender<Result<(), String>>,
    failing: bool,
}

impl Hands {
    fn work(&mut self, work: &Receiver<Job>) {
        while let Ok(first) = work.recv() {
            // What has come meanwhile shares one wait for the disk.
            let batch: Vec<_> = std::iter::once(first).chain(work.try_iter()).collect();
            self.carry_out(batch);
        }
    }

    fn carry_out(&mut self, batch: Vec<Job>) {
        let mut runs = Vec::new();
        let mut result = Ok(());
        let mut is_dirty = false;
        for job in without_overtaken(batch) {
            let done = match (job, &self.state) {
                (Job::Remember(state), _) => {
                    self.state = Some(state);
                    Ok(())
                }
                (Job::CarryOut(Effect::Run(run), limit), _) => {
                    runs.push((run, limit));
                    Ok(())
                }
                (Job::CarryOut(..), None) => Ok(()),
                (Job::CarryOut(Effect::Store(record), _), Some(state)) => {
                    is_dirty = true;
                    state.store(&record)
                }
                (Job::CarryOut(Effect::Forget(id), _), Some(state)) => state.forget(id),
                (Job::CarryOut(Effect::SetAside(id, _), _), Some(state)) => state.set_aside(id),
            };
            result = result.and(done);
        }
        if let Some(state) = &self.state {
            if is_dirty {
                result = result.and(state.sync());
            }
            self.complain(result.map_err(|error| {
                format!(
                    "open doors cannot be remembered in {}: {error}; should knockd be killed now, they stay open",
                    state.path().display()
                )
            }));
        }
        for (run, limit) in runs {
            self.runner.start(run, limit);
        }
    }

    fn complain(&mut self, result: Result<(), String>) {
        let failed = result.is_err();
        if failed != self.failing {
            // The engine is gone only when the process is about to end.
            let _ = self.complaints.send(result);
        }
        self.failing = failed;
    }
}

/// Drops every `Store` that a later one, or a `Forget`, of the same lease makes needless.
fn without_overtaken(batch: Vec<Job>) -> Vec<Job> {
    let mut later: HashSet<LeaseId> = HashSet::new();
    let mut kept: Vec<_> = batch
        .into_iter()
        .rev()
        .filter(|job| match job {
            Job::CarryOut(Effect::Store(record), _) => later.insert(record.id),
            Job::CarryOut(Effect::Forget(id), _) => {
                later.insert(*id);
                true
            }
            Job::CarryOut(Effect::SetAside(..) | Effect::Run(_), _) | Job::Remember(_) => true,
        })
        .collect();
    kept.reverse();
    kept
}
