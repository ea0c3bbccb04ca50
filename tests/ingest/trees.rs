//! Containers: backups by the real programs, extracted by others, against the tree that they were made of.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use annals::archive::ArchiveFormat;
use annals::base::ErrorKind;
use annals::ingest::Event;
use annals::ingest::container::{self, FormatChoice, Request};
use annals::storage::write::{Direct, WriteDir, WriterLock};

use crate::containers::{SQUASHFS, TAR, as_squashfs_has_it, back_up, backups, contents, latest, request, run};
use crate::scene::{Scene, names};
use crate::support::tools::{command, have};
use crate::support::trees::{Listing, Sample, assert_same, have_root, make_sample, on_disk, pseudo_random};

/// A scene with a directory for a tree.
fn scene() -> (Scene, PathBuf) {
    let scene = Scene::new();
    let tree = scene.path("tree");
    fs::create_dir(&tree).unwrap();
    (scene, tree)
}

fn ready() -> bool {
    have(&["tar", "tar2sqfs", "setpriv", "unsquashfs"]) && have_root()
}

/// A tree with some of everything, and a socket. Its listing is without the socket.
fn sample(tree: &Path, sample: Sample) -> Listing {
    make_sample(tree, sample);
    let before = on_disk(tree);
    let parent = fs::metadata(tree.join("var")).unwrap().modified().unwrap();
    drop(UnixListener::bind(tree.join("var/socket")).unwrap());
    fs::File::open(tree.join("var")).unwrap().set_modified(parent).unwrap();
    before
}

fn succeed(command: &mut std::process::Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn without_places(mut listing: Listing) -> Listing {
    listing.values_mut().for_each(|entry| entry.data.clear());
    listing
}

fn extract_tar(archive: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    let mut tar = command("tar");
    tar.args(["-xpf"]).arg(archive).arg("-C").arg(to);
    succeed(tar.args(["--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*"]));
}

/// Names in an archive as a set, without directories' ends.
fn members(listing: &Listing) -> BTreeSet<String> {
    listing.keys().map(|name| name.to_str().unwrap().to_owned()).filter(|name| !name.is_empty()).collect()
}

#[test]
fn a_tar_archive_of_a_tree_is_extracted_by_gnu_tar_as_that_tree() {
    if !ready() || !have(&["setfacl"]) {
        return;
    }
    let (scene, tree) = scene();
    sample(&tree, Sample::ALL);
    // A user that this system has a name for, which the container has not.
    let time = fs::metadata(tree.join("etc/second")).unwrap().modified().unwrap();
    succeed(command("setfacl").args(["-m", "u:2:rwx,g:2:r"]).arg(tree.join("etc/second")));
    fs::File::open(tree.join("etc/second")).unwrap().set_modified(time).unwrap();
    let mut expected = on_disk(&tree);
    expected.remove(Path::new("var/socket"));
    let request = request(&scene.store(), &tree, TAR);
    let made = run(&request, &|_| {}).unwrap_or_else(|e| panic!("{}", e.report()));
    let dir = scene.store().join("101").join(&made.backup);
    assert_same("our reader", &contents(&scene.store(), &latest(&scene.store())), &expected);
    let bytes = fs::read(dir.join("archive.tar")).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("SCHILY.acl.access=user::rw-\nuser:2:rwx\n") && has("\ngroup:2:r--\n"), "told by numbers");
    extract_tar(&dir.join("archive.tar"), &scene.path("out"));
    assert_same("GNU tar", &without_places(on_disk(&scene.path("out"))), &without_places(expected));
    assert!(made.warnings.is_empty(), "{:?}", made.warnings);
    let log = fs::read_to_string(dir.join("backup.log")).unwrap();
    assert!(log.contains("left out: ./var/socket: socket ignored"), "{log}");
}

#[test]
fn a_squashfs_image_of_a_tree_is_extracted_by_unsquashfs_as_that_tree() {
    if !ready() {
        return;
    }
    let (scene, tree) = scene();
    let all_but_acls = Sample { acls: false, huge: false, ..Sample::ALL };
    let expected = as_squashfs_has_it(sample(&tree, all_but_acls));
    let archive = back_up(&request(&scene.store(), &tree, FormatChoice::Auto));
    assert_eq!(archive.file_name().unwrap(), "archive.sqfs");
    let found = as_squashfs_has_it(contents(&scene.store(), &latest(&scene.store())));
    assert_same("our reader", &found, &expected);
    succeed(command("unsquashfs").args(["-quiet", "-no-progress", "-dest"]).arg(scene.path("out")).arg(&archive));
    let mut extracted = as_squashfs_has_it(on_disk(&scene.path("out")));
    // unsquashfs makes a symlink anew for each of its names.
    for (name, entry) in &expected {
        if entry.kind == annals::archive::Kind::Symlink && entry.links > 1 {
            let found = extracted.get_mut(name).unwrap();
            (found.links, found.first_name) = (entry.links, entry.first_name.clone());
        }
    }
    assert_same("unsquashfs", &extracted, &expected);
}

