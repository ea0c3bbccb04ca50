//! `backup container` as a person or a script uses it, also where the programs that it needs are missing, others, or fail.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::needs::needs;
use crate::support::stores::{Ran, TestStore, annals};
use crate::support::tools::{as_user, have};
use crate::{all, backups};

/// A store, and a tree beside it.
struct Stage {
    store: TestStore,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self { store: TestStore::new(), dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(stage.dir.path().join("tree/etc")).unwrap();
        fs::create_dir_all(stage.dir.path().join("bin")).unwrap();
        fs::write(stage.dir.path().join("tree/etc/passwd"), "root\n").unwrap();
        fs::write(stage.dir.path().join("tree/noise"), vec![7; 100_000]).unwrap();
        stage
    }

    fn tree(&self) -> String {
        self.dir.path().join("tree").to_str().unwrap().to_owned()
    }

    fn back_up(&self, args: &[&str]) -> Ran {
        self.store.annals(&[&["backup", "container", "101", &self.tree()], args].concat())
    }

    /// The same with the programs of `bin` alone.
    fn back_up_with_own_programs(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_annals"));
        command.arg("--store").arg(self.store.path()).args(["backup", "container", "101", &self.tree()]).args(args);
        annals(command.env("PATH", self.dir.path().join("bin")))
    }

    /// Puts a program of the system into `bin`.
    fn borrow(&self, name: &str) {
        let found = ["/usr/bin", "/bin", "/usr/local/bin"].map(|dir| Path::new(dir).join(name));
        let found = found.iter().find(|path| path.exists()).unwrap();
        std::os::unix::fs::symlink(found, self.dir.path().join("bin").join(name)).unwrap();
    }

    /// Puts a script into `bin`.
    fn fake(&self, name: &str, script: &str) {
        let path: PathBuf = self.dir.path().join("bin").join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.store.path().join("101")) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != ".writer.lock");
        names.sort();
        names
    }
}

fn ready() -> bool {
    have(&["tar", "tar2sqfs", "setpriv"])
}

#[test]
fn a_backup_is_made_and_listed_and_shown_and_its_events_are_lines_of_json() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    let ran = stage.back_up(&["--json", "--exclude", "/nothing/"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let events: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named = |name: &str| events.iter().find(|event| event["event"] == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(named("archive-planned")["format"], "squashfs");
    assert_eq!(named("archive-planned")["entries"], 4);
    assert_eq!(named("archive-progress")["total"], 100_005);
    assert_eq!(events.iter().rfind(|event| event["event"] == "archive-progress").unwrap()["done"], 100_005);
    assert_eq!(named("archive-done")["blake3"].as_str().unwrap().len(), 64);
    let ran = stage.back_up(&["--format", "tar"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("archive.tar  tar     4"), "{}", ran.stdout);

    let listed = stage.store.annals(&["list", "101", "--json"]).json();
    let archives: Vec<&Value> = listed["backups"].as_array().unwrap().iter().map(|b| &b["archives"][0]).collect();
    assert_eq!(archives.iter().map(|a| a["format"].as_str().unwrap()).collect::<Vec<_>>(), ["squashfs", "tar"]);
    assert!(archives.iter().all(|archive| archive["entries"] == 4 && archive["size"].as_u64().unwrap() > 4000));
    let text = stage.store.annals(&["list", "101"]).stdout;
    assert!(text.contains("squashfs, 4 KiB, 4 members") && text.contains("ok"), "{text}");
    let shown = stage.store.annals(&["show", &format!("101@{}", backups(&stage.store, "101")[0])]);
    assert!(
        shown.stdout.contains("archive archive.sqfs: squashfs, 4 KiB, 4 members\nwithout: /nothing\n"),
        "{}",
        shown.stdout
    );
}

#[test]
fn what_the_environment_says_to_the_programs_makes_no_difference() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_annals"));
    command.arg("--store").arg(stage.store.path()).args(["backup", "container", "101", &stage.tree(), "--json"]);
    command.envs([("TAR_OPTIONS", "--exclude=etc --no-xattrs"), ("POSIXLY_CORRECT", "1"), ("SOURCE_DATE_EPOCH", "1")]);
    let ran = annals(command.env("LC_ALL", "de_DE.UTF-8"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("\"entries\":4"), "{}", ran.stdout);
}

#[test]
fn an_archive_that_is_missing_cut_short_or_damaged_is_listed_as_broken_with_the_reason() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    let file = |dir: &str, name: &str| stage.store.path().join("101").join(dir).join(name);
    for format in ["tar", "squashfs", "tar", "tar", "squashfs"] {
        assert_eq!(stage.back_up(&["--format", format]).code, Some(0));
    }
    let made = stage.names();
    let cut = |path: PathBuf, by: u64| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - by).unwrap();
    };
    fs::remove_file(file(&made[0], "archive.tar")).unwrap();
    cut(file(&made[1], "archive.sqfs"), 4000);
    cut(file(&made[2], "archive.tar"), 512);
    // Without its manifest, by its end alone.
    fs::remove_file(file(&made[3], "backup.json")).unwrap();
    cut(file(&made[3], "archive.tar"), 60_000);
    let ran = stage.store.annals(&["list", "101", "--json"]);
    assert_eq!(ran.code, Some(3));
    let listed = ran.json();
    let problems = |n: usize| all(&listed["backups"][n]["problems"], "message").join("; ");
    assert_eq!(problems(0), "the archive that backup.json names is missing");
    assert!(problems(1).contains("backup.json says") && problems(2).contains("backup.json says"));
    assert!(problems(3).contains("do not end with the mark that ends a tar archive"), "{}", problems(3));
    assert_eq!(problems(4), "");
    for (name, code) in backups(&stage.store, "101").iter().zip([3, 3, 3, 3, 0]) {
        let shown = stage.store.annals(&["show", &format!("101@{name}")]);
        assert_eq!(shown.code, Some(code), "{name}: {}", shown.stdout);
        assert_eq!(shown.stdout.contains("broken: 101@"), code == 3, "{}", shown.stdout);
    }
}

