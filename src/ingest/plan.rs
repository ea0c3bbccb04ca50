//! What is to be read of a disk, and what is known without reading. A pure value: it is made from what the source says
//! about its extents, printed by `--dry-run`, and carried out by `transfer`.

use serde::{Serialize, Serializer};

use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};

/// What a source says of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// They may have changed, or nothing is known: they must be read.
    Wanted,
    /// They may have changed, and they read as zeros now.
    WantedZeros,
    /// They are as the parent has them.
    Clean,
    /// They are as the parent has them, which is zeros; or there is no parent, and they are zeros.
    CleanZeros,
}

/// What is done with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Its bytes are read from the source.
    Read,
    /// It is written as zeros; nothing is read.
    Zero,
}

/// A range and what is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Which bytes of the disk.
    #[serde(serialize_with = "range_as_pair")]
    pub range: GuestRange,
    /// What becomes of them.
    pub action: Action,
}

/// Where the bytes of a cluster come from that is wanted in part only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Widening {
    /// From the source: the steps are in whole clusters.
    Source,
    /// From the parent, because the source gives nothing but what is dirty: the steps are to the byte.
    Parent,
}

/// The plan for one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What is done, in the order of the disk; what is not mentioned is left to the parent, or is zeros.
    pub steps: Vec<Step>,
    /// Where the rest of a cluster comes from.
    pub widening: Widening,
}

/// A stretch of whole clusters that is written in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// Zeros; nothing is read.
    Zeros(GuestRange),
    /// Bytes of the source, and of the parent where `reads` does not cover `range`.
    Read {
        /// Whole clusters, but for the disk's end.
        range: GuestRange,
        /// What is read from the source, in order.
        reads: Vec<GuestRange>,
    },
}

/// Makes a plan from what the source says, extent by extent.
#[derive(Debug)]
pub struct Planner {
    size: u64,
    cluster: u64,
    widening: Widening,
    steps: Vec<Step>,
    most_steps: usize,
    /// Up to where something is known.
    next: u64,
    /// The cluster that is known in part.
    pending: Option<Pending>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    start: u64,
    wanted: bool,
    wanted_zeros: bool,
    clean: bool,
}

/// Bounds a plan's memory to some 100 MiB.
const MOST_STEPS: usize = 4 << 20;

impl Plan {
    /// Bytes that are read from the source.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.bytes(Action::Read)
    }

    /// Bytes that are written as zeros without being read.
    #[must_use]
    pub fn zero_bytes(&self) -> u64 {
        self.bytes(Action::Zero)
    }

    fn bytes(&self, action: Action) -> u64 {
        self.steps.iter().filter(|step| step.action == action).map(|step| step.range.len()).sum()
    }

    /// The plan cut into stretches of at most `longest` bytes, a multiple of `cluster`, on a disk of `size` bytes.
    pub fn batches(&self, cluster: u64, longest: u64, size: u64) -> impl Iterator<Item = Batch> + '_ {
        let mut steps = self.steps.iter().copied();
        let mut current = steps.next();
        std::iter::from_fn(move || {
            let first = current?;
            if first.action == Action::Zero {
                current = steps.next();
                return Some(Batch::Zeros(first.range));
            }
            let start = first.range.start().0 / cluster * cluster;
            let limit = start.saturating_add(longest).min(size);
            let mut reads = Vec::new();
            let mut end = start;
            // Steps that touch the stretch, as long as no whole cluster lies between them.
            while let Some(step) = current.filter(|step| {
                step.action == Action::Read
                    && step.range.start().0 < limit
                    && step.range.start().0 / cluster * cluster <= end
            }) {
                let upto = GuestOffset(step.range.end().0.min(limit));
                reads.push(GuestRange::between(step.range.start(), upto));
                end = upto.0.next_multiple_of(cluster).min(limit);
                current = if upto < step.range.end() {
                    Some(Step { range: GuestRange::between(upto, step.range.end()), ..step })
                } else {
                    steps.next()
                };
            }
            Some(Batch::Read { range: GuestRange::between(GuestOffset(start), GuestOffset(end)), reads })
        })
    }
}

