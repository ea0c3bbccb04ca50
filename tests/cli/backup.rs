//! `backup vm` as a person or a script uses it.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::backups;
use crate::support::random::Random;
use crate::support::stores::TestStore;

/// A store, a raw disk beside it and the option that names that.
fn stage() -> (TestStore, tempfile::TempDir, String) {
    let (store, dir) = (TestStore::new(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("disk"), Random::new(1).bytes(1 << 20)).unwrap();
    let disk = format!("--disk=drive-scsi0={}", dir.path().join("disk").display());
    (store, dir, disk)
}

#[test]
fn a_backup_is_made_and_listed_and_its_events_are_lines_of_json() {
    let (store, dir, disk) = stage();
    fs::write(dir.path().join("conf"), "memory: 512\n").unwrap();
    let config = format!("--config={}", dir.path().join("conf").display());
    let ran =
        store.annals(&["backup", "vm", "100", &disk, &config, "--compress", "zstd:1", "--checkpoint", "cp0", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let events: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named = |name: &str| events.iter().find(|event| event["event"] == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(named("planned")["kind"], "full");
    assert_eq!(named("disk-done")["blake3"].as_str().unwrap().len(), 64);
    let published = named("published")["backup"].as_str().unwrap().to_owned();
    assert_eq!(backups(&store, "100"), [published.trim_start_matches("qemu-")]);
    assert_eq!(
        fs::read_to_string(store.path().join("100").join(&published).join("guest.conf")).unwrap(),
        "memory: 512\n"
    );

    fs::write(dir.path().join("rules"), "enable: 1\n").unwrap();
    fs::write(dir.path().join("vm.xml"), "<domain/>\n").unwrap();
    let firewall = format!("--firewall-config={}", dir.path().join("rules").display());
    let attached = format!("--attach=domain.xml={}", dir.path().join("vm.xml").display());
    let ran = store.annals(&["backup", "vm", "100", &disk, &firewall, &attached]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let latest = store.path().join("100").join(format!("qemu-{}", backups(&store, "100").pop().unwrap()));
    assert_eq!(fs::read_to_string(latest.join("firewall.conf")).unwrap(), "enable: 1\n");
    assert_eq!(fs::read_to_string(latest.join("domain.xml")).unwrap(), "<domain/>\n");
    assert!(ran.stdout.contains("drive-scsi0  full"), "{}", ran.stdout);
    assert!(ran.stderr.contains("because no bitmap was named"), "{}", ran.stderr);
}

#[test]
fn on_a_terminal_each_disk_has_a_bar_that_moves_to_its_end() {
    let (store, dir, disk) = stage();
    fs::write(dir.path().join("second"), Random::new(2).bytes(1 << 20)).unwrap();
    let program = env!("CARGO_BIN_EXE_annals");
    let line = format!(
        "stty cols 100; {program} --store {} backup vm 100 {disk} --disk drive-b={} --bwlimit 3M",
        store.path().display(),
        dir.path().join("second").display()
    );
    let on_a_terminal = |term: &str| {
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("TERM", term).stdin(Stdio::null());
        let output = script.output().expect("script starts");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{shown}");
        shown
    };
    let shown = on_a_terminal("xterm");
    for disk in ["drive-scsi0", "drive-b"] {
        let bars: Vec<&str> =
            shown.split('\r').filter(|line| line.contains(disk) && line.contains(" MiB / ")).collect();
        assert!(bars.len() > 1, "{disk} has no bar that moves: {shown:?}");
        assert!(bars.iter().any(|bar| bar.contains("1.00 MiB / 1.00 MiB")), "{disk} does not reach its end: {shown:?}");
    }
    // Lines come above the bars and the result below them, each on a line of its own.
    assert!(shown.contains("published 100/qemu-"), "{shown:?}");
    assert!(shown.lines().any(|line| line.starts_with("100/qemu-")), "{shown:?}");

    let shown = on_a_terminal("dumb");
    assert!(shown.contains("published 100/qemu-") && !shown.contains(" MiB / "), "{shown:?}");
}

#[test]
fn a_dry_run_prints_the_plan_and_the_reason_and_makes_nothing() {
    let (store, _dir, disk) = stage();
    let ran = store.annals(&["backup", "vm", "100", &disk, "--dry-run"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("full") && ran.stdout.contains("no bitmap was named"), "{}", ran.stdout);
    let plan = store.annals(&["backup", "vm", "100", &disk, "--dry-run", "--json"]).json();
    assert_eq!(plan["disks"][0]["read"], 1 << 20);
    assert!(!store.path().join("100").exists());
}

#[test]
fn wrong_words_end_with_2_and_a_source_that_is_not_there_with_1_and_neither_leaves_anything() {
    let (store, _dir, disk) = stage();
    for args in [
        vec!["backup", "vm", "100"],
        vec!["backup", "vm", "100", "--disk", "nothing"],
        vec!["backup", "vm", "100", "--disk", "a=nbd://h/x,foo=1"],
        vec!["backup", "vm", "100", &disk, "--compress", "gzip"],
        vec!["backup", "vm", "100", &disk, "--bwlimit", "fast"],
        vec!["backup", "vm", "100", &disk, "--attach", "backup.json=/etc/hostname"],
        vec!["backup", "vm", "100", &disk, "--attach", "other.tar=/etc/hostname"],
        vec!["backup", "vm", "100", &disk, "--discard-source"],
        vec!["backup", "vm", "100", &disk, &disk],
    ] {
        assert_eq!(store.annals(&args).code, Some(2), "{args:?}");
    }
    for source in ["/nonexistent", "nbd+unix:///x?socket=/nonexistent/nbd.sock"] {
        let ran = store.annals(&["backup", "vm", "100", "--disk", &format!("d={source}")]);
        assert_eq!(ran.code, Some(1), "{source}: {}", ran.stderr);
        assert!(ran.stderr.contains("disk d"), "{}", ran.stderr);
    }
    assert!(!store.path().join("100").exists());
}

#[test]
fn a_guests_id_that_leads_elsewhere_is_refused_by_its_name() {
    let (store, dir, disk) = stage();
    let beside = crate::names(dir.path());
    for id in ["../x", "..", "a/b", "/tmp/x", ".hidden", ""] {
        let ran = store.annals(&["backup", "vm", id, &disk]);
        assert_eq!(ran.code, Some(1), "{id:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(&format!("'{id}' is not a guest's id")), "{id:?}: {}", ran.stderr);
    }
    assert!(crate::names(store.path()).is_empty() && crate::names(dir.path()) == beside);
}

#[test]
fn a_signal_ends_a_run_in_order_with_its_log_and_nothing_else_left() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        ends_in_order_at(signal);
    }
}

fn ends_in_order_at(signal: Signal) {
    let (store, _dir, disk) = stage();
    assert_eq!(store.annals(&["backup", "vm", "100", &disk]).code, Some(0));
    let had = backups(&store, "100");
    // Whoever runs the tests may have it ignored.
    let child = Command::new("env")
        .args(["--default-signal=HUP", env!("CARGO_BIN_EXE_annals")])
        .args(["backup", "vm", "100", &disk, "--bwlimit", "64K"])
        .env("ANNALS_STORE", store.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let guest = store.path().join("100");
    let names = || -> Vec<String> {
        fs::read_dir(&guest).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    while !names().iter().any(|name| name.starts_with(".partial-")) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, signal).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{signal:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
    assert_eq!(backups(&store, "100"), had);
    assert!(!names().iter().any(|name| name.starts_with(".partial-")), "{:?}", names());
    let failed = names().into_iter().find(|name| name.ends_with(".failed")).unwrap();
    assert!(fs::read_to_string(guest.join(failed).join("backup.log")).unwrap().contains("interrupted"));
}

#[test]
fn a_run_that_is_to_outlive_its_terminal_does() {
    let (store, _dir, disk) = stage();
    let mut child = Command::new("env")
        .args(["--ignore-signal=HUP", env!("CARGO_BIN_EXE_annals")])
        .args(["backup", "vm", "100", &disk, "--bwlimit", "512K"])
        .env("ANNALS_STORE", store.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    // Until it has begun, it may not have been told to ignore anything.
    while !store.path().join("100").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let ended = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => rustix::process::kill_process(pid, Signal::HUP).unwrap(),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(ended.code(), Some(0));
    assert_eq!(backups(&store, "100").len(), 1);
}

#[test]
fn a_backup_whose_result_cannot_be_printed_is_told_from_one_that_was_not_made() {
    let (store, _dir, disk) = stage();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_annals"))
        .args(["backup", "vm", "100", &disk])
        .env("ANNALS_STORE", store.path())
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(backups(&store, "100").len(), 1);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("cannot write to standard output"), "{stderr}");
}

#[test]
fn a_signal_ends_a_run_that_waits_for_a_file_to_keep() {
    let (store, dir, disk) = stage();
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_annals"))
        .args(["backup", "vm", "100", &disk, "--config", pipe.to_str().unwrap()])
        .env("ANNALS_STORE", store.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It has opened the pipe once somebody who does not wait for a reader can, and reads without end from then on.
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let _writer = loop {
        match rustix::fs::open(&pipe, flags, rustix::fs::Mode::empty()) {
            Ok(writer) => break writer,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    let began = std::time::Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if began.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.expect("it waits for ever").code(), Some(1));
    assert!(!store.path().join("100").exists());
}
