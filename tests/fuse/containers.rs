//! Containers: an archive of each kind, mounted, against the tree that it was made of.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use annals::archive::Kind;

use crate::archives::{SQUASHFS, TAR, as_squashfs_has_it as packed, back_up, request};
use crate::support::mounts::{Mounted, SETTLED, Store, can_mount, names, promise, succeed};
use crate::support::tools::{command, have, run};
use crate::support::trees::{Listing, Sample, assert_same, make_sample, on_disk};

const TIME: &str = "2024-11-07T17-02-00Z";

/// A store with one container of which `pack` makes the archive, and the tree that is in it.
fn container(sample: Sample, archive: &str, pack: impl FnOnce(&Path, &Path)) -> (Store, PathBuf) {
    let store = Store::new();
    let tree = store.scratch("tree");
    fs::create_dir(&tree).unwrap();
    make_sample(&tree, sample);
    let backup = store.path().join(format!("101/lxc-{TIME}"));
    fs::create_dir_all(&backup).unwrap();
    fs::write(backup.join("guest.conf"), "arch: amd64\n").unwrap();
    pack(&tree, &backup.join(archive));
    (store, tree)
}

fn gnu_tar(tree: &Path, archive: &Path) {
    // As the backup of a container makes it.
    let mut tar = command("tar");
    tar.args(["--format=posix", "--one-file-system", "-p", "--sparse", "--numeric-owner", "--acls", "--xattrs"]);
    tar.args(["--xattrs-include=*", "-cf"]).arg(archive).arg("-C").arg(tree).arg(".");
    succeed(&mut tar);
}

fn mksquashfs(tree: &Path, image: &Path) {
    let mut mksquashfs = command("mksquashfs");
    mksquashfs.arg(tree).arg(image).args(["-quiet", "-no-progress", "-comp", "zstd", "-b", "4096"]);
    succeed(&mut mksquashfs);
}

/// The tree without what an image by mksquashfs does not hold: parts of seconds, and that symlinks are one file.
fn as_squashfs_has_it(mut listing: Listing) -> Listing {
    for (name, entry) in &mut listing {
        entry.mtime.1 = 0;
        if entry.kind == Kind::Symlink {
            entry.links = 1;
            entry.first_name.clone_from(name);
        }
    }
    listing
}

fn root(mounted: &Mounted) -> PathBuf {
    mounted.path("101").join(TIME).join("root")
}

/// What is compared of a copy, whose blocks the file system gave out as it liked.
fn without_places(mut listing: Listing) -> Listing {
    listing.values_mut().for_each(|entry| entry.data.clear());
    listing
}

#[test]
fn a_tar_archive_is_the_tree_that_it_was_made_of() {
    promise(
        "A container's archive, tar or squashfs, is a directory `root` with the container's tree: contents, owners, modes, times, links, devices, holes, extended attributes and ACLs as archived.",
    );
    if !can_mount() || !have(&["tar"]) {
        return;
    }
    let (store, tree) = container(Sample::ALL, "archive.tar", gnu_tar);
    let mounted = Mounted::new(&store.path());
    assert_eq!(names(&mounted.path("101").join(TIME)), ["guest.conf", "root"]);
    assert_same("archive.tar", &on_disk(&root(&mounted)), &on_disk(&tree));
}

#[test]
fn a_squashfs_image_is_the_tree_that_it_was_made_of() {
    if !can_mount() || !have(&["mksquashfs"]) {
        return;
    }
    let (store, tree) = container(Sample { long_names: true, ..Sample::default() }, "archive.sqfs", mksquashfs);
    let mounted = Mounted::new(&store.path());
    assert_same("archive.sqfs", &on_disk(&root(&mounted)), &as_squashfs_has_it(on_disk(&tree)));
}

#[test]
fn backups_of_both_formats_that_annals_makes_mount_as_the_tree() {
    if !can_mount() || !have(&["tar", "tar2sqfs", "setpriv"]) {
        return;
    }
    let store = Store::new();
    let tree = store.scratch("tree");
    fs::create_dir(&tree).unwrap();
    make_sample(&tree, Sample { long_names: true, large_numbers: true, ..Sample::default() });
    for format in [SQUASHFS, TAR] {
        back_up(&request(&store.path(), &tree, format));
        let mounted = Mounted::new(&store.path());
        let (shown, original) = (on_disk(&mounted.path("101/latest/root")), on_disk(&tree));
        match format == TAR {
            true => assert_same("tar", &shown, &original),
            false => assert_same("squashfs", &packed(shown), &packed(original)),
        }
    }
}

