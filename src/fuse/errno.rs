//! From an error's kind to the number that a reader's system call returns.

use fuser::Errno;

use crate::base::{Error, ErrorKind};

/// The number for a failed look at names and attributes, or a failed open.
pub(super) fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::MissingLayer
        | ErrorKind::Corrupt
        | ErrorKind::Unsupported
        | ErrorKind::Refused
        | ErrorKind::Io
        | ErrorKind::Protocol
        | ErrorKind::Disconnected => Errno::EIO,
        // The kernel takes it as a request to walk the path again, from names that it asks for anew.
        ErrorKind::Changed => Errno::ESTALE,
        ErrorKind::Limit => Errno::ENFILE,
        ErrorKind::Exists => Errno::EEXIST,
        ErrorKind::Busy => Errno::EBUSY,
        ErrorKind::Usage => Errno::EINVAL,
    }
}

/// The number for a failed read, whatever failed: bytes that should be there cannot be had.
pub(super) fn read_errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::MissingLayer
        | ErrorKind::Corrupt
        | ErrorKind::Unsupported
        | ErrorKind::Refused
        | ErrorKind::Changed
        | ErrorKind::Io
        | ErrorKind::Protocol
        | ErrorKind::Disconnected
        | ErrorKind::Limit
        | ErrorKind::Exists
        | ErrorKind::Busy => Errno::EIO,
        // A handle that is not open.
        ErrorKind::Usage => Errno::EBADF,
    }
}
