//! A plain folder of images: `vda.qcow2`, `vda-monday.qcow2`, … right in the guest's directory.
//!
//! Each level of a chain is a point in time, the time of its image. At each such time a disk is its newest image of that time or before.
//! Only `*.qcow2` and `*.raw`, and what these name as backing files, are images: what a file holds is never guessed.

use std::collections::HashSet;

use super::levels::{self, Links};
use super::model::{Contents, Problem};
use super::names::is_disk_name;
use super::{BackupFile, extras, native};
use crate::base::{ErrorKind, HostOffset, Result, Timestamp};
use crate::storage::{DirEntry, EntryKind, Gate, RelPath, Storage};

/// First bytes of every qcow2 image.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Whether a guest's directory looks like this layout.
pub(super) fn is_layout(entries: &[DirEntry]) -> bool {
    entries.iter().any(|entry| entry.kind != EntryKind::Directory && native::format_of(&entry.name).is_some())
}

/// The points in time of the images in the guest's directory.
pub(super) fn read(gate: &Gate, entries: &[DirEntry]) -> Result<Contents> {
    let mut contents = Contents::default();
    let mut images = Vec::new();
    for entry in entries.iter().filter(|entry| entry.kind != EntryKind::Directory) {
        if let Some((_, format)) = native::format_of(&entry.name) {
            images.push((RelPath::new(&entry.name)?, format));
        }
    }
    levels::cut(&mut images, &mut contents.problems);
    let links = Links::read(gate, images);
    contents.files = other_files(gate, entries, &links, &mut contents.problems)?;

    let time_of = |path: &RelPath| gate.stat(path).map_or(Timestamp::EPOCH, |stat| stat.identity.identity.modified());
    let mut taken: HashSet<String> = HashSet::new();
    for chain in links.chains(&mut contents.problems) {
        // A chain is called after its base, which stays the same as it grows; where several share one, after their heads.
        let image = if chain.shared { chain.images.last() } else { chain.images.first() };
        let file = image.map(|(path, _)| path.file_name().to_owned()).unwrap_or_default();
        let stem = native::format_of(&file).map_or(file.as_str(), |(stem, _)| stem);
        let free = [stem, &file].into_iter().find(|name| is_disk_name(name) && !taken.contains(*name));
        let Some(name) = free else {
            let why = "there is no name under which to show it";
            contents.problems.push(Problem::new(file, ErrorKind::Refused, why));
            continue;
        };
        taken.insert(name.to_owned());
        contents.lines.push(levels::line(name, chain, time_of));
    }
    contents.add_levels_of_lines();
    Ok(contents)
}

/// The files that are no images. An image under another name is reported, for it is not shown.
fn other_files(
    gate: &Gate,
    entries: &[DirEntry],
    links: &Links,
    problems: &mut Vec<Problem>,
) -> Result<Vec<BackupFile>> {
    let mut files = Vec::new();
    let candidates = entries.iter().filter(|entry| entry.kind == EntryKind::File && !entry.name.starts_with('.'));
    for entry in candidates.filter(|entry| !extras::is_one(&entry.name) && native::format_of(&entry.name).is_none()) {
        let path = RelPath::new(&entry.name)?;
        if links.contains(&path) {
            continue;
        }
        let mut start = [0; QCOW2_MAGIC.len()];
        let looked = gate.open_file(&path).and_then(|file| {
            file.read_at(&mut start, HostOffset(0))?;
            Ok(file.size())
        });
        match looked {
            Ok(_) if start == QCOW2_MAGIC => problems.push(Problem::new(
                &entry.name,
                ErrorKind::Unsupported,
                "it is a qcow2 image by its first bytes; only images whose names end in .qcow2 or .raw are shown",
            )),
            Ok(size) => files.push(BackupFile { name: entry.name.clone(), path, size }),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => problems.push(Problem::of(&entry.name, &e)),
        }
    }
    Ok(files)
}
