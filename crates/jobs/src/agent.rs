//! What the master asks of a node. Every call can be repeated: a second one finds the work done.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use model::{Disk, DiskTemplate, InstanceId, Params, RunId, State};
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
    /// Makes a disk. Reply: [`Reply::Done`].
    CreateDisk(DiskRef),
    /// Takes a disk away. Reply: [`Reply::Done`].
    RemoveDisk(DiskRef),
    /// Runs the operating system's `create` script. Reply: [`Reply::Done`].
    InstallSystem(Box<InstanceSpec>),
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
    /// Brings the cluster's address up. Reply: [`Reply::Done`].
    AddressUp {
        /// Address.
        address: Ipv4Addr,
        /// Prefix length.
        netmask: u8,
        /// Interface.
        netdev: String,
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
    /// The node is no longer a member: it forgets the cluster. Reply: [`Reply::Done`], before it does.
    Leave,
}

impl Call {
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
}
