//! Sources that die, fall silent or are taken away in the middle of a run of the program.

use std::time::Duration;

use crate::fake_nbd::{FakeServer, Offer};
use crate::first_backup;
use crate::fleece::{Fleece, GRANULARITY};
use crate::nbd_servers::Server;
use crate::scene::{Scene, assert_same};
use crate::support::random::Random;
use crate::support::tools::have;
use crate::watched::{Ended, Watched};

const MIB: usize = 1 << 20;

/// A scene with a backup of a disk, and what that holds.
pub(crate) fn with_a_backup(bytes: &[u8]) -> (Scene, String) {
    let scene = Scene::new();
    let raw = scene.raw("disk", bytes);
    let made = scene.back_up(&scene.request(&[&format!("vda={}", raw.display())]));
    (scene, made.backup)
}

/// Starts a backup of these disks and waits until bytes are moving.
fn moving(scene: &Scene, args: &[&str]) -> Watched {
    let mut run = Watched::start(&scene.store(), &[&["backup", "vm", "100"], args].concat());
    run.wait_for("the transfer", || scene.names().iter().any(|name| name.starts_with(".partial-")));
    std::thread::sleep(Duration::from_millis(200));
    run
}

/// A run that failed as it should: the earlier backup is what it was, and a log tells what its standard error tells.
#[track_caller]
pub(crate) fn failed_in_order(scene: &Scene, first: &str, bytes: &[u8], ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.took < Duration::from_secs(20), "{ended:?}");
    let names = scene.names();
    let [kept, failed] = names.as_slice() else { panic!("{names:?} after {ended:?}") };
    assert!(kept == first && failed.ends_with(".failed"), "{names:?}");
    let log = std::fs::read_to_string(scene.guest().join(failed).join("backup.log")).unwrap();
    assert_eq!(crate::scene::names(&scene.guest().join(failed)), ["backup.log"]);
    for word in words {
        assert!(ended.stderr.contains(word), "no '{word}' in {}", ended.stderr);
        assert!(log.contains(word), "no '{word}' in the log: {log}");
    }
    assert_same(&scene.read(first, "vda"), bytes);
}

/// A server of the scene's disk, and the disk as an argument names it.
fn serving(scene: &Scene) -> (Server, String) {
    let mut server = Server::new();
    serve(&mut server, scene);
    let disk = format!("vda={}", server.uri("vda"));
    (server, disk)
}

fn serve(server: &mut Server, scene: &Scene) {
    server.nbdkit(&["-e", "vda", "file", scene.path("disk").to_str().unwrap()]);
}

#[test]
fn a_source_that_dies_for_good_ends_the_run_with_its_name_and_the_command_it_did_not_answer() {
    if !have(&["nbdkit"]) {
        return;
    }
    let bytes = Random::new(5).bytes(8 * MIB);
    let (scene, first) = with_a_backup(&bytes);
    let (mut server, disk) = serving(&scene);
    // So slow that what is on its way would keep the run busy for half a minute after the read that failed.
    let run = moving(&scene, &["--disk", &disk, "--bwlimit", "256K", "--timeout", "2"]);
    server.kill();
    let ended = run.end();
    failed_in_order(&scene, &first, &bytes, &ended, &["disk vda", "export 'vda': read of", "cannot connect"]);
    // With the source back, the next run is as if nothing had been.
    serve(&mut server, &scene);
    let made = scene.back_up(&scene.request(&[&disk]));
    assert_same(&scene.read(&made.backup, "vda"), &bytes);
}

