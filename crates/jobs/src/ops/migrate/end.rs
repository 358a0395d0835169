//! What comes after a migration is decided: the guest goes on where it belongs, and what is left elsewhere ends.

use std::time::Duration;

use model::{Command, Params};
use opcodes::{ErrorCode, Failure};
use serde_json::{Value, json};

use super::transfer::Figures;
use super::{DONE, GIVEN_UP, Trip};
use crate::agent::{Call, Reply, RunState};
use crate::context::{Context, Halt};
use crate::ops::failover::run_of;
use crate::ops::instance::{launch, mirrored, stop_call, unexpected};
use crate::world::CallError;

/// How long a node may take to serve the disks and let the guest go on.
const GO_ON: Duration = Duration::from_secs(30);
/// How long the end of a hypervisor's process may take.
const STOP: Duration = Duration::from_secs(30);
/// How often, and in which intervals, a destination is asked that has the guest but can't let it go on.
const RETRIES: (u32, Duration) = (20, Duration::from_secs(1));

/// Records why a migration is given up, cancels it, and lets the guest go on where it is.
pub async fn give_up(ctx: &Context, trip: &Trip, failure: Failure) -> Result<Value, Halt> {
    // Whoever ends a migration otherwise, such as an operator who forces the instance elsewhere, does so only once.
    for _ in 0..2 {
        let pending = trip.is_pending(&ctx.state());
        let cancel = pending.then_some(Command::Cancel { migration: trip.plan.migration });
        let entry = ctx.entry("cancel", cancel.into_iter().collect()).note(GIVEN_UP, &failure)?;
        match entry.say("Migration failed, aborting").commit().await {
            Err(Halt::Failed(_)) if pending && !trip.is_pending(&ctx.state()) => {}
            outcome => {
                outcome?;
                break;
            }
        }
    }
    settle(ctx, trip, failure).await
}

/// After the cancellation: ends what was prepared, and lets the guest go on. The job fails for the reason that is recorded.
pub async fn settle(ctx: &Context, trip: &Trip, failure: Failure) -> Result<Value, Halt> {
    let text = format!("Could not migrate instance '{}': {}", trip.plan.name, failure.text);
    let text = match stay(ctx, trip).await? {
        None => text,
        Some(left) => format!("{text}. {left}"),
    };
    Err(Failure::failed(text).into())
}

/// Ends what was prepared at the destination, and lets the guest go on at the source. Answers what is not as it should be
/// there.
pub async fn stay(ctx: &Context, trip: &Trip) -> Result<Option<String>, Halt> {
    let plan = &trip.plan;
    let state = ctx.state();
    let instance = trip.instance(&state)?;
    let (name, from, to) = (&plan.name, state.node_name(plan.from), state.node_name(plan.to));
    let stay = Call::Stay {
        hypervisor: instance.hypervisor.clone(),
        instance: name.clone(),
        run: plan.run,
        migration: plan.migration,
        disks: mirrored(instance),
    };
    let owned = trip.owns(&state, plan.from, plan.run);
    let source = async {
        match owned {
            true => ctx.ask(plan.from, stay, GO_ON).await,
            false => Ok(Reply::Done),
        }
    };
    let destination = ctx.ask_briefly(plan.to, stop_call(instance, trip.to_run, 0, false), STOP);
    let (source, destination) = futures::join!(source, destination);
    if let Some(why) = reason(destination)? {
        ctx.warn(format!(
            "What was prepared for instance '{name}' on node '{to}' could not be ended ({why}); it never runs, and 'gnt-instance migrate --cleanup {name}' ends it"
        ))
        .await?;
    }
    let settles = format!("'gnt-instance migrate --cleanup {name}' settles it");
    Ok(match source {
        Err(CallError::Deposed) => return Err(Halt::Interrupted),
        Ok(_) if owned => None,
        Ok(_) => Some(format!(
            "Node '{from}' was started anew meanwhile, and the guest is gone; 'gnt-instance startup {name}' starts it"
        )),
        Err(CallError::Unreachable(why)) => Some(format!(
            "The migration is cancelled and the instance belongs to node '{from}', which does not answer ({why}): it waits for that node, and nobody can tell whether it runs there now. When the node is back, {settles}"
        )),
        Err(CallError::Failed(failure)) => Some(format!(
            "The migration is cancelled and the instance belongs to node '{from}', which could not let it go on: {}; {settles}",
            failure.text
        )),
    })
}

