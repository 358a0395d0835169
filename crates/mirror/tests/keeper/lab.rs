//! Nodes in one process: each keeper on a runtime of its own, so that it can be killed with all its tasks; real files, a
//! tmpfs, TLS over loopback addresses, and a log that is a state behind a lock.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use mirror::driver::{Authority, Lease, outcome_of};
use mirror::engine::{Config, Outcome};
use mirror::keeper::{Export, Keeper, KeeperConfig, NewReplica, ReplicaStatus};
use mirror::wire::{self, Channel, Frame, Hello, Link};
use model::*;
use rpc::{ClusterCa, Identity, NodeKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// A bound for what has to happen at once: only a fault makes a test wait for its end.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The replicated log: one for all.
pub struct Log {
    state: Mutex<State>,
    newest: watch::Sender<Arc<State>>,
    /// Everything that was accepted.
    pub accepted: Mutex<Vec<Command>>,
}

impl Log {
    fn new() -> Arc<Self> {
        let newest = watch::Sender::new(Arc::default());
        Arc::new(Self { state: Mutex::default(), newest, accepted: Mutex::default() })
    }

    fn apply(&self, incarnation: Incarnation, commands: Vec<Command>) -> Result<Vec<Applied>, Rejection> {
        let mut state = self.state.lock().unwrap();
        let office = Some(state.office.map_or(0, |office| office.term));
        let proposal = Proposal { incarnation, office, at: Timestamp(1), commands };
        let applied = state.apply(&proposal);
        if applied.is_ok() {
            self.accepted.lock().unwrap().extend(proposal.commands);
            self.newest.send_replace(Arc::new(state.clone()));
        }
        applied
    }

    pub fn run(&self, commands: Vec<Command>) -> Vec<Applied> {
        let incarnation = self.state.lock().unwrap().incarnation;
        self.apply(incarnation, commands).unwrap()
    }

    pub fn state(&self) -> Arc<State> {
        self.newest.borrow().clone()
    }

    /// Waits until the state is as it should be.
    pub async fn until(&self, what: &str, is: impl Fn(&State) -> bool) -> Arc<State> {
        let mut newest = self.newest.subscribe();
        let seen = tokio::time::timeout(2 * PATIENCE, newest.wait_for(|state| is(state))).await;
        seen.unwrap_or_else(|_| panic!("the state never came to this: {what}")).unwrap().clone()
    }
}

/// A node's way to the log, which can be cut.
pub struct Way {
    log: Arc<Log>,
    cut: watch::Sender<bool>,
    /// Proposals that got no answer.
    unanswered: watch::Sender<u64>,
}

#[async_trait]
impl Authority for Way {
    async fn propose(&self, incarnation: Incarnation, command: Command) -> Outcome {
        if *self.cut.borrow() {
            self.unanswered.send_modify(|count| *count += 1);
            return Outcome::Unknown;
        }
        outcome_of(&self.log.apply(incarnation, vec![command]))
    }

    async fn barrier(&self) -> Option<Arc<State>> {
        (!*self.cut.borrow()).then(|| self.log.state())
    }

    fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.log.newest.subscribe()
    }
}

/// A mirrored disk with its instance.
#[derive(Clone)]
pub struct TestDisk {
    pub instance: InstanceId,
    pub disk: DiskId,
    /// Node and replica.
    pub replicas: Vec<(usize, ReplicaId)>,
}

impl TestDisk {
    pub fn mirror<'a>(&self, state: &'a State) -> &'a Mirror {
        state.instances[&self.instance].disks[0].mirror.as_ref().unwrap()
    }

    pub fn members(&self, state: &State) -> usize {
        self.mirror(state).in_sync().len()
    }

    pub fn replica(&self, node: usize) -> ReplicaId {
        self.replicas.iter().find(|(on, _)| *on == node).unwrap().1
    }
}

struct Node {
    number: u64,
    boot: AtomicU32,
    way: Arc<Way>,
    identity: Arc<Identity>,
    /// Until when it has a lease, by a clock that stands still.
    until: watch::Sender<Duration>,
    strict: watch::Sender<bool>,
    running: Mutex<Option<(Runtime, Arc<Keeper>)>>,
}

pub struct Lab {
    pub log: Arc<Log>,
    pub engine: Config,
    pub ca: ClusterCa,
    pub cluster: Uuid,
    network: Network,
    nodes: Vec<Node>,
    disks: tempfile::TempDir,
    run: tempfile::TempDir,
}

/// The loopback network of a lab, which it has for itself as long as it holds the listener in it.
struct Network {
    third: u8,
    _claim: TcpListener,
}

