//! The guests that this daemon sends, or has sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hypervisor::{Hypervisor, LiveState, MigrateOptions, Migrated, MigrationProgress};
use jobs::agent::Sending;
use model::{RunId, Uuid};
use opcodes::op::MigrationMode;
use opcodes::{ErrorCode, Failure};
use rpc::{ByteStream, Client, Lane};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::tunnel::{self, Carrying};
use super::{DRAIN, MOST, Record, Records};
use crate::agent::run_name;

/// How long the destination may take to open the stream.
const OPEN: Duration = Duration::from_secs(10);
/// A guest is stopped for the switch as soon as the rest can be sent in this time, at first.
const DOWNTIME: Duration = Duration::from_millis(20);
/// How often a sending that is cancelled is told so: it may have been about to begin.
const INSIST: Duration = Duration::from_millis(50);

/// What is to be sent.
pub struct Order {
    pub driver: Arc<dyn Hypervisor>,
    pub records: Records,
    /// Its name, for messages.
    pub instance: String,
    pub run: RunId,
    pub migration: Uuid,
    pub mode: MigrationMode,
    pub fault_points: Option<PathBuf>,
}

/// Where to.
pub struct Way {
    pub client: Client,
    pub node: u64,
    pub address: SocketAddr,
    /// What the destination is told of the memory.
    pub arrival: Bytes,
    /// What it is told of the guest's frames.
    pub frames: Bytes,
}

/// One of them, until its run is over or is sent again.
pub struct Entry {
    migration: Uuid,
    now: watch::Sender<Sending>,
    cancelled: AtomicBool,
}

/// All of them.
#[derive(Default)]
pub struct Sends(Mutex<BTreeMap<RunId, Arc<Entry>>>);

impl Entry {
    fn new(migration: Uuid, now: Sending) -> Arc<Self> {
        Arc::new(Self { migration, now: watch::Sender::new(now), cancelled: AtomicBool::new(false) })
    }

    /// How far it is.
    pub fn now(&self) -> Sending {
        self.now.borrow().clone()
    }