#[test]
fn wrong_words_end_with_2_and_a_tree_that_is_not_there_with_1_and_neither_leaves_anything() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    let tree = stage.tree();
    for args in [
        vec!["backup", "container", "101"],
        vec!["backup", "container", "101", &tree, "--format", "zip"],
        vec!["backup", "container", "101", &tree, "--exclude", "/"],
        vec!["backup", "container", "101", &tree, "--exclude", ""],
        vec!["backup", "container", "101", &tree, "--bwlimit", "fast"],
        vec!["backup", "container", "101", &tree, "--attach", "archive.tar=/etc/hostname"],
    ] {
        assert_eq!(stage.store.annals(&args).code, Some(2), "{args:?}");
    }
    for path in ["/nonexistent".to_owned(), format!("{tree}/noise")] {
        let ran = stage.store.annals(&["backup", "container", "101", &path]);
        assert_eq!(ran.code, Some(1), "{path}: {}", ran.stderr);
        assert!(ran.stderr.contains(&path), "{}", ran.stderr);
    }
    assert_eq!(stage.store.annals(&["backup", "container", "../x", &tree]).code, Some(1));
    let plan = stage.back_up(&["--dry-run", "--json"]).json();
    assert_eq!(plan["archive"]["format"], "squashfs");
    assert!(stage.names().is_empty());
}

#[test]
fn a_directory_that_squashfs_would_take_too_long_for_makes_a_tar_archive_unless_squashfs_is_asked_for() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    let maildir = stage.dir.path().join("tree/cur");
    fs::create_dir(&maildir).unwrap();
    let fill =
        |names: std::ops::Range<u32>| names.for_each(|n| drop(fs::File::create(maildir.join(n.to_string())).unwrap()));
    let plan = |format: &str| stage.back_up(&["--dry-run", "--json", "--format", format]).json()["archive"].clone();
    fill(0..20_000);
    assert_eq!(plan("auto")["format"], "squashfs");
    fill(20_000..20_001);
    let told = "./cur has 20001 names, for which 'tar2sqfs' takes very long";
    let chosen = plan("auto");
    assert_eq!((&chosen["format"], &chosen["reason"]), (&"tar".into(), &told.into()));
    let asked_for = plan("squashfs");
    assert_eq!(asked_for["format"], "squashfs");
    assert!(asked_for["notes"].as_array().unwrap().contains(&told.into()), "{asked_for}");
}

