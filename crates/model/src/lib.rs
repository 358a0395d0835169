//! The replicated state of a cluster, and the commands that change it.
//!
//! Everything that must survive the loss of a node and be the same on every voter lives in [`State`]: configuration,
//! job queue, who owns which instance, who holds the cluster address. It changes only through [`State::apply`], which is
//! pure and deterministic: the same [`Proposal`]s in the same order give the same state on every node, and each either
//! takes effect as a whole or is [rejected](Rejection) without a trace. There is no clock, no randomness and no I/O in
//! this crate; whoever proposes a command puts the time and fresh random ids into it.
//!
//! The rules about incarnations, lives, owners and offices are those of the protocol (sections 2, 3 and 7 to 9).

mod apply;
mod cluster;
mod command;
mod disk;
mod group;
pub mod history;
mod ids;
mod incarnation;
mod instance;
mod job;
mod node;
pub mod params;
mod state;
mod voters;

pub use cluster::{Cluster, ClusterChange, JoinToken, LEASE_MS, OsSettings};
pub use command::{Applied, Command, Proposal, Rejection};
pub use disk::{DiskRejection, Epoch, Forced, MAX_REPLICAS, Migration, Mirror, MirrorMode, MirrorReplica, Version};
pub use group::{AllocPolicy, Group};
pub use history::{Evidence, Happening, History, Record};
pub use ids::{DiskId, GroupId, InstanceId, JobId, Life, NodeId, ReplicaId, RunId, Timestamp, Uuid};
pub use incarnation::{ForkPoint, Incarnation};
pub use instance::{
    AdminState, Disk, DiskAccess, DiskTemplate, Instance, InstanceChange, NewStorage, Nic, NodeLife, Provision,
};
pub use job::{
    Job, JobChange, JobEnd, JobStatus, LogEntry, LogKind, MAX_QUEUED_JOBS, NewJob, Op, OpStatus, Step, StepDone,
};
pub use node::{NewNode, Node, NodeChange, NodeRole};
pub use params::{ParamValue, Params};
pub use state::{Office, State};
pub use voters::voters;
