//! Many checkpoints of disks that a guest keeps changing: every backup of every disk is the disk as it was then.

use std::time::Duration;

use crate::fleece::{Fleece, GRANULARITY};
use crate::scene::{Scene, assert_same};
use crate::support::mounts::{Mounted, can_mount, within};
use crate::support::random::Random;
use crate::support::tools::have;

const DISKS: [&str; 2] = ["vda", "vdb"];
const CHECKPOINTS: u64 = 20;
const KIB: u64 = 1 << 10;

/// A disk's bytes, changed as the guest changes them.
struct Model {
    bytes: Vec<u8>,
    commands: Vec<String>,
    /// What a discard leaves is QEMU's choice, so the guest has to look.
    discarded: bool,
}

impl Model {
    fn fill(&mut self, at: u64, len: u64, byte: u8) {
        self.bytes[at as usize..(at + len) as usize].fill(byte);
    }

    /// One thing that a guest does: a write, zeros in one of two ways, or a discard.
    fn change(&mut self, random: &mut Random) {
        let size = self.bytes.len() as u64;
        let unit = random.pick(&[512, 4 * KIB, 64 * KIB]);
        let at = random.below(size / unit) * unit;
        let len = (random.between(1, 24) * unit).min(size - at);
        match random.below(6) {
            0 => {
                self.commands.push(format!("write -z {at} {len}"));
                self.fill(at, len, 0);
            }
            1 => {
                self.commands.push(format!("write -z -u {at} {len}"));
                self.fill(at, len, 0);
            }
            2 => {
                self.commands.push(format!("discard {at} {len}"));
                self.discarded = true;
            }
            _ => {
                let byte = random.between(1, 255) as u8;
                self.commands.push(format!("write -P {byte} {at} {len}"));
                self.fill(at, len, byte);
            }
        }
    }
}

fn changes(fleece: &mut Fleece, models: &mut [Model], random: &mut Random, most: u64) {
    for (disk, model) in DISKS.iter().zip(models) {
        (0..random.below(most + 1)).for_each(|_| model.change(random));
        let commands = std::mem::take(&mut model.commands);
        if !commands.is_empty() {
            fleece.guest(disk, &commands);
        }
        if std::mem::take(&mut model.discarded) {
            model.bytes = fleece.look(disk);
        }
    }
}

/// What a mount shows of a disk in a backup.
fn shown(mounted: &Mounted, backup: &str, disk: &str) -> std::io::Result<Vec<u8>> {
    std::fs::read(mounted.path(&format!("100/{}/{disk}.raw", backup.trim_start_matches("qemu-"))))
}

