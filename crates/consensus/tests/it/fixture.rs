//! Members, the network between them, and proposals as the daemon makes them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use consensus::{
    Committed, Config, Log, ProposeError, RaftReply, RaftRequest, Status, Store, Transport, TransportError,
};
use model::{Applied, Command, JobId, NodeId, Proposal, Timestamp};

pub use crate::common::{info, init, job};

/// Longest wait for something that must happen; reached only by a failing test.
pub const LONG: Duration = Duration::from_secs(30);

pub fn ids(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(NodeId).collect()
}

/// The network: everybody's handler, and which nodes are cut off.
#[derive(Default)]
pub struct Net {
    members: Mutex<BTreeMap<NodeId, Arc<dyn Log>>>,
    cut: Mutex<BTreeSet<NodeId>>,
}

impl Net {
    pub fn cut(&self, node: u64) {
        self.cut.lock().unwrap().insert(NodeId(node));
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }
}

struct Line {
    from: NodeId,
    net: Arc<Net>,
}

#[async_trait]
impl Transport for Line {
    async fn send(
        &self,
        to: NodeId,
        address: &str,
        request: RaftRequest,
        within: Duration,
    ) -> Result<RaftReply, TransportError> {
        let cut = |net: &Net| {
            let cut = net.cut.lock().unwrap();
            cut.contains(&self.from) || cut.contains(&to)
        };
        if cut(&self.net) {
            return Err(TransportError::Unreachable(format!("{address} is cut off")));
        }
        let member = self.net.members.lock().unwrap().get(&to).cloned();
        let member = member.ok_or_else(|| TransportError::Unreachable(format!("{address} is off")))?;
        // Through JSON, as on the wire.
        let bytes = serde_json::to_vec(&request).unwrap();
        let reply = tokio::time::timeout(within, member.handle(self.from, serde_json::from_slice(&bytes).unwrap()))
            .await
            .map_err(|_| TransportError::Timeout)?;
        if cut(&self.net) {
            return Err(TransportError::Timeout);
        }
        Ok(serde_json::from_slice(&serde_json::to_vec(&reply).unwrap()).unwrap())
    }
}

/// Some machines, each with a state directory and, while it is up, a member.
pub struct Lab {
    pub net: Arc<Net>,
    dir: tempfile::TempDir,
    config: Config,
}

impl Lab {
    pub fn new() -> Self {
        // A busy test machine stops a process for longer than a real one is silent.
        let config = Config { lease: Duration::from_millis(500), ..Config::default() };
        Self::with(config)
    }

    pub fn with(config: Config) -> Self {
        Self { net: Arc::default(), dir: tempfile::tempdir().unwrap(), config }
    }

    pub fn dir(&self, node: u64) -> PathBuf {
        let dir = self.dir.path().join(node.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub async fn start(&self, node: u64) -> Arc<dyn Log> {
        self.start_with(node, self.config.clone()).await
    }

    pub async fn start_with(&self, node: u64, config: Config) -> Arc<dyn Log> {
        let store = Store::open(&self.dir(node), NodeId(node), None).unwrap();
        let line = Arc::new(Line { from: NodeId(node), net: Arc::clone(&self.net) });
        let log = consensus::start(store, config, line).await.unwrap();
        self.net.members.lock().unwrap().insert(NodeId(node), Arc::clone(&log));
        log
    }

    /// Takes a member away at once: nobody reaches it from now on.
    pub async fn stop(&self, node: u64) {
        let log = self.net.members.lock().unwrap().remove(&NodeId(node)).unwrap();
        log.shutdown().await;
    }

    /// A group with one voter and a cluster in it.
    pub async fn found(&self) -> Arc<dyn Log> {
        let log = self.start(1).await;
        log.bootstrap(info(1)).await.unwrap();
        propose(&log, vec![init()]).await.unwrap();
        log
    }

    /// A group of voters 1 to `n`; node 1 leads.
    pub async fn voters(&self, n: u64) -> Vec<Arc<dyn Log>> {
        let mut logs = vec![self.found().await];
        for node in 2..=n {
            logs.push(self.start(node).await);
            logs[0].add_learner(NodeId(node), info(node), LONG).await.unwrap();
        }
        logs[0].set_voters(ids(1..=n), LONG).await.unwrap();
        logs
    }
}

/// Proposes with the incarnation and office that the member sees.
pub async fn propose(log: &Arc<dyn Log>, commands: Vec<Command>) -> Result<Committed, ProposeError> {
    let state = log.state();
    let office = Some(state.office.map_or(0, |office| office.term));
    log.propose(Proposal { incarnation: state.incarnation, office, at: Timestamp(1), commands }).await
}

/// Submits a job in the name of `user`.
pub async fn submit(log: &Arc<dyn Log>, user: &str) -> Result<JobId, ProposeError> {
    match propose(log, vec![job(user)]).await?.applied.as_slice() {
        [Applied::Job(id)] => Ok(*id),
        other => panic!("{other:?}"),
    }
}

/// In whose name there are jobs, in the order of their numbers.
pub fn users(log: &Arc<dyn Log>) -> Vec<String> {
    log.state().jobs.values().map(|job| job.user.clone()).collect()
}

/// Waits until the status is so.
pub async fn until(log: &Arc<dyn Log>, so: impl FnMut(&Status) -> bool) -> Status {
    let mut status = log.watch_status();
    let found = tokio::time::timeout(LONG, status.wait_for(so)).await;
    found.unwrap_or_else(|_| panic!("never so: {:?}", log.status())).unwrap().clone()
}

/// Waits until a member has applied what is in `index`.
pub async fn until_applied(log: &Arc<dyn Log>, index: u64) {
    let mut view = log.watch();
    let found = tokio::time::timeout(LONG, view.wait_for(|view| view.index >= index)).await;
    found.unwrap_or_else(|_| panic!("never applied {index}: {:?}", log.status())).unwrap();
}

/// Waits until one of these leads, and returns it.
pub async fn leader_of(logs: &[&Arc<dyn Log>]) -> Arc<dyn Log> {
    let waits = logs.iter().map(|log| Box::pin(until(log, |status| status.is_leader)));
    let (_, index, _) = futures::future::select_all(waits).await;
    Arc::clone(logs[index])
}
