//! Timings and sizes.

use std::time::Duration;

use openraft::SnapshotPolicy;

/// How consensus behaves on one member.
///
/// A follower starts an election when it has not heard of the leader for `lease` plus a random part of
/// `election_spread`: with the defaults 450 to 600 ms, which together with one round of votes stays within the election
/// bound E = 650 ms of the protocol's arithmetic. Within `lease` of the last contact it votes for nobody else, and a
/// leader that no majority has answered for that long takes no proposals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How often the leader calls each follower when there is nothing to replicate.
    pub heartbeat: Duration,
    /// How long a contact with the leader holds. At least two heartbeats, or one lost message unseats the leader.
    pub lease: Duration,
    /// Least of the random time that is added to `lease` before an election; the greatest is `lease` itself.
    pub election_spread: Duration,
    /// How long [`crate::Log::propose`] waits. After it the outcome is unknown.
    pub propose_timeout: Duration,
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, so that a follower that was away for a moment needs none.
    pub keep_entries: u64,
    /// Whether this member is a witness, which stands for election only after three times the usual silence (protocol,
    /// 8.7): it must be electable because it may hold the longest log, but anybody else is better.
    pub caretaker: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            lease: Duration::from_millis(300),
            election_spread: Duration::from_millis(150),
            propose_timeout: Duration::from_millis(1500),
            snapshot_every: 5000,
            keep_entries: 1000,
            caretaker: false,
        }
    }
}

impl Config {
    /// The longest silence after which a follower stands for election.
    pub fn election_max(&self) -> Duration {
        self.lease * 2
    }

    pub(crate) fn to_openraft(&self) -> Result<openraft::Config, openraft::ConfigError> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        openraft::Config {
            cluster_name: "cardume".into(),
            heartbeat_interval: millis(self.heartbeat),
            // openraft's lease is its greatest election timeout, and it adds a random one to it.
            election_timeout_min: millis(self.election_spread),
            election_timeout_max: millis(self.lease),
            // The whole state in one message: a few MB.
            install_snapshot_timeout: 10_000,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            replication_lag_threshold: self.snapshot_every.saturating_mul(2),
            max_in_snapshot_log_to_keep: self.keep_entries,
            enable_pre_vote: Some(true),
            // A caretaker's elections are timed by us: openraft would make its lease three times as long too, and then
            // it would refuse its vote to a better candidate for as long.
            enable_elect: !self.caretaker,
            // A leader that comes back is elected anew: fewer states to reason about.
            enable_leader_restore: Some(false),
            backoff: "50ms 100ms 200ms ...400ms".into(),
            ..openraft::Config::default()
        }
        .validate()
    }
}
