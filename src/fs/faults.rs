//! Reads that failed: each is logged, up to a rate, and the last ones are remembered for `status.json`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::base::{Error, Timestamp};

/// The file that was read, as the log names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) guest: Arc<str>,
    pub(super) backup: Arc<str>,
    /// The disk's name, or the file's.
    pub(super) file: Arc<str>,
}

/// One failed read, or several of the same kind at the same place.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Fault {
    #[serde(flatten, serialize_with = "subject_fields")]
    subject: Subject,
    offset: u64,
    length: u64,
    error: String,
    #[serde(serialize_with = "as_text")]
    first: Timestamp,
    #[serde(serialize_with = "as_text")]
    last: Timestamp,
    count: u64,
}

fn subject_fields<S: serde::Serializer>(subject: &Subject, to: S) -> Result<S::Ok, S::Error> {
    let fields = [("guest", &*subject.guest), ("backup", &*subject.backup), ("disk", &*subject.file)];
    to.collect_map(fields)
}

fn as_text<S: serde::Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
}

/// How many failed reads are remembered.
const REMEMBERED: usize = 64;
/// Lines that may be logged at once, and how long it takes until one more may.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Faults(Mutex<State>);

#[derive(Debug)]
struct State {
    recent: VecDeque<Fault>,
    total: u64,
    tokens: u32,
    refilled: Instant,
    /// Lines left out since the last one that was written.
    dropped: u64,
}

impl Faults {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            recent: VecDeque::new(),
            total: 0,
            tokens: BURST,
            refilled: Instant::now(),
            dropped: 0,
        }))
    }

    /// Logs and remembers that reading `length` bytes at `offset` of `subject` failed.
    pub(super) fn report(&self, subject: &Subject, offset: u64, length: u64, error: &Error) {
        let text = error.report();
        let line = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.remember(subject, offset, length, &text);
            state.admit(Instant::now())
        };
        let Some(dropped) = line else { return };
        if dropped > 0 {
            tracing::error!("{dropped} more failed reads were not logged; .annals/status.json has the last ones");
        }
        let Subject { guest, backup, file } = subject;
        tracing::error!(%guest, %backup, disk = %file, offset, length, "read failed: {text}");
    }

    /// All failed reads so far, and the last ones of them, oldest first.
    pub(super) fn recent(&self) -> (u64, Vec<Fault>) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.total, state.recent.iter().cloned().collect())
    }
}

impl State {
    fn remember(&mut self, subject: &Subject, offset: u64, length: u64, error: &str) {
        self.total = self.total.saturating_add(1);
        let now = now();
        let same = |f: &Fault| f.subject == *subject && f.offset == offset && f.error == error;
        if let Some(at) = self.recent.iter().position(same)
            && let Some(mut known) = self.recent.remove(at)
        {
            known.last = now;
            known.length = length;
            known.count = known.count.saturating_add(1);
            self.recent.push_back(known);
            return;
        }
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        let (subject, error) = (subject.clone(), error.to_owned());
        self.recent.push_back(Fault { subject, offset, length, error, first: now, last: now, count: 1 });
    }

    /// Whether a line may be written now; if so, how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let periods = now.saturating_duration_since(self.refilled).as_secs() / REFILL.as_secs();
        if periods > 0 {
            self.tokens = BURST.min(self.tokens.saturating_add(u32::try_from(periods).unwrap_or(BURST)));
            self.refilled = now;
        }
        if self.tokens == 0 {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

fn now() -> Timestamp {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).ok().and_then(Timestamp::from_epoch).unwrap_or(Timestamp::EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;

    fn subject() -> Subject {
        Subject { guest: "100".into(), backup: "2024-11-07T16-51-22Z".into(), file: "drive-scsi0".into() }
    }

    fn error(text: &str) -> Error {
        Error::new(ErrorKind::Corrupt, text)
    }

    #[test]
    fn the_same_failure_is_remembered_once_with_its_count() {
        let faults = Faults::new();
        for _ in 0..5 {
            faults.report(&subject(), 4096, 512, &error("bad entry"));
        }
        faults.report(&subject(), 8192, 512, &error("bad entry"));
        let (total, recent) = faults.recent();
        assert_eq!(total, 6);
        assert_eq!(recent.iter().map(|f| (f.offset, f.count)).collect::<Vec<_>>(), vec![(4096, 5), (8192, 1)]);
    }

    #[test]
    fn only_the_last_failures_are_kept() {
        let faults = Faults::new();
        for offset in 0..1000 {
            faults.report(&subject(), offset, 1, &error("bad entry"));
        }
        let (total, recent) = faults.recent();
        assert_eq!((total, recent.len()), (1000, REMEMBERED));
        assert_eq!(recent.last().unwrap().offset, 999);
    }

    #[test]
    fn a_flood_of_failures_writes_few_lines_and_says_how_many_it_left_out() {
        let faults = Faults::new();
        let mut state = faults.0.lock().unwrap();
        let start = Instant::now();
        let written = (0..1000).filter(|_| state.admit(start).is_some()).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(state.admit(start + 2 * REFILL), Some(1000 - u64::from(BURST)));
        assert_eq!(state.admit(start + 2 * REFILL), Some(0));
        assert_eq!(state.admit(start + 2 * REFILL), None);
    }
}
