//! The master's side of a return: whoever of the state is in no log of this incarnation is taken into it.

use std::sync::Arc;
use std::time::Duration;

use consensus::NodeInfo;
use model::{Life, NodeId};

use super::greeting::{Greeting, Relation, greet};
use crate::member::Member;

/// How often it is looked for them.
const PERIOD: Duration = Duration::from_secs(1);
/// How long one may take to answer.
const ANSWER: Duration = Duration::from_millis(700);
/// How long one may take to get the log.
const ADMISSION: Duration = Duration::from_secs(20);

/// Takes members back into the log that forced recovery has left out of it, as soon as they are ready for it. To be
/// dropped with the office.
pub async fn welcome(member: &Arc<Member>) {
    loop {
        for node in absent(member) {
            invite(member, node).await;
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Nodes of the state that are not in the log, but were once: one that is only being added has no life yet, and its job
/// brings it in.
fn absent(member: &Member) -> Vec<NodeId> {
    let (state, status) = (member.state(), member.log.status());
    let absent = state.nodes.iter().filter(|(id, node)| node.life != Life(0) && !status.members.contains_key(id));
    absent.map(|(id, _)| *id).collect()
}

async fn invite(member: &Arc<Member>, node: NodeId) {
    let Some(address) = member.address_of(node) else { return };
    let own = Greeting::of(member);
    let Some(theirs) = greet(&member.client, &own, node, address, ANSWER).await else { return };
    let name = member.state().node_name(node);
    match own.relation(&theirs) {
        // It has emptied its store for this incarnation.
        Relation::Same if theirs.incarnation == own.incarnation => {
            let info = NodeInfo { address: address.to_string() };
            match member.log.add_learner(node, info, ADMISSION).await {
                Ok(()) => tracing::info!(name, "is back in the log"),
                Err(error) => tracing::info!(%error, name, "is not back in the log yet"),
            }
        }
        Relation::Same => {}
        Relation::Older => tracing::debug!(name, "is back, and has not given up its own incarnation yet"),
        Relation::Newer(_) | Relation::Fork => {
            tracing::warn!(name, incarnation = theirs.incarnation.n, "follows another incarnation of the cluster");
        }
    }
}