fn history(seed: u64) {
    let mut random = Random::new(seed);
    let scene = Scene::new();
    // There from before the first backup until after the last.
    let mounted = can_mount().then(|| Mounted::new(&scene.store()));
    let sizes = [12 << 20, (3 << 20) + 512 * random.between(1, 200)];
    let mut fleece = Fleece::start(&[(DISKS[0], sizes[0]), (DISKS[1], sizes[1])], GRANULARITY);
    let mut models: Vec<Model> = sizes
        .iter()
        .map(|size| Model { bytes: vec![0; *size as usize], commands: Vec::new(), discarded: false })
        .collect();
    let mut kept: Vec<(String, Vec<Vec<u8>>)> = Vec::new();
    let mut increments = 0;
    let mut shrunk = [false; 2];
    let lost_at = random.between(4, CHECKPOINTS - 4);
    let restart_at = random.between(4, CHECKPOINTS - 4);
    for number in 0..CHECKPOINTS {
        changes(&mut fleece, &mut models, &mut random, 12);
        if random.one_in(5) {
            let which = random.below(2) as usize;
            let (size, by) = (models[which].bytes.len() as u64, 512 * random.between(1, 3000));
            let shrinks = random.one_in(4);
            let size = if shrinks { size.saturating_sub(by).max(1 << 20) } else { (size + by).min(16 << 20) };
            shrunk[which] |= shrinks;
            fleece.resize(DISKS[which], size);
            // What a cluster holds behind the disk's end comes back when it grows.
            models[which].bytes = fleece.look(DISKS[which]);
            changes(&mut fleece, &mut models, &mut random, 3);
        }
        if number == restart_at {
            fleece.restart();
            changes(&mut fleece, &mut models, &mut random, 5);
        }
        let checkpoint = format!("cp{number}");
        let since = number.checked_sub(1).map(|last| format!("cp{last}"));
        let mut lost = Vec::new();
        if number == lost_at {
            fleece.lose_bitmap(DISKS[1], since.as_deref().unwrap());
            lost.push(DISKS[1]);
        }
        fleece.begin(&checkpoint, since.as_deref(), &lost);
        let then: Vec<Vec<u8>> = models.iter().map(|model| model.bytes.clone()).collect();
        // The guest goes on while the backup is made.
        changes(&mut fleece, &mut models, &mut random, 6);

        let disks = DISKS.map(|disk| {
            let since = since.as_ref().map_or(String::new(), |since| format!(",since={since}"));
            format!("{disk}={},bitmap=backup-{disk}{since}", fleece.uri(disk))
        });
        let mut request = scene.request(&[&disks[0], &disks[1]]);
        request.checkpoint = Some(checkpoint);
        request.zstd = random.pick(&[None, Some(1), Some(3)]);
        request.full = random.one_in(9);
        let made = scene.back_up(&request);
        fleece.end();
        for ((disk, name), shrunk) in made.disks.iter().zip(DISKS).zip(&mut shrunk) {
            let expected = number > 0 && !request.full && !lost.contains(&name);
            // A disk that has shrunk and has grown again may be either.
            if std::mem::take(shrunk) {
                continue;
            }
            assert_eq!(disk.parent.is_some(), expected, "seed {seed}, checkpoint {number}: {:?}", disk.reason);
            increments += u32::from(expected);
        }
        // Not each time: a mount may take a second to see what is new.
        if let Some(mounted) = mounted.as_ref().filter(|_| number % 4 == 1) {
            within(Duration::from_secs(2), &made.backup, || shown(mounted, &made.backup, DISKS[0]).is_ok());
            for (name, bytes) in DISKS.iter().zip(&then) {
                println!("seed {seed}, {}, {name}, as soon as it is shown", made.backup);
                assert_same(&shown(mounted, &made.backup, name).unwrap(), bytes);
            }
        }
        kept.push((made.backup, then));
    }
    assert!(increments > 15, "seed {seed}: {increments} increments prove little");
    // Through the mount that saw them come, and through one that has seen nothing yet.
    let fresh = can_mount().then(|| Mounted::new(&scene.store()));
    let newest = &kept.last().unwrap().0;
    if let Some(mounted) = &mounted {
        within(Duration::from_secs(2), newest, || shown(mounted, newest, DISKS[0]).is_ok());
    }
    for (backup, disks) in &kept {
        for (name, bytes) in DISKS.iter().zip(disks) {
            println!("seed {seed}, {backup}, {name}");
            assert_same(&scene.read(backup, name), bytes);
            for (which, mounted) in [("old", &mounted), ("fresh", &fresh)] {
                let Some(mounted) = mounted else { continue };
                let read = shown(mounted, backup, name);
                let read = read.unwrap_or_else(|e| panic!("{e}; the {which} mount: {:#}", mounted.status()));
                println!("the {which} mount");
                assert_same(&read, bytes);
            }
        }
    }
    let (last, disks) = kept.last().unwrap();
    DISKS.iter().zip(disks).for_each(|(name, bytes)| scene.check_image(last, name, bytes));
}

#[test]
fn every_backup_of_twenty_random_checkpoints_is_the_disk_as_it_was_then() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("ANNALS_HISTORY_SEED").unwrap_or(1);
    for seed in first..first + number("ANNALS_HISTORY_CASES").unwrap_or(1) {
        history(seed);
    }
}
