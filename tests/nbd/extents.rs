//! Block status: short, long, uneven and untrue.

use annals::base::{Error, ErrorKind, GuestOffset};
use annals::nbd::{Batch, Extent, constants as nbd};

use crate::fake_nbd::{Asked, FakeServer, Offer, SIZE, Session};
use crate::{connect, range, run, with_contexts};

const A: &str = "base:allocation";
const B: &str = "qemu:dirty-bitmap:b";

fn styles() -> [Offer; 2] {
    let contexts = &[(9, A), (4, B)];
    [Offer::default().with_contexts(contexts), Offer::extended().with_contexts(contexts)]
}

/// A server that answers every block status with `answer`.
fn server(
    offer: Offer,
    answer: impl Fn(&mut Session, Asked) -> std::io::Result<()> + Send + Sync + 'static,
) -> FakeServer {
    FakeServer::after(offer, move |session| {
        loop {
            let asked = session.request()?;
            assert_eq!(asked.command, nbd::CMD_BLOCK_STATUS);
            answer(session, asked)?;
        }
    })
}

fn extent(start: u64, end: u64, status: u64) -> Extent {
    Extent { range: range(start, end - start), status }
}

/// The whole walk over both contexts, with each context's extents joined.
fn walk(server: &FakeServer) -> (Vec<Extent>, Vec<Extent>, usize) {
    run(async {
        let client = connect(server, &with_contexts(&[A, B])).await;
        let mut walk = client.extents(&[A, B], client.export().range()).unwrap();
        let (mut a, mut b, mut batches) = (Vec::new(), Vec::new(), 0);
        let mut at = GuestOffset(0);
        while let Some(Batch { range, extents }) = walk.next().await.unwrap_or_else(|e| panic!("{}", e.report())) {
            assert_eq!((range.start(), range.is_empty()), (at, false));
            for (all, part) in [&mut a, &mut b].into_iter().zip(extents) {
                assert_eq!(part.first().unwrap().range.start(), range.start());
                assert_eq!(part.last().unwrap().range.end(), range.end());
                part.into_iter().for_each(|extent| Extent::push(all, extent));
            }
            (at, batches) = (range.end(), batches + 1);
        }
        assert_eq!(at, GuestOffset(SIZE));
        (a, b, batches)
    })
}

#[test]
fn contexts_that_answer_unevenly_are_brought_in_step() {
    // A: one 100,000-byte stretch of data, then holes. B: alternates every 64 KiB.
    fn truth_a(at: u64) -> (u64, u64) {
        if at < 100_000 { (100_000 - at, 0) } else { (SIZE - at, 3) }
    }
    fn truth_b(at: u64) -> (u64, u64) {
        (65536 - at % 65536, (at / 65536) % 2)
    }
    for offer in styles() {
        let server = server(offer, |session, asked| {
            // A tells all it knows; B one extent of it, in the wrong order and past what was asked.
            let first = truth_a(asked.offset);
            let then = asked.offset + first.0;
            let mut all = vec![first];
            if then < SIZE {
                all.push(truth_a(then));
            }
            session.status(asked, false, 4, &[truth_b(asked.offset)])?;
            session.status(asked, true, 9, &all)
        });
        let (a, b, _) = walk(&server);
        assert_eq!(a, [extent(0, 100_000, 0), extent(100_000, SIZE, 3)]);
        assert_eq!(b.len() as u64, SIZE / 65536);
        assert!(b.iter().enumerate().all(|(i, e)| e.status == i as u64 % 2 && e.range.len() == 65536));
    }
}

#[test]
fn an_answer_past_the_question_is_cut_to_the_export() {
    for offer in styles() {
        let server = server(offer, |session, asked| {
            session.status(asked, false, 9, &[(512, 1), (0xffff_fe00, 2)])?;
            session.status(asked, true, 4, &[(0xffff_fe00, 1), (0xffff_fe00, 0)])
        });
        let (a, b, batches) = walk(&server);
        assert_eq!(a, [extent(0, 512, 1), extent(512, SIZE, 2)]);
        assert_eq!((b, batches), (vec![extent(0, SIZE, 1)], 1));
    }
}

#[test]
fn answers_of_one_sector_at_a_time_reach_the_end() {
    let server = server(Offer { block_sizes: None, ..styles()[0].clone() }, |session, asked| {
        assert!(asked.offset % 512 == 0 && asked.len % 512 == 0);
        session.status(asked, false, 4, &[(512, 1)])?;
        session.status(asked, true, 9, &[(512, 0)])
    });
    let (a, b, batches) = walk(&server);
    assert_eq!((a, b, batches as u64), (vec![extent(0, SIZE, 0)], vec![extent(0, SIZE, 1)], SIZE / 512));
}

