//! Stores that somebody damaged, on purpose or not: the reason is told, the exit code is 3, the rest of the store works.

use super::support::stores::{Ran, TestStore};
use super::support::tools;

const BAD: &str = "bad/qemu-2024-11-08T16-51-20Z";
const OLDER: &str = "bad/qemu-2024-11-07T16-51-22Z";

/// A store with a good guest beside the one that `damage` makes; the reason has to be in what `list` and `show` print.
#[track_caller]
fn breaks(reason: &str, damage: impl FnOnce(&TestStore)) {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let store = TestStore::new();
    store.base("good/qemu-2024-11-08T16-51-20Z/drive.qcow2", "1M");
    store.base(&format!("{BAD}/whole.qcow2"), "1M");
    damage(&store);
    let tells = |ran: &Ran, what: &str| {
        assert_eq!(ran.code, Some(3), "{what}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stdout.contains(reason), "{what} does not say '{reason}':\n{}", ran.stdout);
        let noise = ["panicked", "\x1b"];
        assert!(
            !noise.iter().any(|n| ran.stderr.contains(n) || ran.stdout.contains(n)),
            "{}{}",
            ran.stdout,
            ran.stderr
        );
    };
    tells(&store.annals(&["list"]), "list");
    tells(&store.annals(&["list", "bad"]), "list bad");
    let shown = store.annals(&["show", "bad@latest"]);
    tells(&shown, "show");
    assert!(shown.stdout.contains("disk whole: 1 MiB"), "the backup's other disk works: {}", shown.stdout);
    let good = store.annals(&["show", "good@latest"]);
    assert_eq!(good.code, Some(0), "the other guest works: {}", good.stderr);
    let listed = store.annals(&["list", "--json"]).json();
    assert_eq!(listed["guests"][1]["guest"], "good");
    assert_eq!(listed["guests"][1]["broken"], serde_json::json!([]));
}

#[test]
fn a_missing_layer() {
    breaks("the backing file of 'qemu-2024-11-08T16-51-20Z/drive.qcow2'", |store| {
        store.dangling(&format!("{BAD}/drive.qcow2"), "../qemu-2024-11-07T16-51-22Z/drive.qcow2", "qcow2");
    });
}

#[test]
fn an_image_that_backs_itself() {
    breaks("the chain is a cycle", |store| {
        store.dangling(&format!("{BAD}/drive.qcow2"), "drive.qcow2", "qcow2");
    });
}

#[test]
fn images_that_back_each_other() {
    breaks("the chain is a cycle", |store| {
        store.dangling(&format!("{BAD}/drive.qcow2"), "../qemu-2024-11-07T16-51-22Z/drive.qcow2", "qcow2");
        store.dangling(&format!("{OLDER}/drive.qcow2"), "../qemu-2024-11-08T16-51-20Z/drive.qcow2", "qcow2");
    });
}

#[test]
fn a_fifo_for_an_image() {
    breaks("is a FIFO, not a regular file", |store| {
        tools::run("mkfifo", &[store.place(&format!("{BAD}/drive.qcow2"))]);
    });
}

#[test]
fn a_fifo_for_a_backing_file() {
    breaks("is a FIFO, not a regular file", |store| {
        store.dangling(&format!("{BAD}/drive.qcow2"), "../qemu-2024-11-07T16-51-22Z/drive.qcow2", "qcow2");
        tools::run("mkfifo", &[store.place(&format!("{OLDER}/drive.qcow2"))]);
    });
}

#[test]
fn a_directory_for_an_image() {
    breaks("is a directory, not a regular file", |store| {
        std::fs::create_dir(store.place(&format!("{BAD}/drive.qcow2"))).unwrap();
    });
}

#[test]
fn a_symlink_out_of_the_store_for_an_image() {
    breaks("is a symlink", |store| {
        std::os::unix::fs::symlink("/etc/passwd", store.place(&format!("{BAD}/drive.raw"))).unwrap();
    });
}

#[test]
fn a_backing_name_that_leads_to_another_guest() {
    breaks("leads out of the guest's directory", |store| {
        store.dangling(&format!("{BAD}/drive.qcow2"), "../../good/qemu-2024-11-08T16-51-20Z/drive.qcow2", "qcow2");
    });
}

#[test]
fn a_backing_name_that_is_a_file_of_the_host() {
    breaks("names no layer of this guest", |store| {
        store.dangling(&format!("{BAD}/drive.qcow2"), "/etc/passwd", "raw");
    });
}

#[test]
fn a_backing_name_that_is_a_protocol() {
    breaks("a protocol, not a file", |store| {
        store.dangling(&format!("{BAD}/drive.qcow2"), "nbd://localhost/x", "raw");
    });
}

#[test]
fn an_image_cut_short() {
    breaks("reaches past the end of the file", |store| {
        let file = format!("{BAD}/drive.qcow2");
        store.base(&file, "64M");
        store.fill(&file, 1, "0", "1M");
        let open = std::fs::File::options().write(true).open(store.path().join(&file)).unwrap();
        open.set_len(0x20000).unwrap();
    });
}

#[test]
fn an_image_that_is_empty() {
    breaks("drive: ", |store| store.write(&format!("{BAD}/drive.qcow2"), ""));
}

#[test]
fn a_header_that_declares_an_l1_table_of_32_gib() {
    breaks("an L1 table of 34359738360 bytes", |store| {
        store.base(&format!("{BAD}/drive.qcow2"), "64M");
        store.patch(&format!("{BAD}/drive.qcow2"), 36, &[0xff; 4]);
    });
}

#[test]
fn a_header_that_declares_a_disk_of_2_to_the_63_bytes() {
    breaks("virtual size of 9223372036854775808", |store| {
        store.base(&format!("{BAD}/drive.qcow2"), "64M");
        store.patch(&format!("{BAD}/drive.qcow2"), 24, &(1u64 << 63).to_be_bytes());
    });
}

#[test]
fn a_table_entry_that_leads_outside_the_file() {
    breaks("drive.qcow2", |store| {
        let file = format!("{BAD}/drive.qcow2");
        store.base(&file, "64M");
        store.fill(&file, 1, "0", "1M");
        // The first L2 entry of the usual layout: header, refcounts, L1, then L2 in the cluster at 4 × 64 KiB.
        store.patch(&file, 0x40000, &(0x8000_0000_0000_0000_u64 | 0x7fff_ffff_0000).to_be_bytes());
    });
}

#[test]
fn an_encrypted_image_and_an_unknown_feature() {
    breaks("encryption (LUKS)", |store| {
        store.base(&format!("{BAD}/drive.qcow2"), "64M");
        store.patch(&format!("{BAD}/drive.qcow2"), 32, &2u32.to_be_bytes());
    });
    breaks("bit 40", |store| {
        store.base(&format!("{BAD}/drive.qcow2"), "64M");
        store.patch(&format!("{BAD}/drive.qcow2"), 72, &(1u64 << 40).to_be_bytes());
    });
}

#[test]
fn a_manifest_of_a_later_version() {
    breaks("backup.json is of version 9", |store| store.write(&format!("{BAD}/backup.json"), r#"{"version":9}"#));
}

#[test]
fn a_manifest_that_lists_a_disk_that_is_not_there() {
    breaks("the image 'qemu-2024-11-08T16-51-20Z/gone.qcow2' is missing", |store| {
        store.write(
            &format!("{BAD}/backup.json"),
            r#"{"version":1,"guest":"bad","kind":"qemu","time":"2024-11-08T16:51:20Z","disks":[
                {"name":"whole","file":"whole.qcow2","format":"qcow2"},
                {"name":"gone","file":"gone.qcow2","format":"qcow2"}]}"#,
        );
    });
}

#[test]
fn an_image_on_a_broken_one_is_broken_too_and_says_which_layer() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let store = TestStore::new();
    let older = "../qemu-2024-11-07T16-51-22Z/drive.qcow2";
    store.base(&format!("{OLDER}/drive.qcow2"), "1M");
    store.overlay(&format!("{BAD}/drive.qcow2"), older, "qcow2");
    store.patch(&format!("{OLDER}/drive.qcow2"), 0, b"gone");
    let listed = store.annals(&["list", "bad", "--json"]).json();
    for backup in listed["backups"].as_array().unwrap() {
        let message = backup["problems"][0]["message"].as_str().unwrap();
        assert!(message.contains("layer 'qemu-2024-11-07T16-51-22Z/drive.qcow2'"), "{message}");
    }
}

#[test]
fn an_ovf_that_is_no_xml_leaves_the_images_to_speak() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let store = TestStore::new();
    store.base("vm/disks/d/i", "1M");
    store.write("vm/vm.ovf", "<ovf:Envelope><Disk");
    let shown = store.annals(&["show", "vm@latest"]);
    assert_eq!(shown.code, Some(0), "{}", shown.stdout);
    let listed = store.annals(&["list", "vm"]);
    assert_eq!(listed.code, Some(3));
    assert!(listed.stdout.contains("vm.ovf: the OVF cannot be understood"), "{}", listed.stdout);
}

#[test]
fn names_cannot_speak_to_the_terminal() {
    let store = TestStore::new();
    store.write("\u{1b}[31mred/qemu-2024-11-08T16-51-20Z/no\u{7}te", "x");
    for args in [["list", "--quick"].as_slice(), &["show", "\u{1b}[31mred@latest"], &["show", "\u{1b}x@latest"]] {
        let ran = store.annals(args);
        let printed = ran.stdout + &ran.stderr;
        assert!(!printed.contains(['\u{1b}', '\u{7}']), "{printed:?}");
        assert!(printed.contains("\\u{1b}"), "{printed:?}");
    }
}
