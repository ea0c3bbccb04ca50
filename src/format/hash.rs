//! BLAKE3 of a file and of each chunk of it, in one pass and in any order.
//!
//! BLAKE3 is a tree over pieces of 1 KiB. Every chunk of 2²⁰ bytes is a whole subtree, so a chunk's value is that
//! subtree's chaining value, and the file's hash is what the values merge to: the plain BLAKE3 of the file, as `b3sum` prints
//! it. The list of values needs no hash of its own, for it must merge to the file's. `docs/store-format.md` specifies it.

use std::fmt;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::base::{Error, ErrorKind, Result};

/// Bytes of a chunk; the last one of a file may be shorter. A power of two, as subtrees are.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Bytes of a hash, and of a chunk's value.
pub const HASH_BYTES: usize = 32;

/// The BLAKE3 of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; HASH_BYTES]);

impl Hash {
    /// From its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; HASH_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; HASH_BYTES] {
        &self.0
    }
}

/// 64 lower-case hexadecimal digits.
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The hashes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHashes {
    /// The file's own.
    pub file: Hash,
    /// Its size in bytes.
    pub size: u64,
    /// Its chunks' values, in order. A file of one chunk has its own hash here; an empty one has that too.
    pub chunks: Vec<Hash>,
}

impl FileHashes {
    /// Of a file that is at hand.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let size = bytes.len() as u64;
        if bytes.len() <= CHUNK_BYTES {
            let file = whole(bytes);
            return Self { file, size, chunks: vec![file] };
        }
        let chunks: Vec<Hash> = (0..).zip(bytes.chunks(CHUNK_BYTES)).map(|(n, chunk)| chunk_value(n, chunk)).collect();
        Self { file: merge(&chunks, true), size, chunks }
    }

    /// Of a file of `size` bytes, more than one chunk, whose chunks have these values.
    ///
    /// An error of kind `Corrupt` where their number contradicts the size.
    pub fn of_chunks(chunks: Vec<Hash>, size: u64) -> Result<Self> {
        if chunks.len() < 2 || size.div_ceil(CHUNK_BYTES as u64) != chunks.len() as u64 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} chunks' hashes for a file of {size} bytes", chunks.len()),
            ));
        }
        Ok(Self { file: merge(&chunks, true), size, chunks })
    }

    /// The list of the chunks' values as it is stored: 32 bytes each.
    #[must_use]
    pub fn chunk_list(&self) -> Vec<u8> {
        self.chunks.iter().flat_map(|chunk| chunk.0).collect()
    }
}

/// The hash of a whole file, or of a file's only chunk.
#[must_use]
pub fn whole(bytes: &[u8]) -> Hash {
    Hash(*blake3::hash(bytes).as_bytes())
}

/// The value of chunk `index` of a file that has more than one; all but the last are [`CHUNK_BYTES`] long, none is empty.
#[must_use]
pub fn chunk_value(index: u64, bytes: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index.saturating_mul(CHUNK_BYTES as u64));
    hasher.update(bytes);
    Hash(hasher.finalize_non_root())
}

/// What neighbouring chunks' values come to. The left subtree is the largest whole one that leaves something to the right.
fn merge(chunks: &[Hash], root: bool) -> Hash {
    let [first, _, ..] = chunks else { return chunks.first().copied().unwrap_or_else(|| whole(&[])) };
    let left = chunks.len().div_ceil(2).next_power_of_two();
    let (left, right) = match chunks.split_at_checked(left) {
        Some((left, right)) => (merge(left, false), merge(right, false)),
        None => return *first,
    };
    Hash(match root {
        true => *merge_subtrees_root(&left.0, &right.0, Mode::Hash).as_bytes(),
        false => merge_subtrees_non_root(&left.0, &right.0, Mode::Hash),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
    }

    #[test]
    fn the_files_hash_is_plain_blake3_whatever_its_size() {
        for chunks in 0..=9 {
            for extra in [0, 1, 1023, 1024, 1025, CHUNK_BYTES - 1] {
                let bytes = sample(chunks * CHUNK_BYTES + extra);
                let hashes = FileHashes::of(&bytes);
                assert_eq!(hashes.file.to_string(), blake3::hash(&bytes).to_hex().as_str(), "{chunks}+{extra}");
                assert_eq!(hashes.chunks.len(), bytes.len().div_ceil(CHUNK_BYTES).max(1));
            }
        }
    }

    #[test]
    fn chunks_hashed_in_any_order_make_the_same_file() {
        let bytes = sample(5 * CHUNK_BYTES + 77);
        let mut chunks: Vec<_> = bytes.chunks(CHUNK_BYTES).enumerate().collect();
        chunks.reverse();
        let mut values: Vec<_> = chunks.into_iter().map(|(n, chunk)| (n, chunk_value(n as u64, chunk))).collect();
        values.sort_by_key(|(n, _)| *n);
        let values: Vec<Hash> = values.into_iter().map(|(_, value)| value).collect();
        assert_eq!(FileHashes::of_chunks(values, bytes.len() as u64).unwrap(), FileHashes::of(&bytes));
    }

    #[test]
    fn a_list_that_does_not_fit_the_size_is_no_list_of_that_file() {
        let hashes = FileHashes::of(&sample(3 * CHUNK_BYTES));
        for size in [0, 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 1] {
            assert!(FileHashes::of_chunks(hashes.chunks.clone(), size as u64).is_err(), "{size}");
        }
    }
}
