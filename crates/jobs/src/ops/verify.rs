//! `OP_CLUSTER_VERIFY`: looks for what is wrong, and says what it looked at. Takes no locks while nodes are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Applied, Command, DiskTemplate, Instance, JobId, NewJob, NodeId, Provision, State, params};
use opcodes::disks::ReplicaReport;
use opcodes::op::{Verify, VerifyGroup};
use opcodes::{Failure, Opcode};
use serde_json::{Value, json};

use super::spec::disks;
use crate::agent::{Call, Facts, Problem, Reply, VerifyRequest};
use crate::context::{Context, Halt};
use crate::standing::standing_warning;
use crate::world::CallError;

/// How long a node may take to look at itself.
const LOOK: Duration = Duration::from_secs(20);
/// Clocks that differ by more are reported, seconds.
const CLOCK_SKEW: f64 = 150.0;

/// Submits one job for the configuration and one for each group.
pub async fn submit(ctx: &Context, op: Verify) -> Result<Value, Halt> {
    let job = |opcode: Opcode, depends: &[JobId]| {
        let summary = opcode.summary();
        let input = serde_json::to_value(opcode).map_err(|error| Failure::failed(error.to_string()))?;
        let user = ctx.state().jobs.get(&ctx.job()).map_or_else(String::new, |job| job.user.clone());
        let depends = depends.iter().map(|id| (*id, Vec::new())).collect();
        Ok::<_, Halt>(Command::SubmitJob(NewJob { ops: vec![(input, summary)], priority: 0, depends, user }))
    };
    let mut ids = queued(ctx.commit("config", vec![job(Opcode::ClusterVerifyConfig(op.clone()), &[])?]).await?);
    let state = ctx.state();
    let groups = state.groups.values().map(|group| {
        let options = op.clone();
        let opcode = Opcode::ClusterVerifyGroup(VerifyGroup { group_name: group.name.clone(), options });
        job(opcode, &ids)
    });
    let groups = groups.collect::<Result<Vec<_>, _>>()?;
    ids.extend(queued(ctx.commit("groups", groups).await?));
    let jobs: Vec<Value> = ids.into_iter().map(|id| json!([true, id])).collect();
    Ok(json!({ "jobs": jobs }))
}

fn queued(applied: Vec<Applied>) -> Vec<JobId> {
    let job = |applied| if let Applied::Job(id) = applied { Some(id) } else { None };
    applied.into_iter().filter_map(job).collect()
}

/// Writes findings into the job's log, and knows in the end whether all is well.
struct Report<'a> {
    ctx: &'a Context,
    options: Verify,
    errors: usize,
}

impl<'a> Report<'a> {
    fn new(ctx: &'a Context, options: Verify) -> Self {
        Self { ctx, options, errors: 0 }
    }

    async fn stage(&self, text: impl std::fmt::Display) -> Result<(), Halt> {
        self.ctx.say(format!("* {text}")).await
    }

    async fn problem(&mut self, problem: &Problem) -> Result<(), Halt> {
        let warning = problem.warning || self.options.ignore_errors.contains(&problem.code);
        let level = if warning { "WARNING" } else { "ERROR" };
        if !warning {
            self.errors += 1;
        }
        let Problem { code, kind, name, text, .. } = problem;
        let line = if self.options.error_codes {
            format!("  - {level}:{code}:{kind}:{name}:{text}")
        } else {
            format!("  - {level}: {kind} {name}: {text}")
        };
        self.ctx.say(line).await
    }

    async fn error(&mut self, code: &str, kind: &str, name: &str, text: String) -> Result<(), Halt> {
        let problem = Problem { code: code.into(), kind: kind.into(), name: name.into(), text, warning: false };
        self.problem(&problem).await
    }

    async fn notice(&self, text: impl std::fmt::Display) -> Result<(), Halt> {
        self.ctx.say(format!("  - NOTICE: {text}")).await
    }

    fn result(&self) -> Value {
        Value::Bool(self.errors == 0)
    }
}

