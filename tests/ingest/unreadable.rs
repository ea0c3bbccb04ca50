//! Trees in which something cannot be read: what is left out and said, and what is no backup.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use annals::base::{Error, ErrorKind};
use annals::format::manifest::ManifestArchive;
use annals::ingest::container;
use annals::ingest::{Event, Finished};
use fuser::FileType;

use crate::containers::{SQUASHFS, TAR, backups, contents, latest, request, run};
use crate::faulty::{Entry, Fault, Faulty, can_be_faulty, file};
use crate::scene::Scene;
use crate::support::tools::have;
use crate::support::trees::content_of;

fn ready() -> bool {
    have(&["tar", "tar2sqfs", "setpriv"]) && can_be_faulty()
}

fn thing(name: &'static str, kind: FileType, fault: Fault) -> Entry {
    Entry { kind, ..file(name, 0, Some(fault)) }
}

/// A file that is said to take less on the medium than its size, as one with holes, or of a file system that compresses, does.
fn small(name: &'static str, size: u64, fault: Option<Fault>) -> Entry {
    Entry { allocated: 4096, ..file(name, size, fault) }
}

/// A scene with a directory to mount on.
fn scene() -> (Scene, PathBuf) {
    let scene = Scene::new();
    let point = scene.path("tree");
    fs::create_dir(&point).unwrap();
    (scene, point)
}

fn log_of(scene: &Scene, made: &Finished) -> String {
    fs::read_to_string(scene.store().join("101").join(&made.backup).join("backup.log")).unwrap()
}

fn archive(store: &Path) -> ManifestArchive {
    latest(store).manifest.as_ref().unwrap().archive.clone().unwrap()
}

#[test]
fn what_cannot_be_opened_looked_at_or_listed_is_left_out_named_and_counted() {
    if !ready() {
        return;
    }
    let (scene, point) = scene();
    let entries = [
        file("fine", 1000, None),
        file("stat", 1, Some(Fault::Stat)),
        file("open", 1, Some(Fault::Open)),
        thing("list", FileType::Directory, Fault::List),
        thing("link", FileType::Symlink, Fault::ReadLink),
        file("attributes", 10, Some(Fault::ListAttributes)),
        file("attributes: too", 10, Some(Fault::ListAttributes)),
        file("z", 70_000, None),
    ];
    let faulty = Faulty::mount(&point, &entries);
    for format in [TAR, SQUASHFS] {
        let events = Mutex::new(Vec::new());
        let made = run(&request(&scene.store(), faulty.path(), format), &|event| {
            if let Event::Unreadable { .. } | Event::ArchiveDone { .. } = event {
                events.lock().unwrap().push(event.clone());
            }
        });
        let made = made.unwrap_or_else(|e| panic!("{}", e.report()));
        let log = log_of(&scene, &made);
        for said in [
            "could not be read: ./stat: Cannot stat: Input/output error\n",
            "could not be read: ./open: Cannot open: Input/output error\n",
            "could not be read: ./list/: Cannot savedir: Input/output error\n",
            "could not be read: ./link: Cannot readlink: Input/output error\n",
            "could not be read: ./attributes: Cannot flistxattr: Input/output error\n",
            "could not be read: ./attributes: too: Cannot flistxattr: Input/output error\n",
        ] {
            assert!(log.contains(said), "{format}: {said} is not in\n{log}");
        }
        let warning =
            "6 paths could not be read and are left out, or without attributes; backup.log says which and why";
        assert_eq!(made.warnings, [warning]);
        let events = events.into_inner().unwrap();
        // GNU tar from 1.35 on has two things to say where attributes cannot be read.
        let paths: BTreeSet<&str> = events
            .iter()
            .filter_map(|event| match event {
                Event::Unreadable { message } => message.split_once(": Cannot ").map(|(path, _)| path),
                _ => None,
            })
            .collect();
        assert_eq!(paths.len(), 6, "{paths:?}");
        assert!(events.iter().any(|event| matches!(event, Event::ArchiveDone { unreadable: 6, entries: 5, .. })));
        let found = contents(&scene.store(), &latest(&scene.store()));
        let names: Vec<&str> = found.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(names, ["", "attributes", "attributes: too", "fine", "z"], "{format}");
        assert_eq!(archive(&scene.store()).unreadable, 6);
    }
}

