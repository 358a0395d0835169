//! Commands on the job queue.

use super::unknown;
use crate::command::{Applied, Rejection};
use crate::ids::{JobId, Timestamp};
use crate::job::{Job, JobChange, JobEnd, JobStatus, LogEntry, LogKind, MAX_QUEUED_JOBS, NewJob, Op, Step, StepDone};
use crate::state::State;

impl State {
    pub(super) fn submit_job(&mut self, new: &NewJob, at: Timestamp) -> Result<Applied, Rejection> {
        if self.cluster.as_ref().is_some_and(|cluster| cluster.drained) {
            return Err(Rejection::Queue("Job queue is drained, refusing job".into()));
        }
        let unfinished = self.jobs.values().filter(|job| !job.status.is_final()).count();
        if unfinished >= MAX_QUEUED_JOBS {
            return Err(Rejection::Queue(format!(
                "Job queue is full ({unfinished} unfinished jobs), wait for some to end"
            )));
        }
        if new.ops.is_empty() {
            return Err(Rejection::Invalid("A job needs at least one opcode".into()));
        }
        if !(-20..=19).contains(&new.priority) {
            return Err(Rejection::Invalid(format!("Priority {} is not in range [-20, 19]", new.priority)));
        }
        if let Some((missing, _)) = new.depends.iter().find(|(id, _)| id.0 == 0 || id.0 > self.last_job) {
            return Err(unknown("Job", missing));
        }
        self.last_job += 1;
        let id = JobId(self.last_job);
        let ops = new
            .ops
            .iter()
            .map(|(input, summary)| Op {
                input: input.clone(),
                summary: summary.clone(),
                status: JobStatus::Queued,
                log: Vec::new(),
                steps: Default::default(),
                result: serde_json::Value::Null,
                start: None,
                exec: None,
                end: None,
            })
            .collect();
        let job = Job {
            id,
            ops,
            status: JobStatus::Queued,
            priority: new.priority,
            depends: new.depends.clone(),
            user: new.user.clone(),
            received: at,
            start: None,
            end: None,
            cancel: false,
            log_serial: 0,
        };
        self.jobs.insert(id, job);
        Ok(Applied::Job(id))
    }

    pub(super) fn record_job(
        &mut self,
        id: JobId,
        changes: &[JobChange],
        before: &[Applied],
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        let Some(job) = self.jobs.get(&id) else {
            return Err(unknown("Job", id));
        };
        if job.status.is_final() {
            return Err(Rejection::State(format!("Job {id} has ended already ({})", job.status.word())));
        }
        // On a copy, so that the record is taken as a whole or not at all; a job is small.
        let mut next = job.clone();
        for change in changes {
            next.record(change, before, at)?;
        }
        self.jobs.insert(id, next);
        Ok(Applied::Done)
    }

    pub(super) fn cancel_job(&mut self, id: JobId, at: Timestamp) -> Result<Applied, Rejection> {
        let Some(job) = self.jobs.get_mut(&id) else {
            return Err(unknown("Job", id));
        };
        match job.status {
            JobStatus::Queued | JobStatus::Waiting => {
                job.cancel = true;
                job.end_from(0, JobStatus::Canceled, at);
                Ok(Applied::Done)
            }
            status if status.is_final() => {
                Err(Rejection::State(format!("Job {id} has ended already ({})", status.word())))
            }
            status => Err(Rejection::State(format!("Job {id} can't be cancelled any more ({})", status.word()))),
        }
    }

    pub(super) fn archive_job(&mut self, id: JobId) -> Result<Applied, Rejection> {
        let Some(job) = self.jobs.get(&id) else {
            return Err(unknown("Job", id));
        };
        if !job.status.is_final() {
            return Err(Rejection::State(format!("Job {id} has not ended yet ({})", job.status.word())));
        }
        self.jobs.remove(&id);
        Ok(Applied::Done)
    }
}

