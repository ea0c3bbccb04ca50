//! Lies in the answers to reads.

use annals::base::ErrorKind;
use annals::nbd::{ServerErrno, ServerError};

use crate::fake_nbd::{Asked, FakeServer, Offer, Session, bytes_at};
use crate::{connect, failed_read, options, range, run};

/// The lie costs the connection, and its message has `word` in it.
#[track_caller]
fn ends_the_connection(
    offer: Offer,
    word: &str,
    lie: impl Fn(&mut Session, Asked) -> std::io::Result<()> + Send + Sync + 'static,
) {
    let (error, next) = failed_read(offer, lie);
    assert_eq!(error.kind(), ErrorKind::Protocol, "{}", error.report());
    assert!(error.report().contains(word), "{}", error.report());
    let next = next.expect_err("a lying server was asked again");
    assert!(next.report().contains("the connection is lost"), "{}", next.report());
}

/// The request fails with the server's error, and the next one is answered.
#[track_caller]
fn fails_the_request(
    offer: Offer,
    errno: ServerErrno,
    answer: impl Fn(&mut Session, Asked) -> std::io::Result<()> + Send + Sync + 'static,
) -> ServerError {
    let (error, next) = failed_read(offer, answer);
    let said = ServerError::of(&error).unwrap_or_else(|| panic!("{}", error.report())).clone();
    assert_eq!(said.errno, errno);
    assert_eq!(next.unwrap_or_else(|e| panic!("{}", e.report())), bytes_at(0, 512));
    said
}

/// A read of 4096 bytes at 8192 is answered rightly, however oddly.
#[track_caller]
fn is_understood(offer: Offer, answer: impl Fn(&mut Session, Asked) -> std::io::Result<()> + Send + Sync + 'static) {
    let server = FakeServer::after(offer, move |session| {
        let asked = session.request()?;
        answer(session, asked)?;
        session.wait_for_end()
    });
    let data = run(async { connect(&server, &options()).await.read(range(8192, 4096), vec![7; 9000]).await });
    assert_eq!(data.unwrap_or_else(|e| panic!("{}", e.report())), bytes_at(8192, 4096));
}

fn both() -> [Offer; 2] {
    [Offer::default(), Offer::extended()]
}

#[test]
fn a_simple_reply_is_read() {
    is_understood(Offer::simple(), |s, asked| s.simple(asked.cookie, 0, &bytes_at(8192, 4096)));
}

#[test]
fn pieces_in_any_order_are_put_together() {
    for offer in both() {
        is_understood(offer, |s, asked| {
            s.data(asked, false, 8192 + 3000, &bytes_at(8192 + 3000, 1096))?;
            s.data(asked, false, 8192 + 1000, &bytes_at(8192 + 1000, 1000))?;
            s.data(asked, false, 8192, &bytes_at(8192, 1000))?;
            s.data(asked, false, 8192 + 2000, &bytes_at(8192 + 2000, 1000))?;
            s.chunk(asked, true, 0, b"")
        });
    }
}

#[test]
fn pieces_of_one_byte_are_put_together() {
    is_understood(Offer::default(), |s, asked| {
        (0..4096).try_for_each(|at| s.data(asked, at == 4095, 8192 + at, &bytes_at(8192 + at, 1)))
    });
}

#[test]
fn holes_are_zeroes_even_where_the_buffer_was_used_before() {
    let server = FakeServer::after(Offer::default(), |session| {
        let asked = session.request()?;
        session.data(asked, false, 8192 + 2048, &[9; 1024])?;
        session.hole(asked, false, 8192 + 3072, 1024)?;
        session.hole(asked, true, 8192, 2048)?;
        session.wait_for_end()
    });
    let data = run(async { connect(&server, &options()).await.read(range(8192, 4096), vec![7; 9000]).await }).unwrap();
    let expected = [vec![0; 2048], vec![9; 1024], vec![0; 1024]].concat();
    assert_eq!(data, expected);
}

#[test]
fn answers_of_two_commands_may_be_interleaved() {
    let server = FakeServer::after(Offer::default(), |session| {
        let (a, b) = (session.request()?, session.request()?);
        session.data(b, false, b.offset, &bytes_at(b.offset, 512))?;
        session.data(a, false, a.offset + 512, &bytes_at(a.offset + 512, 512))?;
        session.data(b, true, b.offset + 512, &bytes_at(b.offset + 512, 512))?;
        session.data(a, true, a.offset, &bytes_at(a.offset, 512))?;
        session.wait_for_end()
    });
    run(async {
        let client = connect(&server, &options()).await;
        let (a, b) = tokio::join!(client.read(range(0, 1024), Vec::new()), client.read(range(4096, 1024), Vec::new()));
        assert_eq!((a.unwrap(), b.unwrap()), (bytes_at(0, 1024), bytes_at(4096, 1024)));
    });
}

