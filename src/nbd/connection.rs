//! One connection after its handshake: a task that writes commands, one that reads replies, one that watches the clock.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use tracing::debug;

use super::handshake::Established;
use super::options::Options;
use super::reply::{Action, Answer, Assembly, Command, ServerError};
use super::stream::{ReadHalf, WriteHalf};
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, Result};
use crate::format::nbd::constants::CMD_DISC;
use crate::format::nbd::{
    BlockStatus, ChunkHeader, ChunkKind, CommandFlags, ErrorChunk, HeaderStyle, MetaContext, OffsetHole, Request,
    ServerErrno, SimpleReply,
};

/// Bytes that headers and small payloads are read ahead; larger reads go past it.
const READ_AHEAD: usize = 32 << 10;
/// Bytes of requests that are written at once.
const WRITE_BATCH: usize = 4 << 10;
/// How long saying good-bye may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// Commands whose answer may have stragglers that are remembered.
const REMEMBERED: usize = 64;

/// What is in flight holds its share of the client's budget until its answer is complete.
pub(super) type Permits = (OwnedSemaphorePermit, OwnedSemaphorePermit);

type Outcome = Result<Answer, ServerError>;

/// Why a connection is dead, told to everyone who waits for it.
#[derive(Debug, Clone)]
pub(super) struct Death {
    kind: ErrorKind,
    why: Arc<str>,
}

impl Death {
    pub(super) fn of(error: &Error) -> Self {
        Self { kind: error.kind(), why: error.report().into() }
    }

    pub(super) fn error(&self) -> Error {
        Error::new(self.kind, "the connection is lost").with_source(self.clone())
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Death {}

/// A connection that commands can be sent on.
pub(super) struct Connection {
    shared: Arc<Shared>,
    requests: Option<mpsc::UnboundedSender<Request>>,
    writer: Option<JoinHandle<()>>,
    contexts: Vec<MetaContext>,
}

struct Shared {
    state: Mutex<State>,
    started: Instant,
    /// Milliseconds after `started` at which the last byte came in.
    heard: AtomicU64,
}

struct State {
    in_flight: HashMap<u64, Waiting>,
    next_cookie: u64,
    /// When the last answer was complete; before the first one, when the connection began.
    last_complete: Instant,
    death: Option<Death>,
    /// The connection's tasks, as long as it lives.
    tasks: Vec<AbortHandle>,
}

/// A command whose answer is not complete.
struct Waiting {
    command: Command,
    since: Instant,
    /// Not there while the reader adds to it.
    answer: Option<Pending>,
}

struct Pending {
    assembly: Assembly,
    done: oneshot::Sender<Outcome>,
    _permits: Permits,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and every state in it is a valid one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection for everyone. Dropping what waits tells it to look here for the reason.
    fn kill(&self, error: &Error) {
        let (waiting, tasks) = {
            let mut state = self.lock();
            if state.death.is_some() {
                return;
            }
            debug!(error = error.report(), "NBD connection is dead");
            state.death = Some(Death::of(error));
            (std::mem::take(&mut state.in_flight), std::mem::take(&mut state.tasks))
        };
        drop(waiting);
        // The one that calls this is among them, and has nothing left to wait for.
        tasks.iter().for_each(AbortHandle::abort);
    }

    fn since_heard(&self) -> Duration {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(heard)
    }
}

impl Connection {
    /// Starts the tasks of a connection whose handshake is over.
    pub(super) fn start(established: Established, options: &Options) -> Self {
        let Established { stream, style, contexts, .. } = established;
        let (read, write) = stream.split();
        let started = Instant::now();
        let state =
            State { in_flight: HashMap::new(), next_cookie: 1, last_complete: started, death: None, tasks: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), started, heard: AtomicU64::new(0) });
        let (requests, incoming) = mpsc::unbounded_channel();
        let stall = options.stall_timeout;
        let writer = tokio::spawn(write_requests(Arc::clone(&shared), write, style, stall, incoming));
        let heard = Heard { stream: read, shared: Arc::clone(&shared) };
        let stream = BufReader::with_capacity(READ_AHEAD, heard);
        let reader = Reader { stream, style, shared: Arc::clone(&shared), stragglers: VecDeque::new() };
        let reader = tokio::spawn(reader.run());
        let watchdog = tokio::spawn(watch(Arc::clone(&shared), stall, options.command_timeout));
        let tasks = [reader.abort_handle(), watchdog.abort_handle(), writer.abort_handle()];
        {
            let mut state = shared.lock();
            match state.death {
                Some(_) => tasks.iter().for_each(AbortHandle::abort),
                None => state.tasks.extend(tasks),
            }
        }
        Self { shared, requests: Some(requests), writer: Some(writer), contexts }
    }

