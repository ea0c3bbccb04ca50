//! Backups of containers for tests, and what is in them.

// Each test binary compiles this for itself and uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annals::archive::{self, ArchiveEnv, ArchiveFormat};
use annals::base::Result;
use annals::catalog::{Backup, BackupRef, Store};
use annals::disk::DiskEnv;
use annals::format::hash::FileHashes;
use annals::ingest::container::{self, FormatChoice, Request};
use annals::ingest::{Event, Finished, Interrupt};
use annals::storage::BlockCache;
use annals::storage::write::Direct;

use crate::support::trees::{Listing, in_archive};

pub(crate) const TAR: FormatChoice = FormatChoice::Only(ArchiveFormat::Tar);
pub(crate) const SQUASHFS: FormatChoice = FormatChoice::Only(ArchiveFormat::Squashfs);

/// A request for guest 101.
pub(crate) fn request(store: &Path, tree: &Path, format: FormatChoice) -> Request {
    Request {
        store: store.to_owned(),
        guest: "101".parse().unwrap(),
        tree: tree.to_owned(),
        format,
        excludes: Vec::new(),
        files: Vec::new(),
        bytes_per_second: None,
    }
}

pub(crate) fn run(request: &Request, listener: &(dyn Fn(&Event) + Send + Sync)) -> Result<Finished> {
    container::run(request, Arc::new(Direct), &Interrupt::default(), listener)
}

/// Runs a request that has to succeed; returns where the archive is.
pub(crate) fn back_up(request: &Request) -> PathBuf {
    let made = run(request, &|_| {}).unwrap_or_else(|e| panic!("{}", e.report()));
    request.store.join("101").join(made.backup).join(made.archive.unwrap().file)
}

/// The guest's backups, oldest first, as the catalog has them.
pub(crate) fn backups(store: &Path) -> Vec<Arc<Backup>> {
    let store = Store::open(store, DiskEnv::new(0)).unwrap();
    let id = "101".parse().unwrap();
    let Ok(guest) = store.guest(&id) else { return Vec::new() };
    guest.backups().iter().map(|summary| store.backup(&id, &summary.name).unwrap()).collect()
}

/// What the archive of a backup holds, by our own reader; its hashes are checked on the way.
pub(crate) fn contents(store: &Path, backup: &Backup) -> Listing {
    let open = Store::open(store, DiskEnv::new(0)).unwrap();
    let (file, format) = backup.archives().next().expect("an archive");
    let manifest = backup.manifest.as_ref().unwrap().archive.clone().unwrap();
    let dir = store.join("101").join(backup.summary.directory().unwrap());
    let hashes = FileHashes::of(&fs::read(dir.join(&file.name)).unwrap());
    let noted = manifest.hash.unwrap();
    assert_eq!((noted.blake3, noted.size), (hashes.file.to_string(), Some(hashes.size)));
    match noted.chunks {
        Some(list) => assert_eq!(fs::read(dir.join(list)).unwrap(), hashes.chunk_list()),
        None => assert_eq!(hashes.chunks.len(), 1),
    }
    let env = ArchiveEnv::new(Arc::new(BlockCache::new(1 << 20)), None);
    let file = open.open_file(backup, file).unwrap();
    let tree = archive::open("archive", Arc::new(file), format, &env).unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(tree.broken(), None);
    assert_eq!(manifest.entries, Some(tree.entries()));
    in_archive(&*tree)
}

/// What is left of the latest backup of a reference, for messages.
pub(crate) fn latest(store: &Path) -> Arc<Backup> {
    let open = Store::open(store, DiskEnv::new(0)).unwrap();
    let reference: BackupRef = "101@latest".parse().unwrap();
    let guest = open.guest(&reference.guest).unwrap();
    open.backup(&guest.id, &reference.find(&guest).unwrap().name).unwrap()
}

/// The tree as an image by tar2sqfs has it: seconds from 1970 to 2106, holes by the block.
pub(crate) fn as_squashfs_has_it(mut listing: Listing) -> Listing {
    for entry in listing.values_mut() {
        entry.mtime = (entry.mtime.0.clamp(0, u32::MAX.into()), 0);
        entry.data.clear();
    }
    listing
}
