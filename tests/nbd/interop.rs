//! The servers that people run, with libnbd and qemu-img as the ones to agree with.

use std::time::{Duration, Instant};

use annals::base::{ErrorKind, GuestRange};
use annals::nbd::{Client, HeaderStyle, Options, ReconnectPolicy, ServerErrno, ServerError, Uri, list};
use serde_json::json;

use crate::nbd_servers::{Server, StorageDaemon, map_by_libnbd, qemu_io};
use crate::support::tools::{have, run as tool};
use crate::{options, range, run, with_contexts};

const ALLOCATION: &str = "base:allocation";
const MIB: u64 = 1 << 20;

async fn open(uri: &str, options: &Options) -> Client {
    Client::connect(&Uri::parse(uri).unwrap(), options).await.unwrap_or_else(|e| panic!("{}", e.report()))
}

/// The whole export, by reads of odd sizes at odd places, many in flight.
async fn read_all(client: &Client) -> Vec<u8> {
    let size = client.export().size;
    let reads: Vec<_> = (0..size.div_ceil(100_001))
        .map(|i| {
            let (client, start) = (client.clone(), i * 100_001);
            let part = range(start, 100_001.min(size - start));
            tokio::spawn(async move { client.read(part, Vec::new()).await })
        })
        .collect();
    let mut all = Vec::new();
    for read in reads {
        all.extend(read.await.unwrap().unwrap_or_else(|e| panic!("{}", e.report())));
    }
    all
}

async fn map(client: &Client, context: &str, part: GuestRange) -> Vec<(u64, u64, u64)> {
    let extents = client.block_status(context, part).await.unwrap_or_else(|e| panic!("{}", e.report()));
    extents.iter().map(|extent| (extent.range.start().0, extent.range.len(), extent.status)).collect()
}

/// An image with data, zeroes and holes in places that no block size divides evenly.
fn image(server: &Server, format: &str, size: u64) -> std::path::PathBuf {
    let path = server.path("disk.img");
    tool("qemu-img", &["create", "-q", "-f", format, path.to_str().unwrap(), &size.to_string()]);
    let commands = [
        "write -P 0x11 1M 1M",
        "write -P 0x22 3500k 130k",
        "write -z 1500k 64k",
        "write -P 0x33 0 512",
        "write -P 0x44 7M 5k",
    ];
    qemu_io(&["-f", format, path.to_str().unwrap()], &commands);
    path
}

#[test]
fn qemu_nbd_serves_the_bytes_and_the_map_of_an_image() {
    if !have(&["qemu-nbd", "qemu-img", "qemu-io", "nbdinfo"]) {
        return;
    }
    for (format, size) in [("qcow2", 8 * MIB), ("raw", 8 * MIB + 512)] {
        let mut server = Server::new();
        let image = image(&server, format, size);
        server.qemu_nbd(format, &image, &["-x", "a b/c", "-D", "words"]);
        let raw = server.path("disk.raw");
        tool("qemu-img", &["convert", "-f", format, "-O", "raw", image.to_str().unwrap(), raw.to_str().unwrap()]);
        let uri = server.uri("a%20b/c");
        run(async {
            let client = open(&uri, &with_contexts(&[ALLOCATION])).await;
            let export = client.export().clone();
            assert_eq!((export.size, export.name.as_str(), export.description.as_str()), (size, "a b/c", "words"));
            assert!(matches!(export.headers, HeaderStyle::Structured | HeaderStyle::Extended));
            assert!(read_all(&client).await == std::fs::read(&raw).unwrap(), "{format}: other bytes than qemu-img");
            assert_eq!(map(&client, ALLOCATION, export.range()).await, map_by_libnbd(&uri, ALLOCATION));
            client.close().await;
        });
    }
}

