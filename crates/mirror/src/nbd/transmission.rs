//! Requests of one client: taken in their order, run at the same time, answered as they end.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, Interest, Ready};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};

use super::export::{Admission, Ending, Export};
use super::handshake::{ConnectionError, Negotiated};
use super::wire::{Command, EINVAL, MAX_PAYLOAD, ReplyForm, Request, error_number};
use crate::device::IoRefusal;

/// Bytes that one client may have in flight, replies that it has not read included.
const IN_FLIGHT: usize = 2 * MAX_PAYLOAD as usize;
/// What a request without data counts as: it bounds the number of requests too.
const LEAST_COST: u32 = 16 << 10;
/// Replies up to this many bytes are written together with those before and after them.
const GATHERED: usize = 64 << 10;
/// A client that is gone by its own account may still want to read its last replies.
const LAST_REPLIES: Duration = Duration::from_secs(10);

/// Serves the requests of one client until it leaves, breaks the protocol, or its export ends.
pub(super) async fn serve(stream: UnixStream, client: Negotiated) -> Result<(), ConnectionError> {
    let Negotiated { admission, form } = client;
    let export = admission.export().clone();
    let (read, write) = stream.into_split();
    let (replies, outbox) = mpsc::unbounded_channel();
    let mut writer = JoinSet::new();
    writer.spawn(write_replies(write, outbox, form));
    let mut session = Session {
        admission: Arc::new(admission),
        replies,
        budget: Arc::new(Semaphore::new(IN_FLIGHT)),
        running: JoinSet::new(),
    };

    let left = tokio::select! {
        biased;
        () = export.ending(Ending::Drain) => Ok(Left::ExportEnds),
        left = session.take_requests(BufReader::with_capacity(GATHERED, read)) => left,
    };
    let drains = matches!(left, Ok(Left::ExportEnds));
    if !drains {
        session.admission.settle();
    }
    let Session { admission, replies, mut running, .. } = session;
    // The writer ends when it has written what is in its box and nobody is left to put more in.
    drop(replies);
    let place = drains.then_some(admission);
    let answer = async {
        while running.join_next().await.is_some() {}
        match &left {
            Ok(Left::ExportEnds) => drop(writer.join_next().await),
            Ok(Left::Client) => drop(tokio::time::timeout(LAST_REPLIES, writer.join_next()).await),
            Err(_) => {}
        }
    };
    tokio::select! {
        biased;
        () = export.ending(Ending::AtOnce) => {}
        () = answer => {}
    }
    // What is left of tasks ends here. Each request holds the client's place for itself, until its future is dropped.
    drop((running, writer, place));
    left.map(drop)
}

/// Why no more requests are taken, if it is no error.
enum Left {
    /// The client said so, or closed between two requests.
    Client,
    ExportEnds,
}

struct Session {
    admission: Arc<Admission>,
    replies: mpsc::UnboundedSender<Reply>,
    budget: Arc<Semaphore>,
    running: JoinSet<()>,
}

impl Session {
    async fn take_requests(&mut self, reader: BufReader<OwnedReadHalf>) -> Result<Left, ConnectionError> {
        let mut next = pin!(receive(reader, self.budget.clone()));
        loop {
            tokio::select! {
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => no_panic(ended)?,
                received = &mut next => {
                    let (reader, received) = received;
                    match received? {
                        None => return Ok(Left::Client),
                        Some(Received { request: Request { command: Some(Command::Disconnect), .. }, .. }) => {
                            return Ok(Left::Client);
                        }
                        Some(received) => self.start(received),
                    }
                    next.set(receive(reader, self.budget.clone()));
                }
            }
        }
    }

    fn start(&mut self, received: Received) {
        let Received { request, payload, permit } = received;
        let export = self.admission.export();
        let device = &export.device;
        let checked = request.command.ok_or(EINVAL).and_then(|command| {
            request.check(command, device.size(), device.block_size(), export.options.read_only)?;
            Ok(command)
        });
        let (cookie, offset) = (request.cookie, request.offset);
        match checked {
            Err(number) => {
                let content = Content::Error(number, "the export does not do this, or not there");
                // Nobody is there to read it when the writer is gone; the reader learns that by itself.
                let _ = self.replies.send(Reply { cookie, content, permit });
            }
            Ok(command) => {
                let (admission, replies) = (self.admission.clone(), self.replies.clone());
                self.running.spawn(async move {
                    let content = match run(admission.export(), command, request, payload).await {
                        Ok(None) => Content::Done,
                        Ok(Some(data)) => Content::Data { offset, data },
                        Err(refusal) => Content::Error(error_number(refusal), sentence(refusal)),
                    };
                    let _ = replies.send(Reply { cookie, content, permit });
                });
            }
        }
    }
}

