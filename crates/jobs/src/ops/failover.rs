//! Moving an instance to its other node by stopping and starting it.

use std::time::Duration;

use model::{
    AdminState, Applied, Command, Instance, InstanceChange, InstanceId, MirrorMode, NodeId, Params, RunId, State,
};
use opcodes::Failure;
use opcodes::op::InstanceFailover;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::instance::{current_run, find, launch, stop_call, unexpected};
use super::target::{check_in_sync, check_room, secondary, silent, target};
use super::{force, wrong_state};
use crate::agent::{Call, Reply, Stopped};
use crate::context::{Context, Halt};
use crate::world::CallError;

/// How long a node may take to say what it runs.
const LOOK: Duration = Duration::from_secs(30);
/// What ending an instance may take beyond the time that the guest is given.
const STOP: Duration = Duration::from_secs(30);

/// Name of the step that records what is moved where.
const PLAN: &str = "failover";

/// What is moved where.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    id: InstanceId,
    from: NodeId,
    to: NodeId,
    /// The run to be ended.
    run: Option<RunId>,
    /// Start it there.
    start: bool,
}

pub async fn failover(ctx: &Context, op: InstanceFailover) -> Result<Value, Halt> {
    if let Some(plan) = ctx.recorded(force::PLAN)? {
        return force::carry_out(ctx, &plan).await;
    }
    let plan = match ctx.recorded(PLAN)? {
        Some(plan) => plan,
        None => match begin(ctx, &op).await? {
            Way::Ordered(plan) => plan,
            Way::Forced(plan) => return force::carry_out(ctx, &plan).await,
        },
    };
    if let Some(failure) = ctx.recorded::<Failure>("given-up")? {
        return go_back(ctx, &op, &plan, failure).await;
    }
    if !ctx.is_done("move") {
        stop(ctx, &op, &plan).await?;
    }
    let state = ctx.state();
    let to = state.node_name(plan.to);
    let mut commands = Vec::new();
    commands.extend(plan.run.map(|run| Command::Disown { instance: plan.id, run, want: None }));
    if plan.start {
        commands.push(Command::Own { instance: plan.id, node: plan.to });
    } else {
        let change = InstanceChange { primary: Some(plan.to), ..InstanceChange::default() };
        commands.push(Command::ModifyInstance { instance: plan.id, change: Box::new(change) });
    }
    let mut entry = ctx.entry("move", commands);
    if plan.run.is_some() {
        entry = entry.say("* deactivating the instance's disks on source node");
    }
    if plan.start {
        entry = entry
            .say(format!("* activating the instance's disks on target node {to}"))
            .say(format!("* starting the instance on the target node {to}"));
    }
    let applied = match entry.commit().await {
        Ok(applied) => applied,
        // The target's replica has fallen behind while the guest shut down, or its node is gone.
        Err(Halt::Failed(failure)) => {
            let failure = ctx.step("given-up", || async { Ok(failure) }).await?;
            return go_back(ctx, &op, &plan, failure).await;
        }
        Err(halt) => return Err(halt),
    };
    if plan.start {
        let run = run_of(&applied)?;
        launch(ctx, plan.id, plan.to, run, &Params::new(), &Params::new(), false).await?;
    }
    Ok(Value::Null)
}

/// Whether an earlier run of the operation has begun a failover.
pub fn is_begun(ctx: &Context) -> bool {
    ctx.is_done(PLAN)
}

/// How an instance gets to its other node.
enum Way {
    /// Its node lets it go, or was declared dead and the other one has all of its data.
    Ordered(Plan),
    /// An operator says that its node is off, and what it has alone may be lost.
    Forced(force::Plan),
}

