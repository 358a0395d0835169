//! The task that minds one replica: opens it, tells it what the log says of its disk, promotes it where the log has.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, OptionFuture};
use model::{DiskId, Epoch, Life, NodeLife, ReplicaId, RunId, State};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::{Shared, views};
use crate::driver::{Chain, Driver, Outside, Progress, Running};
use crate::engine::{Event, View};

/// Pause before files that can't be opened are tried again.
const REOPEN: Duration = Duration::from_secs(2);
/// Pause before the log is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A replica that this node should have, and how it is doing. Dropping it ends it at once.
pub(super) struct Slot {
    pub replica: ReplicaId,
    /// `None` while it can't be opened.
    pub driver: watch::Receiver<Option<Driver>>,
    pub progress: watch::Sender<Progress>,
    /// Its files may be there now.
    pub files: Arc<Notify>,
    stop: watch::Sender<bool>,
    task: tokio::sync::Mutex<JoinSet<()>>,
}

impl Slot {
    /// Begins to mind a replica.
    pub fn start(shared: Arc<Shared>, disk: DiskId, replica: ReplicaId) -> Self {
        let (driver, drivers) = watch::channel(None);
        let progress = watch::Sender::new(Progress::default());
        let (stop, stopped) = watch::channel(false);
        let files = Arc::new(Notify::new());
        let seen = progress.clone();
        let minder = Minder { shared, disk, replica, driver, progress, files: files.clone(), stop: stopped };
        let mut task = JoinSet::new();
        task.spawn(minder.mind());
        Self { replica, driver: drivers, progress: seen, files, stop, task: task.into() }
    }

    /// Closes the replica and waits until nothing of it is under way.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        while self.task.lock().await.join_next().await.is_some() {}
    }
}

struct Minder {
    shared: Arc<Shared>,
    disk: DiskId,
    replica: ReplicaId,
    driver: watch::Sender<Option<Driver>>,
    progress: watch::Sender<Progress>,
    files: Arc<Notify>,
    stop: watch::Receiver<bool>,
}

impl Minder {
    async fn mind(self) {
        let mut states = self.shared.authority.watch();
        let (driver, mut running, life) = tokio::select! {
            biased;
            () = self.stopped() => return,
            opened = self.open(&mut states) => opened,
        };
        self.progress.send_modify(|progress| progress.failed = None);
        self.driver.send_replace(Some(driver.clone()));
        let failed = tokio::select! {
            biased;
            () = self.stopped() => None,
            why = running.ended() => Some(why.unwrap_or_else(|| "it was closed".to_owned())),
            never = self.follow(&driver, life, states) => match never {},
        };
        self.driver.send_replace(None);
        self.shared.exports.withdraw(self.disk);
        match failed {
            None => {
                driver.close();
                running.ended().await;
            }
            Some(why) => {
                // What went wrong would go wrong again, so it is not opened again before a restart of the daemon.
                tracing::error!(disk = %self.disk, replica = %self.replica, why, "a replica has failed");
                self.progress.send_modify(|progress| *progress = Progress::default());
                self.progress.send_modify(|progress| progress.failed = Some(why));
                self.stopped().await;
            }
        }
    }

