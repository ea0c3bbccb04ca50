//! The NBD client against a fake server that plays every lie the protocol allows, and against the real ones.

// A test fails by panicking, in its helpers too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss
)]

#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../support/fake_nbd.rs"]
mod fake_nbd;
#[path = "../support/nbd_servers.rs"]
mod nbd_servers;
#[path = "../support/mod.rs"]
mod support;

mod budget;
mod cli;
mod extents;
mod handshake;
mod interop;
mod lost;
mod replies;
mod throughput;
mod tls;

use std::time::Duration;

use annals::base::{Error, GuestOffset, GuestRange};
use annals::nbd::{Client, Options};

use fake_nbd::{FakeServer, Offer, Session};

/// Runs a test's client; one that hangs fails.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the client hangs") };
    let result = runtime.block_on(test);
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Limits short enough for tests, long enough for a busy machine.
pub(crate) fn options() -> Options {
    Options {
        handshake_timeout: Duration::from_secs(20),
        stall_timeout: Duration::from_secs(20),
        command_timeout: Duration::from_secs(20),
        ..Options::default()
    }
}

/// Options that select these contexts.
pub(crate) fn with_contexts(contexts: &[&str]) -> Options {
    Options { contexts: contexts.iter().map(|name| (*name).to_owned()).collect(), ..options() }
}

/// `len` bytes from `start` on.
pub(crate) fn range(start: u64, len: u64) -> GuestRange {
    GuestRange::new(GuestOffset(start), len).unwrap()
}

/// Connects to the export `vda` of a fake server.
pub(crate) async fn connect(server: &FakeServer, options: &Options) -> Client {
    Client::connect(&server.uri("vda"), options).await.unwrap_or_else(|e| panic!("{}", e.report()))
}

/// How a read of 4096 bytes at 8192 fails, and how the next one does, when a script lies after the handshake.
pub(crate) fn failed_read(
    offer: Offer,
    lie: impl Fn(&mut Session, fake_nbd::Asked) -> std::io::Result<()> + Send + Sync + 'static,
) -> (Error, annals::base::Result<Vec<u8>>) {
    let honest = offer.clone();
    let server = FakeServer::after(offer, move |session| {
        let asked = session.request()?;
        lie(session, asked)?;
        session.serve_reads(&honest)
    });
    run(async {
        let client = connect(&server, &options()).await;
        let error = client.read(range(8192, 4096), Vec::new()).await.expect_err("the lie was believed");
        let message = error.report();
        assert!(message.contains("export 'vda'") && message.contains("read of 4096 bytes at 0x2000"), "{message}");
        let next = client.read(range(0, 512), Vec::new()).await;
        (error, next)
    })
}
