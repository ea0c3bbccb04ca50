//! From bytes of the disk to what an image stores of them.

use std::ops::Range;

use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};
use crate::format::qcow2::Geometry;

/// Decides how each cluster is stored. Holds nothing that changes: any number of threads may use one.
#[derive(Debug, Clone, Copy)]
pub struct Encoder {
    geometry: Geometry,
    zstd: Option<i32>,
    /// Whether a cluster of zeros must be said to be one, because something lies below.
    mark_zeros: bool,
}

/// A stretch of the disk, ready to be given its place in an image.
#[derive(Debug)]
pub struct EncodedBatch {
    range: GuestRange,
    cluster_size: usize,
    /// The disk's bytes, in whole clusters.
    bytes: Vec<u8>,
    /// Compressed clusters, one after the other.
    packed: Vec<u8>,
    /// What becomes of each cluster, in order; left out is what needs no entry.
    clusters: Vec<(u64, Place)>,
}

#[derive(Debug, Clone)]
enum Place {
    Zeros,
    /// As it is in `bytes`, from here on.
    Plain(usize),
    /// In `packed`.
    Packed(Range<usize>),
}

/// What an image stores of one cluster.
pub(super) enum Stored<'a> {
    Zeros,
    Plain(&'a [u8]),
    Compressed(&'a [u8]),
}

impl Encoder {
    pub(super) fn new(geometry: Geometry, zstd: Option<i32>, mark_zeros: bool) -> Self {
        Self { geometry, zstd, mark_zeros }
    }

    /// Bytes of a cluster: batches start at multiples of it, and end at one or where the disk does.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        self.geometry.cluster_size()
    }

    /// Encodes the disk's bytes from `start` on, the start of a cluster.
    ///
    /// The errors are those of the compression library, which bytes alone cannot cause.
    pub fn encode(&self, start: GuestOffset, mut bytes: Vec<u8>) -> Result<EncodedBatch> {
        let range = GuestRange::between(start, start.saturating_add(bytes.len() as u64));
        let cluster_size = to_usize(self.geometry.cluster_size());
        bytes.resize(bytes.len().next_multiple_of(cluster_size), 0);
        let mut packer = self.zstd.map(Packer::new).transpose()?;
        let mut clusters = Vec::with_capacity(bytes.len() / cluster_size);
        for (cluster, (n, part)) in
            (start.0 >> self.geometry.cluster_bits..).zip(bytes.chunks(cluster_size).enumerate())
        {
            let place = if is_zero(part) {
                if !self.mark_zeros {
                    continue;
                }
                Place::Zeros
            } else {
                match packer.as_mut().map(|packer| packer.pack(part)).transpose()?.flatten() {
                    Some(packed) => Place::Packed(packed),
                    None => Place::Plain(n * cluster_size),
                }
            };
            clusters.push((cluster, place));
        }
        let packed = packer.map(|packer| packer.packed).unwrap_or_default();
        Ok(EncodedBatch { range, cluster_size, bytes, packed, clusters })
    }
}

impl EncodedBatch {
    /// Which bytes of the disk these are.
    #[must_use]
    pub fn range(&self) -> GuestRange {
        self.range
    }

    /// The buffer that [`Encoder::encode`] was given, to be used again.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn clusters(&self) -> impl Iterator<Item = (u64, Stored<'_>)> {
        self.clusters.iter().map(|(cluster, place)| {
            let stored = match place {
                Place::Zeros => Stored::Zeros,
                Place::Plain(at) => Stored::Plain(&self.bytes[*at..*at + self.cluster_size]),
                Place::Packed(range) => Stored::Compressed(&self.packed[range.clone()]),
            };
            (*cluster, stored)
        })
    }
}

/// Compresses clusters behind one another into one buffer.
struct Packer {
    zstd: zstd::bulk::Compressor<'static>,
    packed: Vec<u8>,
    scratch: Vec<u8>,
}

impl Packer {
    fn new(level: i32) -> Result<Self> {
        let zstd = zstd::bulk::Compressor::new(level)
            .map_err(|e| Error::new(ErrorKind::Unsupported, format!("zstd level {level}")).with_source(e))?;
        Ok(Self { zstd, packed: Vec::new(), scratch: Vec::new() })
    }

    /// Where the compressed form is, or `None` where it would save nothing.
    fn pack(&mut self, cluster: &[u8]) -> Result<Option<Range<usize>>> {
        self.scratch.resize(zstd::zstd_safe::compress_bound(cluster.len()), 0);
        let len = self
            .zstd
            .compress_to_buffer(cluster, self.scratch.as_mut_slice())
            .map_err(|e| Error::new(ErrorKind::Limit, "zstd could not compress a cluster").with_source(e))?;
        // A sector less is the least that can be saved.
        if len + 512 > cluster.len() {
            return Ok(None);
        }
        let start = self.packed.len();
        self.packed.extend_from_slice(&self.scratch[..len]);
        Ok(Some(start..start + len))
    }
}

/// Whether there is no bit in `bytes`.
fn is_zero(bytes: &[u8]) -> bool {
    // In pieces: long enough for the compiler's wide registers, short enough to stop early.
    bytes.chunks(1024).all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
}
