//! Every kind of lie that a server can tell, told to a whole run of the program: never a backup that is wrong, never a hang,
//! never memory without bound. That each lie is seen for what it is, `tests/nbd/` shows one by one.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use annals::nbd::constants as nbd;

use crate::fake_nbd::{ALLOCATION, Asked, CHANGED, DIRTY, FakeServer, Offer, SIZE, Session, bytes_at};
use crate::lost::{failed_in_order, with_a_backup};
use crate::scene::assert_same;
use crate::watched::Watched;

/// What the whole program may have of memory, whatever the server does, in MiB.
const MEMORY: u64 = 256;

/// What is asked of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full,
    Increment,
}

/// Has a server lie to a run of the program, which has to fail in order, and soon, with these words.
fn lie(kind: Kind, words: &[&str], script: impl Fn(&mut Session) -> io::Result<()> + Send + Sync + 'static) {
    let before = vec![0x5a; SIZE as usize];
    let (scene, first) = with_a_backup(&before);
    let server = FakeServer::start(script);
    let more = if kind == Kind::Increment { ",bitmap=bm" } else { "" };
    let disk = format!("vda={}{more}", server.uri("vda"));
    let ended = Watched::start(&scene.store(), &["backup", "vm", "100", "--disk", &disk, "--timeout", "1"]).end();
    println!("{}", ended.stderr);
    failed_in_order(&scene, &first, &before, &ended, &[&["disk vda", "vda"], words].concat());
    assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
    assert!(ended.memory <= MEMORY, "{} MiB", ended.memory);
}

/// A server that is honest but for its answers to one command.
fn answers(
    offer: Offer,
    command: u16,
    lie: impl Fn(&mut Session, Asked) -> io::Result<()> + Send + Sync + 'static,
) -> impl Fn(&mut Session) -> io::Result<()> + Send + Sync + 'static {
    move |session| {
        session.handshake(&offer)?;
        loop {
            let asked = session.request()?;
            if asked.command == command {
                lie(session, asked)?;
            } else {
                session.answer(&offer, asked)?;
            }
        }
    }
}

/// Lies in the answer to a read, after some that were honest.
fn read_lies(word: &str, lie_to: fn(&mut Session, Asked) -> io::Result<()>) {
    for (kind, extended) in [(Kind::Full, false), (Kind::Increment, false), (Kind::Full, true)] {
        let honest = AtomicUsize::new(0);
        // Small requests, so that the lie comes in the middle.
        let offer = Offer { block_sizes: Some([1, 4096, 65536]), extended, ..Offer::backup() };
        let script = answers(offer.clone(), nbd::CMD_READ, move |session, asked| {
            if honest.fetch_add(1, Ordering::SeqCst) == 0 {
                return session.answer_read(&offer, asked);
            }
            lie_to(session, asked)
        });
        lie(kind, &["export 'vda': read of", word], script);
    }
}

#[test]
fn data_that_were_not_asked_for_are_never_published() {
    read_lies("outside", |session, asked| session.data(asked, true, asked.offset + 512, &bytes_at(0, asked.len)));
}

#[test]
fn data_that_come_twice_are_never_published() {
    read_lies("twice", |session, asked| {
        session.data(asked, false, asked.offset, &bytes_at(0, 512))?;
        session.data(asked, true, asked.offset, &bytes_at(0, asked.len))
    });
}

#[test]
fn an_answer_that_lacks_bytes_is_never_published() {
    read_lies("bytes", |session, asked| session.data(asked, true, asked.offset, &bytes_at(0, asked.len - 1)));
}

#[test]
fn an_answer_to_something_else_is_never_published() {
    read_lies("cookie", |session, asked| {
        session.answer_read(&Offer::backup(), Asked { cookie: !asked.cookie, ..asked })
    });
}

#[test]
fn an_answer_that_declares_gigabytes_ends_the_run() {
    read_lies("bytes", |session, asked| {
        session.chunk_header(asked, true, nbd::REPLY_OFFSET_DATA, u64::from(u32::MAX))?;
        session.wait_for_end()
    });
}

#[test]
fn an_answer_that_is_cut_off_each_time_ends_the_run() {
    read_lies("closed the connection", |session, asked| {
        session.chunk_header(asked, true, nbd::REPLY_OFFSET_DATA, 8 + asked.len)?;
        session.send(&asked.offset.to_be_bytes())?;
        session.send(&bytes_at(0, asked.len - 1))?;
        Err(io::ErrorKind::UnexpectedEof.into())
    });
}

#[test]
fn errors_without_end_end_the_run() {
    read_lies("", |session, asked| {
        loop {
            session.error(asked, false, 1, 5, "no")?;
        }
    });
}

