//! A daemon that answers from a script, and a session whose streams are kept.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use cli::client::Client;
use cli::{Answers, Session};
use jiff::tz::TimeZone;
use model::{Job, JobId, JobStatus, LogEntry, LogKind, Op, Timestamp};
use opcodes::Failure;
use opcodes::wire::{CALL_PATH, CONSOLE_PATH, Request};
use serde_json::{Value, json};

/// What the daemon does with a request.
pub enum Reply {
    /// It answers.
    Ok(Value),
    /// It refuses.
    Refused(Failure),
    /// It dies: the connection ends without an answer. The next request finds it again.
    Dies,
}

/// A daemon that answers from a script.
pub struct FakeDaemon {
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Request>>>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDaemon {
    /// Starts one; `answer` is asked for each request.
    pub fn start(mut answer: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let ending = Arc::new(AtomicBool::new(false));
        let (log, end) = (asked.clone(), ending.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                serve(stream.unwrap(), &mut answer, &log);
            }
        });
        Self { folder, asked, ending, thread: Some(thread) }
    }

    /// Answers these, one request after the other.
    pub fn script(replies: Vec<Reply>) -> Self {
        let mut replies = replies.into_iter();
        Self::start(move |request| replies.next().unwrap_or_else(|| panic!("no answer is scripted for {request:?}")))
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// Runs a command against it.
    pub fn run(&self, line: &[&str]) -> Done {
        run(session(self.socket()), line)
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(self.socket());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: UnixStream, answer: &mut impl FnMut(&Request) -> Reply, log: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    if reader.read_line(&mut first).unwrap_or(0) == 0 {
        return;
    }
    let mut length = 0;
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    if first.starts_with(&format!("POST {CONSOLE_PATH}/")) {
        return console(stream, reader);
    }
    assert!(first.starts_with(&format!("POST {CALL_PATH} ")), "{first}");
    let request: Request = serde_json::from_slice(&body).unwrap();
    log.lock().unwrap().push(request.clone());
    let (status, body) = match answer(&request) {
        Reply::Ok(value) => ("200 OK", serde_json::to_vec(&value).unwrap()),
        Reply::Refused(failure) => ("409 Conflict", serde_json::to_vec(&failure).unwrap()),
        Reply::Dies => return,
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(&body).unwrap();
}

/// A guest that greets, answers each line, and shuts down at `poweroff`.
fn console(mut stream: UnixStream, reader: BufReader<UnixStream>) {
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: cardume-console\r\n\r\nlogin: "
    )
    .unwrap();
    for line in reader.lines() {
        let Ok(line) = line else { return };
        write!(stream, "you typed {line}\r\n").unwrap();
        if line == "poweroff" {
            return;
        }
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub code: u8,
    pub out: String,
    pub err: String,
}

impl Done {
    #[track_caller]
    pub fn is(&self, code: u8, out: &str, err: &str) {
        assert_eq!((self.out.as_str(), self.err.as_str(), self.code), (out, err, code));
    }
}

/// A stream that is kept.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Gives these answers, and keeps what it was asked.
pub struct Person {
    pub answers: Vec<&'static str>,
    pub asked: Arc<Mutex<String>>,
}

impl Answers for Person {
    fn ask(&mut self, text: &str) -> Option<String> {
        self.asked.lock().unwrap().push_str(text);
        (!self.answers.is_empty()).then(|| self.answers.remove(0).to_owned())
    }
}

/// Nobody.
struct Nobody;

impl Answers for Nobody {
    fn ask(&mut self, _text: &str) -> Option<String> {
        None
    }
}

/// A session without anybody to ask.
pub fn session(socket: PathBuf) -> Session {
    Session {
        client: Client::new(socket),
        answers: Box::new(Nobody),
        input: None,
        interactive: false,
        screen: false,
        zone: Some(TimeZone::UTC),
        patience: Duration::from_secs(60),
        ..Session::standard()
    }
}

/// Runs a command; the first word is the tool.
pub fn run(mut session: Session, line: &[&str]) -> Done {
    let (out, err) = (Kept::default(), Kept::default());
    session.out = Box::new(out.clone());
    session.err = Box::new(err.clone());
    let tool = cli::tool(line[0]).unwrap();
    let args = line[1..].iter().map(OsString::from).collect();
    let code = cli::run_in(&mut session, tool, args);
    Done { code, out: out.text(), err: err.text() }
}

/// Runs a command where there is no daemon.
pub fn alone(line: &[&str]) -> Done {
    run(session("/nonexistent/api.sock".into()), line)
}

/// `Mon Nov 23 05:02:47 2026`, and so many seconds later.
pub fn at(seconds: u64) -> Timestamp {
    Timestamp((1_795_410_167 + seconds) * 1_000_000)
}

/// A job with one opcode: lines are (serial, text), one a second.
pub fn job(id: u64, status: JobStatus, lines: &[(u64, &str)], result: Value) -> Reply {
    let log: Vec<_> = lines
        .iter()
        .map(|(serial, text)| LogEntry {
            serial: *serial,
            at: at(*serial),
            kind: LogKind::Message,
            message: (*text).to_owned(),
        })
        .collect();
    let log_serial = lines.last().map_or(0, |(serial, _)| *serial);
    let op = Op {
        input: json!({"OP_ID": "OP_TEST_DELAY", "duration": 0.0}),
        summary: "TEST_DELAY(0)".into(),
        status,
        log,
        steps: BTreeMap::new(),
        result,
        start: Some(at(0)),
        exec: Some(at(0)),
        end: status.is_final().then(|| at(9)),
    };
    let job = Job {
        id: JobId(id),
        ops: vec![op],
        status,
        priority: 0,
        depends: vec![],
        user: "root".into(),
        received: at(0),
        start: Some(at(0)),
        end: status.is_final().then(|| at(9)),
        cancel: false,
        log_serial,
    };
    Reply::Ok(serde_json::to_value(job).unwrap())
}

/// A job that succeeded without a word.
pub fn success(id: u64) -> Reply {
    job(id, JobStatus::Success, &[], Value::Null)
}

/// A job that failed.
pub fn failed(id: u64, failure: &Failure) -> Reply {
    job(id, JobStatus::Error, &[], failure.to_result())
}
