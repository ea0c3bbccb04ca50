//! TLS with certificates, against nbdkit and qemu-nbd, which have GnuTLS beneath.

use std::path::Path;

use annals::base::{Error, ErrorKind};
use annals::nbd::{Client, Options, Uri, list};

use crate::certificates::{certificates, free_port};
use crate::nbd_servers::{Server, qemu_io};
use crate::support::tools::{have, run as tool};
use crate::{options, range, run};

/// Reads a sector, or tells why not.
fn read(uri: &str) -> Result<Vec<u8>, Error> {
    run(async {
        let client = Client::connect(&Uri::parse(uri).unwrap(), &options()).await?;
        let data = client.read(range(0, 512), Vec::new()).await;
        client.close().await;
        data
    })
}

#[track_caller]
fn refused(uri: &str, word: &str) {
    let error = read(uri).expect_err("it was let in");
    let report = error.report();
    assert!(error.kind() != ErrorKind::Protocol && report.to_lowercase().contains(word), "{report}");
}

#[test]
fn certificates_are_checked_on_both_sides_over_tcp() {
    if !have(&["nbdkit", "openssl"]) {
        return;
    }
    let mut server = Server::new();
    let (good, other) = (server.path("pki"), server.path("other"));
    certificates(&good);
    certificates(&other);
    let anonymous = server.path("anonymous");
    std::fs::create_dir(&anonymous).unwrap();
    std::fs::copy(good.join("ca-cert.pem"), anonymous.join("ca-cert.pem")).unwrap();
    let port = free_port();
    // nbdkit writes its process id once it listens: that file stands in for the socket.
    let (pid, number) = (server.socket(), port.to_string());
    let pki = format!("--tls-certificates={}", good.display());
    let mut args = vec!["-f", "-i", "127.0.0.1", "-p", &number, "-P", pid.to_str().unwrap(), "--tls=require"];
    args.extend(["--tls-verify-peer", &pki, "memory", "1M"]);
    server.start("nbdkit", &args);

    let uri = |host: &str, more: &str| format!("nbds://{host}:{port}/?{more}");
    let with = |directory: &Path| format!("tls-certificates={}", directory.display());
    assert_eq!(read(&uri("localhost", &with(&good))).unwrap(), [0; 512]);
    assert_eq!(read(&uri("127.0.0.1", &with(&good))).unwrap(), [0; 512]);
    assert_eq!(read(&uri("127.0.0.1", &format!("{}&tls-hostname=localhost", with(&good)))).unwrap(), [0; 512]);
    // The directory may also come from the caller.
    let listing = run(async {
        let options = Options { certificates: Some(good.clone()), ..options() };
        list(&Uri::parse(&uri("localhost", "")).unwrap(), &options).await
    });
    assert!(listing.unwrap().tls);

    refused(&uri("localhost", &format!("{}&tls-hostname=elsewhere", with(&good))), "not valid for name");
    refused(&uri("localhost", &with(&other)), "certificate");
    refused(&uri("localhost", &with(&anonymous)), "");
    refused(&uri("localhost", &with(&server.path("nowhere"))), "ca-cert.pem");
    refused(&uri("localhost", ""), "trusted");
    refused(&format!("nbd://localhost:{port}/"), "tls");
}

#[test]
fn over_a_unix_domain_socket_the_chain_is_checked_and_the_name_if_one_is_given() {
    if !have(&["nbdkit", "openssl"]) {
        return;
    }
    let mut server = Server::new();
    let (good, other) = (server.path("pki"), server.path("other"));
    certificates(&good);
    certificates(&other);
    server.nbdkit(&["--tls=require", &format!("--tls-certificates={}", good.display()), "memory", "1M"]);
    let uri = |more: &str| format!("nbds+unix:///?socket={}&{more}", server.socket().display());
    let with = |directory: &Path| format!("tls-certificates={}", directory.display());
    assert_eq!(read(&uri(&with(&good))).unwrap(), [0; 512]);
    assert_eq!(read(&uri(&format!("{}&tls-hostname=localhost", with(&good)))).unwrap(), [0; 512]);
    refused(&uri(&format!("{}&tls-hostname=elsewhere", with(&good))), "not valid for name");
    refused(&uri(&with(&other)), "certificate");
    assert_eq!(read(&uri(&format!("{}&tls-verify-peer=0", with(&other)))).unwrap(), [0; 512]);
    assert_eq!(read(&uri("tls-verify-peer=0")).unwrap(), [0; 512]);
    refused(&server.uri(""), "tls");
}

#[test]
fn a_revoked_certificate_is_not_trusted() {
    if !have(&["nbdkit", "openssl"]) {
        return;
    }
    let mut server = Server::new();
    let pki = server.path("pki");
    certificates(&pki);
    server.nbdkit(&["--tls=require", &format!("--tls-certificates={}", pki.display()), "memory", "1M"]);
    let file = |name: &str| pki.join(name).to_str().unwrap().to_owned();
    // openssl keeps its list of revoked certificates in a text file that it has to be told of.
    std::fs::write(pki.join("index.txt"), "").unwrap();
    std::fs::write(pki.join("number"), "01\n").unwrap();
    let conf =
        "[ca]\ndefault_ca=d\n[d]\ndefault_md=sha256\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid:always\n";
    let conf = conf.replace("[e]", &format!("database={}\ncrlnumber={}\n[e]", file("index.txt"), file("number")));
    std::fs::write(pki.join("ca.conf"), conf).unwrap();
    let ca = |more: &[&str]| {
        let (conf, cert, key) = (file("ca.conf"), file("ca-cert.pem"), file("ca-key.pem"));
        let mut args = vec!["ca", "-config", &conf, "-cert", &cert, "-keyfile", &key];
        args.extend(more);
        tool("openssl", &args);
    };
    let uri = format!("nbds+unix:///?socket={}&tls-certificates={}", server.socket().display(), pki.display());
    ca(&["-gencrl", "-crldays", "2", "-out", &file("ca-crl.pem")]);
    assert_eq!(read(&uri).unwrap(), [0; 512]);
    ca(&["-revoke", &file("server-cert.pem")]);
    ca(&["-gencrl", "-crldays", "2", "-out", &file("ca-crl.pem")]);
    refused(&uri, "revoked");
}

#[test]
fn qemu_nbd_takes_our_certificate() {
    if !have(&["qemu-nbd", "qemu-img", "qemu-io", "openssl"]) {
        return;
    }
    let mut server = Server::new();
    let pki = server.path("pki");
    certificates(&pki);
    let image = server.path("disk.raw");
    tool("qemu-img", &["create", "-q", "-f", "raw", image.to_str().unwrap(), "1M"]);
    qemu_io(&["-f", "raw", image.to_str().unwrap()], &["write -P 0x5a 0 64k"]);
    let credentials = format!("tls-creds-x509,id=t,dir={},endpoint=server,verify-peer=yes", pki.display());
    let number = free_port().to_string();
    let pid = server.socket();
    let args =
        ["-r", "-t", "-f", "raw", "-b", "127.0.0.1", "-p", &number, "--object", &credentials, "--tls-creds", "t"];
    let mut args = args.to_vec();
    args.extend(["--pid-file", pid.to_str().unwrap(), image.to_str().unwrap()]);
    server.start("qemu-nbd", &args);
    let uri = format!("nbds://localhost:{number}/?tls-certificates={}", pki.display());
    assert_eq!(read(&uri).unwrap(), [0x5a; 512]);
}
