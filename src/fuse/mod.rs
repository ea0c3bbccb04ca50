//! Layer 6: the only user of the FUSE crate. A request becomes one question to the [tree](crate::fs::Tree), the answer
//! one reply.
//!
//! Also what belongs to mounting itself: the session, the mount table, and taking a mount away.

mod bridge;
mod connection;
mod errno;
mod helpers;
mod mountpoint;
mod session;
mod table;
mod users;

pub use mountpoint::{check as check_mountpoint, detach, resolve as resolve_mountpoint};
pub use session::{Access, Running, SessionOptions, Unmounted, Unmounter, mount};
pub use table::{Mount, mounts, of_annals};
pub use users::{daemon_of, users_of, wait_for_end};
