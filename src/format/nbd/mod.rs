//! The NBD protocol's messages: what a client sends, encoded, and what a server answers, decoded.
//!
//! Fixed newstyle handshake and transmission as `doc/proto.md` of the NBD project has them, with its extension
//! `EXTENDED_HEADERS`. All numbers are big-endian. Nothing here reads a socket or keeps state; what may follow what
//! is `crate::nbd`'s part.

pub mod constants;
mod handshake;
mod transmission;

pub use constants::{CommandFlags, ExportFlags, HandshakeFlags, ServerErrno};
pub use handshake::{
    BlockSizes, ExportSize, Greeting, Info, ListedName, MAX_OPTION_REPLY, MetaContext, OptionReply, OptionReplyHeader,
    client_flags, encode_info_request, encode_meta_context_request, encode_option, parse_error_text,
};
pub use transmission::{
    BlockExtent, BlockStatus, ChunkHeader, ChunkKind, ErrorChunk, HeaderStyle, MAX_STATUS_EXTENTS, OffsetHole, Request,
    SimpleReply,
};

use crate::base::{Error, ErrorKind, Result};

/// Longest string in the protocol, in bytes.
pub const MAX_STRING: usize = 4096;

/// An error that says how a message breaks the protocol.
fn broken(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

/// Takes fields off the front of a message; running out is the error.
struct Fields<'a> {
    rest: &'a [u8],
    /// What the message is, for the error.
    what: &'static str,
}

impl<'a> Fields<'a> {
    fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(|| {
            broken(format!("{} is cut short: {len} bytes wanted, {} left", self.what, self.rest.len()))
        })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut field = [0; N];
        field.copy_from_slice(self.take(N)?);
        Ok(field)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// All that is left.
    fn remainder(self) -> &'a [u8] {
        self.rest
    }

    /// Nothing may be left.
    fn end(self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(broken(format!("{} has {} bytes too many", self.what, self.rest.len())))
    }
}

/// A string as the protocol defines one: UTF-8 without NUL, at most [`MAX_STRING`] bytes.
fn string(what: &str, bytes: &[u8]) -> Result<String> {
    if bytes.len() > MAX_STRING {
        return Err(broken(format!("{what} has {} bytes; a string has at most {MAX_STRING}", bytes.len())));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(broken(format!("{what} is not UTF-8 text without NUL: '{}'", bytes.escape_ascii()))),
    }
}

/// A text that a server means for a person: whatever is not printable is replaced, and its length is bounded.
fn text_for_people(bytes: &[u8]) -> String {
    let bytes = bytes.get(..MAX_STRING).unwrap_or(bytes);
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests;
