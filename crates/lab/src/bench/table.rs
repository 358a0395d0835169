//! Results, and the peer that they are shown beside.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use serde::Serialize;

/// Who is compared with, where and when that was measured: Ganeti can't run beside Cardume in this lab.
pub(super) const PEER: &str = "Ganeti 3.0.2 (Debian 12), recorded on 2026-11-23 on another machine of 2 cores, 4 nodes in \
                               namespaces, guests on TCG; not run here";

/// A figure of the peer, and in what its measurement differs from ours.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Peer {
    pub value: f64,
    pub remark: &'static str,
}

/// One thing that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Measure {
    pub name: &'static str,
    pub unit: &'static str,
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub samples: usize,
    pub peer: Option<Peer>,
    /// How many times as much the peer takes.
    pub ratio: Option<f64>,
}

impl Measure {
    /// Of samples, of which there is at least one.
    pub fn of(name: &'static str, unit: &'static str, mut samples: Vec<f64>, peer: Option<Peer>) -> Measure {
        samples.sort_by(f64::total_cmp);
        let at = |place: usize| samples.get(place).copied().unwrap_or(f64::NAN);
        let half = samples.len() / 2;
        let median =
            if samples.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.saturating_sub(1)), at(half)) };
        let most = at(samples.len().saturating_sub(1));
        let ratio = peer.filter(|_| median > 0.0).map(|peer| peer.value / median);
        Measure { name, unit, median, least: at(0), most, samples: samples.len(), peer, ratio }
    }
}

/// All results as a table.
pub(super) fn table(measures: &[Measure]) -> String {
    let heading = ["Measured", "Median", "Least", "Most", "Samples", "Ganeti", "Ratio", "Ganeti's figure is"];
    let row = |m: &Measure| {
        let with_unit = |value: f64| format!("{} {}", number(value), m.unit);
        [
            m.name.to_owned(),
            with_unit(m.median),
            with_unit(m.least),
            with_unit(m.most),
            m.samples.to_string(),
            m.peer.map_or("-".to_owned(), |peer| with_unit(peer.value)),
            m.ratio.map_or("-".to_owned(), |ratio| format!("{}x", number(ratio))),
            m.peer.map_or("", |peer| peer.remark).to_owned(),
        ]
    };
    let rows: Vec<[String; 8]> = std::iter::once(heading.map(str::to_owned)).chain(measures.iter().map(row)).collect();
    columns(&rows, 1..=6)
}

/// Rows of text as a table. Columns with `numbers` go to the right.
pub(super) fn columns<const N: usize>(rows: &[[String; N]], numbers: RangeInclusive<usize>) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            let _ = if numbers.contains(&column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Three digits, or as many as it takes.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measure_is_the_middle_of_its_samples() {
        let peer = Peer { value: 60.0, remark: "" };
        let odd = Measure::of("x", "ms", vec![30.0, 10.0, 20.0], Some(peer));
        assert_eq!((odd.median, odd.least, odd.most, odd.samples, odd.ratio), (20.0, 10.0, 30.0, 3, Some(3.0)));
        assert_eq!(Measure::of("x", "ms", vec![4.0, 1.0, 2.0, 3.0], None).median, 2.5);
        assert_eq!(Measure::of("x", "%", vec![0.0], Some(peer)).ratio, None);
    }

    #[test]
    fn the_table_names_what_it_compares_with() {
        let measures = [
            Measure::of("list", "ms", vec![10.0], Some(Peer { value: 366.0, remark: "with 10 instances" })),
            Measure::of("alone", "MiB", vec![123.4], None),
        ];
        let table = table(&measures);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].starts_with("list") && lines[1].ends_with("366 ms  36.6x  with 10 instances"), "{table}");
        assert!(lines[2].contains("123 MiB") && lines[2].ends_with('-'), "{table}");
    }
}
