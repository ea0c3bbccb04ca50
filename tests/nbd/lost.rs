//! Servers that go away, fall silent or come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use annals::base::ErrorKind;
use annals::nbd::{Client, Options, ReconnectPolicy};

use crate::fake_nbd::{FakeServer, Offer, Session, bytes_at};
use crate::{connect, failed_read, options, range, run};

/// Reconnects up to `times` in a row, at once.
fn again(times: u32) -> Options {
    let policy = ReconnectPolicy::new(move |failures, _| (failures.count <= times).then_some(Duration::from_millis(1)));
    Options { reconnect: Some(policy), ..options() }
}

#[test]
fn an_answer_that_is_cut_off_is_a_lost_connection() {
    for (offer, sent) in
        [(Offer::default(), 8 + 4095), (Offer::default(), 8), (Offer::default(), 3), (Offer::extended(), 0)]
    {
        let (error, next) = failed_read(offer, move |session, asked| {
            session.chunk_header(asked, true, 1, 8 + 4096)?;
            session.send(&[&8192_u64.to_be_bytes()[..], &[1; 4096]].concat()[..sent])?;
            Err(std::io::ErrorKind::UnexpectedEof.into())
        });
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{}", error.report());
        assert!(error.report().contains("closed the connection"), "{}", error.report());
        assert_eq!(next.unwrap_err().kind(), ErrorKind::Disconnected);
    }
    let (error, _) = failed_read(Offer::simple(), |session, asked| {
        session.simple(asked.cookie, 0, &[1; 4095])?;
        Err(std::io::ErrorKind::UnexpectedEof.into())
    });
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{}", error.report());
}

/// How a read fails, and how soon, when these are the limits.
fn given_up(limits: Options, script: impl Fn(&mut Session) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let server = FakeServer::after(Offer::default(), script);
    let began = Instant::now();
    let error = run(async { connect(&server, &limits).await.read(range(0, 4096), Vec::new()).await }).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    error.report()
}

#[test]
fn a_silent_server_is_given_up() {
    let limits = Options { stall_timeout: Duration::from_millis(100), ..options() };
    let report = given_up(limits.clone(), |session| {
        session.request()?;
        session.wait_for_end()
    });
    assert!(report.contains("silent for 100ms (waiting for the read of 4096 bytes at 0x0)"), "{report}");
    let report = given_up(limits, |session| {
        let asked = session.request()?;
        session.chunk_header(asked, true, 1, 8 + 4096)?;
        session.send(&0_u64.to_be_bytes())?;
        session.wait_for_end()
    });
    assert!(report.contains("silent for 100ms"), "{report}");
}

