//! `mount -t annals` from end to end: mount(8), `mount.annals`, `annals`, and back by umount(8).
//!
//! What the helper itself decides is tested with a stand-in for `annals`, in `mount-helper/tests/mount8.rs`.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

// Shared with the tests of mount-helper, which use the rest of it.
#[allow(dead_code)]
#[path = "support/private.rs"]
mod private;

// The helper is a program and no library; its lists are held against those of `annals`.
#[allow(dead_code)]
#[path = "../mount-helper/src/known.rs"]
mod helper;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use private::{Scene, may_boot, may_run};

const ANNALS: &str = env!("CARGO_BIN_EXE_annals");
const DISK: &[u8] = b"what the guest had on its disk\n";

/// Both programs in their places, and a store with one guest.
fn scene() -> Scene {
    let scene = Scene::new();
    scene.install(Path::new(ANNALS), "annals");
    scene.install(&Path::new(ANNALS).with_file_name("mount-annals"), "mount.annals");
    let backup = scene.path("store").join("100/qemu-2024-11-07T16-51-22Z");
    fs::create_dir_all(&backup).unwrap();
    let mut disk = DISK.to_vec();
    disk.resize(4096, 0);
    fs::write(backup.join("drive-scsi0.raw"), disk).unwrap();
    fs::write(backup.join("guest.conf"), "name: web01\n").unwrap();
    scene
}

/// Runs a script in [`scene`] that has to end well; returns what it printed.
fn play(fstab: &str, script: &str) -> String {
    let scene = scene();
    scene.fstab(fstab);
    let played = scene.play(script);
    assert_eq!(played.code, 0, "{}{}", played.stdout, played.stderr);
    played.stdout
}

#[test]
fn a_store_is_mounted_read_and_unmounted_by_mount_8_and_umount_8() {
    if !may_run() {
        return;
    }
    let printed = play(
        "",
        r#"mount -t annals "$STORE" "$MNT" -o noauto,_netdev,x-systemd.automount,allow_other
           findmnt --noheadings --output FSTYPE,OPTIONS "$MNT"
           [ "$(findmnt --noheadings --output SOURCE "$MNT")" = "$STORE" ]
           head -n 1 "$MNT/100/latest/drive-scsi0.raw"
           as_nobody cat "$MNT/100/2024-11-07T16-51-22Z/guest.conf"
           pid=$(pidof annals)
           umount "$MNT"
           for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || exit 0; sleep 0.1; done
           echo 'the process outlives its mount'; exit 1"#,
    );
    let mut lines = printed.lines();
    let listed = lines.next().unwrap();
    for word in ["fuse.annals", "ro", "nosuid", "nodev", "allow_other"] {
        assert!(listed.split([' ', ',']).any(|w| w == word), "{word} in {listed}");
    }
    assert_eq!(lines.next().unwrap().as_bytes(), DISK.trim_ascii_end());
    assert_eq!(lines.next(), Some("name: web01"));
}

#[test]
fn a_user_mounts_and_unmounts_by_a_line_of_fstab_and_nobody_else_gets_in() {
    if !may_run() {
        return;
    }
    let printed = play(
        "STORE MNT annals noauto,user 0 0\n",
        r#"chown nobody "$MNT"
           as_nobody mount "$MNT"
           as_nobody head -n 1 "$MNT/100/latest/drive-scsi0.raw"
           findmnt --noheadings --output OPTIONS "$MNT"
           if ls "$MNT" 2>/dev/null; then echo 'root got in'; exit 1; fi
           as_nobody umount "$MNT"
           if mountpoint -q "$MNT"; then echo 'still mounted'; exit 1; fi"#,
    );
    let mut lines = printed.lines();
    assert_eq!(lines.next().unwrap().as_bytes(), DISK.trim_ascii_end());
    let options = lines.next().unwrap();
    for word in ["ro", "nosuid", "nodev", "noexec", "user_id=65534"] {
        assert!(options.split(',').any(|w| w == word), "{word} in {options}");
    }
}

#[test]
fn mount_a_mounts_a_line_of_fstab_once_however_often_it_is_said() {
    if !may_run() {
        return;
    }
    let printed = play(
        "STORE MNT annals defaults 0 0\n",
        r#"mount -a -t annals; mount -a -t annals
           findmnt --noheadings --output TARGET "$MNT" | wc -l
           umount "$MNT""#,
    );
    assert_eq!(printed.trim(), "1");
}

