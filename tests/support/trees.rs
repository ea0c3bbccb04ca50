//! Trees on disk and in archives, in a form in which they can be compared, and a tree that has some of everything.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use annals::archive::{Kind, NodeId, Position, Tree};
use rustix::fs::{CWD, FileType, Gid, Mode, SeekFrom, Uid, XattrFlags, makedev};

use crate::support::needs::needs;

/// What is compared of one entry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) permissions: u32,
    pub(crate) owner: (u32, u32),
    /// Of regular files and symlinks.
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u64,
    /// The first of all names of the same file.
    pub(crate) first_name: PathBuf,
    pub(crate) device: (u32, u32),
    /// A hash of the bytes of a regular file; a symlink's target.
    pub(crate) content: Vec<u8>,
    /// Start and end of each run of data of a regular file.
    pub(crate) data: Vec<(u64, u64)>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let data = self.data.get(..8).unwrap_or(&self.data);
        let xattrs: Vec<_> =
            self.xattrs.iter().map(|(n, v)| format!("{}={}", n.escape_ascii(), v.escape_ascii())).collect();
        write!(
            f,
            "{:?} {:o} {:?} size {} mtime {:?} links {} first {:?} dev {:?} content {} data {:?} xattrs {xattrs:?}",
            self.kind,
            self.permissions,
            self.owner,
            self.size,
            self.mtime,
            self.links,
            self.first_name,
            self.device,
            self.content.escape_ascii(),
            data,
        )
    }
}

/// Entries by name; the top directory's is empty.
pub(crate) type Listing = BTreeMap<PathBuf, Entry>;

/// A tree on disk.
pub(crate) fn on_disk(root: &Path) -> Listing {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(name) = waiting.pop() {
        let path = root.join(&name);
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = match meta.file_type() {
            t if t.is_dir() => Kind::Directory,
            t if t.is_symlink() => Kind::Symlink,
            t if t.is_char_device() => Kind::CharDevice,
            t if t.is_block_device() => Kind::BlockDevice,
            t if t.is_fifo() => Kind::Fifo,
            t if t.is_socket() => Kind::Socket,
            _ => Kind::Regular,
        };
        if kind == Kind::Directory {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| name.join(entry.unwrap().file_name())));
        }
        let (content, data) = match kind {
            Kind::Regular => {
                let file = File::open(&path).unwrap();
                let read = |buf: &mut [u8], at| file.read_at(buf, at).unwrap();
                let seek = |to| rustix::fs::seek(&file, to).ok();
                let data = runs(meta.len(), |at| seek(SeekFrom::Data(at)), |at| seek(SeekFrom::Hole(at)).unwrap());
                (hash_of(meta.len(), &data, read), data)
            }
            Kind::Symlink => (fs::read_link(&path).unwrap().into_os_string().into_vec(), Vec::new()),
            _ => (Vec::new(), Vec::new()),
        };
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice)
            .then(|| (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())));
        inodes.insert(name.clone(), meta.ino());
        let entry = Entry {
            kind,
            permissions: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            size: if matches!(kind, Kind::Regular | Kind::Symlink) { meta.len() } else { 0 },
            mtime: (meta.mtime(), meta.mtime_nsec() as u32),
            links: meta.nlink(),
            first_name: PathBuf::new(),
            device: device.unwrap_or_default(),
            content,
            data,
            xattrs: xattrs_on_disk(&path),
        };
        found.insert(name, entry);
    }
    name_groups(&mut found, &inodes);
    found
}

