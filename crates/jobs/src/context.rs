//! What an operation is given: its record, the state, the nodes.

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{Applied, Command, JobChange, JobId, Life, NodeId, Op, State, Timestamp, Uuid};
use opcodes::{ErrorCode, Failure};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agent::{Call, Reply};
use crate::entry::Entry;
use crate::world::{CallError, ProposeError, World};

/// How long an operation goes on asking a node that does not answer. A daemon that is started again is back in a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it goes on asking while something stands still for the answer, or where it can do without: long enough for a
/// daemon that is started again.
const BRIEFLY: Duration = Duration::from_secs(5);
/// How long a single call may take, unless the operation says otherwise.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// Why an operation does not go on.
#[derive(Clone, Debug)]
pub enum Halt {
    /// It failed; what it had begun has to be undone.
    Failed(Failure),
    /// This master is out of office, or does not know whether its last proposal was committed. Nothing is undone and
    /// nothing recorded: the next master goes on from the record.
    Interrupted,
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Halt::Failed(failure)
    }
}

/// The surroundings of one run of one opcode.
pub struct Context {
    world: Arc<dyn World>,
    job: JobId,
    op: usize,
    earlier: Mutex<Option<Earlier>>,
}

/// What earlier runs of the operation have said.
struct Earlier {
    lines: Vec<String>,
    /// How many of them this run has come past.
    passed: usize,
}

impl Context {
    pub(crate) fn new(world: Arc<dyn World>, job: JobId, op: usize) -> Self {
        Self { world, job, op, earlier: Mutex::default() }
    }

    /// The job that it belongs to.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// The newest applied state.
    pub fn state(&self) -> Arc<State> {
        self.world.state()
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.world.now()
    }

    pub(crate) fn op(&self) -> usize {
        self.op
    }

    /// A fresh identity. Choose inside a [step](Self::step), or a repetition chooses anew.
    pub fn new_uuid(&self) -> Uuid {
        self.world.new_uuid()
    }

