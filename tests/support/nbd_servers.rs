//! Real NBD servers, each in a directory of its own, ended when the test ends.

// Each test binary compiles this for itself and uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::tools::{command, run};

/// How long a server may take to start.
const START: Duration = Duration::from_secs(40);
/// How long a monitor may take to answer: some commands wait for a disk that others keep busy.
const ANSWER: Duration = Duration::from_secs(120);

/// A server process and the directory that its files and its socket are in.
pub(crate) struct Server {
    directory: tempfile::TempDir,
    child: Option<Child>,
}

impl Server {
    /// A directory, and no process yet.
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), child: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("nbd.sock")
    }

    /// The URI of an export of that name, percent-encoded, on its socket.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// Starts a program and waits until it listens on its socket.
    pub(crate) fn start(&mut self, program: &str, args: &[&str]) {
        let log = std::fs::File::create(self.path("server.log")).unwrap();
        let child = command(program)
            .args(args)
            .current_dir(self.directory.path())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
        self.child = Some(child);
        self.wait_for(program, |server| listens(&server.socket()));
    }

    /// Waits until `ready`, as long as the program runs.
    pub(crate) fn wait_for(&mut self, program: &str, ready: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !ready(self) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            let log = || std::fs::read_to_string(self.path("server.log")).unwrap_or_default();
            assert!(ended.is_none(), "{program} ended: {}", log());
            assert!(began.elapsed() < START, "{program} does not start: {}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `qemu-nbd`, read-only, for eight clients.
    pub(crate) fn qemu_nbd(&mut self, format: &str, image: &Path, more: &[&str]) {
        let (socket, image) = (self.socket(), image.to_owned());
        let mut args = vec!["-r", "-t", "-e", "8", "-k", socket.to_str().unwrap(), "-f", format];
        args.extend(more);
        args.push(image.to_str().unwrap());
        self.start("qemu-nbd", &args);
    }

    pub(crate) fn nbdkit(&mut self, args: &[&str]) {
        let socket = self.socket();
        let mut all = vec!["-f", "-U", socket.to_str().unwrap()];
        all.extend(args);
        self.start("nbdkit", &all);
    }

    /// Ends the process at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_file(self.socket());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked first: nbdkit leaves files behind when it is killed.
        if let Some(child) = &mut self.child {
            let pid = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let began = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && began.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.kill();
    }
}

/// Whether a socket is not only there but listened on. Where a plain file stands for a port, it has to have been written.
fn listens(path: &Path) -> bool {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => metadata.len() > 0,
        Ok(_) => UnixStream::connect(path).is_ok(),
        Err(_) => false,
    }
}

/// `qemu-storage-daemon` with its monitor.
pub(crate) struct StorageDaemon {
    pub(crate) server: Server,
    monitor: BufReader<UnixStream>,
    /// What the daemon has told without being asked, and nobody has waited for yet.
    events: Vec<Value>,
}

impl StorageDaemon {
    pub(crate) fn start() -> Self {
        Self::start_in(Server::new())
    }

