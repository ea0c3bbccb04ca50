//! `annals` shows every guest's backup history as files.
//!
//! The crate is built in layers; a module imports only modules of a lower layer, never a sibling of its own
//! (`tests/architecture.rs` holds that):
//!
//! | layer | module | what lives there |
//! | --- | --- | --- |
//! | 0 | [`base`] | units, errors, time |
//! | 1 | [`storage`] | the one I/O seam, the gate that decides which names may open, the block cache |
//! | 2 | [`format`] | bytes ↔ structs, no I/O |
//! | 3 | [`archive`] | container archives as trees: nodes, tar with its index, squashfs |
//! | 3 | [`disk`] | flattened chains: where bytes are, and reading them |
//! | 3 | [`nbd`] | NBD client: handshake as explicit states, commands in flight, extents |
//! | 4 | [`catalog`] | which guests and backups a store holds |
//! | 5 | [`fs`] | the mounted tree, without FUSE |
//! | 5 | [`ingest`] | the write side: plan, transfer, commit |
//! | 6 | [`fuse`] | the tree as a FUSE file system |
//! | 7 | [`cli`] | the command line |
//!
//! [`format`]: mod@format

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod archive;
pub mod base;
pub mod catalog;
pub mod cli;
pub mod disk;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod ingest;
pub mod nbd;
pub mod storage;
