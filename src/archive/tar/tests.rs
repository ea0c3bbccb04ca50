use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::archive::node::Kind;
use crate::base::{FileTime, HostOffset};
use crate::format::tar::BLOCK;
use crate::storage::memory::MemoryFile;
use crate::storage::{BlockCache, DerivedDir, FilePool};

/// Writes archives, member by member, with whatever in them.
#[derive(Clone, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn header(&mut self, name: &[u8], flag: u8, size: u64, link: &[u8]) -> &mut Self {
        let mut block = [0_u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name);
        put(100, b"0000640\0");
        put(108, b"0001750\0");
        put(116, b"0001751\0");
        match size >> 33 {
            0 => put(124, format!("{size:011o}\0").as_bytes()),
            _ => put(124, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat()),
        }
        put(136, b"14524770102\0");
        put(156, &[flag]);
        put(157, link);
        put(257, b"ustar\x0000");
        put(329, b"0000001\0");
        put(337, b"0000003\0");
        put(148, b"        ");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self
    }

    fn data(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.header(name.as_bytes(), b'0', content.len() as u64, b"").data(content)
    }

    fn dir(&mut self, name: &str) -> &mut Self {
        self.header(name.as_bytes(), b'5', 0, b"")
    }

    fn link(&mut self, flag: u8, name: &str, target: &str) -> &mut Self {
        self.header(name.as_bytes(), flag, 0, target.as_bytes())
    }

    fn pax(&mut self, flag: u8, records: &[(&str, &[u8])]) -> &mut Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            data.extend_from_slice(format!("{len} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.header(b"pax", flag, data.len() as u64, b"").data(&data)
    }

    fn end(&mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0.clone()
    }
}

fn env() -> Arc<ArchiveEnv> {
    ArchiveEnv::new(Arc::new(BlockCache::new(1 << 20)), None)
}

fn opened(bytes: Vec<u8>) -> TarTree {
    TarTree::open("a.tar", Arc::new(MemoryFile::new(bytes)), &env()).unwrap()
}

fn find(tree: &TarTree, path: &str) -> Option<NodeId> {
    path.split('/').try_fold(tree.root(), |at, name| tree.lookup(at, name.as_bytes()).unwrap())
}

fn names(tree: &TarTree, dir: &str) -> Vec<String> {
    let dir = if dir.is_empty() { tree.root() } else { find(tree, dir).unwrap() };
    let mut names = Vec::new();
    tree.read_dir(dir, Position(0), &mut |item| {
        names.push(String::from_utf8_lossy(item.name).into_owned());
        true
    })
    .unwrap();
    names
}

fn content(tree: &TarTree, path: &str) -> String {
    let node = find(tree, path).unwrap();
    let size = tree.attributes(node).unwrap().size;
    let mut bytes = vec![0xee; size as usize + 10];
    let got = tree.read_at(node, &mut bytes, 0).unwrap();
    assert_eq!(got as u64, size);
    String::from_utf8(bytes[..got].to_vec()).unwrap()
}

fn stat(tree: &TarTree, path: &str) -> Attributes {
    tree.attributes(find(tree, path).unwrap()).unwrap()
}

#[test]
fn absolute_and_climbing_names_stay_inside_the_tree() {
    let tree = opened(
        Writer::default()
            .file("/etc/a", b"1")
            .file("../../up", b"2")
            .file("x/../../y/./z", b"3")
            .dir("./")
            .link(b'1', "hard", "/../etc/a")
            .end(),
    );
    assert_eq!(tree.broken(), None);
    assert_eq!(names(&tree, ""), ["etc", "hard", "up", "y"]);
    assert_eq!(content(&tree, "y/z"), "3");
    assert_eq!(find(&tree, "hard"), find(&tree, "etc/a"));
    assert_eq!(stat(&tree, "hard").links, 2);
    assert_eq!(find(&tree, ".."), None);
}

#[test]
fn the_last_member_of_a_name_wins_and_hard_links_keep_what_they_were_made_to() {
    let tree = opened(
        Writer::default()
            .file("a", b"first")
            .link(b'1', "b", "a")
            .file("a", b"second")
            .link(b'1', "a", "a")
            .link(b'2', "c", "a")
            .file("c", b"no link any more")
            .end(),
    );
    assert_eq!(tree.broken(), None);
    assert_eq!((content(&tree, "a"), content(&tree, "b")), ("second".into(), "first".into()));
    assert_eq!((stat(&tree, "a").links, stat(&tree, "b").links), (1, 1));
    assert_eq!(content(&tree, "c"), "no link any more");
    // The replaced symlink is gone for good.
    assert_eq!(tree.entries(), 4);
}

