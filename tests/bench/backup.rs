//! Pulling backups: full, compressed, incremental, and over a link with some delay.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::Scale;
use crate::chain::{CLUSTER, base};
use crate::fleece::Fleece;
use crate::measure::{hold_memory, median, median_ratio, milliseconds};
use crate::nbd_servers::Server;
use crate::report::{Report, Row};
use crate::sides::annals;
use crate::support::random::Random;
use crate::support::tools::{command, run as run_tool};

/// More than any of them needs, with the pages of the file that it writes.
const HELD: u64 = 2 << 30;

/// What one command took.
struct Taken {
    /// Milliseconds until it ended.
    ended: f64,
    /// Milliseconds until what it wrote was on the medium.
    durable: f64,
}

pub(crate) fn run(work: &Path, scale: Scale, report: &mut Report) {
    report.section(
        "Making a backup",
        &format!(
            "A disk of {} MiB, half of it random bytes, in the page cache, from `qemu-nbd` over a unix socket into files on the disk. A backup\n\
             is worth something when it is on the medium, and annals ends only then; the others leave their file in the page cache, so\n\
             theirs is counted until an fsync of it has returned, and beside it what they took without. Before each of them {} MiB of\n\
             memory are touched and freed, so that no host of a virtual machine has to give them first.",
            scale.disk >> 20,
            HELD >> 20
        ),
    );
    let mut random = Random::new(7);
    let disk = work.join("disk.raw");
    base(&disk, scale.disk, &mut random);
    let mut peaks = Vec::new();
    full(&disk, work, scale, &mut peaks, report);
    incremental(&disk, work, scale, &mut random, &mut peaks, report);
    delayed(work, scale, &mut random, &mut peaks, report);
    huge(work, &mut peaks);
    let peak = peaks.iter().copied().fold(0.0, f64::max) / 1024.0;
    let measured = format!("{peak:.0} MiB at most, of all runs on this page; a disk of 4 TiB among them");
    report.row(Row::new("resident memory", "< 256 MiB", &measured, peak < 256.0));
}

/// Runs a peer until its `output` is on the medium.
fn peer(program: &str, args: &[&str], output: &Path) -> Taken {
    settle(output);
    hold_memory(HELD);
    let started = Instant::now();
    run_tool(program, args);
    let ended = milliseconds(started.elapsed());
    File::open(output).unwrap().sync_all().unwrap();
    Taken { ended, durable: milliseconds(started.elapsed()) }
}

/// Removes what an earlier turn wrote, and gives the file system the time to be done with it.
fn settle(output: &Path) {
    if output.is_dir() {
        std::fs::remove_dir_all(output).unwrap();
    } else if output.exists() {
        std::fs::remove_file(output).unwrap();
    }
    run_tool("sync", &[] as &[&str]);
    // Discards of the blocks that became free go on for a while.
    std::thread::sleep(Duration::from_millis(700));
}

