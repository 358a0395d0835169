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

    /// Whether a lease outlasts the death of a master: `L >= E + commit + 2·h + 2·RTT`. Otherwise it is safe still, but healthy
    /// guests pause until the new master is in office. `commit`: how long the log takes for one entry; `rtt`: from a
    /// master to a majority of the voters and back.
    ///
    /// # Errors
    /// [`ShortLease`], which says so with all terms.
    pub fn check(&self, commit: Duration, rtt: Duration) -> Result<(), ShortLease> {
        let needed = self.election + commit + 2 * self.renew + 2 * rtt;
        if self.lease >= needed {
            return Ok(());
        }
        let ms = |duration: Duration| duration.as_millis() as u64;
        Err(ShortLease {
            lease_ms: ms(self.lease),
            needed_ms: ms(needed),
            election_ms: ms(self.election),
            commit_ms: ms(commit),
            renewals_ms: ms(2 * self.renew),
            way_ms: ms(2 * rtt),
        })
    }
}

/// A lease may end before a new master is there to renew it. All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a lease of {lease_ms} ms can end before a new master renews it: that may take {needed_ms} ms ({election_ms} ms for \
     its election, {commit_ms} ms for a commit, {renewals_ms} ms for two renewals, {way_ms} ms on the way), and healthy \
     guests would pause when a master dies"
)]
pub struct ShortLease {
    /// The lease.
    pub lease_ms: u64,
    /// What it would have to be.
    pub needed_ms: u64,
    /// For an election.
    pub election_ms: u64,
    /// For a commit.
    pub commit_ms: u64,
    /// For two renewals.
    pub renewals_ms: u64,
    /// For two ways to a majority and back.
    pub way_ms: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self::for_lease(Duration::from_millis(u64::from(model::LEASE_MS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_node_is_surely_stopped_a_little_after_its_lease() {
        // 1300 ms * 1.0005 / 0.9995 + 150 ms
        assert_eq!(Times::default().wait().as_micros(), 1_451_300);
    }

    /// Each row: the lease, a commit, the way to a majority and back; whether the death of a master goes unnoticed.
    #[test]
    fn a_lease_outlasts_an_election() {
        for (lease, commit, rtt, enough) in [
            (1300, 50, 1, true),
            (1300, 348, 1, true),
            (1300, 349, 1, false),
            (1300, 50, 150, true),
            (1300, 50, 151, false),
            (950, 0, 0, true),
            (949, 0, 0, false),
        ] {
            let checked = Times::for_lease(ms(lease)).check(ms(commit), ms(rtt));
            assert_eq!(checked.is_ok(), enough, "{lease} {commit} {rtt}: {checked:?}");
        }
        assert_eq!(
            Times::for_lease(ms(1000)).check(ms(50), ms(10)).unwrap_err().to_string(),
            "a lease of 1000 ms can end before a new master renews it: that may take 1020 ms (650 ms for its election, 50 \
             ms for a commit, 300 ms for two renewals, 20 ms on the way), and healthy guests would pause when a master dies"
        );
    }
}
