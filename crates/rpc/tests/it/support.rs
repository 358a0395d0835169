//! A cluster to test with: a CA, its nodes, a service that tells what happens in it, and a relay that can be cut.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rpc::{Admit, Client, ClusterCa, Fault, FaultKind, Identity, NodeKey, PeerIdentity, Server, Service, Upgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// A deadline that is not what a test is about.
pub const AMPLE: Duration = Duration::from_secs(60);

pub fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub struct Cluster {
    pub id: Uuid,
    pub ca: ClusterCa,
}

impl Cluster {
    pub fn new() -> Self {
        Self { id: Uuid::new_v4(), ca: ClusterCa::generate("cluster01").unwrap() }
    }

    pub fn node(&self, node: u64) -> Identity {
        let key = NodeKey::generate().unwrap();
        let cert = self.ca.sign_csr(&key.csr_pem("a.example").unwrap(), self.id, node).unwrap();
        key.into_identity(&cert, &self.ca.cert_pem()).unwrap()
    }

    pub fn client(&self, node: u64) -> Client {
        Client::new(Arc::new(self.node(node)))
    }
}

/// Waits for something that must happen, and fails rather than hang when it doesn't.
pub async fn happens(event: &Notify) {
    tokio::time::timeout(AMPLE, event.notified()).await.expect("this should have happened by now");
}

/// What a test sees and steers of a service.
#[derive(Default)]
pub struct Probe {
    pub calls: AtomicUsize,
    pub removed: AtomicBool,
    pub entered: Notify,
    pub release: Notify,
    pub finished: Notify,
    pub callers: Mutex<Vec<PeerIdentity>>,
}

impl Probe {
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub fn remove_the_caller(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }

    fn admit(self: &Arc<Self>) -> Admit {
        let probe = self.clone();
        Arc::new(move |_| !probe.removed.load(Ordering::SeqCst))
    }
}

struct Probed(Arc<Probe>);

#[async_trait]
impl Service for Probed {
    async fn call(&self, peer: PeerIdentity, path: &str, body: Bytes) -> Result<Bytes, Fault> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        self.0.callers.lock().unwrap().push(peer);
        match path {
            "/echo" => Ok(body),
            "/wait" => {
                self.0.entered.notify_one();
                self.0.release.notified().await;
                self.0.finished.notify_one();
                Ok(body)
            }
            "/busy" => Err(Fault::new(FaultKind::Unavailable, "busy").retry_after(Duration::from_millis(20))),
            "/bug" => panic!("a bug in the service, made on purpose"),
            _ => Err(Fault::new(FaultKind::NotFound, path)),
        }
    }

    async fn stream(&self, _: PeerIdentity, path: &str, body: Bytes, upgrade: Upgrade) -> Result<(), Fault> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        if path != "/echo" {
            return Err(Fault::new(FaultKind::NotFound, format!("no such console: {path}")));
        }
        let failed = |e: std::io::Error| Fault::new(FaultKind::Internal, e.to_string());
        let (mut from, mut to) = tokio::io::split(upgrade.accept().await.map_err(failed)?);
        to.write_all(&body).await.map_err(failed)?;
        to.flush().await.map_err(failed)?;
        tokio::io::copy(&mut from, &mut to).await.map_err(failed)?;
        to.shutdown().await.map_err(failed)
    }
}

pub async fn serve(identity: &Identity) -> (Server, Arc<Probe>) {
    let probe = Arc::new(Probe::default());
    let server = serve_with(identity, probe.clone(), anywhere()).await;
    (server, probe)
}

pub async fn serve_with(identity: &Identity, probe: Arc<Probe>, addr: SocketAddr) -> Server {
    Server::bind(addr, identity, probe.admit(), Arc::new(Probed(probe.clone()))).await.unwrap()
}

/// Passes connections on to a server, counts them, and can hang up on the caller.
pub struct Relay {
    pub addr: SocketAddr,
    pub accepted: Arc<AtomicUsize>,
    cut: watch::Sender<()>,
    closed_by_caller: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (cut, cuts) = watch::channel(());
        let closed_by_caller = Arc::new(Notify::new());
        let (count, closed) = (accepted.clone(), closed_by_caller.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (caller, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                connections.spawn(pass_on(caller, server, cuts.clone(), closed.clone()));
            }
        });
        Self { addr, accepted, cut, closed_by_caller, task }
    }

    /// Hangs up on one caller, and returns when it has noticed.
    pub async fn cut(&self) {
        self.cut.send_replace(());
        self.closed_by_caller().await;
    }

    /// Waits until a caller has closed its end.
    pub async fn closed_by_caller(&self) {
        happens(&self.closed_by_caller).await;
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn pass_on(mut caller: TcpStream, server: SocketAddr, mut cuts: watch::Receiver<()>, closed: Arc<Notify>) {
    cuts.mark_unchanged();
    let mut server = TcpStream::connect(server).await.unwrap();
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut caller, &mut server) => {}
        _ = cuts.changed() => {
            caller.shutdown().await.unwrap();
            while caller.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {}
        }
    }
    closed.notify_one();
}
