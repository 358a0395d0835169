//! The side that calls.
//!
//! Connections are kept and used again, one call at a time each. Those of one [`Lane`] are never used for another, so a
//! heartbeat waits behind no image that is being copied.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, CertificateError, ClientConfig, OtherError};
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::MAX_BODY;
use crate::fault::{CallError, ConnectError, Fault};
use crate::identity::Identity;
use crate::listen::tune;
use crate::stream::{ByteStream, PROTOCOL};
use crate::tls::{WrongNode, client_config};

/// How long a connection to a node may take, its handshake included. A node that is there answers in milliseconds; who
/// waits for one that is not there wants to know soon, because nothing was sent yet and another node may do.
const CONNECT_TIME: Duration = Duration::from_millis(1500);

/// Idle connections kept for one node, address and lane.
const IDLE_CONNECTIONS: usize = 4;

/// What a connection is used for. Lanes share no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Consensus and heartbeats: small, and late is as bad as lost.
    Raft,
    /// Leases: as small, and more urgent than an entry that is being replicated.
    Lease,
    /// Orders and questions.
    Control,
    /// Whatever is long.
    Bulk,
}

/// Calls other nodes. Cloning gives another handle on the same connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    identity: Arc<Identity>,
    /// One a node, because each accepts the certificate of that node alone.
    configs: Mutex<HashMap<u64, Arc<ClientConfig>>>,
    idle: Mutex<HashMap<Target, Vec<Connection>>>,
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Target {
    node: u64,
    addr: SocketAddr,
    lane: Lane,
}

/// An open connection; closed when dropped, also in the middle of a call.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.0.identity.peer()).finish()
    }
}

impl Client {
    /// A client that presents this identity.
    pub fn new(identity: Arc<Identity>) -> Self {
        Self(Arc::new(Inner { identity, configs: Mutex::default(), idle: Mutex::default() }))
    }

    /// Calls `path` of a node and returns the body of its answer. `within` bounds everything, connecting included.
    pub async fn call(
        &self,
        node: u64,
        addr: SocketAddr,
        lane: Lane,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, CallError> {
        let call = Call { client: self, target: Target { node, addr, lane }, path, body, within, stream: false };
        let deadline = Instant::now() + within;
        let (connection, response) = call.send(deadline).await?;
        let (status, body) = call.receive(response, deadline).await?;
        call.client.keep(call.target, connection);
        match status {
            StatusCode::OK => Ok(body),
            status => Err(call.refused(status, &body)),
        }
    }

    /// [`call`](Self::call) with JSON in both directions.
    pub async fn call_json<Req: Serialize + ?Sized, Resp: DeserializeOwned>(
        &self,
        node: u64,
        addr: SocketAddr,
        lane: Lane,
        path: &str,
        request: &Req,
        within: Duration,
    ) -> Result<Resp, CallError> {
        let body = serde_json::to_vec(request).map_err(|e| CallError::Request {
            node,
            path: path.to_owned(),
            source: Box::new(e),
        })?;
        let answer = self.call(node, addr, lane, path, body.into(), within).await?;
        serde_json::from_slice(&answer).map_err(|source| CallError::Answer { node, path: path.to_owned(), source })
    }

    /// Opens a byte stream to `path` of a node, on a connection of its own. `within` bounds the opening only.
    pub async fn open_stream(
        &self,
        node: u64,
        addr: SocketAddr,
        lane: Lane,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<ByteStream, CallError> {
        let call = Call { client: self, target: Target { node, addr, lane }, path, body, within, stream: true };
        let deadline = Instant::now() + within;
        let (connection, response) = call.send(deadline).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (status, body) = call.receive(response, deadline).await?;
            return Err(call.refused(status, &body));
        }
        match timeout_at(deadline, hyper::upgrade::on(response)).await {
            Err(_) => Err(call.late(true)),
            Ok(Err(e)) => Err(call.lost(Box::new(e))),
            Ok(Ok(upgraded)) => {
                // The connection's driver has ended by handing the stream over.
                drop(connection);
                Ok(ByteStream::new(upgraded))
            }
        }
    }

    /// Closes the idle connections to a node, after it was removed or has got another address.
    pub fn forget(&self, node: u64) {
        lock(&self.0.idle).retain(|target, _| target.node != node);
        lock(&self.0.configs).remove(&node);
    }

    fn config(&self, node: u64) -> Result<Arc<ClientConfig>, ConnectError> {
        if let Some(config) = lock(&self.0.configs).get(&node) {
            return Ok(config.clone());
        }
        let config = client_config(&self.0.identity, node).map_err(ConnectError::Setup)?;
        lock(&self.0.configs).insert(node, config.clone());
        Ok(config)
    }

    fn idle(&self, target: Target) -> Option<Connection> {
        lock(&self.0.idle).get_mut(&target)?.pop()
    }

    fn keep(&self, target: Target, connection: Connection) {
        let mut idle = lock(&self.0.idle);
        let kept = idle.entry(target).or_default();
        kept.retain(|c| !c.sender.is_closed());
        if kept.len() < IDLE_CONNECTIONS && !connection.sender.is_closed() {
            kept.push(connection);
        }
    }

    /// After trouble on one connection the others of its kind are as suspect: when a peer loses power, each of them would
    /// cost the next call its whole deadline.
    fn discard(&self, target: Target) {
        lock(&self.0.idle).remove(&target);
    }

    async fn connect(&self, target: Target) -> Result<Connection, ConnectError> {
        let config = self.config(target.node)?;
        let stream = TcpStream::connect(target.addr).await.map_err(ConnectError::Network)?;
        tune(&stream).map_err(ConnectError::Network)?;
        // The name is a formality: the verifier looks for the node, not for the address.
        let name = ServerName::IpAddress(target.addr.ip().into());
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(identity_or_network)?;
        let (sender, driver) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| ConnectError::Network(std::io::Error::other(e)))?;
        let driver = tokio::spawn(async move {
            // Errors come out at the call that is under way; without one there is nobody to tell.
            let _ = driver.with_upgrades().await;
        });
        Ok(Connection { sender, driver: driver.abort_handle() })
    }
}

