//! An HTTP service behind TLS for clients of any kind: what port 5080 is.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::listen::{ListenError, accept_loop};

/// How long a client may be idle between requests, or take to send the head of one.
const HEAD_TIME: Duration = Duration::from_secs(60);

/// Connections at once. Anybody may connect here, and must not be able to use up what the rest of the daemon needs.
const MOST_CONNECTIONS: usize = 512;

/// Where a request came from; found among the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// A service that is listening. Ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct TlsServer {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl TlsServer {
    /// The address listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops listening and closes all connections. When this returns the port is free.
    pub async fn shutdown(mut self) {
        self.task.abort();
        // An error says that it was aborted, which is what was asked for.
        let _ = (&mut self.task).await;
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens the socket for [`serve_tls`]; the error says which address and port, and why not.
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    crate::listen::listen(addr).await
}

/// Serves a tower service, such as an `axum::Router`, over TLS. Connections can be upgraded (WebSockets), and each request
/// carries its [`PeerAddr`].
pub fn serve_tls<S, B>(listener: TcpListener, tls: Arc<ServerConfig>, service: S) -> std::io::Result<TlsServer>
where
    S: tower_service::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: std::error::Error + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let addr = listener.local_addr()?;
    let serve = move |stream, from| {
        let service = service.clone();
        async move {
            let handler = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(PeerAddr(from));
                let mut service = service.clone();
                async move {
                    poll_fn(|cx| service.poll_ready(cx)).await?;
                    service.call(request).await
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .serve_connection(TokioIo::new(stream), handler)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%from, %error, "connection ended");
            }
        }
    };
    Ok(TlsServer { addr, task: tokio::spawn(accept_loop(listener, tls, MOST_CONNECTIONS, serve)) })
}
