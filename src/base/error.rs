//! The one error type: a stable kind, a message with its context, and the source.
//!
//! The kind is what programs decide by (exit codes, errno); the message and its context are what a
//! person reads. A message never repeats its source: [`Error::report`] prints the whole line.

use std::error::Error as StdError;
use std::fmt;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarse enough to decide by.
///
/// Matches on this enum have no wildcard arm, so a new kind cannot be left unmapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A guest, backup, disk or file of that name does not exist.
    NotFound,
    /// A layer that a chain needs is not there: the store is incomplete.
    MissingLayer,
    /// Stored bytes contradict their format, or lie outside their file.
    Corrupt,
    /// Valid, but a feature that is refused, named in the message.
    Unsupported,
    /// A name that must not be opened: outside the store, not a regular file, a protocol, …
    Refused,
    /// A file is no longer the one that was opened (replaced or cut short).
    Changed,
    /// The operating system failed a read, write or open, or a server said that it could not.
    Io,
    /// A server broke its protocol: what it sends cannot be trusted, asking again will not help.
    Protocol,
    /// A connection was refused, ended or fell silent: a new one may do.
    Disconnected,
    /// A limit of this process or machine was reached (file descriptors, memory).
    Limit,
    /// What was to be made exists already.
    Exists,
    /// Somebody else is using it.
    Busy,
    /// The caller's words are wrong: a flag, an option, a reference.
    Usage,
}

impl ErrorKind {
    /// The word by which output for programs names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::MissingLayer => "missing-layer",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Refused => "refused",
            Self::Changed => "changed",
            Self::Io => "io",
            Self::Protocol => "protocol",
            Self::Disconnected => "disconnected",
            Self::Limit => "limit",
            Self::Exists => "exists",
            Self::Busy => "busy",
            Self::Usage => "usage",
        }
    }
}

/// An error: kind, message, context (innermost first), an optional hint and source.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    context: Vec<String>,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` says what and where, not why (that is the source's part).
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), context: Vec::new(), hint: None, source: None }))
    }

    /// An I/O error with what was being done.
    pub fn io(message: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            _ => match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOMEM) => {
                    ErrorKind::Limit
                }
                _ => ErrorKind::Io,
            },
        };
        Self::new(kind, message).with_source(source)
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds what to do about it, shown on a line of its own.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds one frame of context around the message: `guest 100`, `layer ../x.qcow2`, …
    #[must_use]
    pub fn context(mut self, frame: impl Into<String>) -> Self {
        self.0.context.push(frame.into());
        self
    }

    /// What to decide by.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What to do about it, where there is something to say.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The whole story in one line: context, message and every source.
    pub fn report(&self) -> String {
        let mut line = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            source = cause.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for frame in self.0.context.iter().rev() {
            write!(f, "{frame}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

/// Adds context to a result's error without building the frame when all is well.
pub trait ResultExt<T> {
    /// See [`Error::context`].
    fn context<S: Into<String>>(self, frame: impl FnOnce() -> S) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context<S: Into<String>>(self, frame: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.context(frame()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_from_the_outside_in_and_says_nothing_twice() {
        let e = Error::io("cannot read the header", std::io::Error::other("disk on fire"))
            .context("layer a.qcow2")
            .context("guest 100");
        assert_eq!(e.report(), "guest 100: layer a.qcow2: cannot read the header: disk on fire");
        assert_eq!(e.kind(), ErrorKind::Io);
    }
}
