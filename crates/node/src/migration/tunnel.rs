//! Carrying bytes between a hypervisor's socket and another node.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// The most bytes that are carried at once.
const CHUNK: usize = 256 << 10;
/// Bytes after which memory flows: more than a beginning that a hypervisor sends in any case.
const FIRST: u64 = 256 << 10;

/// A connection: the hypervisor's end, and ours.
pub fn ends() -> io::Result<(OwnedFd, UnixStream)> {
    let (its, ours) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((its.into(), UnixStream::from_std(ours)?))
}

/// A tunnel at work. Dropping it closes both its ends.
pub struct Carrying(JoinHandle<()>);

impl Drop for Carrying {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Carrying {
    /// Carries bytes in both directions, each until its end, which is passed on; after an error of either nothing more.
    /// What flows from here waits for `begun` once it flows.
    pub fn start<S>(local: UnixStream, peer: S, begun: impl Future<Output = ()> + Send + 'static) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        Self(tokio::spawn(async move {
            if let Err(error) = carry(local, peer, begun).await {
                // Either hypervisor says more about it.
                tracing::debug!(%error, "the stream of a migration broke");
            }
        }))
    }

    /// Waits for the end of both directions; for that long at most.
    pub async fn ended(&mut self, within: Duration) {
        if tokio::time::timeout(within, &mut self.0).await.is_err() {
            tracing::debug!(?within, "the stream of a migration does not end by itself");
        }
    }
}

async fn carry<S>(local: UnixStream, peer: S, begun: impl Future<Output = ()>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (from_local, to_local) = local.into_split();
    let (from_peer, mut to_peer) = tokio::io::split(peer);
    let there = async {
        let mut from_local = from_local;
        pour(&mut (&mut from_local).take(FIRST), &mut to_peer).await?;
        begun.await;
        pour(&mut from_local, &mut to_peer).await?;
        to_peer.shutdown().await
    };
    let back = async {
        let (mut from_peer, mut to_local) = (from_peer, to_local);
        pour(&mut from_peer, &mut to_local).await?;
        to_local.shutdown().await
    };
    tokio::try_join!(there, back).map(drop)
}

/// Until the end. What was read is sent before more is waited for: the last words of a migration are few.
async fn pour(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
    }
}
