//! Chains that are here for a reason: each feature that a random chain may or may not have, and whatever failed once.

use crate::check;
use crate::support::chains::{Chain, Fill, LayerPlan, Op, Origin, Plan, Qcow2, TOOLS};
use crate::support::tools::have;

const MIB: u64 = 1 << 20;

fn holds(layers: &[LayerPlan]) {
    if !have(TOOLS) {
        return;
    }
    let guest = tempfile::tempdir().unwrap();
    let chain = Chain::make(&Plan { layers: layers.to_vec() }, guest.path());
    for (plan, layer) in layers.iter().zip(&chain.layers) {
        let lazy = plan.qcow2.is_some_and(|q| q.lazy_refcounts);
        if plan.killed && lazy {
            let image = std::fs::read(chain.guest.join(&layer.path)).unwrap();
            assert_eq!(image[79] & 1, 1, "the image is not marked dirty");
        }
    }
    check::chain(&chain, 1);
}

fn layer(size: u64, qcow2: Qcow2, ops: &[Op]) -> LayerPlan {
    LayerPlan { size, qcow2: Some(qcow2), ops: ops.to_vec(), killed: false }
}

fn raw(size: u64, ops: &[Op]) -> LayerPlan {
    LayerPlan { size, qcow2: None, ops: ops.to_vec(), killed: false }
}

/// Every kind of content once, with nothing at the start of a cluster alone.
fn a_bit_of_everything(cluster: u64) -> Vec<Op> {
    vec![
        Op::Write(0, cluster * 3 + 700, Fill::Noise(0)),
        Op::WriteCompressed(cluster * 5, cluster * 3, Fill::Text(1)),
        Op::Write(cluster * 6 + 512, 512, Fill::Byte(7)),
        Op::Zero(cluster, cluster, false),
        Op::Zero(cluster * 2, cluster, true),
        Op::Zero(cluster * 9, cluster, true),
        Op::Discard(cluster * 7, cluster),
        Op::Write(cluster * 10 + cluster / 2, cluster / 4, Fill::Text(2)),
    ]
}

#[test]
fn every_cluster_size_from_512_bytes_to_2_mib() {
    for cluster_bits in 9..=21 {
        for version in [2, 3] {
            let qcow2 = Qcow2 { version, cluster_bits, ..Qcow2::default() };
            let cluster = 1 << cluster_bits;
            let size = cluster * 12 - 512;
            let above = [Op::Write(cluster / 2, cluster, Fill::Noise(1)), Op::Zero(cluster * 5, cluster, true)];
            holds(&[layer(size, qcow2, &a_bit_of_everything(cluster)), layer(size, qcow2, &above)]);
        }
    }
}

#[test]
fn subclusters_of_every_cluster_size() {
    for cluster_bits in 14..=21 {
        let qcow2 = Qcow2 { cluster_bits, extended_l2: true, ..Qcow2::default() };
        let (cluster, sub) = (1u64 << cluster_bits, 1u64 << (cluster_bits - 5));
        let above: Vec<_> = (0..32)
            .map(|n| match n % 4 {
                0 => Op::Write(n * sub, sub, Fill::Text(n as u8)),
                1 => Op::Zero(n * sub, sub, n % 8 == 1),
                2 => Op::Write(cluster + n * sub + 512.min(sub / 2), sub, Fill::Byte(n as u8)),
                _ => Op::Write(cluster * 5 + n * sub, 512, Fill::Byte(n as u8)),
            })
            .collect();
        let size = cluster * 12 - 512;
        holds(&[layer(size, qcow2, &a_bit_of_everything(cluster)), layer(size, qcow2, &above)]);
    }
}

#[test]
fn compressed_clusters_of_both_kinds_in_every_layer() {
    for zstd in [false, true] {
        for cluster_bits in [9, 12, 16, 21] {
            let qcow2 = Qcow2 { zstd, cluster_bits, ..Qcow2::default() };
            let converted = Qcow2 { origin: Origin::Converted { compressed: true }, ..qcow2 };
            let cluster = 1u64 << cluster_bits;
            let size = cluster * 9 - 1024.min(cluster / 1024 * 512);
            let base = [Op::Write(0, MIB, Fill::Text(0)), Op::Write(cluster * 4, cluster, Fill::Noise(0))];
            let above =
                [Op::WriteCompressed(0, cluster * 2, Fill::Text(1)), Op::WriteCompressed(size, 0, Fill::Text(2))];
            holds(&[layer(size, converted, &base), layer(size, qcow2, &above), layer(size, qcow2, &above[1..])]);
        }
    }
}

#[test]
fn an_image_whose_writer_was_killed_is_read_as_far_as_it_was_flushed() {
    let qcow2 = Qcow2 { lazy_refcounts: true, ..Qcow2::default() };
    let mut base = layer(4 * MIB, qcow2, &a_bit_of_everything(65536));
    base.killed = true;
    let above = layer(4 * MIB, Qcow2::default(), &[Op::Write(70_000, 10_000, Fill::Byte(3))]);
    holds(&[base, above]);
}

#[test]
fn snapshots_and_bitmaps_inside_an_image_are_not_in_the_way() {
    for refcount_bits in [2, 4, 8, 16, 32, 64] {
        let qcow2 = Qcow2 { refcount_bits, ..Qcow2::default() };
        let mut ops = a_bit_of_everything(65536);
        ops.insert(4, Op::Bitmap);
        ops.insert(3, Op::Snapshot);
        ops.push(Op::Snapshot);
        ops.push(Op::Write(0, MIB, Fill::Text(0)));
        ops.push(Op::Bitmap);
        holds(&[layer(4 * MIB, qcow2, &ops), layer(4 * MIB, qcow2, &ops[..5])]);
    }
}

#[test]
fn a_raw_image_of_any_length_lies_at_the_bottom() {
    for size in [512, 4096 + 512, MIB + 512, 3 * MIB] {
        let base = raw(size, &[Op::Write(0, size, Fill::Noise(2)), Op::Zero(8192, 65536, true)]);
        let above = layer(2 * MIB, Qcow2::default(), &[Op::Write(65536 * 3, 65536, Fill::Byte(9))]);
        let top = layer(4 * MIB, Qcow2 { cluster_bits: 9, ..Qcow2::default() }, &[Op::Write(1000, 100, Fill::Byte(5))]);
        holds(&[base, above, top]);
    }
}

#[test]
fn a_layer_in_the_middle_that_is_smaller_hides_what_lies_beyond_its_end() {
    let data = [Op::Write(0, 2 * MIB, Fill::Noise(1))];
    for middle in [512, 65536, MIB + 512] {
        holds(&[
            layer(2 * MIB, Qcow2::default(), &data),
            layer(middle, Qcow2::default(), &[]),
            layer(2 * MIB, Qcow2::default(), &[Op::Write(65536, 512, Fill::Byte(1))]),
        ]);
    }
}

#[test]
fn an_image_with_places_but_no_content_reads_as_zeros() {
    for extended_l2 in [false, true] {
        let qcow2 = Qcow2 { origin: Origin::Preallocated, extended_l2, ..Qcow2::default() };
        holds(&[layer(3 * MIB + 512, qcow2, &[Op::Write(100_000, 5000, Fill::Text(0))])]);
    }
}

#[test]
fn a_disk_without_a_byte_is_a_disk() {
    holds(&[layer(0, Qcow2::default(), &[]), layer(0, Qcow2::default(), &[]), layer(MIB, Qcow2::default(), &[])]);
}
