//! Lies and refusals in the handshake.

use std::time::Duration;

use annals::base::{Error, ErrorKind};
use annals::nbd::constants as nbd;
use annals::nbd::{BlockSizes, Client, HeaderStyle, Options, Uri, list};

use crate::fake_nbd::{FakeServer, Offer, SIZE, Session, bytes_at};
use crate::{connect, options, range, run, with_contexts};

/// How connecting fails when a script plays the server.
#[track_caller]
fn refused(script: impl Fn(&mut Session) -> std::io::Result<()> + Send + Sync + 'static) -> Error {
    let server = FakeServer::start(move |session| {
        script(session)?;
        session.wait_for_end()
    });
    let error =
        run(async { Client::connect(&server.uri("vda"), &with_contexts(&["base:allocation"])).await.map(|_| ()) });
    let error = error.expect_err("the lie was believed");
    assert!(error.report().contains("/vda?socket="), "{}", error.report());
    error
}

#[track_caller]
fn is_a_lie(word: &str, script: impl Fn(&mut Session) -> std::io::Result<()> + Send + Sync + 'static) {
    let error = refused(script);
    assert_eq!(error.kind(), ErrorKind::Protocol, "{}", error.report());
    assert!(error.report().contains(word), "{}", error.report());
}

/// As the server sends facts after agreeing on structured replies.
fn go(session: &mut Session, facts: &[(u16, &[u8])]) -> std::io::Result<()> {
    session.greet(3)?;
    session.refuse_until(nbd::OPT_GO)?;
    for (kind, payload) in facts {
        session.reply(nbd::OPT_GO, nbd::REP_INFO, &[&kind.to_be_bytes(), *payload].concat())?;
    }
    session.reply(nbd::OPT_GO, nbd::REP_ACK, b"")
}

const EXPORT: &[u8] = &[0, 0, 0, 0, 0, 0x10, 0, 0, 0, 1];

#[test]
fn facts_are_taken_as_the_server_tells_them() {
    let offer = Offer::extended().with_contexts(&[(77, "base:allocation"), (5, "qemu:dirty-bitmap:b")]);
    let server = FakeServer::after(offer, Session::wait_for_end);
    run(async {
        let asked = with_contexts(&["qemu:dirty-bitmap:b", "qemu:dirty-bitmap:other", "base:allocation"]);
        let client = connect(&server, &asked).await;
        let export = client.export();
        assert_eq!((export.name.as_str(), export.size, export.headers), ("vda", SIZE, HeaderStyle::Extended));
        assert_eq!(export.block_sizes, BlockSizes { minimum: 1, preferred: 4096, maximum: 1 << 20 });
        assert_eq!(export.contexts, ["qemu:dirty-bitmap:b", "base:allocation"]);
    });
}

#[test]
fn an_old_server_without_go_is_entered_by_name() {
    for greeting in [0, 1, 2, 3] {
        let offer = Offer { go: false, structured: false, greeting, ..Offer::default() };
        let server = FakeServer::start(move |session| {
            session.handshake(&offer)?;
            session.serve_reads(&offer)
        });
        run(async {
            let client = connect(&server, &options()).await;
            assert!(!client.export().block_sizes_declared);
            assert_eq!(
                client.read(range(5, 1000), Vec::new()).await.unwrap(),
                bytes_at(5, 1000),
                "greeting {greeting}"
            );
        });
    }
}

#[test]
fn an_export_name_that_an_old_server_does_not_have_is_said_to_be_missing() {
    let error = refused(|session| {
        session.greet(0)?;
        session.option()?;
        Err(std::io::ErrorKind::UnexpectedEof.into())
    });
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
}

#[test]
fn what_is_no_nbd_server_is_recognised() {
    is_a_lie("no NBD server", |session| session.send(b"SSH-2.0-OpenSSH_9.2p1 Debian-2"));
    is_a_lie("unknown magic", |session| session.send(b"NBDMAGICNBDMAGIC\0\0"));
}

#[test]
fn the_oldstyle_handshake_is_refused_by_name() {
    let error = refused(|session| {
        session.send(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53")?;
        session.send(&[0; 136])
    });
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.report().contains("oldstyle"), "{}", error.report());
}

