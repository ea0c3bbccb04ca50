//! Single questions and their answers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use annals::base::ErrorKind;
use annals::fs::{FileKind, Holes, Inode, Whence};

use super::{Scratch, find, list, open, read, walk};

const TIME: &str = "2024-11-07T16-51-22Z";
const LATER: &str = "2024-11-08T16-51-22Z";
/// As long as the catalog may be behind the store.
const BEHIND: Duration = Duration::from_millis(1100);

#[test]
fn names_that_cannot_be_are_simply_absent() {
    let scratch = Scratch::new();
    scratch.put("100", TIME, "disk.raw", &[1; 4096]);
    let tree = scratch.tree();
    let long = "x".repeat(5000);
    for parent in ["100", "100/2024-11-07T16-51-22Z", ".annals"] {
        let dir = find(&tree, parent).unwrap().attributes.inode;
        for name in ["", ".", "..", "a/b", "\0", "latest/", long.as_str()]
            .map(OsStr::new)
            .into_iter()
            .chain([OsStr::from_bytes(b"\xff\xfe")])
        {
            assert_eq!(tree.lookup(dir, name).unwrap_err().kind(), ErrorKind::NotFound, "{parent} {name:?}");
        }
    }
    for name in ["..", "100/..", "", "store.json"] {
        assert_eq!(tree.lookup(Inode::ROOT, OsStr::new(name)).unwrap_err().kind(), ErrorKind::NotFound, "{name:?}");
    }
    let file = find(&tree, "100/latest").unwrap();
    assert_eq!(file.attributes.kind, FileKind::Symlink);
    assert_eq!(tree.lookup(file.attributes.inode, OsStr::new("x")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn questions_about_what_was_never_told_are_errors() {
    let scratch = Scratch::new();
    scratch.put("100", TIME, "disk.raw", &[1; 4096]);
    let tree = scratch.tree();
    for inode in [0, 2, 12345, u64::MAX].map(Inode::from_raw) {
        assert_eq!(tree.attributes(inode).unwrap_err().kind(), ErrorKind::Changed);
        assert_eq!(tree.lookup(inode, OsStr::new("x")).unwrap_err().kind(), ErrorKind::Changed);
        assert_eq!(tree.open(inode, Holes::Exact).unwrap_err().kind(), ErrorKind::Changed);
        assert_eq!(tree.open_dir(inode).unwrap_err().kind(), ErrorKind::Changed);
        tree.forget(inode, 1);
    }
    let handle = annals::fs::Handle(77);
    assert_eq!(tree.read(handle, &mut [0], 0).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(tree.seek(handle, 0, Whence::Data).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(tree.read_dir(handle, 0, |_| true).unwrap_err().kind(), ErrorKind::Usage);
    tree.close(handle);
    tree.close_dir(handle);
    let dir = find(&tree, "100").unwrap().attributes.inode;
    assert_eq!(tree.open(dir, Holes::Exact).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(tree.read_link(dir).unwrap_err().kind(), ErrorKind::Usage);
    let (file, handle) = open(&tree, &format!("100/{TIME}/disk.raw")).unwrap();
    assert_eq!(tree.open_dir(file).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(tree.read_dir(handle, 0, |_| true).unwrap_err().kind(), ErrorKind::Usage, "a file's handle");
}

#[test]
fn reads_end_where_the_file_ends() {
    let scratch = Scratch::new();
    let content: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
    scratch.put("100", TIME, "disk.raw", &content);
    scratch.put("100", TIME, "guest.conf", &content[..700]);
    let tree = scratch.tree();
    for (name, content) in [("disk.raw", &content[..]), ("guest.conf", &content[..700])] {
        let (_, handle) = open(&tree, &format!("100/{TIME}/{name}")).unwrap();
        let size = content.len() as u64;
        let mut buf = [0; 600];
        for (at, got) in [(0, 600), (size - 600, 600), (size - 1, 1), (size, 0), (size + 1, 0), (u64::MAX, 0)] {
            assert_eq!(tree.read(handle, &mut buf, at).unwrap(), got, "{name} at {at}");
            assert_eq!(&buf[..got], content.get(at as usize..).map_or(&[][..], |rest| &rest[..got]));
        }
        assert_eq!(tree.read(handle, &mut [], 0).unwrap(), 0);
        assert_eq!(tree.seek(handle, size, Whence::Data).unwrap(), None);
        assert_eq!(tree.seek(handle, size, Whence::Hole).unwrap(), None);
        assert_eq!(tree.seek(handle, u64::MAX, Whence::Hole).unwrap(), None);
        assert_eq!(tree.seek(handle, 0, Whence::Hole).unwrap(), Some(size));
        tree.close(handle);
        assert!(tree.read(handle, &mut buf, 0).is_err(), "closed");
    }
}

#[test]
fn a_listing_can_be_resumed_at_each_of_its_positions() {
    let scratch = Scratch::new();
    for name in ["a.conf", "b.conf", "c.raw", "d.log"] {
        scratch.put("100", TIME, name, &[0; 100]);
    }
    scratch.put("100", LATER, "x", b"");
    scratch.put("web", LATER, "x", b"");
    let tree = scratch.tree();
    for path in ["", "100", "100/2024-11-07T16-51-22Z", ".annals"] {
        let dir = if path.is_empty() { Inode::ROOT } else { find(&tree, path).unwrap().attributes.inode };
        let handle = tree.open_dir(dir).unwrap();
        let mut all = Vec::new();
        tree.read_dir(handle, 0, |entry| {
            all.push((entry.name.to_owned(), entry.inode, entry.next));
            true
        })
        .unwrap();
        assert!(all.len() > 2, "{path}");
        for start in 0..=all.len() {
            let from = start.checked_sub(1).map_or(0, |before| all[before].2);
            for take in 0..=all.len() - start {
                let (mut seen, mut refused) = (Vec::new(), false);
                tree.read_dir(handle, from, |entry| {
                    assert!(!refused, "asked on after a refusal");
                    refused = seen.len() == take;
                    if !refused {
                        seen.push((entry.name.to_owned(), entry.inode, entry.next));
                    }
                    !refused
                })
                .unwrap();
                assert_eq!(seen, all[start..start + take], "{path} from {from}");
            }
        }
        let mut with_attributes = Vec::new();
        tree.read_dir_plus(handle, 0, |listed, entry| {
            assert_eq!(listed.inode, entry.attributes.inode);
            assert_eq!(listed.kind, entry.attributes.kind);
            with_attributes.push((listed.name.to_owned(), listed.inode, listed.next));
            true
        })
        .unwrap();
        assert_eq!(with_attributes, all);
        tree.read_dir(handle, u64::MAX, |_| panic!("nothing is there")).unwrap();
        tree.close_dir(handle);
    }
}

#[test]
fn a_listing_with_attributes_counts_what_it_gave_and_no_more() {
    let scratch = Scratch::new();
    for name in ["a.conf", "b.conf", "c.raw", "d.log"] {
        scratch.put("100", TIME, name, &[0; 100]);
    }
    let tree = scratch.tree();
    let known = || {
        let (inode, handle) = open(&tree, ".annals/status.json").unwrap();
        let status: serde_json::Value = serde_json::from_slice(&read(&tree, handle).unwrap()).unwrap();
        tree.close(handle);
        tree.forget(inode, 1);
        tree.forget(find(&tree, ".annals").unwrap().attributes.inode, 2);
        status["inodes"].as_u64().unwrap()
    };
    let before = known();
    let path = walk(&tree, &format!("100/{TIME}")).unwrap();
    let dir = path[1].attributes.inode;
    let handle = tree.open_dir(dir).unwrap();
    let mut given = Vec::new();
    for limit in [2, 4, 4, 9] {
        given.clear();
        tree.read_dir_plus(handle, 0, |listed, _| {
            if given.len() == limit {
                return false;
            }
            given.push(listed.inode);
            true
        })
        .unwrap();
        // `.` and `..` are not counted.
        given.iter().skip(2).for_each(|inode| tree.forget(*inode, 1));
    }
    assert_eq!(given.len(), 2 + 4);
    tree.close_dir(handle);
    path.iter().for_each(|entry| tree.forget(entry.attributes.inode, 1));
    assert_eq!(known(), before, "something is never forgotten");
}

#[test]
fn blocks_are_believed_only_once_they_are_counted() {
    let scratch = Scratch::new();
    let path = format!("100/{TIME}/disk.raw");
    scratch.put("100", TIME, "guest.conf", b"x");
    scratch.put("100", TIME, "disk.raw", &[1; 8192]);
    std::fs::File::options()
        .write(true)
        .open(scratch.backup("100", TIME).join("disk.raw"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let tree = scratch.tree();
    let first = find(&tree, &path).unwrap();
    assert_eq!((first.attributes.size, first.attributes_ttl), (1 << 20, Duration::ZERO), "not counted by a lookup");
    let counted = tree.attributes(first.attributes.inode).unwrap();
    assert!(counted.attributes.blocks < (1 << 20) / 512 && counted.attributes_ttl > Duration::ZERO);
    let again = find(&tree, &path).unwrap();
    assert_eq!((again.attributes, again.attributes_ttl), (counted.attributes, counted.attributes_ttl));
    // A name is never believed for longer than a second, whatever it stands for.
    for path in [
        "100",
        "100/latest",
        ".annals",
        ".annals/status.json",
        &path,
        &format!("100/{TIME}"),
        &format!("100/{TIME}/guest.conf"),
    ] {
        assert!(find(&tree, path).unwrap().name_ttl < Duration::from_secs(1), "{path}");
    }
}

#[test]
fn a_file_that_was_replaced_is_stale_by_its_number_and_new_by_its_name() {
    let scratch = Scratch::new();
    scratch.put("100", TIME, "disk.raw", &[1; 4096]);
    scratch.put("100", TIME, "guest.conf", b"one");
    let tree = scratch.tree();
    for (name, one, two) in
        [("disk.raw", vec![1; 4096], vec![2; 4096]), ("guest.conf", b"one".to_vec(), b"two".to_vec())]
    {
        let path = format!("100/{TIME}/{name}");
        let (old, handle) = open(&tree, &path).unwrap();
        scratch.put("100", TIME, name, &two);
        std::thread::sleep(BEHIND);
        assert_eq!(read(&tree, handle).unwrap(), one, "who has it open keeps it");
        assert!(tree.attributes(old).is_ok(), "as long as somebody has it open");
        let (new, new_handle) = open(&tree, &path).unwrap();
        assert_ne!(old, new);
        assert_eq!(read(&tree, new_handle).unwrap(), two);
        assert_eq!(read(&tree, handle).unwrap(), one);
        tree.close(handle);
        assert_eq!(tree.attributes(old).unwrap_err().kind(), ErrorKind::Changed);
        assert_eq!(tree.open(old, Holes::Exact).unwrap_err().kind(), ErrorKind::Changed);
        assert_eq!(read(&tree, new_handle).unwrap(), two);
    }
}

#[test]
fn a_directory_that_is_gone_is_absent_by_its_number() {
    let scratch = Scratch::new();
    scratch.put("100", TIME, "guest.conf", b"x");
    let tree = scratch.tree();
    let path = walk(&tree, &format!("100/{TIME}/guest.conf")).unwrap();
    let latest = find(&tree, "100/latest").unwrap().attributes.inode;
    assert_eq!(tree.read_link(latest).unwrap(), TIME);
    std::fs::remove_dir_all(scratch.path().join("100")).unwrap();
    std::thread::sleep(BEHIND);
    for entry in &path {
        assert_eq!(tree.attributes(entry.attributes.inode).unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!(tree.attributes(latest).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(tree.read_link(latest).unwrap(), TIME, "a number never stands for another symlink");
    assert_eq!(list(&tree, path[0].attributes.inode).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(list(&tree, Inode::ROOT).unwrap(), [".annals"]);
}

#[test]
fn a_number_never_opens_another_file_than_the_one_it_was_given_to() {
    let scratch = Scratch::new();
    scratch.put("100", TIME, "guest.conf", b"one");
    let tree = scratch.tree();
    let old = find(&tree, &format!("100/{TIME}/guest.conf")).unwrap().attributes.inode;
    scratch.put("100", TIME, "guest.conf", b"two");
    // At once, while everything that is remembered still speaks of the old one.
    assert_eq!(tree.open(old, Holes::Exact).unwrap_err().kind(), ErrorKind::Changed);
    let (new, handle) = open(&tree, &format!("100/{TIME}/guest.conf")).unwrap();
    assert_ne!(old, new);
    assert_eq!(read(&tree, handle).unwrap(), b"two");
}
