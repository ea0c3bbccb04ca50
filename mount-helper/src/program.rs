//! Where the program `annals` is looked for: beside this one and in the system's directories, never in a caller's `PATH`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const NAME: &str = "annals";
const SYSTEM: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin"];

/// The first `annals` that may be run, in the order of [`candidates`].
pub(crate) fn find() -> Option<PathBuf> {
    candidates().into_iter().find(|path| is_program(path))
}

/// The places that [`find`] looks in, for a message.
pub(crate) fn places() -> String {
    let folders: Vec<_> =
        candidates().iter().filter_map(|path| path.parent().map(|p| p.display().to_string())).collect();
    folders.join(", ")
}

fn candidates() -> Vec<PathBuf> {
    // The link that an installation under another prefix makes in /sbin is already followed here.
    let own = std::env::current_exe().ok();
    beside(own.as_deref()).into_iter().chain(SYSTEM.map(|folder| Path::new(folder).join(NAME))).collect()
}

/// In the helper's own directory, and in `bin` where that is some prefix's `sbin`.
fn beside(own: Option<&Path>) -> Vec<PathBuf> {
    let Some(folder) = own.and_then(Path::parent) else { return Vec::new() };
    let mut found = vec![folder.join(NAME)];
    if folder.ends_with("sbin")
        && let Some(prefix) = folder.parent()
    {
        found.push(prefix.join("bin").join(NAME));
    }
    found
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_the_same_prefix_comes_first() {
        let found = beside(Some(Path::new("/opt/annals/sbin/mount.annals")));
        assert_eq!(found, [Path::new("/opt/annals/sbin/annals"), Path::new("/opt/annals/bin/annals")]);
        assert_eq!(beside(Some(Path::new("/build/mount.annals"))), [Path::new("/build/annals")]);
        assert!(beside(None).is_empty());
    }

    #[test]
    fn a_directory_or_a_file_that_cannot_be_run_is_no_program() {
        assert!(is_program(Path::new("/bin/sh")));
        assert!(!is_program(Path::new("/bin")));
        assert!(!is_program(Path::new("/etc/passwd")));
        assert!(!is_program(Path::new("/nonexistent")));
    }
}
