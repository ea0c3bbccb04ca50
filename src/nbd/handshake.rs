//! The handshake as explicit states: [`Greeted`] → [`Haggling`] → [`Established`].
//!
//! Each step takes the state before it by value, so none can be skipped or repeated: whatever is agreed on before TLS
//! cannot be carried over into it, because there is nothing to carry it in.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::debug;

use super::stream::{Plain, Stream};
use super::tls::Security;
use crate::base::{Error, ErrorKind, Result};
use crate::format::nbd::constants as nbd;
use crate::format::nbd::{
    BlockSizes, ExportSize, Greeting, HandshakeFlags, HeaderStyle, Info, ListedName, MetaContext, OptionReply,
    OptionReplyHeader, client_flags, encode_info_request, encode_meta_context_request, encode_option, parse_error_text,
};

/// The most exports, contexts or facts that one option's replies may list.
const MAX_REPLIES: usize = 10_000;
/// The most bytes that one option's replies may have together.
const MAX_REPLY_BYTES: usize = 4 << 20;

/// What a server tells about an export in the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub size: ExportSize,
    /// As the server says, or `None` where it says nothing.
    pub block_sizes: Option<BlockSizes>,
    pub description: String,
}

/// The greeting was exchanged; nothing is agreed yet and the stream is plain.
pub(super) struct Greeted {
    stream: Plain,
    flags: HandshakeFlags,
}

/// Options may be sent.
pub(super) struct Haggling {
    stream: Stream,
    flags: HandshakeFlags,
    style: HeaderStyle,
}

/// The handshake is over: commands may be sent.
pub(super) struct Established {
    pub stream: Stream,
    pub style: HeaderStyle,
    pub facts: Facts,
    /// The contexts that the server selected.
    pub contexts: Vec<MetaContext>,
}

/// How an option ended.
enum Outcome {
    Done,
    Refused(Refusal),
}

/// A server's refusal of an option.
struct Refusal {
    option: u32,
    code: u32,
    text: String,
}

fn lost(e: std::io::Error) -> Error {
    let message = match e.kind() {
        std::io::ErrorKind::UnexpectedEof => "the server closed the connection in the middle of the handshake",
        _ => "the connection failed in the handshake",
    };
    Error::new(ErrorKind::Disconnected, message).with_source(e)
}