#[test]
fn a_range_that_begins_in_the_middle_of_a_block_is_answered_for_itself_alone() {
    let offer = Offer { block_sizes: Some([4096, 4096, 1 << 20]), ..styles()[0].clone() };
    let server = server(offer, |session, asked| {
        assert!(asked.offset % 4096 == 0 && asked.len % 4096 == 0, "{asked:?}");
        session.status(asked, false, 4, &[(4096, 1), (asked.len - 4096, 0)])?;
        session.status(asked, true, 9, &[(asked.len, 0)])
    });
    run(async {
        let client = connect(&server, &with_contexts(&[A, B])).await;
        let found = client.block_status(B, range(5000, 10_000)).await.unwrap();
        assert_eq!(found, [extent(5000, 8192, 1), extent(8192, 15_000, 0)]);
    });
}

#[test]
fn a_context_that_the_server_does_not_have_is_refused_by_name() {
    let server = FakeServer::after(Offer::default().with_contexts(&[(1, A)]), Session::wait_for_end);
    run(async {
        let client = connect(&server, &with_contexts(&[A, B])).await;
        assert!(client.export().has_context(A) && !client.export().has_context(B));
        let error = client.block_status(B, range(0, 512)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.report().contains(B) && error.report().contains("export 'vda'"), "{}", error.report());
    });
}

#[test]
fn an_error_for_a_block_status_fails_it_alone() {
    // As a server answers that offers the context and cannot tell.
    let server = server(styles()[0].clone(), |session, asked| match asked.offset {
        0 => session.error(asked, true, 1, 22, ""),
        _ => {
            session.status(asked, false, 4, &[(asked.len, 1)])?;
            session.status(asked, true, 9, &[(asked.len, 0)])
        }
    });
    run(async {
        let client = connect(&server, &with_contexts(&[A, B])).await;
        let error = client.block_status(B, range(0, 512)).await.unwrap_err();
        assert!(error.report().contains("block status of 512 bytes at 0x0: the server answered"), "{}", error.report());
        assert!(error.report().contains("EINVAL"), "{}", error.report());
        assert_eq!(client.block_status(B, range(512, 512)).await.unwrap(), [extent(512, 1024, 1)]);
    });
}

#[test]
fn a_status_that_goes_on_after_the_error_that_ended_it_is_understood_as_qemu_means_it() {
    for offer in styles() {
        let server = server(offer, |session, asked| match asked.offset {
            0 => {
                session.error(asked, true, 1, 22, "can't get block status")?;
                session.status(asked, true, 4, &[(512, 1), (512, 0)])
            }
            _ => {
                session.status(asked, false, 4, &[(asked.len, 1)])?;
                session.status(asked, true, 9, &[(asked.len, 0)])
            }
        });
        run(async {
            let client = connect(&server, &with_contexts(&[A, B])).await;
            for _ in 0..3 {
                client.block_status(B, range(0, 512)).await.unwrap_err();
                assert_eq!(client.block_status(B, range(512, 512)).await.unwrap(), [extent(512, 1024, 1)]);
            }
        });
    }
}

