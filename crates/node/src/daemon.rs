//! The daemon's life: outside a cluster, inside one, and from one to the other.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use consensus::{Log, NodeInfo};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jobs::Handle;
use mirror::keeper::{Keeper, KeeperConfig, KeeperError};
use model::{NodeId, State, Uuid};
use opcodes::wire::{Init, Join, NodeStatus, Recovery, Request};
use opcodes::{ErrorCode, Failure};
use rpc::{Client, Identity, Server, TlsServer};
use serde_json::Value;
use tokio::sync::{Mutex, RwLock, watch};
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::authority::DiskAuthority;
use crate::config::Config;
use crate::home::{self, Home};
use crate::member::{Member, PeerService, is_destroyed, now};
use crate::recovery::greeting::{Greeting, greet_all};
use crate::recovery::look;
use crate::recovery::rejoin::{self, Verdict};
use crate::transport::Wire;
use crate::{founding, joining, requests};

/// How long an answer that is under way may take to leave before this node forgets the cluster.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// How long a node that was let in waits for the log: longer than the master tries to bring it.
const ENROLMENT: Duration = Duration::from_secs(60);

/// How long other nodes may take to say in which incarnation of the cluster they are.
const GREETING: Duration = Duration::from_millis(700);
/// How often they are asked where this node can't go on without their answer.
const GREET_AGAIN: Duration = Duration::from_secs(1);
/// How long this node may take to get into office when it goes on alone.
const OFFICE: Duration = Duration::from_secs(15);
/// How long the cluster's address may then take to come up. It is only waited for.
const ADDRESS: Duration = Duration::from_secs(5);

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
    /// The node is in a cluster, but has nothing of its log.
    #[error(
        "this node's copy of the cluster's log is missing from {}, and without it the node must not vote; \
         take it out of the cluster on the master, clear the state directory and add it again",
        .0.display()
    )]
    LogMissing(PathBuf),
    /// The store of the replicated log is damaged, or belongs to something else.
    #[error(transparent)]
    Store(#[from] consensus::StoreError),
    /// The log of an older incarnation can't be read or given up.
    #[error("this node's copy of the cluster's log can't be brought to the incarnation in which the others are")]
    Rejoin(#[source] consensus::RecoverError),
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
    /// Mirrored disks can't be served.
    #[error("mirrored disks can't be served on this node")]
    Mirror(#[from] KeeperError),
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
    home: Arc<Home>,
    agent: Arc<Agent>,
    phase: RwLock<Option<Inside>>,
    /// Held while the phase changes, which takes longer than a request should wait for a lock.
    changing: Mutex<()>,
    /// Set while the node is out of its cluster for a moment, on its way into another incarnation of it.
    between: watch::Sender<bool>,
    /// Why this node is kept out of its cluster, and what it knew last.
    apart: Mutex<Option<Apart>>,
    /// Set when the daemon is to end: a change of the phase that is under way is given up.
    ending: watch::Sender<bool>,
    /// Why the daemon can't go on.
    failed: watch::Sender<Option<String>>,
    /// Locked for as long as the daemon lives: guests and sockets are there.
    _run_dir_lock: File,
}

/// Out of its cluster, because that has gone on without this node.
struct Apart {
    why: String,
    status: NodeStatus,
}

/// In a cluster.
struct Inside {
    member: Arc<Member>,
    server: Server,
    api: TlsServer,
    /// Mirrored disks; a witness has none.
    keeper: Option<Arc<Keeper>>,
    duties: JoinSet<()>,
    /// What ends the membership; not to be waited for, because it may be one of them that ends it.
    watchers: JoinSet<()>,
}

/// Starts the daemon: takes running guests over, and goes on with the cluster that the node is in, if it is in one.
///
/// # Errors
/// See [`StartError`]; nothing of the node's state was changed then.
pub async fn start(config: Config) -> Result<Arc<Daemon>, StartError> {
    let home = Arc::new(Home::open(&config.state_dir)?);
    for folder in [&config.run_dir, &config.log_dir] {
        std::fs::create_dir_all(folder).map_err(home::failed("create", folder))?;
    }
    let run_dir_lock = home::lock(&config.run_dir)?;
    let identity = home.identity()?;
    let config = Arc::new(config);
    let agent = Agent::start(Arc::clone(&config)).await.map_err(StartError::Agent)?;
    let daemon = Arc::new(Daemon {
        config,
        home,
        agent,
        phase: RwLock::new(None),
        changing: Mutex::default(),
        between: watch::Sender::new(false),
        apart: Mutex::default(),
        ending: watch::Sender::new(false),
        failed: watch::Sender::new(None),
        _run_dir_lock: run_dir_lock,
    });
    match identity {
        Some(identity) => {
            daemon.go_on(Arc::new(identity)).await?;
        }
        // What an interrupted `init`, `join` or removal left is of no cluster.
        None => {
            daemon.home.forget()?;
            daemon.agent.guard.identify(None);
        }
    }
    Ok(daemon)
}

impl Daemon {
    /// What the API needs of it.
    pub fn handle(self: &Arc<Self>) -> Arc<dyn Handle> {
        Arc::new(Door(Arc::clone(self)))
    }

    /// Resolves when the daemon can't go on, and says why. Its state is as it was written last; a restart goes on from it, or
    /// says what is in the way.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender lives as long as this daemon.
            Err(_) => std::future::pending().await,
        }
    }

    async fn open_store(&self, identity: &Identity) -> Result<consensus::Store, StartError> {
        let id = NodeId(identity.node_id());
        let folder = self.home.make_log_dir()?;
        let opened = tokio::task::spawn_blocking(move || consensus::Store::open(&folder, id, None));
        match opened.await {
            Ok(store) => Ok(store?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn open_log(&self, identity: &Arc<Identity>) -> Result<(Arc<dyn Log>, Client), StartError> {
        let store = self.open_store(identity).await?;
        self.start_log(identity, store).await
    }

    async fn start_log(
        &self,
        identity: &Arc<Identity>,
        store: consensus::Store,
    ) -> Result<(Arc<dyn Log>, Client), StartError> {
        let client = Client::new(Arc::clone(identity));
        let config = consensus::Config { caretaker: self.home.is_witness(), ..consensus::Config::default() };
        let log = consensus::start(store, config, Arc::new(Wire(client.clone()))).await?;
        Ok((log, client))
    }

    /// Becomes a member of a cluster, for good or again.
    async fn enter(
        self: &Arc<Self>,
        identity: Arc<Identity>,
        (log, client): (Arc<dyn Log>, Client),
    ) -> Result<(), StartError> {
        let member = Member::new(
            Arc::clone(&self.config),
            Arc::clone(&self.home),
            Arc::clone(&identity),
            log,
            client,
            Arc::clone(&self.agent),
        );
        let admit = {
            let member = Arc::clone(&member);
            Arc::new(move |peer: &rpc::PeerIdentity| member.admits(peer))
        };
        // Before the first order can come: one that finds no disks would fail, though they only were not there yet.
        let keeper = match self.home.is_witness() {
            true => None,
            false => Some(self.keep_disks(&member, Arc::clone(&identity)).await?),
        };
        self.agent.set_keeper(keeper.clone()).await;
        let ports = async {
            let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            let service = Arc::new(PeerService(Arc::clone(&member)));
            let server = Server::bind(everywhere(self.config.node_port), &identity, admit, service).await?;
            let listener = rpc::serve::bind(everywhere(self.config.api_port)).await?;
            let tls = rpc::join::join_server_config(&identity)?;
            let router = joining::router(Arc::clone(&member));
            Ok((server, rpc::serve_tls(listener, tls, router).map_err(StartError::Serve)?))
        };
        let (server, api) = match ports.await {
            Ok(ports) => ports,
            Err(error) => {
                self.agent.set_keeper(None).await;
                return Err(error);
            }
        };
        let mut duties = JoinSet::new();
        duties.spawn(self.essential("informing the guard", crate::guard::attend(Arc::clone(&member))));
        duties.spawn(self.essential("leading", crate::office::lead(Arc::clone(&member))));
        duties.spawn(self.essential("reporting this boot", crate::lives::report_boot(Arc::clone(&member))));
        duties.spawn(self.essential("reporting guests that end", crate::lives::report_ends(Arc::clone(&member))));
        duties.spawn(self.essential("minding its vote", Arc::clone(&member).watch_vote()));
        duties.spawn(watch_log(Arc::clone(&member), self.failed.clone()));
        let mut watchers = JoinSet::new();
        watchers.spawn(watch_membership(Arc::downgrade(self), Arc::clone(&member)));
        watchers.spawn(watch_incarnation(Arc::downgrade(self), Arc::clone(&member)));
        *self.phase.write().await = Some(Inside { member, server, api, keeper, duties, watchers });
        Ok(())
    }

    /// Opens this node's replicas of mirrored disks, and serves them as the log says.
    async fn keep_disks(&self, member: &Arc<Member>, identity: Arc<Identity>) -> Result<Arc<Keeper>, KeeperError> {
        let config = KeeperConfig {
            node: member.id,
            boot: self.config.boot.clone(),
            folder: self.config.replicas(),
            run_dir: self.config.run_dir.join("mirror"),
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.config.mirror_port)),
            port: self.config.mirror_port,
            user: Some(self.config.qemu_user),
            engine: mirror::engine::Config::default(),
            lease: mirror::driver::Lease::new(self.agent.guard.lease(), crate::clock::boottime),
            strict: self.agent.arming.strict(),
        };
        Keeper::start(config, identity, Arc::new(DiskAuthority::new(member))).await
    }

    /// What a member must never stop doing. If it ends in a bug, the daemon ends rather than go on as half a member.
    fn essential<D>(&self, what: &'static str, duty: D) -> impl Future<Output = ()> + use<D>
    where
        D: Future<Output = ()>,
    {
        let failed = self.failed.clone();
        async move {
            if AssertUnwindSafe(duty).catch_unwind().await.is_err() {
                failed.send_replace(Some(format!("{what} ended in a bug; the lines before this one say where")));
            }
        }
    }

    /// Leaves the cluster of that membership, unless that was done meanwhile, and forgets it. What runs goes on running; the
    /// cluster saw to that before.
    async fn leave(&self, member: &Arc<Member>) -> Result<(), StartError> {
        let left = self.phase.write().await.take_if(|inside| Arc::ptr_eq(&inside.member, member));
        let Some(inside) = left else { return Ok(()) };
        self.stop(inside).await;
        let forgotten = self.home.forget();
        self.agent.arming.read();
        self.agent.guard.identify(None);
        forgotten
    }

    /// Ends the daemon in good order: what is under way is given up, the cluster's address dropped, the log closed. Guests go
    /// on.
    pub async fn shutdown(&self) {
        self.ending.send_replace(true);
        let _changing = self.changing.lock().await;
        if let Some(inside) = self.phase.write().await.take() {
            self.stop(inside).await;
        }
    }

    /// Stops being a member.
    async fn stop(&self, mut inside: Inside) {
        inside.watchers.abort_all();
        inside.duties.shutdown().await;
        self.agent.set_keeper(None).await;
        if let Some(keeper) = &inside.keeper {
            // As long as there is a log to tell of it.
            keeper.shutdown().await;
        }
        // Nobody brings it up any more.
        if let Err(failure) = self.agent.address.release().await {
            tracing::error!(failure = failure.text, "the cluster's address could not be taken off this node");
        }
        inside.server.shutdown().await;
        inside.api.shutdown().await;
        inside.member.log.shutdown().await;
    }

    /// Carries out a change of the phase, unless the daemon is to end.
    async fn unless_ending(&self, change: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
        let mut ending = self.ending.subscribe();
        tokio::select! {
            biased;
            _ = ending.wait_for(|ending| *ending) => Err(Failure::failed("The daemon of this node is being stopped")),
            outcome = change => outcome,
        }
    }

    /// Goes on with the cluster that the node is in. Who votes first asks the others whether they went on without it: alone, or
    /// with others who come back at the same time, it could choose a master of the older incarnation.
    async fn go_on(self: &Arc<Self>, identity: Arc<Identity>) -> Result<(), StartError> {
        let store = self.open_store(&identity).await?;
        let held = consensus::held(&store).map_err(StartError::Rejoin)?;
        let id = NodeId(identity.node_id());
        if held.voters.contains(&id) && held.state.nodes.len() > 1 {
            let own = Greeting::new(held.incarnation, &held.state);
            let client = Client::new(Arc::clone(&identity));
            let answers = greet_all(&client, &own, &held.state, id, self.config.node_port, GREETING).await;
            let verdict = rejoin::judge(&own, &held.state, id, &self.config.boot, held.highest_seen, &answers);
            if verdict != Verdict::GoOn {
                drop(store);
                return self.yield_to(identity, &held, verdict).await;
            }
        }
        let log = self.start_log(&identity, store).await?;
        self.enter(identity, log).await
    }

    /// Does what the verdict on a member of an older incarnation says. Nothing of the log is open.
    fn yield_to<'a>(
        self: &'a Arc<Self>,
        identity: Arc<Identity>,
        held: &'a consensus::Held,
        verdict: Verdict,
    ) -> BoxFuture<'a, Result<(), StartError>> {
        async move {
            let n = held.incarnation.n;
            match verdict {
                Verdict::GoOn => {
                    let log = self.open_log(&identity).await?;
                    self.enter(identity, log).await
                }
                Verdict::Rejoin { into, fork_point } => {
                    let (dir, keep) = (self.home.make_log_dir()?, self.home.saved_log(n));
                    let id = NodeId(identity.node_id());
                    let surplus =
                        consensus::discard(&dir, id, into, fork_point, &keep).await.map_err(StartError::Rejoin)?;
                    tracing::warn!(
                        from = n,
                        into = into.n,
                        kept = %keep.display(),
                        "the cluster went on without this node, which was off: its own log is kept, and it joins again"
                    );
                    let path = self.home.surplus(n);
                    rejoin::report(&path, &surplus).map_err(home::failed("write", &path))?;
                    let log = self.open_log(&identity).await?;
                    self.enter(identity, log).await
                }
                Verdict::Conflict(why) => {
                    rejoin::pause_guests(&self.agent).await;
                    self.stand_apart(held, &identity, why).await;
                    Ok(())
                }
                Verdict::Wait(why) => {
                    self.stand_apart(held, &identity, why).await;
                    tokio::spawn(wait_for_others(Arc::downgrade(self), identity, held.clone()));
                    Ok(())
                }
            }
        }
        .boxed()
    }

    async fn stand_apart(&self, held: &consensus::Held, identity: &Identity, why: String) {
        tracing::error!(why, "this node is kept out of its cluster");
        let state = &held.state;
        let status = NodeStatus {
            version: crate::VERSION.into(),
            node: Some(state.node_name(NodeId(identity.node_id()))),
            cluster: state.cluster.as_ref().map(|cluster| cluster.name.clone()),
            master: state.office.map(|office| state.node_name(office.node)),
            has_master: false,
            incarnation: held.incarnation.n,
            term: state.office.map_or(0, |office| office.term),
            voters: held.voters.iter().map(|id| state.node_name(*id)).collect(),
        };
        *self.apart.lock().await = Some(Apart { why, status });
    }

    /// A member met one of a newer incarnation.
    async fn overtaken(self: &Arc<Self>, member: &Arc<Member>, met: (NodeId, Greeting)) -> Result<(), StartError> {
        let _changing = self.changing.lock().await;
        let status = member.log.status();
        if status.voters.len() > 1 && requests::has_master(member, &member.state()) {
            // A majority that lives is not dissolved by an operator's word elsewhere: who is right is for him to say.
            member.stands_apart(met.0);
            return Ok(());
        }
        let _between = Between::new(&self.between);
        let left = self.phase.write().await.take_if(|inside| Arc::ptr_eq(&inside.member, member));
        let Some(inside) = left else { return Ok(()) };
        let own = Greeting::of(member);
        let state = member.state();
        let verdict = rejoin::judge(&own, &state, member.id, &self.config.boot, met.1.incarnation.n, &[met]);
        if matches!(verdict, Verdict::Conflict(_)) {
            rejoin::pause_guests(&self.agent).await;
        }
        let held = consensus::Held {
            incarnation: own.incarnation,
            highest_seen: own.incarnation.n,
            state: State::clone(&state),
            voters: status.voters,
        };
        self.stop(inside).await;
        self.yield_to(Arc::clone(&member.identity), &held, verdict).await
    }

    /// Answers [`Request::Recover`].
    async fn recover(
        self: &Arc<Self>,
        member: &Arc<Member>,
        off: &[String],
        commit: bool,
    ) -> Result<Recovery, Failure> {
        if !commit {
            return look::look(member).await;
        }
        // In a task of its own: who asked may go away, and this must not stop half-way.
        let (daemon, off) = (Arc::clone(self), off.to_vec());
        match tokio::spawn(async move { daemon.recover_now(&off).await }).await {
            Ok(outcome) => outcome,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Makes this node the master alone, in a new incarnation of the cluster (protocol, section 11).
    async fn recover_now(self: &Arc<Self>, off: &[String]) -> Result<Recovery, Failure> {
        let _changing = self.changing.lock().await;
        let Some(member) = self.member().await.filter(|_| !*self.ending.borrow()) else {
            return Err(Failure::failed("This node has left its cluster, or its daemon is being stopped"));
        };
        let mut found = look::look(&member).await?;
        let off = look::permit(&member.state(), &found, off)?;
        let _between = Between::new(&self.between);
        let Some(inside) = self.phase.write().await.take() else {
            return Err(Failure::failed("This node has left its cluster"));
        };
        self.stop(inside).await;
        let recovered = self.found_anew(&member, off).await;
        let entered = async {
            let log = self.open_log(&member.identity).await?;
            self.enter(Arc::clone(&member.identity), log).await
        };
        if let Err(error) = entered.await {
            let text = format!("this node could not go on with its log: {}", crate::chain(&error));
            self.failed.send_replace(Some(text.clone()));
            return Err(Failure::failed(text));
        }
        let incarnation = recovered?;
        found.incarnation = Some(incarnation);
        let Some(member) = self.member().await else {
            return Err(Failure::failed("this node has left its cluster at once"));
        };
        let mut offices = member.office.subscribe();
        match tokio::time::timeout(OFFICE, offices.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => {}
            _ => {
                return Err(Failure::failed(format!(
                    "This node goes on alone now, in incarnation {incarnation} of the cluster, but is not in office after {} s; \
                     its daemon's log says why",
                    OFFICE.as_secs()
                )));
            }
        }
        let mut views = member.log.watch();
        let holds = views.wait_for(|view| view.state.address_owner == Some(member.id));
        // It is kept trying for; nothing else waits for it.
        drop(tokio::time::timeout(ADDRESS, holds).await);
        Ok(found)
    }

    async fn found_anew(&self, member: &Member, off: Vec<NodeId>) -> Result<u64, Failure> {
        let failed =
            |error: &dyn std::error::Error| Failure::failed(format!("Nothing was changed: {}", crate::chain(error)));
        let dir = self.home.make_log_dir().map_err(|error| failed(&error))?;
        let names: Vec<String> = off.iter().map(|id| member.state().node_name(*id)).collect();
        let recovered = consensus::recover(&dir, member.id, Uuid::new_v4(), off, now()).await;
        let recovered = recovered.map_err(|error| failed(&error))?;
        tracing::warn!(
            incarnation = recovered.incarnation.n,
            fork_point = recovered.fork_point.index,
            off = names.join(", "),
            "goes on alone, by an operator's order"
        );
        Ok(recovered.incarnation.n)
    }

    /// Waits until the node is not between two incarnations.
    async fn settled(&self) {
        let mut between = self.between.subscribe();
        // The sender lives as long as this daemon.
        let _ = between.wait_for(|between| !*between).await;
    }

    async fn member(&self) -> Option<Arc<Member>> {
        self.phase.read().await.as_ref().map(|inside| Arc::clone(&inside.member))
    }

    async fn init(self: &Arc<Self>, init: &Init) -> Result<(), Failure> {
        let _changing = self.changing.lock().await;
        self.finish_leaving().await?;
        if self.member().await.is_some() {
            return Err(already_initialised());
        }
        let founding = founding::prepare(&self.config, init).await?;
        let outcome = self.found(founding).await;
        self.or_as_before(outcome).await
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
        self.home.settle(&identity)?;
        self.enter(identity, (log, client)).await?;
        let member = self.member().await.ok_or_else(|| StartError::Founding("it was left at once".into()))?;
        let mut offices = member.office.subscribe();
        match tokio::time::timeout(Duration::from_secs(10), offices.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StartError::Founding("this node did not get into office".into())),
        }
    }

    /// A cluster that was just left or destroyed is no reason to refuse another one.
    async fn finish_leaving(&self) -> Result<(), Failure> {
        match self.member().await {
            Some(member) if member.is_leaving() => {
                tokio::time::sleep(LAST_WORDS).await;
                self.leave(&member).await.map_err(|error| Failure::failed(crate::chain(&error)))
            }
            _ => Ok(()),
        }
    }

    /// After an `init` or `join` that failed half-way the node is in no cluster, as it was before.
    async fn or_as_before(&self, outcome: Result<(), StartError>) -> Result<(), Failure> {
        if outcome.is_err()
            && let Err(error) = self.start_anew().await
        {
            tracing::error!(error = crate::chain(&error), "what was begun could not be removed");
        }
        outcome.map_err(|error| Failure::failed(crate::chain(&error)))
    }

    async fn start_anew(&self) -> Result<(), StartError> {
        if let Some(member) = self.member().await {
            self.leave(&member).await?;
        }
        self.home.forget()
    }

    async fn join(self: &Arc<Self>, join: &Join) -> Result<(), Failure> {
        let _changing = self.changing.lock().await;
        self.finish_leaving().await?;
        if let Some(member) = self.member().await
            && member.state().cluster.is_some()
        {
            return Err(member.already_in_a_cluster());
        }
        let (identity, is_witness) = joining::join(&self.config, join).await?;
        // Once let in, never heard of the cluster again: the node starts anew. Only now, because whoever is let in is a
        // member of nothing else.
        self.start_anew().await.map_err(|error| Failure::failed(crate::chain(&error)))?;
        let entered = self.enter_new(identity, is_witness).await;
        self.or_as_before(entered).await?;
        let Some(member) = self.member().await else {
            return Err(Failure::failed("this node was told to leave while it joined"));
        };
        // A member is who has the log.
        let mut views = member.log.watch();
        let known = views.wait_for(|view| view.state.nodes.contains_key(&member.id));
        tokio::select! {
            biased;
            Ok(_) = known => Ok(()),
            () = member.told_to_leave() => Err(Failure::failed(
                "the cluster let this node in and then took it out again; 'gnt-job list' on the master says why",
            )),
            () = tokio::time::sleep(ENROLMENT) => Err(Failure::failed(
                "this node was let in, but has not got the cluster's configuration; see 'gnt-job list' on the master",
            )),
        }
    }

    async fn enter_new(self: &Arc<Self>, identity: Identity, is_witness: bool) -> Result<(), StartError> {
        self.home.mark_witness(is_witness);
        let identity = Arc::new(identity);
        let log = self.open_log(&identity).await?;
        self.home.settle(&identity)?;
        self.enter(identity, log).await
    }
}

/// The time between leaving one incarnation of the cluster and entering another.
struct Between<'a>(&'a watch::Sender<bool>);