/// Refuses what can't work, and records what is done.
async fn begin(ctx: &Context, op: &InstanceFailover) -> Result<Way, Halt> {
    let state = ctx.state();
    let instance = find(&state, &op.instance_name)?;
    let (name, from) = (&instance.name, state.node_name(instance.primary));
    let node = state.nodes.get(&instance.primary);
    if let Some(node) = node.filter(|node| node.dead || node.offline) {
        let to = secondary(&state, instance, "failovers")?;
        // Its life is over, and no write was acknowledged that the other one lacks.
        if node.dead && is_strict(instance) && check_in_sync(&state, instance, to).is_ok() {
            let start = instance.want == AdminState::Up;
            check_room(ctx, &state, instance, to, start.then(|| state.memory_mib(instance))).await?;
            let plan = Plan { id: instance.id, from: instance.primary, to, run: None, start };
            return Ok(Way::Ordered(record(ctx, plan, name, Vec::new()).await?));
        }
        if op.ignore_consistency {
            return Ok(Way::Forced(force::begin(ctx, &state, instance, to).await?));
        }
        let how = if node.dead { "was declared dead" } else { "is marked offline" };
        return Err(wrong_state(format!(
            "Node '{from}', which has instance '{name}', {how}. {}",
            way_out(&state, instance, to)
        ))
        .into());
    }
    let run = current_run(&state, instance);
    let doubtful = instance.disks.iter().any(|disk| disk.mirror.as_ref().is_some_and(|it| it.doubtful));
    if op.ignore_consistency && doubtful && run.is_none() {
        // Whatever the other one may have: if the node where it lives is there, what that has counts.
        match ctx.ask_briefly(instance.primary, Call::Ping, LOOK).await {
            Ok(_) => return Ok(Way::Forced(force::begin(ctx, &state, instance, instance.primary).await?)),
            Err(CallError::Unreachable(_)) => {}
            Err(CallError::Failed(failure)) => return Err(failure.into()),
            Err(CallError::Deposed) => return Err(Halt::Interrupted),
        }
    }
    let to = target(&state, instance, "failovers")?;
    let in_sync = check_in_sync(&state, instance, to);
    if let (Err(failure), false) = (&in_sync, op.ignore_consistency) {
        return Err(failure.clone().into());
    }
    let start = instance.want == AdminState::Up;
    let memory = start.then(|| state.memory_mib(instance));
    let owner = ctx.ask_briefly(instance.primary, Call::facts(&state), LOOK);
    let (owner, room) = futures::join!(owner, check_room(ctx, &state, instance, to, memory));
    let facts = match owner {
        Ok(Reply::Facts(facts)) => facts,
        Ok(other) => return Err(unexpected(&other)),
        Err(CallError::Failed(failure)) => return Err(failure.into()),
        Err(CallError::Deposed) => return Err(Halt::Interrupted),
        Err(CallError::Unreachable(_)) if op.ignore_consistency => {
            return Ok(Way::Forced(force::begin(ctx, &state, instance, to).await?));
        }
        Err(CallError::Unreachable(why)) => {
            let failure = silent(&state, instance, &why);
            let text = format!("{}. {}", failure.text, way_out(&state, instance, to));
            return Err(Failure { text, ..failure }.into());
        }
    };
    if let Err(failure) = in_sync {
        let text = format!(
            "{}; '--ignore-consistency' is for an instance whose node is off, and '{from}' answers",
            failure.text
        );
        return Err(Failure { text, ..failure }.into());
    }
    room?;
    let runs = run.is_some_and(|run| facts.instances.iter().any(|live| live.run == run));
    if run.is_some() && !runs && !start {
        return Err(wrong_state(format!(
            "Disks of instance '{name}' are active on node '{}'; 'gnt-instance deactivate-disks {name}' takes them away first",
            state.node_name(instance.primary)
        ))
        .into());
    }
    let plan = Plan { id: instance.id, from: instance.primary, to, run, start };
    let stopping = runs.then(|| "* shutting down instance on source node".to_owned());
    Ok(Way::Ordered(record(ctx, plan, name, stopping.into_iter().collect()).await?))
}

async fn record(ctx: &Context, plan: Plan, name: &str, lines: Vec<String>) -> Result<Plan, Halt> {
    let mut entry = ctx
        .entry("failover-begins", Vec::new())
        .note(PLAN, &plan)?
        .say(format!("Failover instance {name}"))
        .say("* checking disk consistency between source and target");
    if !plan.start {
        entry = entry.say(" - INFO: Not checking memory on the secondary node as instance will not be started");
    }
    for line in lines {
        entry = entry.say(line);
    }
    entry.commit().await?;
    Ok(plan)
}

