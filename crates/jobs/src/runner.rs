//! Runs jobs, on the master, for as long as it is in office.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{JobChange, JobEnd, JobId, JobStatus, State};
use opcodes::{Failure, Opcode};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::context::{Context, Halt};
use crate::locks::{LockTable, Wants};
use crate::ops;
use crate::queue::{self, Decision};
use crate::world::World;

/// How long an interrupted job waits before it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs jobs. Dropping its [`run`](Self::run) ends it: every job stops where it is, and the next master goes on from there.
pub struct Runner {
    world: Arc<dyn World>,
    locks: Mutex<Locks>,
}

#[derive(Default)]
struct Locks {
    table: LockTable,
    waiting: BTreeMap<JobId, oneshot::Sender<()>>,
}

/// Locks that a job holds or waits for; given back when it is dropped.
struct Holding {
    runner: Arc<Runner>,
    job: JobId,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut locks = self.runner.locks();
        locks.waiting.remove(&self.job);
        for granted in locks.table.release(self.job) {
            if let Some(waiter) = locks.waiting.remove(&granted) {
                // A waiter that is gone gives its locks back by its own drop.
                let _ = waiter.send(());
            }
        }
    }
}

/// An opcode that is about to be carried out.
struct Turn {
    job: JobId,
    op: usize,
    /// The opcode, or why it is refused.
    opcode: Result<Opcode, Failure>,
    /// Set while it waits for its locks.
    granted: Option<oneshot::Receiver<()>>,
    /// An earlier master had its locks already.
    resumed: bool,
    /// Its locks.
    _holding: Holding,
}

impl Runner {
    /// A runner for one office. `world` proposes in the name of that office, and is refused when it has ended.
    pub fn new(world: Arc<dyn World>) -> Arc<Self> {
        Arc::new(Self { world, locks: Mutex::default() })
    }

    /// Runs jobs until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut tasks: JoinSet<JobId> = JoinSet::new();
        let mut running = BTreeSet::new();
        loop {
            let state = self.world.state();
            for decision in queue::decide(&state, &running) {
                let (id, refusal) = match decision {
                    Decision::Start(id) => (id, None),
                    Decision::Refuse(id, why) => (id, Some(Failure::failed(format!("Dependency failed: {why}")))),
                };
                // The first locks are asked for here: in the order of the decisions, not in that of the tasks.
                if let Some(turn) = self.turn(&state, id, refusal) {
                    running.insert(id);
                    let runner = Arc::clone(&self);
                    tasks.spawn(async move {
                        runner.job(turn).await;
                        id
                    });
                }
            }
            tokio::select! {
                biased;
                Some(ended) = tasks.join_next() => match ended {
                    Ok(id) => {
                        running.remove(&id);
                    }
                    Err(error) => tracing::error!(%error, "a job's task failed; the job goes on under the next master"),
                },
                _ = self.world.changed(&state) => {}
            }
        }
    }

    fn locks(&self) -> MutexGuard<'_, Locks> {
        // The table is consistent between any two statements, so a panic elsewhere does not spoil it.
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first opcode of a job that has not ended, with its locks asked for; `None` if there is none.
    fn turn(self: &Arc<Self>, state: &State, id: JobId, refusal: Option<Failure>) -> Option<Turn> {
        let job = state.jobs.get(&id)?;
        let op = job.ops.iter().position(|op| !op.status.is_final())?;
        let opcode: Result<Opcode, Failure> = match refusal {
            Some(failure) => Err(failure),
            None => serde_json::from_value(job.ops[op].input.clone())
                .map_err(|error| Failure::failed(format!("this version does not know the opcode: {error}"))),
        };
        let wants = opcode.as_ref().map_or_else(|_| Wants::new(), |opcode| ops::locks(opcode, state));
        let holding = Holding { runner: Arc::clone(self), job: id };
        let mut locks = self.locks();
        let granted = if locks.table.request(id, job.priority, wants) {
            None
        } else {
            let (sender, receiver) = oneshot::channel();
            locks.waiting.insert(id, sender);
            Some(receiver)
        };
        drop(locks);
        let resumed = job.ops[op].status == JobStatus::Running;
        Some(Turn { job: id, op, opcode, granted, resumed, _holding: holding })
    }

    async fn job(self: Arc<Self>, mut turn: Turn) {
        loop {
            while self.op(&mut turn).await.is_err() {
                if self.is_over(&turn) {
                    return;
                }
                // Out of office, then this is dropped soon; or an outcome is not known. In that case the job goes on from
                // its record as it would under a new master, with its locks kept: an entry that is committed now comes
                // after all that were proposed before.
                tracing::info!(job = %turn.job, op = turn.op, "a job was interrupted");
                self.world.sleep(AGAIN).await;
            }
            let id = turn.job;
            drop(turn);
            match self.turn(&self.world.state(), id, None) {
                Some(next) => turn = next,
                None => return,
            }
        }
    }

    /// Whether somebody else has ended the opcode or taken its job away.
    fn is_over(&self, turn: &Turn) -> bool {
        let state = self.world.state();
        let op = state.jobs.get(&turn.job).and_then(|job| job.ops.get(turn.op));
        op.is_none_or(|op| op.status.is_final())
    }

    /// Carries out one opcode and records its end.
    async fn op(&self, turn: &mut Turn) -> Result<(), Halt> {
        let op = turn.op;
        let context = Context::new(Arc::clone(&self.world), turn.job, op);
        let opcode = match &turn.opcode {
            Ok(opcode) => opcode.clone(),
            Err(failure) => {
                let end = JobEnd::Error(failure.to_result());
                return context.record(vec![JobChange::Ended { op, end }]).await;
            }
        };
        if !self.wait_for_locks(&context, turn).await? {
            return Ok(());
        }
        context.record(vec![JobChange::Running { op }]).await?;
        let end = match ops::execute(&context, opcode).await {
            Ok(result) => JobEnd::Success(result),
            Err(Halt::Failed(failure)) => JobEnd::Error(failure.to_result()),
            Err(Halt::Interrupted) => return Err(Halt::Interrupted),
        };
        context.record(vec![JobChange::Ended { op, end }]).await
    }

    /// Waits for the locks of an opcode. `false`: the job was cancelled meanwhile.
    async fn wait_for_locks(&self, context: &Context, turn: &mut Turn) -> Result<bool, Halt> {
        if turn.granted.is_some() && !turn.resumed {
            context.record(vec![JobChange::Waiting { op: turn.op }]).await?;
        }
        while let Some(granted) = &mut turn.granted {
            let state = self.world.state();
            if state.jobs.get(&turn.job).is_none_or(|job| job.status.is_final()) {
                return Ok(false);
            }
            tokio::select! {
                biased;
                _ = granted => turn.granted = None,
                _ = self.world.changed(&state) => {}
            }
        }
        Ok(true)
    }
}
