//! Commands: the only way in which the state changes.

use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, ClusterChange};
use crate::disk::{DiskRejection, Epoch, Version};
use crate::history::{Evidence, Happening};
use crate::ids::{DiskId, InstanceId, JobId, Life, NodeId, ReplicaId, RunId, Timestamp, Uuid};
use crate::incarnation::{ForkPoint, Incarnation};
use crate::instance::{AdminState, Instance, InstanceChange, NodeLife};
use crate::job::{JobChange, NewJob};
use crate::node::{NewNode, NodeChange};

/// A change of the state that somebody asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Makes the cluster, with its first node. The first entry of a log.
    Init {
        /// Its configuration.
        cluster: Box<Cluster>,
        /// Identity of the first incarnation.
        incarnation: Uuid,
        /// Identity of the group `default`.
        group: Uuid,
        /// The first node; it gets number 1.
        node: NewNode,
    },
    /// Forgets everything but the numbers that must never be given again. Only for a cluster without instances.
    Destroy,
    /// Changes the cluster's configuration.
    ModifyCluster(ClusterChange),
    /// `node` leads from now on, in Raft term `term`: it may run jobs and act on nodes.
    TakeOffice {
        /// The leader.
        node: NodeId,
        /// Its term.
        term: u64,
    },
    /// Who holds the cluster's address. `None`: nobody, its last holder has dropped it.
    SetAddressOwner(Option<NodeId>),
    /// A new incarnation of the cluster, after forced recovery (protocol, section 11).
    Found {
        /// It; `n` is higher than every one seen.
        incarnation: Incarnation,
        /// End of the old one's log.
        fork_point: ForkPoint,
        /// The node that goes on alone.
        #[serde(default)]
        node: Option<NodeId>,
        /// The nodes that an operator asserts to be off: their lives end.
        #[serde(default)]
        off: Vec<NodeId>,
    },

    /// Permits one machine to join.
    AddToken {
        /// Name of the token, to watch it.
        id: Uuid,
        /// SHA-256 of its secret, hexadecimal.
        secret_sha256: String,
        /// What the node will be.
        node: NewNode,
        /// When it expires.
        expires: Timestamp,
    },
    /// Withdraws the permission.
    DropToken {
        /// Its name.
        id: Uuid,
    },
    /// A machine has shown the secret: the node gets its number. Consumes the token.
    AddNode {
        /// The token that permits it.
        token: Uuid,
    },
    /// Changes a node's configuration.
    ModifyNode {
        /// The node.
        node: NodeId,
        /// What changes.
        change: NodeChange,
    },
    /// Takes a node away. It must have no instances.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// A node starts a new life (protocol, section 3): its kernel was booted, or its old life was ended.
    JoinNode {
        /// The node.
        node: NodeId,
        /// Identity of its boot.
        boot: String,
        /// The life that it knew of; a delayed join of an older boot must not end a newer life.
        previous: Life,
        /// The runs that its hypervisors still have; what it owns with other runs is no longer its.
        runs: Vec<RunId>,
    },
    /// Ends a node's life (protocol, section 3): its replicas leave every in-sync set that has another member, its migrations
    /// end, and what it owns may be taken over. Of a node that is armed; of others only with [`Evidence::AssertedOff`].
    NodeDead {
        /// The node.
        node: NodeId,
        /// Its life.
        life: Life,
        /// Why that is safe.
        evidence: Evidence,
    },
    /// The node's guard enforces leases and its replicas know it: it may be declared dead without an operator (protocol,
    /// 7.3). A mirrored disk is strict while all nodes with replicas of it are armed.
    Arm {
        /// The node.
        node: NodeId,
        /// The life in which that was found.
        life: Life,
    },
    /// The contrary. Committed first, then told to the node.
    Disarm {
        /// The node.
        node: NodeId,
    },

    /// Adds an instance.
    AddInstance(Box<Instance>),
    /// Changes an instance's configuration.
    ModifyInstance {
        /// The instance.
        instance: InstanceId,
        /// What changes.
        change: Box<InstanceChange>,
    },
    /// Takes an instance away. It must not be owned.
    RemoveInstance {
        /// The instance.
        instance: InstanceId,
    },
    /// Gives `node` the right to run the instance. Committed before the hypervisor is started.
    Own {
        /// The instance.
        instance: InstanceId,
        /// The node.
        node: NodeId,
    },
    /// Gives the right back: the hypervisor's process is gone.
    Disown {
        /// The instance.
        instance: InstanceId,
        /// The run that ended.
        run: RunId,
        /// What is wanted of the instance from now on, where that changes too.
        want: Option<AdminState>,
    },

    /// Gives an instance whose owner's life has ended to a node whose replicas are in sync (protocol, sections 3 and 9). An
    /// item of its own in a batch: where it can't be done the answer is [`Applied::Refused`], and the rest of the batch takes
    /// effect.
    Takeover {
        /// The instance.
        instance: InstanceId,
        /// The node.
        to: NodeId,
        /// Why that one: for people, one sentence.
        reason: String,
    },

    /// A disk's primary goes on without some replicas (protocol, section 5.4). At least one member has to stay. Naming its
    /// own replica, replicas that are no members, or none, is fine: the version grows all the same, which ends every
    /// older proposal.
    Outdate {
        /// The disk.
        disk: DiskId,
        /// The primary.
        by: NodeLife,
        /// Its epoch.
        epoch: Epoch,
        /// The version that it knows.
        ver: Version,
        /// The replicas.
        replicas: Vec<ReplicaId>,
    },
    /// A disk's primary found a replica to hold every acknowledged write: it joins the in-sync set.
    InSync {
        /// The disk.
        disk: DiskId,
        /// The primary.
        by: NodeLife,
        /// Its epoch.
        epoch: Epoch,
        /// The version that it knows.
        ver: Version,
        /// The replica.
        replica: ReplicaId,
        /// The life of the replica's node in which that was found.
        life: Life,
    },
    /// As [`Self::Outdate`], afterwards: the primary of a disk in manual mode has gone on alone already (protocol, 7.2).
    Solo {
        /// The disk.
        disk: DiskId,
        /// The primary.
        by: NodeLife,
        /// Its epoch.
        epoch: Epoch,
        /// The version that it knows.
        ver: Version,
        /// The replicas that it went on without.
        replicas: Vec<ReplicaId>,
    },
    /// Begins a live migration. Its new run is the answer.
    Prepare {
        /// The instance.
        instance: InstanceId,
        /// A fresh identity for the migration.
        migration: Uuid,
        /// Where to; a member of each disk's in-sync set lies there.
        to: NodeId,
    },
    /// Decides a live migration: the destination has the instance and its disks from now on.
    Handover {
        /// The migration.
        migration: Uuid,
    },
    /// Decides a live migration: the instance stays where it is.
    Cancel {
        /// The migration.
        migration: Uuid,
    },
    /// Gives a disk one more replica, which is not in sync yet.
    AddReplica {
        /// The disk.
        disk: DiskId,
        /// The version that the proposer knows.
        ver: Version,
        /// A fresh identity for it.
        replica: ReplicaId,
        /// Its node.
        node: NodeId,
        /// Its slot, not taken by another replica.
        slot: u8,
    },
    /// Takes a replica away. One that is in sync goes only if another one stays that is, and not from the instance's primary
    /// node.
    RemoveReplica {
        /// The disk.
        disk: DiskId,
        /// The version that the proposer knows.
        ver: Version,
        /// The replica.
        replica: ReplicaId,
    },
    /// Makes a disk larger. Every member has grown already.
    Grow {
        /// The disk.
        disk: DiskId,
        /// The version that the proposer knows; of a disk without replicas it does not matter.
        ver: Version,
        /// The new size.
        size_mib: u64,
    },
    /// Promotes the replicas on one node whatever the state says about them (protocol, section 11). An operator's word.
    Force {
        /// The instance.
        instance: InstanceId,
        /// The node.
        node: NodeId,
        /// Per disk the version up to which that node's replica had followed; its `left` if it is inconsistent.
        bases: Vec<(DiskId, Version)>,
        /// The operator asserts that the node which owns the instance in the state is off.
        asserted_off: bool,
    },

    /// Adds to the history what is no command.
    Note(Box<Happening>),

    /// Queues a job.
    SubmitJob(NewJob),
    /// Records what happened to a job. Only the master in office may.
    RecordJob {
        /// The job.
        job: JobId,
        /// What happened, in order.
        changes: Vec<JobChange>,
    },
    /// Asks for the cancellation of a job. One that has not begun ends at once.
    CancelJob {
        /// The job.
        job: JobId,
    },
    /// Takes a finished job out of the queue.
    ArchiveJob {
        /// The job.
        job: JobId,
    },
}

