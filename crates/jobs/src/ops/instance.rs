//! Starting, stopping, restarting and removing instances.

use std::time::Duration;

use model::{
    AdminState, Applied, Command, DiskId, Instance, InstanceChange, InstanceId, NodeId, Params, Provision, RunId, State,
};
use opcodes::Failure;
use opcodes::op::{InstanceReboot, InstanceRemove, InstanceShutdown, InstanceStartup, RebootType};
use serde_json::Value;

use super::spec::{disks, spec};
use super::{attachment, mirrors, wrong_state};
use crate::agent::{Call, Reply, Stopped};
use crate::context::{Context, Halt};
use crate::world::CallError;

/// How long a hypervisor may take to start an instance.
const START: Duration = Duration::from_secs(60);
/// What ending an instance may take beyond the time that the guest is given.
pub const STOP: Duration = Duration::from_secs(30);
/// How long a hypervisor may take to restart a guest in its process.
const RESET: Duration = Duration::from_secs(30);

/// The instance of that name, complete and not about to go.
pub fn find<'a>(state: &'a State, name: &str) -> Result<&'a Instance, Failure> {
    let instance = state.instance_by_name(name).ok_or_else(|| Failure::unknown("Instance", name))?;
    match instance.provision {
        Provision::Ready => Ok(instance),
        Provision::Creating(job) => Err(wrong_state(format!("Instance '{name}' is still being made by job {job}"))),
        Provision::Converting(job) => {
            Err(wrong_state(format!("The disks of instance '{name}' are being converted by job {job}")))
        }
        Provision::Removing(job) => Err(wrong_state(format!("Instance '{name}' is being removed by job {job}"))),
    }
}

/// The instance of that number.
pub fn find_id(state: &State, id: InstanceId) -> Result<&Instance, Failure> {
    state.instances.get(&id).ok_or_else(|| Failure::unknown("Instance", id))
}

/// Refuses what needs an instance's primary node while that is marked offline.
pub fn check_online(state: &State, instance: &Instance) -> Result<(), Failure> {
    match state.nodes.get(&instance.primary) {
        Some(node) if node.offline => {
            Err(wrong_state(format!("Primary node '{}' of instance '{}' is marked offline", node.name, instance.name)))
        }
        _ => Ok(()),
    }
}

/// The run in which an instance is owned by a life that has not ended.
pub fn current_run(state: &State, instance: &Instance) -> Option<RunId> {
    let owner = instance.owner?;
    let alive = state.nodes.get(&owner.node).is_some_and(|node| node.life == owner.life && !node.dead);
    if alive { instance.run } else { None }
}

/// Whether the hypervisor has that run.
pub async fn is_running(ctx: &Context, instance: &Instance, run: RunId) -> Result<bool, Halt> {
    match ctx.call(instance.primary, Call::facts(&ctx.state())).await? {
        Reply::Facts(facts) => Ok(facts.instances.iter().any(|live| live.run == run)),
        other => Err(unexpected(&other)),
    }
}

pub fn unexpected(reply: &Reply) -> Halt {
    Failure::failed(format!("a node gave an answer that does not fit the question: {reply:?}")).into()
}

/// Starts an instance: the right to run it is committed first, then the hypervisor is started.
pub async fn start(
    ctx: &Context,
    id: InstanceId,
    hvparams: &Params,
    beparams: &Params,
    paused: bool,
) -> Result<(), Halt> {
    let state = ctx.state();
    let node = find_id(&state, id)?.primary;
    let applied = match ctx.commit("own", vec![Command::Own { instance: id, node }]).await {
        Err(Halt::Failed(failure)) => return Err(with_way_out(&ctx.state(), id, failure).into()),
        outcome => outcome?,
    };
    let [Applied::Run(run)] = applied[..] else {
        return Err(
            Failure::failed(format!("the right to run an instance was given without a run: {applied:?}")).into()
        );
    };
    launch(ctx, id, node, run, hvparams, beparams, paused).await
}

/// Says besides what can be done, where another node has the data that the primary one lacks.
fn with_way_out(state: &State, id: InstanceId, failure: Failure) -> Failure {
    let Some(instance) = state.instances.get(&id) else { return failure };
    let whole = |node: NodeId| {
        instance.disks.iter().all(|disk| disk.mirror.as_ref().is_some_and(|mirror| mirror.is_member_on(node)))
    };
    let mut mirrors = instance.disks.iter().filter_map(|disk| disk.mirror.as_ref());
    if mirrors.any(|mirror| mirror.doubtful) {
        let text = format!(
            "{}: 'gnt-instance failover --ignore-consistency {}'",
            failure.text.trim_end_matches("; --ignore-consistency promotes them"),
            instance.name
        );
        return Failure {
            text: format!("{text} goes on with what node '{}' has", state.node_name(instance.primary)),
            ..failure
        };
    }
    match instance.secondaries.iter().find(|node| whole(**node)) {
        Some(node) if !whole(instance.primary) => Failure {
            text: format!(
                "{}; node '{}' has all of its data: 'gnt-instance failover {}' starts it there",
                failure.text,
                state.node_name(*node),
                instance.name
            ),
            ..failure
        },
        _ => failure,
    }
}

