//! Moving bytes: from the places that a map names into a caller's buffer.

use std::sync::Arc;

use super::decompress::decompress;
use super::flat::Disk;
use super::layer::Node;
use super::map::{Piece, Source};
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};
use crate::format::qcow2::{CompressedCluster, Header};
use crate::storage::BlockKey;

impl Disk {
    /// Reads into `buf` from byte `at` of the disk; short only at the disk's end. Returns the bytes read.
    ///
    /// Either every byte returned is the right one, or the whole read is an error that names the layer.
    pub fn read_at(&self, buf: &mut [u8], at: GuestOffset) -> Result<usize> {
        let len = self.size().saturating_sub(at.0).min(buf.len() as u64);
        let end = at.saturating_add(len);
        let mut rest = &mut buf[..to_usize(len)];
        let mut at = at;
        while at < end {
            let map = self.region(at)?;
            for piece in map.pieces(GuestRange::between(at, end)) {
                let (part, later) = rest.split_at_mut(to_usize(piece.range.len()));
                self.fill(part, piece)?;
                rest = later;
                at = piece.range.end();
            }
        }
        Ok(to_usize(len))
    }

    /// Tells the kernel that `range` will be read soon, where that means reading files. Never fails, never waits for data.
    pub fn will_need(&self, range: GuestRange) {
        let Ok(pieces) = self.map(range) else { return };
        for piece in pieces {
            match piece.source {
                Source::Data(layer, at) => {
                    self.nodes[layer.0 as usize].layer.file().will_need(at, piece.range.len());
                }
                Source::Compressed(layer, cluster) => {
                    let layer = &self.nodes[layer.0 as usize].layer;
                    if let Some(image) = layer.qcow2() {
                        let geometry = image.header().geometry;
                        layer.file().will_need(cluster.start(geometry), cluster.max_len(geometry));
                    }
                }
                Source::Zero | Source::Bad(_) => {}
            }
        }
    }

    /// Fills `part` with the bytes of `piece`, which has the same length.
    fn fill(&self, part: &mut [u8], piece: Piece) -> Result<()> {
        match piece.source {
            Source::Zero => part.fill(0),
            Source::Data(layer, at) => {
                let layer = &self.nodes[layer.0 as usize].layer;
                // A raw file may end inside the last sector that its map speaks of; the rest of that reads as zeros.
                let stored = match layer.qcow2() {
                    Some(_) => part.len(),
                    None => to_usize(layer.size().saturating_sub(at.0)).min(part.len()),
                };
                let (stored, beyond) = part.split_at_mut(stored);
                layer.file().read_exact_at(stored, at).map_err(|e| layer.context(e))?;
                beyond.fill(0);
            }
            Source::Compressed(layer, cluster) => {
                let node = &self.nodes[layer.0 as usize];
                self.fill_decoded(part, piece.range.start(), node, cluster).map_err(|e| {
                    node.layer
                        .context(e.context(format!("the compressed cluster at disk offset {}", piece.range.start())))
                })?;
            }
            Source::Bad(layer) => return Err(self.nodes[layer.0 as usize].layer.diagnose(piece.range.start())),
        }
        Ok(())
    }

    /// Fills `part` with the bytes of a compressed cluster from disk offset `at` on.
    fn fill_decoded(&self, part: &mut [u8], at: GuestOffset, node: &Node, cluster: CompressedCluster) -> Result<()> {
        let Some(image) = node.layer.qcow2() else {
            return Err(Error::new(ErrorKind::Corrupt, "a raw layer has no compressed clusters"));
        };
        let header = image.header();
        let cluster_size = to_usize(header.geometry.cluster_size());
        let key = BlockKey { file: node.id.0, at: cluster.start(header.geometry) };
        if part.len() == cluster_size && !self.env.blocks().holds(&key) {
            // All of it is wanted at once, as by the kernel when it reads ahead, and will be in its page cache then.
            return decode(node, header, cluster, part);
        }
        let block = self.env.blocks().get_or_load(key, || {
            let mut block: Arc<[u8]> = std::iter::repeat_n(0, cluster_size).collect();
            // Nobody else has it yet.
            decode(node, header, cluster, Arc::get_mut(&mut block).unwrap_or_default())?;
            Ok(block)
        })?;
        let within = to_usize(at.0) & (cluster_size - 1);
        match block.get(within..within + part.len()) {
            Some(bytes) => part.copy_from_slice(bytes),
            None => return Err(Error::new(ErrorKind::Corrupt, "a compressed cluster is shorter than its range")),
        }
        Ok(())
    }
}

/// Decodes a cluster into `out`, which has its size.
fn decode(node: &Node, header: &Header, cluster: CompressedCluster, out: &mut [u8]) -> Result<()> {
    let file = node.layer.file();
    let start = cluster.start(header.geometry);
    let len = cluster.max_len(header.geometry).min(file.size().saturating_sub(start.0));
    let mut stored = vec![0; to_usize(len)];
    file.read_exact_at(&mut stored, start)?;
    decompress(header.compression, &stored, out)
}