/// A tree in an archive.
pub(crate) fn in_archive(tree: &dyn Tree) -> Listing {
    let mut found = BTreeMap::new();
    let mut nodes = BTreeMap::new();
    let mut waiting = vec![(PathBuf::new(), tree.root())];
    while let Some((name, node)) = waiting.pop() {
        let stat = tree.attributes(node).unwrap();
        if stat.kind == Kind::Directory {
            for (child, node) in names_in(tree, node) {
                assert_eq!(tree.lookup(stat.node, child.as_bytes()).unwrap(), Some(node), "looking up {child:?}");
                waiting.push((name.join(child), node));
            }
        }
        let (content, data) = match stat.kind {
            Kind::Regular => {
                let read = |buf: &mut [u8], at| tree.read_at(node, buf, at).unwrap();
                let data =
                    runs(stat.size, |at| tree.next_data(node, at).unwrap(), |at| tree.next_hole(node, at).unwrap());
                assert_eq!(stat.allocated, data.iter().map(|(start, end)| end - start).sum::<u64>(), "{name:?}");
                (hash_of(stat.size, &data, read), data)
            }
            Kind::Symlink => (tree.read_link(node).unwrap(), Vec::new()),
            _ => (Vec::new(), Vec::new()),
        };
        nodes.insert(name.clone(), node.0);
        let entry = Entry {
            kind: stat.kind,
            permissions: stat.permissions.into(),
            owner: (stat.uid, stat.gid),
            size: if stat.kind == Kind::Directory { 0 } else { stat.size },
            mtime: (stat.mtime.seconds, stat.mtime.nanos),
            links: stat.links.into(),
            first_name: PathBuf::new(),
            device: stat.device,
            content,
            data,
            xattrs: tree.xattrs(node).unwrap().into_iter().collect(),
        };
        found.insert(name, entry);
    }
    name_groups(&mut found, &nodes);
    found
}

/// The names in a directory, read in several goes.
pub(crate) fn names_in(tree: &dyn Tree, dir: NodeId) -> Vec<(std::ffi::OsString, NodeId)> {
    let mut names = Vec::new();
    let mut at = Position::default();
    loop {
        let before = names.len();
        tree.read_dir(dir, at, &mut |item| {
            names.push((OsStr::from_bytes(item.name).to_owned(), item.node));
            at = item.next;
            names.len() - before < 7
        })
        .unwrap();
        if names.len() == before {
            return names;
        }
    }
}

fn name_groups(found: &mut Listing, ids: &BTreeMap<PathBuf, u64>) {
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for (name, id) in ids {
        first.entry(*id).or_insert_with(|| name.clone());
    }
    for (name, entry) in found {
        entry.first_name = first[&ids[name]].clone();
    }
}

fn runs(size: u64, data: impl Fn(u64) -> Option<u64>, hole: impl Fn(u64) -> u64) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(start) = data(at) else { break };
        at = hole(start);
        assert!(at > start && at <= size, "a run of data from {start} to {at} of {size}");
        runs.push((start, at));
    }
    runs
}

