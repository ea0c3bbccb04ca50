//! Who may do what in a mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::support::mounts::{ANNALS, Mounted, Store, can_mount, promise, succeed};
use crate::support::tools::{as_user, command, have};

const TIME: &str = "2024-11-07T16-51-22Z";

fn store() -> Store {
    let store = Store::new();
    store.chain("100", "disk", &[TIME], 1 << 20, 1);
    store.file("100", TIME, "guest.conf", b"x");
    store
}

fn can_read(uid: u32, file: &Path) -> bool {
    as_user(uid).arg("cat").arg(file).output().unwrap().status.success()
}

fn mount_options(point: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == point.to_str()).unwrap();
    let (before, after) = line.split_once(" - ").unwrap();
    let words = [before.split(' ').nth(5).unwrap(), after.split(' ').nth(2).unwrap()];
    words.iter().flat_map(|word| word.split(',')).map(str::to_owned).collect()
}

#[test]
fn nothing_can_be_changed_and_no_file_has_powers() {
    promise("The mount is read-only, nosuid and nodev.");
    if !can_mount() {
        return;
    }
    let store = store();
    let mounted = Mounted::new(&store.path());
    let options = mount_options(&mounted.point);
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.iter().any(|o| o == option), "{options:?} lacks {option}");
    }
    assert!(!options.iter().any(|o| o == "noexec"));
    let file = mounted.path("100/latest/disk.raw");
    let read_only = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    };
    read_only(fs::OpenOptions::new().write(true).open(&file).map(drop));
    read_only(fs::write(mounted.path("100/new"), b"x"));
    read_only(fs::remove_file(&file));
    read_only(fs::create_dir(mounted.path("new")));
    read_only(fs::rename(&file, mounted.path("x")));
    read_only(fs::set_permissions(&file, fs::Permissions::from_mode(0o777)));
    read_only(std::os::unix::fs::symlink("x", mounted.path("x")));
    // Remounted by root with rw, it refuses by itself.
    rustix::mount::mount_remount(&mounted.point, rustix::mount::MountFlags::empty(), "").unwrap();
    assert!(mount_options(&mounted.point).iter().any(|o| o == "rw"));
    read_only(fs::OpenOptions::new().write(true).open(&file).map(drop));
    read_only(fs::write(mounted.path("100/new"), b"x"));
    read_only(fs::remove_file(&file));
    read_only(fs::create_dir(mounted.path("new")));
    read_only(fs::set_permissions(&file, fs::Permissions::from_mode(0o777)));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o444);

    let noexec = Mounted::with(&store.path(), &["-o", "noexec"]);
    assert!(mount_options(&noexec.point).iter().any(|o| o == "noexec"));
}

#[test]
fn others_get_in_when_they_are_let_in_and_no_further_than_the_permissions_say() {
    promise(
        "Only who mounted it may look into it; with `allow_root` root may as well, with `allow_other` everybody, and then \
         the permissions shown hold.",
    );
    if !can_mount() || !have(&["setpriv"]) {
        return;
    }
    let store = store();
    let file = "100/latest/disk.raw";
    let reads = |options: &[&str], uid| can_read(uid, &Mounted::with(&store.path(), options).path(file));
    assert!(reads(&[], 0) && !reads(&[], 1234));
    assert!(reads(&["-o", "allow_other"], 1234));
    let after_root = Mounted::with(&store.path(), &["-o", "allow_root"]);
    assert!(can_read(0, &after_root.path(file)) && !can_read(1234, &after_root.path(file)), "what root has looked up");
    assert!(!reads(&["-o", "allow_root"], 1234), "allow_root lets in root alone");
    assert!(!reads(&["-o", "allow_other,umask=077"], 1234), "others may not read what umask takes away");
    assert!(reads(&["-o", "allow_other,umask=077,uid=1234"], 1234), "the owner may");
    assert!(!reads(&["-o", "allow_other,umask=077,uid=1234"], 1235));
    assert!(reads(&["-o", "allow_other,umask=027,gid=1234"], 1234), "the group may");
    assert!(!reads(&["-o", "allow_other,umask=027,gid=1234"], 1235));
}

#[test]
fn owner_and_mode_are_what_was_asked_for() {
    promise(
        "Everything belongs to root, files with mode 0444 and directories with 0555, unless `uid=`, `gid=` and `umask=` say otherwise.",
    );
    if !can_mount() {
        return;
    }
    let store = store();
    let facts = |options: &[&str]| {
        let mounted = Mounted::with(&store.path(), options);
        let of = |name: &str| {
            let stat = fs::symlink_metadata(mounted.path(name)).unwrap();
            (stat.uid(), stat.gid(), stat.mode() & 0o7777)
        };
        let file = of("100/latest/disk.raw");
        assert_eq!(of("100/latest/guest.conf"), file);
        assert_eq!(of(".annals/status.json"), file);
        let dir = of("100");
        assert!(["", ".annals", "100/2024-11-07T16-51-22Z"].iter().all(|name| of(name) == dir));
        (file, dir)
    };
    assert_eq!(facts(&[]), ((0, 0, 0o444), (0, 0, 0o555)));
    assert_eq!(facts(&["-o", "uid=7,gid=8,umask=027"]), ((7, 8, 0o440), (7, 8, 0o550)));
}

