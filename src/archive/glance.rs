//! What can be told of an archive without going through it.

use std::sync::Arc;

use super::env::ArchiveEnv;
use super::node::Tree as _;
use super::{ArchiveFormat, squashfs, tar};
use crate::base::error::ResultExt as _;
use crate::base::{Error, ErrorKind, HostOffset, Result};
use crate::storage::Storage;

/// Bytes of the zeros that end a tar archive.
const END_MARK: usize = 1024;

/// What a glance at an archive tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Glance {
    /// How many entries it has, hard links counted once, where that is known.
    pub entries: Option<u64>,
    /// What of it is missing, damaged or not shown as it is, where somebody went through it before.
    pub report: Option<String>,
}

/// Looks at the archive in `file`: at a squashfs image's superblock and tables, at a tar archive's kept index, else at its end.
///
/// An error where it cannot be whole. No error is no proof: only [`open`](super::open) goes through a tar archive.
pub fn glance(name: &str, file: Arc<dyn Storage>, format: ArchiveFormat, env: &Arc<ArchiveEnv>) -> Result<Glance> {
    match format {
        ArchiveFormat::Squashfs => {
            let tree = squashfs::SquashTree::open(name, file, env)?;
            Ok(Glance { entries: Some(tree.entries()), report: None })
        }
        ArchiveFormat::Tar => match tar::kept_index(name, &file, env) {
            Some(index) => Ok(Glance { entries: Some(index.nodes()), report: index.report().map(str::to_owned) }),
            None => check_end(&*file).context(|| format!("archive {name}")).map(|()| Glance::default()),
        },
    }
}

fn check_end(file: &dyn Storage) -> Result<()> {
    let cut_short = || {
        let message = format!("its {} bytes do not end with the mark that ends a tar archive", file.size());
        Error::new(ErrorKind::Corrupt, message).with_hint("it was cut short, or is being copied still")
    };
    let at = file.size().checked_sub(END_MARK as u64).ok_or_else(cut_short)?;
    let mut end = [0; END_MARK];
    file.read_exact_at(&mut end, HostOffset(at))?;
    if end.iter().any(|byte| *byte != 0) {
        return Err(cut_short());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::BlockCache;
    use crate::storage::memory::MemoryFile;

    #[test]
    fn a_tar_archive_that_does_not_end_as_one_is_told_without_going_through_it() {
        let env = ArchiveEnv::new(Arc::new(BlockCache::new(0)), None);
        let look = |bytes: Vec<u8>| glance("a.tar", Arc::new(MemoryFile::new(bytes)), ArchiveFormat::Tar, &env);
        assert_eq!(look(vec![0; 10240]).unwrap(), Glance::default());
        for bytes in [Vec::new(), vec![0; 1023], [vec![0; 9000], vec![1; 1], vec![0; 1000]].concat()] {
            assert_eq!(look(bytes).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
}
