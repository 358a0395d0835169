//! The operations: what each opcode does, as steps that can be resumed.

mod attachment;
mod cluster;
mod convert;
mod create;
mod delay;
mod disks;
mod evacuate;
mod failover;
mod force;
mod instance;
mod migrate;
mod mirrors;
mod modify;
mod nodes;
mod replace;
mod restart;
mod spec;
mod target;
mod verify;

pub use self::instance::{current_run, stop_call};
pub use self::spec::spec;

use model::{NodeId, State};
use opcodes::{ErrorCode, Failure, Opcode};
use serde_json::Value;

use crate::context::{Context, Halt};
use crate::locks::{Lock, Mode, Wants};

/// Locks that an opcode needs in that state.
pub fn locks(opcode: &Opcode, state: &State) -> Wants {
    let mut wants = Wants::from([(Lock::Cluster, Mode::Shared)]);
    let node = |name: &str| state.node_by_name(name).map(|(id, _)| Lock::Node(id));
    let instance = |name: &str| Lock::Instance(name.to_owned());
    // All nodes of an instance: none of them is to be taken out of the cluster meanwhile.
    let homes = |name: &str| -> Wants {
        let nodes = state.instance_by_name(name).into_iter().flat_map(mirrors::nodes_of);
        nodes.map(|id| (Lock::Node(id), Mode::Shared)).collect()
    };
    match opcode {
        Opcode::ClusterVerify(_)
        | Opcode::ClusterVerifyConfig(_)
        | Opcode::ClusterVerifyGroup(_)
        | Opcode::ClusterRedistConf {} => {}
        Opcode::NodeAdd(op) => {
            wants.insert(Lock::NodeName(op.node_name.clone()), Mode::Exclusive);
        }
        // By name as well: a node that is still being added has its number already.
        Opcode::NodeSetParams(opcodes::op::NodeSetParams { node_name, .. }) | Opcode::NodeRemove { node_name } => {
            wants.insert(Lock::NodeName(node_name.clone()), Mode::Exclusive);
            wants.extend(node(node_name).map(|lock| (lock, Mode::Exclusive)));
        }
        Opcode::InstanceCreate(op) => {
            wants.insert(instance(&op.instance_name), Mode::Exclusive);
            let nodes = [op.pnode.as_deref(), op.snode.as_deref()];
            wants.extend(nodes.into_iter().flatten().filter_map(node).map(|lock| (lock, Mode::Shared)));
        }
        Opcode::InstanceStartup(opcodes::op::InstanceStartup { instance_name: name, .. })
        | Opcode::InstanceShutdown(opcodes::op::InstanceShutdown { instance_name: name, .. })
        | Opcode::InstanceReboot(opcodes::op::InstanceReboot { instance_name: name, .. })
        | Opcode::InstanceRemove(opcodes::op::InstanceRemove { instance_name: name, .. }) => {
            wants.insert(instance(name), Mode::Exclusive);
            wants.extend(homes(name));
        }
        Opcode::InstanceMigrate(opcodes::op::InstanceMigrate { instance_name: name, .. })
        | Opcode::InstanceFailover(opcodes::op::InstanceFailover { instance_name: name, .. })
        | Opcode::InstanceRestart(opcodes::op::InstanceRestart { instance_name: name, .. })
        | Opcode::InstanceReplaceDisks(opcodes::op::InstanceReplaceDisks { instance_name: name, .. })
        | Opcode::InstanceGrowDisk(opcodes::op::InstanceGrowDisk { instance_name: name, .. })
        | Opcode::InstanceActivateDisks(opcodes::op::InstanceActivateDisks { instance_name: name, .. })
        | Opcode::InstanceDeactivateDisks(opcodes::op::InstanceDeactivateDisks { instance_name: name, .. })
        | Opcode::InstanceVerifyDisks { instance_name: name } => {
            wants.insert(instance(name), Mode::Exclusive);
            wants.extend(homes(name));
        }
        Opcode::NodeMigrate(opcodes::op::NodeMigrate { node_name, .. })
        | Opcode::NodeEvacuate(opcodes::op::NodeEvacuate { node_name, .. }) => {
            wants.extend(node(node_name).map(|lock| (lock, Mode::Shared)));
        }
        Opcode::InstanceSetParams(op) => {
            wants.insert(instance(&op.instance_name), Mode::Exclusive);
            if op.disk_template.is_some() {
                wants.extend(homes(&op.instance_name));
                wants.extend(op.remote_node.as_deref().and_then(node).map(|lock| (lock, Mode::Shared)));
            }
        }
        Opcode::TestDelay(op) if op.no_locks => {}
        Opcode::TestDelay(op) => {
            wants.extend(op.on_nodes.iter().filter_map(|name| node(name)).map(|lock| (lock, Mode::Exclusive)));
        }
    }
    if let Opcode::InstanceReplaceDisks(op) = opcode {
        wants.extend(op.remote_node.as_deref().and_then(node).map(|lock| (lock, Mode::Shared)));
    }
    wants
}

