//! Runs jobs, on the master, for as long as it is in office.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Job, JobChange, JobEnd, JobId, State};
use opcodes::{Failure, Opcode};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::context::{Context, Halt};
use crate::locks::{LockTable, Wants};
use crate::ops;
use crate::queue::{self, Decision};
use crate::world::World;

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
struct Holding<'a> {
    runner: &'a Runner,
    job: JobId,
}

impl Drop for Holding<'_> {
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
                let (Decision::Start(id) | Decision::Refuse(id, _)) = &decision;
                let id = *id;
                running.insert(id);
                let runner = Arc::clone(&self);
                tasks.spawn(async move {
                    match decision {
                        Decision::Start(_) => runner.job(id).await,
                        Decision::Refuse(_, why) => runner.refuse(id, why).await,
                    }
                    id
                });
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

    async fn refuse(&self, id: JobId, why: String) {
        let state = self.world.state();
        let Some(op) = state.jobs.get(&id).and_then(|job| job.ops.iter().position(|op| !op.status.is_final())) else {
            return;
        };
        let context = Context::new(Arc::clone(&self.world), id, op);
        let end = JobEnd::Error(Failure::failed(format!("Dependency failed: {why}")).to_result());
        // Interrupted: the next master refuses it.
        let _ = context.record(vec![JobChange::Ended { op, end }]).await;
    }

    async fn job(&self, id: JobId) {
        loop {
            let state = self.world.state();
            let Some(job) = state.jobs.get(&id) else {
                return;
            };
            let Some(op) = job.ops.iter().position(|op| !op.status.is_final()) else {
                return;
            };
            if let Err(Halt::Interrupted) = self.op(&state, job, op).await {
                tracing::info!(job = %id, op, "a job was interrupted");
                return;
            }
        }
    }

    /// Runs one opcode and records its end.
    async fn op(&self, state: &State, job: &Job, op: usize) -> Result<(), Halt> {
        let context = Context::new(Arc::clone(&self.world), job.id, op);
        let opcode: Opcode = match serde_json::from_value(job.ops[op].input.clone()) {
            Ok(opcode) => opcode,
            Err(error) => {
                let failure = Failure::failed(format!("this version does not know the opcode: {error}"));
                let end = JobEnd::Error(failure.to_result());
                return context.record(vec![JobChange::Ended { op, end }]).await;
            }
        };
        let Some(_holding) = self.lock(&context, job, op, ops::locks(&opcode, state)).await? else {
            return Ok(());
        };
        context.record(vec![JobChange::Running { op }]).await?;
        let end = match ops::execute(&context, opcode).await {
            Ok(result) => JobEnd::Success(result),
            Err(Halt::Failed(failure)) => JobEnd::Error(failure.to_result()),
            Err(Halt::Interrupted) => return Err(Halt::Interrupted),
        };
        context.record(vec![JobChange::Ended { op, end }]).await
    }

    /// Waits for locks. `None`: the job was cancelled meanwhile.
    async fn lock(&self, context: &Context, job: &Job, op: usize, wants: Wants) -> Result<Option<Holding<'_>>, Halt> {
        let holding = Holding { runner: self, job: job.id };
        let granted = {
            let mut locks = self.locks();
            if locks.table.request(job.id, job.priority, wants) {
                None
            } else {
                let (sender, receiver) = oneshot::channel();
                locks.waiting.insert(job.id, sender);
                Some(receiver)
            }
        };
        let Some(mut granted) = granted else {
            return Ok(Some(holding));
        };
        context.record(vec![JobChange::Waiting { op }]).await?;
        loop {
            let state = self.world.state();
            let ended = |state: &State| state.jobs.get(&job.id).is_none_or(|job| job.status.is_final());
            if ended(&state) {
                return Ok(None);
            }
            tokio::select! {
                biased;
                _ = &mut granted => return Ok(Some(holding)),
                _ = self.world.changed(&state) => {}
            }
        }
    }
}
