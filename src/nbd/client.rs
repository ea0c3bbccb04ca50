//! The client: one export over one or several connections, within a budget of commands and bytes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::connection::{Connection, Death, Permits};
use super::extents::{Extent, Extents};
use super::handshake::{Established, Facts, Greeted, Haggling};
use super::options::{Failures, Options};
use super::reply::{Action, Answer, Command};
use super::stream::Plain;
use super::tls::Security;
use super::uri::Uri;
use crate::base::error::ResultExt as _;
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};
use crate::format::nbd::{BlockExtent, BlockSizes, ExportFlags, HeaderStyle};

/// The least that the budgets for bytes may be: one block of the largest minimum size.
const MIN_BYTES: u32 = 64 << 10;
/// The most that one trim or block status is about where lengths have 32 bits.
const MAX_SHORT_LENGTH: u64 = 2 << 30;
/// How long further connections may take; a server that serves only so many lets the others wait in its queue.
const FURTHER_CONNECTION: Duration = Duration::from_secs(2);

/// An export as the server describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its name; empty for the server's default.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: ExportFlags,
    /// What requests keep to: the server's word, or the protocol's defaults.
    pub block_sizes: BlockSizes,
    /// Whether [`block_sizes`](Self::block_sizes) are the server's word.
    pub block_sizes_declared: bool,
    /// The server's words for people; often empty.
    pub description: String,
    /// The contexts that were asked for and that the server has.
    pub contexts: Vec<String>,
    /// How replies come.
    pub headers: HeaderStyle,
}

impl Export {
    fn of(name: &str, established: &Established) -> Self {
        let Established { style, facts: Facts { size, block_sizes, description }, contexts, .. } = established;
        Self {
            name: name.to_owned(),
            size: size.size,
            flags: size.flags,
            block_sizes: block_sizes.unwrap_or_default(),
            block_sizes_declared: block_sizes.is_some(),
            description: description.clone(),
            contexts: contexts.iter().map(|context| context.name.clone()).collect(),
            headers: *style,
        }
    }

    /// The whole export.
    #[must_use]
    pub fn range(&self) -> GuestRange {
        GuestRange::between(GuestOffset(0), GuestOffset(self.size))
    }

    /// Whether a context of that name was selected.
    #[must_use]
    pub fn has_context(&self, name: &str) -> bool {
        self.contexts.iter().any(|context| context == name)
    }
}

/// An export that can be read. Cheap to clone; the last clone says good-bye to the server.
///
/// Must be used within a tokio runtime with timers and I/O.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    uri: Uri,
    options: Options,
    security: Option<Security>,
    export: Export,
    /// The most that one read command may ask for.
    max_read: u64,
    connections: Mutex<Vec<Arc<Connection>>>,
    commands: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Held while connections are replaced: why that failed the last time, if it did.
    reviving: tokio::sync::Mutex<Option<Death>>,
    /// How often that has been tried.
    revivals: AtomicU64,
}

/// How the default export is called in messages.
fn spoken(export: &str) -> String {
    if export.is_empty() { "the default export".to_owned() } else { format!("export '{}'", export.escape_debug()) }
}

/// Connects, greets and encrypts: everything up to the options that depend on what is wanted.
pub(super) async fn haggle(uri: &Uri, security: Option<&Security>) -> Result<Haggling> {
    let greeted = Greeted::exchange(Plain::connect(uri.endpoint()).await?).await?;
    let mut haggling = match security {
        Some(security) => greeted.secure(security).await?,
        None => greeted.plain(),
    };
    haggling.agree_on_headers().await?;
    Ok(haggling)
}

/// Bounds a step of the handshake.
pub(super) async fn within<T>(limit: Duration, step: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, step).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Disconnected, format!("the server did not finish the handshake in {limit:?}")))
    })
}

async fn establish(uri: &Uri, security: Option<&Security>, options: &Options, limit: Duration) -> Result<Established> {
    within(limit, async { haggle(uri, security).await?.enter(uri.export(), &options.contexts).await })
        .await
        .context(|| uri.to_string())
}

