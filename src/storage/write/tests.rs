use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::base::{ErrorKind, HostOffset};

fn open(path: &Path) -> WriteDir {
    WriteDir::open(path, Arc::new(Direct)).unwrap()
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_directory_gets_its_name_only_when_that_is_free() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = open(tmp.path());
    let (partial, name) = dir.make_partial_dir().unwrap();
    partial.make_whole_file("a", b"bytes").unwrap();
    dir.rename(&name, "done").unwrap();
    assert_eq!(std::fs::read(tmp.path().join("done/a")).unwrap(), b"bytes");
    let (_, second) = dir.make_partial_dir().unwrap();
    assert_eq!(dir.rename(&second, "done").unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(std::fs::read(tmp.path().join("done/a")).unwrap(), b"bytes");
}

#[test]
fn a_file_that_is_replaced_is_whole_and_leaves_nothing_behind() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = open(tmp.path());
    dir.replace_file("previous-info", b"old").unwrap();
    dir.replace_file("previous-info", b"new").unwrap();
    assert_eq!(std::fs::read(tmp.path().join("previous-info")).unwrap(), b"new");
    assert_eq!(names(tmp.path()), ["previous-info"]);
}

#[test]
fn names_that_lead_elsewhere_are_refused_and_symlinks_are_not_followed() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::create_dir(tmp.path().join("in")).unwrap();
    std::fs::create_dir(tmp.path().join("out")).unwrap();
    std::os::unix::fs::symlink("../out", tmp.path().join("in/link")).unwrap();
    let dir = open(&tmp.path().join("in"));
    for name in ["..", ".", "", "a/b", "../out", "/etc", "a\0"] {
        assert_eq!(dir.make_file(name).unwrap_err().kind(), ErrorKind::Refused, "{name:?}");
        assert_eq!(dir.descend(name).unwrap_err().kind(), ErrorKind::Refused, "{name:?}");
    }
    assert!(dir.descend("link").is_err());
    assert!(dir.remove_tree("link").is_err());
    assert!(tmp.path().join("out").exists());
}

#[test]
fn sweeping_takes_unfinished_directories_with_all_that_is_in_them_and_nothing_else() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = open(tmp.path());
    let (partial, _) = dir.make_partial_dir().unwrap();
    partial.make_dir("deep").unwrap().make_whole_file("x", b"1").unwrap();
    dir.make_dir("qemu-2024-11-07T16-51-22Z").unwrap();
    dir.make_whole_file(".partial-file", b"of somebody who replaces a file").unwrap();
    assert_eq!(dir.sweep_partial_dirs().unwrap(), 1);
    assert_eq!(names(tmp.path()), [".partial-file", "qemu-2024-11-07T16-51-22Z"]);
}

#[test]
fn a_second_writer_is_told_who_holds_the_lock_and_gets_it_when_that_one_is_done() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = open(tmp.path());
    let lock = WriterLock::take(&dir, "backup of guest 100").unwrap();
    let busy = WriterLock::take(&open(tmp.path()), "another").unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    let told = busy.to_string();
    assert!(told.contains("backup of guest 100") && told.contains(&std::process::id().to_string()), "{told}");
    drop(lock);
    WriterLock::take(&dir, "another").unwrap();
}

#[test]
fn a_medium_hears_of_every_change_before_it_is_made_and_can_forbid_it() {
    #[derive(Debug)]
    struct NoWrites;
    impl Medium for NoWrites {
        fn before(&self, path: &Path, change: Change<'_>) -> crate::base::Result<()> {
            assert!(!path.metadata().is_ok_and(|m| m.len() > 0), "told too late");
            match change {
                Change::Write { .. } => Err(crate::base::Error::new(ErrorKind::Io, "made to fail")),
                _ => Ok(()),
            }
        }
    }
    let tmp = tempfile::tempdir().unwrap();
    let dir = WriteDir::open(tmp.path(), Arc::new(NoWrites)).unwrap();
    let file = dir.make_file("a").unwrap();
    assert_eq!(file.write_at(b"x", HostOffset(0)).unwrap_err().to_string(), "made to fail");
    assert_eq!(std::fs::metadata(tmp.path().join("a")).unwrap().len(), 0);
}