    /// Commands whose answer is not complete, or why there can be no more.
    pub(super) fn load(&self) -> Result<usize, Death> {
        let state = self.shared.lock();
        match &state.death {
            Some(death) => Err(death.clone()),
            None => Ok(state.in_flight.len()),
        }
    }

    /// Sends a command and waits for its answer. A read's bytes go into `buffer`.
    ///
    /// The outer error is the connection's end, the inner one the server's answer. Who stops waiting leaves the answer
    /// to be taken in and thrown away.
    pub(super) async fn command(&self, command: Command, buffer: Vec<u8>, permits: Permits) -> Result<Outcome, Death> {
        let (done, outcome) = oneshot::channel();
        let assembly = Assembly::new(command, &self.contexts, buffer);
        {
            let mut state = self.shared.lock();
            if let Some(death) = &state.death {
                return Err(death.clone());
            }
            let cookie = state.next_cookie;
            state.next_cookie = cookie.wrapping_add(1);
            let answer = Some(Pending { assembly, done, _permits: permits });
            state.in_flight.insert(cookie, Waiting { command, since: Instant::now(), answer });
            let Command { offset, len, .. } = command;
            let request = Request { flags: CommandFlags::default(), command: command.number(), cookie, offset, len };
            // A writer that has ended has left the reason in the state.
            let _ = self.requests.as_ref().map(|requests| requests.send(request));
        }
        outcome.await.map_err(|_| {
            let closed = || Death { kind: ErrorKind::Disconnected, why: "the client was closed".into() };
            self.shared.lock().death.clone().unwrap_or_else(closed)
        })
    }

    /// Says good-bye and waits until that is sent.
    pub(super) async fn close(mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            let _ = timeout(FAREWELL, writer).await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let writer = self.writer.as_ref().map(JoinHandle::abort_handle).map(|writer| writer.id());
        // Unless the connection is dead already, the writer sees its channel close, says good-bye and ends by itself.
        self.shared.lock().tasks.retain(|task| Some(task.id()) != writer);
        self.shared.kill(&Error::new(ErrorKind::Disconnected, "the client was closed"));
    }
}

/// Writes requests, many at once where many wait, and the farewell when no more can come.
async fn write_requests(
    shared: Arc<Shared>,
    mut stream: WriteHalf,
    style: HeaderStyle,
    stall: Duration,
    mut incoming: mpsc::UnboundedReceiver<Request>,
) {
    let mut batch = Vec::with_capacity(WRITE_BATCH);
    while let Some(request) = incoming.recv().await {
        batch.clear();
        let mut encoded = request.encode(style, &mut batch);
        while batch.len() < WRITE_BATCH
            && encoded.is_ok()
            && let Ok(request) = incoming.try_recv()
        {
            encoded = request.encode(style, &mut batch);
        }
        let written = async {
            encoded?;
            stream.write_all(&batch).await.map_err(lost)?;
            stream.flush().await.map_err(lost)
        };
        let written = timeout(stall, written).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Disconnected, format!("the server has taken no command for {stall:?}")))
        });
        if let Err(e) = written {
            return shared.kill(&e);
        }
    }
    batch.clear();
    let farewell = Request { flags: CommandFlags::default(), command: CMD_DISC, cookie: 0, offset: 0, len: 0 };
    if farewell.encode(style, &mut batch).is_ok() {
        // The server does not answer it, and whether it arrives changes nothing.
        let _ = timeout(FAREWELL, async { (stream.write_all(&batch).await, stream.shutdown().await) }).await;
    }
}

