//! Changing how the disks of a stopped instance are stored.
//!
//! The content is copied from one set of disks to another, on the primary node. At every moment one of the two sets is whole
//! and known to the cluster or to this job's record:
//! - to mirrored disks: the instance has the new disks from before the copy on, because only disks of the state can be
//!   attached, and is marked as being [converted](Provision::Converting); the files stay until the end, and are its disks
//!   again if anything fails;
//! - to files: the instance has its mirrored disks until the copy is complete.

use model::{
    Command, Disk, DiskId, DiskTemplate, Instance, InstanceChange, InstanceId, NewStorage, NodeId, Params, Provision,
    State,
};
use opcodes::Failure;
use opcodes::op::InstanceSetParams;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::attachment::{self, check_not_running};
use super::create::check_template;
use super::instance::{check_online, find, find_id};
use super::mirrors::{self, check_room, holders, secondary_node};
use super::spec::{disks, spec};
use super::{wrong_input, wrong_state};
use crate::agent::{Call, DiskRef};
use crate::context::{Context, Halt};

/// How long copying a disk may take: a day.
const COPY: std::time::Duration = std::time::Duration::from_secs(86_400);

/// Name of the step that records why a conversion is given up. A new master that finds it goes on undoing.
const GIVEN_UP: &str = "given-up";

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    id: InstanceId,
    /// What it had.
    old: NewStorage,
    /// What it gets.
    new: NewStorage,
}

impl Plan {
    /// The disks of a storage as their nodes know them, each with those nodes.
    fn disks(&self, state: &State, storage: &NewStorage) -> Result<Vec<(DiskRef, Vec<NodeId>)>, Failure> {
        let instance = with_storage(find_id(state, self.id)?, storage);
        let refs = disks(state, &instance).into_iter();
        Ok(refs.map(|disk| (disk.clone(), holders(&instance, &disk.disk))).collect())
    }

    /// The instance has those disks.
    fn swap(&self, storage: &NewStorage, provision: Provision) -> Command {
        let change =
            InstanceChange { storage: Some(storage.clone()), provision: Some(provision), ..InstanceChange::default() };
        Command::ModifyInstance { instance: self.id, change: Box::new(change) }
    }
}

fn with_storage(instance: &Instance, storage: &NewStorage) -> Instance {
    Instance {
        disk_template: storage.template,
        disks: storage.disks.clone(),
        secondaries: storage.secondaries.clone(),
        ..instance.clone()
    }
}

/// The part of `OP_INSTANCE_SET_PARAMS` that is about the template.
pub async fn convert(ctx: &Context, op: &InstanceSetParams, template: DiskTemplate) -> Result<Value, Halt> {
    let plan = ctx.step("check", || check(ctx, op, template)).await?;
    let failure = match ctx.recorded::<Failure>(GIVEN_UP)? {
        Some(failure) => failure,
        None => match carry_out(ctx, &plan).await {
            Ok(()) => return Ok(json!([["disk_template", template.name()]])),
            Err(Halt::Failed(failure)) => ctx.step(GIVEN_UP, || async { Ok(failure) }).await?,
            Err(halt) => return Err(halt),
        },
    };
    undo(ctx, &plan).await?;
    Err(failure.into())
}

/// Refuses what can't work. The result is the whole plan: a repetition makes the same disks.
async fn check(ctx: &Context, op: &InstanceSetParams, template: DiskTemplate) -> Result<Plan, Halt> {
    let state = ctx.state();
    let instance = find(&state, &op.instance_name)?;
    let name = &instance.name;
    let alone = InstanceSetParams {
        instance_name: op.instance_name.clone(),
        disk_template: op.disk_template,
        remote_node: op.remote_node.clone(),
        ..InstanceSetParams::default()
    };
    if *op != alone {
        let text = "Disk template conversion and other changes not supported at the same time";
        return Err(wrong_input(text).into());
    }
    let old = instance.disk_template;
    if old == template {
        return Err(wrong_input(format!("Instance already has disk template {template}")).into());
    }
    if old == DiskTemplate::Diskless || template == DiskTemplate::Diskless {
        return Err(wrong_input(format!("Unsupported disk template conversion from {old} to {template}")).into());
    }
    check_template(&state, template)?;
    check_online(&state, instance)?;
    if check_not_running(ctx, instance, "change disk template").await?.is_some() {
        return Err(wrong_state(format!(
            "The disks of instance '{name}' are in use on its node; 'gnt-instance deactivate-disks {name}' ends that"
        ))
        .into());
    }
    let secondaries = match (template, &op.remote_node) {
        (DiskTemplate::Drbd, node) => vec![secondary_node(&state, node.as_deref(), instance.primary)?],
        (_, None) => Vec::new(),
        (_, Some(node)) => {
            let text = format!("Disk template '{template}' is not mirrored, so it takes no secondary node ('{node}')");
            return Err(wrong_input(text).into());
        }
    };
    let nodes: Vec<NodeId> = std::iter::once(instance.primary).chain(secondaries.iter().copied()).collect();
    let needed = instance.disks.iter().map(|disk| disk.size_mib).sum();
    for node in &nodes {
        let facts = mirrors::facts(ctx, &state, *node).await?;
        check_room(&state, *node, &facts, template, needed)?;
    }
    let new_disk = |disk: &Disk| Disk {
        id: DiskId(ctx.new_uuid()),
        ctime: ctx.now(),
        mirror: (template == DiskTemplate::Drbd).then(|| mirrors::new_mirror(ctx, &state, &nodes)),
        ..disk.clone()
    };
    let new = NewStorage { template, disks: instance.disks.iter().map(new_disk).collect(), secondaries };
    let spec = Box::new(spec(&state, &with_storage(instance, &new), &Params::new(), &Params::new()));
    for node in &nodes {
        ctx.call(*node, Call::CheckInstance { spec: spec.clone(), install: false }).await?;
    }
    let old = NewStorage { template: old, disks: instance.disks.clone(), secondaries: instance.secondaries.clone() };
    Ok(Plan { id: instance.id, old, new })
}

