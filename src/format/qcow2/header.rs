//! The header: fixed fields, feature bits, extensions, backing name.

use super::{L1_ENTRY_BYTES, be32, be64};
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, HostOffset, HostRange, Result};

/// `QFI\xfb`.
pub(super) const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 2 header, and of version 3's without and with a compression type.
const V2_LENGTH: u32 = 72;
pub(super) const V3_LENGTH: u32 = 104;
/// What QEMU accepts: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// With subclusters of at least 512 bytes.
const MIN_EXTENDED_L2_CLUSTER_BITS: u32 = 14;
/// QEMU's limit on the L1 table, in bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Longest backing name, from the specification.
pub(super) const MAX_BACKING_NAME: u32 = 1023;

pub(super) const EXTENSION_END: u32 = 0;
pub(super) const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// Incompatible feature bits, by number.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
pub(super) const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN_INCOMPATIBLE: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
/// Autoclear bit 0: the bitmaps extension is in step with the image.
const BITMAPS_VALID: u64 = 1 << 0;

/// How compressed clusters are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate, the format's original.
    Deflate,
    /// Zstandard frames.
    Zstd,
}

/// What a header says of the file that holds what is not in this image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The name as it stands in the header; hostile until a gate has looked at it.
    pub name: Vec<u8>,
    /// The declared format; an image without is refused where a chain is opened.
    pub format: Option<String>,
}

/// Sizes that turn an offset in the disk into indices of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Log2 of the cluster's size in bytes, 9 to 21.
    pub cluster_bits: u32,
    /// Whether L2 entries are 128 bits with 32 subclusters each.
    pub extended_l2: bool,
}

impl Geometry {
    /// Bytes in a cluster.
    #[must_use]
    pub fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Log2 of the smallest unit that is allocated on its own: a cluster, or a subcluster.
    #[must_use]
    pub fn unit_bits(self) -> u32 {
        if self.extended_l2 { self.cluster_bits - 5 } else { self.cluster_bits }
    }

    /// Bytes of one L2 entry.
    #[must_use]
    pub fn l2_entry_bytes(self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Log2 of the bytes of guest disk that one L2 table describes; an L2 table fills one cluster.
    #[must_use]
    pub fn l2_coverage_bits(self) -> u32 {
        self.cluster_bits * 2 - if self.extended_l2 { 4 } else { 3 }
    }
}

/// A header that was checked: what it says fits the format and the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The sizes of clusters and tables.
    pub geometry: Geometry,
    /// Virtual size in bytes, a multiple of 512, below 2^63.
    pub size: u64,
    /// Where the active L1 table starts; the whole table lies within the file.
    pub l1_offset: HostOffset,
    /// Entries of the active L1 table; enough for `size`, at most 32 MiB of them.
    pub l1_entries: u32,
    /// The backing file, if the image has one.
    pub backing: Option<Backing>,
    /// How compressed clusters are stored.
    pub compression: Compression,
    /// The image was not closed properly; its refcounts may be stale, its mapping is not.
    pub dirty: bool,
    /// Internal snapshots, which reading does not touch.
    pub snapshots: u32,
    /// Persistent bitmaps, as far as the extension is valid.
    pub bitmaps: u32,
    /// Width of a refcount in bits.
    pub refcount_bits: u32,
}

/// What parsing the first bytes of a file came to.
#[derive(Debug)]
pub enum Parsed {
    /// The header, whole.
    Done(Box<Header>),
    /// It goes on past the bytes given: call again with this many from the start of the file (at most a cluster).
    NeedMore(usize),
}

