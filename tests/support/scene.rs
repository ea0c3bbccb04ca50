//! A store and sources for one test.

// Each test binary compiles this for itself and uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use annals::base::{GuestOffset, Result};
use annals::catalog::{BackupRef, Store};
use annals::disk::DiskEnv;
use annals::format::hash::FileHashes;
use annals::format::manifest::{Manifest, ManifestDisk};
use annals::ingest::{self, Event, Finished, Interrupt, Request};
use annals::storage::write::Direct;

use crate::support::tools;

pub(crate) const CLUSTER: u64 = 64 << 10;

pub(crate) struct Scene {
    dir: tempfile::TempDir,
    pub(crate) events: Arc<Mutex<Vec<Event>>>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Store::init(&dir.path().join("store")).unwrap();
        Self { dir, events: Arc::default() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub(crate) fn guest(&self) -> PathBuf {
        self.store().join("100")
    }

    /// A request for guest 100 with these disks, as the command line spells them.
    pub(crate) fn request(&self, disks: &[&str]) -> Request {
        Request {
            store: self.store(),
            guest: "100".parse().unwrap(),
            disks: disks.iter().map(|disk| disk.parse().unwrap()).collect(),
            files: Vec::new(),
            checkpoint: None,
            full: false,
            max_layers: annals::ingest::MAX_LAYERS,
            zstd: None,
            bytes_per_second: None,
            discard_source: false,
            patience: std::time::Duration::from_secs(60),
        }
    }

    pub(crate) fn run(&self, request: &Request) -> Result<Finished> {
        let events = self.events.clone();
        ingest::run(request, Arc::new(Direct), &Interrupt::default(), &move |event| {
            events.lock().unwrap().push(event.clone());
        })
    }

    /// Runs a request that has to succeed.
    pub(crate) fn back_up(&self, request: &Request) -> Finished {
        self.run(request).unwrap_or_else(|e| panic!("{}", e.report()))
    }

    /// A raw disk of these bytes.
    pub(crate) fn raw(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A list of dirty ranges.
    pub(crate) fn list(&self, name: &str, ranges: &[(u64, u64)]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, ranges.iter().map(|(at, len)| format!("{at} {len}\n")).collect::<String>()).unwrap();
        path
    }

    /// Names in the guest's directory, but for the lock's.
    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.guest()).into_iter().filter(|name| name != ".writer.lock").collect()
    }

    /// What one backup's disk reads as, through the catalog and the flattened chain.
    pub(crate) fn read(&self, backup: &str, disk: &str) -> Vec<u8> {
        read_disk(&self.store(), &format!("100@{}", backup.trim_start_matches("qemu-")), disk)
    }

    pub(crate) fn manifest(&self, backup: &str) -> Manifest {
        Manifest::parse(&fs::read(self.guest().join(backup).join("backup.json")).unwrap()).unwrap()
    }

    /// Checks an image by QEMU, against these bytes too, and its hashes by reading it.
    pub(crate) fn check_image(&self, backup: &str, disk: &str, bytes: &[u8]) {
        let dir = self.guest().join(backup);
        let manifest = self.manifest(backup);
        let disk = manifest.disks.iter().find(|known| known.name == disk).unwrap();
        check_hashes(&dir, disk);
        if !tools::have(&["qemu-img"]) {
            return;
        }
        let image = dir.join(&disk.file);
        let image = image.to_str().unwrap();
        let checked = tools::run("qemu-img", &["check", image]);
        assert!(checked.contains("No errors were found"), "{checked}");
        let expected = self.raw("expected", bytes);
        tools::run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", expected.to_str().unwrap(), image]);
    }
}

fn check_hashes(dir: &Path, disk: &ManifestDisk) {
    let noted = disk.hash.as_ref().unwrap();
    let hashes = FileHashes::of(&fs::read(dir.join(&disk.file)).unwrap());
    assert_eq!((noted.blake3.as_str(), noted.size), (hashes.file.to_string().as_str(), Some(hashes.size)));
    match &noted.chunks {
        Some(list) => assert_eq!(fs::read(dir.join(list)).unwrap(), hashes.chunk_list()),
        None => assert_eq!(hashes.chunks.len(), 1),
    }
}

/// What a disk of a backup reads as.
pub(crate) fn read_disk(store: &Path, reference: &str, disk: &str) -> Vec<u8> {
    let store = Store::open(store, DiskEnv::new(0)).unwrap();
    let reference: BackupRef = reference.parse().unwrap();
    let guest = store.guest(&reference.guest).unwrap();
    let backup = store.backup(&guest.id, &reference.find(&guest).unwrap().name).unwrap();
    let entry = backup.disk(disk).unwrap_or_else(|| panic!("no disk {disk} in {backup:?}"));
    let disk = store.disk(&backup, entry).unwrap_or_else(|e| panic!("{}", e.report()));
    let mut bytes = vec![0xee; disk.size() as usize];
    assert_eq!(disk.read_at(&mut bytes, GuestOffset(0)).unwrap(), bytes.len());
    bytes
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Writes into a raw disk and into its model.
pub(crate) fn put(path: &Path, model: &mut [u8], at: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
    model[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

/// Where two disks begin to differ; a whole disk in a message helps nobody.
#[track_caller]
pub(crate) fn assert_same(read: &[u8], expected: &[u8]) {
    assert_eq!(read.len(), expected.len());
    if read == expected {
        return;
    }
    if let Some(at) = read.iter().zip(expected).position(|(read, expected)| read != expected) {
        panic!("byte {at:#x} is {:#x} and should be {:#x}", read[at], expected[at]);
    }
}
