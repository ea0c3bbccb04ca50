//! What can be worked out again from a store, kept between runs: never inside the store, bounded, replaced as a whole.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{FileIdentity, FilePool, Gate, RelPath, StoreFile};
use crate::base::{Error, ErrorKind, Result};

/// The directory for such files. Losing any of them costs time, nothing else.
#[derive(Debug)]
pub struct DerivedDir {
    gate: Gate,
    path: PathBuf,
    limit: u64,
}

/// What all of it together may take on the disk, in bytes.
const LIMIT: u64 = 4 << 30;
const SUFFIX: &str = ".annals-cache";

impl DerivedDir {
    /// The directory of the user who runs this: `annals` in `$XDG_CACHE_HOME`; where that is not set `/var/cache/annals` for root,
    /// and for others `annals` in `~/.cache`. `None` where there is no home.
    #[must_use]
    pub fn usual_path() -> Option<PathBuf> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let root = || rustix::process::geteuid().is_root().then(|| PathBuf::from("/var/cache"));
        let home = || absolute("HOME").map(|home| home.join(".cache"));
        Some(absolute("XDG_CACHE_HOME").or_else(root).or_else(home)?.join("annals"))
    }

    /// Opens the directory `path`, made if need be, for this user alone.
    pub fn open(path: &Path, pool: Arc<FilePool>) -> Result<Arc<Self>> {
        Self::with_limit(path, pool, LIMIT)
    }

    /// As [`open`](Self::open), with what all files together may take on the disk, in bytes.
    pub fn with_limit(path: &Path, pool: Arc<FilePool>, limit: u64) -> Result<Arc<Self>> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| Error::io(format!("cannot make the cache directory '{}'", path.display()), e))?;
        let meta = rustix::fs::stat(path)
            .map_err(|e| Error::io(format!("cannot stat the cache directory '{}'", path.display()), e))?;
        // Whoever can write there can make us show wrong trees.
        if meta.st_uid != rustix::process::geteuid().as_raw() || meta.st_mode & 0o022 != 0 {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the cache directory '{}' belongs to or can be written by somebody else", path.display()),
            ));
        }
        Ok(Arc::new(Self { gate: Gate::open(path, pool)?, path: path.to_owned(), limit }))
    }

    /// The file `name`, if it is there.
    pub fn read(&self, name: &str) -> Result<Option<StoreFile>> {
        match self.gate.open_file(&file_name(name)?) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes or replaces the file `name` with what `fill` writes, and opens it. Readers see the old one or the new one, whole.
    ///
    /// Files that have not been written for longest go when the limit is passed.
    pub fn write(&self, name: &str, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<StoreFile> {
        self.write_within(name, self.limit, fill)
    }

    /// As [`write`](Self::write), for files of a kind that can be spared: those whose names begin alike up to the first `-` go
    /// as soon as together they take more than `limit` bytes, before any other.
    pub fn write_within(
        &self,
        name: &str,
        limit: u64,
        fill: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<StoreFile> {
        let path = file_name(name)?;
        let failed = |what: &str, e: std::io::Error| Error::io(format!("cannot {what} '{name}' in the cache"), e);
        let target = self.path.join(path.as_str());
        // Unlike anything else here it is not synced: a file that a crash cut short has a wrong checksum.
        let partial = self.path.join(format!(".{}.partial", uuid::Uuid::new_v4().simple()));
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&partial)
            .map_err(|e| failed("make", e))
            .and_then(|file| {
                let mut writer = BufWriter::with_capacity(1 << 20, file);
                fill(&mut writer)?;
                writer.flush().map_err(|e| failed("write", e))
            })
            .and_then(|()| std::fs::rename(&partial, &target).map_err(|e| failed("name", e)));
        if let Err(e) = written {
            // The first error is the one that matters.
            let _ = std::fs::remove_file(&partial);
            return Err(e);
        }
        let kind = name.split_inclusive('-').next().unwrap_or(name);
        self.make_room(&target, |other| other.starts_with(kind), limit);
        self.make_room(&target, |_| true, self.limit);
        self.gate.open_file(&path)
    }

    /// Removes the oldest of the files that are `meant` until the rest of them is within `limit`; `keep` stays. What cannot be
    /// removed stays as well.
    fn make_room(&self, keep: &Path, meant: impl Fn(&str) -> bool, limit: u64) {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return };
        let mut files = Vec::new();
        for entry in entries.flatten() {
            let ours = entry.file_name().to_str().is_some_and(|name| name.ends_with(SUFFIX) && meant(name));
            if let Ok(meta) = entry.metadata()
                && ours
                && meta.is_file()
                && let Ok(changed) = meta.modified()
            {
                files.push((changed, meta.len(), entry.path()));
            }
        }
        files.sort_unstable();
        let mut total: u64 = files.iter().fold(0, |sum, (_, len, _)| sum.saturating_add(*len));
        for (_, len, path) in files {
            if total <= limit {
                break;
            }
            if path != keep && std::fs::remove_file(&path).is_ok() {
                total = total.saturating_sub(len);
            }
        }
    }
}

