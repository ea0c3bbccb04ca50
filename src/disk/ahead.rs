//! Opening many images at once, so that opening them one after the other finds them in memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::chain::open_layer;
use crate::format::ImageFormat;
use crate::storage::{LayerSource, RelPath};

/// Threads that open files ahead; the waiting is the medium's, not the processor's.
const WARMERS: usize = 16;
/// Images opened ahead at first; each batch after it is twice as large, so that a short chain wastes little.
const FIRST_BATCH: usize = 8;

/// Reads the headers of `paths` side by side, and asks for the tables that every chain of them begins with.
///
/// A hint: whatever cannot be opened here is told when the chain is.
pub fn warm(source: &dyn LayerSource, paths: &[RelPath]) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            let _ = open_layer(source, path, ImageFormat::Qcow2);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..WARMERS.min(paths.len()) {
            // A thread that cannot be started leaves its share to the others.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}

/// Warms the layers that a chain is expected to lead through, some way ahead of the one that is being opened.
pub(super) struct Ahead<'a> {
    expected: &'a [RelPath],
    /// How many of the expected ones are warm.
    warm: usize,
    batch: usize,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(expected: &'a [RelPath]) -> Self {
        Self { expected, warm: 0, batch: FIRST_BATCH }
    }

    /// The chain has come to `path`. Where that is an expected layer which is not warm yet, it and the next ones are made so.
    pub(super) fn reach(&mut self, source: &dyn LayerSource, path: &RelPath) {
        let cold = &self.expected[self.warm..];
        let Some(at) = cold.iter().position(|expected| expected == path) else { return };
        let batch = &cold[at..cold.len().min(at + self.batch)];
        warm(source, batch);
        self.warm += at + batch.len();
        self.batch *= 2;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::base::{Error, ErrorKind, Result};
    use crate::storage::Storage;

    /// A source that opens nothing and remembers what it was asked for.
    #[derive(Default)]
    struct Asked(Mutex<Vec<String>>);

    impl LayerSource for Asked {
        fn open(&self, path: &RelPath) -> Result<std::sync::Arc<dyn Storage>> {
            self.0.lock().unwrap().push(path.to_string());
            Err(Error::new(ErrorKind::NotFound, "nothing here"))
        }

        fn resolve(&self, _: &RelPath, _: &[u8]) -> Result<RelPath> {
            Err(Error::new(ErrorKind::Refused, "nothing here"))
        }
    }

    #[test]
    fn every_expected_layer_is_opened_ahead_once_and_a_short_chain_opens_few() {
        let expected: Vec<RelPath> = (0..100).map(|n| RelPath::new(&format!("l{n}")).unwrap()).collect();
        let asked = Asked::default();
        let mut ahead = Ahead::new(&expected);
        ahead.reach(&asked, &RelPath::new("head").unwrap());
        assert_eq!(asked.0.lock().unwrap().len(), 0, "what is not expected warms nothing");
        ahead.reach(&asked, &expected[2]);
        assert_eq!(asked.0.lock().unwrap().len(), FIRST_BATCH);
        expected.iter().skip(3).for_each(|path| ahead.reach(&asked, path));
        let mut all = asked.0.lock().unwrap().clone();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 98);
        assert_eq!(asked.0.lock().unwrap().len(), 98, "none twice");
    }
}
