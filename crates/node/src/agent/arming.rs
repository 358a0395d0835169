//! Arming this node (protocol, 7.3), and what follows for the runs on it.
//!
//! An armed node may be declared dead without being asked, and a disk of which all nodes are armed is strict. This node does
//! not hear of either at once. So from the moment at which it says that it is ready, *all* its mirrored disks are strict and
//! all runs on them are protected, whatever its copy of the log says, until the log says that it is not armed any more.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hypervisor::ProcessId;
use model::{NodeId, RunId, State};
use opcodes::{ErrorCode, Failure};
use tokio::sync::watch;

use super::{Agent, mirror_failed, run_number};

/// How long replicas may take to store that they are strict.
const STORE: Duration = Duration::from_secs(5);

/// Whether this node has said that it is ready to be armed. Durable: it has to be so also after a crash.
pub(crate) struct Arming {
    mark: PathBuf,
    ready: watch::Sender<Option<Ready>>,
    strict: watch::Sender<bool>,
    /// Held while it changes.
    changing: Mutex<()>,
}

/// Since when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    /// It was asked, and the log has not said yet that the node is armed.
    Asked,
    /// The log has said so.
    Armed,
}

impl Arming {
    pub fn new(state_dir: &std::path::Path) -> Self {
        let mark = crate::home::armed_mark(state_dir);
        let arming = Self {
            mark,
            ready: watch::Sender::new(None),
            strict: watch::Sender::new(false),
            changing: Mutex::default(),
        };
        arming.read();
        arming
    }

    /// Takes what is stored.
    pub fn read(&self) {
        let ready = match std::fs::read_to_string(&self.mark) {
            Ok(text) if text.trim() == "armed" => Some(Ready::Armed),
            Ok(_) => Some(Ready::Asked),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(%error, path = %self.mark.display(), "whether this node is armed can't be read");
                Some(Ready::Asked)
            }
        };
        self.set(ready);
    }

    fn get(&self) -> Option<Ready> {
        *self.ready.borrow()
    }

    fn set(&self, ready: Option<Ready>) {
        self.ready.send_replace(ready);
        self.strict.send_if_modified(|strict| std::mem::replace(strict, ready.is_some()) != ready.is_some());
    }

    /// Whether all replicas of this node are strict, and all runs on them protected.
    pub fn strict(&self) -> watch::Receiver<bool> {
        self.strict.subscribe()
    }

    pub fn is_strict(&self) -> bool {
        *self.strict.borrow()
    }

    /// Stores it, then makes it so. Blocking.
    fn store(&self, ready: Ready) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.get() == Some(Ready::Armed) || self.get() == Some(ready) {
            return Ok(());
        }
        let fresh = self.mark.with_extension("new");
        let mut file = std::fs::File::create(&fresh)?;
        writeln!(file, "{}", if ready == Ready::Armed { "armed" } else { "asked" })?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.mark)?;
        sync_folder(&self.mark)?;
        self.set(Some(ready));
        Ok(())
    }

    /// Ends it. What can't be removed ends it all the same; after a restart it would be read again, and be ended again.
    fn end(&self) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.set(None);
        match std::fs::remove_file(&self.mark) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }
}