/// A backup that annals makes; keeps the most it had in memory (KiB), and returns milliseconds and its last events.
fn backup(store: &Path, disk: &str, more: &[&str], peaks: &mut Vec<f64>) -> (f64, String) {
    std::fs::create_dir_all(store).unwrap();
    let out = store.with_extension("events");
    hold_memory(HELD);
    let started = Instant::now();
    let mut child = command(annals())
        .arg("--store")
        .arg(store)
        .args(["backup", "vm", "100", "--json", "--disk", disk])
        .args(more)
        .stdout(File::create(&out).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0_f64;
    let ended = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        if let Some(kib) = text.lines().find_map(|line| line.strip_prefix("VmHWM:")) {
            peak = peak.max(kib.trim().trim_end_matches(" kB").parse().unwrap());
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let time = milliseconds(started.elapsed());
    let events = std::fs::read_to_string(out).unwrap();
    assert!(ended.success(), "annals backup failed: {events}");
    peaks.push(peak);
    (time, events)
}

fn full(disk: &Path, work: &Path, scale: Scale, peaks: &mut Vec<f64>, report: &mut Report) {
    let mut server = Server::new();
    server.qemu_nbd("raw", disk, &[]);
    let uri = server.uri("");
    let source = format!("d={uri}");
    let (store, image, raw) = (work.join("store"), work.join("out.qcow2"), work.join("out.raw"));
    let (image_name, raw_name) = (image.to_str().unwrap(), raw.to_str().unwrap());
    // The page cache has it from the first turn on, for all alike.
    std::io::copy(&mut File::open(disk).unwrap(), &mut std::io::sink()).unwrap();
    let mut times: [Vec<f64>; 5] = Default::default();
    let mut ends: [Vec<f64>; 5] = Default::default();
    for turn in 0..scale.turns {
        for index in 0..5 {
            let side = (index + turn) % 5;
            eprintln!("turn {}, full backup, side {side}", turn + 1);
            let taken = match side {
                0 | 3 => {
                    settle(&store);
                    let more: &[&str] = if side == 0 { &[] } else { &["--compress", "zstd"] };
                    let (time, _) = backup(&store, &source, more, peaks);
                    Taken { ended: time, durable: time }
                }
                1 => peer("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, image_name], &image),
                2 => peer("nbdcopy", &[&uri, raw_name], &raw),
                _ => {
                    let zstd = ["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"];
                    peer("qemu-img", &[&zstd[..], &[&uri, image_name]].concat(), &image)
                }
            };
            times[side].push(taken.durable);
            ends[side].push(taken.ended);
        }
    }
    for leftover in [&store, &image, &raw] {
        settle(leftover);
    }
    let mut row = |figure: &str, target: f64, ours: usize, theirs: usize, name: &str| {
        let ratio = median_ratio(&times[theirs], &times[ours]);
        let unsynced = median_ratio(&ends[theirs], &times[ours]);
        let (ours, durable) = (median(&times[ours]), median(&times[theirs]));
        let measured = format!(
            "{ratio:.2} × ({ours:.0} ms, {durable:.0} with fsync); {unsynced:.2} × against {:.0} ms without",
            median(&ends[theirs])
        );
        report.row(Row::new(figure, &format!("≥ {target} × {name}"), &measured, ratio >= target));
    };
    row("full, uncompressed, hashes included", 1.0, 0, 1, "`qemu-img convert` to qcow2");
    row("full, uncompressed, hashes included", 0.9, 0, 2, "`nbdcopy` to raw");
    row("full, zstd, hashes included", 1.5, 3, 4, "`qemu-img convert -c` with zstd");
}

/// A field of the one event of that kind.
fn field(events: &str, event: &str, key: &str) -> u64 {
    let values = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("events are JSON"));
    let found = values.into_iter().find(|value| value["event"] == event).expect("the event was told");
    found[key].as_u64().expect("a number")
}

fn incremental(disk: &Path, work: &Path, scale: Scale, random: &mut Random, peaks: &mut Vec<f64>, report: &mut Report) {
    let store = work.join("history");
    let mut fleece = Fleece::start(&[("d", scale.disk)], CLUSTER);
    let guest = fleece.daemon().server.uri("guest-d");
    run_tool("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", disk.to_str().unwrap(), &guest]);
    let clusters = scale.disk / CLUSTER;
    let (mut fulls, mut increments) = (Vec::new(), Vec::new());
    let mut exact = true;
    for turn in 0..scale.turns {
        eprintln!("turn {}, incremental backup", turn + 1);
        settle(&store);
        let (first, second) = (format!("a{turn}"), format!("b{turn}"));
        fleece.begin(&first, None, &[]);
        let (time, _) = backup(&store, &format!("d={}", fleece.uri("d")), &["--checkpoint", &first], peaks);
        fulls.push(time);
        fleece.end();
        let dirty: BTreeSet<u64> = (0..clusters / 100).map(|_| random.below(clusters)).collect();
        let writes: Vec<String> = dirty.iter().map(|at| format!("write -q -P 7 {} 4096", at * CLUSTER)).collect();
        for some in writes.chunks(100) {
            fleece.guest("d", some);
        }
        fleece.begin(&second, Some(&first), &[]);
        // The next second: names of backups have no smaller parts.
        std::thread::sleep(Duration::from_millis(1100));
        let source = format!("d={},bitmap=backup-d,since={first}", fleece.uri("d"));
        let (time, events) = backup(&store, &source, &["--checkpoint", &second], peaks);
        increments.push(time);
        fleece.end();
        exact &= field(&events, "planned", "read") == dirty.len() as u64 * CLUSTER;
    }
    settle(&store);
    let ratio = median_ratio(&increments, &fulls);
    let measured = format!("{:.1} % ({:.0} ms of {:.0} ms)", ratio * 100.0, median(&increments), median(&fulls));
    report.row(Row::new("incremental, 1 % dirty", "< 10 % of the full's time", &measured, ratio < 0.1));
    let measured = if exact { "exactly those" } else { "others" };
    report.row(Row::new("bytes read for it", "the dirty ones, widened to clusters", measured, exact));
}

fn delayed(work: &Path, scale: Scale, random: &mut Random, peaks: &mut Vec<f64>, report: &mut Report) {
    let size = scale.disk / 8;
    let (disk, store, raw, image) =
        (work.join("small.raw"), work.join("far"), work.join("far.raw"), work.join("far.qcow2"));
    std::fs::write(&disk, random.bytes(size as usize)).unwrap();
    let mut server = Server::new();
    let file = format!("file={}", disk.display());
    server.nbdkit(&["--filter=delay", "file", &file, "delay-read=10ms", "delay-extents=10ms"]);
    let uri = server.uri("");
    let [mut ours, mut one, mut large] = [const { Vec::new() }; 3];
    for turn in 0..scale.turns.min(3) {
        eprintln!("turn {}, over a link with a delay", turn + 1);
        settle(&store);
        ours.push(backup(&store, &format!("d={uri}"), &[], peaks).0);
        let alone = ["--connections=1", "--requests=1", "--threads=1", &uri, raw.to_str().unwrap()];
        one.push(peer("nbdcopy", &alone, &raw).durable);
        let alone = ["convert", "-m", "1", "-f", "raw", "-O", "qcow2", &uri, image.to_str().unwrap()];
        large.push(peer("qemu-img", &alone, &image).durable);
    }
    for leftover in [&store, &raw, &image] {
        settle(leftover);
    }
    let ratio = median_ratio(&one, &ours);
    let measured = format!(
        "{ratio:.1} × ({:.0} ms, {:.0} by `nbdcopy` with 256 KiB a request; {:.0} by `qemu-img` with 2 MiB)",
        median(&ours),
        median(&one),
        median(&large)
    );
    let figure = format!("{} MiB over a link with 10 ms delay", size >> 20);
    report.row(Row::new(&figure, "≥ 5 × one request in flight", &measured, ratio >= 5.0));
}

/// A disk of 4 TiB with some data all over it, for what is needed in memory alone.
fn huge(work: &Path, peaks: &mut Vec<f64>) {
    eprintln!("a disk of 4 TiB");
    let store: PathBuf = work.join("huge");
    let mut server = Server::new();
    server.nbdkit(&["sparse-random", "size=4T", "percent=0.01", "runlength=262144"]);
    backup(&store, &format!("d={}", server.uri("")), &[], peaks);
    settle(&store);
}