    /// How far it is when it has ended, or after that time.
    pub async fn ended(&self, within: Duration) -> Sending {
        let mut now = self.now.subscribe();
        // Late or not, what counts is what it is now.
        let _ = tokio::time::timeout(within, now.wait_for(|now| !is_active(now))).await;
        self.now()
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

fn is_active(sending: &Sending) -> bool {
    matches!(sending, Sending::Active { .. })
}

impl Sends {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RunId, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sending of a run by that migration, if this daemon knows of it.
    pub fn find(&self, run: RunId, migration: Uuid) -> Option<Arc<Entry>> {
        self.lock().get(&run).filter(|entry| entry.migration == migration).cloned()
    }

    /// Begins in the background, unless it was begun. `live` are the runs on this node; what belongs to others is forgotten.
    pub fn begin(&self, order: Order, way: Way, live: &[RunId]) -> Result<Sending, Failure> {
        let mut sends = self.lock();
        sends.retain(|run, _| live.contains(run));
        order.records.keep(live);
        match sends.get(&order.run) {
            Some(entry) if entry.migration == order.migration => return Ok(entry.now()),
            Some(entry) if is_active(&entry.now()) => {
                let text = format!("{} is still being sent by migration {}", order.instance, entry.migration);
                return Err(Failure::refused(ErrorCode::WrongState, text));
            }
            _ => {}
        }
        let begun = Sending::Active { transferred: 0, remaining: 0, total: 0 };
        let entry = Entry::new(order.migration, begun.clone());
        sends.insert(order.run, Arc::clone(&entry));
        tokio::spawn(async move {
            let outcome = order.carry_out(&entry, way).await.unwrap_or_else(|why| Sending::Failed { why });
            tracing::info!(instance = order.instance, ?outcome, "the sending of a guest has ended");
            entry.now.send_replace(outcome);
        });
        Ok(begun)
    }

    /// Ends the sending of a run, and sees to it that it does not begin any more; returns when it is over.
    pub async fn cancel(&self, driver: &dyn Hypervisor, run: RunId, migration: Uuid) -> hypervisor::Result<()> {
        let entry = {
            let why = || Sending::Failed { why: "it was cancelled before it began".into() };
            let mut sends = self.lock();
            let known = sends.get(&run).filter(|entry| entry.migration == migration).cloned();
            known.unwrap_or_else(|| {
                let entry = Entry::new(migration, why());
                sends.insert(run, Arc::clone(&entry));
                entry
            })
        };
        entry.cancelled.store(true, Ordering::SeqCst);
        loop {
            driver.migrate_cancel(&run_name(run)).await?;
            if !is_active(&entry.ended(INSIST).await) {
                return Ok(());
            }
        }
    }
}

impl Order {
    async fn carry_out(&self, entry: &Entry, way: Way) -> Result<Sending, String> {
        let name = run_name(self.run);
        let found = self.driver.list().await.into_iter().find(|running| running.run == name);
        let state = found.map(|running| running.state);
        let paused = match state {
            Some(LiveState::Running | LiveState::IoError) => false,
            Some(LiveState::Paused) => true,
            Some(state) => return Err(format!("{} is in state {state}", self.instance)),
            None => return Err(format!("{} does not run on this node", self.instance)),
        };
        let record = Record { migration: self.migration, paused };
        self.records.write(self.run, record).map_err(|error| format!("no record of it can be made: {error}"))?;

        let begun = tokio::time::Instant::now();
        let Way { client, node, address, arrival, frames } = way;
        let (stream, frames) = tokio::join!(
            client.open_stream(node, address, Lane::Bulk, super::PATH, arrival, OPEN),
            client.open_stream(node, address, Lane::Bulk, super::FRAMES_PATH, frames, OPEN),
        );
        let stream = stream.map_err(|error| format!("the destination takes no memory: {}", crate::chain(&error)))?;
        tracing::debug!(elapsed = ?begun.elapsed(), "the destination takes memory");
        // Without it a few frames more are lost.
        let mut frames = frames.ok();
        let sent = self.send(entry, paused, stream, &mut frames).await;
        crate::fault::point(self.fault_points.as_ref(), || "node.sending.complete".into()).await;
        match sent {
            Ok(migrated) => {
                tracing::debug!(elapsed = ?begun.elapsed(), ?migrated, "the memory is sent");
                Ok(Sending::Complete {
                    total_ms: Some(migrated.total_ms),
                    downtime_ms: Some(migrated.downtime_ms),
                    bytes: migrated.bytes,
                    paused: match self.mode {
                        MigrationMode::Live => migrated.guest == LiveState::Paused,
                        MigrationMode::NonLive => paused,
                    },
                })
            }
            Err(error) => {
                if self.mode == MigrationMode::NonLive && !paused {
                    // It may have ended; then there is nothing to resume.
                    let _ = self.driver.resume(&name).await;
                }
                if frames.is_none() {
                    // They may have been turned away, and come back when the guest is heard of here.
                    let _ = self.driver.announce(&name).await;
                }
                Err(crate::chain(&error))
            }
        }
    }

    /// Sends all memory over a stream. The other one, `frames`, is used when the guest is stopped for the switch.
    async fn send<S>(
        &self,
        entry: &Entry,
        paused: bool,
        stream: S,
        frames: &mut Option<ByteStream>,
    ) -> hypervisor::Result<Migrated>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let name = run_name(self.run);
        let failed = |source| hypervisor::Error::Io { what: "make a socket for the guest's memory".into(), source };
        let (end, ours) = tunnel::ends().map_err(failed)?;
        let fault_points = self.fault_points.clone();
        let begun = async move { crate::fault::point(fault_points.as_ref(), || "node.sending.begun".into()).await };
        let mut carrying = Carrying::start(ours, stream, begun);
        if self.mode == MigrationMode::NonLive && !paused {
            self.driver.pause(&name).await?;
        }
        let (progress, mut told) = watch::channel(MigrationProgress::default());
        let options = MigrateOptions { max_bandwidth: None, downtime_limit: DOWNTIME, timeout: MOST };
        if entry.is_cancelled() {
            let (instance, phase) = (self.instance.clone(), hypervisor::MigrationPhase::Setup);
            return Err(hypervisor::Error::Cancelled { instance, run: name, phase });
        }
        let mut sending = std::pin::pin!(self.driver.migrate_out(&name, end, &options, progress));
        let sent = loop {
            tokio::select! {
                sent = &mut sending => break sent,
                Ok(()) = told.changed() => {
                    let MigrationProgress { transferred, remaining, total, switching, .. } = *told.borrow();
                    if let Some(mut frames) = frames.take_if(|_| switching) {
                        tracing::debug!(run = name, "the guest stands still");
                        // Who does not hear it is told by the master, later.
                        let _ = frames.write_all(&[1]).await;
                        let _ = frames.shutdown().await;
                    }
                    entry.now.send_replace(Sending::Active { transferred, remaining, total });
                }
            }
        };
        if sent.is_ok() {
            // Both hypervisors have closed: so does the stream, in order.
            tokio::spawn(async move { carrying.ended(DRAIN).await });
        }
        sent
    }
}

/// How a sending stands that an earlier daemon began: what became of the run tells.
pub fn judged(state: Option<LiveState>, record: Option<Record>) -> Sending {
    let failed = |why: &str| Sending::Failed { why: why.into() };
    match (state, record) {
        (_, None) => failed("it was not begun"),
        (None, _) => failed("the guest has ended"),
        (Some(LiveState::PostMigrate), Some(record)) => {
            Sending::Complete { total_ms: None, downtime_ms: None, bytes: 0, paused: record.paused }
        }
        (Some(LiveState::Migrating), _) => Sending::Active { transferred: 0, remaining: 0, total: 0 },
        (Some(_), _) => failed("the daemon was restarted meanwhile"),
    }
}
