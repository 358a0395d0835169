//! Jobs: units of work, their opcodes, and the record of every step (docs/architecture.md, "Jobs").
//!
//! A step is recorded before and after it is done. A new master that resumes a job skips the steps that are recorded as
//! done and repeats the one that was under way; so every step is written to be repeatable.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{JobId, Timestamp};

/// How many unfinished jobs the queue takes. A constant of the state machine, because all nodes must agree on it.
pub const MAX_QUEUED_JOBS: usize = 5000;

/// State of a job, derived from its opcodes' (Ganeti's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Nobody has looked at it yet.
    Queued,
    /// It waits for locks or for another job.
    Waiting,
    /// It will be cancelled as soon as that is safe.
    Canceling,
    /// It is being carried out.
    Running,
    /// It was cancelled before it changed anything.
    Canceled,
    /// All its opcodes succeeded.
    Success,
    /// One of its opcodes failed; the rest were not tried.
    Error,
}

/// State of an opcode: the same words.
pub type OpStatus = JobStatus;

impl JobStatus {
    /// Ganeti's word.
    pub fn word(self) -> &'static str {
        match self {
            JobStatus::Queued => "queued",
            JobStatus::Waiting => "waiting",
            JobStatus::Canceling => "canceling",
            JobStatus::Running => "running",
            JobStatus::Canceled => "canceled",
            JobStatus::Success => "success",
            JobStatus::Error => "error",
        }
    }

    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, JobStatus::Canceled | JobStatus::Success | JobStatus::Error)
    }
}

/// Kind of a line in an opcode's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// Text for the administrator.
    Message,
}

/// A line of an opcode's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Number within the job, from 1; a watcher asks for what came after the last one it saw.
    pub serial: u64,
    /// When it was written.
    pub at: Timestamp,
    /// Its kind.
    pub kind: LogKind,
    /// The text.
    pub message: String,
}

/// A step of an opcode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// When it was begun (for the last time).
    pub begun: Timestamp,
    /// Set once it is done.
    pub done: Option<StepDone>,
}

/// The end of a [`Step`]. A struct of its own because an output of `null` has to differ from no output in a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepDone {
    /// When it was done.
    pub at: Timestamp,
    /// What the step found out, chose or made. A repetition of the opcode uses it instead of doing the step again.
    pub output: Value,
}

/// An opcode of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// The opcode with its parameters, `{"OP_ID": "OP_INSTANCE_CREATE", …}`.
    pub input: Value,
    /// One line for lists, `INSTANCE_CREATE(vm1)`.
    pub summary: String,
    /// Its state.
    pub status: OpStatus,
    /// What it told the administrator.
    pub log: Vec<LogEntry>,
    /// Its steps, by name.
    pub steps: BTreeMap<String, Step>,
    /// Result of a success; `[class, [text, code]]` of an error, as in Ganeti.
    pub result: Value,
    /// When it was taken from the queue.
    pub start: Option<Timestamp>,
    /// When it had its locks.
    pub exec: Option<Timestamp>,
    /// When it ended.
    pub end: Option<Timestamp>,
}

/// A unit of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// Its opcodes, done one after the other.
    pub ops: Vec<Op>,
    /// Its state.
    pub status: JobStatus,
    /// −20 (first) to 19 (last).
    pub priority: i8,
    /// Jobs that must have ended before, and in which state.
    pub depends: Vec<(JobId, Vec<JobStatus>)>,
    /// Who asked for it.
    pub user: String,
    /// When it was submitted.
    pub received: Timestamp,
    /// When the first opcode was begun.
    pub start: Option<Timestamp>,
    /// When it ended.
    pub end: Option<Timestamp>,
    /// Somebody asked for its cancellation.
    pub cancel: bool,
    /// Serial of the last line in its log.
    pub log_serial: u64,
}

/// A job to be queued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewJob {
    /// Opcodes and their summaries.
    pub ops: Vec<(Value, String)>,
    /// −20 (first) to 19 (last).
    pub priority: i8,
    /// Jobs that must have ended before, and in which state.
    #[serde(default)]
    pub depends: Vec<(JobId, Vec<JobStatus>)>,
    /// Who asks.
    pub user: String,
}

/// How an opcode ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobEnd {
    /// With a result.
    Success(Value),
    /// With an error, `[class, [text, code]]`.
    Error(Value),
    /// Before it had begun.
    Canceled,
}

/// What happened to a job. Recorded by the master that runs it. An opcode goes from queued to waiting to running to its
/// end, never back; a step that is done stays done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobChange {
    /// Opcode `op` waits for its locks.
    Waiting {
        /// Index of the opcode.
        op: usize,
    },
    /// Opcode `op` has its locks and runs.
    Running {
        /// Index of the opcode.
        op: usize,
    },
    /// A line for the administrator.
    Log {
        /// Index of the opcode.
        op: usize,
        /// The text.
        message: String,
    },
    /// A step begins.
    StepBegun {
        /// Index of the opcode.
        op: usize,
        /// Name of the step, unique within the opcode.
        step: String,
    },
    /// A step is done.
    StepDone {
        /// Index of the opcode.
        op: usize,
        /// Name of the step.
        step: String,
        /// What it found out, chose or made.
        output: Value,
    },
    /// A step is begun and done by the other commands of the same batch, so it happens exactly once. Its result is what
    /// those before it [did](crate::Applied).
    Committed {
        /// Index of the opcode.
        op: usize,
        /// Name of the step.
        step: String,
    },
    /// Opcode `op` ended. After an error or a cancellation the rest of the job ends likewise.
    Ended {
        /// Index of the opcode.
        op: usize,
        /// How.
        end: JobEnd,
    },
}
