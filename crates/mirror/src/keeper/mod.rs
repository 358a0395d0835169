//! All replicas of one node, and what they serve.
//!
//! The keeper follows the replicated state by itself: it opens the replicas that the state gives to its node, tells each
//! what the log says of its disk, promotes those of which this node in its current life is the primary, and exports them
//! to the run that the state names. Jobs ask for what the state does not say: files, and the steps of a migration.

mod digest;
mod error;
mod exports;
mod files;
mod minder;
mod status;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{DiskId, Epoch, NodeId, ReplicaId, RunId, State, Uuid};
use rpc::Identity;
use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;

pub use error::KeeperError;
pub use exports::Export;
pub use files::NewReplica;
pub use status::{Connection, DiskState, PeerStatus, ReplicaStatus, Role};

use crate::backing::BootPlace;
use crate::device::Device;
use crate::driver::{Authority, Connector, Driver, Incoming, Lease, Progress, accept};
use crate::engine::{Config, Event, Notice};
use crate::nbd::{Server, SocketOptions};
use exports::Exports;
use files::Folder;
use minder::Slot;

/// The NBD socket's name in the run directory.
const SOCKET: &str = "disks.nbd";
/// Notices that may wait for one who follows them.
const NOTICES: usize = 1024;
/// How long a replica may take to be there that the state has only just given to this node.
const OPEN_TIME: Duration = Duration::from_secs(10);
/// How long replicas may take for their orderly end when the daemon ends.
const STOP_TIME: Duration = Duration::from_secs(5);
/// How often a replica is looked at that is to store something.
const LOOK: Duration = Duration::from_millis(5);
/// How long a replica may take to say how it is.
const STATUS_TIME: Duration = Duration::from_secs(1);

/// What a node's keeper has to know.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// The node.
    pub node: NodeId,
    /// Name of its boot, as the state has it.
    pub boot: String,
    /// Where replicas are: `<disk>/<replica>.data` and `.meta`.
    pub folder: PathBuf,
    /// On a tmpfs: what outlives the daemon but not the kernel, and the socket for guests.
    pub run_dir: PathBuf,
    /// Where to listen for other nodes.
    pub listen: SocketAddr,
    /// Where other nodes listen, at their secondary address.
    pub port: u16,
    /// User and group that may connect to the socket for guests besides root. `None`: those of this process.
    pub user: Option<(u32, u32)>,
    /// Times and limits of the protocol.
    pub engine: Config,
    /// The node's lease: without it strict disks are not read.
    pub lease: Lease,
    /// Whether all replicas are strict, whatever the log says (protocol, 7.3).
    pub strict: watch::Receiver<bool>,
}

/// What everything of a keeper shares.
struct Shared {
    config: KeeperConfig,
    folder: Folder,
    boot_place: BootPlace,
    authority: Arc<dyn Authority>,
    connector: Arc<Connector>,
    exports: Exports,
    notices: broadcast::Sender<(DiskId, Notice)>,
    slots: watch::Sender<Slots>,
    /// Replicas whose files are being removed, or were: they are not opened, whatever an old state says.
    removed: Mutex<BTreeSet<ReplicaId>>,
    /// The list of replicas to be had may have changed.
    changed: Notify,
}

/// The replicas of the node.
struct Slots {
    by_disk: BTreeMap<DiskId, Arc<Slot>>,
    /// No others come.
    closed: bool,
}

