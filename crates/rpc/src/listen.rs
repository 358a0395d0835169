//! Listening, and accepting connections for as long as the process lives, whatever comes in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a caller may take for TCP and TLS together.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Handshakes at once. More come only from someone who means harm; without a bound they would use up the process' file
/// descriptors, and with them its ability to write its own log.
const HANDSHAKES: usize = 256;
/// Pause after accepting failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no listening on an address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}: {}", self.hint())]
pub struct ListenError {
    /// The address and port.
    pub addr: SocketAddr,
    /// Cause.
    #[source]
    pub source: io::Error,
}

impl ListenError {
    fn hint(&self) -> String {
        let (ip, port) = (self.addr.ip(), self.addr.port());
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                format!("port {port} is taken by another process (\"ss -ltnp sport = :{port}\" shows which)")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("this machine does not have the address {ip}")
            }
            io::ErrorKind::PermissionDenied => format!("no permission for port {port}"),
            _ => self.source.to_string(),
        }
    }
}

/// Opens a listening socket.
pub(crate) async fn listen(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(addr).await.map_err(|source| ListenError { addr, source })
}

/// How long sent data may stay unacknowledged before the connection counts as lost. Without it a call to a node that has
/// just died waits for its whole deadline, because a machine without power refuses nothing.
const UNACKNOWLEDGED: Duration = Duration::from_secs(3);

/// Sets what every connection of ours needs: small messages go out at once, and a peer that lost power is noticed soon
/// while something waits for it, and in half a minute on a connection on which nobody waits for anything.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    let probes =
        TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5)).with_retries(3);
    socket.set_tcp_keepalive(&probes)
}

/// Where connections come from: a seam for the test that makes accepting fail.
pub(crate) trait Accept: Send + 'static {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>>;
}

impl Accept for TcpListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        TcpListener::poll_accept(self, cx)
    }
}

/// Accepts connections for ever, at most `most` at a time, each in a task of its own that ends with this future; calls
/// `serve` with those that got through the TLS handshake.
pub(crate) async fn accept_loop<S, F>(mut listener: impl Accept, tls: Arc<ServerConfig>, most: usize, serve: S)
where
    S: Fn(TlsStream<TcpStream>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let acceptor = TlsAcceptor::from(tls);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            // Those that ended first, so that they are not counted.
            biased;
            Some(_) = connections.join_next() => continue,
            accepted = std::future::poll_fn(|cx| listener.poll_accept(cx)) => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Errors of one connection are over with it; errors of the process last until something is freed.
                if !matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    tracing::warn!(error = %e, "cannot accept connections for now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        if connections.len() >= most {
            tracing::warn!(%from, "connection dropped: there are {most} already");
            continue;
        }
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            tracing::warn!(%from, "connection dropped: {HANDSHAKES} others have not finished their TLS handshake");
            continue;
        };
        let (acceptor, serve) = (acceptor.clone(), serve.clone());
        connections.spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE_TIME, handshake(acceptor, stream)).await;
            drop(permit);
            match shaken {
                Ok(Ok(stream)) => serve(stream, from).await,
                Ok(Err(error)) => tracing::debug!(%from, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%from, "TLS handshake took too long"),
            }
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    tune(&stream)?;
    match acceptor.accept(stream).into_fallible().await {
        Ok(stream) => Ok(stream),
        Err((error, mut stream)) => {
            // The caller may be sending already. Closing with its bytes unread would reset the connection and destroy
            // the alert that tells it why; so read until it hangs up (or the time for the handshake is over).
            stream.shutdown().await?;
            let mut unread = [0; 4096];
            while stream.read(&mut unread).await? > 0 {}
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    /// Fails as a listener does when the process has no file descriptor left, and then gives connections again.
    struct Starved {
        failures: u32,
        then: TcpListener,
    }

    impl Accept for Starved {
        fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
            const EMFILE: i32 = 24;
            match self.failures.checked_sub(1) {
                Some(left) => {
                    self.failures = left;
                    Poll::Ready(Err(io::Error::from_raw_os_error(EMFILE)))
                }
                None => Accept::poll_accept(&mut self.then, cx),
            }
        }
    }

    #[tokio::test]
    async fn running_out_of_file_descriptors_does_not_end_accepting() {
        let identity = crate::identity::tests::cluster().node(1);
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (served, seen) = oneshot::channel();
        let served = Arc::new(std::sync::Mutex::new(Some(served)));
        let starved = Starved { failures: 3, then: listener };
        let server =
            tokio::spawn(accept_loop(starved, crate::tls::server_config(&identity).unwrap(), 1, move |_, _| {
                let served = served.lock().unwrap().take();
                async move { served.map(|s| s.send(())).unwrap().unwrap() }
            }));

        let config = crate::tls::client_config(&identity, 1).unwrap();
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = rustls_pki_types::ServerName::IpAddress(addr.ip().into());
        let _client = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
        seen.await.unwrap();
        server.abort();
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = first.local_addr().unwrap();
        let error = listen(addr).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on {addr}: port {} is taken", addr.port())), "{error}");
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_hung_up_on() {
        let identity = crate::identity::tests::cluster().node(1);
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tls = crate::tls::server_config(&identity).unwrap();
        let server = tokio::spawn(accept_loop(listener, tls, 1, |_, _| async { panic!("served without a handshake") }));
        let mut silent = TcpStream::connect(addr).await.unwrap();
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
        server.abort();
    }

    #[tokio::test]
    async fn one_connection_too_many_is_dropped_and_there_is_room_again_when_one_ends() {
        let identity = crate::identity::tests::cluster().node(1);
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tls = crate::tls::server_config(&identity).unwrap();
        let server = tokio::spawn(accept_loop(listener, tls, 1, |mut stream, _| async move {
            while stream.read(&mut [0; 1]).await.is_ok_and(|n| n > 0) {}
        }));
        let connect = async || {
            let connector = tokio_rustls::TlsConnector::from(crate::tls::client_config(&identity, 1).unwrap());
            let name = rustls_pki_types::ServerName::IpAddress(addr.ip().into());
            connector.connect(name, TcpStream::connect(addr).await.unwrap()).await
        };
        let first = connect().await.unwrap();
        connect().await.unwrap_err();
        drop(first);
        while connect().await.is_err() {}
        server.abort();
    }
}