#[test]
fn directories_come_again_replace_files_and_are_replaced_only_when_empty() {
    let tree = opened(
        Writer::default()
            .file("d/kept", b"1")
            .dir("d")
            .file("d", b"not over a full directory")
            .dir("e")
            .file("e", b"over an empty one")
            .file("f", b"x")
            .dir("f")
            .file("f/in", b"y")
            .end(),
    );
    assert_eq!(names(&tree, ""), ["d", "e", "f"]);
    assert_eq!((stat(&tree, "d").permissions, content(&tree, "d/kept")), (0o640, "1".into()));
    assert_eq!(content(&tree, "e"), "over an empty one");
    assert_eq!(content(&tree, "f/in"), "y");
    assert_eq!(tree.attributes(tree.root()).unwrap().links, 4);
    let broken = tree.broken().unwrap();
    assert!(broken.contains("'d': not shown: a directory of that name is not empty"), "{broken}");
    assert_eq!(broken.lines().count(), 1);
}

#[test]
fn missing_directories_are_made_and_what_lies_beneath_something_else_is_said() {
    let tree = opened(
        Writer::default().file("a/b/c", b"1").link(b'2', "l", "a").file("l/x", b"2").file("a/b/c/d", b"3").end(),
    );
    let made = stat(&tree, "a/b");
    assert_eq!((made.kind, made.permissions, made.uid, made.links), (Kind::Directory, 0o755, 0, 2));
    assert_eq!(stat(&tree, "a").links, 3);
    let broken = tree.broken().unwrap();
    assert!(broken.contains("'l/x': not shown: 'l' on the way to it is not a directory"), "{broken}");
    assert!(broken.contains("'a/b/c/d'"), "{broken}");
}

#[test]
fn names_that_no_file_system_has_are_left_out_and_told() {
    let long = "x".repeat(256);
    let tree = opened(
        Writer::default()
            .pax(b'x', &[("path", b"nul\0inside")])
            .file("short", b"1")
            .pax(b'x', &[("path", format!("dir/{long}").as_bytes())])
            .file("short", b"2")
            .pax(b'x', &[("path", &vec![b'a'; 70_000])])
            .file("short", b"3")
            .file("good", b"4")
            .end(),
    );
    assert_eq!(names(&tree, ""), ["good"]);
    assert_eq!(tree.broken().unwrap().lines().count(), 3);
}

#[test]
fn links_to_nothing_and_to_directories_are_left_out_and_told() {
    let tree = opened(
        Writer::default()
            .dir("d")
            .link(b'1', "a", "nowhere")
            .link(b'1', "b", "d")
            .header(b"c", b'1', 3, b"nowhere")
            .data(b"own")
            .file("after", b"1")
            .end(),
    );
    assert_eq!(names(&tree, ""), ["after", "c", "d"]);
    assert_eq!(content(&tree, "c"), "own");
    let broken = tree.broken().unwrap();
    assert!(broken.contains("'a': not shown: it is a hard link to 'nowhere'"), "{broken}");
    assert!(broken.contains("'b': not shown: it is a hard link to a directory"), "{broken}");
}

#[test]
fn sizes_of_what_has_no_data_are_believed_only_where_data_follows() {
    let tree = opened(
        Writer::default()
            .header(b"d", b'5', 4096, b"")
            .header(b"l", b'2', 7, b"target")
            .header(b"p", b'6', 600, b"")
            .data(&[7; 600])
            .file("after", b"1")
            .end(),
    );
    assert_eq!(tree.broken(), None);
    assert_eq!(names(&tree, ""), ["after", "d", "l", "p"]);
    assert_eq!(tree.read_link(find(&tree, "l").unwrap()).unwrap(), b"target");
    assert_eq!((stat(&tree, "l").permissions, stat(&tree, "p").permissions), (0o777, 0o640), "as the system has them");
}

