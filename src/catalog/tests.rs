//! Stores made of empty files: what is listed, under which name, and when a change is seen.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::base::ErrorKind;
use crate::format::ImageFormat;
use crate::storage::Storage;

const OLD: &str = "100/qemu-2024-11-07T16-51-22Z";

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new(files: &[&str]) -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        for file in files {
            scratch.write(file, b"x");
        }
        scratch
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        let path = self.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn store(&self) -> Store {
        open(self.path()).unwrap()
    }
}

fn open(path: &Path) -> crate::base::Result<Store> {
    Store::open(path, crate::disk::DiskEnv::new(0))
}

fn id(name: &str) -> GuestId {
    name.parse().unwrap()
}

fn names(guest: &Guest) -> Vec<&str> {
    guest.backups().iter().map(|b| b.name.as_str()).collect()
}

fn latest(store: &Store, guest: &str) -> std::sync::Arc<Backup> {
    let name = store.guest(&id(guest)).unwrap().latest().unwrap().name.clone();
    store.backup(&id(guest), &name).unwrap()
}

fn disk_names(backup: &Backup) -> Vec<&str> {
    backup.disks.iter().map(|d| d.name.as_str()).collect()
}

/// Asks until the answer is right, at most two seconds: what the mount promises.
fn within_two_seconds(mut right: impl FnMut() -> bool) {
    let start = Instant::now();
    while !right() {
        assert!(start.elapsed() < Duration::from_secs(2), "not seen within two seconds");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_store_that_was_just_made_opens_with_its_id_and_is_not_made_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let marker = Store::init(&path).unwrap();
    let store = open(&path).unwrap();
    assert_eq!(store.uuid(), Some(marker.uuid));
    assert!(store.guests().unwrap().is_empty());
    assert_eq!(Store::init(&path).unwrap_err().kind(), ErrorKind::Exists);
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_one_without_a_marker_is_read() {
    let scratch = Scratch::new(&["100/qemu-1730998282/guest.conf"]);
    assert_eq!(scratch.store().uuid(), None);
    scratch.write("store.json", br#"{"version":2}"#);
    assert_eq!(open(scratch.path()).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn guests_are_the_directories_and_everything_else_is_passed_over() {
    let scratch = Scratch::new(&["100/x", "web01/x", ".hidden/x", "lost+found/x", "notes.txt"]);
    std::os::unix::fs::symlink("100", scratch.path().join("101")).unwrap();
    let store = scratch.store();
    assert_eq!(*store.guests().unwrap(), [id("100"), id("web01")]);
    assert_eq!(store.skipped().unwrap().iter().map(|p| p.subject.as_str()).collect::<Vec<_>>(), ["101"]);
    assert_eq!(store.guest(&id("101")).unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(store.guest(&id("102")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn only_published_backups_are_listed_oldest_first() {
    let scratch = Scratch::new(&[
        "100/qemu-2024-11-08T16-51-20Z/drive-scsi0.qcow2",
        "100/qemu-1730998282/drive-scsi0.qcow2",
        "100/.partial-abc/drive-scsi0.qcow2",
        "100/qemu-2024-11-09T16-51-20Z.failed/backup.log",
        "100/qemu-1731998282.failed/backup.log",
    ]);
    let guest = scratch.store().guest(&id("100")).unwrap();
    assert_eq!(names(&guest), ["2024-11-07T16-51-22Z", "2024-11-08T16-51-20Z"]);
    assert_eq!(guest.latest().unwrap().name.as_str(), "2024-11-08T16-51-20Z");
}

#[test]
fn backups_of_one_second_have_names_that_depend_on_nothing_but_their_directories() {
    let scratch = Scratch::new(&[
        "100/lxc-1730998282/x",
        "100/qemu-1730998282/x",
        "100/lxc-2024-11-07T16-51-22Z/x",
        "100/qemu-2024-11-07T16-51-22Z/x",
    ]);
    let store = scratch.store();
    let guest = store.guest(&id("100")).unwrap();
    let time = "2024-11-07T16-51-22Z";
    let expected = [time.to_owned(), format!("{time}-lxc"), format!("{time}-qemu-epoch"), format!("{time}-lxc-epoch")];
    assert_eq!(names(&guest), expected);
    for (name, directory) in expected.iter().zip([
        "qemu-2024-11-07T16-51-22Z",
        "lxc-2024-11-07T16-51-22Z",
        "qemu-1730998282",
        "lxc-1730998282",
    ]) {
        let summary = guest.find(name).unwrap();
        assert_eq!(summary.directory(), Some(directory));
        assert_eq!(store.backup(&id("100"), &summary.name).unwrap().files[0].path.parent_name(), Some(directory));
    }
}

#[test]
fn the_exact_rfc_3339_form_finds_a_backup_and_no_other_spelling_does() {
    let scratch = Scratch::new(&["100/qemu-1730998282/x"]);
    let guest = scratch.store().guest(&id("100")).unwrap();
    assert!(guest.find("2024-11-07T16:51:22Z").is_some());
    for no in ["2024-11-07T16:51-22Z", "2024-11-07T17:51:22+01:00", "2024:11:07T16:51:22Z", "latest", "", "1730998282"]
    {
        assert!(guest.find(no).is_none(), "{no}");
    }
}

#[test]
fn without_a_manifest_the_files_say_what_there_is() {
    let files = ["guest.conf", "drive-scsi0.qcow2", "drive-virtio1.raw", "backup.log", ".hidden"];
    let scratch = Scratch::new(&files.map(|f| format!("{OLD}/{f}")).each_ref().map(String::as_str));
    let backup = latest(&scratch.store(), "100");
    assert_eq!(disk_names(&backup), ["drive-scsi0", "drive-virtio1"]);
    assert_eq!(backup.disks[1].format, ImageFormat::Raw);
    assert_eq!(backup.disks[0].path.as_str(), "qemu-2024-11-07T16-51-22Z/drive-scsi0.qcow2");
    assert_eq!(backup.files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["backup.log", "guest.conf"]);
    assert!(backup.problems.is_empty(), "{:?}", backup.problems);
}

#[test]
fn a_verbatim_file_opens_and_a_fifo_among_them_is_only_reported() {
    let scratch = Scratch::new(&[]);
    scratch.write(&format!("{OLD}/guest.conf"), b"cores: 2\n");
    let fifo = scratch.path().join(OLD).join("firewall.conf");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let store = scratch.store();
    let backup = latest(&store, "100");
    assert_eq!(backup.files.len(), 1);
    assert_eq!(store.open_file(&backup, &backup.files[0]).unwrap().size(), 9);
    assert_eq!(backup.problems.iter().map(|p| p.subject.as_str()).collect::<Vec<_>>(), ["firewall.conf"]);
}

fn manifest(disks: &str) -> String {
    format!(r#"{{"version":1,"guest":"100","kind":"qemu","time":"2024-11-07T16:51:22Z","disks":[{disks}]}}"#)
}

#[test]
fn a_disk_that_only_the_manifest_knows_stays_listed_and_one_that_it_does_not_know_is_there_too() {
    let scratch = Scratch::new(&[]);
    let disks = r#"{"name":"drive-scsi0","file":"drive-scsi0.qcow2","format":"qcow2"},
        {"name":"drive-scsi1","file":"data.img","format":"raw"}"#;
    scratch.write(&format!("{OLD}/backup.json"), manifest(disks).as_bytes());
    scratch.write(&format!("{OLD}/data.img"), b"x");
    scratch.write(&format!("{OLD}/extra.qcow2"), b"x");
    let backup = latest(&scratch.store(), "100");
    assert_eq!(disk_names(&backup), ["drive-scsi0", "drive-scsi1", "extra"]);
    assert_eq!(backup.disk("drive-scsi1").unwrap().format, ImageFormat::Raw);
    assert_eq!(backup.problems.iter().map(|p| p.subject.as_str()).collect::<Vec<_>>(), ["extra.qcow2"]);
    assert_eq!(backup.files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["backup.json"]);
}

#[test]
fn names_in_a_manifest_cannot_lead_out_of_the_backup() {
    let scratch = Scratch::new(&[]);
    let disks = r#"{"name":"../../x","file":"a.qcow2","format":"qcow2"},
        {"name":"b","file":"../../../etc/passwd","format":"raw"},
        {"name":"c","file":"/etc/passwd","format":"raw"},
        {"name":"d","file":"sub/d.qcow2","format":"qcow2"},
        {"name":"e","file":"e.qcow2","format":"raw"},
        {"name":"e","file":"f.qcow2","format":"qcow2"}"#;
    scratch.write(&format!("{OLD}/backup.json"), manifest(disks).as_bytes());
    let backup = latest(&scratch.store(), "100");
    assert_eq!(disk_names(&backup), ["e"]);
    assert_eq!(backup.disks[0].format, ImageFormat::Qcow2, "the file's name and not the manifest has the last word");
    assert_eq!(backup.problems.len(), 6, "{:#?}", backup.problems);
}

#[test]
fn a_manifest_that_cannot_be_read_leaves_the_files_to_speak() {
    let scratch = Scratch::new(&[&format!("{OLD}/drive-scsi0.qcow2")]);
    scratch.write(&format!("{OLD}/backup.json"), b"{");
    let backup = latest(&scratch.store(), "100");
    assert_eq!(disk_names(&backup), ["drive-scsi0"]);
    assert!(backup.manifest.is_none());
    assert_eq!(backup.problems[0].subject, "backup.json");
    assert!(backup.files.iter().any(|f| f.name == "backup.json"), "it is shown for whoever wants to look");
}

#[test]
fn attributes_and_previous_info_are_read_and_bad_ones_are_reported() {
    let scratch = Scratch::new(&["100/qemu-1730998282/x", "101/qemu-1730998282/x"]);
    scratch.write(
        "100/attributes.json",
        br#"{"version":1,"backups":{"qemu-1730998282":{"protected":true,"notes":"before the move"}}}"#,
    );
    scratch.write("100/previous-info", b"pbs-incremental-dirty-bitmap 1730998282\n");
    scratch.write("101/attributes.json", b"[]");
    scratch.write("101/previous-info", b"one two three");
    let store = scratch.store();
    let good = store.guest(&id("100")).unwrap();
    assert!(good.latest().unwrap().protected);
    assert_eq!(latest(&store, "100").summary.notes.as_deref(), Some("before the move"));
    assert_eq!(good.previous.as_ref().unwrap().time.to_string(), "2024-11-07T16:51:22Z");
    assert!(good.problems.is_empty());
    let bad = store.guest(&id("101")).unwrap();
    assert_eq!(bad.backups().len(), 1);
    assert_eq!(bad.problems.len(), 2, "{:?}", bad.problems);
}

#[test]
fn what_is_added_or_removed_is_seen_within_two_seconds() {
    let scratch = Scratch::new(&["100/qemu-1730998282/x"]);
    let store = scratch.store();
    assert_eq!(store.guest(&id("100")).unwrap().backups().len(), 1);
    scratch.write("100/qemu-1730998283/x", b"x");
    within_two_seconds(|| store.guest(&id("100")).unwrap().backups().len() == 2);
    let newest = latest(&store, "100");
    std::fs::remove_dir_all(scratch.path().join("100/qemu-1730998283")).unwrap();
    within_two_seconds(|| store.guest(&id("100")).unwrap().backups().len() == 1);
    assert_eq!(store.backup(&id("100"), &newest.summary.name).unwrap_err().kind(), ErrorKind::NotFound);
    scratch.write("101/qemu-1730998283/x", b"x");
    within_two_seconds(|| store.guests().unwrap().len() == 2);
    std::fs::remove_dir_all(scratch.path().join("100")).unwrap();
    within_two_seconds(|| store.guest(&id("100")).is_err());
}

#[test]
fn a_guest_that_does_not_change_is_not_listed_again() {
    let scratch = Scratch::new(&["100/qemu-1730998282/x"]);
    let store = scratch.store();
    // Long enough for the directory's time to be certainly in the past.
    std::thread::sleep(Duration::from_millis(2100));
    let first = store.guest(&id("100")).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    assert!(std::sync::Arc::ptr_eq(&first, &store.guest(&id("100")).unwrap()));
}

#[test]
fn a_store_that_is_removed_or_replaced_says_so() {
    let scratch = Scratch::new(&["store/100/qemu-1730998282/x"]);
    let path = scratch.path().join("store");
    let store = open(&path).unwrap();
    store.guests().unwrap();
    std::fs::rename(&path, scratch.path().join("elsewhere")).unwrap();
    within_two_seconds(|| store.guests().is_err_and(|e| e.to_string().contains("removed")));
    std::fs::create_dir(&path).unwrap();
    within_two_seconds(|| store.guests().is_err_and(|e| e.to_string().contains("replaced")));
}

#[test]
fn memory_for_guests_is_bounded_however_many_there_are() {
    let scratch = Scratch::new(&[]);
    for i in 0..600 {
        scratch.write(&format!("{i}/qemu-1730998282/x"), b"");
    }
    let store = scratch.store();
    for guest in store.guests().unwrap().iter() {
        latest(&store, guest.as_str());
    }
    let (guests, backups) = store.kept();
    assert!(guests <= 128 && backups <= 512, "{guests} guests and {backups} backups are kept");
}

#[test]
fn a_disk_whose_image_is_replaced_is_opened_anew_and_a_missing_one_names_its_file() {
    let scratch = Scratch::new(&[]);
    let image = "100/qemu-1730998282/drive.raw";
    scratch.write(image, &[1; 512]);
    let store = scratch.store();
    let backup = latest(&store, "100");
    let read = || -> crate::base::Result<u8> {
        let mut byte = [0];
        let disk = store.disk(&backup, &backup.disks[0])?;
        disk.read_at(&mut byte, crate::base::GuestOffset(0))?;
        Ok(byte[0])
    };
    assert_eq!(read().unwrap(), 1);
    let first = store.disk(&backup, &backup.disks[0]).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &store.disk(&backup, &backup.disks[0]).unwrap()), "shared while in use");
    scratch.write("100/new", &[2; 512]);
    std::fs::rename(scratch.path().join("100/new"), scratch.path().join(image)).unwrap();
    within_two_seconds(|| read().unwrap() == 2);
    std::fs::remove_file(scratch.path().join(image)).unwrap();
    within_two_seconds(|| read().is_err_and(|e| e.kind() == ErrorKind::MissingLayer));
    let e = read().unwrap_err().report();
    assert!(e.contains("drive of backup 100@2024-11-07T16-51-22Z") && e.contains("drive.raw"), "{e}");
}
