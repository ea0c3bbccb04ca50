//! The records of which an index is made.

use crate::archive::node::Kind;
use crate::base::FileTime;
use crate::format::tar::Xattr;

/// What is known of one node without its extras.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    /// Of a directory: 0.
    pub(super) size: u64,
    /// Of a regular file, where its data is in the archive; of a directory, its first name and how many there are; of a device,
    /// its numbers. Two halves in the latter cases: see [`halves`].
    pub(super) place: u64,
    pub(super) mtime: FileTime,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    /// Where in the section of extras its own are, plus one; 0 for none.
    pub(super) extra: u32,
    pub(super) permissions: u16,
    pub(super) kind: Kind,
    /// Whether its extras tell of extents.
    pub(super) sparse: bool,
}

/// Two 32-bit numbers in one.
pub(super) fn join(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The two 32-bit numbers in one.
pub(super) fn halves(joined: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = joined.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Directory => 0,
        Kind::Regular => 1,
        Kind::Symlink => 2,
        Kind::CharDevice => 3,
        Kind::BlockDevice => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
    }
}

fn kind_of(code: u8) -> Option<Kind> {
    [Kind::Directory, Kind::Regular, Kind::Symlink, Kind::CharDevice, Kind::BlockDevice, Kind::Fifo, Kind::Socket]
        .get(usize::from(code))
        .copied()
}

pub(super) const NODE: usize = 48;

impl Node {
    pub(super) fn to_bytes(self) -> [u8; NODE] {
        let mut out = Writer::default();
        out.u64(self.size);
        out.u64(self.place);
        out.time(self.mtime);
        out.u32(self.uid);
        out.u32(self.gid);
        out.u32(self.links);
        out.u32(self.extra);
        out.bytes(&self.permissions.to_le_bytes());
        out.bytes(&[kind_code(self.kind), u8::from(self.sparse)]);
        let mut bytes = [0; NODE];
        bytes.iter_mut().zip(&out.0).for_each(|(to, from)| *to = *from);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; NODE]) -> Option<Self> {
        let mut from = Reader(bytes);
        let (size, place, mtime) = (from.u64()?, from.u64()?, from.time()?);
        let (uid, gid, links, extra) = (from.u32()?, from.u32()?, from.u32()?, from.u32()?);
        let permissions = from.u16()?;
        let [kind, sparse] = *from.take(2)?.first_chunk()?;
        Some(Self {
            size,
            place,
            mtime,
            uid,
            gid,
            links,
            extra,
            permissions,
            kind: kind_of(kind)?,
            sparse: sparse != 0,
        })
    }
}

pub(super) const NAME: usize = 12;

/// One name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) text: u32,
    pub(super) node: u32,
    pub(super) len: u8,
    pub(super) kind: Kind,
}

impl Name {
    pub(super) fn to_bytes(self) -> [u8; NAME] {
        let [a, b, c, d] = self.text.to_le_bytes();
        let [e, f, g, h] = self.node.to_le_bytes();
        [a, b, c, d, e, f, g, h, self.len, kind_code(self.kind), 0, 0]
    }

    pub(super) fn from_bytes(bytes: &[u8; NAME]) -> Option<Self> {
        let mut from = Reader(bytes);
        let (text, node) = (from.u32()?, from.u32()?);
        let [len, kind] = *from.take(2)?.first_chunk()?;
        Some(Self { text, node, len, kind: kind_of(kind)? })
    }
}

pub(super) const EXTENT: usize = 24;

/// A run of data of a file with holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoredExtent {
    /// Where it begins in the file.
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Where it is stored, from the start of the member's data.
    pub(super) stored: u64,
}

impl StoredExtent {
    pub(super) fn write(self, out: &mut Writer) {
        out.u64(self.offset);
        out.u64(self.len);
        out.u64(self.stored);
    }

    pub(super) fn from_bytes(bytes: &[u8; EXTENT]) -> Option<Self> {
        let mut from = Reader(bytes);
        Some(Self { offset: from.u64()?, len: from.u64()?, stored: from.u64()? })
    }

    pub(super) fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// What few members have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extra {
    pub(super) atime: Option<FileTime>,
    pub(super) ctime: Option<FileTime>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) holes: Option<Holes>,
}

/// Where the extents of a file are, and what they add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holes {
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) allocated: u64,
}

impl Extra {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Its length, then its parts.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.option(self.atime, Writer::time);
        out.option(self.ctime, Writer::time);
        out.option(self.target.as_deref(), Writer::long);
        out.u32(u32::try_from(self.xattrs.len()).unwrap_or(u32::MAX));
        for (name, value) in &self.xattrs {
            out.long(name);
            out.long(value);
        }
        out.option(self.holes, |out, holes| {
            out.u32(holes.first);
            out.u32(holes.count);
            out.u64(holes.allocated);
        });
        let mut framed = Writer::default();
        framed.long(&out.0);
        framed.0
    }

    /// From its parts, without the length.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let atime = from.option(Reader::time)?;
        let ctime = from.option(Reader::time)?;
        let target = from.option(|from| from.long().map(<[u8]>::to_vec))?;
        let mut xattrs = Vec::new();
        for _ in 0..from.u32()? {
            xattrs.push((from.long()?.to_vec(), from.long()?.to_vec()));
        }
        let holes =
            from.option(|from| Some(Holes { first: from.u32()?, count: from.u32()?, allocated: from.u64()? }))?;
        Some(Self { atime, ctime, target, xattrs, holes })
    }
}

/// Little-endian numbers and byte strings, one after the other.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn time(&mut self, time: FileTime) {
        self.bytes(&time.seconds.to_le_bytes());
        self.u32(time.nanos);
    }

    fn long(&mut self, bytes: &[u8]) {
        // Nothing that comes here is longer than the extended header that it stood in.
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.bytes(bytes);
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.bytes(&[u8::from(value.is_some())]);
        if let Some(value) = value {
            write(self, value);
        }
    }
}

/// Reads what [`Writer`] wrote; `None` where there is too little.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Option<FileTime> {
        Some(FileTime { seconds: self.array().map(i64::from_le_bytes)?, nanos: self.u32()? })
    }

    fn long(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.take(len)
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.take(1)? {
            [0] => Some(None),
            _ => read(self).map(Some),
        }
    }
}
