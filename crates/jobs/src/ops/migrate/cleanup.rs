//! `gnt-instance migrate --cleanup`: settles what a migration left that did not come to an end. What is undecided is
//! cancelled; what was decided is carried out.

use std::time::Duration;

use model::{Command, Instance, Op, State};
use opcodes::Failure;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::transfer::{FIGURES, Figures};
use super::{DONE, GIVEN_UP, Guest, PLAN, PREPARE, Plan, Trip, end};
use crate::context::{Context, Halt};
use crate::ops::failover::run_of;
use crate::ops::instance::{current_run, find, stop_call};
use crate::ops::target::facts;
use crate::ops::wrong_state;

/// How long the end of a hypervisor's process may take.
const STOP: Duration = Duration::from_secs(30);

/// What is to be settled.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Left {
    /// A migration that nobody decided.
    Undecided(Trip),
    /// One that was cancelled; the source may not know.
    Cancelled(Trip),
    /// One whose handover is committed; the destination may not know.
    HandedOver(Trip, Figures),
    /// Nothing that the state or a job tells of.
    Nothing,
}

pub async fn cleanup(ctx: &Context, name: &str) -> Result<Value, Halt> {
    let left = match ctx.recorded("cleanup")? {
        Some(left) => left,
        None => {
            let state = ctx.state();
            let left = look(&state, find(&state, name)?)?;
            ctx.entry("cleanup-begins", Vec::new())
                .note("cleanup", &left)?
                .say(format!("Migrating instance {name}"))
                .say("* checking where the instance actually runs (if this hangs, the hypervisor might be in a bad state)")
                .commit()
                .await?;
            left
        }
    };
    match left {
        Left::Undecided(trip) => {
            let state = ctx.state();
            if trip.is_pending(&state) || ctx.is_done("cancel") {
                let (from, to) = (state.node_name(trip.plan.from), state.node_name(trip.plan.to));
                ctx.entry("cancel", vec![Command::Cancel { migration: trip.plan.migration }])
                    .say(format!(
                        "* the migration to {to} was not decided: it is cancelled, the instance stays on {from}"
                    ))
                    .commit()
                    .await?;
                stay(ctx, &trip).await?;
            }
        }
        Left::Cancelled(trip) => stay(ctx, &trip).await?,
        Left::HandedOver(trip, figures) => {
            let to = ctx.state().node_name(trip.plan.to);
            ctx.say(format!("* the instance was handed over to {to}: it goes on there")).await?;
            end::finish(ctx, &trip, &figures, None).await?;
        }
        Left::Nothing => {}
    }
    end_strays(ctx, name).await?;
    ctx.say("* done").await?;
    Ok(Value::Null)
}

/// The guest goes on at its source, or the job says why not. One that is gone with its node's boot is only told of.
async fn stay(ctx: &Context, trip: &Trip) -> Result<(), Halt> {
    let Some(left) = end::stay(ctx, trip).await? else { return Ok(()) };
    if !trip.owns(&ctx.state(), trip.plan.from, trip.plan.run) {
        return ctx.warn(left).await;
    }
    Err(Failure::failed(format!("Instance '{}' could not be settled. {left}", trip.plan.name)).into())
}

fn look(state: &State, instance: &Instance) -> Result<Left, Failure> {
    if instance.disks.is_empty() || instance.disks.iter().any(|disk| disk.mirror.is_none()) {
        let template = instance.disk_template;
        return Err(wrong_state(format!("Instance's disk layout '{template}' does not allow migrations")));
    }
    if let (Some(migration), Some(owner), Some(run)) = (instance.migration, instance.owner, instance.run) {
        let plan = Plan {
            id: instance.id,
            name: instance.name.clone(),
            migration: migration.id,
            from: owner.node,
            run,
            to: migration.to.node,
            guest: Guest::default(),
        };
        return Ok(Left::Undecided(Trip { plan, to_run: migration.run }));
    }
    // Of what was decided the state tells only the outcome; the job that decided it tells the rest.
    let ops = state.jobs.values().rev().flat_map(|job| job.ops.iter().rev());
    let last = ops.filter_map(|op| Some((op, trip(op)?))).find(|(_, trip)| trip.plan.id == instance.id);
    let Some((op, trip)) = last else { return Ok(Left::Nothing) };
    let run = current_run(state, instance);
    Ok(match output::<Figures>(op, FIGURES) {
        Some(figures) if run == Some(trip.to_run) && !is_done(op, DONE) => Left::HandedOver(trip, figures),
        None if run == Some(trip.plan.run) && is_done(op, GIVEN_UP) => Left::Cancelled(trip),
        _ => Left::Nothing,
    })
}

/// The migration that an opcode has begun.
fn trip(op: &Op) -> Option<Trip> {
    let applied: Vec<model::Applied> = output(op, PREPARE)?;
    Some(Trip { plan: output(op, PLAN)?, to_run: run_of(&applied).ok()? })
}

fn output<T: serde::de::DeserializeOwned>(op: &Op, step: &str) -> Option<T> {
    let done = op.steps.get(step)?.done.as_ref()?;
    serde_json::from_value(done.output.clone()).ok()
}

fn is_done(op: &Op, step: &str) -> bool {
    op.steps.get(step).is_some_and(|step| step.done.is_some())
}

/// Ends the instance's runs that the state does not name, and tells where it runs.
async fn end_strays(ctx: &Context, name: &str) -> Result<(), Halt> {
    let state = ctx.state();
    let instance = find(&state, name)?;
    let current = current_run(&state, instance);
    let mut runs = false;
    for node in std::iter::once(instance.primary).chain(instance.secondaries.iter().copied()) {
        let node_name = state.node_name(node);
        let found = match facts(ctx, &state, node).await {
            Ok(facts) => facts.instances,
            Err(Halt::Failed(failure)) => {
                ctx.warn(format!("{}; what it has of instance '{name}' is not known", failure.text)).await?;
                continue;
            }
            Err(halt) => return Err(halt),
        };
        let found: Vec<_> = found.into_iter().filter(|live| live.instance == name).collect();
        let owned = node == instance.primary && found.iter().any(|live| Some(live.run) == current);
        runs |= owned;
        for stray in found.iter().filter(|live| Some(live.run) != current) {
            // The interfaces are the instance's, not the run's: they would go with it.
            if owned {
                ctx.warn(format!(
                    "Node {node_name} has run {} of instance '{name}' besides the one that it shall have",
                    stray.run
                ))
                .await?;
                continue;
            }
            match ctx.call_within(node, stop_call(instance, stray.run, 0, false), STOP).await {
                Ok(_) => {
                    ctx.say(format!("* run {} of the instance, left on {node_name}, was ended", stray.run)).await?
                }
                Err(Halt::Failed(failure)) => {
                    ctx.warn(format!(
                        "Run {} of instance '{name}' on node {node_name} could not be ended: {}",
                        stray.run, failure.text
                    ))
                    .await?;
                }
                Err(halt) => return Err(halt),
            }
        }
    }
    let primary = state.node_name(instance.primary);
    match (current, runs) {
        (Some(_), true) => ctx.say(format!("* instance confirmed to be running on its primary node ({primary})")).await,
        (Some(_), false) => {
            ctx.warn(format!(
                "Instance '{name}' is not running on its primary node ({primary}); 'gnt-instance startup {name}' starts it"
            ))
            .await
        }
        (None, _) => ctx.say("* instance is not running").await,
    }
}
