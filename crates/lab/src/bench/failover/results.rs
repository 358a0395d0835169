//! What was measured, beside what was promised and what others need.

use std::fmt::Write as _;

use serde::Serialize;

use super::super::spread::Spread;
use super::super::table::columns;
use super::{Row, name};

/// What one run has measured, by name, in the order in which it happens. Those that end in `_ms` are milliseconds since the
/// fault.
pub(super) type Figures = Vec<(&'static str, f64)>;

/// What a row was promised to keep to.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Target {
    pub figure: &'static str,
    /// Milliseconds, as the worst.
    pub max: f64,
    /// Milliseconds, in the middle.
    pub median: f64,
}

/// What another system needs, and who says so. None of them runs in this lab.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Peer {
    pub name: &'static str,
    pub figure: &'static str,
    pub source: &'static str,
}

pub(super) const PEERS: [Peer; 4] = [
    Peer {
        name: "Proxmox VE HA",
        figure: "121 to 125 s until the guest is ordered to start, 163 to 181 s if the node was the manager's; about 2 minutes",
        source: "its own regression logs, src/test/*/log.expect of pve-ha-manager b71218f (simulated clock); its manual, ha-manager.adoc",
    },
    Peer {
        name: "OpenStack Masakari",
        figure: "at least 180 s by default",
        source: "its source, which waits that long before it does anything: conf/host.py of masakari ae98f25",
    },
    Peer {
        name: "VMware vSphere HA",
        figure: "about 25 to 33 s until the guest is ordered to start",
        source: "yellow-bricks.com, 'in a perfect world'",
    },
    Peer {
        name: "Ganeti 3.0.2",
        figure: "never by itself; 27 to 28 s of commands when somebody types them at once",
        source: "measured on 2026-11-23, on another machine of 2 cores, 4 nodes in namespaces, guests on TCG",
    },
];

/// All runs of a row.
#[derive(Debug, Default)]
pub(super) struct Results {
    samples: Vec<(&'static str, Vec<f64>)>,
}

impl Results {
    pub fn add(&mut self, figures: Figures) {
        for (name, value) in figures {
            match self.samples.iter_mut().find(|(other, _)| *other == name) {
                Some((_, samples)) => samples.push(value),
                None => self.samples.push((name, vec![value])),
            }
        }
    }

    /// Each figure, in the order in which it happens.
    pub fn spreads(&self) -> impl Iterator<Item = (&'static str, Spread)> {
        self.samples.iter().filter_map(|(name, samples)| Some((*name, Spread::of(samples.clone())?)))
    }
}

/// One run on one line.
pub(super) fn brief(figures: &Figures) -> String {
    let figures: Vec<String> = figures
        .iter()
        .map(|(name, value)| match name.strip_suffix("_ms") {
            Some(name) => format!("{} {value:.0} ms", words(name)),
            None => format!("{} {value}", words(name)),
        })
        .collect();
    figures.join(", ")
}

fn words(name: &str) -> String {
    name.replace('_', " ")
}

/// All rows, and below them what others need.
pub(super) fn table(rows: &[(Row, Results)]) -> String {
    let mut cells = vec![["What happens", "Measured", "Median", "p95", "Max", "Runs", "Target"].map(str::to_owned)];
    for (row, results) in rows {
        let target = row.target();
        let mut about = format!("{}: {}", name(*row), row.about());
        for (figure, spread) in results.spreads() {
            let (label, unit) = match figure.strip_suffix("_ms") {
                Some(figure) => (words(figure), " ms"),
                None => (words(figure), ""),
            };
            let number = |value: f64| format!("{value:.0}{unit}");
            let promised = (figure == target.figure).then(|| {
                let kept = if spread.median <= target.median && spread.max <= target.max { "kept" } else { "MISSED" };
                format!("median {:.0}, max {:.0}: {kept}", target.median, target.max)
            });
            cells.push([
                std::mem::take(&mut about),
                label,
                number(spread.median),
                number(spread.p95),
                number(spread.max),
                spread.samples.len().to_string(),
                promised.unwrap_or_default(),
            ]);
        }
    }
    let mut text = columns(&cells, 2..=5);
    text.push_str("\nUntil a guest of a dead node runs elsewhere, others need (published, not measured here unless that is said):\n");
    for peer in PEERS {
        let _ = writeln!(text, "  {}: {}\n      {}", peer.name, peer.figure, peer.source);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_judged_by_what_was_promised() {
        let results = |started: [f64; 3]| {
            let mut results = Results::default();
            for value in started {
                results.add(vec![("declared_ms", value - 200.0), ("qemu_started_ms", value), ("lost", 0.0)]);
            }
            results
        };
        let said =
            table(&[(Row::Node, results([1900.0, 1800.0, 4900.0])), (Row::Master, results([1900.0, 1800.0, 5100.0]))]);
        let line = |begin: &str, what: &str| {
            let mut lines = said.lines().skip_while(|line| !line.starts_with(begin));
            lines.find(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what} in\n{said}")).to_owned()
        };
        assert!(
            line("node:", "qemu started").ends_with("1900 ms  4900 ms  4900 ms     3  median 3000, max 5000: kept"),
            "{said}"
        );
        assert!(line("master:", "qemu started").ends_with("max 5000: MISSED"), "{said}");
        assert!(line("node:", "lost").ends_with("0        0        0     3"), "{said}");
        assert!(said.contains("Proxmox VE HA: 121 to 125 s"), "{said}");
    }

    #[test]
    fn a_run_is_one_line() {
        assert_eq!(brief(&vec![("first_ping_ms", 5012.4), ("lost", 0.0)]), "first ping 5012 ms, lost 0");
    }
}
