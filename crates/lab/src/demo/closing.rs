//! The end of the story: what the thesis measured, did by hand or had to leave out, beside what was measured here.

use std::fmt::Write as _;

use serde::Serialize;

use super::report::{Figures, Report, figure};

/// Something that the thesis did, or wished for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub what: &'static str,
    /// How it was there, and where that is said.
    pub thesis: &'static str,
    /// The step that shows it here.
    pub step: &'static str,
    /// What was measured in that step; `None`: it failed.
    pub here: Option<Figures>,
}

/// A row before the demo is played.
struct Entry {
    what: &'static str,
    thesis: &'static str,
    step: &'static str,
    /// With what the names of its figures begin, where the step has several rows. An underscore at the end is left out of
    /// the names.
    figures: &'static [&'static str],
}

const STORY: [Entry; 10] = [
    Entry {
        what: "One instance moves while it runs",
        thesis: "about 38 s, about 4 pings lost (figure 17, section 6)",
        step: "migrate",
        figures: &[],
    },
    Entry {
        what: "A whole node is emptied on purpose",
        thesis: "about four minutes, the instances down meanwhile (section 5.4)",
        step: "node-failover",
        figures: &[],
    },
    Entry {
        what: "The master's role moves on purpose",
        thesis: "by hand: gnt-cluster masterfailover (figure 21)",
        step: "master-failover",
        figures: &[],
    },
    Entry { what: "A node is switched off and on", thesis: "by hand (figure 22)", step: "node-restart", figures: &[] },
    Entry {
        what: "The node with the instances dies, which is the master too",
        thesis: "no automatic failover (section 6): all is down until somebody types (figures 23 and 24)",
        step: "automatic-failover",
        figures: &[],
    },
    Entry {
        what: "It comes back",
        thesis: "it still takes itself for the master; by hand: masterfailover, redist-conf (figure 28)",
        step: "rejoin",
        figures: &[],
    },
    Entry {
        what: "A node with an instance is cut off, and lives",
        thesis: "not tested (section 6)",
        step: "partition",
        figures: &["guest_node_", "acked", "lost"],
    },
    Entry {
        what: "The same with the master",
        thesis: "not tested (section 6)",
        step: "partition",
        figures: &["master_"],
    },
    Entry {
        what: "Only the replication network is cut",
        thesis: "not tested (section 6)",
        step: "partition",
        figures: &["replication_"],
    },
    Entry {
        what: "Two nodes without a witness: the master dies",
        thesis: "by hand: masterfailover --no-voting, then gnt-node failover --ignore-consistency (figures 25 to 27)",
        step: "no-voting",
        figures: &[],
    },
];

impl Entry {
    /// The figures of the step that belong here.
    fn pick(&self, figures: &Figures) -> Figures {
        if self.figures.is_empty() {
            return figures.clone();
        }
        let name = |name: &'static str| {
            let begin = self.figures.iter().find(|begin| name.starts_with(**begin))?;
            Some(if begin.ends_with('_') { &name[begin.len()..] } else { name })
        };
        figures.iter().filter_map(|(full, value)| Some((name(full)?, *value))).collect()
    }
}

/// In which order figures are told; the others follow in that of their names.
const ORDER: [&str; 10] = [
    "total_ms",
    "stopped_ms",
    "declared_ms",
    "promoted_ms",
    "qemu_started_ms",
    "first_ping_ms",
    "first_answer_ms",
    "healed_ms",
    "acked",
    "lost",
];

/// The rows, as far as the demo has come to such a step.
pub(super) fn rows(report: &Report) -> Vec<Row> {
    let row = |entry: &Entry| Row {
        what: entry.what,
        thesis: entry.thesis,
        step: entry.step,
        here: report.figures_of(entry.step).map(|figures| entry.pick(figures)),
    };
    STORY.iter().filter(|entry| report.has(entry.step)).map(row).collect()
}

fn here(row: &Row) -> String {
    let Some(figures) = &row.here else { return "failed".to_owned() };
    let place = |name: &str| ORDER.iter().position(|other| *other == name).unwrap_or(ORDER.len());
    let mut figures: Vec<(&str, f64)> = figures.iter().map(|(name, value)| (*name, *value)).collect();
    figures.sort_by_key(|(name, _)| place(name));
    let figures: Vec<String> = figures.into_iter().map(|(name, value)| figure(name, value)).collect();
    if figures.is_empty() { "done".to_owned() } else { figures.join(", ") }
}

/// For a terminal, however narrow it is.
pub(super) fn text(report: &Report) -> String {
    let mut text =
        "What the thesis measured, did by hand, or had to leave out; and what was measured here\n".to_owned();
    for row in rows(report) {
        let _ = write!(text, "\n  {}\n    thesis: {}\n    here:   {}\n", row.what, row.thesis, here(&row));
    }
    text
}

/// For the report.
pub(super) fn markdown(report: &Report) -> String {
    let mut text = "## Beside the thesis\n\n| | in the thesis | here | step |\n|---|---|---|---|\n".to_owned();
    for row in rows(report) {
        let _ = writeln!(text, "| {} | {} | {} | {} |", row.what, row.thesis, here(&row), row.step);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_thesis_stands_beside_what_was_measured() {
        let mut report = Report::new();
        let figures = Figures::from([
            ("acked", 412.0),
            ("declared_ms", 1510.0),
            ("first_answer_ms", 5230.0),
            ("first_ping_ms", 5010.0),
            ("lost", 0.0),
            ("promoted_ms", 1570.0),
            ("qemu_started_ms", 1820.0),
        ]);
        report.step("automatic-failover", true, Duration::from_secs(8), figures);
        let cut = Figures::from([("guest_node_stopped_ms", 1290.0), ("lost", 0.0), ("master_stopped_ms", 1310.0)]);
        report.step("partition", true, Duration::from_secs(8), cut);
        report.step("rejoin", false, Duration::from_secs(60), Figures::new());
        let told = text(&report);
        let wanted = "here:   declared 1.51 s, promoted 1.57 s, qemu started 1.82 s, first ping 5.01 s, first answer 5.23 s, \
                      acked 412, lost 0";
        assert!(told.contains(wanted) && told.contains("no automatic failover"), "{told}");
        assert!(told.contains("masterfailover, redist-conf") && told.contains("here:   failed"), "{told}");
        assert!(!told.contains("38 s"), "a step that the demo does not have is not spoken of: {told}");
        assert!(
            told.contains("here:   stopped 1.29 s, lost 0\n") && told.contains("here:   stopped 1.31 s\n"),
            "{told}"
        );
        assert_eq!(markdown(&report).lines().count(), 4 + 5);
    }
}
