//! The way of a guest to its destination, up to the entry that decides that it is there (H2 to H5).

use std::time::Duration;

use model::{Command, ParamValue, Params};
use opcodes::Failure;
use opcodes::op::MigrationMode;
use serde::{Deserialize, Serialize};

use super::{HANDOVER, Trip};
use crate::agent::{Call, InstanceSpec, Reply, RunState, Sending};
use crate::context::{Context, Halt};
use crate::ops::instance::{mirrored, unexpected};
use crate::ops::spec::spec;

/// How long a hypervisor may take to make a destination.
const RECEIVE: Duration = Duration::from_secs(60);
/// How long an answer about a transfer is waited for at the node; Ganeti's interval of progress lines.
const LONG_POLL: Duration = Duration::from_secs(10);
/// How long a call may take beyond what it waits for.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the disks may take to come to rest.
const QUIESCE: Duration = Duration::from_secs(30);
/// How often, and in which intervals, a destination is looked at that has its memory but does not say so yet.
const ARRIVAL: (u32, Duration) = (200, Duration::from_millis(10));

/// Name of the step that records the figures.
pub const FIGURES: &str = "figures";

/// What a migration took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Milliseconds from its beginning to its end, as the hypervisor says.
    pub total_ms: Option<u64>,
    /// Milliseconds of it in which the guest stood still.
    pub downtime_ms: Option<u64>,
    /// Bytes of memory sent.
    pub bytes: u64,
    /// Whether the guest was paused.
    pub paused: bool,
}

/// Brings the guest to its destination and commits that it is there. When it fails, the guest is where it was, and the
/// migration is to be cancelled.
pub async fn transfer(ctx: &Context, trip: &Trip, mode: MigrationMode) -> Result<Figures, Halt> {
    let plan = &trip.plan;
    let state = ctx.state();
    if !trip.is_pending(&state) {
        return Err(Failure::failed("the migration was ended by another command").into());
    }
    let instance = trip.instance(&state)?;
    let (from, to) = (state.node_name(plan.from), state.node_name(plan.to));
    let (hypervisor, name) = (&instance.hypervisor, &plan.name);

    let receive = Call::Receive {
        spec: Box::new(as_it_runs(spec(&state, instance, &Params::new(), &Params::new()), trip)),
        run: trip.to_run,
        migration: plan.migration,
        machine: plan.guest.machine.clone(),
    };
    named(ctx.call_briefly(plan.to, receive, RECEIVE).await, || format!("node '{to}' can't receive it"))?;
    let send = Call::Send {
        hypervisor: hypervisor.clone(),
        instance: name.clone(),
        run: plan.run,
        migration: plan.migration,
        to: plan.to,
        to_run: trip.to_run,
        mode,
    };
    let told = ctx
        .entry("send", Vec::new())
        .say(format!("* migrating instance to {to}"))
        .say("* starting memory transfer")
        .commit();
    let (told, sending) = futures::join!(told, ctx.call_briefly(plan.from, send, ANSWER));
    told?;
    let unsent = || format!("node '{from}' can't send it");
    let figures = watch(ctx, trip, hypervisor, named(sending, unsent)?).await?;

    let disks = mirrored(instance);
    let macs = instance.nics.iter().map(|nic| nic.mac.clone()).collect();
    let quiesce = Call::Quiesce { migration: plan.migration, disks };
    let frames = Call::TakeFrames { id: plan.id, macs };
    // The guest stands still from here on.
    let (arrived, quiesced, frames) = futures::join!(
        arrived(ctx, trip, hypervisor),
        ctx.call_briefly(plan.from, quiesce, QUIESCE),
        ctx.call_briefly(plan.to, frames, ANSWER)
    );
    arrived?;
    named(quiesced, || format!("its disks could not be closed on node '{from}'"))?;
    named(frames, || format!("node '{to}' can't take its network"))?;
    ctx.entry(HANDOVER, vec![Command::Handover { migration: plan.migration }])
        .note(FIGURES, &figures)?
        .say("* memory transfer complete")
        .commit()
        .await?;
    Ok(figures)
}

/// Puts before a failure what it was that failed.
fn named<T>(outcome: Result<T, Halt>, what: impl FnOnce() -> String) -> Result<T, Halt> {
    outcome.map_err(|halt| match halt {
        Halt::Failed(failure) => Failure { text: format!("{}: {}", what(), failure.text), ..failure }.into(),
        halt => halt,
    })
}

/// The instance with the memory and the CPUs that it was started with.
fn as_it_runs(mut spec: InstanceSpec, trip: &Trip) -> InstanceSpec {
    let guest = &trip.plan.guest;
    let memory = i64::try_from(guest.memory_mib).unwrap_or(i64::MAX);
    spec.beparams.insert("maxmem".to_owned(), ParamValue::Int(memory));
    spec.beparams.insert("vcpus".to_owned(), ParamValue::Int(i64::from(guest.vcpus)));
    spec
}

/// Waits until all of the guest's memory is at the destination.
async fn watch(ctx: &Context, trip: &Trip, hypervisor: &str, mut sending: Reply) -> Result<Figures, Halt> {
    let plan = &trip.plan;
    let mut told = String::new();
    let mut first = true;
    loop {
        match sending {
            Reply::Sending(Sending::Complete { total_ms, downtime_ms, bytes, paused }) => {
                return Ok(Figures { total_ms, downtime_ms, bytes, paused });
            }
            Reply::Sending(Sending::Failed { why }) => {
                let to = ctx.state().node_name(plan.to);
                return Err(Failure::failed(format!("the transfer of its memory to node '{to}' failed: {why}")).into());
            }
            Reply::Sending(Sending::Active { remaining, total, .. }) => {
                let line = format!("* memory transfer progress: {:.2} %", percent(remaining, total));
                if !first && line != told {
                    ctx.say(line.clone()).await?;
                    told = line;
                }
                first = false;
            }
            other => return Err(unexpected(&other)),
        }
        let look = Call::LookAtSending {
            hypervisor: hypervisor.to_owned(),
            run: plan.run,
            migration: plan.migration,
            wait_ms: LONG_POLL.as_millis() as u64,
        };
        let answer = ctx.call_briefly(plan.from, look, LONG_POLL + ANSWER).await;
        sending = named(answer, || "nobody knows how far its memory was sent".to_owned())?;
    }
}

/// How much has been sent, of what is there now.
fn percent(remaining: u64, total: u64) -> f64 {
    if total == 0 {
        return 0.0;
    }
    100.0 * total.saturating_sub(remaining) as f64 / total as f64
}

/// Waits until the destination has the guest, paused. Its source says so a moment earlier.
async fn arrived(ctx: &Context, trip: &Trip, hypervisor: &str) -> Result<(), Halt> {
    let plan = &trip.plan;
    let to = ctx.state().node_name(plan.to);
    for _ in 0..ARRIVAL.0 {
        let look = Call::LookAtRun { hypervisor: hypervisor.to_owned(), run: trip.to_run };
        match ctx.call_briefly(plan.to, look, ANSWER).await? {
            Reply::Run(Some(live)) if live.state == RunState::Paused => return Ok(()),
            Reply::Run(Some(live)) if live.state == RunState::Incoming => {}
            Reply::Run(_) => return Err(Failure::failed(format!("it was lost on its way to node '{to}'")).into()),
            other => return Err(unexpected(&other)),
        }
        ctx.world().sleep(ARRIVAL.1).await;
    }
    Err(Failure::failed(format!("it did not arrive completely on node '{to}'")).into())
}
