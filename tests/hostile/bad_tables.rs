//! Single images that lie about their own shape: sizes, tables, entries, compressed clusters.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use annals::base::{ErrorKind, GuestOffset, GuestRange};
use annals::disk::{Disk, check_layer};
use annals::format::ImageFormat;
use annals::storage::memory::{MemoryFile, MemoryGate};
use annals::storage::{FilePool, Gate};

use crate::image::{Image, open, path, use_every_way, whole};
use crate::support::isolated::{Limits, isolated_test};

const COMPRESSED: u64 = 1 << 62;

fn gate(image: &Image) -> MemoryGate {
    let mut gate = MemoryGate::new("100");
    gate.insert("a", MemoryFile::new(image.bytes.clone()));
    gate
}

fn refused(image: &Image, words: &str) {
    let error = open(&gate(image), "a").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{}", error.report());
    assert!(error.report().contains("layer 'a'") && error.report().contains(words), "{}", error.report());
}

/// An image of `bits` whose first L2 table holds these entries.
fn with_l2(bits: u32, size: u64, entries: &[u64]) -> Image {
    let mut image = Image::new(bits, size);
    let table = image.append(entries);
    image.l1(0, table);
    image
}

fn opened(image: &Image) -> Disk {
    open(&gate(image), "a").unwrap_or_else(|e| panic!("{}", e.report()))
}

