//! `mount.annals` as the real mount(8) calls it, with a stand-in for `annals` that writes down how it was started.
//!
//! Each test runs as root in a mount namespace of its own, on copies of `/usr/sbin` and `/etc`: the machine stays as it is.
//! What `annals` itself makes of its words is tested in the root package's `tests/mount_helper.rs`.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

// Shared with the root package's tests, which use the rest of it.
#[allow(dead_code)]
#[path = "../../tests/support/private.rs"]
mod private;

use std::fs;
use std::path::Path;

use private::{Played, Scene, may_run};

/// A scene with the helper, and with a stand-in for `annals` that writes down its words, environment and user, and ends
/// with `code`.
fn scene(code: u8) -> Scene {
    let scene = Scene::new();
    scene.install(Path::new(env!("CARGO_BIN_EXE_mount-annals")), "mount.annals");
    let record = scene.path("record");
    let record = record.display();
    let stand_in = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >{record}/words\ntr '\\0' '\\n' </proc/$$/environ >{record}/environ\n\
         id -u >{record}/uid\nexit {code}\n"
    );
    scene.install_script(&stand_in, "annals");
    scene
}

fn play(script: &str) -> Seen {
    Seen::of(scene(0), script)
}

fn play_with_fstab(fstab: &str, script: &str) -> Seen {
    let scene = scene(0);
    scene.fstab(fstab);
    Seen::of(scene, script)
}

/// What a script left behind.
struct Seen {
    played: Played,
    scene: Scene,
}

impl Seen {
    fn of(scene: Scene, script: &str) -> Self {
        Self { played: scene.play(script), scene }
    }

    /// Ends the test where the script did not end well.
    fn well(self) -> Self {
        assert_eq!(self.played.code, 0, "{}", self.played.stderr);
        self
    }

    /// One of `words`, `environ` and `uid`, as the stand-in wrote it down; none where it was never started.
    fn recorded(&self, what: &str) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.scene.path("record").join(what)).ok()?;
        Some(text.lines().map(str::to_owned).collect())
    }

    fn words(&self) -> String {
        self.recorded("words").unwrap_or_else(|| panic!("annals was not started: {}", self.played.stderr)).join(" ")
    }
}