#[test]
fn an_answer_that_trickles_in_without_end_is_given_up() {
    let limits = Options { command_timeout: Duration::from_millis(300), ..options() };
    let report = given_up(limits, |session| {
        let asked = session.request()?;
        session.chunk_header(asked, true, 1, 8 + 4096)?;
        session.send(&0_u64.to_be_bytes())?;
        loop {
            session.send(&[1])?;
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    assert!(report.contains("did not finish the read of 4096 bytes at 0x0 in 300ms"), "{report}");
}

#[test]
fn commands_that_wait_for_their_turn_on_a_slow_link_are_waited_for() {
    const READS: u64 = 12;
    let server = FakeServer::after(Offer::default(), |session| {
        let asked = (0..READS).map(|_| session.request()).collect::<std::io::Result<Vec<_>>>()?;
        for asked in asked {
            std::thread::sleep(Duration::from_millis(100));
            session.chunk_header(asked, true, 1, 8 + asked.len)?;
            session.send(&asked.offset.to_be_bytes())?;
            session.send(&bytes_at(asked.offset, asked.len))?;
        }
        session.wait_for_end()
    });
    run(async {
        // The last answer comes after 1.2 seconds, but each 0.1 after the one before it.
        let limits = Options { command_timeout: Duration::from_millis(600), ..options() };
        let client = connect(&server, &limits).await;
        let reads: Vec<_> = (0..READS)
            .map(|n| {
                let client = client.clone();
                tokio::spawn(async move { client.read(range(n * 4096, 4096), Vec::new()).await })
            })
            .collect();
        for (n, read) in (0..).zip(reads) {
            assert_eq!(read.await.unwrap().unwrap(), bytes_at(n * 4096, 4096));
        }
    });
}

#[test]
fn an_answer_that_takes_long_but_keeps_coming_is_waited_for() {
    let server = FakeServer::after(Offer::default(), |session| {
        let asked = session.request()?;
        session.chunk_header(asked, true, 1, 8 + 4096)?;
        session.send(&0_u64.to_be_bytes())?;
        for part in bytes_at(0, 4096).chunks(512) {
            std::thread::sleep(Duration::from_millis(200));
            session.send(part)?;
        }
        session.wait_for_end()
    });
    run(async {
        let limits = Options { stall_timeout: Duration::from_secs(1), ..options() };
        assert_eq!(connect(&server, &limits).await.read(range(0, 4096), Vec::new()).await.unwrap(), bytes_at(0, 4096));
    });
}

#[test]
fn an_idle_connection_is_not_given_up() {
    let server = FakeServer::after(Offer::default(), |session| session.serve_reads(&Offer::default()));
    run(async {
        let limits =
            Options { stall_timeout: Duration::from_millis(500), command_timeout: Duration::from_secs(1), ..options() };
        let client = connect(&server, &limits).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(client.read(range(0, 512), Vec::new()).await.unwrap(), bytes_at(0, 512));
    });
}

#[test]
fn a_server_that_shuts_down_is_a_lost_connection() {
    let (error, next) = failed_read(Offer::default(), |session, asked| session.error(asked, true, 1, 108, ""));
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{}", error.report());
    assert_eq!(next.unwrap_err().kind(), ErrorKind::Disconnected);
}

/// A server that drops its first `times` connections at the first command.
fn dropping(times: usize) -> FakeServer {
    FakeServer::after(Offer::default(), move |session| {
        let asked = session.request()?;
        if session.number < times {
            return Ok(());
        }
        session.answer_read(&Offer::default(), asked)?;
        session.serve_reads(&Offer::default())
    })
}

#[test]
fn without_a_policy_a_lost_connection_stays_lost_until_it_is_revived() {
    let server = dropping(1);
    run(async {
        let client = connect(&server, &options()).await;
        for _ in 0..2 {
            let error = client.read(range(0, 512), Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Disconnected, "{}", error.report());
        }
        assert_eq!((client.connections(), server.accepted()), (0, 1));
        client.revive().await.unwrap();
        assert_eq!(client.read(range(0, 512), Vec::new()).await.unwrap(), bytes_at(0, 512));
        assert_eq!((client.connections(), server.accepted()), (1, 2));
    });
}

#[test]
fn with_a_policy_commands_go_on_after_a_lost_connection() {
    let server = dropping(3);
    run(async {
        let client = connect(&server, &again(10)).await;
        let reads = (0..16).map(|i| {
            let client = client.clone();
            tokio::spawn(async move { (i, client.read(range(i * 4096, 4096), Vec::new()).await) })
        });
        for read in reads.collect::<Vec<_>>() {
            let (i, data) = read.await.unwrap();
            assert_eq!(data.unwrap_or_else(|e| panic!("{}", e.report())), bytes_at(i * 4096, 4096));
        }
        assert_eq!(server.accepted(), 4);
    });
}

#[test]
fn a_policy_that_gives_up_is_obeyed() {
    let asked = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&asked);
    let policy = ReconnectPolicy::new(move |failures, error| {
        assert_eq!(error.kind(), ErrorKind::Disconnected);
        counter.store(failures.count, Ordering::SeqCst);
        (failures.count < 3).then_some(Duration::from_millis(1))
    });
    let server = dropping(100);
    run(async {
        let client = connect(&server, &Options { reconnect: Some(policy), ..options() }).await;
        assert_eq!(client.read(range(0, 512), Vec::new()).await.unwrap_err().kind(), ErrorKind::Disconnected);
    });
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[test]
fn many_commands_wait_together_for_a_server_that_takes_its_time_to_fail() {
    // It serves nothing, drops the first connection, and then greets nobody any more.
    let server = FakeServer::start(|session| {
        if session.number > 0 {
            return session.wait_for_end();
        }
        session.handshake(&Offer::default())?;
        session.request().map(|_| ())
    });
    run(async {
        let policy = ReconnectPolicy::new(|failures, _| {
            (failures.lasting < Duration::from_millis(300)).then_some(Duration::from_millis(1))
        });
        let limits = Options { handshake_timeout: Duration::from_millis(500), reconnect: Some(policy), ..options() };
        let client = connect(&server, &limits).await;
        let began = Instant::now();
        let reads: Vec<_> = (0..32)
            .map(|i| {
                let client = client.clone();
                tokio::spawn(async move { client.read(range(i * 512, 512), Vec::new()).await })
            })
            .collect();
        for read in reads {
            assert_eq!(read.await.unwrap().unwrap_err().kind(), ErrorKind::Disconnected);
        }
        // One after the other, they would have waited for half a second each.
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    });
}

#[test]
fn a_lying_server_is_not_asked_again_whatever_the_policy() {
    let server = FakeServer::after(Offer::default(), |session| {
        let asked = session.request()?;
        session.data(asked, true, 1, &[0; 512])?;
        session.wait_for_end()
    });
    run(async {
        let client = connect(&server, &again(10)).await;
        assert_eq!(client.read(range(0, 512), Vec::new()).await.unwrap_err().kind(), ErrorKind::Protocol);
    });
    assert_eq!(server.accepted(), 1);
}

#[test]
fn a_disk_that_comes_back_with_another_size_is_not_the_same_disk() {
    let server = FakeServer::start(|session| {
        session.handshake(&Offer { size: 1 << (20 + session.number), ..Offer::default() })?;
        session.request().map(|_| ())
    });
    run(async {
        let client = connect(&server, &again(10)).await;
        let error = client.read(range(0, 512), Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{}", error.report());
        assert!(error.report().contains("other size"), "{}", error.report());
    });
}

#[test]
fn a_client_that_is_dropped_says_good_bye() {
    let said = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&said);
    let server = FakeServer::after(Offer::default(), move |session| {
        // A request's header: magic, flags, then the command.
        let farewell = session.receive(28)?;
        counter.store(u32::from(farewell[7]), Ordering::SeqCst);
        Ok(())
    });
    run(async {
        drop(connect(&server, &options()).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    });
    drop(server);
    assert_eq!(said.load(Ordering::SeqCst), u32::from(annals::nbd::constants::CMD_DISC));
}

#[test]
fn several_connections_are_used_only_where_the_server_allows_them() {
    const MULTI: u16 = 0x121;
    for (flags, wanted) in [(0x21, 1), (MULTI, 3)] {
        let offer = Offer { flags, ..Offer::default() };
        let server = FakeServer::after(offer.clone(), move |session| session.serve_reads(&offer));
        run(async {
            let client = connect(&server, &Options { connections: 3, ..options() }).await;
            assert_eq!((client.connections(), server.accepted()), (wanted, wanted));
            let reads: Vec<_> = (0..32)
                .map(|i| {
                    let client = client.clone();
                    tokio::spawn(async move { client.read(range(i * 512, 512), Vec::new()).await.unwrap() })
                })
                .collect();
            for (i, read) in reads.into_iter().enumerate() {
                assert_eq!(read.await.unwrap(), bytes_at(i as u64 * 512, 512));
            }
            client.close().await;
        });
    }
}

#[test]
fn a_second_connection_that_leads_to_another_disk_is_refused() {
    let server = FakeServer::start(|session| {
        session.handshake(&Offer { size: 1 << (20 + session.number), flags: 0x121, ..Offer::default() })?;
        session.wait_for_end()
    });
    let error = run(async {
        Client::connect(&server.uri("vda"), &Options { connections: 2, ..options() }).await.map(|_| ()).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Changed);
}

#[test]
fn a_server_that_lets_in_only_one_is_used_through_one() {
    let server = FakeServer::start(|session| {
        if session.number > 0 {
            return session.wait_for_end();
        }
        let offer = Offer { flags: 0x121, ..Offer::default() };
        session.handshake(&offer)?;
        session.serve_reads(&offer)
    });
    run(async {
        let limits = Options { connections: 4, handshake_timeout: Duration::from_millis(200), ..options() };
        let client = connect(&server, &limits).await;
        assert_eq!(client.connections(), 1);
        assert_eq!(client.read(range(0, 512), Vec::new()).await.unwrap(), bytes_at(0, 512));
    });
}
