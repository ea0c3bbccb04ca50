//! Tests of hostile input run in a process of their own: one that hangs is killed, one that aborts fails alone, and what
//! it takes of memory can be measured.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a test may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) time: Duration,
    /// Growth of the resident memory between the start and the peak, in MiB.
    pub(crate) memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(60), memory: 64 }
    }
}

const INSIDE: &str = "ANNALS_TEST_ISOLATED";
const MARK: &str = "isolated test: memory grew by KiB ";

/// A test whose body runs in a process of its own, within [`Limits`] (default: a minute and 64 MiB).
macro_rules! isolated_test {
    (fn $name:ident() $body:block) => {
        isolated_test!($crate::support::isolated::Limits::default(); fn $name() $body);
    };
    ($limits:expr; fn $name:ident() $body:block) => {
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            $crate::support::isolated::run(path, $limits, || $body);
        }
    };
}
pub(crate) use isolated_test;

/// Runs `body` in a new process of this test binary, in which `path` is the only test.
pub(crate) fn run(path: &str, limits: Limits, body: impl FnOnce()) {
    // The harness names tests without the crate.
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        let before = status_kib("VmRSS:");
        body();
        println!("{MARK}{}", status_kib("VmHWM:").saturating_sub(before));
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, name)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = drain(child.stdout.take().unwrap());
    let err = drain(child.stderr.take().unwrap());
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > limits.time {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("hung for {:?}\n{}{}", limits.time, out.join().unwrap(), err.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (out, err) = (out.join().unwrap(), err.join().unwrap());
    assert!(status.success(), "{status}\n{out}{err}");
    let grown = out.lines().find_map(|line| line.split_once(MARK)).map(|(_, kib)| kib.parse::<u64>().unwrap());
    let grown = grown.unwrap_or_else(|| panic!("the test did not run to its end\n{out}{err}"));
    assert!(grown <= limits.memory * 1024, "memory grew by {grown} KiB, more than {} MiB", limits.memory);
    // What a test skipped, it says on its standard error.
    eprint!("{}", err.lines().filter(|l| l.contains("SKIPPED")).map(|l| format!("{l}\n")).collect::<String>());
}

fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
