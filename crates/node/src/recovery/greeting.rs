//! Which incarnation of the cluster a member belongs to, and how that of another stands to it.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use model::{ForkPoint, Incarnation, NodeId, State};
use rpc::{Client, Lane};
use serde::{Deserialize, Serialize};

use crate::member::Member;

/// Path of the greeting on the port between nodes. It belongs to no incarnation: that is what it is about.
pub const PATH: &str = "/greet";

/// What members tell one another. The answer to a greeting is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The incarnation that the member speaks in.
    pub incarnation: Incarnation,
    /// The earlier ones that it comes from, and where they ended; `None` while it has no state yet.
    pub lineage: Option<Vec<(Incarnation, ForkPoint)>>,
    /// Whether it knows who leads.
    #[serde(default)]
    pub is_led: bool,
}

/// How another member's incarnation stands to one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same, or one of the two has none yet.
    Same,
    /// The other comes from before: it is to yield.
    Older,
    /// The other went on without this one, whose log ends for it at this point.
    Newer(ForkPoint),
    /// Neither comes from the other: the cluster was recovered by force twice, apart.
    Fork,
}

impl Greeting {
    /// Of a member with this state.
    pub fn new(incarnation: Incarnation, state: &State) -> Self {
        Self { incarnation, lineage: state.cluster.is_some().then(|| state.lineage.clone()), is_led: false }
    }

    /// Of this member.
    pub fn of(member: &Member) -> Self {
        let is_led = member.log.status().leader.is_some();
        Self { is_led, ..Self::new(member.log.incarnation(), &member.state()) }
    }

    /// How the other's incarnation stands to this one.
    pub fn relation(&self, other: &Greeting) -> Relation {
        let (Some(lineage), Some(of_other)) = (&self.lineage, &other.lineage) else { return Relation::Same };
        if self.incarnation == other.incarnation {
            return Relation::Same;
        }
        let end = of_other.iter().find(|(incarnation, _)| *incarnation == self.incarnation);
        match end {
            Some((_, fork_point)) => Relation::Newer(*fork_point),
            None if lineage.iter().any(|(incarnation, _)| *incarnation == other.incarnation) => Relation::Older,
            None => Relation::Fork,
        }
    }
}

/// Greets a node; `None` if it does not answer.
pub async fn greet(
    client: &Client,
    own: &Greeting,
    node: NodeId,
    address: SocketAddr,
    within: Duration,
) -> Option<Greeting> {
    client.call_json(node.0, address, Lane::Control, PATH, own, within).await.ok()
}

/// Greets the other members at their addresses in the network for management, all at once; returns the answers. One that
/// settles the matter is enough: of a newer incarnation, or of this one with somebody who leads.
pub async fn greet_all(
    client: &Client,
    own: &Greeting,
    state: &State,
    me: NodeId,
    port: u16,
    within: Duration,
) -> Vec<(NodeId, Greeting)> {
    let others = state.nodes.iter().filter(|(id, _)| **id != me);
    let asked = others.map(|(id, node)| async move {
        let address = SocketAddr::from((node.primary_ip, port));
        greet(client, own, *id, address, within).await.map(|answer| (*id, answer))
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut answers = Vec::new();
    while let Some(answer) = asked.next().await {
        let Some((node, theirs)) = answer else { continue };
        let settled = match own.relation(&theirs) {
            Relation::Newer(_) => true,
            Relation::Same => theirs.is_led && theirs.lineage.is_some(),
            Relation::Older | Relation::Fork => false,
        };
        answers.push((node, theirs));
        if settled {
            break;
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use model::Uuid;

    use super::*;

    fn inc(n: u64, id: u128) -> Incarnation {
        Incarnation { n, id: Uuid::from_u128(id) }
    }

    /// A member of the last of these incarnations, which follow one another.
    fn member(history: &[(u64, u128)]) -> Greeting {
        let (last, before) = history.split_last().unwrap();
        let ended = |at: &(u64, u128)| (inc(at.0, at.1), ForkPoint { term: at.0, index: 10 * at.0 });
        Greeting { incarnation: inc(last.0, last.1), lineage: Some(before.iter().map(ended).collect()), is_led: true }
    }

    #[test]
    fn who_comes_from_before_yields_and_who_went_apart_is_told_from_that() {
        let (first, second, third) = (member(&[(1, 1)]), member(&[(1, 1), (2, 2)]), member(&[(1, 1), (2, 2), (3, 3)]));
        assert_eq!(first.relation(&first), Relation::Same);
        assert_eq!(first.relation(&second), Relation::Newer(ForkPoint { term: 1, index: 10 }));
        assert_eq!(first.relation(&third), Relation::Newer(ForkPoint { term: 1, index: 10 }));
        assert_eq!(second.relation(&third), Relation::Newer(ForkPoint { term: 2, index: 20 }));
        assert_eq!(third.relation(&first), Relation::Older);
        // Recovered twice, apart: with the same number, and also where one of them has a higher one by now.
        let apart = member(&[(1, 1), (2, 99)]);
        assert_eq!(second.relation(&apart), Relation::Fork);
        assert_eq!(apart.relation(&second), Relation::Fork);
        assert_eq!(third.relation(&apart), Relation::Fork);
        assert_eq!(apart.relation(&third), Relation::Fork);
    }

    #[test]
    fn who_has_no_state_yet_contradicts_nobody() {
        let second = member(&[(1, 1), (2, 2)]);
        for fresh in [Incarnation::default(), inc(2, 2), inc(3, 3)] {
            let fresh = Greeting::new(fresh, &State::default());
            assert_eq!(fresh.relation(&second), Relation::Same);
            assert_eq!(second.relation(&fresh), Relation::Same);
        }
    }
}
