//! The store's own JSON files: `store.json`, a backup's `backup.json`, a guest's `attributes.json`.
//!
//! Each starts with a `version`. A newer version than this program knows is refused by its number; within a
//! version, fields that are not known are passed over, so that a later release may add some. The fields are
//! specified in `docs/store-format.md`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::ImageFormat;
use crate::base::{Error, ErrorKind, Result, Timestamp};

/// The newest version of each of the three files that this program reads, and the one it writes.
pub const VERSION: u64 = 1;

/// Most bytes that any of these files may have.
pub const SIZE_LIMIT: usize = 4 << 20;

/// What a guest is: a virtual machine or a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestKind {
    /// A virtual machine with disks.
    Qemu,
    /// A container with a file tree.
    Lxc,
}

impl GuestKind {
    /// The kind of that name: `qemu` or `lxc`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "qemu" => Some(Self::Qemu),
            "lxc" => Some(Self::Lxc),
            _ => None,
        }
    }

    /// `qemu` or `lxc`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Lxc => "lxc",
        }
    }
}

impl fmt::Display for GuestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `store.json`: what marks a directory as a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMarker {
    /// The version of the store's layout.
    pub version: u64,
    /// Tells one store from another, wherever it is copied.
    pub uuid: Uuid,
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub created: Timestamp,
}

/// `backup.json`: what a backup's files alone cannot say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this file.
    pub version: u64,
    /// The guest's id when the backup was made.
    pub guest: String,
    /// Virtual machine or container.
    pub kind: GuestKind,
    /// The point in time that the backup shows.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Its disks, in the order in which they were given.
    #[serde(default)]
    pub disks: Vec<ManifestDisk>,
    /// Which program wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<Tool>,
    /// The container's archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ManifestArchive>,
    /// The files that are kept as they were given, and the log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ManifestFile>,
}

/// One file that is kept as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name in the backup's directory.
    pub name: String,
    /// What its bytes hash to.
    pub hash: FileHash,
}

/// The program that wrote a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// One disk of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestDisk {
    /// The disk's name: `drive-scsi0`.
    pub name: String,
    /// The layer's file in the backup's directory: `drive-scsi0.qcow2`.
    pub file: String,
    /// The layer's format.
    pub format: ImageFormat,
    /// The disk's virtual size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The layer it is an increment to; absent for a full one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Why it is a full or an incremental one, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The dirty bitmap that the backup went by, or was told to: what the next one may go by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bitmap: Option<String>,
    /// What the source calls this point in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// What the file's bytes hash to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<FileHash>,
}

/// The layer below, in an older backup of the same guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The backup's directory: `qemu-2024-11-07T16-51-22Z`.
    pub backup: String,
    /// The file in it.
    pub file: String,
}

/// The file tree of a container's backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestArchive {
    /// The archive's file in the backup's directory.
    pub file: String,
    /// `tar` or `squashfs`.
    pub format: String,
    /// How many members it has, hard links counted once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// The patterns of what was left out of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<String>,
    /// How many paths of the tree are not in it, or there without their attributes, because they could not be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreadable: u64,
    /// What the file's bytes hash to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<FileHash>,
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The hash of a file, and of each chunk of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// BLAKE3 of the whole file, 64 lower-case hexadecimal digits.
    pub blake3: String,
    /// The file's size in bytes when it was hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The size of a chunk in bytes; the last one may be shorter. Absent where the file is one chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_size: Option<u64>,
    /// The file beside it that holds the chunks' hashes, 32 bytes each, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<String>,
}

/// `attributes.json`: what may change about a guest's backups after they were made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attributes {
    /// The version of this file.
    pub version: u64,
    /// By the name of the backup's directory.
    #[serde(default)]
    pub backups: BTreeMap<String, BackupAttributes>,
}

/// What may change about one backup.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackupAttributes {
    /// Whether it must not be removed.
    #[serde(default)]
    pub protected: bool,
    /// What somebody wrote about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

impl StoreMarker {
    /// Reads `store.json`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse_versioned("store.json", bytes)
    }
}

impl Manifest {
    /// Reads `backup.json`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse_versioned("backup.json", bytes)
    }
}

impl Attributes {
    /// Reads `attributes.json`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse_versioned("attributes.json", bytes)
    }
}

/// One of the files above as it is written: indented, with a newline at its end.
pub fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::new(ErrorKind::Io, "cannot write this as JSON").with_source(e))?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u64,
}