/// A name for what is derived from the file `identity`, the same as long as it lies where it does.
#[must_use]
pub fn derived_name(kind: &str, identity: &FileIdentity) -> String {
    format!("{kind}-{:x}-{:x}", identity.device, identity.inode)
}

fn file_name(name: &str) -> Result<RelPath> {
    RelPath::new(&format!("{name}{SUFFIX}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::HostOffset;
    use crate::storage::Storage;

    fn dir(limit: u64) -> (tempfile::TempDir, Arc<DerivedDir>) {
        let dir = tempfile::tempdir().unwrap();
        let derived = DerivedDir::with_limit(&dir.path().join("a/b"), FilePool::new(8), limit).unwrap();
        (dir, derived)
    }

    fn put(dir: &DerivedDir, name: &str, bytes: &[u8]) -> StoreFile {
        dir.write(name, |to| to.write_all(bytes).map_err(|e| Error::io("write", e))).unwrap()
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_whoever_reads_the_old_one_goes_on() {
        let (_keep, dir) = dir(LIMIT);
        assert!(dir.read("x").unwrap().is_none());
        let old = put(&dir, "x", b"old");
        put(&dir, "x", b"newer");
        let mut bytes = [0; 3];
        old.read_exact_at(&mut bytes, HostOffset(0)).unwrap();
        assert_eq!(&bytes, b"old");
        assert_eq!(dir.read("x").unwrap().unwrap().size(), 5);
    }

    #[test]
    fn what_fails_half_way_leaves_nothing_behind() {
        let (keep, dir) = dir(LIMIT);
        put(&dir, "x", b"old");
        let failed = dir.write("x", |_| Err(Error::new(ErrorKind::Corrupt, "no")));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(dir.read("x").unwrap().unwrap().size(), 3);
        assert_eq!(std::fs::read_dir(keep.path().join("a/b")).unwrap().count(), 1);
    }

    #[test]
    fn the_oldest_files_make_room_for_new_ones() {
        let (_keep, dir) = dir(25);
        for (age, name) in [(3, "a"), (2, "b"), (1, "c")] {
            put(&dir, name, &[0; 10]);
            let file = std::fs::File::options().write(true).open(dir.path.join(format!("{name}{SUFFIX}"))).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age * 60)).unwrap();
        }
        put(&dir, "d", &[0; 10]);
        let left: Vec<bool> = ["a", "b", "c", "d"].iter().map(|n| dir.read(n).unwrap().is_some()).collect();
        assert_eq!(left, [false, false, true, true]);
    }

    #[test]
    fn files_of_a_kind_that_can_be_spared_make_room_before_any_other() {
        let (_keep, dir) = dir(LIMIT);
        put(&dir, "dear-1", &[0; 10]);
        for n in 1..=4 {
            let name = format!("cheap-{n}");
            dir.write_within(&name, 25, |to| to.write_all(&[0; 10]).map_err(|e| Error::io("write", e))).unwrap();
            let file = std::fs::File::options().write(true).open(dir.path.join(format!("{name}{SUFFIX}"))).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(60 - n)).unwrap();
        }
        let names = ["dear-1", "cheap-1", "cheap-2", "cheap-3", "cheap-4"];
        let left: Vec<bool> = names.iter().map(|n| dir.read(n).unwrap().is_some()).collect();
        assert_eq!(left, [true, false, false, true, true]);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(DerivedDir::open(dir.path(), FilePool::new(1)).unwrap_err().kind(), ErrorKind::Refused);
    }
}
