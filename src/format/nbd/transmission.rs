//! Messages of the transmission phase: requests, replies and their chunks.

use super::constants::{
    EXTENDED_REPLY_MAGIC, EXTENDED_REQUEST_MAGIC, REPLY_BLOCK_STATUS, REPLY_BLOCK_STATUS_EXT, REPLY_ERROR_OFFSET,
    REPLY_FLAG_DONE, REPLY_FLAG_ERROR, REPLY_NONE, REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE, REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use super::{CommandFlags, Fields, MAX_STRING, ServerErrno, broken, text_for_people};
use crate::base::{Error, ErrorKind, Result};

/// The most extents that one chunk of block status may carry.
pub const MAX_STATUS_EXTENTS: u32 = 1 << 20;

/// How headers look after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderStyle {
    /// Only simple replies.
    Simple,
    /// Structured replies, and simple ones without data.
    Structured,
    /// 32-byte headers both ways.
    Extended,
}

/// A request without data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Flags of the command.
    pub flags: CommandFlags,
    /// `CMD_*`.
    pub command: u16,
    /// What the reply will carry.
    pub cookie: u64,
    /// First byte that it is about.
    pub offset: u64,
    /// Bytes that it is about; below 4 GiB unless headers are extended.
    pub len: u64,
}

impl Request {
    /// Appends the request to `out`.
    pub fn encode(&self, style: HeaderStyle, out: &mut Vec<u8>) -> Result<()> {
        let magic = match style {
            HeaderStyle::Simple | HeaderStyle::Structured => REQUEST_MAGIC,
            HeaderStyle::Extended => EXTENDED_REQUEST_MAGIC,
        };
        let short = u32::try_from(self.len);
        if style != HeaderStyle::Extended && short.is_err() {
            return Err(Error::new(ErrorKind::Limit, format!("a request cannot be for {} bytes", self.len)));
        }
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&self.flags.0.to_be_bytes());
        out.extend_from_slice(&self.command.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        match (style, short) {
            (HeaderStyle::Simple | HeaderStyle::Structured, Ok(len)) => out.extend_from_slice(&len.to_be_bytes()),
            _ => out.extend_from_slice(&self.len.to_be_bytes()),
        }
        Ok(())
    }
}

/// A simple reply's header; the data of a read follows when there is no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleReply {
    /// What went wrong, if anything.
    pub error: Option<ServerErrno>,
    /// The request's.
    pub cookie: u64,
}

impl SimpleReply {
    /// Bytes of it after its magic.
    pub const LEN: usize = 12;
    /// What it starts with.
    pub const MAGIC: u32 = SIMPLE_REPLY_MAGIC;

    /// Parses what follows the magic.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self> {
        let mut fields = Fields::new("a simple reply", bytes);
        let error = fields.u32()?;
        Ok(Self { error: (error != 0).then_some(ServerErrno(error)), cookie: fields.u64()? })
    }
}

/// What a chunk's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkKind {
    /// Nothing: the reply ends.
    None,
    /// An offset, then data.
    OffsetData,
    /// An [`OffsetHole`].
    OffsetHole,
    /// A [`BlockStatus`] with 32-bit fields.
    BlockStatus,
    /// A [`BlockStatus`] with 64-bit fields.
    BlockStatusExtended,
    /// An [`ErrorChunk`], perhaps of a type that is not known.
    Error(u16),
}

/// The head of one chunk of a structured or extended reply; `len` bytes of payload follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Whether it is the reply's last.
    pub done: bool,
    /// What follows.
    pub kind: ChunkKind,
    /// The request's.
    pub cookie: u64,
    /// The request's offset, where headers are extended.
    pub offset: Option<u64>,
    /// Bytes of payload; what is too much depends on the request, except for those kinds whose length is fixed.
    pub len: u64,
}

impl ChunkHeader {
    /// Bytes of a structured one after its magic.
    pub const STRUCTURED_LEN: usize = 16;
    /// Bytes of an extended one after its magic.
    pub const EXTENDED_LEN: usize = 28;
    /// What a structured one starts with.
    pub const STRUCTURED_MAGIC: u32 = STRUCTURED_REPLY_MAGIC;
    /// What an extended one starts with.
    pub const EXTENDED_MAGIC: u32 = EXTENDED_REPLY_MAGIC;

