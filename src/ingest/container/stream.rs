//! Carries the plan out: tar's bytes, at the pace that was asked for, into the archive or through the packer into the image.

use std::io::{BufReader, ErrorKind as IoKind, Read, Write};
use std::process::{ChildStdin, ChildStdout, ExitStatus, Stdio};

use tokio::runtime::Handle;

use super::gnutar::{self, TAR};
use super::numeric::NumericAcls;
use super::plan::PACKER;
use super::report::{Lines, Report};
use super::{ArchivePlan, Source};
use crate::archive::ArchiveFormat;
use crate::base::{Error, ErrorKind, GuestOffset, HostOffset, Result};
use crate::format::hash::{CHUNK_BYTES, FileHashes, Hash, chunk_value, whole};
use crate::ingest::events::{Event, Journal};
use crate::ingest::pace::Pace;
use crate::ingest::program::{Running, ended};
use crate::ingest::session::TICK;
use crate::ingest::source::blocking;
use crate::storage::OutsideDisk;
use crate::storage::write::NewFile;

/// Most bytes of what the packer says that are kept.
const PACKER_WORDS: u64 = 16 << 10;
/// A file system that has less left than this, in bytes, has no room for what the packer writes at once.
const ALMOST_FULL: u64 = 1 << 20;
/// Bytes that a pipe is asked to hold, so that whoever writes need not wait for each turn of whoever reads.
const PIPE_BYTES: usize = 1 << 20;

/// One archive that is being made.
pub(super) struct Stream<'a> {
    pub(super) source: &'a Source,
    pub(super) plan: &'a ArchivePlan,
    pub(super) bytes_per_second: Option<u64>,
    pub(super) report: &'a Report,
}

/// How the bytes came to an end.
enum Pumped {
    /// All of them are where they belong.
    All,
    /// The packer takes no more; it knows why.
    PackerGone,
}

