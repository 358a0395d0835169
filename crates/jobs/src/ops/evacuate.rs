//! Moving everything off a node: one job an instance.

use std::collections::BTreeMap;

use model::{Applied, Command, DiskTemplate, Instance, NewJob, NodeId, Provision, State};
use opcodes::op::{EvacuationMode, InstanceMigrate, InstanceReplaceDisks, NodeEvacuate, NodeMigrate, ReplaceMode};
use opcodes::{Failure, Opcode};
use serde_json::{Value, json};

use super::target::facts;
use super::{find_node, wrong_input, wrong_state};
use crate::context::{Context, Halt};

pub async fn migrate(ctx: &Context, op: NodeMigrate) -> Result<Value, Halt> {
    if let Some(applied) = ctx.recorded("jobs")? {
        return Ok(submitted(applied));
    }
    let state = ctx.state();
    let node = find_node(&state, &op.node_name)?;
    let jobs = complete(&state).filter(|instance| instance.primary == node).map(|instance| {
        vec![Opcode::InstanceMigrate(InstanceMigrate {
            instance_name: instance.name.clone(),
            mode: op.mode,
            cleanup: false,
            allow_failover: op.allow_failover,
        })]
    });
    submit(ctx, jobs.collect()).await
}

pub async fn evacuate(ctx: &Context, op: NodeEvacuate) -> Result<Value, Halt> {
    if let Some(applied) = ctx.recorded("jobs")? {
        return Ok(submitted(applied));
    }
    let state = ctx.state();
    let node = find_node(&state, &op.node_name)?;
    let mut places = places(ctx, &state, &op, node).await?;
    let (mut jobs, mut stuck) = (Vec::new(), Vec::new());
    for instance in complete(&state) {
        let runs_there = instance.primary == node;
        if !runs_there && !instance.secondaries.contains(&node) {
            continue;
        }
        match plan(&state, &op, instance, node, &mut places) {
            Ok(ops) if ops.is_empty() => {}
            Ok(ops) => jobs.push(ops),
            Err(why) => stuck.push(format!("{} ({why})", instance.name)),
        }
    }
    if !stuck.is_empty() {
        return Err(wrong_state(format!("Unable to evacuate instances {}", stuck.join(", "))).into());
    }
    submit(ctx, jobs).await
}

/// Nodes that can take second replicas, with the space that is left there, MiB.
type Places = BTreeMap<NodeId, u64>;

async fn places(ctx: &Context, state: &State, op: &NodeEvacuate, from: NodeId) -> Result<Places, Halt> {
    let usable = |id: &NodeId| state.nodes.get(id).is_some_and(|it| it.vm_capable && !it.offline && !it.drained);
    let candidates: Vec<NodeId> = match &op.remote_node {
        Some(name) => {
            let node = find_node(state, name)?;
            if node == from {
                return Err(wrong_input(format!("Node '{name}' can't be evacuated to itself")).into());
            }
            if !usable(&node) {
                return Err(wrong_state(format!(
                    "Can't use node '{name}' for second replicas: it is offline, drained or not vm_capable"
                ))
                .into());
            }
            vec![node]
        }
        None if op.mode == EvacuationMode::PrimaryOnly => Vec::new(),
        None => state.nodes.keys().copied().filter(|id| *id != from && usable(id)).collect(),
    };
    let answers = futures::future::join_all(candidates.iter().map(|node| facts(ctx, state, *node))).await;
    let mut places = Places::new();
    for (node, answer) in candidates.into_iter().zip(answers) {
        match answer {
            Ok(facts) => {
                places.insert(node, facts.mirror_free_mib);
            }
            // Who does not answer takes nothing.
            Err(Halt::Failed(failure)) if op.remote_node.is_none() => {
                tracing::info!(%node, why = failure.text, "a node is left out of an evacuation");
            }
            Err(halt) => return Err(halt),
        }
    }
    Ok(places)
}

/// What gets an instance off the node; or why nothing does.
fn plan(
    state: &State,
    op: &NodeEvacuate,
    instance: &Instance,
    from: NodeId,
    places: &mut Places,
) -> Result<Vec<Opcode>, String> {
    let runs_there = instance.primary == from;
    let wanted = match op.mode {
        EvacuationMode::PrimaryOnly => runs_there,
        EvacuationMode::SecondaryOnly => !runs_there,
        EvacuationMode::All => true,
    };
    if !wanted {
        return Ok(Vec::new());
    }
    if instance.disk_template != DiskTemplate::Drbd {
        return Err(format!("Instances of type {} cannot be relocated", instance.disk_template));
    }
    let mut ops = Vec::new();
    if runs_there {
        if instance.secondaries.is_empty() {
            return Err("it has no secondary node".to_owned());
        }
        ops.push(Opcode::InstanceMigrate(InstanceMigrate {
            instance_name: instance.name.clone(),
            allow_failover: true,
            ..InstanceMigrate::default()
        }));
    }
    // Once it has moved, its second replica is there.
    if op.mode != EvacuationMode::PrimaryOnly {
        let place = place(state, instance, places)?;
        ops.push(Opcode::InstanceReplaceDisks(InstanceReplaceDisks {
            instance_name: instance.name.clone(),
            mode: ReplaceMode::NewSecondary,
            remote_node: Some(state.node_name(place)),
        }));
    }
    Ok(ops)
}

/// The place with the most space that has nothing of the instance yet.
fn place(state: &State, instance: &Instance, places: &mut Places) -> Result<NodeId, String> {
    let needed: u64 = instance.disks.iter().map(|disk| disk.size_mib).sum();
    let free = |node: &NodeId| *node != instance.primary && !instance.secondaries.contains(node);
    let best = places.iter_mut().filter(|(node, _)| free(node)).max_by_key(|(_, space)| **space);
    match best {
        None => Err("no other node can take its second replica".to_owned()),
        Some((node, space)) if *space < needed => Err(format!(
            "its second replica needs {needed} MiB, and node {}, which has most space, has {space} MiB",
            state.node_name(*node)
        )),
        Some((node, space)) => {
            *space -= needed;
            Ok(*node)
        }
    }
}

fn complete(state: &State) -> impl Iterator<Item = &Instance> {
    state.instances.values().filter(|instance| instance.provision == Provision::Ready)
}

/// Queues all jobs at once, each with its opcodes.
async fn submit(ctx: &Context, jobs: Vec<Vec<Opcode>>) -> Result<Value, Halt> {
    let user = ctx.state().jobs.get(&ctx.job()).map_or_else(String::new, |job| job.user.clone());
    let command = |opcodes: Vec<Opcode>| {
        let ops = opcodes.into_iter().map(|opcode| {
            let summary = opcode.summary();
            let input = serde_json::to_value(opcode).map_err(|error| Failure::failed(error.to_string()))?;
            Ok((input, summary))
        });
        let ops = ops.collect::<Result<Vec<_>, Failure>>()?;
        Ok(Command::SubmitJob(NewJob { ops, priority: 0, depends: Vec::new(), user: user.clone() }))
    };
    let commands = jobs.into_iter().map(command).collect::<Result<Vec<_>, Failure>>()?;
    Ok(submitted(ctx.commit("jobs", commands).await?))
}

fn submitted(applied: Vec<Applied>) -> Value {
    let job = |applied| if let Applied::Job(id) = applied { Some(json!([true, id])) } else { None };
    let jobs: Vec<Value> = applied.into_iter().filter_map(job).collect();
    json!({ "jobs": jobs })
}