#[test]
fn a_program_that_is_missing_is_named_with_its_package_before_anything_is_made() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    let missing = |format: &str, program: &str, package: &str| {
        let ran = stage.back_up_with_own_programs(&["--format", format]);
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("the program '{program}' is not found")), "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("install the package {package}")), "{}", ran.stderr);
        assert!(!stage.store.path().join("101").exists());
    };
    missing("tar", "tar", "tar");
    stage.borrow("tar");
    missing("tar", "setpriv", "util-linux");
    stage.borrow("setpriv");
    missing("squashfs", "tar2sqfs", "squashfs-tools-ng");
    let ran = stage.back_up_with_own_programs(&["--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("tar2sqfs") && ran.stdout.contains("archive.tar"), "{}", ran.stdout);
}

#[test]
fn a_tree_that_cannot_be_read_as_a_whole_is_no_backup_and_the_log_says_what_is_missing() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    for program in ["setpriv", "tar2sqfs"] {
        stage.borrow(program);
    }
    let real = "/bin/tar \"$@\"";
    for (script, told) in [
        // Words that are not known, behind known ones.
        (
            format!("{real}; echo 'tar: ./x: file changed as we read it: Cannot open: Permission denied' >&2; exit 2"),
            "./x: file",
        ),
        (format!("{real}; exit 2"), "ended with code 2"),
        (format!("{real}; kill -9 $$"), "signal 9"),
        (format!("{real}; echo 'tar: POSIX ACL support is not available' >&2"), "ACL support"),
        ("exit 0".to_owned(), "nothing is left"),
    ] {
        // Both times that it is started, and the second time alone, when the plan is made.
        for script in [script.clone(), format!("case \"$*\" in *\" /dev/null \"*) exec {real};; esac; {script}")] {
            stage.fake("tar", &script);
            for format in ["tar", "squashfs"] {
                let ran = stage.back_up_with_own_programs(&["--format", format]);
                assert_eq!(ran.code, Some(1), "{script}: {}", ran.stderr);
                assert!(ran.stderr.contains(told), "{script}: {}", ran.stderr);
            }
        }
    }
    // Only what tar says of a member that it leaves out explains that end.
    stage.fake("tar", &format!("{real}; echo 'tar: ./x: Cannot stat: No such file or directory' >&2; exit 2"));
    for format in ["tar", "squashfs"] {
        let ran = stage.back_up_with_own_programs(&["--format", format]);
        assert_eq!(ran.code, Some(3), "{}", ran.stderr);
        assert!(ran.stderr.contains("could not be read: ./x: Cannot stat"), "{}", ran.stderr);
    }
    // A packer that ends early, before and after its input has.
    stage.fake("tar", real);
    for script in ["echo 'out of luck' >&2; exit 1", "while read -r x; do :; done; echo 'out of luck' >&2; exit 1"] {
        stage.fake("tar2sqfs", script);
        let ran = stage.back_up_with_own_programs(&["--format", "squashfs"]);
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains("tar2sqfs failed: out of luck"), "{}", ran.stderr);
    }
    assert_eq!(backups(&stage.store, "101").len(), 2);
    let left: Vec<String> = stage.names().into_iter().filter(|name| name.starts_with(".partial-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_user_who_may_not_read_everything_gets_a_backup_of_the_rest_and_is_told_what_it_lacks() {
    if !ready() || !needs(rustix::process::geteuid().is_root(), "root") {
        return;
    }
    const NOBODY: u32 = 65534;
    let stage = Stage::new();
    let secret = |name: &str, mode| {
        let path = stage.dir.path().join("tree").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for n in 0..7 {
        fs::write(stage.dir.path().join(format!("tree/etc/shadow {n}")), "x").unwrap();
        secret(&format!("etc/shadow {n}"), 0o600);
    }
    fs::create_dir_all(stage.dir.path().join("tree/root/.ssh")).unwrap();
    secret("root", 0o700);
    for dir in [stage.dir.path(), stage.store.path()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::os::unix::fs::chown(stage.store.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let back_up = |more: &[&str]| {
        let mut command = as_user(NOBODY);
        command.arg(env!("CARGO_BIN_EXE_annals")).arg("--store").arg(stage.store.path());
        annals(command.args(["backup", "container", "101", &stage.tree()]).args(more))
    };
    for (format, file) in [("tar", "archive.tar"), ("squashfs", "archive.sqfs")] {
        let ran = back_up(&["--format", format]);
        assert_eq!(ran.code, Some(3), "{}", ran.stderr);
        let told = ran.stderr.lines().filter(|line| line.starts_with("could not be read: ./")).count();
        assert_eq!(told, 5, "{}", ran.stderr);
        let warning =
            "warning: 8 paths could not be read and are left out, or without attributes; backup.log says which";
        assert!(ran.stderr.contains(warning), "{}", ran.stderr);
        let backup = backups(&stage.store, "101").pop().unwrap();
        let shown = stage.store.annals(&["show", &format!("101@{backup}")]);
        let incomplete = "incomplete: 8 paths could not be read when it was made; see its backup.log\n";
        assert!(shown.stdout.contains(incomplete), "{}", shown.stdout);
        assert_eq!(shown.code, Some(0), "nothing in the store is broken");
        let shown = stage.store.annals(&["show", &format!("101@{backup}"), "--json"]).json();
        assert_eq!(shown["archives"][0]["manifest"]["unreadable"], 8);
        for quick in [&["list", "101"][..], &["list", "101", "--quick"]] {
            let listed = stage.store.annals(quick);
            let line = listed.stdout.lines().find(|line| line.starts_with(&backup)).unwrap();
            assert!(line.contains(" incomplete "), "{line}");
            assert_eq!(listed.code, Some(0), "nothing in the store is broken");
        }
        let listed = stage.store.annals(&["list", "101", "--json"]).json();
        let line = listed["backups"].as_array().unwrap().last().unwrap();
        assert_eq!((&line["incomplete"], &line["broken"]), (&true.into(), &false.into()));
        assert_eq!(line["archives"][0]["unreadable"], 8);
        assert_eq!(shown["archives"][0]["file"], file);
        let directory = shown["directory"].as_str().unwrap();
        let log = fs::read_to_string(stage.store.path().join("101").join(directory).join("backup.log")).unwrap();
        for path in (0..7).map(|n| format!("./etc/shadow {n}")).chain(["./root".to_owned()]) {
            let line = format!("could not be read: {path}: Cannot open: Permission denied\n");
            assert!(log.contains(&line), "{line}{log}");
        }
    }
    let ran = back_up(&["--json", "--exclude", "/root", "--exclude", "shadow ?"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("\"unreadable\":0"), "{}", ran.stdout);
    let ran = back_up(&["--json", "--exclude", "/root"]);
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    let events: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    assert_eq!((of("unreadable").len(), &of("archive-done")[0]["unreadable"]), (7, &7.into()));
    assert_eq!(of("unreadable")[0]["message"].as_str().unwrap().rsplit(": ").next(), Some("Permission denied"));
}

#[test]
fn a_program_that_neither_reads_nor_writes_ends_with_the_one_that_started_it() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    for program in ["setpriv", "tar2sqfs"] {
        stage.borrow(program);
    }
    let pid = stage.dir.path().join("pid");
    let script = format!(
        "case \"$*\" in *\" /dev/null \"*) exec /bin/tar \"$@\";; esac; echo $$ >{0}.new; mv {0}.new {0}; exec sleep 600",
        pid.display()
    );
    // `mv` and `sleep` are not on the path that the scripts of this test have.
    stage.fake("tar", &script.replace("mv ", "/bin/mv ").replace("exec sleep", "exec /bin/sleep"));
    for signal in [rustix::process::Signal::KILL, rustix::process::Signal::TERM] {
        let _ = fs::remove_file(&pid);
        let mut child = Command::new(env!("CARGO_BIN_EXE_annals"))
            .args(["backup", "container", "101", &stage.tree(), "--format", "tar"])
            .env("ANNALS_STORE", stage.store.path())
            .env("PATH", stage.dir.path().join("bin"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while !pid.exists() {
            assert!(began.elapsed() < Duration::from_secs(20), "it does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        let helper = fs::read_to_string(&pid).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap();
        let ended = Instant::now();
        let alive = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", helper.trim())).unwrap_or_default();
            // A process that nobody has waited for has ended all the same.
            stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
        };
        while alive() {
            assert!(ended.elapsed() < Duration::from_secs(2), "{signal:?}: it outlives us");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(backups(&stage.store, "101").is_empty());
}
