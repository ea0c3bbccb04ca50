//! Layer 5: the write side. A backup of a running guest is planned (a pure value), transferred, and committed in one rename.
//!
//! [`plan`](mod@plan) and [`decide`] compute; [`Source`](source::Source) is where bytes come from; `transfer` moves them; `commit` makes the
//! backup visible. [`run`](fn@run) puts them together. What a user types is parsed here only as far as it is about sources.

mod commit;
pub mod decide;
mod events;
mod pace;
mod parent;
pub mod plan;
mod run;
pub mod source;
mod transfer;

pub use events::{Event, Listener, PlannedDisk};
pub use run::{Finished, Interrupt, KeptFile, Request, dry_run, run};
pub use source::DiskSpec;