    async fn stopped(&self) {
        // A slot that is dropped takes this task with it.
        if self.stop.clone().wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Opens the replica, as soon as its files are there and the node has a life in this boot.
    async fn open(&self, states: &mut watch::Receiver<Arc<State>>) -> (Driver, Running, Life) {
        let Shared { config, .. } = &*self.shared;
        loop {
            let life = joined(states, self.shared.config.node, &self.shared.config.boot).await;
            if !self.shared.folder.has(self.disk, self.replica) {
                self.files.notified().await;
                continue;
            }
            let outside = Outside {
                disk: self.disk,
                node: config.node,
                life,
                boot: config.boot.clone(),
                engine: config.engine.clone(),
                authority: self.shared.authority.clone(),
                connector: self.shared.connector.clone(),
                lease: config.lease.clone(),
                progress: self.progress.clone(),
                notices: self.shared.notices.clone(),
            };
            let paths = self.shared.folder.paths(self.disk, self.replica);
            match Driver::open(outside, &paths, &self.shared.boot_place).await {
                Ok((driver, running)) => return (driver, running, life),
                Err(error) => {
                    let why = Chain(&error).to_string();
                    tracing::error!(disk = %self.disk, replica = %self.replica, why, "cannot open a replica");
                    self.progress.send_modify(|progress| progress.failed = Some(why));
                    // Something else may use them for a while yet, or somebody may put them right.
                    let _ = tokio::time::timeout(REOPEN, self.files.notified()).await;
                }
            }
        }
    }

    /// Tells the replica what the log says.
    async fn follow(
        &self,
        driver: &Driver,
        mut life: Life,
        mut states: watch::Receiver<Arc<State>>,
    ) -> std::convert::Infallible {
        let node = self.shared.config.node;
        let mut strict = self.shared.config.strict.clone();
        driver.event(Event::Strict(*strict.borrow_and_update()));
        let mut told: Option<View> = None;
        let mut standby: Option<RunId> = None;
        // As what it was promoted, or is being.
        let mut promoted: Option<(Epoch, Life)> = None;
        let mut barrier: OptionFuture<BoxFuture<'_, Arc<State>>> = None.into();
        loop {
            let state = states.borrow_and_update().clone();
            if let Some(now) = views::life(&state, node, &self.shared.config.boot)
                && now != life
            {
                life = now;
                driver.event(Event::Life(life));
                if promoted.is_some() {
                    // What was begun in the life that ended is never answered. A hypervisor that goes on in the new one asks
                    // again when it is connected anew.
                    self.shared.exports.withdraw(self.disk);
                }
            }
            let me = NodeLife { node, life };
            if let Some((instance, mirror)) = views::find(&state, self.disk) {
                let view = views::view(&state, self.disk);
                if view.is_some() && view != told {
                    view.clone().into_iter().for_each(|view| driver.event(Event::View(view)));
                    told = view;
                }
                if let Some(run) = views::run_of(mirror, me) {
                    // Hypervisors that were connected before a restart of the daemon wait for their export.
                    self.offer(driver, run);
                    if promoted != Some((mirror.epoch, life)) {
                        promoted = Some((mirror.epoch, life));
                        barrier = Some(self.barrier().boxed()).into();
                    }
                }
                let prepared = views::prepared_for(instance, me);
                if let Some(run) = prepared.filter(|run| standby != Some(*run)) {
                    standby = Some(run);
                    driver.event(Event::Standby(run));
                    self.offer(driver, run);
                }
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() {
                    // The log is gone, and the daemon with it.
                    std::future::pending::<()>().await;
                },
                Ok(()) = strict.changed() => driver.event(Event::Strict(*strict.borrow_and_update())),
                Some(state) = &mut barrier => {
                    barrier = None.into();
                    // If the disk has gone on meanwhile, the news of that is on its way.
                    if let Some((_, mirror)) = views::find(&state, self.disk)
                        && views::run_of(mirror, me).is_some()
                        && let Some(view) = views::view(&state, self.disk)
                    {
                        promoted = Some((mirror.epoch, life));
                        driver.event(Event::Promote(view));
                    }
                }
            }
        }
    }

    fn offer(&self, driver: &Driver, run: RunId) {
        if let Err(error) = self.shared.exports.offer(self.disk, run, driver.device(run)) {
            tracing::error!(error = %Chain(&error), "a disk can't be exported");
        }
    }

    /// A state that was read with a barrier.
    async fn barrier(&self) -> Arc<State> {
        loop {
            if let Some(state) = self.shared.authority.barrier().await {
                return state;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

/// Waits until the node has a life in this boot.
async fn joined(states: &mut watch::Receiver<Arc<State>>, node: model::NodeId, boot: &str) -> Life {
    loop {
        if let Some(life) = views::life(&states.borrow_and_update(), node, boot) {
            return life;
        }
        if states.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