#[test]
fn pax_records_are_read_by_their_length_and_a_bad_value_costs_only_itself() {
    let tree = opened(
        Writer::default()
            .pax(b'g', &[("mtime", b"77.5"), ("SCHILY.xattr.user.all", b"everywhere"), ("uid", b"5")])
            .pax(
                b'x',
                &[
                    ("SCHILY.xattr.user.a", b"x\n14 path=../zz\n"),
                    ("atime", b"-1.25"),
                    ("ctime", b"nonsense"),
                    ("gid", b"4294967296"),
                    ("uid", b""),
                ],
            )
            .file("a", b"1")
            .pax(b'x', &[("LIBARCHIVE.xattr.user.b%25", b"AAH+"), ("SCHILY.acl.access", b"user::rwx,user:joe:r--")])
            .file("b", b"2")
            .end(),
    );
    assert_eq!(names(&tree, ""), ["a", "b"]);
    let a = stat(&tree, "a");
    assert_eq!(a.mtime, FileTime { seconds: 77, nanos: 500_000_000 });
    assert_eq!(a.atime, FileTime { seconds: -2, nanos: 750_000_000 });
    assert_eq!((a.ctime, a.uid, a.gid), (a.mtime, 0o1750, 65534));
    let xattrs = tree.xattrs(a.node).unwrap();
    assert_eq!(xattrs[0], (b"user.all".to_vec(), b"everywhere".to_vec()));
    assert_eq!(xattrs[1], (b"user.a".to_vec(), b"x\n14 path=../zz\n".to_vec()));
    let b = stat(&tree, "b");
    assert_eq!((b.uid, tree.xattrs(b.node).unwrap()[1].clone()), (5, (b"user.b%".to_vec(), vec![0, 1, 254])));
    let broken = tree.broken().unwrap();
    for part in ["'a': 'ctime' has the value 'nonsense'", "its group 4294967296 does not fit", "posix_acl_access"] {
        assert!(broken.contains(part), "{part}: {broken}");
    }
    assert_eq!(broken.lines().count(), 3);
}

#[test]
fn an_extended_header_that_contradicts_itself_costs_its_member_alone() {
    let mut archive = Writer::default();
    archive.header(b"pax", b'x', 20, b"").data(b"99 path=evil\n0000000").file("a", b"1").file("b", b"2");
    let tree = opened(archive.end());
    assert_eq!(names(&tree, ""), ["b"]);
    assert!(tree.broken().unwrap().contains("'a': not shown: an extended header's record contradicts its length"));
}

