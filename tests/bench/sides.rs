//! The three ways to the same disk: a raw file, QEMU's export, and the mount.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::chain::Chain;
use crate::support::tools::{command, run};

/// Who serves the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    Native,
    Qemu,
    Annals,
}

pub(crate) const SIDES: [Side; 3] = [Side::Native, Side::Qemu, Side::Annals];

/// What `--cache-size` is in all of it.
pub(crate) const CACHE: &str = "64M";

/// A disk that is being served; it ends when this is dropped.
pub(crate) struct Served {
    pub(crate) disk: PathBuf,
    daemon: Option<Daemon>,
}

struct Daemon {
    process: Child,
    mountpoint: PathBuf,
}

impl Side {
    /// Starts serving the disk of that depth; returns when it can be opened.
    pub(crate) fn serve(self, chain: &Chain, depth: usize, work: &Path) -> Served {
        match self {
            Self::Native => Served { disk: raw(chain, depth, work), daemon: None },
            Self::Qemu => {
                let mountpoint = work.join("export");
                File::create(&mountpoint).unwrap();
                let image = chain.image(depth);
                let blockdev =
                    format!("driver=qcow2,node-name=d,read-only=on,file.driver=file,file.filename={}", image.display());
                let export = format!("type=fuse,id=e,node-name=d,writable=off,mountpoint={}", mountpoint.display());
                let process = command("qemu-storage-daemon")
                    .args(["--blockdev", &blockdev, "--export", &export])
                    .spawn()
                    .expect("qemu-storage-daemon starts");
                let daemon = Daemon { process, mountpoint: mountpoint.clone() };
                wait_for("QEMU's export", || std::fs::metadata(&mountpoint).is_ok_and(|m| m.len() > 0));
                Served { disk: mountpoint, daemon: Some(daemon) }
            }
            Self::Annals => {
                let mountpoint = work.join("mnt");
                std::fs::create_dir_all(&mountpoint).unwrap();
                serve_store(&chain.store, &mountpoint, chain.shown(&mountpoint, depth))
            }
        }
    }
}

/// The program under test, as built with this benchmark.
pub(crate) fn annals() -> &'static str {
    env!("CARGO_BIN_EXE_annals")
}

/// Where a mount keeps what it derives from archives, so that nobody else's is used or left behind.
pub(crate) fn cache_of(mountpoint: &Path) -> PathBuf {
    mountpoint.with_extension("cache")
}

/// Mounts a store for as long as what this returns is there; `disk` is what is looked at in it.
pub(crate) fn serve_store(store: &Path, mountpoint: &Path, disk: PathBuf) -> Served {
    let process = command(annals())
        .env("XDG_CACHE_HOME", cache_of(mountpoint))
        .arg("--store")
        .arg(store)
        .args(["mount", "--foreground", "--cache-size", CACHE])
        .arg(mountpoint)
        .stderr(Stdio::inherit())
        .spawn()
        .expect("annals starts");
    let daemon = Daemon { process, mountpoint: mountpoint.to_owned() };
    wait_for("the mount", || mountpoint.join(".annals").exists());
    Served { disk, daemon: Some(daemon) }
}

fn wait_for(what: &str, ready: impl Fn() -> bool) {
    let started = Instant::now();
    while !ready() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what} does not come up");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The disk as a raw file with its holes; made when it is first asked for.
fn raw(chain: &Chain, depth: usize, work: &Path) -> PathBuf {
    let raw = work.join(format!("raw-{depth}"));
    if !raw.exists() {
        let (image, out) = (chain.image(depth), raw.to_str().unwrap().to_owned());
        run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", image.to_str().unwrap(), &out]);
    }
    raw
}

/// A copy of a disk on btrfs, which keeps a file's pages one by one where ext4 and XFS have large folios by now.
pub(crate) struct OnBtrfs {
    mountpoint: PathBuf,
    pub(crate) disk: PathBuf,
}

impl OnBtrfs {
    /// Copies the disk of that depth; `None` where there is no btrfs.
    pub(crate) fn copy(chain: &Chain, depth: usize, work: &Path, size: u64) -> Option<Self> {
        let (image, mountpoint) = (work.join("btrfs"), work.join("btrfs-mnt"));
        File::create(&image).unwrap().set_len(2 * size + (256 << 20)).unwrap();
        std::fs::create_dir_all(&mountpoint).unwrap();
        let [from, to] = [&image, &mountpoint].map(|path| path.to_str().unwrap());
        let made = command("mkfs.btrfs").args(["-q", from]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let mounted = made.is_ok_and(|status| status.success())
            && command("mount").args(["-o", "loop", from, to]).status().is_ok_and(|status| status.success());
        if !mounted {
            return None;
        }
        let copy = Self { disk: mountpoint.join("raw"), mountpoint };
        run("cp", &["--sparse=always", raw(chain, depth, work).to_str().unwrap(), copy.disk.to_str().unwrap()]);
        Some(copy)
    }
}

impl Drop for OnBtrfs {
    fn drop(&mut self) {
        run("umount", &[self.mountpoint.to_str().unwrap()]);
    }
}

impl Served {
    /// Where the mount is, when it is one.
    pub(crate) fn mountpoint(&self) -> Option<&Path> {
        self.daemon.as_ref().map(|daemon| daemon.mountpoint.as_path())
    }

    /// What the process that serves the disk has in memory, in KiB: now, and at most so far. `None`: the kernel serves it.
    pub(crate) fn resident(&self) -> Option<(u64, u64)> {
        let daemon = self.daemon.as_ref()?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).ok()?;
        let kib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        Some((kib("VmRSS:")?, kib("VmHWM:")?))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        run("kill", &["-TERM", &self.process.id().to_string()]);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) {
            if self.process.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        eprintln!("a daemon did not end when it was asked to");
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = command("umount").arg("-l").arg(&self.mountpoint).status();
    }
}