fn broken(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

impl Greeted {
    /// Reads a server's greeting and answers it.
    pub(super) async fn exchange(mut stream: Plain) -> Result<Self> {
        let mut greeting = [0; Greeting::LEN];
        stream.read_exact(&mut greeting).await.map_err(lost)?;
        let flags = Greeting::parse(&greeting)?.flags;
        stream.write_all(&client_flags(flags)).await.map_err(lost)?;
        Ok(Self { stream, flags })
    }

    /// Goes on without encryption.
    pub(super) fn plain(self) -> Haggling {
        Haggling { stream: Stream::Plain(self.stream), flags: self.flags, style: HeaderStyle::Simple }
    }

    /// Has the stream encrypted; a server that will not is an error.
    pub(super) async fn secure(self, security: &Security) -> Result<Haggling> {
        let mut haggling = self.plain();
        if let Outcome::Refused(refusal) = haggling.simple(nbd::OPT_STARTTLS, &[]).await? {
            return Err(refusal.into_error().context("TLS was asked for"));
        }
        // Nothing was read beyond the acknowledgement: what follows it in the clear reaches only the TLS handshake.
        let Haggling { stream: Stream::Plain(plain), flags, style } = haggling else {
            return Err(broken("the stream is encrypted already"));
        };
        Ok(Haggling { stream: Stream::Tls(Box::new(security.encrypt(plain).await?)), flags, style })
    }
}

impl Haggling {
    /// Agrees on the best headers that the server knows.
    pub(super) async fn agree_on_headers(&mut self) -> Result<()> {
        if !self.flags.has(HandshakeFlags::FIXED_NEWSTYLE) {
            return Ok(());
        }
        for (option, style) in
            [(nbd::OPT_EXTENDED_HEADERS, HeaderStyle::Extended), (nbd::OPT_STRUCTURED_REPLY, HeaderStyle::Structured)]
        {
            match self.simple(option, &[]).await? {
                Outcome::Done => {
                    self.style = style;
                    return Ok(());
                }
                Outcome::Refused(refusal) => refusal.tolerate()?,
            }
        }
        Ok(())
    }

    /// What was agreed on.
    pub(super) fn headers(&self) -> HeaderStyle {
        self.style
    }

    /// The server's exports, or `None` if it does not list them.
    pub(super) async fn list(&mut self) -> Result<Option<Vec<ListedName>>> {
        if !self.flags.has(HandshakeFlags::FIXED_NEWSTYLE) {
            return Ok(None);
        }
        let mut names = Vec::new();
        let outcome = self
            .option(nbd::OPT_LIST, &[], |reply, payload| match reply {
                OptionReply::Server => {
                    names.push(ListedName::parse(payload)?);
                    Ok(())
                }
                other => Err(unexpected(nbd::OPT_LIST, other)),
            })
            .await?;
        match outcome {
            Outcome::Done => Ok(Some(names)),
            Outcome::Refused(refusal) => refusal.tolerate().map(|()| None),
        }
    }

    /// What the server tells about an export without entering it, or `None` if it cannot.
    pub(super) async fn info(&mut self, export: &str) -> Result<Option<Facts>> {
        match self.facts(nbd::OPT_INFO, export).await? {
            Ok(facts) => Ok(Some(facts)),
            Err(refusal) if refusal.code == nbd::REP_ERR_UNSUP => Ok(None),
            Err(refusal) => Err(refusal.into_error()),
        }
    }

    /// The contexts that can be selected for an export; empty where the server knows none.
    pub(super) async fn list_contexts(&mut self, export: &str) -> Result<Vec<String>> {
        if self.style == HeaderStyle::Simple {
            return Ok(Vec::new());
        }
        let data = encode_meta_context_request(export, &[])?;
        let found = self.meta_contexts(nbd::OPT_LIST_META_CONTEXT, &data).await?;
        Ok(found.into_iter().map(|context| context.name).collect())
    }

    async fn select_contexts(&mut self, export: &str, names: &[String]) -> Result<Vec<MetaContext>> {
        if self.style == HeaderStyle::Simple || names.is_empty() {
            return Ok(Vec::new());
        }
        let data = encode_meta_context_request(export, names)?;
        let mut selected = self.meta_contexts(nbd::OPT_SET_META_CONTEXT, &data).await?;
        // Servers answer in any order; ours does not change between connections.
        selected.sort_by_key(|context| names.iter().position(|name| *name == context.name));
        for (at, context) in selected.iter().enumerate() {
            if !names.contains(&context.name) {
                return Err(broken(format!("the server selected '{}', which nobody asked for", context.name)));
            }
            if selected.iter().take(at).any(|other| other.id == context.id || other.name == context.name) {
                return Err(broken(format!("the server selected '{}' or its number twice", context.name)));
            }
        }
        Ok(selected)
    }

    async fn meta_contexts(&mut self, option: u32, data: &[u8]) -> Result<Vec<MetaContext>> {
        let mut contexts = Vec::new();
        let outcome = self
            .option(option, data, |reply, payload| match reply {
                OptionReply::MetaContext => {
                    contexts.push(MetaContext::parse(payload)?);
                    Ok(())
                }
                other => Err(unexpected(option, other)),
            })
            .await?;
        match outcome {
            Outcome::Done => Ok(contexts),
            Outcome::Refused(refusal) => refusal.tolerate().map(|()| Vec::new()),
        }
    }

    /// Selects contexts and enters the export, by the old way where the server knows no other.
    pub(super) async fn enter(mut self, export: &str, contexts: &[String]) -> Result<Established> {
        let contexts = self.select_contexts(export, contexts).await?;
        if self.flags.has(HandshakeFlags::FIXED_NEWSTYLE) {
            match self.facts(nbd::OPT_GO, export).await? {
                Ok(facts) => return Ok(self.established(facts, contexts)),
                Err(refusal) if refusal.code == nbd::REP_ERR_UNSUP && self.style != HeaderStyle::Extended => {
                    debug!("the server does not know NBD_OPT_GO: using NBD_OPT_EXPORT_NAME");
                }
                Err(refusal) => return Err(refusal.into_error()),
            }
        }
        self.enter_by_name(export, contexts).await
    }

    async fn enter_by_name(mut self, export: &str, contexts: Vec<MetaContext>) -> Result<Established> {
        self.send(nbd::OPT_EXPORT_NAME, export.as_bytes()).await?;
        let mut reply = [0; ExportSize::LEN];
        match self.stream.read_exact(&mut reply).await {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    "the server closed the connection when it heard the export's name: perhaps it has no such export",
                ));
            }
            other => other.map_err(lost)?,
        };
        let size = ExportSize::parse(&reply)?;
        let mut padding = [0; 124];
        let padding = padding.get_mut(..ExportSize::padding(self.flags)).unwrap_or_default();
        self.stream.read_exact(padding).await.map_err(lost)?;
        Ok(self.established(Facts { size, block_sizes: None, description: String::new() }, contexts))
    }

    fn established(self, facts: Facts, contexts: Vec<MetaContext>) -> Established {
        Established { stream: self.stream, style: self.style, facts, contexts }
    }

    /// Ends the haggling; the server need not answer.
    pub(super) async fn abort(mut self) {
        if self.flags.has(HandshakeFlags::FIXED_NEWSTYLE) {
            // Whatever fails here, the connection is over.
            let _ = self.send(nbd::OPT_ABORT, &[]).await;
            let _ = self.stream.shutdown().await;
        }
    }

    /// `OPT_INFO` or `OPT_GO`.
    async fn facts(&mut self, option: u32, export: &str) -> Result<Result<Facts, Refusal>> {
        let wanted = [nbd::INFO_BLOCK_SIZE, nbd::INFO_DESCRIPTION];
        let data = encode_info_request(export, &wanted)?;
        let (mut size, mut block_sizes, mut description) = (None, None, String::new());
        let outcome = self
            .option(option, &data, |reply, payload| {
                if reply != OptionReply::Info {
                    return Err(unexpected(option, reply));
                }
                let twice = match Info::parse(payload)? {
                    Info::Export(said) => size.replace(said).is_some_and(|before| before != said),
                    Info::BlockSizes(said) => block_sizes.replace(said).is_some_and(|before| before != said),
                    Info::Description(said) => {
                        description = said;
                        false
                    }
                    Info::Name(_) | Info::Unknown(_) => false,
                };
                if twice { Err(broken("the server says two different things about the export")) } else { Ok(()) }
            })
            .await?;
        match (outcome, size) {
            (Outcome::Done, Some(size)) => Ok(Ok(Facts { size, block_sizes, description })),
            (Outcome::Done, None) => Err(broken("the server let us in without telling the export's size")),
            (Outcome::Refused(refusal), _) => Ok(Err(refusal)),
        }
    }

    /// An option that is only acknowledged or refused.
    async fn simple(&mut self, option: u32, data: &[u8]) -> Result<Outcome> {
        self.option(option, data, |reply, _| Err(unexpected(option, reply))).await
    }

    async fn send(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let message = encode_option(option, data)?;
        self.stream.write_all(&message).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)
    }

    /// Sends an option and hands every reply before the last to `each`.
    async fn option(
        &mut self,
        option: u32,
        data: &[u8],
        mut each: impl FnMut(OptionReply, &[u8]) -> Result<()>,
    ) -> Result<Outcome> {
        if !self.flags.has(HandshakeFlags::FIXED_NEWSTYLE) {
            return Ok(Outcome::Refused(Refusal { option, code: nbd::REP_ERR_UNSUP, text: String::new() }));
        }
        self.send(option, data).await?;
        let mut payload = Vec::new();
        let mut total: usize = 0;
        for _ in 0..=MAX_REPLIES {
            let mut header = [0; OptionReplyHeader::LEN];
            self.stream.read_exact(&mut header).await.map_err(lost)?;
            let header = OptionReplyHeader::parse(option, &header)?;
            payload.resize(usize::try_from(header.len).unwrap_or(usize::MAX), 0);
            self.stream.read_exact(&mut payload).await.map_err(lost)?;
            total = total.saturating_add(payload.len());
            if total > MAX_REPLY_BYTES {
                break;
            }
            match header.reply {
                OptionReply::Ack => return Ok(Outcome::Done),
                OptionReply::Error(code) => {
                    return Ok(Outcome::Refused(Refusal { option, code, text: parse_error_text(&payload) }));
                }
                reply => each(reply, &payload)?,
            }
        }
        Err(broken(format!(
            "the server floods: more than {MAX_REPLIES} replies or {MAX_REPLY_BYTES} bytes to {}",
            option_name(option)
        )))
    }
}

