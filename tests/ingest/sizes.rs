//! Disks that have another size than at their latest backup.

use std::sync::atomic::{AtomicUsize, Ordering};

use annals::nbd::constants as nbd;
use serde_json::json;

use crate::fake_nbd::{ALLOCATION, CHANGED, FakeServer, Offer, SIZE, bytes_at};
use crate::first_backup;
use crate::fleece::{Fleece, GRANULARITY};
use crate::nbd_servers::StorageDaemon;
use crate::scene::{Scene, assert_same};
use crate::support::tools::have;

const MIB: usize = 1 << 20;
const QEMU: [&str; 3] = ["qemu-storage-daemon", "qemu-img", "qemu-io"];

#[test]
fn a_disk_that_has_grown_under_libvirt_is_an_increment_and_one_that_has_shrunk_starts_afresh() {
    if !have(&QEMU) {
        return;
    }
    let scene = Scene::new();
    let mut fleece = Fleece::start(&[("vda", 8 * MIB as u64)], GRANULARITY);
    fleece.guest("vda", &["write -P 0x11 0 8M".into()]);
    let disk = fleece.uri("vda");
    let back_up = |fleece: &mut Fleece, checkpoint: &str, since: Option<&str>| {
        fleece.begin(checkpoint, since, &[]);
        let counts = since.map_or(String::new(), |since| format!(",bitmap=backup-vda,since={since}"));
        let mut request = scene.request(&[&format!("vda={disk}{counts}")]);
        request.checkpoint = Some(checkpoint.into());
        let made = scene.back_up(&request);
        fleece.end();
        made
    };
    let first = back_up(&mut fleece, "cp0", None);

    fleece.resize("vda", 12 * MIB as u64 + 512);
    fleece.guest("vda", &["write -P 0x22 1M 64k".into(), "write -P 0x33 10M 1M".into()]);
    let mut grown = vec![0x11; 8 * MIB];
    grown.resize(12 * MIB + 512, 0);
    grown[MIB..MIB + 65536].fill(0x22);
    grown[10 * MIB..11 * MIB].fill(0x33);
    let made = back_up(&mut fleece, "cp1", Some("cp0"));
    assert_eq!(made.disks[0].parent.as_ref().unwrap().backup, first.backup);
    let reason = made.disks[0].reason.as_ref().unwrap();
    assert!(reason.contains("the disk has grown from 8388608 bytes"), "{reason}");
    assert_same(&scene.read(&made.backup, "vda"), &grown);
    scene.check_image(&made.backup, "vda", &grown);

    fleece.resize("vda", 6 * MIB as u64);
    fleece.guest("vda", &["write -P 0x44 5M 64k".into()]);
    let mut shrunk = grown.clone();
    shrunk.truncate(6 * MIB);
    shrunk[5 * MIB..5 * MIB + 65536].fill(0x44);
    let made = back_up(&mut fleece, "cp2", Some("cp1"));
    assert!(made.disks[0].parent.is_none());
    let reason = made.disks[0].reason.as_ref().unwrap();
    assert!(reason.contains("the disk has shrunk from 12583424 to 6291456 bytes"), "{reason}");
    assert_same(&scene.read(&made.backup, "vda"), &shrunk);
    assert_same(&scene.read(&first.backup, "vda"), &vec![0x11; 8 * MIB]);
}

#[test]
fn a_disk_that_has_shrunk_and_grown_again_since_its_backup_is_not_taken_for_unchanged() {
    if !have(&QEMU) {
        return;
    }
    for (cut, granularity) in [(4 * MIB as u64, GRANULARITY), (4 * MIB as u64 + 4096 * 5, 4096)] {
        let scene = Scene::new();
        let mut fleece = Fleece::start(&[("vda", 8 * MIB as u64)], granularity);
        fleece.guest("vda", &["write -P 0x11 0 8M".into()]);
        let (mut request, _) = first_backup(&scene, &mut fleece, &["vda"]);

        // QEMU's bitmaps know nothing of what was cut off and came back as zeros.
        fleece.resize("vda", cut);
        fleece.resize("vda", 8 * MIB as u64);
        fleece.guest("vda", &["write -P 0x22 6M 64k".into()]);
        let model = fleece.look("vda");
        assert!(model[..4 * MIB] == [0x11; 4 * MIB] && model[5 * MIB..6 * MIB] == [0; MIB] && model[6 * MIB] == 0x22);
        fleece.begin("cp1", Some("cp0"), &[]);
        request.checkpoint = Some("cp1".into());
        let made = scene.back_up(&request);
        fleece.end();
        assert_same(&scene.read(&made.backup, "vda"), &model);
        let reason = made.disks[0].reason.as_ref().unwrap();
        assert!(made.disks[0].parent.is_none() && reason.contains("cannot be right"), "{reason}");
    }
}

