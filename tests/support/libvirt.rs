//! A libvirt of its own for one test: the session daemon of an ordinary user, and a paused guest without an operating system.
//!
//! The daemon and the guest run in a process namespace whose end is theirs, with all that libvirt keeps in a temporary directory.

use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::mounts::needs;
use crate::support::tools::{command, have, run};

/// Where `setup.sh` unpacks an emulator beside whatever QEMU is installed.
const UNPACKED: &str = "/usr/local/lib/annals-tests/qemu/usr/bin";
const EMULATOR: &str = "qemu-system-x86_64";
/// `nobody`: to root, libvirt's daemon would be the system's.
const USER: u32 = 65_534;
/// For whatever libvirt does.
const LIMIT: Duration = Duration::from_secs(60);
const GUEST: &str = "guest";

/// The directory that the emulator is in.
fn emulator() -> Option<PathBuf> {
    let path = format!("{}:{UNPACKED}", std::env::var("PATH").unwrap_or_default());
    path.split(':').map(PathBuf::from).find(|dir| dir.join(EMULATOR).is_file())
}

/// Whether a guest can be run here; says aloud when not.
pub(crate) fn can_run_guests() -> bool {
    have(&["libvirtd", "virsh", "qemu-img", "unshare", "setpriv"])
        && needs(rustix::process::geteuid().is_root(), "root")
        && needs(emulator().is_some(), "qemu-system-x86_64, which tests/support/setup.sh unpacks")
}

/// The daemon, and its guest's disks.
pub(crate) struct Libvirt {
    dir: tempfile::TempDir,
    daemon: Child,
    disks: Vec<String>,
}

