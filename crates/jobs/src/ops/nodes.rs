//! Adding, changing and removing nodes.

use std::time::Duration;

use model::{Command, NewNode, NodeChange, NodeId, State, Timestamp, Uuid};
use opcodes::op::{NodeAdd, NodeSetParams};
use opcodes::{ErrorCode, Failure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{find_node, wrong_input, wrong_state};
use crate::agent::Call;
use crate::context::{Context, Halt};
use crate::world::CallError;

/// How long a join token is good for.
const TOKEN_LIFE: Duration = Duration::from_secs(300);

/// What is chosen when a node is to be added.
#[derive(Serialize, Deserialize)]
struct Plan {
    token: Uuid,
    secret_sha256: String,
    word: String,
    node: NewNode,
    expires: Timestamp,
    master: std::net::Ipv4Addr,
}

pub async fn add(ctx: &Context, op: NodeAdd) -> Result<Value, Halt> {
    let plan = ctx.step("check", || plan(ctx, &op)).await?;
    let add = Command::AddToken {
        id: plan.token,
        secret_sha256: plan.secret_sha256.clone(),
        node: plan.node.clone(),
        expires: plan.expires,
    };
    ctx.commit("token", vec![add]).await?;
    ctx.say(format!("On {}, as root, type within {} minutes:", op.node_name, TOKEN_LIFE.as_secs() / 60)).await?;
    ctx.say(format!("  cardume join --token {} {}", plan.word, plan.master)).await?;

    let Some(node) = ctx.step("joined", || joined(ctx, &plan)).await? else {
        return Err(Failure::failed(format!(
            "'{}' did not join within {} minutes; run 'gnt-node add {0}' again",
            op.node_name,
            TOKEN_LIFE.as_secs() / 60
        ))
        .into());
    };
    if let Err(why) = ctx.step("member", || settle(ctx, node)).await? {
        // It joined and went away again. Nothing of it may stay: it would count as a node that is down.
        let undo = vec![Command::RemoveNode { node }, Command::DropToken { id: plan.token }];
        ctx.commit("undo", undo).await?;
        let address = plan.node.primary_ip;
        if let Err(why) = ctx.step("expel", || async { Ok(ctx.world().expel(node, address).await) }).await? {
            ctx.warn(format!("Node {} could not be taken out of the log: {why}", op.node_name)).await?;
        }
        return Err(Failure::failed(format!("'{}' joined, but then could not be reached: {why}", op.node_name)).into());
    }
    ctx.propose(vec![Command::DropToken { id: plan.token }]).await?;
    let state = ctx.state();
    let note = match state.nodes.get(&node) {
        Some(node) if node.is_witness() => "Node will be a witness: it votes and runs no instances",
        Some(node) if node.master_candidate => "Node will be a master candidate",
        _ => "Node will be a regular node",
    };
    ctx.say(format!(" - INFO: {note}")).await?;
    Ok(Value::Null)
}

async fn plan(ctx: &Context, op: &NodeAdd) -> Result<Plan, Halt> {
    let state = ctx.state();
    let name = &op.node_name;
    if state.node_by_name(name).is_some() {
        return Err(Failure::refused(
            ErrorCode::AlreadyExists,
            format!("Node {name} already in the cluster (as {name}) - please remove it first"),
        )
        .into());
    }
    let primary_ip = match op.primary_ip {
        Some(address) => address,
        None => ctx.resolve(name).await?,
    };
    let group = match &op.group {
        None => None,
        Some(name) => Some(
            state
                .groups
                .iter()
                .find(|(_, group)| &group.name == name)
                .map(|(id, _)| *id)
                .ok_or_else(|| Failure::unknown("Group", name))?,
        ),
    };
    let node = NewNode {
        name: name.clone(),
        uuid: ctx.new_uuid(),
        primary_ip,
        secondary_ip: op.secondary_ip.unwrap_or(primary_ip),
        group,
        master_capable: op.master_capable,
        vm_capable: op.vm_capable,
    };
    let master = state.office.and_then(|office| state.nodes.get(&office.node)).map(|node| node.primary_ip);
    let Some(master) = master else {
        return Err(Halt::Interrupted);
    };
    let (word, secret_sha256) = ctx.new_token()?;
    let expires = Timestamp(ctx.now().0 + TOKEN_LIFE.as_micros() as u64);
    Ok(Plan { token: ctx.new_uuid(), secret_sha256, word, node, expires, master })
}

/// Waits for the token to be used; `None` when it expires, and then it can't be used any more.
async fn joined(ctx: &Context, plan: &Plan) -> Result<Option<NodeId>, Halt> {
    let node = |state: &State| state.nodes.iter().find(|(_, node)| node.uuid == plan.node.uuid).map(|(id, _)| *id);
    loop {
        let state = ctx.state();
        if let Some(node) = node(&state) {
            return Ok(Some(node));
        }
        let left = Duration::from_micros(plan.expires.0.saturating_sub(ctx.now().0));
        if left.is_zero() || !state.tokens.contains_key(&plan.token) {
            // The machine may have used it at the last moment; only now is that decided.
            ctx.propose(vec![Command::DropToken { id: plan.token }]).await?;
            return Ok(node(&ctx.state()));
        }
        tokio::select! {
            _ = ctx.world().changed(&state) => {}
            () = ctx.world().sleep(left) => {}
        }
    }
}

/// Makes the machine a member of the log, and waits until it answers and has everything.
async fn settle(ctx: &Context, node: NodeId) -> Result<Result<(), String>, Halt> {
    if let Err(why) = ctx.world().enrol(node).await {
        return Ok(Err(why));
    }
    let call = Call::CaughtUp { index: ctx.world().applied_index() };
    match ctx.call(node, call).await {
        Ok(_) => Ok(Ok(())),
        Err(Halt::Failed(failure)) => Ok(Err(failure.text)),
        Err(halt) => Err(halt),
    }
}

pub async fn set_params(ctx: &Context, op: NodeSetParams) -> Result<Value, Halt> {
    let (node, change) = ctx.step("check", || plan_change(ctx, &op)).await?;
    ctx.commit("modify", vec![Command::ModifyNode { node, change }]).await?;
    let told: Vec<(&str, String)> = [
        ("master_capable", op.master_capable.map(|value| value.to_string())),
        ("vm_capable", op.vm_capable.map(|value| value.to_string())),
        ("master_candidate", op.master_candidate.map(|value| value.to_string())),
        ("offline", op.offline.map(|value| value.to_string())),
        ("drained", op.drained.map(|value| value.to_string())),
        ("secondary_ip", op.secondary_ip.map(|value| value.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| value.map(|value| (name, value)))
    .map(|(name, value)| match value.as_str() {
        "true" => (name, "True".to_owned()),
        "false" => (name, "False".to_owned()),
        _ => (name, value),
    })
    .collect();
    Ok(json!(told))
}

async fn plan_change(ctx: &Context, op: &NodeSetParams) -> Result<(NodeId, NodeChange), Halt> {
    let state = ctx.state();
    let node = find_node(&state, &op.node_name)?;
    let change = NodeChange {
        master_candidate: op.master_candidate,
        master_capable: op.master_capable,
        vm_capable: op.vm_capable,
        offline: op.offline,
        drained: op.drained,
        secondary_ip: op.secondary_ip,
        ..NodeChange::default()
    };
    if change == NodeChange::default() {
        return Err(wrong_input("Please pass at least one modification").into());
    }
    let raised: Vec<bool> =
        [op.offline, op.drained, op.master_candidate].into_iter().flatten().filter(|on| *on).collect();
    if raised.len() > 1 {
        return Err(wrong_input("Can't set the node into more than one state at the same time").into());
    }
    if op.offline == Some(true) && state.office.is_some_and(|office| office.node == node) {
        return Err(wrong_input("The master role can be changed only via master-failover").into());
    }
    if op.offline == Some(false)
        && let Err(error) = ctx.call_once(node, Call::Ping, Duration::from_secs(2)).await
    {
        let why = match error {
            CallError::Deposed => return Err(Halt::Interrupted),
            CallError::Failed(failure) => failure.text,
            CallError::Unreachable(why) => why,
        };
        return Err(wrong_state(format!(
            "Node '{}' does not answer, so it can't be marked as online: {why}",
            op.node_name
        ))
        .into());
    }
    Ok((node, change))
}

pub async fn remove(ctx: &Context, name: &str) -> Result<Value, Halt> {
    let node = ctx
        .step("check", || async {
            let state = ctx.state();
            let id = find_node(&state, name)?;
            if state.office.is_some_and(|office| office.node == id) {
                return Err(wrong_input("Node is the master node, failover to another node is required").into());
            }
            let holds = |instance: &&model::Instance| instance.primary == id || instance.secondaries.contains(&id);
            if let Some(instance) = state.instances.values().find(holds) {
                return Err(wrong_input(format!(
                    "Instance {} is still on node {name}, please remove or move it first",
                    instance.name
                ))
                .into());
            }
            Ok(id)
        })
        .await?;
    // It keeps its log until its vote no longer counts: the state first, then the log, then the node itself.
    let address =
        ctx.step("address", || async { Ok(ctx.state().nodes.get(&node).map(|node| node.primary_ip)) }).await?;
    ctx.commit("remove", vec![Command::RemoveNode { node }]).await?;
    let Some(address) = address else { return Ok(Value::Null) };
    match ctx.step("expel", || async { Ok(ctx.world().expel(node, address).await) }).await? {
        Err(why) => {
            return Err(Failure::failed(format!("Node '{name}' could not be taken out of the log: {why}")).into());
        }
        Ok(None) => {}
        Ok(Some(why)) => {
            ctx.warn(format!(
                "Node {name} could not be told that it was removed ({why}); stop its daemon and clear its state directory before it is used again"
            ))
            .await?;
        }
    }
    Ok(Value::Null)
}