/// After the handover: the guest goes on at the destination, and its old run ends. `last` is said at the end.
pub async fn finish(ctx: &Context, trip: &Trip, figures: &Figures, last: Option<&str>) -> Result<Value, Halt> {
    let result = json!({
        "total_ms": figures.total_ms,
        "downtime_ms": figures.downtime_ms,
        "bytes": figures.bytes,
    });
    if ctx.is_done(DONE) {
        return Ok(result);
    }
    let lost = match ctx.recorded::<Failure>("lost")? {
        Some(failure) => Some(failure),
        None => go_on(ctx, trip, figures).await?,
    };
    if let Some(failure) = lost {
        restart(ctx, trip, failure).await?;
    }
    let plan = &trip.plan;
    let state = ctx.state();
    let instance = trip.instance(&state)?;
    if let Some(why) = reason(ctx.ask_briefly(plan.from, stop_call(instance, plan.run, 0, false), STOP).await)? {
        let from = state.node_name(plan.from);
        ctx.warn(format!(
            "What instance '{}' left on node '{from}' could not be ended ({why}); it never runs again, and 'gnt-instance migrate --cleanup {}' ends it when the node is back",
            plan.name, plan.name
        ))
        .await?;
    }
    let mut entry = ctx.entry(DONE, Vec::new());
    if let (Some(total), Some(downtime)) = (figures.total_ms, figures.downtime_ms) {
        let mib = figures.bytes as f64 / f64::from(1 << 20);
        entry = entry.say(format!(
            "* {mib:.1} MiB of memory sent in {:.2} s, the guest stood still for {downtime} ms of it",
            total as f64 / 1000.0
        ));
    }
    if let Some(last) = last {
        entry = entry.say(last);
    }
    entry.commit().await?;
    Ok(result)
}

/// Lets the guest go on at the destination. Answers, and has recorded, why it is lost if it is.
async fn go_on(ctx: &Context, trip: &Trip, figures: &Figures) -> Result<Option<Failure>, Halt> {
    let plan = &trip.plan;
    let state = ctx.state();
    let instance = trip.instance(&state)?;
    let to = state.node_name(plan.to);
    let call = Call::Continue {
        hypervisor: instance.hypervisor.clone(),
        instance: plan.name.clone(),
        run: trip.to_run,
        disks: mirrored(instance),
        paused: figures.paused,
    };
    let unreachable = |why: String| {
        let name = &plan.name;
        Halt::from(Failure::refused(
            ErrorCode::EnvironmentError,
            format!(
                "Instance '{name}' was handed over to node '{to}', which does not answer now ({why}): it belongs to that node and waits for it. When the node is back, 'gnt-instance migrate --cleanup {name}' settles it"
            ),
        ))
    };
    for tries in 1.. {
        let failure = match ctx.ask(plan.to, call.clone(), GO_ON).await {
            Ok(_) => return Ok(None),
            Err(CallError::Failed(failure)) => failure,
            Err(CallError::Unreachable(why)) => return Err(unreachable(why)),
            Err(CallError::Deposed) => return Err(Halt::Interrupted),
        };
        // Its memory is worth some patience, if it is there.
        let look = Call::LookAtRun { hypervisor: instance.hypervisor.clone(), run: trip.to_run };
        let there = match ctx.ask(plan.to, look, GO_ON).await {
            Ok(Reply::Run(live)) => live.is_some_and(|live| live.state != RunState::Ending),
            Ok(other) => return Err(unexpected(&other)),
            Err(CallError::Failed(_)) => true,
            Err(CallError::Unreachable(why)) => return Err(unreachable(why)),
            Err(CallError::Deposed) => return Err(Halt::Interrupted),
        };
        if !there || tries >= RETRIES.0 {
            let name = &plan.name;
            ctx.entry("lose", Vec::new())
                .note("lost", &failure)?
                .say(format!(
                    " - WARNING: Instance '{name}' could not go on with what it did on node '{to}' and is restarted there: {}",
                    failure.text
                ))
                .commit()
                .await?;
            return Ok(Some(failure));
        }
        ctx.world().sleep(RETRIES.1).await;
    }
    Ok(None)
}

/// The destination has the instance but not the guest's memory any more: the guest starts afresh there.
async fn restart(ctx: &Context, trip: &Trip, failure: Failure) -> Result<(), Halt> {
    let plan = &trip.plan;
    let state = ctx.state();
    let instance = trip.instance(&state)?;
    let (name, to) = (&plan.name, state.node_name(plan.to));
    if !ctx.is_done("own") && trip.owns(&state, plan.to, trip.to_run) {
        match ctx.call_within(plan.to, stop_call(instance, trip.to_run, 0, true), STOP).await {
            Err(Halt::Failed(left)) => {
                return Err(Failure::failed(format!(
                    "Instance '{name}' was handed over to node '{to}', but could not go on there: {}. Nor could it be ended there, to start it anew: {}",
                    failure.text, left.text
                ))
                .into());
            }
            outcome => {
                outcome?;
            }
        }
    }
    let own = vec![
        Command::Disown { instance: plan.id, run: trip.to_run, want: None },
        Command::Own { instance: plan.id, node: plan.to },
    ];
    let run = run_of(&ctx.commit("own", own).await?)?;
    launch(ctx, plan.id, plan.to, run, &Params::new(), &Params::new(), false).await
}

/// Why a call came to nothing, if it did.
fn reason(outcome: Result<Reply, CallError>) -> Result<Option<String>, Halt> {
    match outcome {
        Ok(_) => Ok(None),
        Err(CallError::Failed(failure)) => Ok(Some(failure.text)),
        Err(CallError::Unreachable(why)) => Ok(Some(format!("it does not answer: {why}"))),
        Err(CallError::Deposed) => Err(Halt::Interrupted),
    }
}
