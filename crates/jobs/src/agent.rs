//! What the master asks of a node. Every call can be repeated: a second one finds the work done.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use model::{Disk, DiskId, DiskTemplate, InstanceId, NodeId, Params, RunId, State, Uuid};
use opcodes::disks::ReplicaReport;
use opcodes::op::MigrationMode;
use serde::{Deserialize, Serialize};

/// A disk, as the node that holds it has to know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskRef {
    /// Name of its instance; part of its path.
    pub instance: String,
    /// Its place in the instance.
    pub index: usize,
    /// How it is stored.
    pub template: DiskTemplate,
    /// Folder for files.
    pub file_storage_dir: String,
    /// It.
    pub disk: Disk,
}

/// A network interface with the parameters that hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NicRef {
    /// Hardware address.
    pub mac: String,
    /// Address that the guest is told to use.
    pub ip: Option<String>,
    /// `mode`, `link`, `vlan`.
    pub params: Params,
    /// Identity.
    pub uuid: String,
    /// Name.
    pub name: Option<String>,
}

/// An instance with all parameters that hold: what is needed to start it or to run its operating system's scripts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Identity.
    pub id: InstanceId,
    /// Name.
    pub name: String,
    /// Name of its primary node.
    pub primary: String,
    /// Names of the nodes that hold further replicas.
    pub secondaries: Vec<String>,
    /// Hypervisor.
    pub hypervisor: String,
    /// Operating system.
    pub os: String,
    /// Hypervisor parameters that hold.
    pub hvparams: Params,
    /// Back-end parameters that hold.
    pub beparams: Params,
    /// Parameters of the operating system's scripts.
    pub osparams: Params,
    /// Disks.
    pub disks: Vec<DiskRef>,
    /// Network interfaces.
    pub nics: Vec<NicRef>,
}

