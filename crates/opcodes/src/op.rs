//! Opcodes: the operations that a job is made of, with Ganeti's names and parameters.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use model::{DiskAccess, DiskTemplate, ParamValue, Params, RunId};
use serde::{Deserialize, Serialize};

/// An operation with its parameters. As JSON: `{"OP_ID": "OP_INSTANCE_STARTUP", "instance_name": "vm1", …}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "OP_ID")]
pub enum Opcode {
    /// Checks the whole cluster: submits one job for the configuration and one a group.
    #[serde(rename = "OP_CLUSTER_VERIFY")]
    ClusterVerify(Verify),
    /// Checks what is configured.
    #[serde(rename = "OP_CLUSTER_VERIFY_CONFIG")]
    ClusterVerifyConfig(Verify),
    /// Checks the nodes of a group.
    #[serde(rename = "OP_CLUSTER_VERIFY_GROUP")]
    ClusterVerifyGroup(VerifyGroup),
    /// Makes sure that every node has the newest configuration.
    #[serde(rename = "OP_CLUSTER_REDIST_CONF")]
    ClusterRedistConf {},
    /// Adds a node: prints what has to be typed there, and waits for it.
    #[serde(rename = "OP_NODE_ADD")]
    NodeAdd(NodeAdd),
    /// Changes a node's roles and flags.
    #[serde(rename = "OP_NODE_SET_PARAMS")]
    NodeSetParams(NodeSetParams),
    /// Takes a node out of the cluster.
    #[serde(rename = "OP_NODE_REMOVE")]
    NodeRemove {
        /// Its name.
        node_name: String,
    },
    /// Makes an instance.
    #[serde(rename = "OP_INSTANCE_CREATE")]
    InstanceCreate(Box<InstanceCreate>),
    /// Starts an instance.
    #[serde(rename = "OP_INSTANCE_STARTUP")]
    InstanceStartup(InstanceStartup),
    /// Stops an instance.
    #[serde(rename = "OP_INSTANCE_SHUTDOWN")]
    InstanceShutdown(InstanceShutdown),
    /// Restarts an instance.
    #[serde(rename = "OP_INSTANCE_REBOOT")]
    InstanceReboot(InstanceReboot),
    /// Takes an instance away, with its disks.
    #[serde(rename = "OP_INSTANCE_REMOVE")]
    InstanceRemove(InstanceRemove),
    /// Changes an instance's parameters.
    #[serde(rename = "OP_INSTANCE_SET_PARAMS")]
    InstanceSetParams(Box<InstanceSetParams>),
    /// Moves a running instance to its secondary node.
    #[serde(rename = "OP_INSTANCE_MIGRATE")]
    InstanceMigrate(InstanceMigrate),
    /// Moves an instance to its secondary node by stopping and starting it.
    #[serde(rename = "OP_INSTANCE_FAILOVER")]
    InstanceFailover(InstanceFailover),
    /// Starts an instance again that has ended although it should run (not an opcode of Ganeti: its watcher starts
    /// instances by `OP_INSTANCE_STARTUP`, which would also start one that was shut down meanwhile).
    #[serde(rename = "OP_INSTANCE_RESTART")]
    InstanceRestart(InstanceRestart),
    /// Gives a mirrored instance another secondary node.
    #[serde(rename = "OP_INSTANCE_REPLACE_DISKS")]
    InstanceReplaceDisks(InstanceReplaceDisks),
    /// Makes a disk larger.
    #[serde(rename = "OP_INSTANCE_GROW_DISK")]
    InstanceGrowDisk(InstanceGrowDisk),
    /// Shows the disks of a stopped instance on its primary node.
    #[serde(rename = "OP_INSTANCE_ACTIVATE_DISKS")]
    InstanceActivateDisks(InstanceActivateDisks),
    /// Takes them away again.
    #[serde(rename = "OP_INSTANCE_DEACTIVATE_DISKS")]
    InstanceDeactivateDisks(InstanceDeactivateDisks),
    /// Compares the replicas of a stopped instance's disks, byte by byte (not an opcode of Ganeti).
    #[serde(rename = "OP_INSTANCE_VERIFY_DISKS")]
    InstanceVerifyDisks {
        /// Its name.
        instance_name: String,
    },
    /// Submits a migration of each instance whose primary the node is.
    #[serde(rename = "OP_NODE_MIGRATE")]
    NodeMigrate(NodeMigrate),
    /// Submits jobs that move the node's instances, or their second replicas, elsewhere.
    #[serde(rename = "OP_NODE_EVACUATE")]
    NodeEvacuate(NodeEvacuate),
    /// Does nothing for a while.
    #[serde(rename = "OP_TEST_DELAY")]
    TestDelay(TestDelay),
}

