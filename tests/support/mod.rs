//! What the test binaries share: calling other programs, and disks made by them.
//!
//! Nothing here checks anything; what is expected stands in the tests.

// Each test binary compiles this for itself and uses a part of it.
#![allow(dead_code, unused_macros, unused_imports)]

pub(crate) mod chains;
pub(crate) mod isolated;
pub(crate) mod mounts;
pub(crate) mod needs;
pub(crate) mod random;
pub(crate) mod stores;
pub(crate) mod tools;
pub(crate) mod trees;
