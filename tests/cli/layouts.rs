//! Every layout of a store, as `list` and `show` tell it.

use super::support::stores::{TestStore, annals_at};
use super::support::tools;
use super::{all, backups, layers};

const FIRST: &str = "100/qemu-2024-11-07T16-51-22Z/drive-scsi0.qcow2";
const SECOND: &str = "100/qemu-2024-11-08T16-51-20Z/drive-scsi0.qcow2";

#[test]
fn the_own_layout_is_told_with_its_manifest() {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let store = TestStore::new();
    store.base(FIRST, "1G");
    store.fill(FIRST, 1, "0", "128k");
    store.overlay(SECOND, "../qemu-2024-11-07T16-51-22Z/drive-scsi0.qcow2", "qcow2");
    store.fill(SECOND, 2, "64k", "128k");
    store.write("100/qemu-2024-11-08T16-51-20Z/guest.conf", "cores: 2\n");
    store.write(
        "100/qemu-2024-11-08T16-51-20Z/backup.json",
        r#"{"version":1,"guest":"100","kind":"qemu","time":"2024-11-08T16:51:20Z","tool":{"name":"annals","version":"9"},
            "disks":[{"name":"drive-scsi0","file":"drive-scsi0.qcow2","format":"qcow2","size":1073741824,
            "parent":{"backup":"qemu-2024-11-07T16-51-22Z","file":"drive-scsi0.qcow2"},"reason":"the bitmap is whole",
            "checkpoint":"cp7"}]}"#,
    );

    let guests = store.annals(&["list"]);
    assert_eq!((guests.code, guests.stderr.as_str()), (Some(0), ""));
    assert!(guests.stdout.contains("100    qemu  2        0       2024-11-07T16-51-22Z"), "{}", guests.stdout);
    assert_eq!(backups(&store, "100"), ["2024-11-07T16-51-22Z", "2024-11-08T16-51-20Z"]);

    let shown = store.annals(&["show", "100@latest", "--json"]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let shown = shown.json();
    let second = "qemu-2024-11-08T16-51-20Z/drive-scsi0.qcow2";
    assert_eq!(layers(&shown, "drive-scsi0"), [second, "qemu-2024-11-07T16-51-22Z/drive-scsi0.qcow2"]);
    assert_eq!(shown["disks"][0]["opened"]["size"], 1 << 30);
    assert_eq!(shown["disks"][0]["opened"]["allocated"], 192 << 10);
    assert_eq!(shown["disks"][0]["manifest"]["reason"], "the bitmap is whole");
    assert_eq!(shown["disks"][0]["manifest"]["checkpoint"], "cp7");
    assert_eq!(all(&shown["files"], "name"), ["backup.json", "guest.conf"]);

    let text = store.annals(&["show", "100@2024-11-08"]).stdout;
    for part in [
        "disk drive-scsi0: 1 GiB, 192 KiB allocated, 2 layers",
        "made by    annals 9",
        second,
        "64 KiB",
        "checkpoint: cp7",
    ] {
        assert!(text.contains(part), "no '{part}' in:\n{text}");
    }
}

#[test]
fn a_manifest_that_the_image_contradicts_is_reported() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let store = TestStore::new();
    store.base("100/qemu-2024-11-08T16-51-20Z/drive-scsi0.qcow2", "1M");
    store.write(
        "100/qemu-2024-11-08T16-51-20Z/backup.json",
        r#"{"version":1,"guest":"100","kind":"qemu","time":"2024-11-08T16:51:20Z",
            "disks":[{"name":"drive-scsi0","file":"drive-scsi0.qcow2","format":"qcow2","size":4096}]}"#,
    );
    let shown = store.annals(&["show", "100@latest"]);
    assert_eq!(shown.code, Some(3));
    assert!(shown.stdout.contains("the manifest says 4096 bytes, the image 1048576"), "{}", shown.stdout);
}

