//! The side that is called: port 5081.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_rustls::server::TlsStream;

use crate::MAX_BODY;
use crate::fault::{Fault, FaultKind};
use crate::identity::{Identity, PeerIdentity};
use crate::listen::{ListenError, accept_loop, listen};
use crate::stream::{ByteStream, PROTOCOL};
use crate::tls::{TlsError, server_config};

/// How long a caller may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Connections at once. All are of members, a few from each.
const MOST_CONNECTIONS: usize = 16_384;

/// Whether a peer is still a member of the cluster: asked for every request, because a certificate can't be taken back.
pub type Admit = Arc<dyn Fn(&PeerIdentity) -> bool + Send + Sync>;

/// What a node does for its peers.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Carries out one call and returns the answer's body. Runs to its end even when the caller goes away: to the caller
    /// the outcome is unknown either way, and half of a step is worse than all of it.
    async fn call(&self, peer: PeerIdentity, path: &str, body: Bytes) -> Result<Bytes, Fault>;

    /// Serves a byte stream: [accepts](Upgrade::accept) it, and returns when it is over. A fault before that is the answer
    /// to the caller. The stream must not outlive this future, which is dropped when the peer is removed.
    async fn stream(&self, peer: PeerIdentity, path: &str, body: Bytes, upgrade: Upgrade) -> Result<(), Fault> {
        let _ = (peer, body, upgrade);
        Err(Fault::new(FaultKind::NotFound, format!("there is no stream {path}")))
    }
}

/// Reads a call's body as JSON.
pub fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body)
        .map_err(|e| Fault::new(FaultKind::BadRequest, format!("the request can't be understood: {e}")))
}

/// Writes an answer as JSON.
pub fn to_json<T: Serialize>(answer: &T) -> Result<Bytes, Fault> {
    serde_json::to_vec(answer)
        .map(Bytes::from)
        .map_err(|e| Fault::new(FaultKind::Internal, format!("the answer can't be written as JSON: {e}")))
}

/// A caller's wish for a byte stream. Dropping it refuses.
#[derive(Debug)]
pub struct Upgrade {
    accept: oneshot::Sender<()>,
    upgraded: OnUpgrade,
}

impl Upgrade {
    /// Tells the caller that it has its stream, and returns our end of it.
    pub async fn accept(self) -> std::io::Result<ByteStream> {
        let gone = |e: &'static str| std::io::Error::new(std::io::ErrorKind::ConnectionAborted, e);
        self.accept.send(()).map_err(|()| gone("the caller went away before its stream was accepted"))?;
        self.upgraded.await.map(ByteStream::new).map_err(std::io::Error::other)
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The port can't be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The identity can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

struct Shared {
    cluster: uuid::Uuid,
    admit: Admit,
    service: Arc<dyn Service>,
    recheck: watch::Receiver<()>,
}

impl Shared {
    /// Returns once the peer is no member any more, or the server has ended.
    async fn expelled(&self, peer: &PeerIdentity) {
        let mut recheck = self.recheck.clone();
        loop {
            // Before the question, so that a change while it is being answered is not missed.
            recheck.mark_unchanged();
            if !(self.admit)(peer) || recheck.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A listening server. Ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    task: JoinHandle<()>,
    recheck: watch::Sender<()>,
}

impl Server {
    /// Listens on an address and serves the members of this node's cluster.
    pub async fn bind(
        addr: SocketAddr,
        identity: &Identity,
        admit: Admit,
        service: Arc<dyn Service>,
    ) -> Result<Self, ServerError> {
        let tls = server_config(identity)?;
        let listener = listen(addr).await?;
        let addr = listener.local_addr().map_err(|source| ListenError { addr, source })?;
        let (recheck, rechecks) = watch::channel(());
        let shared = Arc::new(Shared { cluster: identity.cluster_id(), admit, service, recheck: rechecks });
        let serve = move |stream, from| serve_connection(shared.clone(), stream, from);
        Ok(Self { addr, task: tokio::spawn(accept_loop(listener, tls, MOST_CONNECTIONS, serve)), recheck })
    }

    /// The address listened on; its port is the real one where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends the connections and streams of peers that are not admitted any more. To be called when members were removed;
    /// without it, an idle connection of theirs would stay until its next request, and a stream until its end.
    pub fn recheck(&self) {
        self.recheck.send_replace(());
    }

    /// Stops listening and closes all connections. When this returns the port is free.
    pub async fn shutdown(mut self) {
        self.task.abort();
        // An error says that it was aborted, which is what was asked for.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve_connection(shared: Arc<Shared>, stream: TlsStream<TcpStream>, from: SocketAddr) {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = match certificate.map(PeerIdentity::of) {
        Some(Ok(peer)) if peer.cluster == shared.cluster => peer,
        other => {
            tracing::warn!(%from, identity = ?other, "connection dropped: its certificate names no node of this cluster");
            return;
        }
    };

    let watching = shared.clone();
    let handler = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(shared, peer, request).await) }
    });
    // No limit on the wait for the next request: callers keep idle connections warm, and TCP's keep-alive tells when a
    // peer is gone.
    let connection =
        http1::Builder::new().header_read_timeout(None).serve_connection(TokioIo::new(stream), handler).with_upgrades();
    let expelled = async {
        // A peer that is no member already when it comes is told so by the answer to its request, so wait for a change.
        let mut recheck = watching.recheck.clone();
        recheck.mark_unchanged();
        if recheck.changed().await.is_ok() {
            watching.expelled(&peer).await;
        }
    };
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(node = peer.node, %from, %error, "connection ended");
            }
        }
        () = expelled => {
            tracing::info!(node = peer.node, %from, "connection ended by us: no member any more, or shutting down");
        }
    }
}