#[test]
fn a_reply_to_a_command_that_was_never_sent_ends_the_connection() {
    for offer in both() {
        ends_the_connection(offer, "cookie", |s, asked| {
            s.data(Asked { cookie: asked.cookie + 1, ..asked }, true, asked.offset, &[0; 4096])
        });
    }
    ends_the_connection(Offer::simple(), "cookie", |s, asked| s.simple(asked.cookie + 1, 0, &[0; 4096]));
}

#[test]
fn a_second_answer_to_the_same_command_ends_the_connection() {
    let server = FakeServer::after(Offer::default(), |session| {
        let asked = session.request()?;
        session.answer_read(&Offer::default(), asked)?;
        session.answer_read(&Offer::default(), asked)?;
        session.wait_for_end()
    });
    run(async {
        let client = connect(&server, &options()).await;
        client.read(range(0, 4096), Vec::new()).await.unwrap();
        let error = client.read(range(0, 4096), Vec::new()).await.unwrap_err();
        assert!(error.report().contains("under which nothing waits"), "{}", error.report());
    });
}

#[test]
fn bytes_that_come_twice_end_the_connection() {
    for offer in both() {
        ends_the_connection(offer.clone(), "twice", |s, asked| {
            s.data(asked, false, 8192, &[1; 2048])?;
            s.data(asked, true, 8192 + 2047, &[1; 2049])
        });
        ends_the_connection(offer, "twice", |s, asked| {
            s.hole(asked, false, 8192 + 1024, 1024)?;
            s.data(asked, true, 8192, &[1; 4096])
        });
    }
}

#[test]
fn bytes_that_never_come_end_the_connection() {
    for offer in both() {
        ends_the_connection(offer.clone(), "without the bytes at 0x2800", |s, asked| {
            s.data(asked, false, 8192, &[1; 2048])?;
            s.data(asked, true, 8192 + 2049, &[1; 2047])
        });
        ends_the_connection(offer, "without the bytes at 0x2000", |s, asked| s.chunk(asked, true, 0, b""));
    }
}

#[test]
fn bytes_outside_the_request_end_the_connection() {
    for offer in both() {
        ends_the_connection(offer.clone(), "outside", |s, asked| s.data(asked, true, 8191, &[1; 4096]));
        ends_the_connection(offer.clone(), "outside", |s, asked| s.data(asked, true, 8192, &[1; 4097]));
        ends_the_connection(offer.clone(), "outside", |s, asked| s.hole(asked, true, 8192, u32::MAX));
        ends_the_connection(offer, "outside", |s, asked| s.hole(asked, true, u64::MAX, 16));
    }
}

#[test]
fn a_declared_length_of_gigabytes_ends_the_connection_before_anything_is_read() {
    ends_the_connection(Offer::default(), "outside", |s, asked| {
        s.chunk_header(asked, true, 1, 0xffff_fff8)?;
        s.send(&8192_u64.to_be_bytes())
    });
    ends_the_connection(Offer::extended(), "outside", |s, asked| {
        s.chunk_header(asked, true, 1, u64::MAX)?;
        s.send(&8192_u64.to_be_bytes())
    });
    ends_the_connection(Offer::extended(), "cannot have a length", |s, asked| {
        s.chunk_header(asked, true, 0x8001, 1 << 40)
    });
}

#[test]
fn empty_pieces_end_the_connection() {
    for offer in both() {
        ends_the_connection(offer.clone(), "cannot have a length", |s, asked| s.data(asked, false, 8192, b""));
        ends_the_connection(offer.clone(), "no length", |s, asked| s.hole(asked, false, 8192, 0));
        ends_the_connection(offer, "cannot have a length", |s, asked| s.chunk(asked, false, 1, &[0; 4]));
    }
}

#[test]
fn an_end_that_is_not_the_end_ends_the_connection() {
    ends_the_connection(Offer::default(), "cannot have a length", |s, asked| s.chunk(asked, false, 0, b""));
    ends_the_connection(Offer::default(), "cannot have a length", |s, asked| s.chunk(asked, true, 0, b"x"));
}

#[test]
fn an_answer_in_more_pieces_than_sectors_ends_the_connection() {
    ends_the_connection(Offer::default(), "more pieces", |s, asked| {
        (0..2048).try_for_each(|at| s.data(asked, false, 8192 + 2 * at, &[0]))
    });
}

