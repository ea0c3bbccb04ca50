//! Squashfs images by mksquashfs, read as unsquashfs extracts them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annals::archive::{ArchiveEnv, ArchiveFormat, Tree, open};
use annals::base::ErrorKind;
use annals::storage::{BlockCache, FilePool, Gate, RelPath};

use crate::support::tools::{command, have, run};
use crate::support::trees::{
    Sample, assert_same, have_root, in_archive, make_sample, names_in, on_disk, pseudo_random,
};

struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn pack(&self, image: &str, options: &str) {
        let (tree, to) = (self.name("tree"), self.name(image));
        let args = [tree.as_str(), &to, "-noappend", "-no-progress", "-quiet"];
        let args: Vec<&str> = args.into_iter().chain(options.split_whitespace()).collect();
        run("mksquashfs", &args);
    }

    fn opened(&self, image: &str, cache: u64) -> Arc<dyn Tree> {
        opened(&self.path(image), cache).unwrap()
    }
}

fn opened(image: &Path, cache: u64) -> annals::base::Result<Arc<dyn Tree>> {
    let gate = Gate::open(image.parent().unwrap(), FilePool::new(16)).unwrap();
    let name = image.file_name().unwrap().to_str().unwrap();
    let file = gate.open_file(&RelPath::new(name).unwrap()).unwrap();
    let env = ArchiveEnv::new(Arc::new(BlockCache::new(cache)), None);
    open(name, Arc::new(file), ArchiveFormat::Squashfs, &env)
}