impl Network {
    fn claim() -> Self {
        let claim = |third: u8| {
            let claim = TcpListener::bind((Ipv4Addr::new(127, 7, third, 250), PORT)).ok()?;
            Some(Self { third, _claim: claim })
        };
        let start = std::process::id() as u8;
        (0..=255).find_map(|step| claim(start.wrapping_add(step))).unwrap()
    }

    fn address(&self, node: u64) -> Ipv4Addr {
        Ipv4Addr::new(127, 7, self.third, node as u8)
    }
}

/// The port of every node.
const PORT: u16 = 25_082;

/// Times for a machine that does other things as well: what is alive is not taken for dead.
pub fn patient() -> Config {
    Config { t_peer_ms: 5_000, t_out_strict_ms: 5_000, ..Config::default() }
}

impl Lab {
    /// A cluster of running nodes.
    pub async fn new(nodes: u64, engine: Config) -> Self {
        let (ca, cluster) = (ClusterCa::generate("lab").unwrap(), Uuid::new_v4());
        let log = Log::new();
        let nodes = (1..=nodes).map(|number| Node {
            number,
            boot: AtomicU32::new(0),
            way: Arc::new(Way { log: log.clone(), cut: watch::Sender::new(false), unanswered: watch::Sender::new(0) }),
            identity: Arc::new(identity(&ca, cluster, number)),
            until: watch::Sender::new(Duration::MAX),
            strict: watch::Sender::new(false),
            running: Mutex::new(None),
        });
        let nodes: Vec<Node> = nodes.collect();
        let disks = tempfile::tempdir().unwrap();
        let run = tempfile::tempdir_in("/dev/shm").unwrap();
        let lab = Self { log, engine, ca, cluster, network: Network::claim(), nodes, disks, run };
        lab.found();
        for node in 1..=lab.nodes.len() {
            lab.boot(node).await;
        }
        lab
    }

    fn found(&self) {
        let node = |number: u64| NewNode {
            name: format!("node{number:02}"),
            uuid: Uuid::from_u128(number.into()),
            primary_ip: self.network.address(number),
            secondary_ip: self.network.address(number),
            group: None,
            master_capable: true,
            vm_capable: true,
        };
        let cluster = Box::new(cluster(self.cluster));
        let init = Command::Init { cluster, incarnation: Uuid::new_v4(), group: Uuid::from_u128(9), node: node(1) };
        self.log.run(vec![init]);
        self.log.run(vec![Command::TakeOffice { node: NodeId(1), term: 1 }]);
        for number in 2..=self.nodes.len() as u64 {
            let (token, expires) = (Uuid::from_u128(number.into()), Timestamp(u64::MAX));
            let add = Command::AddToken { id: token, secret_sha256: String::new(), node: node(number), expires };
            self.log.run(vec![add, Command::AddNode { token }, Command::DropToken { id: token }]);
        }
    }

    fn node(&self, node: usize) -> &Node {
        &self.nodes[node - 1]
    }

    fn boot_name(&self, node: usize) -> String {
        format!("boot-{node}.{}", self.node(node).boot.load(Ordering::SeqCst))
    }

    /// A fresh boot of a node, and its keeper.
    pub async fn boot(&self, node: usize) {
        self.node(node).boot.fetch_add(1, Ordering::SeqCst);
        self.join(node);
        self.start(node).await;
    }

    fn join(&self, node: usize) {
        let id = NodeId(self.node(node).number);
        let previous = self.log.state().nodes[&id].life;
        let boot = self.boot_name(node);
        self.log.run(vec![Command::JoinNode { node: id, boot, previous, runs: Vec::new() }]);
        let life = self.log.state().nodes[&id].life;
        self.log.run(vec![Command::Arm { node: id, life }]);
    }

    /// Starts a node's keeper.
    pub async fn start(&self, node: usize) -> Arc<Keeper> {
        self.start_as(node, self.node(node).identity.clone()).await
    }