#[test]
fn more_statuses_after_an_error_than_there_are_contexts_are_a_lie() {
    let server = server(styles()[0].clone(), |session, asked| {
        session.error(asked, true, 1, 22, "")?;
        session.status(asked, false, 4, &[(512, 1)])?;
        session.status(asked, true, 4, &[(512, 1)])
    });
    run(async {
        let client = connect(&server, &with_contexts(&[A, B])).await;
        client.block_status(B, range(0, 512)).await.unwrap_err();
        let error = client.block_status(B, range(512, 512)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{}", error.report());
    });
}

/// How a block status of the whole export fails.
#[track_caller]
fn lie(offer: Offer, word: &str, answer: impl Fn(&mut Session, Asked) -> std::io::Result<()> + Send + Sync + 'static) {
    let server = server(offer, answer);
    let error: Error = run(async {
        let client = connect(&server, &with_contexts(&[A, B])).await;
        client.block_status(A, client.export().range()).await.expect_err("the lie was believed")
    });
    assert_eq!(error.kind(), ErrorKind::Protocol, "{}", error.report());
    let report = error.report();
    assert!(report.contains(word) && report.contains("export 'vda': block status of"), "{report}");
}

#[test]
fn an_extent_without_length_is_a_lie() {
    for offer in styles() {
        lie(offer, "without length", |s, asked| s.status(asked, false, 9, &[(512, 0), (0, 1)]));
    }
}

#[test]
fn a_status_without_extents_is_a_lie() {
    for offer in styles() {
        lie(offer, "cannot have a length", |s, asked| s.status(asked, false, 9, &[]));
    }
    lie(styles()[1].clone(), "0 extents", |s, asked| {
        s.chunk(asked, false, nbd::REPLY_BLOCK_STATUS_EXT, &[&[0, 0, 0, 9, 0, 0, 0, 0][..], &[1; 16]].concat())
    });
}

#[test]
fn a_count_that_differs_from_what_follows_is_a_lie() {
    for (count, word) in [(1, "too many"), (3, "cut short"), (u32::MAX, "extents")] {
        lie(styles()[1].clone(), word, move |s, asked| {
            let payload = [&9_u32.to_be_bytes()[..], &count.to_be_bytes(), &[1; 32]].concat();
            s.chunk(asked, false, nbd::REPLY_BLOCK_STATUS_EXT, &payload)
        });
    }
}

#[test]
fn a_status_that_is_longer_than_allowed_is_a_lie_before_it_is_read() {
    lie(styles()[0].clone(), "cannot have a length", |s, asked| {
        s.chunk_header(asked, false, nbd::REPLY_BLOCK_STATUS, 4 + 8 * ((1 << 20) + 1))
    });
    lie(styles()[1].clone(), "cannot have a length", |s, asked| {
        s.chunk_header(asked, false, nbd::REPLY_BLOCK_STATUS_EXT, 8 + (16 << 40))
    });
}

#[test]
fn extents_that_pass_the_end_of_64_bits_are_a_lie() {
    lie(styles()[1].clone(), "past 64 bits", |s, asked| s.status(asked, false, 9, &[(u64::MAX, 0), (1, 0)]));
}

#[test]
fn a_context_that_was_not_selected_or_answers_twice_or_never_is_a_lie() {
    for offer in styles() {
        lie(offer.clone(), "context 8", |s, asked| s.status(asked, false, 8, &[(512, 0)]));
        lie(offer.clone(), "two parts", |s, asked| {
            s.status(asked, false, 9, &[(512, 0)])?;
            s.status(asked, false, 9, &[(512, 0)])
        });
        lie(offer.clone(), "nothing of context 4", |s, asked| s.status(asked, true, 9, &[(512, 0)]));
        lie(offer, "nothing of context 9", |s, asked| s.chunk(asked, true, 0, b""));
    }
    lie(styles()[0].clone(), "nothing of context 9", |s, asked| s.simple(asked.cookie, 0, b""));
}

#[test]
fn fields_of_the_wrong_width_are_a_lie() {
    let wide = [&[0, 0, 0, 9, 0, 0, 0, 1][..], &[1; 16]].concat();
    lie(styles()[0].clone(), "width", move |s, asked| s.chunk(asked, true, nbd::REPLY_BLOCK_STATUS_EXT, &wide));
    let narrow = [&[0, 0, 0, 9][..], &[1; 8]].concat();
    lie(styles()[1].clone(), "width", move |s, asked| s.chunk(asked, true, nbd::REPLY_BLOCK_STATUS, &narrow));
}

#[test]
fn data_in_answer_to_a_block_status_is_a_lie() {
    for offer in styles() {
        lie(offer, "not asked for", |s, asked| s.data(asked, true, 0, &[0; 512]));
    }
}

#[test]
fn an_answer_that_makes_no_progress_ends_the_walk() {
    // Less than the part of the block that lies before what is wanted.
    let offer = Offer { block_sizes: Some([4096, 4096, 1 << 20]), ..styles()[0].clone() };
    let server = server(offer, |session, asked| {
        session.status(asked, false, 4, &[(100, 1)])?;
        session.status(asked, true, 9, &[(100, 0)])
    });
    run(async {
        let client = connect(&server, &with_contexts(&[A, B])).await;
        let error = client.block_status(A, client.export().range()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.report().contains("no progress"), "{}", error.report());
    });
}

#[test]
fn an_extent_that_ends_within_a_block_of_which_the_server_has_said_nothing_is_followed_by_the_next() {
    const ODD: u64 = 8192 + 1000;
    let server = server(Offer { block_sizes: None, ..styles()[0].clone() }, |session, asked| {
        // As nbdkit's truncate filter does it: no answer reaches past the end of what lies below.
        let (len, status) =
            if asked.offset < ODD { (asked.len.min(ODD - asked.offset), 0) } else { (asked.len, nbd::STATE_ZERO) };
        session.status(asked, false, 9, &[(len, status)])?;
        session.status(asked, true, 4, &[(asked.len, 1)])
    });
    let (a, b, _) = walk(&server);
    assert_eq!(a, [extent(0, ODD, 0), extent(ODD, SIZE, nbd::STATE_ZERO)]);
    assert_eq!(b, [extent(0, SIZE, 1)]);
}
