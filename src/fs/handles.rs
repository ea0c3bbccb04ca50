//! What is open: files with their reading pattern, directories with the listing they were opened on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::dir::Listing;
use super::file::{Holes, OpenFile};
use super::readahead::ReadAhead;
use super::{Handle, Inode};
use crate::base::{Error, ErrorKind, Result};

/// A file as one opener has it.
#[derive(Debug)]
pub(super) struct FileHandle {
    pub(super) inode: Inode,
    pub(super) file: Arc<OpenFile>,
    pub(super) ahead: ReadAhead,
    pub(super) holes: Holes,
}

/// A directory as one opener has it. The listing is taken when reading starts, and again when it starts over.
#[derive(Debug)]
pub(super) struct DirHandle {
    pub(super) inode: Inode,
    pub(super) listing: Mutex<Option<Arc<Listing>>>,
}

/// All that is open in a mount. Numbers are never used twice.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: AtomicU64,
    files: RwLock<HashMap<Handle, Arc<FileHandle>>>,
    dirs: RwLock<HashMap<Handle, Arc<DirHandle>>>,
    /// The content of each inode that is open: the same for all who open it, and there after its name is gone.
    contents: Mutex<HashMap<Inode, Weak<OpenFile>>>,
}

impl Handles {
    fn number(&self) -> Handle {
        Handle(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The content of `inode` if somebody has it open.
    pub(super) fn content(&self, inode: Inode) -> Option<Arc<OpenFile>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner).get(&inode).and_then(Weak::upgrade)
    }

    /// Opens `inode`, whose content is `file` unless somebody else opened it in the meantime.
    pub(super) fn open_shared(&self, inode: Inode, file: Arc<OpenFile>, holes: Holes) -> Handle {
        let file = {
            let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
            match contents.get(&inode).and_then(Weak::upgrade) {
                Some(open) => open,
                None => {
                    contents.insert(inode, Arc::downgrade(&file));
                    file
                }
            }
        };
        self.open_private(inode, file, holes)
    }

    /// Opens `inode` with content that no other opener gets.
    pub(super) fn open_private(&self, inode: Inode, file: Arc<OpenFile>, holes: Holes) -> Handle {
        let handle = self.number();
        let open = Arc::new(FileHandle { inode, file, ahead: ReadAhead::default(), holes });
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(handle, open);
        handle
    }

    pub(super) fn file(&self, handle: Handle) -> Result<Arc<FileHandle>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&handle).cloned().ok_or_else(|| not_open(handle))
    }

    pub(super) fn close_file(&self, handle: Handle) {
        let Some(closed) = self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&handle) else { return };
        let inode = closed.inode;
        drop(closed);
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        if contents.get(&inode).is_some_and(|content| content.strong_count() == 0) {
            contents.remove(&inode);
        }
    }

    pub(super) fn open_dir(&self, inode: Inode) -> Handle {
        let handle = self.number();
        let open = Arc::new(DirHandle { inode, listing: Mutex::default() });
        self.dirs.write().unwrap_or_else(PoisonError::into_inner).insert(handle, open);
        handle
    }

    pub(super) fn dir(&self, handle: Handle) -> Result<Arc<DirHandle>> {
        let dirs = self.dirs.read().unwrap_or_else(PoisonError::into_inner);
        dirs.get(&handle).cloned().ok_or_else(|| not_open(handle))
    }

    pub(super) fn close_dir(&self, handle: Handle) {
        self.dirs.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    }

    /// How many files are open.
    pub(super) fn open_files(&self) -> usize {
        self.files.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

fn not_open(handle: Handle) -> Error {
    Error::new(ErrorKind::Usage, format!("nothing is open under the number {}", handle.0))
}
