//! PAX extended headers: records of the form `length key=value\n`.
//!
//! The length rules: a value may hold line breaks and `=`, so records are never looked for by their text.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::percent_decode;

use super::acl::{acl_to_text, acl_to_xattr};
use super::sparse::Extent;
use crate::base::{Error, ErrorKind, FileTime, Result};

/// An extended attribute: its name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// The records of a global header, kept as they are: later members read them first.
#[derive(Debug, Clone, Default)]
pub struct GlobalFields(Vec<(Vec<u8>, Vec<u8>)>);

impl GlobalFields {
    /// Adds the records of one more global header; later ones replace earlier ones of the same key.
    pub fn add(&mut self, data: &[u8]) -> Result<()> {
        for record in Records(data) {
            let (key, value) = record?;
            self.0.retain(|(k, _)| k != key);
            self.0.push((key.to_vec(), value.to_vec()));
        }
        Ok(())
    }

    /// What it weighs in memory, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

/// What extended headers say of one member. `None` leaves it to the header block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// The name.
    pub path: Option<Vec<u8>>,
    /// The link's target.
    pub link_path: Option<Vec<u8>>,
    /// Bytes of data stored.
    pub size: Option<u64>,
    /// The owner's number.
    pub uid: Option<i64>,
    /// The group's number.
    pub gid: Option<i64>,
    /// Last change of the content.
    pub mtime: Option<FileTime>,
    /// Last access.
    pub atime: Option<FileTime>,
    /// Last change of the attributes.
    pub ctime: Option<FileTime>,
    /// A device's major number, where it is too large for the header.
    pub dev_major: Option<u32>,
    /// A device's minor number, where it is too large for the header.
    pub dev_minor: Option<u32>,
    /// Extended attributes, with ACLs in the form in which the system shows them.
    pub xattrs: Vec<Xattr>,
    /// GNU: the major version of the form in which holes are kept.
    pub sparse_major: Option<u64>,
    /// GNU: its minor version.
    pub sparse_minor: Option<u64>,
    /// GNU: the name of a sparse file, whose `path` is made up.
    pub sparse_name: Option<Vec<u8>>,
    /// GNU: the size of a sparse file with its holes.
    pub real_size: Option<u64>,
    /// GNU: the sparse map of the forms 0.0 and 0.1.
    pub sparse_map: Option<Vec<Extent>>,
    /// What is wrong with single records; the others hold.
    pub problems: Vec<String>,
    /// ACLs whose text names users: what they are is known only where the system's form stands beside them.
    named_acls: Vec<Xattr>,
    /// Attributes whose names are in another spelling, and the names in libarchive's own records, as they stand there.
    spelled: Vec<Xattr>,
    of_libarchive: Vec<Vec<u8>>,
}

impl Fields {
    /// What the records of `data`, a header for one member, say over those of `global`.
    ///
    /// A record that contradicts its form ends the parse with an error, because nothing after it can be trusted; one whose
    /// value alone is wrong is left out and stands among the problems.
    pub fn parse(global: &GlobalFields, data: &[u8]) -> Result<Self> {
        let mut fields = Self::default();
        for (key, value) in &global.0 {
            fields.take(key, value)?;
        }
        let mut pending = None;
        for record in Records(data) {
            let (key, value) = record?;
            match key {
                b"GNU.sparse.offset" => pending = decimal(value),
                b"GNU.sparse.numbytes" => {
                    let extent = pending.take().zip(decimal(value)).map(|(offset, len)| Extent { offset, len });
                    let extent = extent.ok_or_else(|| malformed("its sparse map is incomplete"))?;
                    fields.sparse_map.get_or_insert_default().push(extent);
                }
                _ => fields.take(key, value)?,
            }
        }
        let of_libarchive = std::mem::take(&mut fields.of_libarchive);
        for (name, value) in std::mem::take(&mut fields.spelled) {
            // libarchive spells more than that in its own way, and says each once more where there is no doubt about it.
            if !of_libarchive.contains(&name) {
                fields.xattr(&as_gnu_tar_spells(&name), value);
            }
        }
        for (name, value) in std::mem::take(&mut fields.named_acls) {
            if !fields.xattrs.iter().any(|(known, _)| *known == name) {
                fields.problem(&name, &value);
            }
        }
        Ok(fields)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        // An empty value takes a global record back.
        match key {
            b"path" => self.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => self.link_path = (!value.is_empty()).then(|| value.to_vec()),
            // Where the member's data ends hangs on this one.
            b"size" if !value.is_empty() => {
                self.size = Some(decimal(value).ok_or_else(|| malformed("its size is no number"))?);
            }
            b"size" => self.size = None,
            b"uid" => self.uid = self.checked(key, value, decimal_signed),
            b"gid" => self.gid = self.checked(key, value, decimal_signed),
            b"mtime" => self.mtime = self.checked(key, value, FileTime::parse_decimal),
            b"atime" => self.atime = self.checked(key, value, FileTime::parse_decimal),
            b"ctime" => self.ctime = self.checked(key, value, FileTime::parse_decimal),
            b"SCHILY.devmajor" => self.dev_major = self.checked(key, value, decimal_u32),
            b"SCHILY.devminor" => self.dev_minor = self.checked(key, value, decimal_u32),
            b"SCHILY.acl.access" => self.acl("system.posix_acl_access", value),
            b"SCHILY.acl.default" => self.acl("system.posix_acl_default", value),
            b"RHT.security.selinux" => {
                self.xattr(b"security.selinux", [value.strip_suffix(&[0]).unwrap_or(value), &[0]].concat());
            }
            b"GNU.sparse.major" => self.sparse_major = self.checked(key, value, decimal),
            b"GNU.sparse.minor" => self.sparse_minor = self.checked(key, value, decimal),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.real_size = Some(decimal(value).ok_or_else(|| malformed("its size with holes is no number"))?);
            }
            b"GNU.sparse.map" => self.sparse_map = Some(map(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(SCHILY_XATTR) {
                    if name.contains(&b'%') {
                        self.spelled.retain(|(known, _)| known != name);
                        self.spelled.push((name.to_vec(), value.to_vec()));
                    } else {
                        self.xattr(name, value.to_vec());
                    }
                } else if let Some(name) = key.strip_prefix(LIBARCHIVE_XATTR) {
                    self.libarchive_xattr(name, value);
                }
            }
        }
        Ok(())
    }

