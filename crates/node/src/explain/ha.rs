//! What would happen if a node died, how long it would take, and how leases are.

use std::collections::BTreeSet;
use std::time::Duration;

use ha::bound::Bound;
use ha::takeover::{Choice, rehearse};
use model::{AdminState, Happening, Instance, NodeId, Record, State};
use opcodes::Failure;
use opcodes::format::natural_cmp;
use opcodes::wire::{InstanceBound, NodeLease, NodePlan, PlannedMove};

use super::{Known, named};
use crate::failover::STRICT_VOTERS;

/// What the protocol allows for the parts of a takeover after the wait, where none was measured (its section 9).
const COMMIT: Duration = Duration::from_millis(50);
const PROMOTE: Duration = Duration::from_millis(50);
const START: Duration = Duration::from_millis(500);

/// How long the takeover of each instance takes at the most.
pub fn bounds(state: &State, known: &Known) -> Vec<InstanceBound> {
    let mut instances: Vec<&Instance> = state.instances.values().collect();
    instances.sort_by(|one, other| natural_cmp(&one.name, &other.name));
    instances.into_iter().map(|instance| bound(state, known, instance)).collect()
}

fn bound(state: &State, known: &Known, instance: &Instance) -> InstanceBound {
    let node = instance.owner.map_or(instance.primary, |owner| owner.node);
    let report = |terms: Vec<(&str, u64)>, total_ms, note| InstanceBound {
        instance: instance.name.clone(),
        node: state.node_name(node),
        terms: terms.into_iter().map(|(name, ms)| (name.to_owned(), ms)).collect(),
        total_ms,
        note,
    };
    let none = |why: String| report(Vec::new(), None, Some(why));
    if instance.want != AdminState::Up {
        return none("it is not to run".into());
    }
    if instance.owner.is_none_or(|owner| state.is_void(owner)) {
        return none(format!("it does not run; see 'cardume why {}'", instance.name));
    }
    let choices = rehearse(state, node, &known.rooms);
    match choices.into_iter().find(|choice| choice.instance == instance.id).map(|choice| choice.to) {
        Some(Ok(_)) => {}
        Some(Err(why)) => return none(why),
        None => return none("a job works on it".into()),
    }
    let bound = Bound::new(&known.times, COMMIT, PROMOTE, START);
    let head = [("election", bound.election_ms), ("wait", bound.wait_ms)];
    let takeovers = measured(state, instance);
    let Some(slowest) = takeovers.iter().max() else {
        let parts = [("commit", bound.commit_ms), ("promote", bound.promote_ms), ("start", bound.start_ms)];
        let terms = head.into_iter().chain(parts).collect();
        let note = "no takeover of it was measured yet: commit, promotion and start are what is allowed for them";
        return report(terms, Some(bound.total().as_millis() as u64), Some(note.into()));
    };
    let rest = slowest.as_millis() as u64;
    let times = if takeovers.len() == 1 {
        "in one takeover".into()
    } else {
        format!("in {} takeovers, the slowest", takeovers.len())
    };
    let note = format!("commit, promotion and start as they were measured {times}");
    let terms = head.into_iter().chain([("measured", rest)]).collect();
    report(terms, Some(bound.election_ms.max(bound.wait_ms) + rest), Some(note))
}

/// How long each takeover took that the history has of an instance: from the decision to the start.
fn measured(state: &State, instance: &Instance) -> Vec<Duration> {
    let mut begun = None;
    let mut all = Vec::new();
    for Record { at, what, .. } in state.history.iter() {
        match what {
            Happening::TakenOver { instance: id, from, to, .. } if *id == instance.id && from != to => {
                begun = Some(*at)
            }
            Happening::Started { instance: id, .. } if *id == instance.id => {
                all.extend(begun.take().map(|begun| Duration::from_micros(at.0.saturating_sub(begun.0))));
            }
            _ => {}
        }
    }
    all
}

/// What happens if one of these nodes dies now; without names, any that may run instances.
///
/// # Errors
/// A name that no node has.
pub fn plans(state: &State, known: &Known, names: &[String]) -> Result<Vec<NodePlan>, Failure> {
    let mut nodes: Vec<NodeId> = if names.is_empty() {
        state.nodes.iter().filter(|(_, node)| node.vm_capable).map(|(id, _)| *id).collect()
    } else {
        let find = |name: &String| state.node_by_name(name).ok_or_else(|| Failure::unknown("Node", name));
        names.iter().map(|name| find(name).map(|(id, _)| id)).collect::<Result<_, _>>()?
    };
    if names.is_empty() {
        nodes.sort_by(|one, other| natural_cmp(&state.node_name(*one), &state.node_name(*other)));
    }
    Ok(nodes.into_iter().map(|id| plan_of(state, known, id)).collect())
}

fn plan_of(state: &State, known: &Known, id: NodeId) -> NodePlan {
    let note = why_not(state, known, id);
    let planned = |Choice { instance, to }: Choice| {
        let instance = state.instances.get(&instance)?;
        let (to, reason) = match to {
            Ok((to, reason)) => (Some(state.node_name(to)), reason),
            Err(reason) => (None, reason),
        };
        Some(PlannedMove { instance: instance.name.clone(), to, memory_mib: state.memory_mib(instance), reason })
    };
    let instances = rehearse(state, id, &known.rooms).into_iter().filter_map(planned).collect();
    NodePlan { node: state.node_name(id), automatic: note.is_none(), note, instances }
}

/// Why nothing happens by itself when a node dies: one sentence, without a full stop.
fn why_not(state: &State, known: &Known, id: NodeId) -> Option<String> {
    let node = state.nodes.get(&id)?;
    if node.dead {
        return Some("it is dead already".into());
    }
    if state.live(id).is_none() {
        return Some("it has not joined".into());
    }
    if !node.armed {
        return Some(format!("it is not armed: {}", known.why_unarmed(state, id)));
    }
    if known.voters.len() < STRICT_VOTERS {
        return Some(format!("{} nodes have to vote for that, and {} does", STRICT_VOTERS, known.voters.len()));
    }
    let others = known.voters.iter().copied().filter(|voter| *voter != id);
    let (left, silent): (BTreeSet<NodeId>, BTreeSet<NodeId>) = others.partition(|voter| known.is_served(*voter));
    (left.len() <= known.voters.len() / 2).then(|| {
        format!(
            "without it {} of {} votes are left, which is no majority: {} silent already",
            left.len(),
            known.voters.len(),
            match silent.len() {
                1 => format!("{} is", named(state, silent)),
                _ => format!("{} are", named(state, silent)),
            }
        )
    })
}

/// How the nodes' leases are.
pub fn status(state: &State, known: &Known) -> Vec<NodeLease> {
    let lease = |(id, node): (&NodeId, &model::Node)| NodeLease {
        node: node.name.clone(),
        life: node.life.0,
        dead: node.dead,
        armed: node.armed,
        age_ms: known.ages.get(id).map(|age| age.as_millis() as u64),
        note: match node.armed {
            true => None,
            false if !node.vm_capable => Some("it runs no instances".into()),
            false => Some(known.why_unarmed(state, *id)),
        },
    };
    let mut leases: Vec<NodeLease> = state.nodes.iter().map(lease).collect();
    leases.sort_by(|one, other| natural_cmp(&one.node, &other.node));
    leases
}
