//! A tar stream in which ACLs are told by numbers. See [`with_numbers_in_acls`] for why tar's own is not like that. On the way, the maps
//! of sparse files are looked at, see [`holes`](super::holes), and names are told as the packer takes them where it reads the stream.

use std::io::{self, Read};

use super::holes::{Checked, Doubt, MapCheck};
use crate::base::units::to_usize;
use crate::format::tar::{
    BLOCK, Fields, GlobalFields, Header, TypeFlag, as_tar2sqfs_takes_them, padded, with_numbers_in_acls,
};

/// Most bytes of extended records that are looked into; attributes of a file are far below. Longer ones pass as they are.
const LONGEST_RECORDS: u64 = 16 << 20;

/// What `inner`, a tar archive of POSIX format, is with numbers in its ACLs.
pub(super) struct NumericAcls<R> {
    inner: R,
    /// Whether it is tar2sqfs that reads it.
    for_packer: bool,
    /// Bytes that come next without being looked into: members' data.
    passing: u64,
    /// Bytes that come before anything else, and how many of them are gone.
    ready: Vec<u8>,
    taken: usize,
    /// The size of the next member's data, where extended records tell it.
    size: Option<u64>,
    /// The check of the next member's map, where extended records announce one.
    announced: Option<MapCheck>,
    /// That of the map at the start of the data that pass now.
    map: Option<MapCheck>,
    /// What could not be told by numbers.
    pub(super) unclear: u64,
    /// Members whose maps are not whole, for the caller to take away after each read.
    pub(super) doubts: Vec<Doubt>,
}

impl<R: Read> NumericAcls<R> {
    pub(super) fn new(inner: R, for_packer: bool) -> Self {
        Self {
            inner,
            for_packer,
            passing: 0,
            ready: Vec::new(),
            taken: 0,
            size: None,
            announced: None,
            map: None,
            unclear: 0,
            doubts: Vec::new(),
        }
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
                let fields = Fields::parse(&GlobalFields::default(), data).unwrap_or_default();
                self.size = fields.size;
                // Form 1.0, the one that tar makes: the map is the first of the member's data.
                let sparse = fields.sparse_major == Some(1) && fields.sparse_minor == Some(0);
                let whole = fields.sparse_name.zip(fields.real_size).filter(|_| sparse);
                self.announced = whole.map(|(name, size)| MapCheck::new(name, size));
                let numbered = with_numbers_in_acls(data).unwrap_or_else(|_| {
                    self.unclear = self.unclear.saturating_add(1);
                    None
                });
                let spelled = self.for_packer.then(|| as_tar2sqfs_takes_them(numbered.as_deref().unwrap_or(data)));
                match spelled
                    .flatten()
                    .or(numbered)
                    .and_then(|numbered| Some((header.resized(numbered.len() as u64)?, numbered)))
                {
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
            _ => {
                self.passing = padded(self.size.take().unwrap_or(stored)).unwrap_or(u64::MAX);
                self.map = self.announced.take();
            }
        }
        Ok(())
    }

    fn check_map(&mut self, bytes: &[u8]) {
        let Some(check) = &mut self.map else { return };
        match check.take(bytes) {
            Checked::NotYet => return,
            Checked::Whole => {}
            Checked::Doubtful(doubt) => self.doubts.push(doubt),
        }
        self.map = None;
    }
}

impl<R: Read> Read for NumericAcls<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.ready.len() {
            if self.passing > 0 {
                let most = buf.len().min(usize::try_from(self.passing).unwrap_or(usize::MAX));
                let read = self.inner.read(buf.get_mut(..most).unwrap_or_default())?;
                self.passing = self.passing.saturating_sub(read as u64);
                self.check_map(buf.get(..read).unwrap_or_default());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tar::acl_to_xattr;

    /// A header of that type, with what follows it.
    fn member(kind: u8, said: u64, data: &[u8]) -> Vec<u8> {
        let mut block = [0; BLOCK];
        block[..4].copy_from_slice(b"name");
        block[156] = kind;
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = Header::parse(&block).unwrap().resized(said).unwrap().to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let len = (1..).find(|len: &usize| *len == rest.len() + len.to_string().len()).unwrap();
        [len.to_string().into_bytes(), rest].concat()
    }

    fn acl(who: &str) -> Vec<u8> {
        let text = |who: &str| format!("user::rw-\nuser:{who}:r--\ngroup::r--\nmask::r--\nother::---\n");
        let binary = acl_to_xattr(text("5").as_bytes()).unwrap();
        [record("SCHILY.acl.access", text(who).as_bytes()), record("SCHILY.xattr.system.posix_acl_access", &binary)]
            .concat()
    }

    fn told_by_numbers(bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut reader = NumericAcls::new(bytes, false);
        let (mut all, mut buf) = (Vec::new(), vec![0; piece]);
        loop {
            match reader.read(&mut buf).unwrap() {
                0 => break,
                read => all.extend_from_slice(&buf[..read]),
            }
        }
        assert_eq!(reader.unclear, 0);
        all
    }

    #[test]
    fn acls_of_members_are_changed_and_those_of_archives_among_the_members_data_are_not() {
        let inner = [member(b'x', acl("games").len() as u64, &acl("games")), member(b'0', 3, b"abc")].concat();
        let size = inner.len() as u64;
        let archive = |who: &str| {
            // The second member's size stands in its records alone, as that of one of more than 8 GiB does.
            let records = [acl(who), record("size", size.to_string().as_bytes())].concat();
            let (link, plain) = (record("size", b"77777"), record("path", b"x"));
            [
                member(b'x', acl(who).len() as u64, &acl(who)),
                member(b'0', size, &inner),
                member(b'x', records.len() as u64, &records),
                member(b'0', 0, &inner),
                member(b'x', link.len() as u64, &link),
                member(b'1', 0, b""),
                member(b'x', plain.len() as u64, &plain),
                member(b'0', 5, b"12345"),
                vec![0; 1024],
            ]
            .concat()
        };
        for piece in [1, 511, 512, 100_000] {
            assert!(told_by_numbers(&archive("games"), piece) == archive("5"), "in pieces of {piece}");
        }
        let cut = &archive("games")[..4000];
        assert!(told_by_numbers(cut, 100).ends_with(&cut[3000..]), "one that is cut short");
    }
}
