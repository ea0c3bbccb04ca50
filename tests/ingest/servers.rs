//! Disks pulled from real NBD servers.

use std::os::unix::fs::FileExt as _;

use annals::base::ErrorKind;
use annals::ingest::Event;
use serde_json::json;

use crate::first_backup;
use crate::fleece::{Fleece, GRANULARITY};
use crate::nbd_servers::{Server, StorageDaemon};
use crate::scene::{CLUSTER, Scene, assert_same};
use crate::support::random::Random;
use crate::support::tools::{have, run as tool};

const MIB: usize = 1 << 20;

fn planned(scene: &Scene) -> (u64, u64) {
    let events = scene.events.lock().unwrap();
    let found = events.iter().rev().find_map(|event| match event {
        Event::Planned(planned) => Some((planned.read, planned.zeros)),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn a_full_backup_of_an_export_reads_as_the_disk_and_reads_no_zeros() {
    if !have(&["qemu-nbd", "qemu-img"]) {
        return;
    }
    let scene = Scene::new();
    let mut bytes = vec![0; 40 * MIB];
    bytes[5 * MIB..17 * MIB].copy_from_slice(&Random::new(1).bytes(12 * MIB));
    // With holes, which the server tells of.
    let raw = scene.raw("disk", b"");
    let file = std::fs::File::options().write(true).open(&raw).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_all_at(&bytes[5 * MIB..17 * MIB], 5 * MIB as u64).unwrap();
    let mut server = Server::new();
    server.qemu_nbd("raw", &raw, &["-x", "a b/c"]);
    let mut request = scene.request(&[&format!("drive-scsi0={}", server.uri("a%20b/c"))]);
    for zstd in [None, Some(1)] {
        request.zstd = zstd;
        let made = scene.back_up(&request);
        assert!(planned(&scene).0 < 13 * MIB as u64, "{:?}", planned(&scene));
        assert_same(&scene.read(&made.backup, "drive-scsi0"), &bytes);
        scene.check_image(&made.backup, "drive-scsi0", &bytes);
    }
}

#[test]
fn what_was_written_after_the_checkpoint_is_in_the_next_backup_and_not_in_this_one() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    let scene = Scene::new();
    let mut fleece = Fleece::start(&[("vda", 32 * MIB as u64)], GRANULARITY);
    fleece.guest("vda", &["write -P 0x11 0 1M".into(), "write -P 0x22 20M 2M".into()]);
    let mut model = vec![0; 32 * MIB];
    model[..MIB].fill(0x11);
    model[20 * MIB..22 * MIB].fill(0x22);

    fleece.begin("cp0", None, &[]);
    fleece.guest("vda", &["write -P 0x99 0 64k".into()]);
    let mut request = scene.request(&[&format!("vda={},bitmap=backup-vda,since=cp0", fleece.uri("vda"))]);
    request.checkpoint = Some("cp0".into());
    let first = scene.back_up(&request);
    fleece.end();
    assert!(first.disks[0].parent.is_none());
    assert_same(&scene.read(&first.backup, "vda"), &model);

    fleece
        .guest("vda", &["write -P 0xab 10M 128k".into(), "write -z -u 20M 1M".into(), "write -P 0x33 31M 512".into()]);
    model[..64 << 10].fill(0x99);
    model[10 * MIB..10 * MIB + (128 << 10)].fill(0xab);
    model[20 * MIB..21 * MIB].fill(0);
    model[31 * MIB..31 * MIB + 512].fill(0x33);
    fleece.begin("cp1", Some("cp0"), &[]);
    fleece.guest("vda", &["write -P 0x77 10M 64k".into(), "write -P 0x77 5M 64k".into()]);
    request.checkpoint = Some("cp1".into());
    let second = scene.back_up(&request);
    fleece.end();
    assert_eq!(second.disks[0].parent.as_ref().unwrap().backup, first.backup);
    // One cluster at 0, two at 10M, one at 31M are read; what became zero is written as zeros and not read.
    assert_eq!(planned(&scene), (4 * CLUSTER, MIB as u64));
    assert_same(&scene.read(&second.backup, "vda"), &model);
    scene.check_image(&second.backup, "vda", &model);
    assert_eq!(second.disks[0].bitmap.as_deref(), Some("backup-vda"));
}

#[test]
fn a_bitmap_finer_or_coarser_than_a_cluster_is_widened_with_what_the_disk_holds() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    for granularity in [4 << 10, 1 << 20] {
        let scene = Scene::new();
        let mut fleece = Fleece::start(&[("vda", 8 * MIB as u64)], granularity);
        fleece.guest("vda", &["write -P 0x11 0 8M".into()]);
        let (request, _) = first_backup(&scene, &mut fleece, &["vda"]);
        fleece.guest("vda", &["write -P 0x22 70k 1k".into(), "write -z -u 4128k 4k".into()]);
        let mut model = vec![0x11; 8 * MIB];
        model[70 << 10..71 << 10].fill(0x22);
        model[4128 << 10..4132 << 10].fill(0);
        fleece.begin("cp1", Some("cp0"), &[]);
        let made = scene.back_up(&request);
        fleece.end();
        assert!(made.disks[0].parent.is_some());
        assert_same(&scene.read(&made.backup, "vda"), &model);
    }
}

#[test]
fn a_bitmap_that_the_server_does_not_offer_makes_that_disk_alone_a_full_one() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    let scene = Scene::new();
    let mut fleece = Fleece::start(&[("vda", 4 * MIB as u64), ("vdb", 4 * MIB as u64)], GRANULARITY);
    fleece.guest("vda", &["write -P 0x11 0 1M".into()]);
    fleece.guest("vdb", &["write -P 0x12 0 1M".into()]);
    let (request, _) = first_backup(&scene, &mut fleece, &["vda", "vdb"]);
    fleece.lose_bitmap("vdb", "cp0");
    fleece.guest("vdb", &["write -P 0x13 1M 1M".into()]);
    fleece.begin("cp1", Some("cp0"), &["vdb"]);
    let made = scene.back_up(&request);
    fleece.end();
    assert!(made.disks[0].parent.is_some());
    assert!(made.disks[1].parent.is_none());
    assert!(made.disks[1].reason.as_ref().unwrap().contains("does not offer"), "{:?}", made.disks[1].reason);
    let mut model = vec![0; 4 * MIB];
    model[..MIB].fill(0x12);
    model[MIB..2 * MIB].fill(0x13);
    assert_same(&scene.read(&made.backup, "vdb"), &model);
}

