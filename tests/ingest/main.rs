//! Backups made through the library, from files and from real NBD servers, and read back.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

use annals::ingest::{Finished, Request};

use self::fleece::Fleece;
use self::scene::Scene;

#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../support/containers.rs"]
mod containers;
#[path = "../support/fake_nbd.rs"]
mod fake_nbd;
#[path = "../support/faulty.rs"]
mod faulty;
#[path = "../support/fleece.rs"]
mod fleece;
#[path = "../support/libvirt.rs"]
mod libvirt;
#[path = "../support/nbd_servers.rs"]
mod nbd_servers;
#[path = "../support/scene.rs"]
mod scene;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/watched.rs"]
mod watched;

mod commit;
mod devices;
mod files;
mod full;
mod history;
mod killed;
mod lies;
mod lost;
mod pull;
mod servers;
mod sizes;
mod tls;
mod trees;
mod unreadable;

/// The first backup of these disks, a full one, at the checkpoint `cp0`; and its request, which the next ones can use as it is: with their
/// bitmaps, which count from there.
fn first_backup(scene: &Scene, fleece: &mut Fleece, disks: &[&str]) -> (Request, Finished) {
    fleece.begin("cp0", None, &[]);
    let sources: Vec<String> =
        disks.iter().map(|disk| format!("{disk}={},bitmap=backup-{disk},since=cp0", fleece.uri(disk))).collect();
    let mut request = scene.request(&sources.iter().map(String::as_str).collect::<Vec<_>>());
    request.checkpoint = Some("cp0".into());
    let made = scene.back_up(&request);
    fleece.end();
    (request, made)
}