/// The Proxmox example's layout: epoch names, absolute backing names, no manifest.
fn proxmox(store: &TestStore, root: &str) {
    let at = |epoch: u32, file: &str| format!("{root}/100/qemu-{epoch}/{file}");
    store.base(&at(1_730_998_282, "drive-scsi0.qcow2"), "64M");
    store.fill(&at(1_730_998_282, "drive-scsi0.qcow2"), 7, "0", "1M");
    for (epoch, parent) in [(1_731_084_680, 1_730_998_282), (1_731_171_080, 1_731_084_680)] {
        let backing = store.path().join(at(parent, "drive-scsi0.qcow2"));
        store.overlay(&at(epoch, "drive-scsi0.qcow2"), backing.to_str().unwrap(), "qcow2");
        store.write(&at(epoch, "guest.conf"), "cores: 2\n");
        store.write(&at(epoch, "firewall.conf"), "[OPTIONS]\n");
    }
    store.write(&format!("{root}/100/previous-info"), "bitmap-1 1731171080\n");
    store.write(&format!("{root}/100/qemu-1731257480.failed/backup.log"), "no\n");
    store.write(&format!("{root}/101/lxc-1731171080/archive.tar"), [0; 1024]);
}

#[test]
fn the_proxmox_layout_is_read_without_a_manifest_where_it_was_made_and_after_a_move() {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let store = TestStore::new();
    proxmox(&store, "first/place");
    for root in ["first/place", "moved"] {
        let path = store.path().join(root);
        if root == "moved" {
            std::fs::rename(store.path().join("first/place"), &path).unwrap();
        }
        let run = |args: &[&str]| annals_at(&path, args);
        let listed = run(&["list", "100", "--json"]);
        assert_eq!(listed.code, Some(0), "{}{}", listed.stdout, listed.stderr);
        let listed = listed.json();
        let names = ["2024-11-07T16-51-22Z", "2024-11-08T16-51-20Z", "2024-11-09T16-51-20Z"];
        assert_eq!(all(&listed["backups"], "name"), names);
        assert_eq!(listed["backups"][0]["directory"], "qemu-1730998282");
        let shown = run(&["show", "100@2024-11-09", "--json"]).json();
        assert_eq!(layers(&shown, "drive-scsi0").len(), 3);
        assert_eq!(shown["disks"][0]["opened"]["allocated"], 1 << 20);
        let container = run(&["show", "101@latest", "--json"]).json();
        assert_eq!((container["kind"].as_str(), container["files"][0]["size"].as_u64()), (Some("lxc"), Some(1024)));
    }
}

const OVF: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <References><File ovf:href="disk-a/i1" ovf:id="i1" ovf:size="10"/></References>
  <Section xsi:type="ovf:DiskSection_Type">
    <Disk ovf:diskId="i1" ovf:vm_snapshot_id="s1" ovf:fileRef="disk-a/i1" ovf:volume-format="RAW" ovf:disk-alias="web_Disk1"/>
    <Disk ovf:diskId="i2" ovf:vm_snapshot_id="s2" ovf:fileRef="disk-a/i2" ovf:volume-format="COW" ovf:disk-alias="web_Disk1"/>
    <Disk ovf:diskId="i3" ovf:vm_snapshot_id="s3" ovf:fileRef="disk-a/i3" ovf:volume-format="COW" ovf:disk-alias="web_Disk1"/>
    <Disk ovf:diskId="k1" ovf:vm_snapshot_id="s3" ovf:fileRef="disk-b/k1" ovf:volume-format="COW" ovf:disk-alias="web_Disk2"/>
  </Section>
  <Content ovf:id="out" xsi:type="ovf:VirtualSystem_Type"><Name>web</Name>
    <Section xsi:type="ovf:SnapshotsSection_Type">
      <Snapshot ovf:id="s3"><Type>ACTIVE</Type><Description>Active VM</Description><CreationDate>2024/11/09 10:00:00</CreationDate></Snapshot>
      <Snapshot ovf:id="s1"><Type>REGULAR</Type><Description>fresh</Description><CreationDate>2024/11/07 10:00:00</CreationDate></Snapshot>
      <Snapshot ovf:id="s2"><Type>REGULAR</Type><Description>patched</Description><CreationDate>2024/11/09 10:00:00</CreationDate></Snapshot>
    </Section>
  </Content>
</ovf:Envelope>"#;

