//! Starting, stopping, restarting and removing instances.

use std::time::Duration;

use model::{AdminState, Command, Instance, InstanceChange, InstanceId, Params, Provision, RunId, State};
use opcodes::Failure;
use opcodes::op::{InstanceReboot, InstanceRemove, InstanceShutdown, InstanceStartup, RebootType};
use serde_json::Value;

use super::spec::{disks, spec};
use super::wrong_state;
use crate::agent::{Call, Reply, Stopped};
use crate::context::{Context, Halt};

/// How long a hypervisor may take to start an instance.
const START: Duration = Duration::from_secs(60);
/// What ending an instance may take beyond the time that the guest is given.
const STOP: Duration = Duration::from_secs(30);

/// The instance of that name, complete and not about to go.
pub fn find<'a>(state: &'a State, name: &str) -> Result<&'a Instance, Failure> {
    let instance = state.instance_by_name(name).ok_or_else(|| Failure::unknown("Instance", name))?;
    match instance.provision {
        Provision::Ready => Ok(instance),
        Provision::Creating(job) => Err(wrong_state(format!("Instance '{name}' is still being made by job {job}"))),
        Provision::Removing(job) => Err(wrong_state(format!("Instance '{name}' is being removed by job {job}"))),
    }
}

/// Refuses what needs an instance's primary node while that is marked offline.
fn check_online(state: &State, instance: &Instance) -> Result<(), Failure> {
    match state.nodes.get(&instance.primary) {
        Some(node) if node.offline => {
            Err(wrong_state(format!("Primary node '{}' of instance '{}' is marked offline", node.name, instance.name)))
        }
        _ => Ok(()),
    }
}

/// The run in which an instance is owned by a life that has not ended.
fn current_run(state: &State, instance: &Instance) -> Option<RunId> {
    let owner = instance.owner?;
    let alive = state.nodes.get(&owner.node).is_some_and(|node| node.life == owner.life);
    if alive { instance.run } else { None }
}

/// Whether the hypervisor has that run.
async fn is_running(ctx: &Context, instance: &Instance, run: RunId) -> Result<bool, Halt> {
    match ctx.call(instance.primary, Call::facts(&ctx.state())).await? {
        Reply::Facts(facts) => Ok(facts.instances.iter().any(|live| live.run == run)),
        other => Err(unexpected(&other)),
    }
}

pub fn unexpected(reply: &Reply) -> Halt {
    Failure::failed(format!("a node gave an answer that does not fit the question: {reply:?}")).into()
}

/// Starts an instance: the right to run it is committed first, then the hypervisor is started. `prefix` tells the steps of
/// several starts in one opcode apart.
pub async fn start(
    ctx: &Context,
    id: InstanceId,
    prefix: &str,
    hvparams: &Params,
    beparams: &Params,
    paused: bool,
) -> Result<(), Halt> {
    let state = ctx.state();
    let instance = state.instances.get(&id).ok_or_else(|| Failure::unknown("Instance", id))?;
    let node = instance.primary;
    ctx.commit(&format!("{prefix}own"), vec![Command::Own { instance: id, node }]).await?;

    let state = ctx.state();
    let instance = state.instances.get(&id).ok_or_else(|| Failure::unknown("Instance", id))?;
    let Some(run) = instance.run else {
        return Err(
            Failure::failed(format!("Instance '{}' was stopped while it was being started", instance.name)).into()
        );
    };
    let spec = Box::new(spec(&state, instance, hvparams, beparams));
    let started = ctx
        .step(&format!("{prefix}start"), || async {
            let call = Call::Start { spec: spec.clone(), run, paused };
            match ctx.call_within(node, call, START).await {
                Ok(_) => Ok(None),
                Err(Halt::Failed(failure)) => Ok(Some(failure)),
                Err(halt) => Err(halt),
            }
        })
        .await?;
    let Some(failure) = started else {
        return Ok(());
    };
    // Only when the node says that nothing is left of it is the right given back. If the node does not answer, it keeps
    // it: nobody may start a second one.
    let call = Call::Stop { hypervisor: spec.hypervisor.clone(), instance: spec.name.clone(), id, run, timeout: 0 };
    ctx.call_within(node, call, STOP).await?;
    ctx.commit(&format!("{prefix}disown"), vec![Command::Disown { instance: id, run, want: None }]).await?;
    let text = format!("Could not start instance '{}': {}", spec.name, failure.text);
    Err(Failure { text, ..failure }.into())
}

/// Ends an instance's run, if it has one, and gives the right to run it back.
async fn stop(
    ctx: &Context,
    id: InstanceId,
    step: &str,
    timeout: u32,
    want: Option<AdminState>,
) -> Result<Option<Stopped>, Halt> {
    let state = ctx.state();
    let instance = state.instances.get(&id).ok_or_else(|| Failure::unknown("Instance", id))?;
    let Some(run) = current_run(&state, instance) else {
        if let Some(want) = want {
            let change = Box::new(InstanceChange::want(want));
            ctx.commit(step, vec![Command::ModifyInstance { instance: id, change }]).await?;
        }
        return Ok(None);
    };
    let call =
        Call::Stop { hypervisor: instance.hypervisor.clone(), instance: instance.name.clone(), id, run, timeout };
    let reply = ctx.call_within(instance.primary, call, STOP + Duration::from_secs(u64::from(timeout))).await?;
    ctx.commit(step, vec![Command::Disown { instance: id, run, want }]).await?;
    match reply {
        Reply::Stopped(how) => Ok(Some(how)),
        other => Err(unexpected(&other)),
    }
}