#[test]
fn patterns_leave_out_the_same_in_both_formats() {
    if !ready() {
        return;
    }
    let (scene, tree) = scene();
    let files = [
        "var/cache/a",
        "home/var/cache/b",
        "tmp/x.tmp",
        "tmp/deep/y.tmp",
        "tmp/keep",
        "lost+found/1",
        "srv/lost+found/2",
        "home/me/secret/key",
        "home/me/secrets",
        "log/1/old",
        "log/22/old",
        "[x]",
        "x",
        "-rf",
    ];
    for file in files {
        fs::create_dir_all(tree.join(file).parent().unwrap()).unwrap();
        fs::write(tree.join(file), file).unwrap();
    }
    let patterns = ["/var/cache", "*.tmp", "me/secret", "/log/?/", "\\[x]", "-rf"];
    let expected: BTreeSet<String> = [
        "home",
        "home/me",
        "home/me/secrets",
        "home/var",
        "home/var/cache",
        "home/var/cache/b",
        "log",
        "log/22",
        "log/22/old",
        "srv",
        "tmp",
        "tmp/deep",
        "tmp/keep",
        "var",
        "x",
    ]
    .map(str::to_owned)
    .into();
    for format in [TAR, SQUASHFS] {
        let mut request = request(&scene.store(), &tree, format);
        request.excludes = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
        back_up(&request);
        let backup = latest(&scene.store());
        assert_eq!(members(&contents(&scene.store(), &backup)), expected, "{format}");
        let noted = backup.manifest.as_ref().unwrap().archive.as_ref().unwrap().excluded.clone();
        assert_eq!(noted, ["/var/cache", "*.tmp", "me/secret", "/log/?", "\\[x]", "-rf"]);
    }
    let mut request = request(&scene.store(), &tree, TAR);
    for everything in ["*", "/*", "?*"] {
        request.excludes = vec![everything.parse().unwrap()];
        assert_eq!(run(&request, &|_| {}).unwrap_err().kind(), ErrorKind::Refused, "an archive of nothing");
    }
    assert_eq!("/".parse::<container::Pattern>().unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn a_pattern_matches_names_of_the_tree_and_never_the_dot_that_tar_calls_its_top() {
    if !ready() {
        return;
    }
    let (scene, tree) = scene();
    fs::remove_dir_all(&tree).unwrap();
    for file in [".hidden", "a/tmp/1", "sub/.git/config", "sub/seen", "sub/xyseen", "tmp/2", "xysub/3"] {
        fs::create_dir_all(tree.join(file).parent().unwrap()).unwrap();
        fs::write(tree.join(file), file).unwrap();
    }
    let all = ["a/tmp/1", ".hidden", "sub/.git/config", "sub/seen", "sub/xyseen", "tmp/2", "xysub/3"];
    for (pattern, gone) in [
        (".*", &[".hidden", "sub/.git/config"][..]),
        ("?", &["a/tmp/1", "tmp/2", "xysub/3"]),
        ("?/tmp", &["a/tmp/1"]),
        ("??seen", &["sub/xyseen"]),
        ("[.x]?sub", &["xysub/3"]),
        ("./sub", &["sub/.git/config", "sub/seen", "sub/xyseen"]),
    ] {
        let mut request = request(&scene.store(), &tree, TAR);
        request.excludes = vec![pattern.parse().unwrap()];
        back_up(&request);
        let found = members(&contents(&scene.store(), &latest(&scene.store())));
        let kept: BTreeSet<_> = all.iter().filter(|name| !gone.contains(name)).collect();
        assert_eq!(all.iter().filter(|name| found.contains(**name)).collect::<BTreeSet<_>>(), kept, "{pattern}");
    }
}

#[test]
fn other_file_systems_and_the_store_itself_are_left_out() {
    if !ready() {
        return;
    }
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = command("umount").arg(&self.0).status();
        }
    }
    let (_scene, tree) = scene();
    fs::create_dir_all(tree.join("mnt/other")).unwrap();
    succeed(command("mount").args(["-t", "tmpfs", "none"]).arg(tree.join("mnt/other")));
    let _mounted = Mounted(tree.join("mnt/other"));
    fs::write(tree.join("mnt/other/not ours"), "x").unwrap();
    // A name that would be a pattern if it were taken for one.
    let store = tree.join("srv/[b]ackups");
    fs::create_dir_all(tree.join("srv")).unwrap();
    fs::create_dir_all(tree.join("srv/backups")).unwrap();
    annals::catalog::Store::init(&store).unwrap();
    for format in [TAR, SQUASHFS] {
        let made = run(&request(&store, &tree, format), &|_| {}).unwrap_or_else(|e| panic!("{}", e.report()));
        let found = members(&contents(&store, &latest(&store)));
        assert_eq!(found, ["mnt", "mnt/other", "srv", "srv/backups"].map(str::to_owned).into(), "{format}");
        let log = fs::read_to_string(store.join("101").join(made.backup).join("backup.log")).unwrap();
        assert!(log.contains("left out: ./mnt/other/: file is on a different filesystem; not dumped"), "{log}");
    }
}

