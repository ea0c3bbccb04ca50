//! The documents name only what is there, and explain what is asked for.

use std::path::Path;

use crate::source::{rust_files, under_root};

/// Every Markdown file that is ours.
fn documents() -> Vec<String> {
    let mut found = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().expect("our file names are UTF-8");
        if name.ends_with(".md") {
            found.push(format!("docs/{name}"));
        }
    }
    found
}

/// The targets of `[text](target)` that are files of ours.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .map(|target| target.split('#').next().unwrap_or(target))
        .collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut dead = Vec::new();
    for document in documents() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(&document);
        let folder = folder.parent().expect("a file is in a folder").to_owned();
        for target in links(&under_root(&document)) {
            if !folder.join(target).exists() {
                dead.push(format!("{document}: {target}"));
            }
        }
    }
    assert!(dead.is_empty(), "dead links: {dead:?}");
}

#[test]
fn documents_named_in_the_readme_and_the_makefile_exist() {
    let mut missing = Vec::new();
    for file in ["README.md", "Makefile"] {
        for word in under_root(file).split(|c: char| !(c.is_ascii_alphanumeric() || "/._-".contains(c))) {
            let word = word.trim_end_matches('.');
            if word.starts_with("docs/") && !Path::new(env!("CARGO_MANIFEST_DIR")).join(word).exists() {
                missing.push(format!("{file}: {word}"));
            }
        }
    }
    assert!(missing.is_empty(), "named but not there: {missing:?}");
}

#[test]
fn every_package_that_setup_installs_has_its_reason() {
    let reasons = under_root("docs/testing.md");
    let reasons: String = reasons.lines().filter(|line| line.starts_with('|')).collect();
    let explained = |package: &str| {
        reasons.split(|c: char| !(c.is_ascii_alphanumeric() || "-+".contains(c))).any(|word| word == package)
    };
    let mut packages: Vec<String> = Vec::new();
    for line in under_root("tests/support/setup.sh").lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("need") => packages.extend(words.skip(1).map(str::to_owned)),
            Some("need_cargo") => packages.extend(words.take(1).map(|name| format!("cargo-{name}"))),
            _ => {}
        }
    }
    // The script's own names for what it finds out about QEMU.
    let packages = packages.into_iter().map(|package| match package.as_str() {
        "qemu" => "qemu-utils".to_owned(),
        "qemu-daemon" => "qemu-system-common".to_owned(),
        _ => package,
    });
    let unexplained: Vec<String> = packages.filter(|package| !explained(package)).collect();
    assert!(unexplained.is_empty(), "without a reason in docs/testing.md: {unexplained:?}");
}

/// Of Debian's essential packages and `mount`, which every system with a package manager has.
const OF_EVERY_SYSTEM: [&str; 14] = [
    "blkid", "cp", "dd", "find", "findmnt", "losetup", "ls", "mknod", "mount", "partx", "setpriv", "tar", "umount",
    "unshare",
];
/// In the package of another command that is asked for.
const COMES_WITH: [(&str, &str); 2] = [("fdisk", "sfdisk"), ("unsquashfs", "mksquashfs")];

#[test]
fn every_program_that_tests_need_is_installed_by_setup() {
    let setup = under_root("tests/support/setup.sh");
    let installed = |program: &str| {
        let program = COMES_WITH.iter().find(|(part, _)| *part == program).map_or(program, |(_, whole)| whole);
        setup.lines().any(|line| line.trim_start().starts_with(&format!("need {program} ")))
    };
    let mut missing = Vec::new();
    for path in rust_files("tests") {
        let text = under_root(&path);
        for list in text.split(concat!("have(", "&[")).skip(1) {
            let names = list.split(']').next().unwrap_or_default().split('"').skip(1).step_by(2);
            for program in names.filter(|name| !OF_EVERY_SYSTEM.contains(name) && !installed(name)) {
                missing.push(format!("{path}: {program}"));
            }
        }
    }
    assert!(missing.is_empty(), "needed, but not in tests/support/setup.sh: {missing:?}");
}