#[test]
fn there_are_no_extended_attributes() {
    if !can_mount() {
        return;
    }
    use rustix::io::Errno;
    let store = store();
    let mounted = Mounted::new(&store.path());
    let file = mounted.path("100/latest/guest.conf");
    for _ in 0..2 {
        assert_eq!(rustix::fs::getxattr(&file, "user.x", &mut [0_u8; 8]).unwrap_err(), Errno::NODATA);
        assert_eq!(rustix::fs::listxattr(&file, &mut [0_u8; 8]).unwrap(), 0);
    }
}

/// In a mount namespace of its own, where users may open `/dev/fuse` as they may wherever udev made it. Reports what
/// each step printed and its exit code.
const A_USERS_MOUNT: &str = r#"
set -u
mkdir "$HOME/dev" && mount -t tmpfs none "$HOME/dev" && mknod -m 0666 "$HOME/dev/fuse" c 10 229 || exit 9
mount --bind "$HOME/dev/fuse" /dev/fuse && : >"$HOME/fuse.conf" && mount --bind "$HOME/fuse.conf" /etc/fuse.conf || exit 9
as() { u=$1; shift; setpriv --reuid=$u --regid=$u --clear-groups -- "$@"; }
step() { name=$1; shift; out=$("$@" 2>&1); printf '%s: %s %s' "$name" $? "$out" | tr '\n' ' '; echo; }
step mount as 65534 "$ANNALS" --store "$STORE" mount --log-file "$HOME/mnt.log" "$MNT"
step options findmnt -n -o OPTIONS "$MNT"
step source findmnt -n -o SOURCE "$MNT"
step user as 65534 cat "$MNT/100/latest/guest.conf"
step root cat "$MNT/100/latest/guest.conf"
step other as 1 cat "$MNT/100/latest/guest.conf"
step again as 65534 "$ANNALS" --store "$STORE" mount "$MNT"
step umount as 65534 "$ANNALS" umount "$MNT"
step empty ls -A "$MNT"
step allow_other as 65534 "$ANNALS" --store "$STORE" mount -o allow_other "$MNT"
echo user_allow_other >"$HOME/fuse.conf"
step allowed as 65534 "$ANNALS" --store "$STORE" mount -o allow_root --log-file "$HOME/mnt.log" "$MNT"
step root_allowed cat "$MNT/100/latest/guest.conf"
step other_not as 1 cat "$MNT/100/latest/guest.conf"
step umount_again as 65534 "$ANNALS" umount "$MNT"
chown 0:0 "$MNT"
step not_his as 65534 "$ANNALS" --store "$STORE" mount "$MNT"
chmod 0600 "$HOME/dev/fuse"
step no_device as 65534 "$ANNALS" --store "$STORE" mount "$MNT"
"#;

#[test]
fn a_user_mounts_and_unmounts_what_he_may_read() {
    if !can_mount() || !have(&["setpriv", "fusermount3", "unshare", "findmnt"]) {
        return;
    }
    // fusermount3 wants a user with a name.
    const NOBODY: u32 = 65534;
    let store = store();
    fs::set_permissions(store.scratch(""), fs::Permissions::from_mode(0o755)).unwrap();
    let home = tempfile::tempdir().unwrap();
    let point = home.path().join("mnt");
    fs::create_dir(&point).unwrap();
    for path in [home.path(), point.as_path()] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // The program where any user may run it.
    let program = store.scratch("annals");
    fs::copy(ANNALS, &program).unwrap();
    // A comma ends an option where the helper reads them.
    let path = store.scratch("st,o\\re");
    fs::rename(store.path(), &path).unwrap();
    let mut private = command("unshare");
    private.args(["--mount", "--propagation", "private", "--", "sh", "-c", A_USERS_MOUNT]);
    private.env("HOME", home.path()).env("ANNALS", &program).env("STORE", &path).env("MNT", &point);
    let played = String::from_utf8(succeed(&mut private).stdout).unwrap();
    let step = |name: &str| {
        let line = played.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        let (code, said) = line.unwrap_or_else(|| panic!("no {name} in {played}")).split_once(' ').unwrap();
        (code.parse::<i32>().unwrap(), said.trim().to_owned())
    };
    assert_eq!(step("mount"), (0, String::new()), "{played}");
    let options = step("options").1;
    for option in ["ro", "nosuid", "nodev", "user_id=65534"] {
        assert!(options.split(',').any(|o| o == option), "{options} lacks {option}");
    }
    assert_eq!(Path::new(&step("source").1), path);
    assert_eq!(step("user"), (0, "x".to_owned()));
    assert!(step("root").0 != 0 && step("other").0 != 0, "{played}");
    let (code, said) = step("again");
    assert!(code == 1 && said.contains("already"), "{said}");
    assert_eq!((step("umount"), step("empty")), ((0, String::new()), (0, String::new())), "{played}");
    let (code, said) = step("allow_other");
    assert!(code == 1 && said.contains("hint: ") && said.contains("/etc/fuse.conf"), "{said}");
    assert_eq!(step("allowed"), (0, String::new()), "{played}");
    assert!(step("root_allowed") == (0, "x".to_owned()) && step("other_not").0 != 0, "{played}");
    assert_eq!(step("umount_again").0, 0, "{played}");
    let (code, said) = step("not_his");
    assert!(code == 1 && said.contains("hint: a user can mount only on a directory"), "{said}");
    let (code, said) = step("no_device");
    assert!(code == 1 && said.contains("hint: ") && said.contains("/dev/fuse"), "{said}");
}
