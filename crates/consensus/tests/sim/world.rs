//! Three nodes, what happens to them, and the clients.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use consensus::{Config, Consensus, Log, ProposeError, RaftReply, RaftRequest, Store, Task, Transport, TransportError};
use model::{Applied, Command, NodeId, Proposal, Timestamp, Uuid};
use openraft_rt::{AsyncRuntime as _, Instant as _};
use openraft_rt_sim::{SimInstant, SimRuntime as Rt};
use rand::RngExt as _;

use crate::common::{info, init, job, new_node};
use crate::disk::Disk;
use crate::oracle::Oracle;

const NODES: u64 = 3;
const STEPS: u64 = 250;
/// Bound for what must happen once everything is healed.
const CONVERGE: Duration = Duration::from_secs(20);

fn chance(percent: u32) -> bool {
    Rt::thread_rng().random_range(0..100) < percent
}

fn any(range: std::ops::RangeInclusive<u64>) -> u64 {
    Rt::thread_rng().random_range(range)
}

/// What came of a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub acked: u64,
    pub unknown: u64,
    pub refused: u64,
    pub crashes: u64,
    pub handovers: u64,
    pub virtual_seconds: u64,
    digest: u64,
}

struct Member {
    log: Arc<dyn Log>,
    /// Whether its node has power.
    alive: Arc<AtomicBool>,
}

#[derive(Default)]
struct Inner {
    members: BTreeMap<u64, Member>,
    disks: BTreeMap<u64, Disk>,
    /// Messages from the first to the second are lost.
    cut: BTreeSet<(u64, u64)>,
    /// Once everything is healed messages are only late.
    calm: bool,
    oracle: Oracle,
    outcome: Outcome,
    proposals: u64,
}

#[derive(Clone, Default)]
struct World(Arc<Mutex<Inner>>);

struct Line {
    world: World,
    from: u64,
    alive: Arc<AtomicBool>,
}

impl Line {
    fn passes(&self, from: u64, to: u64) -> bool {
        let inner = self.world.inner();
        self.alive.load(Ordering::Relaxed) && !inner.cut.contains(&(from, to)) && (inner.calm || !chance(3))
    }

    async fn travel(&self) {
        let millis = if chance(2) { any(20..=400) } else { any(1..=15) };
        Rt::sleep(Duration::from_millis(millis)).await;
    }
}

#[async_trait]
impl Transport for Line {
    async fn send(
        &self,
        to: NodeId,
        _address: &str,
        request: RaftRequest,
        within: Duration,
    ) -> Result<RaftReply, TransportError> {
        let exchange = async {
            self.travel().await;
            let member = self.world.inner().members.get(&to.0).map(|member| Arc::clone(&member.log));
            let member = member.ok_or_else(|| TransportError::Unreachable("off".into()))?;
            if !self.passes(self.from, to.0) {
                return std::future::pending().await;
            }
            if chance(2) {
                // Delivered twice; the second time later, and nobody waits for the answer.
                let (again, request, from) = (Arc::clone(&member), request.clone(), NodeId(self.from));
                drop(Rt::spawn(async move {
                    Rt::sleep(Duration::from_millis(any(1..=500))).await;
                    again.handle(from, request).await;
                }));
            }
            let reply = member.handle(NodeId(self.from), request).await;
            self.travel().await;
            if !self.passes(to.0, self.from) {
                return std::future::pending().await;
            }
            Ok(reply)
        };
        Rt::timeout(within, exchange).await.unwrap_or(Err(TransportError::Timeout))
    }
}

impl World {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn log(&self, node: u64) -> Option<Arc<dyn Log>> {
        self.inner().members.get(&node).map(|member| Arc::clone(&member.log))
    }

    fn logs(&self) -> Vec<(u64, Arc<dyn Log>)> {
        self.inner().members.iter().map(|(node, member)| (*node, Arc::clone(&member.log))).collect()
    }

    async fn start(&self, node: u64) {
        let alive = Arc::new(AtomicBool::new(true));
        let disk = self.inner().disks.entry(node).or_default().clone();
        let powered = Arc::clone(&alive);
        let writer = Box::new(move |task: Task| {
            let powered = Arc::clone(&powered);
            drop(Rt::spawn(async move {
                Rt::sleep(Duration::from_micros(any(100..=4000))).await;
                if powered.load(Ordering::Relaxed) {
                    task();
                }
            }));
        });
        let store = Store::on_backend(disk.open(), writer, NodeId(node), None).unwrap();
        let config = Config { snapshot_every: 25, keep_entries: 5, ..Config::default() };
        let line = Line { world: self.clone(), from: node, alive: Arc::clone(&alive) };
        let log: Arc<dyn Log> = Consensus::<Rt>::start(store, config, Arc::new(line)).await.unwrap();
        self.observe(node, &log, &alive);
        self.inner().members.insert(node, Member { log, alive });
    }