#[test]
fn systemd_mounts_on_first_use_and_again_after_it_took_an_idle_mount_away() {
    if !may_boot() {
        return;
    }
    let scene = scene();
    scene.fstab("STORE MNT annals noauto,x-systemd.automount,x-systemd.idle-timeout=1s,_netdev,allow_other 0 0\n");
    let played = scene.play_under_systemd(
        r#"top() { findmnt --noheadings --output FSTYPE "$MNT" | tail -n 1; }
           systemctl start "$(systemd-escape --path --suffix=automount "$MNT")"
           for _ in 1 2; do
               top
               head -n 1 "$MNT/100/latest/drive-scsi0.raw"
               top
               pid=$(pidof annals)
               for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
               if kill -0 "$pid" 2>/dev/null; then echo 'the process outlives its mount'; exit 1; fi
           done
           top"#,
    );
    assert_eq!(played.code, 0, "{}{}", played.stdout, played.stderr);
    let disk = std::str::from_utf8(DISK).unwrap().trim_end();
    let expected = ["autofs", disk, "fuse.annals", "autofs", disk, "fuse.annals", "autofs"];
    assert_eq!(played.stdout.lines().map(str::trim).collect::<Vec<_>>(), expected, "{}", played.stderr);
}

#[test]
fn systemd_mounts_a_line_of_fstab_as_a_unit_and_stops_it() {
    if !may_boot() {
        return;
    }
    let scene = scene();
    scene.fstab("STORE MNT annals ro,nofail,_netdev 0 0\n");
    let played = scene.play_under_systemd(
        r#"unit=$(systemd-escape --path --suffix=mount "$MNT")
           systemctl start "$unit"
           head -n 1 "$MNT/100/latest/drive-scsi0.raw"
           systemctl show --property=ActiveState --value "$unit"
           systemctl stop "$unit"
           if mountpoint -q "$MNT"; then echo 'still mounted'; exit 1; fi
           for _ in $(seq 100); do pidof annals >/dev/null || exit 0; sleep 0.1; done
           echo 'the process outlives its mount'; exit 1"#,
    );
    assert_eq!(played.code, 0, "{}{}", played.stdout, played.stderr);
    let expected = [std::str::from_utf8(DISK).unwrap().trim_end(), "active"];
    assert_eq!(played.stdout.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_store_that_is_none_gives_mount_8s_code_for_a_failed_mount_and_the_reason() {
    if !may_run() {
        return;
    }
    let played = scene().play(r#"mount -t annals "$STORE/none" "$MNT""#);
    assert_eq!(played.code, 32, "{}", played.stderr);
    assert!(played.stderr.contains("store/none"), "{}", played.stderr);
}

#[test]
fn the_helper_and_annals_take_the_same_options() {
    let store = tempfile::tempdir().unwrap();
    let refusal = |option: &str| {
        // A mount point that is not there: no option gets as far as a mount.
        let output = Command::new(ANNALS)
            .arg("--store")
            .arg(store.path())
            .args(["mount", "-o", option, "--"])
            .arg(store.path().join("nowhere"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.contains("there is no such option").then_some(said)
    };
    for name in helper::ANNALS {
        let with_value = match name {
            "cache_size" => "cache_size=64M",
            "gid" | "uid" => &format!("{name}=1000"),
            "log_file" => "log_file=/dev/null",
            "umask" => "umask=022",
            other => other,
        };
        assert_eq!(refusal(with_value), None, "the helper passes on what annals does not know");
    }
    // Which options there are, annals says itself where it refuses one.
    let said = refusal("frobnicate").expect("annals knows no option 'frobnicate'");
    let (_, list) = said.split_once("options are ").expect("it lists its options");
    let (list, _) = list.split_once(", and those").expect("the list ends");
    let names: BTreeSet<&str> = list
        .split([',', ' '])
        .map(|w| w.trim().trim_end_matches('='))
        .filter(|w| !w.is_empty() && *w != "and")
        .collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        assert!(helper::ANNALS.contains(&name), "the helper refuses '{name}', which annals takes");
    }
}