#[test]
fn a_handshake_that_is_cut_short_is_a_lost_connection() {
    for len in [0, 7, 17] {
        let server = FakeServer::start(move |session| session.send(&b"NBDMAGICIHAVEOPT\0\x03"[..len]));
        let error = run(async { Client::connect(&server.uri(""), &options()).await.map(|_| ()) }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{}", error.report());
        assert!(error.report().contains("closed the connection"), "{}", error.report());
    }
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let server = FakeServer::start(Session::wait_for_end);
    let limits = Options { handshake_timeout: Duration::from_millis(100), ..options() };
    let error = run(async { Client::connect(&server.uri("vda"), &limits).await.map(|_| ()) }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(error.report().contains("100ms"), "{}", error.report());
}

#[test]
fn a_server_that_is_not_there_is_a_lost_connection() {
    for uri in ["nbd+unix:///x?socket=/nonexistent/nbd.sock", "nbd://127.0.0.1:1/x"] {
        let error =
            run(async { Client::connect(&Uri::parse(uri).unwrap(), &options()).await.map(|_| ()) }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{}", error.report());
        assert!(error.report().starts_with(uri), "{}", error.report());
    }
}

#[test]
fn replies_that_do_not_fit_the_option_are_lies() {
    is_a_lie("wrong magic", |session| {
        session.greet(3)?;
        session.option()?;
        session.send(&[0; 20])
    });
    is_a_lie("the reply is to option 3", |session| {
        session.greet(3)?;
        session.option()?;
        session.reply(nbd::OPT_LIST, nbd::REP_ACK, b"")
    });
    is_a_lie("unknown type 99", |session| {
        session.greet(3)?;
        let (option, _) = session.option()?;
        session.reply(option, 99, b"")
    });
    is_a_lie("wrong kind", |session| {
        session.greet(3)?;
        let (option, _) = session.option()?;
        session.reply(option, nbd::REP_SERVER, b"\0\0\0\0")
    });
    is_a_lie("acknowledgement carries", |session| {
        session.greet(3)?;
        let (option, _) = session.option()?;
        session.reply(option, nbd::REP_ACK, b"x")
    });
}

#[test]
fn a_reply_that_declares_gigabytes_is_a_lie_before_it_is_read() {
    is_a_lie("declares 4294967295 bytes", |session| {
        session.greet(3)?;
        let (option, _) = session.option()?;
        let kind = nbd::REP_ERR_UNSUP;
        session
            .send(&[&nbd::OPTION_REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()].concat())?;
        session.send(&u32::MAX.to_be_bytes())
    });
}

#[test]
fn an_export_without_size_is_a_lie() {
    is_a_lie("without telling the export's size", |session| go(session, &[]));
}

#[test]
fn facts_that_contradict_each_other_are_a_lie() {
    is_a_lie("two different things", |session| go(session, &[(0, EXPORT), (0, &[0, 0, 0, 0, 0, 0x20, 0, 0, 0, 1])]));
}

#[test]
fn facts_of_the_wrong_length_are_lies() {
    is_a_lie("cut short", |session| go(session, &[(0, &EXPORT[..9])]));
    is_a_lie("too many", |session| go(session, &[(0, &[EXPORT, b"x"].concat())]));
    is_a_lie("cut short", |session| go(session, &[(3, &[0; 11]), (0, EXPORT)]));
    is_a_lie("cut short", |session| {
        session.greet(3)?;
        session.refuse_until(nbd::OPT_GO)?;
        session.reply(nbd::OPT_GO, nbd::REP_INFO, b"x")
    });
}

#[test]
fn a_size_that_no_disk_has_is_a_lie() {
    is_a_lie("more than a disk can have", |session| go(session, &[(0, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 1])]));
}

#[test]
fn flags_that_say_there_are_none_are_a_lie() {
    is_a_lie("lack the bit", |session| go(session, &[(0, &[0, 0, 0, 0, 0, 0x10, 0, 0, 1, 0])]));
}

#[test]
fn block_sizes_against_the_rules_are_lies() {
    for (sizes, word) in [
        ([0, 4096, 1 << 20], "minimum"),
        ([3, 4096, 1 << 20], "minimum"),
        ([1 << 17, 1 << 17, 1 << 20], "minimum"),
        ([512, 256, 1 << 20], "preferred"),
        ([512, 5000, 1 << 20], "preferred"),
        ([4096, 2048, 1 << 20], "preferred"),
        ([512, 4096, 4095], "largest payload"),
        ([512, 4096, 0], "largest payload"),
    ] {
        let offer = Offer { block_sizes: Some(sizes), ..Offer::default() };
        is_a_lie(word, move |session| session.handshake(&offer));
    }
}

/// The server selects these contexts, whatever was asked for.
fn selects(contexts: &'static [(u32, &str)]) -> impl Fn(&mut Session) -> std::io::Result<()> + Send + Sync + 'static {
    move |session| {
        session.greet(3)?;
        session.refuse_until(nbd::OPT_STRUCTURED_REPLY)?;
        session.reply(nbd::OPT_STRUCTURED_REPLY, nbd::REP_ACK, b"")?;
        session.refuse_until(nbd::OPT_SET_META_CONTEXT)?;
        for (id, name) in contexts {
            let payload = [&id.to_be_bytes(), name.as_bytes()].concat();
            session.reply(nbd::OPT_SET_META_CONTEXT, nbd::REP_META_CONTEXT, &payload)?;
        }
        session.reply(nbd::OPT_SET_META_CONTEXT, nbd::REP_ACK, b"")
    }
}

#[test]
fn contexts_that_nobody_asked_for_or_that_come_twice_are_lies() {
    is_a_lie("which nobody asked for", selects(&[(1, "base:other")]));
    is_a_lie("twice", selects(&[(1, "base:allocation"), (2, "base:allocation")]));
    is_a_lie("not UTF-8 text without NUL", selects(&[(1, "base:\0")]));
}

#[test]
fn replies_without_end_are_cut_off() {
    is_a_lie("floods", |session| {
        session.greet(3)?;
        session.refuse_until(nbd::OPT_GO)?;
        loop {
            session.reply(nbd::OPT_GO, nbd::REP_INFO, &[0x77; 8192])?;
        }
    });
    let server = FakeServer::start(|session| {
        session.greet(3)?;
        session.refuse_until(nbd::OPT_LIST)?;
        loop {
            session.reply(nbd::OPT_LIST, nbd::REP_SERVER, b"\0\0\0\x01x")?;
        }
    });
    let error = run(async { list(&server.uri(""), &options()).await.map(|_| ()) }).unwrap_err();
    assert!(error.report().contains("floods"), "{}", error.report());
}

#[test]
fn a_list_of_few_but_huge_entries_is_cut_off_too() {
    let server = FakeServer::start(|session| {
        session.greet(3)?;
        session.refuse_until(nbd::OPT_LIST)?;
        let entry = [&b"\0\0\0\x01x"[..], &[b'd'; 8192]].concat();
        for _ in 0..600 {
            session.reply(nbd::OPT_LIST, nbd::REP_SERVER, &entry)?;
        }
        session.reply(nbd::OPT_LIST, nbd::REP_ACK, b"")?;
        session.wait_for_end()
    });
    let error = run(async { list(&server.uri(""), &options()).await.map(|_| ()) }).unwrap_err();
    assert!(error.report().contains("floods"), "{}", error.report());
}

#[test]
fn a_missing_export_is_not_found_and_the_servers_words_are_shown() {
    let error = refused(|session| {
        session.greet(3)?;
        session.refuse_until(nbd::OPT_GO)?;
        session.reply(nbd::OPT_GO, nbd::REP_ERR_UNKNOWN, b"no export \x1b[31mvda\n")
    });
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.report().contains("no export \u{fffd}[31mvda"), "{}", error.report());
    assert!(!error.report().contains('\x1b'));
}

#[test]
fn a_server_that_demands_tls_gets_a_hint_and_no_data() {
    let error = refused(|session| {
        session.greet(3)?;
        let (option, _) = session.option()?;
        session.reply(option, nbd::REP_ERR_TLS_REQD, b"")
    });
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.hint().unwrap().contains("nbds"));
}

#[test]
fn a_server_that_is_shutting_down_is_a_lost_connection() {
    let error = refused(|session| {
        session.greet(3)?;
        let (option, _) = session.option()?;
        session.reply(option, nbd::REP_ERR_SHUTDOWN, b"")
    });
    assert_eq!(error.kind(), ErrorKind::Disconnected);
}

fn over_tls(server: &FakeServer) -> Error {
    let uri = format!("nbds+unix:///vda?socket={}&tls-verify-peer=0", server.socket().display());
    run(async { Client::connect(&Uri::parse(&uri).unwrap(), &options()).await.map(|_| ()) }).unwrap_err()
}

#[test]
fn a_server_without_tls_is_not_spoken_to_in_the_clear_when_the_uri_demands_tls() {
    for greeting in [0, 3] {
        let server = FakeServer::start(move |session| {
            session.greet(greeting)?;
            let (option, _) = session.option()?;
            assert_eq!(option, nbd::OPT_STARTTLS, "something was sent before TLS");
            session.reply(option, nbd::REP_ERR_UNSUP, b"")?;
            assert!(session.option().is_err(), "something was sent without TLS");
            Ok(())
        });
        let error = over_tls(&server);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.report());
        assert!(error.report().contains("TLS"), "{}", error.report());
    }
}

