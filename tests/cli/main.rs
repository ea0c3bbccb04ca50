//! The program as a person or a script uses it: `init`, `list`, `show` and the rest, on stores made by qemu-img.

// Helpers of tests fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod containers;
mod hostile;
mod layouts;
mod words;

use serde_json::Value;
use support::stores::TestStore;

/// The texts at `key` of every element of a JSON array.
fn all<'a>(array: &'a Value, key: &str) -> Vec<&'a str> {
    let elements = array.as_array().unwrap_or_else(|| panic!("no array: {array}"));
    elements.iter().map(|element| element[key].as_str().unwrap_or_else(|| panic!("no {key}: {element}"))).collect()
}

/// What lies in a directory.
fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = dir
        .read_dir()
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

/// The names of a guest's backups.
fn backups(store: &TestStore, guest: &str) -> Vec<String> {
    let listed = store.annals(&["list", guest, "--json"]).json();
    all(&listed["backups"], "name").into_iter().map(str::to_owned).collect()
}

/// The layers of the disk of that name, newest first.
fn layers(shown: &Value, disk: &str) -> Vec<String> {
    let disks = shown["disks"].as_array().expect("disks");
    let disk = disks.iter().find(|d| d["name"] == disk).unwrap_or_else(|| panic!("no disk {disk}: {shown}"));
    all(&disk["opened"]["layers"], "path").into_iter().map(str::to_owned).collect()
}