/// The version of the QEMU that is here.
fn qemu_version() -> (u32, u32) {
    let text = tool("qemu-nbd", &["--version"]);
    let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap();
    let mut numbers = version.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn qemu_speaks_extended_headers_from_8_2_on_and_tells_of_more_than_4_gib_at_once() {
    if !have(&["qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    const TIB: u64 = 1 << 40;
    let mut server = Server::new();
    let image = server.path("disk.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", image.to_str().unwrap(), "8T"]);
    qemu_io(&["-f", "qcow2", image.to_str().unwrap()], &["write -P 0x11 6T 2M"]);
    server.qemu_nbd("qcow2", &image, &[]);
    let extended = qemu_version() >= (8, 2);
    if !extended {
        eprintln!("QEMU here is older than 8.2: only that it speaks structured replies is tested");
    }
    run(async {
        let client = open(&server.uri(""), &with_contexts(&[ALLOCATION])).await;
        let headers = if extended { HeaderStyle::Extended } else { HeaderStyle::Structured };
        assert_eq!(client.export().headers, headers);
        let mut walk = client.extents(&[ALLOCATION], client.export().range()).unwrap();
        let (mut answers, mut longest, mut data) = (0, 0, Vec::new());
        while let Some(batch) = walk.next().await.unwrap_or_else(|e| panic!("{}", e.report())) {
            answers += 1;
            longest = longest.max(batch.range.len());
            data.extend(batch.extents[0].iter().filter(|e| e.status == 0).map(|e| (e.range.start().0, e.range.len())));
        }
        assert_eq!(data, [(6 * TIB, 2 * MIB)]);
        if extended {
            assert!(longest > 1 << 32 && answers < 100, "{answers} answers, the longest about {longest} bytes");
        }
        assert_eq!(client.read(range(6 * TIB - 1, 3), Vec::new()).await.unwrap(), [0, 0x11, 0x11]);
    });
}

#[test]
fn a_missing_export_is_told_by_every_server() {
    if !have(&["qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let mut server = Server::new();
    let image = image(&server, "qcow2", 8 * MIB);
    server.qemu_nbd("qcow2", &image, &["-x", "vda"]);
    let error = run(async { Client::connect(&Uri::parse(&server.uri("vdb")).unwrap(), &options()).await.map(|_| ()) });
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
}

#[test]
fn a_bitmap_kept_in_an_image_tells_what_was_written_since() {
    if !have(&["qemu-nbd", "qemu-img", "qemu-io", "nbdinfo"]) {
        return;
    }
    let mut server = Server::new();
    let image = image(&server, "qcow2", 8 * MIB);
    let path = image.to_str().unwrap();
    tool("qemu-img", &["bitmap", "--add", path, "cp0"]);
    qemu_io(&["-f", "qcow2", path], &["write -P 0x55 5M 64k", "write -z 1M 64k", "write -P 0x66 200k 1k"]);
    tool("qemu-img", &["bitmap", "--disable", path, "cp0"]);
    server.qemu_nbd("qcow2", &image, &["-B", "cp0", "-A"]);
    let context = "qemu:dirty-bitmap:cp0";
    run(async {
        let client = open(&server.uri(""), &with_contexts(&[context, ALLOCATION, "qemu:dirty-bitmap:cp1"])).await;
        assert_eq!(client.export().contexts, [context, ALLOCATION]);
        let whole = client.export().range();
        let dirty: Vec<_> = map(&client, context, whole).await.into_iter().filter(|(_, _, s)| *s == 1).collect();
        assert_eq!(dirty, [(192 << 10, 64 << 10, 1), (MIB, 64 << 10, 1), (5 * MIB, 64 << 10, 1)]);
        assert_eq!(map(&client, context, whole).await, map_by_libnbd(&server.uri(""), context));
        assert_eq!(map(&client, ALLOCATION, whole).await, map_by_libnbd(&server.uri(""), ALLOCATION));
        assert_eq!(map(&client, context, range(MIB + 5, 100)).await, [(MIB + 5, 100, 1)]);
    });
}

#[test]
fn the_storage_daemons_exports_are_listed_with_their_contexts() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    let mut daemon = StorageDaemon::start();
    for (node, name) in [("a", "drive scsi0/é"), ("b", "vdb")] {
        daemon.add_image(node, 64 * MIB);
        daemon.qmp("block-dirty-bitmap-add", json!({"node": node, "name": "bm"}));
        daemon.export(node, name, true, json!(["bm"]));
    }
    daemon.guest("vdb", &["write -P 0x77 1M 64k", "discard 32M 1M"]);
    run(async {
        let uri = Uri::parse(&daemon.server.uri("")).unwrap();
        let listing = list(&uri, &options()).await.unwrap_or_else(|e| panic!("{}", e.report()));
        let mut names: Vec<_> = listing.exports.iter().map(|export| export.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["drive scsi0/é", "vdb"]);
        for export in &listing.exports {
            let details = export.details.as_ref().unwrap();
            assert_eq!(details.size, 64 * MIB);
            assert_eq!(details.contexts, [ALLOCATION, "qemu:dirty-bitmap:bm"]);
        }
        let contexts = with_contexts(&["qemu:dirty-bitmap:bm", ALLOCATION]);
        let client = open(&uri.with_export("vdb").to_string(), &contexts).await;
        let mut walk = client.extents(&[ALLOCATION, "qemu:dirty-bitmap:bm"], client.export().range()).unwrap();
        let mut dirty = 0;
        while let Some(batch) = walk.next().await.unwrap() {
            dirty += batch.extents[1].iter().filter(|e| e.status == 1).map(|e| e.range.len()).sum::<u64>();
        }
        assert_eq!(dirty, MIB + 65536);
        // What was written can be taken away again.
        assert_eq!(client.read(range(MIB, 4), Vec::new()).await.unwrap(), [0x77; 4]);
        client.trim(range(MIB, 65536)).await.unwrap();
        assert_eq!(client.read(range(MIB, 4), Vec::new()).await.unwrap(), [0; 4]);
    });
}

#[test]
fn a_fleecing_export_refuses_clean_ranges_and_goes_on() {
    if !have(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    // As a Proxmox host offers it: what the bitmap does not name can be neither read nor asked about.
    let mut daemon = StorageDaemon::start();
    daemon.add_image("disk", 16 * MIB);
    daemon.add_image("scratch", 16 * MIB);
    daemon.export("disk", "before", true, json!([]));
    daemon.guest("before", &["write -P 0x10 0 16M"]);
    daemon.qmp("block-export-del", json!({"id": "export-disk", "mode": "hard"}));
    daemon.qmp("block-dirty-bitmap-add", json!({"node": "disk", "name": "bm", "granularity": 65536}));
    daemon.export("disk", "since", true, json!([]));
    daemon.guest("since", &["write -P 0x20 1M 64k"]);
    daemon.qmp("block-export-del", json!({"id": "export-disk", "mode": "hard"}));
    // The filter lets the bitmap's ranges alone through; until the monitor has seen the export go, this is refused.
    std::thread::sleep(Duration::from_millis(200));
    daemon.qmp("block-dirty-bitmap-disable", json!({"node": "disk", "name": "bm"}));
    daemon.qmp(
        "blockdev-add",
        json!({"node-name": "cbw", "driver": "copy-before-write", "file": "disk", "target": "scratch",
               "bitmap": {"node": "disk", "name": "bm"}}),
    );
    daemon.qmp("blockdev-add", json!({"node-name": "snap", "driver": "snapshot-access", "file": "cbw"}));
    daemon.export("cbw", "guest", true, json!([]));
    daemon.export("snap", "vda", false, json!([{"node": "disk", "name": "bm"}]));
    daemon.guest("guest", &["write -P 0x30 1M 64k"]);

    let context = "qemu:dirty-bitmap:bm";
    run(async {
        let client = open(&daemon.server.uri("vda"), &with_contexts(&[context])).await;
        let dirty: Vec<_> = map(&client, context, client.export().range()).await;
        assert_eq!(dirty, [(0, MIB, 0), (MIB, 65536, 1), (MIB + 65536, 15 * MIB - 65536, 0)]);
        assert_eq!(client.read(range(MIB, 65536), Vec::new()).await.unwrap(), vec![0x20; 65536]);
        let error = client.read(range(4 * MIB, 4096), Vec::new()).await.unwrap_err();
        assert!(ServerError::of(&error).is_some(), "{}", error.report());
        assert_eq!(client.read(range(MIB, 512), Vec::new()).await.unwrap(), vec![0x20; 512]);

        // With the allocation beside it, every status is refused; the connection stays good.
        let both = open(&daemon.server.uri("vda"), &with_contexts(&[context, ALLOCATION])).await;
        let error = both.block_status(context, both.export().range()).await.unwrap_err();
        assert_eq!(ServerError::of(&error).map(|e| e.errno), Some(ServerErrno::EINVAL), "{}", error.report());
        assert_eq!(both.read(range(MIB, 512), Vec::new()).await.unwrap(), vec![0x20; 512]);
    });
}

/// The bytes of nbdkit's pattern plugin: each aligned eight hold their own offset.
fn pattern(start: u64, len: u64) -> Vec<u8> {
    (start..start + len).map(|at| (at / 8 * 8).to_be_bytes()[usize::try_from(at % 8).unwrap()]).collect()
}

#[test]
fn nbdkit_is_understood_in_every_dialect_that_it_speaks() {
    if !have(&["nbdkit"]) {
        return;
    }
    for (arguments, headers) in [
        (&["pattern", "3M"][..], HeaderStyle::Structured),
        (&["--no-sr", "pattern", "3M"], HeaderStyle::Simple),
        // Without the fixed newstyle there is only one option, the export's name.
        (&["--mask-handshake=0", "pattern", "3M"], HeaderStyle::Simple),
        (&["--mask-handshake=2", "pattern", "3M"], HeaderStyle::Simple),
        (&["--mask-handshake=1", "pattern", "3M"], HeaderStyle::Structured),
    ] {
        let mut server = Server::new();
        server.nbdkit(arguments);
        run(async {
            let client = open(&server.uri(""), &with_contexts(&[ALLOCATION])).await;
            assert_eq!((client.export().size, client.export().headers), (3 * MIB, headers), "{arguments:?}");
            assert!(read_all(&client).await == pattern(0, 3 * MIB), "{arguments:?}");
            let listing = list(client.uri(), &options()).await.unwrap();
            assert_eq!(listing.exports.first().unwrap().details.as_ref().unwrap().size, 3 * MIB, "{arguments:?}");
        });
    }
    let mut server = Server::new();
    server.nbdkit(&["-o", "pattern", "3M"]);
    let error = run(async { Client::connect(&Uri::parse(&server.uri("")).unwrap(), &options()).await.map(|_| ()) });
    assert!(error.unwrap_err().report().contains("oldstyle"));
}

#[test]
fn block_sizes_that_nbdkit_enforces_are_kept() {
    if !have(&["nbdkit"]) {
        return;
    }
    let mut server = Server::new();
    server.nbdkit(&[
        "--filter=blocksize-policy",
        "pattern",
        "3M",
        "blocksize-error-policy=error",
        "blocksize-minimum=4096",
        "blocksize-preferred=8192",
        "blocksize-maximum=65536",
    ]);
    run(async {
        let client = open(&server.uri(""), &options()).await;
        assert_eq!(client.export().block_sizes.minimum, 4096);
        for (start, len) in [(1, 1), (4095, 2), (12_345, 500_000), (3 * MIB - 1, 1)] {
            assert!(
                client.read(range(start, len), Vec::new()).await.unwrap() == pattern(start, len),
                "{len} at {start}"
            );
        }
    });
}

#[test]
fn extents_of_sparse_files_and_of_servers_without_any_agree_with_libnbd() {
    if !have(&["nbdkit", "nbdinfo"]) {
        return;
    }
    for arguments in [
        &["sparse-random", "64M", "seed=7"][..],
        &["--filter=noextents", "sparse-random", "64M", "seed=7"],
        &["data", "@0x1000 1 @0x300000 2 @^0x10000 3", "size=9M"],
        &["null", "1000001"],
    ] {
        let mut server = Server::new();
        server.nbdkit(arguments);
        run(async {
            let client = open(&server.uri(""), &with_contexts(&[ALLOCATION])).await;
            let ours = map(&client, ALLOCATION, client.export().range()).await;
            assert_eq!(ours, map_by_libnbd(&server.uri(""), ALLOCATION), "{arguments:?}");
        });
    }
}

#[test]
fn an_error_of_the_server_fails_one_read_and_not_the_next() {
    if !have(&["nbdkit"]) {
        return;
    }
    let mut server = Server::new();
    let script =
        r#"pread=if [ "$4" -ge 65536 ]; then echo EIO the disk is on fire >&2; exit 1; fi; head -c "$3" /dev/zero"#;
    server.nbdkit(&["eval", "get_size=echo 131072", script]);
    run(async {
        let client = open(&server.uri(""), &options()).await;
        let error = client.read(range(65536, 512), Vec::new()).await.unwrap_err();
        assert_eq!(ServerError::of(&error).map(|e| e.errno), Some(ServerErrno::EIO), "{}", error.report());
        assert_eq!(client.read(range(0, 512), Vec::new()).await.unwrap(), [0; 512]);
    });
}

#[test]
fn over_a_slow_link_many_in_flight_take_hardly_longer_than_one() {
    if !have(&["nbdkit"]) {
        return;
    }
    let mut server = Server::new();
    server.nbdkit(&["--filter=delay", "pattern", "3M", "delay-read=200ms"]);
    run(async {
        let client = open(&server.uri(""), &options()).await;
        let began = Instant::now();
        assert!(read_all(&client).await == pattern(0, 3 * MIB));
        // One after another they would take 32 times 200 ms; nbdkit answers 16 at a time.
        assert!(began.elapsed() < Duration::from_millis(3200), "{:?}", began.elapsed());
    });
}

#[test]
fn a_server_killed_in_the_middle_and_started_again_is_read_to_the_end() {
    if !have(&["nbdkit"]) {
        return;
    }
    let mut server = Server::new();
    let arguments = ["--filter=delay", "pattern", "3M", "delay-read=20ms"];
    server.nbdkit(&arguments);
    let policy = ReconnectPolicy::new(|failures, _| (failures.count < 2000).then_some(Duration::from_millis(10)));
    let again = Options { reconnect: Some(policy), max_commands: 2, ..options() };
    run(async {
        let client = open(&server.uri(""), &again).await;
        let reading = tokio::spawn({
            let client = client.clone();
            async move { read_all(&client).await }
        });
        tokio::time::sleep(Duration::from_millis(60)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(!reading.is_finished(), "it was over before the server was killed");
        server.nbdkit(&arguments);
        assert!(reading.await.unwrap() == pattern(0, 3 * MIB));
    });
}
