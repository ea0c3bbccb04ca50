//! The program run as a child that is watched: how it ends, how long it takes, how much memory it has at most.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Whoever takes longer hangs.
const LIMIT: Duration = Duration::from_secs(50);

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
    /// The most memory that was resident, in MiB.
    pub(crate) memory: u64,
}

/// A run that goes on.
pub(crate) struct Watched {
    child: Child,
    began: Instant,
    stderr: Option<JoinHandle<String>>,
    memory: u64,
}

impl Watched {
    /// Starts the program on a store.
    pub(crate) fn start(store: &Path, args: &[&str]) -> Self {
        Self::start_with(store, args, |_| ())
    }

    /// The same, with more said about the child.
    pub(crate) fn start_with(store: &Path, args: &[&str], more: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_annals"));
        command.arg("--store").arg(store).args(args).env_remove("ANNALS_LOG").env_remove("ANNALS_STORE");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        more(&mut command);
        let mut child = command.spawn().expect("annals starts");
        // None where `more` has sent it elsewhere.
        let stderr = child.stderr.take().map(drain);
        Self { child, began: Instant::now(), stderr, memory: 0 }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).expect("a signal");
    }

    /// Waits until `there`, while the program runs.
    pub(crate) fn wait_for(&mut self, what: &str, there: impl Fn() -> bool) {
        while !there() {
            let ended = self.child.try_wait().expect("its state");
            assert!(ended.is_none(), "it ended before {what}: {ended:?} {}", self.said());
            assert!(self.began.elapsed() < LIMIT, "{what} does not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let status = loop {
            self.memory = self.memory.max(peak(self.child.id()));
            if let Some(status) = self.child.try_wait().expect("its state") {
                break status;
            }
            if self.began.elapsed() > LIMIT {
                let _ = self.child.kill();
                panic!("it hangs: {}", self.said());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = self.began.elapsed();
        let stderr = self.said();
        Ended { code: status.code(), stderr, took, memory: self.memory }
    }

    fn said(&mut self) -> String {
        self.stderr.take().map(|stderr| stderr.join().expect("its words")).unwrap_or_default()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Also where the test failed half-way; one that has ended is not there to be killed.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The most memory that a process has had, in MiB; nothing when it is gone.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() >> 10
}

fn drain(mut pipe: impl std::io::Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