/// A request to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Call {
    /// Nothing: does the node answer? Reply: [`Reply::Done`].
    Ping,
    /// What the node has and runs. Reply: [`Reply::Facts`].
    Facts {
        /// Folder for disks, whose space is asked for.
        file_storage_dir: String,
    },
    /// Looks for what is wrong. Reply: [`Reply::Problems`].
    Verify(Box<VerifyRequest>),
    /// Which operating systems the node has. Reply: [`Reply::Systems`].
    Systems,
    /// Could the node create an instance so? Reply: [`Reply::Done`].
    CheckInstance {
        /// It.
        spec: Box<InstanceSpec>,
        /// Will the operating system's scripts be run?
        install: bool,
    },
    /// Makes a disk; of a mirrored one, the replica that the disk's record gives to this node, which is in sync from birth
    /// if it is a member there. Reply: [`Reply::Done`].
    CreateDisk(DiskRef),
    /// Takes a disk away; of a mirrored one, this node's replica. Reply: [`Reply::Done`].
    RemoveDisk(DiskRef),
    /// Makes a disk larger; of a mirrored one, this node's replica. Reply: [`Reply::Done`].
    GrowDisk {
        /// It, with the size that it has.
        disk: DiskRef,
        /// The size that it shall have.
        size_mib: u64,
    },
    /// Shows disks as files on this node, for a host attachment: of mirrored ones in the run that was committed for it.
    /// Reply: [`Reply::Paths`], in the order of the disks.
    AttachDisks {
        /// They.
        disks: Vec<DiskRef>,
        /// The run; `None` where they are not mirrored.
        run: Option<RunId>,
    },
    /// Ends what [`Call::AttachDisks`] began; mirrored disks are brought to their orderly end, and can be disowned.
    /// Reply: [`Reply::Done`].
    DetachDisks {
        /// They.
        disks: Vec<DiskRef>,
        /// The run.
        run: Option<RunId>,
        /// Even if somebody has them open.
        force: bool,
    },
    /// Copies the content of one disk of this node into another one, of the same size, that reads zeroes: both are
    /// attached already, if they are mirrored. Reply: [`Reply::Done`].
    CopyDisk {
        /// Where from.
        from: Box<DiskRef>,
        /// Where to.
        to: Box<DiskRef>,
        /// The run in which the mirrored one of them is attached.
        run: RunId,
    },
    /// How this node's replicas are. Reply: [`Reply::Replicas`].
    Replicas {
        /// Of which disks; none: all.
        disks: Vec<DiskId>,
    },
    /// Digests of this node's replica of a disk that nobody serves. Reply: [`Reply::Digests`].
    DigestDisk(DiskRef),
    /// Runs the operating system's `create` script. Reply: [`Reply::Done`].
    InstallSystem {
        /// The instance.
        spec: Box<InstanceSpec>,
        /// The run in which its disks are attached meanwhile, if they are mirrored: as by [`Call::AttachDisks`], and not
        /// detached afterwards.
        run: Option<RunId>,
    },
    /// Starts an instance. Reply: [`Reply::Done`], when it runs.
    Start {
        /// It.
        spec: Box<InstanceSpec>,
        /// The run that was committed for it.
        run: RunId,
        /// Leave it paused.
        paused: bool,
    },
    /// Stops an instance, by its own means if it can. Reply: [`Reply::Stopped`], when the process is gone.
    Stop {
        /// Hypervisor that has it.
        hypervisor: String,
        /// Name, for messages.
        instance: String,
        /// Identity, to find what was made for it.
        id: InstanceId,
        /// Its run.
        run: RunId,
        /// Seconds that the guest has; 0: it is ended at once.
        timeout: u32,
        /// Its mirrored disks, which it is disconnected from for good.
        disks: Vec<DiskId>,
        /// Bring the disks to their orderly end, so that they can be disowned. Not for the paused destination of a
        /// migration, and not for the source after a handover: they serve nothing.
        release: bool,
    },
    /// How a run is. Reply: [`Reply::Run`].
    LookAtRun {
        /// Hypervisor that has it.
        hypervisor: String,
        /// It.
        run: RunId,
    },
    /// Makes the destination of a migration (protocol, H2): paused, waiting for memory; its disks are on standby.
    /// Reply: [`Reply::Done`].
    Receive {
        /// The instance.
        spec: Box<InstanceSpec>,
        /// The run that the migration prepared.
        run: RunId,
        /// The migration.
        migration: Uuid,
        /// The source's versioned machine type, from [`LiveRun::machine`].
        machine: String,
    },
    /// Begins to send a run to its destination (H3), unless it is being sent or was. Reply: [`Reply::Sending`].
    Send {
        /// Hypervisor that has it.
        hypervisor: String,
        /// Name, for messages.
        instance: String,
        /// Its run.
        run: RunId,
        /// The migration.
        migration: Uuid,
        /// The destination.
        to: NodeId,
        /// The run there.
        to_run: RunId,
        /// How.
        mode: MigrationMode,
    },
    /// How far the sending is; waits up to `wait_ms` for its end. Reply: [`Reply::Sending`].
    LookAtSending {
        /// Hypervisor that has it.
        hypervisor: String,
        /// The run at the source.
        run: RunId,
        /// The migration.
        migration: Uuid,
        /// Milliseconds.
        wait_ms: u64,
    },
    /// Closes the run's disks for a migration (H4): all that was acknowledged is on all members and flushed. Reply:
    /// [`Reply::Done`].
    Quiesce {
        /// The migration.
        migration: Uuid,
        /// The disks.
        disks: Vec<DiskId>,
    },
    /// Lets frames for the guest come to the destination from now on, where they wait until it runs (H4). Reply:
    /// [`Reply::Done`].
    TakeFrames {
        /// The instance at the destination.
        id: InstanceId,
        /// Its hardware addresses, in the order of its interfaces.
        macs: Vec<String>,
    },
    /// After the handover was committed: serves the disks to the destination's run, lets the guest go on there and
    /// announces it (H6, H7). Reply: [`Reply::Done`].
    Continue {
        /// Hypervisor.
        hypervisor: String,
        /// Name, for messages.
        instance: String,
        /// The run at the destination.
        run: RunId,
        /// Its mirrored disks.
        disks: Vec<DiskId>,
        /// Leave the guest paused, as it was at the source.
        paused: bool,
    },
    /// After the cancellation was committed: the source's run has its disks again and goes on. Reply: [`Reply::Done`], also
    /// if it has ended meanwhile.
    Stay {
        /// Hypervisor that has it.
        hypervisor: String,
        /// Name, for messages.
        instance: String,
        /// Its run.
        run: RunId,
        /// The migration that was cancelled.
        migration: Uuid,
        /// Its mirrored disks.
        disks: Vec<DiskId>,
    },
    /// Restarts the guest in the same process. Reply: [`Reply::Done`].
    Reset {
        /// Hypervisor that has it.
        hypervisor: String,
        /// Name, for messages.
        instance: String,
        /// Its run.
        run: RunId,
    },
    /// Drops the cluster's address. Reply: [`Reply::Done`].
    AddressDown {
        /// Address.
        address: Ipv4Addr,
        /// Prefix length.
        netmask: u8,
        /// Interface.
        netdev: String,
    },
    /// Has the node applied the log up to there? Waits for it. Reply: [`Reply::Done`].
    CaughtUp {
        /// Index in the log.
        index: u64,
    },
    /// Waits. Reply: [`Reply::Done`].
    Delay {
        /// Milliseconds.
        millis: u64,
    },
    /// Gets ready to be declared dead without an operator (protocol, 7.3): all replicas store that their disks are strict, the
    /// guard holds a lease and stops guests when it runs out. Reply: [`Reply::Done`]; then it may be committed.
    Arm,
    /// After its disarming was committed: guests are not stopped for a lease any more. Reply: [`Reply::Done`].
    Disarm,
    /// The node is no longer a member: it forgets the cluster. Reply: [`Reply::Done`], before it does.
    Leave,
}