#[test]
fn one_disk_whose_source_dies_takes_the_other_with_it() {
    if !have(&["nbdkit"]) {
        return;
    }
    let bytes = Random::new(6).bytes(4 * MIB);
    let (scene, first) = with_a_backup(&bytes);
    let raw = scene.path("disk");
    let (mut dying, mut living) = (Server::new(), Server::new());
    dying.nbdkit(&["file", raw.to_str().unwrap()]);
    living.nbdkit(&["file", raw.to_str().unwrap()]);
    let disks = [&living, &dying].map(|server| server.uri(""));
    let disks = [format!("vda={}", disks[0]), format!("vdb={}", disks[1])];
    let args = ["--disk", &disks[0], "--disk", &disks[1], "--bwlimit", "1M", "--timeout", "1"];
    let run = moving(&scene, &args);
    dying.kill();
    failed_in_order(&scene, &first, &bytes, &run.end(), &["disk vdb", "the default export: read of"]);
}

#[test]
fn a_source_that_falls_silent_is_given_up_after_the_time_that_was_given() {
    let (scene, first) = with_a_backup(b"what was before");
    let before = scene.read(&first, "vda");
    // It answers the plan and two reads; whoever connects again is let in, and gets no answer either.
    let server = FakeServer::after(Offer { block_sizes: Some([1, 4096, 65536]), ..Offer::backup() }, |session| {
        let mut reads = 0;
        loop {
            let asked = session.request()?;
            if asked.command == annals::nbd::constants::CMD_READ {
                reads += 1;
                if reads > 2 || session.number > 1 {
                    return session.wait_for_end();
                }
            }
            session.answer(&Offer::backup(), asked)?;
        }
    });
    let disk = format!("vda={}", server.uri("vda"));
    let ended = Watched::start(&scene.store(), &["backup", "vm", "100", "--disk", &disk, "--timeout", "1"]).end();
    let words = ["disk vda", "export 'vda': read of", "silent for 1s"];
    failed_in_order(&scene, &first, &before, &ended, &words);
}

#[test]
fn a_source_that_greets_nobody_is_given_up_too() {
    let (scene, first) = with_a_backup(b"what was before");
    let before = scene.read(&first, "vda");
    let server = FakeServer::start(crate::fake_nbd::Session::wait_for_end);
    let disk = format!("vda={}", server.uri("vda"));
    let ended = Watched::start(&scene.store(), &["backup", "vm", "100", "--disk", &disk, "--timeout", "1"]).end();
    failed_in_order(&scene, &first, &before, &ended, &["disk vda", "/vda?", "did not finish the handshake in 1s"]);
}

#[test]
fn a_read_that_is_refused_ends_the_run_without_a_wait_for_those_that_are_still_on_their_way() {
    let (scene, first) = with_a_backup(b"what was before");
    let before = scene.read(&first, "vda");
    let offer = Offer { size: 8 << 20, ..Offer::backup() };
    let server = FakeServer::after(offer.clone(), move |session| {
        loop {
            let asked = session.request()?;
            match (asked.command, asked.offset) {
                (annals::nbd::constants::CMD_READ, 0) => session.error(asked, true, 1, 5, "no")?,
                (annals::nbd::constants::CMD_READ, _) => {}
                _ => session.answer(&offer, asked)?,
            }
        }
    });
    let disk = format!("vda={}", server.uri("vda"));
    let ended = Watched::start(&scene.store(), &["backup", "vm", "100", "--disk", &disk, "--timeout", "40"]).end();
    failed_in_order(
        &scene,
        &first,
        &before,
        &ended,
        &["disk vda", "export 'vda': read of 1048576 bytes at 0x0", "EIO"],
    );
}

#[test]
fn a_second_run_for_the_same_guest_is_told_who_is_at_it_since_when_and_one_for_another_guest_is_not_held_up() {
    let bytes = Random::new(7).bytes(4 * MIB);
    let (scene, first) = with_a_backup(&bytes);
    let disk = format!("vda={}", scene.path("disk").display());
    let run = moving(&scene, &["--disk", &disk, "--bwlimit", "256K"]);
    let second = Watched::start(&scene.store(), &["backup", "vm", "100", "--disk", &disk]).end();
    assert_eq!(second.code, Some(1), "{second:?}");
    let (who, year) = (format!("process {}", run.pid()), "since 20");
    assert!(second.stderr.contains(&who) && second.stderr.contains(year), "no '{who}' in {}", second.stderr);
    assert!(second.stderr.contains("annals backup vm 100"), "{}", second.stderr);
    let other = Watched::start(&scene.store(), &["backup", "vm", "101", "--disk", &disk]).end();
    assert_eq!(other.code, Some(0), "{other:?}");
    run.signal(rustix::process::Signal::TERM);
    failed_in_order(&scene, &first, &bytes, &run.end(), &["interrupted"]);
}

