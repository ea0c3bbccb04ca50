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
        let output = unshare()
            .args(["sh", "-euc", &format!("{PROLOGUE}\n{script}\n")])
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

/// Copies of /usr/sbin and /etc with what was installed, and a /dev/fuse that users may open, as udev makes it.
const PROLOGUE: &str = r#"
mount -t tmpfs -o mode=755 tmpfs "$SCENE/system"
cp -a /usr/sbin /etc "$SCENE/system/"
for program in annals mount.annals; do rm -f "$SCENE/system/sbin/$program"; done
cp -a "$SCENE/sbin/." "$SCENE/system/sbin/"
cp "$SCENE/fstab" "$SCENE/system/etc/fstab"
mount --bind "$SCENE/system/etc" /etc
mount --bind "$SCENE/system/sbin" /usr/sbin
if [ ! -L /sbin ]; then mount --bind "$SCENE/system/sbin" /sbin; fi
if [ -c /dev/fuse ]; then
    mknod -m 666 "$SCENE/system/fuse" c 10 229
    mount --bind "$SCENE/system/fuse" /dev/fuse
fi
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
"#;