/// Two disks: one of three images on a raw base, one of a single image.
fn ovirt(store: &TestStore) {
    store.write("web/disks/disk-a/i1", vec![1; 1 << 20]);
    store.overlay("web/disks/disk-a/i2", "i1", "raw");
    store.overlay("web/disks/disk-a/i3", "i2", "qcow2");
    store.base("web/disks/disk-b/k1", "2M");
    for (file, epoch) in [("disk-a/i1", 1_000), ("disk-a/i2", 2_000), ("disk-a/i3", 3_000), ("disk-b/k1", 2_500)] {
        store.date(&format!("web/disks/{file}"), epoch);
    }
}

#[test]
fn ovirt_snapshots_are_backups_with_the_images_that_the_ovf_assigns_to_them() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let store = TestStore::new();
    ovirt(&store);
    store.write("web/vm-id.ovf", OVF);
    let listed = store.annals(&["list", "web", "--json"]);
    assert_eq!(listed.code, Some(0), "{}{}", listed.stdout, listed.stderr);
    let names = ["2024-11-07T10-00-00Z", "2024-11-09T10-00-00Z", "2024-11-09T10-00-00Z-s3"];
    assert_eq!(all(&listed.json()["backups"], "name"), names);
    assert_eq!(all(&listed.json()["backups"], "label"), ["fresh", "patched", "Active VM"]);

    let first = store.annals(&["show", "web@2024-11-07", "--json"]).json();
    assert_eq!(layers(&first, "disk-a"), ["disks/disk-a/i1"]);
    assert_eq!(first["disks"][0]["alias"], "web_Disk1");
    assert_eq!(first["disks"][0]["opened"]["allocated"], 1 << 20, "raw, as the OVF says");
    let last = store.annals(&["show", "web@latest", "--json"]).json();
    assert_eq!(layers(&last, "disk-a"), ["disks/disk-a/i3", "disks/disk-a/i2", "disks/disk-a/i1"]);
    assert_eq!(layers(&last, "disk-b"), ["disks/disk-b/k1"]);
    assert_eq!(all(&last["files"], "name"), ["vm-id.ovf"]);
}

#[test]
fn ovirt_images_that_the_ovf_contradicts_or_does_not_know_are_reported_and_the_rest_works() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let store = TestStore::new();
    ovirt(&store);
    store.write("web/disks/disk-b/stray", "");
    store.write("web/vm-id.ovf", OVF.replacen("RAW", "COW", 1).replace("disk-b/k1", "disk-b/gone"));
    let listed = store.annals(&["list", "web", "--json"]);
    assert_eq!(listed.code, Some(3));
    let listed = listed.json();
    let subjects = all(&listed["problems"], "subject");
    assert_eq!(subjects, ["disks/disk-a/i1", "disks/disk-b/k1", "disks/disk-b/stray"]);
    let broken: Vec<_> = listed["backups"].as_array().unwrap().iter().map(|b| b["broken"].as_bool().unwrap()).collect();
    assert_eq!(broken, [false, false, true], "only the snapshot whose image is missing");
    let message = listed["backups"][2]["problems"][0]["message"].as_str().unwrap();
    assert_eq!(message, "the image 'disks/disk-b/gone' is missing");
    let last = store.annals(&["show", "web@latest", "--json"]).json();
    assert_eq!(layers(&last, "disk-a").len(), 3, "the other disk works");
}

#[test]
fn ovirt_images_without_an_ovf_are_backups_by_their_chains_and_times() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let store = TestStore::new();
    ovirt(&store);
    let times = ["1970-01-01T00-16-40Z", "1970-01-01T00-33-20Z", "1970-01-01T00-41-40Z", "1970-01-01T00-50-00Z"];
    assert_eq!(backups(&store, "web"), times);
    for (time, a, b) in [(times[0], 1, 0), (times[1], 2, 0), (times[2], 2, 1), (times[3], 3, 1)] {
        let shown = store.annals(&["show", &format!("web@{time}"), "--json"]);
        assert_eq!(shown.code, Some(0), "{}", shown.stdout);
        let shown = shown.json();
        assert_eq!(layers(&shown, "disk-a").len(), a, "{time}");
        let has_b = all(&shown["disks"], "name").contains(&"disk-b");
        assert_eq!(has_b, b == 1, "{time}");
    }
    assert_eq!(store.annals(&["list"]).code, Some(0));
}

