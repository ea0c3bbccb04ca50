//! A container's tree out of an archive: the mount beside ratarmount, squashfuse, the kernel's squashfs and plain files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::Scale;
use crate::chain::name_of;
use crate::measure::{can_drop_caches, drop_caches, median, median_ratio, milliseconds, sequential};
use crate::report::{Report, Row};
use crate::sides::{annals, cache_of, serve_store};
use crate::support::random::Random;
use crate::support::tools::{command, exists, run as run_tool};

const FILES_IN_A_DIRECTORY: usize = 125;

/// Who shows the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Native,
    Kernel,
    Squashfuse,
    Ratarmount,
    Tar,
    Squashfs,
}

const SIDES: [Side; 6] = [Side::Native, Side::Kernel, Side::Squashfuse, Side::Ratarmount, Side::Tar, Side::Squashfs];

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "plain files",
            Self::Kernel => "squashfs by the kernel",
            Self::Squashfuse => "squashfs by squashfuse_ll",
            Self::Ratarmount => "tar by ratarmount",
            Self::Tar => "tar by annals",
            Self::Squashfs => "squashfs by annals",
        }
    }
}

/// What is measured, in milliseconds but for the rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    FirstMount,
    Remount,
    Find,
    Copy,
    /// MB/s.
    Cold,
    /// MB/s.
    Second,
    /// MB/s, the median of that read and of the next eight: the same work of the kernel on every side but the plain files',
    /// so that only many reads tell a difference.
    Warm,
}

/// The tree and its archives.
struct Archives {
    work: PathBuf,
    tree: PathBuf,
    tar: PathBuf,
    squashfs: PathBuf,
    store: PathBuf,
}

impl Archives {
    fn make(work: &Path, scale: Scale) -> Self {
        eprintln!("making a tree of {} small files", scale.directories * FILES_IN_A_DIRECTORY);
        let (tree, store) = (work.join("tree"), work.join("store"));
        let mut random = Random::new(1);
        for dir in 0..scale.directories {
            let path = tree.join(format!("d{}/e{dir}", dir / 20));
            fs::create_dir_all(&path).unwrap();
            for file in 0..FILES_IN_A_DIRECTORY {
                let size = random.pick(&[100, 800, 3000, 9000]);
                fs::write(path.join(format!("f{file}.txt")), random.bytes(size)).unwrap();
            }
        }
        let mut large = BufWriter::new(File::create(tree.join("big.bin")).unwrap());
        for _ in 0..scale.large >> 20 {
            large.write_all(&random.bytes(512 << 10)).unwrap();
            large.write_all(&[b'x'; 512 << 10]).unwrap();
        }
        large.into_inner().unwrap();
        let archive = |guest: &str, file: &str| {
            let dir = store.join(guest).join(format!("lxc-{}", name_of(1)));
            fs::create_dir_all(&dir).unwrap();
            dir.join(file)
        };
        let (tar, squashfs) = (archive("200", "archive.tar"), archive("201", "archive.sqfs"));
        run_tool("tar", &["--format=posix", "-cf", tar.to_str().unwrap(), "-C", tree.to_str().unwrap(), "."]);
        let (from, to) = (tree.to_str().unwrap(), squashfs.to_str().unwrap());
        run_tool("mksquashfs", &[from, to, "-quiet", "-no-progress", "-comp", "zstd"]);
        Self { work: work.to_owned(), tree, tar, squashfs, store }
    }

    /// Where ratarmount keeps its index: beside the archive it would be found by nobody's store.
    fn foreign_index(&self) -> PathBuf {
        self.work.join("ratarmount.index.sqlite")
    }
}

/// A tree that is being shown; it is unmounted when this is dropped.
struct Shown {
    root: PathBuf,
    mountpoint: Option<(PathBuf, Side)>,
    /// Milliseconds until the top directory could be listed.
    ready: f64,
}