async fn carry_out(ctx: &Context, plan: &Plan) -> Result<(), Halt> {
    let state = ctx.state();
    let (from, to) = (plan.disks(&state, &plan.old)?, plan.disks(&state, &plan.new)?);
    let id = plan.id;
    let mirrored = plan.new.template == DiskTemplate::Drbd;
    ctx.say(format!(" - INFO: Converting disk template from '{}' to '{}'", plan.old.template, plan.new.template))
        .await?;
    ctx.say("* creating new disks...").await?;
    for (disk, nodes) in &to {
        for node in nodes {
            let step = format!("disk-{}-{node}", disk.index);
            let call = Call::CreateDisk(disk.clone());
            ctx.step(&step, || async { ctx.call(*node, call).await.map(drop) }).await?;
        }
    }
    if mirrored {
        ctx.commit("swap", vec![plan.swap(&plan.new, Provision::Converting(ctx.job()))]).await?;
    }
    let run = attachment::own(ctx, "host-own", id).await?;
    ctx.step("host-attach", || async { attachment::attach(ctx, id, Some(run)).await.map(drop) }).await?;
    for ((from, _), (to, _)) in from.iter().zip(&to) {
        ctx.say(format!("* copying disk/{}...", from.index)).await?;
        let step = format!("copy-{}", from.index);
        let node = find_id(&ctx.state(), id)?.primary;
        let call = Call::CopyDisk { from: Box::new(from.clone()), to: Box::new(to.clone()), run };
        ctx.step(&step, || async {
            attachment::check_still(ctx, id, Some(run))?;
            ctx.call_within(node, call, COPY).await.map(drop)
        })
        .await?;
    }
    ctx.step("host-detach", || async {
        // The copy is complete only if what it had to write was written in its run.
        attachment::check_still(ctx, id, Some(run))?;
        attachment::detach(ctx, id, Some(run), true).await
    })
    .await?;
    let disown = Command::Disown { instance: id, run, want: None };
    // Mirrored disks stay: the instance has them already.
    let complete = match mirrored {
        true => {
            let change = InstanceChange { provision: Some(Provision::Ready), ..InstanceChange::default() };
            Command::ModifyInstance { instance: id, change: Box::new(change) }
        }
        false => plan.swap(&plan.new, Provision::Ready),
    };
    ctx.commit("done", vec![disown, complete]).await?;
    ctx.say("* removing old disks...").await?;
    ctx.step("removed", || remove(ctx, from)).await
}

/// Removes disks that the cluster does not count on any more. A node that can't be asked keeps them; that is not worth a
/// failure.
async fn remove(ctx: &Context, disks: Vec<(DiskRef, Vec<NodeId>)>) -> Result<(), Halt> {
    for (disk, nodes) in disks {
        for node in nodes {
            match ctx.call(node, Call::RemoveDisk(disk.clone())).await {
                Err(Halt::Failed(failure)) => {
                    let name = ctx.state().node_name(node);
                    let text = format!("Could not remove disk {} on node '{name}': {}", disk.index, failure.text);
                    ctx.warn(text).await?;
                }
                outcome => {
                    outcome?;
                }
            }
        }
    }
    Ok(())
}

/// The instance has its old disks again, and no others.
async fn undo(ctx: &Context, plan: &Plan) -> Result<(), Halt> {
    let state = ctx.state();
    let instance = find_id(&state, plan.id)?;
    let new = plan.disks(&state, &plan.new)?;
    let mut commands = Vec::new();
    if let Some(run) = instance.run {
        match attachment::detach(ctx, plan.id, Some(run), true).await {
            Ok(()) => commands.extend(attachment::disown(ctx, plan.id, run)),
            Err(Halt::Failed(failure)) => {
                ctx.warn(format!("Could not detach the disks of '{}': {}", instance.name, failure.text)).await?;
                // Of new disks nobody misses anything. Old ones stay with the node that may still be using them.
                if plan.new.template == DiskTemplate::Drbd {
                    commands.extend(attachment::disown(ctx, plan.id, run));
                }
            }
            Err(halt) => return Err(halt),
        }
    }
    if matches!(instance.provision, Provision::Converting(_)) {
        commands.push(plan.swap(&plan.old, Provision::Ready));
    }
    ctx.commit("undo", commands).await?;
    remove(ctx, new).await
}
