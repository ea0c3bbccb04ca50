//! The tree without a mount: what each question of the kernel is answered, also in orders that no tool would ask in.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod answers;
mod model;
// Shared with other tests, which use the rest of it.
#[path = "../support/random.rs"]
#[allow(dead_code)]
mod random;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use annals::archive::ArchiveEnv;
use annals::base::{ErrorKind, Result};
use annals::catalog::Store;
use annals::disk::DiskEnv;
use annals::fs::{Entry, Handle, Holes, Inode, Ownership, Tree};

/// A store in a directory of its own, without QEMU: its disks are raw images.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn backup(&self, guest: &str, time: &str) -> PathBuf {
        self.path().join(guest).join(format!("qemu-{time}"))
    }

    /// Gives a file of a backup this content, by a new file that is renamed over an old one.
    pub(crate) fn put(&self, guest: &str, time: &str, name: &str, content: &[u8]) {
        let dir = self.backup(guest, time);
        std::fs::create_dir_all(&dir).unwrap();
        let new = self.path().join(".new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, dir.join(name)).unwrap();
    }

    pub(crate) fn tree(&self) -> Tree {
        let env = DiskEnv::new(0);
        let archives = ArchiveEnv::new(env.block_cache().clone(), None);
        Tree::new(Store::open(self.path(), env.clone()).unwrap(), env, archives, Ownership::default())
    }
}

/// Walks to a path, one lookup for each of its names, as the kernel does. All of them are to be forgotten.
pub(crate) fn walk(tree: &Tree, path: &str) -> Result<Vec<Entry>> {
    let mut at = Inode::ROOT;
    path.split('/')
        .map(|name| {
            let entry = tree.lookup(at, OsStr::new(name))?;
            at = entry.attributes.inode;
            Ok(entry)
        })
        .collect()
}

/// The entry at a path.
pub(crate) fn find(tree: &Tree, path: &str) -> Result<Entry> {
    walk(tree, path).map(|entries| *entries.last().unwrap())
}

/// The same, and what it has been found to be since is asked again as the kernel does when an answer says so.
pub(crate) fn open(tree: &Tree, path: &str) -> Result<(Inode, Handle)> {
    let mut tried = 0;
    loop {
        let inode = find(tree, path)?.attributes.inode;
        match tree.open(inode, Holes::Exact) {
            Ok(opened) => return Ok((inode, opened.handle)),
            Err(e) if e.kind() == ErrorKind::Changed && tried < 2 => tried += 1,
            Err(e) => return Err(e),
        }
    }
}

pub(crate) fn read(tree: &Tree, handle: Handle) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut buf = [0; 1000];
    loop {
        match tree.read(handle, &mut buf, content.len() as u64)? {
            0 => return Ok(content),
            got => content.extend_from_slice(&buf[..got]),
        }
    }
}

/// The names in a directory, `.` and `..` aside.
pub(crate) fn list(tree: &Tree, dir: Inode) -> Result<Vec<String>> {
    let handle = tree.open_dir(dir)?;
    let mut names = Vec::new();
    let listed = tree.read_dir(handle, 0, |entry| {
        names.push(entry.name.to_str().unwrap().to_owned());
        true
    });
    tree.close_dir(handle);
    listed?;
    assert_eq!(names.drain(..2).collect::<Vec<_>>(), [".", ".."]);
    Ok(names)
}
