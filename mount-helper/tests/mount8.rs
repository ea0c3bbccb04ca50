//! `mount.annals` as the real mount(8) calls it, with a stand-in for `annals` that writes down how it was started.
//!
//! Each test runs as root in a mount namespace of its own, on copies of `/usr/sbin` and `/etc`: the machine stays as it is.
//! What `annals` itself makes of its words is tested in the root package's `tests/mount_helper.rs`.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Says aloud that a test cannot run, and fails it in CI, where it has to.
fn may_run() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let unshared =
        root && Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
    if !unshared {
        assert!(std::env::var_os("CI").is_none(), "this test needs root and mount namespaces");
        let _ = writeln!(std::io::stderr(), "SKIPPED: this test needs root and mount namespaces");
    }
    unshared
}

/// What a script that ran in the scene left behind.
struct Seen {
    code: i32,
    stderr: String,
    record: PathBuf,
    _scene: tempfile::TempDir,
}

impl Seen {
    /// One of `words`, `environ` and `uid`, as the stand-in wrote it down; none where it was never started.
    fn recorded(&self, what: &str) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.record.join(what)).ok()?;
        Some(text.lines().map(str::to_owned).collect())
    }

    fn words(&self) -> String {
        self.recorded("words").unwrap_or_else(|| panic!("annals was not started: {}", self.stderr)).join(" ")
    }
}

/// How a scene differs from the usual one.
#[derive(Default)]
struct Scene {
    /// `STORE` and `MNT` in it stand for the two directories.
    fstab: &'static str,
    /// With what code the stand-in ends; none where there is no `annals` at all.
    annals_ends_with: Option<u8>,
}

const HEALTHY: Scene = Scene { fstab: "", annals_ends_with: Some(0) };

