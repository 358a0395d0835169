//! A client of QEMU's machine protocol (QMP): commands, matched with their answers by id, and events.
//!
//! Fields that aren't known are passed over, so that one client talks to every QEMU from 7.2 on.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

/// The longest line that is accepted, in bytes. QEMU runs code of strangers: it must not be able to fill our memory.
const MAX_LINE: usize = 16 * 1024 * 1024;

/// Why a QMP command failed. Each says for which instance.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// QEMU answered with an error.
    #[error("QEMU of instance {instance} refused {command}: {desc} ({class})")]
    Refused {
        /// The instance's name.
        instance: String,
        /// The command.
        command: String,
        /// QEMU's class of error, such as `GenericError` or `CommandNotFound`.
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    /// The connection ended before the answer came. Whether the command was carried out is unknown.
    #[error("lost the connection to QEMU of instance {instance} during {command}: {reason}")]
    Lost {
        /// The instance's name.
        instance: String,
        /// The command.
        command: String,
        /// Why it ended.
        reason: String,
    },
    /// No answer in time. Whether the command was, or will be, carried out is unknown.
    #[error("QEMU of instance {instance} did not answer {command} within {after:?}")]
    TimedOut {
        /// The instance's name.
        instance: String,
        /// The command.
        command: String,
        /// How long it was waited for.
        after: Duration,
    },
}

/// Something that QEMU tells unasked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct QmpEvent {
    /// Its name, such as `SHUTDOWN`.
    #[serde(rename = "event")]
    pub name: String,
    /// What belongs to it; null if nothing does.
    #[serde(default)]
    pub data: Value,
}

/// What QEMU sends: exactly one of these is in a message, but for the id.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    r#return: Option<Value>,
    error: Option<Refusal>,
    #[serde(flatten)]
    event: Option<QmpEvent>,
    id: Option<u64>,
}

/// A field that is there, even if its value is null.
fn present<'de, D: serde::Deserializer<'de>>(de: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(de).map(Some)
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

struct Request {
    command: String,
    arguments: Value,
    /// A descriptor that goes with the command.
    descriptor: Option<OwnedFd>,
    answer: oneshot::Sender<Result<Value, QmpError>>,
}

/// A connection. Clones share it; it closes when the last one is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Qmp {
    instance: String,
    requests: mpsc::UnboundedSender<Request>,
    ended: watch::Receiver<Option<String>>,
}

impl Qmp {
    /// Speaks over a connected stream. Returns at once: commands wait for QEMU's greeting as they wait for answers.
    ///
    /// `on_event` is called in the order in which QEMU sent things: an event that came before the answer to a command
    /// was handled before the command returns.
    ///
    /// The handle ends the conversation when aborted.
    pub fn open(
        stream: UnixStream,
        instance: &str,
        on_event: impl FnMut(QmpEvent) + Send + 'static,
    ) -> (Qmp, AbortHandle) {
        let (requests, incoming) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(None);
        let (reader, writer) = stream.into_split();
        let mut conversation = Conversation {
            instance: instance.to_owned(),
            lines: Lines::new(BufReader::new(reader)),
            writer,
            incoming,
            pending: HashMap::new(),
            on_event,
        };
        let task = tokio::spawn(async move {
            let reason = match conversation.talk().await {
                Ok(()) => "it was closed".into(),
                Err(error) => error.to_string(),
            };
            end.send_replace(Some(reason));
            // Only now, when the reason is known, do those who wait for answers learn that none comes.
            drop(conversation);
        });
        let qmp = Qmp { instance: instance.to_owned(), requests, ended };
        (qmp, task.abort_handle())
    }

    /// Carries out a command and returns its result.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn execute(&self, command: &str, arguments: Value, timeout: Duration) -> Result<Value, QmpError> {
        self.request(command, arguments, None, timeout).await
    }

    /// Gives QEMU a descriptor, which later commands call by this name. One that had the name before is closed.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn give(&self, name: &str, descriptor: OwnedFd, timeout: Duration) -> Result<(), QmpError> {
        self.request("getfd", json!({"fdname": name}), Some(descriptor), timeout).await.map(drop)
    }

    async fn request(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { command: command.to_owned(), arguments, descriptor, answer };
        // A closed channel shows below, as an answer that can't come any more.
        let _ = self.requests.send(request);
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(QmpError::Lost {
                instance: self.instance.clone(),
                command: command.to_owned(),
                reason: self.ended.borrow().clone().unwrap_or_else(|| "it was closed".into()),
            }),
            Err(_) => {
                Err(QmpError::TimedOut { instance: self.instance.clone(), command: command.to_owned(), after: timeout })
            }
        }
    }

    /// Returns when the connection has ended and all events before that were handled.
    pub async fn closed(&self) {
        // An error means that the task is gone: ended too.
        let _ = self.ended.clone().wait_for(Option::is_some).await;
    }
}