impl Header {
    /// Parses the start of a file of `file_size` bytes.
    ///
    /// `bytes` is the file's beginning: 4 KiB do for nearly every image; where more is needed the answer says how much.
    /// Errors are of kind `Corrupt` or `Unsupported`, the latter naming the feature.
    pub fn parse(bytes: &[u8], file_size: u64) -> Result<Parsed> {
        let field = |at| be32(bytes, at).ok_or_else(too_short);
        let wide = |at| be64(bytes, at).ok_or_else(too_short);
        if field(0)? != MAGIC {
            return Err(corrupt("the file does not start with qcow2's magic number"));
        }
        let version = field(4)?;
        if !matches!(version, 2 | 3) {
            return Err(unsupported(format!("qcow2 version {version} (2 and 3 are read)")));
        }
        let cluster_bits = field(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(corrupt(format!("clusters of 2^{cluster_bits} bytes; the format has 2^9 to 2^21")));
        }
        let cluster_size = 1u64 << cluster_bits;
        match field(32)? {
            0 => {}
            1 => return Err(unsupported("encryption (AES)")),
            2 => return Err(unsupported("encryption (LUKS)")),
            other => return Err(unsupported(format!("encryption (method {other})"))),
        }

        let (incompatible, autoclear, refcount_order, header_length) =
            if version == 2 { (0, 0, 4, V2_LENGTH) } else { (wide(72)?, wide(88)?, field(96)?, field(100)?) };
        if version == 3
            && (header_length < V3_LENGTH || u64::from(header_length) > cluster_size || header_length % 8 != 0)
        {
            return Err(corrupt(format!("a header length of {header_length} bytes")));
        }
        if refcount_order > 6 {
            return Err(corrupt(format!("refcounts of 2^{refcount_order} bits; the format has at most 64")));
        }

        let backing_offset = wide(8)?;
        let extensions_end = if backing_offset == 0 { cluster_size } else { backing_offset };
        if extensions_end > cluster_size || extensions_end < u64::from(header_length) {
            return Err(corrupt(format!(
                "the backing file's name at {backing_offset:#x}, outside the header's cluster"
            )));
        }
        let reachable = to_usize(cluster_size.min(file_size));
        let mut extensions = Extensions::default();
        if let Some(more) =
            extensions.parse(bytes, to_usize(header_length.into()), to_usize(extensions_end), reachable)?
        {
            return Ok(Parsed::NeedMore(more));
        }
        check_features(incompatible, &extensions)?;

        let extended_l2 = incompatible & EXTENDED_L2 != 0;
        if extended_l2 && cluster_bits < MIN_EXTENDED_L2_CLUSTER_BITS {
            return Err(corrupt(format!(
                "extended L2 entries with clusters of {cluster_size} bytes; they need at least 16 KiB"
            )));
        }
        let compression = match (incompatible & COMPRESSION_TYPE != 0, header_length > V3_LENGTH, bytes.get(104)) {
            (false, false, _) | (false, true, Some(0)) => Compression::Deflate,
            (true, true, Some(1)) => Compression::Zstd,
            (true, true, Some(other)) if *other > 1 => return Err(unsupported(format!("compression type {other}"))),
            (_, true, None) => return Err(too_short()),
            _ => return Err(corrupt("the compression type contradicts its feature bit")),
        };

        let backing = match backing_offset {
            0 => None,
            at => match backing_name(bytes, at, field(16)?, cluster_size, reachable)? {
                Ok(name) => Some(Backing { name, format: extensions.backing_format }),
                Err(more) => return Ok(Parsed::NeedMore(more)),
            },
        };

        let geometry = Geometry { cluster_bits, extended_l2 };
        let header = Self {
            version,
            geometry,
            size: wide(24)?,
            l1_offset: HostOffset(wide(40)?),
            l1_entries: field(36)?,
            backing,
            compression,
            dirty: incompatible & DIRTY != 0,
            snapshots: field(60)?,
            bitmaps: if autoclear & BITMAPS_VALID != 0 { extensions.bitmaps } else { 0 },
            refcount_bits: 1 << refcount_order,
        };
        header.check_l1(file_size)?;
        Ok(Parsed::Done(Box::new(header)))
    }

    /// The bytes of the active L1 table.
    #[must_use]
    pub fn l1_range(&self) -> HostRange {
        HostRange::between(self.l1_offset, self.l1_offset.saturating_add(u64::from(self.l1_entries) * L1_ENTRY_BYTES))
    }

    fn check_l1(&self, file_size: u64) -> Result<()> {
        let size = self.size;
        if size > i64::MAX as u64 {
            return Err(corrupt(format!("a virtual size of {size} bytes, more than any disk can have")));
        }
        if !size.is_multiple_of(512) {
            return Err(corrupt(format!("a virtual size of {size} bytes, not a multiple of 512")));
        }
        let l1_bytes = u64::from(self.l1_entries) * L1_ENTRY_BYTES;
        if l1_bytes > MAX_L1_BYTES {
            return Err(corrupt(format!("an L1 table of {l1_bytes} bytes; the format's limit is 32 MiB")));
        }
        let needed = size.div_ceil(1 << self.geometry.l2_coverage_bits());
        if u64::from(self.l1_entries) < needed {
            let has = self.l1_entries;
            return Err(corrupt(format!("an L1 table of {has} entries; {size} bytes of disk need {needed}")));
        }
        if self.l1_entries == 0 {
            return Ok(());
        }
        let at = self.l1_offset;
        if !at.is_aligned(self.geometry.cluster_size()) || at.0 == 0 {
            return Err(corrupt(format!("the L1 table at {at}, not at the start of a cluster behind the header")));
        }
        if at.checked_add(l1_bytes).is_none_or(|end| end.0 > file_size) {
            return Err(corrupt(format!(
                "the L1 table at {at} ({l1_bytes} bytes) reaches past the end of the file ({file_size} bytes)"
            )));
        }
        Ok(())
    }
}

