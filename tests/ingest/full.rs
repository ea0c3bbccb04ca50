//! Stores that take nothing, or nothing more, by real file systems' word. That each single write may fail so, `tests/crash/` shows.

use crate::scene::Scene;
use crate::support::mounts::needs;
use crate::support::random::Random;
use crate::support::tools::{command, have};

/// Plays a script in a mount namespace of its own, where the store `$store` is a file system of its own of 4 MiB, with one backup of the
/// disk `$small` in it; `annals` is the program. Whatever is mounted goes with the namespace.
fn played(script: &str) -> Option<String> {
    if !have(&["unshare", "mount"]) || !needs(rustix::process::geteuid().is_root(), "root") {
        return None;
    }
    let scene = Scene::new();
    let small = scene.raw("small", &Random::new(1).bytes(1 << 20));
    let large = scene.raw("large", &Random::new(2).bytes(8 << 20));
    let store = scene.path("mounted");
    std::fs::create_dir(&store).unwrap();
    let prologue = r#"
        set -eu
        mount -t tmpfs -o size=4M none "$store"
        annals() { "$program" --store "$store" "$@"; }
        annals init >&2
        annals backup vm 100 --disk d="$small" >&2
        before=$(annals list 100 --json)
        # What is listed, which has to be what was listed, and that it can be read to its last byte.
        unchanged() {
            [ "$(annals list 100 --json)" = "$before" ]
            annals show 100@latest >&2
            [ -z "$(find "$store/100" -name '.partial-*' -type d)" ] || [ "${1:-}" = read-only ]
        }
    "#;
    let output = command("unshare")
        .args(["--mount", "sh", "-c", &format!("{prologue}\n{script}")])
        .env("program", env!("CARGO_BIN_EXE_annals"))
        .env("store", store)
        .env("small", small)
        .env("large", large)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stdout));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_store_that_is_full_fails_the_run_with_1_and_what_it_wrote_is_gone() {
    let script = r#"
        code=0; annals backup vm 100 --disk d="$large" 2>said || code=$?
        cat said; echo "code $code"
        unchanged
        cat "$store"/100/*.failed/backup.log
        # There is room again: for a smaller disk.
        annals backup vm 100 --disk d="$small" >&2
        annals list 100 --json | grep -o '"name"' | wc -l
    "#;
    let Some(told) = played(&format!("cd \"$(dirname \"$store\")\"\n{script}")) else { return };
    assert!(told.contains("No space left on device") && told.contains("disk d:"), "{told}");
    assert!(told.contains("code 1\n"), "{told}");
    assert!(told.contains("failed: disk d:"), "no log of the failure: {told}");
    assert!(told.trim_end().ends_with('2'), "not two backups in the end: {told}");
}

#[test]
fn a_store_that_may_only_be_read_fails_the_run_with_1_and_is_left_as_it_is() {
    let script = r#"
        mount -o remount,ro "$store"
        for guest in 100 101; do
            code=0; annals backup vm $guest --disk d="$small" 2>&1 || code=$?
            echo "code $code"
        done
        unchanged read-only
        [ ! -e "$store/101" ]
    "#;
    let Some(told) = played(script) else { return };
    assert_eq!(told.matches("Read-only file system").count(), 2, "{told}");
    assert_eq!(told.matches("code 1\n").count(), 2, "{told}");
}
