//! The clock of leases.

use ha::Now;
use nix::time::{ClockId, clock_gettime};

/// Time since this machine's boot, sleep included. The same for all processes of the machine.
pub fn boottime() -> Now {
    // The clock is there since Linux 2.6.39, and no argument can be wrong.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Now::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_and_counts_from_the_boot() {
        let first = boottime();
        assert!(first > Now::ZERO);
        assert!(boottime() >= first);
    }
}
