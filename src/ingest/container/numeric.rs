//! A tar stream in which ACLs are told by numbers. See [`with_numbers_in_acls`] for why tar's own is not like that.

use std::io::{self, Read};

use crate::base::units::to_usize;
use crate::format::tar::{BLOCK, Fields, GlobalFields, Header, TypeFlag, padded, with_numbers_in_acls};

/// Most bytes of extended records that are looked into; attributes of a file are far below. Longer ones pass as they are.
const LONGEST_RECORDS: u64 = 16 << 20;

/// What `inner`, a tar archive of POSIX format, is with numbers in its ACLs.
pub(super) struct NumericAcls<R> {
    inner: R,
    /// Bytes that come next without being looked into: members' data.
    passing: u64,
    /// Bytes that come before anything else, and how many of them are gone.
    ready: Vec<u8>,
    taken: usize,
    /// The size of the next member's data, where extended records tell it.
    size: Option<u64>,
    /// What could not be told by numbers.
    pub(super) unclear: u64,
}

impl<R: Read> NumericAcls<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, passing: 0, ready: Vec::new(), taken: 0, size: None, unclear: 0 }
    }

    /// Makes the next header ready, with the records that follow it.
    fn advance(&mut self) -> io::Result<()> {
        self.taken = 0;
        self.ready.clear();
        read_up_to(&mut self.inner, BLOCK as u64, &mut self.ready)?;
        let Some(header) = self.ready.first_chunk::<BLOCK>().and_then(Header::parse) else { return Ok(()) };
        let stored = header.size().unwrap_or(0);
        match header.type_flag() {
            TypeFlag::Pax if stored <= LONGEST_RECORDS => {
                let mut records = Vec::new();
                let whole = padded(stored).unwrap_or(stored);
                read_up_to(&mut self.inner, whole, &mut records)?;
                let data = records.get(..to_usize(stored)).unwrap_or(&records);
                self.size = Fields::parse(&GlobalFields::default(), data).ok().and_then(|fields| fields.size);
                let numbered = with_numbers_in_acls(data).unwrap_or_else(|_| {
                    self.unclear = self.unclear.saturating_add(1);
                    None
                });
                match numbered.and_then(|numbered| Some((header.resized(numbered.len() as u64)?, numbered))) {
                    Some((block, mut numbered)) => {
                        numbered.resize(numbered.len().next_multiple_of(BLOCK), 0);
                        self.ready.clear();
                        self.ready.extend_from_slice(&block);
                        self.ready.append(&mut numbered);
                    }
                    None => self.ready.append(&mut records),
                }
            }
            // Their size is not that of anything that follows.
            TypeFlag::HardLink | TypeFlag::Symlink | TypeFlag::Directory => self.size = None,
            TypeFlag::CharDevice | TypeFlag::BlockDevice | TypeFlag::Fifo => self.size = None,
            _ => self.passing = padded(self.size.take().unwrap_or(stored)).unwrap_or(u64::MAX),
        }
        Ok(())
    }
}

impl<R: Read> Read for NumericAcls<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.ready.len() {
            if self.passing > 0 {
                let most = buf.len().min(usize::try_from(self.passing).unwrap_or(usize::MAX));
                let read = self.inner.read(buf.get_mut(..most).unwrap_or_default())?;
                self.passing = self.passing.saturating_sub(read as u64);
                return Ok(read);
            }
            self.advance()?;
        }
        let ready = self.ready.get(self.taken..).unwrap_or_default();
        let most = ready.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..most), ready.get(..most)) {
            to.copy_from_slice(from);
        }
        self.taken += most;
        Ok(most)
    }
}

/// Reads `len` bytes, or those that there are.
fn read_up_to(from: &mut impl Read, len: u64, into: &mut Vec<u8>) -> io::Result<()> {
    from.take(len).read_to_end(into).map(drop)
}
