//! Certificates for servers and clients, made by openssl.

// Each test binary compiles this for itself and uses a part of it.
#![allow(dead_code)]

use std::net::TcpListener;
use std::path::Path;

use crate::support::tools::run as tool;

/// Makes a key and a certificate that `authority` of the same directory signs, or that signs itself.
pub(crate) fn certificate(directory: &Path, name: &str, authority: Option<&str>, extensions: &str) {
    let file = |kind: &str, name: &str| directory.join(format!("{name}-{kind}.pem")).to_str().unwrap().to_owned();
    let (key, certificate) = (file("key", name), file("cert", name));
    let mut args =
        vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let subject = format!("/CN={name}");
    args.extend(["-subj", &subject, "-keyout", &key, "-out", &certificate]);
    for extension in extensions.split(';') {
        args.extend(["-addext", extension]);
    }
    let signer = authority.map(|authority| (file("cert", authority), file("key", authority)));
    if let Some((ca, ca_key)) = &signer {
        args.extend(["-CA", ca, "-CAkey", ca_key]);
    }
    tool("openssl", &args);
}

/// A directory with all that a server and a client need: the certificate is for `localhost` and 127.0.0.1.
pub(crate) fn certificates(directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    certificate(directory, "ca", None, "keyUsage=critical,keyCertSign,cRLSign");
    // QEMU asks a server's certificate for key encipherment, from version 10 on also where its key could not do it.
    let end = "basicConstraints=critical,CA:FALSE;keyUsage=critical,digitalSignature,keyEncipherment";
    let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
    certificate(directory, "server", Some("ca"), &format!("{end};extendedKeyUsage=serverAuth;{names}"));
    certificate(directory, "client", Some("ca"), &format!("{end};extendedKeyUsage=clientAuth"));
}

/// Puts in the place of the server's certificate one that its authority gave for a month of the year 2020.
pub(crate) fn let_expire(directory: &Path) {
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let request = file("server-request.pem");
    tool("openssl", &["req", "-new", "-key", &file("server-key.pem"), "-subj", "/CN=server", "-out", &request]);
    // openssl keeps what an authority has signed in files that it has to be told of.
    std::fs::write(directory.join("index.txt"), "").unwrap();
    std::fs::write(directory.join("number"), "01\n").unwrap();
    let conf = format!(
        "[ca]\ndefault_ca=d\n[d]\ndefault_md=sha256\npolicy=p\ndatabase={}\nserial={}\nnew_certs_dir={}\nx509_extensions=e\n\
         [p]\ncommonName=supplied\n\
         [e]\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,keyEncipherment\n\
         extendedKeyUsage=serverAuth\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n",
        file("index.txt"),
        file("number"),
        directory.display()
    );
    std::fs::write(directory.join("ca.conf"), conf).unwrap();
    let (conf, cert, key) = (file("ca.conf"), file("ca-cert.pem"), file("ca-key.pem"));
    let mut args = vec!["ca", "-batch", "-config", &conf, "-cert", &cert, "-keyfile", &key, "-in", &request];
    let out = file("server-cert.pem");
    args.extend(["-startdate", "20200101000000Z", "-enddate", "20200201000000Z", "-notext", "-out", &out]);
    tool("openssl", &args);
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
