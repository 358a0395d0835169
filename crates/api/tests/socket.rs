//! The API on a real unix socket, before a daemon that answers from a script.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::{ApiError, BODY_LIMIT, Caller, STATUS_PATH, Server, router, serve_socket};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Method, Request as HttpRequest, StatusCode};
use hyper_util::rt::TokioIo;
use jobs::{Console, Handle};
use model::JobId;
use opcodes::wire::{CALL_PATH, CONSOLE_PATH, CONSOLE_PROTOCOL, Request};
use opcodes::{ErrorCode, Failure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};

/// A daemon with the instance `vm 1`, whose console gives back what it gets. Tells what it did.
struct Script {
    done: mpsc::UnboundedSender<String>,
    /// A change waits for it.
    go_on: Arc<Notify>,
    guests: mpsc::UnboundedSender<DuplexStream>,
}

#[async_trait]
impl Handle for Script {
    async fn call(&self, request: Request, user: &str) -> Result<Value, Failure> {
        match request {
            Request::Status => Ok(json!({ "user": user })),
            Request::CancelJob { id } => {
                let _ = self.done.send("begun".into());
                self.go_on.notified().await;
                let _ = self.done.send(format!("cancelled {id} for {user}"));
                Ok(Value::Null)
            }
            Request::ArchiveJob { .. } => panic!("a defect"),
            Request::NodeInfo { names } => Err(Failure::unknown("Node", names.join(","))),
            _ => Err(Failure::no_master("no quorum")),
        }
    }

    async fn console(&self, instance: &str, user: &str) -> Result<Box<dyn Console>, Failure> {
        if instance != "vm 1" {
            return Err(Failure::unknown("Instance", instance));
        }
        let _ = self.done.send(format!("console for {user}"));
        let (ours, guest) = tokio::io::duplex(64);
        let _ = self.guests.send(guest);
        Ok(Box::new(ours))
    }
}

/// The script behind a socket in a folder of its own.
struct Daemon {
    folder: TempDir,
    server: Server,
    did: mpsc::UnboundedReceiver<String>,
    go_on: Arc<Notify>,
    guests: mpsc::UnboundedReceiver<DuplexStream>,
}

fn socket(folder: &TempDir) -> PathBuf {
    folder.path().join("run/cardume/api.sock")
}

async fn serve(folder: TempDir, path: &Path) -> Result<Daemon, ApiError> {
    let (script, did, guests) = script();
    let go_on = Arc::clone(&script.go_on);
    let server = serve_socket(Arc::new(script), path).await?;
    Ok(Daemon { folder, server, did, go_on, guests })
}

/// The script, what it did, and the guests' ends of its consoles.
fn script() -> (Script, mpsc::UnboundedReceiver<String>, mpsc::UnboundedReceiver<DuplexStream>) {
    let (done, did) = mpsc::unbounded_channel();
    let (guest, guests) = mpsc::unbounded_channel();
    (Script { done, go_on: Arc::new(Notify::new()), guests: guest }, did, guests)
}

async fn start() -> Daemon {
    let folder = TempDir::new().unwrap();
    let path = socket(&folder);
    serve(folder, &path).await.unwrap()
}

/// Serves on a path in a folder that belongs to somebody else.
async fn serve_also(path: &Path) -> Result<Daemon, ApiError> {
    serve(TempDir::new().unwrap(), path).await
}

type Answer = hyper::Response<hyper::body::Incoming>;

async fn send(folder: &TempDir, request: HttpRequest<Full<Bytes>>) -> Answer {
    let stream = UnixStream::connect(socket(folder)).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.unwrap()
}

fn post(path: &str, body: impl Into<Bytes>) -> HttpRequest<Full<Bytes>> {
    let request = HttpRequest::builder().method(Method::POST).uri(path).header(HOST, "cardume");
    request.body(Full::new(body.into())).unwrap()
}

