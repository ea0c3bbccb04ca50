//! The program killed while it pulls from a guest that goes on: what is listed is right, and so is the next increment.

use std::time::Duration;

use crate::fleece::{Fleece, GRANULARITY};
use crate::scene::{Scene, assert_same};
use crate::support::random::Random;
use crate::support::tools::have;
use crate::watched::Watched;

const SIZE: usize = 8 << 20;
const ROUNDS: u64 = 14;

#[test]
fn killed_at_any_moment_of_a_pull_the_next_increment_counts_from_the_backup_that_there_is() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    let scene = Scene::new();
    let mut random = Random::new(11);
    let mut fleece = Fleece::start(&[("vda", SIZE as u64)], GRANULARITY);
    // All that is ever changed is there at first, so that no increment takes longer than the full backup.
    fleece.guest("vda", &["write -P 0xee 0 1M".into()]);
    let mut model = vec![0; SIZE];
    model[..1 << 20].fill(0xee);
    let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
    let mut since: Option<String> = None;
    // As long as a run takes here, the first of which is not disturbed.
    let mut whole = Duration::ZERO;
    let (mut killed, mut survived) = (0, 0);
    for round in 0..=ROUNDS {
        for _ in 0..random.between(1, 6) {
            let (at, byte) = (random.below(14) << 16, random.between(1, 255) as u8);
            fleece.guest("vda", &[format!("write -P {byte} {at} 128k")]);
            model[at as usize..at as usize + (128 << 10)].fill(byte);
        }
        let checkpoint = format!("cp{round}");
        fleece.begin(&checkpoint, since.as_deref(), &[]);
        let counts = since.as_ref().map_or(String::new(), |since| format!(",since={since}"));
        let disk = format!("vda={},bitmap=backup-vda{counts}", fleece.uri("vda"));
        let args = ["backup", "vm", "100", "--disk", &disk, "--checkpoint", &checkpoint, "--bwlimit", "4M"];
        let undisturbed = round == 0 || round == ROUNDS;
        let run = Watched::start(&scene.store(), &args);
        if !undisturbed {
            std::thread::sleep(whole.mul_f64(random.below(1600) as f64 / 1000.0));
            // It may have ended by itself.
            run.signal(rustix::process::Signal::KILL);
        }
        let ended = run.end();
        if round == 0 {
            whole = ended.took;
        }
        fleece.end();
        let now: Vec<String> = scene.names().into_iter().filter(|name| name.ends_with('Z')).collect();
        let had = kept.len();
        assert!(now[..had].iter().zip(&kept).all(|(name, (known, _))| name == known), "{now:?}");
        match &now[had..] {
            [] => {
                assert!(!undisturbed && ended.code != Some(0), "{ended:?}");
                killed += 1;
            }
            [new] => {
                let parent = scene.manifest(new).disks[0].parent.as_ref().map(|parent| parent.backup.clone());
                assert_eq!(parent.as_ref(), kept.last().map(|(name, _)| name), "round {round}");
                kept.push((new.clone(), model.clone()));
                since = Some(checkpoint);
                survived += 1;
            }
            more => panic!("{more:?} by one run"),
        }
    }
    println!("{killed} killed, {survived} came through");
    assert!(killed >= 1, "{killed} killed and {survived} that came through prove little");
    for (backup, bytes) in &kept {
        assert_same(&scene.read(backup, "vda"), bytes);
        scene.check_image(backup, "vda", bytes);
    }
    assert!(!scene.names().iter().any(|name| name.starts_with(".partial-")), "{:?}", scene.names());
}
