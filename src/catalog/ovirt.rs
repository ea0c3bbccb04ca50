//! oVirt's layout: `<vm id>.ovf` and `disks/<disk id>/<image id>`.
//!
//! Where there is an OVF, each snapshot that it names is a point in time, and the image that it assigns to the snapshot is
//! the disk then. Where there is none, the images' headers and times say it, as in a plain folder.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::fresh::Stamps;
use super::levels::{self, Chain, Links};
use super::model::{Contents, Level, LevelDisks, Problem};
use super::names::is_disk_name;
use super::{BackupFile, DiskEntry};
use crate::base::{ErrorKind, Result, Timestamp};
use crate::format::ImageFormat;
use crate::format::ovf::{self, Ovf};
use crate::storage::{DirEntry, EntryKind, Gate, RelPath};

/// The directory of the disks.
const DISKS: &str = "disks";
/// What problems with what the OVF says are about.
const OVF: &str = "OVF";
/// Longest part of a snapshot's id that goes into a backup's name, in bytes.
const LONGEST_MARK: usize = 64;
/// Most OVF files that are read of one guest.
const MOST_OVFS: usize = 16;

/// Whether a guest's directory looks like this layout.
pub(super) fn is_layout(entries: &[DirEntry]) -> bool {
    entries.iter().any(|entry| entry.kind == EntryKind::Directory && entry.name == DISKS)
}

/// One disk's directory and the images in it, as the headers tie them together.
struct DiskDir {
    disk: String,
    links: Links,
    times: HashMap<RelPath, Timestamp>,
}

/// The points in time of a guest.
///
/// `root` is the store's gate and `dir` the guest's directory beneath it, for the stamps; `gate` is the guest's own.
pub(super) fn read(root: &Gate, dir: &RelPath, entries: &[DirEntry], stamps: &mut Stamps) -> Result<Contents> {
    let gate = root.descend(dir)?;
    let mut contents = Contents::default();
    let ovf = read_ovfs(&gate, entries, &mut contents)?;
    let disks_dir = RelPath::new(DISKS)?;
    stamps.take(root, Some(&dir.join(DISKS)?))?;
    let mut disks = Vec::new();
    for entry in gate.read_dir(Some(&disks_dir))? {
        if entry.kind != EntryKind::Directory || !is_disk_name(&entry.name) {
            let why = "it is not a disk's directory and is passed over";
            contents.problems.push(Problem::new(format!("{DISKS}/{}", entry.name), ErrorKind::Refused, why));
            continue;
        }
        let path = disks_dir.join(&entry.name)?;
        stamps.take(root, Some(&dir.join(path.as_str())?))?;
        match read_disk(&gate, &entry.name, &path, ovf.as_ref(), &mut contents.problems) {
            Ok(disk) => disks.push(disk),
            Err(e) => contents.problems.push(Problem::of(path.as_str(), &e)),
        }
    }
    match &ovf {
        Some(ovf) => by_snapshot(ovf, &disks, &mut contents),
        None => by_level(disks, &mut contents),
    }
    Ok(contents)
}

/// Reads the OVF files; what they say taken together, or `None` where none can be read.
fn read_ovfs(gate: &Gate, entries: &[DirEntry], contents: &mut Contents) -> Result<Option<Ovf>> {
    let mut together = Ovf::default();
    let (mut snapshots, mut images) = (HashSet::new(), HashSet::new());
    let ovfs = entries.iter().filter(|e| e.kind == EntryKind::File && !e.name.starts_with('.'));
    for entry in ovfs.filter(|e| e.name.ends_with(".ovf")).take(MOST_OVFS) {
        let path = RelPath::new(&entry.name)?;
        let files = &mut contents.files;
        let read = gate.read_file(&path, ovf::SIZE_LIMIT).and_then(|bytes| {
            files.push(BackupFile { name: entry.name.clone(), path, size: bytes.len() as u64 });
            Ovf::parse(&bytes)
        });
        match read {
            // What two of them say of one thing, the first says.
            Ok(ovf) => {
                together.snapshots.extend(ovf.snapshots.into_iter().filter(|s| snapshots.insert(s.id.clone())));
                together.images.extend(ovf.images.into_iter().filter(|image| images.insert(image.file.clone())));
            }
            Err(e) => contents.problems.push(Problem::of(&entry.name, &e)),
        }
    }
    // An OVF without snapshots says nothing about time.
    Ok((!together.snapshots.is_empty()).then_some(together))
}

fn read_disk(
    gate: &Gate,
    disk: &str,
    dir: &RelPath,
    ovf: Option<&Ovf>,
    problems: &mut Vec<Problem>,
) -> Result<DiskDir> {
    let declared: HashMap<&str, ImageFormat> = ovf
        .map(|ovf| ovf.images.as_slice())
        .unwrap_or_default()
        .iter()
        .filter_map(|image| Some((image.file.as_str(), image.format?)))
        .collect();
    let mut images = Vec::new();
    let mut times = HashMap::new();
    let entries = gate.read_dir(Some(dir))?;
    for entry in entries.iter().filter(|e| e.kind != EntryKind::Directory && !e.name.starts_with('.')) {
        let path = dir.join(&entry.name)?;
        // Without an OVF nothing but an overlay declares a format; qcow2 is what backups of oVirt are made of.
        let format = declared.get(format!("{disk}/{}", entry.name).as_str()).copied().unwrap_or(ImageFormat::Qcow2);
        images.push((path, format));
    }
    levels::cut(&mut images, problems);
    for (path, _) in &images {
        let time = gate.stat(path).map_or(Timestamp::EPOCH, |stat| stat.identity.identity.modified());
        times.insert(path.clone(), time);
    }
    Ok(DiskDir { disk: disk.to_owned(), links: Links::read(gate, images), times })
}