async fn read(answer: Answer) -> (u16, Value) {
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn call(folder: &TempDir, request: &Request) -> (u16, Value) {
    read(send(folder, post(CALL_PATH, serde_json::to_vec(request).unwrap())).await).await
}

/// What the API says that the present user is called.
fn me() -> String {
    match nix::unistd::geteuid().as_raw() {
        0 => "root".into(),
        uid => format!("uid:{uid}"),
    }
}

#[tokio::test]
async fn a_call_is_answered_and_the_kernel_says_who_asks() {
    let daemon = start().await;
    assert_eq!(call(&daemon.folder, &Request::Status).await, (200, json!({ "user": me() })));
    let status = HttpRequest::builder().uri(STATUS_PATH).body(Full::default()).unwrap();
    assert_eq!(read(send(&daemon.folder, status).await).await, (200, json!({ "user": me() })));
}

#[tokio::test]
async fn a_failure_comes_as_it_is_with_a_status_that_fits() {
    let daemon = start().await;
    let failure = |failure: Failure| serde_json::to_value(failure).unwrap();
    let names = vec!["node09".to_owned()];
    let wanted = (404, failure(Failure::unknown("Node", "node09")));
    assert_eq!(call(&daemon.folder, &Request::NodeInfo { names }).await, wanted);
    assert_eq!(call(&daemon.folder, &Request::ClusterInfo).await, (503, failure(Failure::no_master("no quorum"))));
    // a defect of the daemon's ends one request, not the daemon
    let (status, body) = call(&daemon.folder, &Request::ArchiveJob { id: JobId(1) }).await;
    assert_eq!((status, &body["kind"]), (500, &json!("OpExecError")));
    assert_eq!(call(&daemon.folder, &Request::Status).await.0, 200);
}

#[tokio::test]
async fn what_is_not_understood_is_refused() {
    let daemon = start().await;
    let refused = async |request, status: u16, part: &str| {
        let (found, body) = read(send(&daemon.folder, request).await).await;
        let failure: Failure = serde_json::from_value(body).unwrap();
        assert_eq!((found, failure.code), (status, Some(ErrorCode::WrongInput)));
        assert!(failure.text.contains(part), "{}", failure.text);
    };
    refused(post(CALL_PATH, "{"), 400, "not understood").await;
    refused(post(CALL_PATH, r#"{"call": "no_such_call"}"#), 400, "no_such_call").await;
    refused(post(CALL_PATH, "[".repeat(100_000)), 400, "not understood").await;
    refused(post("/cardume/1/nosuch", ""), 404, "/cardume/1/nosuch").await;
    refused(post(STATUS_PATH, ""), 405, "POST").await;
    refused(post(&format!("{CONSOLE_PATH}/%ff"), ""), 400, "").await;
    refused(post(&format!("{CONSOLE_PATH}/vm%201"), ""), 426, CONSOLE_PROTOCOL).await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let daemon = start().await;
    let (mut from, mut to) = UnixStream::connect(socket(&daemon.folder)).await.unwrap().into_split();
    let writer = tokio::spawn(async move {
        let head = format!("POST {CALL_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", BODY_LIMIT * 2);
        to.write_all(head.as_bytes()).await?;
        // The daemon answers when it has had enough, and need not take the rest.
        to.write_all(&vec![b' '; BODY_LIMIT * 2]).await
    });
    let mut answer = String::new();
    let mut piece = [0; 1024];
    while !answer.contains("MiB") {
        let length = from.read(&mut piece).await.unwrap();
        assert_ne!(length, 0, "closed after {answer:?}");
        answer.push_str(std::str::from_utf8(&piece[..length]).unwrap());
    }
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("larger than 4 MiB"), "{answer}");
    drop(from);
    let _ = writer.await.unwrap();
    assert_eq!(call(&daemon.folder, &Request::Status).await.0, 200);
}

#[tokio::test]
async fn a_change_is_finished_although_its_caller_goes_away() {
    let mut daemon = start().await;
    let body = serde_json::to_vec(&Request::CancelJob { id: JobId(7) }).unwrap();
    let mut stream = UnixStream::connect(socket(&daemon.folder)).await.unwrap();
    let head = format!("POST {CALL_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    assert_eq!(daemon.did.recv().await.unwrap(), "begun");
    drop(stream);
    // The daemon answers others in between, so it has had time to see that the caller is gone.
    assert_eq!(call(&daemon.folder, &Request::Status).await.0, 200);
    daemon.go_on.notify_one();
    assert_eq!(daemon.did.recv().await.unwrap(), format!("cancelled 7 for {}", me()));
}

fn console(instance: &str) -> HttpRequest<Full<Bytes>> {
    HttpRequest::builder()
        .method(Method::POST)
        .uri(format!("{CONSOLE_PATH}/{instance}"))
        .header(HOST, "cardume")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, CONSOLE_PROTOCOL)
        .body(Full::default())
        .unwrap()
}

async fn open(daemon: &mut Daemon) -> (TokioIo<hyper::upgrade::Upgraded>, DuplexStream) {
    let answer = send(&daemon.folder, console("vm%201")).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()[UPGRADE], CONSOLE_PROTOCOL);
    assert_eq!(daemon.did.recv().await.unwrap(), format!("console for {}", me()));
    let guest = daemon.guests.recv().await.unwrap();
    (TokioIo::new(hyper::upgrade::on(answer).await.unwrap()), guest)
}

#[tokio::test]
async fn a_console_carries_bytes_both_ways_until_either_side_ends_it() {
    let mut daemon = start().await;
    let (mut client, mut guest) = open(&mut daemon).await;
    let mut piece = [0; 6];
    client.write_all(b"df -h\r").await.unwrap();
    guest.read_exact(&mut piece).await.unwrap();
    assert_eq!(&piece, b"df -h\r");
    guest.write_all(b"\xff/dev/").await.unwrap();
    client.read_exact(&mut piece).await.unwrap();
    assert_eq!(&piece, b"\xff/dev/");
    // The client goes away: the guest's side ends, though the guest said nothing.
    drop(client);
    assert_eq!(guest.read(&mut piece).await.unwrap(), 0);

    // The guest goes away: what it said last still comes, then the end.
    let (mut client, mut guest) = open(&mut daemon).await;
    guest.write_all(b"reboot").await.unwrap();
    drop(guest);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"reboot");
}