/// Many files, some seconds' work at 8 MiB a second; `meanwhile` is called once when some of them have been read.
fn disturbed(scene: &Scene, tree: &Path, format: FormatChoice, meanwhile: impl Fn(&Path) + Send + Sync) -> String {
    const FILES: usize = 30;
    fs::create_dir(tree.join("d")).unwrap();
    for n in 0..FILES {
        fs::write(tree.join(format!("d/{n}")), pseudo_random(512 << 10, n as u64)).unwrap();
    }
    let request = Request { bytes_per_second: Some(8 << 20), ..request(&scene.store(), tree, format) };
    let done = AtomicBool::new(false);
    let made = run(&request, &|event| {
        // Some of the files have been read by then, and most are still to come.
        if let Event::ArchiveProgress { done: 2_097_152.., .. } = event
            && !done.swap(true, Ordering::SeqCst)
        {
            meanwhile(&tree.join("d"));
        }
    });
    let made = made.unwrap_or_else(|e| panic!("{}", e.report()));
    assert!(!made.warnings.is_empty(), "what is in doubt is told");
    let found = contents(&scene.store(), &latest(&scene.store()));
    assert!(found.len() > 3, "some files were read before");
    fs::read_to_string(scene.store().join("101").join(made.backup).join("backup.log")).unwrap()
}

#[test]
fn files_that_vanish_or_change_meanwhile_are_warnings_in_the_log() {
    if !ready() {
        return;
    }
    for format in [TAR, SQUASHFS] {
        let (scene, tree) = scene();
        let log = disturbed(&scene, &tree, format, |dir| {
            for name in names(dir) {
                fs::remove_file(dir.join(name)).unwrap();
            }
        });
        assert!(log.contains("File removed before we read it"), "{log}");
        let (scene, tree) = self::scene();
        let log = disturbed(&scene, &tree, format, |dir| {
            for name in names(dir) {
                fs::File::options().write(true).open(dir.join(name)).unwrap().set_len(100).unwrap();
            }
        });
        let shrunk = log.contains("padding with zeros") || log.contains("file changed as we read it");
        assert!(shrunk, "{log}");
    }
}

#[test]
fn a_tree_with_acls_is_refused_for_squashfs_before_anything_is_written_and_gets_tar_by_itself() {
    if !ready() {
        return;
    }
    let (scene, tree) = scene();
    make_sample(&tree, Sample { acls: true, ..Sample::default() });
    let wrote = Mutex::new(false);
    let e = run(&request(&scene.store(), &tree, SQUASHFS), &|event| {
        *wrote.lock().unwrap() |= matches!(event, Event::ArchiveProgress { .. });
    });
    let e = e.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Refused);
    assert!(e.to_string().contains("has a POSIX ACL") && e.to_string().contains("./etc/"), "{e}");
    assert!(!*wrote.lock().unwrap() && backups(&scene.store()).is_empty());
    let plan = container::dry_run(&request(&scene.store(), &tree, FormatChoice::Auto)).unwrap();
    assert_eq!(plan.format, ArchiveFormat::Tar);
    assert_eq!(back_up(&request(&scene.store(), &tree, FormatChoice::Auto)).file_name().unwrap(), "archive.tar");
    // What is left out makes no difference.
    let mut without = request(&scene.store(), &tree, SQUASHFS);
    without.excludes = vec!["/etc/empty".parse().unwrap(), "nothing".parse().unwrap()];
    back_up(&without);
}

