//! `cardume disk verify`, and `gnt-cluster verify-disks`.

use clap::Args;
use opcodes::Opcode;
use opcodes::disks::DiskReport;
use serde::Deserialize;
use serde_json::Value;

use super::status::reports;
use crate::error::Error;
use crate::options::JobOptions;
use crate::session::Session;
use crate::{follow, usage};

/// Most differing places that are named.
const NAMED: usize = 8;

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// Name of the instance
    #[arg(value_name = "INSTANCE")]
    args: Vec<String>,
    #[command(flatten)]
    job: JobOptions,
    /// Print JSON
    #[arg(long, conflicts_with_all = ["submit", "print_jobid"])]
    json: bool,
}

/// Result of `OP_INSTANCE_VERIFY_DISKS`.
#[derive(Deserialize)]
struct Compared {
    disks: Vec<Disk>,
}

#[derive(Deserialize)]
struct Disk {
    index: usize,
    /// Names of the nodes.
    replicas: Vec<String>,
    /// How many chunks were compared.
    chunks: u64,
    /// Those that differ.
    different: Vec<Value>,
}

impl VerifyArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [instance_name] = usage::exactly("verify", self.args)?;
        let op = Opcode::InstanceVerifyDisks { instance_name: instance_name.clone() };
        let result = if self.json {
            follow::quietly(session, op, &self.job).await?
        } else {
            follow::one(session, op, &self.job).await?
        };
        let Some(result) = result else { return Ok(0) };
        let compared: Compared = serde_json::from_value(result.clone()).map_err(|error| {
            Error::message(format!("The comparison's result is not understood ({error}): {result}"))
        })?;
        let mut differing = compared.disks.iter().filter(|disk| !disk.different.is_empty());
        if self.json {
            session.json(&result)?;
            return Ok(u8::from(differing.next().is_some()));
        }
        let lines: Vec<String> = differing.map(|disk| disk.line(&instance_name)).collect();
        for line in &lines {
            session.say(line)?;
        }
        if lines.is_empty() {
            session.say(format_args!("All replicas of the disks of {instance_name} are identical."))?;
        }
        Ok(u8::from(!lines.is_empty()))
    }
}

impl Disk {
    /// Says where the replicas differ.
    fn line(&self, instance: &str) -> String {
        let (replicas, count) = (self.replicas.join(" and "), self.different.len());
        let mut named: Vec<String> = self.different.iter().take(NAMED).map(opcodes::format::value).collect();
        if count > NAMED {
            named.push("...".to_owned());
        }
        let Self { index, chunks, .. } = self;
        format!("{instance} disk/{index}: {replicas} differ in {count} of {chunks} chunks: {}", named.join(", "))
    }
}

/// Says which mirrored disks have lost a replica, and what to do about each. Exit code 1 if there is one.
pub(crate) async fn all(session: &mut Session) -> Result<u8, Error> {
    let disks = reports(session, &[]).await?;
    let mut silent: Vec<(&str, &str)> = Vec::new();
    let mut degraded: Vec<&DiskReport> = Vec::new();
    for disk in &disks {
        let unknown = disk.replicas.iter().filter(|replica| replica.report.is_none());
        silent.extend(unknown.map(|replica| (replica.node.as_str(), replica.why.as_deref().unwrap_or("no answer"))));
        if is_degraded(disk) {
            degraded.push(disk);
        }
    }
    silent.sort_unstable();
    silent.dedup();
    if disks.iter().all(|disk| !is_degraded(disk)) && silent.is_empty() {
        session.say("No disks need to be activated.")?;
        return Ok(0);
    }
    for (node, why) in silent {
        session.say(format_args!("Error gathering data on node {node}: {why}"))?;
    }
    for disk in degraded {
        session.say(line(disk))?;
    }
    Ok(1)
}

/// Whether a replica lacks writes or can't be used.
fn is_degraded(disk: &DiskReport) -> bool {
    let has = |node: &str| disk.in_sync.iter().any(|member| member == node);
    disk.replicas
        .iter()
        .any(|replica| !has(&replica.node) || replica.report.as_ref().is_some_and(|report| report.failed.is_some()))
}

fn line(disk: &DiskReport) -> String {
    let name = format!("Instance {} disk/{}", disk.instance, disk.index);
    let missing: Vec<&str> = disk
        .replicas
        .iter()
        .filter(|replica| !disk.in_sync.contains(&replica.node))
        .map(|replica| replica.node.as_str())
        .collect();
    if let Some((node, why)) =
        disk.replicas.iter().find_map(|it| Some((&it.node, it.report.as_ref()?.failed.as_ref()?)))
    {
        let instance = &disk.instance;
        return format!(
            "{name}: the replica on {node} can't be used: {why}; 'gnt-instance replace-disks' gives {instance} another one"
        );
    }
    let missing = missing.join(", ");
    match &disk.primary {
        Some(_) => {
            format!("{name} is degraded: {missing} is not in sync; it is brought up to date as soon as it answers")
        }
        None => format!(
            "{name} is degraded: {missing} is not in sync; 'gnt-instance startup {0}' or 'gnt-instance activate-disks \
             --wait-for-sync {0}' brings it up to date",
            disk.instance
        ),
    }
}