async fn answer(shared: Arc<Shared>, peer: PeerIdentity, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if !(shared.admit)(&peer) {
        let fault = Fault::new(FaultKind::Forbidden, format!("node {} is no member of this cluster", peer.node));
        return closing(refusal(&fault));
    }
    if request.method() != Method::POST {
        return refusal(&Fault::new(FaultKind::BadRequest, "calls are made with POST"));
    }
    let too_large = || {
        let message = format!("the body is longer than {} MiB", MAX_BODY >> 20);
        closing(refusal(&Fault::new(FaultKind::TooLarge, message)))
    };
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return too_large();
    }
    let path = request.uri().path().to_owned();
    let wants_stream = request.headers().get(UPGRADE).is_some_and(|wanted| wanted == PROTOCOL);
    let mut request = request;
    let upgraded = wants_stream.then(|| hyper::upgrade::on(&mut request));
    let body = match tokio::time::timeout(BODY_TIME, Limited::new(request.into_body(), MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<LengthLimitError>() => return too_large(),
        Ok(Err(e)) => return closing(refusal(&Fault::new(FaultKind::BadRequest, e.to_string()))),
        Err(_) => {
            return closing(refusal(&Fault::new(FaultKind::BadRequest, "the body did not come in time")));
        }
    };
    match upgraded {
        None => call(shared, peer, path, body).await,
        Some(upgraded) => stream(shared, peer, path, body, upgraded).await,
    }
}

async fn call(shared: Arc<Shared>, peer: PeerIdentity, path: String, body: Bytes) -> Response<Full<Bytes>> {
    // A task of its own, so that it goes on when the connection, and with it this future, is gone.
    let task = tokio::spawn(async move { shared.service.call(peer, &path, body).await });
    match task.await {
        Ok(Ok(answer)) => response(StatusCode::OK, answer),
        Ok(Err(fault)) => refusal(&fault),
        Err(e) => refusal(&failed(&e)),
    }
}

async fn stream(
    shared: Arc<Shared>,
    peer: PeerIdentity,
    path: String,
    body: Bytes,
    upgraded: OnUpgrade,
) -> Response<Full<Bytes>> {
    let (accept, accepted) = oneshot::channel();
    let task = tokio::spawn(async move {
        let ended = tokio::select! {
            ended = shared.service.stream(peer, &path, body, Upgrade { accept, upgraded }) => ended,
            () = shared.expelled(&peer) => Err(Fault::new(FaultKind::Forbidden, "no member any more, or shutting down")),
        };
        if let Err(fault) = &ended {
            tracing::debug!(node = peer.node, path, %fault, "stream ended");
        }
        ended
    });
    if accepted.await.is_ok() {
        let mut response = response(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
        return response;
    }
    match task.await {
        Ok(Err(fault)) => refusal(&fault),
        Ok(Ok(())) => refusal(&Fault::new(FaultKind::Unavailable, "the stream was not accepted")),
        Err(e) => refusal(&failed(&e)),
    }
}

fn failed(error: &tokio::task::JoinError) -> Fault {
    tracing::error!(%error, "a call from a peer ended in a bug");
    Fault::new(FaultKind::Internal, "the node failed while carrying out the call; its log says more")
}

fn response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}

fn refusal(fault: &Fault) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(fault).unwrap_or_default();
    let mut response = response(fault.kind.status(), body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn closing(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