impl<'a> Between<'a> {
    fn new(between: &'a watch::Sender<bool>) -> Self {
        between.send_replace(true);
        Self(between)
    }
}

impl Drop for Between<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// Watches for members of a newer incarnation of the cluster.
async fn watch_incarnation(daemon: Weak<Daemon>, member: Arc<Member>) {
    let met = member.is_overtaken().await;
    // In a task of its own: leaving ends this one.
    tokio::spawn(async move {
        let Some(daemon) = daemon.upgrade() else { return };
        if let Err(error) = daemon.overtaken(&member, met).await {
            daemon.failed.send_replace(Some(crate::chain(&error)));
        }
    });
}

/// Asks the others until one of the newer incarnation answers, and joins that.
async fn wait_for_others(daemon: Weak<Daemon>, identity: Arc<Identity>, held: consensus::Held) {
    let id = NodeId(identity.node_id());
    let own = Greeting::new(held.incarnation, &held.state);
    let client = Client::new(Arc::clone(&identity));
    loop {
        tokio::time::sleep(GREET_AGAIN).await;
        let Some(daemon) = daemon.upgrade() else { return };
        let answers = greet_all(&client, &own, &held.state, id, daemon.config.node_port, GREETING).await;
        let verdict = rejoin::judge(&own, &held.state, id, &daemon.config.boot, held.highest_seen, &answers);
        if matches!(verdict, Verdict::Wait(_)) {
            continue;
        }
        let _changing = daemon.changing.lock().await;
        if *daemon.ending.borrow() {
            return;
        }
        let _between = Between::new(&daemon.between);
        *daemon.apart.lock().await = None;
        if let Err(error) = daemon.yield_to(identity, &held, verdict).await {
            daemon.failed.send_replace(Some(crate::chain(&error)));
        }
        return;
    }
}