fn unexpected(option: u32, reply: OptionReply) -> Error {
    broken(format!("the server answered {} with a reply of the wrong kind ({reply:?})", option_name(option)))
}

fn option_name(option: u32) -> &'static str {
    match option {
        nbd::OPT_LIST => "NBD_OPT_LIST",
        nbd::OPT_STARTTLS => "NBD_OPT_STARTTLS",
        nbd::OPT_INFO => "NBD_OPT_INFO",
        nbd::OPT_GO => "NBD_OPT_GO",
        nbd::OPT_STRUCTURED_REPLY => "NBD_OPT_STRUCTURED_REPLY",
        nbd::OPT_LIST_META_CONTEXT => "NBD_OPT_LIST_META_CONTEXT",
        nbd::OPT_SET_META_CONTEXT => "NBD_OPT_SET_META_CONTEXT",
        nbd::OPT_EXTENDED_HEADERS => "NBD_OPT_EXTENDED_HEADERS",
        _ => "an option",
    }
}

impl Refusal {
    /// Goes on without what was refused, unless nothing else will be granted either.
    fn tolerate(self) -> Result<()> {
        match self.code {
            nbd::REP_ERR_TLS_REQD | nbd::REP_ERR_SHUTDOWN => Err(self.into_error()),
            _ => {
                debug!(option = option_name(self.option), reply = self.code, text = self.text, "refused, going on");
                Ok(())
            }
        }
    }

