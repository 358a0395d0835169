//! What the daemon tells its guard, as the state and the hypervisors have it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::{Life, State};

use super::wire::{ClusterAddress, Surroundings};
use crate::member::Member;

/// How often the hypervisors are looked at while the state stays as it is.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps the guard informed while this node is a member.
pub async fn attend(member: Arc<Member>) {
    let mut views = member.log.watch();
    member.agent.arming.read();
    loop {
        let state = Arc::clone(&views.borrow_and_update().state);
        let guard = &member.agent.guard;
        // Before its first entry the log knows of nobody.
        if let Some(identity) = identity(&state, &member) {
            guard.identify(Some(identity));
            guard.surround(surroundings(&state, member.config.node_port));
            member.agent.follow_arming(&state, member.id).await;
            member.agent.tell_runs(&state).await;
        }
        let changed = tokio::time::timeout(LOOK, views.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return;
        }
    }
}

/// As whom the lease is asked for: with the life of this boot, if there is one that was not declared dead.
fn identity(state: &State, member: &Member) -> Option<ha::guard::Identity> {
    let own = state.nodes.get(&member.id)?;
    let life = if own.boot == member.config.boot && !own.dead { own.life } else { Life(0) };
    Some(ha::guard::Identity { inc: state.incarnation, node: member.id, life })
}

fn surroundings(state: &State, port: u16) -> Surroundings {
    let masters = state.nodes.iter().filter(|(_, node)| node.may_be_master());
    Surroundings {
        nodes: masters.map(|(id, node)| (*id, SocketAddr::from((node.primary_ip, port)))).collect(),
        address: state.cluster.as_ref().map(|cluster| ClusterAddress {
            address: cluster.address,
            netmask: cluster.netmask,
            netdev: cluster.netdev.clone(),
        }),
    }
}
