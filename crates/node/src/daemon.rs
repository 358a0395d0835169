//! The daemon's life: outside a cluster, inside one, and from one to the other.

use std::fs::{File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use consensus::{Log, NodeInfo};
use jobs::Handle;
use model::NodeId;
use opcodes::wire::{Init, Join, NodeStatus, Request};
use opcodes::{ErrorCode, Failure};
use rpc::{Client, Identity, JoinRequest, Server, TlsServer};
use serde_json::Value;
use tokio::sync::{Mutex, RwLock};
use tokio::task::{JoinHandle, JoinSet};

use crate::agent::Agent;
use crate::config::Config;
use crate::member::{Member, PeerService};
use crate::transport::Wire;
use crate::{founding, joining, requests};

/// How long an answer that is under way may take to leave before this node forgets the cluster.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another one is there.
    #[error("another daemon already uses {}; stop it first", .0.display())]
    InUse(PathBuf),
    /// A folder or file can't be made or read.
    #[error("can't {what} {}", .path.display())]
    Files {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The node's identity is damaged.
    #[error("the node's identity in {} can't be used", .path.display())]
    Identity {
        /// Its folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: rpc::IdentityError,
    },
    /// The store of the replicated log is damaged, or belongs to something else.
    #[error(transparent)]
    Store(#[from] consensus::StoreError),
    /// The replicated log can't be followed.
    #[error(transparent)]
    Log(#[from] consensus::StartError),
    /// The port between nodes can't be had.
    #[error("the port between nodes can't be opened")]
    Port(#[from] rpc::server::ServerError),
    /// The API's port can't be had.
    #[error("the port of the API can't be opened")]
    Api(#[from] rpc::ListenError),
    /// TLS can't be set up.
    #[error("TLS can't be set up with the node's identity")]
    Tls(#[from] rpc::tls::TlsError),
    /// The runtime refused a socket.
    #[error("the port of the API can't be served")]
    Serve(#[source] io::Error),
    /// The agent can't work.
    #[error("the hypervisors can't be taken over from an earlier daemon: {0}")]
    Agent(Failure),
    /// The new cluster's log did not take its first entries.
    #[error("the cluster could not be founded: {0}")]
    Founding(String),
}

/// The daemon of this node.
pub struct Daemon {
    config: Arc<Config>,
    agent: Arc<Agent>,
    phase: RwLock<Option<Inside>>,
    /// Held while the phase changes, which takes longer than a request should wait for a lock.
    changing: Mutex<()>,
    /// Locked for as long as the daemon lives.
    _lock: File,
}

/// In a cluster.
struct Inside {
    member: Arc<Member>,
    server: Server,
    api: TlsServer,
    duties: JoinSet<()>,
    watcher: JoinHandle<()>,
}

/// Starts the daemon: takes running guests over, and goes on with the cluster that the node is in, if it is in one.
///
/// # Errors
/// See [`StartError`]; nothing of the node's state was changed then.
pub async fn start(config: Config) -> Result<Arc<Daemon>, StartError> {
    for folder in [&config.state_dir, &config.run_dir, &config.log_dir] {
        std::fs::create_dir_all(folder).map_err(|source| StartError::Files {
            what: "create",
            path: folder.clone(),
            source,
        })?;
    }
    let lock = lock(&config.state_dir.join("lock"))?;
    let config = Arc::new(config);
    let agent = Agent::start(Arc::clone(&config)).await.map_err(StartError::Agent)?;
    let daemon = Arc::new(Daemon { config, agent, phase: RwLock::new(None), changing: Mutex::default(), _lock: lock });
    let folder = daemon.identity_dir();
    match Identity::load(&folder).map_err(|source| StartError::Identity { path: folder, source })? {
        Some(identity) => {
            let identity = Arc::new(identity);
            let log = daemon.open_log(&identity).await?;
            daemon.enter(identity, log).await?;
        }
        // What an interrupted `init` or `join` left is of no cluster.
        None => daemon.forget()?,
    }
    Ok(daemon)
}

fn lock(path: &Path) -> Result<File, StartError> {
    let failed = |source| StartError::Files { what: "open", path: path.to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::InUse(path.parent().unwrap_or(path).to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

impl Daemon {
    /// What the API needs of it.
    pub fn handle(self: &Arc<Self>) -> Arc<dyn Handle> {
        Arc::new(Door(Arc::clone(self)))
    }

    fn identity_dir(&self) -> PathBuf {
        self.config.state_dir.join("identity")
    }

    fn log_dir(&self) -> PathBuf {
        self.config.state_dir.join("raft")
    }

    async fn open_log(&self, identity: &Arc<Identity>) -> Result<(Arc<dyn Log>, Client), StartError> {
        let client = Client::new(Arc::clone(identity));
        let id = NodeId(identity.node_id());
        let folder = self.log_dir();
        std::fs::create_dir_all(&folder).map_err(|source| StartError::Files {
            what: "create",
            path: folder.clone(),
            source,
        })?;
        let opened = tokio::task::spawn_blocking(move || consensus::Store::open(&folder, id, None));
        let store = match opened.await {
            Ok(store) => store?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let config = consensus::Config { caretaker: self.witness_mark().exists(), ..consensus::Config::default() };
        let log = consensus::start(store, config, Arc::new(Wire(client.clone()))).await?;
        Ok((log, client))
    }

    /// A file that says that this node is a witness. The log has to know before it can read its state.
    fn witness_mark(&self) -> PathBuf {
        self.config.state_dir.join("witness")
    }

    fn mark_witness(&self, is_witness: bool) {
        let path = self.witness_mark();
        let outcome = match is_witness {
            true if !path.exists() => std::fs::write(&path, ""),
            false if path.exists() => std::fs::remove_file(&path),
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, path = %path.display(), "this node's part in elections is not noted");
        }
    }

    /// Becomes a member of a cluster, for good or again.
    async fn enter(
        self: &Arc<Self>,
        identity: Arc<Identity>,
        (log, client): (Arc<dyn Log>, Client),
    ) -> Result<(), StartError> {
        let member = Member::new(Arc::clone(&self.config), Arc::clone(&identity), log, client, Arc::clone(&self.agent));
        let admit = {
            let member = Arc::clone(&member);
            Arc::new(move |peer: &rpc::PeerIdentity| member.admits(peer))
        };
        let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let service = Arc::new(PeerService(Arc::clone(&member)));
        let server = Server::bind(everywhere(self.config.node_port), &identity, admit, service).await?;
        let listener = rpc::serve::bind(everywhere(self.config.api_port)).await?;
        let tls = rpc::join::join_server_config(&identity)?;
        let router = Router::new()
            .route(rpc::join::JOIN_PATH, axum::routing::post(join_endpoint))
            .with_state(Arc::clone(&member));
        let api = rpc::serve_tls(listener, tls, router).map_err(StartError::Serve)?;
        let duties = member.spawn_duties();
        let watcher = tokio::spawn(watch_membership(Arc::downgrade(self), Arc::clone(&member)));
        *self.phase.write().await = Some(Inside { member, server, api, duties, watcher });
        Ok(())
    }

    /// Leaves the cluster and forgets it. What runs goes on running; the cluster saw to that before.
    async fn leave(&self) -> Result<(), StartError> {
        let Some(mut inside) = self.phase.write().await.take() else { return Ok(()) };
        inside.watcher.abort();
        inside.duties.shutdown().await;
        inside.server.shutdown().await;
        inside.api.shutdown().await;
        inside.member.log.shutdown().await;
        self.forget()
    }

    /// Removes identity and log. The identity first: without it the rest counts for nothing.
    fn forget(&self) -> Result<(), StartError> {
        self.mark_witness(false);
        for path in [self.identity_dir(), self.log_dir()] {
            match std::fs::remove_dir_all(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StartError::Files { what: "remove", path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends the daemon in good order: the address is dropped, the log closed. Guests go on.
    pub async fn shutdown(&self) {
        let _changing = self.changing.lock().await;
        if let Some(mut inside) = self.phase.write().await.take() {
            inside.watcher.abort();
            inside.duties.shutdown().await;
            let state = inside.member.state();
            if let (Some(cluster), Some(owner)) = (&state.cluster, state.address_owner)
                && owner == inside.member.id
                && let Err(failure) = self.agent.address.down(cluster.address, cluster.netmask, &cluster.netdev).await
            {
                tracing::error!(failure = failure.text, "the cluster's address could not be taken off this node");
            }
            inside.server.shutdown().await;
            inside.api.shutdown().await;
            inside.member.log.shutdown().await;
        }
    }

    async fn member(&self) -> Option<Arc<Member>> {
        self.phase.read().await.as_ref().map(|inside| Arc::clone(&inside.member))
    }

    async fn init(self: &Arc<Self>, init: &Init) -> Result<(), Failure> {
        let _changing = self.changing.lock().await;
        if self.phase.read().await.is_some() {
            return Err(Failure::refused(ErrorCode::WrongState, "Cluster is already initialised"));
        }
        let founding = founding::prepare(&self.config, init).await?;
        let outcome = self.found(founding).await;
        if outcome.is_err()
            && let Err(error) = self.leave().await.and_then(|()| self.forget())
        {
            tracing::error!(error = crate::chain(&error), "what 'init' had begun could not be removed");
        }
        outcome.map_err(|error| Failure::failed(crate::chain(&error)))
    }

    async fn found(self: &Arc<Self>, founding: founding::Founding) -> Result<(), StartError> {
        let unfounded = |error: &dyn std::error::Error| StartError::Founding(crate::chain(error));
        let identity = Arc::new(founding.identity);
        let (log, client) = self.open_log(&identity).await?;
        let address = SocketAddr::from((founding.address, self.config.node_port)).to_string();
        log.bootstrap(NodeInfo { address }).await.map_err(|error| unfounded(&error))?;
        let mut statuses = log.watch_status();
        statuses.wait_for(|status| status.is_leader).await.map_err(|error| unfounded(&error))?;
        drop(statuses);
        log.propose(founding.proposal).await.map_err(|error| unfounded(&error))?;
        // Only now: with an identity the node is in the cluster for good.
        let path = self.identity_dir();
        identity.save(&path).map_err(|source| StartError::Identity { path, source })?;
        self.enter(identity, (log, client)).await?;
        let member = self.member().await.ok_or_else(|| StartError::Founding("it was left at once".into()))?;
        let mut offices = member.office.subscribe();
        match tokio::time::timeout(Duration::from_secs(10), offices.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StartError::Founding("this node did not get into office".into())),
        }
    }

    async fn join(self: &Arc<Self>, join: &Join) -> Result<(), Failure> {
        let _changing = self.changing.lock().await;
        let failed = |error: StartError| Failure::failed(crate::chain(&error));
        if let Some(member) = self.member().await {
            if member.state().cluster.is_some() {
                return Err(Failure::refused(
                    ErrorCode::WrongState,
                    format!("This node is in a cluster already, as '{}'", member.name()),
                ));
            }
            // It was let in once but never heard of the cluster again: it starts anew.
            self.leave().await.map_err(failed)?;
        }
        let (identity, is_witness) = joining::join(&self.config, join).await?;
        self.mark_witness(is_witness);
        let path = self.identity_dir();
        identity.save(&path).map_err(|source| failed(StartError::Identity { path, source }))?;
        let identity = Arc::new(identity);
        let log = self.open_log(&identity).await.map_err(failed)?;
        self.enter(identity, log).await.map_err(failed)?;
        // A member is who has the log.
        let Some(member) = self.member().await else {
            return Err(Failure::failed("this node was told to leave while it joined"));
        };
        let mut views = member.log.watch();
        let known = views.wait_for(|view| view.state.nodes.contains_key(&member.id));
        match tokio::time::timeout(Duration::from_secs(60), known).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Failure::failed(
                "this node was let in, but has not got the cluster's configuration; see 'gnt-job list' on the master",
            )),
        }
    }
}

/// Watches for the end of this node's membership, and closes the connections of those whose membership ended.
async fn watch_membership(daemon: std::sync::Weak<Daemon>, member: Arc<Member>) {
    let mut views = member.log.watch();
    let mut known = 0;
    loop {
        let state = Arc::clone(&views.borrow_and_update().state);
        // Destroyed; before `init` no number was given yet.
        let destroyed = state.cluster.is_none() && state.last_node > 0;
        if destroyed {
            break;
        }
        if state.nodes.len() < known
            && let Some(daemon) = daemon.upgrade()
            && let Some(inside) = &*daemon.phase.read().await
        {
            inside.server.recheck();
        }
        known = state.nodes.len();
        if let (Some(node), Some(daemon)) = (state.nodes.get(&member.id), daemon.upgrade()) {
            daemon.mark_witness(node.is_witness());
        }
        drop(state);
        tokio::select! {
            changed = views.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = member.told_to_leave() => break,
        }
    }
    tokio::time::sleep(LAST_WORDS).await;
    drop(member);
    let Some(daemon) = daemon.upgrade() else { return };
    // In a task of its own: leaving ends this one.
    tokio::spawn(async move {
        let _changing = daemon.changing.lock().await;
        match daemon.leave().await {
            Ok(()) => tracing::info!("left the cluster"),
            Err(error) => tracing::error!(error = crate::chain(&error), "left the cluster, but not without a trace"),
        }
    });
}

async fn join_endpoint(Shared(member): Shared<Arc<Member>>, Json(request): Json<JoinRequest>) -> Response {
    match joining::admit(&member, request).await {
        Ok(reply) => Json(reply).into_response(),
        Err(fault) => (fault.kind.status(), Json(fault)).into_response(),
    }
}

/// The daemon, as its API sees it.
struct Door(Arc<Daemon>);

#[async_trait]
impl Handle for Door {
    async fn call(&self, request: Request, user: &str) -> Result<Value, Failure> {
        let daemon = &self.0;
        match (&request, daemon.member().await) {
            (Request::Join(join), _) => daemon.join(join).await.map(|()| Value::Null),
            (_, Some(member)) => requests::answer(&member, request, user).await,
            (Request::Init(init), None) => daemon.init(init).await.map(|()| Value::Null),
            (Request::Status, None) => {
                let outside = NodeStatus {
                    version: crate::VERSION.into(),
                    node: None,
                    cluster: None,
                    master: None,
                    has_master: false,
                    incarnation: 0,
                    term: 0,
                    voters: Default::default(),
                };
                serde_json::to_value(outside).map_err(|error| Failure::failed(error.to_string()))
            }
            (_, None) => Err(Failure::not_a_cluster()),
        }
    }

    async fn console(&self, instance: &str, _user: &str) -> Result<Box<dyn jobs::Console>, Failure> {
        match self.0.member().await {
            Some(member) => member.console(instance).await,
            None => Err(Failure::not_a_cluster()),
        }
    }
}