/// Ends a connection that is silent, or that does not finish an answer.
async fn watch(shared: Arc<Shared>, stall: Duration, whole: Duration) {
    let tick = (stall.min(whole) / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        tokio::time::sleep(tick).await;
        let (oldest, last_complete) = {
            let state = shared.lock();
            if state.death.is_some() {
                return;
            }
            let oldest = state.in_flight.values().min_by_key(|waiting| waiting.since);
            (oldest.map(|waiting| (waiting.command, waiting.since)), state.last_complete)
        };
        let Some((command, since)) = oldest else { continue };
        let waited = since.elapsed();
        let error = if waited.min(shared.since_heard()) > stall {
            format!("the server has been silent for {stall:?} (waiting for the {command})")
        } else if waited.min(last_complete.elapsed()) > whole {
            // On a slow link a command waits for its turn: the time runs only while none is finished.
            format!("the server did not finish the {command} in {whole:?}")
        } else {
            continue;
        };
        return shared.kill(&Error::new(ErrorKind::Disconnected, error));
    }
}

/// A stream that notes when it last gave something.
struct Heard {
    stream: ReadHalf,
    shared: Arc<Shared>,
}

impl AsyncRead for Heard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            let now = u64::try_from(self.shared.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.shared.heard.store(now, Ordering::Relaxed);
        }
        polled
    }
}

/// Reads replies and puts each where its command waits.
struct Reader {
    stream: BufReader<Heard>,
    style: HeaderStyle,
    shared: Arc<Shared>,
    /// Cookies of failed block statuses, with how many chunks may still come for each; see [`Assembly::stragglers`].
    stragglers: VecDeque<(u64, usize)>,
}

fn broken(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

fn lost(e: io::Error) -> Error {
    let message = match e.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed the connection",
        _ => "the connection failed",
    };
    Error::new(ErrorKind::Disconnected, message).with_source(e)
}

impl Reader {
    async fn run(mut self) {
        loop {
            if let Err(e) = self.reply().await {
                return self.shared.kill(&e);
            }
        }
    }

