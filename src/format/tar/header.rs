//! The 512-byte header block.

use crate::base::{Error, ErrorKind, Result};

/// Size of a block, in bytes: headers are one each, data is padded to a multiple.
pub const BLOCK: usize = 512;

/// `size` bytes of data with the padding that follows them, or `None` past 64 bits.
#[must_use]
pub fn padded(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(BLOCK as u64)
}

/// Which extensions a header's magic announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// No magic: the tar of Unix V7.
    V7,
    /// POSIX, with a prefix to the name.
    Ustar,
    /// GNU tar's own format, which uses the prefix's place otherwise.
    Gnu,
}

/// What a header introduces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeFlag {
    /// A regular file; also what is unknown, which POSIX wants treated as one.
    Regular,
    /// Another name of an earlier member.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// GNU: the next member's name.
    LongName,
    /// GNU: the next member's link target.
    LongLink,
    /// PAX records for the next member.
    Pax,
    /// PAX records for all members from here on.
    GlobalPax,
    /// GNU: a regular file with a sparse map in its header.
    OldSparse,
    /// GNU: a directory with a list of its names, of an incremental dump.
    DumpDirectory,
    /// GNU: the rest of a file that began on an earlier volume.
    Continuation,
    /// GNU: the archive's label, and what else describes no member (`V`, `N`).
    NoMember,
}

/// A header block whose checksum is right.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a>(&'a [u8; BLOCK]);

const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 8);
const UID: (usize, usize) = (108, 8);
const GID: (usize, usize) = (116, 8);
const SIZE: (usize, usize) = (124, 12);
const MTIME: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const TYPE: usize = 156;
const LINK_NAME: (usize, usize) = (157, 100);
const MAGIC: (usize, usize) = (257, 8);
const DEV_MAJOR: (usize, usize) = (329, 8);
const DEV_MINOR: (usize, usize) = (337, 8);
const PREFIX: (usize, usize) = (345, 155);
/// star puts times behind a shorter prefix, and its own magic at the end.
const STAR_PREFIX: (usize, usize) = (345, 131);
const STAR_MAGIC: (usize, usize) = (508, 4);
const GNU_REAL_SIZE: (usize, usize) = (483, 12);

impl<'a> Header<'a> {
    /// The header in `block`, or `None` where its checksum does not fit.
    #[must_use]
    pub fn parse(block: &'a [u8; BLOCK]) -> Option<Self> {
        let header = Self(block);
        let stored = number(header.field(CHECKSUM))?;
        // The field itself counts as blanks.
        let blanks = i64::from(b' ') * CHECKSUM.1 as i64;
        let sum = |bytes: &[u8]| bytes.iter().map(|b| i64::from(*b)).sum::<i64>();
        let unsigned = sum(block) - sum(header.field(CHECKSUM)) + blanks;
        // Some old tars added the bytes up as signed ones.
        let high = |bytes: &[u8]| bytes.iter().map(|b| i64::from(*b >> 7)).sum::<i64>();
        let signed = unsigned - 256 * (high(block) - high(header.field(CHECKSUM)));
        (stored == unsigned || stored == signed).then_some(header)
    }