/// Checks what is configured.
pub async fn config(ctx: &Context, op: Verify) -> Result<Value, Halt> {
    let mut report = Report::new(ctx, op);
    let state = ctx.state();
    let Some(cluster) = &state.cluster else {
        return Err(Failure::not_a_cluster().into());
    };
    report.stage("Verifying cluster config").await?;
    for instance in state.instances.values() {
        if !state.nodes.contains_key(&instance.primary) {
            let text = format!("instance {} has a primary node that does not exist", instance.name);
            report.error("ECLUSTERDANGLINGINST", "node", &state.node_name(instance.primary), text).await?;
        }
        if let Provision::Creating(job) | Provision::Converting(job) | Provision::Removing(job) = instance.provision
            && state.jobs.get(&job).is_none_or(|job| job.status.is_final())
        {
            let text = format!("is left half-made by job {job}");
            report.error("ECLUSTERCFG", "instance", &instance.name, text).await?;
        }
    }
    for text in ctx.world().conflicts() {
        report.error("ECLUSTERCFG", "cluster", &cluster.name, text).await?;
    }
    if let Some(why) = standing_warning(&state) {
        let text = format!("there is no automatic failover: {why}");
        let (code, kind, name) = ("ECLUSTERHA".into(), "cluster".into(), cluster.name.clone());
        report.problem(&Problem { code, kind, name, text, warning: true }).await?;
    }
    report.stage("Verifying cluster certificate files").await?;
    for text in ctx.world().check_certificates() {
        report.error("ECLUSTERCERT", "cluster", "", text).await?;
    }
    report.stage("Verifying hypervisor parameters").await?;
    let of_cluster = cluster.hvparams.iter().map(|(hypervisor, given)| (hypervisor, given, String::new()));
    let of_instances =
        state.instances.values().map(|instance| (&instance.hypervisor, &instance.hvparams, instance.name.clone()));
    for (hypervisor, given, name) in of_cluster.chain(of_instances) {
        let checked = params::check(params::hypervisor(hypervisor).unwrap_or(&[]), given);
        if let Err(error) = checked {
            let kind = if name.is_empty() { "cluster" } else { "instance" };
            report.error("ECLUSTERCFG", kind, &name, format!("hypervisor {hypervisor}: {error}")).await?;
        }
    }
    report.stage("Verifying all nodes belong to an existing group").await?;
    for node in state.nodes.values().filter(|node| !state.groups.contains_key(&node.group)) {
        report.error("ECLUSTERDANGLINGNODES", "node", &node.name, "is in a group that does not exist".into()).await?;
    }
    Ok(report.result())
}

/// Checks the nodes of a group and what runs on them.
pub async fn group(ctx: &Context, op: VerifyGroup) -> Result<Value, Halt> {
    let state = ctx.state();
    let group = state.groups.iter().find(|(_, group)| group.name == op.group_name).map(|(id, _)| *id);
    let group = group.ok_or_else(|| Failure::unknown("Group", &op.group_name))?;
    let mut report = Report::new(ctx, op.options);
    report.stage(format!("Verifying group '{}'", op.group_name)).await?;
    let members: Vec<NodeId> = state.nodes.iter().filter(|(_, node)| node.group == group).map(|(id, _)| *id).collect();
    report.stage(format!("Gathering data ({} nodes)", members.len())).await?;
    report.stage(format!("Gathering information about nodes ({} nodes)", members.len())).await?;
    let away = |id: &NodeId| state.nodes.get(id).is_none_or(|node| node.offline || node.dead);
    let online: Vec<NodeId> = members.iter().copied().filter(|id| !away(id)).collect();
    let facts = gather(&online, |id| facts(ctx, id)).await;
    // One that does not answer is not asked again and again: each time somebody would wait for it.
    let online: Vec<NodeId> =
        online.into_iter().filter(|id| !matches!(facts.get(id), Some(Err(CallError::Unreachable(_))))).collect();
    report.stage(format!("Gathering disk information ({} nodes)", members.len())).await?;
    let problems = gather(&online, |id| look(ctx, &state, &online, id)).await;
    let replicas = gather(&with_replicas(&state, &online), |id| replicas(ctx, id)).await;

    report.stage("Verifying configuration file consistency").await?;
    let index = ctx.world().applied_index();
    let behind = gather(&online, |id| ctx.call_once(id, Call::CaughtUp { index }, Duration::from_secs(5))).await;
    for (id, outcome) in &behind {
        if let Err(CallError::Failed(failure)) = outcome {
            let text = format!("its copy of the configuration is behind: {}", failure.text);
            report.error("ENODEFILECHECK", "node", &state.node_name(*id), text).await?;
        }
    }
    report.stage("Verifying node status").await?;
    node_status(&mut report, ctx, &state, &members, &facts, &problems).await?;
    report.stage("Verifying instance status").await?;
    instance_status(&mut report, &state, &members, &facts).await?;
    mirror_status(&mut report, &state, &members, &replicas).await?;
    report.stage("Verifying orphan volumes").await?;
    for problem in with_code(&problems, "ENODEORPHANLV") {
        report.problem(problem).await?;
    }
    report.stage("Verifying N+1 Memory redundancy").await?;
    report.stage("Other Notes").await?;
    notes(&report, &state, &members).await?;
    report.stage("Hooks Results").await?;
    Ok(report.result())
}

