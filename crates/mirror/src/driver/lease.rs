//! The node's lease, as far as reads need it (protocol, R2).

use std::time::Duration;

use tokio::sync::watch;

/// Until when the node has a lease, and the clock that tells whether that is past.
#[derive(Clone, Debug)]
pub struct Lease {
    until: watch::Receiver<Duration>,
    now: fn() -> Duration,
}

impl Lease {
    /// One that ends at what `until` says by that clock, if it is not renewed before.
    pub fn new(until: watch::Receiver<Duration>, now: fn() -> Duration) -> Self {
        Self { until, now }
    }

    /// One that never ends.
    pub fn endless() -> Self {
        let (_, until) = watch::channel(Duration::MAX);
        Self { until, now: || Duration::ZERO }
    }

    /// Whether it holds now.
    pub fn holds(&self) -> bool {
        (self.now)() < *self.until.borrow()
    }

    /// Returns when it was renewed.
    pub(super) async fn renewed(&mut self) {
        if self.until.changed().await.is_err() {
            // Nobody renews it any more.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_the_clock_without_a_word() {
        assert!(Lease::endless().holds());
        let (until, watched) = watch::channel(Duration::from_secs(5));
        assert!(Lease::new(watched.clone(), || Duration::from_millis(4_999)).holds());
        let lease = Lease::new(watched, || Duration::from_secs(5));
        assert!(!lease.holds());
        until.send_replace(Duration::from_secs(6));
        assert!(lease.holds());
    }
}
