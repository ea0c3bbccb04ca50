//! Images that somebody damaged or made up to do harm, through the library: each is read as QEMU reads it or refused
//! with a reason, in bounded time and memory, without a panic.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

#[path = "../support/mod.rs"]
mod support;

mod archives;
mod bad_chains;
mod bad_tables;
mod image;
mod mutants;