impl Call {
    /// Its name in messages and for fault points: `create_disk`.
    pub fn name(&self) -> &'static str {
        match self {
            Call::Ping => "ping",
            Call::Facts { .. } => "facts",
            Call::Verify(_) => "verify",
            Call::Systems => "systems",
            Call::CheckInstance { .. } => "check_instance",
            Call::CreateDisk(_) => "create_disk",
            Call::RemoveDisk(_) => "remove_disk",
            Call::GrowDisk { .. } => "grow_disk",
            Call::AttachDisks { .. } => "attach_disks",
            Call::DetachDisks { .. } => "detach_disks",
            Call::CopyDisk { .. } => "copy_disk",
            Call::Replicas { .. } => "replicas",
            Call::DigestDisk(_) => "digest_disk",
            Call::InstallSystem { .. } => "install_system",
            Call::Start { .. } => "start",
            Call::Stop { .. } => "stop",
            Call::LookAtRun { .. } => "look_at_run",
            Call::Receive { .. } => "receive",
            Call::Send { .. } => "send",
            Call::LookAtSending { .. } => "look_at_sending",
            Call::Quiesce { .. } => "quiesce",
            Call::TakeFrames { .. } => "take_frames",
            Call::Continue { .. } => "continue",
            Call::Stay { .. } => "stay",
            Call::Reset { .. } => "reset",
            Call::AddressDown { .. } => "address_down",
            Call::CaughtUp { .. } => "caught_up",
            Call::Delay { .. } => "delay",
            Call::Arm => "arm",
            Call::Disarm => "disarm",
            Call::Leave => "leave",
        }
    }

    /// [`Call::Facts`] for the cluster of that state.
    pub fn facts(state: &State) -> Self {
        let cluster = state.cluster.as_ref();
        Call::Facts { file_storage_dir: cluster.map_or_else(String::new, |cluster| cluster.file_storage_dir.clone()) }
    }
}

/// What a node is to be checked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// Bridges that have to exist.
    pub bridges: Vec<String>,
    /// Hypervisors that have to work.
    pub hypervisors: Vec<String>,
    /// Disks that have to exist.
    pub disks: Vec<DiskRef>,
    /// Folder for files.
    pub file_storage_dir: String,
    /// Names and addresses of nodes that have to be reachable.
    pub peers: BTreeMap<String, Ipv4Addr>,
}