    /// Shows the oracle every state and status that a member publishes.
    fn observe(&self, node: u64, log: &Arc<dyn Log>, alive: &Arc<AtomicBool>) {
        let (world, mut views, powered) = (self.clone(), log.watch(), Arc::clone(alive));
        drop(Rt::spawn(async move {
            let mut before = 0;
            while powered.load(Ordering::Relaxed) {
                let view = views.borrow_and_update().clone();
                world.inner().oracle.published(node, before, &view);
                before = view.index;
                drop(view);
                if views.changed().await.is_err() {
                    return;
                }
            }
        }));
        let (world, mut status, powered) = (self.clone(), log.watch_status(), Arc::clone(alive));
        drop(Rt::spawn(async move {
            while powered.load(Ordering::Relaxed) {
                let now = status.borrow_and_update().clone();
                world.inner().oracle.status(&now);
                if status.changed().await.is_err() {
                    return;
                }
            }
        }));
    }

    /// The power of a node fails.
    fn crash(&self, node: u64) {
        let mut inner = self.inner();
        let Some(member) = inner.members.remove(&node) else { return };
        member.alive.store(false, Ordering::Relaxed);
        inner.disks[&node].crash();
        inner.outcome.crashes += 1;
        drop(inner);
        // Only so that its tasks end; it can't reach its disk or anybody any more.
        drop(Rt::spawn(async move { member.log.shutdown().await }));
    }

    async fn cut_some(&self) {
        let (a, b) = (any(1..=NODES), any(1..=NODES));
        let mut inner = self.inner();
        match any(0..=2) {
            // one way between two
            0 => inner.cut.extend([(a, b)]),
            1 => inner.cut.extend([(a, b), (b, a)]),
            // a node on its own
            _ => inner.cut.extend((1..=NODES).flat_map(|other| [(a, other), (other, a)])),
        }
    }

    /// A client proposes one job, to whom it believes to lead.
    fn propose(&self) {
        let leader = self.logs().into_iter().find(|(_, log)| log.status().is_leader);
        let Some((node, log)) = leader.or_else(|| self.log(any(1..=NODES)).map(|log| (0, log))) else { return };
        let user = {
            let mut inner = self.inner();
            inner.proposals += 1;
            format!("client{}", inner.proposals)
        };
        let world = self.clone();
        drop(Rt::spawn(async move {
            take_office(&log, node).await;
            let result = submit(&log, &user).await;
            let mut inner = world.inner();
            match result {
                Ok((index, job)) => {
                    inner.outcome.acked += 1;
                    inner.oracle.acked(index, job, user);
                }
                // Rejected: the office had changed. Either way it must never show up.
                Err(ProposeError::NotLeader { .. } | ProposeError::Rejected(_)) => {
                    inner.outcome.refused += 1;
                    inner.oracle.refused(user);
                }
                Err(ProposeError::Unknown(_) | ProposeError::Stopped(_)) => inner.outcome.unknown += 1,
            }
        }));
    }

    /// A client reads what is current.
    fn read(&self) {
        for (node, log) in self.logs() {
            let world = self.clone();
            drop(Rt::spawn(async move {
                let confirmed = world.inner().oracle.acked_so_far();
                if log.read_barrier(Duration::from_secs(1)).await.is_ok() {
                    let state = log.state();
                    world.inner().oracle.read(node, confirmed, &state);
                }
            }));
        }
    }

    fn hand_over(&self) {
        for (_, log) in self.logs().into_iter().filter(|(_, log)| log.status().is_leader) {
            let (world, to) = (self.clone(), NodeId(any(1..=NODES)));
            drop(Rt::spawn(async move {
                if log.transfer_leader(to, Duration::from_secs(1)).await.is_ok() {
                    world.inner().outcome.handovers += 1;
                }
            }));
        }
    }