    fn checked<T>(&mut self, key: &[u8], value: &[u8], parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        if value.is_empty() {
            return None;
        }
        let parsed = parse(value);
        if parsed.is_none() {
            self.problem(key, value);
        }
        parsed
    }

    fn problem(&mut self, key: &[u8], value: &[u8]) {
        const SHOWN: usize = 64;
        let shown = value.get(..SHOWN).unwrap_or(value).escape_ascii();
        self.problems.push(format!("'{}' has the value '{shown}', which is left out", key.escape_ascii()));
    }

    fn acl(&mut self, name: &str, value: &[u8]) {
        if value.is_empty() {
            return;
        }
        match acl_to_xattr(value) {
            Some(acl) => self.xattr(name.as_bytes(), acl),
            None => self.named_acls.push((name.as_bytes().to_vec(), value.to_vec())),
        }
    }

    /// libarchive writes each attribute in base64, and once more in star's form where that can hold it.
    fn libarchive_xattr(&mut self, name: &[u8], value: &[u8]) {
        if name.contains(&b'%') {
            self.of_libarchive.push(name.to_vec());
        }
        match BASE64.decode(value.trim_ascii_end()) {
            Ok(value) => self.xattr(&percent_decode(name).collect::<Vec<u8>>(), value),
            Err(_) => self.problem(name, value),
        }
    }

    fn xattr(&mut self, name: &[u8], value: Vec<u8>) {
        if name.is_empty() || name.contains(&0) {
            return self.problem(name, &value);
        }
        match self.xattrs.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.xattrs.push((name.to_vec(), value)),
        }
    }
}

/// What keys of attributes begin with: star's, which GNU tar writes as well, and libarchive's own.
const SCHILY_XATTR: &[u8] = b"SCHILY.xattr.";
const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";

/// The name of an attribute that GNU tar spelled: it has `%3D` for the `=` that would end a key, and `%25` for `%`.
fn as_gnu_tar_spells(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match (first, after) {
            (b'%', [b'3', b'D', after @ ..]) => (b'=', after),
            (b'%', [b'2', b'5', after @ ..]) => (b'%', after),
            _ => (*first, after),
        };
        decoded.push(byte);
        rest = after;
    }
    decoded
}