fn sync_folder(path: &std::path::Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

impl Agent {
    /// Gets ready to be armed. When this returns, this node keeps to leases and to strict disks, also after a crash.
    pub(super) async fn arm(&self) -> Result<(), Failure> {
        let guard = &self.guard;
        let refused = |text: &str| Err(Failure::refused(ErrorCode::WrongState, text));
        if !guard.connected() {
            return refused(&crate::guard::GuardError::NotConnected.to_string());
        }
        if !guard.holds() {
            return refused("this node's guard has no lease yet");
        }
        self.store_ready(Ready::Asked).await.map_err(|error| {
            Failure::failed(format!("It can't be made durable on this node that it is armed: {error}"))
        })?;
        let keeper = self.keeper()?;
        keeper.all_strict(STORE).await.map_err(mirror_failed)?;
        let state = keeper.state();
        for (run, process) in self.here().await {
            let protected = self.protects(&state, run).unwrap_or(true);
            if let Err(error) = guard.register(run, process, protected).await
                && self.runs().await.contains(&run)
            {
                return Err(Failure::failed(format!("Run {run} can't be watched: {error}")));
            }
        }
        if !guard.connected() || !guard.holds() {
            return refused("this node's guard has lost its lease");
        }
        Ok(())
    }

    /// This node was disarmed: its disks are as the log says, and its runs are not protected any more.
    pub(super) async fn disarm(&self) -> Result<(), Failure> {
        let keeper = self.keeper()?;
        let newest = keeper.newest().await.ok_or_else(|| {
            Failure::failed("Whether this node was disarmed is not known here: the replicated log can't be reached")
        })?;
        if newest.nodes.get(&keeper.node()).is_some_and(|own| own.armed) {
            // The order comes late: it was armed again.
            return Err(Failure::refused(ErrorCode::WrongState, "This node is armed"));
        }
        self.end_arming();
        self.tell_runs(&newest).await;
        Ok(())
    }

    /// Does what the state says of this node: it may have been disarmed without being told.
    pub(crate) async fn follow_arming(&self, state: &State, node: NodeId) {
        let armed = state.nodes.get(&node).is_some_and(|own| own.armed);
        match (armed, self.arming.get()) {
            (true, Some(Ready::Armed)) | (false, None | Some(Ready::Asked)) => {}
            (true, _) => {
                if let Err(error) = self.store_ready(Ready::Armed).await {
                    tracing::error!(%error, "it can't be made durable that this node is armed");
                    self.arming.set(Some(Ready::Armed));
                }
            }
            (false, Some(Ready::Armed)) => {
                // After a restart the first state may be older than what was seen before it.
                let newest = match self.keeper() {
                    Ok(keeper) => keeper.newest().await,
                    Err(_) => None,
                };
                if newest.is_some_and(|newest| newest.nodes.get(&node).is_some_and(|own| !own.armed)) {
                    self.end_arming();
                }
            }
        }
    }

    async fn store_ready(&self, ready: Ready) -> io::Result<()> {
        let arming = std::sync::Arc::clone(&self.arming);
        tokio::task::spawn_blocking(move || arming.store(ready)).await?
    }

    fn end_arming(&self) {
        tracing::info!("this node is not armed any more");
        if let Err(error) = self.arming.end() {
            tracing::warn!(%error, "the mark that this node is armed can't be removed");
        }
    }

    /// Whether a run is to be stopped when the lease runs out; `None`: it is no instance's by this state.
    fn protects(&self, state: &State, run: RunId) -> Option<bool> {
        let instance = state.instances.values().find(|instance| {
            instance.run == Some(run) || instance.migration.is_some_and(|migration| migration.run == run)
        })?;
        let mirrored = !instance.disks.is_empty() && instance.disks.iter().all(|disk| disk.mirror.is_some());
        Some(mirrored && self.arming.is_strict())
    }

    /// The runs of this node's hypervisors, with their processes.
    async fn here(&self) -> Vec<(RunId, Option<ProcessId>)> {
        let mut runs = Vec::new();
        for driver in self.hypervisors.values() {
            let found = driver.list().await.into_iter();
            runs.extend(found.filter_map(|running| Some((run_number(&running.run)?, running.process))));
        }
        runs
    }

    /// Tells the guard of the runs that are here, as far as that is news.
    pub(crate) async fn tell_runs(&self, state: &State) {
        let here = self.here().await;
        self.guard.retain(&here.iter().map(|(run, _)| *run).collect());
        for (run, process) in here {
            let known = || self.guard.is_protected(run).unwrap_or(self.arming.is_strict());
            let protected = self.protects(state, run).unwrap_or_else(known);
            self.guard.know(run, process, protected);
        }
    }

    /// Has the guard watch a run before its guest goes on, and refuses that where it must not.
    pub(super) async fn before_it_runs(&self, run: RunId, process: Option<ProcessId>) -> Result<(), Failure> {
        let protected = match self.keeper() {
            Ok(keeper) => self.protects(&keeper.state(), run).unwrap_or(self.arming.is_strict()),
            Err(_) => false,
        };
        let registered = self.guard.register(run, process, protected).await;
        if !protected {
            return Ok(());
        }
        let text = match registered {
            Err(error) => error.to_string(),
            Ok(()) if !self.guard.holds() => "this node has no lease now".into(),
            Ok(()) => return Ok(()),
        };
        Err(Failure::failed(format!("Run {run} must not go on: {text}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_node_may_be_armed_outlives_its_daemon_until_it_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let read = || Arming::new(dir.path());
        assert_eq!((read().get(), read().is_strict()), (None, false));
        read().store(Ready::Asked).unwrap();
        let arming = read();
        assert_eq!((arming.get(), arming.is_strict()), (Some(Ready::Asked), true));
        arming.store(Ready::Armed).unwrap();
        arming.store(Ready::Asked).unwrap();
        assert_eq!(read().get(), Some(Ready::Armed), "asking an armed node again changes nothing");
        arming.end().unwrap();
        assert_eq!((arming.get(), arming.is_strict(), read().get()), (None, false, None));
        arming.end().unwrap();
    }

    #[test]
    fn who_follows_hears_of_each_change_once() {
        let dir = tempfile::tempdir().unwrap();
        let arming = Arming::new(dir.path());
        let mut strict = arming.strict();
        arming.store(Ready::Asked).unwrap();
        assert!(strict.has_changed().unwrap() && *strict.borrow_and_update());
        arming.store(Ready::Armed).unwrap();
        assert!(!strict.has_changed().unwrap());
        arming.end().unwrap();
        assert!(strict.has_changed().unwrap() && !*strict.borrow_and_update());
    }

    #[test]
    fn a_mark_that_is_damaged_counts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(crate::home::armed_mark(dir.path()), [0xff; 8]).unwrap();
        assert!(Arming::new(dir.path()).is_strict());
    }
}