    fn into_error(self) -> Error {
        let (kind, why) = match self.code {
            nbd::REP_ERR_UNSUP => (ErrorKind::Unsupported, "it does not know that option"),
            nbd::REP_ERR_POLICY => (ErrorKind::Refused, "its configuration forbids it"),
            nbd::REP_ERR_INVALID => (ErrorKind::Io, "it calls the request invalid"),
            nbd::REP_ERR_PLATFORM => (ErrorKind::Unsupported, "its platform does not support it"),
            nbd::REP_ERR_TLS_REQD => (ErrorKind::Refused, "it demands TLS"),
            nbd::REP_ERR_UNKNOWN => (ErrorKind::NotFound, "it has no such export"),
            nbd::REP_ERR_SHUTDOWN => (ErrorKind::Disconnected, "it is shutting down"),
            nbd::REP_ERR_BLOCK_SIZE_REQD => (ErrorKind::Unsupported, "it wants block sizes to be asked for"),
            nbd::REP_ERR_TOO_BIG => (ErrorKind::Limit, "the request is too big for it"),
            nbd::REP_ERR_EXT_HEADER_REQD => (ErrorKind::Unsupported, "it demands extended headers"),
            _ => (ErrorKind::Io, "it gives a reason that is not known"),
        };
        let mut message = format!("the server refused {}: {why}", option_name(self.option));
        if !self.text.is_empty() {
            message.push_str(&format!(" ({})", self.text.trim_end()));
        }
        let error = Error::new(kind, message);
        match self.code {
            nbd::REP_ERR_TLS_REQD => error.with_hint("use a URI that begins with nbds:// or nbds+unix://"),
            nbd::REP_ERR_UNKNOWN => {
                error.with_hint("'annals nbd info' with the URI's export left empty lists what it has")
            }
            _ => error,
        }
    }
}
