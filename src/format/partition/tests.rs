use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::base::{Error, ErrorKind};

/// A disk in memory that counts what is read of it.
struct Disk {
    bytes: Vec<u8>,
    size: u64,
    /// Reads that touch this range fail.
    broken: std::ops::Range<u64>,
    read: Cell<u64>,
}

impl Disk {
    fn new(size: usize) -> Self {
        Self { bytes: vec![0; size], size: size as u64, broken: 0..0, read: Cell::new(0) }
    }

    /// A far larger disk: zeros follow.
    fn grown_to(mut self, size: u64) -> Self {
        self.size = size;
        self
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn parse(&self) -> Result<Option<Table>> {
        parse(&Window::new(self.size, &|buf, at| {
            let (start, end) = (at.0, at.0 + buf.len() as u64);
            assert!(end <= self.size, "read past the end");
            if start < self.broken.end && self.broken.start < end {
                return Err(Error::new(ErrorKind::Io, "made to fail"));
            }
            self.read.set(self.read.get() + buf.len() as u64);
            buf.fill(0);
            if let Some(rest) = self.bytes.get(start as usize..) {
                let len = rest.len().min(buf.len());
                buf[..len].copy_from_slice(&rest[..len]);
            }
            Ok(())
        }))
    }

    fn table(&self) -> Table {
        self.parse().unwrap().expect("a partition table")
    }

    fn numbers(&self) -> Vec<u32> {
        self.table().entries.iter().map(|entry| entry.number).collect()
    }
}

const LINUX: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

/// What a test wants to be odd about a GPT.
#[derive(Clone)]
struct Gpt {
    sector: usize,
    count: u32,
    entry_size: u32,
    entries_at: Option<u64>,
    header_size: u32,
    usable: (u64, u64),
    parts: Vec<(u64, u64, Vec<u16>)>,
}

impl Default for Gpt {
    fn default() -> Self {
        let name = "root".encode_utf16().collect();
        Self {
            sector: 512,
            count: 128,
            entry_size: 128,
            entries_at: None,
            header_size: 92,
            usable: (34, 4000),
            parts: vec![(2048, 3071, name), (3072, 3999, Vec::new())],
        }
    }
}

impl Gpt {
    fn entries(&self) -> Vec<u8> {
        let mut entries = vec![0; 128 * 128];
        for ((first, last, name), entry) in
            self.parts.iter().zip(entries.chunks_mut(self.entry_size.clamp(128, 4096) as usize))
        {
            entry[..16].copy_from_slice(&LINUX);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            for (i, unit) in name.iter().enumerate() {
                entry[56 + 2 * i..58 + 2 * i].copy_from_slice(&unit.to_le_bytes());
            }
        }
        entries
    }

