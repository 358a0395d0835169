//! The end of the story: what the thesis measured, did by hand or had to leave out, beside what was measured here.

use std::fmt::Write as _;

use serde::Serialize;

use super::report::{Figures, Report, figure};

/// Something that the thesis did, or wished for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row<'a> {
    pub what: &'static str,
    /// How it was there, and where that is said.
    pub thesis: &'static str,
    /// The step that shows it here.
    pub step: &'static str,
    /// What was measured in that step; `None`: it failed.
    pub here: Option<&'a Figures>,
}

/// What, how in the thesis, the step that shows it here.
const STORY: [(&str, &str, &str); 10] = [
    ("One instance moves while it runs", "about 38 s, about 4 pings lost (figure 17, section 6)", "migrate"),
    (
        "A whole node is emptied on purpose",
        "about four minutes, the instances down meanwhile (section 5.4)",
        "node-failover",
    ),
    ("The master's role moves on purpose", "by hand: gnt-cluster masterfailover (figure 21)", "master-failover"),
    ("A node is switched off and on", "by hand (figure 22)", "node-restart"),
    (
        "The node with the instances dies, which is the master too",
        "no automatic failover (section 6): all is down until somebody types (figures 23 and 24)",
        "automatic-failover",
    ),
    (
        "It comes back",
        "it still takes itself for the master; by hand: masterfailover, redist-conf (figure 28)",
        "rejoin",
    ),
    ("A node with an instance is cut off, and lives", "not tested (section 6)", "partition"),
    ("The same with the master", "not tested (section 6)", "partition-master"),
    ("Only the replication network is cut", "not tested (section 6)", "replication-cut"),
    (
        "Two nodes without a witness: the master dies",
        "by hand: masterfailover --no-voting, then gnt-node failover --ignore-consistency (figures 25 to 27)",
        "no-voting",
    ),
];

/// In which order figures are told; the others follow in that of their names.
const ORDER: [&str; 15] = [
    "ms",
    "total_ms",
    "stopped_ms",
    "declared_ms",
    "promoted_ms",
    "qemu_started_ms",
    "first_ping_ms",
    "first_answer_ms",
    "recovered_ms",
    "failover_ms",
    "healed_ms",
    "joined_ms",
    "in_sync_ms",
    "acked",
    "lost",
];

/// The rows, as far as the demo has come to such a step.
pub(super) fn rows(report: &Report) -> Vec<Row<'_>> {
    let row = |(what, thesis, step)| Row { what, thesis, step, here: report.figures_of(step) };
    STORY.into_iter().filter(|(_, _, step)| report.has(step)).map(row).collect()
}

fn here(row: &Row<'_>) -> String {
    let Some(figures) = row.here else { return "failed".to_owned() };
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
        report.step("rejoin", false, Duration::from_secs(60), Figures::new());
        let told = text(&report);
        let wanted = "here:   declared 1.51 s, promoted 1.57 s, qemu started 1.82 s, first ping 5.01 s, first answer 5.23 s, \
                      acked 412, lost 0";
        assert!(told.contains(wanted) && told.contains("no automatic failover"), "{told}");
        assert!(told.contains("masterfailover, redist-conf") && told.contains("here:   failed"), "{told}");
        assert!(!told.contains("38 s"), "a step that the demo does not have is not spoken of: {told}");
        assert_eq!(markdown(&report).lines().count(), 4 + 2);
    }
}
