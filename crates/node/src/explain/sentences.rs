//! What happened, in sentences with their evidence.

use std::time::Duration;

use model::{Evidence, Happening, Record, State};

use super::{named, seconds};

/// A record in one or two sentences. `before`: the records before it, oldest first.
pub fn sentence(state: &State, record: &Record, before: &[&Record]) -> String {
    let node = |id: &model::NodeId| state.node_name(*id);
    match &record.what {
        Happening::Office { node: id } => format!("{} took office as master (term {}).", node(id), record.term),
        Happening::NodeDead { node: id, evidence, .. } => {
            format!("{} was declared dead: {}.", node(id), reason(state, evidence))
        }
        Happening::NodeJoined { node: id, life, was_dead: true } => format!(
            "{} is back, in life {life}: it has ended what was given to others, and follows from now on.",
            node(id)
        ),
        Happening::NodeJoined { node: id, life, was_dead: false } => {
            format!("{} joined, in life {life}: its machine was booted.", node(id))
        }
        Happening::Armed { node: id, armed: true } => format!(
            "{} is armed: it stops its guests when its lease ends, so it may be declared dead without an operator.",
            node(id)
        ),
        Happening::Armed { node: id, armed: false } => {
            format!("{} is not armed any more: only an operator can say that it is dead.", node(id))
        }
        Happening::TakenOver { name, from, to, run, reason, .. } if from == to => {
            format!("{name} was given to {} again, in its new life (run {run}): {}", node(to), full(reason))
        }
        Happening::TakenOver { name, from, to, run, reason, .. } => {
            format!("{name} was taken over from {} by {} (run {run}): {}", node(from), node(to), full(reason))
        }
        Happening::NotTakenOver { name, reason, .. } => format!("{name} was not taken over: {}", full(reason)),
        Happening::Started { name, node: id, run, .. } => {
            format!("{name} runs on {} (run {run}){}.", node(id), since(record, before))
        }
        Happening::NotStarted { name, node: id, run, reason, .. } => {
            format!("{name} could not be started on {} (run {run}): {}", node(id), full(reason))
        }
        Happening::Crashed { name, node: id, run, how, decision, .. } => format!(
            "{name} ended on {} although it should run (run {run}): {} {}",
            node(id),
            full(how),
            capital(&full(decision))
        ),
        Happening::Moved { name, from, to, live: true, .. } => {
            format!("{name} moved from {} to {} while it ran.", node(from), node(to))
        }
        Happening::Moved { name, from, to, live: false, .. } => {
            format!("{name} was given to {} by a job; it was on {} before.", node(to), node(from))
        }
        Happening::Forced { name, from, to, .. } => {
            let before = from.map(|from| format!(", in place of {},", node(&from))).unwrap_or_default();
            format!(
                "An operator made {}{before} go on with its copy of the disks of {name}, whatever was known about it: what only \
                 other copies had is not in it. They are kept.",
                node(to)
            )
        }
        Happening::Outdated { name, index, nodes, .. } => format!(
            "disk/{index} of {name} went on without its copy on {}, which has not followed since.",
            named(state, nodes.iter().copied())
        ),
        Happening::InSync { name, index, node: id, .. } => {
            format!("The copy of disk/{index} of {name} on {} has all of its data again.", node(id))
        }
        Happening::Founded { node: id, off } => format!(
            "An operator made {} the master alone, without a majority ('gnt-cluster master-failover --no-voting'), and asserted \
             that {} {} off.",
            node(id),
            named(state, off.iter().copied()),
            if off.len() == 1 { "is" } else { "are" }
        ),
    }
}

fn reason(state: &State, evidence: &Evidence) -> String {
    match evidence {
        Evidence::LeaseEnded { silent_ms, wait_ms, of_older_master, voters } => {
            let s = |ms: &u64| seconds(Duration::from_millis(*ms));
            let older = if *of_older_master { ", counted from what the master before may have granted" } else { "" };
            let confirmed = match voters.is_empty() {
                true => String::new(),
                false => format!(", confirmed by {}", named(state, voters.iter().copied())),
            };
            format!(
                "no lease could have been granted to it for {} ({} are enough{older}){confirmed}",
                s(silent_ms),
                s(wait_ms)
            )
        }
        Evidence::NewBoot { boot } => format!("its machine was booted anew (boot {boot})"),
        Evidence::AssertedOff => "an operator asserted that it is off".into(),
    }
}

/// How long after its takeover, or its end, an instance was started.
fn since(record: &Record, before: &[&Record]) -> String {
    let Happening::Started { instance: id, .. } = record.what else { return String::new() };
    let cause = before.iter().rev().find_map(|earlier| match earlier.what {
        Happening::TakenOver { instance, .. } if instance == id => Some(Some((earlier.at, "it was taken over"))),
        Happening::Crashed { instance, .. } if instance == id => Some(Some((earlier.at, "its end was seen"))),
        Happening::Started { instance, .. } | Happening::Moved { instance, .. } if instance == id => Some(None),
        _ => None,
    });
    let Some(Some((at, what))) = cause else { return String::new() };
    let took = Duration::from_micros(record.at.0.saturating_sub(at.0));
    format!(", {} after {what}", seconds(took))
}

/// With a full stop, if it has none.
pub fn full(text: &str) -> String {
    let text = text.trim_end();
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