pub async fn startup(ctx: &Context, op: InstanceStartup) -> Result<Value, Halt> {
    let id = ctx
        .step("check", || async {
            let state = ctx.state();
            let instance = find(&state, &op.instance_name)?;
            check_online(&state, instance)?;
            if instance.want == AdminState::Offline {
                let text = format!("Instance '{}' is marked to be offline, cannot start it", instance.name);
                return Err(wrong_state(text).into());
            }
            super::create::check_memory(ctx, &state, instance, &op.beparams).await?;
            Ok(instance.id)
        })
        .await?;

    // What is noted as running may be gone: a guest that has shut itself down, or crashed.
    let runs = ctx
        .step("look", || async {
            let state = ctx.state();
            let instance = find(&state, &op.instance_name)?;
            match current_run(&state, instance) {
                Some(run) => is_running(ctx, instance, run).await,
                None => Ok(false),
            }
        })
        .await?;
    if !op.no_remember {
        let change = Box::new(InstanceChange::want(AdminState::Up));
        ctx.commit("want", vec![Command::ModifyInstance { instance: id, change }]).await?;
    }
    if runs {
        return Ok(Value::Null);
    }
    stop(ctx, id, "clear", 0, None).await?;
    start(ctx, id, "", &op.hvparams, &op.beparams, op.startup_paused).await?;
    Ok(Value::Null)
}

pub async fn shutdown(ctx: &Context, op: InstanceShutdown) -> Result<Value, Halt> {
    let id = ctx
        .step("check", || async {
            let state = ctx.state();
            let instance = find(&state, &op.instance_name)?;
            if current_run(&state, instance).is_some() {
                check_online(&state, instance)?;
            }
            Ok(instance.id)
        })
        .await?;
    let want = (!op.no_remember).then_some(AdminState::Down);
    if let Some(Stopped::Forced) = stop(ctx, id, "stop", op.timeout, want).await? {
        ctx.warn(format!(
            "Instance '{}' did not shut down within {} seconds and was ended",
            op.instance_name, op.timeout
        ))
        .await?;
    }
    Ok(Value::Null)
}

pub async fn reboot(ctx: &Context, op: InstanceReboot) -> Result<Value, Halt> {
    let (id, run) = ctx
        .step("check", || async {
            let state = ctx.state();
            let instance = find(&state, &op.instance_name)?;
            check_online(&state, instance)?;
            if instance.want != AdminState::Up {
                return Err(wrong_state(format!(
                    "Instance '{}' is marked to be {}, cannot reboot it; start it with 'gnt-instance startup'",
                    instance.name,
                    instance.want.word()
                ))
                .into());
            }
            Ok((instance.id, current_run(&state, instance)))
        })
        .await?;
    let state = ctx.state();
    let instance = state.instances.get(&id).ok_or_else(|| Failure::unknown("Instance", &op.instance_name))?;
    if let (RebootType::Soft, Some(run)) = (op.reboot_type, run) {
        // Recorded as done before a repetition could restart the guest a second time: once is what was asked for, and a
        // restart that was lost on the way shows in the failure.
        let call = Call::Reset { hypervisor: instance.hypervisor.clone(), instance: instance.name.clone(), run };
        ctx.step("reset", || async { ctx.call(instance.primary, call).await.map(|_| ()) }).await?;
        return Ok(Value::Null);
    }
    if !ctx.recorded::<Value>("own").is_some_and(|_| true) {
        stop(ctx, id, "stop", op.shutdown_timeout, None).await?;
    }
    start(ctx, id, "", &Params::new(), &Params::new(), false).await?;
    Ok(Value::Null)
}

pub async fn remove(ctx: &Context, op: InstanceRemove) -> Result<Value, Halt> {
    let id = ctx
        .step("check", || async {
            let state = ctx.state();
            let instance = find(&state, &op.instance_name)?;
            if !op.ignore_failures {
                check_online(&state, instance)?;
            }
            Ok(instance.id)
        })
        .await?;
    match stop(ctx, id, "stop", op.shutdown_timeout, Some(AdminState::Down)).await {
        Err(Halt::Failed(failure)) if op.ignore_failures => {
            ctx.warn(format!("Could not shut down instance '{}': {}", op.instance_name, failure.text)).await?;
        }
        outcome => {
            outcome?;
        }
    }
    let change = InstanceChange { provision: Some(Provision::Removing(ctx.job())), ..InstanceChange::default() };
    ctx.commit("mark", vec![Command::ModifyInstance { instance: id, change: Box::new(change) }]).await?;

    let state = ctx.state();
    if let Some(instance) = state.instances.get(&id) {
        for disk in disks(&state, instance) {
            match ctx.call(instance.primary, Call::RemoveDisk(disk)).await {
                Err(Halt::Failed(failure)) if op.ignore_failures => {
                    ctx.warn(format!("Could not remove a disk of '{}': {}", op.instance_name, failure.text)).await?;
                }
                Err(Halt::Failed(failure)) => {
                    // It is stopped and whole but for what was removed: an administrator may try again.
                    let change = InstanceChange { provision: Some(Provision::Ready), ..InstanceChange::default() };
                    let change = Box::new(change);
                    ctx.propose(vec![Command::ModifyInstance { instance: id, change }]).await?;
                    return Err(failure.into());
                }
                outcome => {
                    outcome?;
                }
            }
        }
        ctx.commit("remove", vec![Command::RemoveInstance { instance: id }]).await?;
    }
    Ok(Value::Null)
}
