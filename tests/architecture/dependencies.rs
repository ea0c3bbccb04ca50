//! `docs/dependencies.md` and the manifests name the same crates.

use std::collections::BTreeSet;
use std::process::Command;

use crate::source::under_root;

/// Each manifest, with the heading of `docs/dependencies.md` under which its crates stand.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "tests/fuzz/Cargo.toml"];

/// The names that cargo itself reads from a manifest and its workspace's members: all kinds of dependency.
fn declared(manifest: &str) -> BTreeSet<String> {
    let manifest = format!("{}/{manifest}", env!("CARGO_MANIFEST_DIR"));
    if !std::path::Path::new(&manifest).exists() {
        return BTreeSet::new();
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version=1", "--manifest-path", &manifest])
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let mut names = BTreeSet::new();
    for package in metadata["packages"].as_array().expect("packages") {
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            // A crate of our own (a path) needs no reason.
            if dependency["path"].is_null() {
                names.insert(dependency["name"].as_str().expect("a name").to_owned());
            }
        }
    }
    names
}

/// The crates of the tables under the headings that begin with `heading`: first cells of the form `**name**`.
fn listed(text: &str, heading: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            inside = title.starts_with(heading);
        }
        if inside && let Some(cell) = line.strip_prefix("| **") {
            let (name, _) = cell.split_once("**").expect("the bold name is closed");
            assert!(names.insert(name.to_owned()), "docs/dependencies.md lists {name} twice");
        }
    }
    names
}

#[test]
fn every_dependency_has_its_reason_and_every_reason_a_dependency() {
    let text = under_root("docs/dependencies.md");
    let used = listed(&text, "Used");
    let declared: BTreeSet<String> = MANIFESTS.iter().flat_map(|manifest| declared(manifest)).collect();
    assert!(declared.contains("fuser"), "cargo metadata names no fuser: {declared:?}");

    let unexplained: Vec<_> = declared.difference(&used).collect();
    assert!(unexplained.is_empty(), "without a line under 'Used' in docs/dependencies.md: {unexplained:?}");
    let gone: Vec<_> = used.difference(&declared).collect();
    assert!(gone.is_empty(), "in docs/dependencies.md under 'Used', but in no Cargo.toml: {gone:?}");
}

#[test]
fn what_is_listed_as_not_used_is_not_used() {
    let text = under_root("docs/dependencies.md");
    let refused = listed(&text, "Weighed");
    for wished in ["nbd", "qcow2-rs", "tar", "squashfs-ng", "lru"] {
        assert!(refused.contains(wished), "docs/dependencies.md must say why {wished} is not used");
    }
    let declared: BTreeSet<String> = MANIFESTS.iter().flat_map(|manifest| declared(manifest)).collect();
    let both: Vec<_> = refused.intersection(&declared).collect();
    assert!(both.is_empty(), "listed as not used, but declared: {both:?}");
}
