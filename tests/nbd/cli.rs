//! `annals nbd info`.

use std::process::Output;

use annals::nbd::constants as nbd;
use serde_json::{Value, json};

use crate::fake_nbd::{FakeServer, Offer, Session};
use crate::nbd_servers::{Server, qemu_io};
use crate::support::tools::{command, have, run as tool};

fn info(arguments: &[&str]) -> Output {
    command(env!("CARGO_BIN_EXE_annals")).args(["nbd", "info"]).args(arguments).output().unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn info_tells_the_exports_of_qemu_nbd() {
    if !have(&["qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let mut server = Server::new();
    let image = server.path("disk.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "8M"]);
    tool("qemu-img", &["bitmap", "--add", image.to_str().unwrap(), "cp0"]);
    qemu_io(&["-f", "qcow2", image.to_str().unwrap()], &["write 0 64k"]);
    tool("qemu-img", &["bitmap", "--disable", image.to_str().unwrap(), "cp0"]);
    server.qemu_nbd("qcow2", &image, &["-x", "a b/c", "-D", "the disk", "-B", "cp0"]);
    let output = info(&["--json", &server.uri("")]);
    assert!(output.status.success(), "{output:?}");
    let told = json_of(&output);
    let export = &told["exports"][0];
    assert_eq!(told["exports"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&export["name"], &export["size"], &export["description"]),
        (&json!("a b/c"), &json!(8 << 20), &json!("the disk"))
    );
    assert_eq!(export["contexts"], json!(["base:allocation", "qemu:dirty-bitmap:cp0"]));
    assert!(export["flags"].as_array().unwrap().contains(&json!("read-only")), "{export}");
    assert!(export["block_sizes"]["maximum"].as_u64().unwrap() >= 1 << 20, "{export}");

    let text = String::from_utf8(info(&[&server.uri("a%20b/c")]).stdout).unwrap();
    assert!(text.contains("export 'a b/c'") && text.contains("8 MiB (8388608 bytes)"), "{text}");
    let missing = info(&[&server.uri("other")]);
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");
    assert!(String::from_utf8_lossy(&missing.stdout).contains("no such export"), "{missing:?}");
}

#[test]
fn info_shows_a_hostile_servers_words_without_obeying_them() {
    let server = FakeServer::start(|session: &mut Session| {
        session.greet(3)?;
        loop {
            let (option, _) = session.option()?;
            match option {
                nbd::OPT_LIST => {
                    let entry = [&8_u32.to_be_bytes()[..], b"\x1b[2Jevil", b"\x1b]0;title\x07"].concat();
                    session.reply(option, nbd::REP_SERVER, &entry)?;
                    session.reply(option, nbd::REP_ACK, b"")?;
                }
                nbd::OPT_INFO => {
                    session.info(option, &Offer::default())?;
                    session.reply(option, nbd::REP_ACK, b"")?;
                }
                _ => session.reply(option, nbd::REP_ERR_UNSUP, b"")?,
            }
        }
    });
    let output = info(&[&server.uri("").to_string()]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("evil") && !text.contains('\x1b') && !text.contains('\x07'), "{text:?}");
}

#[test]
fn info_fails_with_a_reason_and_a_code() {
    for (uri, code, word) in [
        ("nbd://127.0.0.1:1/vda", 1, "nbd://127.0.0.1:1/vda: cannot connect"),
        ("nbd+unix:///?socket=/nonexistent", 1, "No such file"),
        ("nbd+unix:///vda", 2, "'socket' is missing"),
        ("nbds://localhost/vda", 2, "tls-certificates=DIR"),
    ] {
        let output = info(&["--timeout", "5", uri]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(word), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn info_gives_up_on_a_silent_server() {
    let server = FakeServer::start(Session::wait_for_end);
    let output = info(&["--timeout", "1", &server.uri("").to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did not finish the handshake in 1s"), "{output:?}");
}
