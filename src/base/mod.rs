//! Layer 0: what every other layer speaks in: units, errors and time.
//!
//! Nothing here does I/O and nothing here knows a format, a store or a mount.

pub mod error;
pub mod time;
pub mod units;

pub use error::{Error, ErrorKind, Result};
pub use time::{FileTime, Timestamp};
pub use units::{GuestOffset, GuestRange, HostOffset, HostRange};