async fn gather<T, F>(nodes: &[NodeId], ask: impl Fn(NodeId) -> F) -> BTreeMap<NodeId, T>
where
    F: Future<Output = T>,
{
    futures::future::join_all(nodes.iter().map(|id| {
        let answer = ask(*id);
        async move { (*id, answer.await) }
    }))
    .await
    .into_iter()
    .collect()
}

async fn facts(ctx: &Context, id: NodeId) -> Result<Facts, CallError> {
    match ctx.call_once(id, Call::facts(&ctx.state()), LOOK).await? {
        Reply::Facts(facts) => Ok(*facts),
        _ => Err(CallError::Unreachable("unable to verify node: no data returned".into())),
    }
}

/// Those of the nodes that hold replicas of mirrored disks.
fn with_replicas(state: &State, nodes: &[NodeId]) -> Vec<NodeId> {
    let disks = state.instances.values().flat_map(|instance| &instance.disks);
    let replicas = disks.filter_map(|disk| disk.mirror.as_ref()).flat_map(|mirror| mirror.replicas.values());
    let holders: BTreeSet<NodeId> = replicas.map(|replica| replica.node).collect();
    nodes.iter().copied().filter(|node| holders.contains(node)).collect()
}

async fn replicas(ctx: &Context, id: NodeId) -> Result<Vec<ReplicaReport>, CallError> {
    match ctx.call_once(id, Call::Replicas { disks: Vec::new() }, LOOK).await? {
        Reply::Replicas(reports) => Ok(reports),
        _ => Err(CallError::Unreachable("no data returned".into())),
    }
}

async fn look(ctx: &Context, state: &State, peers: &[NodeId], id: NodeId) -> Result<Vec<Problem>, CallError> {
    let node = &state.nodes[&id];
    let mut request = VerifyRequest::default();
    if let (true, Some(cluster)) = (node.vm_capable, &state.cluster) {
        request.hypervisors.clone_from(&cluster.hypervisors);
        if cluster.disk_templates.contains(&DiskTemplate::File) {
            request.file_storage_dir.clone_from(&cluster.file_storage_dir);
        }
        let here = state.instances.values().filter(|it| it.primary == id || it.secondaries.contains(&id));
        let mut bridges = BTreeSet::from([cluster.netdev.clone()]);
        for instance in here {
            let links = instance.nics.iter().map(|nic| state.filled_nicparams(&nic.params));
            bridges.extend(links.filter_map(|nic| nic.get("link").map(ToString::to_string)));
            // Of mirrored disks their keepers are asked.
            if instance.provision == Provision::Ready && instance.disk_template != DiskTemplate::Drbd {
                request.disks.extend(disks(state, instance));
            }
        }
        request.bridges = bridges.into_iter().collect();
    }
    let peers = peers.iter().filter(|other| **other != id).filter_map(|other| state.nodes.get(other));
    request.peers = peers.map(|node| (node.name.clone(), node.primary_ip)).collect();
    match ctx.call_once(id, Call::Verify(Box::new(request)), LOOK).await? {
        Reply::Problems(mut problems) => {
            for problem in problems.iter_mut().filter(|problem| problem.kind == "node") {
                problem.name.clone_from(&node.name);
            }
            Ok(problems)
        }
        _ => Err(CallError::Unreachable("unable to verify node: no data returned".into())),
    }
}

fn with_code<'a>(
    problems: &'a BTreeMap<NodeId, Result<Vec<Problem>, CallError>>,
    code: &'a str,
) -> impl Iterator<Item = &'a Problem> {
    problems.values().flatten().flatten().filter(move |problem| problem.code == code)
}