/// One call, for its way out and its error messages.
struct Call<'a> {
    client: &'a Client,
    target: Target,
    path: &'a str,
    body: Bytes,
    within: Duration,
    stream: bool,
}

impl Call<'_> {
    /// Sends the request over an idle connection or a fresh one, and waits for the head of the answer.
    async fn send(&self, deadline: Instant) -> Result<(Connection, Response<Incoming>), CallError> {
        let mut request = self.request()?;
        loop {
            let (mut connection, fresh) = match self.client.idle(self.target) {
                Some(connection) => (connection, false),
                None => (self.connect(deadline).await?, true),
            };
            // Not ready means closed meanwhile: nothing was sent, and another connection may do.
            match timeout_at(deadline, connection.sender.ready()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) if !fresh => continue,
                Ok(Err(e)) => {
                    return Err(self.not_sent(identity_or_network(std::io::Error::other(e))));
                }
                Err(_) => return Err(self.late(false)),
            }
            match timeout_at(deadline, connection.sender.try_send_request(request)).await {
                Ok(Ok(response)) => return Ok((connection, response)),
                Ok(Err(mut error)) => {
                    self.client.discard(self.target);
                    match error.take_message() {
                        Some(unsent) if !fresh => request = unsent,
                        Some(_) => {
                            return Err(self.not_sent(identity_or_network(std::io::Error::other(error.into_error()))));
                        }
                        None => return Err(self.broken(error.into_error(), fresh)),
                    }
                }
                Err(_) => {
                    self.client.discard(self.target);
                    return Err(self.late(true));
                }
            }
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<Connection, CallError> {
        let connecting = Instant::now();
        let until = deadline.min(connecting + CONNECT_TIME);
        match timeout_at(until, self.client.connect(self.target)).await {
            Ok(connected) => connected.map_err(|e| self.not_sent(e)),
            Err(_) if until == deadline => Err(self.late(false)),
            Err(_) => Err(self.not_sent(ConnectError::Timeout(CONNECT_TIME))),
        }
    }

    /// Reads the answer to its end.
    async fn receive(&self, response: Response<Incoming>, deadline: Instant) -> Result<(StatusCode, Bytes), CallError> {
        let status = response.status();
        let error = match timeout_at(deadline, Limited::new(response.into_body(), MAX_BODY).collect()).await {
            Ok(Ok(body)) => return Ok((status, body.to_bytes())),
            Ok(Err(e)) => self.lost(e),
            Err(_) => self.late(true),
        };
        self.client.discard(self.target);
        Err(error)
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, CallError> {
        let unusable = |source: Box<dyn StdError + Send + Sync>| CallError::Request {
            node: self.target.node,
            path: self.path.to_owned(),
            source,
        };
        if self.body.len() > MAX_BODY {
            return Err(unusable(format!("its body is longer than {} MiB", MAX_BODY >> 20).into()));
        }
        let mut request = Request::post(self.path)
            .header(HOST, self.target.addr.to_string())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.stream {
            request = request
                .header(CONNECTION, HeaderValue::from_static("upgrade"))
                .header(UPGRADE, HeaderValue::from_static(PROTOCOL));
        }
        request.body(Full::new(self.body.clone())).map_err(|e| unusable(Box::new(e)))
    }

    fn not_sent(&self, source: ConnectError) -> CallError {
        CallError::NotSent { node: self.target.node, addr: self.target.addr, source }
    }

    fn lost(&self, source: Box<dyn StdError + Send + Sync>) -> CallError {
        CallError::Lost { node: self.target.node, addr: self.target.addr, path: self.path.to_owned(), source }
    }

    fn late(&self, sent: bool) -> CallError {
        CallError::Deadline {
            node: self.target.node,
            addr: self.target.addr,
            path: self.path.to_owned(),
            within: self.within,
            sent,
        }
    }

    /// The connection broke with the request under way. In TLS 1.3 a server looks at our certificate only after we think
    /// that the handshake is over; so when it answers our first request with an alert about it, it has read nothing.
    fn broken(&self, error: hyper::Error, fresh: bool) -> CallError {
        match tls_error(&error) {
            Some(rustls::Error::AlertReceived(alert)) if fresh && about_certificate(*alert) => {
                self.not_sent(ConnectError::Identity(Box::new(error)))
            }
            _ => self.lost(Box::new(error)),
        }
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> CallError {
        match serde_json::from_slice::<Fault>(body) {
            Ok(fault) => CallError::Refused { node: self.target.node, path: self.path.to_owned(), fault },
            Err(e) => self.lost(format!("answered with HTTP status {status} and no explanation: {e}").into()),
        }
    }
}

/// The TLS library's error, if one is behind this.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An io::Error does not name what is inside it as its source, but that thing's source.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn identity_or_network(error: std::io::Error) -> ConnectError {
    match tls_error(&error) {
        Some(rustls::Error::InvalidCertificate(reason)) => {
            if let CertificateError::Other(OtherError(reason)) = reason
                && let Some(wrong) = reason.downcast_ref::<WrongNode>()
            {
                return ConnectError::WrongNode(wrong.clone());
            }
            ConnectError::Identity(Box::new(error))
        }
        Some(rustls::Error::AlertReceived(alert)) if about_certificate(*alert) => {
            ConnectError::Identity(Box::new(error))
        }
        _ => ConnectError::Network(error),
    }
}

fn about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::CertificateRequired
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError
    )
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
