//! `cardume ha`: automatic failover. What would happen, how long it would take, whether it is on.

use clap::{Args, Parser, Subcommand};
use opcodes::wire::{InstanceBound, NodeLease, NodePlan, Request};
use serde::Serialize;

use crate::error::Error;
use crate::session::Session;
use crate::usage;

const BOUND_HELP: &str = "\
An instance is without service at the most for

  max(election, wait) + commit + promote + start

  election  until the others have a new master, if the node that died was the master
  wait      until the dead node's lease has surely ended, and with it everything that it ran; side by side with the election
  commit    until the decision is in the log of a majority
  promote   until the disks are served on the other node
  start     until the hypervisor runs there; then its guest boots

After a takeover the last three are what was measured ('measured'), before one what is allowed for them. Instances that
nobody takes over by itself are listed with the reason.

EXAMPLES
  cardume ha bound
  cardume ha bound --json";

const PLAN_HELP: &str = "\
Nothing is changed: it is what would be decided if the node died this moment. Instances are placed in the order of their
back-end parameter ha_priority (the higher first), then by name, on nodes whose copies of all of their disks are in sync and
that have memory left; drained nodes only if there is nobody else, offline ones never.

EXAMPLES
  cardume ha plan
  cardume ha plan node01
  gnt-instance modify -B ha_priority=9 vm1";

const STATUS_HELP: &str = "\
Each node has a lease: the right to run its instances for the next moment. The master renews it all the time, as long as a
majority of the voting nodes follows it. A node whose lease ends stops its guests by itself, so when it has ended for long
enough the node can be declared dead, reachable or not. A node is armed when it does that, and its disks know it.";

const ARM_HELP: &str = "\
It is on in a new cluster. Nodes are armed in the background as soon as they can be: three nodes have to vote (a witness is
the third of two), and the node's guard has to get leases. 'cardume ha status' shows it.";

const DISARM_HELP: &str = "\
From then on no node is declared dead without an operator, and no guest is stopped because its node lost its lease: instances
of a node that dies stay down until 'gnt-node failover' moves them. All mirrored disks go into manual mode.";

#[derive(Parser)]
pub(crate) struct Tool {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Tells for each instance how long it is without service if its node dies
    #[command(after_help = BOUND_HELP)]
    Bound(ListArgs),
    /// Tells for each node where its instances go if it dies now, and what would fit nowhere
    #[command(after_help = PLAN_HELP)]
    Plan(PlanArgs),
    /// Shows the nodes' leases, and which nodes may be declared dead without an operator
    #[command(after_help = STATUS_HELP)]
    Status(ListArgs),
    /// Switches automatic failover on
    #[command(after_help = ARM_HELP)]
    Arm(ListArgs),
    /// Switches automatic failover off
    #[command(after_help = DISARM_HELP)]
    Disarm(ListArgs),
}

#[derive(Args)]
pub(crate) struct ListArgs {
    #[arg(hide = true)]
    args: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct PlanArgs {
    /// Only these nodes
    #[arg(value_name = "NODE")]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Command {
    pub(crate) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        match self {
            Command::Bound(args) => {
                usage::none("bound", &args.args)?;
                let bounds: Vec<InstanceBound> = session.client.call(&Request::HaBound).await?;
                show(session, args.json, &bounds, "There are no instances.", |bounds| {
                    bounds.iter().map(bound).collect()
                })
            }
            Command::Plan(args) => {
                let plans: Vec<NodePlan> = session.client.call(&Request::HaPlan { names: args.names }).await?;
                show(session, args.json, &plans, "No node may run instances.", |plans| plans.iter().map(plan).collect())
            }
            Command::Status(args) => {
                usage::none("status", &args.args)?;
                status(session, args.json).await
            }
            Command::Arm(args) => {
                usage::none("arm", &args.args)?;
                session.client.call::<()>(&Request::HaSwitch { on: true }).await?;
                if !args.json {
                    session.say("Automatic failover is on. Nodes are armed as soon as they can be:")?;
                }
                status(session, args.json).await
            }
            Command::Disarm(args) => {
                usage::none("disarm", &args.args)?;
                session.client.call::<()>(&Request::HaSwitch { on: false }).await?;
                if !args.json {
                    session.say(
                        "Automatic failover is off: the instances of a node that dies stay down until they are moved.",
                    )?;
                }
                status(session, args.json).await
            }
        }
    }
}

