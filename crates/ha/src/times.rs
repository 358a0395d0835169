//! All times of leases and takeover, in one place (protocol, section 8).

use std::time::Duration;

/// The times by which a cluster lives. The same on all of its nodes: they are made from [`model::Cluster::lease_ms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// `h`: how often a guard asks for its node's lease.
    pub renew: Duration,
    /// `L`: how long a lease lasts, from the moment at which it was asked for.
    pub lease: Duration,
    /// `g`: what the guard may take to stop its guests after the lease has ended.
    pub slack: Duration,
    /// `rho`: by how much the rate of a clock may err, in parts per million.
    pub rho_ppm: u32,
    /// `E`: the longest that an election takes once nobody leads.
    pub election: Duration,
    /// `t_daemon`: how long a guard goes on asking for leases without a sign of life of its daemon (L9).
    pub daemon_silence: Duration,
    /// After this long without a sign of life a daemon is ended and started anew: earlier than [`Self::daemon_silence`],
    /// so that the new one is there before the lease suffers.
    pub daemon_hung: Duration,
    /// How long the daemon waits for a sign of life of its guard before it replaces it and stops guests itself (L9).
    pub guard_silence: Duration,
    /// `t_park`: how long stopped guests are kept for a lease that may come back (L8).
    pub park: Duration,
}

impl Times {
    /// The times for leases of that length; the protocol's figures for the usual [`model::LEASE_MS`].
    pub fn for_lease(lease: Duration) -> Self {
        Self {
            renew: Duration::from_millis(150),
            lease,
            slack: Duration::from_millis(150),
            rho_ppm: 500,
            election: Duration::from_millis(650),
            daemon_silence: Duration::from_secs(5),
            daemon_hung: Duration::from_secs(3),
            guard_silence: Duration::from_millis(600),
            park: Duration::from_secs(60),
        }
    }

    /// `W`: after how long since the last confirmed round that could have granted it a lease a node is surely stopped:
    /// `L·(1+rho)/(1−rho) + g`.
    pub fn wait(&self) -> Duration {
        let rho = f64::from(self.rho_ppm) / 1e6;
        self.lease.mul_f64((1.0 + rho) / (1.0 - rho)) + self.slack
    }
}

impl Default for Times {
    fn default() -> Self {
        Self::for_lease(Duration::from_millis(u64::from(model::LEASE_MS)))
    }
}