    /// A one-time token for joining, and the SHA-256 of its secret. Choose inside a step.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new_token(&self) -> Result<(String, String), Halt> {
        self.world.new_token().map_err(|why| Halt::Failed(Failure::failed(why)))
    }

    /// The outside, for what has no step of its own.
    pub fn world(&self) -> &Arc<dyn World> {
        &self.world
    }

    fn with_op<T>(&self, read: impl FnOnce(&Op) -> T) -> Option<T> {
        self.state().jobs.get(&self.job).and_then(|job| job.ops.get(self.op)).map(read)
    }

    /// The result of a step that is recorded as done.
    ///
    /// # Errors
    /// [`Halt::Failed`] if another version has written it and this one can't read it.
    pub fn recorded<T: DeserializeOwned>(&self, step: &str) -> Result<Option<T>, Halt> {
        let output = |op: &Op| op.steps.get(step).and_then(|step| step.done.as_ref()).map(|done| done.output.clone());
        let Some(output) = self.with_op(output).flatten() else {
            return Ok(None);
        };
        serde_json::from_value(output).map(Some).map_err(|error| {
            Failure::failed(format!("the record of step '{step}' can't be read by this version: {error}")).into()
        })
    }

    /// Whether a step is recorded as done.
    pub fn is_done(&self, step: &str) -> bool {
        self.with_op(|op| op.steps.get(step).is_some_and(|step| step.done.is_some())).unwrap_or(false)
    }

    /// Whether an earlier run has begun a step of which it is not known whether it was done.
    pub fn is_open(&self, step: &str) -> bool {
        self.with_op(|op| op.steps.get(step).is_some_and(|step| step.done.is_none())).unwrap_or(false)
    }

    /// Does a step, unless the record says that it is done. `work` may be run again after an interruption, so it has to
    /// find work that is already done as it would have left it.
    ///
    /// # Errors
    /// What `work` fails with, or [`Halt::Interrupted`].
    pub async fn step<T, F>(&self, name: &str, work: impl FnOnce() -> F) -> Result<T, Halt>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, Halt>>,
    {
        if let Some(output) = self.recorded(name)? {
            return Ok(output);
        }
        let op = self.op;
        self.record(vec![JobChange::StepBegun { op, step: name.to_owned() }]).await?;
        let output = work().await?;
        let value = serde_json::to_value(&output)
            .map_err(|error| Failure::failed(format!("step '{name}' has a result that can't be recorded: {error}")))?;
        self.record(vec![JobChange::StepDone { op, step: name.to_owned(), output: value }]).await?;
        Ok(output)
    }

    /// A step that only changes the replicated state: the change and its record are one log entry, so it happens exactly
    /// once. Returns what the commands did, then or now.
    ///
    /// # Errors
    /// [`Halt::Failed`] with the rejection, or [`Halt::Interrupted`].
    pub async fn commit(&self, name: &str, commands: Vec<Command>) -> Result<Vec<Applied>, Halt> {
        self.entry(name, commands).commit().await
    }

    /// As [`Self::commit`], with more in the same log entry.
    pub fn entry(&self, name: &str, commands: Vec<Command>) -> Entry<'_> {
        Entry::new(self, name, commands)
    }

    /// Proposes commands that need no record of their own.
    ///
    /// # Errors
    /// [`Halt::Failed`] with the rejection, or [`Halt::Interrupted`].
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Applied>, Halt> {
        match self.world.propose(commands).await {
            Ok(applied) => Ok(applied),
            Err(ProposeError::Rejected(model::Rejection::Office { .. } | model::Rejection::Incarnation { .. })) => {
                Err(Halt::Interrupted)
            }
            Err(ProposeError::Rejected(rejection)) => Err(Halt::Failed(rejection.into())),
            Err(ProposeError::Interrupted) => Err(Halt::Interrupted),
        }
    }

    pub(crate) async fn record(&self, changes: Vec<JobChange>) -> Result<(), Halt> {
        let command = Command::RecordJob { job: self.job, changes };
        match self.propose(vec![command]).await {
            Ok(_) => Ok(()),
            // The job has ended or is gone: whoever did that decided it; this run has nothing more to say.
            Err(Halt::Failed(failure)) => {
                tracing::warn!(job = %self.job, %failure, "the record of a job was refused");
                Err(Halt::Interrupted)
            }
            Err(halt) => Err(halt),
        }
    }

    /// Tells the administrator something. A line that an earlier run has said is not said again.
    ///
    /// # Errors
    /// [`Halt::Interrupted`].
    pub async fn say(&self, message: impl Into<String>) -> Result<(), Halt> {
        let message = message.into();
        if self.was_said(&message) {
            return Ok(());
        }
        self.record(vec![JobChange::Log { op: self.op, message }]).await
    }

    /// Looks for a line among those of earlier runs, after the last one that was found. A repetition says fewer of them
    /// where it leaves out what is done, so lines in between are passed over.
    fn was_said(&self, message: &str) -> bool {
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = earlier.get_or_insert_with(|| {
            let lines = self.with_op(|op| op.log.iter().map(|line| line.message.clone()).collect());
            Earlier { lines: lines.unwrap_or_default(), passed: 0 }
        });
        match earlier.lines[earlier.passed..].iter().position(|line| line == message) {
            Some(place) => {
                earlier.passed += place + 1;
                true
            }
            None => false,
        }
    }

    /// Tells the administrator of something that is not as it should be, but does not stop the operation.
    ///
    /// # Errors
    /// [`Halt::Interrupted`].
    pub async fn warn(&self, message: impl std::fmt::Display) -> Result<(), Halt> {
        self.say(format!(" - WARNING: {message}")).await
    }

    /// Asks a node, again and again for a while if it does not answer.
    ///
    /// # Errors
    /// [`Halt::Failed`] with the node's own failure, or saying that the node does not answer.
    pub async fn call(&self, node: NodeId, call: Call) -> Result<Reply, Halt> {
        self.call_within(node, call, CALL_DEADLINE).await
    }

    /// As [`Self::call`], for what may take up to `deadline`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_within(&self, node: NodeId, call: Call, deadline: Duration) -> Result<Reply, Halt> {
        let answer = self.ask(node, call, deadline).await;
        self.answered(node, answer)
    }

    /// As [`Self::call_within`], but a node that does not answer is given up after some seconds.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_briefly(&self, node: NodeId, call: Call, deadline: Duration) -> Result<Reply, Halt> {
        let answer = self.ask_briefly(node, call, deadline).await;
        self.answered(node, answer)
    }

    fn answered(&self, node: NodeId, answer: Result<Reply, CallError>) -> Result<Reply, Halt> {
        match answer {
            Ok(reply) => Ok(reply),
            Err(CallError::Failed(failure)) => Err(Halt::Failed(failure)),
            Err(CallError::Deposed) => Err(Halt::Interrupted),
            Err(CallError::Unreachable(why)) => {
                let name = self.state().node_name(node);
                Err(Halt::Failed(Failure::refused(
                    ErrorCode::EnvironmentError,
                    format!("Node '{name}' does not answer: {why}"),
                )))
            }
        }
    }

    /// As [`Self::call_within`], for who has to tell a node that does not answer from one that fails.
    ///
    /// # Errors
    /// As [`World::call`]; the node was asked again and again before it counts as one that can't be reached.
    pub async fn ask(&self, node: NodeId, call: Call, deadline: Duration) -> Result<Reply, CallError> {
        self.ask_for(node, call, deadline, PATIENCE).await
    }

    /// As [`Self::ask`], but a node that does not answer is given up after some seconds.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_briefly(&self, node: NodeId, call: Call, deadline: Duration) -> Result<Reply, CallError> {
        self.ask_for(node, call, deadline, BRIEFLY).await
    }

    async fn ask_for(
        &self,
        node: NodeId,
        call: Call,
        deadline: Duration,
        patience: Duration,
    ) -> Result<Reply, CallError> {
        let mut lost_at = None;
        let mut waited = Duration::ZERO;
        let mut pause = Duration::from_millis(50);
        loop {
            let outcome = tokio::select! {
                biased;
                outcome = self.world.call(node, call.clone(), self.job, deadline) => outcome,
                // Its life has ended with whatever it was doing.
                why = self.ended(node) => Err(CallError::Unreachable(why)),
            };
            if self.is_dead(node) {
                // It answers nobody before it has joined again, and nobody waits for that.
                return outcome;
            }
            // From the first attempt that came to nothing, because the others take their time, too. Only a clock that is
            // set back must not make this endless.
            let now = self.now();
            let since = now.0.saturating_sub(lost_at.get_or_insert(now).0);
            let elapsed = Duration::from_micros(since).max(waited);
            match outcome {
                Err(CallError::Unreachable(why)) if elapsed < patience => {
                    tracing::info!(%node, why, "a node does not answer, asking again");
                    self.world.sleep(pause).await;
                    waited += pause;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                outcome => return outcome,
            }
        }
    }

    fn is_dead(&self, node: NodeId) -> bool {
        self.state().nodes.get(&node).is_some_and(|node| node.dead)
    }

    /// Resolves when the life that a node has now ends, or at once where it is dead: why it will not answer.
    async fn ended(&self, node: NodeId) -> String {
        let first = self.state().nodes.get(&node).map(|node| node.life);
        loop {
            let state = self.state();
            match state.nodes.get(&node) {
                Some(now) if now.dead => return "it was declared dead".into(),
                Some(now) if first.is_some_and(|first| first != Life(0) && first != now.life) => {
                    return "it was restarted meanwhile".into();
                }
                _ => {}
            }
            self.world.changed(&state).await;
        }
    }

    /// Asks a node once.
    ///
    /// # Errors
    /// As [`World::call`].
    pub async fn call_once(&self, node: NodeId, call: Call, deadline: Duration) -> Result<Reply, CallError> {
        self.world.call(node, call, self.job, deadline).await
    }

    /// Looks a name up.
    ///
    /// # Errors
    /// Ganeti's refusal of a name that does not resolve.
    pub async fn resolve(&self, name: &str) -> Result<Ipv4Addr, Halt> {
        self.world.resolve(name).await.map_err(|why| {
            Halt::Failed(Failure::refused(
                ErrorCode::ResolverError,
                format!("The given name ({name}) does not resolve: {why}"),
            ))
        })
    }
}
