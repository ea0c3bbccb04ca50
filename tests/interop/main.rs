//! What we read against what the tools that everybody uses write and read.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

#[path = "../support/mod.rs"]
mod support;

mod partitions;
mod squashfs;
mod tar;
