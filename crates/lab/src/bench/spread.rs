//! How figures of many runs lie: the middle, what nearly all keep to, and the worst.

use serde::Serialize;

/// What many runs have measured of one thing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Spread {
    pub median: f64,
    /// 95th percentile by nearest rank: at least 95 of 100 samples are not above it.
    pub p95: f64,
    pub max: f64,
    /// In the order of the runs.
    pub samples: Vec<f64>,
}

impl Spread {
    /// Of samples; `None` where there is none.
    pub fn of(samples: Vec<f64>) -> Option<Spread> {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let max = *sorted.last()?;
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
        let rank = (sorted.len() * 95).div_ceil(100);
        Some(Spread { median, p95: sorted[rank - 1], max, samples })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest() {
        let of = |samples: Vec<f64>| Spread::of(samples).map(|it| (it.median, it.p95, it.max));
        assert_eq!(of(vec![]), None);
        assert_eq!(of(vec![7.0]), Some((7.0, 7.0, 7.0)));
        assert_eq!(of(vec![3.0, 1.0, 2.0]), Some((2.0, 3.0, 3.0)));
        // Of twenty the nineteenth, of twenty-one the twentieth.
        let down_from = |count: u32| (1..=count).rev().map(f64::from).collect::<Vec<_>>();
        assert_eq!(of(down_from(20)), Some((10.5, 19.0, 20.0)));
        assert_eq!(of(down_from(21)), Some((11.0, 20.0, 21.0)));
        assert_eq!(of(down_from(100)), Some((50.5, 95.0, 100.0)));
    }
}