    /// Starts a daemon in the directory of a server that has ended.
    pub(crate) fn start_in(mut server: Server) -> Self {
        let qmp = server.path("qmp.sock");
        let chardev = format!("socket,id=q,path={},server=on,wait=off", qmp.display());
        let nbd = format!("addr.type=unix,addr.path={}", server.socket().display());
        server.start("qemu-storage-daemon", &["--chardev", &chardev, "--monitor", "chardev=q", "--nbd-server", &nbd]);
        // The monitor listens before the NBD server does, and takes one connection at a time.
        let stream = UnixStream::connect(qmp).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        let mut daemon = Self { server, monitor: BufReader::new(stream), events: Vec::new() };
        daemon.line();
        daemon.qmp("qmp_capabilities", json!({}));
        daemon
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("'{line}' from the monitor: {e}"))
    }

    /// A command that has to succeed.
    pub(crate) fn qmp(&mut self, execute: &str, arguments: Value) -> Value {
        let message = json!({"execute": execute, "arguments": arguments}).to_string();
        self.monitor.get_mut().write_all(message.as_bytes()).unwrap();
        loop {
            let mut answer = self.line();
            if answer.get("event").is_none() {
                assert!(answer.get("error").is_none(), "{message}: {answer}");
                return answer["return"].take();
            }
            self.events.push(answer);
        }
    }

    /// Waits for an event of that name whose data has `value` under `key`.
    pub(crate) fn wait_for_event(&mut self, name: &str, key: &str, value: &str) {
        let wanted = |event: &Value| event["event"] == name && event["data"][key] == value;
        loop {
            if let Some(at) = self.events.iter().position(wanted) {
                self.events.remove(at);
                return;
            }
            let event = self.line();
            self.events.push(event);
        }
    }

    /// Ends the daemon in order, as a shutdown of the machine does; what is persistent is kept.
    pub(crate) fn quit(mut self) -> Server {
        self.qmp("quit", json!({}));
        if let Some(mut child) = self.server.child.take() {
            child.wait().unwrap();
        }
        for socket in ["nbd.sock", "qmp.sock"] {
            let _ = std::fs::remove_file(self.server.path(socket));
        }
        self.server
    }

    /// A new qcow2 image as a node of that name.
    pub(crate) fn add_image(&mut self, node: &str, size: u64) {
        let path = self.server.path(&format!("{node}.qcow2"));
        let path = path.to_str().unwrap();
        run("qemu-img", &["create", "-q", "-f", "qcow2", path, &size.to_string()]);
        self.open_image(node);
    }

    /// The image that [`add_image`](Self::add_image) made, once more.
    pub(crate) fn open_image(&mut self, node: &str) {
        let path = self.server.path(&format!("{node}.qcow2"));
        self.qmp(
            "blockdev-add",
            json!({"node-name": node, "driver": "qcow2", "discard": "unmap",
                   "file": {"driver": "file", "filename": path.to_str().unwrap(), "discard": "unmap"}}),
        );
    }

    /// Exports a node; `bitmaps` as the monitor takes them.
    pub(crate) fn export(&mut self, node: &str, name: &str, writable: bool, bitmaps: Value) {
        self.qmp(
            "block-export-add",
            json!({"type": "nbd", "id": format!("export-{node}"), "node-name": node, "name": name,
                   "writable": writable, "bitmaps": bitmaps}),
        );
    }

    /// Ends the export of a node, and waits until nobody uses it any more.
    pub(crate) fn unexport(&mut self, node: &str) {
        let export = format!("export-{node}");
        self.qmp("block-export-del", json!({"id": export, "mode": "hard"}));
        self.wait_for_event("BLOCK_EXPORT_DELETED", "id", &export);
    }

    /// Writes through an export, as a guest would.
    pub(crate) fn guest(&self, export: &str, commands: &[&str]) {
        qemu_io(&["-f", "raw", "-d", "unmap", &self.server.uri(export)], commands);
    }
}

/// Runs `qemu-io` commands, all of which have to succeed.
pub(crate) fn qemu_io(target: &[&str], commands: &[&str]) {
    let mut args: Vec<&str> = commands.iter().flat_map(|command| ["-c", *command]).collect();
    args.extend(target);
    let output = run("qemu-io", &args);
    assert!(!output.contains("failed"), "{output}");
}

/// What libnbd says of a context, as (offset, length, status), neighbours of one status joined.
pub(crate) fn map_by_libnbd(uri: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let text = run("nbdinfo", &["--json", &format!("--map={context}"), uri]);
    let entries: Value = serde_json::from_str(&text).unwrap();
    let mut map: Vec<(u64, u64, u64)> = Vec::new();
    for entry in entries.as_array().unwrap() {
        let [offset, length, status] = ["offset", "length", "type"].map(|key| entry[key].as_u64().unwrap());
        match map.last_mut() {
            Some(last) if last.2 == status => last.1 += length,
            _ => map.push((offset, length, status)),
        }
    }
    map
}