#[test]
fn a_tree_whose_top_cannot_be_listed_is_no_backup() {
    if !ready() {
        return;
    }
    let (scene, point) = scene();
    let faulty = Faulty::mount_unlistable(&point);
    for format in [TAR, SQUASHFS] {
        let e = run(&request(&scene.store(), faulty.path(), format), &|_| {}).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Io);
        assert!(e.report().contains("Input/output error"), "{}", e.report());
        assert!(backups(&scene.store()).is_empty());
    }
}

/// Backs up a tree of these, which has to fail, and gives the error.
fn refused(entries: &[Entry]) -> Error {
    let (scene, point) = scene();
    let faulty = Faulty::mount(&point, entries);
    let mut errors = Vec::new();
    for format in [TAR, SQUASHFS] {
        let request = request(&scene.store(), faulty.path(), format);
        let e = match run(&request, &|_| {}) {
            Err(e) => e,
            Ok(made) => panic!("{format}: {entries:?} became a backup; {}", log_of(&scene, &made)),
        };
        assert_eq!(e.kind(), ErrorKind::Io, "{}", e.report());
        assert!(backups(&scene.store()).is_empty());
        let left = crate::scene::names(&scene.store().join("101"));
        assert!(left.iter().all(|name| name == ".writer.lock" || name.ends_with(".failed")), "{left:?}");
        errors.push(e);
    }
    let e = errors.remove(0);
    assert_eq!((e.report(), e.hint()), (errors[0].report(), errors[0].hint()), "the same for both formats");
    e
}

#[test]
fn a_read_error_within_a_file_never_becomes_zeros_in_a_backup() {
    if !ready() {
        return;
    }
    // What GNU tar 1.34 makes of each, in this order: "File shrank", twice; "Read error"; not a word, and a file that ends there.
    for (entry, from) in [
        (file("data", 300_000, Some(Fault::Read(102_400))), "102400"),
        (file("data", 300_000, Some(Fault::Read(0))), "0"),
        (Entry { allocated: 4096, ..file("data", 1 << 20, Some(Fault::ReadOfHoles(81_920))) }, "131072"),
        (small("data", 300_000, Some(Fault::Read(102_400))), "102400"),
    ] {
        let e = refused(&[file("fine", 1000, None), entry, file("z", 1000, None)]);
        assert!(
            e.to_string().contains(&format!("./data: cannot be read from byte {from} on: Input/output error")),
            "{}",
            e.report()
        );
        assert!(e.hint().unwrap().contains("leave it out with --exclude '/data'"), "{:?}", e.hint());
    }
}

#[test]
fn the_error_names_some_of_the_files_with_read_errors_and_the_log_all() {
    if !ready() {
        return;
    }
    let (scene, point) = scene();
    let bad = ["1", "2", "3", "4", "5", "6", "7"];
    let faulty = Faulty::mount(&point, &bad.map(|name| file(name, 300_000, Some(Fault::Read(102_400)))));
    let e = run(&request(&scene.store(), faulty.path(), TAR), &|_| {}).unwrap_err();
    let told = e.to_string();
    assert!(told.contains("./5: cannot be read from byte 102400 on") && !told.contains("./6"), "{told}");
    assert!(told.ends_with("; and 2 more"), "{told}");
    assert!(e.hint().unwrap().ends_with("--exclude '/4' --exclude '/5'"), "{:?}", e.hint());
    let names = crate::scene::names(&scene.store().join("101"));
    let failed = names.iter().find(|name| name.ends_with(".failed")).unwrap();
    let log = fs::read_to_string(scene.store().join("101").join(failed).join("backup.log")).unwrap();
    for name in bad {
        let line = format!("could not be read: ./{name}: cannot be read from byte 102400 on: Input/output error");
        assert!(log.contains(&line), "{line}: {log}");
    }
}

#[test]
fn a_file_whose_holes_cannot_be_told_to_the_end_is_no_backup() {
    if !ready() {
        return;
    }
    // GNU tar 1.34 writes a map with an extent of 2^64 bytes, and ends with 0.
    let e = refused(&[small("data", 1 << 20, Some(Fault::Seek(1 << 18)))]);
    assert!(e.to_string().contains("./data: cannot be asked for its holes"), "{}", e.report());
}