    /// Parses what follows the magic of a structured reply.
    pub fn parse_structured(bytes: &[u8; Self::STRUCTURED_LEN]) -> Result<Self> {
        let mut fields = Fields::new("a structured reply", bytes);
        let (flags, kind, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
        Self::checked(flags, kind, cookie, None, u64::from(fields.u32()?))
    }

    /// Parses what follows the magic of an extended reply.
    pub fn parse_extended(bytes: &[u8; Self::EXTENDED_LEN]) -> Result<Self> {
        let mut fields = Fields::new("an extended reply", bytes);
        let (flags, kind, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
        let offset = fields.u64()?;
        Self::checked(flags, kind, cookie, Some(offset), fields.u64()?)
    }

    fn checked(flags: u16, kind: u16, cookie: u64, offset: Option<u64>, len: u64) -> Result<Self> {
        let done = flags & REPLY_FLAG_DONE != 0;
        let extents = u64::from(MAX_STATUS_EXTENTS);
        let (kind, fits) = match kind {
            REPLY_NONE => (ChunkKind::None, len == 0 && done),
            REPLY_OFFSET_DATA => (ChunkKind::OffsetData, len > OffsetHole::OFFSET_LEN),
            REPLY_OFFSET_HOLE => (ChunkKind::OffsetHole, len == OffsetHole::LEN),
            REPLY_BLOCK_STATUS => {
                (ChunkKind::BlockStatus, len > 4 && (len - 4).is_multiple_of(8) && (len - 4) / 8 <= extents)
            }
            REPLY_BLOCK_STATUS_EXT => {
                (ChunkKind::BlockStatusExtended, len > 8 && (len - 8).is_multiple_of(16) && (len - 8) / 16 <= extents)
            }
            error if error & REPLY_FLAG_ERROR != 0 => (ChunkKind::Error(error), len <= ErrorChunk::MAX_LEN),
            other => return Err(broken(format!("a reply has a chunk of the unknown type {other}"))),
        };
        if !fits {
            return Err(broken(format!("a chunk of the reply ({kind:?}) cannot have a length of {len}")));
        }
        Ok(Self { done, kind, cookie, offset, len })
    }
}

/// A part of a read's answer that is all zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetHole {
    /// First byte, from the start of the export.
    pub offset: u64,
    /// Bytes, at least one.
    pub len: u32,
}

impl OffsetHole {
    /// Bytes of the payload.
    const LEN: u64 = 12;
    /// Bytes of the offset that data and holes start with.
    pub const OFFSET_LEN: u64 = 8;

    /// Parses the payload.
    pub fn parse(payload: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("a hole in a reply", payload);
        let hole = Self { offset: fields.u64()?, len: fields.u32()? };
        fields.end()?;
        if hole.len == 0 {
            return Err(broken("a hole in the reply has no length"));
        }
        Ok(hole)
    }
}

/// What a context says of consecutive bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockExtent {
    /// Bytes, at least one.
    pub len: u64,
    /// The context's bits.
    pub status: u64,
}

/// What one context answers to a block status request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockStatus {
    /// The context's number on this connection.
    pub context: u32,
    /// Consecutive extents from the request's offset on; neighbours of the same status are one.
    pub extents: Vec<BlockExtent>,
}

impl BlockStatus {
    /// Parses the payload of either kind of status chunk.
    pub fn parse(extended: bool, payload: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("a block status", payload);
        let context = fields.u32()?;
        let width = if extended { 16 } else { 8 };
        let count = if extended {
            fields.u32()?
        } else {
            u32::try_from(fields.rest.len() / width).map_err(|_| broken("a block status is too long"))?
        };
        if count == 0 || count > MAX_STATUS_EXTENTS {
            return Err(broken(format!("a block status has {count} extents; 1 to {MAX_STATUS_EXTENTS} are allowed")));
        }
        let mut extents: Vec<BlockExtent> = Vec::new();
        let mut sum: u64 = 0;
        for _ in 0..count {
            let (len, status) = if extended {
                (fields.u64()?, fields.u64()?)
            } else {
                (u64::from(fields.u32()?), u64::from(fields.u32()?))
            };
            if len == 0 {
                return Err(broken("a block status has an extent without length"));
            }
            sum = sum.checked_add(len).ok_or_else(|| broken("a block status reaches past 64 bits"))?;
            match extents.last_mut() {
                Some(last) if last.status == status => last.len += len,
                _ => extents.push(BlockExtent { len, status }),
            }
        }
        fields.end()?;
        Ok(Self { context, extents })
    }
}

/// An error that a server reports in a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorChunk {
    /// What went wrong.
    pub errno: ServerErrno,
    /// The server's words, fit to be shown; often empty.
    pub text: String,
    /// Where, from the start of the export, if it says.
    pub offset: Option<u64>,
}

impl ErrorChunk {
    /// Longest payload that is read, in bytes.
    pub const MAX_LEN: u64 = 6 + MAX_STRING as u64 + 64;

    /// Parses the payload of an error chunk of type `kind`, known or not.
    pub fn parse(kind: u16, payload: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("an error in a reply", payload);
        let (errno, len) = (fields.u32()?, fields.u16()?);
        if errno == 0 {
            return Err(broken("an error chunk says that there was no error"));
        }
        let text = fields.take(usize::from(len))?;
        if text.len() > MAX_STRING {
            return Err(broken(format!("an error's text has {len} bytes; a string has at most {MAX_STRING}")));
        }
        let offset = if kind == REPLY_ERROR_OFFSET { Some(fields.u64()?) } else { None };
        // Later kinds may add fields after these; what is not known is skipped.
        Ok(Self { errno: ServerErrno(errno), text: text_for_people(text), offset })
    }
}
