//! Serial consoles: one line to the guest, any number of people on it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::{broadcast, mpsc};
use tokio::task::AbortHandle;

/// Output that a newcomer sees of what was before, in bytes: a few screens.
pub(crate) const BACKLOG: usize = 16 * 1024;
/// Chunks of output that a slow reader may fall behind before it misses some. The guest never waits for readers.
const LAG: usize = 1024;
/// Bytes under way to or from one reader.
const PIPE: usize = 64 * 1024;

/// An attachment to a serial console. Reading gives the guest's output, with the last of what was before first, and
/// ends when the run ends. Writing types. Dropping it detaches.
#[derive(Debug)]
pub struct ConsoleStream {
    io: DuplexStream,
    pump: AbortHandle,
}

impl Drop for ConsoleStream {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl AsyncRead for ConsoleStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for ConsoleStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The place where a run's console and its readers meet.
#[derive(Debug)]
pub(crate) struct Hub {
    output: Mutex<Output>,
    input: mpsc::Sender<Vec<u8>>,
}

#[derive(Debug)]
struct Output {
    backlog: VecDeque<u8>,
    /// `None` after the end of the console.
    readers: Option<broadcast::Sender<Arc<[u8]>>>,
}

impl Hub {
    /// A hub, and what people type into it.
    pub fn new(backlog: &[u8]) -> (Arc<Hub>, mpsc::Receiver<Vec<u8>>) {
        let (input, typed) = mpsc::channel(16);
        let output =
            Mutex::new(Output { backlog: backlog.iter().copied().collect(), readers: Some(broadcast::channel(LAG).0) });
        (Arc::new(Hub { output, input }), typed)
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows output to everybody.
    pub fn publish(&self, bytes: &[u8]) {
        let mut output = self.output();
        output.backlog.extend(bytes);
        let excess = output.backlog.len().saturating_sub(BACKLOG);
        output.backlog.drain(..excess);
        if let Some(readers) = &output.readers {
            // Nobody reading is no error.
            let _ = readers.send(bytes.into());
        }
    }

    /// The console is over: readers see the end after what is still under way.
    pub fn close(&self) {
        self.output().readers = None;
    }

    /// Attaches a reader.
    pub fn attach(&self) -> ConsoleStream {
        let (near, far) = tokio::io::duplex(PIPE);
        // One lock for both: no byte is shown twice or missed between backlog and live output.
        let (backlog, live) = {
            let output = self.output();
            let backlog = output.backlog.iter().copied().collect();
            (backlog, output.readers.as_ref().map(broadcast::Sender::subscribe))
        };
        let pump = tokio::spawn(pump(far, backlog, live, self.input.clone()));
        ConsoleStream { io: near, pump: pump.abort_handle() }
    }
}

/// Carries bytes between the hub and one reader.
async fn pump(
    far: DuplexStream,
    backlog: Vec<u8>,
    live: Option<broadcast::Receiver<Arc<[u8]>>>,
    input: mpsc::Sender<Vec<u8>>,
) {
    let (mut from_user, mut to_user) = tokio::io::split(far);
    let show = async {
        to_user.write_all(&backlog).await?;
        let Some(mut live) = live else { return Ok(()) };
        loop {
            match live.recv().await {
                Ok(bytes) => to_user.write_all(&bytes).await?,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return io::Result::Ok(()),
            }
        }
    };
    let type_in = async {
        let mut buffer = vec![0; 4096];
        while let Ok(n @ 1..) = from_user.read(&mut buffer).await {
            if input.send(buffer[..n].to_vec()).await.is_err() {
                break;
            }
        }
        // The end of typing (a pipe as input, say) is not the end of reading.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // A reader that went away is no error to anybody.
        _ = show => {}
        () = type_in => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(stream: &mut ConsoleStream, n: usize) -> Vec<u8> {
        let mut buffer = vec![0; n];
        stream.read_exact(&mut buffer).await.unwrap();
        buffer
    }

    #[tokio::test]
    async fn all_readers_see_the_output_and_a_late_one_what_was_before() {
        let (hub, _typed) = Hub::new(b"");
        let mut early = hub.attach();
        hub.publish(b"one ");
        let mut late = hub.attach();
        hub.publish(b"two");
        assert_eq!(read(&mut early, 7).await, b"one two");
        assert_eq!(read(&mut late, 7).await, b"one two");
    }

    #[tokio::test]
    async fn everybody_can_type() {
        let (hub, mut typed) = Hub::new(b"");
        let (mut one, mut two) = (hub.attach(), hub.attach());
        one.write_all(b"a").await.unwrap();
        assert_eq!(typed.recv().await.unwrap(), b"a");
        two.write_all(b"b").await.unwrap();
        assert_eq!(typed.recv().await.unwrap(), b"b");
    }

    #[tokio::test]
    async fn the_end_comes_after_the_last_output_also_for_who_no_longer_types() {
        let (hub, _typed) = Hub::new(b"old ");
        let mut reader = hub.attach();
        reader.shutdown().await.unwrap();
        hub.publish(b"last");
        hub.close();
        let mut all = String::new();
        reader.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "old last");
        let mut after = String::new();
        hub.attach().read_to_string(&mut after).await.unwrap();
        assert_eq!(after, "old last");
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_holds_nobody_up_and_the_backlog_is_bounded() {
        let (hub, _typed) = Hub::new(b"");
        let _asleep = hub.attach();
        let chunk = [b'x'; 1024];
        for _ in 0..4 * LAG {
            hub.publish(&chunk);
        }
        assert_eq!(read(&mut hub.attach(), BACKLOG).await, vec![b'x'; BACKLOG]);
    }
}