fn parse_versioned<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T> {
    if bytes.len() > SIZE_LIMIT {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("{file} has {} bytes, more than the {SIZE_LIMIT} allowed", bytes.len()),
        ));
    }
    let not_readable = |e| Error::new(ErrorKind::Corrupt, format!("{file} cannot be understood")).with_source(e);
    // The version first: a newer one may differ in everything else.
    let VersionOnly { version } = serde_json::from_slice(bytes).map_err(not_readable)?;
    match version {
        1..=VERSION => serde_json::from_slice(bytes).map_err(not_readable),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!("{file} is of version {version}; this program reads version {VERSION}"),
        )
        .with_hint("use a newer annals")),
    }
}

/// Times as RFC 3339 text.
mod rfc3339 {
    use super::*;

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(time)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(from)?;
        Timestamp::parse_rfc3339(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALLEST: &str = r#"{"version":1,"guest":"100","kind":"qemu","time":"2024-11-07T16:51:22Z","disks":[]}"#;

    fn kind_of(text: &str) -> ErrorKind {
        Manifest::parse(text.as_bytes()).unwrap_err().kind()
    }

    #[test]
    fn a_manifest_survives_being_written_and_read() {
        let manifest = Manifest {
            version: VERSION,
            guest: "100".into(),
            kind: GuestKind::Qemu,
            time: Timestamp::parse_epoch("1730998282").unwrap(),
            disks: vec![ManifestDisk {
                name: "drive-scsi0".into(),
                file: "drive-scsi0.qcow2".into(),
                format: ImageFormat::Qcow2,
                size: Some(1 << 30),
                parent: Some(Parent { backup: "qemu-2024-11-06T16-51-20Z".into(), file: "drive-scsi0.qcow2".into() }),
                reason: Some("the bitmap counts from the parent".into()),
                bitmap: Some("annals".into()),
                checkpoint: None,
                hash: Some(FileHash { blake3: "00".repeat(32), size: Some(9), chunk_size: None, chunks: None }),
            }],
            tool: Some(Tool { name: "annals".into(), version: "0.1.0".into() }),
            archive: None,
            files: vec![ManifestFile {
                name: "guest.conf".into(),
                hash: FileHash { blake3: "11".repeat(32), size: Some(0), chunk_size: None, chunks: None },
            }],
        };
        assert_eq!(Manifest::parse(&to_json(&manifest).unwrap()).unwrap(), manifest);
    }

    #[test]
    fn only_version_guest_kind_and_time_are_needed() {
        assert!(Manifest::parse(SMALLEST.as_bytes()).unwrap().disks.is_empty());
        for field in ["version", "guest", "kind", "time"] {
            let without = SMALLEST.replace(&format!("\"{field}\""), &format!("\"no-{field}\""));
            assert_eq!(kind_of(&without), ErrorKind::Corrupt, "{field}");
        }
    }

    #[test]
    fn fields_of_a_later_release_are_passed_over() {
        let text = SMALLEST.replace("\"disks\"", "\"moon\":{\"phase\":[1,2]},\"disks\"");
        assert!(Manifest::parse(text.as_bytes()).is_ok());
    }

    #[test]
    fn a_newer_version_is_refused_by_its_number_whatever_else_it_holds() {
        let e = Manifest::parse(br#"{"version":7,"guest":{"id":100}}"#).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        assert!(e.to_string().contains("version 7"), "{e}");
        assert_eq!(kind_of(r#"{"version":0}"#), ErrorKind::Unsupported);
    }

    #[test]
    fn a_file_larger_than_the_limit_is_not_parsed() {
        let mut text = SMALLEST.to_owned();
        text.push_str(&" ".repeat(SIZE_LIMIT));
        let e = Manifest::parse(text.as_bytes()).unwrap_err();
        assert!(e.to_string().contains("more than"), "{e}");
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
        let deep = format!("{{\"version\":1,\"x\":{}", "[".repeat(1 << 20));
        assert_eq!(kind_of(&deep), ErrorKind::Corrupt);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(&bytes);
            let _ = StoreMarker::parse(&bytes);
            let _ = Attributes::parse(&bytes);
        }

        #[test]
        fn no_mutation_of_a_manifest_makes_the_parser_panic(
            at in 0..SMALLEST.len(), byte in any::<u8>(), cut in 0..SMALLEST.len(),
        ) {
            let mut bytes = SMALLEST.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = Manifest::parse(&bytes);
            bytes.truncate(cut);
            prop_assert!(Manifest::parse(&bytes).is_err());
        }
    }
}
