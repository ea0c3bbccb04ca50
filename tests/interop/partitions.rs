//! Partition tables made by sgdisk, sfdisk and fdisk, read as `partx` reads them; file systems made by their own
//! tools, named as `blkid` names them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use annals::base::{Error, GuestOffset, GuestRange};
use annals::disk::{Disk, DiskEnv, partition_table};
use annals::format::ImageFormat;
use annals::format::filesystem;
use annals::format::partition::{self, Table};
use annals::format::window::Window;
use annals::storage::{FilePool, Gate, RelPath};

use crate::support::tools::{feed, have, run};

const MIB: u64 = 1 << 20;

struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("disk")).unwrap().set_len(size).unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn name(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        OpenOptions::new().write(true).open(self.path()).unwrap().write_all_at(bytes, at).unwrap();
    }

    fn table(&self) -> Option<Table> {
        windowed(&self.path(), |disk| partition::parse(disk).unwrap())
    }

    fn content(&self, range: GuestRange) -> Option<&'static str> {
        windowed(&self.path(), |disk| filesystem::identify(&disk.slice(range)).unwrap())
    }

    fn whole(&self) -> Option<&'static str> {
        self.content(GuestRange::between(GuestOffset(0), GuestOffset(u64::MAX)))
    }

    /// What `partx` finds: number, first sector, sectors, type. Extended partitions are left out.
    fn partx(&self, sector: u32) -> Vec<(u32, u64, u64, String)> {
        let sector = sector.to_string();
        let args = ["-S", &sector, "-o", "NR,START,SECTORS,TYPE", "-rg", &self.name()];
        let parse = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let number = |i: usize| fields[i].parse::<u64>().unwrap();
            let kind = fields[3].to_owned();
            // A byte is printed without a leading zero there.
            let kind = if kind.len() == 3 { kind.replace("0x", "0x0") } else { kind };
            (u32::try_from(number(0)).unwrap(), number(1), number(2), kind)
        };
        let extended = |part: &(u32, u64, u64, String)| matches!(part.3.as_str(), "0x05" | "0x0f" | "0x85");
        let mut parts: Vec<_> = run("partx", &args).lines().map(parse).filter(|part| !extended(part)).collect();
        parts.sort();
        parts
    }
}

fn windowed<T>(path: &Path, use_it: impl FnOnce(&Window<'_>) -> T) -> T {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let read = |buf: &mut [u8], at: GuestOffset| {
        file.read_exact_at(buf, at.0).map_err(|e| Error::io("cannot read the image", e))
    };
    use_it(&Window::new(size, &read))
}

/// The same of ours; `partx` counts in 512 bytes whatever the sectors are.
fn ours(table: &Table) -> Vec<(u32, u64, u64, String)> {
    let sector = 512;
    let entries = table.entries.iter();
    entries.map(|e| (e.number, e.range.start().0 / sector, e.range.len() / sector, e.type_code.clone())).collect()
}

#[test]
fn a_gpt_by_sgdisk_reads_as_partx_reads_it_with_its_labels() {
    if !have(&["sgdisk", "partx"]) {
        return;
    }
    let image = Image::new(256 * MIB);
    run(
        "sgdisk",
        &[
            "-n1:0:+64M",
            "-t1:ef00",
            "-c1:EFI System Partition",
            "-n2:0:+32M",
            "-t2:8200",
            "-n5:0:+16M",
            "-t5:8e00",
            "-c5:größe ✓",
            "-n128:0:0",
            "-t128:8300",
            &image.name(),
        ],
    );
    let table = image.table().unwrap();
    assert_eq!(ours(&table), image.partx(512));
    assert_eq!(table.problems, [""; 0]);
    let described: Vec<_> =
        table.entries.iter().map(|e| (e.number, e.type_name.unwrap(), e.label.as_deref())).collect();
    assert_eq!(
        described,
        [
            (1, "EFI system", Some("EFI System Partition")),
            (2, "Linux swap", None),
            (5, "Linux LVM", Some("größe ✓")),
            (128, "Linux file system", None),
        ]
    );
}

#[test]
fn a_gpt_whose_beginning_was_overwritten_reads_from_its_backup() {
    if !have(&["sgdisk", "partx"]) {
        return;
    }
    let image = Image::new(64 * MIB);
    run("sgdisk", &["-n1:0:+16M", "-n2:0:0", "-c2:data", &image.name()]);
    let whole = image.table().unwrap();
    // All but the protective MBR: header and entries.
    image.write(512, &vec![0xa5; 34 * 512 - 512]);
    let damaged = image.table().unwrap();
    assert_eq!(damaged.entries, whole.entries);
    assert_eq!(ours(&damaged), image.partx(512));
    assert!(damaged.problems[0].contains("backup GPT header"), "{:?}", damaged.problems);
}