    pub async fn start_as(&self, node: usize, identity: Arc<Identity>) -> Arc<Keeper> {
        let it = self.node(node);
        let config = KeeperConfig {
            node: NodeId(it.number),
            boot: self.boot_name(node),
            folder: self.folder(node),
            run_dir: self.run.path().join(node.to_string()),
            listen: SocketAddr::new(IpAddr::V4(self.network.address(it.number)), PORT),
            port: PORT,
            user: None,
            engine: self.engine.clone(),
            lease: Lease::new(it.until.subscribe(), || Duration::ZERO),
            strict: it.strict.subscribe(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let way = it.way.clone();
        let keeper = runtime.spawn(async move { Keeper::start(config, identity, way).await }).await.unwrap().unwrap();
        *it.running.lock().unwrap() = Some((runtime, keeper.clone()));
        keeper
    }

    /// Gives a node a lease, or takes it.
    pub fn lease(&self, node: usize, held: bool) {
        self.node(node).until.send_replace(if held { Duration::MAX } else { Duration::ZERO });
    }

    /// Tells a node to be strict, or not to be any more.
    pub fn strict(&self, node: usize, strict: bool) {
        self.node(node).strict.send_replace(strict);
    }

    /// Ends a node's keeper as SIGKILL would: at once, but for what the kernel has been asked already.
    pub async fn kill(&self, node: usize) {
        let (runtime, keeper) = self.node(node).running.lock().unwrap().take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
        // Its destructor would do more than a process that was killed.
        std::mem::forget(keeper);
    }

    /// Ends a node's keeper in good order.
    pub async fn stop(&self, node: usize) {
        let (runtime, keeper) = self.node(node).running.lock().unwrap().take().unwrap();
        let ending = runtime.spawn(async move { keeper.shutdown().await });
        tokio::time::timeout(PATIENCE, ending).await.unwrap().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
    }

    pub fn keeper(&self, node: usize) -> Arc<Keeper> {
        self.node(node).running.lock().unwrap().as_ref().unwrap().1.clone()
    }

    /// Cuts a node's way to the log, or mends it.
    pub fn cut_log(&self, node: usize, cut: bool) {
        self.node(node).way.cut.send_replace(cut);
    }

    /// Waits until so many proposals of a node got no answer.
    pub async fn unanswered(&self, node: usize, count: u64) {
        let mut unanswered = self.node(node).way.unanswered.subscribe();
        let reached = tokio::time::timeout(PATIENCE, unanswered.wait_for(|so_far| *so_far >= count)).await;
        reached.expect("nothing is proposed").unwrap();
    }

    pub fn folder(&self, node: usize) -> PathBuf {
        self.disks.path().join(node.to_string())
    }

    pub fn data(&self, node: usize, disk: &TestDisk) -> PathBuf {
        self.folder(node).join(disk.disk.to_string()).join(format!("{}.data", disk.replica(node)))
    }

    /// A replica's content, as it is on its medium.
    pub fn content(&self, node: usize, disk: &TestDisk) -> Vec<u8> {
        std::fs::read(self.data(node, disk)).unwrap()
    }

    /// Makes a disk on these nodes, born in sync.
    pub async fn add_disk(&self, nodes: &[usize], size_mib: u64) -> TestDisk {
        let disk = TestDisk {
            instance: InstanceId(Uuid::new_v4()),
            disk: DiskId(Uuid::new_v4()),
            replicas: nodes.iter().map(|node| (*node, ReplicaId(Uuid::new_v4()))).collect(),
        };
        let incarnation = self.log.state().incarnation;
        for (node, replica) in &disk.replicas {
            let new = NewReplica {
                disk: disk.disk,
                replica: *replica,
                size: size_mib << 20,
                incarnation,
                mode: MirrorMode::Strict,
                born_in_sync: true,
            };
            self.keeper(*node).create(new).await.unwrap();
        }
        let replicas = disk.replicas.iter().map(|(node, rid)| (*rid, NodeId(*node as u64), self.boot_name(*node)));
        let mirror = Mirror::new(MirrorMode::Strict, replicas);
        self.log.run(vec![Command::AddInstance(Box::new(instance(&disk, nodes, mirror, size_mib)))]);
        disk
    }

    /// Gives the disk to a node and waits until it is served.
    pub async fn own(&self, disk: &TestDisk, node: usize) -> (RunId, Export) {
        let own = Command::Own { instance: disk.instance, node: NodeId(node as u64) };
        let [Applied::Run(run)] = self.log.run(vec![own])[..] else { panic!("no run") };
        (run, self.serving(disk, node, run).await)
    }

    pub async fn serving(&self, disk: &TestDisk, node: usize, run: RunId) -> Export {
        self.keeper(node).serving(disk.disk, run, PATIENCE).await.unwrap()
    }

    /// The hypervisor is gone: ends the run in good order and gives the disk back.
    pub async fn disown(&self, disk: &TestDisk, node: usize, run: RunId) {
        let keeper = self.keeper(node);
        keeper.end_run(disk.disk, run).await;
        keeper.release(disk.disk, PATIENCE).await.unwrap();
        self.log.run(vec![Command::Disown { instance: disk.instance, run, want: None }]);
    }

    pub async fn status(&self, node: usize, disk: &TestDisk) -> ReplicaStatus {
        self.keeper(node).status().await.into_iter().find(|status| status.disk == disk.disk).unwrap()
    }

    /// Waits until every replica of the disk is a member.
    pub async fn in_sync(&self, disk: &TestDisk) {
        let all = |state: &State| disk.members(state) == disk.replicas.len();
        if tokio::time::timeout(PATIENCE, self.log.until("all in sync", all)).await.is_err() {
            for (node, _) in &disk.replicas {
                println!("{:#?}", self.status(*node, disk).await);
            }
            panic!("the replicas don't get in sync");
        }
    }

    /// Says Hello to a node as the primary's replica on another, with any certificate, and in a later link; the answer, if
    /// there is one.
    pub async fn say_hello(&self, disk: &TestDisk, from: usize, to: usize, who: &Identity) -> Option<Frame> {
        let state = self.log.state();
        let mirror = disk.mirror(&state);
        let hello = Frame::Hello(Hello {
            inc: state.incarnation,
            disk: disk.disk,
            from: disk.replica(from),
            to: disk.replica(to),
            epoch: mirror.epoch,
            link: Link { start: 1000, k: 1 },
            channel: Channel::Data,
            ver: mirror.ver,
        });
        // The one who is called is not in doubt here.
        let mut tls = (*rpc::tls::client_config(who, to as u64).ok()?).clone();
        tls.dangerous().set_certificate_verifier(Arc::new(Anybody));
        let address = self.network.address(to as u64);
        let stream = tokio::net::TcpStream::connect((address, PORT)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let mut stream = connector.connect(IpAddr::V4(address).into(), stream).await.ok()?;
        stream.write_all(&wire::encode(&hello).head).await.ok()?;
        let mut received = bytes::BytesMut::new();
        loop {
            if let Some(frame) = wire::decode(&mut received).unwrap() {
                return Some(frame);
            }
            if stream.read_buf(&mut received).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// Ends everything in good order.
    pub async fn end(self) {
        for node in 1..=self.nodes.len() {
            if self.node(node).running.lock().unwrap().is_some() {
                self.stop(node).await;
            }
        }
    }
}

/// A test that failed has no use for good order.
impl Drop for Lab {
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Some((runtime, _)) = node.running.lock().unwrap().take() {
                runtime.shutdown_background();
            }
        }
    }
}

/// Takes whoever answers for the right one.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

pub fn identity(ca: &ClusterCa, cluster: Uuid, number: u64) -> Identity {
    let key = NodeKey::generate().unwrap();
    let certificate = ca.sign_csr(&key.csr_pem("node").unwrap(), cluster, number).unwrap();
    key.into_identity(&certificate, &ca.cert_pem()).unwrap()
}

fn cluster(uuid: Uuid) -> Cluster {
    Cluster {
        name: "lab".into(),
        uuid,
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        address: Ipv4Addr::new(10, 0, 0, 20),
        netmask: 32,
        netdev: "br0".into(),
        mac_prefix: "aa:00:00".into(),
        hypervisors: vec!["fake".into()],
        hvparams: Default::default(),
        beparams: Default::default(),
        nicparams: Default::default(),
        ndparams: Default::default(),
        disk_templates: vec![DiskTemplate::Drbd],
        file_storage_dir: "/srv".into(),
        candidate_pool_size: 10,
        max_running_jobs: 20,
        tags: Default::default(),
        os: Default::default(),
        drained: false,
        ha: true,
        lease_ms: model::LEASE_MS,
        ca_certificate: String::new(),
        ca_key: String::new(),
    }
}

fn instance(disk: &TestDisk, nodes: &[usize], mirror: Mirror, size_mib: u64) -> Instance {
    Instance {
        id: disk.instance,
        name: disk.instance.to_string(),
        provision: Provision::Ready,
        primary: NodeId(nodes[0] as u64),
        secondaries: nodes[1..].iter().map(|node| NodeId(*node as u64)).collect(),
        want: AdminState::Up,
        owner: None,
        run: None,
        migration: None,
        hypervisor: "fake".into(),
        os: "none".into(),
        hvparams: Default::default(),
        beparams: Default::default(),
        osparams: Default::default(),
        disk_template: DiskTemplate::Drbd,
        disks: vec![Disk {
            id: disk.disk,
            name: None,
            size_mib,
            access: DiskAccess::Rw,
            ctime: Timestamp(0),
            mirror: Some(mirror),
        }],
        nics: Vec::new(),
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        tags: Default::default(),
    }
}