    async fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).await.map_err(lost)?;
        Ok(bytes)
    }

    /// One reply, or one chunk of one.
    async fn reply(&mut self) -> Result<()> {
        let magic = u32::from_be_bytes(self.array().await?);
        match (self.style, magic) {
            (HeaderStyle::Simple | HeaderStyle::Structured, SimpleReply::MAGIC) => {
                let reply = SimpleReply::parse(&self.array().await?)?;
                self.whole(reply.cookie, async |reader, pending| reader.simple(reply, pending).await).await
            }
            (HeaderStyle::Structured, ChunkHeader::STRUCTURED_MAGIC) => {
                let header = ChunkHeader::parse_structured(&self.array().await?)?;
                self.part(header).await
            }
            (HeaderStyle::Extended, ChunkHeader::EXTENDED_MAGIC) => {
                let header = ChunkHeader::parse_extended(&self.array().await?)?;
                self.part(header).await
            }
            (style, other) => Err(broken(format!("a reply has the magic {other:#010x}, wrong for {style:?} replies"))),
        }
    }

    /// A chunk: of an answer, or one that comes after its answer's end.
    async fn part(&mut self, header: ChunkHeader) -> Result<()> {
        if matches!(header.kind, ChunkKind::BlockStatus | ChunkKind::BlockStatusExtended)
            && let Some((_, left)) = self.stragglers.iter_mut().find(|(cookie, _)| *cookie == header.cookie)
            && *left > 0
        {
            *left -= 1;
            let mut payload = (&mut self.stream).take(header.len);
            let skipped = tokio::io::copy_buf(&mut payload, &mut tokio::io::sink()).await.map_err(lost)?;
            return if skipped == header.len { Ok(()) } else { Err(lost(io::ErrorKind::UnexpectedEof.into())) };
        }
        self.whole(header.cookie, async |reader, pending| reader.chunk(header, pending).await).await
    }

    /// Finds what waits under a cookie, lets `add` add to it, and hands it over when `add` says that it is complete.
    async fn whole(
        &mut self,
        cookie: u64,
        add: impl AsyncFnOnce(&mut Self, &mut Assembly) -> Result<bool>,
    ) -> Result<()> {
        let pending = self.shared.lock().in_flight.get_mut(&cookie).and_then(|waiting| waiting.answer.take());
        let mut pending =
            pending.ok_or_else(|| broken(format!("a reply is to the cookie {cookie}, under which nothing waits")))?;
        let command = pending.assembly.command();
        let in_answer = |e: Error| match e.kind() {
            ErrorKind::Protocol => e.context(format!("in the answer to the {command}")),
            _ => e,
        };
        if !add(self, &mut pending.assembly).await.map_err(in_answer)? {
            if let Some(waiting) = self.shared.lock().in_flight.get_mut(&cookie) {
                waiting.answer = Some(pending);
            }
            return Ok(());
        }
        let stragglers = pending.assembly.stragglers();
        if stragglers > 0 {
            self.stragglers.truncate(REMEMBERED - 1);
            self.stragglers.push_front((cookie, stragglers));
        }
        let outcome = pending.assembly.finish().map_err(in_answer)?;
        {
            let mut state = self.shared.lock();
            state.in_flight.remove(&cookie);
            state.last_complete = Instant::now();
        }
        let leaving = matches!(&outcome, Err(error) if error.errno == ServerErrno::ESHUTDOWN);
        if leaving {
            self.shared.kill(&Error::new(ErrorKind::Disconnected, "the server is shutting down"));
        }
        // Whoever asked may have stopped waiting.
        let _ = pending.done.send(outcome);
        Ok(())
    }

    async fn simple(&mut self, reply: SimpleReply, assembly: &mut Assembly) -> Result<bool> {
        let command = assembly.command();
        match (reply.error, command.action) {
            (_, Action::Read) if self.style != HeaderStyle::Simple => {
                Err(broken("a read was answered with a simple reply although structured ones were agreed on"))
            }
            (Some(errno), _) => {
                assembly.fail(ErrorChunk { errno, text: String::new(), offset: None })?;
                Ok(true)
            }
            (None, Action::Read) => {
                self.data(command.offset, command.len, assembly).await?;
                Ok(true)
            }
            (None, Action::Trim | Action::BlockStatus) => Ok(true),
        }
    }

    async fn chunk(&mut self, header: ChunkHeader, assembly: &mut Assembly) -> Result<bool> {
        let asked = assembly.command().offset;
        if let Some(offset) = header.offset
            && offset != asked
        {
            return Err(broken(format!("it names the offset {offset:#x}, not that of the command")));
        }
        match header.kind {
            ChunkKind::None => {}
            ChunkKind::OffsetData => {
                let offset = u64::from_be_bytes(self.array().await?);
                self.data(offset, header.len.saturating_sub(OffsetHole::OFFSET_LEN), assembly).await?;
            }
            ChunkKind::OffsetHole => {
                let hole = OffsetHole::parse(&self.payload(header.len).await?)?;
                assembly.zeroes(hole.offset, u64::from(hole.len))?;
            }
            ChunkKind::BlockStatus | ChunkKind::BlockStatusExtended => {
                let extended = header.kind == ChunkKind::BlockStatusExtended;
                if extended != (self.style == HeaderStyle::Extended) {
                    return Err(broken("a block status has fields of the width that was not agreed on"));
                }
                if assembly.command().action != Action::BlockStatus {
                    return Err(broken("the answer carries a block status that was not asked for"));
                }
                let payload = self.payload(header.len).await?;
                assembly.status(BlockStatus::parse(extended, &payload)?)?;
            }
            ChunkKind::Error(kind) => {
                let payload = self.payload(header.len).await?;
                assembly.fail(ErrorChunk::parse(kind, &payload)?)?;
            }
        }
        Ok(header.done)
    }

    /// A payload whose length its header has bounded. Memory grows only as it comes in.
    async fn payload(&mut self, len: u64) -> Result<Vec<u8>> {
        let mut payload = Vec::new();
        (&mut self.stream).take(len).read_to_end(&mut payload).await.map_err(lost)?;
        if payload.len() == to_usize(len) { Ok(payload) } else { Err(lost(io::ErrorKind::UnexpectedEof.into())) }
    }

    /// Data of a read, straight into its buffer.
    async fn data(&mut self, offset: u64, len: u64, assembly: &mut Assembly) -> Result<()> {
        let (place, buffer) = assembly.claim(offset, len)?;
        let end = place.at.saturating_add(place.len);
        let present = buffer.len().min(end);
        if let Some(present) = buffer.get_mut(place.at..present) {
            self.stream.read_exact(present).await.map_err(lost)?;
        }
        let mut rest = (&mut self.stream).take(end.saturating_sub(buffer.len()) as u64);
        while buffer.len() < end {
            if rest.read_buf(buffer).await.map_err(lost)? == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }
}