/// A batch of commands, accepted or rejected as a whole: one log entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Incarnation in which it was made. Another one than the state's is rejected.
    pub incarnation: Incarnation,
    /// Term of the office in which it was made, for what only the master may do. Another one is rejected, so that what an
    /// old master had under way can't take effect under the new one.
    pub office: Option<u64>,
    /// Time of the proposer.
    pub at: Timestamp,
    /// What to do.
    pub commands: Vec<Command>,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Applied {
    /// It is done.
    Done,
    /// A node got this number.
    Node(NodeId),
    /// A node got this life.
    Life(Life),
    /// A job got this number.
    Job(JobId),
    /// An instance got this run.
    Run(RunId),
    /// This item of the batch was refused, and changed nothing.
    Refused(String),
}

/// Why a proposal was rejected. The texts are for administrators.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// It was made in another incarnation of the cluster.
    #[error("the cluster is in incarnation {now}, the request was made in incarnation {then}")]
    Incarnation {
        /// The state's.
        now: u64,
        /// The proposal's.
        then: u64,
    },
    /// It was made by a master that is no longer in office.
    #[error("the master of term {then} is no longer in office (now {now})")]
    Office {
        /// The term in office.
        now: u64,
        /// The proposal's.
        then: u64,
    },
    /// There is no cluster yet.
    #[error("this is not a cluster yet; run 'gnt-cluster init'")]
    NoCluster,
    /// There is already one.
    #[error("Cluster is already initialised")]
    AlreadyInitialised,
    /// No such object.
    #[error("{kind} '{name}' not known")]
    Unknown {
        /// `Instance`, `Node`, `Job`, `Token`.
        kind: String,
        /// Its name or number.
        name: String,
    },
    /// There is already one of that name.
    #[error("{kind} '{name}' is already in the cluster")]
    Exists {
        /// `Instance`, `Node`, `MAC address`.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The object's state does not allow it.
    #[error("{0}")]
    State(String),
    /// The value makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A command of a mirrored disk's primary came too late.
    #[error(transparent)]
    Disk(DiskRejection),
    /// The queue is full or drained.
    #[error("{0}")]
    Queue(String),
}