#[test]
fn what_is_slipped_in_before_tls_begins_is_not_believed() {
    let server = FakeServer::start(|session| {
        session.greet(3)?;
        let (option, _) = session.option()?;
        session.reply(option, nbd::REP_ACK, b"")?;
        // An answer to an option that has not been sent yet, in the clear.
        session.reply(nbd::OPT_EXTENDED_HEADERS, nbd::REP_ACK, b"")?;
        session.wait_for_end()
    });
    let error = over_tls(&server);
    assert!(error.report().contains("TLS handshake failed"), "{}", error.report());
}

#[test]
fn a_list_has_every_export_with_its_contexts_and_its_troubles() {
    let offer = Offer::default().with_contexts(&[(0, "base:allocation"), (0, "qemu:dirty-bitmap:b1")]);
    let server = FakeServer::start(move |session| {
        session.greet(3)?;
        loop {
            let (option, data) = session.option()?;
            match option {
                nbd::OPT_STRUCTURED_REPLY | nbd::OPT_ABORT => session.reply(option, nbd::REP_ACK, b"")?,
                nbd::OPT_LIST => {
                    for name in ["a/b c", "gone"] {
                        let entry = [&(name.len() as u32).to_be_bytes(), name.as_bytes(), b"words"].concat();
                        session.reply(option, nbd::REP_SERVER, &entry)?;
                    }
                    session.reply(option, nbd::REP_ACK, b"")?;
                }
                nbd::OPT_INFO if data.windows(4).any(|window| window == b"gone") => {
                    session.reply(option, nbd::REP_ERR_UNKNOWN, b"")?;
                }
                nbd::OPT_INFO => {
                    session.info(option, &offer)?;
                    session.reply(option, nbd::REP_ACK, b"")?;
                }
                nbd::OPT_LIST_META_CONTEXT => {
                    for (id, name) in &offer.contexts {
                        session.reply(option, nbd::REP_META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()].concat())?;
                    }
                    session.reply(option, nbd::REP_ACK, b"")?;
                }
                _ => session.reply(option, nbd::REP_ERR_UNSUP, b"")?,
            }
        }
    });
    let listing = run(async { list(&server.uri(""), &options()).await }).unwrap();
    assert_eq!((listing.headers, listing.tls), (HeaderStyle::Structured, false));
    let [first, second] = listing.exports.as_slice() else { panic!("{listing:?}") };
    assert_eq!((first.name.as_str(), first.description.as_str()), ("a/b c", "words"));
    let details = first.details.as_ref().unwrap();
    assert_eq!((details.size, details.contexts.len()), (SIZE, 2));
    assert_eq!(second.details.as_ref().unwrap_err().kind(), ErrorKind::NotFound);
}
