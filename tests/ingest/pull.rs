//! Pull backups of a guest under a real libvirt, from the first full one to what comes after a crash.

use annals::ingest::{Finished, Request};

use crate::libvirt::{Libvirt, can_run_guests};
use crate::scene::{Scene, assert_same};
use crate::watched::Watched;

const MIB: usize = 1 << 20;
const DISKS: [&str; 2] = ["vda", "vdb"];

/// The request that goes with a backup that libvirt has begun.
fn request(scene: &Scene, libvirt: &Libvirt, checkpoint: &str, since: &str) -> Request {
    let disks = DISKS.map(|disk| format!("{disk}={},bitmap=backup-{disk},since={since}", libvirt.uri(disk)));
    let mut request = scene.request(&[&disks[0], &disks[1]]);
    request.checkpoint = Some(checkpoint.into());
    request
}

/// Backs up what libvirt has frozen, while the guest writes on; tells what QEMU's own client reads of it.
fn pull(scene: &Scene, libvirt: &Libvirt, checkpoint: &str, since: &str) -> (Finished, Vec<Vec<u8>>) {
    libvirt.guest("vda", &["write -P 0x99 0 64k", "write -P 0x98 15M 64k"]);
    let made = scene.back_up(&request(scene, libvirt, checkpoint, since));
    libvirt.guest("vdb", &["write -P 0x97 0 64k"]);
    let frozen = DISKS.map(|disk| libvirt.frozen(disk)).to_vec();
    libvirt.end();
    (made, frozen)
}

fn kinds(made: &Finished) -> Vec<Option<&str>> {
    made.disks.iter().map(|disk| disk.parent.as_ref().map(|parent| parent.backup.as_str())).collect()
}

#[test]
fn a_guest_of_libvirt_is_backed_up_in_full_by_increments_and_after_its_crash() {
    if !can_run_guests() {
        return;
    }
    let scene = Scene::new();
    let libvirt = Libvirt::start(&[("vda", 16 * MIB as u64), ("vdb", 4 * MIB as u64)]);
    let mut kept = Vec::new();

    libvirt.guest("vda", &["write -P 0x11 0 2M", "write -P 0x12 8M 1M"]);
    libvirt.guest("vdb", &["write -P 0x13 1M 1M"]);
    libvirt.begin("cp0", None).unwrap();
    let (first, frozen) = pull(&scene, &libvirt, "cp0", "nothing");
    assert_eq!(kinds(&first), [None, None]);
    assert!(frozen[0][..MIB] == [0x11; MIB] && frozen[1][..MIB] == [0; MIB], "it is not frozen");
    kept.push((first.backup.clone(), frozen));

    libvirt.guest("vda", &["write -z -u 8M 512k", "write -P 0x21 70k 1k", "discard 1M 128k"]);
    libvirt.guest("vdb", &["write -P 0x22 3M 64k"]);
    libvirt.begin("cp1", Some("cp0")).unwrap();
    let (second, frozen) = pull(&scene, &libvirt, "cp1", "cp0");
    assert_eq!(kinds(&second), [Some(first.backup.as_str()); 2]);
    kept.push((second.backup.clone(), frozen));

    // The job is aborted while the backup runs: that fails, and the next increment still counts from cp1.
    libvirt.guest("vda", &["write -P 0x31 4M 4M"]);
    libvirt.begin("cp2", Some("cp1")).unwrap();
    let disk = format!("vda={},bitmap=backup-vda,since=cp1", libvirt.uri("vda"));
    let args = ["backup", "vm", "100", "--disk", &disk, "--checkpoint", "cp2", "--bwlimit", "512K", "--timeout", "1"];
    let mut run = Watched::start(&scene.store(), &args);
    run.wait_for("the transfer", || scene.names().iter().any(|name| name.starts_with(".partial-")));
    libvirt.end();
    let ended = run.end();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("disk vda: export 'vda': read of"), "{}", ended.stderr);
    let backups = |scene: &Scene| scene.names().into_iter().filter(|name| name.ends_with('Z')).count();
    assert_eq!(backups(&scene), 2);
    libvirt.begin("cp3", Some("cp1")).unwrap();
    let (third, frozen) = pull(&scene, &libvirt, "cp3", "cp1");
    assert_eq!(kinds(&third), [Some(second.backup.as_str()); 2]);
    kept.push((third.backup.clone(), frozen));

    // Shut off and started again: the bitmaps are in the images.
    libvirt.shut_off();
    libvirt.boot();
    libvirt.guest("vdb", &["write -P 0x41 2M 64k"]);
    libvirt.begin("cp4", Some("cp3")).unwrap();
    let (fourth, frozen) = pull(&scene, &libvirt, "cp4", "cp3");
    assert_eq!(kinds(&fourth), [Some(third.backup.as_str()); 2]);
    kept.push((fourth.backup, frozen));

    // Killed: the bitmaps are lost. Libvirt refuses an increment, and what it gives instead is pulled in full.
    libvirt.kill();
    libvirt.boot();
    libvirt.guest("vda", &["write -P 0x51 12M 64k"]);
    let refused = libvirt.begin("cp5", Some("cp4")).unwrap_err();
    assert!(refused.contains("bitmap"), "{refused}");
    libvirt.begin("cp5", None).unwrap();
    let (fifth, frozen) = pull(&scene, &libvirt, "cp5", "cp4");
    assert_eq!(kinds(&fifth), [None, None]);
    let reason = fifth.disks[0].reason.as_ref().unwrap();
    assert!(reason.contains("does not offer the bitmap 'backup-vda'"), "{reason}");
    kept.push((fifth.backup, frozen));

    for (backup, disks) in &kept {
        for (name, bytes) in DISKS.iter().zip(disks) {
            println!("{backup}, {name}");
            assert_same(&scene.read(backup, name), bytes);
            scene.check_image(backup, name, bytes);
        }
    }
}
