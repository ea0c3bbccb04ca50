//! Stores made by QEMU's tools with what they hold, and mounts of them by the real program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) use super::needs::needs;
use super::random::Random;
use super::tools::{command, have, run};

/// The program under test.
pub(crate) const ANNALS: &str = env!("CARGO_BIN_EXE_annals");

/// Whether stores can be made and mounted here; says aloud when not.
pub(crate) fn can_mount() -> bool {
    have(&["qemu-img", "qemu-io", "fusermount3"])
        && needs(rustix::process::geteuid().is_root(), "root")
        && needs(Path::new("/dev/fuse").exists(), "/dev/fuse")
}

/// Quotes a promise of the documentation, which must be there in these words.
pub(crate) fn promise(text: &str) {
    assert!(promises().iter().any(|promise| promise == text), "docs/semantics.md does not promise: {text}");
}

/// What stands behind a bar in `docs/semantics.md`.
pub(crate) fn promises() -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/semantics.md")).unwrap();
    text.split("\n\n")
        .filter(|block| block.starts_with("> "))
        .map(|block| block.lines().map(|line| line.trim_start_matches("> ")).collect::<Vec<_>>().join(" "))
        .collect()
}

/// A store in a directory of its own.
pub(crate) struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// A place beside the store.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory of a backup, made if it is not there. `time` as in its name: `2024-11-07T16-51-22Z`.
    pub(crate) fn backup(&self, guest: &str, time: &str) -> PathBuf {
        let dir = self.path().join(guest).join(format!("qemu-{time}"));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A file in a backup.
    pub(crate) fn file(&self, guest: &str, time: &str, name: &str, content: &[u8]) {
        fs::write(self.backup(guest, time).join(name), content).unwrap();
    }

    /// A disk's chain, one layer in each backup of `times`, the oldest first. Returns what the disk holds in each.
    pub(crate) fn chain(&self, guest: &str, disk: &str, times: &[&str], size: u64, seed: u64) -> Vec<Vec<u8>> {
        let mut content = vec![0; usize::try_from(size).unwrap()];
        let mut random = Random::new(seed);
        let mut contents = Vec::new();
        for (n, time) in times.iter().enumerate() {
            let image = self.backup(guest, time).join(format!("{disk}.qcow2"));
            let mut create = command("qemu-img");
            create.args(["create", "-q", "-f", "qcow2"]);
            if let Some(below) = n.checked_sub(1).and_then(|n| times.get(n)) {
                create.args(["-F", "qcow2", "-b", &format!("../qemu-{below}/{disk}.qcow2")]);
            }
            succeed(create.arg(&image).arg(size.to_string()));
            let writes = random_writes(&mut random, size, if n == 0 { 24 } else { 8 });
            write(&image, &writes);
            apply(&mut content, &writes);
            contents.push(content.clone());
        }
        contents
    }
}

/// Bytes of one value to write, or (`None`) a range to zero.
pub(crate) type Write = (u64, u64, Option<u8>);

fn random_writes(random: &mut Random, size: u64, count: usize) -> Vec<Write> {
    (0..count)
        .map(|_| {
            let at = random.below(size / 512) * 512;
            let len = ((random.below(400) + 1) * 512).min(size - at);
            let value = u8::try_from(random.below(255) + 1).unwrap();
            (at, len, (random.below(5) > 0).then_some(value))
        })
        .collect()
}

/// Writes into an image by `qemu-io`.
pub(crate) fn write(image: &Path, writes: &[Write]) {
    let mut io = command("qemu-io");
    io.args(["-f", "qcow2"]);
    for (at, len, value) in writes {
        io.arg("-c").arg(match value {
            Some(value) => format!("write -P {value} {at} {len}"),
            None => format!("write -z {at} {len}"),
        });
    }
    succeed(io.arg(image));
}

/// The same to what the disk holds.
pub(crate) fn apply(content: &mut [u8], writes: &[Write]) {
    for (at, len, value) in writes {
        let at = usize::try_from(*at).unwrap();
        content[at..at + usize::try_from(*len).unwrap()].fill(value.unwrap_or(0));
    }
}

/// Runs a command that has to succeed.
pub(crate) fn succeed(command: &mut std::process::Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A mount by the program, in the background; unmounted when dropped.
pub(crate) struct Mounted {
    pub(crate) point: PathBuf,
    pub(crate) log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mounted {
    pub(crate) fn new(store: &Path) -> Self {
        Self::with(store, &[])
    }

    /// With more arguments of `annals mount`.
    pub(crate) fn with(store: &Path, args: &[&str]) -> Self {
        let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
        let (point, log) = (dir.path().join("mnt"), dir.path().join("log"));
        fs::create_dir(&point).unwrap();
        let output = annals(store).arg("mount").args(args).arg("--log-file").arg(&log).arg(&point).output().unwrap();
        let mounted = Self { point, log, _dir: dir };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        mounted
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path(".annals/status.json")).unwrap()).unwrap()
    }

    /// The process that serves the mount.
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.status()["pid"].as_u64().unwrap()).unwrap()
    }

    /// Unmounts, which must succeed.
    pub(crate) fn umount(&self) {
        succeed(command(ANNALS).arg("umount").arg(&self.point));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Also where the test failed half-way; a test that unmounted has nothing here.
        let _ = command(ANNALS).args(["umount", "--lazy"]).arg(&self.point).stderr(Stdio::null()).status();
    }
}

/// The program on a store.
pub(crate) fn annals(store: &Path) -> std::process::Command {
    let mut annals = command(ANNALS);
    // Indexes of archives are kept beside the store, to go with it.
    annals.arg("--store").arg(store).env("XDG_CACHE_HOME", store.with_extension("cache"));
    annals
}

/// Of a file that was changed less long ago nothing is kept beyond the process.
pub(crate) const SETTLED: Duration = Duration::from_millis(2100);

/// Asks until the answer is yes; fails when that takes longer than `limit`.
pub(crate) fn within(limit: Duration, what: &str, mut yes: impl FnMut() -> bool) {
    let start = Instant::now();
    while !yes() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The names in a directory in the order in which they are read.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The ranges of an image's disk that hold data, by `qemu-img map`, joined where they touch.
pub(crate) fn qemu_data(image: &Path) -> Vec<(u64, u64)> {
    let map = run("qemu-img", &["map", "--output=json", "-f", "qcow2", image.to_str().unwrap()]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let mut data: Vec<(u64, u64)> = Vec::new();
    for piece in map.as_array().unwrap() {
        if piece["zero"].as_bool().unwrap() || !piece["data"].as_bool().unwrap() {
            continue;
        }
        let (start, length) = (piece["start"].as_u64().unwrap(), piece["length"].as_u64().unwrap());
        match data.last_mut() {
            Some((_, end)) if *end == start => *end = start + length,
            _ => data.push((start, start + length)),
        }
    }
    data
}

/// The same of an open file, by `lseek`.
pub(crate) fn seek_data(file: &fs::File) -> Vec<(u64, u64)> {
    use rustix::fs::SeekFrom;
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
                data.push((start, at));
            }
            Err(rustix::io::Errno::NXIO) => return data,
            Err(e) => panic!("cannot seek: {e}"),
        }
    }
}