/// All replicas of a node. Dropping it ends everything at once, as a crash would.
pub struct Keeper {
    shared: Arc<Shared>,
    server: Mutex<Option<Server>>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Keeper").field(&self.shared.config).finish()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Keeper {
    /// Starts: listens for other nodes and for guests, and opens what the state gives to this node. To be called within a
    /// multi-threaded tokio runtime.
    ///
    /// # Errors
    /// [`KeeperError`]: a port, a socket or a folder is not to be had, or the certificate can't be used.
    pub async fn start(
        config: KeeperConfig,
        identity: Arc<Identity>,
        authority: Arc<dyn Authority>,
    ) -> Result<Arc<Self>, KeeperError> {
        let records = config.run_dir.join("replicas");
        files::make_run_folder(&config.run_dir)?;
        files::make_run_folder(&records)?;
        let listen = |source| KeeperError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let tls = rpc::tls::server_config(&identity)?;
        let exports = Exports::new(config.run_dir.join(SOCKET));
        let socket = SocketOptions { directory: config.run_dir.clone(), name: SOCKET.to_owned(), owner: config.user };
        let server = Server::bind(&socket, exports.table.clone())?;

        let (states, port) = (authority.watch(), config.port);
        let addresses = move |node| {
            let state = states.borrow();
            state.nodes.get(&node).map(|node| SocketAddr::from((node.secondary_ip, port)))
        };
        let shared = Arc::new(Shared {
            folder: Folder(config.folder.clone()),
            boot_place: BootPlace { directory: records, boot: files::boot_uuid(&config.boot) },
            connector: Arc::new(Connector::new(identity.clone(), Box::new(addresses))),
            authority,
            exports,
            notices: broadcast::Sender::new(NOTICES),
            slots: watch::Sender::new(Slots { by_disk: BTreeMap::new(), closed: false }),
            removed: Mutex::default(),
            changed: Notify::new(),
            config,
        });
        let mut tasks = JoinSet::new();
        let router = shared.clone();
        tasks.spawn(accept(listener, identity, tls, move |node, incoming| router.route(node, incoming)));
        tasks.spawn(follow(shared.clone()));
        Ok(Arc::new(Self { shared, server: Mutex::new(Some(server)), tasks: tasks.into() }))
    }

    /// The node whose replicas these are.
    pub fn node(&self) -> NodeId {
        self.shared.config.node
    }

    /// The newest state that this node has applied.
    pub fn state(&self) -> Arc<State> {
        self.shared.authority.watch().borrow().clone()
    }

    /// A state with everything that is committed by now; `None` if the log can't be reached.
    pub async fn newest(&self) -> Option<Arc<State>> {
        self.shared.authority.barrier().await
    }

    /// Whether this node in its current life is the disk's primary in that run, by the newest state that it has applied.
    pub fn is_primary(&self, disk: DiskId, run: RunId) -> bool {
        let state = self.state();
        let me = self.shared.me(&state);
        me.is_some_and(|me| views::find(&state, disk).is_some_and(|(_, mirror)| views::run_of(mirror, me) == Some(run)))
    }