/// The one task that reads and writes, and owns what was asked and not answered.
struct Conversation<F> {
    instance: String,
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    incoming: mpsc::UnboundedReceiver<Request>,
    pending: HashMap<u64, (String, oneshot::Sender<Result<Value, QmpError>>)>,
    on_event: F,
}

/// The id of `qmp_capabilities`; commands have higher ones.
const CAPABILITIES: u64 = 0;

impl<F: FnMut(QmpEvent)> Conversation<F> {
    /// Talks until one side closes.
    async fn talk(&mut self) -> io::Result<()> {
        let mut ready = false;
        let mut last_id = CAPABILITIES;
        loop {
            tokio::select! {
                line = self.lines.next() => {
                    let Some(line) = line? else { return Ok(()) };
                    let message: Message = serde_json::from_slice(&line).map_err(|error| {
                        let line = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
                        io::Error::other(format!("it sent what is not QMP ({error}): {line:?}"))
                    })?;
                    if message.greeting.is_some() {
                        let hello = json!({"execute": "qmp_capabilities", "id": CAPABILITIES});
                        self.send(&hello, None).await?;
                    } else if let Some(event) = message.event {
                        (self.on_event)(event);
                    } else if message.id == Some(CAPABILITIES) {
                        if let Some(Refusal { desc, .. }) = message.error {
                            return Err(io::Error::other(format!("it refused to begin: {desc}")));
                        }
                        ready = true;
                    } else {
                        self.answer(message);
                    }
                }
                request = self.incoming.recv(), if ready => {
                    let Some(request) = request else { return Ok(()) };
                    last_id += 1;
                    let mut command = json!({"execute": request.command, "id": last_id});
                    if !request.arguments.is_null() {
                        command["arguments"] = request.arguments;
                    }
                    self.pending.insert(last_id, (request.command, request.answer));
                    self.send(&command, request.descriptor).await?;
                }
            }
        }
    }

    async fn send(&mut self, message: &Value, descriptor: Option<OwnedFd>) -> io::Result<()> {
        let mut line = message.to_string();
        line.push('\n');
        let sent = match descriptor {
            None => 0,
            Some(descriptor) => send_with(&self.writer, line.as_bytes(), &descriptor).await?,
        };
        self.writer.write_all(&line.as_bytes()[sent..]).await
    }

    fn answer(&mut self, message: Message) {
        let Some((command, answer)) = message.id.and_then(|id| self.pending.remove(&id)) else {
            tracing::debug!(instance = self.instance, id = message.id, "an answer that nobody asked for");
            return;
        };
        let result = match (message.r#return, message.error) {
            (Some(value), None) => Ok(value),
            (_, error) => {
                let (class, desc) = error.map_or_else(
                    || ("GenericError".into(), "an answer with neither result nor error".into()),
                    |refusal| (refusal.class, refusal.desc),
                );
                Err(QmpError::Refused { instance: self.instance.clone(), command, class, desc })
            }
        };
        // Who asked may have stopped waiting.
        let _ = answer.send(result);
    }
}

/// Sends the first of these bytes together with a descriptor, and says how many.
async fn send_with(writer: &OwnedWriteHalf, bytes: &[u8], descriptor: &OwnedFd) -> io::Result<usize> {
    let socket: &UnixStream = writer.as_ref();
    let descriptors = [descriptor.as_raw_fd()];
    let send = || {
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        Ok(sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &rights, flags, None)?)
    };
    socket.async_io(Interest::WRITABLE, send).await
}

/// Lines of bounded length.
struct Lines<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    fn new(reader: R) -> Lines<R> {
        Lines { reader, line: Vec::new() }
    }

    /// The next line without its end, or `None` at the end of the stream. Nothing is lost if the future is dropped.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(bytes.len(), |end| end + 1);
            self.line.extend_from_slice(&bytes[..end.unwrap_or(taken)]);
            self.reader.consume(taken);
            if self.line.len() > MAX_LINE {
                return Err(io::Error::other("it sent a line without end"));
            }
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }
}

