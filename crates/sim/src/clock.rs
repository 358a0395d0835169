//! The clocks of nodes: they began at different times, and their rates err.

use ha::Now;

use crate::rng::Rng;

/// A node's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it showed at the beginning, microseconds.
    offset: u64,
    /// How much it goes too fast, parts per million; within `rho`.
    ppm: i64,
}

impl Clock {
    /// Any.
    pub fn new(rng: &mut Rng, rho_ppm: u32) -> Self {
        let rho = u64::from(rho_ppm);
        Self { offset: rng.range(5_000_000, 900_000_000), ppm: rng.range(0, 2 * rho + 1) as i64 - i64::from(rho_ppm) }
    }

    /// What it shows at a time of the simulation (microseconds).
    pub fn show(&self, at: u64) -> Now {
        let gone = (i128::from(at) * i128::from(1_000_000 + self.ppm) / 1_000_000) as u64;
        Now::from_micros(self.offset + gone)
    }

    /// How long it takes from `at` on until it shows `then`, microseconds; rounded up.
    pub fn until(&self, then: Now, at: u64) -> u64 {
        let left = then.saturating_sub(self.show(at)).as_micros() as i128;
        (left * 1_000_000 / i128::from(1_000_000 + self.ppm)) as u64 + 1
    }
}