#[test]
fn a_server_that_is_gone_or_has_no_such_export_fails_the_run_and_touches_nothing() {
    if !have(&["qemu-nbd"]) {
        return;
    }
    let scene = Scene::new();
    let raw = scene.raw("disk", &[7; 4096]);
    let mut server = Server::new();
    server.qemu_nbd("raw", &raw, &["-x", "vda"]);
    let e = scene.run(&scene.request(&[&format!("d={}", server.uri("vdb"))])).unwrap_err();
    assert!(e.report().contains("vdb"), "{}", e.report());
    server.kill();
    let e = scene.run(&scene.request(&[&format!("d={}", server.uri("vda"))])).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Disconnected, "{}", e.report());
    assert!(!scene.guest().exists());
}

#[test]
fn a_connection_that_drops_is_made_anew_and_the_transfer_goes_on() {
    if !have(&["nbdkit"]) {
        return;
    }
    let scene = Scene::new();
    let bytes = Random::new(5).bytes(8 * MIB);
    let raw = scene.raw("disk", &bytes);
    let mut server = Server::new();
    server.nbdkit(&["file", raw.to_str().unwrap()]);
    let mut request = scene.request(&[&format!("d={}", server.uri(""))]);
    request.bytes_per_second = Some(4 * MIB as u64);
    let made = std::thread::scope(|scope| {
        let run = scope.spawn(|| scene.run(&request));
        std::thread::sleep(std::time::Duration::from_millis(800));
        server.kill();
        server.nbdkit(&["file", raw.to_str().unwrap()]);
        run.join().unwrap()
    });
    let made = made.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_same(&scene.read(&made.backup, "d"), &bytes);
}