#[test]
fn an_acl_that_appears_while_a_squashfs_image_is_made_is_not_lost_in_silence() {
    if !ready() || !have(&["setfacl"]) {
        return;
    }
    let (scene, tree) = scene();
    for n in 0..30 {
        fs::write(tree.join(n.to_string()), pseudo_random(512 << 10, n)).unwrap();
    }
    let request = Request { bytes_per_second: Some(8 << 20), ..request(&scene.store(), &tree, FormatChoice::Auto) };
    let done = AtomicBool::new(false);
    let e = run(&request, &|event| {
        if let Event::ArchiveProgress { done: 1.., .. } = event
            && !done.swap(true, Ordering::SeqCst)
        {
            succeed(command("setfacl").args(["-R", "-m", "u:7:r"]).arg(&tree));
        }
    });
    let e = e.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Changed, "{}", e.report());
    assert!(e.to_string().contains("got a POSIX ACL"), "{e}");
    assert!(backups(&scene.store()).is_empty());
    assert_eq!(back_up(&Request { bytes_per_second: None, ..request }).file_name().unwrap(), "archive.tar");
}

#[test]
fn a_plan_tells_what_will_be_made_and_writes_nothing() {
    if !ready() {
        return;
    }
    let (scene, tree) = scene();
    let expected = sample(&tree, Sample::default());
    let plan = container::dry_run(&request(&scene.store(), &tree, FormatChoice::Auto)).unwrap();
    let mut first_names: Vec<_> = expected.values().map(|entry| entry.first_name.clone()).collect();
    first_names.sort();
    first_names.dedup();
    assert_eq!(plan.entries, first_names.len() as u64);
    let bytes = first_names.iter().map(|name| &expected[name]).filter(|e| e.kind == annals::archive::Kind::Regular);
    assert_eq!(plan.bytes, bytes.map(|entry| entry.size).sum::<u64>());
    assert_eq!(plan.notes, ["./var/socket: socket ignored"]);
    assert!(!scene.store().join("101").exists());
}

#[test]
fn reading_keeps_to_the_limit_within_a_twentieth() {
    if !ready() {
        return;
    }
    const RATE: u64 = 2 << 20;
    let (scene, tree) = scene();
    fs::write(tree.join("noise"), pseudo_random(6 << 20, 1)).unwrap();
    // The file and what tar puts around it: records of 64 KiB.
    let expected = Duration::from_secs_f64(((6 << 20) + (64 << 10)) as f64 / RATE as f64);
    for format in [TAR, SQUASHFS] {
        let request = Request { bytes_per_second: Some(RATE), ..request(&scene.store(), &tree, format) };
        let attempt = || {
            let (start, end) = (Mutex::new(None), Mutex::new(None));
            run(&request, &|event| match event {
                Event::ArchivePlanned(_) => *start.lock().unwrap() = Some(Instant::now()),
                Event::ArchiveDone { .. } => *end.lock().unwrap() = Some(Instant::now()),
                _ => {}
            })
            .unwrap();
            let took = end.into_inner().unwrap().unwrap() - start.into_inner().unwrap().unwrap();
            let off = took.as_secs_f64() / expected.as_secs_f64() - 1.0;
            assert!(off > -0.05, "{format}: {took:?} instead of {expected:?}");
            off
        };
        // Slower it may be where others keep the machine busy, but not each time.
        assert!((0..4).any(|_| attempt() < 0.05), "{format}: never within a twentieth of {expected:?}");
    }
}

#[test]
fn a_second_writer_is_told_who_is_writing_and_files_are_kept_as_for_virtual_machines() {
    if !ready() {
        return;
    }
    let (scene, tree) = scene();
    fs::write(tree.join("a"), "a").unwrap();
    let mut request = request(&scene.store(), &tree, TAR);
    let conf = scene.raw("conf", b"arch: amd64\n");
    request.files = vec![annals::ingest::KeptFile { name: "guest.conf".into(), path: conf.clone() }];
    let archive = back_up(&request);
    // An archive of a single chunk.
    assert_eq!(contents(&scene.store(), &latest(&scene.store())).len(), 2);
    assert_eq!(fs::read(archive.with_file_name("guest.conf")).unwrap(), b"arch: amd64\n");
    assert_eq!(names(archive.parent().unwrap()), ["archive.tar", "backup.json", "backup.log", "guest.conf"]);
    let guest = WriteDir::open(&scene.store().join("101"), Arc::new(Direct)).unwrap();
    let lock = WriterLock::take(&guest, "another backup").unwrap();
    let e = run(&request, &|_| {}).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.to_string().contains("another backup"), "{e}");
    drop(lock);
    back_up(&request);
    // A second tree beside the archive would be shown in its place.
    for name in ["archive.tar", "other.sqfs", "backup.json"] {
        request.files = vec![annals::ingest::KeptFile { name: name.into(), path: conf.clone() }];
        assert_eq!(run(&request, &|_| {}).unwrap_err().kind(), ErrorKind::Usage, "{name}");
    }
    assert_eq!(backups(&scene.store()).len(), 2);
}