/// What is compared of a file's bytes.
pub(crate) fn content_of(bytes: &[u8]) -> Vec<u8> {
    hash_of(bytes.len() as u64, &[(0, bytes.len() as u64)], |buf, at| {
        let rest = &bytes[at as usize..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        len
    })
}

/// A hash of what is not zero. Large holes are looked at in places only.
fn hash_of(size: u64, data: &[(u64, u64)], read: impl Fn(&mut [u8], u64) -> usize) -> Vec<u8> {
    const PART: usize = 60_000;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut buf = vec![0; PART];
    let mut take = |start: u64, end: u64| {
        let mut at = start;
        while at < end {
            let wanted = (end - at).min(PART as u64) as usize;
            buf.fill(0xee);
            let got = read(&mut buf[..wanted], at);
            assert_eq!(got, wanted, "a read of {wanted} at {at} of {size}");
            for (i, byte) in buf[..got].iter().enumerate().filter(|(_, b)| **b != 0) {
                hash = (hash ^ (at + i as u64)).wrapping_mul(0x0100_0000_01b3);
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
            at += got as u64;
        }
    };
    let mut before = 0;
    for (start, end) in data {
        take(before.max(start.saturating_sub(PART as u64)), *start);
        take(*start, *end);
        take(*end, (*end + 1000).min(size));
        before = *end;
    }
    take(size.saturating_sub(1000).max(before), size);
    assert_eq!(read(&mut buf, size), 0, "a read at the end");
    hash.to_le_bytes().to_vec()
}

fn xattrs_on_disk(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names[..len]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0_u8; 65536];
            let len = rustix::fs::lgetxattr(path, CString::new(name).unwrap(), &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

/// Fails with the first differences of two trees, if there are any.
pub(crate) fn assert_same(what: &str, ours: &Listing, theirs: &Listing) {
    let mut differences = Vec::new();
    for name in ours.keys().chain(theirs.keys()).collect::<std::collections::BTreeSet<_>>() {
        match (ours.get(name), theirs.get(name)) {
            (Some(a), Some(b)) if a == b => {}
            (a, b) => differences.push(format!("{name:?}\n   ours   {a:?}\n   theirs {b:?}")),
        }
    }
    assert!(!theirs.is_empty());
    let shown = differences.iter().take(6).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{what}: {} differences\n{shown}", differences.len());
}

/// What a sample is to hold besides what every format can.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sample {
    /// Names and targets longer than 100 bytes, paths of more than 255.
    pub(crate) long_names: bool,
    /// Owners that do not fit in the octal digits of a header, times before 1970 and after 2242.
    pub(crate) large_numbers: bool,
    /// Files whose holes make them larger than what a header's size can say.
    pub(crate) huge: bool,
    /// ACLs.
    pub(crate) acls: bool,
}

impl Sample {
    pub(crate) const ALL: Self = Self { long_names: true, large_numbers: true, huge: true, acls: true };
}

/// Makes a tree that has some of everything. Needs root.
pub(crate) fn make_sample(root: &Path, sample: Sample) {
    for dir in ["etc/empty", "home/sticky", "var/many"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let write = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).unwrap();
    write("etc/passwd", b"root:x:0:0::/root:/bin/sh\n");
    write("etc/nothing", b"");
    write("etc/hidden", b"secret");
    write("home/one byte", b"1");
    write("home/\u{e4}\u{20ac} line\nbreak", b"odd");
    fs::write(root.join(OsStr::from_bytes(b"home/\xff\xfe not utf-8")), b"bytes").unwrap();
    symlink(OsStr::from_bytes(b"\xff/\xfe"), root.join("home/strange link")).unwrap();
    write("home/block", &pseudo_random(512, 1));
    write("home/large", &pseudo_random(1_300_001, 2));
    write("home/text", "all work and no play makes jack a dull boy\n".repeat(20_000).as_bytes());
    for i in 0..300 {
        write(&format!("var/many/{i}"), &pseudo_random(i * 13, i as u64));
    }
    symlink("passwd", root.join("etc/short")).unwrap();
    symlink("../does/not/exist", root.join("etc/dangling")).unwrap();
    symlink("/etc/passwd", root.join("etc/absolute")).unwrap();
    for name in ["etc/second", "var/third"] {
        fs::hard_link(root.join("etc/passwd"), root.join(name)).unwrap();
    }
    fs::hard_link(root.join("etc/short"), root.join("home/linked symlink")).unwrap();
    let mknod = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    mknod("var/pipe", FileType::Fifo, 0);
    mknod("var/null", FileType::CharacterDevice, makedev(1, 3));
    mknod("var/loop", FileType::BlockDevice, makedev(7, 259));
    let holes = |name: &str, size: u64, data: &[(u64, usize)]| {
        let file = File::create(root.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, len) in data {
            file.write_all_at(&pseudo_random(*len, *at + 9), *at).unwrap();
        }
    };
    holes("var/hole", 300_000, &[]);
    holes("var/hole at end", 500_000, &[(0, 8192)]);
    holes("var/hole at start", 299_999, &[(262_144, 37_855)]);
    let many: Vec<_> = (0..60).map(|i| (i * 65_536 + 16_384, 4096)).collect();
    holes("var/many holes", 60 * 65_536, &many);
    // A name that is not ASCII stands in records of its own.
    holes("var/h\u{f6}hle", 100_000, &[(16_384, 4096)]);
    fs::hard_link(root.join("var/h\u{f6}hle"), root.join("var/zweite")).unwrap();
    if sample.huge {
        holes("var/huge", 9 << 30, &[(4096, 4096), (8 << 30, 5000), ((9 << 30) - 4096, 4096)]);
    }
    if sample.long_names {
        let deep = ["a directory of some length"; 12].join("/");
        fs::create_dir_all(root.join(&deep)).unwrap();
        write(&format!("{deep}/{}", "n".repeat(255)), b"deep");
        fs::hard_link(root.join(&deep).join("n".repeat(255)), root.join("home/short name")).unwrap();
        symlink("t".repeat(3000), root.join("home/long target")).unwrap();
        write(&format!("home/{}", "x".repeat(100)), b"just over");
    }
    let chmod = |name: &str, mode| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let chown = |name: &str, uid, gid| {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(CWD, root.join(name), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags).unwrap();
    };
    chown("home", 1000, 1000);
    chown("home/text", 100_000, 100_001);
    chown("home/strange link", 1001, 1002);
    if sample.large_numbers {
        chown("home/large", 3_000_000_000, 4_294_967_294);
    }
    chmod("etc/hidden", 0o000);
    chmod("home/sticky", 0o1777);
    chmod("home/block", 0o4755);
    chmod("home/one byte", 0o2710);
    let xattr = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(name), attribute, value, XattrFlags::empty()).unwrap();
    };
    xattr("home/text", "user.plain", b"value");
    xattr("home/text", "user.binary", &[0, 1, 2, 255, b'\n', b'=', 0]);
    xattr("home/text", "user.renames", b"x\n14 path=../zz\n");
    xattr("home/text", "user.odd=name %25", b"odd");
    xattr("home", "user.on.a.directory", b"");
    xattr("etc/passwd", "trusted.secret", b"t");
    xattr("home/block", "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    if sample.acls {
        let entry = |tag: u16, bits: u16, id: u32| {
            [&tag.to_le_bytes()[..], &bits.to_le_bytes()[..], &id.to_le_bytes()[..]].concat()
        };
        let acl = |entries: &[Vec<u8>]| [&2_u32.to_le_bytes()[..], &entries.concat()[..]].concat();
        let none = u32::MAX;
        let access = acl(&[
            entry(1, 6, none),
            entry(2, 7, 12_345),
            entry(2, 4, 2_000_000),
            entry(4, 4, none),
            entry(8, 5, 777_777),
            entry(16, 7, none),
            entry(32, 4, none),
        ]);
        xattr("etc/nothing", "system.posix_acl_access", &access);
        xattr("etc/empty", "system.posix_acl_access", &access);
        xattr("etc/empty", "system.posix_acl_default", &access);
    }
    set_times(root, sample);
}

