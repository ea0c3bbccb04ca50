//! The measuring itself: times, rates, medians.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::tools::run;

/// Empties the kernel's caches, so that what follows is read from the medium. Needs root.
pub(crate) fn drop_caches() {
    run("sync", &[] as &[&str]);
    std::fs::write("/proc/sys/vm/drop_caches", "3").expect("only root can empty the kernel's caches");
    // What was given up is freed a little later: with ten thousands of inodes, what is measured next would feel it.
    std::thread::sleep(Duration::from_millis(300));
}

/// Has the machine hold `bytes` of free memory.
///
/// Some hosts take the free memory of a virtual machine back after a few seconds, and give it again page by page when it
/// is used: on the machine of the page in docs/, 20 MiB in a new file are then written at 0.5 GB/s, else at 2 to 3.
/// Whoever came after a pause would pay for that.
pub(crate) fn hold_memory(bytes: u64) {
    // Ones, since a vector of zeros is not touched.
    drop(std::hint::black_box(vec![1_u8; usize::try_from(bytes).unwrap()]));
}

/// Whether it can.
pub(crate) fn can_drop_caches() -> bool {
    File::options().write(true).open("/proc/sys/vm/drop_caches").is_ok()
}

/// Reads a file from its beginning to its end, 1 MiB at a time, as dd does; returns MB/s.
pub(crate) fn sequential(path: &Path) -> f64 {
    let mut buffer = vec![0; 1 << 20];
    let started = Instant::now();
    let mut file = File::open(path).unwrap();
    let mut sum = 0;
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            n => sum += n,
        }
    }
    sum as f64 / 1e6 / started.elapsed().as_secs_f64()
}

/// A checksum of a file.
pub(crate) fn checksum(path: &Path) -> u32 {
    let mut buffer = vec![0; 1 << 20];
    let mut file = File::open(path).unwrap();
    let mut hash = crc32fast::Hasher::new();
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hash.finalize(),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Milliseconds until the first byte of a file is there.
pub(crate) fn first_byte(path: &Path) -> f64 {
    let started = Instant::now();
    File::open(path).unwrap().read_exact_at(&mut [0], 0).unwrap();
    milliseconds(started.elapsed())
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Random reads of 4 KiB by `jobs` processes; returns reads per second.
pub(crate) fn random(path: &Path, size: u64, jobs: u32, seconds: u64) -> f64 {
    let json = run(
        "fio",
        &[
            "--name=r".to_owned(),
            format!("--filename={}", path.display()),
            "--rw=randread".to_owned(),
            "--bs=4k".to_owned(),
            "--ioengine=psync".to_owned(),
            "--time_based".to_owned(),
            format!("--runtime={seconds}"),
            format!("--size={size}"),
            format!("--numjobs={jobs}"),
            "--group_reporting".to_owned(),
            "--readonly".to_owned(),
            "--invalidate=0".to_owned(),
            "--output-format=json".to_owned(),
        ],
    );
    // fio may print a warning before the document.
    let json = json.find('{').map_or("", |at| &json[at..]);
    let value: serde_json::Value = serde_json::from_str(json).expect("fio prints JSON");
    value["jobs"][0]["read"]["iops"].as_f64().expect("reads per second")
}

/// The middle one; of an even number the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The median of what each turn's pair gives.
pub(crate) fn median_ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    median(&ours.iter().zip(theirs).map(|(a, b)| a / b).collect::<Vec<_>>())
}