impl Client {
    /// Connects to the export that a URI names and selects the contexts that `options` ask for.
    pub async fn connect(uri: &Uri, options: &Options) -> Result<Self> {
        let security = Security::of(uri, options.certificates.as_deref()).context(|| uri.to_string())?;
        let first = establish(uri, security.as_ref(), options, options.handshake_timeout).await?;
        let export = Export::of(uri.export(), &first);
        let max_bytes = options.max_bytes.max(MIN_BYTES);
        let minimum = u64::from(export.block_sizes.minimum);
        let max_read = export.block_sizes.maximum.min(options.max_request.max(MIN_BYTES)).min(max_bytes);
        let max_read = u64::from(max_read) / minimum * minimum;
        debug!(%uri, ?export, "NBD connection established");
        let inner = Inner {
            uri: uri.clone(),
            options: options.clone(),
            security,
            max_read,
            connections: Mutex::new(vec![Arc::new(Connection::start(first, options))]),
            commands: Arc::new(Semaphore::new(options.max_commands.clamp(1, 1 << 16))),
            bytes: Arc::new(Semaphore::new(to_usize(u64::from(max_bytes)))),
            reviving: tokio::sync::Mutex::default(),
            revivals: AtomicU64::new(0),
            export,
        };
        inner.connect_further().await?;
        Ok(Self(Arc::new(inner)))
    }

    /// The export's facts.
    #[must_use]
    pub fn export(&self) -> &Export {
        &self.0.export
    }

    /// Where it is.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.0.uri
    }

    /// Connections that are alive; none after the last was lost.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections().iter().filter(|connection| connection.load().is_ok()).count()
    }

    /// Replaces lost connections.
    ///
    /// Fails where the server cannot be reached, or where what it now exports is not the same disk any more: another
    /// size, other block sizes, other contexts.
    pub async fn revive(&self) -> Result<()> {
        self.0.revive().await
    }

    /// Reads a range of the export, in as many commands as it takes. `buffer`'s memory is used again where it can be.
    ///
    /// The range may begin and end anywhere; it must lie within the export and not be longer than
    /// [`Options::max_bytes`].
    pub async fn read(&self, range: GuestRange, buffer: Vec<u8>) -> Result<Vec<u8>> {
        let what = |action: &str| {
            format!("{}: {action} of {} bytes at {}", spoken(&self.0.export.name), range.len(), range.start())
        };
        self.0.read(range, buffer).await.context(|| what("read"))
    }

    /// Tells the server that a range is not needed any more. Only whole blocks within it are trimmed.
    pub async fn trim(&self, range: GuestRange) -> Result<()> {
        let name = &self.0.export.name;
        self.0
            .trim(range)
            .await
            .context(|| format!("{}: trim of {} bytes at {}", spoken(name), range.len(), range.start()))
    }

    /// What one context says of a range: extents that cover it without gaps, neighbours of different status.
    ///
    /// Memory grows with their number; [`extents`](Self::extents) gives them piece by piece.
    pub async fn block_status(&self, context: &str, range: GuestRange) -> Result<Vec<Extent>> {
        let mut walk = self.extents(&[context], range)?;
        let mut all: Vec<Extent> = Vec::new();
        while let Some(batch) = walk.next().await? {
            for extent in batch.extents.into_iter().flatten() {
                Extent::push(&mut all, extent);
            }
        }
        Ok(all)
    }

    /// Walks over what one or more contexts say of a range, from its start to its end.
    pub fn extents(&self, contexts: &[&str], range: GuestRange) -> Result<Extents> {
        let export = &self.0.export;
        let check = || -> Result<Vec<usize>> {
            self.0.within_export(range)?;
            contexts
                .iter()
                .map(|name| {
                    export.contexts.iter().position(|context| context == name).ok_or_else(|| {
                        Error::new(ErrorKind::Unsupported, format!("the server does not offer the context '{name}'"))
                    })
                })
                .collect()
        };
        let indices = check().context(|| spoken(&export.name))?;
        Ok(Extents::new(self.clone(), indices, range))
    }

    /// One command's answer about the export from `at` on: for each selected context extents that begin at `at`
    /// exactly, cover at least one byte, and end at `end` at the latest.
    pub(super) async fn status_from(&self, at: GuestOffset, end: GuestOffset) -> Result<Vec<Vec<BlockExtent>>> {
        let what = || {
            let len = end.0.saturating_sub(at.0);
            format!("{}: block status of {len} bytes at {at}", spoken(&self.0.export.name))
        };
        self.0.status_from(at.0, end.0).await.context(what)
    }

    /// Says good-bye on every connection and waits, for a moment at most, until that is sent.
    pub async fn close(self) {
        let connections = std::mem::take(&mut *self.0.connections());
        for connection in connections.into_iter().filter_map(Arc::into_inner) {
            connection.close().await;
        }
    }
}