async fn status(session: &mut Session, json: bool) -> Result<u8, Error> {
    let leases: Vec<NodeLease> = session.client.call(&Request::HaStatus).await?;
    show(session, json, &leases, "There are no nodes.", table)
}

fn show<T: Serialize>(
    session: &mut Session,
    json: bool,
    rows: &[T],
    none: &str,
    text: impl Fn(&[T]) -> String,
) -> Result<u8, Error> {
    if json {
        let shown = serde_json::to_value(rows).map_err(|error| Error::message(error.to_string()))?;
        session.json(&shown)?;
    } else if rows.is_empty() {
        session.say(none)?;
    } else {
        session.print(&text(rows))?;
    }
    Ok(0)
}

/// `vm1 on node01: at the most 2.05 s`, and how that comes about.
fn bound(bound: &InstanceBound) -> String {
    let InstanceBound { instance, node, terms, total_ms, note } = bound;
    let note = note.as_deref().unwrap_or_default();
    let Some(total) = total_ms else {
        return format!("{instance} on {node}: not taken over by itself: {note}\n");
    };
    let named = |(name, ms): &(String, u64)| format!("{name} {ms}");
    let (first, rest) = terms.split_at(terms.len().min(2));
    let first: Vec<String> = first.iter().map(named).collect();
    let sum: Vec<String> =
        std::iter::once(format!("max({})", first.join(", "))).chain(rest.iter().map(named)).collect();
    let seconds = *total as f64 / 1000.0;
    let mut text = format!("{instance} on {node}: at the most {seconds:.2} s\n  {} = {total} ms\n", sum.join(" + "));
    if !note.is_empty() {
        text += &format!("  ({note})\n");
    }
    text
}

/// What happens if a node dies, a line for each of its instances.
fn plan(plan: &NodePlan) -> String {
    let mut text = match (&plan.note, plan.automatic) {
        (_, true) => format!("If {} dies, by itself:\n", plan.node),
        (Some(why), false) => format!("If {} dies, nothing happens by itself: {why}\n", plan.node),
        (None, false) => format!("If {} dies, nothing happens by itself\n", plan.node),
    };
    if plan.instances.is_empty() {
        text += "  it has no instances to run\n";
    }
    let width = |column: fn(&opcodes::wire::PlannedMove) -> String| {
        plan.instances.iter().map(|it| column(it).chars().count()).max().unwrap_or(0)
    };
    let memory = |it: &opcodes::wire::PlannedMove| format!("{} MiB", it.memory_mib);
    let to = |it: &opcodes::wire::PlannedMove| it.to.as_ref().map_or_else(|| "stays".into(), |to| format!("-> {to}"));
    let (name_width, memory_width, to_width) = (width(|it| it.instance.clone()), width(memory), width(to));
    for it in &plan.instances {
        let line = format!(
            "  {:name_width$}  {:>memory_width$}  {:to_width$}  {}\n",
            it.instance,
            memory(it),
            to(it),
            it.reason
        );
        text += &line;
    }
    text
}

fn table(leases: &[NodeLease]) -> String {
    let row = |lease: &NodeLease| {
        let newest = match (lease.dead, lease.age_ms) {
            (true, _) => "dead".to_owned(),
            (false, Some(age)) => format!("{:.2} s ago", age as f64 / 1000.0),
            (false, None) => "none".to_owned(),
        };
        let armed = if lease.armed { "yes" } else { "no" };
        [lease.node.clone(), lease.life.to_string(), newest, armed.into(), lease.note.clone().unwrap_or_default()]
    };
    let head = ["Node", "Life", "Newest lease", "Armed", "Why not"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(leases.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let line = |[node, life, newest, armed, why]: &[String; 5]| {
        let [a, b, c, d] = widths;
        format!("{node:a$}  {life:>b$}  {newest:c$}  {armed:d$}  {why}").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