/// Reports a log that has stopped for good. A member without one is of no use to anybody.
async fn watch_log(member: Arc<Member>, failed: watch::Sender<Option<String>>) {
    let mut statuses = member.log.watch_status();
    if let Ok(status) = statuses.wait_for(|status| status.failed.is_some()).await {
        let reason = status.failed.clone().unwrap_or_default();
        failed.send_replace(Some(format!("the cluster's log has stopped on this node: {reason}")));
    }
}

/// Watches for the end of this node's membership, and closes the connections of those whose membership ended.
async fn watch_membership(daemon: Weak<Daemon>, member: Arc<Member>) {
    let mut views = member.log.watch();
    let mut known = BTreeSet::new();
    loop {
        let state = Arc::clone(&views.borrow_and_update().state);
        if is_destroyed(&state) {
            break;
        }
        let nodes: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
        if !known.is_subset(&nodes)
            && let Some(daemon) = daemon.upgrade()
            && let Some(inside) = &*daemon.phase.read().await
        {
            inside.server.recheck();
        }
        known = nodes;
        if let (Some(node), Some(daemon)) = (state.nodes.get(&member.id), daemon.upgrade()) {
            daemon.home.mark_witness(node.is_witness());
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
    let Some(daemon) = daemon.upgrade() else { return };
    // In a task of its own: leaving ends this one.
    tokio::spawn(async move {
        let _changing = daemon.changing.lock().await;
        match daemon.leave(&member).await {
            Ok(()) => tracing::info!("left the cluster"),
            Err(error) => tracing::error!(error = crate::chain(&error), "left the cluster, but not without a trace"),
        }
    });
}

fn to_json<T: serde::Serialize>(reply: &T) -> Result<Value, Failure> {
    serde_json::to_value(reply).map_err(|error| Failure::failed(format!("the answer can't be written: {error}")))
}

fn already_initialised() -> Failure {
    Failure::refused(ErrorCode::WrongState, "Cluster is already initialised")
}

/// The daemon, as its API sees it.
struct Door(Arc<Daemon>);

#[async_trait]
impl Handle for Door {
    async fn call(&self, request: Request, user: &str) -> Result<Value, Failure> {
        let daemon = &self.0;
        daemon.settled().await;
        let member = daemon.member().await;
        if member.is_none()
            && let Some(apart) = &*daemon.apart.lock().await
        {
            return match request {
                Request::Status => to_json(&apart.status),
                _ => Err(Failure::no_master(apart.why.clone())),
            };
        }
        match (&request, member) {
            (Request::Recover { off, commit }, Some(member)) => to_json(&daemon.recover(&member, off, *commit).await?),
            (Request::Join(join), _) => daemon.unless_ending(daemon.join(join)).await.map(|()| Value::Null),
            (Request::Init(_), Some(member)) if !member.is_leaving() => Err(already_initialised()),
            (Request::Init(init), _) => daemon.unless_ending(daemon.init(init)).await.map(|()| Value::Null),
            (_, Some(member)) => requests::answer(&member, request, user).await,
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
                to_json(&outside)
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
