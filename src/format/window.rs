//! What a parser sees of a disk: an offset and a size over something that can be read.

use std::fmt;

use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};

/// Fills a buffer with the disk's bytes from an offset on, all of it or an error.
///
/// It is asked only for bytes within the size that [`Window::new`] was told.
pub type ReadExact<'a> = dyn Fn(&mut [u8], GuestOffset) -> Result<()> + 'a;

/// A range of a disk, read through a function that the caller gives. Offsets count from the window's start.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    read: &'a ReadExact<'a>,
    range: GuestRange,
}

impl<'a> Window<'a> {
    /// The whole of a disk of `size` bytes.
    #[must_use]
    pub fn new(size: u64, read: &'a ReadExact<'a>) -> Self {
        Self { read, range: GuestRange::between(GuestOffset(0), GuestOffset(size)) }
    }

    /// What lies both in `range` of this window and in the window itself.
    #[must_use]
    pub fn slice(&self, range: GuestRange) -> Self {
        let start = self.range.start();
        let shifted = GuestRange::between(start.saturating_add(range.start().0), start.saturating_add(range.end().0));
        Self { read: self.read, range: self.range.intersect(shifted) }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.range.len()
    }

    /// Fills `buf` from byte `at` of the window.
    ///
    /// Bytes past the window's end are an error of kind `Corrupt`: whatever named them contradicts the disk.
    pub fn read_exact(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let asked = at.checked_add(buf.len() as u64);
        if asked.is_none_or(|end| end > self.size()) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} bytes at {at:#x} lie past the end of the disk ({} bytes)", buf.len(), self.size()),
            ));
        }
        (self.read)(buf, self.range.start().saturating_add(at))
    }

    /// The `N` bytes at `at`, or `None` where they reach past the window's end.
    pub fn block<const N: usize>(&self, at: u64) -> Result<Option<[u8; N]>> {
        if at.checked_add(N as u64).is_none_or(|end| end > self.size()) {
            return Ok(None);
        }
        let mut block = [0; N];
        self.read_exact(&mut block, at)?;
        Ok(Some(block))
    }
}

impl fmt::Debug for Window<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("range", &self.range).finish_non_exhaustive()
    }
}

/// The `N` bytes at `at` of a block that is at least that long; zeros where it is not.
pub(super) fn field<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let bytes = at.checked_add(N).and_then(|end| block.get(at..end));
    bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

/// The little-endian 16-bit number at `at`, under the rule of [`field`].
pub(super) fn le16(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(block, at))
}

/// The little-endian 32-bit number at `at`, under the rule of [`field`].
pub(super) fn le32(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(block, at))
}

/// The little-endian 64-bit number at `at`, under the rule of [`field`].
pub(super) fn le64(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(block, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_never_reaches_past_its_range() {
        let disk: Vec<u8> = (0..100).collect();
        let read = |buf: &mut [u8], at: GuestOffset| {
            let at = at.0 as usize;
            buf.copy_from_slice(&disk[at..at + buf.len()]);
            Ok(())
        };
        let whole = Window::new(100, &read);
        let part = whole.slice(GuestRange::between(GuestOffset(90), GuestOffset(1000)));
        assert_eq!(part.size(), 10);
        assert_eq!(part.block::<2>(8).unwrap(), Some([98, 99]));
        assert_eq!(part.block::<2>(9).unwrap(), None);
        assert_eq!(part.block::<1>(u64::MAX).unwrap(), None);
        assert_eq!(part.read_exact(&mut [0; 11], 0).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(part.slice(GuestRange::between(GuestOffset(5), GuestOffset(7))).block(0).unwrap(), Some([95, 96]));
        assert_eq!(whole.slice(GuestRange::between(GuestOffset(u64::MAX), GuestOffset(u64::MAX))).size(), 0);
    }
}
