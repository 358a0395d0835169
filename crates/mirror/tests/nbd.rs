//! The NBD server, used by real clients and by a rough one of our own.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the shell around the engine has clocks and threads"
)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{MemoryDisk, noise, outcome, run};
use mirror::device::IoRefusal;
use mirror::nbd::{BindError, Clients, ExportError, ExportOptions, ExportTable, Server, SocketOptions};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const MIB: usize = 1 << 20;

struct Lab {
    directory: TempDir,
    server: Server,
    disk: Arc<MemoryDisk>,
}

impl Lab {
    fn new(size: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = MemoryDisk::new(size);
        let exports = ExportTable::new();
        exports.insert("disk0", disk.clone(), ExportOptions::default()).unwrap();
        exports.insert("looked-at", disk.clone(), ExportOptions { read_only: true }).unwrap();
        let server = Server::bind(&options(&directory), exports).unwrap();
        Self { directory, server, disk }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.server.path().display())
    }

    fn exports(&self) -> &ExportTable {
        self.server.exports()
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    async fn until_clients(&self, export: &str, wanted: Clients) {
        self.exports().watch_clients(export).unwrap().wait_for(|clients| *clients == wanted).await.unwrap();
    }
}

fn options(directory: &TempDir) -> SocketOptions {
    SocketOptions { directory: directory.path().to_owned(), name: "nbd.sock".into(), owner: None }
}