#[test]
fn a_gpt_of_a_disk_with_4096_byte_sectors_reads_as_partx_reads_it() {
    if !have(&["fdisk", "partx"]) {
        return;
    }
    let image = Image::new(64 * MIB);
    feed("fdisk", &["-b", "4096", &image.name()], "g\nn\n1\n\n+16M\nn\n2\n\n+8M\nt\n2\n1\nw\n");
    let table = image.table().unwrap();
    assert_eq!(table.sector_size, 4096);
    assert_eq!((table.entries.len(), ours(&table)), (2, image.partx(4096)));
    image.write(4096, &[0; 4096]);
    assert_eq!(image.table().unwrap().entries, table.entries);
}

#[test]
fn an_mbr_by_sfdisk_reads_as_partx_reads_it() {
    if !have(&["sfdisk", "partx"]) {
        return;
    }
    let image = Image::new(256 * MIB);
    let script = "label: dos\n,16M,L,*\n,64M,7\n,,E\n,8M,L\n,8M,S\n,8M,V\n,,L\n";
    feed("sfdisk", &["-q", &image.name()], script);
    let table = image.table().unwrap();
    assert_eq!(ours(&table), image.partx(512));
    assert_eq!(image.table().unwrap().entries.iter().map(|e| e.number).collect::<Vec<_>>(), [1, 2, 5, 6, 7, 8]);
    assert_eq!(table.problems, [""; 0]);
}

#[test]
fn random_tables_by_sfdisk_read_as_partx_reads_them() {
    if !have(&["sfdisk", "partx"]) {
        return;
    }
    for seed in 0..24u64 {
        let mut next = {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            move |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            }
        };
        let image = Image::new(512 * MIB);
        let mut script = String::new();
        if seed % 2 == 0 {
            script.push_str("label: gpt\n");
            for _ in 0..1 + next(20) {
                script.push_str(&format!(",{}K,L\n", 64 * (1 + next(128))));
            }
        } else {
            script.push_str("label: dos\n");
            for _ in 0..1 + next(3) {
                script.push_str(&format!(",{}K,{}\n", 64 * (1 + next(128)), ["L", "S", "7", "c"][next(4) as usize]));
            }
            script.push_str(",,E\n");
            for _ in 0..next(20) {
                script.push_str(&format!(",{}K,L\n", 64 * (1 + next(128))));
            }
        }
        feed("sfdisk", &["-q", &image.name()], &script);
        let table = image.table().unwrap();
        assert_eq!(ours(&table), image.partx(512), "seed {seed}: {script}");
        assert_eq!(table.problems, [""; 0], "seed {seed}");
    }
}

/// The arguments that make a file system in a file, and its name.
const FILE_SYSTEMS: &[(&str, &[&str], &str)] = &[
    ("mkfs.ext2", &["-q", "-F"], "ext2"),
    ("mkfs.ext3", &["-q", "-F"], "ext3"),
    ("mkfs.ext4", &["-q", "-F"], "ext4"),
    ("mkfs.xfs", &["-q"], "xfs"),
    ("mkfs.btrfs", &["-q"], "btrfs"),
    ("mkfs.vfat", &["-F12"], "vfat"),
    ("mkfs.vfat", &["-F16"], "vfat"),
    ("mkfs.vfat", &["-F32"], "vfat"),
    ("mkfs.exfat", &[], "exfat"),
    ("mkntfs", &["-q", "-Q", "-F"], "ntfs"),
    ("mkswap", &[], "swap"),
    ("mkswap", &["-p", "65536"], "swap"),
];

#[test]
fn a_disk_formatted_as_a_whole_is_named_as_blkid_names_it_and_has_no_partitions() {
    let mut seen = 0;
    for (program, args, expected) in FILE_SYSTEMS {
        if !have(&[program, "blkid"]) {
            continue;
        }
        // FAT12 counts to 4,084 clusters, and XFS wants 300 MiB.
        let image = Image::new(if args.contains(&"-F12") { 16 * MIB } else { 320 * MIB });
        let name = image.name();
        run(program, &[args, &[name.as_str()][..]].concat());
        assert_eq!(image.whole(), Some(*expected), "{program} {args:?}");
        assert_eq!(run("blkid", &["-p", "-o", "value", "-s", "TYPE", &name]).trim(), *expected);
        assert_eq!(image.table(), None, "{program} {args:?}");
        seen += 1;
    }
    assert!(seen > 0 || std::env::var_os("CI").is_none());
}

