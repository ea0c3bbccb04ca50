//! A fake NBD server on a Unix domain socket: it plays the handshake honestly as far as a test lets it, and then whatever
//! the test's script says, byte for byte.

// Each test binary compiles this for itself and uses a part of it.
#![allow(dead_code)]

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use annals::nbd::constants as nbd;

/// Bytes of the fake disk unless a test says otherwise.
pub(crate) const SIZE: u64 = 1 << 20;

/// The byte at each offset of the honest fake disk.
pub(crate) fn byte_at(offset: u64) -> u8 {
    (offset ^ (offset >> 9)) as u8
}

/// The honest answer to a read.
pub(crate) fn bytes_at(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(byte_at).collect()
}

/// What the server offers in its handshake.
#[derive(Clone)]
pub(crate) struct Offer {
    pub(crate) size: u64,
    pub(crate) flags: u16,
    pub(crate) greeting: u16,
    pub(crate) structured: bool,
    pub(crate) extended: bool,
    pub(crate) go: bool,
    /// Names with the ids that they get.
    pub(crate) contexts: Vec<(u32, String)>,
    pub(crate) block_sizes: Option<[u32; 3]>,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            size: SIZE,
            flags: 0x21,
            greeting: 3,
            structured: true,
            extended: false,
            go: true,
            contexts: Vec::new(),
            block_sizes: Some([1, 4096, 1 << 20]),
        }
    }
}

impl Offer {
    pub(crate) fn simple() -> Self {
        Self { structured: false, ..Self::default() }
    }

    pub(crate) fn extended() -> Self {
        Self { extended: true, ..Self::default() }
    }

    pub(crate) fn with_contexts(self, contexts: &[(u32, &str)]) -> Self {
        Self { contexts: contexts.iter().map(|(id, name)| (*id, (*name).to_owned())).collect(), ..self }
    }
}

/// A request as the fake server reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// One connection, from the server's side.
pub(crate) struct Session {
    stream: UnixStream,
    /// The how many-eth connection it is, from 0.
    pub(crate) number: usize,
    extended: bool,
    /// The ids of the contexts that the client has selected.
    pub(crate) selected: Vec<u32>,
}

