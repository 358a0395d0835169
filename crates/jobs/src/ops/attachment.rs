//! Host attachments: the disks of an instance that does not run, served to its node itself: to the operating system's
//! scripts, to a copy, to an administrator.
//!
//! To the log a host attachment is a run as a guest's is: `Own` gives the right to write to the disks of a mirrored instance,
//! `Disown` gives it back, after the disks were brought to their orderly end. Which of the two a run is, the hypervisor
//! says: *a run that the owner's hypervisor does not have is one of the host.* It may also be that of a guest that has ended
//! by itself; that makes no difference, because in both cases nothing but the host can be using the disks, and
//! [`Call::DetachDisks`] ends it.

use model::{Applied, Command, Instance, InstanceId, RunId};
use opcodes::Failure;

use super::instance::{current_run, find_id, is_running};
use super::spec::disks;
use super::wrong_state;
use crate::agent::{Call, Reply};
use crate::context::{Context, Halt};

/// Gives an instance's primary node the right to its mirrored disks; `step` is the name of the step.
pub async fn own(ctx: &Context, step: &str, id: InstanceId) -> Result<RunId, Halt> {
    let node = find_id(&ctx.state(), id)?.primary;
    let applied = ctx.commit(step, vec![Command::Own { instance: id, node }]).await?;
    match applied[..] {
        [Applied::Run(run)] => Ok(run),
        _ => Err(Failure::failed(format!("the right to use disks was given without a run: {applied:?}")).into()),
    }
}

/// Shows the disks on the primary node; `run` is the one that was committed, if they are mirrored. Where they are.
pub async fn attach(ctx: &Context, id: InstanceId, run: Option<RunId>) -> Result<Vec<String>, Halt> {
    let state = ctx.state();
    let instance = find_id(&state, id)?;
    check_still(ctx, id, run)?;
    let disks = disks(&state, instance);
    match ctx.call(instance.primary, Call::AttachDisks { disks, run }).await? {
        Reply::Paths(paths) => Ok(paths),
        other => Err(super::instance::unexpected(&other)),
    }
}

/// Refuses to go on in a run that ended because its node was restarted.
pub fn check_still(ctx: &Context, id: InstanceId, run: Option<RunId>) -> Result<(), Failure> {
    let state = ctx.state();
    let instance = find_id(&state, id)?;
    if run.is_some() && current_run(&state, instance) != run {
        let name = state.node_name(instance.primary);
        return Err(Failure::failed(format!("node '{name}' was restarted in the meantime")));
    }
    Ok(())
}

/// Ends what the host does with an instance's disks in a run, so that it can be disowned. With `force` also if somebody has
/// them open. Nothing has to be done where the node was restarted since.
pub async fn detach(ctx: &Context, id: InstanceId, run: Option<RunId>, force: bool) -> Result<(), Halt> {
    let state = ctx.state();
    let Some(instance) = state.instances.get(&id) else { return Ok(()) };
    if run.is_some() && current_run(&state, instance) != run {
        return Ok(());
    }
    let call = Call::DetachDisks { disks: disks(&state, instance), run, force };
    ctx.call_within(instance.primary, call, super::instance::STOP).await.map(drop)
}

/// The command that gives the right back, if it has not been given back yet.
pub fn disown(ctx: &Context, id: InstanceId, run: RunId) -> Option<Command> {
    let state = ctx.state();
    let owned = state.instances.get(&id).is_some_and(|instance| instance.run == Some(run));
    owned.then_some(Command::Disown { instance: id, run, want: None })
}

/// Refuses what the disks of a running instance are not to be had for.
pub async fn check_not_running(ctx: &Context, instance: &Instance, doing: &str) -> Result<Option<RunId>, Halt> {
    let Some(run) = current_run(&ctx.state(), instance) else { return Ok(None) };
    if is_running(ctx, instance, run).await? {
        return Err(
            wrong_state(format!("Instance '{}' is running, cannot {doing}; stop it first", instance.name)).into()
        );
    }
    Ok(Some(run))
}
