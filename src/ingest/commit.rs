//! From a directory that nobody sees to a backup, in one rename.

use crate::base::{Error, ErrorKind, Result};
use crate::catalog::MANIFEST;
use crate::format::hash::FileHashes;
use crate::format::manifest::{self, FileHash, Manifest, ManifestFile};
use crate::storage::write::{NewFile, WriteDir};

/// What is left of a failed run, and the log of one that succeeded.
pub(super) const LOG: &str = "backup.log";

/// A backup that is being made.
pub(super) struct Unfinished {
    guest: WriteDir,
    dir: WriteDir,
    name: String,
}

/// A backup that can be seen from now on.
#[derive(Debug)]
pub(super) enum Published {
    /// Its name is on the medium, as its data are.
    Durably,
    /// Its data are on the medium; whether its name is, the medium did not say.
    Unsurely(Error),
}

/// The file beside `file` that lists its chunks' hashes; readers of the store pass over names that start with a dot.
fn chunk_list_of(file: &str) -> String {
    format!(".{file}.blake3")
}

impl Unfinished {
    pub(super) fn start(guest: &WriteDir) -> Result<Self> {
        let (dir, name) = guest.make_partial_dir()?;
        Ok(Self { guest: guest.clone(), dir, name })
    }

    /// An empty file in it.
    pub(super) fn make_file(&self, name: &str) -> Result<NewFile> {
        self.dir.make_file(name)
    }

    /// Keeps bytes verbatim; returns their entry in the manifest.
    pub(super) fn keep(&self, name: &str, bytes: &[u8]) -> Result<ManifestFile> {
        self.dir.make_whole_file(name, bytes)?;
        Ok(ManifestFile { name: name.to_owned(), hash: self.note_hashes(name, &FileHashes::of(bytes))? })
    }

    /// What the manifest says of a file's hashes; where there are many, they go into a file beside it.
    pub(super) fn note_hashes(&self, file: &str, hashes: &FileHashes) -> Result<FileHash> {
        let mut noted =
            FileHash { blake3: hashes.file.to_string(), size: Some(hashes.size), chunk_size: None, chunks: None };
        if hashes.chunks.len() > 1 {
            let list = chunk_list_of(file);
            self.dir.make_whole_file(&list, &hashes.chunk_list())?;
            noted.chunk_size = Some(crate::format::hash::CHUNK_BYTES as u64);
            noted.chunks = Some(list);
        }
        Ok(noted)
    }

    /// Writes the log and the manifest, and makes it the backup `directory`.
    ///
    /// Every file in it is on the medium already. When this fails, nothing can be seen of it.
    pub(super) fn publish(&self, directory: &str, mut manifest: Manifest, log: &str) -> Result<Published> {
        manifest.files.push(self.keep(LOG, log.as_bytes())?);
        self.dir.make_whole_file(MANIFEST, &manifest::to_json(&manifest)?)?;
        self.dir.sync()?;
        self.guest.rename(&self.name, directory)?;
        // The rename cannot be taken back: whoever looks may have seen the backup, and it is whole.
        Ok(match self.guest.sync() {
            Ok(()) => Published::Durably,
            Err(e) => Published::Unsurely(e),
        })
    }

    /// Removes it.
    pub(super) fn abandon(&self) -> Result<()> {
        self.guest.remove_tree(&self.name)
    }
}

/// Leaves the log of a failed run as `<directory>.failed/backup.log`.
pub(super) fn leave_log(guest: &WriteDir, directory: &str, log: &str) -> Result<()> {
    let (dir, partial) = guest.make_partial_dir()?;
    let written = dir.make_whole_file(LOG, log.as_bytes()).and_then(|()| dir.sync());
    let named = written.and_then(|()| name_log(guest, &partial, directory));
    match named {
        Ok(true) => guest.sync(),
        Ok(false) => guest.remove_tree(&partial),
        Err(e) => {
            // The next run sweeps what cannot be removed now.
            let _ = guest.remove_tree(&partial);
            Err(e)
        }
    }
}

/// Gives the log of a failed run its name, unless very many runs of that second have failed.
fn name_log(guest: &WriteDir, partial: &str, directory: &str) -> Result<bool> {
    /// More failures in one second than that are told of elsewhere.
    const MOST: u32 = 100;
    for attempt in 1..MOST {
        let name = if attempt == 1 { format!("{directory}.failed") } else { format!("{directory}.{attempt}.failed") };
        match guest.rename(partial, &name) {
            Err(e) if e.kind() == ErrorKind::Exists => {}
            renamed => return renamed.map(|()| true),
        }
    }
    Ok(false)
}
