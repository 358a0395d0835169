//! What the nodes have room for: asked in the background, because nobody has the time when a node has died.

use std::time::Duration;

use ha::takeover::Room;
use jobs::agent::{Call, Reply};
use model::NodeId;

use super::lock;
use crate::office::Office;

/// How often the nodes are asked.
const EVERY: Duration = Duration::from_secs(5);
/// How long one may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

impl Office {
    /// Keeps account of it until it is dropped.
    pub(crate) async fn keep_rooms(&self) {
        loop {
            self.ask_for_rooms().await;
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn ask_for_rooms(&self) {
        let state = self.member.state();
        let nodes = state.nodes.iter().filter(|(_, node)| node.vm_capable && !node.offline && !node.dead);
        let asked = nodes.map(|(id, _)| self.room_on(*id, Call::facts(&state)));
        let rooms: Vec<(NodeId, Room)> = futures::future::join_all(asked).await.into_iter().flatten().collect();
        let mut known = lock(&self.failover.rooms);
        known.retain(|id, _| state.nodes.contains_key(id));
        known.extend(rooms);
    }

    async fn room_on(&self, node: NodeId, call: Call) -> Option<(NodeId, Room)> {
        match self.ask(node, call, ANSWER).await {
            Ok(Reply::Facts(facts)) => Some((node, Room { memory_mib: Some(facts.memory_free_mib) })),
            // What it had last is a better guess than nothing.
            _ => None,
        }
    }
}