impl Session {
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub(crate) fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.receive(2)?.try_into().unwrap()))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.receive(4)?.try_into().unwrap()))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.receive(8)?.try_into().unwrap()))
    }

    /// Bytes that the client has sent and that were not read yet.
    pub(crate) fn pending(&self) -> io::Result<u64> {
        Ok(rustix::io::ioctl_fionread(&self.stream)?)
    }

    /// Waits until the client closes.
    pub(crate) fn wait_for_end(&mut self) -> io::Result<()> {
        io::copy(&mut self.stream, &mut io::sink()).map(|_| ())
    }

    /// The greeting, and the client's answer to it.
    pub(crate) fn greet(&mut self, flags: u16) -> io::Result<u32> {
        self.send(b"NBDMAGICIHAVEOPT")?;
        self.send(&flags.to_be_bytes())?;
        self.u32()
    }

    /// The next option with its data.
    pub(crate) fn option(&mut self) -> io::Result<(u32, Vec<u8>)> {
        assert_eq!(self.u64()?, nbd::OPTION_MAGIC);
        let (option, len) = (self.u32()?, self.u32()?);
        Ok((option, self.receive(len as usize)?))
    }

    pub(crate) fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut reply = nbd::OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        reply.extend(option.to_be_bytes());
        reply.extend(kind.to_be_bytes());
        reply.extend((data.len() as u32).to_be_bytes());
        reply.extend(data);
        self.send(&reply)
    }

    /// Refuses options until the one wanted comes; its data is returned.
    pub(crate) fn refuse_until(&mut self, wanted: u32) -> io::Result<Vec<u8>> {
        loop {
            let (option, data) = self.option()?;
            if option == wanted {
                return Ok(data);
            }
            self.reply(option, nbd::REP_ERR_UNSUP, b"")?;
        }
    }

    /// An honest handshake, until the client has entered the export.
    pub(crate) fn handshake(&mut self, offer: &Offer) -> io::Result<()> {
        self.greet(offer.greeting)?;
        loop {
            let (option, data) = self.option()?;
            match option {
                nbd::OPT_EXTENDED_HEADERS if offer.extended => {
                    self.extended = true;
                    self.reply(option, nbd::REP_ACK, b"")?;
                }
                nbd::OPT_STRUCTURED_REPLY if offer.structured => self.reply(option, nbd::REP_ACK, b"")?,
                nbd::OPT_SET_META_CONTEXT | nbd::OPT_LIST_META_CONTEXT if offer.structured || offer.extended => {
                    self.selected.clear();
                    for (id, name) in &offer.contexts {
                        let asked = data.windows(name.len()).any(|window| window == name.as_bytes());
                        if asked {
                            self.selected.push(*id);
                        }
                        if asked || option == nbd::OPT_LIST_META_CONTEXT {
                            self.reply(option, nbd::REP_META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()].concat())?;
                        }
                    }
                    self.reply(option, nbd::REP_ACK, b"")?;
                }
                nbd::OPT_INFO | nbd::OPT_GO if offer.go => {
                    self.info(option, offer)?;
                    self.reply(option, nbd::REP_ACK, b"")?;
                    if option == nbd::OPT_GO {
                        return Ok(());
                    }
                }
                nbd::OPT_EXPORT_NAME => {
                    self.send(&[&offer.size.to_be_bytes()[..], &offer.flags.to_be_bytes()[..]].concat())?;
                    if offer.greeting & 2 == 0 {
                        self.send(&[0; 124])?;
                    }
                    return Ok(());
                }
                _ => self.reply(option, nbd::REP_ERR_UNSUP, b"")?,
            }
        }
    }

    /// The facts of an export, without the acknowledgement.
    pub(crate) fn info(&mut self, option: u32, offer: &Offer) -> io::Result<()> {
        let export = [&[0, 0][..], &offer.size.to_be_bytes(), &offer.flags.to_be_bytes()].concat();
        self.reply(option, nbd::REP_INFO, &export)?;
        if let Some(sizes) = offer.block_sizes {
            let sizes = sizes.map(u32::to_be_bytes).concat();
            self.reply(option, nbd::REP_INFO, &[&[0, 3][..], &sizes].concat())?;
        }
        Ok(())
    }

    /// The next request; the client's farewell is the end of the stream.
    pub(crate) fn request(&mut self) -> io::Result<Asked> {
        let magic = if self.extended { nbd::EXTENDED_REQUEST_MAGIC } else { nbd::REQUEST_MAGIC };
        assert_eq!(self.u32()?, magic);
        let _flags = self.u16()?;
        let (command, cookie, offset) = (self.u16()?, self.u64()?, self.u64()?);
        let len = if self.extended { self.u64()? } else { u64::from(self.u32()?) };
        if command == nbd::CMD_DISC {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Asked { command, cookie, offset, len })
    }

    pub(crate) fn simple(&mut self, cookie: u64, error: u32, data: &[u8]) -> io::Result<()> {
        let mut reply = nbd::SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
        reply.extend(error.to_be_bytes());
        reply.extend(cookie.to_be_bytes());
        reply.extend(data);
        self.send(&reply)
    }

    /// A chunk's header that declares `len` bytes.
    pub(crate) fn chunk_header(&mut self, asked: Asked, done: bool, kind: u16, len: u64) -> io::Result<()> {
        let mut reply = Vec::new();
        let magic = if self.extended { nbd::EXTENDED_REPLY_MAGIC } else { nbd::STRUCTURED_REPLY_MAGIC };
        reply.extend(magic.to_be_bytes());
        reply.extend(u16::from(done).to_be_bytes());
        reply.extend(kind.to_be_bytes());
        reply.extend(asked.cookie.to_be_bytes());
        if self.extended {
            reply.extend(asked.offset.to_be_bytes());
            reply.extend(len.to_be_bytes());
        } else {
            reply.extend((len as u32).to_be_bytes());
        }
        self.send(&reply)
    }

    pub(crate) fn chunk(&mut self, asked: Asked, done: bool, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.chunk_header(asked, done, kind, payload.len() as u64)?;
        self.send(payload)
    }

    pub(crate) fn data(&mut self, asked: Asked, done: bool, offset: u64, data: &[u8]) -> io::Result<()> {
        self.chunk(asked, done, nbd::REPLY_OFFSET_DATA, &[&offset.to_be_bytes(), data].concat())
    }

    pub(crate) fn hole(&mut self, asked: Asked, done: bool, offset: u64, len: u32) -> io::Result<()> {
        self.chunk(asked, done, nbd::REPLY_OFFSET_HOLE, &[&offset.to_be_bytes()[..], &len.to_be_bytes()].concat())
    }

    /// One context's status, in the width that was agreed on.
    pub(crate) fn status(&mut self, asked: Asked, done: bool, context: u32, extents: &[(u64, u64)]) -> io::Result<()> {
        let mut payload = context.to_be_bytes().to_vec();
        if self.extended {
            payload.extend((extents.len() as u32).to_be_bytes());
            payload.extend(extents.iter().flat_map(|(len, status)| [len.to_be_bytes(), status.to_be_bytes()].concat()));
            return self.chunk(asked, done, nbd::REPLY_BLOCK_STATUS_EXT, &payload);
        }
        for (len, status) in extents {
            payload.extend((*len as u32).to_be_bytes());
            payload.extend((*status as u32).to_be_bytes());
        }
        self.chunk(asked, done, nbd::REPLY_BLOCK_STATUS, &payload)
    }

    pub(crate) fn error(&mut self, asked: Asked, done: bool, kind: u16, errno: u32, text: &str) -> io::Result<()> {
        let len = text.len() as u16;
        let payload = [&errno.to_be_bytes()[..], &len.to_be_bytes(), text.as_bytes()].concat();
        self.chunk(asked, done, nbd::REPLY_FLAG_ERROR | kind, &payload)
    }

    /// The honest answer to a read, in the style that was agreed on.
    pub(crate) fn answer_read(&mut self, offer: &Offer, asked: Asked) -> io::Result<()> {
        let data = bytes_at(asked.offset, asked.len);
        if offer.structured || offer.extended {
            self.data(asked, true, asked.offset, &data)
        } else {
            self.simple(asked.cookie, 0, &data)
        }
    }

    /// Answers reads honestly until the client leaves.
    pub(crate) fn serve_reads(&mut self, offer: &Offer) -> io::Result<()> {
        loop {
            let asked = self.request()?;
            assert_eq!(asked.command, nbd::CMD_READ, "{asked:?}");
            self.answer_read(offer, asked)?;
        }
    }
}

