//! The layer that an increment would lie on: the disk in the latest backup that has it.

use std::sync::Arc;

use super::decide::ParentDisk;
use crate::base::{ErrorKind, Result};
use crate::catalog::{GuestId, GuestKind, Store};
use crate::disk::Disk;
use crate::format::manifest::Parent;

/// A parent that is whole, open for reading, or why there is none.
pub(super) type Found = Result<(ParentDisk, Arc<Disk>), String>;

/// Looks for the parent of the disk `name`.
///
/// The outer error is that of a guest that cannot be looked at. Whatever is wrong with the latest backup alone is a reason for
/// a full backup, never for an older parent: the changes count from the latest.
pub(super) fn find(store: &Store, guest: &GuestId, name: &str) -> Result<Found> {
    let first = || Ok(Err("it is the guest's first backup".to_owned()));
    let known = match store.guest(guest) {
        Ok(known) if known.backups().is_empty() => return first(),
        Ok(known) => known,
        Err(e) if e.kind() == ErrorKind::NotFound => return first(),
        Err(e) => return Err(e),
    };
    for summary in known.backups().iter().rev().filter(|summary| summary.kind == GuestKind::Qemu) {
        let backup = match store.backup(guest, &summary.name) {
            Ok(backup) => backup,
            Err(e) => return Ok(Err(format!("the backup {} cannot be read: {}", summary.name, e.report()))),
        };
        let Some(entry) = backup.disk(name) else { continue };
        let (Some(directory), file) = (summary.directory(), entry.path.file_name()) else {
            return Ok(Err(format!(
                "the disk's latest backup, {}, is in a layout that nothing is added to",
                summary.name
            )));
        };
        let broken = |why: &str| Ok(Err(format!("the disk's latest backup, {directory}, is not whole: {why}")));
        let disk = match store.disk(&backup, entry) {
            Ok(disk) => disk,
            Err(e) => return broken(&e.report()),
        };
        let noted = backup.manifest.as_ref().and_then(|m| m.disks.iter().find(|disk| disk.name == name));
        let file_size = disk.layers().next().map(|layer| layer.file_size);
        if let Some(size) = noted.and_then(|disk| disk.hash.as_ref()).and_then(|hash| hash.size)
            && file_size != Some(size)
        {
            return broken(&format!("{file} does not have the {size} bytes that its manifest tells of"));
        }
        match disk.faults() {
            Ok(faults) => {
                if let Some(fault) = faults.first() {
                    return broken(&fault.error.report());
                }
            }
            Err(e) => return broken(&e.report()),
        }
        let parent = ParentDisk {
            place: Parent { backup: directory.to_owned(), file: file.to_owned() },
            format: entry.format,
            size: disk.size(),
            depth: disk.layers().len(),
            checkpoint: noted.and_then(|disk| disk.checkpoint.clone()),
        };
        return Ok(Ok((parent, disk)));
    }
    Ok(Err("it is the disk's first backup".to_owned()))
}
