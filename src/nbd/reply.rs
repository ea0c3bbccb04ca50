//! What was asked, and the pieces of its answer put together and checked. No I/O.

use std::fmt;

use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, Result};
use crate::format::nbd::constants as nbd;
use crate::format::nbd::{BlockExtent, BlockStatus, ErrorChunk, MetaContext, ServerErrno};

/// The most error chunks that one reply may have.
const MAX_ERROR_CHUNKS: u32 = 64;
/// The most separate pieces that a read's answer may be in at any moment, besides one for each sector.
const MIN_PIECES: u64 = 64;

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Trim,
    BlockStatus,
}

/// A command and the bytes it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Command {
    pub action: Action,
    pub offset: u64,
    pub len: u64,
}

impl Command {
    /// Its number in the protocol.
    pub(super) fn number(self) -> u16 {
        match self.action {
            Action::Read => nbd::CMD_READ,
            Action::Trim => nbd::CMD_TRIM,
            Action::BlockStatus => nbd::CMD_BLOCK_STATUS,
        }
    }

    fn holds(self, offset: u64) -> bool {
        offset.checked_sub(self.offset).is_some_and(|at| at < self.len)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.action {
            Action::Read => "read",
            Action::Trim => "trim",
            Action::BlockStatus => "block status",
        };
        write!(f, "{name} of {} bytes at {:#x}", self.len, self.offset)
    }
}

/// A command that the server answered with an error. The connection goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// What went wrong.
    pub errno: ServerErrno,
    /// The server's own words; often empty.
    pub text: String,
    /// Where, in bytes from the start of the export, if it said so.
    pub offset: Option<u64>,
}

impl ServerError {
    /// The server's answer that `error` comes from, if it comes from one.
    #[must_use]
    pub fn of(error: &Error) -> Option<&Self> {
        std::error::Error::source(error).and_then(|source| source.downcast_ref())
    }

    /// As an error of the kind that fits.
    pub(super) fn into_error(self) -> Error {
        let kind = match self.errno {
            ServerErrno::ENOTSUP => ErrorKind::Unsupported,
            ServerErrno::ESHUTDOWN => ErrorKind::Disconnected,
            _ => ErrorKind::Io,
        };
        Error::new(kind, "the server answered with an error").with_source(self)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.errno)?;
        if let Some(offset) = self.offset {
            write!(f, " at {offset:#x}")?;
        }
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

fn broken(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A read's bytes.
    Data(Vec<u8>),
    /// For each selected context, in the order selected, what it says from the command's offset on.
    Status(Vec<Vec<BlockExtent>>),
    /// Done, with nothing to tell.
    Done,
}

/// An answer as far as it has come.
#[derive(Debug)]
pub(super) struct Assembly {
    command: Command,
    body: Body,
    error: Option<ServerError>,
    error_chunks: u32,
}

#[derive(Debug)]
enum Body {
    Read(ReadBody),
    Status(Vec<(u32, Option<Vec<BlockExtent>>)>),
    Empty,
}

/// Where a piece of a read's answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// First byte of it in the buffer.
    pub at: usize,
    /// Bytes of it.
    pub len: usize,
}

impl Assembly {
    /// For a command just sent. A read's bytes go into `buffer`, whose content is discarded.
    pub(super) fn new(command: Command, contexts: &[MetaContext], buffer: Vec<u8>) -> Self {
        let body = match command.action {
            Action::Read => Body::Read(ReadBody::new(command, buffer)),
            Action::BlockStatus => Body::Status(contexts.iter().map(|context| (context.id, None)).collect()),
            Action::Trim => Body::Empty,
        };
        Self { command, body, error: None, error_chunks: 0 }
    }

    pub(super) fn command(&self) -> Command {
        self.command
    }