#[test]
fn a_simple_reply_to_a_structured_read_is_never_published() {
    read_lies("reply", |session, asked| session.simple(asked.cookie, 0, &vec![0; asked.len as usize]));
}

/// Lies in the answer to a block status.
fn status_lies(word: &str, lie_to: fn(&mut Session, Asked) -> io::Result<()>) {
    for (kind, extended) in [(Kind::Full, false), (Kind::Increment, false), (Kind::Full, true)] {
        let script = answers(Offer { extended, ..Offer::backup() }, nbd::CMD_BLOCK_STATUS, lie_to);
        lie(kind, &["export 'vda': block status of", word], script);
    }
}

#[test]
fn extents_without_length_end_the_run() {
    status_lies("", |session, asked| {
        let selected = session.selected.clone();
        for (index, id) in selected.iter().enumerate() {
            session.status(asked, index + 1 == selected.len(), *id, &[(0, 0), (asked.len, 0)])?;
        }
        Ok(())
    });
}

#[test]
fn the_status_of_a_context_that_was_not_selected_ends_the_run() {
    status_lies("context", |session, asked| session.status(asked, true, 99, &[(asked.len, 0)]));
}

#[test]
fn a_status_that_nobody_sends_ends_the_run() {
    status_lies("", |session, asked| session.chunk(asked, true, nbd::REPLY_NONE, b""));
}

#[test]
fn a_context_that_answers_twice_ends_the_run() {
    status_lies("", |session, asked| {
        let id = session.selected[0];
        session.status(asked, false, id, &[(asked.len, 3)])?;
        session.status(asked, true, id, &[(asked.len, 0)])
    });
}

#[test]
fn a_status_that_declares_gigabytes_ends_the_run() {
    status_lies("", |session, asked| {
        session.chunk_header(asked, true, nbd::REPLY_BLOCK_STATUS, u64::from(u32::MAX))?;
        session.wait_for_end()
    });
}

#[test]
fn data_instead_of_a_status_end_the_run() {
    status_lies("", |session, asked| session.data(asked, true, asked.offset, &[0; 512]));
}

#[test]
fn extents_without_number_end_the_run_within_its_memory() {
    // 1 PiB, of which every second cluster is zero; and no answer at all after the first million extents.
    let offer = Offer { size: 1 << 50, ..Offer::backup() };
    let flood = |session: &mut Session, asked: Asked| {
        if asked.offset >= 1 << 36 {
            return session.wait_for_end();
        }
        let extents: Vec<_> = (0..1 << 15).map(|n| (65536, if n % 2 == 0 { 0 } else { 3 })).collect();
        session.status(asked, true, ALLOCATION, &extents)
    };
    lie(Kind::Full, &["block status of", "silent"], answers(offer, nbd::CMD_BLOCK_STATUS, flood));
}

#[test]
fn a_size_that_no_image_has_ends_the_run_within_its_memory() {
    // All of it zeros, so that nothing would have to be read.
    for size in [1_u64 << 56, 1 << 62, (1 << 63) - 512] {
        let offer = Offer { size, extended: true, ..Offer::backup() };
        let zeros = |session: &mut Session, asked: Asked| session.status(asked, true, ALLOCATION, &[(asked.len, 3)]);
        lie(Kind::Full, &["no image holds a disk of"], answers(offer, nbd::CMD_BLOCK_STATUS, zeros));
    }
}

#[test]
fn a_size_that_changes_between_two_connections_ends_the_run() {
    // An increment asks for more contexts than were asked for at first, on a new connection.
    lie(Kind::Increment, &["size"], |session| {
        let offer = Offer { size: SIZE + 512 * session.number as u64, ..Offer::backup() };
        session.handshake(&offer)?;
        session.serve_backup(&offer)
    });
}

#[test]
fn an_export_that_comes_back_smaller_in_the_middle_ends_the_run() {
    lie(Kind::Full, &["it is not the same disk"], |session| {
        let size = if session.number == 0 { SIZE } else { SIZE / 2 };
        let offer = Offer { size, ..Offer::backup() };
        session.handshake(&offer)?;
        loop {
            let asked = session.request()?;
            if asked.command == nbd::CMD_READ {
                return Ok(());
            }
            session.answer(&offer, asked)?;
        }
    });
}