/// Every byte of the disk's first cluster is an error that names the layer.
fn first_cluster_fails(image: &Image, words: &str) {
    let disk = opened(image);
    let error = disk.read_at(&mut [0; 512], GuestOffset(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
    assert!(error.report().contains("layer 'a'") && error.report().contains(words), "{}", error.report());
}

isolated_test! {
    fn sizes_that_no_disk_has_are_refused() {
        for size in [1u64 << 63, u64::MAX, u64::MAX - 511, (1 << 63) - 512, 1 << 62] {
            let mut image = Image::new(16, 1 << 20);
            image.put64(24, size);
            refused(&image, "sound qcow2 image");
        }
    }
}

isolated_test! {
    fn an_l1_table_of_32_gib_is_refused_before_memory_is_asked_for() {
        let mut image = Image::new(16, 1 << 20);
        image.put32(36, u32::MAX);
        refused(&image, "L1 table of 34359738360 bytes");
        image.put64(24, 1 << 61);
        refused(&image, "L1 table");
    }
}

isolated_test! {
    fn an_l1_table_outside_the_file_or_inside_the_header_is_refused() {
        let image = Image::new(16, 1 << 20);
        for at in [0, 8, 512, 65536 + 512, image.bytes.len() as u64, 1 << 40, u64::MAX - 65535, u64::MAX] {
            let mut image = image.clone();
            image.put64(40, at);
            refused(&image, "L1 table");
        }
    }
}

isolated_test! {
    fn an_l1_entry_that_leads_nowhere_breaks_its_own_range_alone() {
        let far = 1u64 << 40;
        for (entry, words) in [
            (far, "past the end of the file"),
            (u64::MAX, "L1 entry 0"),
            (65536 * 2 + 512, "L1 entry 0"),
            (1, "L1 entry 0"),
            (!0u64 << 9 & !(3 << 62), "L1 entry 0"),
        ] {
            let mut image = Image::new(16, 1 << 30);
            let data = image.append(&[0x5a5a_5a5a_5a5a_5a5a; 8192]);
            let table = image.append(&[data]);
            image.l1(0, entry);
            image.l1(1, table);
            first_cluster_fails(&image, words);
            let disk = opened(&image);
            let mut buf = [0; 512];
            disk.read_at(&mut buf, GuestOffset(512 << 20)).unwrap();
            assert_eq!(buf, [0x5a; 512], "{entry:#x}");
            let faults = disk.faults().unwrap();
            assert_eq!(faults.len(), 1);
            assert_eq!(faults[0].range, GuestRange::between(GuestOffset(0), GuestOffset(512 << 20)));
            use_every_way(&disk, 1 << 20);
        }
    }
}

isolated_test! {
    fn tables_that_point_at_each_other_end() {
        let mut image = Image::new(16, 4 << 30);
        // The L1 table as its own L2 table, an L2 table that holds itself, the L1 and the header.
        image.l1(0, 65536);
        let table = image.append(&[]);
        image.l1(1, table);
        image.put64(table as usize, table);
        image.put64(table as usize + 8, 65536);
        image.put64(table as usize + 16, 0x8000_0000_0000_0000);
        use_every_way(&opened(&image), 64 << 20);
        let _ = check_layer(&gate(&image), &path("a"), ImageFormat::Qcow2);
    }
}

isolated_test! {
    Limits { time: Duration::from_secs(30), ..Limits::default() };
    fn tables_named_over_and_over_do_not_make_a_small_file_endless_work() {
        scans_are_refused(|table| table);
    }
}

isolated_test! {
    Limits { time: Duration::from_secs(30), ..Limits::default() };
    fn millions_of_entries_that_name_no_table_do_not_either() {
        scans_are_refused(|_| 1);
    }
}

/// 4 million L1 entries, made from the place of the only L2 table: two petabytes of disk in 33 MiB.
fn scans_are_refused(entry: fn(u64) -> u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut image = Image::new(16, 1 << 20);
    let entries = 4u64 << 20;
    image.put64(24, entries << 29);
    image.put32(36, entries as u32);
    let data = image.append(&[1; 8192]);
    let table = image.append(&[data; 8192]);
    let l1 = image.append(&[]);
    image.put64(40, l1);
    let file = File::create(dir.path().join("a")).unwrap();
    file.write_all_at(&image.bytes, 0).unwrap();
    let chunk = entry(table).to_be_bytes().repeat(1 << 16);
    for n in 0..64 {
        file.write_all_at(&chunk, l1 + n * chunk.len() as u64).unwrap();
    }
    let gate = Gate::open(dir.path(), FilePool::new(4)).unwrap();
    let disk = open(&gate, "a").unwrap();
    use_every_way(&disk, 1 << 20);
    let scans = [
        disk.next_hole(GuestOffset(0)).err(),
        disk.allocated(whole(&disk)).err(),
        disk.faults().err(),
        check_layer(&gate, &path("a"), ImageFormat::Qcow2).err(),
    ];
    for outcome in scans {
        let error = outcome.expect("a scan of it is refused");
        assert!(error.report().contains("tables are shared"), "{}", error.report());
    }
}

isolated_test! {
    Limits { time: Duration::from_secs(30), ..Limits::default() };
    fn the_largest_l1_table_that_the_format_allows_costs_no_more_than_itself() {
        // 2 PiB of nothing but one cluster at the end.
        let dir = tempfile::tempdir().unwrap();
        let mut image = Image::new(16, 1 << 20);
        let entries = 4u64 << 20;
        image.put64(24, entries << 29);
        image.put32(36, entries as u32);
        let data = image.append(&[0x0101_0101_0101_0101; 8192]);
        let mut last = vec![0; 8192];
        last[8191] = data;
        let table = image.append(&last);
        let l1 = image.append(&[]);
        image.put64(40, l1);
        let file = File::create(dir.path().join("a")).unwrap();
        file.write_all_at(&image.bytes, 0).unwrap();
        file.write_all_at(&table.to_be_bytes(), l1 + (entries - 1) * 8).unwrap();
        let gate = Gate::open(dir.path(), FilePool::new(4)).unwrap();
        let disk = open(&gate, "a").unwrap();
        let end = entries << 29;
        assert_eq!(disk.next_data(GuestOffset(0)).unwrap(), Some(GuestOffset(end - 65536)));
        assert_eq!(disk.allocated(whole(&disk)).unwrap(), 65536);
        assert_eq!(disk.next_hole(GuestOffset(end - 1)).unwrap(), GuestOffset(end));
        let mut buf = [0; 512];
        disk.read_at(&mut buf, GuestOffset(end - 512)).unwrap();
        assert_eq!(buf, [1; 512]);
    }
}

isolated_test! {
    fn entries_with_reserved_bits_or_outside_the_file_are_errors_and_not_zeros() {
        for (entry, words) in [
            (1 << 40, "outside the file"),
            (0x00ff_ffff_ffff_0000, "outside the file"),
            (65536 * 3 + 512, "start of a cluster"),
            (65536 * 3 + 2, "reserved"),
            (1 << 56, "reserved"),
        ] {
            first_cluster_fails(&with_l2(16, 1 << 20, &[entry]), words);
        }
    }
}

isolated_test! {
    fn a_file_cut_anywhere_is_refused_or_fails_only_where_the_cut_took_something() {
        let mut image = Image::new(9, 20 * 512);
        let data: Vec<_> = (1..=20u64).map(|n| image.append(&[n * 0x0101_0101_0101_0101; 64])).collect();
        let table = image.append(&data);
        image.l1(0, table);
        let good = image.clone();
        for len in (0..good.bytes.len()).step_by(128) {
            image.bytes = good.bytes[..len].to_vec();
            let Ok(disk) = open(&gate(&image), "a") else { continue };
            for n in 1..=20u64 {
                let mut buf = [0; 512];
                match disk.read_at(&mut buf, GuestOffset((n - 1) * 512)) {
                    Ok(_) => assert_eq!(buf, [n as u8; 512], "cut at {len}"),
                    Err(error) => assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Changed)),
                }
            }
            use_every_way(&disk, 1 << 20);
        }
    }
}