    /// Claims the place for `len` bytes that the server says lie at `offset` of the export, and the buffer to put them
    /// in. The buffer reaches at least to the place's start; as far as it reaches further, the place holds zeroes.
    pub(super) fn claim(&mut self, offset: u64, len: u64) -> Result<(Place, &mut Vec<u8>)> {
        let Body::Read(read) = &mut self.body else {
            return Err(broken("the answer carries data that was not asked for"));
        };
        let place = read.claim(offset, len)?;
        if read.buffer.len() < place.at {
            read.buffer.resize(place.at, 0);
        }
        Ok((place, &mut read.buffer))
    }

    /// The server says that `len` bytes at `offset` of the export are zeroes.
    pub(super) fn zeroes(&mut self, offset: u64, len: u64) -> Result<()> {
        let (place, buffer) = self.claim(offset, len)?;
        let end = place.at.saturating_add(place.len);
        if buffer.len() < end {
            buffer.resize(end, 0);
        }
        Ok(())
    }

    /// One context's status.
    pub(super) fn status(&mut self, status: BlockStatus) -> Result<()> {
        let Body::Status(contexts) = &mut self.body else {
            return Err(broken("the answer carries a block status that was not asked for"));
        };
        let slot = contexts.iter_mut().find(|(id, _)| *id == status.context).map(|(_, slot)| slot);
        match slot {
            None => Err(broken(format!("the answer is about context {}, which was not selected", status.context))),
            Some(Some(_)) => Err(broken(format!("the answer has two parts about context {}", status.context))),
            Some(slot) => {
                *slot = Some(status.extents);
                Ok(())
            }
        }
    }

    /// An error chunk: the command has failed, the rest of its answer still has to be taken in.
    pub(super) fn fail(&mut self, chunk: ErrorChunk) -> Result<()> {
        if let Some(offset) = chunk.offset
            && !self.command.holds(offset)
        {
            return Err(broken(format!("an error is reported at {offset:#x}, outside what was asked for")));
        }
        self.error_chunks += 1;
        if self.error_chunks > MAX_ERROR_CHUNKS {
            return Err(broken(format!("the answer has more than {MAX_ERROR_CHUNKS} errors")));
        }
        let error = ServerError { errno: chunk.errno, text: chunk.text, offset: chunk.offset };
        self.error.get_or_insert(error);
        Ok(())
    }

    /// Chunks that may yet come although an error was said to be the last.
    ///
    /// QEMU was seen (7.2) to end its answer to a block status with the error of one context, and then to send what the other
    /// contexts have to say.
    pub(super) fn stragglers(&self) -> usize {
        match (&self.body, &self.error) {
            (Body::Status(contexts), Some(_)) => {
                contexts.iter().filter(|(_, extents)| extents.is_none()).count().saturating_sub(1)
            }
            _ => 0,
        }
    }

    /// The last piece is in. An inner error is the server's, and the connection is good.
    pub(super) fn finish(self) -> Result<Result<Answer, ServerError>> {
        if let Some(error) = self.error {
            return Ok(Err(error));
        }
        match self.body {
            Body::Read(read) => read.finish().map(|data| Ok(Answer::Data(data))),
            Body::Empty => Ok(Ok(Answer::Done)),
            Body::Status(contexts) => {
                let mut answer = Vec::with_capacity(contexts.len());
                for (id, extents) in contexts {
                    answer.push(extents.ok_or_else(|| broken(format!("the answer says nothing of context {id}")))?);
                }
                Ok(Ok(Answer::Status(answer)))
            }
        }
    }
}

/// A read's answer: bytes, and which of them have come.
#[derive(Debug)]
struct ReadBody {
    start: u64,
    len: u64,
    /// Never longer than `len`; bytes in it that no piece covers are zeroes.
    buffer: Vec<u8>,
    /// Start and end of each run that has come, from the read's first byte; sorted, never touching.
    covered: Vec<(u64, u64)>,
}

impl ReadBody {
    fn new(command: Command, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.reserve_exact(to_usize(command.len));
        Self { start: command.offset, len: command.len, buffer, covered: Vec::new() }
    }

