//! Container archives: damaged, made up to do harm, and large.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use annals::archive::{ArchiveEnv, ArchiveFormat, Kind, NodeId, Position, Tree, open};
use annals::base::{ErrorKind, HostOffset, Result};
use annals::storage::memory::MemoryFile;
use annals::storage::{BlockCache, DerivedDir, FileIdentity, FilePool, Storage};

use crate::support::isolated::{Limits, isolated_test};
use crate::support::random::Random;
use crate::support::tools::{have, run};

fn opened(bytes: &[u8], format: ArchiveFormat) -> Result<Arc<dyn Tree>> {
    let env = ArchiveEnv::new(Arc::new(BlockCache::new(4 << 20)), None);
    open("hostile", Arc::new(MemoryFile::new(bytes.to_vec())), format, &env)
}

/// Asks everything of a tree. Errors are fine. Returns how many entries it came by, and stops at a bound that only a tree
/// without an end would reach.
fn walk(tree: &dyn Tree) -> usize {
    const BOUND: usize = 20_000;
    let mut waiting = vec![tree.root()];
    let mut seen = 0;
    while let Some(node) = waiting.pop() {
        seen += 1;
        assert!(seen < BOUND, "a tree without an end");
        let Ok(stat) = tree.attributes(node) else { continue };
        let _ = tree.xattrs(node);
        let _ = tree.read_link(node);
        let mut buf = vec![0; 40_000];
        for at in [0, 5000, stat.size.saturating_sub(100), u64::MAX - 5] {
            if let Ok(got) = tree.read_at(node, &mut buf, at) {
                assert!(got as u64 <= stat.size.saturating_sub(at));
            }
        }
        let mut at = 0;
        for _ in 0..10 {
            let Ok(Some(data)) = tree.next_data(node, at) else { break };
            let Ok(hole) = tree.next_hole(node, data) else { break };
            assert!(at <= data && data < hole && hole <= stat.size, "{at} {data} {hole} {}", stat.size);
            at = hole;
        }
        let _ = tree.read_dir(node, Position(0), &mut |item| {
            assert!(!item.name.is_empty() && !item.name.contains(&b'/') && !item.name.contains(&0));
            let _ = tree.lookup(node, item.name);
            waiting.push(item.node);
            waiting.len() < BOUND
        });
    }
    seen
}

/// A small tree, packed. The metadata is compressed, or open to be changed.
fn image(options: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("outer-directory/inner-directory")).unwrap();
    fs::write(tree.join("outer-directory/inner-directory/file"), "text").unwrap();
    fs::write(tree.join("text"), "all work and no play\n".repeat(1000)).unwrap();
    let holes = fs::File::create(tree.join("holes")).unwrap();
    holes.set_len(303_101).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"data", 200_000).unwrap();
    std::os::unix::fs::symlink("some/where", tree.join("link")).unwrap();
    fs::hard_link(tree.join("text"), tree.join("second")).unwrap();
    for i in 0..300 {
        fs::write(tree.join(format!("outer-directory/number {i}")), format!("{i}")).unwrap();
    }
    rustix::fs::setxattr(tree.join("text"), "user.a", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    let (tree, to) = (tree.to_str().unwrap().to_owned(), dir.path().join("image").to_str().unwrap().to_owned());
    let args = [tree.as_str(), &to, "-noappend", "-no-progress", "-quiet", "-all-root"];
    run("mksquashfs", &args.into_iter().chain(options.split_whitespace()).collect::<Vec<_>>());
    fs::read(Path::new(&to)).unwrap()
}

/// Where `needle` is, once.
fn find(image: &[u8], needle: &[u8]) -> usize {
    let mut found = image.windows(needle.len()).enumerate().filter(|(_, part)| *part == needle).map(|(at, _)| at);
    let at = found.next().unwrap();
    assert_eq!(found.next(), None, "{} is there twice", needle.escape_ascii());
    at
}

const OPEN: &str = "-comp gzip -noI -noX -noId -no-exports -b 4096";

isolated_test! {
    Limits { time: Duration::from_secs(240), memory: 64 };
    fn damaged_squashfs_images_end_in_errors_not_in_panics() {
        if !have(&["mksquashfs"]) {
            return;
        }
        let mut random = Random::new(4);
        for options in [OPEN, "-comp zstd", "-comp xz", "-comp lzo", "-comp lz4", "-comp gzip -b 4096"] {
            let good = image(options);
            let entries = walk(&*opened(&good, ArchiveFormat::Squashfs).unwrap());
            assert!(entries > 300, "{entries}");
            for _ in 0..60 {
                let mut bad = good.clone();
                for _ in 0..random.between(1, 8) {
                    // The tables are at the end, the superblock at the start.
                    let tables = (good.len() as u64).min(16_000);
                    let at = if random.one_in(6) { random.below(96) } else { good.len() as u64 - 1 - random.below(tables) };
                    bad[at as usize] = random.next() as u8;
                }
                if let Ok(tree) = opened(&bad, ArchiveFormat::Squashfs) {
                    walk(&*tree);
                }
            }
        }
    }
}

