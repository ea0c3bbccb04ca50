//! Messages of the handshake: greeting, options and their replies.

use super::constants::{
    INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, INIT_PASSWD, OLDSTYLE_MAGIC, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, REP_ACK, REP_FLAG_ERROR, REP_INFO, REP_META_CONTEXT, REP_SERVER,
};
use super::{ExportFlags, Fields, HandshakeFlags, MAX_STRING, broken, string, text_for_people};
use crate::base::{Error, ErrorKind, Result};

/// Longest payload of a reply to an option that is read, in bytes: two strings with their lengths, with room to spare.
pub const MAX_OPTION_REPLY: u32 = 16 << 10;

/// Zeroes after the reply to `OPT_EXPORT_NAME`, unless both sides agreed to leave them out.
const EXPORT_NAME_ZEROES: usize = 124;

/// What a server opens with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// What it can do in the handshake.
    pub flags: HandshakeFlags,
}

impl Greeting {
    /// Bytes of it.
    pub const LEN: usize = 18;

    /// Parses the greeting of a newstyle server.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self> {
        let mut fields = Fields::new("the greeting", bytes);
        let (passwd, magic) = (fields.u64()?, fields.u64()?);
        if passwd != INIT_PASSWD {
            return Err(broken(format!("this is no NBD server: it opens with {passwd:#018x}")));
        }
        match magic {
            OPTION_MAGIC => Ok(Self { flags: HandshakeFlags(fields.u16()?) }),
            OLDSTYLE_MAGIC => Err(Error::new(
                ErrorKind::Unsupported,
                "the server speaks the oldstyle handshake, which was given up in 2011; a newstyle server is needed",
            )),
            other => Err(broken(format!("the greeting has the unknown magic {other:#018x}"))),
        }
    }
}

/// The client's answer to a greeting: what of it is taken up.
#[must_use]
pub fn client_flags(server: HandshakeFlags) -> [u8; 4] {
    // The client's bits have the same numbers as the server's; unknown ones must not be sent.
    let known = HandshakeFlags::FIXED_NEWSTYLE.0 | HandshakeFlags::NO_ZEROES.0;
    u32::from(server.0 & known).to_be_bytes()
}

/// An option with its data, at most 4 GiB of it.
pub fn encode_option(option: u32, data: &[u8]) -> Result<Vec<u8>> {
    let len = u32::try_from(data.len())
        .map_err(|_| Error::new(ErrorKind::Limit, format!("an option cannot carry {} bytes", data.len())))?;
    let mut message = Vec::with_capacity(16 + data.len());
    message.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    message.extend_from_slice(&option.to_be_bytes());
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(data);
    Ok(message)
}

fn put_string(data: &mut Vec<u8>, what: &str, text: &str) -> Result<()> {
    let len = u32::try_from(text.len()).ok().filter(|_| text.len() <= MAX_STRING && !text.contains('\0'));
    let len = len.ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("{what} must have at most {MAX_STRING} bytes and no NUL: '{text:.64}'"))
    })?;
    data.extend_from_slice(&len.to_be_bytes());
    data.extend_from_slice(text.as_bytes());
    Ok(())
}

/// The data of `OPT_INFO` and `OPT_GO` for an export, asking for `requests` (`INFO_*`).
pub fn encode_info_request(export: &str, requests: &[u16]) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    put_string(&mut data, "an export's name", export)?;
    let count = u16::try_from(requests.len()).map_err(|_| Error::new(ErrorKind::Limit, "too much asked at once"))?;
    data.extend_from_slice(&count.to_be_bytes());
    for request in requests {
        data.extend_from_slice(&request.to_be_bytes());
    }
    Ok(data)
}

/// The data of `OPT_LIST_META_CONTEXT` and `OPT_SET_META_CONTEXT`.
pub fn encode_meta_context_request(export: &str, queries: &[String]) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    put_string(&mut data, "an export's name", export)?;
    let count = u32::try_from(queries.len()).map_err(|_| Error::new(ErrorKind::Limit, "too many contexts"))?;
    data.extend_from_slice(&count.to_be_bytes());
    for query in queries {
        put_string(&mut data, "a context's name", query)?;
    }
    Ok(data)
}

/// The head of a reply to an option; `len` bytes of payload follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// What kind of reply.
    pub reply: OptionReply,
    /// Bytes of payload, at most [`MAX_OPTION_REPLY`].
    pub len: u32,
}

/// The kinds of reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionReply {
    /// Done, and no more replies follow.
    Ack,
    /// One export of a list.
    Server,
    /// One fact about an export.
    Info,
    /// One meta context.
    MetaContext,
    /// Refused, with `REP_ERR_*`, and no more replies follow.
    Error(u32),
}

impl OptionReplyHeader {
    /// Bytes of it.
    pub const LEN: usize = 20;

    /// Parses the head of a reply to `option`.
    pub fn parse(option: u32, bytes: &[u8; Self::LEN]) -> Result<Self> {
        let mut fields = Fields::new("a reply's header", bytes);
        let magic = fields.u64()?;
        if magic != OPTION_REPLY_MAGIC {
            return Err(broken(format!("a reply to an option has the wrong magic {magic:#018x}")));
        }
        let (to, kind, len) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if to != option {
            return Err(broken(format!("the reply is to option {to}, but {option} was sent")));
        }
        if len > MAX_OPTION_REPLY {
            return Err(broken(format!("the reply declares {len} bytes, more than any may have")));
        }
        let reply = match kind {
            REP_ACK if len == 0 => OptionReply::Ack,
            REP_ACK => return Err(broken(format!("an acknowledgement carries {len} bytes; it has none"))),
            REP_SERVER => OptionReply::Server,
            REP_INFO => OptionReply::Info,
            REP_META_CONTEXT => OptionReply::MetaContext,
            error if error & REP_FLAG_ERROR != 0 => OptionReply::Error(error),
            other => return Err(broken(format!("the reply has the unknown type {other}"))),
        };
        Ok(Self { reply, len })
    }
}