impl Job {
    fn record(&mut self, change: &JobChange, before: &[Applied], at: Timestamp) -> Result<(), Rejection> {
        let index = match change {
            JobChange::Waiting { op }
            | JobChange::Running { op }
            | JobChange::Log { op, .. }
            | JobChange::StepBegun { op, .. }
            | JobChange::StepDone { op, .. }
            | JobChange::Committed { op, .. }
            | JobChange::Ended { op, .. } => *op,
        };
        let id = self.id;
        let Some(op) = self.ops.get_mut(index) else {
            return Err(Rejection::Invalid(format!("Job {id} has no opcode {index}")));
        };
        if op.status.is_final() {
            return Err(Rejection::State(format!("Opcode {index} of job {id} has ended already")));
        }
        match change {
            // What has been begun can't be cancelled any more, so it is never shown as waiting again.
            JobChange::Waiting { .. } if op.status == JobStatus::Running => {
                return Err(Rejection::State(format!("Opcode {index} of job {id} is running already")));
            }
            JobChange::Waiting { .. } => {
                op.status = JobStatus::Waiting;
                op.start.get_or_insert(at);
                self.start.get_or_insert(at);
            }
            JobChange::Running { .. } => {
                op.status = JobStatus::Running;
                op.start.get_or_insert(at);
                op.exec.get_or_insert(at);
                self.start.get_or_insert(at);
            }
            JobChange::Log { message, .. } => {
                self.log_serial += 1;
                let serial = self.log_serial;
                op.log.push(LogEntry { serial, at, kind: LogKind::Message, message: message.clone() });
            }
            JobChange::StepBegun { step, .. }
            | JobChange::StepDone { step, .. }
            | JobChange::Committed { step, .. }
                if op.steps.get(step).is_some_and(|record| record.done.is_some()) =>
            {
                return Err(Rejection::State(format!("Step '{step}' of job {id} is done already")));
            }
            JobChange::StepBegun { step, .. } => {
                op.steps.insert(step.clone(), Step { begun: at, done: None });
            }
            JobChange::StepDone { step, output, .. } => match op.steps.get_mut(step) {
                Some(record) => record.done = Some(StepDone { at, output: output.clone() }),
                None => {
                    return Err(Rejection::Invalid(format!("Step '{step}' of job {id} was not begun")));
                }
            },
            JobChange::Committed { step, .. } => {
                let output = serde_json::to_value(before).map_err(|error| Rejection::Invalid(error.to_string()))?;
                op.steps.insert(step.clone(), Step { begun: at, done: Some(StepDone { at, output }) });
            }
            JobChange::Ended { end, .. } => {
                op.end = Some(at);
                match end {
                    JobEnd::Success(result) => {
                        op.status = JobStatus::Success;
                        op.result = result.clone();
                    }
                    JobEnd::Error(error) => {
                        op.status = JobStatus::Error;
                        op.result = error.clone();
                        self.end_from(index + 1, JobStatus::Error, at);
                    }
                    JobEnd::Canceled => self.end_from(index, JobStatus::Canceled, at),
                }
            }
        }
        self.refresh_status(at);
        Ok(())
    }

    /// Ends what has not ended yet, from opcode `first` on.
    fn end_from(&mut self, first: usize, status: JobStatus, at: Timestamp) {
        for op in self.ops.iter_mut().skip(first).filter(|op| !op.status.is_final()) {
            op.status = status;
            op.end = Some(at);
            op.result = match status {
                JobStatus::Canceled => "Job canceled by request".into(),
                _ => "Preceding opcode failed".into(),
            };
        }
        self.refresh_status(at);
    }

    fn refresh_status(&mut self, at: Timestamp) {
        let any = |status: JobStatus| self.ops.iter().any(|op| op.status == status);
        self.status = if any(JobStatus::Error) {
            JobStatus::Error
        } else if any(JobStatus::Canceled) {
            JobStatus::Canceled
        } else if self.ops.iter().all(|op| op.status == JobStatus::Success) {
            JobStatus::Success
        } else {
            match self.ops.iter().find(|op| !op.status.is_final()) {
                // Between two opcodes the job is running, though the next opcode is still queued.
                Some(op) if op.status == JobStatus::Queued && any(JobStatus::Success) => JobStatus::Running,
                Some(op) => op.status,
                None => JobStatus::Success,
            }
        };
        if self.status.is_final() {
            self.end.get_or_insert(at);
        }
    }
}
