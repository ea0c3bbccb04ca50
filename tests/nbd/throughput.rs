//! Not a test but a measurement, printed: `cargo test --release --test nbd -- --ignored --nocapture throughput`.

use std::time::Instant;

use annals::nbd::{Client, Options, Uri};

use crate::nbd_servers::{Server, qemu_io};
use crate::range;
use crate::support::tools::{have, run as tool};

const SIZE: u64 = 1 << 30;

/// Ticks, usually of 10 ms, that this process has spent computing, in the kernel too.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

/// Mebibytes a second with so many reads in flight, over so many connections.
fn measure(uri: &str, len: u64, in_flight: u64, connections: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let options = Options { connections, ..Options::default() };
        let client = Client::connect(&Uri::parse(uri).unwrap(), &options).await.unwrap();
        let began = Instant::now();
        let readers: Vec<_> = (0..in_flight)
            .map(|reader| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    for at in (reader..SIZE / len).step_by(usize::try_from(in_flight).unwrap()) {
                        buffer = client.read(range(at * len, len), buffer).await.unwrap();
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.await.unwrap();
        }
        SIZE as f64 / 1048576.0 / began.elapsed().as_secs_f64()
    })
}

fn table(name: &str, uri: &str) {
    for (len, in_flight, connections) in
        [(256, 1, 1), (256, 16, 1), (256, 16, 2), (1024, 1, 1), (1024, 16, 1), (2048, 8, 1), (4, 1, 1), (4, 64, 1)]
    {
        let before = ticks();
        let rate = measure(uri, len << 10, in_flight, connections);
        let ticks = ticks() - before;
        println!("{name:20} {in_flight:2} x {len:4} KiB, {connections} connection(s): {rate:7.0} MiB/s, {ticks} ticks");
    }
}

#[test]
#[ignore = "a measurement; it proves nothing"]
fn throughput() {
    if !have(&["qemu-nbd", "qemu-img", "qemu-io", "nbdkit", "openssl"]) {
        return;
    }
    let mut server = Server::new();
    let image = server.path("disk.raw");
    tool("qemu-img", &["create", "-q", "-f", "raw", image.to_str().unwrap(), &SIZE.to_string()]);
    qemu_io(&["-f", "raw", image.to_str().unwrap()], &["write -P 0x5a 0 1G"]);
    server.qemu_nbd("raw", &image, &[]);
    table("qemu-nbd, unix", &server.uri(""));

    let mut server = Server::new();
    server.nbdkit(&["memory", "1G"]);
    table("nbdkit memory, unix", &server.uri(""));

    let mut server = Server::new();
    let pki = server.path("pki");
    crate::certificates::certificates(&pki);
    server.nbdkit(&["--tls=require", &format!("--tls-certificates={}", pki.display()), "memory", "1G"]);
    table(
        "nbdkit memory, TLS",
        &format!("nbds+unix:///?socket={}&tls-certificates={}", server.socket().display(), pki.display()),
    );
}