impl Inner {
    fn connections(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens what `options.connections` asks for beyond those that are there, as far as the server lets us.
    async fn connect_further(&self) -> Result<()> {
        let wanted = if self.export.flags.has(ExportFlags::CAN_MULTI_CONN) { self.options.connections } else { 1 };
        while self.connections().len() < wanted {
            let limit = self.options.handshake_timeout.min(FURTHER_CONNECTION);
            match establish(&self.uri, self.security.as_ref(), &self.options, limit).await {
                Ok(established) => {
                    let connection = self.accept(established)?;
                    self.connections().push(connection);
                }
                Err(e) if e.kind() == ErrorKind::Disconnected => {
                    warn!(error = e.report(), "no further connection: going on with fewer");
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes a connection beside or instead of the first, if it leads to the same disk.
    fn accept(&self, established: Established) -> Result<Arc<Connection>> {
        let (old, new) = (&self.export, Export::of(&self.export.name, &established));
        let changed = [
            ("size", old.size != new.size),
            ("block sizes", old.block_sizes != new.block_sizes),
            ("contexts", old.contexts != new.contexts),
        ];
        if let Some((what, _)) = changed.iter().find(|(_, changed)| *changed) {
            let message = format!("another connection finds other {what} than the first: it is not the same disk");
            return Err(Error::new(ErrorKind::Changed, message).context(self.uri.to_string()));
        }
        Ok(Arc::new(Connection::start(established, &self.options)))
    }

    async fn revive(&self) -> Result<()> {
        let seen = self.revivals.load(Ordering::SeqCst);
        let mut failed = self.reviving.lock().await;
        // Many commands fail together. Where a server takes its time to fail, they do not wait for it one after the other.
        if let Some(death) = failed.as_ref().filter(|_| self.revivals.load(Ordering::SeqCst) != seen) {
            return Err(death.error());
        }
        let revived = self.replace_lost().await;
        *failed = revived.as_ref().err().map(Death::of);
        self.revivals.fetch_add(1, Ordering::SeqCst);
        revived
    }

    async fn replace_lost(&self) -> Result<()> {
        let alive = {
            let mut connections = self.connections();
            // The last one stays, dead or not, to tell why nothing can be sent.
            let alive: Vec<_> = connections.iter().filter(|connection| connection.load().is_ok()).cloned().collect();
            if !alive.is_empty() {
                connections.clone_from(&alive);
            }
            alive
        };
        if alive.is_empty() {
            let limit = self.options.handshake_timeout;
            let established = establish(&self.uri, self.security.as_ref(), &self.options, limit).await?;
            let connection = self.accept(established)?;
            *self.connections() = vec![connection];
        }
        self.connect_further().await
    }

    fn least_loaded(&self) -> Result<Arc<Connection>> {
        let connections = self.connections();
        let mut best = None;
        let mut lost = None;
        for connection in connections.iter() {
            match connection.load() {
                Ok(load) if best.as_ref().is_none_or(|(least, _)| load < *least) => best = Some((load, connection)),
                Ok(_) => {}
                Err(death) => lost = Some(death),
            }
        }
        match (best, lost) {
            (Some((_, connection)), _) => Ok(Arc::clone(connection)),
            (None, Some(death)) => Err(death.error()),
            (None, None) => Err(Error::new(ErrorKind::Disconnected, "the client was closed")),
        }
    }

    fn within_export(&self, range: GuestRange) -> Result<()> {
        if range.end().0 <= self.export.size {
            return Ok(());
        }
        let message = format!("the range ends at {}, past the export's {} bytes", range.end(), self.export.size);
        Err(Error::new(ErrorKind::Usage, message))
    }

    /// Room for a command that `bytes` will come back for.
    async fn permits(&self, bytes: u64) -> Result<Permits> {
        let closed = |_| Error::new(ErrorKind::Disconnected, "the client was closed");
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.options.max_bytes.max(MIN_BYTES));
        // Always in this order, so that nobody who holds bytes waits for a command's place.
        let command = Arc::clone(&self.commands).acquire_owned().await.map_err(closed)?;
        Ok((command, Arc::clone(&self.bytes).acquire_many_owned(bytes).await.map_err(closed)?))
    }

    /// Sends a command, again after a lost connection as long as the policy says so.
    async fn command(&self, command: Command, mut buffer: Vec<u8>) -> Result<Answer> {
        let bytes = if command.action == Action::Read { command.len } else { 0 };
        let (mut count, mut first) = (0_u32, None);
        loop {
            let permits = self.permits(bytes).await?;
            let outcome = match self.least_loaded() {
                Ok(connection) => {
                    connection.command(command, std::mem::take(&mut buffer), permits).await.map_err(|d| d.error())
                }
                Err(e) => {
                    drop(permits);
                    Err(e)
                }
            };
            let mut error = match outcome {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(refused)) => refused.into_error(),
                Err(error) => error,
            };
            loop {
                count = count.saturating_add(1);
                let lasting = first.get_or_insert_with(Instant::now).elapsed();
                let delay = match (error.kind(), &self.options.reconnect) {
                    (ErrorKind::Disconnected, Some(policy)) => policy.next(Failures { count, lasting }, &error),
                    _ => None,
                };
                let Some(delay) = delay else { return Err(error) };
                tokio::time::sleep(delay).await;
                match self.revive().await {
                    Ok(()) => break,
                    Err(e) => error = e,
                }
            }
        }
    }

    /// The range in whole blocks of the server's minimum size, as far as the export reaches: start and end.
    fn widened(&self, range: GuestRange) -> (u64, u64) {
        let (size, minimum) = (self.export.size, u64::from(self.export.block_sizes.minimum));
        let start = range.start().0 / minimum * minimum;
        (start, range.end().0.checked_next_multiple_of(minimum).unwrap_or(size).min(size))
    }

    /// The same, or an error where the range has bytes that no request may name.
    fn readable(&self, range: GuestRange) -> Result<(u64, u64)> {
        let (size, minimum) = (self.export.size, u64::from(self.export.block_sizes.minimum));
        let (start, end) = self.widened(range);
        if self.export.block_sizes_declared && end % minimum != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the export's last {} bytes are no whole block of the server's {minimum}", size % minimum),
            ));
        }
        Ok((start, end))
    }