#[test]
fn maps_that_overlap_or_want_more_than_is_stored_are_refused() {
    for map in ["0,10,5,10", "0,600", "90,20", "18446744073709551615,1", "1,2,3", "a,b"] {
        let tree = opened(
            Writer::default()
                .pax(b'x', &[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", b"100")])
                .file("a", &[1; 50])
                .file("b", b"2")
                .end(),
        );
        assert_eq!(names(&tree, ""), ["b"], "{map}");
        assert!(tree.broken().unwrap().contains("'a': not shown: its sparse map"), "{map}");
    }
    let good = opened(
        Writer::default()
            .pax(b'x', &[("GNU.sparse.map", b"2,3,5,1,50,0,90,4"), ("GNU.sparse.size", b"100")])
            .file("a", b"12345678")
            .end(),
    );
    let a = stat(&good, "a");
    assert_eq!((a.size, a.allocated), (100, 8));
    assert_eq!(good.next_data(a.node, 0).unwrap(), Some(2));
    assert_eq!(good.next_hole(a.node, 2).unwrap(), 6);
    assert_eq!(good.next_data(a.node, 6).unwrap(), Some(90));
    assert_eq!(good.next_hole(a.node, 91).unwrap(), 94);
    assert_eq!(good.next_data(a.node, 94).unwrap(), None);
    let mut bytes = [9; 100];
    assert_eq!(good.read_at(a.node, &mut bytes, 0).unwrap(), 100);
    assert_eq!((&bytes[..7], &bytes[88..95]), (&b"\0\x001234\0"[..], &b"\0\x005678\0"[..]));
}

#[test]
fn volumes_labels_and_dumps_are_told_from_files() {
    let tree = opened(
        Writer::default()
            .header(b"label", b'V', 0, b"")
            .header(b"rest of a file", b'M', 3, b"")
            .data(b"abc")
            .header(b"dumped", b'D', 6, b"")
            .data(b"Ya\0Yb\0")
            .file("old directory/", b"")
            .header(b"unknown", b'~', 2, b"")
            .data(b"hi")
            .end(),
    );
    assert_eq!(names(&tree, ""), ["dumped", "old directory", "unknown"]);
    assert_eq!((stat(&tree, "dumped").kind, stat(&tree, "old directory").kind), (Kind::Directory, Kind::Directory));
    assert_eq!(content(&tree, "unknown"), "hi");
    assert!(tree.broken().unwrap().contains("'rest of a file': not shown: the file began on an earlier volume"));
}

#[test]
fn sizes_near_the_end_of_64_bits_end_the_archive_there() {
    for size in [1 << 40, 1 << 62, (1 << 63) - 1, i64::MAX as u64 - 600] {
        let mut archive = Writer::default();
        archive.file("a", b"1").header(b"b", b'0', size, b"").file("c", b"2");
        let tree = opened(archive.end());
        assert_eq!(names(&tree, ""), ["a"], "{size}");
        assert!(tree.broken().unwrap().contains("in the middle of 'b'"), "{size}: {:?}", tree.broken());
    }
}

#[test]
fn ten_thousand_nested_directories_are_shown() {
    let deep = vec!["d"; 10_000].join("/");
    let tree = opened(Writer::default().pax(b'x', &[("path", deep.as_bytes())]).file("short", b"down here").end());
    assert_eq!((tree.broken(), content(&tree, &deep)), (None, "down here".into()));
}

fn sample() -> Vec<u8> {
    Writer::default()
        .dir("d")
        .file("d/a", b"content of a")
        .pax(b'x', &[("path", b"d/long"), ("mtime", b"1.5"), ("SCHILY.xattr.user.x", b"y")])
        .file("short", &[b'l'; 700])
        .link(b'1', "d/b", "d/a")
        .link(b'2', "s", "d/a")
        .header(b"null", b'3', 0, b"")
        .pax(
            b'x',
            &[("GNU.sparse.map", b"512,512,2048,10"), ("GNU.sparse.size", b"4096"), ("GNU.sparse.name", b"holes")],
        )
        .file("made up", &[b'h'; 522])
        .end()
}

/// Everything that can be asked of a tree. Errors are fine.
fn ask_everything(tree: &TarTree) -> Vec<(String, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    let mut waiting = vec![(String::new(), tree.root())];
    while let Some((name, node)) = waiting.pop() {
        let Ok(stat) = tree.attributes(node) else { continue };
        let _ = tree.xattrs(node);
        let _ = tree.read_link(node);
        let mut bytes = vec![0; 5000];
        let read = tree.read_at(node, &mut bytes, 0).ok().map(|got| bytes[..got].to_vec());
        let mut at = 0;
        for _ in 0..100 {
            let Ok(Some(data)) = tree.next_data(node, at) else { break };
            assert!(data >= at && data < stat.size);
            let Ok(hole) = tree.next_hole(node, data) else { break };
            assert!(hole > data && hole <= stat.size);
            at = hole;
        }
        let _ = tree.read_dir(node, Position(0), &mut |item| {
            waiting.push((format!("{name}/{}", item.name.escape_ascii()), item.node));
            true
        });
        found.push((name, read));
    }
    found.sort();
    found
}

#[test]
fn an_archive_cut_short_shows_what_is_whole_and_says_where_it_ends() {
    let whole = sample();
    let all = ask_everything(&opened(whole.clone()));
    assert_eq!(all.len(), 8);
    let mut shown = 0;
    for len in 0..whole.len() - BLOCK {
        let tree = opened(whole[..len].to_vec());
        let found = ask_everything(&tree);
        assert!(found.len() >= shown, "{len} bytes show less than fewer bytes");
        shown = found.len();
        // Nothing is shown that is not in the whole archive, byte for byte.
        assert!(found.iter().all(|entry| all.contains(entry)), "{len}: {found:?}");
        // The two blocks of the end mark are all that the last part lacks.
        let broken = tree.broken().unwrap_or_else(|| panic!("{len} of {} bytes", whole.len()));
        assert!(broken.contains(&format!("byte {len}: the archive ends")), "{len}: {broken}");
    }
    assert_eq!(shown, all.len());
}

#[test]
fn a_medium_that_fails_half_way_shows_what_is_before_and_its_index_is_not_kept() {
    let whole = sample();
    let dir = tempfile::tempdir().unwrap();
    let derived = DerivedDir::open(&dir.path().join("cache"), FilePool::new(4)).unwrap();
    let env = ArchiveEnv::new(Arc::new(BlockCache::new(1 << 20)), Some(derived));
    let file = MemoryFile::new(whole);
    let tree = TarTree::open("a", Arc::new(file.clone().failing_from(HostOffset(3000))), &env).unwrap();
    assert_eq!(names(&tree, "d"), ["a"]);
    assert!(tree.broken().unwrap().contains("what follows cannot be read"), "{:?}", tree.broken());
    let tree = TarTree::open("a", Arc::new(file), &env).unwrap();
    assert_eq!((tree.broken(), tree.entries()), (None, 7));
}

#[test]
fn a_kept_index_is_used_again_and_made_anew_when_it_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let derived = DerivedDir::open(&dir.path().join("cache"), FilePool::new(4)).unwrap();
    let env = ArchiveEnv::new(Arc::new(BlockCache::new(1 << 20)), Some(derived));
    let file = MemoryFile::new(sample());
    let all = ask_everything(&TarTree::open("a", Arc::new(file.clone()), &env).unwrap());
    let kept: Vec<_> = std::fs::read_dir(dir.path().join("cache")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(kept.len(), 1);
    // An archive that cannot be read any more: what is known of it comes from the index.
    let dead = TarTree::open("a", Arc::new(file.clone().failing_from(HostOffset(0))), &env).unwrap();
    assert_eq!(ask_everything(&dead).len(), all.len());
    assert_eq!(dead.broken(), None);
    // Every damaged byte is found, one cut off as well.
    let good = std::fs::read(&kept[0]).unwrap();
    for at in (0..good.len()).step_by(997).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&kept[0], &bad).unwrap();
        let tree = TarTree::open("a", Arc::new(file.clone()), &env).unwrap();
        assert_eq!(ask_everything(&tree), all, "byte {at}");
        assert_eq!(std::fs::read(&kept[0]).unwrap(), good, "byte {at}");
    }
    std::fs::write(&kept[0], &good[..good.len() - 1]).unwrap();
    assert_eq!(ask_everything(&TarTree::open("a", Arc::new(file.clone()), &env).unwrap()), all);
    // The index of another archive under the same name.
    let other = MemoryFile::new(Writer::default().file("other", b"1").end());
    drop(TarTree::open("b", Arc::new(other), &env).unwrap());
    for entry in std::fs::read_dir(dir.path().join("cache")).unwrap() {
        let path = entry.unwrap().path();
        if path != kept[0] {
            std::fs::copy(path, &kept[0]).unwrap();
        }
    }
    assert_eq!(ask_everything(&TarTree::open("a", Arc::new(file), &env).unwrap()), all);
}