    fn field(&self, (start, len): (usize, usize)) -> &'a [u8] {
        self.0.get(start..start + len).unwrap_or_default()
    }

    fn text(&self, field: (usize, usize)) -> &'a [u8] {
        until_nul(self.field(field))
    }

    fn number(&self, field: (usize, usize), what: &str) -> Result<i64> {
        number(self.field(field)).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("its {what} is no number: '{}'", self.field(field).escape_ascii().to_string().trim_end()),
            )
        })
    }

    /// Which extensions apply.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self.field(MAGIC) {
            b"ustar  \0" => Dialect::Gnu,
            // Some writers leave the version out, or write other digits.
            magic if magic.starts_with(b"ustar") => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    /// The member's name, as far as the header holds it: with the prefix where there is one.
    #[must_use]
    pub fn name(&self) -> Vec<u8> {
        let name = self.text(NAME);
        let prefix = match self.dialect() {
            Dialect::Ustar if self.field(STAR_MAGIC) == b"tar\0" => self.text(STAR_PREFIX),
            Dialect::Ustar => self.text(PREFIX),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    /// What it introduces.
    #[must_use]
    pub fn type_flag(&self) -> TypeFlag {
        match self.0[TYPE] {
            b'1' => TypeFlag::HardLink,
            b'2' => TypeFlag::Symlink,
            b'3' => TypeFlag::CharDevice,
            b'4' => TypeFlag::BlockDevice,
            b'5' => TypeFlag::Directory,
            b'6' => TypeFlag::Fifo,
            b'L' => TypeFlag::LongName,
            b'K' => TypeFlag::LongLink,
            b'x' | b'X' => TypeFlag::Pax,
            b'g' => TypeFlag::GlobalPax,
            b'S' => TypeFlag::OldSparse,
            b'D' => TypeFlag::DumpDirectory,
            b'M' => TypeFlag::Continuation,
            b'V' | b'N' => TypeFlag::NoMember,
            _ => TypeFlag::Regular,
        }
    }

    /// The link's target, as far as the header holds it.
    #[must_use]
    pub fn link_name(&self) -> &'a [u8] {
        self.text(LINK_NAME)
    }

    /// Permission bits with set-id and sticky bits; the file's type is not in them.
    pub fn permissions(&self) -> Result<u16> {
        let mode = self.number(MODE, "mode")?;
        Ok(u16::try_from(mode & 0o7777).unwrap_or(0))
    }

    /// The owner's number.
    pub fn uid(&self) -> Result<i64> {
        self.number(UID, "owner")
    }

    /// The group's number.
    pub fn gid(&self) -> Result<i64> {
        self.number(GID, "group")
    }

    /// Bytes of data that follow.
    pub fn size(&self) -> Result<u64> {
        let size = self.number(SIZE, "size")?;
        u64::try_from(size).map_err(|_| Error::new(ErrorKind::Corrupt, format!("its size is negative: {size}")))
    }

    /// Last change, in seconds since the epoch.
    pub fn mtime(&self) -> Result<i64> {
        self.number(MTIME, "time")
    }

    /// A device's major and minor number.
    pub fn device(&self) -> Result<(u32, u32)> {
        let part = |field, what| {
            let value = self.number(field, what)?;
            u32::try_from(value)
                .map_err(|_| Error::new(ErrorKind::Corrupt, format!("its {what} is out of range: {value}")))
        };
        Ok((part(DEV_MAJOR, "major device number")?, part(DEV_MINOR, "minor device number")?))
    }

    /// The size of an old GNU sparse file with its holes.
    pub fn real_size(&self) -> Result<u64> {
        let size = self.number(GNU_REAL_SIZE, "size with holes")?;
        u64::try_from(size)
            .map_err(|_| Error::new(ErrorKind::Corrupt, format!("its size with holes is negative: {size}")))
    }

    /// The block of the same header for a member of `size` bytes, or `None` where the field cannot hold that.
    #[must_use]
    pub fn resized(&self, size: u64) -> Option<[u8; BLOCK]> {
        let mut block = *self.0;
        let mut put = |(start, len): (usize, usize), text: String| {
            let field = block.get_mut(start..start + len)?;
            (text.len() == len).then(|| field.copy_from_slice(text.as_bytes()))
        };
        put(SIZE, format!("{size:011o}\0"))?;
        put(CHECKSUM, " ".repeat(CHECKSUM.1))?;
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let text = format!("{sum:06o}\0 ");
        block.get_mut(CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1)?.copy_from_slice(text.as_bytes());
        Some(block)
    }

    /// The whole block.
    #[must_use]
    pub fn block(&self) -> &'a [u8; BLOCK] {
        self.0
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number field: octal digits with blanks around them, or, where the first bit is set, a big-endian binary number in
/// two's complement (GNU's "base 256"). A field of blanks alone is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // The marker is the top bit, the sign the one below it.
        let sign = first & 0x40 != 0;
        let start = i128::from(*first & 0x7f) - if sign { 0x80 } else { 0 };
        let mut value = start;
        for byte in rest {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return i64::try_from(value).ok();
    }
    let digits = until_nul(field).trim_ascii();
    if digits.is_empty() {
        return Some(0);
    }
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}