/// Whether nothing was acknowledged for its disks that the in-sync set lacks.
fn is_strict(instance: &Instance) -> bool {
    instance.disks.iter().all(|disk| disk.mirror.as_ref().is_some_and(|it| it.mode == MirrorMode::Strict))
}

/// What can be lost, and what to type.
fn way_out(state: &State, instance: &Instance, to: NodeId) -> String {
    let (name, from, to) = (&instance.name, state.node_name(instance.primary), state.node_name(to));
    format!(
        "If '{from}' is surely off, 'gnt-instance failover --ignore-consistency {name}' starts the instance on '{to}' from the replicas there ('gnt-node failover --ignore-consistency {from}': all of its instances); what '{from}' wrote after losing sight of '{to}' is lost then"
    )
}

/// Ends the run at the source.
async fn stop(ctx: &Context, op: &InstanceFailover, plan: &Plan) -> Result<(), Halt> {
    let Some(run) = plan.run else { return Ok(()) };
    let (name, timeout) = (&op.instance_name, op.shutdown_timeout);
    let state = ctx.state();
    let instance = state.instances.get(&plan.id).ok_or_else(|| Failure::unknown("Instance", name))?;
    if current_run(&state, instance) != Some(run) {
        // The node was booted meanwhile, and nothing is left of it.
        return Ok(());
    }
    let call = stop_call(instance, run, timeout, true);
    let deadline = STOP + Duration::from_secs(u64::from(timeout));
    match ctx.call_within(plan.from, call, deadline).await {
        Ok(Reply::Stopped(Stopped::Forced)) => {
            ctx.warn(format!("Instance '{name}' did not shut down within {timeout} seconds and was ended")).await
        }
        Ok(_) => Ok(()),
        Err(Halt::Failed(failure)) => {
            let from = state.node_name(plan.from);
            let text = format!(
                "Could not shut down instance '{name}' on node '{from}': {}. It stays on that node, because nobody can tell whether it still runs there",
                failure.text
            );
            Err(Failure { text, ..failure }.into())
        }
        Err(halt) => Err(halt),
    }
}

/// It is stopped, but can't go there: it starts again where it was.
async fn go_back(ctx: &Context, op: &InstanceFailover, plan: &Plan, failure: Failure) -> Result<Value, Halt> {
    let state = ctx.state();
    let (name, from, to) = (&op.instance_name, state.node_name(plan.from), state.node_name(plan.to));
    let text = format!("Could not fail over instance '{name}' to node '{to}': {}", failure.text);
    let mut commands = Vec::new();
    commands.extend(plan.run.map(|run| Command::Disown { instance: plan.id, run, want: None }));
    if plan.start {
        commands.push(Command::Own { instance: plan.id, node: plan.from });
    }
    let applied = match ctx.commit("back", commands).await {
        Err(Halt::Failed(back)) => {
            let text = format!("{text}; nor could it be given back to node '{from}': {}", back.text);
            return Err(Failure { text, ..failure }.into());
        }
        applied => applied?,
    };
    if !plan.start {
        return Err(Failure { text, ..failure }.into());
    }
    let run = run_of(&applied)?;
    match launch(ctx, plan.id, plan.from, run, &Params::new(), &Params::new(), false).await {
        Ok(()) => Err(Failure { text: format!("{text}; it was started again on node '{from}'"), ..failure }.into()),
        Err(Halt::Failed(again)) => Err(Failure { text: format!("{text}. {}", again.text), ..failure }.into()),
        Err(halt) => Err(halt),
    }
}

/// The run that was committed last of all.
pub fn run_of(applied: &[Applied]) -> Result<RunId, Halt> {
    match applied.last() {
        Some(Applied::Run(run)) => Ok(*run),
        _ => Err(Failure::failed(format!("the right to run an instance was given without a run: {applied:?}")).into()),
    }
}
