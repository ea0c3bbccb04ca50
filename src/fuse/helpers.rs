//! Threads for requests that may take long, so that the event loops are there for all others.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most threads. Requests beyond that wait for one; those that need not wait are answered by the event loops.
const MOST: usize = 64;
/// How long a thread waits for more to do.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// A pool that has as many threads as there is work for, and none when there is none.
#[derive(Debug, Clone, Default)]
pub(super) struct Helpers(Arc<Pool>);

#[derive(Debug, Default)]
struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { jobs, threads, idle } = self;
        write!(f, "{} jobs, {threads} threads, {idle} of them idle", jobs.len())
    }
}

impl Helpers {
    /// Has `job` done by another thread; by this one where there can be no other.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() || state.threads >= MOST {
            drop(state);
            return self.0.work.notify_one();
        }
        state.threads += 1;
        drop(state);
        let pool = self.0.clone();
        let started = std::thread::Builder::new().name("helper".to_owned()).spawn(move || pool.serve());
        if started.is_err() {
            let mut state = self.0.state();
            state.threads -= 1;
            // Somebody is there to do it.
            if state.threads > 0 {
                return;
            }
            while let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.0.state();
            }
        }
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        // Jobs run without the lock; nothing below panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state();
                continue;
            }
            state.idle += 1;
            let (woken, waited) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_that_wait_for_each_other_all_run() {
        let helpers = Helpers::default();
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (done, told) = mpsc::channel();
        for n in 0..MOST - 1 {
            let (gate, done) = (gate.clone(), done.clone());
            helpers.run(move || {
                let _ = gate.lock().map(|gate| gate.recv());
                let _ = done.send(n);
            });
        }
        // All of them wait; one more has a thread of its own.
        let last = done.clone();
        helpers.run(move || last.send(1000).unwrap());
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(1000));
        drop(go);
        let mut others: Vec<usize> =
            (0..MOST - 1).map(|_| told.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
        others.sort_unstable();
        assert_eq!(others, (0..MOST - 1).collect::<Vec<_>>());
    }

    #[test]
    fn more_jobs_than_threads_are_done_one_after_the_other() {
        let helpers = Helpers::default();
        let (done, told) = mpsc::channel();
        for n in 0..1000 {
            let done = done.clone();
            helpers.run(move || done.send(n).unwrap());
        }
        assert_eq!((0..1000).map(|_| told.recv_timeout(Duration::from_secs(20)).unwrap()).sum::<i32>(), 499_500);
        assert!(helpers.0.state().threads <= MOST);
    }
}