/// The ids of the contexts in [`Offer::backup`].
pub(crate) const ALLOCATION: u32 = 7;
pub(crate) const DIRTY: u32 = 8;
/// The fake disk's dirty range in [`Session::serve_backup`].
pub(crate) const CHANGED: std::ops::Range<u64> = 65536..196_608;

impl Offer {
    /// What a source of backups offers: allocation and the dirty bitmap `bm`.
    pub(crate) fn backup() -> Self {
        // Read-only, as libvirt's are.
        Self { flags: 3, ..Self::default() }
            .with_contexts(&[(ALLOCATION, "base:allocation"), (DIRTY, "qemu:dirty-bitmap:bm")])
    }
}

impl Session {
    /// The honest answer to a block status: all is data, and [`CHANGED`] is dirty.
    pub(crate) fn answer_status(&mut self, asked: Asked) -> io::Result<()> {
        let end = asked.offset + asked.len;
        let cuts = [asked.offset, CHANGED.start, CHANGED.end, end].map(|cut| cut.clamp(asked.offset, end));
        let selected = self.selected.clone();
        for (index, id) in selected.iter().enumerate() {
            let extents: Vec<_> = if *id == DIRTY {
                cuts.windows(2).zip([0, 1, 0]).map(|(cut, status)| (cut[1] - cut[0], status)).collect()
            } else {
                vec![(asked.len, 0)]
            };
            let extents: Vec<_> = extents.into_iter().filter(|(len, _)| *len > 0).collect();
            self.status(asked, index + 1 == selected.len(), *id, &extents)?;
        }
        Ok(())
    }

    /// The honest answer to whatever a backup asks.
    pub(crate) fn answer(&mut self, offer: &Offer, asked: Asked) -> io::Result<()> {
        match asked.command {
            nbd::CMD_READ => self.answer_read(offer, asked),
            nbd::CMD_BLOCK_STATUS => self.answer_status(asked),
            other => panic!("a backup asks for command {other}"),
        }
    }

    /// Answers a backup honestly until it leaves.
    pub(crate) fn serve_backup(&mut self, offer: &Offer) -> io::Result<()> {
        loop {
            let asked = self.request()?;
            self.answer(offer, asked)?;
        }
    }
}

/// A running fake server.
pub(crate) struct FakeServer {
    directory: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl FakeServer {
    /// Runs `script` for each connection in a thread of its own. An I/O error in it is the client's leaving.
    pub(crate) fn start(script: impl Fn(&mut Session) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("nbd.sock")).unwrap();
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopping, counter) = (Arc::clone(&stop), Arc::clone(&accepted));
        let script = Arc::new(script);
        let thread = std::thread::spawn(move || {
            let mut sessions = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let script = Arc::clone(&script);
                sessions.push(std::thread::spawn(move || {
                    let _ = script(&mut Session { stream, number, extended: false, selected: Vec::new() });
                }));
            }
            let failed = sessions.into_iter().filter_map(|session| session.join().err()).count();
            assert_eq!(failed, 0, "the fake server's script saw something wrong");
        });
        Self { directory, stop, accepted, thread: Some(thread) }
    }

    /// A server whose script begins after an honest handshake.
    pub(crate) fn after(offer: Offer, script: impl Fn(&mut Session) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::start(move |session| {
            session.handshake(&offer)?;
            script(session)
        })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    /// The URI of an export of that name.
    pub(crate) fn uri(&self, export: &str) -> annals::nbd::Uri {
        annals::nbd::Uri::parse(&format!("nbd+unix:///{export}?socket={}", self.socket().display())).unwrap()
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(self.socket());
        let result = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(result, Some(Ok(()))), "the fake server's script saw something wrong");
        }
    }
}