impl Stream<'_> {
    /// Fills `file`, which is on the medium when this returns, and says what it hashes to.
    pub(super) async fn run(&self, file: NewFile, journal: &Journal<'_>) -> Result<FileHashes> {
        let making = self.make(file);
        tokio::pin!(making);
        let mut tick = tokio::time::interval(TICK);
        let tell = || {
            journal.tell(&Event::ArchiveProgress {
                done: self.report.done().min(self.plan.bytes),
                total: self.plan.bytes,
            });
        };
        let made = loop {
            tokio::select! {
                made = &mut making => break made,
                _ = tick.tick() => tell(),
            }
        };
        // What tar had to say belongs to the log, and to that of a failure all the more.
        tell_lines(&self.report.notes(), journal, |message| Event::Note { message });
        tell_lines(&self.report.warnings(), journal, |message| Event::Warning { message });
        tell_lines(&self.report.unreadable(), journal, |message| Event::Unreadable { message });
        // The run fails for these, and its error names but a few.
        tell_lines(&self.report.damaged(), journal, |message| Event::Unreadable { message });
        if made.is_ok() {
            if let members @ 1.. = self.report.unreadable_members() {
                let message = format!(
                    "{members} {} not be read and {} left out, or without attributes; backup.log says which and why",
                    if members == 1 { "path could" } else { "paths could" },
                    if members == 1 { "is" } else { "are" },
                );
                journal.tell(&Event::Warning { message });
            }
            journal.tell(&Event::ArchiveProgress { done: self.plan.bytes, total: self.plan.bytes });
        }
        made
    }

    async fn make(&self, file: NewFile) -> Result<FileHashes> {
        let mut command = TAR.command()?;
        gnutar::arguments(&mut command, &self.source.tree, &self.source.excludes, false);
        let mut tar = TAR.start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let (stdout, stderr) = (tar.child.stdout.take(), tar.child.stderr.take());
        let (stdout, stderr) = (tar.pipe(stdout)?, tar.pipe(stderr)?);
        // A smaller pipe does as well.
        let _ = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_BYTES);
        let said = self.report.clone();
        let listening = blocking(move || said.listen(stderr));
        let reader = Reader {
            pipe: NumericAcls::new(
                BufReader::with_capacity(PIPE_BYTES, stdout),
                self.plan.format == ArchiveFormat::Squashfs,
            ),
            report: self.report.clone(),
            pace: self.bytes_per_second.map(Pace::new),
            handle: Handle::current(),
        };
        let hashes = match self.plan.format {
            ArchiveFormat::Tar => {
                let (written, listened) = tokio::join!(blocking(move || store(reader, &file)), listening);
                // That a file took no more is why tar was ended; otherwise tar knows best.
                let hashes = written?;
                listened?;
                self.report.judge(tar.wait()?)?;
                hashes
            }
            ArchiveFormat::Squashfs => {
                let mut packer = start_packer(&file)?;
                let (input, words) = (packer.child.stdin.take(), packer.child.stderr.take());
                let (input, words) = (packer.pipe(input)?, packer.pipe(words)?);
                let _ = rustix::pipe::fcntl_setpipe_size(&input, PIPE_BYTES);
                let (pumped, listened, words) =
                    tokio::join!(blocking(move || pump(reader, input)), listening, blocking(move || Ok(hear(words))));
                let (pumped, words) = (pumped?, words?);
                listened?;
                let (of_tar, of_packer) = (tar.wait()?, packer.wait()?);
                // Ended before its input did, the packer says why; otherwise an incomplete input is tar's to explain.
                if let Pumped::All = pumped {
                    self.report.judge(of_tar)?;
                }
                self.check_acls()?;
                if !of_packer.success() || matches!(pumped, Pumped::PackerGone) {
                    return Err(packer_failed(of_packer, &words, &file));
                }
                blocking(move || settle(&file)).await?
            }
        };
        Ok(hashes)
    }

    /// Refuses what no image can hold: that nothing has an ACL was known when this began, and may be so no more.
    fn check_acls(&self) -> Result<()> {
        let Some(name) = self.report.with_acl() else { return Ok(()) };
        let message = format!("{name} got a POSIX ACL while the backup was made, which squashfs cannot hold");
        Err(Error::new(ErrorKind::Changed, message).with_hint("try again with --format auto"))
    }
}

fn tell_lines(lines: &Lines, journal: &Journal<'_>, event: impl Fn(String) -> Event) {
    lines.first.iter().for_each(|line| journal.tell(&event(line.clone())));
    if lines.more > 0 {
        journal.tell(&event(format!("and {} more like these", lines.more)));
    }
}

/// What tar writes.
struct Reader {
    pipe: NumericAcls<BufReader<ChildStdout>>,
    report: Report,
    pace: Option<Pace>,
    handle: Handle,
}

impl Reader {
    /// Fills as much of `buf` as there is before the end; reads no faster than the pace.
    fn fill(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.pipe.read(rest) {
                Ok(0) => {
                    let unclear = std::mem::take(&mut self.pipe.unclear);
                    if unclear > 0 {
                        self.report.warn(&format!("{unclear} members have ACLs that tell users by name alone"));
                    }
                    break;
                }
                Ok(read) => {
                    for doubt in self.pipe.doubts.drain(..) {
                        let name = String::from_utf8_lossy(&doubt.name);
                        self.report.doubt(&doubt, &format!("{name}: file changed as its holes were looked for"));
                    }
                    if let Some(pace) = &self.pace {
                        self.handle.block_on(pace.take(read as u64));
                    }
                    self.report.streamed(read);
                    done += read;
                }
                Err(e) if e.kind() == IoKind::Interrupted => {}
                Err(e) => return Err(Error::io("cannot read what tar writes", e)),
            }
        }
        Ok(done)
    }
}

/// Hashes a file that comes in order.
#[derive(Default)]
struct Hasher {
    chunks: Vec<Hash>,
    size: u64,
    /// The first chunk may turn out to be the whole file, which is hashed in another way.
    first: Vec<u8>,
}

