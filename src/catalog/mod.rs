//! Layer 4: which guests and backups a store holds, and which files each consists of.
//!
//! A [`Store`] hands out immutable snapshots ([`Guest`], [`Backup`]) and looks again, at most once a second,
//! whether the directories behind them have changed. Everything here comes from directory listings and small
//! files; the bytes of disks are the business of the layer below, and nothing here knows about mounting.

mod check;
mod disks;
mod extras;
mod fresh;
mod levels;
mod model;
mod names;
mod native;
mod ovirt;
mod plain;
mod reference;
mod store;
#[cfg(test)]
mod tests;

pub use check::{CheckedBackup, FoundArchive};
pub use model::{Backup, BackupFile, BackupSummary, DiskEntry, Guest, PreviousInfo, Problem};
pub use names::{BackupName, GuestId, check_disk_name, check_file_name};
pub use native::MANIFEST;
pub use reference::{BackupRef, When};
pub use store::Store;

pub use crate::format::manifest::GuestKind;
