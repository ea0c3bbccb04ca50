//! A point-in-time source with dirty bitmaps, made of `qemu-storage-daemon` alone: the block graph of libvirt's pull backups.
//!
//! A guest writes to a disk through one export. At a checkpoint a copy-before-write job freezes the disk's content in a scratch image,
//! which another, read-only export shows together with a bitmap of what has changed since an earlier checkpoint.

// Each test binary compiles this for itself and uses a part of it.
#![allow(dead_code)]

use serde_json::{Value, json};

use crate::nbd_servers::StorageDaemon;
use crate::support::tools::run;

pub(crate) const GRANULARITY: u64 = 64 << 10;

pub(crate) struct Fleece {
    daemon: Option<StorageDaemon>,
    disks: Vec<String>,
    /// Names of checkpoints, oldest first; each is a bitmap of every disk.
    checkpoints: Vec<String>,
    /// Disks that are frozen now, and whether a bitmap is shown.
    frozen: Vec<(String, bool)>,
    granularity: u64,
}

impl Fleece {
    /// Disks of these names and sizes.
    pub(crate) fn start(disks: &[(&str, u64)], granularity: u64) -> Self {
        let mut daemon = StorageDaemon::start();
        for (disk, size) in disks {
            daemon.add_image(disk, *size);
        }
        let disks = disks.iter().map(|(disk, _)| (*disk).to_owned()).collect();
        let mut fleece = Self { daemon: Some(daemon), disks, checkpoints: Vec::new(), frozen: Vec::new(), granularity };
        fleece.show_to_guest();
        fleece
    }

    pub(crate) fn daemon(&mut self) -> &mut StorageDaemon {
        self.daemon.as_mut().unwrap()
    }

    fn show_to_guest(&mut self) {
        for disk in self.disks.clone() {
            self.daemon().export(&disk, &format!("guest-{disk}"), true, json!([]));
        }
    }

    /// Runs `qemu-io` commands on a disk, as its guest.
    pub(crate) fn guest(&mut self, disk: &str, commands: &[String]) {
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        self.daemon().guest(&format!("guest-{disk}"), &commands);
    }

    /// The disk as its guest sees it now.
    pub(crate) fn look(&mut self, disk: &str) -> Vec<u8> {
        let uri = self.daemon().server.uri(&format!("guest-{disk}"));
        let copy = self.daemon().server.path("look.raw");
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, copy.to_str().unwrap()]);
        std::fs::read(copy).unwrap()
    }

    /// The URI of a frozen disk.
    pub(crate) fn uri(&mut self, disk: &str) -> String {
        self.daemon().server.uri(disk)
    }

    fn scratch(&mut self, disk: &str) -> String {
        self.daemon().server.path(&format!("scratch-{disk}.qcow2")).to_str().unwrap().to_owned()
    }

    /// Freezes every disk in one instant and makes the checkpoint `name`. The exports show bitmaps `backup-DISK` of what has
    /// changed since the checkpoint `since`, but not for disks in `lost`.
    pub(crate) fn begin(&mut self, name: &str, since: Option<&str>, lost: &[&str]) {
        let later: Vec<String> = match since.and_then(|since| self.checkpoints.iter().position(|known| known == since))
        {
            Some(at) => self.checkpoints[at..].to_vec(),
            None => Vec::new(),
        };
        let latest = self.checkpoints.last().cloned();
        let granularity = self.granularity;
        let mut actions: Vec<Value> = Vec::new();
        for disk in self.disks.clone() {
            let scratch = self.scratch(&disk);
            let size = self.size(&disk).to_string();
            run("qemu-img", &["create", "-q", "-f", "qcow2", &scratch, &size]);
            let node = format!("scratch-{disk}");
            let file = json!({"driver": "file", "filename": scratch});
            self.daemon()
                .qmp("blockdev-add", json!({"node-name": node, "driver": "qcow2", "backing": disk, "file": file}));
            let shown = !later.is_empty() && !lost.contains(&disk.as_str());
            let mut act = |kind: &str, data: Value| actions.push(json!({"type": kind, "data": data}));
            let bitmap = format!("backup-{disk}");
            if shown {
                let new = json!({"node": disk, "name": bitmap, "granularity": granularity, "disabled": true});
                act("block-dirty-bitmap-add", new);
                act("block-dirty-bitmap-merge", json!({"node": disk, "target": bitmap, "bitmaps": later}));
            }
            if let Some(latest) = latest.as_ref().filter(|_| !lost.contains(&disk.as_str())) {
                act("block-dirty-bitmap-disable", json!({"node": disk, "name": latest}));
            }
            let new = json!({"node": disk, "name": name, "granularity": granularity, "persistent": true});
            act("block-dirty-bitmap-add", new);
            let job = json!({"job-id": format!("job-{disk}"), "device": disk, "target": node, "sync": "none"});
            act("blockdev-backup", job);
            self.frozen.push((disk, shown));
        }
        self.daemon().qmp("transaction", json!({"actions": actions}));
        self.checkpoints.push(name.to_owned());
        for (disk, shown) in self.frozen.clone() {
            let bitmaps = if shown { json!([format!("backup-{disk}")]) } else { json!([]) };
            self.daemon().export(&format!("scratch-{disk}"), &disk, false, bitmaps);
        }
    }

    /// Ends what [`begin`](Self::begin) began; the checkpoint stays.
    pub(crate) fn end(&mut self) {
        for (disk, shown) in std::mem::take(&mut self.frozen) {
            let job = format!("job-{disk}");
            let daemon = self.daemon();
            daemon.unexport(&format!("scratch-{disk}"));
            daemon.qmp("block-job-cancel", json!({"device": job, "force": true}));
            daemon.wait_for_event("BLOCK_JOB_CANCELLED", "device", &job);
            daemon.qmp("blockdev-del", json!({"node-name": format!("scratch-{disk}")}));
            if shown {
                let bitmap = json!({"node": disk, "name": format!("backup-{disk}")});
                daemon.qmp("block-dirty-bitmap-remove", bitmap);
            }
            let scratch = self.scratch(&disk);
            std::fs::remove_file(scratch).unwrap();
        }
    }

    /// Drops the bitmap of a checkpoint of one disk, as a crash of QEMU or a careless hand does.
    pub(crate) fn lose_bitmap(&mut self, disk: &str, checkpoint: &str) {
        self.daemon().qmp("block-dirty-bitmap-remove", json!({"node": disk, "name": checkpoint}));
    }

    pub(crate) fn resize(&mut self, disk: &str, size: u64) {
        let daemon = self.daemon();
        daemon.unexport(disk);
        daemon.qmp("block_resize", json!({"node-name": disk, "size": size}));
        daemon.export(disk, &format!("guest-{disk}"), true, json!([]));
    }

    pub(crate) fn size(&mut self, disk: &str) -> u64 {
        let nodes = self.daemon().qmp("query-named-block-nodes", json!({"flat": true}));
        let node = nodes.as_array().unwrap().iter().find(|node| node["node-name"] == disk).unwrap();
        node["image"]["virtual-size"].as_u64().unwrap()
    }

    /// Ends the daemon and starts it anew with the same disks and their persistent bitmaps.
    pub(crate) fn restart(&mut self) {
        let server = self.daemon.take().unwrap().quit();
        self.daemon = Some(StorageDaemon::start_in(server));
        for disk in self.disks.clone() {
            self.daemon().open_image(&disk);
        }
        self.show_to_guest();
    }
}
