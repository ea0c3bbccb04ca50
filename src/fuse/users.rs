//! Who has to do with a mount: the process that serves it, and those that keep it in use.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::table;
use crate::fs::STATUS_PATH;

/// How long a mount may take to say which process serves it. One that hangs must not make its unmounting hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// The process that serves the mount at `point`, where it says so.
#[must_use]
pub fn daemon_of(point: &Path) -> Option<u32> {
    let path = point.join(STATUS_PATH);
    let (send, receive) = std::sync::mpsc::channel();
    let ask = move || {
        // Nobody listens any more once the patience is at its end.
        let _ = send.send(std::fs::read(path));
    };
    std::thread::Builder::new().name("status".to_owned()).spawn(ask).ok()?;
    let status: serde_json::Value = serde_json::from_slice(&receive.recv_timeout(PATIENCE).ok()?.ok()?).ok()?;
    let pid = u32::try_from(status.get("pid")?.as_u64()?).ok()?;
    serves(pid).then_some(pid)
}

/// Waits until the process `pid` serves no mount any more; `false` where that takes longer than `limit`.
#[must_use]
pub fn wait_for_end(pid: u32, limit: Duration) -> bool {
    let start = Instant::now();
    while serves(pid) {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Whether the process has the FUSE device open. One that has ended has not, even where nobody collects its exit code.
fn serves(pid: u32) -> bool {
    links(&format!("/proc/{pid}/fd")).iter().any(|target| target == Path::new("/dev/fuse"))
}

/// Whatever keeps the mount at `point` in use, as far as this user may know: processes, loop devices, other mounts.
#[must_use]
pub fn users_of(point: &Path) -> Vec<String> {
    const MOST: usize = 10;
    let mut users = Vec::new();
    for mount in table::mounts().unwrap_or_default() {
        if mount.point != point && mount.point.starts_with(point) {
            users.push(format!("a mount on '{}'", mount.point.display()));
        }
    }
    for (name, device) in subdirectories("/sys/block") {
        let file = std::fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
        if Path::new(file.trim_end()).starts_with(point) {
            users.push(format!("the loop device /dev/{name}"));
        }
    }
    for (name, process) in subdirectories("/proc") {
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let mut used = links(&process.join("fd").to_string_lossy());
        used.extend(["cwd", "root", "exe"].iter().filter_map(|link| std::fs::read_link(process.join(link)).ok()));
        if let Some(path) = used.iter().find(|path| path.starts_with(point)) {
            let command = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            users.push(format!("process {name} ({}) with '{}'", command.trim_end(), path.display()));
        }
    }
    users.truncate(MOST);
    users
}

/// Where the links in a directory lead. They are text of the kernel's; following them would ask the mount.
fn links(dir: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

fn subdirectories(dir: &str) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
}