    fn claim(&mut self, offset: u64, len: u64) -> Result<Place> {
        let outside = || broken(format!("the answer has {len} bytes at {offset:#x}, outside what was asked for"));
        let at = offset.checked_sub(self.start).ok_or_else(outside)?;
        let end = at.checked_add(len).filter(|end| *end <= self.len && len > 0).ok_or_else(outside)?;
        // The first run that ends at or after the piece's start: the only one it can touch from the left.
        let first = self.covered.partition_point(|(_, run_end)| *run_end < at);
        let overlaps = self.covered.iter().skip(first).take(2).any(|(from, to)| *from < end && at < *to);
        if overlaps {
            return Err(broken(format!("the answer has the bytes at {offset:#x} twice")));
        }
        let joins_left = self.covered.get(first).is_some_and(|(_, to)| *to == at);
        let next = if joins_left { first + 1 } else { first };
        let joins_right = self.covered.get(next).is_some_and(|(from, _)| *from == end);
        let merged_start = if joins_left { self.covered.get(first).map_or(at, |(from, _)| *from) } else { at };
        let merged_end = if joins_right { self.covered.get(next).map_or(end, |(_, to)| *to) } else { end };
        let last = if joins_right { next + 1 } else { next };
        self.covered.splice(first..last, [(merged_start, merged_end)]);
        if self.covered.len() as u64 > (self.len / 512).max(MIN_PIECES) {
            return Err(broken("the answer is cut into more pieces than it has sectors"));
        }
        Ok(Place { at: to_usize(at), len: to_usize(len) })
    }

    fn finish(self) -> Result<Vec<u8>> {
        match self.covered.as_slice() {
            [(0, end)] if *end == self.len => Ok(self.buffer),
            runs => {
                let missing = match runs.first() {
                    Some((0, end)) => *end,
                    _ => 0,
                };
                let at = self.start.saturating_add(missing);
                Err(broken(format!("the answer ends without the bytes at {at:#x}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(offset: u64, len: u64) -> Assembly {
        Assembly::new(Command { action: Action::Read, offset, len }, &[], Vec::new())
    }

    proptest! {
        /// Against the plainest model there is: one flag for each byte.
        #[test]
        fn pieces_are_taken_exactly_when_they_are_inside_and_new(
            len in 1_u64..200,
            pieces in proptest::collection::vec((0_u64..260, 0_u64..60, any::<bool>()), 0..40),
        ) {
            const START: u64 = 30;
            let mut assembly = read(START, len);
            let mut model: Vec<Option<u8>> = vec![None; to_usize(len)];
            for (i, (offset, piece, hole)) in pieces.into_iter().enumerate() {
                let inside = offset >= START && piece > 0 && offset + piece <= START + len;
                let at = to_usize(offset.saturating_sub(START));
                let place = at..at + to_usize(piece);
                let new = inside && model[place.clone()].iter().all(Option::is_none);
                let byte = if hole { 0 } else { i as u8 + 1 };
                if hole {
                    prop_assert_eq!(assembly.zeroes(offset, piece).is_ok(), new);
                } else {
                    match assembly.claim(offset, piece) {
                        Ok((place, buffer)) => {
                            prop_assert!(new && buffer.len() >= place.at);
                            let end = place.at + place.len;
                            if buffer.len() < end {
                                buffer.resize(end, 0);
                            }
                            buffer[place.at..end].fill(byte);
                        }
                        Err(_) => prop_assert!(!new),
                    }
                }
                if new {
                    model[place].fill(Some(byte));
                }
            }
            match (assembly.finish(), model.into_iter().collect::<Option<Vec<u8>>>()) {
                (Ok(Ok(Answer::Data(data))), Some(expected)) => prop_assert_eq!(data, expected),
                (Err(_), None) => {}
                (got, expected) => prop_assert!(false, "{:?} instead of {:?}", got, expected),
            }
        }
    }

    #[test]
    fn an_error_counts_even_where_all_bytes_came() {
        let mut assembly = read(0, 10);
        assembly.zeroes(0, 10).unwrap();
        assembly.fail(ErrorChunk { errno: ServerErrno::EIO, text: "late".into(), offset: Some(9) }).unwrap();
        assert_eq!(assembly.finish().unwrap().unwrap_err().text, "late");
    }
}