#[test]
fn mount_t_annals_starts_annals_with_what_is_the_mounts() {
    if !may_run() {
        return;
    }
    let seen =
        play(r#"mount -t annals "$STORE" "$MNT" -o ro,allow_other,noauto,_netdev,nofail,x-systemd.automount"#).well();
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
    let seen = play(r#"mount -t annals "$STORE" "$MNT""#).well();
    assert!(seen.words().contains("/store mount -- /"), "{}", seen.words());
}

#[test]
fn nothing_of_the_callers_environment_reaches_annals() {
    if !may_run() {
        return;
    }
    let seen = play(
        r#"ANNALS_STORE=/elsewhere FUSERMOUNT_PATH=/tmp/evil RUST_LOG=trace PATH="/tmp/evil:$PATH" mount -t annals "$STORE" "$MNT""#,
    ).well();
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
    let seen = play(r#"mount -t annals "$STORE" "$MNT" -o ro,alow_other,frobnicate=1"#);
    assert_eq!(seen.played.code, 1, "{}", seen.played.stderr);
    assert!(seen.played.stderr.contains("unknown option 'alow_other', 'frobnicate'"), "{}", seen.played.stderr);
    assert_eq!(seen.recorded("words"), None);
}

#[test]
fn a_sloppy_mount_leaves_unknown_options_out_and_says_so() {
    if !may_run() {
        return;
    }
    let seen = play(r#"mount -s -t annals "$STORE" "$MNT" -o ro,frobnicate"#).well();
    assert!(seen.words().contains("mount -o ro -- "), "{}", seen.words());
    assert!(seen.played.stderr.contains("'frobnicate' left out"), "{}", seen.played.stderr);
}

#[test]
fn a_line_of_fstab_lets_a_user_mount_with_the_users_rights_and_the_users_limits() {
    if !may_run() {
        return;
    }
    let fstab = "STORE MNT annals noauto,user,_netdev,x-systemd.automount 0 0\n";
    let seen = play_with_fstab(fstab, r#"as_nobody mount "$MNT""#).well();
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
    let seen = play(r#"as_nobody mount -t annals "$STORE" "$MNT""#).well();
    assert_eq!(seen.recorded("uid").unwrap(), ["65534"]);
}

#[test]
fn mount_a_leaves_noauto_lines_alone_and_takes_the_others() {
    if !may_run() {
        return;
    }
    let seen = play_with_fstab("STORE MNT annals noauto 0 0\n", "mount -a -t annals").well();
    assert_eq!(seen.recorded("words"), None);
    let seen = play_with_fstab("STORE MNT annals defaults,nofail 0 0\n", "mount -a -t annals").well();
    assert!(seen.words().contains("/store mount -- /"), "{}", seen.words());
}

#[test]
fn a_failed_mount_ends_with_mount_8s_code_for_it() {
    if !may_run() {
        return;
    }
    for (annals, code) in [(1, 32), (2, 1), (3, 0)] {
        let seen = Seen::of(scene(annals), r#"mount -t annals "$STORE" "$MNT""#);
        assert_eq!(seen.played.code, code, "annals ended with {annals}: {}", seen.played.stderr);
    }
}

#[test]
fn annals_is_not_looked_for_in_the_callers_path() {
    if !may_run() {
        return;
    }
    let seen = play(
        r#"rm /usr/sbin/annals
           mkdir "$SCENE/system/evil"
           printf '#!/bin/sh\ntouch "%s/record/words"\n' "$SCENE" >"$SCENE/system/evil/annals"
           chmod 755 "$SCENE/system/evil/annals"
           for dir in /usr/local/bin /usr/bin /bin; do [ ! -e "$dir/annals" ] || mount --bind /dev/null "$dir/annals"; done
           PATH="$SCENE/system/evil:$PATH" mount -t annals "$STORE" "$MNT""#,
    );
    assert_eq!(seen.played.code, 2, "{}", seen.played.stderr);
    assert!(seen.played.stderr.contains("cannot find the program annals in /usr/sbin"), "{}", seen.played.stderr);
    assert_eq!(seen.recorded("words"), None);
}

#[test]
fn a_fake_mount_checks_the_directories_and_starts_nothing() {
    if !may_run() {
        return;
    }
    let seen = play(r#"mount -f -v -t annals "$STORE" "$MNT" -o allow_other"#);
    assert_eq!((seen.played.code, seen.recorded("words")), (0, None), "{}", seen.played.stderr);
    assert!(seen.played.stderr.contains("runs /usr/sbin/annals --store="), "{}", seen.played.stderr);
    let seen = play(r#"mount -f -t annals "$STORE/none" "$MNT""#);
    assert_eq!(seen.played.code, 32, "{}", seen.played.stderr);
    assert!(seen.played.stderr.contains("/store/none cannot be used"), "{}", seen.played.stderr);
}

#[test]
fn mount_n_starts_annals_in_the_named_mount_namespace() {
    if !may_run() {
        return;
    }
    // The other namespace has the same /usr/sbin, and a mark that the first has not.
    let seen = play(
        r#"mkfifo "$SCENE/ready" "$SCENE/done"
           unshare --mount --propagation private sh -c '
               mount -t tmpfs tmpfs "$STORE"; touch "$STORE/mark"; echo >"$SCENE/ready"; read -r _ <"$SCENE/done"' &
           read -r _ <"$SCENE/ready"
           printf '#!/bin/sh\nls "%s" >"%s/record/words"\n' "$STORE" "$SCENE" >"$SCENE/system/sbin/annals"
           rc=0; mount -N $! -t annals "$STORE" "$MNT" || rc=$?
           echo >"$SCENE/done"; wait; exit $rc"#,
    )
    .well();
    assert_eq!(seen.words(), "mark");
}
