//! The store before the run that is disturbed, and what has to be true of it afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annals::base::Result;
use annals::catalog::Store;
use annals::disk::DiskEnv;
use annals::format::manifest::Manifest;
use annals::ingest::{self, Finished, Interrupt, KeptFile, Request};
use annals::storage::write::{Direct, Medium};

use crate::scene::{assert_same, names, read_disk};
use crate::support::random::Random;
use crate::support::tools::run;

const SIZE: usize = 6 << 20;
/// What changes of the first disk: more than one chunk of its image.
const CHANGED: usize = 5 << 19;

/// A store with one full backup of two disks, and those disks as they are some changes later.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
    before: [Vec<u8>; 2],
    after: [Vec<u8>; 2],
    pub(crate) first: String,
}

/// One copy of the stage's store.
pub(crate) struct Copy<'a> {
    stage: &'a Stage,
    pub(crate) store: PathBuf,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        Store::init(&at("store")).unwrap();
        let before = [Random::new(1).bytes(SIZE), vec![7; 100_000]];
        let mut after = before.clone();
        after[0][1 << 20..(1 << 20) + CHANGED].copy_from_slice(&Random::new(2).bytes(CHANGED));
        after[0][5 << 20..(5 << 20) + 65_536].fill(0);
        after[1][500..600].fill(9);
        for (name, bytes) in ["a", "b"].iter().zip(&before) {
            fs::write(at(name), bytes).unwrap();
        }
        fs::write(at("config"), "memory: 512\n").unwrap();
        fs::write(at("dirty-a"), format!("{} {CHANGED}\n{} 65536\n", 1 << 20, 5 << 20)).unwrap();
        fs::write(at("dirty-b"), "500 100\n").unwrap();
        let mut stage = Self { dir, before, after, first: String::new() };
        let store = stage.path("store");
        stage.first = stage.back_up(&store, "cp0", &Direct).unwrap().backup;
        for (name, bytes) in ["a", "b"].iter().zip(&stage.after) {
            fs::write(stage.path(name), bytes).unwrap();
        }
        stage
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A copy of the store, as it was before.
    pub(crate) fn copy(&self, name: &str) -> Copy<'_> {
        let store = self.path(name);
        let _ = fs::remove_dir_all(&store);
        run("cp", &["-a", self.path("store").to_str().unwrap(), store.to_str().unwrap()]);
        Copy { stage: self, store }
    }

    pub(crate) fn request(dir: &Path, store: &Path, checkpoint: &str) -> Request {
        let disk = |name: &str| format!("{name}={0}/{name},dirty={0}/dirty-{name},since=cp0", dir.display());
        Request {
            store: store.to_owned(),
            guest: "100".parse().unwrap(),
            disks: ["a", "b"].map(|name| disk(name).parse().unwrap()).to_vec(),
            files: vec![KeptFile { name: "guest.conf".into(), path: dir.join("config") }],
            checkpoint: Some(checkpoint.to_owned()),
            full: false,
            max_layers: annals::ingest::MAX_LAYERS,
            zstd: None,
            bytes_per_second: None,
            discard_source: false,
            patience: std::time::Duration::from_secs(60),
        }
    }

    pub(crate) fn back_up<M: Medium + Clone + 'static>(
        &self,
        store: &Path,
        checkpoint: &str,
        medium: &M,
    ) -> Result<Finished> {
        let request = Self::request(self.dir.path(), store, checkpoint);
        ingest::run(&request, Arc::new(medium.clone()), &Interrupt::default(), &|_| {})
    }
}

impl Copy<'_> {
    pub(crate) fn guest(&self) -> PathBuf {
        self.store.join("100")
    }

    /// The backups that a reader of the store sees, after a look at each: it is whole and holds the right bytes.
    pub(crate) fn check(&self, told: &str) -> Vec<String> {
        let store = Store::open(&self.store, DiskEnv::new(0)).unwrap();
        let guest = store.guest(&"100".parse().unwrap()).unwrap();
        assert!(guest.problems.is_empty(), "{told}: {:?}", guest.problems);
        let mut found = Vec::new();
        for summary in guest.backups() {
            let directory = summary.directory().unwrap().to_owned();
            let backup = store.backup(&guest.id, &summary.name).unwrap();
            assert!(backup.problems.is_empty(), "{told}: {directory}: {:?}", backup.problems);
            let expected = if directory == self.stage.first { &self.stage.before } else { &self.stage.after };
            for (name, bytes) in ["a", "b"].iter().zip(expected) {
                let mut read = read_disk(&self.store, &format!("100@{}", summary.name), name);
                assert!(read[bytes.len()..].iter().all(|byte| *byte == 0));
                read.truncate(bytes.len());
                assert_same(&read, bytes);
            }
            let dir = self.guest().join(&directory);
            assert_eq!(fs::read(dir.join("guest.conf")).unwrap(), b"memory: 512\n", "{told}");
            assert!(Manifest::parse(&fs::read(dir.join("backup.json")).unwrap()).is_ok(), "{told}");
            found.push(directory);
        }
        assert_eq!(found.first(), Some(&self.stage.first), "{told}: the earlier backup is gone");
        assert!(found.len() <= 2, "{told}: {found:?}");
        found
    }

    /// The next run, undisturbed: it is right, and nothing half-made is left after it.
    pub(crate) fn next_run_is_right(&self, told: &str) {
        let had = self.check(told).len();
        let made = self.stage.back_up(&self.store, "cp2", &Direct).unwrap_or_else(|e| panic!("{told}: {}", e.report()));
        // The list counts from cp0: it fits the first backup, and not one of cp1 that came through.
        assert!(made.disks.iter().all(|disk| disk.parent.is_some() == (had == 1)), "{told}: {:?}", made.disks);
        let store = self.store.as_path();
        for (name, bytes) in ["a", "b"].iter().zip(&self.stage.after) {
            let mut read = read_disk(store, &format!("100@{}", made.backup.trim_start_matches("qemu-")), name);
            read.truncate(bytes.len());
            assert_same(&read, bytes);
        }
        let left: Vec<String> = names(&self.guest())
            .into_iter()
            .filter(|name| name.starts_with(".partial-") && self.guest().join(name).is_dir())
            .collect();
        assert!(left.is_empty(), "{told}: {left:?}");
    }
}
