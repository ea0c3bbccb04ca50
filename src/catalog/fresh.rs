//! Values made from directories, kept until those change.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::Result;
use crate::base::time::now_ns;
use crate::storage::{DirStamp, Gate, RelPath};

/// How long a value is handed out without a look at its directories.
pub(super) const RECHECK: Duration = Duration::from_secs(1);

/// The state of some directories, taken before they were read.
#[derive(Debug, Default)]
pub(super) struct Stamps {
    dirs: Vec<(Option<RelPath>, DirStamp)>,
    racy: bool,
}

impl Stamps {
    /// Notes the state of `dir` (`None`: the gate's own directory), which is about to be read.
    pub(super) fn take(&mut self, gate: &Gate, dir: Option<&RelPath>) -> Result<()> {
        let stamp = gate.dir_stamp(dir)?;
        self.racy |= stamp.is_racy(now_ns());
        self.dirs.push((dir.cloned(), stamp));
        Ok(())
    }

    /// Whether every directory is certainly as it was.
    fn hold(&self, gate: &Gate) -> bool {
        !self.racy && self.dirs.iter().all(|(dir, stamp)| gate.dir_stamp(dir.as_ref()).is_ok_and(|now| now == *stamp))
    }
}

/// A value that is made anew when its directories have changed. Readers of one value wait for each other while it is
/// made, and for nobody else.
#[derive(Debug)]
pub(super) struct Fresh<T>(Mutex<Option<State<T>>>);

#[derive(Debug)]
struct State<T> {
    value: Arc<T>,
    stamps: Stamps,
    checked: Instant,
}

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Fresh<T> {
    /// The value, at most [`RECHECK`] older than its directories. `make` takes stamps of what it reads before it
    /// reads it. A failure is not kept: the next caller tries again.
    pub(super) fn get(&self, gate: &Gate, make: impl FnOnce(&mut Stamps) -> Result<T>) -> Result<Arc<T>> {
        // A panic while making leaves what was there before, which is valid.
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = slot.as_mut() {
            if state.checked.elapsed() < RECHECK {
                return Ok(state.value.clone());
            }
            // The time before the look: a change after it is seen within the promised time.
            let now = Instant::now();
            if state.stamps.hold(gate) {
                state.checked = now;
                return Ok(state.value.clone());
            }
        }
        *slot = None;
        let checked = Instant::now();
        let mut stamps = Stamps::default();
        let value = Arc::new(make(&mut stamps)?);
        *slot = Some(State { value: value.clone(), stamps, checked });
        Ok(value)
    }
}