isolated_test! {
    fn compressed_clusters_that_lie_about_their_place_or_length_are_errors() {
        let place = |at: u64, sectors: u64| COMPRESSED | at | (sectors << 54);
        let mut image = with_l2(16, 1 << 20, &[]);
        let garbage = image.append(&[0xdead_beef_dead_beef; 8192]);
        let zeros = image.append(&[]);
        let end = image.bytes.len() as u64;
        let table = 2 * 65536;
        for entry in [
            place(garbage, 0),
            place(garbage + 1, 0xff),
            place(zeros, 10),
            place(end - 1, 0),
            place(end, 0),
            place(1 << 50, 0xff),
            u64::MAX,
            COMPRESSED,
        ] {
            image.put64(table, entry);
            let disk = opened(&image);
            let error = disk.read_at(&mut [0; 512], GuestOffset(0)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{entry:#x}: {}", error.report());
            use_every_way(&disk, 1 << 20);
        }
    }
}

/// A zstd image of one 64 KiB cluster whose stream is `stream`.
fn zstd_image(stream: &[u8]) -> Image {
    let mut image = with_l2(16, 65536, &[]);
    image.put64(72, 1 << 3);
    image.put32(100, 112);
    image.put(104, &[1]);
    let at = image.append(&[]);
    image.put(at as usize, stream);
    image.put64(2 * 65536, COMPRESSED | at | (127 << 54));
    image
}

isolated_test! {
    Limits { memory: 40, ..Limits::default() };
    fn a_zstd_frame_that_asks_for_a_huge_window_does_not_get_it() {
        // Magic number, descriptor without a content size, window, then one block that repeats a byte.
        for exponent in [17u8, 18, 20, 21] {
            let mut stream = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, exponent << 3];
            let block = (65536u32 << 3) | (1 << 1) | 1;
            stream.extend(&block.to_le_bytes()[..3]);
            stream.push(0x77);
            let image = zstd_image(&stream);
            let disk = opened(&image);
            let mut buf = vec![0; 65536];
            if disk.read_at(&mut buf, GuestOffset(0)).is_ok() {
                assert!(buf.iter().all(|b| *b == 0x77));
            }
        }
    }
}

isolated_test! {
    Limits { memory: 48, time: Duration::from_secs(120) };
    fn one_compressed_cluster_named_by_every_entry_is_decoded_in_bounded_memory() {
        // A file of 8 MiB that describes 64 GiB: an L2 table whose entries all name one deflated cluster of 2 MiB.
        let mut deflated = Vec::new();
        let zeros = vec![0u8; 2 << 20];
        let mut encoder = flate2::Compress::new(flate2::Compression::best(), false);
        deflated.reserve(64 << 10);
        encoder.compress_vec(&zeros, &mut deflated, flate2::FlushCompress::Finish).unwrap();
        let mut image = with_l2(21, 64 << 30, &[]);
        let at = image.append(&[]);
        image.put(at as usize, &deflated);
        // With clusters of 2 MiB the sector count stands from bit 49 on.
        let entry = COMPRESSED | at | (((deflated.len() as u64) / 512) << 49);
        for n in 0..32768 {
            image.put64(2 * (2 << 20) + n * 8, entry);
        }
        let disk = opened(&image);
        let mut buf = vec![1; 1 << 20];
        for n in 0..200u64 {
            disk.read_at(&mut buf, GuestOffset(n * (77 << 20))).unwrap();
            assert!(buf.iter().all(|b| *b == 0));
        }
        assert_eq!(disk.allocated(whole(&disk)).unwrap(), 64 << 30);
    }
}

isolated_test! {
    fn extensions_without_end_or_without_length_are_read_once() {
        let mut image = Image::new(21, 1 << 20);
        // Unknown extensions of no length, up to the end of a cluster of 2 MiB.
        for at in (104..(2 << 20)).step_by(8) {
            image.put64(at, 0x1234_5678_0000_0000);
        }
        let _ = open(&gate(&image), "a");
        // Feature names, two million bytes of them, and a bit that is none of those named.
        let mut image = Image::new(21, 1 << 20);
        image.put32(104, 0x6803_f857);
        image.put32(108, (2 << 20) - 200);
        image.put64(72, 1 << 60);
        refused(&image, "feature bit 60");
        image.put32(108, u32::MAX);
        refused(&image, "extension");
    }
}

isolated_test! {
    fn a_map_that_changes_its_mind_at_every_sector_stays_small() {
        // 512-byte clusters, data and holes in turn, over 128 MiB of disk.
        let size = 128u64 << 20;
        let mut image = Image::new(9, size);
        let data = image.append(&[0x0202_0202_0202_0202; 64]);
        let entries: Vec<u64> = (0..64).map(|n| if n % 2 == 0 { data } else { 0 }).collect();
        for n in 0..size / (64 * 512) {
            let table = image.append(&entries);
            image.l1(n, table);
        }
        let disk = opened(&image);
        assert_eq!(disk.allocated(whole(&disk)).unwrap(), size / 2);
        use_every_way(&disk, size);
    }
}
