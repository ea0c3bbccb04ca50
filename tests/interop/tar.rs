//! Tar archives by GNU tar, bsdtar and Python, read as what the tools themselves extract from them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use annals::archive::{ArchiveEnv, ArchiveFormat, Tree, open};
use annals::storage::{BlockCache, DerivedDir, FilePool, Gate, RelPath};

use crate::support::tools::{command, feed, have, run};
use crate::support::trees::{Sample, assert_same, have_root, in_archive, make_sample, on_disk};

struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    fn new(sample: Sample) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        make_sample(&dir.path().join("tree"), sample);
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn extracted_by(&self, program: &str, archive: &str) -> PathBuf {
        let out = self.path(&format!("{archive}.{program}"));
        std::fs::create_dir(&out).unwrap();
        let (archive, out_name) = (self.name(archive), out.to_str().unwrap());
        match program {
            "bsdtar" => run(program, &["-xpf", &archive, "-C", out_name, "--numeric-owner", "--acls", "--xattrs"]),
            _ => run(
                program,
                &[
                    "-xpf",
                    &archive,
                    "-C",
                    out_name,
                    "--numeric-owner",
                    "--acls",
                    "--xattrs",
                    "--xattrs-include=*",
                    "--delay-directory-restore",
                ],
            ),
        };
        out
    }
}

fn opened(archive: &Path) -> Arc<dyn Tree> {
    let pool = FilePool::new(16);
    let gate = Gate::open(archive.parent().unwrap(), pool.clone()).unwrap();
    let name = archive.file_name().unwrap().to_str().unwrap();
    let derived = DerivedDir::open(&archive.with_extension("index"), pool).unwrap();
    let env = ArchiveEnv::new(Arc::new(BlockCache::new(8 << 20)), Some(derived));
    let file = || Arc::new(gate.open_file(&RelPath::new(name).unwrap()).unwrap());
    drop(open(name, file(), ArchiveFormat::Tar, &env).unwrap());
    // The second time it is the kept index that is asked.
    open(name, file(), ArchiveFormat::Tar, &env).unwrap()
}

/// The archive is shown as `program` extracts it, and nothing is said to be wrong with it.
fn shown_as_extracted(work: &Work, archive: &str, program: &str) {
    let tree = opened(&work.path(archive));
    assert_eq!(tree.broken(), None, "{archive}");
    let (mut ours, mut theirs) = (in_archive(&*tree), on_disk(&work.extracted_by(program, archive)));
    if program == "bsdtar" {
        // It leaves the directory into which it extracts as it was.
        ours.remove(Path::new(""));
        theirs.remove(Path::new(""));
    }
    assert_same(archive, &ours, &theirs);
}

const PLAIN: Sample = Sample { long_names: false, large_numbers: false, huge: false, acls: false };

#[test]
fn old_formats_of_gnu_tar_are_read_as_it_extracts_them() {
    if !have(&["tar"]) || !have_root() {
        return;
    }
    let work = Work::new(PLAIN);
    for format in ["v7", "ustar"] {
        let archive = format!("{format}.tar");
        let made = command("tar")
            .args(["--format", format, "--numeric-owner", "-cf", &work.name(&archive), "-C", &work.name("tree"), "."])
            .output()
            .unwrap();
        // v7 has no FIFOs and devices: GNU tar says so, fails, and writes the rest.
        assert!(made.status.success() || format == "v7", "{}", String::from_utf8_lossy(&made.stderr));
        shown_as_extracted(&work, &archive, "tar");
    }
}

#[test]
fn every_form_of_gnu_tar_is_read_as_it_extracts_it() {
    if !have(&["tar"]) || !have_root() {
        return;
    }
    let work = Work::new(Sample::ALL);
    for (name, options) in [
        ("oldgnu", "--format=oldgnu -S"),
        ("gnu", "--format=gnu -S"),
        ("pax00", "--format=posix -S --sparse-version=0.0 --xattrs --xattrs-include=* --acls"),
        ("pax01", "--format=posix -S --sparse-version=0.1 --xattrs --xattrs-include=* --acls"),
        ("pax10", "--format=posix -S --sparse-version=1.0 --xattrs --xattrs-include=* --acls"),
        ("global", "--format=posix -S --pax-option=globexthdr.name=g,comment=all,mtime=1234567890.5"),
        ("incremental", "--format=gnu -S --incremental"),
    ] {
        let archive = format!("{name}.tar");
        let (to, tree) = (work.name(&archive), work.name("tree"));
        let args: Vec<&str> = options.split(' ').chain(["--numeric-owner", "-cf", &to, "-C", &tree, "."]).collect();
        run("tar", &args);
        shown_as_extracted(&work, &archive, "tar");
    }
}

#[test]
fn what_gnu_tar_keeps_of_a_tree_in_pax_form_is_the_whole_tree() {
    if !have(&["tar"]) || !have_root() {
        return;
    }
    let work = Work::new(Sample::ALL);
    let options = "--format=posix -S --numeric-owner --acls --xattrs --xattrs-include=* --one-file-system";
    let (to, tree) = (work.name("a.tar"), work.name("tree"));
    let args: Vec<&str> = options.split(' ').chain(["-cpf", &to, "-C", &tree, "."]).collect();
    run("tar", &args);
    assert_same("a.tar", &in_archive(&*opened(&work.path("a.tar"))), &on_disk(&work.path("tree")));
}