/// Runs `script` with `$STORE` and `$MNT` in the scene. It ends at the first command that fails.
fn play(scene: &Scene, script: &str) -> Seen {
    let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, mode) in [("store", 0o755), ("mnt", 0o777), ("record", 0o777), ("system", 0o755)] {
        fs::create_dir(at(name)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let (store, mnt, record) = (at("store"), at("mnt"), at("record"));
    let placed =
        |text: &str| text.replace("STORE", store.to_str().expect("UTF-8")).replace("MNT", mnt.to_str().expect("UTF-8"));
    fs::write(at("fstab"), placed(scene.fstab)).unwrap();
    if let Some(code) = scene.annals_ends_with {
        write_program(&at("annals"), &stand_in(&record, code));
    }
    let whole = format!("{PRIVATE_SYSTEM}\n{script}\n");
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc", &whole])
        .env("SCENE", dir.path())
        .env("STORE", &store)
        .env("MNT", &mnt)
        .env("HELPER", env!("CARGO_BIN_EXE_mount-annals"))
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .expect("unshare starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Seen { code: output.status.code().unwrap_or(-1), stderr, record, _scene: dir }
}

/// Puts the helper, and the stand-in where there is one, into a copy of /usr/sbin, and a table of its own into a copy of /etc.
const PRIVATE_SYSTEM: &str = r#"
mount -t tmpfs -o mode=755 tmpfs "$SCENE/system"
cp -a /usr/sbin /etc "$SCENE/system/"
install -m 755 "$HELPER" "$SCENE/system/sbin/mount.annals"
rm -f "$SCENE/system/sbin/annals"
if [ -e "$SCENE/annals" ]; then install -m 755 "$SCENE/annals" "$SCENE/system/sbin/annals"; fi
cp "$SCENE/fstab" "$SCENE/system/etc/fstab"
mount --bind "$SCENE/system/etc" /etc
mount --bind "$SCENE/system/sbin" /usr/sbin
if [ ! -L /sbin ]; then mount --bind "$SCENE/system/sbin" /sbin; fi
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
"#;

fn stand_in(record: &Path, code: u8) -> String {
    let record = record.display();
    format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >{record}/words\ntr '\\0' '\\n' </proc/$$/environ >{record}/environ\n\
         id -u >{record}/uid\nexit {code}\n"
    )
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn mount_t_annals_starts_annals_with_what_is_the_mounts() {
    if !may_run() {
        return;
    }
    let seen = play(
        &HEALTHY,
        r#"mount -t annals "$STORE" "$MNT" -o ro,allow_other,noauto,_netdev,nofail,x-systemd.automount"#,
    );
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    let words = seen.words();
    assert!(words.starts_with("--store=/") && words.contains("/store mount -o ro,allow_other -- /"), "{words}");
    assert!(words.ends_with("/mnt"), "{words}");
    assert_eq!(seen.recorded("uid").unwrap(), ["0"]);
}

#[test]
fn a_mount_without_options_has_none() {
    if !may_run() {
        return;
    }
    let seen = play(&HEALTHY, r#"mount -t annals "$STORE" "$MNT""#);
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    assert!(seen.words().contains("/store mount -- /"), "{}", seen.words());
}

#[test]
fn nothing_of_the_callers_environment_reaches_annals() {
    if !may_run() {
        return;
    }
    let seen = play(
        &HEALTHY,
        r#"ANNALS_STORE=/elsewhere FUSERMOUNT_PATH=/tmp/evil RUST_LOG=trace PATH="/tmp/evil:$PATH" mount -t annals "$STORE" "$MNT""#,
    );
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    assert_eq!(
        seen.recorded("environ").unwrap(),
        ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    );
}

#[test]
fn an_unknown_option_is_refused_by_its_name_and_nothing_is_started() {
    if !may_run() {
        return;
    }
    let seen = play(&HEALTHY, r#"mount -t annals "$STORE" "$MNT" -o ro,alow_other,frobnicate=1"#);
    assert_eq!(seen.code, 1, "{}", seen.stderr);
    assert!(seen.stderr.contains("unknown option 'alow_other', 'frobnicate'"), "{}", seen.stderr);
    assert_eq!(seen.recorded("words"), None);
}

#[test]
fn a_sloppy_mount_leaves_unknown_options_out_and_says_so() {
    if !may_run() {
        return;
    }
    let seen = play(&HEALTHY, r#"mount -s -t annals "$STORE" "$MNT" -o ro,frobnicate"#);
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    assert!(seen.words().contains("mount -o ro -- "), "{}", seen.words());
    assert!(seen.stderr.contains("'frobnicate' left out"), "{}", seen.stderr);
}

#[test]
fn a_line_of_fstab_lets_a_user_mount_with_the_users_rights_and_the_users_limits() {
    if !may_run() {
        return;
    }
    let scene = Scene { fstab: "STORE MNT annals noauto,user,_netdev,x-systemd.automount 0 0\n", ..HEALTHY };
    let seen = play(&scene, r#"as_nobody mount "$MNT""#);
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    assert_eq!(seen.recorded("uid").unwrap(), ["65534"]);
    let words = seen.words();
    for limit in ["nosuid", "nodev", "noexec"] {
        assert!(words.contains(limit), "{limit} in {words}");
    }
    for own in ["user", "_netdev", "noauto", "x-systemd"] {
        assert!(!words.contains(own), "{own} in {words}");
    }
}

#[test]
fn without_a_line_of_fstab_a_users_mount_has_the_users_rights_alone() {
    if !may_run() {
        return;
    }
    // mount(8) gives up its set-uid rights then and goes on; FUSE lets users mount for themselves.
    let seen = play(&HEALTHY, r#"as_nobody mount -t annals "$STORE" "$MNT""#);
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    assert_eq!(seen.recorded("uid").unwrap(), ["65534"]);
}

#[test]
fn mount_a_leaves_noauto_lines_alone_and_takes_the_others() {
    if !may_run() {
        return;
    }
    let noauto = Scene { fstab: "STORE MNT annals noauto 0 0\n", ..HEALTHY };
    let seen = play(&noauto, "mount -a -t annals");
    assert_eq!((seen.code, seen.recorded("words")), (0, None), "{}", seen.stderr);
    let auto = Scene { fstab: "STORE MNT annals defaults,nofail 0 0\n", ..HEALTHY };
    let seen = play(&auto, "mount -a -t annals");
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    assert!(seen.words().contains("/store mount -- /"), "{}", seen.words());
}

#[test]
fn a_failed_mount_ends_with_mount_8s_code_for_it() {
    if !may_run() {
        return;
    }
    for (annals, code) in [(1, 32), (2, 1), (3, 0)] {
        let scene = Scene { annals_ends_with: Some(annals), ..HEALTHY };
        let seen = play(&scene, r#"mount -t annals "$STORE" "$MNT""#);
        assert_eq!(seen.code, code, "annals ended with {annals}: {}", seen.stderr);
    }
}

#[test]
fn annals_is_not_looked_for_in_the_callers_path() {
    if !may_run() {
        return;
    }
    let scene = Scene { annals_ends_with: None, ..HEALTHY };
    let seen = play(
        &scene,
        r#"mkdir "$SCENE/system/evil"
           printf '#!/bin/sh\ntouch "%s/record/words"\n' "$SCENE" >"$SCENE/system/evil/annals"
           chmod 755 "$SCENE/system/evil/annals"
           for dir in /usr/local/bin /usr/bin /bin; do [ ! -e "$dir/annals" ] || mount --bind /dev/null "$dir/annals"; done
           PATH="$SCENE/system/evil:$PATH" mount -t annals "$STORE" "$MNT""#,
    );
    assert_eq!(seen.code, 2, "{}", seen.stderr);
    assert!(seen.stderr.contains("cannot find the program annals in /usr/sbin"), "{}", seen.stderr);
    assert_eq!(seen.recorded("words"), None);
}

#[test]
fn a_fake_mount_checks_the_directories_and_starts_nothing() {
    if !may_run() {
        return;
    }
    let seen = play(&HEALTHY, r#"mount -f -v -t annals "$STORE" "$MNT" -o allow_other"#);
    assert_eq!((seen.code, seen.recorded("words")), (0, None), "{}", seen.stderr);
    assert!(seen.stderr.contains("runs /usr/sbin/annals --store="), "{}", seen.stderr);
    let seen = play(&HEALTHY, r#"mount -f -t annals "$STORE/none" "$MNT""#);
    assert_eq!(seen.code, 32, "{}", seen.stderr);
    assert!(seen.stderr.contains("/store/none cannot be used"), "{}", seen.stderr);
}

#[test]
fn mount_n_starts_annals_in_the_named_mount_namespace() {
    if !may_run() {
        return;
    }
    // The other namespace has the same /usr/sbin, and a mark that the first has not.
    let seen = play(
        &HEALTHY,
        r#"mkfifo "$SCENE/ready" "$SCENE/done"
           unshare --mount --propagation private sh -c '
               mount -t tmpfs tmpfs "$STORE"; touch "$STORE/mark"; echo >"$SCENE/ready"; read -r _ <"$SCENE/done"' &
           read -r _ <"$SCENE/ready"
           printf '#!/bin/sh\nls "%s" >"%s/record/words"\n' "$STORE" "$SCENE" >"$SCENE/system/sbin/annals"
           rc=0; mount -N $! -t annals "$STORE" "$MNT" || rc=$?
           echo >"$SCENE/done"; wait; exit $rc"#,
    );
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    assert_eq!(seen.words(), "mark");
}
