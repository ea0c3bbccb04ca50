//! A system of its own for tests that install something: mount and process namespaces with copies of `/usr/sbin` and `/etc`.
//!
//! The machine stays as it is, and whatever a script starts ends with it.

#[path = "needs.rs"]
mod needs;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use needs::needs;

/// Whether such a system can be made here. Says aloud that a test cannot run, and fails it in CI, where it has to.
pub(crate) fn may_run() -> bool {
    needs(unshare().arg("true").output().is_ok_and(|output| output.status.success()), "root and namespaces")
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "--"]);
    command
}

/// The directories of one test, `store`, `mnt` (everybody may write to it), `record` (the same) and `sbin`.
pub(crate) struct Scene {
    dir: tempfile::TempDir,
}

/// What a script printed, and how it ended.
pub(crate) struct Played {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
        for (name, mode) in [("store", 0o755), ("mnt", 0o777), ("record", 0o777), ("sbin", 0o755), ("system", 0o755)] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(dir.path().join("fstab"), "").unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Installs a program under `name`, beside those of `/usr/sbin`.
    pub(crate) fn install(&self, program: &Path, name: &str) {
        fs::copy(program, self.path("sbin").join(name))
            .unwrap_or_else(|e| panic!("cannot copy {}: {e}; 'cargo build --workspace' makes it", program.display()));
    }

    /// Installs a script, as [`Scene::install`] does a program.
    pub(crate) fn install_script(&self, text: &str, name: &str) {
        fs::write(self.path("sbin").join(name), text).unwrap();
        fs::set_permissions(self.path("sbin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Writes `/etc/fstab`; `STORE` and `MNT` in it stand for the two directories.
    pub(crate) fn fstab(&self, text: &str) {
        let of = |name| self.path(name).to_str().expect("UTF-8").to_owned();
        let text = text.replace("STORE", &of("store")).replace("MNT", &of("mnt"));
        fs::write(self.path("fstab"), text).unwrap();
    }

    /// Runs a script as root, with `$SCENE`, `$STORE`, `$MNT` and the function `as_nobody`. It ends at the first command
    /// that fails.
    pub(crate) fn play(&self, script: &str) -> Played {
        self.run(unshare().args(["sh", "-euc", &format!("{PROLOGUE}\n{script}\n")]))
    }

    /// The same, where systemd is the first process and has read fstab: its units can be started and looked at.
    pub(crate) fn play_under_systemd(&self, script: &str) -> Played {
        fs::write(self.path("script"), script).unwrap();
        fs::write(self.path("boot"), format!("{PROLOGUE}\n{BOOT}")).unwrap();
        let mut played = self.run(Command::new("unshare").args(["--mount", "sh", "-euc", OWN_CGROUP]));
        let read = |name: &str| fs::read_to_string(self.path("record").join(name)).unwrap_or_default();
        played.stdout = read("stdout");
        played.stderr.push_str(&read("stderr"));
        played
    }

    fn run(&self, command: &mut Command) -> Played {
        let output = command
            .env_clear()
            .env("SCENE", self.dir.path())
            .env("STORE", self.path("store"))
            .env("MNT", self.path("mnt"))
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .expect("unshare starts");
        Played {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Whether a script can be played under systemd here.
pub(crate) fn may_boot() -> bool {
    may_run() && needs(Path::new(SYSTEMD).exists(), "systemd")
}

const SYSTEMD: &str = "/lib/systemd/systemd";

/// Starts `boot` as the first process of its own namespaces, in a control group of its own: systemd makes groups below what it
/// takes for the top, and the machine's own systemd must not find them among its own.
const OWN_CGROUP: &str = r#"
mkdir "$SCENE/groups"
mount -t cgroup2 cgroup2 "$SCENE/groups"
own=$SCENE/groups/$(basename "$SCENE")
mkdir "$own"
echo 0 >"$own/cgroup.procs"
code=0
timeout --signal=KILL 120 \
    unshare --mount --pid --fork --kill-child --mount-proc --uts --ipc --cgroup sh -eu "$SCENE/boot" || code=$?
echo 0 >"$SCENE/groups/cgroup.procs"
find "$own" -depth -type d -exec rmdir {} ';'
exit "$code"
"#;

/// What systemd starts is this one target, and with it the script; when that has ended, so does systemd, with its code.
const BOOT: &str = r#"
if mountpoint -q /sys/fs/cgroup; then umount --lazy --recursive /sys/fs/cgroup; fi
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/system
# From release 13 on, Debian has a file system of its own mounted on /tmp, where the scene is.
ln -s /dev/null /run/systemd/system/tmp.mount
cat >/run/systemd/system/scene.target <<END
[Unit]
DefaultDependencies=no
Wants=scene.service
END
cat >/run/systemd/system/scene.service <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
Environment="SCENE=$SCENE" "STORE=$STORE" "MNT=$MNT" "PATH=$PATH" LC_ALL=C
ExecStart=sh -eu "$SCENE/script"
ExecStopPost=sh -c 'systemctl exit "\$EXIT_STATUS"'
TimeoutStartSec=90
StandardOutput=file:$SCENE/record/stdout
StandardError=file:$SCENE/record/stderr
END
exec env -i container=test "PATH=$PATH" LC_ALL=C /lib/systemd/systemd --system --unit=scene.target --log-target=console --show-status=no
"#;

/// Copies of /usr/sbin and /etc with what was installed, and a /dev/fuse that users may open, as udev makes it.
const PROLOGUE: &str = r#"
mount -t tmpfs -o mode=755 tmpfs "$SCENE/system"
cp -a /usr/sbin /etc "$SCENE/system/"
for program in annals mount.annals; do rm -f "$SCENE/system/sbin/$program"; done
cp -a "$SCENE/sbin/." "$SCENE/system/sbin/"
cp "$SCENE/fstab" "$SCENE/system/etc/fstab"
# Mounts of other tests were copied with everything else, and would live on here when those end.
findmnt --raw --noheadings --output TARGET --types fuse.annals | while read -r mount; do umount --lazy "$mount"; done
mount --bind "$SCENE/system/etc" /etc
mount --bind "$SCENE/system/sbin" /usr/sbin
if [ ! -L /sbin ]; then mount --bind "$SCENE/system/sbin" /sbin; fi
if [ -c /dev/fuse ]; then
    mknod -m 666 "$SCENE/system/fuse" c 10 229
    mount --bind "$SCENE/system/fuse" /dev/fuse
fi
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
"#;