#[test]
fn a_signal_ends_a_run_that_waits_for_a_silent_source_at_once() {
    let (scene, first) = with_a_backup(b"what was before");
    let before = scene.read(&first, "vda");
    let server = FakeServer::after(Offer::backup(), |session| {
        let asked = session.request()?;
        session.answer(&Offer::backup(), asked)?;
        session.wait_for_end()
    });
    let disk = format!("vda={}", server.uri("vda"));
    let run = moving(&scene, &["--disk", &disk]);
    let began = std::time::Instant::now();
    run.signal(rustix::process::Signal::INT);
    let ended = run.end();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    failed_in_order(&scene, &first, &before, &ended, &["interrupted"]);
}

#[test]
fn an_export_that_is_taken_away_in_the_middle_fails_the_run_and_the_next_increment_is_right() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    let scene = Scene::new();
    let mut fleece = Fleece::start(&[("vda", 8 * MIB as u64)], GRANULARITY);
    fleece.guest("vda", &["write -P 0x11 0 8M".into()]);
    let (mut request, first) = first_backup(&scene, &mut fleece, &["vda"]);
    let first = first.backup;

    fleece.guest("vda", &["write -P 0x22 0 4M".into()]);
    fleece.begin("cp1", Some("cp0"), &[]);
    let disk = format!("vda={},bitmap=backup-vda,since=cp0", fleece.uri("vda"));
    let args = ["--disk", &disk, "--checkpoint", "cp1", "--bwlimit", "512K", "--timeout", "2"];
    let run = moving(&scene, &args);
    // As an aborted job does it.
    fleece.end();
    let ended = run.end();
    failed_in_order(&scene, &first, &vec![0x11; 8 * MIB], &ended, &["disk vda", "export 'vda': read of"]);

    // The checkpoint of the failed run is none of ours: what changed still counts from the backup that there is.
    fleece.guest("vda", &["write -P 0x33 4M 64k".into()]);
    fleece.begin("cp2", Some("cp0"), &[]);
    request.checkpoint = Some("cp2".into());
    let made = scene.back_up(&request);
    fleece.end();
    assert_eq!(made.disks[0].parent.as_ref().unwrap().backup, first);
    let mut model = vec![0x11; 8 * MIB];
    model[..4 * MIB].fill(0x22);
    model[4 * MIB..4 * MIB + 65536].fill(0x33);
    assert_same(&scene.read(&made.backup, "vda"), &model);
}

#[test]
fn a_warning_that_cannot_be_written_is_lost_and_the_backup_is_not() {
    if !have(&["nbdkit"]) {
        return;
    }
    let bytes = Random::new(6).bytes(8 * MIB);
    let (scene, _) = with_a_backup(&bytes);
    let (mut server, disk) = serving(&scene);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let args = ["backup", "vm", "100", "--disk", &disk, "--bwlimit", "4M"];
    let mut run = Watched::start_with(&scene.store(), &args, |command| {
        command.stderr(full);
    });
    run.wait_for("the transfer", || scene.names().iter().any(|name| name.starts_with(".partial-")));
    std::thread::sleep(Duration::from_millis(400));
    // The connection is lost, which is warned of, and made anew.
    server.kill();
    serve(&mut server, &scene);
    let ended = run.end();
    let names = scene.names();
    assert_eq!((ended.code, names.len()), (Some(0), 2), "{ended:?} {names:?}");
    assert_same(&scene.read(&names[1], "vda"), &bytes);
}