async fn node_status(
    report: &mut Report<'_>,
    ctx: &Context,
    state: &State,
    members: &[NodeId],
    facts: &BTreeMap<NodeId, Result<Facts, CallError>>,
    problems: &BTreeMap<NodeId, Result<Vec<Problem>, CallError>>,
) -> Result<(), Halt> {
    for id in members {
        let name = state.node_name(*id);
        if report.options.verbose {
            let role = state.role(*id).map_or("unknown", |role| role.words());
            let text = match state.nodes[id].offline {
                true => format!("Skipping offline node {name}"),
                false => format!("Verifying node {name} ({role})"),
            };
            report.stage(text).await?;
        }
        match facts.get(id) {
            None if state.nodes[id].dead && !state.nodes[id].offline => {
                let text = "was declared dead, and has not come back since".to_owned();
                report.error("ENODERPC", "node", &name, text).await?;
            }
            None => {}
            Some(Err(error)) => {
                let why = match error {
                    CallError::Unreachable(why) => why.clone(),
                    CallError::Failed(failure) => failure.text.clone(),
                    CallError::Deposed => return Err(Halt::Interrupted),
                };
                report.error("ENODERPC", "node", &name, format!("while contacting node: {why}")).await?;
            }
            Some(Ok(facts)) => {
                let skew = (facts.time as f64 - ctx.now().0 as f64).abs() / 1e6;
                if skew > CLOCK_SKEW {
                    let text = format!("Node time diverges by at least {skew:.1}s from master node time");
                    report.error("ENODETIME", "node", &name, text).await?;
                }
            }
        }
        if let Some(Ok(problems)) = problems.get(id) {
            for problem in problems.iter().filter(|problem| problem.code != "ENODEORPHANLV") {
                report.problem(problem).await?;
            }
        }
    }
    Ok(())
}

async fn instance_status(
    report: &mut Report<'_>,
    state: &State,
    members: &[NodeId],
    facts: &BTreeMap<NodeId, Result<Facts, CallError>>,
) -> Result<(), Halt> {
    for instance in state.instances.values().filter(|instance| members.contains(&instance.primary)) {
        if report.options.verbose {
            report.stage(format!("Verifying instance {}", instance.name)).await?;
        }
        let node = state.node_name(instance.primary);
        let wanted = instance.want == model::AdminState::Up;
        match facts.get(&instance.primary) {
            None if wanted => {
                let dead = state.nodes.get(&instance.primary).is_some_and(|node| node.dead && !node.offline);
                let how = if dead { "dead" } else { "offline" };
                let text = format!("is marked as running and lives on {how} node {node}");
                report.error("EINSTANCEBADNODE", "instance", &instance.name, text).await?;
            }
            Some(Err(CallError::Unreachable(_))) if wanted => {
                let text = format!("is marked as running and lives on node {node}, which does not answer");
                report.error("EINSTANCEBADNODE", "instance", &instance.name, text).await?;
            }
            Some(Ok(facts)) => {
                let runs = facts.instances.iter().any(|live| Some(live.run) == instance.run);
                if wanted && !runs {
                    let text = format!("instance not running on its primary node {node}");
                    report.error("EINSTANCEDOWN", "instance", &instance.name, text).await?;
                }
            }
            _ => {}
        }
    }
    for (id, facts) in facts {
        for live in facts.iter().flat_map(|facts| &facts.instances) {
            let known = state.instances.values().find(|instance| instance.run == Some(live.run));
            let node = state.node_name(*id);
            match known {
                None => {
                    let text = format!("node is running unknown instance {}", live.instance);
                    report.error("ENODEORPHANINSTANCE", "node", &node, text).await?;
                }
                Some(instance) if instance.primary != *id => {
                    let text = format!("instance should not run on node {node}");
                    report.error("EINSTANCEWRONGNODE", "instance", &instance.name, text).await?;
                }
                Some(_) => {}
            }
        }
    }
    Ok(())
}