impl Hasher {
    /// Takes the next chunk; all but the last are of full length.
    fn add(&mut self, chunk: &[u8]) {
        if self.size == 0 {
            self.first = chunk.to_vec();
        }
        self.chunks.push(chunk_value(self.chunks.len() as u64, chunk));
        self.size = self.size.saturating_add(chunk.len() as u64);
    }

    fn finish(self) -> Result<FileHashes> {
        match self.chunks.len() {
            0 | 1 => {
                let file = whole(&self.first);
                Ok(FileHashes { file, size: self.size, chunks: vec![file] })
            }
            _ => FileHashes::of_chunks(self.chunks, self.size),
        }
    }
}

/// Writes all of it into `file`, in order.
fn store(mut reader: Reader, file: &NewFile) -> Result<FileHashes> {
    let mut hasher = Hasher::default();
    let mut buf = vec![0; CHUNK_BYTES];
    loop {
        let filled = reader.fill(&mut buf)?;
        let Some(chunk) = buf.get(..filled).filter(|chunk| !chunk.is_empty()) else { break };
        file.write_at(chunk, HostOffset(hasher.size))?;
        hasher.add(chunk);
    }
    file.sync()?;
    hasher.finish()
}

/// Starts the packer, which writes over `file`. It takes its input to be whole wherever that ends.
fn start_packer(file: &NewFile) -> Result<Running> {
    let mut command = PACKER.command()?;
    // What cannot be kept is to end it, not to be passed over.
    command.args(["--quiet", "--no-skip", "--force", "--compressor", "zstd"]);
    command.args(["--comp-extra", &format!("level={}", zstd::DEFAULT_COMPRESSION_LEVEL)]);
    command.arg("--").arg(file.path());
    PACKER.start(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()))
}

/// Hands all of it to the packer.
fn pump(mut reader: Reader, mut input: ChildStdin) -> Result<Pumped> {
    let mut buf = vec![0; PIPE_BYTES];
    loop {
        let filled = reader.fill(&mut buf)?;
        match buf.get(..filled).filter(|piece| !piece.is_empty()) {
            None => return Ok(Pumped::All),
            Some(piece) => match input.write_all(piece) {
                Ok(()) => {}
                Err(e) if e.kind() == IoKind::BrokenPipe => return Ok(Pumped::PackerGone),
                Err(e) => return Err(Error::io("cannot write to the packer", e)),
            },
        }
    }
}

/// What the packer says, up to a limit; the rest is read all the same, or it would wait.
fn hear(mut words: impl Read) -> String {
    let mut kept = Vec::new();
    // Words that cannot be read are as good as none: the way it ends counts.
    let _ = words.by_ref().take(PACKER_WORDS).read_to_end(&mut kept);
    let _ = std::io::copy(&mut words, &mut std::io::sink());
    String::from_utf8_lossy(&kept).trim().replace('\n', "; ")
}

/// The packer says of every write that fails that it is an "I/O error"; on a file system that is full, that is why.
fn packer_failed(status: ExitStatus, words: &str, file: &NewFile) -> Error {
    let why = if words.is_empty() { ended(status) } else { format!("failed: {words}") };
    let message = format!("{} {why}", PACKER.name);
    match file.space_left() {
        Ok(0..ALMOST_FULL) => Error::io(message, rustix::io::Errno::NOSPC).with_hint("the store's file system is full"),
        Ok(_) | Err(_) => Error::new(ErrorKind::Io, message),
    }
}

/// Brings to the medium what the packer wrote, and hashes it.
fn settle(file: &NewFile) -> Result<FileHashes> {
    file.sync()?;
    let image = OutsideDisk::open(file.path())?;
    let (mut hasher, mut buf) = (Hasher::default(), vec![0; CHUNK_BYTES]);
    while let left @ 1.. = image.size().saturating_sub(hasher.size) {
        let len = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        let chunk = buf.get_mut(..len).unwrap_or_default();
        image.read_exact_at(chunk, GuestOffset(hasher.size))?;
        hasher.add(chunk);
    }
    hasher.finish()
}
