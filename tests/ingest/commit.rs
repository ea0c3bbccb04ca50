//! What becomes visible, and when: names, locks, leftovers, logs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use annals::base::ErrorKind;
use annals::ingest::{self, Interrupt, KeptFile};
use annals::storage::write::{Change, Direct, Medium, WriteDir, WriterLock};

use crate::fake_nbd::{FakeServer, Offer};
use crate::scene::{Scene, assert_same, names};
use crate::support::random::Random;

fn noise(len: usize) -> Vec<u8> {
    Random::new(7).bytes(len)
}

fn one_disk(scene: &Scene) -> String {
    format!("d={}", scene.raw("disk", &noise(300_000)).display())
}

#[test]
fn configurations_and_attachments_are_kept_verbatim_and_hashed() {
    let scene = Scene::new();
    let mut request = scene.request(&[&one_disk(&scene)]);
    let kept =
        |name: &str, bytes: &[u8]| KeptFile { name: name.into(), path: scene.raw(&format!("src-{name}"), bytes) };
    request.files =
        vec![kept("guest.conf", b"memory: 512\r\n\0"), kept("domain.xml", b"<domain/>"), kept("empty", b"")];
    let made = scene.back_up(&request);
    let dir = scene.guest().join(&made.backup);
    assert_eq!(fs::read(dir.join("guest.conf")).unwrap(), b"memory: 512\r\n\0");
    assert_eq!(
        names(&dir),
        ["backup.json", "backup.log", "d.qcow2", "domain.xml", "empty", "guest.conf"],
        "a small image needs no list of chunks"
    );
    for file in scene.manifest(&made.backup).files {
        let bytes = fs::read(dir.join(&file.name)).unwrap();
        assert_eq!(file.hash.blake3, annals::format::hash::FileHashes::of(&bytes).file.to_string(), "{}", file.name);
    }
    let log = fs::read_to_string(dir.join("backup.log")).unwrap();
    assert!(log.contains("disk d: full, because no bitmap was named"), "{log}");
    assert_eq!(fs::metadata(dir.join("d.qcow2")).unwrap().permissions().mode() & 0o007, 0, "others may read it");
}

#[test]
fn names_that_annals_needs_itself_or_that_lead_elsewhere_are_not_attached() {
    let scene = Scene::new();
    let disk = one_disk(&scene);
    let source = scene.raw("f", b"x");
    for name in ["backup.json", "backup.log", "x.qcow2", "x.raw", ".hidden", "../x", "a/b", "", "a:b"] {
        let mut request = scene.request(&[&disk]);
        request.files = vec![KeptFile { name: name.into(), path: source.clone() }];
        assert_eq!(scene.run(&request).unwrap_err().kind(), ErrorKind::Usage, "{name:?}");
    }
    let mut request = scene.request(&[&disk]);
    request.files =
        vec![KeptFile { name: "a".into(), path: source.clone() }, KeptFile { name: "a".into(), path: source }];
    assert_eq!(scene.run(&request).unwrap_err().kind(), ErrorKind::Usage);
    assert!(!scene.guest().exists());
}

#[test]
fn one_backup_follows_the_other_also_within_a_second() {
    let scene = Scene::new();
    let request = scene.request(&[&one_disk(&scene)]);
    let backups: Vec<String> = (0..4).map(|_| scene.back_up(&request).backup).collect();
    assert!(backups.is_sorted() && backups.windows(2).all(|w| w[0] != w[1]), "{backups:?}");
    assert_eq!(scene.names(), backups);
}

#[test]
fn a_guest_whose_latest_backup_is_in_the_future_gets_no_other() {
    let scene = Scene::new();
    let request = scene.request(&[&one_disk(&scene)]);
    let made = scene.back_up(&request);
    fs::rename(scene.guest().join(made.backup), scene.guest().join("qemu-2999-01-01T00-00-00Z")).unwrap();
    let e = scene.run(&request).unwrap_err();
    assert!(e.to_string().contains("2999-01-01T00:00:00Z"), "{e}");
    assert_eq!(scene.names(), ["qemu-2999-01-01T00-00-00Z"]);
}