#[test]
fn replies_of_a_style_that_was_not_agreed_on_end_the_connection() {
    ends_the_connection(Offer::default(), "simple reply", |s, asked| s.simple(asked.cookie, 0, &[0; 4096]));
    ends_the_connection(Offer::extended(), "magic", |s, asked| s.simple(asked.cookie, 0, &[0; 4096]));
    ends_the_connection(Offer::simple(), "magic", |s, asked| s.data(asked, true, asked.offset, &[0; 4096]));
    ends_the_connection(Offer::default(), "magic", |s, _| s.send(&[0; 64]));
}

#[test]
fn an_extended_reply_with_another_offset_ends_the_connection() {
    ends_the_connection(Offer::extended(), "offset 0x2001", |s, asked| {
        s.data(Asked { offset: 8193, ..asked }, true, 8192, &[0; 4096])
    });
}

#[test]
fn an_unknown_kind_of_chunk_ends_the_connection() {
    for kind in [3, 7, 0x7fff] {
        ends_the_connection(Offer::default(), "unknown type", move |s, asked| s.chunk(asked, true, kind, &[0; 16]));
    }
}

#[test]
fn a_block_status_in_answer_to_a_read_ends_the_connection() {
    for offer in both() {
        ends_the_connection(offer, "not asked for", |s, asked| s.status(asked, true, 1, &[(4096, 0)]));
    }
}

#[test]
fn an_error_fails_its_command_alone() {
    fails_the_request(Offer::simple(), ServerErrno::EIO, |s, asked| s.simple(asked.cookie, 5, b""));
    for offer in both() {
        let said = fails_the_request(offer.clone(), ServerErrno::EINVAL, |s, asked| {
            s.error(asked, true, 1, 22, "clean\u{7}\nrange")
        });
        assert_eq!(said.text, "clean\u{fffd}\u{fffd}range");
        let said = fails_the_request(offer.clone(), ServerErrno::EIO, |s, asked| {
            let payload = [&[0, 0, 0, 5, 0, 2][..], b"no", &8200_u64.to_be_bytes()].concat();
            s.chunk(asked, true, 0x8002, &payload)
        });
        assert_eq!((said.offset, said.text.as_str()), (Some(8200), "no"));
        // Data that comes after the error is taken in and thrown away.
        fails_the_request(offer.clone(), ServerErrno(77), |s, asked| {
            s.error(asked, false, 1, 77, "")?;
            s.data(asked, true, asked.offset, &[0; 4096])
        });
    }
}

#[test]
fn an_error_of_unknown_kind_fails_its_command_alone() {
    for offer in both() {
        fails_the_request(offer.clone(), ServerErrno::EIO, |s, asked| s.error(asked, true, 0x123, 5, "new"));
        fails_the_request(offer, ServerErrno::EIO, |s, asked| {
            s.chunk(asked, true, 0x8ff0, &[0, 0, 0, 5, 0, 0, 1, 2, 3, 4, 5, 6, 7])
        });
    }
}

#[test]
fn an_error_that_contradicts_itself_ends_the_connection() {
    for offer in both() {
        ends_the_connection(offer.clone(), "no error", |s, asked| s.error(asked, true, 1, 0, ""));
        ends_the_connection(offer.clone(), "cut short", |s, asked| {
            s.chunk(asked, true, 0x8001, &[0, 0, 0, 5, 0, 9, 65])
        });
        ends_the_connection(offer.clone(), "cut short", |s, asked| s.chunk(asked, true, 0x8001, &[0, 0, 0]));
        ends_the_connection(offer.clone(), "cut short", |s, asked| {
            s.chunk(asked, true, 0x8002, &[0, 0, 0, 5, 0, 0, 1])
        });
        ends_the_connection(offer, "outside", |s, asked| {
            s.chunk(asked, true, 0x8002, &[&[0, 0, 0, 5, 0, 0][..], &12288_u64.to_be_bytes()].concat())
        });
    }
}

#[test]
fn errors_without_end_end_the_connection() {
    ends_the_connection(Offer::default(), "more than 64 errors", |s, asked| {
        loop {
            s.error(asked, false, 1, 5, "again")?;
        }
    });
}

#[test]
fn data_in_answer_to_a_trim_ends_the_connection() {
    let server = FakeServer::after(Offer::default(), |session| {
        let asked = session.request()?;
        session.data(asked, true, asked.offset, &[0; 512])?;
        session.wait_for_end()
    });
    run(async {
        let client = connect(&server, &options()).await;
        let error = client.trim(range(0, 512)).await.unwrap_err();
        assert!(error.report().contains("trim of 512 bytes at 0x0"), "{}", error.report());
        assert!(error.report().contains("not asked for"), "{}", error.report());
    });
}
