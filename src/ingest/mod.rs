//! Layer 5: the write side. A backup of a running guest is planned (a pure value), transferred, and committed in one rename.
//!
//! [`plan`](mod@plan) and [`decide`] compute; [`Source`](source::Source) is where bytes come from; `transfer` moves them; `commit` makes the
//! backup visible. `session` puts them together for whatever is backed up: [`run`](fn@run) is for virtual machines, [`container::run`] for containers.
//! What a user types is parsed here only as far as it is about sources.

mod commit;
pub mod container;
pub mod decide;
mod events;
mod pace;
mod parent;
pub mod plan;
mod program;
mod session;
pub mod source;
mod transfer;
mod vm;

pub use decide::{MAX_LAYERS, MOST_MAX_LAYERS};
pub use events::{Event, Listener, PlannedDisk};
pub use session::{Finished, Interrupt, KeptFile};
pub use source::DiskSpec;
pub use vm::{Request, dry_run, run};