/// Parameters of the verifications.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verify {
    /// Say what is looked at.
    #[serde(default)]
    pub verbose: bool,
    /// Write each finding with its code.
    #[serde(default)]
    pub error_codes: bool,
    /// Codes that are only warned of.
    #[serde(default)]
    pub ignore_errors: Vec<String>,
}

/// Parameters of the verification of a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyGroup {
    /// Its name.
    pub group_name: String,
    /// What is common to all verifications.
    #[serde(flatten)]
    pub options: Verify,
}

/// Parameters of `OP_NODE_ADD`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeAdd {
    /// Name of the machine; resolved on the master.
    pub node_name: String,
    /// Its address; resolved from the name if absent.
    pub primary_ip: Option<Ipv4Addr>,
    /// Its address for replication.
    pub secondary_ip: Option<Ipv4Addr>,
    /// Group to put it in.
    pub group: Option<String>,
    /// May become master.
    #[serde(default = "yes")]
    pub master_capable: bool,
    /// May run instances.
    #[serde(default = "yes")]
    pub vm_capable: bool,
}

/// Parameters of `OP_NODE_SET_PARAMS`; absent ones stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeSetParams {
    /// Its name.
    pub node_name: String,
    /// May become master now.
    pub master_candidate: Option<bool>,
    /// Marked as away.
    pub offline: Option<bool>,
    /// Takes no new instances.
    pub drained: Option<bool>,
    /// May be a master candidate.
    pub master_capable: Option<bool>,
    /// May run instances.
    pub vm_capable: Option<bool>,
    /// Address for replication.
    pub secondary_ip: Option<Ipv4Addr>,
    /// Go on in spite of warnings.
    #[serde(default)]
    pub force: bool,
}

/// A disk to be made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// Size in MiB.
    pub size: u64,
    /// Whether the guest may write.
    #[serde(default)]
    pub mode: DiskAccess,
    /// A name.
    pub name: Option<String>,
}

/// A network interface to be made or changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NicRequest {
    /// Hardware address; absent or `auto`: chosen.
    pub mac: Option<String>,
    /// Address that the guest is told to use.
    pub ip: Option<String>,
    /// How it is connected.
    pub mode: Option<String>,
    /// Bridge.
    pub link: Option<String>,
    /// VLAN.
    pub vlan: Option<String>,
    /// A name.
    pub name: Option<String>,
}

/// Parameters of `OP_INSTANCE_CREATE`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceCreate {
    /// Its name.
    pub instance_name: String,
    /// Node to put it on.
    pub pnode: Option<String>,
    /// Node for the second replica.
    pub snode: Option<String>,
    /// How its disks are stored; the cluster's default if absent.
    pub disk_template: Option<DiskTemplate>,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<DiskRequest>,
    /// Its network interfaces.
    #[serde(default)]
    pub nics: Vec<NicRequest>,
    /// Operating system, `os+variant`.
    pub os_type: Option<String>,
    /// Parameters for the operating system's scripts.
    #[serde(default)]
    pub osparams: Params,
    /// Hypervisor; the cluster's default if absent.
    pub hypervisor: Option<String>,
    /// Hypervisor parameters that differ from the cluster's.
    #[serde(default)]
    pub hvparams: Params,
    /// Back-end parameters that differ from the cluster's.
    #[serde(default)]
    pub beparams: Params,
    /// Start it.
    #[serde(default = "yes")]
    pub start: bool,
    /// Leave the disks empty.
    #[serde(default)]
    pub no_install: bool,
    /// Refuse it if its address answers.
    #[serde(default = "yes")]
    pub ip_check: bool,
    /// Refuse it if its name can't be resolved.
    #[serde(default = "yes")]
    pub name_check: bool,
    /// Tags.
    #[serde(default)]
    pub tags: std::collections::BTreeSet<String>,
}