#[test]
fn ovirt_bases_branches_and_cycles_without_an_ovf_are_told_and_leave_other_disks_alone() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let store = TestStore::new();
    ovirt(&store);
    store.base("web/disks/bases/b1", "1M");
    store.base("web/disks/bases/b2", "1M");
    store.base("web/disks/branch/base", "1M");
    store.overlay("web/disks/branch/left", "base", "qcow2");
    store.overlay("web/disks/branch/right", "base", "qcow2");
    store.dangling("web/disks/cycle/c1", "c2", "qcow2");
    store.dangling("web/disks/cycle/c2", "c1", "qcow2");
    let listed = store.annals(&["list", "web", "--json"]);
    assert_eq!(listed.code, Some(3));
    let problems = listed.json()["problems"].clone();
    let told = |subject: &str, text: &str| {
        let found = problems
            .as_array()
            .unwrap()
            .iter()
            .any(|problem| problem["subject"] == subject && problem["message"].as_str().unwrap().contains(text));
        assert!(found, "no '{text}' about {subject}: {problems}");
    };
    told("disks/bases", "b1, b2");
    told("disks/branch", "left, right");
    told("disks/cycle/c1", "cycle: disks/cycle/c1, disks/cycle/c2");
    let shown = store.annals(&["show", "web@latest", "--json"]).json();
    assert_eq!(layers(&shown, "disk-a").len(), 3);
    assert_eq!(layers(&shown, "branch-left"), ["disks/branch/left", "disks/branch/base"]);
    assert_eq!(layers(&shown, "branch-right"), ["disks/branch/right", "disks/branch/base"]);
    let cycle = shown["disks"].as_array().unwrap().iter().find(|disk| disk["name"] == "cycle-c1").unwrap();
    assert!(cycle["problems"][0]["message"].as_str().unwrap().contains("cycle"), "{cycle}");
}

#[test]
fn a_plain_folder_of_images_has_a_backup_for_each_level_of_each_chain() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let store = TestStore::new();
    store.write("vm/template.img", vec![3; 1 << 20]);
    store.overlay("vm/vda.qcow2", "template.img", "raw");
    store.overlay("vm/vda-2.qcow2", "vda.qcow2", "qcow2");
    store.write("vm/vdb.raw", vec![4; 1 << 20]);
    store.write("vm/domain.xml", "<domain/>");
    for (file, epoch) in [("template.img", 1_000), ("vda.qcow2", 2_000), ("vda-2.qcow2", 3_000), ("vdb.raw", 3_000)] {
        store.date(&format!("vm/{file}"), epoch);
    }
    assert_eq!(backups(&store, "vm"), ["1970-01-01T00-16-40Z", "1970-01-01T00-33-20Z", "1970-01-01T00-50-00Z"]);
    let shown = store.annals(&["show", "vm@latest", "--json"]);
    assert_eq!(shown.code, Some(0), "{}", shown.stdout);
    let shown = shown.json();
    assert_eq!(all(&shown["disks"], "name"), ["template.img", "vdb"]);
    assert_eq!(layers(&shown, "template.img"), ["vda-2.qcow2", "vda.qcow2", "template.img"]);
    assert_eq!(all(&shown["files"], "name"), ["domain.xml"]);
    let first = store.annals(&["show", "vm@1970-01-01T00:16:40Z", "--json"]).json();
    assert_eq!(first["disks"][0]["opened"]["layers"][0]["format"], "raw", "as the image above it declares");
}

#[test]
fn an_image_under_another_name_is_reported_and_never_taken_for_one() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let store = TestStore::new();
    store.base("vm/vda.qcow2", "1M");
    store.overlay("vm/vda.snap1", "vda.qcow2", "qcow2");
    let listed = store.annals(&["list", "vm"]);
    assert_eq!(listed.code, Some(3));
    assert!(listed.stdout.contains("vda.snap1: it is a qcow2 image by its first bytes"), "{}", listed.stdout);
}
