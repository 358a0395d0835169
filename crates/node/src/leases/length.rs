//! Whether leases are long enough for this cluster (protocol, section 8).

use std::time::Duration;

use tokio::time::Instant;

use crate::office::Office;

/// How long a majority may take to confirm the master. If it is longer, there are other worries.
const BARRIER: Duration = Duration::from_secs(2);

impl Office {
    /// Measures the way to a majority and back, and says so in the log if a lease can end before a new master renews it.
    pub(crate) async fn check_leases(&self) {
        let begun = Instant::now();
        if self.log().read_barrier(BARRIER).await.is_err() {
            return;
        }
        let (times, rtt) = (self.desk.times(), begun.elapsed());
        let (wait, commit) = (times.wait(), self.commit);
        tracing::info!(lease = ?times.lease, ?wait, election = ?times.election, ?commit, ?rtt, "leases");
        if let Err(short) = times.check(commit, rtt) {
            tracing::warn!("{short}");
        }
    }
}