/// An export as a Proxmox host makes it, of a disk that was 8 MiB of 0x10 at its last backup and has grown by 4 MiB since. What it grew by
/// is of no bitmap's concern, unless the guest has written all of it.
fn proxmox_grown(writable: bool, written: bool) -> StorageDaemon {
    let mut daemon = StorageDaemon::start();
    daemon.add_image("disk", 8 * MIB as u64);
    daemon.add_image("scratch", 12 * MIB as u64);
    daemon.qmp("block-dirty-bitmap-add", json!({"node": "disk", "name": "bm", "granularity": 65536}));
    daemon.export("disk", "since", true, json!([]));
    daemon.guest("since", &["write -P 0x20 1M 64k"]);
    daemon.unexport("disk");
    daemon.qmp("block_resize", json!({"node-name": "disk", "size": 12 * MIB}));
    if written {
        daemon.export("disk", "grown", true, json!([]));
        daemon.guest("grown", &["write -P 0x30 0 12M"]);
        daemon.unexport("disk");
    }
    daemon.qmp("block-dirty-bitmap-disable", json!({"node": "disk", "name": "bm"}));
    let bitmap = json!({"node": "disk", "name": "bm"});
    daemon.qmp(
        "blockdev-add",
        json!({"node-name": "cbw", "driver": "copy-before-write", "file": "disk", "target": "scratch", "bitmap": bitmap}),
    );
    daemon.qmp("blockdev-add", json!({"node-name": "snap", "driver": "snapshot-access", "file": "cbw"}));
    daemon.export("snap", "vda", writable, json!([bitmap]));
    daemon
}

#[test]
fn a_disk_that_has_grown_behind_an_export_of_what_is_dirty_alone_is_to_be_read_in_full() {
    if !have(&QEMU) {
        return;
    }
    for writable in [true, false] {
        let scene = Scene::new();
        let raw = scene.raw("disk", &vec![0x10; 8 * MIB]);
        let first = scene.back_up(&scene.request(&[&format!("d={}", raw.display())]));
        let daemon = proxmox_grown(writable, false);
        let request = scene.request(&[&format!("d={},bitmap=bm", daemon.server.uri("vda"))]);
        let told = annals::ingest::dry_run(&request).unwrap_or_else(|e| panic!("{}", e.report()));
        assert!(told[0].decision.parent().is_none());
        let reason = told[0].decision.reason();
        assert!(reason.contains("has grown from 8388608 to 12582912 bytes"), "{reason}");
        assert!(reason.contains("only what is dirty"), "{reason}");
        // This export does not let itself be read in full. That is said, and nothing is published.
        let e = scene.run(&request).unwrap_err();
        assert!(e.hint().is_some_and(|hint| hint.contains("only what is dirty")), "{}", e.report());
        assert_same(&scene.read(&first.backup, "d"), &vec![0x10; 8 * MIB]);
        assert_eq!(scene.names().iter().filter(|name| !name.ends_with(".failed")).count(), 1);
    }
}

#[test]
fn a_disk_that_has_grown_behind_such_an_export_is_backed_up_where_all_of_it_is_dirty() {
    if !have(&QEMU) {
        return;
    }
    // What can be written to is known for what it is; the other shows it only when it is asked, and is an increment then.
    for (writable, increment) in [(true, false), (false, true)] {
        let scene = Scene::new();
        let raw = scene.raw("disk", &vec![0x10; 8 * MIB]);
        scene.back_up(&scene.request(&[&format!("d={}", raw.display())]));
        let daemon = proxmox_grown(writable, true);
        let made = scene.back_up(&scene.request(&[&format!("d={},bitmap=bm", daemon.server.uri("vda"))]));
        assert_eq!(made.disks[0].parent.is_some(), increment);
        assert!(made.disks[0].reason.as_ref().unwrap().contains("the disk has grown"), "{:?}", made.disks[0].reason);
        assert_same(&scene.read(&made.backup, "d"), &vec![0x30; 12 * MIB]);
        scene.check_image(&made.backup, "d", &vec![0x30; 12 * MIB]);
    }
}

#[test]
fn a_grown_disk_whose_export_tells_nothing_of_allocation_falls_back_to_a_full_backup_that_is_right() {
    let scene = Scene::new();
    let old = &bytes_at(0, SIZE)[..SIZE as usize / 2];
    let raw = scene.raw("disk", old);
    scene.back_up(&scene.request(&[&format!("d={}", raw.display())]));
    // It has the context for allocation, and refuses every status as soon as that is among those selected.
    let refused = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = refused.clone();
    let server = FakeServer::after(Offer::backup(), move |session| {
        loop {
            let asked = session.request()?;
            if asked.command == nbd::CMD_BLOCK_STATUS && session.selected.contains(&ALLOCATION) {
                counter.fetch_add(1, Ordering::SeqCst);
                session.error(asked, true, 1, 22, "")?;
            } else {
                session.answer(&Offer::backup(), asked)?;
            }
        }
    });
    let request = scene.request(&[&format!("d={},bitmap=bm", server.uri("vda"))]);
    let made = scene.back_up(&request);
    assert!(refused.load(Ordering::SeqCst) > 0);
    assert!(made.disks[0].parent.is_none());
    let reason = made.disks[0].reason.as_ref().unwrap();
    assert!(reason.contains("has grown from 524288 to 1048576 bytes"), "{reason}");
    assert_same(&scene.read(&made.backup, "d"), &bytes_at(0, SIZE));

    // At the same size it is an increment: what is dirty is read, and nothing else.
    let again = scene.back_up(&request);
    assert_eq!(again.disks[0].parent.as_ref().unwrap().backup, made.backup);
    let read: u64 = scene
        .events
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event {
            annals::ingest::Event::DiskDone { stored, .. } => Some(*stored),
            _ => None,
        })
        .next_back()
        .unwrap();
    assert_eq!(read, CHANGED.end - CHANGED.start);
    assert_same(&scene.read(&again.backup, "d"), &bytes_at(0, SIZE));
}
