//! Block status put together: what several contexts say of one range, in step.

use std::collections::VecDeque;

use super::client::Client;
use crate::base::{GuestOffset, GuestRange, Result};

/// Bytes of which a context says one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Which bytes.
    pub range: GuestRange,
    /// The context's bits for them.
    pub status: u64,
}

impl Extent {
    /// Appends an extent, as part of the last one where that has the same status and ends where this begins.
    pub fn push(extents: &mut Vec<Self>, extent: Self) {
        match extents.last_mut() {
            Some(last) if last.status == extent.status && last.range.end() == extent.range.start() => {
                last.range = GuestRange::between(last.range.start(), extent.range.end());
            }
            _ => extents.push(extent),
        }
    }
}

/// What every context of a walk says of one stretch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The stretch; never empty.
    pub range: GuestRange,
    /// For each context, in the order asked for, extents that cover the stretch without gaps.
    pub extents: Vec<Vec<Extent>>,
}

/// A walk over the extents of a range; see [`Client::extents`].
///
/// Servers answer short, or past the question, and differently for each context: the walk keeps what is ahead of the
/// slowest context, which is at most what one answer holds.
pub struct Extents {
    client: Client,
    /// Which of the export's contexts, by their place in its list.
    contexts: Vec<usize>,
    /// What is known of each and not yet given out, from `position` on.
    ahead: Vec<VecDeque<Extent>>,
    position: GuestOffset,
    end: GuestOffset,
}

impl Extents {
    pub(super) fn new(client: Client, contexts: Vec<usize>, range: GuestRange) -> Self {
        let ahead = contexts.iter().map(|_| VecDeque::new()).collect();
        Self { client, contexts, ahead, position: range.start(), end: range.end() }
    }

    /// The next stretch of which all contexts are known, or `None` at the range's end.
    pub async fn next(&mut self) -> Result<Option<Batch>> {
        if self.position >= self.end || self.contexts.is_empty() {
            return Ok(None);
        }
        if self.known() <= self.position {
            self.ask().await?;
        }
        let range = GuestRange::between(self.position, self.known());
        let extents = self.ahead.iter_mut().map(|queue| take_until(queue, range.end())).collect();
        self.position = range.end();
        Ok(Some(Batch { range, extents }))
    }

    /// Up to where every context is known.
    fn known(&self) -> GuestOffset {
        let end = |queue: &VecDeque<Extent>| queue.back().map_or(self.position, |last| last.range.end());
        self.ahead.iter().map(end).min().unwrap_or(self.position)
    }

    /// Asks once from the position on, and keeps of each context what was not known yet.
    async fn ask(&mut self) -> Result<()> {
        let answers = self.client.status_from(self.position, self.end).await?;
        for (queue, index) in self.ahead.iter_mut().zip(&self.contexts) {
            let known = queue.back().map_or(self.position, |last| last.range.end());
            let mut at = self.position;
            for extent in answers.get(*index).into_iter().flatten() {
                let end = at.saturating_add(extent.len);
                let range = GuestRange::between(at.max(known), end);
                if !range.is_empty() {
                    queue.push_back(Extent { range, status: extent.status });
                }
                at = end;
            }
        }
        Ok(())
    }
}

/// Takes what lies before `end` off the front of a queue, cutting the extent that reaches across.
fn take_until(queue: &mut VecDeque<Extent>, end: GuestOffset) -> Vec<Extent> {
    let mut taken = Vec::new();
    while let Some(mut extent) = queue.pop_front() {
        if extent.range.end() > end {
            let rest = GuestRange::between(end, extent.range.end());
            queue.push_front(Extent { range: rest, ..extent });
            extent.range = GuestRange::between(extent.range.start(), end);
        }
        if extent.range.is_empty() {
            break;
        }
        Extent::push(&mut taken, extent);
    }
    taken
}