/// A finding of a verification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// Ganeti's code, `ENODEHV`.
    pub code: String,
    /// `node`, `instance` or `cluster`.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// What is wrong.
    pub text: String,
    /// Only a warning.
    pub warning: bool,
}

/// An instance that a hypervisor has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveInstance {
    /// Name.
    pub instance: String,
    /// Its run.
    pub run: RunId,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// `running`, `paused`, …
    pub state: String,
}

/// What a node has and runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Memory of the machine, MiB.
    pub memory_total_mib: u64,
    /// Memory that is free or can be freed, MiB.
    pub memory_free_mib: u64,
    /// Memory that the node itself uses, MiB.
    pub memory_node_mib: u64,
    /// Space for disks, MiB.
    pub disk_total_mib: u64,
    /// Free space for disks, MiB.
    pub disk_free_mib: u64,
    /// Free space for replicas of mirrored disks, MiB.
    #[serde(default)]
    pub mirror_free_mib: u64,
    /// CPUs.
    pub cpus: u32,
    /// Identity of the boot.
    pub boot: String,
    /// The time on the node, microseconds since 1970.
    pub time: u64,
    /// Version of the daemon.
    pub version: String,
    /// What runs guests, and why: `tcg (…)`.
    pub accelerator: String,
    /// Instances.
    pub instances: Vec<LiveInstance>,
}

/// An operating system on a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Its name, without a variant.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// Whether it can be used.
    pub valid: bool,
    /// Why not.
    pub diagnosis: String,
    /// Its variants.
    pub variants: Vec<String>,
    /// Versions of the interface.
    pub api_versions: Vec<u32>,
    /// Parameters: name and help.
    pub parameters: Vec<(String, String)>,
}

/// A run, as its hypervisor sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRun {
    /// What it is doing.
    pub state: RunState,
    /// Its versioned machine type.
    pub machine: String,
}

/// What a run is doing, as far as a migration cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// The guest runs.
    Running,
    /// It is stopped and can be let go on.
    Paused,
    /// Its memory is being sent.
    Migrating,
    /// All of it was sent; the guest is stopped.
    PostMigrate,
    /// A destination, whose memory is not all here.
    Incoming,
    /// It is about to be gone.
    Ending,
}

/// How far a run was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Sending {
    /// It is under way.
    Active {
        /// Bytes sent.
        transferred: u64,
        /// Bytes still to be sent.
        remaining: u64,
        /// Bytes of memory that the guest has.
        total: u64,
    },
    /// The source rests, the destination has it all.
    Complete {
        /// Milliseconds that all of it took; `None`: a restarted daemon does not know.
        total_ms: Option<u64>,
        /// Milliseconds of it in which the guest stood still.
        downtime_ms: Option<u64>,
        /// Bytes of memory sent.
        bytes: u64,
        /// Whether the guest was paused before, and is to stay so.
        paused: bool,
    },
    /// It failed, or was cancelled; the guest goes on at the source, unless its run has ended.
    Failed {
        /// Why.
        why: String,
    },
}

/// How an instance was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// The guest shut itself down.
    Clean,
    /// It did not in time, and was ended.
    Forced,
    /// It was not running.
    NotRunning,
}

/// A node's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// See [`Call::Facts`].
    Facts(Box<Facts>),
    /// See [`Call::Verify`].
    Problems(Vec<Problem>),
    /// See [`Call::Systems`].
    Systems(Vec<SystemInfo>),
    /// See [`Call::Stop`].
    Stopped(Stopped),
    /// See [`Call::AttachDisks`].
    Paths(Vec<String>),
    /// See [`Call::Replicas`].
    Replicas(Vec<ReplicaReport>),
    /// SHA-256 of each [`DIGEST_CHUNK`] bytes of the disk, hexadecimal.
    Digests(Vec<String>),
    /// See [`Call::LookAtRun`]; `None`: there is no such run.
    Run(Option<LiveRun>),
    /// See [`Call::Send`].
    Sending(Sending),
}

/// How much of a disk one digest is of, in bytes; the last one may be of less.
pub const DIGEST_CHUNK: u64 = 4 << 20;
