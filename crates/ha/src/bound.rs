//! The arithmetic of a takeover, per instance (section 9): `max(election, W) + commit + promote + start`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Times;

/// The terms of the sum, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// `E`: a new master is in office.
    pub election_ms: u64,
    /// `W`: the dead node's lease has surely ended. In parallel with the election.
    pub wait_ms: u64,
    /// The decision is in the log.
    pub commit_ms: u64,
    /// The disks are served on the other node.
    pub promote_ms: u64,
    /// The hypervisor runs there.
    pub start_ms: u64,
}

impl Bound {
    /// The sum.
    pub fn total(&self) -> Duration {
        Duration::from_millis(self.election_ms.max(self.wait_ms) + self.commit_ms + self.promote_ms + self.start_ms)
    }

    /// With these times, and what was measured or is allowed for the rest.
    pub fn new(times: &Times, commit: Duration, promote: Duration, start: Duration) -> Self {
        let ms = |duration: Duration| duration.as_millis() as u64;
        Self {
            election_ms: ms(times.election),
            wait_ms: ms(times.wait()),
            commit_ms: ms(commit),
            promote_ms: ms(promote),
            start_ms: ms(start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longer of election and wait counts: they run side by side.
    #[test]
    fn the_sum_has_the_longer_of_what_runs_side_by_side() {
        let ms = Duration::from_millis;
        for (lease, total) in [(1300, 1451 + 5 + 50 + 300), (400, 650 + 5 + 50 + 300)] {
            let bound = Bound::new(&Times::for_lease(ms(lease)), ms(5), ms(50), ms(300));
            assert_eq!(bound.total(), ms(total), "{bound:?}");
        }
    }
}