/// The text that comes with an error reply, fit to be shown; empty when there is none.
#[must_use]
pub fn parse_error_text(payload: &[u8]) -> String {
    text_for_people(payload)
}

/// One entry of the reply to `OPT_LIST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedName {
    /// The export's name.
    pub name: String,
    /// The server's words about it, fit to be shown; often empty.
    pub description: String,
}

impl ListedName {
    /// Parses the payload of a `REP_SERVER`.
    pub fn parse(payload: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("an entry of the list", payload);
        let len = fields.u32()?;
        let name = fields.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        Ok(Self { name: string("an export's name", name)?, description: text_for_people(fields.remainder()) })
    }
}

/// An export's size and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportSize {
    /// Its size in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: ExportFlags,
}

impl ExportSize {
    /// Bytes of the reply to `OPT_EXPORT_NAME` without its zeroes.
    pub const LEN: usize = 10;

    /// Bytes that follow it, given what both sides said.
    #[must_use]
    pub fn padding(server: HandshakeFlags) -> usize {
        if server.has(HandshakeFlags::NO_ZEROES) { 0 } else { EXPORT_NAME_ZEROES }
    }

    /// Parses the reply to `OPT_EXPORT_NAME` without its zeroes.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self> {
        Self::from_fields(Fields::new("the reply to an export's name", bytes))
    }

    fn from_fields(mut fields: Fields<'_>) -> Result<Self> {
        let (size, flags) = (fields.u64()?, ExportFlags(fields.u16()?));
        fields.end()?;
        if !flags.has(ExportFlags::HAS_FLAGS) {
            return Err(broken(format!(
                "the transmission flags {:#06x} lack the bit that says there are any",
                flags.0
            )));
        }
        if size > i64::MAX.unsigned_abs() {
            return Err(broken(format!("the export claims {size} bytes, more than a disk can have")));
        }
        Ok(Self { size, flags })
    }
}

/// The sizes that requests must keep to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of it; a power of two, at most 64 KiB.
    pub minimum: u32,
    /// Offsets and lengths are better multiples of it; a power of two, at least 512 and [`minimum`](Self::minimum).
    pub preferred: u32,
    /// The most that a read may ask for.
    pub maximum: u32,
}

impl Default for BlockSizes {
    /// What the protocol's document tells a client to keep to where a server says nothing.
    fn default() -> Self {
        Self { minimum: 512, preferred: 4096, maximum: 32 << 20 }
    }
}

impl BlockSizes {
    fn parse(mut fields: Fields<'_>) -> Result<Self> {
        let sizes = Self { minimum: fields.u32()?, preferred: fields.u32()?, maximum: fields.u32()? };
        fields.end()?;
        let Self { minimum, preferred, maximum } = sizes;
        if !minimum.is_power_of_two() || minimum > 1 << 16 {
            return Err(broken(format!("the minimum block size {minimum} is no power of two up to 65536")));
        }
        if !preferred.is_power_of_two() || preferred < minimum.max(512) {
            return Err(broken(format!(
                "the preferred block size {preferred} is no power of two from {} up",
                minimum.max(512)
            )));
        }
        if maximum < preferred {
            return Err(broken(format!("the largest payload, {maximum}, is less than the preferred block size")));
        }
        Ok(sizes)
    }
}

/// One fact of the reply to `OPT_INFO` or `OPT_GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// `INFO_EXPORT`: size and flags.
    Export(ExportSize),
    /// `INFO_NAME`: what the server itself calls it.
    Name(String),
    /// `INFO_DESCRIPTION`: words for people.
    Description(String),
    /// `INFO_BLOCK_SIZE`: what requests must keep to.
    BlockSizes(BlockSizes),
    /// A kind that is not known, which must be ignored.
    Unknown(u16),
}

impl Info {
    /// Parses the payload of a `REP_INFO`.
    pub fn parse(payload: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("a fact about the export", payload);
        match fields.u16()? {
            INFO_EXPORT => ExportSize::from_fields(fields).map(Self::Export),
            INFO_NAME => string("the export's name", fields.remainder()).map(Self::Name),
            INFO_DESCRIPTION => Ok(Self::Description(text_for_people(fields.remainder()))),
            INFO_BLOCK_SIZE => BlockSizes::parse(fields).map(Self::BlockSizes),
            other => Ok(Self::Unknown(other)),
        }
    }
}

/// A meta context that a server offers or has selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContext {
    /// The number it has on this connection; means nothing on another or in a list.
    pub id: u32,
    /// Its name, with its namespace.
    pub name: String,
}

impl MetaContext {
    /// Parses the payload of a `REP_META_CONTEXT`.
    pub fn parse(payload: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("a meta context", payload);
        let id = fields.u32()?;
        Ok(Self { id, name: string("a meta context's name", fields.remainder())? })
    }
}
