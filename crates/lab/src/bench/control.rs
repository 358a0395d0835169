//! `cardume bench control`: what an administrator waits for, and what the daemons cost.

use std::io::Write;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use model::{Job, JobStatus};
use opcodes::Opcode;
use opcodes::op::TestDelay;
use opcodes::wire::{Request, Submit};
use serde_json::json;

use super::table::{Measure, PEER, Peer, table};
use super::{ControlArgs, Hypervisor};
use crate::probe::Continuity;
use crate::{Api, Config, Guests, Lab, Node, Part};

/// How often each thing is done.
const LISTS: usize = 40;
const JOBS: usize = 40;
const FAILOVERS: usize = 10;
/// How long the daemons are watched while nothing happens.
const IDLE: Duration = Duration::from_secs(20);
/// How long guests may take to boot and be idle.
const PATIENCE: Duration = Duration::from_secs(60);

const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn run(args: &ControlArgs) -> anyhow::Result<ExitCode> {
    let real = args.hypervisor == Hypervisor::Kvm;
    let mut config = Config { dir: args.dir.clone(), ..Config::default() };
    let mut parameters = String::new();
    if real {
        let guests = Guests::find().map_err(anyhow::Error::msg)?;
        config.daemon.extend(guests.daemon_options());
        parameters = guests.parameters();
    }
    let lab = Lab::up(config)?;
    let what = if real { "three real guests" } else { "three instances of the hypervisor 'fake'" };
    say(&format!("Measuring with two nodes, a witness and {what}."));
    let mut init = vec!["--enabled-hypervisors=kvm,fake", "--master-netdev=br0"];
    if real {
        init.extend(["-H", &parameters]);
    }
    lab.form(&init)?;
    instances(&lab, real)?;

    let mut measures = Vec::new();
    // First, while nothing has happened yet but what had to.
    measures.extend(idle(&lab)?);
    measures.push(lists(&lab)?);
    measures.extend(jobs(&lab)?);
    measures.push(failovers(&lab)?);
    measures.extend(memory(&lab)?);
    lab.down()?;

    say(&format!("\n{}\nGaneti: {PEER}.\n", table(&measures)));
    if let Some(path) = &args.json {
        let report = json!({
            "machine": crate::machine::describe(),
            "hypervisor": if real { "kvm" } else { "fake" },
            "peer": PEER,
            "measures": measures,
        });
        let text = serde_json::to_string_pretty(&report).context("can't write the results as JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Runs a command that has to succeed, and returns how long it took, in milliseconds. Entering the node's namespaces is
/// part of it.
fn timed(node: &Node, line: &str) -> anyhow::Result<f64> {
    let output = node.exec(line.split(' '))?;
    if !output.status.success() {
        bail!("'{line}' on {} failed: {}", node.name, output.stderr);
    }
    Ok(output.elapsed.as_secs_f64() * 1000.0)
}

fn instances(lab: &Lab, real: bool) -> anyhow::Result<()> {
    let node = lab.node("node01")?;
    for (name, host) in [("vm1", 10), ("vm2", 11), ("vm3", 12)] {
        let kind = if real {
            format!("-t file -s 1g -o busybox+default --net 0:ip=10.0.0.{host}")
        } else {
            "-t diskless -H fake -o none --no-install --no-nics".to_owned()
        };
        timed(&node, &format!("gnt-instance add {kind} -B memory=128 -n node01 {name}"))?;
    }
    for host in [10, 11, 12].into_iter().filter(|_| real) {
        // Booted, and no longer in the way of what is measured.
        Continuity::start(&lab.client()?, [10, 0, 0, host].into())?.wait(1, PATIENCE)?;
    }
    Ok(())
}

fn idle(lab: &Lab) -> anyhow::Result<Vec<Measure>> {
    let nodes = ["node01", "node02", "witness"].map(|name| lab.node(name));
    let [master, other, witness] = nodes;
    let nodes = [master?, other?, witness?];
    let cpu = || nodes.iter().map(|node| Ok(node.usage()?.cpu)).collect::<anyhow::Result<Vec<_>>>();
    thread::sleep(Duration::from_secs(2));
    let (begun, before) = (Instant::now(), cpu()?);
    thread::sleep(IDLE);
    let (took, after) = (begun.elapsed(), cpu()?);
    let share = |node: usize| vec![(after[node] - before[node]).as_secs_f64() / took.as_secs_f64() * 100.0];
    let peer = Some(Peer { value: 0.08, remark: "the most of a node without its 5-minute cron job, of all daemons" });
    Ok(vec![
        Measure::of("CPU when idle, master", "%", share(0), peer),
        Measure::of("CPU when idle, other node", "%", share(1), peer),
        Measure::of("CPU when idle, witness", "%", share(2), None),
    ])
}

fn lists(lab: &Lab) -> anyhow::Result<Measure> {
    let node = lab.node("node01")?;
    let samples = (0..LISTS).map(|_| timed(&node, "gnt-instance list")).collect::<anyhow::Result<_>>()?;
    let peer = Peer { value: 366.0, remark: "with 10 instances (0: 156 ms)" };
    Ok(Measure::of("gnt-instance list, 3 instances", "ms", samples, Some(peer)))
}

fn jobs(lab: &Lab) -> anyhow::Result<Vec<Measure>> {
    let node = lab.node("node01")?;
    let api = Api::of(&node)?;
    let through_api = (0..JOBS).map(|_| no_op(&api)).collect::<anyhow::Result<_>>()?;
    let typed = (0..JOBS).map(|_| timed(&node, "gnt-debug delay 0")).collect::<anyhow::Result<_>>()?;
    Ok(vec![
        Measure::of(
            "no-op job, submitted to success",
            "ms",
            through_api,
            Some(Peer { value: 940.0, remark: "of 1 ms, through luxi" }),
        ),
        Measure::of("gnt-debug delay 0", "ms", typed, Some(Peer { value: 940.0, remark: "gnt-debug delay 0.001" })),
    ])
}

/// A job that does nothing, from its submission to the news of its success, in milliseconds.
fn no_op(api: &Api) -> anyhow::Result<f64> {
    let delay = TestDelay { duration: 0.0, on_master: true, on_nodes: Vec::new(), repeat: 0, no_locks: false };
    let submit = Submit { ops: vec![Opcode::TestDelay(delay)], priority: 0, depends: Vec::new() };
    let begun = Instant::now();
    let id: model::JobId = api.call(&Request::Submit(submit))?;
    let mut status = Some(JobStatus::Queued);
    loop {
        let job: Job = api.call(&Request::Job { id, after: u64::MAX, status, wait: 20 })?;
        if job.status == JobStatus::Success {
            return Ok(begun.elapsed().as_secs_f64() * 1000.0);
        }
        if job.status.is_final() {
            bail!("job {id} ended as '{}'", job.status.word());
        }
        status = Some(job.status);
    }
}

fn failovers(lab: &Lab) -> anyhow::Result<Measure> {
    let mut samples = Vec::new();
    for name in ["node02", "node01"].into_iter().cycle().take(FAILOVERS) {
        samples.push(timed(&lab.node(name)?, "gnt-cluster master-failover")?);
        // All have to know before the next one.
        for node in ["node01", "node02", "witness"] {
            lab.wait_for_status(node, "the new master", PATIENCE, |status| status.master.as_deref() == Some(name))?;
        }
    }
    let peer = Peer { value: 16_650.0, remark: "4 live nodes" };
    Ok(Measure::of("planned gnt-cluster master-failover", "ms", samples, Some(peer)))
}

fn memory(lab: &Lab) -> anyhow::Result<Vec<Measure>> {
    let usage = |name: &str| anyhow::Ok(lab.node(name)?.usage()?);
    let (master, other, witness) = (usage("node01")?, usage("node02")?, usage("witness")?);
    let guard = lab.node("node01")?.usage_of(&Part::Guard)?;
    let peer = |value, remark| Some(Peer { value, remark });
    let mib = |name, bytes: u64, peer| Measure::of(name, "MiB", vec![bytes as f64 / MIB], peer);
    Ok(vec![
        mib("memory of daemon and guard (PSS), master", master.pss, peer(152.0, "of all daemons, fresh cluster")),
        mib("memory of daemon and guard (PSS), other node", other.pss, peer(47.0, "of all daemons, fresh cluster")),
        mib("memory of daemon and guard (PSS), witness", witness.pss, None),
        mib("memory of the guard alone (PSS), master", guard.pss, None),
        mib("memory of daemon and guard (RSS), master", master.rss, peer(208.0, "of all daemons, fresh cluster")),
        mib("memory of daemon and guard (RSS), other node", other.rss, peer(88.0, "of all daemons, fresh cluster")),
        mib("memory of daemon and guard (RSS), witness", witness.rss, None),
    ])
}