impl Shown {
    fn new(archives: &Archives, side: Side) -> Self {
        let mountpoint = archives.work.join("mnt");
        fs::create_dir_all(&mountpoint).unwrap();
        let at = mountpoint.to_str().unwrap();
        let [tar, squashfs, store] =
            [&archives.tar, &archives.squashfs, &archives.store].map(|path| path.to_str().unwrap());
        let index = archives.foreign_index();
        let index = index.to_str().unwrap();
        let started = Instant::now();
        let root = match side {
            Side::Native => archives.tree.clone(),
            Side::Kernel => {
                run_tool("mount", &["-o", "ro,loop", squashfs, at]);
                mountpoint.clone()
            }
            Side::Squashfuse => {
                run_tool("squashfuse_ll", &[squashfs, at]);
                mountpoint.clone()
            }
            Side::Ratarmount => {
                let quiet = command("ratarmount").args(["--index-file", index, tar, at]).output().unwrap();
                assert!(quiet.status.success(), "ratarmount failed: {}", String::from_utf8_lossy(&quiet.stderr));
                mountpoint.clone()
            }
            Side::Tar | Side::Squashfs => {
                let mount = command(annals())
                    .env("XDG_CACHE_HOME", cache_of(&mountpoint))
                    .args(["--store", store, "mount", at])
                    .status();
                assert!(mount.unwrap().success(), "annals mount failed");
                let guest = if side == Side::Tar { "200" } else { "201" };
                mountpoint.join(guest).join(name_of(1)).join("root")
            }
        };
        assert!(fs::read_dir(&root).unwrap().count() > 1);
        let ready = milliseconds(started.elapsed());
        Self { root, mountpoint: (side != Side::Native).then_some((mountpoint, side)), ready }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        match &self.mountpoint {
            Some((mountpoint, Side::Tar | Side::Squashfs)) => {
                run_tool(annals(), &["umount", mountpoint.to_str().unwrap()]);
            }
            Some((mountpoint, _)) => {
                run_tool("umount", &[mountpoint]);
            }
            None => {}
        }
    }
}

#[derive(Default)]
struct Figures(BTreeMap<(What, Side), Vec<f64>>);

impl Figures {
    fn add(&mut self, what: What, side: Side, value: f64) {
        self.0.entry((what, side)).or_default().push(value);
    }

    fn of(&self, what: What, side: Side) -> &[f64] {
        self.0.get(&(what, side)).map_or(&[], Vec::as_slice)
    }

    /// How many times as fast as `theirs` ours is, where times were measured.
    fn faster(&self, what: What, ours: Side, theirs: Side) -> f64 {
        median_ratio(self.of(what, theirs), self.of(what, ours))
    }

    /// The same where rates were measured.
    fn rate(&self, what: What, ours: Side, theirs: Side) -> f64 {
        median_ratio(self.of(what, ours), self.of(what, theirs))
    }
}

pub(crate) fn run(work: &Path, scale: Scale, report: &mut Report) {
    report.section(
        "A tree in an archive",
        &format!(
            "{} small files and one of {} MiB, as a tar and as a squashfs image with zstd. A mount is counted until its top directory\n\
             could be listed. All but second and later reads is cold.",
            scale.directories * FILES_IN_A_DIRECTORY,
            scale.large >> 20
        ),
    );
    if !can_drop_caches() {
        report.note("The kernel's caches could not be emptied (that needs root): this part was not run.");
        return;
    }
    let archives = Archives::make(work, scale);
    let peer = exists("ratarmount");
    if !peer {
        report.note("ratarmount is not on this machine (`pipx install ratarmount`): the rows against it are missing.");
    }
    let mut figures = Figures::default();
    for turn in 0..scale.turns {
        for index in 0..SIDES.len() {
            let side = SIDES[(index + turn) % SIDES.len()];
            if peer || side != Side::Ratarmount {
                eprintln!("turn {}, {}", turn + 1, side.name());
                measure(&archives, side, &mut figures);
            }
        }
    }
    rows(&figures, peer, report);
    table(&figures, report);
    drop(archives);
    memory(work, scale, report);
}

fn measure(archives: &Archives, side: Side, figures: &mut Figures) {
    let indexed = matches!(side, Side::Ratarmount | Side::Tar);
    if indexed {
        for index in [archives.foreign_index(), cache_of(&archives.work.join("mnt"))] {
            let _ = fs::remove_file(&index);
            let _ = fs::remove_dir_all(&index);
        }
        drop_caches();
        figures.add(What::FirstMount, side, Shown::new(archives, side).ready);
    }
    drop_caches();
    let shown = Shown::new(archives, side);
    figures.add(What::Remount, side, shown.ready);
    let timed = |program: &str, args: &[&str]| {
        drop_caches();
        let started = Instant::now();
        run_tool(program, args);
        milliseconds(started.elapsed())
    };
    figures.add(What::Find, side, timed("find", &[shown.root.to_str().unwrap(), "-ls"]));
    let copy = archives.work.join("copy");
    let some = shown.root.join("d0");
    figures.add(What::Copy, side, timed("cp", &["-a", some.to_str().unwrap(), copy.to_str().unwrap()]));
    fs::remove_dir_all(copy).unwrap();
    let large = shown.root.join("big.bin");
    drop_caches();
    figures.add(What::Cold, side, sequential(&large));
    let warm = [0; 9].map(|_| sequential(&large));
    figures.add(What::Second, side, warm[0]);
    figures.add(What::Warm, side, median(&warm));
}