const fn clients(connected: usize, settling: usize) -> Clients {
    Clients { connected, settling }
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_sees_what_the_exports_offer() {
    let lab = Lab::new(4 * MIB);
    let told = run("nbdinfo", &["--json", &lab.uri("disk0")]).await;
    for word in [
        r#""protocol": "newstyle-fixed""#,
        r#""structured": true"#,
        r#""export-size": 4194304"#,
        r#""is_read_only": false"#,
        r#""can_flush": true"#,
        r#""can_fua": true"#,
        r#""can_trim": true"#,
        r#""can_zero": true"#,
        r#""can_df": true"#,
        r#""can_fast_zero": false"#,
        r#""can_multi_conn": false"#,
        r#""block_size_minimum": 512"#,
        r#""block_size_preferred": 4096"#,
        r#""block_size_maximum": 33554432"#,
    ] {
        assert!(told.contains(word), "no {word} in {told}");
    }
    let told = run("nbdinfo", &["--json", &lab.uri("looked-at")]).await;
    for word in [r#""is_read_only": true"#, r#""can_trim": false"#, r#""can_zero": false"#] {
        assert!(told.contains(word), "no {word} in {told}");
    }
    let told = run("nbdinfo", &["--list", &lab.uri("")]).await;
    assert!(told.contains("disk0") && told.contains("looked-at"), "{told}");
    assert!(!outcome("nbdinfo", &[&lab.uri("nobody")]).await.status.success());
    assert_eq!(lab.exports().clients("nobody"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_copied_in_comes_out_the_same() {
    let lab = Lab::new(64 * MIB);
    let (original, back) = (lab.file("original"), lab.file("back"));
    let mut image = noise(64 * MIB, 1);
    image[20 * MIB..40 * MIB].fill(0);
    std::fs::write(&original, &image).unwrap();
    run("nbdcopy", &["--flush", &original, &lab.uri("disk0")]).await;
    assert!(lab.disk.snapshot() == image, "what arrived differs");
    assert!(lab.disk.flushes.load(Ordering::SeqCst) > 0);
    run("nbdcopy", &[&lab.uri("looked-at"), &back]).await;
    assert!(std::fs::read(&back).unwrap() == image, "what came back differs");
    let told = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &original, &lab.uri("disk0")]).await;
    assert!(told.contains("identical"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_writes_reads_flushes_and_discards() {
    let lab = Lab::new(8 * MIB);
    let uri = lab.uri("disk0");
    let io = |commands: &[&str]| {
        let mut arguments =
            vec!["-f".to_owned(), "raw".to_owned(), "-d".into(), "unmap".into(), "-t".into(), "writeback".into()];
        for command in commands {
            arguments.extend(["-c".to_owned(), (*command).to_owned()]);
        }
        arguments.push(uri.clone());
        async move { run("qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let told = io(&["write -P 0x5a 1M 2M", "flush", "read -P 0x5a 1M 2M", "write -f -P 0x11 512 512"]).await;
    assert!(!told.contains("verification failed"), "{told}");
    assert_eq!(lab.disk.fua.load(Ordering::SeqCst), 1);
    let told =
        io(&["write -z 1M 1M", "read -P 0 1M 1M", "read -P 0x5a 2M 1M", "discard 2M 1M", "read -P 0 2M 1M"]).await;
    assert!(!told.contains("verification failed") && !told.contains("failed"), "{told}");
    assert_eq!((lab.disk.zeroes.load(Ordering::SeqCst), lab.disk.trims.load(Ordering::SeqCst)), (1, 1));
    let told = io(&["aio_write -P 1 0 64k", "aio_write -P 2 64k 64k", "aio_write -P 3 128k 64k", "aio_flush"]).await;
    assert!(!told.contains("failed"), "{told}");
    let content = lab.disk.snapshot();
    assert!(content[..65536].iter().all(|byte| *byte == 1) && content[131072..196608].iter().all(|byte| *byte == 3));
}

/// Whatever real programs write, however they mix it, is what other real programs read.
#[tokio::test(flavor = "multi_thread")]
async fn random_requests_leave_what_they_would_leave_on_a_plain_file() {
    let lab = Lab::new(4 * MIB);
    let plain = lab.file("plain");
    std::fs::write(&plain, vec![0; 4 * MIB]).unwrap();
    let dice = noise(4 * 120, 42);
    let mut commands = Vec::new();
    for roll in dice.chunks(4) {
        let offset = (usize::from(roll[1]) * 31 % 8000) * 512;
        let len = (1 + usize::from(roll[2]) % 192) * 512;
        let len = len.min(4 * MIB - offset);
        commands.push(match roll[0] % 6 {
            0 => format!("write -f -P {} {offset} {len}", roll[3]),
            1 => format!("write -z {offset} {len}"),
            2 => format!("write -z -u {offset} {len}"),
            3 => "flush".to_owned(),
            _ => format!("write -P {} {offset} {len}", roll[3]),
        });
    }
    for target in [lab.uri("disk0"), plain.clone()] {
        let mut arguments = vec!["-f", "raw", "-d", "unmap"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&target);
        let told = run("qemu-io", &arguments).await;
        assert!(!told.contains("failed"), "{told}");
    }
    assert!(lab.disk.snapshot() == std::fs::read(&plain).unwrap(), "the two differ after {commands:#?}");
    let told = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &plain, &lab.uri("looked-at")]).await;
    assert!(told.contains("identical"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_the_client_as_its_error_and_the_client_stays() {
    let lab = Lab::new(MIB);
    for (refusal, words) in [
        (IoRefusal::NoSpace, "No space left on device"),
        (IoRefusal::Medium, "Input/output error"),
        (IoRefusal::ReadOnly, "Operation not permitted"),
    ] {
        *lab.disk.refusal.lock().unwrap() = Some(refusal);
        let output =
            outcome("qemu-io", &["-f", "raw", "-c", "write 0 4k", "-c", "write 4k 4k", &lab.uri("disk0")]).await;
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(told.matches(words).count(), 2, "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_gets_again_what_was_not_answered() {
    let mut lab = Lab::new(4 * MIB);
    let uri = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=disk0,file.reconnect-delay=60",
        lab.server.path().display()
    );
    let client = tokio::spawn(async move {
        let commands = ["write -P 7 0 1M", "write -P 8 1M 1M", "flush", "read -P 7 0 1M", "read -P 8 1M 1M"];
        let mut arguments = vec!["--image-opts"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&uri);
        run("qemu-io", &arguments).await
    });
    for _ in 0..2 {
        lab.disk.hold(true);
        lab.disk.until_waiting(1).await;
        // The daemon dies with a write in its hands, and so the disk never hears of it.
        let Lab { directory, server, .. } = lab;
        server.close().await;
        let disk = MemoryDisk::new(4 * MIB);
        disk.hold(true);
        let exports = ExportTable::new();
        exports.insert("disk0", disk.clone(), ExportOptions::default()).unwrap();
        let server = Server::bind(&options(&directory), exports).unwrap();
        lab = Lab { directory, server, disk };
        lab.disk.until_waiting(1).await;
    }
    lab.disk.hold(false);
    let told = client.await.unwrap();
    assert!(!told.contains("failed"), "{told}");
    let content = lab.disk.snapshot();
    assert!(content[..MIB].iter().all(|b| *b == 7) && content[MIB..2 * MIB].iter().all(|b| *b == 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_export_answers_what_it_took_and_refuses_who_comes() {
    let lab = Lab::new(MIB);
    lab.disk.hold(true);
    let mut client = Rough::transmitting(&lab, "disk0").await;
    client.request(0, 1, 77, 0, &[9; 4096]).await;
    lab.disk.until_waiting(1).await;
    let removed = lab.exports().remove("disk0").unwrap();
    let drain = removed.drain();
    tokio::pin!(drain);
    tokio::select! {
        biased;
        () = &mut drain => panic!("drained while a request is held"),
        () = tokio::task::yield_now() => {}
    }
    assert!(!outcome("nbdinfo", &[&lab.uri("disk0")]).await.status.success());
    lab.disk.hold(false);
    drain.await;
    assert_eq!(client.simple_reply().await, (0, 77));
    assert_eq!(client.rest().await, b"");
    assert_eq!(lab.disk.snapshot()[..4096], [9; 4096]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_ends_at_once_leaves_no_request_at_the_device() {
    let lab = Lab::new(MIB);
    lab.disk.hold(true);
    let mut client = Rough::transmitting(&lab, "disk0").await;
    for cookie in 0..20 {
        client.request(0, 1, cookie, cookie * 4096, &[9; 4096]).await;
    }
    lab.disk.until_waiting(20).await;
    lab.exports().remove("disk0").unwrap().end().await;
    assert_eq!(*lab.disk.waiting.borrow(), 0);
    assert_eq!(client.rest().await, b"");
    lab.disk.hold(false);
    assert_eq!(lab.disk.snapshot(), vec![0; MIB]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_never_meets_its_older_self() {
    let lab = Lab::new(MIB);
    lab.disk.hold(true);
    let mut gone = Rough::transmitting(&lab, "disk0").await;
    lab.until_clients("disk0", clients(1, 0)).await;
    gone.request(0, 1, 1, 0, &[1; 512]).await;
    lab.disk.until_waiting(1).await;
    drop(gone);
    lab.until_clients("disk0", clients(0, 1)).await;
    let mut again = Rough::greeted(&lab).await;
    again.go("disk0").await;
    // The other export has nothing to do with it.
    Rough::transmitting(&lab, "looked-at").await;
    assert_eq!(lab.exports().clients("disk0"), Some(clients(0, 1)));
    lab.disk.hold(false);
    again.go_replies().await;
    lab.until_clients("disk0", clients(1, 0)).await;
    assert_eq!(lab.disk.snapshot()[..512], [1; 512]);
    again.request(0, 1, 2, 0, &[2; 512]).await;
    assert_eq!(again.simple_reply().await, (0, 2));
    assert_eq!(lab.disk.snapshot()[..512], [2; 512]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_full_budget_of_held_requests_is_seen_to_go() {
    let lab = Lab::new(64 * MIB);
    lab.disk.hold(true);
    let mut client = Rough::transmitting(&lab, "disk0").await;
    let payload = vec![1; 32 * MIB];
    client.request(0, 1, 1, 0, &payload).await;
    client.request(0, 1, 2, 0, &payload).await;
    lab.disk.until_waiting(2).await;
    // There is no room for this one: it is not taken, but its sender's end is noticed.
    client.head(0, 1, 3, 0, 4096).await;
    drop(client);
    lab.until_clients("disk0", clients(0, 1)).await;
    assert_eq!(*lab.disk.waiting.borrow(), 2);
    lab.disk.hold(false);
    lab.until_clients("disk0", clients(0, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_and_the_client_stays() {
    const EPERM: u32 = 1;
    const EINVAL: u32 = 22;
    const ENOSPC: u32 = 28;
    let lab = Lab::new(MIB);
    let mut client = Rough::transmitting(&lab, "disk0").await;
    let end = MIB as u64;
    for (number, (flags, kind, offset, len, error)) in [
        (0, 0, end, 512, EINVAL),
        (0, 0, end - 512, 1024, EINVAL),
        (0, 0, u64::MAX - 511, 512, EINVAL),
        (0, 0, 0, 0, EINVAL),
        (0, 0, 1, 512, EINVAL),
        (0, 0, 0, 100, EINVAL),
        (0, 0, 0, u32::MAX, EINVAL),
        (0, 1, end, 512, ENOSPC),
        (0, 4, end, 512, EINVAL),
        (0, 6, end, 512, ENOSPC),
        (1 << 4, 6, 0, 512, EINVAL),
        (1 << 15, 0, 0, 512, EINVAL),
        (0, 3, 1, 0, EINVAL),
        (0, 5, 0, 512, EINVAL),
        (0, 99, 0, 512, EINVAL),
    ]
    .into_iter()
    .enumerate()
    {
        client.head(flags, kind, number as u64, offset, len).await;
        if kind == 1 {
            client.send(&[1; 512]).await;
        }
        assert_eq!(client.simple_reply().await, (error, number as u64), "command {kind} at {offset} of {len}");
    }
    let mut reader = Rough::transmitting(&lab, "looked-at").await;
    for (kind, payload) in [(1, &[1; 512][..]), (4, &[]), (6, &[])] {
        reader.head(0, kind, 5, 0, 512).await;
        reader.send(payload).await;
        assert_eq!(reader.simple_reply().await, (EPERM, 5));
    }
    client.request(1, 1, 8, 0, &[3; 512]).await;
    assert_eq!(client.simple_reply().await, (0, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_breaks_the_rules_is_dropped_and_others_are_served() {
    let lab = Lab::new(MIB);
    let mut good = Rough::transmitting(&lab, "disk0").await;

    let mut bad = Rough::connected(&lab).await;
    bad.send(&8u32.to_be_bytes()).await;
    assert_eq!(bad.rest().await, b"", "flags that don't exist");

    let mut bad = Rough::greeted(&lab).await;
    bad.send(&[0xff; 16]).await;
    assert_eq!(bad.rest().await, b"", "an option without its magic");

    let mut bad = Rough::greeted(&lab).await;
    bad.option_head(7, u32::MAX).await;
    assert_eq!(bad.rest().await, b"", "an endless option");

    let mut bad = Rough::transmitting(&lab, "disk0").await;
    bad.send(&[0xff; 28]).await;
    assert_eq!(bad.rest().await, b"", "a request without its magic");

    let mut bad = Rough::transmitting(&lab, "disk0").await;
    bad.head(0, 1, 1, 0, 33 << 20).await;
    assert_eq!(bad.rest().await, b"", "a write that is too long");

    let mut bad = Rough::transmitting(&lab, "disk0").await;
    bad.head(0, 1, 1, 0, 4096).await;
    bad.send(&[1; 100]).await;
    drop(bad);
    lab.until_clients("disk0", clients(1, 0)).await;
    assert_eq!(lab.disk.snapshot(), vec![0; MIB], "half a write counts as none");

    good.request(0, 1, 8, 0, &[3; 512]).await;
    assert_eq!(good.simple_reply().await, (0, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_are_unknown_or_invalid_are_refused_one_by_one() {
    const UNSUP: u32 = (1 << 31) | 1;
    const INVALID: u32 = (1 << 31) | 3;
    const UNKNOWN: u32 = (1 << 31) | 6;
    let lab = Lab::new(MIB);
    let mut client = Rough::greeted(&lab).await;
    for (option, data, reply) in [
        (5, &b""[..], UNSUP), // STARTTLS
        (9, b"whatever", UNSUP),
        (10, b"", UNSUP),
        (4711, b"", UNSUP),
        (3, b"x", INVALID),
        (8, b"x", INVALID),
        (7, b"", INVALID),
        (7, b"\xff\xff\xff\xffdisk0\0\0", INVALID),
        (7, b"\0\0\0\x05disk0\0\x01", INVALID),
        (7, b"\0\0\0\x01\xff\0\0", INVALID),
        (7, b"\0\0\0\x06nobody\0\0", UNKNOWN),
        (6, b"\0\0\0\0\0\0", UNKNOWN),
    ] {
        client.option(option, data).await;
        let (of, kind, _) = client.option_reply().await;
        assert_eq!((of, kind), (option, reply), "option {option} {data:?}");
    }
    client.option(2, b"").await;
    assert_eq!(client.option_reply().await.1, 1);
    assert_eq!(client.rest().await, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_replies_carry_data_offsets_and_reasons() {
    let lab = Lab::new(MIB);
    lab.disk.content.lock().unwrap()[4096..8192].fill(6);
    let mut client = Rough::greeted(&lab).await;
    client.option(8, b"").await;
    assert_eq!(client.option_reply().await.1, 1);
    client.go("disk0").await;
    client.go_replies().await;
    client.head(1 << 2, 0, 1, 4096, 4096).await;
    let (kind, cookie, data) = client.chunk().await;
    assert_eq!((kind, cookie, &data[..8]), (1, 1, &4096u64.to_be_bytes()[..]));
    assert_eq!(data[8..], [6; 4096]);
    client.head(0, 3, 2, 0, 0).await;
    assert_eq!(client.chunk().await, (0, 2, vec![]));
    *lab.disk.refusal.lock().unwrap() = Some(IoRefusal::Medium);
    client.head(0, 0, 3, 0, 512).await;
    let (kind, cookie, data) = client.chunk().await;
    assert_eq!((kind, cookie, &data[..4]), ((1 << 15) | 1, 3, &5u32.to_be_bytes()[..]));
    let len = usize::from(u16::from_be_bytes([data[4], data[5]]));
    assert!(std::str::from_utf8(&data[6..6 + len]).unwrap().contains("medium"));
    assert_eq!(data.len(), 6 + len);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_way_to_name_an_export_works_with_and_without_padding() {
    let lab = Lab::new(MIB);
    for (flags, padding) in [(1u32, 124), (3, 0)] {
        let mut client = Rough::connected(&lab).await;
        client.send(&flags.to_be_bytes()).await;
        client.option(1, b"disk0").await;
        let told = client.receive(10 + padding).await;
        assert_eq!(told[..8], (MIB as u64).to_be_bytes());
        client.head(0, 3, 4, 0, 0).await;
        assert_eq!(client.simple_reply().await, (0, 4));
        client.head(0, 2, 5, 0, 0).await;
        assert_eq!(client.rest().await, b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new(MIB);
    let path = lab.server.path().to_owned();
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!((found.mode() & 0o777, found.uid()), (0o600, 0));
    let second = Server::bind(&options(&lab.directory), ExportTable::new());
    assert!(matches!(second, Err(BindError::InUse { .. })), "{second:?}");
    run("nbdinfo", &["--size", &lab.uri("disk0")]).await;
    let Lab { directory, server, .. } = lab;
    drop(server);
    assert!(!path.exists());
    // What a killed daemon leaves: a socket that nobody listens on.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let owned = SocketOptions { owner: Some((12345, 54321)), ..options(&directory) };
    let server = Server::bind(&owned, ExportTable::new()).unwrap();
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!((found.mode() & 0o777, found.uid(), found.gid()), (0o600, 12345, 54321));
    drop(server);
    std::fs::write(&path, "not a socket").unwrap();
    let refused = Server::bind(&owned, ExportTable::new());
    assert!(matches!(refused, Err(BindError::NotASocket { .. })), "{refused:?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "something was left behind");
}

#[tokio::test]
async fn names_and_geometries_are_checked() {
    let exports = ExportTable::new();
    let disk = MemoryDisk::new(4096);
    let insert = |name: &str| exports.insert(name, disk.clone(), ExportOptions::default());
    assert_eq!(insert(""), Err(ExportError::Name { len: 0 }));
    assert_eq!(insert(&"n".repeat(4097)), Err(ExportError::Name { len: 4097 }));
    assert_eq!(insert("a"), Ok(()));
    assert_eq!(insert("a"), Err(ExportError::Exists { name: "a".into() }));
    let odd = exports.insert("odd", MemoryDisk::new(1000), ExportOptions::default());
    assert!(matches!(odd, Err(ExportError::Geometry { size: 1000, block: 512, .. })));
    assert!(exports.remove("odd").is_none());
}

/// A client that says just what it is told to, right or wrong.
struct Rough {
    stream: UnixStream,
}

impl Rough {
    /// Has read the greeting and said nothing.
    async fn connected(lab: &Lab) -> Self {
        let stream = UnixStream::connect(lab.server.path()).await.unwrap();
        let mut client = Self { stream };
        assert_eq!(client.receive(18).await, b"NBDMAGICIHAVEOPT\0\x03");
        client
    }

    async fn greeted(lab: &Lab) -> Self {
        let mut client = Self::connected(lab).await;
        client.send(&3u32.to_be_bytes()).await;
        client
    }

    async fn transmitting(lab: &Lab, export: &str) -> Self {
        let mut client = Self::greeted(lab).await;
        client.go(export).await;
        client.go_replies().await;
        client
    }

    async fn go(&mut self, export: &str) {
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend(export.as_bytes());
        data.extend([0, 0]);
        self.option(7, &data).await;
    }

    async fn go_replies(&mut self) {
        let (_, kind, info) = self.option_reply().await;
        assert_eq!((kind, info.len()), (3, 12));
        assert_eq!(self.option_reply().await, (7, 1, vec![]));
    }

    async fn option_head(&mut self, option: u32, len: u32) {
        let mut out = b"IHAVEOPT".to_vec();
        out.extend(option.to_be_bytes());
        out.extend(len.to_be_bytes());
        self.send(&out).await;
    }

    async fn option(&mut self, option: u32, data: &[u8]) {
        self.option_head(option, data.len() as u32).await;
        self.send(data).await;
    }

    async fn option_reply(&mut self) -> (u32, u32, Vec<u8>) {
        assert_eq!(self.receive(8).await, 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let (option, kind, len) = (self.number().await, self.number().await, self.number().await);
        (option, kind, self.receive(len as usize).await)
    }

    async fn head(&mut self, flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) {
        let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
        out.extend(flags.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(len.to_be_bytes());
        self.send(&out).await;
    }

    async fn request(&mut self, flags: u16, kind: u16, cookie: u64, offset: u64, payload: &[u8]) {
        self.head(flags, kind, cookie, offset, payload.len() as u32).await;
        self.send(payload).await;
    }

    /// Error and cookie.
    async fn simple_reply(&mut self) -> (u32, u64) {
        assert_eq!(self.number().await, 0x6744_6698);
        (self.number().await, self.stream.read_u64().await.unwrap())
    }

    /// Kind, cookie and data of a reply that is one chunk.
    async fn chunk(&mut self) -> (u16, u64, Vec<u8>) {
        assert_eq!(self.number().await, 0x668e_33ef);
        assert_eq!(self.stream.read_u16().await.unwrap(), 1);
        let (kind, cookie) = (self.stream.read_u16().await.unwrap(), self.stream.read_u64().await.unwrap());
        let len = self.number().await;
        (kind, cookie, self.receive(len as usize).await)
    }

    async fn number(&mut self) -> u32 {
        self.stream.read_u32().await.unwrap()
    }

    async fn send(&mut self, data: &[u8]) {
        self.stream.write_all(data).await.unwrap();
    }

    async fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).await.unwrap();
        data
    }

    /// Everything up to the end of the connection, which is waited for.
    async fn rest(&mut self) -> Vec<u8> {
        let mut data = Vec::new();
        match self.stream.read_to_end(&mut data).await {
            Ok(_) => {}
            // The server closed with something unread.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
        }
        data
    }
}
