//! What runs, and what happens to it.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::accel::Accelerator;
use crate::process::ProcessId;

/// A run that is on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The instance's name.
    pub instance: String,
    /// The run's id.
    pub run: String,
    /// What it is doing now.
    pub state: LiveState,
    /// Memory that the guest has, in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The process that carries it; a fake run has none.
    pub process: Option<ProcessId>,
    /// The versioned machine type, such as `pc-i440fx-10.0`. A migration's destination needs the same.
    pub machine: String,
    /// When the run was started.
    pub since: SystemTime,
}

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LiveState {
    /// The guest runs.
    Running,
    /// The virtual CPUs are stopped: not yet resumed, or paused on purpose.
    Paused,
    /// The virtual CPUs are stopped because a disk failed; [`resume`](crate::Hypervisor::resume) tries the disk again.
    IoError,
    /// The guest has shut down; its process is about to end.
    Shutdown,
    /// The guest panicked, or the emulation failed.
    Crashed,
    /// Its memory is being sent to another node. The guest goes on with what it did, but for the last moment before
    /// it is all there.
    Migrating,
    /// Its memory was sent to another node, all of it, and its disks are let go. It never runs again by itself:
    /// [`destroy`](crate::Hypervisor::destroy) it, or, if the copy will never run, let it go on by
    /// [`resume`](crate::Hypervisor::resume).
    PostMigrate,
    /// A migration's destination, whose memory isn't all here. It can't be resumed.
    Incoming,
}

impl fmt::Display for LiveState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LiveState::Running => "running",
            LiveState::Paused => "paused",
            LiveState::IoError => "io-error",
            LiveState::Shutdown => "shutdown",
            LiveState::Crashed => "crashed",
            LiveState::Migrating => "migrating",
            LiveState::PostMigrate => "post-migrate",
            LiveState::Incoming => "incoming",
        })
    }
}

/// How an orderly shutdown ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// The run is gone.
    Clean,
    /// The guest still runs.
    TimedOut,
}

/// Something that happened to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The instance's name.
    pub instance: String,
    /// The run that it happened to.
    pub run: String,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// The machine exists; it is paused, or waits for a migration.
    Started,
    /// The guest runs (again).
    Resumed,
    /// The virtual CPUs were stopped on purpose.
    Paused,
    /// The machine was reset and boots again.
    Reset {
        /// The guest did it itself (a reboot).
        by_guest: bool,
    },
    /// A disk failed, and the guest was stopped rather than told.
    IoError {
        /// The disk's id.
        disk: String,
        /// The reason that the hypervisor gave.
        reason: String,
    },
    /// The source's side of a migration is complete: the run is in [`LiveState::PostMigrate`].
    MigratedOut,
    /// The destination's side of a migration is complete: all memory is here, and the run can be resumed.
    MigratedIn,
    /// The run is over and nothing of it is left.
    Stopped(StopReason),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The guest powered itself off, asked or not.
    GuestShutdown,
    /// The guest rebooted, and its reboot behaviour is to exit.
    GuestReset,
    /// Somebody ended it from outside, in the hypervisor's own way: `destroy`, or a termination signal.
    Killed,
    /// It ended as nobody wanted.
    Crashed {
        /// What is known about it: the signal, the exit status, the guest's panic.
        how: String,
    },
}

/// What a node has for guests. Memory is in MiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Physical memory.
    pub memory_total_mib: u64,
    /// Memory that new guests could use.
    pub memory_free_mib: u64,
    /// Memory that the node itself uses: neither free nor held by guests.
    pub memory_used_by_node_mib: u64,
    /// Logical CPUs.
    pub cpus: u32,
    /// NUMA nodes.
    pub cpu_nodes: u32,
    /// CPU sockets.
    pub cpu_sockets: u32,
    /// How guest code is run, and why so.
    pub accelerator: Accelerator,
}

/// What a daemon found of an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Runs that live and are now this daemon's.
    pub running: Vec<Running>,
    /// Runs that ended while no daemon watched; nothing of them is left.
    pub gone: Vec<Gone>,
}

/// A run that ended while no daemon watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// The instance's name.
    pub instance: String,
    /// The run's id.
    pub run: String,
}
