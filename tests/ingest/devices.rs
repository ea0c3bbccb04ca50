//! Block devices as sources, for hosts that hand over a device instead of an export. A loop device stands for a volume's snapshot.

use std::fs;
use std::path::{Path, PathBuf};

use crate::scene::{CLUSTER, Scene, assert_same, put};
use crate::support::mounts::needs;
use crate::support::random::Random;
use crate::support::tools::{have, run};
use crate::watched::Watched;

const MIB: usize = 1 << 20;

/// A loop device on a file; detached when dropped.
struct Loop(String);

impl Loop {
    fn on(file: &Path) -> Self {
        Self(run("losetup", &["--find", "--show", file.to_str().unwrap()]).trim().to_owned())
    }

    /// Has the device follow its file's size.
    fn follow(&self) {
        run("losetup", &["--set-capacity", &self.0]);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = crate::support::tools::command("losetup").args(["--detach", &self.0]).status();
    }
}

fn can_attach() -> bool {
    have(&["losetup"])
        && needs(rustix::process::geteuid().is_root(), "root")
        && needs(Path::new("/dev/loop-control").exists(), "loop devices")
}

/// Runs the program on one disk, with a list of dirty ranges as its third descriptor; tells its standard error.
fn with_list(scene: &Scene, disk: &str, list: &Path) -> String {
    let program = env!("CARGO_BIN_EXE_annals");
    let line = r#"exec 3<"$0" && exec "$1" --store "$2" backup vm 100 --disk "$3""#;
    let store = scene.store();
    let args = ["-c", line, list.to_str().unwrap(), program, store.to_str().unwrap(), disk];
    let output = crate::support::tools::command("sh").args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    stderr
}

fn last(scene: &Scene) -> String {
    scene.names().into_iter().rfind(|name| name.ends_with('Z')).unwrap()
}

#[test]
fn a_device_is_backed_up_whole_and_then_by_lists_from_a_file_and_from_a_descriptor() {
    if !can_attach() {
        return;
    }
    let scene = Scene::new();
    let mut bytes = Random::new(3).bytes(8 * MIB);
    bytes[2 * MIB..5 * MIB].fill(0);
    let file: PathBuf = scene.raw("volume", &bytes);
    let device = Loop::on(&file);
    let disk = format!("d={}", device.0);
    let first = scene.back_up(&scene.request(&[&disk]));
    assert_same(&scene.read(&first.backup, "d"), &bytes);
    scene.check_image(&first.backup, "d", &bytes);

    // Written through the device, as a guest's volume is; what no list names is not read.
    let device_path = Path::new(&device.0);
    put(device_path, &mut bytes, 3 * MIB as u64, &[0x21; 4096]);
    put(device_path, &mut bytes, 7 * MIB as u64, &[0; 65536]);
    let unlisted = bytes.clone();
    let mut hidden = bytes.clone();
    put(device_path, &mut hidden, MIB as u64, &[0x22; 512]);
    let list = scene.list("dirty", &[(3 * MIB as u64, 4096), (7 * MIB as u64, CLUSTER)]);
    let by_file = scene.back_up(&scene.request(&[&format!("{disk},dirty={}", list.display())]));
    assert_eq!(by_file.disks[0].parent.as_ref().unwrap().backup, first.backup);
    assert_same(&scene.read(&by_file.backup, "d"), &unlisted);
    scene.check_image(&by_file.backup, "d", &unlisted);

    let list = scene.list("dirty", &[(MIB as u64, 512)]);
    let told = with_list(&scene, &format!("{disk},dirty=/dev/fd/3"), &list);
    assert!(told.contains("disk d: incremental, because the list of dirty ranges counts from"), "{told}");
    assert!(told.contains(", 65536 to read, 0 to write as zeros"), "{told}");
    let by_descriptor = last(&scene);
    assert!(by_descriptor > by_file.backup);
    assert_same(&scene.read(&by_descriptor, "d"), &hidden);
    assert_same(&scene.read(&first.backup, "d")[..MIB], &bytes[..MIB]);
}

#[test]
fn a_device_that_has_grown_is_an_increment_and_one_that_has_shrunk_starts_afresh() {
    if !can_attach() {
        return;
    }
    let scene = Scene::new();
    let mut bytes = Random::new(4).bytes(4 * MIB);
    let file = scene.raw("volume", &bytes);
    let device = Loop::on(&file);
    let list = scene.list("dirty", &[(0, 512)]);
    let request = scene.request(&[&format!("d={},dirty={}", device.0, list.display())]);
    let first = scene.back_up(&request);

    fs::File::options().write(true).open(&file).unwrap().set_len(6 * MIB as u64).unwrap();
    device.follow();
    bytes.resize(6 * MIB, 0);
    put(Path::new(&device.0), &mut bytes, 5 * MIB as u64, &[0x31; 8192]);
    put(Path::new(&device.0), &mut bytes, 0, &[0x32; 512]);
    let grown = scene.back_up(&request);
    assert_eq!(grown.disks[0].parent.as_ref().unwrap().backup, first.backup);
    assert_same(&scene.read(&grown.backup, "d"), &bytes);
    scene.check_image(&grown.backup, "d", &bytes);

    fs::File::options().write(true).open(&file).unwrap().set_len(3 * MIB as u64).unwrap();
    device.follow();
    bytes.truncate(3 * MIB);
    let shrunk = scene.back_up(&request);
    assert!(shrunk.disks[0].parent.is_none());
    let reason = shrunk.disks[0].reason.as_ref().unwrap();
    assert!(reason.contains("has shrunk from 6291456 to 3145728 bytes"), "{reason}");
    assert_same(&scene.read(&shrunk.backup, "d"), &bytes);
}

#[test]
fn a_device_that_fails_in_the_middle_fails_the_run_and_nothing_is_published() {
    if !can_attach() {
        return;
    }
    let scene = Scene::new();
    let bytes = Random::new(5).bytes(8 * MIB);
    let file = scene.raw("volume", &bytes);
    let device = Loop::on(&file);
    let disk = format!("d={}", device.0);
    let first = scene.back_up(&scene.request(&[&disk]));
    // The file behind the device loses its end, of which the device knows nothing: reading there fails as on a dying disk.
    fs::File::options().write(true).open(&file).unwrap().set_len(4 * MIB as u64).unwrap();
    let ended = Watched::start(&scene.store(), &["backup", "vm", "100", "--disk", &disk]).end();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("disk d: ") && ended.stderr.contains(&device.0), "{}", ended.stderr);
    let names = scene.names();
    assert!(names.len() == 2 && names[0] == first.backup && names[1].ends_with(".failed"), "{names:?}");
    assert_same(&scene.read(&first.backup, "d"), &bytes);
}