#[test]
fn a_server_that_ends_with_its_first_connection_is_told_from_one_that_is_gone() {
    let scene = Scene::new();
    let (socket, image) = (scene.path("one.sock"), scene.path("disk.qcow2"));
    let (socket, image) = (socket.to_str().unwrap(), image.to_str().unwrap());
    tool("qemu-img", &["create", "-q", "-f", "qcow2", image, "1M"]);
    tool("qemu-img", &["bitmap", "--add", image, "b"]);
    // Without --persistent: to see whether it listens would use up its only connection.
    let mut server = std::process::Command::new("qemu-nbd");
    let mut server = server.args(["-r", "-k", socket, "-f", "qcow2", "-B", "b", image]).spawn().unwrap();
    while !std::path::Path::new(socket).exists() && server.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    let error = scene.run(&scene.request(&[&format!("d=nbd+unix:///?socket={socket},bitmap=b")])).unwrap_err();
    let _ = server.kill();
    server.wait().unwrap();
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("qemu-nbd does with --persistent"), "{}: {hint}", error.report());
}

#[test]
fn a_source_that_answers_with_errors_fails_the_run_and_leaves_its_log() {
    if !have(&["nbdkit"]) {
        return;
    }
    let scene = Scene::new();
    let raw = scene.raw("disk", &Random::new(5).bytes(4 * MIB));
    let good = scene.back_up(&scene.request(&[&format!("d={}", raw.display())]));
    let mut server = Server::new();
    let file = format!("file={}", raw.display());
    server.nbdkit(&["--filter=error", "file", &file, "error=EIO", "error-pread-rate=100%"]);
    let e = scene.run(&scene.request(&[&format!("d={}", server.uri(""))])).unwrap_err();
    assert!(e.report().contains("EIO") && e.report().contains("disk d"), "{}", e.report());
    let names = scene.names();
    assert_eq!((names.len(), names[0].as_str()), (2, good.backup.as_str()));
    assert!(names[1].ends_with(".failed"), "{names:?}");
}

/// What a Proxmox host hands over for an increment: nothing but dirty ranges can be read of it, or asked about.
///
/// The disk held 0x10 everywhere at the last backup. Then 3 KiB at 1 MiB and 64 KiB at 3 MiB were written.
fn proxmox(granularity: u64, writable: bool) -> (StorageDaemon, Vec<u8>) {
    let mut daemon = StorageDaemon::start();
    let size = 16 * MIB as u64;
    daemon.add_image("disk", size);
    daemon.add_image("scratch", size);
    daemon.export("disk", "before", true, json!([]));
    daemon.guest("before", &["write -P 0x10 0 16M"]);
    daemon.unexport("disk");
    daemon.qmp("block-dirty-bitmap-add", json!({"node": "disk", "name": "bm", "granularity": granularity}));
    daemon.export("disk", "since", true, json!([]));
    daemon.guest("since", &["write -P 0x20 1M 3k", "write -P 0x21 3M 64k"]);
    daemon.unexport("disk");
    daemon.qmp("block-dirty-bitmap-disable", json!({"node": "disk", "name": "bm"}));
    let bitmap = json!({"node": "disk", "name": "bm"});
    daemon.qmp(
        "blockdev-add",
        json!({"node-name": "cbw", "driver": "copy-before-write", "file": "disk", "target": "scratch", "bitmap": bitmap}),
    );
    daemon.qmp(
        "blockdev-add",
        json!({"node-name": "snap", "driver": "snapshot-access", "file": "cbw", "discard": "unmap"}),
    );
    daemon.export("cbw", "guest", true, json!([]));
    daemon.export("snap", "vda", writable, json!([bitmap]));
    daemon.guest("guest", &["write -P 0x30 1M 64k"]);
    let mut model = vec![0x10; 16 * MIB];
    model[MIB..MIB + 3072].fill(0x20);
    model[3 * MIB..3 * MIB + 65536].fill(0x21);
    (daemon, model)
}

#[test]
fn an_export_that_gives_only_what_is_dirty_is_never_asked_for_more() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    // With the finer bitmap, the rest of the cluster at 1 MiB cannot be read from the export: it comes from the parent.
    for (granularity, writable, dirty) in
        [(65536, true, 2 * CLUSTER), (4096, true, 4096 + CLUSTER), (4096, false, 4096 + CLUSTER)]
    {
        let scene = Scene::new();
        let raw = scene.raw("disk", &vec![0x10; 16 * MIB]);
        let first = scene.back_up(&scene.request(&[&format!("drive-scsi0={}", raw.display())]));
        let (daemon, model) = proxmox(granularity, writable);
        let request = scene.request(&[&format!("drive-scsi0={},bitmap=bm", daemon.server.uri("vda"))]);
        let made = scene.back_up(&request);
        assert_eq!(made.disks[0].parent.as_ref().unwrap().backup, first.backup);
        assert_eq!(planned(&scene), (dirty, 0));
        assert_same(&scene.read(&made.backup, "drive-scsi0"), &model);
        scene.check_image(&made.backup, "drive-scsi0", &model);
    }
}

