//! `mount.annals`: the program that mount(8) runs for `mount -t annals` and for lines of fstab.
//!
//! It sorts the options that are mount(8)'s own from those of the mount, finds `annals`, and runs
//! `annals --store=STORE mount -o … -- MNT` in an environment of its own: whoever calls mount(8), which is often
//! root on behalf of somebody else, decides by arguments alone. It links neither the library nor any crate.

mod args;
mod known;
mod options;
mod program;

use std::ffi::OsString;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use args::{Request, Words};
use options::Sorted;

/// The exit codes that mount(8) documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Success = 0,
    /// Wrong words: usage, options.
    Usage = 1,
    /// Something of the system is missing: no `annals`, no process could be started.
    System = 2,
    Interrupted = 8,
    /// The mount itself failed; `annals` has said why.
    Mount = 32,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// All that the mounted process gets to see of an environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Enters the mount namespace that `-N` names; of util-linux, like mount(8) itself.
const NSENTER: &str = "/usr/bin/nsenter";

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args::parse(words) {
        Ok(Words::Help) => {
            println!("{}", args::USAGE);
            Exit::Success.into()
        }
        Ok(Words::Version) => {
            println!("mount.annals {}", env!("CARGO_PKG_VERSION"));
            Exit::Success.into()
        }
        Ok(Words::Mount(request)) => mount(&request).into(),
        Err(problem) => {
            complain(&format!("{problem}\n{}", args::USAGE));
            Exit::Usage.into()
        }
    }
}

fn complain(what: &str) {
    eprintln!("mount.annals: {what}");
}

fn mount(request: &Request) -> Exit {
    let sorted = match options::sort(&request.options) {
        Ok(sorted) => sorted,
        Err(refused) => {
            complain(&refused);
            return Exit::Usage;
        }
    };
    if !sorted.unknown.is_empty() {
        let named = sorted.unknown_named();
        if !request.sloppy {
            complain(&format!("unknown option {named}; mount.annals(8) lists what there is"));
            return Exit::Usage;
        }
        complain(&format!("unknown option {named} left out, as -s asks"));
    }
    let Some(program) = program::find() else {
        complain(&format!("cannot find the program annals in {}", program::places()));
        return Exit::System;
    };
    let mut command = command(request, &sorted, program.as_os_str());
    if request.verbose {
        complain(&format!("runs {}", shown(&command)));
    }
    if request.fake {
        return check(request);
    }
    match command.status() {
        Ok(status) => exit_of(status),
        Err(e) => {
            complain(&format!("cannot run {}: {e}", command.get_program().display()));
            Exit::System
        }
    }
}

fn command(request: &Request, sorted: &Sorted, program: &std::ffi::OsStr) -> Command {
    let mut command = match &request.namespace {
        None => Command::new(program),
        Some(namespace) => {
            let mut enter = OsString::from("--mount=");
            enter.push(namespace);
            let mut command = Command::new(NSENTER);
            command.arg(enter).arg("--").arg(program);
            command
        }
    };
    let mut store = OsString::from("--store=");
    store.push(&request.store);
    command.arg(store).arg("mount");
    if let Some(options) = sorted.joined() {
        command.arg("-o").arg(options);
    }
    // Neither path can be taken for an option, whatever it begins with.
    command.arg("--").arg(&request.target);
    command.env_clear().env("PATH", PATH).stdin(Stdio::null());
    command
}

/// What `-f` can say without mounting: whether both directories are there.
fn check(request: &Request) -> Exit {
    for (what, path) in [("store", &request.store), ("mount point", &request.target)] {
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                complain(&format!("the {what} {} is not a directory", path.display()));
                return Exit::Mount;
            }
            Err(e) => {
                complain(&format!("the {what} {} cannot be used: {e}", path.display()));
                return Exit::Mount;
            }
        }
    }
    Exit::Success
}

/// `annals` ends with 0 done, 1 failed, 2 usage, 3 mounted although something in the store is broken.
fn exit_of(status: ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    /// SIGINT and SIGTERM, by the numbers that all of Linux's architectures give them.
    const INTERRUPTS: [i32; 2] = [2, 15];
    match (status.code(), status.signal()) {
        (Some(0 | 3), _) => Exit::Success,
        (Some(2), _) => Exit::Usage,
        (None, Some(signal)) if INTERRUPTS.contains(&signal) => {
            complain("interrupted");
            Exit::Interrupted
        }
        (None, Some(signal)) => {
            complain(&format!("annals was ended by signal {signal}"));
            Exit::Mount
        }
        _ => Exit::Mount,
    }
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.display().to_string()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn exit_codes_are_those_of_mount_8() {
        for (status, exit) in
            [(0, Exit::Success), (3 << 8, Exit::Success), (1 << 8, Exit::Mount), (2 << 8, Exit::Usage)]
        {
            assert_eq!(exit_of(ExitStatus::from_raw(status)), exit, "{status:#x}");
        }
        assert_eq!(exit_of(ExitStatus::from_raw(2)), Exit::Interrupted);
        assert_eq!(exit_of(ExitStatus::from_raw(15)), Exit::Interrupted);
        assert_eq!(exit_of(ExitStatus::from_raw(11)), Exit::Mount);
    }

    #[test]
    fn paths_that_look_like_options_stay_paths_and_the_namespace_is_entered_first() {
        let words = ["-rf", "-x"].map(OsString::from);
        let request = Request {
            store: words[0].clone(),
            target: words[1].clone(),
            namespace: Some("/proc/1/ns/mnt".into()),
            ..Request::default()
        };
        let sorted = Sorted { passed: vec!["ro".into(), "allow_other".into()], unknown: Vec::new() };
        let command = command(&request, &sorted, "/usr/bin/annals".as_ref());
        assert_eq!(
            shown(&command),
            "/usr/bin/nsenter --mount=/proc/1/ns/mnt -- /usr/bin/annals --store=-rf mount -o ro,allow_other -- -x"
        );
    }
}
