//! Programs that do a part of the work: how they are found, started, and never left behind.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::base::{Error, ErrorKind, Result};
use crate::storage::{find_program, program_path};

/// A program, and the package of Debian and most others that it comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
}

/// Starts another program that ends when we do, however that is.
const KEEPER: Program = Program { name: "setpriv", package: "util-linux" };

impl Program {
    pub(super) fn is_there(self) -> bool {
        find_program(self.name).is_some()
    }

    fn find(self) -> Result<PathBuf> {
        let Self { name, package } = self;
        find_program(name).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("the program '{name}' is not found"))
                .with_hint(format!("install the package {package}, or add the program's directory to PATH"))
        })
    }

    /// The command to start it, in an environment of our choice: nothing that the caller's says changes what it does.
    ///
    /// When the thread that starts it ends, the program is killed.
    pub(super) fn command(self) -> Result<Command> {
        self.find()?;
        let mut command = Command::new(KEEPER.find()?);
        // By its name alone, which is what it calls itself in its messages; the keeper finds it on the same path.
        command.args(["--pdeathsig", "KILL", "--", self.name]);
        command.env_clear().env("PATH", program_path()).env("LC_ALL", "C").stdin(Stdio::null());
        Ok(command)
    }

    pub(super) fn start(self, command: &mut Command) -> Result<Running> {
        let started = command.spawn().map_err(|e| Error::io(format!("cannot start {}", self.name), e))?;
        Ok(Running { program: self, child: started })
    }
}

/// A program that runs; dropped, it is killed.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) program: Program,
    pub(super) child: Child,
}

impl Running {
    /// Waits for its end.
    pub(super) fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().map_err(|e| Error::io(format!("cannot wait for {}", self.program.name), e))
    }

    /// The end that was asked of it for, in its pipes: it was started with one.
    pub(super) fn pipe<T>(&self, pipe: Option<T>) -> Result<T> {
        pipe.ok_or_else(|| {
            Error::io(format!("no pipe to {}", self.program.name), io::Error::from(io::ErrorKind::Other))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already is neither killed nor waited for twice: the child remembers.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a program ended, in words.
pub(super) fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}