/// QEMU's side, for tests.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod server {
    use super::*;
    use tokio::net::UnixListener;

    /// The other end of the socket: says what the test says.
    pub struct Server {
        pub reader: tokio::io::Lines<BufReader<OwnedReadHalf>>,
        pub writer: OwnedWriteHalf,
    }

    impl Server {
        pub async fn accept(listener: &UnixListener) -> Server {
            let (reader, writer) = listener.accept().await.unwrap().0.into_split();
            Server { reader: BufReader::new(reader).lines(), writer }
        }

        pub async fn say(&mut self, message: Value) {
            self.writer.write_all(format!("{message}\r\n").as_bytes()).await.unwrap();
        }

        pub async fn hear(&mut self) -> Value {
            serde_json::from_str(&self.reader.next_line().await.unwrap().unwrap()).unwrap()
        }

        pub async fn greet(&mut self) {
            self.say(
                json!({"QMP": {"version": {"qemu": {"major": 99}, "x-new": 1}, "capabilities": ["oob", "x-more"]}}),
            )
            .await;
            let hello = self.hear().await;
            assert_eq!(hello["execute"], "qmp_capabilities");
            self.say(json!({"return": {}, "id": hello["id"]})).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::server::Server;
    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::net::UnixListener;

    const SOON: Duration = Duration::from_secs(30);

    type Seen = Arc<Mutex<Vec<QmpEvent>>>;

    async fn connected() -> (Qmp, Server, Seen) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).await.unwrap();
        let server = Server::accept(&listener).await;
        let seen = Seen::default();
        let sink = Arc::clone(&seen);
        let (qmp, _) = Qmp::open(client, "vm1", move |event| sink.lock().unwrap().push(event));
        (qmp, server, seen)
    }

    fn ask(qmp: &Qmp, command: &'static str) -> tokio::task::JoinHandle<Result<Value, QmpError>> {
        let qmp = qmp.clone();
        tokio::spawn(async move { qmp.execute(command, Value::Null, SOON).await })
    }

    #[tokio::test]
    async fn answers_find_their_questions_in_any_order() {
        let (qmp, mut server, _) = connected().await;
        let (one, two) = (ask(&qmp, "one"), ask(&qmp, "two"));
        server.greet().await;
        let (a, b) = (server.hear().await, server.hear().await);
        for question in [&b, &a] {
            server.say(json!({"return": {"was": question["execute"]}, "id": question["id"]})).await;
        }
        assert_eq!(one.await.unwrap().unwrap(), json!({"was": "one"}));
        assert_eq!(two.await.unwrap().unwrap(), json!({"was": "two"}));
    }

    #[tokio::test]
    async fn events_between_are_handled_before_the_answer() {
        let (qmp, mut server, seen) = connected().await;
        let asked = ask(&qmp, "stop");
        server.greet().await;
        let question = server.hear().await;
        server.say(json!({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}})).await;
        server.say(json!({"event": "SHUTDOWN", "data": {"guest": true, "x-new": 1}, "x": []})).await;
        server.say(json!({"return": {}, "id": question["id"]})).await;
        asked.await.unwrap().unwrap();
        let names: Vec<_> = seen.lock().unwrap().iter().map(|event| event.name.clone()).collect();
        assert_eq!(names, ["STOP", "SHUTDOWN"]);
        assert_eq!(seen.lock().unwrap()[1].data["guest"], true);
    }

    #[tokio::test]
    async fn a_refusal_carries_class_and_words_and_names_the_instance() {
        let (qmp, mut server, _) = connected().await;
        let asked = ask(&qmp, "frobnicate");
        server.greet().await;
        let question = server.hear().await;
        let error = json!({"class": "CommandNotFound", "desc": "no such command"});
        server.say(json!({"error": error, "id": question["id"]})).await;
        let error = asked.await.unwrap().unwrap_err();
        assert!(matches!(&error, QmpError::Refused { class, .. } if class == "CommandNotFound"));
        let message = error.to_string();
        assert!(message.contains("vm1") && message.contains("no such command"), "{message}");
    }

    #[tokio::test]
    async fn a_lost_connection_fails_who_waits_and_who_comes_later() {
        let (qmp, mut server, _) = connected().await;
        let asked = ask(&qmp, "cont");
        server.greet().await;
        server.hear().await;
        drop(server);
        assert!(matches!(asked.await.unwrap(), Err(QmpError::Lost { .. })));
        qmp.closed().await;
        let later = qmp.execute("stop", Value::Null, SOON).await;
        assert!(matches!(later, Err(QmpError::Lost { .. })));
    }

    #[tokio::test]
    async fn a_silent_qemu_is_waited_for_as_long_as_was_said() {
        let (qmp, mut server, _) = connected().await;
        // Not even a greeting: a stopped process.
        let result = qmp.execute("cont", Value::Null, Duration::from_millis(1)).await;
        assert!(matches!(result, Err(QmpError::TimedOut { .. })), "{result:?}");
        // It comes back: the late answer goes nowhere, the next question gets its own.
        server.greet().await;
        let late = server.hear().await;
        server.say(json!({"return": "late", "id": late["id"]})).await;
        let asked = ask(&qmp, "query-status");
        let question = server.hear().await;
        server.say(json!({"return": "own", "id": question["id"]})).await;
        assert_eq!(asked.await.unwrap().unwrap(), "own");
    }

    #[tokio::test]
    async fn what_is_not_qmp_ends_the_connection_with_the_reason() {
        let (qmp, mut server, _) = connected().await;
        let asked = ask(&qmp, "cont");
        server.greet().await;
        server.hear().await;
        server.writer.write_all(b"Segmentation fault\n").await.unwrap();
        let message = asked.await.unwrap().unwrap_err().to_string();
        assert!(message.contains("not QMP") && message.contains("Segmentation"), "{message}");
    }
}
