use super::*;

/// A superblock of an image of 4096 bytes.
fn superblock() -> [u8; SUPERBLOCK] {
    let mut bytes = [0xff; SUPERBLOCK];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"hsqs");
    put(12, &131_072_u32.to_le_bytes());
    put(20, &6_u16.to_le_bytes());
    put(22, &17_u16.to_le_bytes());
    put(28, &[4, 0, 0, 0]);
    put(40, &4096_u64.to_le_bytes());
    put(48, &4000_u64.to_le_bytes());
    put(64, &1000_u64.to_le_bytes());
    put(72, &2000_u64.to_le_bytes());
    bytes
}

#[test]
fn a_superblock_that_contradicts_itself_is_refused_by_what_is_wrong() {
    let good = Superblock::parse(&superblock()).unwrap();
    assert_eq!((good.compression, good.xattr_table, good.fragment_table), (Compression::Zstd, None, None));
    for (at, value, message) in [
        (0, &b"sqsh"[..], "big-endian"),
        (0, b"qcow", "does not begin like"),
        (28, &[3, 0, 1, 0], "squashfs 3.1"),
        (20, &[7, 0], "compression 7"),
        (22, &[16, 0], "contradiction"),
        (22, &[40, 0], "contradiction"),
        (12, &[0, 0, 0, 0], "contradiction"),
        (64, &[0; 8], "do not fit"),
        (72, &[0xff; 8], "do not fit"),
        (48, &[0xff; 8], "table of owners"),
        (80, &[0, 0x10, 0, 0, 0, 0, 0, 0], "table of fragments"),
    ] {
        let mut bytes = superblock();
        bytes[at..at + value.len()].copy_from_slice(value);
        let error = Superblock::parse(&bytes).unwrap_err().report();
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn inodes_of_unknown_types_and_cut_ones_are_refused() {
    for number in [0_u16, 15, 0xffff] {
        let mut header = [0; INODE_HEADER];
        header[..2].copy_from_slice(&number.to_le_bytes());
        assert!(Inode::kind_of(&header).is_err(), "{number}");
    }
    for number in 1..=14_u8 {
        let mut header = [0; INODE_HEADER];
        header[0] = number;
        let len = Inode::body_len(&header).unwrap();
        assert!(Inode::parse(&header, &vec![0; len]).is_ok(), "{number}");
        assert!(Inode::parse(&header, &vec![0; len - 1]).is_err(), "{number}");
    }
}

#[test]
fn device_numbers_of_any_size_are_taken_apart() {
    let mut header = [0; INODE_HEADER];
    header[0] = 4;
    // Major 7 and minor 259, as makedev() packs them in 32 bits.
    let rest = [1, 0, 0, 0, 0x03, 0x07, 0x10, 0x00];
    let inode = Inode::parse(&header, &rest).unwrap();
    assert_eq!(inode.body, Body::Device(InodeType::BlockDevice, (7, 259)));
}

#[test]
fn a_metadata_block_of_no_bytes_is_one_of_32_kib() {
    assert_eq!(metadata_header([0x10, 0x80]), (16, false));
    assert_eq!(metadata_header([0x10, 0x00]), (16, true));
    assert_eq!(metadata_header([0, 0x80]), (0x8000, false));
}