/// What is wrong with the replicas of mirrored disks.
async fn mirror_status(
    report: &mut Report<'_>,
    state: &State,
    members: &[NodeId],
    reports: &BTreeMap<NodeId, Result<Vec<ReplicaReport>, CallError>>,
) -> Result<(), Halt> {
    let here = |instance: &&Instance| {
        instance.disk_template == DiskTemplate::Drbd
            && instance.provision == Provision::Ready
            && members.contains(&instance.primary)
    };
    for instance in state.instances.values().filter(here) {
        let offline = instance.secondaries.iter().filter(|id| state.nodes.get(id).is_none_or(|node| node.offline));
        let offline: Vec<String> = offline.map(|id| state.node_name(*id)).collect();
        if !offline.is_empty() {
            let text = format!("instance has offline secondary node(s) {}", offline.join(", "));
            report.error("EINSTANCEBADNODE", "instance", &instance.name, text).await?;
        }
        let is_dead = |id: &&NodeId| state.nodes.get(id).is_some_and(|node| node.dead && !node.offline);
        let dead: Vec<String> = instance.secondaries.iter().filter(is_dead).map(|id| state.node_name(*id)).collect();
        if !dead.is_empty() {
            let text = format!("instance has dead secondary node(s) {}", dead.join(", "));
            report.error("EINSTANCEBADNODE", "instance", &instance.name, text).await?;
        }
        for (index, disk) in instance.disks.iter().enumerate() {
            for (rid, replica) in disk.mirror.iter().flat_map(|mirror| &mirror.replicas) {
                let Some(answer) = reports.get(&replica.node) else { continue };
                let found = match answer {
                    Ok(reports) => reports.iter().find(|it| it.disk == disk.id && it.replica == *rid),
                    // That the node does not answer is said of the node.
                    Err(CallError::Unreachable(_)) => continue,
                    Err(CallError::Deposed) => return Err(Halt::Interrupted),
                    Err(CallError::Failed(_)) => None,
                };
                let node = state.node_name(replica.node);
                for (text, warning) in replica_problems(index, &node, replica.member.is_some(), found) {
                    let (code, kind) = ("EINSTANCEFAULTYDISK".into(), "instance".into());
                    report.problem(&Problem { code, kind, name: instance.name.clone(), text, warning }).await?;
                }
            }
        }
    }
    Ok(())
}

/// What is wrong with one replica, and whether it is only worth a warning.
fn replica_problems(index: usize, node: &str, in_sync: bool, report: Option<&ReplicaReport>) -> Vec<(String, bool)> {
    let Some(report) = report else {
        return vec![(
            format!("couldn't retrieve status for disk/{index} on {node}: no such replica is open there"),
            false,
        )];
    };
    if let Some(why) = &report.failed {
        return vec![(format!("disk/{index} on {node} can't be used: {why}"), false)];
    }
    let mut problems = Vec::new();
    if !in_sync {
        // As in Ganeti: what is being mended is only warned of.
        let mending =
            report.peers.iter().any(|peer| peer.connection == "SyncTarget" || peer.connection == "SyncSource");
        problems.push((
            format!("disk/{index} on {node} is degraded; local disk state is '{}'", report.state.to_lowercase()),
            mending,
        ));
    }
    // Only a primary needs its peers.
    let served = report.peers.iter().filter(|_| report.role == "Primary");
    for peer in served.filter(|peer| !["Connected", "SyncSource", "SyncTarget"].contains(&peer.connection.as_str())) {
        let why = peer.refused.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        problems.push((
            format!("disk/{index} on {node} is not connected to {} ({}{why})", peer.node, peer.connection),
            false,
        ));
    }
    problems
}

async fn notes(report: &Report<'_>, state: &State, members: &[NodeId]) -> Result<(), Halt> {
    let single = state
        .instances
        .values()
        .filter(|instance| members.contains(&instance.primary) && instance.secondaries.is_empty())
        .count();
    if single > 0 {
        report.notice(format!("{single} non-redundant instance(s) found.")).await?;
    }
    let offline = members.iter().filter(|id| state.nodes[id].offline).count();
    if offline > 0 {
        report.notice(format!("{offline} offline node(s) found.")).await?;
    }
    let dead = members.iter().filter(|id| state.nodes[id].dead && !state.nodes[id].offline).count();
    if dead > 0 {
        report.notice(format!("{dead} dead node(s) found.")).await?;
    }
    let drained = members.iter().filter(|id| state.nodes[id].drained).count();
    if drained > 0 {
        report.notice(format!("{drained} drained node(s) found.")).await?;
    }
    Ok(())
}