impl Libvirt {
    /// Starts the daemon and a guest with disks of these names (vda, vdb, …) and sizes in bytes.
    pub(crate) fn start(disks: &[(&str, u64)]) -> Self {
        let dir = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap();
        chown(dir.path(), Some(USER), Some(USER)).unwrap();
        // The first process of the namespace has to take in those that lost their parent: libvirt waits for its guests' ends.
        let script = format!(
            "setpriv --reuid {USER} --regid {USER} --clear-groups libvirtd >libvirtd.log 2>&1 & wait; while wait; do sleep 1; done"
        );
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", emulator().unwrap().display());
        let daemon = command("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--net", "sh", "-c", &script])
            .current_dir(dir.path())
            .env("PATH", path)
            .env("HOME", dir.path())
            .envs(
                ["RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME", "STATE_HOME"]
                    .map(|name| (format!("XDG_{name}"), dir.path().join(name.to_lowercase()))),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let libvirt = Self { dir, daemon, disks: disks.iter().map(|(name, _)| (*name).to_owned()).collect() };
        let began = Instant::now();
        while !libvirt.ask(&["version"]).0 {
            let log = std::fs::read_to_string(libvirt.path("libvirtd.log")).unwrap_or_default();
            assert!(began.elapsed() < LIMIT, "libvirtd does not start: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        for (name, size) in disks {
            let image = libvirt.path(&format!("{name}.qcow2"));
            run("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), &size.to_string()]);
            chown(image, Some(USER), Some(USER)).unwrap();
        }
        let domain = libvirt.file("domain.xml", &libvirt.domain());
        libvirt.virsh(&["define", &domain]);
        libvirt.boot();
        libvirt
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    fn domain(&self) -> String {
        let mut disks = String::new();
        for name in &self.disks {
            let image = self.path(&format!("{name}.qcow2"));
            write!(
                disks,
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>\
                 <source file='{}'/><target dev='{name}' bus='virtio'/></disk>",
                image.display()
            )
            .unwrap();
        }
        format!(
            "<domain type='qemu'><name>{GUEST}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os>\
             <devices><emulator>{}</emulator>{disks}<controller type='usb' model='none'/><memballoon model='none'/></devices>\
             </domain>",
            emulator().unwrap().join(EMULATOR).display()
        )
    }

    /// Whether a command of virsh succeeds, and what it prints.
    pub(crate) fn ask(&self, args: &[&str]) -> (bool, String) {
        let socket = self.path("runtime_dir/libvirt/libvirt-sock");
        let mut virsh = command("virsh");
        virsh.args(["--quiet", "--connect", &format!("qemu:///session?socket={}", socket.display())]).args(args);
        let output = virsh.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// A command of virsh that has to succeed.
    pub(crate) fn virsh(&self, args: &[&str]) -> String {
        let (succeeded, text) = self.ask(args);
        assert!(succeeded, "virsh {args:?}: {text}");
        text
    }

    /// Starts the guest, paused: nobody writes to its disks but a test.
    pub(crate) fn boot(&self) {
        self.virsh(&["start", GUEST, "--paused"]);
    }

    /// Ends the guest in order, for QEMU: what is persistent is written.
    pub(crate) fn shut_off(&self) {
        self.virsh(&["destroy", "--graceful", GUEST]);
    }

    /// Kills the guest's process.
    pub(crate) fn kill(&self) {
        let ours = self.dir.path().to_str().unwrap();
        let is_guest = |process: &Path| {
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains(EMULATOR) && line.contains(ours)
        };
        let mut killed = 0;
        for entry in std::fs::read_dir("/proc").unwrap() {
            let process = entry.unwrap().path();
            let pid = process.file_name().and_then(|name| name.to_str()?.parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
                && is_guest(&process)
            {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                killed += 1;
            }
        }
        assert!(killed > 0, "there is no guest to kill");
        self.wait_until("the guest is gone", || self.ask(&["domstate", GUEST]).1.contains("shut off"));
    }

    fn wait_until(&self, what: &str, there: impl Fn() -> bool) {
        let began = Instant::now();
        while !there() {
            assert!(began.elapsed() < LIMIT, "never: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Has the guest write: through its device, above whatever libvirt has put on the disk.
    pub(crate) fn guest(&self, disk: &str, commands: &[&str]) {
        let index = self.disks.iter().position(|known| known == disk).unwrap();
        for io in commands {
            let line = format!("qemu-io -d /machine/peripheral/virtio-disk{index}/virtio-backend \"{io}\"");
            let text = self.virsh(&["qemu-monitor-command", GUEST, "--hmp", &line]);
            assert!(!text.contains("failed") && !text.to_lowercase().contains("error"), "{io}: {text}");
        }
    }

    /// Begins a pull backup of all disks and makes the checkpoint `name`; says what libvirt said where that is refused.
    pub(crate) fn begin(&self, name: &str, since: Option<&str>) -> Result<(), String> {
        let mut disks = String::new();
        for disk in &self.disks {
            let scratch = self.path(&format!("scratch-{disk}-{name}.qcow2"));
            write!(
                disks,
                "<disk name='{disk}' backup='yes' type='file'><scratch file='{}'/></disk>",
                scratch.display()
            )
            .unwrap();
        }
        let since = since.map_or(String::new(), |since| format!("<incremental>{since}</incremental>"));
        let backup = format!(
            "<domainbackup mode='pull'>{since}<server transport='unix' socket='{}'/><disks>{disks}</disks></domainbackup>",
            self.path("nbd.sock").display()
        );
        let checkpoint = format!("<domaincheckpoint><name>{name}</name></domaincheckpoint>");
        let (backup, checkpoint) = (self.file("backup.xml", &backup), self.file("checkpoint.xml", &checkpoint));
        match self.ask(&["backup-begin", GUEST, &backup, &checkpoint]) {
            (true, _) => Ok(()),
            (false, text) => Err(text),
        }
    }

    /// Ends the backup, as a client of libvirt does when it is done and as anybody may before.
    pub(crate) fn end(&self) {
        self.virsh(&["domjobabort", GUEST]);
        self.wait_until("the job is over", || self.ask(&["domjobinfo", GUEST]).1.contains("None"));
    }

    /// The export of a disk while a backup is on.
    pub(crate) fn uri(&self, disk: &str) -> String {
        format!("nbd+unix:///{disk}?socket={}", self.path("nbd.sock").display())
    }

    /// What the export holds, by QEMU's own client.
    pub(crate) fn frozen(&self, disk: &str) -> Vec<u8> {
        let copy = self.path("frozen.raw");
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &self.uri(disk), copy.to_str().unwrap()]);
        std::fs::read(copy).unwrap()
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // With it goes the first process of the namespace, and with that everything in it.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