/// Parameters of `OP_INSTANCE_STARTUP`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceStartup {
    /// Its name.
    pub instance_name: String,
    /// Hypervisor parameters for this start only.
    #[serde(default)]
    pub hvparams: Params,
    /// Back-end parameters for this start only.
    #[serde(default)]
    pub beparams: Params,
    /// Leave it paused.
    #[serde(default)]
    pub startup_paused: bool,
    /// Don't note that it shall run from now on.
    #[serde(default)]
    pub no_remember: bool,
    /// Start it although its primary node is drained or was marked offline wrongly.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `OP_INSTANCE_SHUTDOWN`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceShutdown {
    /// Its name.
    pub instance_name: String,
    /// Seconds that the guest has to shut down by itself; then it is ended.
    #[serde(default = "shutdown_timeout")]
    pub timeout: u32,
    /// Don't note that it shall not run from now on.
    #[serde(default)]
    pub no_remember: bool,
    /// Don't ask whether it runs first.
    #[serde(default)]
    pub force: bool,
}

/// How an instance is restarted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RebootType {
    /// The guest restarts in the same hypervisor process.
    Soft,
    /// The hypervisor process is ended and started again.
    #[default]
    Hard,
    /// As a shutdown and a startup.
    Full,
}

/// Parameters of `OP_INSTANCE_REBOOT`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceReboot {
    /// Its name.
    pub instance_name: String,
    /// How.
    #[serde(default)]
    pub reboot_type: RebootType,
    /// Seconds that the guest has to shut down by itself.
    #[serde(default = "shutdown_timeout")]
    pub shutdown_timeout: u32,
}

/// Parameters of `OP_INSTANCE_REMOVE`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceRemove {
    /// Its name.
    pub instance_name: String,
    /// Seconds that the guest has to shut down by itself.
    #[serde(default = "shutdown_timeout")]
    pub shutdown_timeout: u32,
    /// Go on although its node does not answer or its disks can't be removed.
    #[serde(default)]
    pub ignore_failures: bool,
}

/// A change in a list of network interfaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NicChange {
    /// What to do: `add`, `remove` or `modify`.
    pub action: ListAction,
    /// Which one; −1: the end of the list.
    pub index: i32,
    /// What it shall be.
    #[serde(default)]
    pub nic: NicRequest,
}

/// What to do with an element of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListAction {
    /// Put one in.
    Add,
    /// Take it away.
    Remove,
    /// Change it.
    Modify,
}

/// Parameters of `OP_INSTANCE_SET_PARAMS`; absent ones stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceSetParams {
    /// Its name.
    pub instance_name: String,
    /// Hypervisor parameters; `null`: back to the cluster's.
    #[serde(default)]
    pub hvparams: BTreeMap<String, Option<ParamValue>>,
    /// Back-end parameters likewise.
    #[serde(default)]
    pub beparams: BTreeMap<String, Option<ParamValue>>,
    /// Parameters of the operating system likewise.
    #[serde(default)]
    pub osparams: BTreeMap<String, Option<ParamValue>>,
    /// Changes of network interfaces.
    #[serde(default)]
    pub nics: Vec<NicChange>,
    /// Operating system.
    pub os_name: Option<String>,
    /// Mark it as offline (`true`) or as stopped again (`false`).
    pub offline: Option<bool>,
    /// Store its disks in another way. Only while it is stopped.
    pub disk_template: Option<DiskTemplate>,
    /// The secondary node that this needs.
    pub remote_node: Option<String>,
}

/// How an instance is migrated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MigrationMode {
    /// It runs on meanwhile.
    #[default]
    #[serde(rename = "live")]
    Live,
    /// It is paused first, so that nothing has to be sent twice.
    #[serde(rename = "non-live")]
    NonLive,
}

/// Parameters of `OP_INSTANCE_MIGRATE`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceMigrate {
    /// Its name.
    pub instance_name: String,
    /// How.
    #[serde(default)]
    pub mode: MigrationMode,
    /// Only clear up after a migration that was interrupted.
    #[serde(default)]
    pub cleanup: bool,
    /// Fail over instead where it can't be migrated.
    #[serde(default)]
    pub allow_failover: bool,
}

/// Parameters of `OP_INSTANCE_FAILOVER`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceFailover {
    /// Its name.
    pub instance_name: String,
    /// Seconds that the guest has to shut down by itself; then it is ended.
    #[serde(default = "shutdown_timeout")]
    pub shutdown_timeout: u32,
    /// Accept that the other node's replica lacks writes.
    #[serde(default)]
    pub ignore_consistency: bool,
}

/// Parameters of `OP_INSTANCE_RESTART`. Nothing is done if the instance has been started, stopped or moved meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceRestart {
    /// Its name.
    pub instance_name: String,
    /// The run that has ended; absent: it was in none.
    pub run: Option<RunId>,
    /// Name of the node to start it on: its primary node, or one with replicas of all of its disks.
    pub target_node: String,
}

