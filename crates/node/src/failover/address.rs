//! Where the cluster's address is (protocol, 8.6).

use std::time::Duration;

use jobs::agent::Call;
use model::{Command, NodeId, State};
use opcodes::Failure;
use tokio::time::Instant;

use crate::config::{ADDRESS_LEASE, ADDRESS_TAKEOVER};
use crate::office::{Office, TICK};

/// How long the old master may take to drop the cluster's address.
const DROP_ADDRESS: Duration = Duration::from_secs(1);

impl Office {
    /// Keeps the cluster's address on this node for as long as a majority follows it.
    pub(crate) async fn keep_address(&self) {
        let mut views = self.log().watch();
        let since = Instant::now();
        loop {
            let state = self.member.state();
            if let Some(cluster) = &state.cluster
                && let Err(failure) = self.move_address(&state, cluster, since).await
            {
                tracing::warn!(failure = failure.text, "the cluster's address is not where it should be");
            }
            tokio::select! {
                _ = views.changed() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    async fn move_address(&self, state: &State, cluster: &model::Cluster, since: Instant) -> Result<(), Failure> {
        let keeper = &self.member.agent.address;
        let (address, netmask, netdev) = (cluster.address, cluster.netmask, &cluster.netdev);
        let own = self.member.id;
        let next = match state.address_owner {
            Some(owner) if owner == own => {
                let leaving = self.leaving.lock().await;
                let followed = self.log().quorum_age().is_some_and(|age| age < ADDRESS_LEASE);
                return match followed {
                    _ if *leaving => Ok(()),
                    true => {
                        let (guard, alone) = (&self.member.agent.guard, !self.member.agent.arming.is_strict());
                        keeper.up(address, netmask, netdev, self.term, guard, alone).await
                    }
                    false => keeper.down(address, netmask, netdev).await,
                };
            }
            None if *self.leaving.lock().await => return Ok(()),
            None => Some(own),
            Some(old) => {
                if !self.has_dropped_address(state, cluster, old, since).await {
                    return Ok(());
                }
                None
            }
        };
        // From one node to another by way of nobody.
        let mut commands = vec![Command::SetAddressOwner(next)];
        if next.is_none() && !*self.leaving.lock().await {
            commands.push(Command::SetAddressOwner(Some(own)));
        }
        match self.propose_now(commands).await {
            Ok(_) | Err(jobs::ProposeError::Interrupted) => Ok(()),
            Err(jobs::ProposeError::Rejected(rejection)) => Err(rejection.into()),
        }
    }

    /// Whether the node that held the address as an older master surely does not any more: its life is dead, or it says so
    /// itself, its daemon or its guard. One whose guard was never armed has dropped it by itself after a time.
    async fn has_dropped_address(&self, state: &State, cluster: &model::Cluster, old: NodeId, since: Instant) -> bool {
        let gone = |state: &State| state.nodes.get(&old).is_none_or(|node| node.dead);
        if gone(state) || self.desk.without_address(old) >= self.term {
            return true;
        }
        let call =
            Call::AddressDown { address: cluster.address, netmask: cluster.netmask, netdev: cluster.netdev.clone() };
        let mut views = self.log().watch();
        let dropped = tokio::select! {
            answer = self.ask(old, call, DROP_ADDRESS) => answer.is_ok(),
            // It is declared dead while it is asked.
            dead = views.wait_for(|view| gone(&view.state)) => dead.is_ok(),
        };
        let armed = state.nodes.get(&old).is_some_and(|node| node.armed);
        dropped || !armed && since.elapsed() >= ADDRESS_TAKEOVER
    }
}
