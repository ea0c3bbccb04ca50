use super::*;

const FILE_SIZE: u64 = 1 << 20;

/// A sound version 3 header of 64 KiB clusters and a 1 GiB disk, with room for changes.
fn sound() -> Vec<u8> {
    let mut h = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_be_bytes());
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(24, &(1u64 << 30).to_be_bytes());
    put(36, &2u32.to_be_bytes());
    put(40, &0x3_0000u64.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &112u32.to_be_bytes());
    h
}

fn with(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut h = sound();
    for (at, bytes) in changes {
        h[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    h
}

fn parse(bytes: &[u8]) -> Result<Header> {
    match Header::parse(bytes, FILE_SIZE)? {
        Parsed::Done(header) => Ok(*header),
        Parsed::NeedMore(n) => panic!("wants {n} bytes"),
    }
}

fn refusal(changes: &[(usize, &[u8])]) -> String {
    parse(&with(changes)).unwrap_err().report()
}

#[test]
fn a_sound_header_is_read() {
    let h = parse(&sound()).unwrap();
    assert_eq!((h.version, h.size, h.l1_entries, h.geometry.cluster_size()), (3, 1 << 30, 2, 65536));
    assert_eq!(h.compression, Compression::Deflate);
    assert_eq!(h.backing, None);
}

#[test]
fn a_dirty_image_is_read_and_a_corrupt_one_is_not() {
    assert!(parse(&with(&[(72, &DIRTY.to_be_bytes())])).unwrap().dirty);
    assert!(refusal(&[(72, &CORRUPT.to_be_bytes())]).contains("corrupt bit"));
    assert!(refusal(&[(72, &EXTERNAL_DATA.to_be_bytes())]).contains("external data file"));
}

#[test]
fn an_unknown_incompatible_bit_is_refused_by_number_and_by_the_images_own_name() {
    let bit = 1u64 << 42;
    assert!(refusal(&[(72, &bit.to_be_bytes())]).contains("feature bit 42"));
    let mut table = vec![0u8; 8 + 48];
    table[..4].copy_from_slice(&EXTENSION_FEATURE_NAMES.to_be_bytes());
    table[4..8].copy_from_slice(&48u32.to_be_bytes());
    table[9] = 42;
    table[10..20].copy_from_slice(b"time warps");
    assert!(refusal(&[(72, &bit.to_be_bytes()), (112, &table)]).contains("'time warps'"));
}

#[test]
fn encryption_is_refused_by_name() {
    assert!(refusal(&[(32, &1u32.to_be_bytes())]).contains("AES"));
    assert!(refusal(&[(32, &2u32.to_be_bytes())]).contains("LUKS"));
}

#[test]
fn a_32_gib_l1_table_is_refused_before_anything_is_allocated() {
    assert!(refusal(&[(36, &u32::MAX.to_be_bytes())]).contains("32 MiB"));
}

#[test]
fn sizes_that_no_disk_has_are_refused() {
    for size in [1u64 << 63, u64::MAX, (1 << 63) - 512, 1 << 62, 513] {
        assert!(parse(&with(&[(24, &size.to_be_bytes())])).is_err(), "{size}");
    }
}

#[test]
fn an_l1_table_outside_the_file_is_refused() {
    for at in [0u64, 1, 0x3_0001, FILE_SIZE, u64::MAX - 0xffff, 1 << 62] {
        assert!(parse(&with(&[(40, &at.to_be_bytes())])).is_err(), "{at:#x}");
    }
}

#[test]
fn a_backing_name_must_lie_in_the_first_cluster() {
    let name_at = |at: u64, len: u32| parse(&with(&[(8, &at.to_be_bytes()), (16, &len.to_be_bytes())]));
    assert_eq!(name_at(0x200, 4).unwrap().backing.unwrap().name, [0; 4]);
    for (at, len) in [(0x200, 0), (0x200, 1024), (65536 - 3, 4), (8, 4), (u64::MAX, 4), (65537, 4)] {
        assert!(name_at(at, len).is_err(), "{at:#x}+{len}");
    }
}

#[test]
fn what_lies_behind_the_bytes_given_is_asked_for() {
    let h = with(&[(8, &0x8000u64.to_be_bytes()), (16, &4u32.to_be_bytes())]);
    assert!(matches!(Header::parse(&h, FILE_SIZE).unwrap(), Parsed::NeedMore(65536)));
    assert!(Header::parse(&h, 4096).is_err(), "the file ends before the name");
}

#[test]
fn the_compression_type_must_agree_with_its_bit() {
    let zstd = with(&[(72, &COMPRESSION_TYPE.to_be_bytes()), (104, &[1])]);
    assert_eq!(parse(&zstd).unwrap().compression, Compression::Zstd);
    assert!(parse(&with(&[(104, &[1])])).is_err());
    assert!(parse(&with(&[(72, &COMPRESSION_TYPE.to_be_bytes())])).is_err());
    assert!(refusal(&[(72, &COMPRESSION_TYPE.to_be_bytes()), (104, &[9])]).contains("compression type 9"));
}

#[test]
fn an_extension_that_reaches_out_of_the_header_is_refused() {
    let mut extension = EXTENSION_BITMAPS.to_be_bytes().to_vec();
    extension.extend(u32::MAX.to_be_bytes());
    assert!(refusal(&[(112, &extension)]).contains("extension"));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(changes in proptest::collection::vec((0usize..512, proptest::num::u8::ANY), 0..24), size in proptest::num::u64::ANY) {
        let mut h = sound();
        for (at, byte) in changes {
            h[at] = byte;
        }
        let _ = Header::parse(&h, size);
        let _ = Header::parse(&h[..(size % 513) as usize], size);
    }
}
