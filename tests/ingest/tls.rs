//! Backups over TLS with certificates, from the servers that people run.

use std::path::Path;

use annals::ingest::Finished;

use crate::certificates::{certificates, free_port, let_expire};
use crate::nbd_servers::{Server, qemu_io};
use crate::scene::{Scene, assert_same};
use crate::support::random::Random;
use crate::support::tools::{have, run as tool};
use crate::watched::Watched;

const MIB: usize = 1 << 20;

/// Certificates beside a scene.
fn pki(scene: &Scene, name: &str) -> std::path::PathBuf {
    let directory = scene.path(name);
    certificates(&directory);
    directory
}

fn with(directory: &Path) -> String {
    format!("tls-certificates={}", directory.display())
}

/// Backs up a disk that has to be refused for this reason; nothing may come of it.
#[track_caller]
fn refused(scene: &Scene, uri: &str, word: &str) {
    let disk = format!("d={uri}");
    let ended = Watched::start(&scene.store(), &["backup", "vm", "200", "--disk", &disk, "--timeout", "5"]).end();
    assert_eq!(ended.code, Some(1), "{uri}: {ended:?}");
    assert!(ended.stderr.to_lowercase().contains(word), "{uri}: no '{word}' in {}", ended.stderr);
    assert!(ended.stderr.contains("disk d: "), "{}", ended.stderr);
    assert!(!scene.store().join("200").exists(), "{uri}");
}

fn back_up(scene: &Scene, disk: &str) -> Finished {
    scene.back_up(&scene.request(&[disk]))
}

#[test]
fn nbdkit_over_tcp_gives_a_backup_only_where_both_sides_know_each_other() {
    if !have(&["nbdkit", "openssl"]) {
        return;
    }
    let scene = Scene::new();
    let bytes = Random::new(8).bytes(3 * MIB);
    let raw = scene.raw("disk", &bytes);
    let (good, other) = (pki(&scene, "pki"), pki(&scene, "other"));
    let mut server = Server::new();
    let number = free_port().to_string();
    // nbdkit writes its process id once it listens: that file stands in for the socket.
    let pid = server.socket();
    let certificates = format!("--tls-certificates={}", good.display());
    let mut args = vec!["-f", "-i", "127.0.0.1", "-p", &number, "-P", pid.to_str().unwrap(), "--tls=require"];
    args.extend(["--tls-verify-peer", &certificates, "-e", "vda", "file", raw.to_str().unwrap()]);
    server.start("nbdkit", &args);
    let uri = |host: &str, more: &str| format!("nbds://{host}:{number}/vda?{more}");
    for host in ["localhost", "127.0.0.1"] {
        let made = back_up(&scene, &format!("d={}", uri(host, &with(&good))));
        assert_same(&scene.read(&made.backup, "d"), &bytes);
    }
    refused(&scene, &uri("localhost", &with(&other)), "certificate");
    refused(&scene, &uri("localhost", &format!("{}&tls-hostname=elsewhere", with(&good))), "not valid for name");
    refused(&scene, &format!("nbd://localhost:{number}/vda"), "tls");
    // Without a certificate of our own the server does not let us in.
    let anonymous = scene.path("anonymous");
    std::fs::create_dir(&anonymous).unwrap();
    std::fs::copy(good.join("ca-cert.pem"), anonymous.join("ca-cert.pem")).unwrap();
    refused(&scene, &uri("localhost", &with(&anonymous)), "certificate");
}

#[test]
fn a_server_whose_certificate_has_expired_gives_no_backup() {
    if !have(&["nbdkit", "openssl"]) {
        return;
    }
    let scene = Scene::new();
    let raw = scene.raw("disk", &[7; 65536]);
    let good = pki(&scene, "pki");
    let expired = scene.path("expired");
    tool("cp", &["-a", good.to_str().unwrap(), expired.to_str().unwrap()]);
    let_expire(&expired);
    for (directory, valid) in [(&good, true), (&expired, false)] {
        let mut server = Server::new();
        server.nbdkit(&[
            "--tls=require",
            &format!("--tls-certificates={}", directory.display()),
            "file",
            raw.to_str().unwrap(),
        ]);
        let uri = format!("nbds+unix:///?socket={}&{}", server.socket().display(), with(&good));
        if valid {
            back_up(&scene, &format!("d={uri}"));
        } else {
            refused(&scene, &uri, "expired");
        }
    }
}

