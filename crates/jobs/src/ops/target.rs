//! Whether an instance can go to its other node.

use std::time::Duration;

use model::{Instance, NodeId, Params, State};
use opcodes::{ErrorCode, Failure};

use super::instance::check_online;
use super::spec::spec;
use super::wrong_state;
use crate::agent::{Call, Facts, Reply};
use crate::context::{Context, Halt};
use crate::world::CallError;

/// How long a node may take to look whether it could run an instance.
const LOOK: Duration = Duration::from_secs(30);

/// The node that an instance can go to from its primary node, as far as the state tells. `moves` is what is wanted, in the
/// plural.
pub fn target(state: &State, instance: &Instance, moves: &str) -> Result<NodeId, Failure> {
    let to = secondary(state, instance, moves)?;
    check_online(state, instance)?;
    Ok(to)
}

/// As [`target`], whatever became of its primary node.
pub fn secondary(state: &State, instance: &Instance, moves: &str) -> Result<NodeId, Failure> {
    let name = &instance.name;
    if instance.disks.is_empty() || instance.disks.iter().any(|disk| disk.mirror.is_none()) {
        let template = instance.disk_template;
        return Err(wrong_state(format!("Instance's disk layout '{template}' does not allow {moves}")));
    }
    if let Some(migration) = instance.migration {
        return Err(wrong_state(format!(
            "Instance '{name}' is migrating to node '{}' already, by a job that did not bring it to an end; 'gnt-instance migrate --cleanup {name}' settles that first",
            state.node_name(migration.to.node)
        )));
    }
    let Some(to) = instance.secondaries.first().copied() else {
        return Err(wrong_state(format!(
            "Instance '{name}' has no secondary node; 'gnt-instance replace-disks -n NODE {name}' gives it one"
        )));
    };
    let to_name = state.node_name(to);
    let node = state.nodes.get(&to).ok_or_else(|| Failure::unknown("Node", &to_name))?;
    if node.offline {
        return Err(wrong_state(format!("Can't use offline node '{to_name}' as the target of instance '{name}'")));
    }
    if node.dead {
        return Err(wrong_state(format!(
            "Can't use node '{to_name}' as the target of instance '{name}': it was declared dead, and has not come back since"
        )));
    }
    if node.drained {
        return Err(wrong_state(format!("Can't use drained node '{to_name}' as the target of instance '{name}'")));
    }
    Ok(to)
}

/// Refuses a target whose replicas don't hold every acknowledged write.
pub fn check_in_sync(state: &State, instance: &Instance, to: NodeId) -> Result<(), Failure> {
    let mirrors = instance.disks.iter().enumerate().filter_map(|(index, disk)| Some((index, disk.mirror.as_ref()?)));
    for (index, mirror) in mirrors {
        let (name, node) = (&instance.name, state.node_name(to));
        if mirror.doubtful {
            return Err(wrong_state(format!(
                "Disk {index} of instance '{name}' is doubtful after a forced recovery of the cluster: nobody knows which replica holds its newest writes; 'gnt-instance failover --ignore-consistency {name}' goes on with what there is"
            )));
        }
        if !mirror.is_member_on(to) {
            return Err(wrong_state(format!(
                "Disk {index} of instance '{name}' is degraded: its replica on target node '{node}' is not in sync. Wait for its resync, which 'cardume disk status' shows, and try again"
            )));
        }
    }
    Ok(())
}

/// Refuses a target that lacks a bridge, a kernel, or (where it is to start there) memory for the instance.
pub async fn check_room(
    ctx: &Context,
    state: &State,
    instance: &Instance,
    to: NodeId,
    memory_mib: Option<u64>,
) -> Result<(), Halt> {
    let spec = Box::new(spec(state, instance, &Params::new(), &Params::new()));
    let (facts, fits) =
        futures::join!(facts(ctx, state, to), ctx.call_briefly(to, Call::CheckInstance { spec, install: false }, LOOK));
    let facts = facts?;
    match fits {
        Ok(_) => {}
        Err(Halt::Failed(failure)) => {
            let (name, node) = (&instance.name, state.node_name(to));
            let text = format!("Instance '{name}' can't run on target node '{node}': {}", failure.text);
            return Err(Failure::refused(ErrorCode::EnvironmentError, text).into());
        }
        Err(halt) => return Err(halt),
    }
    match memory_mib {
        Some(needed) if needed > facts.memory_free_mib => Err(Failure::refused(
            ErrorCode::InsufficientResources,
            format!(
                "Not enough memory on target node {} for instance {}: needed {needed} MiB, available {} MiB",
                state.node_name(to),
                instance.name,
                facts.memory_free_mib
            ),
        )
        .into()),
        _ => Ok(()),
    }
}

/// What a node has and runs.
pub async fn facts(ctx: &Context, state: &State, node: NodeId) -> Result<Facts, Halt> {
    match ctx.call_briefly(node, Call::facts(state), LOOK).await? {
        Reply::Facts(facts) => Ok(*facts),
        other => Err(super::instance::unexpected(&other)),
    }
}

/// Asks the node that has an instance. One that does not answer keeps it, and nothing is done.
pub async fn ask_owner(ctx: &Context, state: &State, instance: &Instance, call: Call) -> Result<Reply, Halt> {
    let node = instance.primary;
    ctx.ask_briefly(node, call, LOOK).await.map_err(|error| match error {
        CallError::Failed(failure) => Halt::Failed(failure),
        CallError::Deposed => Halt::Interrupted,
        CallError::Unreachable(why) => silent(state, instance, &why).into(),
    })
}

/// The refusal to move an instance off a node that does not answer.
pub fn silent(state: &State, instance: &Instance, why: &str) -> Failure {
    let (name, node) = (&instance.name, state.node_name(instance.primary));
    Failure::refused(
        ErrorCode::EnvironmentError,
        format!(
            "Node '{node}', which has instance '{name}', does not answer ({why}). It keeps the instance until it is back, because nobody can tell whether it still runs there; nothing was changed"
        ),
    )
}
