//! What a partition or disk holds, told by the magic numbers of its first bytes.
//!
//! A hint for a person, as `blkid` would print it; nothing is opened or decoded because of it.

use super::window::{Window, le16, le32, le64};
use crate::base::Result;

/// The bytes that most formats have their magic in. One read of this size answers for nearly all of them.
const HEAD: usize = 4096;

/// The name of the file system, or of what else uses the space (`swap`, `LVM2`, `LUKS`, …), or `None` where nothing is
/// recognised.
///
/// Reads 4 KiB of the window, and for what does not tell by them up to 200 KiB more.
pub fn identify(window: &Window<'_>) -> Result<Option<&'static str>> {
    let mut head = [0; HEAD];
    let len = head.len().min(crate::base::units::to_usize(window.size()));
    // A window shorter than the block leaves zeros, which are no one's magic.
    if let Some(read) = head.get_mut(..len) {
        window.read_exact(read, 0)?;
    }
    if let Some(name) = by_head(&head) {
        return Ok(Some(name));
    }
    for probe in [by_far_magic, by_swap, by_uberblock] {
        if let Some(name) = probe(window)? {
            return Ok(Some(name));
        }
    }
    Ok(is_fat(&head).then_some("vfat"))
}

/// Whether a first sector is the boot sector of FAT, exFAT or NTFS, which end in the same two bytes as an MBR.
pub(super) fn is_boot_sector(sector: &[u8]) -> bool {
    has(sector, 3, b"NTFS    ") || has(sector, 3, b"EXFAT   ") || is_fat(sector)
}

fn has(block: &[u8], at: usize, magic: &[u8]) -> bool {
    block.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// Magic numbers at fixed places of the first block. The first that matches wins: containers of other file systems come
/// before those, and what stands at byte 0 before what leaves room for a boot loader there.
const IN_HEAD: &[(usize, &[u8], &str)] = &[
    (0, b"LUKS\xba\xbe", "LUKS"),
    (3, b"-FVE-FS-", "BitLocker"),
    (0, b"bluestore block device", "ceph_bluestore"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "linux_raid_member"),
    (4096 - 10, b"SWAPSPACE2", "swap"),
    (4096 - 10, b"SWAP-SPACE", "swap"),
    (0, b"XFSB", "xfs"),
    (0, b"hsqs", "squashfs"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (3, b"\0\0\0\0ReFS", "refs"),
    (3, b"ReFS\0", "refs"),
    (32, b"NXSB", "apfs"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
    (1024, b"H+", "hfsplus"),
    (1024, b"HX", "hfsplus"),
];

fn by_head(head: &[u8; HEAD]) -> Option<&'static str> {
    // The label of a physical volume stands in one of the first four sectors.
    let is_lvm = (0..4).any(|sector| has(head, sector * 512, b"LABELONE") && has(head, sector * 512 + 24, b"LVM2 001"));
    if is_lvm {
        return Some("LVM2");
    }
    IN_HEAD.iter().find(|(at, magic, _)| has(head, *at, magic)).map(|(_, _, name)| *name).or_else(|| extended(head))
}

/// ext2, ext3 or ext4, which share a magic number and differ in the features they use.
///
/// As `blkid`: a journal makes ext3, any feature that ext3 does not know makes ext4.
fn extended(head: &[u8; HEAD]) -> Option<&'static str> {
    const SUPERBLOCK: usize = 1024;
    const HAS_JOURNAL: u32 = 0x4;
    const JOURNAL_DEVICE: u32 = 0x8;
    /// file types, recovery, meta block groups
    const EXT3_INCOMPATIBLE: u32 = 0x2 | 0x4 | 0x10;
    /// sparse superblocks, large files, b-tree directories
    const EXT3_READ_ONLY: u32 = 0x1 | 0x2 | 0x4;
    if le16(head, SUPERBLOCK + 56) != 0xef53 {
        return None;
    }
    let [compatible, incompatible, read_only] = [92, 96, 100].map(|at| le32(head, SUPERBLOCK + at));
    Some(if incompatible & JOURNAL_DEVICE != 0 {
        "jbd"
    } else if incompatible & !EXT3_INCOMPATIBLE != 0 || read_only & !EXT3_READ_ONLY != 0 {
        "ext4"
    } else if compatible & HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    })
}

fn by_far_magic(window: &Window<'_>) -> Result<Option<&'static str>> {
    const FAR: &[(u64, &[u8], &str)] = &[
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "linux_raid_member"),
        (64 * 1024 + 64, b"_BHRfS_M", "btrfs"),
        (32 * 1024 + 1, b"CD001", "iso9660"),
        (64 * 1024 + 52, b"ReIsEr", "reiserfs"),
        (64 * 1024 + 1372, &[0x19, 0x01, 0x54, 0x19], "ufs"),
        (8 * 1024 + 1372, &[0x54, 0x19, 0x01, 0x00], "ufs"),
        (32 * 1024 + 1, b"BEA01", "udf"),
    ];
    for (at, magic, name) in FAR {
        if window.block::<8>(*at)?.is_some_and(|block| block.starts_with(magic)) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Swap of a machine whose pages are larger than 4 KiB.
fn by_swap(window: &Window<'_>) -> Result<Option<&'static str>> {
    for page in [8, 16, 32, 64].map(|kib: u64| kib * 1024) {
        if window.block::<10>(page - 10)?.is_some_and(|magic| matches!(&magic, b"SWAPSPACE2" | b"SWAP-SPACE")) {
            return Ok(Some("swap"));
        }
    }
    Ok(None)
}

/// A member of a ZFS pool: one of the uberblocks in its first label is in use.
fn by_uberblock(window: &Window<'_>) -> Result<Option<&'static str>> {
    const RING: u64 = 128 * 1024;
    const RING_LEN: usize = 128 * 1024;
    const UBERBLOCK: usize = 1024;
    const MAGIC: u64 = 0x00ba_b10c;
    if window.size() < RING + RING_LEN as u64 {
        return Ok(None);
    }
    let mut ring = vec![0; RING_LEN];
    window.read_exact(&mut ring, RING)?;
    let used = ring.chunks(UBERBLOCK).map(|block| le64(block, 0)).any(|m| m == MAGIC || m.swap_bytes() == MAGIC);
    Ok(used.then_some("zfs_member"))
}

/// The parameter block of FAT has no magic number; these are the checks that Linux makes before it mounts one.
fn is_fat(sector: &[u8]) -> bool {
    let [bytes_per_sector, reserved] = [11, 14].map(|at| le16(sector, at));
    let [jump, per_cluster, tables, media] = [0, 13, 16, 21].map(|at| sector.get(at).copied().unwrap_or(0));
    le16(sector, 510) == 0xaa55
        && matches!(jump, 0xeb | 0xe9)
        && matches!(bytes_per_sector, 512 | 1024 | 2048 | 4096)
        && per_cluster.is_power_of_two()
        && reserved != 0
        && tables != 0
        && (media == 0xf0 || media >= 0xf8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::GuestOffset;

    fn name_of(size: usize, marks: &[(usize, &[u8])]) -> Option<&'static str> {
        let mut disk = vec![0; size];
        for (at, bytes) in marks {
            disk[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let read = |buf: &mut [u8], at: GuestOffset| {
            let at = at.0 as usize;
            buf.copy_from_slice(&disk[at..at + buf.len()]);
            Ok(())
        };
        identify(&Window::new(size as u64, &read)).unwrap()
    }

    #[test]
    fn every_magic_number_is_found_where_it_stands() {
        for (at, magic, name) in IN_HEAD {
            assert_eq!(name_of(1 << 20, &[(*at, magic)]), Some(*name));
        }
        assert_eq!(name_of(1 << 20, &[(65536 + 64, b"_BHRfS_M")]), Some("btrfs"));
        assert_eq!(name_of(1 << 20, &[(32769, b"CD001")]), Some("iso9660"));
        assert_eq!(name_of(1 << 20, &[(65536 - 10, b"SWAPSPACE2")]), Some("swap"));
        assert_eq!(name_of(1 << 20, &[(128 * 1024 + 5 * 1024, &0xbab10c_u64.to_be_bytes())]), Some("zfs_member"));
        assert_eq!(name_of(1 << 20, &[(512, b"LABELONE"), (536, b"LVM2 001")]), Some("LVM2"));
        assert_eq!(name_of(1 << 20, &[]), None);
    }

    #[test]
    fn the_three_ext_differ_by_their_features() {
        let magic: (usize, &[u8]) = (1024 + 56, &[0x53, 0xef]);
        assert_eq!(name_of(8192, &[magic]), Some("ext2"));
        assert_eq!(name_of(8192, &[magic, (1024 + 92, &[4])]), Some("ext3"));
        assert_eq!(name_of(8192, &[magic, (1024 + 92, &[4]), (1024 + 96, &[0x42])]), Some("ext4"));
        assert_eq!(name_of(8192, &[magic, (1024 + 96, &[8])]), Some("jbd"));
    }

    #[test]
    fn a_window_too_short_for_a_magic_number_has_none() {
        for size in [0, 1, 511, 512, 4095] {
            assert_eq!(name_of(size, &[]), None);
        }
        assert_eq!(name_of(512, &[(0, b"XFSB")]), Some("xfs"));
    }
}
