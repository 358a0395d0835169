//! Connections between nodes: mutual TLS on the replication port.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use model::NodeId;
use rpc::{Identity, PeerIdentity};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::chain::Chain;
use super::link::{LinkError, read_more};
use crate::wire::{self, Frame, Hello};

/// How long a connection may take to be made, its handshake included.
const CONNECT_TIME: Duration = Duration::from_millis(1500);
/// How long a caller may take until its Hello is there.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// Callers at once that have not said Hello yet.
const NEWCOMERS: usize = 128;
/// Pause after accepting failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a node's replication port is; `None` if the node is not known.
pub(crate) type Addresses = Box<dyn Fn(NodeId) -> Option<SocketAddr> + Send + Sync>;

/// Makes connections to other nodes.
pub(crate) struct Connector {
    identity: Arc<Identity>,
    addresses: Addresses,
    /// One a node: each accepts the certificate of that node alone.
    configs: Mutex<BTreeMap<NodeId, Arc<ClientConfig>>>,
}

impl Connector {
    pub fn new(identity: Arc<Identity>, addresses: Addresses) -> Self {
        Self { identity, addresses, configs: Mutex::default() }
    }

    /// Connects to a node, and makes sure that it is that node.
    pub(super) async fn connect(&self, node: NodeId) -> Result<client::TlsStream<TcpStream>, LinkError> {
        let address = (self.addresses)(node).ok_or(LinkError::NoAddress)?;
        let config = self.config(node).map_err(|error| LinkError::Connect(io::Error::other(error)))?;
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            // Certificates name nodes, not addresses; the configuration knows which node is meant.
            TlsConnector::from(config).connect(address.ip().into(), stream).await
        };
        let connected = tokio::time::timeout(CONNECT_TIME, connect).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(LinkError::Connect)
    }

    fn config(&self, node: NodeId) -> Result<Arc<ClientConfig>, rpc::tls::TlsError> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(&node) {
            return Ok(config.clone());
        }
        let config = rpc::tls::client_config(&self.identity, node.0)?;
        configs.insert(node, config.clone());
        Ok(config)
    }
}

/// A connection that came in and has said what it is for.
pub(crate) struct Incoming {
    pub stream: server::TlsStream<TcpStream>,
    /// What was read behind the Hello.
    pub received: BytesMut,
    pub hello: Hello,
}

/// Accepts connections for ever, and hands those of peers that said Hello to `route`. What it does not want it drops: a
/// primary tries again.
pub(crate) async fn accept<R>(listener: TcpListener, identity: Arc<Identity>, tls: Arc<ServerConfig>, route: R)
where
    R: Fn(NodeId, Incoming) + Clone + Send + Sync + 'static,
{
    let places = Arc::new(Semaphore::new(NEWCOMERS));
    let acceptor = TlsAcceptor::from(tls);
    let mut newcomers = JoinSet::new();
    loop {
        while newcomers.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Errors of one connection are over with it; errors of the process last until something is freed.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    tracing::warn!(%error, "cannot accept replication connections for now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%from, "replication connection dropped: {NEWCOMERS} others have not said what they want");
            continue;
        };
        let (acceptor, identity, route) = (acceptor.clone(), identity.clone(), route.clone());
        newcomers.spawn(async move {
            let met = tokio::time::timeout(HELLO_TIME, meet(acceptor, &identity, stream)).await;
            match met {
                Ok(Ok((node, incoming))) => route(node, incoming),
                Ok(Err(error)) => tracing::debug!(%from, error = %Chain(&error), "replication connection dropped"),
                Err(_) => {
                    tracing::debug!(%from, "replication connection dropped: it took too long to say what it wants");
                }
            }
            drop(place);
        });
    }
}

/// The TLS handshake, and the first frame.
async fn meet(acceptor: TlsAcceptor, identity: &Identity, stream: TcpStream) -> Result<(NodeId, Incoming), LinkError> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = certificate.and_then(|certificate| PeerIdentity::of(certificate).ok());
    let peer = peer.filter(|peer| peer.cluster == identity.cluster_id());
    let Some(peer) = peer else {
        return Err(io::Error::other("its certificate is not that of a node of this cluster").into());
    };
    let mut received = BytesMut::new();
    loop {
        match wire::decode(&mut received)? {
            Some(Frame::Hello(hello)) => return Ok((NodeId(peer.node), Incoming { stream, received, hello })),
            Some(_) => return Err(io::Error::other("its first frame is not a Hello").into()),
            None => {
                if read_more(&mut stream, &mut received).await? == 0 {
                    return Err(LinkError::Closed);
                }
            }
        }
    }
}