fn rows(figures: &Figures, peer: bool, report: &mut Report) {
    use Side::{Kernel, Native, Ratarmount, Squashfs, Squashfuse, Tar};
    if peer {
        let ratio = figures.faster(What::FirstMount, Tar, Ratarmount);
        report.row(Row::at_least("tar, first mount with its index", 4.0, "as fast as ratarmount", ratio));
    }
    let time = median(figures.of(What::Remount, Tar));
    report.row(Row::new("tar, mounted again, cold", "< 50 ms", &format!("{time:.1} ms"), time < 50.0));
    let ratio = median_ratio(figures.of(What::Find, Tar), figures.of(What::Find, Kernel));
    report.row(Row::new(
        "tar, `find -ls`",
        "≤ 1.2 × the time of the kernel's squashfs",
        &format!("{ratio:.2} ×"),
        ratio <= 1.2,
    ));
    if peer {
        let ratio = figures.faster(What::Copy, Tar, Ratarmount);
        report.row(Row::at_least("tar, `cp -a` of 2,500 small files", 2.0, "as fast as ratarmount", ratio));
        let ratio = figures.rate(What::Cold, Tar, Ratarmount);
        report.row(Row::at_least("tar, sequential, cold", 0.9, "ratarmount", ratio));
    }
    let ratio = figures.rate(What::Second, Tar, Native);
    let of = format!("the plain file's (the kernel's own squashfs: {:.2})", figures.rate(What::Second, Kernel, Native));
    report.row(Row::at_least("tar, sequential, second read", 0.7, &of, ratio));
    let ratio = figures.faster(What::Find, Squashfs, Squashfuse);
    report.row(Row::at_least("squashfs, `find -ls`", 2.0, "as fast as squashfuse_ll", ratio));
    let ratio = figures.faster(What::Copy, Squashfs, Squashfuse);
    report.row(Row::at_least("squashfs, `cp -a` of 2,500 small files", 1.5, "as fast as squashfuse_ll", ratio));
    let ratio = figures.rate(What::Cold, Squashfs, Squashfuse);
    report.row(Row::at_least("squashfs, sequential, cold", 1.5, "squashfuse_ll", ratio));
    let ratio = figures.rate(What::Warm, Squashfs, Squashfuse);
    report.row(Row::at_least("squashfs, sequential, warm", 1.0, "squashfuse_ll", ratio));
}

fn table(figures: &Figures, report: &mut Report) {
    let columns = [
        (What::FirstMount, "first mount, ms"),
        (What::Remount, "mount, ms"),
        (What::Find, "`find -ls`, ms"),
        (What::Copy, "`cp -a`, ms"),
        (What::Cold, "sequential, cold, MB/s"),
        (What::Second, "second read, MB/s"),
        (What::Warm, "warm, MB/s"),
    ];
    let names = columns.map(|(_, name)| name).join(" | ");
    let mut text = format!("| | {names} |\n|{}\n", " --- |".repeat(columns.len() + 1));
    for side in SIDES {
        let cells = columns.map(|(what, _)| match figures.of(what, side) {
            [] => String::new(),
            values => format!("{:.0}", median(values)),
        });
        text.push_str(&format!("| {} | {} |\n", side.name(), cells.join(" | ")));
    }
    report.table("Medians", text);
}

/// What a mount needs in memory to list an archive of very many members.
fn memory(work: &Path, scale: Scale, report: &mut Report) {
    eprintln!("an archive of {} members", scale.members);
    let store = work.join("members");
    let dir = store.join("200").join(format!("lxc-{}", name_of(1)));
    fs::create_dir_all(&dir).unwrap();
    let mut tar = BufWriter::new(File::create(dir.join("archive.tar")).unwrap());
    for member in 0..scale.members {
        tar.write_all(&empty_file(&format!("./d{}/file-{member}.txt", member / 1000))).unwrap();
    }
    tar.write_all(&[0; 1024]).unwrap();
    tar.into_inner().unwrap();
    let mountpoint = work.join("members-mnt");
    fs::create_dir(&mountpoint).unwrap();
    let served = serve_store(&store, &mountpoint, PathBuf::new());
    let root = mountpoint.join("200").join(name_of(1)).join("root");
    let listed = run_tool("find", &[root.to_str().unwrap(), "-type", "f", "-printf", "x"]);
    assert_eq!(listed.len(), scale.members, "all of them are listed");
    let (_, peak) = served.resident().expect("it is a process");
    let peak = peak as f64 / 1024.0;
    let figure = format!("resident memory, tar of {} members, indexed and all listed", scale.members);
    report.row(Row::new(&figure, "< 200 MiB", &format!("{peak:.0} MiB at most"), peak < 200.0));
}

/// The header of an empty file (ustar).
fn empty_file(name: &str) -> [u8; 512] {
    let mut header = [0; 512];
    let fields: [(usize, &[u8]); 9] = [
        (0, name.as_bytes()),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, b"00000000000\0"),
        (136, b"14712345670\0"),
        (148, b"        "),
        (156, b"0"),
        (257, b"ustar\x0000"),
    ];
    for (at, bytes) in fields {
        header[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