    async fn step(&self) {
        match any(0..=99) {
            0..=3 if self.inner().members.len() as u64 == NODES => self.crash(any(1..=NODES)),
            // Now and then all at once.
            4 => (1..=NODES).for_each(|node| self.crash(node)),
            5..=18 => {
                let down = (1..=NODES).find(|node| self.log(*node).is_none());
                if let Some(node) = down {
                    self.start(node).await;
                }
            }
            19..=22 => self.cut_some().await,
            23..=32 => self.inner().cut.clear(),
            33..=36 => self.hand_over(),
            37..=39 => {
                for (_, log) in self.logs() {
                    // One that has just crashed can't.
                    let _ = log.snapshot().await;
                }
            }
            40..=49 => self.read(),
            _ => self.propose(),
        }
        Rt::sleep(Duration::from_millis(any(5..=80))).await;
    }

    fn check(&self) {
        let violations = std::mem::take(&mut self.inner().oracle.violations);
        assert!(violations.is_empty(), "{violations:#?}");
    }

    /// Everything is well again: all members serve, and agree.
    async fn converge(&self) {
        self.inner().calm = true;
        self.inner().cut.clear();
        for node in 1..=NODES {
            if self.log(node).is_none() {
                self.start(node).await;
            }
        }
        let deadline = SimInstant::now() + CONVERGE;
        loop {
            assert!(SimInstant::now() < deadline, "does not serve after everything was healed");
            let leader = self.logs().into_iter().find(|(_, log)| log.status().is_leader);
            if let Some((node, log)) = leader {
                take_office(&log, node).await;
                if submit(&log, "last").await.is_ok() {
                    break;
                }
            }
            Rt::sleep(Duration::from_millis(50)).await;
        }
        loop {
            assert!(SimInstant::now() < deadline, "members do not agree after everything was healed");
            let views: Vec<_> = self.logs().into_iter().map(|(_, log)| log.view()).collect();
            if views.iter().all(|view| view.index == views[0].index && view.state == views[0].state) {
                // What was under way has its answer by now, or its time is up.
                Rt::sleep(Duration::from_secs(3)).await;
                let state = self.logs()[0].1.state();
                self.inner().oracle.finish(&state);
                return;
            }
            drop(views);
            Rt::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn propose(log: &Arc<dyn Log>, command: Command) -> Result<(u64, Applied), ProposeError> {
    let state = log.state();
    let office = Some(state.office.map_or(0, |office| office.term));
    let (incarnation, at) = (state.incarnation, Timestamp(1));
    drop(state);
    let mut done = log.propose(Proposal { incarnation, office, at, commands: vec![command] }).await?;
    Ok((done.index, done.applied.remove(0)))
}

async fn submit(log: &Arc<dyn Log>, user: &str) -> Result<(u64, model::JobId), ProposeError> {
    match propose(log, job(user)).await? {
        (index, Applied::Job(id)) => Ok((index, id)),
        (_, other) => panic!("{other:?}"),
    }
}

/// As a new master does.
async fn take_office(log: &Arc<dyn Log>, node: u64) {
    let status = log.status();
    let held = log.state().office.is_some_and(|office| office.node.0 == node && office.term == status.term);
    if status.is_leader && !held {
        // Whatever comes of it, the proposal that follows shows.
        let _ = propose(log, Command::TakeOffice { node: NodeId(node), term: status.term }).await;
    }
}

/// Founds a cluster of three voters, as an administrator does; nothing goes wrong yet.
async fn found(world: &World) {
    world.inner().calm = true;
    for node in 1..=NODES {
        world.start(node).await;
    }
    let one = world.log(1).unwrap();
    one.bootstrap(info(1)).await.unwrap();
    propose(&one, init()).await.unwrap();
    take_office(&one, 1).await;
    for node in 2..=NODES {
        let token = Uuid::from_u128(0x1000 + u128::from(node));
        let permit =
            Command::AddToken { id: token, secret_sha256: String::new(), node: new_node(node), expires: Timestamp(9) };
        propose(&one, permit).await.unwrap();
        propose(&one, Command::AddNode { token }).await.unwrap();
        one.add_learner(NodeId(node), info(node), CONVERGE).await.unwrap();
    }
    one.set_voters((1..=NODES).map(NodeId).collect(), CONVERGE).await.unwrap();
    world.inner().calm = false;
}

/// One history. Panics where something does not hold.
pub async fn history() -> Outcome {
    let began = SimInstant::now();
    let world = World::default();
    found(&world).await;
    for _ in 0..STEPS {
        world.step().await;
        world.check();
    }
    world.converge().await;
    world.check();
    for (_, log) in world.logs() {
        log.shutdown().await;
    }
    let mut inner = world.inner();
    inner.outcome.virtual_seconds = (SimInstant::now() - began).as_secs();
    inner.outcome.digest = inner.oracle.events.finish();
    inner.outcome.clone()
}