    async fn read(&self, range: GuestRange, buffer: Vec<u8>) -> Result<Vec<u8>> {
        self.within_export(range)?;
        let longest = u64::from(self.options.max_bytes.max(MIN_BYTES));
        if range.len() > longest {
            return Err(Error::new(ErrorKind::Usage, format!("one read may be for {longest} bytes at most")));
        }
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let (start, end) = self.readable(range)?;
        let mut data = if end - start <= self.max_read {
            self.read_once(start, end - start, buffer).await?
        } else {
            self.read_in_pieces(start, end, buffer).await?
        };
        data.drain(..to_usize(range.start().0 - start));
        data.truncate(to_usize(range.len()));
        Ok(data)
    }

    async fn read_once(&self, offset: u64, len: u64, buffer: Vec<u8>) -> Result<Vec<u8>> {
        match self.command(Command { action: Action::Read, offset, len }, buffer).await? {
            Answer::Data(data) => Ok(data),
            Answer::Status(_) | Answer::Done => Err(wrong_answer()),
        }
    }

    /// One command after another: callers who want many in flight make many reads.
    async fn read_in_pieces(&self, start: u64, end: u64, mut buffer: Vec<u8>) -> Result<Vec<u8>> {
        buffer.clear();
        let mut piece = Vec::new();
        let mut at = start;
        while at < end {
            let len = self.max_read.min(end - at);
            piece = self.read_once(at, len, piece).await?;
            buffer.extend_from_slice(&piece);
            at += len;
        }
        Ok(buffer)
    }