#[test]
fn a_second_writer_is_told_who_is_writing() {
    let scene = Scene::new();
    let request = scene.request(&[&one_disk(&scene)]);
    let first = scene.back_up(&request);
    let guest = WriteDir::open(&scene.guest(), Arc::new(Direct)).unwrap();
    let lock = WriterLock::take(&guest, "another backup").unwrap();
    let e = scene.run(&request).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.to_string().contains("another backup") && e.to_string().contains(&std::process::id().to_string()), "{e}");
    assert_eq!(scene.names(), [first.backup]);
    drop(lock);
    scene.back_up(&request);
}

#[test]
fn what_unfinished_runs_left_is_removed_by_the_next_one() {
    let scene = Scene::new();
    let request = scene.request(&[&one_disk(&scene)]);
    scene.back_up(&request);
    fs::create_dir(scene.guest().join(".partial-0123")).unwrap();
    fs::write(scene.guest().join(".partial-0123/d.qcow2"), "half an image").unwrap();
    scene.back_up(&request);
    assert_eq!(scene.names().len(), 2);
}

#[test]
fn a_run_that_fails_half_way_leaves_its_log_and_nothing_else() {
    let scene = Scene::new();
    let good = one_disk(&scene);
    let first = scene.back_up(&scene.request(&[&good]));
    // A directory takes the place of a disk between the two runs.
    let e = scene.run(&scene.request(&[&good, "x=/nonexistent"])).unwrap_err();
    assert!(e.report().contains("disk x"), "{}", e.report());
    let names = scene.names();
    assert_eq!(names.len(), 2);
    assert_eq!(names[0], first.backup);
    assert!(names[1].starts_with("qemu-") && names[1].ends_with("Z.failed"), "{names:?}");
    let failed = scene.guest().join(&names[1]);
    assert_eq!(crate::scene::names(&failed), ["backup.log"]);
    let log = fs::read_to_string(failed.join("backup.log")).unwrap();
    assert!(log.contains("failed: disk x: cannot open '/nonexistent'"), "{log}");
    assert_same(&scene.read(&first.backup, "d")[..300_000], &noise(300_000));
}

#[test]
fn previous_info_is_renewed_only_where_a_store_has_it() {
    let scene = Scene::new();
    let request = scene.request(&[&one_disk(&scene)]);
    scene.back_up(&request);
    assert!(!scene.guest().join("previous-info").exists());
    fs::write(scene.guest().join("previous-info"), "old 1730998282").unwrap();
    scene.back_up(&request);
    let kept = fs::read_to_string(scene.guest().join("previous-info")).unwrap();
    assert_eq!(kept, "old 1730998282", "no bitmap was named, so there is none to note");
}

/// Refuses to sync a directory once a backup has got its name.
#[derive(Debug, Default)]
struct Unsynced(AtomicBool);

impl Medium for Unsynced {
    fn before(&self, path: &Path, change: Change<'_>) -> annals::base::Result<()> {
        match change {
            Change::Rename { to, .. } if to.starts_with("qemu-") => self.0.store(true, Ordering::SeqCst),
            Change::SyncDirectory if self.0.swap(false, Ordering::SeqCst) => {
                return Err(annals::base::Error::io(
                    format!("cannot sync {}", path.display()),
                    std::io::Error::other("no"),
                ));
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn previous_info_names_no_backup_that_a_loss_of_power_may_take_away() {
    let scene = Scene::new();
    let server = FakeServer::after(Offer::backup(), |session| session.serve_backup(&Offer::backup()));
    let request = scene.request(&[&format!("d={},bitmap=bm", server.uri("vda"))]);
    scene.back_up(&request);
    let noted = || fs::read_to_string(scene.guest().join("previous-info")).unwrap();
    fs::write(scene.guest().join("previous-info"), "old 1730998282").unwrap();
    let made = ingest::run(&request, Arc::new(Unsynced::default()), &Interrupt::default(), &|_| {}).unwrap();
    assert!(made.warnings[0].contains("loss of power"), "{:?}", made.warnings);
    assert_eq!(noted(), "old 1730998282");
    let made = scene.back_up(&request);
    assert_eq!(noted(), format!("bm {}", scene.manifest(&made.backup).time.epoch()));
}

#[test]
fn a_guest_in_another_layout_gets_nothing_that_would_hide_its_backups() {
    let scene = Scene::new();
    let request = scene.request(&[&one_disk(&scene)]);
    let elsewhere: PathBuf = scene.guest();
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("old.raw"), noise(4096)).unwrap();
    let e = scene.run(&request).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Refused);
    assert_eq!(scene.names(), ["old.raw"]);
}