#[test]
fn every_form_of_bsdtar_is_read_as_it_extracts_it() {
    if !have(&["bsdtar"]) || !have_root() {
        return;
    }
    for (format, sample) in
        [("ustar", PLAIN), ("gnutar", Sample { acls: false, huge: false, ..Sample::ALL }), ("pax", Sample::ALL)]
    {
        let work = Work::new(sample);
        // It writes a fraction before 1970 as if it counted backwards, and reads it as if it counted forwards.
        run("touch", &["-d", "1960-01-01", &work.name("tree/home/block")]);
        // It spells an odd name of an attribute in two ways, and extracts both.
        rustix::fs::lremovexattr(work.path("tree/home/text"), "user.odd=name %25").unwrap();
        let archive = format!("{format}.tar");
        run(
            "bsdtar",
            &[
                "--format",
                format,
                "--numeric-owner",
                "--acls",
                "--xattrs",
                "-cf",
                &work.name(&archive),
                "-C",
                &work.name("tree"),
                ".",
            ],
        );
        shown_as_extracted(&work, &archive, "bsdtar");
    }
}

#[test]
fn every_form_of_pythons_tarfile_is_read_as_gnu_tar_extracts_it() {
    if !have(&["python3", "tar"]) || !have_root() {
        return;
    }
    for (format, sample) in [
        ("USTAR_FORMAT", PLAIN),
        ("GNU_FORMAT", Sample { huge: false, ..Sample::ALL }),
        ("PAX_FORMAT", Sample { huge: false, ..Sample::ALL }),
    ] {
        let work = Work::new(sample);
        let archive = format!("{format}.tar");
        let script = format!(
            "import tarfile\nwith tarfile.open({:?}, 'w', format=tarfile.{format}, errors='surrogateescape') as t:\n    t.add({:?}, '.')\n",
            work.name(&archive),
            work.name("tree")
        );
        feed("python3", &["-"], &script);
        shown_as_extracted(&work, &archive, "tar");
    }
}

#[test]
fn archives_one_after_the_other_are_one_tree_as_for_gnu_tar_that_ignores_zeros() {
    if !have(&["tar"]) || !have_root() {
        return;
    }
    let work = Work::new(PLAIN);
    let tree = work.name("tree");
    run("tar", &["-cf", &work.name("first.tar"), "-C", &tree, "etc", "home"]);
    std::fs::write(work.path("tree/etc/passwd"), "changed since\n").unwrap();
    run("tar", &["-cf", &work.name("second.tar"), "-C", &tree, "etc", "var"]);
    let both = [std::fs::read(work.path("first.tar")).unwrap(), std::fs::read(work.path("second.tar")).unwrap()];
    std::fs::write(work.path("both.tar"), both.concat()).unwrap();
    let out = work.path("out");
    std::fs::create_dir(&out).unwrap();
    run("tar", &["-xpf", &work.name("both.tar"), "-C", out.to_str().unwrap(), "--numeric-owner", "--ignore-zeros"]);
    let (mut ours, mut theirs) = (in_archive(&*opened(&work.path("both.tar"))), on_disk(&out));
    // No member describes the top directory.
    ours.remove(Path::new(""));
    theirs.remove(Path::new(""));
    assert_same("both.tar", &ours, &theirs);
}

#[test]
fn a_member_of_more_than_8_gib_is_read_where_it_is() {
    if !have(&["tar", "python3"]) || !have_root() {
        return;
    }
    let work = Work::new(PLAIN);
    let size = (8_u64 << 30) + 12_345;
    for format in ["GNU_FORMAT", "PAX_FORMAT"] {
        // The headers are Python's; the data is a hole in the archive.
        let script = format!(
            "import tarfile\n\
             def header(name, size):\n    t = tarfile.TarInfo(name); t.size = size; return t.tobuf(tarfile.{format})\n\
             with open({:?}, 'wb') as f:\n    f.write(header('large', {size})); f.seek({size} - 7, 1); f.write(b'the end'.ljust(7 + -{size} % 512, b'\\0'))\n    \
             f.write(header('small', 3) + b'abc'.ljust(512, b'\\0') + bytes(1024))\n",
            work.name("large.tar")
        );
        feed("python3", &["-"], &script);
        assert_eq!(run("tar", &["-tf", &work.name("large.tar")]), "large\nsmall\n");
        let tree = opened(&work.path("large.tar"));
        assert_eq!(tree.broken(), None);
        let node = tree.lookup(tree.root(), b"large").unwrap().unwrap();
        assert_eq!(tree.attributes(node).unwrap().size, size);
        let mut end = [0; 20];
        assert_eq!(tree.read_at(node, &mut end, size - 7).unwrap(), 7);
        assert_eq!(&end[..7], b"the end");
        assert!(tree.lookup(tree.root(), b"small").unwrap().is_some(), "what follows it");
    }
}
