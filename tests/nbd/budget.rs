//! What is asked of a server: in pieces that it allows, and not too much at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annals::base::ErrorKind;
use annals::nbd::{Options, constants as nbd};

use crate::fake_nbd::{FakeServer, Offer, SIZE, bytes_at};
use crate::{connect, options, range, run};

#[test]
fn requests_keep_to_the_servers_block_sizes() {
    for (sizes, minimum, maximum) in [
        (Some([512, 4096, 8192]), 512, 8192),
        (Some([4096, 4096, 10_000]), 4096, 8192),
        (Some([1, 512, 1000]), 1, 1000),
        (None, 512, 32 << 20),
    ] {
        let offer = Offer { block_sizes: sizes, ..Offer::default() };
        let server = FakeServer::after(offer.clone(), move |session| {
            loop {
                let asked = session.request()?;
                assert!(asked.offset % minimum == 0 && asked.len % minimum == 0, "{asked:?}");
                match asked.command {
                    nbd::CMD_READ => {
                        assert!(asked.len <= maximum, "{asked:?}");
                        session.answer_read(&offer, asked)?;
                    }
                    _ => session.simple(asked.cookie, 0, b"")?,
                }
            }
        });
        run(async {
            let client = connect(&server, &options()).await;
            for (start, len) in
                [(0, 512), (1, 1), (511, 2), (5000, 20_000), (SIZE - 1, 1), (SIZE - 30_000, 30_000), (7, 0)]
            {
                let data =
                    client.read(range(start, len), Vec::new()).await.unwrap_or_else(|e| panic!("{}", e.report()));
                assert_eq!(data, bytes_at(start, len), "{sizes:?}: {len} at {start}");
            }
            client.trim(range(100, 9000)).await.unwrap();
        });
    }
}

#[test]
fn an_export_that_ends_within_a_block_is_read_to_its_end_unless_the_server_forbids_it() {
    for (sizes, readable) in [(None, true), (Some([1, 512, 4096]), true), (Some([512, 512, 4096]), false)] {
        let offer = Offer { size: 10_100, block_sizes: sizes, ..Offer::default() };
        let server = FakeServer::after(offer.clone(), move |session| session.serve_reads(&offer));
        run(async {
            let client = connect(&server, &options()).await;
            assert_eq!(client.read(range(9000, 500), Vec::new()).await.unwrap(), bytes_at(9000, 500));
            match client.read(range(9000, 1100), Vec::new()).await {
                Ok(data) if readable => assert_eq!(data, bytes_at(9000, 1100)),
                Err(e) if !readable => assert!(e.report().contains("last 372 bytes"), "{}", e.report()),
                other => panic!("{sizes:?}: {other:?}"),
            }
        });
    }
}

#[test]
fn ranges_outside_the_export_are_never_asked_for() {
    let server = FakeServer::after(Offer::default(), |session| {
        assert!(session.request().is_err(), "something was asked for");
        Ok(())
    });
    run(async {
        let client = connect(&server, &options()).await;
        for (start, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX - 1, 1)] {
            let error = client.read(range(start, len), Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.report());
            assert!(client.trim(range(start, len)).await.is_err());
        }
        client.close().await;
    });
}

#[test]
fn trim_is_sent_for_whole_blocks_only_and_only_where_it_may_be() {
    let trimmed = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&trimmed);
    let offer = Offer { block_sizes: Some([4096, 4096, 1 << 20]), ..Offer::default() };
    let server = FakeServer::after(offer, move |session| {
        loop {
            let asked = session.request()?;
            assert_eq!((asked.command, asked.offset), (nbd::CMD_TRIM, 4096));
            counter.fetch_add(asked.len, Ordering::SeqCst);
            session.chunk(asked, true, 0, b"")?;
        }
    });
    run(async {
        let client = connect(&server, &options()).await;
        client.trim(range(100, 12_400)).await.unwrap();
        client.trim(range(100, 4000)).await.unwrap();
    });
    assert_eq!(trimmed.load(Ordering::SeqCst), 8192);

    for flags in [0x01, 0x23] {
        let server = FakeServer::after(Offer { flags, ..Offer::default() }, |session| {
            assert!(session.request().is_err(), "a trim was sent");
            Ok(())
        });
        run(async {
            let client = connect(&server, &options()).await;
            assert_eq!(client.trim(range(0, 4096)).await.unwrap_err().kind(), ErrorKind::Unsupported);
            client.close().await;
        });
    }
}

#[test]
fn no_more_is_in_flight_than_allowed() {
    for (limits, most) in [
        (Options { max_commands: 3, ..options() }, 3),
        (Options { max_bytes: 64 << 10, ..options() }, 4),
        (Options { max_commands: 1, ..options() }, 1),
    ] {
        let seen = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&seen);
        let server = FakeServer::after(Offer::default(), move |session| {
            // Lets requests pile up, then answers all that came.
            let mut waiting = vec![session.request()?];
            for _ in 0..64 {
                while (waiting.len() as u64) < most {
                    waiting.push(session.request()?);
                }
                std::thread::sleep(Duration::from_millis(1));
                counter.fetch_max(session.pending()? / 28 + waiting.len() as u64, Ordering::SeqCst);
                for asked in waiting.drain(..) {
                    session.answer_read(&Offer::default(), asked)?;
                }
                waiting.push(session.request()?);
            }
            Ok(())
        });
        run(async {
            let client = connect(&server, &limits).await;
            let reads: Vec<_> = (0..48)
                .map(|i| {
                    let client = client.clone();
                    tokio::spawn(async move { client.read(range(i * 16384, 16384), Vec::new()).await.unwrap() })
                })
                .collect();
            for (i, read) in reads.into_iter().enumerate() {
                assert_eq!(read.await.unwrap(), bytes_at(i as u64 * 16384, 16384));
            }
        });
        assert_eq!(seen.load(Ordering::SeqCst), most, "{limits:?}");
    }
}

#[test]
fn a_read_that_nobody_waits_for_any_more_does_not_disturb_the_next() {
    let server = FakeServer::after(Offer::default(), |session| {
        let first = session.request()?;
        let second = session.request()?;
        session.answer_read(&Offer::default(), first)?;
        session.answer_read(&Offer::default(), second)?;
        session.wait_for_end()
    });
    run(async {
        let client = connect(&server, &options()).await;
        let abandoned = tokio::time::timeout(Duration::from_millis(50), client.read(range(0, 4096), Vec::new())).await;
        assert!(abandoned.is_err());
        assert_eq!(client.read(range(4096, 4096), Vec::new()).await.unwrap(), bytes_at(4096, 4096));
    });
}
