//! Programs that tests measure us against.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether all of these programs are there.
///
/// Where one is missing it says so aloud, for the test to end; in CI, where all have to be, it fails the test.
pub(crate) fn have(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| !exists(program)).collect();
    super::needs::needs(missing.is_empty(), &format!("{missing:?}, which this machine does not have"))
}

/// Whether this program is there.
pub(crate) fn exists(program: &str) -> bool {
    search_path().split(':').any(|dir| Path::new(dir).join(program).is_file())
}

/// The caller's path and the directories of administrators' programs, which a user's path may lack.
fn search_path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A command of a program, in English and found where [`have`] found it.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).env("LC_ALL", "C.UTF-8").env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// A command as another user, without any group.
pub(crate) fn as_user(uid: u32) -> Command {
    let mut command = command("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned(), "--".to_owned()]);
    command
}

/// Runs a program that has to succeed; returns what it printed.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    feed(program, args, "")
}

/// Runs a program that has to succeed, with `input` on its standard input; returns what it printed.
pub(crate) fn feed<S: AsRef<OsStr>>(program: &str, args: &[S], input: &str) -> String {
    let mut child = command(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("its output");
    // A program that fails may not read its input to the end; its own words tell more than the broken pipe.
    let _ = writer.join();
    let args: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
    assert!(
        output.status.success(),
        "{program} {} failed: {}{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