    fn header(&self, at: u64, other: u64, entries_at: u64) -> Vec<u8> {
        let mut header = vec![0; self.sector];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&[0, 0, 1, 0]);
        header[12..16].copy_from_slice(&self.header_size.to_le_bytes());
        for (i, field) in [at, other, self.usable.0, self.usable.1].into_iter().enumerate() {
            header[24 + 8 * i..32 + 8 * i].copy_from_slice(&field.to_le_bytes());
        }
        header[72..80].copy_from_slice(&self.entries_at.unwrap_or(entries_at).to_le_bytes());
        header[80..84].copy_from_slice(&self.count.to_le_bytes());
        header[84..88].copy_from_slice(&self.entry_size.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&self.entries()).to_le_bytes());
        let crc = crc32fast::hash(&header[..(self.header_size as usize).min(self.sector)]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// A disk of 4096 sectors with both headers.
    fn disk(&self) -> Disk {
        let mut disk = Disk::new(4096 * self.sector);
        protect(&mut disk);
        let last = 4095;
        let backup_entries = last - (128 * 128 / self.sector) as u64;
        disk.put(self.sector, &self.header(1, last, 2));
        disk.put(2 * self.sector, &self.entries());
        disk.put(backup_entries as usize * self.sector, &self.entries());
        disk.put(last as usize * self.sector, &self.header(last, 1, backup_entries));
        disk
    }
}

/// Writes a slot of the boot record at `sector`, and the signature.
fn slot(disk: &mut Disk, sector: usize, index: usize, type_byte: u8, first: u32, count: u32) {
    let at = sector * 512 + 446 + 16 * index;
    disk.bytes[at + 4] = type_byte;
    disk.put(at + 8, &first.to_le_bytes());
    disk.put(at + 12, &count.to_le_bytes());
    disk.put(sector * 512 + 510, &[0x55, 0xaa]);
}

fn protect(disk: &mut Disk) {
    slot(disk, 0, 0, 0xee, 1, u32::MAX);
}

#[test]
fn a_gpt_is_read_in_both_sector_sizes() {
    for sector in [512, 4096] {
        let table = Gpt { sector, ..Gpt::default() }.disk().table();
        assert_eq!((table.scheme, table.sector_size as usize), (Scheme::Gpt, sector));
        assert_eq!(table.problems, [""; 0]);
        let [root, rest] = &table.entries[..] else { panic!("{table:?}") };
        assert_eq!(root.range, sectors(2048, 1024, sector as u64).unwrap());
        assert_eq!((root.number, root.label.as_deref()), (1, Some("root")));
        assert_eq!(root.type_code, "0fc63daf-8483-4772-8e79-3d69d8477de4");
        assert_eq!(root.type_name, Some("Linux file system"));
        assert_eq!((rest.number, rest.range.len(), &rest.label), (2, 928 * sector as u64, &None));
    }
}

#[test]
fn whatever_byte_of_the_primary_gpt_is_damaged_the_backup_takes_over() {
    let good = Gpt::default().disk();
    let expected = good.table().entries;
    for at in (512..512 + 92).chain(1024..1024 + 256) {
        let mut disk = Gpt::default().disk();
        disk.bytes[at] ^= 0x10;
        let table = disk.table();
        assert_eq!(table.entries, expected, "byte {at}");
        assert!(table.problems.iter().any(|p| p.contains("backup GPT header")), "byte {at}: {:?}", table.problems);
    }
    let mut blank = Gpt { sector: 4096, ..Gpt::default() }.disk();
    blank.bytes[4096..6 * 4096].fill(0);
    assert_eq!((blank.table().entries.len(), blank.table().sector_size), (2, 4096));
}

#[test]
fn a_gpt_with_neither_header_whole_has_no_partitions_and_says_why() {
    let mut disk = Gpt::default().disk();
    disk.bytes[600] ^= 1;
    disk.bytes[4095 * 512 + 60] ^= 1;
    let table = disk.table();
    assert_eq!(table.entries, []);
    assert_eq!(table.problems.len(), 2);
    assert!(table.problems[1].contains("backup GPT header (sector 4095"), "{:?}", table.problems);

    let mut bare = Disk::new(1 << 20);
    protect(&mut bare);
    assert!(bare.table().problems[0].contains("holds no GPT header"));
}

#[test]
fn a_header_copied_to_another_sector_does_not_count() {
    let gpt = Gpt::default();
    let mut disk = gpt.disk();
    disk.put(512, &gpt.header(4095, 1, 2));
    disk.bytes[4095 * 512] = 0;
    assert_eq!(disk.table().entries, []);
    assert!(disk.table().problems[0].contains("says that it lies at sector 4095"));
}

#[test]
fn a_gpt_that_no_mbr_protects_is_not_there() {
    let mut disk = Gpt::default().disk();
    disk.bytes[..512].fill(0);
    assert_eq!(disk.parse().unwrap(), None);
    slot(&mut disk, 0, 0, 0x83, 63, 100);
    assert_eq!(disk.table().scheme, Scheme::Mbr);
}

#[test]
fn absurd_gpt_headers_are_refused_without_reading_what_they_claim() {
    let odd = |change: fn(&mut Gpt)| {
        let mut gpt = Gpt::default();
        change(&mut gpt);
        gpt.disk()
    };
    for (why, disk) in [
        ("it has 4294967295 entries", odd(|g| g.count = u32::MAX)),
        ("it has 0 entries", odd(|g| g.count = 0)),
        ("it has 128 entries of 2147483648 bytes", odd(|g| g.entry_size = 1 << 31)),
        ("its entries are of 0 bytes", odd(|g| g.entry_size = 0)),
        ("its entries are of 129 bytes", odd(|g| g.entry_size = 129)),
        ("its entries lie past the end", odd(|g| g.entries_at = Some(u64::MAX))),
        ("its entries lie past the end", odd(|g| g.entries_at = Some(u64::MAX / 512))),
        ("its entries lie past the end", odd(|g| g.entries_at = Some(4095))),
        ("its size is given as 91 bytes", odd(|g| g.header_size = 91)),
        ("its size is given as 513 bytes", odd(|g| g.header_size = 513)),
        ("its size is given as 4294967295 bytes", odd(|g| g.header_size = u32::MAX)),
        ("not all on the disk", odd(|g| g.usable = (34, 4096))),
        ("not all on the disk", odd(|g| g.usable = (35, 34))),
    ] {
        let table = disk.table();
        assert_eq!(table.entries, [], "{why}");
        assert!(table.problems[0].contains(why), "{why}: {:?}", table.problems);
        let disk = disk.grown_to(1 << 50);
        disk.read.set(0);
        disk.table();
        assert!(disk.read.get() < 10 << 20, "{why}: {} bytes read", disk.read.get());
    }
}

#[test]
fn gpt_entries_of_256_bytes_are_read_as_the_specification_allows() {
    let table = Gpt { entry_size: 256, count: 64, ..Gpt::default() }.disk().table();
    assert_eq!(table.entries.len(), 2);
}

#[test]
fn gpt_partitions_off_the_disk_are_left_out_and_overlaps_are_kept() {
    let parts =
        [(2048, 3000), (2500, 3500), (3000, 2999), (3000, 4096), (1 << 60, 1 << 61), (0, u64::MAX), (3999, 3999)];
    let parts = parts.map(|(first, last)| (first, last, Vec::new())).to_vec();
    let disk = Gpt { parts, ..Gpt::default() }.disk();
    assert_eq!(disk.numbers(), [1, 2, 7]);
    assert_eq!(disk.table().problems.len(), 4);
    assert!(disk.table().problems[1].contains("partition 4 is left out"));
}

#[test]
fn labels_that_could_steer_a_terminal_cannot() {
    let name = vec![0x1b, u16::from(b'['), 0xd800, u16::from(b'x'), 0x85, 0xd83d, 0xde00, 0, u16::from(b'y')];
    let disk = Gpt { parts: vec![(2048, 2049, name)], ..Gpt::default() }.disk();
    assert_eq!(disk.table().entries[0].label.as_deref(), Some("\u{fffd}[\u{fffd}x\u{fffd}😀"));
    let full = Gpt { parts: vec![(2048, 2049, vec![u16::from(b'a'); 36])], ..Gpt::default() }.disk();
    assert_eq!(full.table().entries[0].label.as_ref().unwrap().len(), 36);
}

#[test]
fn a_table_that_cannot_be_read_is_an_error_and_not_an_empty_disk() {
    let mut disk = Gpt::default().disk();
    disk.broken = 0..1;
    assert_eq!(disk.parse().unwrap_err().kind(), ErrorKind::Io);
    disk.broken = 512..1 << 40;
    assert_eq!(disk.parse().unwrap_err().kind(), ErrorKind::Io);
    disk.broken = 512..1024;
    assert_eq!(disk.numbers(), [1, 2], "the backup header can be read");
}

#[test]
fn logical_partitions_count_from_five_along_the_chain() {
    let mut disk = Disk::new(8 << 20);
    slot(&mut disk, 0, 0, 0x83, 2048, 2048);
    slot(&mut disk, 0, 2, 0x0f, 4096, 8192);
    slot(&mut disk, 4096, 0, 0x82, 63, 1000);
    slot(&mut disk, 4096, 1, 0x05, 2000, 2000);
    slot(&mut disk, 6096, 0, 0x8e, 63, 500);
    let table = disk.table();
    let found: Vec<_> =
        table.entries.iter().map(|e| (e.number, e.range.start().0 / 512, e.range.len() / 512)).collect();
    assert_eq!(found, [(1, 2048, 2048), (5, 4096 + 63, 1000), (6, 6096 + 63, 500)]);
    assert_eq!(table.entries[1].type_code, "0x82");
    assert_eq!(table.entries[2].type_name, Some("Linux LVM"));
    assert_eq!(table.problems, [""; 0]);
}

#[test]
fn a_chain_of_logical_partitions_may_lead_backwards_but_not_round() {
    let mut disk = Disk::new(8 << 20);
    slot(&mut disk, 0, 0, 0x05, 1000, 9000);
    slot(&mut disk, 1000, 0, 0x83, 10, 10);
    slot(&mut disk, 1000, 1, 0x05, 500, 100);
    slot(&mut disk, 1500, 0, 0x83, 10, 10);
    slot(&mut disk, 1500, 1, 0x05, 200, 100);
    slot(&mut disk, 1200, 0, 0x83, 10, 10);
    slot(&mut disk, 1200, 1, 0x05, 500, 100);
    assert_eq!(disk.numbers(), [5, 6, 7]);
    assert!(disk.table().problems[0].contains("goes in a circle at sector 1500"));
}

#[test]
fn a_long_chain_ends_at_partition_255_and_an_empty_one_after_a_hundred_links() {
    let mut disk = Disk::new(8 << 20);
    slot(&mut disk, 0, 0, 0x05, 100, 16000);
    for i in 0..300 {
        slot(&mut disk, 100 + 10 * i, 0, 0x83, 1, 5);
        slot(&mut disk, 100 + 10 * i, 1, 0x05, 10 * (i as u32 + 1), 10);
    }
    assert_eq!(disk.numbers().last(), Some(&255));
    assert!(disk.table().problems[0].contains("after number 255"));

    let mut disk = Disk::new(8 << 20);
    slot(&mut disk, 0, 0, 0x05, 100, 16000);
    for i in 0..300 {
        slot(&mut disk, 100 + 10 * i, 1, 0x05, 10 * (i as u32 + 1), 10);
    }
    assert!(disk.table().problems[0].contains("100 empty links"));
}

#[test]
fn the_third_and_fourth_slot_of_a_link_count_only_where_they_fit() {
    let mut disk = Disk::new(8 << 20);
    slot(&mut disk, 0, 0, 0x05, 1000, 2000);
    slot(&mut disk, 1000, 0, 0x83, 10, 10);
    slot(&mut disk, 1000, 2, 0x83, 1990, 10);
    assert_eq!(disk.numbers(), [5, 6]);
    slot(&mut disk, 1000, 2, 0x83, 1990, 11);
    slot(&mut disk, 1000, 3, 0x83, u32::MAX, 1);
    assert_eq!(disk.numbers(), [5]);
}

#[test]
fn a_chain_that_breaks_off_keeps_what_came_before() {
    let mut disk = Disk::new(8 << 20);
    slot(&mut disk, 0, 0, 0x05, 100, 16000);
    slot(&mut disk, 100, 0, 0x83, 1, 5);
    slot(&mut disk, 100, 1, 0x05, 500, 100);
    assert_eq!(disk.numbers(), [5]);
    assert!(disk.table().problems[0].contains("sector 600: it has no signature"));
    slot(&mut disk, 100, 1, 0x05, u32::MAX, 100);
    assert!(disk.table().problems[0].contains("past the end of the disk"));
    slot(&mut disk, 100, 1, 0x05, 500, 100);
    disk.broken = 600 * 512..601 * 512;
    assert_eq!(disk.numbers(), [5]);
    assert!(disk.table().problems[0].contains("made to fail"));
}

#[test]
fn mbr_partitions_past_the_end_are_left_out_or_cut() {
    let mut disk = Disk::new(1 << 20);
    slot(&mut disk, 0, 0, 0x83, 1024, u32::MAX);
    slot(&mut disk, 0, 1, 0x83, 2048, 1);
    slot(&mut disk, 0, 2, 0x83, u32::MAX, u32::MAX);
    slot(&mut disk, 0, 3, 0x83, 512, 1536);
    let table = disk.table();
    assert_eq!(disk.numbers(), [1, 4], "overlaps are kept");
    assert_eq!(table.entries[0].range.end(), GuestOffset(1 << 20));
    assert_eq!(table.problems.len(), 3);
}

#[test]
fn slots_that_are_no_partitions_make_no_table() {
    let mut disk = Disk::new(1 << 20);
    slot(&mut disk, 0, 0, 0x83, 10, 0);
    assert_eq!(disk.parse().unwrap(), None);
    slot(&mut disk, 0, 1, 0x83, 10, 10);
    disk.bytes[446 + 3 * 16] = 0x0d;
    assert_eq!(disk.parse().unwrap(), None, "a boot flag of 0x0d");
    assert_eq!(Disk::new(511).parse().unwrap(), None);
    assert_eq!(Disk::new(0).parse().unwrap(), None);
}

#[test]
fn a_disk_formatted_as_a_whole_has_no_partitions_unless_its_table_is_sound() {
    let mut fat = [0; 32];
    fat[0] = 0xeb;
    fat[12] = 2;
    fat[13] = 8;
    fat[14] = 32;
    fat[16] = 2;
    fat[21] = 0xf8;
    let mut ntfs = [0; 32];
    ntfs[3..11].copy_from_slice(b"NTFS    ");
    for boot in [fat, ntfs] {
        let mut disk = Disk::new(1 << 20);
        disk.put(0, &boot);
        disk.put(510, &[0x55, 0xaa]);
        assert_eq!(disk.parse().unwrap(), None);
        slot(&mut disk, 0, 0, 0x83, 64, 1000);
        slot(&mut disk, 0, 1, 0x83, 1064, 984);
        assert_eq!(disk.numbers(), [1, 2], "GRUB keeps an old parameter block in an MBR");
        slot(&mut disk, 0, 1, 0x83, 1063, 984);
        assert_eq!(disk.parse().unwrap(), None, "overlapping");
        slot(&mut disk, 0, 1, 0x83, 1064, 985);
        assert_eq!(disk.parse().unwrap(), None, "past the end");
        slot(&mut disk, 0, 1, 0x83, 0, 64);
        assert_eq!(disk.parse().unwrap(), None, "over the boot sector itself");
        slot(&mut disk, 0, 1, 0, 1064, 984);
        assert_eq!(disk.parse().unwrap(), None, "a slot without a type");
    }
}

#[test]
fn an_mbr_with_a_gpt_slot_is_never_read_as_an_mbr() {
    let mut disk = Gpt::default().disk();
    slot(&mut disk, 0, 1, 0x83, 2048, 1024);
    assert_eq!(disk.table().scheme, Scheme::Gpt);
    disk.bytes[512] = 0;
    disk.bytes[4095 * 512] = 0;
    assert_eq!(disk.table().entries, []);
}

/// What holds of any disk whatsoever.
fn check_invariants(disk: &Disk) {
    let Ok(Some(table)) = disk.parse() else { return };
    let mut last = 0;
    for entry in &table.entries {
        assert!(entry.number > last && entry.number <= MAX_NUMBER, "{table:?}");
        last = entry.number;
        assert!(!entry.range.is_empty() && entry.range.end().0 <= disk.size, "{table:?}");
        assert!(entry.label.as_ref().is_none_or(|l| !l.chars().any(char::is_control)));
    }
    assert!(table.problems.len() <= 260 && disk.read.get() < 20 << 20);
}

proptest! {
    #[test]
    fn any_boot_records_give_partitions_within_the_disk(
        records in prop::collection::vec(prop::collection::vec((any::<[bool; 2]>(), any::<u8>(), 0u32..3000, 0u32..3000), 4), 1..20),
        size in 0u64..2_000_000,
    ) {
        let mut disk = Disk::new(2048 * 512);
        for (i, record) in records.iter().enumerate() {
            for (index, ([extended, _], kind, first, count)) in record.iter().enumerate() {
                let kind = if *extended { 5 } else { *kind };
                slot(&mut disk, i * 100, index, kind, first / 100 * 100, *count);
            }
        }
        check_invariants(&disk.grown_to(size));
    }

    #[test]
    fn any_gpt_entries_give_partitions_within_the_disk(
        parts in prop::collection::vec((any::<u64>(), any::<u64>(), 0u32..3, prop::collection::vec(any::<u16>(), 0..36)), 0..128),
        size in prop::option::of(any::<u64>()),
    ) {
        let bound = |value: u64, how: u32| if how == 0 { value } else { value % 5000 };
        let parts = parts.into_iter().map(|(a, b, how, name)| (bound(a, how), bound(b, how), name)).collect();
        let disk = Gpt { parts, ..Gpt::default() }.disk();
        let whole = disk.size;
        check_invariants(&disk.grown_to(size.unwrap_or(whole)));
    }

    #[test]
    fn random_damage_to_a_gpt_never_panics(hits in prop::collection::vec((0usize..2048, any::<u8>()), 1..20)) {
        let mut disk = Gpt::default().disk();
        for (at, byte) in hits {
            disk.bytes[at] = byte;
        }
        check_invariants(&disk);
    }
}