/// The image is shown as unsquashfs extracts it.
fn shown_as_extracted(work: &Work, what: &str) {
    let out = work.path("out");
    let status = command("unsquashfs")
        .args(["-quiet", "-no-progress", "-d"])
        .arg(&out)
        .arg(work.path("image"))
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let tree = work.opened("image", 8 << 20);
    assert_eq!(tree.broken(), None);
    let (ours, mut theirs) = (in_archive(&*tree), on_disk(&out));
    for (name, entry) in &mut theirs {
        // A file system has holes of its own blocks, and unsquashfs makes them where it finds zeros: what ours says of holes is
        // compared with the tree that was packed.
        entry.data = ours.get(name).map(|entry| entry.data.clone()).unwrap_or_default();
    }
    assert_same(what, &ours, &theirs);
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn every_compressor_and_layout_is_read_as_unsquashfs_extracts_it() {
    if !have(&["mksquashfs", "unsquashfs"]) || !have_root() {
        return;
    }
    let work = Work::new();
    make_sample(&work.path("tree"), Sample { long_names: true, ..Sample::default() });
    std::os::unix::fs::lchown(work.path("tree/home/large"), Some(3_000_000_000), Some(4_294_967_294)).unwrap();
    for options in [
        "-comp gzip",
        "-comp gzip -b 4096 -Xwindow-size 8",
        "-comp xz",
        "-comp xz -Xbcj x86,arm -Xdict-size 50%",
        "-comp lzo",
        "-comp lzo -Xalgorithm lzo1x_1 -b 1M",
        "-comp lzo -Xalgorithm lzo1x_1_15 -b 8192",
        "-comp lz4",
        "-comp lz4 -Xhc -b 1M",
        "-comp zstd",
        "-comp zstd -b 4096 -no-fragments",
        "-comp zstd -always-use-fragments",
        "-comp zstd -noI -noD -noF -noX",
        "-comp zstd -noD",
        "-comp zstd -noF -noId",
        "-comp zstd -no-exports -no-duplicates",
        "-comp zstd -no-sparse",
        "-comp lzma",
    ] {
        work.pack("image", options);
        shown_as_extracted(&work, options);
    }
}

#[test]
fn holes_are_those_of_the_tree_in_units_of_a_block() {
    if !have(&["mksquashfs"]) || !have_root() {
        return;
    }
    let work = Work::new();
    make_sample(&work.path("tree"), Sample::default());
    let file = fs::File::create(work.path("tree/var/huge")).unwrap();
    file.set_len(200 << 20).unwrap();
    for at in [4096, 100 << 20, (200 << 20) - 4096] {
        std::os::unix::fs::FileExt::write_all_at(&file, &pseudo_random(4096, at), at).unwrap();
    }
    // The file system's blocks.
    work.pack("image", "-comp zstd -b 4096 -no-xattrs");
    let (ours, tree) = (in_archive(&*work.opened("image", 8 << 20)), on_disk(&work.path("tree")));
    let holes = |listing: &crate::support::trees::Listing, name: &str| listing[Path::new(name)].data.clone();
    for name in ["var/hole", "var/hole at end", "var/hole at start", "var/many holes", "var/huge", "home/large"] {
        assert_eq!(holes(&ours, name), holes(&tree, name), "{name}");
    }
    assert_eq!(holes(&ours, "var/many holes").len(), 60);
}

#[test]
fn directories_of_thousands_of_names_are_listed_in_parts_and_found_by_name() {
    if !have(&["mksquashfs"]) || !have_root() {
        return;
    }
    let work = Work::new();
    for i in 0..12_000 {
        fs::write(work.path(&format!("tree/a rather long name, number {i}")), "").unwrap();
    }
    work.pack("image", "-comp zstd");
    let tree = work.opened("image", 8 << 20);
    let names = names_in(&*tree, tree.root());
    assert_eq!(names.len(), 12_000);
    for (name, node) in names.iter().step_by(37) {
        assert_eq!(tree.lookup(tree.root(), name.as_encoded_bytes()).unwrap(), Some(*node));
    }
    for no in ["", "a", "a rather long name, number 99999", "zzz"] {
        assert_eq!(tree.lookup(tree.root(), no.as_bytes()).unwrap(), None, "{no}");
    }
}

#[test]
fn a_large_file_is_right_from_front_to_back_at_random_and_by_many_under_a_small_cache() {
    if !have(&["mksquashfs"]) || !have_root() {
        return;
    }
    let work = Work::new();
    let mut content = Vec::new();
    for i in 0..600 {
        content.extend_from_slice(&pseudo_random(30_000, i));
        content.extend_from_slice(&vec![i as u8; 35_000]);
    }
    fs::write(work.path("tree/large"), &content).unwrap();
    for options in ["-comp zstd -b 4096", "-comp zstd"] {
        work.pack("image", options);
        let tree = work.opened("image", 4 << 20);
        let node = tree.lookup(tree.root(), b"large").unwrap().unwrap();
        let check = |at: usize, len: usize| {
            let mut buf = vec![0xee; len];
            let got = tree.read_at(node, &mut buf, at as u64).unwrap();
            let expected = &content[at.min(content.len())..(at + len).min(content.len())];
            assert!(buf[..got] == *expected, "{len} bytes at {at}, {options}");
        };
        for at in (0..content.len() + 200_000).step_by(131_072) {
            check(at, 131_072);
        }
        std::thread::scope(|threads| {
            for thread in 0..4_u64 {
                let check = &check;
                threads.spawn(move || {
                    for i in 0..150 {
                        let bytes = pseudo_random(8, thread * 1000 + i);
                        let random = u64::from_le_bytes(bytes.try_into().unwrap());
                        check(random as usize % 40_000_000, (random >> 40) as usize % 300_000);
                    }
                });
            }
        });
    }
}

#[test]
fn an_image_that_is_cut_short_or_none_is_refused_with_the_reason() {
    if !have(&["mksquashfs"]) || !have_root() {
        return;
    }
    let work = Work::new();
    fs::write(work.path("tree/a"), pseudo_random(100_000, 1)).unwrap();
    work.pack("image", "-comp gzip");
    let whole = fs::read(work.path("image")).unwrap();
    for (len, reason) in [(0, "fewer than"), (95, "fewer than"), (96, "cut short"), (90_000, "cut short")] {
        fs::write(work.path("cut"), &whole[..len]).unwrap();
        let error = opened(&work.path("cut"), 1 << 20).err().expect("a refusal");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.report().contains(reason), "{len}: {}", error.report());
        assert!(error.report().starts_with("archive cut: "), "{}", error.report());
    }
}
