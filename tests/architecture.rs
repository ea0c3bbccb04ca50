//! Holds the shape of the source tree: imports point down, and only the module whose work it is touches
//! FUSE or the operating system's files.
//!
//! The rules are those of `docs/architecture.md`. The source is read as Rust tokens, so comments, strings and
//! formatting do not matter, and a path inside a macro counts like any other.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "architecture/dependencies.rs"]
mod dependencies;
#[path = "architecture/documents.rs"]
mod documents;
#[path = "architecture/rules.rs"]
mod rules;
#[path = "architecture/source.rs"]
mod source;

use rules::{LAYERS, OS_FILE_EXCEPTIONS};
use source::{SourceFile, rust_files, under_root};

/// Every Rust file that is ours, wherever it lives.
const ALL_RUST: [&str; 4] = ["src", "mount-helper", "tests", "fixtures"];
const MAX_LINES: usize = 600;

fn library() -> Vec<SourceFile> {
    let files: Vec<_> = rust_files("src").iter().map(|path| SourceFile::read(path)).collect();
    assert!(files.len() > 5, "only {} files under src/: the test looks in the wrong place", files.len());
    files
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn imports_point_down_and_never_to_a_sibling() {
    let complaints: Vec<_> = library().iter().flat_map(rules::imports_upwards).collect();
    assert_none(&complaints);
}

#[test]
fn every_module_has_a_layer_and_the_front_page_lists_them_all() {
    let mut modules: Vec<String> = library().iter().filter_map(SourceFile::top_module).collect();
    modules.sort();
    modules.dedup();

    let mut complaints = Vec::new();
    for module in &modules {
        if rules::layer_of(module).is_none() {
            complaints.push(format!("src/{module} has no layer in tests/architecture/rules.rs"));
        }
    }
    for (document, marker) in [("src/lib.rs", "//! | "), ("docs/architecture.md", "| ")] {
        let text = under_root(document);
        let rows: Vec<(u8, String)> = text.lines().filter_map(|line| layer_row(line.strip_prefix(marker)?)).collect();
        for module in modules.iter().filter(|m| !rows.iter().any(|(_, name)| name == *m)) {
            complaints.push(format!("{document}: the table of layers does not list '{module}'"));
        }
        for (layer, module) in &rows {
            if rules::layer_of(module) != Some(*layer) {
                complaints.push(format!("{document}: '{module}' stands in layer {layer}, the rules say otherwise"));
            }
            if !modules.contains(module) {
                complaints.push(format!("{document}: lists '{module}', which does not exist"));
            }
        }
    }
    assert_none(&complaints);
}

/// ``2 | [`format`] | …`` or ``2 | `format` | …``: a layer and a module.
fn layer_row(row: &str) -> Option<(u8, String)> {
    let (layer, rest) = row.split_once('|')?;
    let (module, _) = rest.split_once('|')?;
    let module = module.split('`').nth(1)?;
    Some((layer.trim().parse().ok()?, module.to_owned()))
}

#[test]
fn only_the_fuse_layer_names_fuser() {
    let complaints: Vec<_> = library()
        .iter()
        .filter(|file| file.top_module().as_deref() != Some("fuse"))
        .flat_map(|file| file.mentions("fuser"))
        .map(|place| format!("{place}: fuser is for src/fuse/ alone"))
        .collect();
    assert_none(&complaints);
}

#[test]
fn only_storage_and_the_declared_exceptions_use_the_systems_files() {
    let files = library();
    let mut complaints = Vec::new();
    let mut used = Vec::new();
    for file in &files {
        let uses = rules::os_file_uses(file);
        match OS_FILE_EXCEPTIONS.iter().find(|(prefix, _)| file.path.starts_with(prefix)) {
            Some((prefix, _)) if !uses.is_empty() => used.push(*prefix),
            Some(_) => {}
            None => complaints.extend(uses),
        }
    }
    for (prefix, why) in OS_FILE_EXCEPTIONS {
        if !used.contains(prefix) {
            complaints.push(format!("the exception for {prefix} ({why}) is not needed any more: remove it"));
        }
    }
    assert_none(&complaints);
}

#[test]
fn nothing_is_unsafe() {
    let mut complaints = Vec::new();
    for folder in ["src", "mount-helper"] {
        for path in rust_files(folder) {
            complaints
                .extend(SourceFile::read(&path).mentions("unsafe").into_iter().map(|place| format!("{place}: unsafe")));
        }
    }
    assert_none(&complaints);
}

#[test]
fn no_file_is_longer_than_600_lines() {
    let mut complaints = Vec::new();
    for folder in ALL_RUST {
        for path in rust_files(folder) {
            let lines = under_root(&path).lines().count();
            if lines > MAX_LINES {
                complaints.push(format!("{path}: {lines} lines; is this one room or two?"));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn layers_are_numbered_from_the_bottom_without_a_gap() {
    let mut numbers: Vec<u8> = LAYERS.iter().map(|(layer, _)| *layer).collect();
    numbers.dedup();
    assert_eq!(numbers, (0..=7).collect::<Vec<u8>>());
}
