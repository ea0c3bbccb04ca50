//! Sees when a file is being read from front to back, and says what will be wanted next.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far the kernel's own read-ahead requests may arrive out of order: several threads take them off the queue.
const DISORDER: u64 = 4 << 20;
/// Bytes read in sequence before anything is hinted.
const TRUST: u64 = 512 << 10;
/// Bytes hinted at once.
const WINDOW: u64 = 4 << 20;

/// The reading pattern of one open file. Reads may be noted from several threads at once; a lost race costs a hint.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// The end of the furthest read of the current run.
    reached: AtomicU64,
    /// Bytes read in the current run.
    run: AtomicU64,
    /// Up to where hints were given.
    hinted: AtomicU64,
}

impl ReadAhead {
    /// Notes a read of `len` bytes at `at`. Returns the range that is worth a hint, once for each part of the file.
    pub(super) fn note(&self, at: u64, len: u64) -> Option<std::ops::Range<u64>> {
        let end = at.saturating_add(len);
        let reached = self.reached.load(Ordering::Relaxed);
        if at > reached.saturating_add(DISORDER) || end.saturating_add(DISORDER) < reached {
            self.reached.store(end, Ordering::Relaxed);
            self.run.store(len, Ordering::Relaxed);
            self.hinted.store(end, Ordering::Relaxed);
            return None;
        }
        let reached = self.reached.fetch_max(end, Ordering::Relaxed).max(end);
        let run = self.run.fetch_add(len, Ordering::Relaxed).saturating_add(len);
        let hinted = self.hinted.load(Ordering::Relaxed).max(reached);
        if run < TRUST || hinted > reached.saturating_add(WINDOW / 2) {
            return None;
        }
        let until = hinted.saturating_add(WINDOW);
        let old = self.hinted.swap(until, Ordering::Relaxed);
        // Another thread gave the same hint between the load and the swap.
        (old < until).then_some(hinted..until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 128 << 10;

    fn sequential(count: u64) -> Vec<u64> {
        (0..count).map(|i| i * STEP).collect()
    }

    fn hints(reads: &[u64]) -> Vec<std::ops::Range<u64>> {
        let ahead = ReadAhead::default();
        reads.iter().filter_map(|at| ahead.note(*at, STEP)).collect()
    }

    #[test]
    fn reading_front_to_back_hints_every_byte_once_and_before_it_is_read() {
        let reads = sequential(400);
        let ahead = ReadAhead::default();
        let mut hinted = None::<std::ops::Range<u64>>;
        for at in reads {
            if let Some(range) = ahead.note(at, STEP) {
                assert!(range.start >= at + STEP, "hinted what was read already");
                if let Some(last) = &hinted {
                    assert_eq!(range.start, last.end, "a gap or an overlap");
                }
                hinted = Some(range);
            } else if at > 1 << 20 {
                assert!(hinted.as_ref().unwrap().end >= at + STEP, "fell behind at {at}");
            }
        }
        assert!(hinted.unwrap().end >= 400 * STEP);
    }

    #[test]
    fn requests_that_overtake_each_other_are_still_one_sequence() {
        let mut reads = sequential(400);
        for group in reads.chunks_mut(8) {
            group.reverse();
        }
        let all: u64 = hints(&reads).iter().map(|r| r.end - r.start).sum();
        assert!(all >= 390 * STEP, "only {all} bytes hinted");
        assert!(all <= 410 * STEP + 2 * WINDOW, "{all} bytes hinted, some twice");
    }

    #[test]
    fn random_reads_hint_nothing() {
        let reads: Vec<u64> = (0..1000_u64).map(|i| (i * 7919 % 1000) * (64 << 20)).collect();
        assert_eq!(hints(&reads), vec![]);
    }

    #[test]
    fn the_end_of_64_bits_is_no_trouble() {
        let ahead = ReadAhead::default();
        for _ in 0..100 {
            let _ = ahead.note(u64::MAX - 10, u64::MAX);
        }
    }
}