#[test]
fn qemu_nbd_over_tls_gives_a_full_backup() {
    if !have(&["qemu-nbd", "openssl"]) {
        return;
    }
    let scene = Scene::new();
    let bytes = Random::new(9).bytes(3 * MIB);
    let raw = scene.raw("disk", &bytes);
    let (good, other) = (pki(&scene, "pki"), pki(&scene, "other"));
    let mut server = Server::new();
    let credentials = format!("tls-creds-x509,id=t,dir={},endpoint=server,verify-peer=yes", good.display());
    let (number, pid) = (free_port().to_string(), server.socket());
    let mut args = vec!["-r", "-t", "-e", "8", "-f", "raw", "-b", "127.0.0.1", "-p", &number, "--object", &credentials];
    args.extend(["--tls-creds", "t", "--pid-file", pid.to_str().unwrap(), raw.to_str().unwrap()]);
    server.start("qemu-nbd", &args);
    let uri = |more: &str| format!("nbds://localhost:{number}/?{more}");
    let made = back_up(&scene, &format!("d={}", uri(&with(&good))));
    assert_same(&scene.read(&made.backup, "d"), &bytes);
    refused(&scene, &uri(&with(&other)), "certificate");
    refused(&scene, &uri(&format!("{}&tls-hostname=elsewhere", with(&good))), "not valid for name");
}

#[test]
fn the_storage_daemon_over_tls_gives_a_full_backup_and_an_increment() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io", "openssl"]) {
        return;
    }
    let scene = Scene::new();
    let (good, other) = (pki(&scene, "pki"), pki(&scene, "other"));
    let image = scene.path("disk.qcow2");
    let path = image.to_str().unwrap();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", path, "8M"]);
    tool("qemu-img", &["bitmap", "--add", path, "bm"]);
    let serve = |number: &str| {
        let mut server = Server::new();
        let credentials = format!("tls-creds-x509,id=t,dir={},endpoint=server,verify-peer=yes", good.display());
        let address = format!("addr.type=inet,addr.host=127.0.0.1,addr.port={number},tls-creds=t");
        let file = format!("driver=qcow2,node-name=disk,read-only=on,file.driver=file,file.filename={path}");
        let pid = server.socket();
        let mut args = vec!["--object", &credentials, "--nbd-server", &address, "--blockdev", &file];
        let export = "type=nbd,id=x,node-name=disk,name=drive scsi0/1,bitmaps.0=bm";
        args.extend(["--export", export, "--pidfile", pid.to_str().unwrap()]);
        server.start("qemu-storage-daemon", &args);
        server
    };
    let mut model = vec![0; 8 * MIB];
    let mut parent = None;
    for (byte, at) in [(0x11, MIB), (0x22, 5 * MIB)] {
        qemu_io(&["-f", "qcow2", path], &[&format!("write -P {byte} {at} 192k")]);
        model[at..at + (192 << 10)].fill(byte);
        let number = free_port().to_string();
        let _server = serve(&number);
        let uri = |more: &str| format!("nbds://localhost:{number}/drive%20scsi0%2F1?{more}");
        let made = back_up(&scene, &format!("d={},bitmap=bm", uri(&with(&good))));
        assert_eq!(made.disks[0].parent.as_ref().map(|parent| parent.backup.clone()), parent);
        assert_same(&scene.read(&made.backup, "d"), &model);
        refused(&scene, &uri(&with(&other)), "certificate");
        refused(&scene, &uri(&format!("{}&tls-hostname=elsewhere", with(&good))), "not valid for name");
        parent = Some(made.backup);
    }
}

#[test]
fn a_connection_over_tls_that_drops_is_made_anew_and_no_other_server_takes_its_place() {
    if !have(&["nbdkit", "openssl"]) {
        return;
    }
    let bytes = Random::new(10).bytes(6 * MIB);
    for honest in [true, false] {
        let scene = Scene::new();
        let raw = scene.raw("disk", &bytes);
        let (good, other) = (pki(&scene, "pki"), pki(&scene, "other"));
        let serve = |server: &mut Server, pki: &Path| {
            let certificates = format!("--tls-certificates={}", pki.display());
            server.nbdkit(&["--tls=require", &certificates, "file", raw.to_str().unwrap()]);
        };
        let mut server = Server::new();
        serve(&mut server, &good);
        let uri = format!("nbds+unix:///?socket={}&{}", server.socket().display(), with(&good));
        let mut request = scene.request(&[&format!("d={uri}")]);
        request.bytes_per_second = Some(4 * MIB as u64);
        let made = std::thread::scope(|scope| {
            let run = scope.spawn(|| scene.run(&request));
            std::thread::sleep(std::time::Duration::from_millis(700));
            server.kill();
            serve(&mut server, if honest { &good } else { &other });
            run.join().unwrap()
        });
        match made {
            Ok(made) => {
                assert!(honest, "another server was believed");
                assert_same(&scene.read(&made.backup, "d"), &bytes);
            }
            Err(e) => assert!(!honest && e.report().contains("certificate"), "{}", e.report()),
        }
    }
}
