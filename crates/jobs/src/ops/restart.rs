//! Starting an instance again that has ended although it should run: what the watcher decided, under the instance's lock.

use std::time::Duration;

use model::{AdminState, Applied, Command, Happening, InstanceId, NodeId, Params, Provision, RunId};
use opcodes::Failure;
use opcodes::op::InstanceRestart;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::failover::run_of;
use super::instance::{STOP, current_run, find_id, is_running, launch, mirrored, stop_call};
use super::{attachment, find_node};
use crate::context::{Context, Halt};

/// Name of the step that records what is started where.
const PLAN: &str = "restart";
/// What the end of a run may take of which nothing is left but its disks.
const END: Duration = STOP;

/// What is started where.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    id: InstanceId,
    /// The run to be ended, of an owner whose life goes on.
    run: Option<RunId>,
    from: NodeId,
    to: NodeId,
}

pub async fn restart(ctx: &Context, op: InstanceRestart) -> Result<Value, Halt> {
    let plan: Option<Plan> = match ctx.recorded(PLAN)? {
        Some(plan) => plan,
        None => begin(ctx, &op).await?,
    };
    let Some(plan) = plan else { return Ok(Value::Null) };
    if !ctx.is_done("move") {
        stop(ctx, &plan).await?;
    }
    let mut commands = Vec::new();
    commands.extend(plan.run.map(|run| Command::Disown { instance: plan.id, run, want: None }));
    commands.push(Command::Own { instance: plan.id, node: plan.to });
    let applied: Vec<Applied> = ctx.commit("move", commands).await?;
    let run = run_of(&applied)?;
    let (instance, name, node) = (plan.id, op.instance_name, plan.to);
    match launch(ctx, plan.id, plan.to, run, &Params::new(), &Params::new(), false).await {
        Ok(()) => {
            let what = Happening::Started { instance, name, node, run };
            ctx.commit("started", vec![Command::Note(Box::new(what))]).await?;
            Ok(Value::Null)
        }
        Err(Halt::Failed(failure)) => {
            let what = Happening::NotStarted { instance, name, node, run, reason: failure.text.clone() };
            ctx.commit("not-started", vec![Command::Note(Box::new(what))]).await?;
            Err(failure.into())
        }
        Err(halt) => Err(halt),
    }
}

/// Finds out whether there is still something to do, now that nobody else works on the instance.
async fn begin(ctx: &Context, op: &InstanceRestart) -> Result<Option<Plan>, Halt> {
    let plan = look(ctx, op).await?;
    let entry = ctx.entry("restart-begins", Vec::new()).note(PLAN, &plan)?;
    let entry = match &plan {
        Some(plan) => {
            let to = ctx.state().node_name(plan.to);
            entry.say(format!("Instance {} has ended although it should run; it is started on {to}", op.instance_name))
        }
        None => entry.say(format!("Nothing to be done for instance {}: it was seen to meanwhile", op.instance_name)),
    };
    entry.commit().await?;
    Ok(plan)
}

async fn look(ctx: &Context, op: &InstanceRestart) -> Result<Option<Plan>, Halt> {
    let state = ctx.state();
    let to = find_node(&state, &op.target_node)?;
    let Some(instance) = state.instance_by_name(&op.instance_name) else { return Ok(None) };
    let settled = instance.provision == Provision::Ready && instance.migration.is_none();
    if !settled || instance.want != AdminState::Up || instance.run != op.run {
        return Ok(None);
    }
    let run = current_run(&state, instance);
    if let Some(run) = run
        && is_running(ctx, instance, run).await?
    {
        return Ok(None);
    }
    Ok(Some(Plan { id: instance.id, run, from: instance.primary, to }))
}

/// Brings what is left of the run to its end: its disks.
async fn stop(ctx: &Context, plan: &Plan) -> Result<(), Halt> {
    let Some(run) = plan.run else { return Ok(()) };
    let state = ctx.state();
    let instance = find_id(&state, plan.id)?;
    if current_run(&state, instance) != Some(run) {
        return Err(
            Failure::failed(format!("run {run} of instance '{}' was ended by somebody else", instance.name)).into()
        );
    }
    if !mirrored(instance).is_empty() {
        attachment::detach(ctx, plan.id, Some(run), false).await?;
    }
    ctx.call_within(plan.from, stop_call(instance, run, 0, true), END).await.map(drop)
}