/// Gives everything a time of its own, directories last.
fn set_times(root: &Path, sample: Sample) {
    let mut names: Vec<PathBuf> = on_disk(root).into_keys().collect();
    names.reverse();
    for (i, name) in names.iter().enumerate() {
        let since = Duration::new(1_700_000_000 + i as u64 * 1000, (i as u32 * 7_654_321) % 1_000_000_000);
        let mut time = UNIX_EPOCH + since;
        if sample.large_numbers && name.ends_with("block") {
            time = UNIX_EPOCH - Duration::new(86_400, 250_000_000);
        }
        if sample.large_numbers && name.ends_with("one byte") {
            time = UNIX_EPOCH + Duration::new(10_000_000_000, 1);
        }
        set_mtime(&root.join(name), time);
    }
}

fn set_mtime(path: &Path, time: SystemTime) {
    let (seconds, nanos) = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            (-(before.as_secs() as i64) - 1, 1_000_000_000 - before.subsec_nanos())
        }
    };
    let stamp = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    let times = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Bytes that do not compress, the same each time.
pub(crate) fn pseudo_random(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Whether this is root, who alone can make devices, give files away and restore them. Says so aloud where it is not.
pub(crate) fn have_root() -> bool {
    needs(rustix::process::geteuid().is_root(), "root")
}