#[test]
fn what_has_been_written_is_discarded_at_the_source_when_that_is_asked_for() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    let scene = Scene::new();
    let raw = scene.raw("disk", &vec![0x10; 16 * MIB]);
    scene.back_up(&scene.request(&[&format!("d={}", raw.display())]));
    let (daemon, model) = proxmox(65536, true);
    let mut request = scene.request(&[&format!("d={},bitmap=bm", daemon.server.uri("vda"))]);
    request.discard_source = true;
    let made = scene.back_up(&request);
    assert_same(&scene.read(&made.backup, "d"), &model);
    // What was trimmed is gone: a second run of the same cannot read it.
    let e = scene.run(&request).unwrap_err();
    assert!(e.report().contains("disk d") && e.report().contains("read"), "{}", e.report());

    let mut read_only = Server::new();
    read_only.qemu_nbd("raw", &raw, &[]);
    request.disks = vec![format!("d={}", read_only.uri("")).parse().unwrap()];
    assert_eq!(scene.run(&request).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_full_backup_of_an_export_that_gives_only_what_is_dirty_says_what_is_the_matter() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    let scene = Scene::new();
    let (daemon, _) = proxmox(65536, true);
    let e = scene.run(&scene.request(&[&format!("d={},bitmap=bm", daemon.server.uri("vda"))])).unwrap_err();
    assert!(e.hint().is_some_and(|hint| hint.contains("only what is dirty")), "{}", e.report());
}

#[test]
fn previous_info_names_the_bitmap_after_the_data_is_there() {
    if !have(&["qemu-nbd"]) {
        return;
    }
    let scene = Scene::new();
    let raw = scene.raw("disk", &[7; 65536]);
    let mut server = Server::new();
    server.qemu_nbd("raw", &raw, &[]);
    let request = scene.request(&[&format!("d={},bitmap=bm7", server.uri(""))]);
    scene.back_up(&request);
    std::fs::write(scene.guest().join("previous-info"), "old 1730998282").unwrap();
    let made = scene.back_up(&request);
    let time = scene.manifest(&made.backup).time.epoch();
    assert_eq!(std::fs::read_to_string(scene.guest().join("previous-info")).unwrap(), format!("bm7 {time}"));
}

#[test]
fn over_a_slow_link_many_reads_are_on_their_way_at_once() {
    if !have(&["nbdkit"]) {
        return;
    }
    let scene = Scene::new();
    let mut server = Server::new();
    server.nbdkit(&["--filter=noextents", "--filter=delay", "memory", "64M", "delay-read=150ms"]);
    let made = std::time::Instant::now();
    scene.back_up(&scene.request(&[&format!("d={}", server.uri(""))]));
    // One after the other, the 64 reads of a MiB would take 9.6 s; nbdkit answers 16 at a time.
    assert!(made.elapsed() < std::time::Duration::from_millis(4800), "{:?}", made.elapsed());
}

#[test]
fn large_disks_take_no_more_memory_than_the_program_may_have() {
    if !have(&["nbdkit"]) {
        return;
    }
    let scene = Scene::new();
    // Nobody says what is zero, so all of it is read; what is not, is written.
    let (mut zeros, mut data) = (Server::new(), Server::new());
    zeros.nbdkit(&["--filter=noextents", "memory", "1G"]);
    data.nbdkit(&["--filter=noextents", "pattern", "192M"]);
    let disks = [format!("a={}", zeros.uri("")), format!("b={}", data.uri(""))];
    let args = ["backup", "vm", "100", "--disk", &disks[0], "--disk", &disks[1]];
    let ended = crate::watched::Watched::start(&scene.store(), &args).end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    println!("{} MiB in {:?}", ended.memory, ended.took);
    assert!(ended.memory < 256, "{} MiB", ended.memory);
    let [backup] = scene.names().try_into().unwrap();
    let read = scene.read(&backup, "b");
    let same = |(index, bytes): (usize, &[u8])| *bytes == (index as u64 * 8).to_be_bytes();
    assert!(read.len() == 192 * MIB && read.chunks(8).enumerate().all(same));
}