    async fn trim(&self, range: GuestRange) -> Result<()> {
        self.within_export(range)?;
        let flags = self.export.flags;
        if !flags.has(ExportFlags::SEND_TRIM) || flags.has(ExportFlags::READ_ONLY) {
            return Err(Error::new(ErrorKind::Unsupported, "the server lets nobody trim this export"));
        }
        let minimum = u64::from(self.export.block_sizes.minimum);
        let Some(mut at) = range.start().0.checked_next_multiple_of(minimum) else { return Ok(()) };
        let end = range.end().0 / minimum * minimum;
        while at < end {
            let len = MAX_SHORT_LENGTH.min(end - at);
            match self.command(Command { action: Action::Trim, offset: at, len }, Vec::new()).await? {
                Answer::Done => at += len,
                Answer::Data(_) | Answer::Status(_) => return Err(wrong_answer()),
            }
        }
        Ok(())
    }

    async fn status_from(&self, at: u64, end: u64) -> Result<Vec<Vec<BlockExtent>>> {
        let (start, limit) = self.widened(GuestRange::between(GuestOffset(at), GuestOffset(end)));
        let answers = self.status_between(start, limit).await?;
        // A server that says nothing of its blocks may have them smaller than is assumed of it, and end an extent within one. Its
        // answer about that block then ends there again, so it is asked for what follows.
        let short =
            |extents: &Vec<BlockExtent>| extents.iter().fold(start, |end, extent| end.saturating_add(extent.len)) <= at;
        if start < at && !self.export.block_sizes_declared && answers.iter().any(short) {
            let answers = self.status_between(at, limit).await?;
            return answers.into_iter().map(|extents| trimmed(&extents, 0, end - at)).collect();
        }
        answers.into_iter().map(|extents| trimmed(&extents, at - start, end - start)).collect()
    }

    async fn status_between(&self, start: u64, limit: u64) -> Result<Vec<Vec<BlockExtent>>> {
        let longest = match self.export.headers {
            HeaderStyle::Extended => u64::MAX,
            HeaderStyle::Simple | HeaderStyle::Structured => MAX_SHORT_LENGTH,
        };
        let command = Command { action: Action::BlockStatus, offset: start, len: longest.min(limit - start) };
        match self.command(command, Vec::new()).await? {
            Answer::Status(answers) => Ok(answers),
            Answer::Data(_) | Answer::Done => Err(wrong_answer()),
        }
    }
}

/// The part of consecutive extents from `skip` bytes in to `end` bytes in, which may not be nothing.
fn trimmed(extents: &[BlockExtent], skip: u64, end: u64) -> Result<Vec<BlockExtent>> {
    let mut kept = Vec::with_capacity(extents.len());
    let mut at: u64 = 0;
    for extent in extents {
        let next = at.saturating_add(extent.len).min(end);
        let from = at.max(skip);
        if next > from {
            kept.push(BlockExtent { len: next - from, status: extent.status });
        }
        at = next;
    }
    if kept.is_empty() {
        return Err(Error::new(ErrorKind::Protocol, "the server's answer makes no progress"));
    }
    Ok(kept)
}

fn wrong_answer() -> Error {
    Error::new(ErrorKind::Protocol, "the answer is of the wrong kind")
}