impl Planner {
    /// Starts a plan for a disk of `size` bytes whose image has clusters of `cluster` bytes.
    #[must_use]
    pub fn new(size: u64, cluster: u64, widening: Widening) -> Self {
        Self { size, cluster, widening, steps: Vec::new(), most_steps: MOST_STEPS, next: 0, pending: None }
    }

    /// Takes what the source says of the next bytes. Ranges come in order and leave no gap.
    pub fn push(&mut self, range: GuestRange, known: Known) -> Result<()> {
        if range.start().0 != self.next || range.end().0 > self.size {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!(
                    "the source tells of {} bytes at {}, where {:#x} comes next",
                    range.len(),
                    range.start(),
                    self.next
                ),
            ));
        }
        self.next = range.end().0;
        match self.widening {
            Widening::Source => self.widen(range, known),
            Widening::Parent => match known {
                Known::Wanted | Known::WantedZeros => self.step(range.start().0, range.end().0, Action::Read),
                Known::Clean | Known::CleanZeros => Ok(()),
            },
        }
    }

    /// The plan, when everything is known of the disk.
    pub fn finish(mut self) -> Result<Plan> {
        if self.next != self.size {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!("the source tells nothing of the disk from {:#x} on", self.next),
            ));
        }
        self.settle(self.size)?;
        Ok(Plan { steps: self.steps, widening: self.widening })
    }

    fn widen(&mut self, range: GuestRange, known: Known) -> Result<()> {
        let (mut start, end) = (range.start().0, range.end().0);
        while start < end {
            let cluster_start = start / self.cluster * self.cluster;
            let whole_end = end / self.cluster * self.cluster;
            if start == cluster_start && whole_end > start {
                self.settle(start)?;
                match known {
                    Known::Wanted => self.step(start, whole_end, Action::Read)?,
                    Known::WantedZeros => self.step(start, whole_end, Action::Zero)?,
                    Known::Clean | Known::CleanZeros => {}
                }
                start = whole_end;
                continue;
            }
            if self.pending.is_none_or(|pending| pending.start != cluster_start) {
                self.settle(cluster_start)?;
            }
            let pending = self.pending.get_or_insert(Pending {
                start: cluster_start,
                wanted: false,
                wanted_zeros: false,
                clean: false,
            });
            match known {
                Known::Wanted => pending.wanted = true,
                Known::WantedZeros => pending.wanted_zeros = true,
                Known::Clean => pending.clean = true,
                Known::CleanZeros => {}
            }
            start = end.min(cluster_start.saturating_add(self.cluster));
        }
        Ok(())
    }

    /// Decides about the cluster that was known in part; everything of it before `end` is known now.
    fn settle(&mut self, end: u64) -> Result<()> {
        let Some(Pending { start, wanted, wanted_zeros, clean }) = self.pending.take() else { return Ok(()) };
        let end = start.saturating_add(self.cluster).min(end);
        if wanted || (wanted_zeros && clean) {
            self.step(start, end, Action::Read)
        } else if wanted_zeros {
            self.step(start, end, Action::Zero)
        } else {
            Ok(())
        }
    }

    fn step(&mut self, start: u64, end: u64, action: Action) -> Result<()> {
        if start == end {
            return Ok(());
        }
        let full = self.steps.len() >= self.most_steps;
        if let Some(last) = self.steps.last_mut() {
            let joins = last.action == action && last.range.end().0 == start;
            // Reading what lies between costs time and changes nothing, where the source lets itself be read.
            if joins || (full && self.widening == Widening::Source) {
                last.range = GuestRange::between(last.range.start(), GuestOffset(end));
                last.action = if joins { action } else { Action::Read };
                return Ok(());
            }
        }
        if full {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("the dirty ranges are in more than {} pieces", self.most_steps),
            )
            .with_hint("make a full backup of this disk"));
        }
        self.steps.push(Step { range: GuestRange::between(GuestOffset(start), GuestOffset(end)), action });
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn with_most_steps(mut self, most_steps: usize) -> Self {
        self.most_steps = most_steps;
        self
    }
}

fn range_as_pair<S: Serializer>(range: &GuestRange, to: S) -> Result<S::Ok, S::Error> {
    (range.start().0, range.len()).serialize(to)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
