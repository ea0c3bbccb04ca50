//! A backup that is ended at any instant, by whatever: the store lists what it listed before or one backup more, every backup that it
//! lists reads as it should, and the next increment is right.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

#[path = "../support/containers.rs"]
mod containers;
#[path = "../support/scene.rs"]
mod scene;
#[path = "../support/mod.rs"]
mod support;

mod failures;
mod killed;
mod power;
mod stage;
mod trees;