/// What a replacement of disks replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplaceMode {
    /// The replica goes to another node.
    #[default]
    #[serde(rename = "replace_new_secondary")]
    NewSecondary,
    /// The replica on the secondary node is made anew.
    #[serde(rename = "replace_on_secondary")]
    OnSecondary,
}

/// Parameters of `OP_INSTANCE_REPLACE_DISKS`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceReplaceDisks {
    /// Its name.
    pub instance_name: String,
    /// What is replaced.
    #[serde(default)]
    pub mode: ReplaceMode,
    /// The new secondary node.
    pub remote_node: Option<String>,
}

/// Parameters of `OP_INSTANCE_GROW_DISK`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceGrowDisk {
    /// Its name.
    pub instance_name: String,
    /// Which disk, from 0.
    pub disk: usize,
    /// By how many MiB, or to how many.
    pub amount: u64,
    /// `amount` is the new size.
    #[serde(default)]
    pub absolute: bool,
}

/// Parameters of `OP_INSTANCE_ACTIVATE_DISKS`. The result is a list of `[node, name, path]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceActivateDisks {
    /// Its name.
    pub instance_name: String,
    /// Wait until all replicas are in sync.
    #[serde(default)]
    pub wait_for_sync: bool,
}

/// Parameters of `OP_INSTANCE_DEACTIVATE_DISKS`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceDeactivateDisks {
    /// Its name.
    pub instance_name: String,
    /// Even if somebody has them open.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `OP_NODE_MIGRATE`. The result is `{"jobs": [[true, 17], …]}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeMigrate {
    /// Its name.
    pub node_name: String,
    /// How.
    #[serde(default)]
    pub mode: MigrationMode,
    /// Fail over what can't be migrated.
    #[serde(default)]
    pub allow_failover: bool,
}

/// What is moved off a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EvacuationMode {
    /// The instances that run there.
    #[serde(rename = "primary-only")]
    PrimaryOnly,
    /// The second replicas that it holds.
    #[serde(rename = "secondary-only")]
    SecondaryOnly,
    /// Both.
    #[default]
    #[serde(rename = "all")]
    All,
}

/// Parameters of `OP_NODE_EVACUATE`. The result is `{"jobs": [[true, 17], …]}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeEvacuate {
    /// Its name.
    pub node_name: String,
    /// What is moved.
    #[serde(default)]
    pub mode: EvacuationMode,
    /// Where second replicas go; chosen by free space if absent.
    pub remote_node: Option<String>,
}

/// Parameters of `OP_TEST_DELAY`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TestDelay {
    /// Seconds.
    pub duration: f64,
    /// Wait on the master.
    #[serde(default = "yes")]
    pub on_master: bool,
    /// Wait on these nodes, by name.
    #[serde(default)]
    pub on_nodes: Vec<String>,
    /// How often; 0 and 1 mean once.
    #[serde(default)]
    pub repeat: u32,
    /// Take no locks.
    #[serde(default)]
    pub no_locks: bool,
}

fn yes() -> bool {
    true
}

fn shutdown_timeout() -> u32 {
    DEFAULT_SHUTDOWN_TIMEOUT
}

/// Seconds that a guest has to shut down by itself, unless the user says otherwise (Ganeti's value).
pub const DEFAULT_SHUTDOWN_TIMEOUT: u32 = 120;

