//! Layer 3: disks. Where the bytes of a flattened chain are, and the reading of them.
//!
//! Finding and moving are separate. *Finding*: a [`Layer`](layer::Layer) says what its image holds of a range, the
//! [`map`] of a region lays all layers over each other in one pass, and [`Disk`] keeps such maps and answers every
//! question about extents from them; [`count`] remembers between runs how much is data. *Moving*: [`reader`] turns extents into bytes. A read looks up one map, whatever the
//! chain's depth.

mod ahead;
mod chain;
mod check;
mod count;
mod decompress;
mod env;
mod flat;
mod layer;
mod map;
pub mod partitions;
mod qcow2;
mod raw;
mod reader;
pub mod writer;

pub use ahead::warm;
pub use chain::backing;
pub use check::{LayerCheck, check_layer};
pub use env::DiskEnv;
pub use flat::{Disk, Fault};
pub use layer::LayerInfo;
pub use map::{LayerIndex, Piece, Source};
pub use partitions::{Partition, PartitionTable, partition_table, partitions};

#[cfg(test)]
mod tests;
