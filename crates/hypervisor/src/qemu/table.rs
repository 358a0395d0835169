//! Which runs there are. An instance has at most one here, also while it starts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::run::Run;

/// The runs by their ids.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Mutex<BTreeMap<String, Slot>>,
    changed: Notify,
}

#[derive(Debug)]
enum Slot {
    /// Being started, for this instance.
    Starting(String),
    Up(Arc<Run>),
}

impl Slot {
    fn instance(&self) -> &str {
        match self {
            Slot::Starting(instance) => instance,
            Slot::Up(run) => &run.record.instance,
        }
    }
}

/// What became of the wish to start a run.
#[derive(Debug)]
pub(super) enum Claim {
    /// The caller starts it, and then inserts or removes it.
    Granted,
    /// It is there.
    Present(Arc<Run>),
    /// The instance has this other run.
    Instance { run: String },
}

impl Table {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the right to start a run. Waits if just this run is being started by somebody else.
    pub async fn claim(&self, instance: &str, run: &str) -> Claim {
        loop {
            if let Some(run) = self.settled(run).await {
                return Claim::Present(run);
            }
            let mut slots = self.slots();
            if slots.contains_key(run) {
                continue; // Somebody was faster.
            }
            let mut others = slots.iter().filter(|(_, slot)| slot.instance() == instance);
            if let Some((run, _)) = others.next() {
                return Claim::Instance { run: run.clone() };
            }
            slots.insert(run.to_owned(), Slot::Starting(instance.to_owned()));
            return Claim::Granted;
        }
    }

    /// A run that is up.
    pub fn get(&self, run: &str) -> Option<Arc<Run>> {
        match self.slots().get(run) {
            Some(Slot::Up(run)) => Some(Arc::clone(run)),
            _ => None,
        }
    }

    /// A run that is up, or `None`, but not before it is clear which if it is being started.
    pub async fn settled(&self, run: &str) -> Option<Arc<Run>> {
        loop {
            // Made before the look: what changes after it is not missed.
            let changed = self.changed.notified();
            match self.slots().get(run) {
                None => return None,
                Some(Slot::Up(run)) => return Some(Arc::clone(run)),
                Some(Slot::Starting(_)) => {}
            }
            changed.await;
        }
    }

    /// The runs that are up, in the order of their ids.
    pub fn all(&self) -> Vec<Arc<Run>> {
        let slots = self.slots();
        let up = slots.values().filter_map(|slot| match slot {
            Slot::Up(run) => Some(Arc::clone(run)),
            Slot::Starting(_) => None,
        });
        up.collect()
    }

    /// Puts a run in that is up.
    pub fn insert(&self, run: Arc<Run>) {
        self.slots().insert(run.record.run.clone(), Slot::Up(run));
        self.changed.notify_waiters();
    }

    /// Takes a run out that is over or did not start.
    pub fn remove(&self, run: &str) {
        self.slots().remove(run);
        self.changed.notify_waiters();
    }
}
