//! The kernel's table of mounts, `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::base::{Error, Result};

/// The type under which the kernel lists this program's mounts.
const FS_TYPE: &str = "fuse.annals";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// A number that no other mount has.
    pub id: u64,
    /// `MAJOR:MINOR` of the file system.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The type, with its subtype.
    pub fs_type: String,
    /// What is mounted, in the words of whoever mounted it.
    pub source: OsString,
}

impl Mount {
    /// Whether it is one of this program's.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// All mounts that this process sees, in the order in which they were made.
pub fn mounts() -> Result<Vec<Mount>> {
    const TABLE: &str = "/proc/self/mountinfo";
    let text = std::fs::read(TABLE).map_err(|e| Error::io(format!("cannot read '{TABLE}'"), e))?;
    Ok(parse(&text))
}

/// The mount that covers everything else at `point`, if it is one of this program's.
pub fn of_annals(point: &Path) -> Result<Option<Mount>> {
    Ok(top_at(mounts()?, point).filter(Mount::is_ours))
}

/// The mount made last at `point`.
pub(super) fn top_at(mounts: Vec<Mount>, point: &Path) -> Option<Mount> {
    mounts.into_iter().rfind(|mount| mount.point == point)
}

/// Lines that are not of the documented form are passed over.
fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let _parent = words.next()?;
    let device = String::from_utf8(words.next()?.to_vec()).ok()?;
    let _root = words.next()?;
    let point = OsString::from_vec(unescape(words.next()?)).into();
    let _options = words.next()?;
    // Optional fields, ended by a hyphen.
    words.by_ref().find(|word| *word == b"-")?;
    let fs_type = String::from_utf8(unescape(words.next()?)).ok()?;
    let source = OsString::from_vec(unescape(words.next()?));
    Some(Mount { id, device, point, fs_type, source })
}

/// Blanks and backslashes stand as a backslash and three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'\\', [a, b, c, ..]) => octal([*a, *b, *c]),
            _ => None,
        };
        plain.push(escaped.unwrap_or(*first));
        rest = after.get(if escaped.is_some() { 3.. } else { 0.. }).unwrap_or_default();
    }
    plain
}

fn octal(digits: [u8; 3]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
41 22 0:38 / /mnt/a\\040b ro,nosuid,nodev,relatime shared:2 master:1 - fuse.annals /srv/st\\134ore ro,user_id=0
42 22 0:39 / /mnt/c rw - fuse.sshfs host: rw
garbage
43 22 0:40 / /mnt/c ro - fuse.annals /srv/store ro
";

    #[test]
    fn the_table_is_read_with_its_escapes_and_optional_fields() {
        let mounts = parse(TABLE.as_bytes());
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].point, Path::new("/mnt/a b"));
        assert_eq!(mounts[1].source, "/srv/st\\ore");
        assert_eq!((mounts[1].id, mounts[1].device.as_str()), (41, "0:38"));
        assert_eq!(mounts.iter().map(Mount::is_ours).collect::<Vec<_>>(), vec![false, true, false, true]);
    }

    #[test]
    fn of_several_mounts_at_one_place_the_last_is_what_one_sees() {
        let mounts = parse(TABLE.as_bytes());
        assert_eq!(top_at(mounts.clone(), Path::new("/mnt/c")).map(|m| m.id), Some(43));
        assert_eq!(top_at(mounts, Path::new("/mnt")), None);
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_line(&line);
        }

        #[test]
        fn an_escaped_path_reads_back(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            let escaped: Vec<u8> = path.iter().flat_map(|byte| format!("\\{byte:03o}").into_bytes()).collect();
            prop_assert_eq!(unescape(&escaped), path);
        }
    }
}