/// The same records without what tar2sqfs takes otherwise than GNU tar, which wrote them, means it; `None` where there is nothing like that.
///
/// * It takes the name of an attribute by the letter. Each that GNU tar spelled in its own way gets libarchive's form, which it decodes.
/// * Of the two names of a sparse file it takes the last, and `path`, which GNU tar makes up for readers that know no holes, follows the
///   true one where it is long or not ASCII.
#[must_use]
pub fn as_tar2sqfs_takes_them(data: &[u8]) -> Option<Vec<u8>> {
    let records = Records(data).collect::<Result<Vec<_>>>().ok()?;
    let has_true_name = records.iter().any(|(key, _)| *key == b"GNU.sparse.name");
    let mut changed = false;
    let mut rewritten = Vec::with_capacity(data.len());
    for (key, value) in records {
        if key == b"path" && has_true_name {
            changed = true;
        } else if let Some(name) = key.strip_prefix(SCHILY_XATTR).filter(|name| name.contains(&b'%')) {
            push_record(&mut rewritten, &[LIBARCHIVE_XATTR, name].concat(), BASE64.encode(value).as_bytes());
            changed = true;
        } else {
            push_record(&mut rewritten, key, value);
        }
    }
    changed.then_some(rewritten)
}

/// The two forms in which an ACL may stand among the records: as text, and as the system has it.
const ACLS: [(&[u8], &[u8]); 2] = [
    (b"SCHILY.acl.access", b"SCHILY.xattr.system.posix_acl_access"),
    (b"SCHILY.acl.default", b"SCHILY.xattr.system.posix_acl_default"),
];

/// The same records with every ACL told by numbers, or `None` where that is how they are already.
///
/// GNU tar looks up who an ACL is for among the users of the system that it runs on, who are not the guest's, even where it
/// is told to keep to numbers; beside that text it keeps the ACL as the system has it. An error where that is not there.
pub fn with_numbers_in_acls(data: &[u8]) -> Result<Option<Vec<u8>>> {
    let records = Records(data).collect::<Result<Vec<_>>>()?;
    let mut numbered = Vec::with_capacity(data.len());
    let mut changed = false;
    for (key, value) in &records {
        let named =
            ACLS.iter().find(|(text, _)| text == key).filter(|_| !value.is_empty() && acl_to_xattr(value).is_none());
        let Some((_, binary)) = named else {
            push_record(&mut numbered, key, value);
            continue;
        };
        let of_system = records.iter().find(|(key, _)| key == binary).and_then(|(_, value)| acl_to_text(value));
        let text = of_system.ok_or_else(|| malformed("an ACL names users by names that mean nothing elsewhere"))?;
        push_record(&mut numbered, key, text.as_bytes());
        changed = true;
    }
    Ok(changed.then_some(numbered))
}

/// `length key=value\n`, where the length counts its own digits.
fn push_record(data: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    data.extend_from_slice(format!("{len} ").as_bytes());
    data.extend_from_slice(key);
    data.push(b'=');
    data.extend_from_slice(value);
    data.push(b'\n');
}

/// The records of an extended header's data.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        // Some writers pad with NULs.
        if self.0.iter().all(|b| *b == 0) {
            return None;
        }
        let record = split_record(self.0);
        self.0 = match &record {
            Some((_, _, rest)) => rest,
            None => &[],
        };
        Some(
            record
                .map(|(key, value, _)| (key, value))
                .ok_or_else(|| malformed("an extended header's record contradicts its length")),
        )
    }
}

/// Key and value of the first record, and what follows it.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    /// Digits of the length of the longest header that is read at all.
    const DIGITS: usize = 12;
    let space = data.iter().take(DIGITS).position(|b| *b == b' ')?;
    let len = usize::try_from(decimal(data.get(..space)?)?).ok()?;
    let record = data.get(space.checked_add(1)?..len)?;
    let (line_break, record) = record.split_last()?;
    let equals = record.iter().position(|b| *b == b'=')?;
    let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
    (*line_break == b'\n' && !key.is_empty()).then_some((key, value, data.get(len..)?))
}

fn malformed(message: &str) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn decimal_signed(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => i64::try_from(decimal(digits)?).ok()?.checked_neg(),
        None => i64::try_from(decimal(text)?).ok(),
    }
}

fn decimal_u32(text: &[u8]) -> Option<u32> {
    u32::try_from(decimal(text)?).ok()
}

/// `offset,length,offset,length…`, the sparse map of form 0.1.
fn map(value: &[u8]) -> Result<Vec<Extent>> {
    let broken = || malformed("its sparse map is not a list of offsets and lengths");
    let mut map = Vec::new();
    if value.is_empty() {
        return Ok(map);
    }
    let mut numbers = value.split(|b| *b == b',').map(decimal);
    while let Some(offset) = numbers.next() {
        let len = numbers.next().flatten();
        let (Some(offset), Some(len)) = (offset, len) else { return Err(broken()) };
        map.push(Extent { offset, len });
    }
    Ok(map)
}

/// Standard base64. libarchive leaves the padding out, and there is no reason to insist on zeros behind the last byte.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);
