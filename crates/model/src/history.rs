//! What happened to nodes and instances, and on what evidence it was decided: what `cardume why` tells.
//!
//! Most records are made where commands are applied, so that nothing is decided without one; what is no command is
//! brought by [`Command::Note`](crate::Command::Note).

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{InstanceId, Life, NodeId, RunId, Timestamp};

/// Most records that are kept; the oldest go first.
pub const MAX_RECORDS: usize = 1000;

/// The newest records, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History(VecDeque<Arc<Record>>);

impl History {
    /// The records, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.0.iter().map(|record| &**record)
    }

    pub(crate) fn add(&mut self, record: Record) {
        while self.0.len() >= MAX_RECORDS {
            self.0.pop_front();
        }
        self.0.push_back(Arc::new(record));
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, by the clock of who proposed it.
    pub at: Timestamp,
    /// Term of the master in office.
    pub term: u64,
    /// The master in office.
    pub master: Option<NodeId>,
    /// What.
    pub what: Happening,
}

/// What can happen. Names stand beside numbers: objects may be gone when somebody asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// Another master took office.
    Office {
        /// It.
        node: NodeId,
    },
    /// A node's life was declared dead.
    NodeDead {
        /// The node.
        node: NodeId,
        /// Its life.
        life: Life,
        /// Why that was safe.
        evidence: Evidence,
    },
    /// A node began a life.
    NodeJoined {
        /// The node.
        node: NodeId,
        /// Its new life.
        life: Life,
        /// Whether the old life was declared dead before.
        was_dead: bool,
    },
    /// A node is armed from now on, or not any more.
    Armed {
        /// The node.
        node: NodeId,
        /// Whether it is.
        armed: bool,
    },
    /// An instance whose node's life had ended was given to another node, or to the same in its new life.
    TakenOver {
        /// The instance.
        instance: InstanceId,
        /// Its name.
        name: String,
        /// The node that had it.
        from: NodeId,
        /// The node that has it.
        to: NodeId,
        /// Its new run.
        run: RunId,
        /// Why that node: for people, one sentence.
        reason: String,
    },
    /// An instance whose node's life had ended stays where it was.
    NotTakenOver {
        /// The instance.
        instance: InstanceId,
        /// Its name.
        name: String,
        /// Why: for people, one sentence.
        reason: String,
    },
    /// A run that was taken over, or restarted, runs.
    Started {
        /// The instance.
        instance: InstanceId,
        /// Its name.
        name: String,
        /// Where.
        node: NodeId,
        /// Which run.
        run: RunId,
    },
    /// A run that was taken over, or restarted, did not start.
    NotStarted {
        /// The instance.
        instance: InstanceId,
        /// Its name.
        name: String,
        /// Where.
        node: NodeId,
        /// Which run.
        run: RunId,
        /// What its node said.
        reason: String,
    },
    /// A guest ended that should run.
    Crashed {
        /// The instance.
        instance: InstanceId,
        /// Its name.
        name: String,
        /// Where.
        node: NodeId,
        /// Which run.
        run: RunId,
        /// How, as the hypervisor saw it.
        how: String,
        /// What is done about it: for people, one sentence.
        decision: String,
    },
    /// An instance moved by an operator's job: handed over alive, or given to another node by a start there.
    Moved {
        /// The instance.
        instance: InstanceId,
        /// Its name.
        name: String,
        /// From where.
        from: NodeId,
        /// Where to.
        to: NodeId,
        /// Whether it went on running.
        live: bool,
    },
    /// An operator promoted the replicas on a node, whatever the state said about them.
    Forced {
        /// The instance.
        instance: InstanceId,
        /// Its name.
        name: String,
        /// The node that had it, if one did.
        from: Option<NodeId>,
        /// The node that has it.
        to: NodeId,
    },
    /// A mirrored disk goes on without some of its replicas.
    Outdated {
        /// The instance.
        instance: InstanceId,
        /// Its name.
        name: String,
        /// Which of its disks.
        index: usize,
        /// The nodes of the replicas that left.
        nodes: Vec<NodeId>,
    },
    /// A replica of a mirrored disk is in sync again.
    InSync {
        /// The instance.
        instance: InstanceId,
        /// Its name.
        name: String,
        /// Which of its disks.
        index: usize,
        /// The replica's node.
        node: NodeId,
    },
    /// Forced recovery: a node goes on alone, in a new incarnation of the cluster.
    Founded {
        /// The node.
        node: NodeId,
        /// Nodes that an operator asserted to be off.
        off: Vec<NodeId>,
    },
}

/// Why a node's life could be declared dead: why its lease had surely run out, or it was surely off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// No round that could have granted it a lease began for longer than a lease lasts (rule L7).
    LeaseEnded {
        /// How long before the decision the last such round had begun, milliseconds.
        silent_ms: u64,
        /// How long it had to be, `W`, milliseconds.
        wait_ms: u64,
        /// Whether that round was one of an older master, as the voters remember it (rule L6).
        of_older_master: bool,
        /// The voters that confirmed at that time that this master leads.
        voters: Vec<NodeId>,
    },
    /// The machine has another boot.
    NewBoot {
        /// It.
        boot: String,
    },
    /// An operator asserted it.
    AssertedOff,
}
