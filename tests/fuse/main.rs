//! The mount as its readers have it: the real program, the kernel, and the tools that people use on files. Each test
//! quotes the promise of `docs/semantics.md` that it proves.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

#[path = "../support/containers.rs"]
mod archives;
#[path = "../support/mod.rs"]
mod support;

mod access;
mod chains;
mod changes;
mod containers;
mod cost;
mod ending;
mod holes;
mod partitions;
mod reading;
mod starting;
mod tree;
mod waiting;

use std::path::Path;

/// The words between `promise("` and `")` in every test of the mount.
fn quoted() -> Vec<String> {
    let mut quoted = Vec::new();
    for dir in ["tests/fs", "tests/fuse"] {
        for entry in Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).read_dir().unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            for rest in text.split("promise(").skip(1) {
                let literal = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'));
                quoted.extend(
                    literal
                        .map(|(words, _)| words.replace("\\\n", "").split_whitespace().collect::<Vec<_>>().join(" ")),
                );
            }
        }
    }
    quoted
}

#[test]
fn every_promise_is_quoted_by_a_test() {
    let quoted = quoted();
    let promises = support::mounts::promises();
    assert!(promises.len() > 10, "only {} promises found in docs/semantics.md", promises.len());
    let missing: Vec<_> = promises.iter().filter(|promise| !quoted.contains(promise)).collect();
    assert!(missing.is_empty(), "no test quotes: {missing:#?}");
}