/// Starts a run that was committed for `node`. If it does not start, the right to run the instance is given back.
pub async fn launch(
    ctx: &Context,
    id: InstanceId,
    node: NodeId,
    run: RunId,
    hvparams: &Params,
    beparams: &Params,
    paused: bool,
) -> Result<(), Halt> {
    let state = ctx.state();
    let instance = find_id(&state, id)?;
    let spec = Box::new(spec(&state, instance, hvparams, beparams));
    let started = ctx
        .step("start", || async {
            if current_run(&state, instance) != Some(run) {
                let name = state.node_name(node);
                return Ok(Some(Failure::failed(format!("node '{name}' was restarted in the meantime"))));
            }
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
    let text = format!("Could not start instance '{}': {}", spec.name, failure.text);
    if !ctx.is_done("disown") {
        // Only when the node says that nothing is left of it is the right given back. If the node does not answer, it
        // keeps it: nobody may start a second one.
        // After a restart of its node a run has nothing that could be released.
        let now = ctx.state();
        let release = find_id(&now, id).is_ok_and(|instance| current_run(&now, instance) == Some(run));
        let call = stop_call(instance, run, 0, release);
        match ctx.call_within(node, call, STOP).await {
            Ok(_) => ctx.commit("disown", vec![Command::Disown { instance: id, run, want: None }]).await?,
            Err(Halt::Failed(left)) => {
                let text = format!("{text}; what may be left of it could not be ended: {}", left.text);
                return Err(Failure { text, ..failure }.into());
            }
            Err(halt) => return Err(halt),
        };
    }
    Err(Failure { text, ..failure }.into())
}

/// The end of a run; see [`Call::Stop`].
pub fn stop_call(instance: &Instance, run: RunId, timeout: u32, release: bool) -> Call {
    Call::Stop {
        hypervisor: instance.hypervisor.clone(),
        instance: instance.name.clone(),
        id: instance.id,
        run,
        timeout,
        disks: mirrored(instance),
        release,
    }
}

/// An instance's mirrored disks.
pub fn mirrored(instance: &Instance) -> Vec<DiskId> {
    instance.disks.iter().filter(|disk| disk.mirror.is_some()).map(|disk| disk.id).collect()
}

/// Ends the run that an instance was found in, if it was in one, and gives the right to run it back. `run` comes from a
/// recorded step: a repetition must not end a run that was begun since.
async fn stop(
    ctx: &Context,
    id: InstanceId,
    run: Option<RunId>,
    timeout: u32,
    want: Option<AdminState>,
) -> Result<Option<Stopped>, Halt> {
    if ctx.is_done("stop") {
        return Ok(None);
    }
    let Some(run) = run else {
        if let Some(want) = want {
            let change = Box::new(InstanceChange::want(want));
            ctx.commit("stop", vec![Command::ModifyInstance { instance: id, change }]).await?;
        }
        return Ok(None);
    };
    let state = ctx.state();
    let instance = find_id(&state, id)?;
    // Disks that the host has attached are taken from it first; if somebody has them open, that is the end of it.
    if !mirrored(instance).is_empty() && !is_running(ctx, instance, run).await? {
        attachment::detach(ctx, id, Some(run), false).await?;
    }
    // After a restart of its node a run has nothing that could be released.
    let release = current_run(&state, instance) == Some(run);
    let call = stop_call(instance, run, timeout, release);
    let deadline = STOP + Duration::from_secs(u64::from(timeout));
    let how = match ctx.call_within(instance.primary, call, deadline).await? {
        Reply::Stopped(how) => how,
        other => return Err(unexpected(&other)),
    };
    ctx.commit("stop", vec![Command::Disown { instance: id, run, want }]).await?;
    Ok(Some(how))
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
    let (old, runs) = ctx
        .step("look", || async {
            let state = ctx.state();
            let instance = find(&state, &op.instance_name)?;
            match current_run(&state, instance) {
                Some(run) => Ok((Some(run), is_running(ctx, instance, run).await?)),
                None => Ok((None, false)),
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
    stop(ctx, id, old, 0, None).await?;
    start(ctx, id, &op.hvparams, &op.beparams, op.startup_paused).await?;
    Ok(Value::Null)
}

pub async fn shutdown(ctx: &Context, op: InstanceShutdown) -> Result<Value, Halt> {
    let (id, run) = ctx
        .step("check", || async {
            let state = ctx.state();
            let instance = find(&state, &op.instance_name)?;
            let run = current_run(&state, instance);
            if run.is_some() {
                check_online(&state, instance)?;
            }
            Ok((instance.id, run))
        })
        .await?;
    let want = (!op.no_remember).then_some(AdminState::Down);
    if let Some(Stopped::Forced) = stop(ctx, id, run, op.timeout, want).await? {
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
    if let (RebootType::Soft, Some(run)) = (op.reboot_type, run) {
        reset(ctx, id, run).await?;
        return Ok(Value::Null);
    }
    stop(ctx, id, run, op.shutdown_timeout, None).await?;
    start(ctx, id, &Params::new(), &Params::new(), false).await?;
    Ok(Value::Null)
}

/// Restarts the guest in its process. This can't be repeated without restarting it twice, so it is tried once; if the answer
/// is lost the failure says so.
async fn reset(ctx: &Context, id: InstanceId, run: RunId) -> Result<(), Halt> {
    let state = ctx.state();
    let instance = find_id(&state, id)?;
    let lost = |why: &str| {
        Failure::failed(format!("It is not known whether instance '{}' was restarted: {why}", instance.name))
    };
    if ctx.is_open("reset") {
        return Err(lost("the master was replaced on the way").into());
    }
    let call = Call::Reset { hypervisor: instance.hypervisor.clone(), instance: instance.name.clone(), run };
    ctx.step("reset", || async {
        match ctx.call_once(instance.primary, call, RESET).await {
            Ok(_) => Ok(()),
            Err(CallError::Failed(failure)) => Err(failure.into()),
            Err(CallError::Unreachable(why)) => {
                Err(lost(&format!("node '{}' does not answer: {why}", state.node_name(instance.primary))).into())
            }
            Err(CallError::Deposed) => Err(Halt::Interrupted),
        }
    })
    .await
}

/// Refuses to begin a removal that would leave a replica behind.
async fn check_secondary_answers(ctx: &Context, instance: &Instance, node: NodeId) -> Result<(), Halt> {
    let state = ctx.state();
    let why = match state.nodes.get(&node) {
        Some(at) if at.offline => "is marked offline".to_owned(),
        _ => match ctx.call(node, Call::Ping).await {
            Ok(_) => return Ok(()),
            Err(Halt::Failed(failure)) => format!("can't be asked to remove its disks ({})", failure.text),
            Err(halt) => return Err(halt),
        },
    };
    Err(wrong_state(format!(
        "Secondary node '{}' of instance '{}' {why}; --ignore-failures removes the instance all the same, and leaves that \
         node's replicas behind",
        state.node_name(node),
        instance.name
    ))
    .into())
}

pub async fn remove(ctx: &Context, op: InstanceRemove) -> Result<Value, Halt> {
    let (id, run) = ctx
        .step("check", || async {
            let state = ctx.state();
            let instance = find(&state, &op.instance_name)?;
            if !op.ignore_failures {
                check_online(&state, instance)?;
                for node in &instance.secondaries {
                    check_secondary_answers(ctx, instance, *node).await?;
                }
            }
            Ok((instance.id, current_run(&state, instance)))
        })
        .await?;
    if ctx.is_done("remove") {
        return Ok(Value::Null);
    }
    match stop(ctx, id, run, op.shutdown_timeout, Some(AdminState::Down)).await {
        Err(Halt::Failed(failure)) if op.ignore_failures => {
            ctx.warn(format!("Could not shut down instance '{}': {}", op.instance_name, failure.text)).await?;
            // Who ignores failures answers for what may still run there. It can't be started anywhere else, because it
            // is about to be gone.
            if let Some(run) = run {
                let want = Some(AdminState::Down);
                ctx.commit("stop", vec![Command::Disown { instance: id, run, want }]).await?;
            }
        }
        outcome => {
            outcome?;
        }
    }
    let change = InstanceChange { provision: Some(Provision::Removing(ctx.job())), ..InstanceChange::default() };
    ctx.commit("mark", vec![Command::ModifyInstance { instance: id, change: Box::new(change) }]).await?;

    let state = ctx.state();
    let instance = state.instances.get(&id).ok_or_else(|| Failure::unknown("Instance", &op.instance_name))?;
    for disk in disks(&state, instance) {
        // The primary node's last: as long as it is there, nothing is lost.
        for node in mirrors::holders(instance, &disk.disk).into_iter().rev() {
            let call = Call::RemoveDisk(disk.clone());
            let outcome = match op.ignore_failures && state.nodes.get(&node).is_none_or(|node| node.offline) {
                true => Err(Failure::failed(format!("node '{}' is offline", state.node_name(node))).into()),
                false => ctx.call(node, call).await,
            };
            match outcome {
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
    }
    ctx.commit("remove", vec![Command::RemoveInstance { instance: id }]).await?;
    Ok(Value::Null)
}
