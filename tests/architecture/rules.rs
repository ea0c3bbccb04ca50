//! What may be imported from where.

use crate::source::{CratePath, SourceFile};

/// Each module's layer, lowest first. A module imports only modules of a lower layer.
pub(crate) const LAYERS: &[(u8, &str)] = &[
    (0, "base"),
    (1, "storage"),
    (2, "format"),
    (3, "archive"),
    (3, "disk"),
    (3, "nbd"),
    (4, "catalog"),
    (5, "fs"),
    (5, "ingest"),
    (5, "upkeep"),
    (6, "fuse"),
    (7, "cli"),
];

/// Where, besides `storage`, the operating system's files are used, and why. Never for what a store holds.
pub(crate) const OS_FILE_EXCEPTIONS: &[(&str, &str)] = &[
    ("src/cli/log.rs", "appends to the log file that the user named"),
    ("src/cli/man.rs", "writes the generated manual pages where a developer or packager says"),
    ("src/cli/mount/background.rs", "opens /dev/null in the place of the terminal"),
    ("src/cli/signals.rs", "reads off /proc which signals are ignored"),
    ("src/fuse/mountpoint.rs", "looks whether the mountpoint is an empty directory"),
    ("src/fuse/session.rs", "sets the mount's read-ahead in /sys"),
    ("src/fuse/table.rs", "reads the kernel's table of mounts"),
    ("src/fuse/users.rs", "asks /proc and /sys who uses a mount, and the mount who serves it"),
];

/// The layer of a module right under the crate's root.
pub(crate) fn layer_of(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(_, name)| *name == module).map(|(layer, _)| *layer)
}

/// A complaint for every path that names a module of the same layer, a higher one or none.
pub(crate) fn imports_upwards(file: &SourceFile) -> Vec<String> {
    let Some(own) = file.top_module() else { return Vec::new() };
    let Some(layer) = layer_of(&own) else { return Vec::new() };
    let mut complaints = Vec::new();
    for CratePath { segments, line, .. } in file.paths() {
        let mut names = segments.iter().map(String::as_str);
        // `annals::` is what the binary and the tests call the crate; inside it, it would be a way round this test.
        if !matches!(names.next(), Some("crate" | "annals")) || segments.len() < 2 {
            continue;
        }
        let Some(to) = names.next() else { continue };
        if to == own {
            continue;
        }
        let place = format!("{}:{line}", file.path);
        match layer_of(to) {
            Some(lower) if lower < layer => {}
            Some(other) => complaints
                .push(format!("{place}: '{own}' (layer {layer}) imports '{to}' (layer {other}): imports point down")),
            None => complaints.push(format!("{place}: crate::{to} is no module with a layer")),
        }
    }
    complaints
}

/// Every place outside test code that reaches for files by the operating system's own calls.
pub(crate) fn os_file_uses(file: &SourceFile) -> Vec<String> {
    if file.top_module().as_deref() == Some("storage") {
        return Vec::new();
    }
    file.paths()
        .iter()
        .filter(|path| !path.in_test)
        .filter(|path| {
            let names: Vec<&str> = path.segments.iter().map(String::as_str).collect();
            matches!(names.as_slice(), ["std" | "rustix" | "tokio", "fs", ..] | ["fs", "File" | "OpenOptions", ..])
                || names.starts_with(&["std", "os", "unix", "fs"])
                || names.starts_with(&["std", "os", "linux", "fs"])
        })
        .map(|path| format!("{}:{}: {} is for storage/", file.path, path.line, path.segments.join("::")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> usize {
        imports_upwards(&SourceFile::parse(path, text)).len()
    }

    #[test]
    fn only_a_lower_layer_may_be_imported() {
        assert_eq!(complaints("src/disk/map.rs", "use crate::base::Error; use crate::format::qcow2;"), 0);
        assert_eq!(complaints("src/disk/map.rs", "use crate::disk::reader::Reader; use super::chain;"), 0);
        assert_eq!(complaints("src/disk/map.rs", "use crate::catalog::Store;"), 1, "a higher layer");
        assert_eq!(complaints("src/disk/map.rs", "use crate::nbd::Client;"), 1, "a sibling");
        assert_eq!(complaints("src/disk/map.rs", "use super::super::cli;"), 1, "by the back door");
        assert_eq!(complaints("src/disk/map.rs", "fn f() { annals::cli::run() }"), 1, "by the crate's own name");
        assert_eq!(complaints("src/disk/map.rs", "use crate::*;"), 1, "everything at once");
        assert_eq!(complaints("src/base/x.rs", "fn f() { m!(crate::fs::Node) }"), 1, "inside a macro");
    }

    #[test]
    fn files_are_opened_by_storage_alone() {
        let uses = |path: &str, text: &str| os_file_uses(&SourceFile::parse(path, text)).len();
        assert_eq!(uses("src/disk/a.rs", "use std::{fs, io}; fn f() { fs::File::open(p) }"), 2);
        assert_eq!(uses("src/disk/a.rs", "fn f() { rustix::fs::openat2() }"), 1);
        assert_eq!(uses("src/storage/gate.rs", "use std::fs::File;"), 0);
        assert_eq!(uses("src/disk/a.rs", "#[cfg(test)] mod tests { use std::fs::File; }"), 0);
        assert_eq!(uses("src/disk/tests.rs", "use std::fs::File;"), 0);
    }
}
