//! What waits for the thread that changes the table.
//!
//! A channel would do, if it did not keep the piece of memory that it has filled last, and with that, in the heap, everything below:
//! what a crowd of knockers has once needed. This gives all of it back.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use knockd_core::Admission;

use super::{Change, Job};

/// How many changes share one batch.
const MOST_AT_ONCE: usize = 1000;

/// The jobs, the oldest first.
#[derive(Default, Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

#[derive(Default, Debug)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Whether nobody takes jobs any more.
    is_over: bool,
}

impl Queue {
    /// Adds a job; says whether somebody is there to do it.
    pub(super) fn push(&self, job: Job) -> bool {
        let mut waiting = self.lock();
        if !waiting.is_over {
            waiting.jobs.push_back(job);
            self.filled.notify_one();
        }
        !waiting.is_over
    }

    /// Adds a change to those that wait, so that they are one job if nothing has to be done between them.
    pub(super) fn set(&self, admission: Admission, time: Option<Duration>) {
        let change = Change { admission, time, refused: None };
        let mut waiting = self.lock();
        if let Some(Job::Set(changes)) = waiting.jobs.back_mut()
            && changes.len() < MOST_AT_ONCE
        {
            changes.push(change);
            return;
        }
        drop(waiting);
        self.push(Job::Set(vec![change]));
    }

    /// Takes the next job; waits for it until then, or without a time as long as it takes.
    pub(super) fn pop(&self, until: Option<Instant>) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                if waiting.jobs.is_empty() {
                    waiting.jobs = VecDeque::new();
                }
                return Some(job);
            }
            waiting = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return None,
                Some(left) => {
                    let waited = self.filled.wait_timeout(waiting, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Takes no jobs any more, and forgets those that wait.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        *waiting = Waiting { jobs: VecDeque::new(), is_over: true };
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use knockd_core::LeaseId;

    use super::*;

    fn admission(id: u64) -> Admission {
        let (door, source) = ("a".parse().unwrap(), "192.0.2.7".parse().unwrap());
        Admission { id: LeaseId(id), door, source }
    }

    /// Takes all jobs, in short form: the IDs of changes, or `check`.
    fn taken(queue: &Queue) -> Vec<String> {
        let tell = |job| match job {
            Job::Set(changes) => {
                format!("{:?}", changes.iter().map(|it| it.admission.id.0).collect::<Vec<_>>())
            }
            Job::Check => "check".to_owned(),
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| queue.pop(Some(Instant::now()))).map(tell).collect()
    }

    #[test]
    fn changes_share_a_job_and_overtake_no_other() {
        let queue = Queue::default();
        for id in 1..=2 {
            queue.set(admission(id), None);
        }
        queue.push(Job::Check);
        queue.set(admission(3), None);
        assert_eq!(taken(&queue), ["[1, 2]", "check", "[3]"]);
        queue.set(admission(4), None);
        assert_eq!(taken(&queue), ["[4]"], "what was taken gets no more changes");
    }

    #[test]
    fn a_crowd_is_taken_in_parts_and_leaves_no_memory_behind() {
        let queue = Queue::default();
        for id in 0..2500 {
            queue.set(admission(id), None);
        }
        let lengths = std::iter::from_fn(|| match queue.pop(Some(Instant::now()))? {
            Job::Set(changes) => Some(changes.len()),
            other => panic!("{other:?}"),
        });
        assert_eq!(lengths.collect::<Vec<_>>(), [1000, 1000, 500]);
        assert_eq!(queue.lock().jobs.capacity(), 0);
    }

    #[test]
    fn who_waits_is_woken_by_a_job_and_by_the_time_and_after_the_end_nothing_is_taken() {
        let queue = Queue::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.pop(None));
            queue.set(admission(1), None);
            assert!(matches!(waiting.join().unwrap(), Some(Job::Set(_))));
        });
        assert!(queue.pop(Some(Instant::now() + Duration::from_millis(1))).is_none());
        queue.close();
        queue.set(admission(2), None);
        assert!(!queue.push(Job::Check) && taken(&queue).is_empty());
    }
}