#[test]
fn encrypted_and_packed_content_is_named() {
    if have(&["cryptsetup"]) {
        for version in ["luks1", "luks2"] {
            let image = Image::new(32 * MIB);
            let name = image.name();
            feed(
                "cryptsetup",
                &["-q", "--type", version, "--pbkdf=pbkdf2", "--iter-time=1", "luksFormat", &name, "-"],
                "x",
            );
            assert_eq!(image.whole(), Some("LUKS"));
        }
    }
    if have(&["mksquashfs"]) {
        let image = Image::new(0);
        std::fs::write(image.dir.path().join("file"), "content").unwrap();
        let source = image.dir.path().join("file").to_str().unwrap().to_owned();
        run("mksquashfs", &[&source, &image.name(), "-noappend", "-quiet", "-no-progress"]);
        assert_eq!(image.whole(), Some("squashfs"));
        assert_eq!(image.table(), None);
    }
    if have(&["xorriso"]) {
        let image = Image::new(0);
        let source = image.dir.path().join("file");
        std::fs::write(&source, "content").unwrap();
        let device = format!("stdio:{}", image.name());
        run("xorriso", &["-outdev", &device, "-map", source.to_str().unwrap(), "/file", "-commit"]);
        assert_eq!(image.whole(), Some("iso9660"));
    }
}

#[test]
fn a_physical_volume_is_named() {
    // Outside any volume group LVM wants a block device, so this is the header that pvcreate writes, by its format.
    let image = Image::new(MIB);
    image.write(512, b"LABELONE\x01\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0LVM2 001");
    assert_eq!(image.whole(), Some("LVM2"));
}

#[test]
fn each_partition_is_named_by_what_lies_in_it() {
    if !have(&["sgdisk", "mkfs.ext4", "mkfs.xfs"]) {
        return;
    }
    let image = Image::new(512 * MIB);
    run("sgdisk", &["-n1:0:+16M", "-n2:0:+400M", "-n3:0:0", &image.name()]);
    let table = image.table().unwrap();
    for (entry, (program, size)) in table.entries.iter().zip([("mkfs.ext4", 16 * MIB), ("mkfs.xfs", 400 * MIB)]) {
        let inner = Image::new(size);
        run(program, &["-q", &inner.name()]);
        let mut from = File::open(inner.path()).unwrap();
        let to = OpenOptions::new().write(true).open(image.path()).unwrap();
        let mut to = std::io::BufWriter::new(to);
        std::io::Seek::seek(&mut to, std::io::SeekFrom::Start(entry.range.start().0)).unwrap();
        std::io::copy(&mut from, &mut to).unwrap();
    }
    let found: Vec<_> = table.entries.iter().map(|e| image.content(e.range)).collect();
    assert_eq!(found, [Some("ext4"), Some("xfs"), None]);
}

#[test]
fn the_partitions_of_a_chain_are_those_of_its_newest_layer() {
    if !have(&["sfdisk", "qemu-img", "mkfs.vfat"]) {
        return;
    }
    let image = Image::new(64 * MIB);
    feed("sfdisk", &["-q", &image.name()], "label: gpt\n,16M,U\n,16M,L\n");
    let at = |name: &str| image.dir.path().join(name).to_str().unwrap().to_owned();
    run("qemu-img", &["convert", "-O", "qcow2", &image.name(), &at("0.qcow2")]);
    feed("sfdisk", &["-q", &image.name()], "label: dos\n,8M,c\n,,E\n,8M,L\n");
    let inner = Image::new(8 * MIB);
    run("mkfs.vfat", &[&inner.name()]);
    image.write(MIB, &std::fs::read(inner.path()).unwrap());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "0.qcow2", &at("1.qcow2")]);
    run("qemu-img", &["convert", "-n", "-O", "qcow2", &image.name(), &at("1.qcow2")]);

    let gate = Gate::open(image.dir.path(), FilePool::new(8)).unwrap();
    let found = |name: &str| {
        let path = RelPath::new(name).unwrap();
        let disk = Disk::open(&gate, &path, ImageFormat::Qcow2, &DiskEnv::new(0)).unwrap();
        let table = partition_table(&disk).unwrap();
        assert_eq!(table.problems, [""; 0]);
        let parts = table.partitions.into_iter();
        parts.map(|p| (p.scheme.to_string(), p.number, p.range.len() / MIB, p.content)).collect::<Vec<_>>()
    };
    let part = |scheme: &str, number, size, content| (scheme.to_owned(), number, size, content);
    assert_eq!(found("0.qcow2"), [part("gpt", 1, 16, None), part("gpt", 2, 16, None)]);
    assert_eq!(found("1.qcow2"), [part("mbr", 1, 8, Some("vfat")), part("mbr", 5, 8, None)]);
}