/// One backup a snapshot.
fn by_snapshot(ovf: &Ovf, disks: &[DiskDir], contents: &mut Contents) {
    let by_name: HashMap<&str, &DiskDir> = disks.iter().map(|disk| (disk.disk.as_str(), disk)).collect();
    let mut named: HashSet<RelPath> = HashSet::new();
    let mut of_snapshot: HashMap<&str, BTreeMap<&str, DiskEntry>> = HashMap::new();
    for image in &ovf.images {
        let parts = image.file.split_once('/').filter(|(disk, file)| is_disk_name(disk) && !file.contains('/'));
        let path = RelPath::new(&format!("{DISKS}/{}", image.file));
        let (Some((disk, _)), Ok(path)) = (parts, path) else {
            let text = format!("it places an image at '{}', which is no disk's", image.file.escape_debug());
            contents.problems.push(Problem::new(OVF, ErrorKind::Refused, text));
            continue;
        };
        named.insert(path.clone());
        let in_use = by_name.get(disk).and_then(|disk| disk.links.format_of(&path));
        let declared = image.format.unwrap_or(ImageFormat::Qcow2);
        let format = in_use.unwrap_or(declared);
        if format != declared {
            let text = format!("the OVF says that it is {declared}, the image that builds on it {format}");
            contents.problems.push(Problem::new(path.as_str(), ErrorKind::Corrupt, text));
        }
        let Some(snapshot) = &image.snapshot else { continue };
        let entry = DiskEntry { name: disk.to_owned(), path, format, alias: image.alias.clone() };
        if let Some(other) = of_snapshot.entry(snapshot).or_default().insert(disk, entry) {
            let text = format!("the OVF names two images for one snapshot; '{}' is not shown", other.path);
            contents.problems.push(Problem::new(disk, ErrorKind::Corrupt, text));
        }
    }
    for path in disks.iter().flat_map(|disk| disk.times.keys()).filter(|path| !named.contains(path)) {
        let text = "the OVF does not name it, and it is not shown";
        contents.problems.push(Problem::new(path.as_str(), ErrorKind::Corrupt, text));
    }
    contents.problems.sort_by(|a, b| a.subject.cmp(&b.subject));
    let mut levels = Vec::new();
    for snapshot in &ovf.snapshots {
        let disks_then = of_snapshot.remove(snapshot.id.as_str()).unwrap_or_default();
        if disks_then.is_empty() && snapshot.kind == "NEXT_RUN" {
            continue;
        }
        let mut problems = Vec::new();
        let time = snapshot.created.unwrap_or_else(|| {
            let text = format!("it does not say when snapshot {} was taken; its images' time is shown", snapshot.id);
            problems.push(Problem::new(OVF, ErrorKind::Corrupt, text));
            let time = |disk: &DiskEntry| by_name.get(disk.name.as_str())?.times.get(&disk.path).copied();
            disks_then.values().filter_map(time).max().unwrap_or(Timestamp::EPOCH)
        });
        let mark = snapshot.id.chars().take(LONGEST_MARK);
        let mark = mark.map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let label = Some(snapshot.description.clone()).filter(|text| !text.is_empty());
        let disks = LevelDisks::Named(disks_then.into_values().collect());
        // The machine's current state comes after a snapshot of the same second.
        levels.push(((time, snapshot.is_active()), Level { time, mark, label, disks, problems }));
    }
    levels.sort_by_key(|(order, _)| *order);
    contents.levels = levels.into_iter().map(|(_, level)| level).collect();
    for (snapshot, disks) in of_snapshot {
        let text = format!("it has {} image(s) of a snapshot {snapshot} that it does not list", disks.len());
        contents.problems.push(Problem::new(OVF, ErrorKind::Corrupt, text));
    }
}

/// One backup a level of the chains.
fn by_level(disks: Vec<DiskDir>, contents: &mut Contents) {
    for disk in disks {
        let found = disk.links.chains(&mut contents.problems);
        let head = |chain: &Chain| chain.images.last().map(|(path, _)| path.file_name().to_owned()).unwrap_or_default();
        if found.len() > 1 {
            let heads: Vec<String> = found.iter().map(head).collect();
            let text = format!(
                "its {} images do not form one chain (several bases, branches or a cycle); \
                 what each of these leads to is shown as a disk of its own: {}",
                disk.times.len(),
                heads.join(", ")
            );
            contents.problems.push(Problem::new(format!("{DISKS}/{}", disk.disk), ErrorKind::Corrupt, text));
        }
        let alone = found.len() == 1;
        for chain in found {
            let name = if alone { disk.disk.clone() } else { format!("{}-{}", disk.disk, head(&chain)) };
            if !is_disk_name(&name) {
                let why = "there is no name under which to show it";
                contents.problems.push(Problem::new(head(&chain), ErrorKind::Refused, why));
                continue;
            }
            let time_of = |path: &RelPath| disk.times.get(path).copied().unwrap_or(Timestamp::EPOCH);
            contents.lines.push(levels::line(&name, chain, time_of));
        }
    }
    contents.add_levels_of_lines();
}