/// Carries an opcode out.
///
/// # Errors
/// See [`Halt`].
pub async fn execute(ctx: &Context, opcode: Opcode) -> Result<Value, Halt> {
    match opcode {
        Opcode::ClusterVerify(op) => verify::submit(ctx, op).await,
        Opcode::ClusterVerifyConfig(op) => verify::config(ctx, op).await,
        Opcode::ClusterVerifyGroup(op) => verify::group(ctx, op).await,
        Opcode::ClusterRedistConf {} => cluster::redistribute(ctx).await,
        Opcode::NodeAdd(op) => nodes::add(ctx, op).await,
        Opcode::NodeSetParams(op) => nodes::set_params(ctx, op).await,
        Opcode::NodeRemove { node_name } => nodes::remove(ctx, &node_name).await,
        Opcode::InstanceCreate(op) => create::create(ctx, *op).await,
        Opcode::InstanceStartup(op) => instance::startup(ctx, op).await,
        Opcode::InstanceShutdown(op) => instance::shutdown(ctx, op).await,
        Opcode::InstanceReboot(op) => instance::reboot(ctx, op).await,
        Opcode::InstanceRemove(op) => instance::remove(ctx, op).await,
        Opcode::InstanceSetParams(op) => modify::set_params(ctx, *op).await,
        Opcode::InstanceMigrate(op) => migrate::migrate(ctx, op).await,
        Opcode::InstanceFailover(op) => failover::failover(ctx, op).await,
        Opcode::InstanceRestart(op) => restart::restart(ctx, op).await,
        Opcode::InstanceReplaceDisks(op) => replace::replace(ctx, op).await,
        Opcode::InstanceGrowDisk(op) => disks::grow(ctx, op).await,
        Opcode::InstanceActivateDisks(op) => disks::activate(ctx, op).await,
        Opcode::InstanceDeactivateDisks(op) => disks::deactivate(ctx, op).await,
        Opcode::InstanceVerifyDisks { instance_name } => disks::verify(ctx, &instance_name).await,
        Opcode::NodeMigrate(op) => evacuate::migrate(ctx, op).await,
        Opcode::NodeEvacuate(op) => evacuate::evacuate(ctx, op).await,
        Opcode::TestDelay(op) => delay::delay(ctx, op).await,
    }
}

/// The node of that name.
fn find_node(state: &State, name: &str) -> Result<NodeId, Failure> {
    state.node_by_name(name).map(|(id, _)| id).ok_or_else(|| Failure::unknown("Node", name))
}

/// A refusal because the request makes no sense.
fn wrong_input(text: impl Into<String>) -> Failure {
    Failure::refused(ErrorCode::WrongInput, text)
}

/// A refusal because of the state of the object.
fn wrong_state(text: impl Into<String>) -> Failure {
    Failure::refused(ErrorCode::WrongState, text)
}