#[test]
fn copies_by_the_usual_programs_are_as_the_original() {
    promise("`cp -a`, `rsync -aHAX` and `tar` copy a container's tree as the original.");
    if !can_mount() || !have(&["tar", "rsync"]) {
        return;
    }
    let (store, tree) = container(Sample { huge: false, ..Sample::ALL }, "archive.tar", gnu_tar);
    let mounted = Mounted::new(&store.path());
    let (from, original) = (root(&mounted), without_places(on_disk(&tree)));
    let to = store.scratch("copy");
    let copies: [(&str, &dyn Fn()); 3] = [
        ("cp -a", &|| drop(succeed(command("cp").arg("-a").arg(&from).arg(&to)))),
        ("rsync -aHAX", &|| {
            let args = ["-aHAX", "--numeric-ids", "-S"];
            succeed(command("rsync").args(args).arg(format!("{}/", from.display())).arg(&to));
        }),
        ("tar", &|| {
            fs::create_dir(&to).unwrap();
            gnu_tar(&from, &store.scratch("again.tar"));
            let mut tar = command("tar");
            tar.args(["-xpf"]).arg(store.scratch("again.tar")).arg("-C").arg(&to);
            tar.args(["--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*"]);
            succeed(&mut tar);
        }),
    ];
    for (what, copy) in copies {
        copy();
        assert_same(what, &without_places(on_disk(&to)), &original);
        fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn a_container_has_the_same_numbers_in_every_mount_and_its_index_is_not_made_twice() {
    promise(
        "The index of a tar archive is made when its backup is first looked into, and kept: the next mount does not read the archive again.",
    );
    if !can_mount() || !have(&["tar"]) {
        return;
    }
    let (store, _) = container(Sample::default(), "archive.tar", gnu_tar);
    let numbers = |mounted: &Mounted| {
        let found = run("find", &[root(mounted).to_str().unwrap(), "-xdev", "-printf", "%P %i %n %s %T@ %b\n"]);
        assert!(found.lines().count() > 300);
        found
    };
    let kept = || {
        let dir = store.path().with_extension("cache").join("annals");
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        files.map(|meta| (meta.ino(), meta.len())).collect::<Vec<_>>()
    };
    std::thread::sleep(SETTLED);
    let mounted = Mounted::new(&store.path());
    let first = numbers(&mounted);
    // Two names of one file have one number, another file another one.
    let inode = |name: &str| fs::symlink_metadata(root(&mounted).join(name)).unwrap().ino();
    assert_eq!(inode("etc/passwd"), inode("var/third"));
    assert_ne!(inode("etc/passwd"), inode("etc/hidden"));
    let index = kept();
    assert_eq!(index.len(), 1);
    mounted.umount();
    let again = Mounted::new(&store.path());
    assert_eq!(numbers(&again), first);
    assert_eq!(kept(), index, "the same file as before");
    again.umount();

    // Repaired or replaced in its place, with the time that it had.
    let archive = store.path().join(format!("101/lxc-{TIME}/archive.tar"));
    let (length, time) = fs::metadata(&archive).map(|meta| (meta.len(), meta.modified().unwrap())).unwrap();
    let file = fs::File::options().write(true).open(&archive).unwrap();
    file.write_all_at(&vec![0; usize::try_from(length).unwrap()], 0).unwrap();
    file.set_modified(time).unwrap();
    let emptied = Mounted::new(&store.path());
    assert_eq!(fs::read_dir(root(&emptied)).unwrap().count(), 0, "the index of another content");
}

#[test]
fn others_get_no_further_into_a_container_than_its_permissions_say() {
    if !can_mount() || !have(&["tar", "setpriv"]) {
        return;
    }
    let (store, _) = container(Sample::default(), "archive.tar", gnu_tar);
    fs::set_permissions(store.path().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let mounted = Mounted::with(&store.path(), &["-o", "allow_other"]);
    let read_as = |uid: &str, name: &str| {
        let ids = [format!("--reuid={uid}"), format!("--regid={uid}")];
        let mut cat = command("setpriv");
        cat.args(ids).args(["--clear-groups", "cat"]).arg(root(&mounted).join(name));
        cat.output().unwrap().status.success()
    };
    assert!(read_as("65534", "etc/passwd"));
    assert!(!read_as("65534", "etc/hidden"), "mode 0000");
    assert!(!read_as("65534", "home/one byte"), "mode 2710, of root");
    assert!(read_as("0", "etc/hidden"));
}

#[test]
fn an_archive_cut_short_shows_what_is_whole_and_says_so() {
    promise(
        "An archive that is cut short or damaged shows what is whole; `NAME.broken` beside `root` says what is missing and where.",
    );
    if !can_mount() || !have(&["tar", "mksquashfs"]) {
        return;
    }
    let (store, tree) = container(Sample::default(), "archive.tar", gnu_tar);
    let backup = store.path().join(format!("101/lxc-{TIME}"));
    let archive = fs::OpenOptions::new().write(true).open(backup.join("archive.tar")).unwrap();
    let half = archive.metadata().unwrap().len() / 2;
    archive.set_len(half).unwrap();
    // A second backup, of an image without its end.
    let other = store.path().join("101/lxc-2024-11-08T17-02-00Z");
    fs::create_dir(&other).unwrap();
    mksquashfs(&tree, &other.join("archive.sqfs"));
    let image = fs::OpenOptions::new().write(true).open(other.join("archive.sqfs")).unwrap();
    image.set_len(image.metadata().unwrap().len() / 2).unwrap();

    let mounted = Mounted::new(&store.path());
    let here = mounted.path("101").join(TIME);
    assert_eq!(names(&here), ["archive.tar.broken", "guest.conf", "root"]);
    let text = fs::read_to_string(here.join("archive.tar.broken")).unwrap();
    assert!(text.contains(&format!("byte {half}: the archive ends here")), "{text}");
    let (shown, whole) = (on_disk(&root(&mounted)), on_disk(&tree));
    assert!(shown.len() > 20 && shown.len() < whole.len());
    for (name, entry) in &shown {
        assert_eq!(entry.content, whole[name].content, "{name:?}");
    }
    let there = mounted.path("101/2024-11-08T17-02-00Z");
    assert_eq!(names(&there), ["archive.sqfs.broken"]);
    assert!(fs::read_to_string(there.join("archive.sqfs.broken")).unwrap().contains("cut short"));
    let broken = mounted.status()["broken"].as_array().unwrap().len();
    assert_eq!(broken, 2);
}