#[test]
fn lies_in_the_handshake_end_the_run() {
    /// Answers one option with a lie, and others honestly enough.
    fn at(
        option: u32,
        told: fn(&mut Session) -> io::Result<()>,
    ) -> impl Fn(&mut Session) -> io::Result<()> + Send + Sync + 'static {
        move |session| {
            session.greet(3)?;
            loop {
                let (asked, _) = session.option()?;
                if asked == option {
                    told(session)?;
                    return session.wait_for_end();
                }
                let known = asked == nbd::OPT_STRUCTURED_REPLY;
                session.reply(asked, if known { nbd::REP_ACK } else { nbd::REP_ERR_UNSUP }, b"")?;
            }
        }
    }
    lie(Kind::Full, &[], |session| session.send(&[0x55; 4096]));
    lie(Kind::Full, &[], |session| session.send(b"NBDMAGICIHAVEOPT\0"));
    // The names of contexts: one that was not asked for, one as long as a reply may be, and a declared gigabyte.
    let unknown = |session: &mut Session| {
        session.reply(nbd::OPT_SET_META_CONTEXT, nbd::REP_META_CONTEXT, b"\0\0\0\x01base:other")?;
        session.reply(nbd::OPT_SET_META_CONTEXT, nbd::REP_ACK, b"")
    };
    lie(Kind::Full, &["nobody asked for"], at(nbd::OPT_SET_META_CONTEXT, unknown));
    lie(
        Kind::Full,
        &[],
        at(nbd::OPT_SET_META_CONTEXT, |session| {
            loop {
                session.reply(nbd::OPT_SET_META_CONTEXT, nbd::REP_META_CONTEXT, &[b'x'; 4096])?;
            }
        }),
    );
    lie(
        Kind::Full,
        &[],
        at(nbd::OPT_SET_META_CONTEXT, |session| {
            let reply = [
                &nbd::OPTION_REPLY_MAGIC.to_be_bytes()[..],
                &nbd::OPT_SET_META_CONTEXT.to_be_bytes(),
                &nbd::REP_META_CONTEXT.to_be_bytes(),
                &[0x7f; 4],
            ];
            session.send(&reply.concat())?;
            loop {
                session.send(&[0; 65536])?;
            }
        }),
    );
    lie(
        Kind::Full,
        &["flood"],
        at(nbd::OPT_GO, |session| {
            loop {
                session.info(nbd::OPT_GO, &Offer::default())?;
            }
        }),
    );
    lie(Kind::Full, &[], at(nbd::OPT_GO, |session| session.reply(nbd::OPT_GO, nbd::REP_ACK, b"")));
    for offer in [
        Offer { size: u64::MAX, ..Offer::backup() },
        Offer { flags: 0, ..Offer::backup() },
        Offer { block_sizes: Some([3, 4096, 65536]), ..Offer::backup() },
        Offer { block_sizes: Some([1 << 31, 1 << 31, 1 << 31]), ..Offer::backup() },
    ] {
        lie(Kind::Full, &[], move |session| session.handshake(&offer));
    }
}

#[test]
fn an_honest_server_is_believed_in_whatever_form_it_answers() {
    /// Answers reads in pieces that do not come in order, and zeros as holes.
    fn in_pieces(session: &mut Session, asked: Asked) -> io::Result<()> {
        let half = asked.len / 2;
        session.data(asked, false, asked.offset + half, &bytes_at(asked.offset + half, asked.len - half))?;
        session.data(asked, true, asked.offset, &bytes_at(asked.offset, half))
    }
    /// Tells of 4 KiB at a time, and past what was asked about.
    fn unevenly(session: &mut Session, asked: Asked) -> io::Result<()> {
        let selected = session.selected.clone();
        for (index, id) in selected.iter().enumerate() {
            let dirty = *id == DIRTY && CHANGED.contains(&asked.offset);
            let len = if *id == DIRTY { 4096 } else { asked.len + 65536 };
            session.status(asked, index + 1 == selected.len(), *id, &[(len, u64::from(dirty))])?;
        }
        Ok(())
    }
    let sizes = Some([1, 4096, 65536]);
    let offers = [
        Offer { block_sizes: sizes, ..Offer::backup() },
        Offer { extended: true, ..Offer::backup() },
        Offer { block_sizes: Some([4096, 4096, 65536]), ..Offer::backup() },
    ];
    for offer in offers {
        let (scene, first) = with_a_backup(&bytes_at(0, SIZE));
        let asked = offer.clone();
        let server = FakeServer::after(offer, move |session| {
            loop {
                let request = session.request()?;
                match request.command {
                    nbd::CMD_READ => in_pieces(session, request)?,
                    nbd::CMD_BLOCK_STATUS if session.selected.contains(&DIRTY) => unevenly(session, request)?,
                    _ => session.answer(&asked, request)?,
                }
            }
        });
        for (more, parent) in [("", None), (",bitmap=bm", Some(())), (",bitmap=other", None)] {
            let made = scene.back_up(&scene.request(&[&format!("vda={}{more}", server.uri("vda"))]));
            assert_eq!(made.disks[0].parent.is_some(), parent.is_some(), "{more}");
            assert_same(&scene.read(&made.backup, "vda"), &bytes_at(0, SIZE));
        }
        assert_same(&scene.read(&first, "vda"), &bytes_at(0, SIZE));
    }
}
