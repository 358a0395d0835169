//! Live migration (protocol, section 10).
//!
//! What is recorded: the plan with `Prepare`, in one log entry; then either the figures with `Handover`, or the reason with
//! `Cancel`. Everything between is asked of nodes that find done what they have done, so a new master asks again from
//! `Prepare` on. While neither of the two is committed, nobody lets the guest go on anywhere; which of them was committed
//! stands in the state, so nobody needs to guess.

mod cleanup;
mod end;
mod transfer;

use model::{AdminState, Command, Instance, InstanceId, NodeId, ParamValue, RunId, State, Uuid};
use opcodes::Failure;
use opcodes::op::{DEFAULT_SHUTDOWN_TIMEOUT, InstanceFailover, InstanceMigrate};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::failover;
use super::instance::{current_run, find};
use super::target::{ask_owner, check_in_sync, check_room, target};
use super::wrong_state;
use crate::agent::{Call, Reply, RunState};
use crate::context::{Context, Halt};

/// Names of steps whose results count.
const PLAN: &str = "plan";
const PREPARE: &str = "prepare";
const GIVEN_UP: &str = "given-up";
const HANDOVER: &str = "handover";
const DONE: &str = "done";

/// What moves, from where to where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Plan {
    id: InstanceId,
    name: String,
    migration: Uuid,
    from: NodeId,
    run: RunId,
    to: NodeId,
    guest: Guest,
}

/// The guest as it runs, which its configuration may have been changed from since it was started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Guest {
    /// Versioned machine type.
    machine: String,
    memory_mib: u64,
    vcpus: u32,
}

/// A plan with the run that the instance gets at the destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Trip {
    plan: Plan,
    to_run: RunId,
}

impl Trip {
    /// The instance, for calls to nodes.
    fn instance<'a>(&self, state: &'a State) -> Result<&'a Instance, Failure> {
        state.instances.get(&self.plan.id).ok_or_else(|| Failure::unknown("Instance", &self.plan.name))
    }

    /// Whether it is undecided.
    fn is_pending(&self, state: &State) -> bool {
        let migration = state.instances.get(&self.plan.id).and_then(|instance| instance.migration);
        migration.is_some_and(|migration| migration.id == self.plan.migration)
    }

    /// Whether `run` is the one that the state gives to `node`, in the life that it has now.
    fn owns(&self, state: &State, node: NodeId, run: RunId) -> bool {
        state.instances.get(&self.plan.id).is_some_and(|instance| {
            instance.owner.is_some_and(|owner| owner.node == node) && current_run(state, instance) == Some(run)
        })
    }
}

pub async fn migrate(ctx: &Context, op: InstanceMigrate) -> Result<Value, Halt> {
    if op.cleanup {
        return cleanup::cleanup(ctx, &op.instance_name).await;
    }
    if failover::is_begun(ctx) {
        return failover::failover(ctx, instead(&op)).await;
    }
    let plan = match ctx.recorded::<Plan>(PLAN)? {
        Some(plan) => plan,
        None => match check(ctx, &op).await? {
            Some(plan) => plan,
            None => return failover::failover(ctx, instead(&op)).await,
        },
    };
    let to = ctx.state().node_name(plan.to);
    let prepare = Command::Prepare { instance: plan.id, migration: plan.migration, to: plan.to };
    let applied = ctx
        .entry(PREPARE, vec![prepare])
        .note(PLAN, &plan)?
        .say(format!("Migrating instance {}", plan.name))
        .say("* checking disk consistency between source and target")
        .say(format!("* preparing {to} to accept the instance"))
        .commit()
        .await?;
    let trip = Trip { to_run: failover::run_of(&applied)?, plan };
    if let Some(failure) = ctx.recorded::<Failure>(GIVEN_UP)? {
        return end::settle(ctx, &trip, failure).await;
    }
    let figures = match ctx.recorded(transfer::FIGURES)? {
        Some(figures) => figures,
        None => match transfer::transfer(ctx, &trip, op.mode).await {
            Ok(figures) => figures,
            Err(Halt::Failed(failure)) => return end::give_up(ctx, &trip, failure).await,
            Err(halt) => return Err(halt),
        },
    };
    end::finish(ctx, &trip, &figures, Some("* done")).await
}

/// The failover that takes the place of a migration.
fn instead(op: &InstanceMigrate) -> InstanceFailover {
    InstanceFailover {
        instance_name: op.instance_name.clone(),
        shutdown_timeout: DEFAULT_SHUTDOWN_TIMEOUT,
        ignore_consistency: false,
    }
}

/// Refuses what can't work, before anything is changed. `None`: it is to be failed over instead.
async fn check(ctx: &Context, op: &InstanceMigrate) -> Result<Option<Plan>, Halt> {
    let state = ctx.state();
    let instance = find(&state, &op.instance_name)?;
    let name = &instance.name;
    let to = target(&state, instance, "migrations")?;
    let beparams = state.filled_beparams(&instance.beparams);
    if beparams.get("always_failover") == Some(&ParamValue::Bool(true)) {
        ctx.say(" - INFO: Instance configured to always failover; fallback to failover").await?;
        return Ok(None);
    }
    let stopped = |why: String| match op.allow_failover {
        true => Ok(None),
        false => Err(Halt::from(wrong_state(format!(
            "Instance '{name}' is {why}, so it can't be migrated; 'gnt-instance failover {name}' moves it, and so does '--allow-failover'"
        )))),
    };
    let run = match current_run(&state, instance) {
        Some(run) if instance.want == AdminState::Up => run,
        Some(_) | None if instance.want != AdminState::Up => {
            return stopped(format!("marked to be {}", instance.want.word()));
        }
        _ => return stopped("not running".to_owned()),
    };
    check_in_sync(&state, instance, to)?;
    let look = Call::LookAtRun { hypervisor: instance.hypervisor.clone(), run };
    let (owner, facts, room) = futures::join!(
        ask_owner(ctx, &state, instance, look),
        super::target::facts(ctx, &state, instance.primary),
        check_room(ctx, &state, instance, to, Some(state.memory_mib(instance)))
    );
    let live = match owner? {
        Reply::Run(live) => live,
        other => return Err(super::instance::unexpected(&other)),
    };
    let Some(live) = live.filter(|live| live.state != RunState::Ending) else {
        return stopped("not running".to_owned());
    };
    if !matches!(live.state, RunState::Running | RunState::Paused) {
        return Err(wrong_state(format!(
            "Instance '{name}' is left by a migration that did not end; 'gnt-instance migrate --cleanup {name}' settles that first"
        ))
        .into());
    }
    room?;
    let facts = facts?;
    let (memory_mib, vcpus) = match facts.instances.iter().find(|live| live.run == run) {
        Some(live) => (live.memory_mib, live.vcpus),
        None => return stopped("not running".to_owned()),
    };
    let guest = Guest { machine: live.machine, memory_mib, vcpus };
    Ok(Some(Plan {
        id: instance.id,
        name: name.clone(),
        migration: ctx.new_uuid(),
        from: instance.primary,
        run,
        to,
        guest,
    }))
}
