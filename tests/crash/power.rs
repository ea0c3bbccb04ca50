//! The power fails: what was not brought to the medium is lost, however much of it had been written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use annals::base::Result;
use annals::storage::write::{Change, Medium};

use crate::stage::Stage;

/// A change, kept.
#[derive(Debug, Clone)]
pub(crate) enum Kept {
    Directory(PathBuf),
    File(PathBuf),
    Write(PathBuf, usize, Vec<u8>),
    SyncFile(PathBuf),
    SyncDirectory(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

/// Takes notes of every change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder(pub(crate) Arc<Mutex<Vec<Kept>>>);

impl Medium for Recorder {
    fn before(&self, path: &Path, change: Change<'_>) -> Result<()> {
        let path = path.to_owned();
        self.0.lock().unwrap().push(match change {
            Change::MakeDirectory => Kept::Directory(path),
            Change::MakeFile => Kept::File(path),
            Change::Write { at, bytes } => Kept::Write(path, at as usize, bytes.to_vec()),
            Change::SyncFile => Kept::SyncFile(path),
            Change::SyncDirectory => Kept::SyncDirectory(path),
            Change::Rename { to, .. } => {
                let to = path.with_file_name(to);
                Kept::Rename(path, to)
            }
            Change::Remove => Kept::Remove(path),
        });
        Ok(())
    }
}

/// Which names outlive the loss of power that no sync has spoken for. A file system may do either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// All of them: they went out early.
    Early,
    /// None of them.
    Late,
}

#[derive(Debug, Clone)]
enum Node {
    /// Names as they are, and as they are on the medium.
    Directory(BTreeMap<String, usize>, BTreeMap<String, usize>),
    /// Bytes as they are, and as they are on the medium.
    File(Vec<u8>, Vec<u8>),
}

/// What the run made, beside what was there before.
struct Disk {
    guest: PathBuf,
    nodes: Vec<Node>,
}

impl Disk {
    fn new(guest: PathBuf) -> Self {
        Self { guest, nodes: vec![Node::Directory(BTreeMap::new(), BTreeMap::new())] }
    }

    fn find(&self, path: &Path) -> usize {
        let below = path.strip_prefix(&self.guest).unwrap();
        below.components().fold(0, |at, name| match &self.nodes[at] {
            Node::Directory(names, _) => names[name.as_os_str().to_str().unwrap()],
            Node::File(..) => panic!("{} is in a file", path.display()),
        })
    }

    /// The names in the directory that `path` is in, and its own name there.
    fn entry(&mut self, path: &Path) -> (&mut BTreeMap<String, usize>, String) {
        let parent = self.find(path.parent().unwrap());
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match &mut self.nodes[parent] {
            Node::Directory(names, _) => (names, name),
            Node::File(..) => panic!("{} is in a file", path.display()),
        }
    }

    fn add(&mut self, path: &Path, node: Node) {
        self.nodes.push(node);
        let id = self.nodes.len() - 1;
        let (names, name) = self.entry(path);
        names.insert(name, id);
    }

    fn apply(&mut self, change: &Kept) {
        match change {
            Kept::Directory(path) => self.add(path, Node::Directory(BTreeMap::new(), BTreeMap::new())),
            Kept::File(path) => self.add(path, Node::File(Vec::new(), Vec::new())),
            Kept::Write(path, at, bytes) => {
                let id = self.find(path);
                let Node::File(now, _) = &mut self.nodes[id] else { panic!() };
                now.resize(now.len().max(at + bytes.len()), 0);
                now[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Kept::SyncFile(path) => {
                let id = self.find(path);
                let Node::File(now, kept) = &mut self.nodes[id] else { panic!() };
                kept.clone_from(now);
            }
            Kept::SyncDirectory(path) => {
                let id = self.find(path);
                let Node::Directory(now, kept) = &mut self.nodes[id] else { panic!() };
                kept.clone_from(now);
            }
            Kept::Rename(from, to) => {
                let (names, name) = self.entry(from);
                let id = names.remove(&name).unwrap();
                let (names, name) = self.entry(to);
                names.insert(name, id);
            }
            Kept::Remove(path) => {
                let (names, name) = self.entry(path);
                names.remove(&name);
            }
        }
    }

    /// Lays what is left after the loss over the guest's directory `into`.
    fn survive(&self, id: usize, names: Names, into: &Path) {
        match &self.nodes[id] {
            Node::File(_, kept) => fs::write(into, kept).unwrap(),
            Node::Directory(now, kept) => {
                fs::create_dir_all(into).unwrap();
                for (name, id) in if names == Names::Early { now } else { kept } {
                    self.survive(*id, names, &into.join(name));
                }
            }
        }
    }
}

#[test]
fn power_lost_after_any_change_costs_at_most_the_backup_that_was_being_made() {
    let stage = Stage::new();
    let recorder = Recorder::default();
    let recorded = stage.copy("recorded");
    stage.back_up(&recorded.store, "cp1", &recorder).unwrap();
    let changes = recorder.0.lock().unwrap().clone();
    let writes = changes.iter().filter(|change| matches!(change, Kept::Write(..))).count();
    assert!(changes.len() >= 20 && writes >= 8, "{} changes, {writes} writes", changes.len());

    for names in [Names::Early, Names::Late] {
        let mut last = 0;
        let mut disk = Disk::new(recorded.guest());
        for count in 0..=changes.len() {
            if let Some(change) = count.checked_sub(1).map(|at| &changes[at]) {
                disk.apply(change);
            }
            let copy = stage.copy("lost");
            disk.survive(0, names, &copy.guest());
            let told = format!("power lost after {count} of {} changes, names {names:?}", changes.len());
            let found = copy.check(&told).len();
            assert!(found >= last, "{told}: a backup that was there is gone");
            last = found;
            copy.next_run_is_right(&told);
        }
        assert_eq!(last, 2, "what was told to be done has to be there when the power fails right after");
    }
}
