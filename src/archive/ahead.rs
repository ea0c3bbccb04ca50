//! Decoding ahead: blocks that a reader will want next, decoded by other cores while it is busy with this one.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::node::NodeId;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads, started when there is first something to do; they end with their owner.
#[derive(Debug, Default)]
pub(super) struct Workers(OnceLock<SyncSender<Job>>);

/// Jobs that wait. More are not taken: whoever wants the block decodes it.
const WAITING: usize = 64;
const MOST_THREADS: usize = 8;

impl Workers {
    /// Hands over a job, if there is room for it.
    pub(super) fn offer(&self, job: impl FnOnce() + Send + 'static) {
        let sender = self.0.get_or_init(|| {
            let (sender, receiver) = sync_channel(WAITING);
            let receiver = Arc::new(Mutex::new(receiver));
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
            for _ in 0..threads {
                let receiver = receiver.clone();
                // Without a thread nothing is decoded ahead, and everything still works.
                let _ = std::thread::Builder::new().name("annals-ahead".into()).spawn(move || work(&receiver));
            }
            sender
        });
        // Full or without threads: then not.
        let _ = sender.try_send(Box::new(job));
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

/// Recognises readers that go through a file from front to back.
#[derive(Debug, Default)]
pub(super) struct Readers(Mutex<[Reader; READERS]>);

const READERS: usize = 8;
/// Reads of one reader come out of order by this much, when several threads serve them.
const SLACK: u64 = 2 << 20;

#[derive(Debug, Clone, Copy, Default)]
struct Reader {
    node: NodeId,
    /// Where its next read will begin.
    next: u64,
    /// Up to where has been decoded ahead.
    ahead: u64,
    /// When it was seen last.
    seen: u64,
}

impl Readers {
    /// Notes a read of `node` from `at` to `end`. Returns what to decode ahead, so that `window` bytes after the read will be there.
    pub(super) fn note(&self, node: NodeId, at: u64, end: u64, window: u64) -> Option<std::ops::Range<u64>> {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = readers.iter().map(|reader| reader.seen).max().unwrap_or(0).saturating_add(1);
        let known = readers
            .iter_mut()
            .find(|reader| reader.node == node && reader.next.abs_diff(at) <= SLACK && reader.seen > 0);
        let Some(reader) = known else {
            if let Some(oldest) = readers.iter_mut().min_by_key(|reader| reader.seen) {
                *oldest = Reader { node, next: end, ahead: end, seen: now };
            }
            return None;
        };
        reader.seen = now;
        reader.next = reader.next.max(end);
        let from = reader.ahead.max(reader.next);
        let to = reader.next.saturating_add(window);
        if to.saturating_sub(from) < window / 4 {
            return None;
        }
        reader.ahead = to;
        Some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_reads_on_is_read_ahead_for_and_nothing_twice() {
        let readers = Readers::default();
        let node = NodeId(5);
        assert_eq!(readers.note(node, 0, 100, 1000), None);
        assert_eq!(readers.note(node, 100, 200, 1000), Some(200..1200));
        assert_eq!(readers.note(node, 200, 300, 1000), None, "little more would be gained");
        assert_eq!(readers.note(node, 300, 500, 1000), Some(1200..1500));
        // Served by another thread a little late.
        assert_eq!(readers.note(node, 200, 300, 1000), None);
        assert_eq!(readers.note(node, 1 << 40, (1 << 40) + 9, 1000), None, "a jump");
        assert_eq!(readers.note(NodeId(6), 500, 600, 1000), None, "another file");
    }

    #[test]
    fn jobs_are_done_and_the_threads_end_with_their_owner() {
        let (done, result) = std::sync::mpsc::channel();
        let workers = Workers::default();
        for i in 0..10 {
            let done = done.clone();
            workers.offer(move || done.send(i).unwrap());
        }
        drop(done);
        let mut all: Vec<i32> = result.iter().collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        drop(workers);
    }
}
