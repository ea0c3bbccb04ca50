//! A limit on the bytes a second that a whole run reads, whatever the number of disks and connections.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Lets bytes through at a steady rate.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: f64,
    /// When what was let through so far is paid for.
    paid: Mutex<Option<Instant>>,
}

/// What a run that was held up may catch up with; more would be a burst that the limit is there to prevent.
const SLACK: Duration = Duration::from_millis(200);

impl Pace {
    /// A pace of that many bytes a second.
    #[must_use]
    pub(super) fn new(bytes_per_second: u64) -> Self {
        // Exact up to 2⁵³ bytes a second.
        #[allow(clippy::cast_precision_loss)]
        Self { bytes_per_second: bytes_per_second.max(1) as f64, paid: Mutex::default() }
    }

    /// Returns when `bytes` more may be read. They are paid for beforehand, so that the whole run keeps to the limit, its
    /// last bytes included.
    pub(super) async fn take(&self, bytes: u64) {
        // As above: one piece of a read is far below 2⁵³ bytes.
        #[allow(clippy::cast_precision_loss)]
        let cost = Duration::try_from_secs_f64(bytes as f64 / self.bytes_per_second).unwrap_or(Duration::MAX);
        let until = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let from = paid.map_or(now, |paid| paid.max(now.checked_sub(SLACK).unwrap_or(now)));
            // A rate so low that the time cannot be told is as good as never.
            let until = from.checked_add(cost).unwrap_or_else(|| now + Duration::from_secs(1 << 30));
            *paid = Some(until);
            until
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_readers_together_keep_to_the_limit() {
        let pace = Arc::new(Pace::new(1_000_000));
        let start = Instant::now();
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let pace = pace.clone();
                tokio::spawn(async move {
                    for _ in 0..25 {
                        pace.take(100_000).await;
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.await.unwrap();
        }
        let took = start.elapsed().as_secs_f64();
        assert!((9.99..10.1).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_made_up_for_by_a_burst() {
        let pace = Pace::new(1_000_000);
        pace.take(1_000_000).await;
        tokio::time::sleep(Duration::from_secs(100)).await;
        let start = Instant::now();
        for _ in 0..10 {
            pace.take(100_000).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(790), "{:?}", start.elapsed());
    }
}
