//! One connection of a link: frames in and out of a byte stream.
//!
//! Neither side ever waits for the replica, and the replica never waits for it: what is to be sent is put into an outbox
//! whose size counts, and what comes is handed over against a budget that the replica gives back as it has looked at the
//! frame. So two replicas that send to each other as fast as they can don't lock each other up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::wire::{self, DecodeError, Encoded, Frame, HEADER_LEN, MAX_BODY, MAX_DATA};

/// Bytes of frames that were received and that the replica has not looked at.
const UNREAD: usize = 64 << 20;
/// Bytes that wait to be sent. An engine keeps far fewer under way; a connection with more is as good as lost.
const UNSENT: usize = 512 << 20;
/// Data up to this many bytes is written together with what is before and behind it.
const GATHERED: usize = 64 << 10;
/// How long what was sent before a connection was closed may take to go out.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);

/// Which connection, among all that one replica ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Token(pub u64);

/// What a connection reports.
pub(super) enum News {
    /// It is open.
    Open,
    /// A frame came. Dropping the permit makes room for others.
    Frame(Frame, OwnedSemaphorePermit),
    /// It is over, or could not be made.
    Lost(LinkError),
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the peer closed it")]
    Closed,
    #[error("the peer sent what makes no sense")]
    Decode(#[from] DecodeError),
    #[error("it broke")]
    Io(#[from] io::Error),
    #[error("it could not be made")]
    Connect(#[source] io::Error),
    #[error("there is no address for that node")]
    NoAddress,
    #[error("too much waits to be sent")]
    Stuffed,
}

/// The replica's end of a connection. Dropping it closes the connection, after what was sent, if that goes out soon.
pub(super) struct Link {
    pub token: Token,
    outbox: mpsc::UnboundedSender<Encoded>,
    unsent: Arc<AtomicUsize>,
    /// Says by its end that the connection is not wanted any more.
    _open: oneshot::Sender<()>,
}

/// The connection's own end: what it takes to serve a stream.
pub(super) struct Port {
    token: Token,
    outbox: mpsc::UnboundedReceiver<Encoded>,
    unsent: Arc<AtomicUsize>,
    news: mpsc::UnboundedSender<(Token, News)>,
    closed: oneshot::Receiver<()>,
}

impl Link {
    /// The two ends of a connection that reports to `news`.
    pub fn new(token: Token, news: mpsc::UnboundedSender<(Token, News)>) -> (Self, Port) {
        let (sender, outbox) = mpsc::unbounded_channel();
        let (open, closed) = oneshot::channel();
        let unsent = Arc::new(AtomicUsize::new(0));
        let port = Port { token, outbox, unsent: unsent.clone(), news, closed };
        (Self { token, outbox: sender, unsent, _open: open }, port)
    }

    /// Sends a frame, behind those before it; its bytes.
    pub fn send(&self, frame: &Frame) -> Result<usize, LinkError> {
        let encoded = wire::encode(frame);
        let len = encoded.head.len() + encoded.data.len();
        if self.unsent.fetch_add(len, Ordering::Relaxed) + len > UNSENT {
            return Err(LinkError::Stuffed);
        }
        // A connection that is over has said so by itself.
        let _ = self.outbox.send(encoded);
        Ok(len)
    }
}

impl Port {
    /// Makes the connection, as long as it is wanted, and carries its frames.
    pub async fn connect_and_serve<S: AsyncRead + AsyncWrite>(
        mut self,
        connect: impl Future<Output = Result<S, LinkError>>,
    ) {
        let stream = tokio::select! {
            biased;
            _ = &mut self.closed => return,
            stream = connect => stream,
        };
        match stream {
            Ok(stream) => {
                let _ = self.news.send((self.token, News::Open));
                self.serve(stream, BytesMut::new()).await;
            }
            Err(error) => drop(self.news.send((self.token, News::Lost(error)))),
        }
    }

    /// Carries frames until the stream ends, or the replica closes its end. `received`: what was read already.
    pub async fn serve<S: AsyncRead + AsyncWrite>(self, stream: S, received: BytesMut) {
        let Port { token, outbox, unsent, news, closed } = self;
        let (read, write) = tokio::io::split(stream);
        let hand_on = |frame, room| drop(news.send((token, News::Frame(frame, room))));
        let abandoned = async {
            let _ = closed.await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let why = tokio::select! {
            why = receive(read, received, hand_on) => why,
            sent = transmit(write, outbox, &unsent) => match sent {
                // Nobody is there to be told.
                Ok(()) => return,
                Err(error) => error.into(),
            },
            () = abandoned => return,
        };
        let _ = news.send((token, News::Lost(why)));
    }
}

/// Sends what is in the outbox until nobody can put more in.
async fn transmit(
    mut stream: impl AsyncWrite + Unpin,
    mut outbox: mpsc::UnboundedReceiver<Encoded>,
    unsent: &AtomicUsize,
) -> io::Result<()> {
    let mut gathered = BytesMut::with_capacity(GATHERED);
    while let Some(first) = outbox.recv().await {
        let mut sent = 0;
        let mut next = Some(first);
        while let Some(Encoded { head, data }) = next {
            sent += head.len() + data.len();
            gathered.extend_from_slice(&head);
            if gathered.len() + data.len() <= GATHERED {
                gathered.extend_from_slice(&data);
            } else {
                stream.write_all(&gathered).await?;
                gathered.clear();
                stream.write_all(&data).await?;
            }
            next = if gathered.len() < GATHERED { outbox.try_recv().ok() } else { None };
        }
        stream.write_all(&gathered).await?;
        gathered.clear();
        stream.flush().await?;
        unsent.fetch_sub(sent, Ordering::Relaxed);
    }
    stream.shutdown().await
}

/// Receives frames until the stream ends, and hands them on with the room that each takes in the budget.
async fn receive(
    mut stream: impl AsyncRead + Unpin,
    mut received: BytesMut,
    hand_on: impl Fn(Frame, OwnedSemaphorePermit),
) -> LinkError {
    let budget = Arc::new(Semaphore::new(UNREAD));
    loop {
        let before = received.len();
        match wire::decode(&mut received) {
            Err(error) => return error.into(),
            Ok(Some(frame)) => {
                let len = before - received.len();
                let Ok(room) = budget.clone().acquire_many_owned(len as u32).await else { return LinkError::Closed };
                hand_on(frame, room);
            }
            Ok(None) => match read_more(&mut stream, &mut received).await {
                Ok(0) => return LinkError::Closed,
                Ok(_) => {}
                Err(error) => return error.into(),
            },
        }
    }
}

/// Reads some more; at most one frame and a bit are kept.
pub(super) async fn read_more(stream: &mut (impl AsyncRead + Unpin), received: &mut BytesMut) -> io::Result<usize> {
    debug_assert!(received.len() <= HEADER_LEN + MAX_BODY + MAX_DATA + GATHERED, "a whole frame was not taken out");
    received.reserve(GATHERED);
    stream.read_buf(received).await
}
