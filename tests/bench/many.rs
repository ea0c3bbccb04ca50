//! A store of many guests with many backups each: what it costs to mount it and to look around.

use std::path::Path;
use std::time::Instant;

use crate::Scale;
use crate::chain::name_of;
use crate::measure::{can_drop_caches, drop_caches, median, milliseconds};
use crate::report::{Report, Row};
use crate::sides::annals;
use crate::support::tools::{self, command};

/// A file has at most 65,000 names on ext4.
const NAMES: usize = 60_000;

fn timed(program: &str, args: &[&str]) -> (f64, String) {
    let started = Instant::now();
    let out = tools::run(program, args);
    (milliseconds(started.elapsed()), out)
}

/// Each backup has its directory and one small disk; the image is the same everywhere, under another name each time.
fn make(store: &Path, scale: Scale) {
    eprintln!("making a store of {} guests with {} backups each", scale.guests, scale.backups);
    std::fs::create_dir_all(store).unwrap();
    let template = store.join("template");
    tools::run("qemu-img", &["create", "-q", "-f", "qcow2", template.to_str().unwrap(), "1M"]);
    let mut links = 0;
    for guest in 0..scale.guests {
        let guest = store.join(format!("{}", 100 + guest));
        std::fs::create_dir(&guest).unwrap();
        for backup in 1..=scale.backups {
            let backup = guest.join(format!("qemu-{}", name_of(backup)));
            std::fs::create_dir(&backup).unwrap();
            if links == NAMES {
                let next = store.join("next");
                std::fs::copy(&template, &next).unwrap();
                std::fs::rename(&next, &template).unwrap();
                links = 0;
            }
            std::fs::hard_link(&template, backup.join("drive-scsi0.qcow2")).unwrap();
            links += 1;
        }
    }
    std::fs::remove_file(template).unwrap();
}

fn visit(work: &Path, scale: Scale) -> [Vec<f64>; 5] {
    let store = work.join("many");
    let mountpoint = work.join("many-mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    let (store, at) = (store.to_str().unwrap(), mountpoint.to_str().unwrap());
    let middle = format!("{at}/{}", 100 + scale.guests / 2);
    let [mut mounts, mut ls_first, mut ls_again, mut find_first, mut find_again] = [const { Vec::new() }; 5];
    for _ in 0..scale.turns.min(3) {
        if can_drop_caches() {
            drop_caches();
        }
        let (time, _) = timed(annals(), &["--store", store, "mount", at]);
        mounts.push(time);
        let (time, listed) = timed("ls", &[&middle]);
        ls_first.push(time);
        assert_eq!(listed.lines().count(), scale.backups + 1, "the backups and latest");
        ls_again.push(timed("ls", &[&middle]).0);
        let (time, found) = timed("find", &[at, "-maxdepth", "2"]);
        find_first.push(time);
        let backups = found.lines().filter(|line| line.ends_with('Z')).count();
        assert_eq!(backups, scale.guests * scale.backups, "every backup is found");
        find_again.push(timed("find", &[at, "-maxdepth", "2"]).0);
        let status = command(annals()).args(["umount", at]).status().unwrap();
        assert!(status.success(), "umount failed");
    }
    [mounts, ls_first, ls_again, find_first, find_again]
}

fn tell(scale: Scale, times: &[Vec<f64>; 5], report: &mut Report) {
    let [mounts, ls_first, ls_again, find_first, find_again] = times.each_ref().map(|t| median(t));
    let store = format!("{} guests × {} backups", scale.guests, scale.backups);
    let after = if can_drop_caches() { "cold" } else { "caches as they were" };
    let row = |figure: String, limit: f64, time: f64, again: Option<f64>| {
        let unit = |ms: f64| if limit >= 1000.0 { format!("{:.2} s", ms / 1e3) } else { format!("{ms:.1} ms") };
        let again = again.map_or(String::new(), |again| format!(" (again: {})", unit(again)));
        let target = if limit >= 1000.0 { format!("< {} s", limit / 1e3) } else { format!("< {limit} ms") };
        Row::new(&figure, &target, &format!("{}{again}", unit(time)), time < limit)
    };
    report.row(row(format!("mounting {store}, {after}"), 100.0, mounts, None));
    report.row(row(format!("`ls` of one guest, {after}"), 50.0, ls_first, Some(ls_again)));
    report.row(row(format!("`find MNT -maxdepth 2`, {after}"), 5000.0, find_first, Some(find_again)));
}

pub(crate) fn run(work: &Path, scale: Scale, report: &mut Report) {
    report.section("A store of many backups", "Each backup has one small disk.");
    make(&work.join("many"), scale);
    let times = visit(work, scale);
    tell(scale, &times, report);
}