    /// Makes a replica's files; nothing is made if there is not enough space. What is there already is left alone.
    ///
    /// # Errors
    /// [`KeeperError::NoSpace`], or what the file system says.
    pub async fn create(&self, new: NewReplica) -> Result<(), KeeperError> {
        self.shared.folder.create(new).await?;
        self.shared.removed().remove(&new.replica);
        if let Some(slot) = self.shared.slot(new.disk) {
            slot.files.notify_one();
        }
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Closes a replica and removes its files. What is gone already is no error.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn remove(&self, disk: DiskId, replica: ReplicaId) -> Result<(), KeeperError> {
        self.shared.removed().insert(replica);
        let slot = self.shared.slot(disk).filter(|slot| slot.replica == replica);
        if let Some(slot) = slot {
            slot.stop().await;
        }
        self.shared.changed.notify_one();
        let failed = |source| KeeperError::Files { attempt: "remove", disk, replica, source: Box::new(source) };
        self.shared.folder.remove(disk, replica).await.map_err(failed)?;
        self.shared.boot_place.remove(replica).map_err(failed)
    }

    /// Makes room in this node's replica for a disk of `size` bytes.
    ///
    /// # Errors
    /// [`KeeperError::NoSpace`]; [`KeeperError::NotOpen`]; what the file system says.
    pub async fn grow(&self, disk: DiskId, size: u64) -> Result<(), KeeperError> {
        let (slot, driver) = self.open_slot(disk, OPEN_TIME).await?;
        self.shared.folder.has_room(size.saturating_sub(driver.size())).await?;
        let replica = slot.replica;
        match driver.grow(size).await {
            Some(Ok(())) => Ok(()),
            Some(Err(source)) => {
                Err(KeeperError::Files { attempt: "enlarge", disk, replica, source: Box::new(source) })
            }
            None => Err(KeeperError::NotOpen { disk, why: slot.progress.borrow().failed.clone() }),
        }
    }

    /// Waits until this node's replica admits the run, and tells by which export. The run was given to this node by a
    /// committed entry.
    ///
    /// # Errors
    /// [`KeeperError::Late`]: not within that time; it may still happen.
    pub async fn serving(&self, disk: DiskId, run: RunId, within: Duration) -> Result<Export, KeeperError> {
        let admitted = |progress: &Progress| progress.serving.is_some_and(|(_, served)| served == Some(run));
        let (_, driver) = self.wait(disk, "served", within, |_, _| {}, admitted).await?;
        self.shared.exports.offer(disk, run, driver.device(run))?;
        Ok(self.shared.exports.export(disk, run))
    }

    /// Exports the disk to the run of a migration's destination (protocol, H2): reads are served for probing, flushes
    /// succeed, writes wait until the run is admitted.
    ///
    /// # Errors
    /// [`KeeperError::NotOpen`].
    pub async fn standby(&self, disk: DiskId, run: RunId) -> Result<Export, KeeperError> {
        let (_, driver) = self.open_slot(disk, OPEN_TIME).await?;
        driver.event(Event::Standby(run));
        self.shared.exports.offer(disk, run, driver.device(run))?;
        Ok(self.shared.exports.export(disk, run))
    }

    /// Closes the disk's run for a migration (H4): everything acknowledged is on all members and flushed. Answers the
    /// epoch and the number of the last write.
    ///
    /// # Errors
    /// [`KeeperError::Late`]: not within that time; it may still happen. [`KeeperError::NotPrepared`] or
    /// [`KeeperError::NoLog`]: nobody would ever open the disk again.
    pub async fn quiesce(&self, disk: DiskId, migration: Uuid, within: Duration) -> Result<(Epoch, u64), KeeperError> {
        let start = tokio::time::Instant::now();
        let done = |progress: &Progress| progress.quiesced.is_some_and(|(id, ..)| id == migration);
        // After a restart of the daemon it becomes primary first; then it may know of the migration already.
        let primary = |progress: &Progress| progress.serving.is_some() || done(progress);
        self.wait(disk, "quiesced", within, |_, _| {}, primary).await?;
        // An order that comes late, or was waiting until now, must not close the disk of a guest that stays.
        if !views::is_pending(&self.state(), disk, migration) {
            let newest = self.shared.authority.barrier().await.ok_or(KeeperError::NoLog { migration })?;
            if !views::is_pending(&newest, disk, migration) {
                return Err(KeeperError::NotPrepared { disk, migration });
            }
        }
        let within = within.saturating_sub(start.elapsed());
        let ask = |_: &Slot, driver: &Driver| driver.event(Event::Quiesce(migration));
        let (progress, _) = self.wait(disk, "quiesced", within, ask, done).await?;
        match progress.quiesced {
            Some((_, epoch, seq)) => Ok((epoch, seq)),
            None => Err(KeeperError::NotOpen { disk, why: None }),
        }
    }

    /// Admits the disk's run again after its migration was cancelled, which is read in the log first.
    ///
    /// # Errors
    /// [`KeeperError::NotCancelled`] or [`KeeperError::NoLog`]: the guest must not go on.
    pub async fn resume(&self, disk: DiskId, migration: Uuid) -> Result<(), KeeperError> {
        let state = self.shared.authority.barrier().await.ok_or(KeeperError::NoLog { migration })?;
        let me = self.shared.me(&state);
        let cancelled = views::find(&state, disk).is_some_and(|(instance, mirror)| {
            let over = instance.migration.is_none_or(|other| other.id != migration);
            over && me.is_some_and(|me| mirror.primary == Some(me))
        });
        if !cancelled {
            return Err(KeeperError::NotCancelled { disk, migration });
        }
        let (_, driver) = self.open_slot(disk, OPEN_TIME).await?;
        if let Some(view) = views::view(&state, disk) {
            driver.event(Event::View(view));
        }
        driver.event(Event::Resume(migration));
        Ok(())
    }

    /// A run is over, its hypervisor gone: its export goes for good, and what it waits for is refused. Harmless if
    /// repeated.
    pub async fn end_run(&self, disk: DiskId, run: RunId) {
        let driver = self.shared.slot(disk).and_then(|slot| slot.driver.borrow().clone());
        let refuse = || driver.into_iter().for_each(|driver| driver.event(Event::EndRun(run)));
        self.shared.exports.end(disk, run, refuse).await;
    }

    /// Brings a disk whose run has ended to its orderly end (protocol, 5.7), before it is disowned.
    ///
    /// # Errors
    /// [`KeeperError::Late`]: not within that time; it may still happen.
    pub async fn release(&self, disk: DiskId, within: Duration) -> Result<(), KeeperError> {
        let ask = |slot: &Slot, driver: &Driver| {
            // What was told of an earlier time does not answer this.
            slot.progress.send_modify(|progress| progress.released = false);
            driver.event(Event::Release);
        };
        self.wait(disk, "released", within, ask, |progress| progress.released).await.map(drop)
    }

    /// Waits until all replicas of this node are strict, durably; they were told so by [`KeeperConfig::strict`]. Those that
    /// can't be used are none of which anybody is a member.
    ///
    /// # Errors
    /// [`KeeperError::Late`]: not within that time; it may still happen.
    pub async fn all_strict(&self, within: Duration) -> Result<(), KeeperError> {
        let start = tokio::time::Instant::now();
        let slots = self.shared.slots.borrow().by_disk.clone();
        for (disk, slot) in slots {
            let what = "made strict";
            let strict = async {
                let mut drivers = slot.driver.clone();
                let mut progress = slot.progress.subscribe();
                let unusable = |progress: &Progress| progress.failed.is_some() || progress.medium_failed;
                loop {
                    let opened = tokio::select! {
                        opened = drivers.wait_for(Option::is_some) => opened.ok().and_then(|driver| driver.clone()),
                        _ = progress.wait_for(unusable) => return,
                    };
                    match opened {
                        Some(driver) if driver.report().await.is_none_or(|report| report.status.strict) => return,
                        // It was removed.
                        None => return,
                        Some(_) if unusable(&slot.progress.borrow()) => return,
                        Some(_) => tokio::time::sleep(LOOK).await,
                    }
                }
            };
            if tokio::time::timeout_at(start + within, strict).await.is_err() {
                let why = slot.progress.borrow().failed.clone();
                return Err(KeeperError::Late { disk, what, within, why });
            }
        }
        Ok(())
    }

    /// The disk as the guest of a run sees it, for a use without NBD.
    ///
    /// # Errors
    /// [`KeeperError::NotOpen`].
    pub fn device(&self, disk: DiskId, run: RunId) -> Result<Arc<dyn Device>, KeeperError> {
        let slot = self.shared.slot(disk);
        match slot.as_ref().and_then(|slot| slot.driver.borrow().clone()) {
            Some(driver) => Ok(driver.device(run)),
            None => Err(KeeperError::NotOpen { disk, why: slot.and_then(|it| it.progress.borrow().failed.clone()) }),
        }
    }

    /// SHA-256 of each `chunk` bytes of this node's replica, hexadecimal; the last may be of less. Nobody serves the disk,
    /// which is read in the log first. Holes are not read.
    ///
    /// # Errors
    /// [`KeeperError::Served`]; [`KeeperError::NotOpen`], also if the log can't be reached; what the medium says.
    pub async fn digests(&self, disk: DiskId, chunk: u64) -> Result<Vec<String>, KeeperError> {
        let no_log = || KeeperError::NotOpen { disk, why: Some("the replicated log can't be reached".to_owned()) };
        let state = self.shared.authority.barrier().await.ok_or_else(no_log)?;
        if views::find(&state, disk).is_some_and(|(_, mirror)| mirror.primary.is_some()) {
            return Err(KeeperError::Served { disk });
        }
        let (slot, driver) = self.open_slot(disk, OPEN_TIME).await?;
        let not_open = || KeeperError::NotOpen { disk, why: slot.progress.borrow().failed.clone() };
        let backing = driver.backing().await.ok_or_else(not_open)?;
        let replica = slot.replica;
        digest::digests(&backing, chunk).await.map_err(|source| KeeperError::Files {
            attempt: "read",
            disk,
            replica,
            source: Box::new(source),
        })
    }

    /// How this node's replicas are, in the order of their disks.
    pub async fn status(&self) -> Vec<ReplicaStatus> {
        let state = self.state();
        let slots = self.shared.slots.borrow().by_disk.clone();
        let asked = slots.iter().map(|(disk, slot)| async {
            let (_, mirror) = views::find(&state, *disk)?;
            let driver = slot.driver.borrow().clone();
            let report = match &driver {
                Some(driver) => tokio::time::timeout(STATUS_TIME, driver.report()).await.ok().flatten(),
                None => None,
            };
            Some(ReplicaStatus::new(*disk, slot.replica, mirror, report.as_ref(), &slot.progress.borrow()))
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// How far a disk's replica has come, to follow it; `None` if this node has none.
    pub fn watch(&self, disk: DiskId) -> Option<watch::Receiver<Progress>> {
        self.shared.slot(disk).map(|slot| slot.progress.subscribe())
    }

    /// Everything that replicas tell from now on. Who is too slow misses the oldest and learns that.
    pub fn notices(&self) -> broadcast::Receiver<(DiskId, Notice)> {
        self.shared.notices.subscribe()
    }

    /// Ends in good order: secondaries leave their links, primaries leave theirs as they are. Guests that run are
    /// disconnected without an answer, and connect again to the next daemon.
    pub async fn shutdown(&self) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(server) = server {
            server.close().await;
        }
        // Nothing is opened any more, and nobody comes in.
        self.tasks.lock().await.shutdown().await;
        let slots = self.shared.close();
        let ends = slots.values().map(|slot| async move {
            let driver = slot.driver.borrow().clone();
            if let Some(driver) = driver {
                driver.event(Event::Shutdown);
                let mut progress = slot.progress.subscribe();
                let stopped = progress.wait_for(|progress| progress.stopped || progress.failed.is_some());
                drop(tokio::time::timeout(STOP_TIME, stopped).await);
            }
            slot.stop().await;
        });
        futures::future::join_all(ends).await;
    }

    /// Asks a disk's replica for something, and waits until it is so.
    async fn wait(
        &self,
        disk: DiskId,
        what: &'static str,
        within: Duration,
        ask: impl FnOnce(&Slot, &Driver),
        done: impl Fn(&Progress) -> bool,
    ) -> Result<(Progress, Driver), KeeperError> {
        let start = tokio::time::Instant::now();
        let (slot, driver) = self.open_slot(disk, within).await?;
        let mut progress = slot.progress.subscribe();
        ask(&slot, &driver);
        let waited = tokio::time::timeout_at(start + within, progress.wait_for(|progress| done(progress))).await;
        if let Ok(Ok(progress)) = waited {
            return Ok((progress.clone(), driver));
        }
        let why = slot.progress.borrow().failed.clone();
        Err(KeeperError::Late { disk, what, within, why })
    }

    /// A disk's replica, as soon as it is open.
    async fn open_slot(&self, disk: DiskId, within: Duration) -> Result<(Arc<Slot>, Driver), KeeperError> {
        let mut slots = self.shared.slots.subscribe();
        let mut found = None;
        let open = async {
            loop {
                found = slots.borrow_and_update().by_disk.get(&disk).cloned();
                let Some(slot) = &found else {
                    slots.changed().await.ok()?;
                    continue;
                };
                let mut drivers = slot.driver.clone();
                let driver = tokio::select! {
                    driver = drivers.wait_for(Option::is_some) => driver.ok().and_then(|driver| driver.clone()),
                    // It may have been replaced by another replica.
                    changed = slots.changed() => { changed.ok()?; None }
                };
                if let Some(driver) = driver {
                    return Some((slot.clone(), driver));
                }
            }
        };
        let opened = tokio::time::timeout(within, open).await.ok().flatten();
        let why = || found.and_then(|slot| slot.progress.borrow().failed.clone());
        opened.ok_or_else(|| KeeperError::NotOpen { disk, why: why() })
    }
}

impl Shared {
    fn slot(&self, disk: DiskId) -> Option<Arc<Slot>> {
        self.slots.borrow().by_disk.get(&disk).cloned()
    }

    /// Takes all replicas, for good.
    fn close(&self) -> BTreeMap<DiskId, Arc<Slot>> {
        let mut taken = BTreeMap::new();
        self.slots.send_modify(|slots| {
            slots.closed = true;
            taken = std::mem::take(&mut slots.by_disk);
        });
        taken
    }

    fn removed(&self) -> std::sync::MutexGuard<'_, BTreeSet<ReplicaId>> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn me(&self, state: &State) -> Option<model::NodeLife> {
        let node = self.config.node;
        views::life(state, node, &self.config.boot).map(|life| model::NodeLife { node, life })
    }

    /// Hands a connection to the replica that is meant, if the peer is the node whose replica it says it is.
    fn route(&self, peer: NodeId, incoming: Incoming) {
        let hello = &incoming.hello;
        let states = self.authority.watch();
        let is_peer = views::find(&states.borrow(), hello.disk)
            .and_then(|(_, mirror)| mirror.replicas.get(&hello.from))
            .is_some_and(|replica| replica.node == peer);
        let slot = self.slot(hello.disk).filter(|slot| slot.replica == hello.to);
        let driver = slot.and_then(|slot| slot.driver.borrow().clone());
        match driver {
            Some(driver) if is_peer => driver.incoming(incoming),
            _ => tracing::debug!(disk = %hello.disk, %peer, "no such replica is open here, or the peer has none"),
        }
    }
}

/// Has the replicas that the state gives to this node, and no others.
async fn follow(shared: Arc<Shared>) {
    let mut states = shared.authority.watch();
    let mut stopping = JoinSet::new();
    loop {
        let mut wanted = views::replicas_on(&states.borrow_and_update(), shared.config.node);
        wanted.retain(|_, replica| !shared.removed().contains(replica));
        let mut gone = Vec::new();
        shared.slots.send_if_modified(|slots| {
            if slots.closed {
                return false;
            }
            let before = std::mem::take(&mut slots.by_disk);
            let (kept, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
                before.into_iter().partition(|(disk, slot)| wanted.get(disk) == Some(&slot.replica));
            slots.by_disk = kept;
            gone.extend(others.into_values());
            let mut changed = !gone.is_empty();
            for (disk, replica) in wanted {
                slots.by_disk.entry(disk).or_insert_with(|| {
                    changed = true;
                    Arc::new(Slot::start(shared.clone(), disk, replica))
                });
            }
            changed
        });
        for slot in gone {
            stopping.spawn(async move { slot.stop().await });
        }
        while stopping.try_join_next().is_some() {}
        tokio::select! {
            changed = states.changed() => if changed.is_err() {
                // The log is gone, and the daemon with it.
                std::future::pending::<()>().await;
            },
            () = shared.changed.notified() => {}
        }
    }
}
