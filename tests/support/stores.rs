//! Stores made by qemu-img, and the program run on them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::tools;

/// What a run of the program came to.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Standard output as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in {:?}; {}", self.stdout, self.stderr))
    }
}

/// A directory that becomes a store, gone after the test.
pub(crate) struct TestStore(tempfile::TempDir);

impl TestStore {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where `file` is, with the directories above it made.
    pub(crate) fn place(&self, file: &str) -> PathBuf {
        let path = self.path().join(file);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        path
    }

    /// A file of these bytes.
    pub(crate) fn write(&self, file: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.place(file), bytes).expect("a file");
    }

    /// A qcow2 image of `size` (as qemu-img takes it) on nothing.
    pub(crate) fn base(&self, file: &str, size: &str) {
        tools::run("qemu-img", &["create", "-q", "-f", "qcow2", &self.text(file), size]);
    }

    /// A qcow2 image on `backing`, of the format `format`, which has to be there.
    pub(crate) fn overlay(&self, file: &str, backing: &str, format: &str) {
        tools::run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", backing, "-F", format, &self.text(file)]);
    }

    /// A qcow2 image on `backing`, which nobody looks for.
    pub(crate) fn dangling(&self, file: &str, backing: &str, format: &str) {
        let args = ["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, &self.text(file), "1M"];
        tools::run("qemu-img", &args);
    }

    /// Fills `len` bytes at `at` of a qcow2 image with `byte`.
    pub(crate) fn fill(&self, file: &str, byte: u8, at: &str, len: &str) {
        tools::run("qemu-io", &["-f", "qcow2", "-c", &format!("write -q -P {byte} {at} {len}"), &self.text(file)]);
    }

    /// Sets when a file was last written, in seconds since the epoch.
    pub(crate) fn date(&self, file: &str, epoch: u64) {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(epoch);
        let file = std::fs::File::options().write(true).open(self.path().join(file)).expect("the file");
        file.set_modified(time).expect("a time");
    }

    /// Overwrites bytes of a file.
    pub(crate) fn patch(&self, file: &str, at: u64, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(self.path().join(file)).expect("the file");
        file.write_all_at(bytes, at).expect("written");
    }

    /// Runs the program on this store.
    pub(crate) fn annals(&self, args: &[&str]) -> Ran {
        annals_at(self.path(), args)
    }

    fn text(&self, file: &str) -> String {
        self.place(file).to_str().expect("UTF-8").to_owned()
    }
}

/// Runs the program on the store at `path`.
pub(crate) fn annals_at(path: &Path, args: &[&str]) -> Ran {
    annals(Command::new(env!("CARGO_BIN_EXE_annals")).arg("--store").arg(path).args(args))
}

/// Runs the program in an environment that is the same everywhere.
pub(crate) fn annals(command: &mut Command) -> Ran {
    for variable in ["ANNALS_STORE", "ANNALS_LOG", "NO_COLOR"] {
        command.env_remove(variable);
    }
    let output = command.output().expect("annals starts");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}
