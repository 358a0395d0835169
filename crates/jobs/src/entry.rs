//! One log entry of an operation: commands with the record of their step, and whatever else has to be known exactly if they
//! were accepted. An entry costs a write to disks of several nodes, so what belongs together goes in one.

use model::{Applied, Command, JobChange};
use opcodes::Failure;
use serde::Serialize;

use crate::context::{Context, Halt};

/// See [`Context::entry`].
pub struct Entry<'a> {
    ctx: &'a Context,
    step: String,
    commands: Vec<Command>,
    changes: Vec<JobChange>,
}

impl<'a> Entry<'a> {
    pub(crate) fn new(ctx: &'a Context, step: &str, commands: Vec<Command>) -> Self {
        let changes = vec![JobChange::Committed { op: ctx.op(), step: step.to_owned() }];
        Self { ctx, step: step.to_owned(), commands, changes }
    }

    /// Records another step as done, with this result.
    ///
    /// # Errors
    /// [`Halt::Failed`] if it can't be written as JSON.
    pub fn note<T: Serialize>(mut self, step: &str, output: &T) -> Result<Self, Halt> {
        let op = self.ctx.op();
        let output = serde_json::to_value(output)
            .map_err(|error| Failure::failed(format!("step '{step}' has a result that can't be recorded: {error}")))?;
        let step = step.to_owned();
        self.changes
            .extend([JobChange::StepBegun { op, step: step.clone() }, JobChange::StepDone { op, step, output }]);
        Ok(self)
    }

    /// Tells the administrator something.
    pub fn say(mut self, message: impl Into<String>) -> Self {
        self.changes.push(JobChange::Log { op: self.ctx.op(), message: message.into() });
        self
    }

    /// Commits it, unless the step is recorded as done. Returns what the commands did, then or now.
    ///
    /// # Errors
    /// [`Halt::Failed`] with the rejection, or [`Halt::Interrupted`].
    pub async fn commit(mut self) -> Result<Vec<Applied>, Halt> {
        if let Some(applied) = self.ctx.recorded(&self.step)? {
            return Ok(applied);
        }
        self.commands.push(Command::RecordJob { job: self.ctx.job(), changes: self.changes });
        let mut applied = self.ctx.propose(self.commands).await?;
        // what the record itself did
        applied.pop();
        Ok(applied)
    }
}
