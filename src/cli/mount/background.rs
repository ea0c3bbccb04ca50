//! The two ends of a start in the background: who starts and waits, and who is started and reports.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use super::Plan;
use crate::base::{Error, Result};
use crate::cli::log::{self, Target};

/// What the started process writes when its mount is there.
const READY: &[u8] = b"mounted\n";

/// Starts the process that serves `plan`, and returns when the mount answers. `Some` with its exit code where it ended
/// instead; it has then told why on standard error.
pub(super) fn start(plan: &Plan, words: &[String], verbose: u8) -> Result<Option<Option<u8>>> {
    let program = std::env::current_exe().map_err(|e| Error::io("cannot find this program's own file", e))?;
    let mut command = Command::new(program);
    command.arg("--store").arg(&plan.store);
    for _ in 0..verbose {
        command.arg("-v");
    }
    command.args(["mount", "--report-to-parent", "--cache-size", &plan.cache_size.to_string()]);
    for word in words {
        command.arg("-o").arg(word);
    }
    if let Some(path) = &plan.log_file {
        command.arg("--log-file").arg(path);
    }
    // Its standard output is the pipe on which it reports; errors go where this process's go.
    command.arg("--").arg(&plan.mountpoint).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|e| Error::io("cannot start the process that serves the mount", e))?;
    let mut said = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        // The pipe is closed when the mount is there, or when the process ends.
        let _ = pipe.take(64).read_to_end(&mut said);
    }
    if said == READY {
        // Waits for an answer of the event loops.
        return match plan.mountpoint.metadata() {
            Ok(_) => Ok(None),
            Err(e) => Err(Error::io(format!("'{}' was mounted, but does not answer", plan.mountpoint.display()), e)),
        };
    }
    let status = child.wait().map_err(|e| Error::io("cannot wait for the process that serves the mount", e))?;
    match status.code() {
        Some(code) => Ok(Some(u8::try_from(code).ok())),
        None => Err(Error::io(
            "cannot mount",
            io::Error::other(format!("the process that was to serve the mount ended: {status}")),
        )),
    }
}

/// Lets go of the terminal and of whoever waits: the mount is there.
///
/// Not before it is: systemd's automount recognises the mount's own processes by their process group, and would have a
/// process of another group wait for the very mount that it is about to make.
pub(super) fn settle(target: Option<Target>) -> Result<()> {
    let failed = |what: &str, e: rustix::io::Errno| Error::io(format!("cannot {what}"), e);
    rustix::process::setsid().map_err(|e| failed("start a session of its own", e))?;
    // The directory in which it was started must not be kept in use.
    rustix::process::chdir("/").map_err(|e| failed("go to /", e))?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|e| failed("open /dev/null", e))?;
    if let Some(target) = target {
        log::redirect(target);
    }
    let mut out = io::stdout();
    if let Err(e) = out.write_all(READY).and_then(|()| out.flush()) {
        // Whoever started it is gone; the mount is wanted all the same.
        tracing::info!("nobody waits to hear that the mount is there: {e}");
    }
    rustix::stdio::dup2_stdin(&null).map_err(|e| failed("let go of standard input", e))?;
    rustix::stdio::dup2_stdout(&null).map_err(|e| failed("let go of standard output", e))?;
    rustix::stdio::dup2_stderr(&null).map_err(|e| failed("let go of standard error", e))?;
    Ok(())
}
