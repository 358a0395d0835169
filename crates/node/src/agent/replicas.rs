//! What this node says of its replicas of mirrored disks.

use mirror::keeper::{PeerStatus, ReplicaStatus};
use model::{DiskId, State};
use opcodes::Failure;
use opcodes::disks::{DiskCounters, PeerReport, ReplicaReport, ResyncReport};

use super::Agent;

impl Agent {
    /// Of these disks, or of all if none is named.
    pub(super) async fn replicas(&self, disks: &[DiskId]) -> Result<Vec<ReplicaReport>, Failure> {
        let keeper = self.keeper()?;
        let mut found = keeper.status().await;
        found.retain(|status| disks.is_empty() || disks.contains(&status.disk));
        let state = keeper.state();
        Ok(found.into_iter().map(|status| report(&state, status)).collect())
    }
}

fn report(state: &State, status: ReplicaStatus) -> ReplicaReport {
    let counters = status.counters;
    ReplicaReport {
        disk: status.disk,
        replica: status.replica,
        role: status.role.to_string(),
        state: status.state.to_string(),
        peers: status.peers.iter().map(|peer| peer_report(state, peer)).collect(),
        serving: status.serving,
        counters: DiskCounters {
            sent: counters.sent,
            received: counters.received,
            written: counters.written,
            read: counters.read,
        },
        pending: status.pending,
        waiting: status.waiting,
        holding: status.holding,
        suspended: status.suspended,
        failed: status.failed,
        held: status.held,
    }
}

fn peer_report(state: &State, peer: &PeerStatus) -> PeerReport {
    PeerReport {
        node: state.node_name(peer.node),
        connection: peer.connection.to_string(),
        role: peer.role.to_string(),
        state: peer.disk.to_string(),
        out_of_sync: peer.out_of_sync,
        resync: peer.resync.map(|resync| ResyncReport {
            total: resync.total,
            done: resync.done,
            rate: resync.rate,
            eta_s: resync.total.saturating_sub(resync.done).checked_div(resync.rate),
        }),
        refused: peer.refused.clone(),
    }
}