#[test]
fn a_member_takes_60_bytes_and_its_name_in_the_index() {
    const MEMBERS: usize = 20_000;
    let mut archive = Writer::default();
    for i in 0..MEMBERS {
        archive.header(format!("directory{:02}/file number {i:06}", i % 100).as_bytes(), b'0', 0, b"");
    }
    let file = MemoryFile::new(archive.end());
    let scanned = scan::scan(&file, Limits::default()).unwrap();
    let image = scanned.builder.finish(file.lasting_identity(), "");
    let names = MEMBERS * "file number 000000".len();
    let most = (MEMBERS + 101) * 60 + names + 4096;
    assert!(image.len() as usize <= most + most / 1000 + (16 << 10), "{} bytes, at most {most}", image.len());
}

#[test]
fn an_archive_that_wants_more_memory_than_it_may_is_refused() {
    let mut archive = Writer::default();
    for i in 0..50 {
        archive.pax(b'x', &[("SCHILY.xattr.user.x", &[b'x'; 1000])]).file(&format!("name {i}"), b"");
    }
    let file = MemoryFile::new(archive.end());
    let limits = Limits { entries: 1000, text: 10_000, extra: 100_000, extents: 10 };
    assert!(scan::scan(&file, limits).is_ok());
    for tight in [Limits { entries: 50, ..limits }, Limits { text: 300, ..limits }, Limits { extra: 30_000, ..limits }]
    {
        let error = scan::scan(&file, tight).err().expect("a limit");
        assert_eq!(error.kind(), ErrorKind::Limit, "{}", error.report());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_damage_brings_the_reader_down(flips in proptest::collection::vec((0_usize..8000, any::<u8>()), 1..6), mend in any::<bool>()) {
        let mut bytes = sample();
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if mend {
            // With checksums that fit, damage gets further in.
            for block in bytes.chunks_exact_mut(BLOCK).filter(|block| block[257..262] == *b"ustar") {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        ask_everything(&opened(bytes));
    }
}