impl Opcode {
    /// Its name, `OP_INSTANCE_CREATE`.
    pub fn id(&self) -> &'static str {
        match self {
            Opcode::ClusterVerify(_) => "OP_CLUSTER_VERIFY",
            Opcode::ClusterVerifyConfig(_) => "OP_CLUSTER_VERIFY_CONFIG",
            Opcode::ClusterVerifyGroup(_) => "OP_CLUSTER_VERIFY_GROUP",
            Opcode::ClusterRedistConf {} => "OP_CLUSTER_REDIST_CONF",
            Opcode::NodeAdd(_) => "OP_NODE_ADD",
            Opcode::NodeSetParams(_) => "OP_NODE_SET_PARAMS",
            Opcode::NodeRemove { .. } => "OP_NODE_REMOVE",
            Opcode::InstanceCreate(_) => "OP_INSTANCE_CREATE",
            Opcode::InstanceStartup(_) => "OP_INSTANCE_STARTUP",
            Opcode::InstanceShutdown(_) => "OP_INSTANCE_SHUTDOWN",
            Opcode::InstanceReboot(_) => "OP_INSTANCE_REBOOT",
            Opcode::InstanceRemove(_) => "OP_INSTANCE_REMOVE",
            Opcode::InstanceSetParams(_) => "OP_INSTANCE_SET_PARAMS",
            Opcode::InstanceMigrate(_) => "OP_INSTANCE_MIGRATE",
            Opcode::InstanceFailover(_) => "OP_INSTANCE_FAILOVER",
            Opcode::InstanceRestart(_) => "OP_INSTANCE_RESTART",
            Opcode::InstanceReplaceDisks(_) => "OP_INSTANCE_REPLACE_DISKS",
            Opcode::InstanceGrowDisk(_) => "OP_INSTANCE_GROW_DISK",
            Opcode::InstanceActivateDisks(_) => "OP_INSTANCE_ACTIVATE_DISKS",
            Opcode::InstanceDeactivateDisks(_) => "OP_INSTANCE_DEACTIVATE_DISKS",
            Opcode::InstanceVerifyDisks { .. } => "OP_INSTANCE_VERIFY_DISKS",
            Opcode::NodeMigrate(_) => "OP_NODE_MIGRATE",
            Opcode::NodeEvacuate(_) => "OP_NODE_EVACUATE",
            Opcode::TestDelay(_) => "OP_TEST_DELAY",
        }
    }

    /// The object that it works on, as it stands in lists of jobs.
    fn object(&self) -> Option<String> {
        match self {
            Opcode::ClusterVerify(_) | Opcode::ClusterVerifyConfig(_) | Opcode::ClusterRedistConf {} => None,
            Opcode::ClusterVerifyGroup(op) => Some(op.group_name.clone()),
            Opcode::NodeAdd(op) => Some(op.node_name.clone()),
            Opcode::NodeSetParams(op) => Some(op.node_name.clone()),
            Opcode::NodeRemove { node_name } => Some(node_name.clone()),
            Opcode::InstanceCreate(op) => Some(op.instance_name.clone()),
            Opcode::InstanceStartup(op) => Some(op.instance_name.clone()),
            Opcode::InstanceShutdown(op) => Some(op.instance_name.clone()),
            Opcode::InstanceReboot(op) => Some(op.instance_name.clone()),
            Opcode::InstanceRemove(op) => Some(op.instance_name.clone()),
            Opcode::InstanceSetParams(op) => Some(op.instance_name.clone()),
            Opcode::InstanceMigrate(op) => Some(op.instance_name.clone()),
            Opcode::InstanceFailover(op) => Some(op.instance_name.clone()),
            Opcode::InstanceRestart(op) => Some(op.instance_name.clone()),
            Opcode::InstanceReplaceDisks(op) => Some(op.instance_name.clone()),
            Opcode::InstanceGrowDisk(op) => Some(op.instance_name.clone()),
            Opcode::InstanceActivateDisks(op) => Some(op.instance_name.clone()),
            Opcode::InstanceDeactivateDisks(op) => Some(op.instance_name.clone()),
            Opcode::InstanceVerifyDisks { instance_name } => Some(instance_name.clone()),
            Opcode::NodeMigrate(op) => Some(op.node_name.clone()),
            Opcode::NodeEvacuate(op) => Some(op.node_name.clone()),
            Opcode::TestDelay(op) => Some(op.duration.to_string()),
        }
    }

    /// One line for lists of jobs, `INSTANCE_CREATE(vm1)`.
    pub fn summary(&self) -> String {
        let name = self.id().trim_start_matches("OP_");
        match self.object() {
            Some(object) => format!("{name}({object})"),
            None => name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opcode_is_written_as_ganeti_writes_it() {
        let op = Opcode::InstanceShutdown(InstanceShutdown {
            instance_name: "vm1".into(),
            timeout: 60,
            no_remember: false,
            force: false,
        });
        let json = serde_json::to_value(&op).unwrap();
        assert_eq!(json["OP_ID"], op.id());
        assert_eq!(json["instance_name"], "vm1");
        assert_eq!(op.summary(), "INSTANCE_SHUTDOWN(vm1)");
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let json = serde_json::json!({"OP_ID": "OP_INSTANCE_SHUTDOWN", "instance_name": "vm1"});
        let Opcode::InstanceShutdown(op) = serde_json::from_value(json).unwrap() else { panic!("another opcode") };
        assert_eq!(op.timeout, DEFAULT_SHUTDOWN_TIMEOUT);
    }
}