async fn run(export: &Export, command: Command, request: Request, payload: Bytes) -> Result<Option<Bytes>, IoRefusal> {
    let (device, offset, len) = (&export.device, request.offset, u64::from(request.len));
    match command {
        Command::Read => {
            let data = device.read(offset, request.len).await?;
            if data.len() as u64 != len {
                tracing::error!(export = export.name, offset, len, got = data.len(), "a read has the wrong length");
                return Err(IoRefusal::Medium);
            }
            return Ok(Some(data));
        }
        Command::Write { fua } => device.write(offset, payload, fua).await?,
        Command::Flush => device.flush().await?,
        Command::Trim { fua } => device.trim(offset, len, fua).await?,
        Command::WriteZeroes { fua, may_unmap } => device.write_zeroes(offset, len, fua, may_unmap).await?,
        Command::Disconnect => {}
    }
    Ok(None)
}

/// A device that panicked has answered nothing and never will: the client had better repeat its request.
fn no_panic(ended: Result<(), JoinError>) -> Result<(), ConnectionError> {
    ended.map_err(|error| io::Error::other(error).into())
}

fn sentence(refusal: IoRefusal) -> &'static str {
    match refusal {
        IoRefusal::ReadOnly => "the disk can only be read",
        IoRefusal::Range => "the range is not one of this disk",
        IoRefusal::NoSpace => "there is no space left for the disk's data",
        IoRefusal::Medium => "the medium failed and there is no other copy",
        IoRefusal::Closing => "the disk is being closed",
    }
}

struct Received {
    request: Request,
    payload: Bytes,
    permit: OwnedSemaphorePermit,
}

/// Receives one request when there is room for it; `None` at the end. The reader is handed back, so that the future of
/// the next request can be made while nothing of this one is left.
async fn receive(
    mut reader: BufReader<OwnedReadHalf>,
    budget: Arc<Semaphore>,
) -> (BufReader<OwnedReadHalf>, Result<Option<Received>, ConnectionError>) {
    let result = receive_from(&mut reader, budget).await;
    (reader, result)
}

async fn receive_from(
    reader: &mut BufReader<OwnedReadHalf>,
    budget: Arc<Semaphore>,
) -> Result<Option<Received>, ConnectionError> {
    let mut head = [0; Request::LEN];
    let first = reader.read(&mut head).await?;
    if first == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut head[first..]).await?;
    let request = Request::parse(&head)?;

    let answer = if request.command == Some(Command::Read) { request.len.min(MAX_PAYLOAD) } else { 0 };
    let cost = request.payload.max(answer).max(LEAST_COST);
    let permit = tokio::select! {
        permit = budget.acquire_many_owned(cost) => permit.map_err(io::Error::other)?,
        // What a client that is gone left behind may be what we wait for here.
        () = read_closed(|interest| reader.get_ref().ready(interest)) => {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    };

    let len = request.payload as usize;
    let mut payload = BytesMut::with_capacity(len);
    while payload.len() < len {
        let missing = len - payload.len();
        if reader.read_buf(&mut (&mut payload).limit(missing)).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    Ok(Some(Received { request, payload: payload.freeze(), permit }))
}

/// Waits until the other side of a socket closed it, whatever it sent before.
pub(super) async fn read_closed<F>(ready: impl Fn(Interest) -> F)
where
    F: Future<Output = io::Result<Ready>>,
{
    // An interest in urgent data, which a unix socket never has, is told of the end of the stream but not of data.
    loop {
        match ready(Interest::PRIORITY).await {
            Ok(ready) if !ready.is_read_closed() => {}
            _ => return,
        }
    }
}

/// A reply to be written. Its part of the budget is free when it has been.
struct Reply {
    cookie: u64,
    content: Content,
    permit: OwnedSemaphorePermit,
}

enum Content {
    Done,
    Data { offset: u64, data: Bytes },
    Error(u32, &'static str),
}

async fn write_replies(
    mut stream: OwnedWriteHalf,
    mut outbox: mpsc::UnboundedReceiver<Reply>,
    form: ReplyForm,
) -> io::Result<()> {
    let mut gathered = Vec::with_capacity(GATHERED + 64);
    let mut permits = Vec::new();
    while let Some(first) = outbox.recv().await {
        let mut next = Some(first);
        while let Some(Reply { cookie, content, permit }) = next {
            permits.push(permit);
            match content {
                Content::Done => form.done(&mut gathered, cookie),
                Content::Error(number, sentence) => form.error(&mut gathered, cookie, number, sentence),
                Content::Data { offset, data } => {
                    form.data(&mut gathered, cookie, offset, data.len() as u32);
                    if gathered.len() + data.len() <= GATHERED {
                        gathered.extend_from_slice(&data);
                    } else {
                        stream.write_all(&gathered).await?;
                        gathered.clear();
                        stream.write_all(&data).await?;
                    }
                }
            }
            next = if gathered.len() < GATHERED { outbox.try_recv().ok() } else { None };
        }
        stream.write_all(&gathered).await?;
        gathered.clear();
        permits.clear();
    }
    Ok(())
}