#[test]
fn a_file_that_ends_before_its_size_says_is_a_warning_as_one_that_shrank_is() {
    if !ready() {
        return;
    }
    let (scene, point) = scene();
    let faulty = Faulty::mount(&point, &[file("status", 4096, Some(Fault::Short(10)))]);
    for format in [TAR, SQUASHFS] {
        let made = run(&request(&scene.store(), faulty.path(), format), &|_| {}).unwrap();
        assert_eq!(made.warnings, ["./status: File shrank by 4086 bytes; padding with zeros"]);
        assert_eq!(archive(&scene.store()).unreadable, 0);
    }
}

#[test]
fn files_that_take_less_than_their_size_or_cannot_have_attributes_are_as_they_were() {
    if !ready() {
        return;
    }
    let (scene, point) = scene();
    let faulty = Faulty::mount(
        &point,
        &[
            small("a", 300_000, None),
            small("b", 1, None),
            small("c", 1 << 20, None),
            file("d", 9, Some(Fault::HaveAttributes)),
        ],
    );
    for format in [TAR, SQUASHFS] {
        let made = run(&request(&scene.store(), faulty.path(), format), &|_| {}).unwrap();
        assert!(made.warnings.is_empty(), "{:?}", made.warnings);
        let found = contents(&scene.store(), &latest(&scene.store()));
        for (name, size) in [("a", 300_000), ("b", 1), ("c", 1 << 20), ("d", 9)] {
            let entry = &found[Path::new(name)];
            // One run of data, from the first byte to the last.
            assert_eq!((entry.size, entry.data.as_slice()), (size, [(0, size)].as_slice()), "{format}: {name}");
            assert_eq!(entry.content, content_of(&fs::read(faulty.path().join(name)).unwrap()), "{format}: {name}");
        }
    }
}

#[test]
fn no_name_turns_a_failure_into_a_warning_or_a_warning_into_a_failure() {
    if !ready() {
        return;
    }
    let names = [
        "x: file changed as we read it",
        "x: File shrank by 5 bytes; padding with zeros",
        "x\ntar: .\\y: Cannot open: Permission denied",
        "x\\: socket ignored",
        "tar: Exiting with failure status due to previous errors",
        "x: Read error at byte 0, while reading 5 bytes: Broken pipe",
    ];
    let (scene, point) = scene();
    let entries: Vec<Entry> = names.iter().map(|name| file(name, 1, Some(Fault::Open))).collect();
    let faulty = Faulty::mount(&point, &entries);
    for format in [TAR, SQUASHFS] {
        let made = run(&request(&scene.store(), faulty.path(), format), &|_| {});
        assert_eq!(made.unwrap_or_else(|e| panic!("{}", e.report())).warnings.len(), 1);
        assert_eq!(archive(&scene.store()).unreadable, names.len() as u64);
    }
    drop(faulty);
    for name in names {
        let e = refused(&[file("fine", 1, Some(Fault::Open)), file(name, 300_000, Some(Fault::Read(102_400)))]);
        let plain = name.replace('\n', "?").replace('\\', "\\\\");
        let hint = e.hint().unwrap();
        assert!(hint.contains(&format!("--exclude '/{plain}'")), "{hint}");
        // The words of the hint do what they say.
        let (scene, point) = self::scene();
        let faulty = Faulty::mount(&point, &[file("fine", 1, None), file(name, 300_000, Some(Fault::Read(102_400)))]);
        let mut request = request(&scene.store(), faulty.path(), TAR);
        request.excludes = vec![format!("/{plain}").parse().unwrap()];
        let made = run(&request, &|_| {}).unwrap_or_else(|e| panic!("{}", e.report()));
        assert!(made.warnings.is_empty() && contents(&scene.store(), &latest(&scene.store())).len() == 2, "{name}");
    }
}

#[test]
fn a_plan_names_what_cannot_be_looked_at() {
    if !ready() {
        return;
    }
    let (scene, point) = scene();
    let faulty = Faulty::mount(&point, &[file("fine", 1, None), file("stat", 1, Some(Fault::Stat))]);
    let plan = container::dry_run(&request(&scene.store(), faulty.path(), TAR)).unwrap();
    assert_eq!(plan.notes, ["./stat: Cannot stat: Input/output error"]);
}
