//! What the master does about lives that end and guests that end: takeover, starting, watching, arming (protocol, 7.3 and 9).
//!
//! The decisions are in [`ha`] and in the state; here they are carried out. Nothing in this module waits for a job or a
//! lock, with one exception: an instance on which an unfinished job works is the job's, unless its node has died.

mod address;
mod arming;
mod lives;
mod rooms;
mod starting;
#[cfg(test)]
mod tests;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ha::takeover::Room;
use jobs::locks::Lock;
use model::{AdminState, Happening, Instance, InstanceId, NodeId, Provision, RunId, State};
use opcodes::Opcode;

pub use arming::STRICT_VOTERS;
pub use watching::{Ended, Heard};

/// What one term in office knows for this.
#[derive(Default)]
pub struct Failover {
    rooms: Mutex<BTreeMap<NodeId, Room>>,
    /// Instances whose runs are being started without a job, and the newest of these runs.
    starting: Mutex<BTreeMap<InstanceId, RunId>>,
    /// Held while it is judged what becomes of a guest that has ended, so that nobody judges it twice.
    judging: tokio::sync::Mutex<()>,
    /// Why nodes are not armed, one sentence each.
    unarmed: Mutex<BTreeMap<NodeId, String>>,
}

impl Failover {
    /// What the nodes have room for, as they told last.
    pub fn rooms(&self) -> BTreeMap<NodeId, Room> {
        lock(&self.rooms).clone()
    }

    /// Why a node is not armed, as far as that is known: one sentence.
    pub fn why_unarmed(&self, node: NodeId) -> Option<String> {
        lock(&self.unarmed).get(&node).cloned()
    }

    fn is_starting(&self, instance: InstanceId) -> bool {
        lock(&self.starting).contains_key(&instance)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an instance is one that should run now.
fn should_run(instance: &Instance) -> bool {
    instance.want == AdminState::Up && instance.provision == Provision::Ready
}

/// Names of the instances on which unfinished jobs work, or will.
fn worked_on(state: &State) -> BTreeSet<String> {
    let jobs = state.jobs.values().filter(|job| !job.status.is_final());
    let ops = jobs.flat_map(|job| &job.ops).filter(|op| !op.status.is_final());
    // Of an opcode that this version does not know its job is refused.
    let opcodes = ops.filter_map(|op| serde_json::from_value::<Opcode>(op.input.clone()).ok());
    let names = opcodes.flat_map(|opcode| jobs::ops::locks(&opcode, state)).filter_map(|(lock, _)| match lock {
        Lock::Instance(name) => Some(name),
        _ => None,
    });
    names.collect()
}

/// The newest record about an instance.
fn newest_of(state: &State, id: InstanceId) -> Option<&Happening> {
    let about = |what: &Happening| match what {
        Happening::TakenOver { instance, .. }
        | Happening::NotTakenOver { instance, .. }
        | Happening::Started { instance, .. }
        | Happening::NotStarted { instance, .. }
        | Happening::Crashed { instance, .. }
        | Happening::Moved { instance, .. }
        | Happening::Forced { instance, .. } => *instance == id,
        _ => false,
    };
    state.history.iter().rev().map(|record| &record.what).find(|what| about(what))
}
