//! How a run's events are shown: a bar for each disk on a terminal, plain lines elsewhere, JSON lines for programs.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::super::output::{Output, printable};
use crate::ingest::Event;

/// Shows events as they come, from whatever thread.
pub(super) struct Progress {
    json: bool,
    /// Bars, where somebody watches.
    bars: Option<Bars>,
    /// How many paths that could not be read were told.
    unreadable: AtomicUsize,
}

/// Most paths that could not be read that are told to people; the warning that follows says how many there are, and the log which.
const MOST_UNREADABLE: usize = 5;

struct Bars {
    multi: MultiProgress,
    disks: Mutex<HashMap<String, ProgressBar>>,
}

const TEMPLATE: &str = "{prefix:20!} {wide_bar} {bytes:>11} / {total_bytes:11} {binary_bytes_per_sec:>13} {eta:>4}";

impl Progress {
    pub(super) fn new(json: bool) -> Self {
        let watched = !json && std::io::stderr().is_terminal();
        let bars = watched.then(|| Bars { multi: MultiProgress::new(), disks: Mutex::default() });
        // Where nothing can be drawn, as with no or a dumb TERM, nothing would be printed either.
        Self { json, bars: bars.filter(|bars| !bars.multi.is_hidden()), unreadable: AtomicUsize::new(0) }
    }

    pub(super) fn tell(&self, event: &Event, output: &Output) {
        if self.json {
            if let Ok(mut line) = serde_json::to_vec(event) {
                line.push(b'\n');
                // Whoever has stopped reading the events does not stop the backup.
                let _ = output.write(&line);
            }
            return;
        }
        if matches!(event, Event::Unreadable { .. })
            && self.unreadable.fetch_add(1, Ordering::Relaxed) >= MOST_UNREADABLE
        {
            return;
        }
        match (event, &self.bars) {
            (Event::Progress { disk, done, total }, Some(bars)) => bars.move_to(disk, *done, *total),
            (Event::ArchiveProgress { done, total }, Some(bars)) => bars.move_to("archive", *done, *total),
            // What has failed is printed once more as the command's error.
            (Event::Progress { .. } | Event::ArchiveProgress { .. }, None) | (Event::Failed { .. }, _) => {}
            (other, Some(bars)) => {
                let _ = bars.multi.println(printable(&other.to_string()));
            }
            (other, None) => {
                let _ = writeln!(std::io::stderr().lock(), "{}", printable(&other.to_string()));
            }
        }
    }

    /// Leaves the terminal to others.
    pub(super) fn end(&self) {
        if let Some(bars) = &self.bars {
            let disks = bars.disks.lock().unwrap_or_else(PoisonError::into_inner);
            disks.values().for_each(ProgressBar::abandon);
            if !disks.is_empty() {
                // The last bar's line is not ended; what is printed next has one of its own.
                let _ = writeln!(std::io::stderr().lock());
            }
        }
    }
}

impl Bars {
    fn move_to(&self, disk: &str, done: u64, total: u64) {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = disks.entry(disk.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
            self.multi.add(ProgressBar::new(total).with_style(style).with_prefix(printable(disk)))
        });
        bar.set_position(done);
        if done >= total && !bar.is_finished() {
            bar.finish();
        }
    }
}