/// What the extensions say, as far as a reader needs it.
#[derive(Debug, Default)]
struct Extensions {
    backing_format: Option<String>,
    /// The image's own names for feature bits: (kind, bit, name).
    names: Vec<(u8, u8, String)>,
    bitmaps: u32,
}

impl Extensions {
    /// Reads extensions between `at` and `end`. Returns how many bytes are needed where `bytes` does not reach.
    fn parse(&mut self, bytes: &[u8], mut at: usize, end: usize, reachable: usize) -> Result<Option<usize>> {
        // Each round moves on by at least eight bytes, and `end` is at most a cluster.
        while at.saturating_add(8) <= end {
            let (Some(kind), Some(len)) = (be32(bytes, at), be32(bytes, at + 4)) else {
                return need(at + 8, reachable);
            };
            if kind == EXTENSION_END {
                return Ok(None);
            }
            let start = at + 8;
            let len = to_usize(len.into());
            let data_end = start.saturating_add(len);
            if data_end > end {
                return Err(corrupt(format!("header extension {kind:#010x} of {len} bytes reaches out of the header")));
            }
            let interesting = matches!(kind, EXTENSION_BACKING_FORMAT | EXTENSION_FEATURE_NAMES | EXTENSION_BITMAPS);
            match bytes.get(start..data_end) {
                Some(data) => self.take(kind, data)?,
                None if interesting => return need(data_end, reachable),
                None => {}
            }
            at = start.saturating_add(len.next_multiple_of(8));
        }
        Ok(None)
    }

    fn take(&mut self, kind: u32, data: &[u8]) -> Result<()> {
        match kind {
            EXTENSION_BACKING_FORMAT => {
                let name = std::str::from_utf8(data).ok().filter(|n| n.len() <= 15);
                let name = name.ok_or_else(|| corrupt("a backing format's name that is too long or not text"))?;
                self.backing_format = Some(name.to_owned());
            }
            EXTENSION_FEATURE_NAMES => {
                let entry = |e: &[u8]| {
                    let name = String::from_utf8_lossy(e[2..].split(|b| *b == 0).next().unwrap_or_default());
                    (e[0], e[1], name.escape_debug().to_string())
                };
                self.names = data.chunks_exact(48).map(entry).collect();
            }
            EXTENSION_BITMAPS => self.bitmaps = be32(data, 0).unwrap_or(0),
            _ => {}
        }
        Ok(())
    }
}

fn need(bytes: usize, reachable: usize) -> Result<Option<usize>> {
    if bytes > reachable { Err(too_short()) } else { Ok(Some(reachable)) }
}

fn backing_name(
    bytes: &[u8],
    at: u64,
    len: u32,
    cluster_size: u64,
    reachable: usize,
) -> Result<Result<Vec<u8>, usize>> {
    if len == 0 || len > MAX_BACKING_NAME || at.saturating_add(len.into()) > cluster_size {
        return Err(corrupt(format!("a backing file's name of {len} bytes at {at:#x}")));
    }
    let start = to_usize(at);
    let end = start + to_usize(len.into());
    match bytes.get(start..end) {
        Some(name) => Ok(Ok(name.to_vec())),
        None => Ok(Err(need(end, reachable)?.unwrap_or(end))),
    }
}

fn check_features(incompatible: u64, extensions: &Extensions) -> Result<()> {
    if incompatible & CORRUPT != 0 {
        return Err(unsupported("an image that QEMU has marked corrupt (incompatible bit 1, 'corrupt bit')")
            .with_hint("'qemu-img check -r all' on a copy may repair it"));
    }
    if incompatible & EXTERNAL_DATA != 0 {
        return Err(unsupported("an external data file (incompatible bit 2, 'external data file')"));
    }
    let unknown = incompatible & !KNOWN_INCOMPATIBLE;
    if unknown != 0 {
        let bit = unknown.trailing_zeros();
        let named = extensions.names.iter().find(|(kind, number, _)| *kind == 0 && u32::from(*number) == bit);
        let name = named.map_or_else(|| "which the image does not name".to_owned(), |(_, _, name)| format!("'{name}'"));
        return Err(unsupported(format!("incompatible feature bit {bit}, {name}")));
    }
    Ok(())
}

fn too_short() -> Error {
    corrupt("the file ends inside its header")
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, format!("not a sound qcow2 image: {}", what.into()))
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the image uses what is not supported: {}", what.into()))
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