isolated_test! {
    fn a_directory_that_holds_itself_or_its_parent_is_left_out() {
        if !have(&["mksquashfs"]) {
            return;
        }
        let good = image(OPEN);
        let entries = walk(&*opened(&good, ArchiveFormat::Squashfs).unwrap());
        // In front of a name stand its inode's offset and six more bytes; of the top directory, the superblock has the place.
        let entry = find(&good, b"inner-directory") - 8;
        let outer = find(&good, b"outer-directory") - 8;
        let offset = |at: usize| [good[at], good[at + 1]];
        for (what, to) in [("itself", offset(outer)), ("the top", [good[32], good[33]])] {
            let mut bad = good.clone();
            bad[entry..entry + 2].copy_from_slice(&to);
            let tree = opened(&bad, ArchiveFormat::Squashfs).unwrap();
            let seen = walk(&*tree);
            assert!(seen < entries && seen > 300, "{what}: {seen} of {entries}");
            let outer = tree.lookup(tree.root(), b"outer-directory").unwrap().unwrap();
            assert_eq!(tree.lookup(outer, b"inner-directory").unwrap_err().kind(), ErrorKind::Corrupt, "{what}");
            assert!(tree.lookup(outer, b"number 7").unwrap().is_some(), "{what}");
        }
    }
}

isolated_test! {
    fn names_with_slashes_and_sizes_of_2_63_are_not_believed() {
        if !have(&["mksquashfs"]) {
            return;
        }
        let good = image(OPEN);
        let mut bad = good.clone();
        let at = find(&good, b"inner-directory");
        bad[at + 5] = b'/';
        let tree = opened(&bad, ArchiveFormat::Squashfs).unwrap();
        let outer = tree.lookup(tree.root(), b"outer-directory").unwrap().unwrap();
        assert_eq!(tree.lookup(outer, b"inner/directory").unwrap(), None);
        walk(&*tree);

        let mut bad = good.clone();
        let at = find(&good, &303_101_u64.to_le_bytes());
        bad[at..at + 8].copy_from_slice(&(1_u64 << 63).to_le_bytes());
        let tree = opened(&bad, ArchiveFormat::Squashfs).unwrap();
        let node = tree.lookup(tree.root(), b"holes").unwrap().unwrap();
        let error = tree.attributes(node).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
        assert!(error.report().contains("no room in the image"), "{}", error.report());
        walk(&*tree);
    }
}

/// A tar archive of so many empty files in directories of a thousand, made up as it is read.
struct Many {
    members: u64,
}

impl Many {
    fn block(&self, number: u64) -> [u8; 512] {
        let mut block = [0; 512];
        if number >= self.members {
            return block;
        }
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, format!("directory-{}/file-{:07}", number / 1000, number).as_bytes());
        for (at, field) in [(100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0"), (124, "00000000000\0")] {
            put(at, field.as_bytes());
        }
        put(136, b"14524770102\0");
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

impl Storage for Many {
    fn size(&self) -> u64 {
        (self.members + 2) * 512
    }

    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() && at.0 + (done as u64) < self.size() {
            let from = at.0 + done as u64;
            let block = self.block(from / 512);
            let part = &block[(from % 512) as usize..];
            let len = part.len().min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&part[..len]);
            done += len;
        }
        Ok(done)
    }

    fn next_data(&self, at: HostOffset) -> Result<Option<HostOffset>> {
        Ok((at.0 < self.size()).then_some(at))
    }

    fn next_hole(&self, _: HostOffset) -> Result<HostOffset> {
        Ok(HostOffset(self.size()))
    }

    fn will_need(&self, _: HostOffset, _: u64) {}

    fn identity(&self) -> FileIdentity {
        FileIdentity { device: 1, inode: 1, size: self.size(), mtime_ns: 0 }
    }
}

isolated_test! {
    // A million members may take 200 MiB; a quarter of them, a quarter of that.
    Limits { time: Duration::from_secs(120), memory: 50 };
    fn a_quarter_of_a_million_members_are_indexed_and_listed_in_50_mib() {
        const MEMBERS: u64 = 250_000;
        let dir = tempfile::tempdir().unwrap();
        let derived = DerivedDir::open(dir.path(), FilePool::new(4)).unwrap();
        let env = ArchiveEnv::new(Arc::new(BlockCache::new(8 << 20)), Some(derived));
        let tree = open("many", Arc::new(Many { members: MEMBERS }), ArchiveFormat::Tar, &env).unwrap();
        let mut files = 0;
        let mut directories = Vec::new();
        tree.read_dir(tree.root(), Position(0), &mut |item| {
            directories.push(item.node);
            true
        })
        .unwrap();
        let count = |dir: NodeId, files: &mut u64| {
            tree.read_dir(dir, Position(0), &mut |item| {
                assert_eq!(item.kind, Kind::Regular);
                *files += u64::from(tree.attributes(item.node).unwrap().links);
                true
            })
            .unwrap();
        };
        directories.into_iter().for_each(|dir| count(dir, &mut files));
        assert_eq!(files, MEMBERS);
    }
}
