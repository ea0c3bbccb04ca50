//! What a caller decides about a connection.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::base::Error;

/// How to connect, and how much to ask for at once.
#[derive(Debug, Clone)]
pub struct Options {
    /// Meta contexts to select, by their full names. Which of them the server has, the client tells.
    pub contexts: Vec<String>,
    /// Time for a whole handshake, from connecting to the first command.
    pub handshake_timeout: Duration,
    /// How long a connection may be silent while commands wait for an answer.
    pub stall_timeout: Duration,
    /// How long commands may wait while none of them is finished, so that an answer that trickles in ends too.
    pub command_timeout: Duration,
    /// Connections to open where the server says that several see the same disk; at least one.
    pub connections: usize,
    /// Commands in flight on all connections together; at least one.
    pub max_commands: usize,
    /// Bytes asked for and not yet arrived, on all connections together. Also the longest range of one read.
    pub max_bytes: u32,
    /// The most that one command reads, in bytes, where the server allows more; a power of two, at least 64 KiB.
    pub max_request: u32,
    /// Where the certificates are when the URI does not say.
    pub certificates: Option<PathBuf>,
    /// When to connect again after a connection was lost; without it, never.
    pub reconnect: Option<ReconnectPolicy>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            contexts: Vec::new(),
            handshake_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            command_timeout: Duration::from_secs(300),
            connections: 1,
            max_commands: 64,
            max_bytes: 64 << 20,
            max_request: 32 << 20,
            certificates: None,
            reconnect: None,
        }
    }
}

type Decide = dyn Fn(Failures, &Error) -> Option<Duration> + Send + Sync;

/// The failures that one command has had in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failures {
    /// How many; at least one.
    pub count: u32,
    /// For how long it has been failing.
    pub lasting: Duration,
}

/// Decides after each failure how long to wait before connecting again, or to give up.
#[derive(Clone)]
pub struct ReconnectPolicy(Arc<Decide>);

impl ReconnectPolicy {
    /// A policy that asks `decide`.
    pub fn new(decide: impl Fn(Failures, &Error) -> Option<Duration> + Send + Sync + 'static) -> Self {
        Self(Arc::new(decide))
    }

    pub(super) fn next(&self, failures: Failures, error: &Error) -> Option<Duration> {
        (self.0)(failures, error)
    }
}

impl fmt::Debug for ReconnectPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReconnectPolicy")
    }
}