#[tokio::test]
async fn a_console_that_cannot_be_had_is_refused_before_the_connection_changes() {
    let daemon = start().await;
    let answer = send(&daemon.folder, console("vm9")).await;
    let failure = serde_json::to_value(Failure::unknown("Instance", "vm9")).unwrap();
    assert_eq!(read(answer).await, (404, failure));
}

#[tokio::test]
async fn the_socket_is_for_root_and_the_group_alone_and_goes_with_its_server() {
    let daemon = start().await;
    let path = socket(&daemon.folder);
    let found = std::fs::metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    drop(daemon.server);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_connection_that_was_open_gets_no_new_answers_when_the_server_is_gone() {
    let daemon = start().await;
    let stream = UnixStream::connect(socket(&daemon.folder)).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = HttpRequest::builder().uri(STATUS_PATH).body(Full::<Bytes>::default()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
    drop(daemon.server);
    // It was idle, so it is closed.
    let _ = tokio::time::timeout(Duration::from_secs(60), connection).await.unwrap();
}

#[tokio::test]
async fn the_socket_of_a_dead_daemon_is_replaced() {
    let folder = TempDir::new().unwrap();
    let path = socket(&folder);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(UnixStream::connect(&path).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let _server = serve_also(&path).await.unwrap();
    assert_eq!(call(&folder, &Request::Status).await.0, 200);
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_does_no_harm() {
    let daemon = start().await;
    let path = socket(&daemon.folder);
    let error = serve_also(&path).await.err().unwrap();
    assert!(matches!(error, ApiError::Taken { .. }));
    assert_eq!(error.to_string(), format!("another daemon already answers on {}; stop it first", path.display()));
    assert_eq!(call(&daemon.folder, &Request::Status).await.0, 200);
}

#[tokio::test]
async fn a_server_leaves_the_socket_of_its_successor_alone() {
    let daemon = start().await;
    let path = socket(&daemon.folder);
    std::fs::remove_file(&path).unwrap();
    let _successor = serve_also(&path).await.unwrap();
    drop(daemon.server);
    assert_eq!(call(&daemon.folder, &Request::Status).await.0, 200);
}

#[tokio::test]
async fn something_else_in_the_sockets_place_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("api.sock");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(serve_also(&path).await.err().unwrap(), ApiError::NotASocket { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    // nor can a socket be made below a file
    let error = serve_also(&path.join("api.sock")).await.err().unwrap();
    assert!(error.to_string().starts_with("cannot make the folder "), "{error}");
}

/// The routes alone on a socket, for a caller who was found out in some other way, or not at all.
async fn serve_routes(caller: Option<Caller>) -> (TempDir, mpsc::UnboundedReceiver<String>) {
    let folder = TempDir::new().unwrap();
    let path = socket(&folder);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let (script, did, _) = script();
    let mut routes = router(Arc::new(script));
    if let Some(caller) = caller {
        routes = routes.layer(axum::Extension(caller));
    }
    tokio::spawn(axum::serve(UnixListener::bind(path).unwrap(), routes).into_future());
    (folder, did)
}

#[tokio::test]
async fn who_may_look_is_kept_from_everything_else() {
    let (folder, mut did) = serve_routes(Some(Caller { name: "uid:1000".into(), may_change: false })).await;
    assert_eq!(call(&folder, &Request::Status).await, (200, json!({ "user": "uid:1000" })));
    let change = call(&folder, &Request::CancelJob { id: JobId(7) }).await;
    let console = read(send(&folder, console("vm%201")).await).await;
    for (status, body) in [change, console] {
        let failure: Failure = serde_json::from_value(body).unwrap();
        assert_eq!((status, failure.code), (403, Some(ErrorCode::WrongState)));
        assert!(failure.text.starts_with("User 'uid:1000' may look but not change anything"), "{}", failure.text);
    }
    // nothing of it has reached the daemon
    assert!(did.try_recv().is_err());
}

#[tokio::test]
async fn nobody_is_answered_before_it_is_known_who_they_are() {
    let (folder, _) = serve_routes(None).await;
    assert_eq!(call(&folder, &Request::Status).await.0, 401);
}
