//! What a run of the demo leaves behind: `report.json` for programs, `report.md` and a table for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

/// Measured figures by name; those that end in `_ms` are milliseconds.
pub(super) type Figures = BTreeMap<&'static str, f64>;

/// Where the thesis shows a step, and how long it took there, as far as its figure tells.
const THESIS: [(&str, &str); 14] = [
    ("init", "figure 9"),
    ("info", "figure 9"),
    ("verify", "figure 10: 3 s"),
    ("instance-add", "figure 11: 7 s, then 86 s to mirror the disk"),
    ("disk-status", "figure 12"),
    ("list", "figures 13, 14 and 18"),
    ("startup", "figure 14"),
    ("console", "figure 15"),
    ("migrate", "figures 17 and 19: 38 s, about 4 pings lost"),
    ("node-failover", "figure 20: about 4 minutes, down meanwhile"),
    ("master-failover", "figure 21"),
    ("node-restart", "figure 22"),
    ("node-add", "section 5.1"),
    ("shutdown", "section 5.4"),
];

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    ok: bool,
    seconds: f64,
    figures: Figures,
}

/// The whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    accelerator: String,
    machine: String,
    steps: Vec<Step>,
    #[serde(skip)]
    whole: Duration,
    #[serde(skip)]
    failure: Option<String>,
    #[serde(skip)]
    notes: Vec<String>,
}

impl Report {
    pub fn new() -> Report {
        Report {
            accelerator: "unknown".to_owned(),
            machine: crate::machine::describe(),
            steps: Vec::new(),
            whole: Duration::ZERO,
            failure: None,
            notes: Vec::new(),
        }
    }

    /// What runs the guests, as the nodes found out.
    pub fn set_accelerator(&mut self, accelerator: &str) {
        self.accelerator = accelerator.to_owned();
    }

    /// Something that a reader has to know.
    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// The outcome of a step. A step that is repeated replaces what was there.
    pub fn step(&mut self, name: &'static str, ok: bool, took: Duration, figures: Figures) {
        let step = Step { name, ok, seconds: round(took.as_secs_f64(), 1000.0), figures };
        match self.steps.iter_mut().find(|step| step.name == name) {
            Some(before) => *before = step,
            None => self.steps.push(step),
        }
    }

    /// How long it took altogether, and what ended it before its end.
    pub fn finish(&mut self, whole: Duration, failure: Option<&anyhow::Error>) {
        self.whole = whole;
        self.failure = failure.map(|error| format!("{error:#}"));
    }

    /// Writes `report.json` and `report.md` into a folder.
    pub fn write(&self, folder: &Path, transcript: &str) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self).context("can't write the report as JSON")? + "\n";
        for (name, text) in [("report.json", json), ("report.md", self.markdown(transcript))] {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(())
    }

    /// The closing table. `paint` colours a line of which it is told whether it is good.
    pub fn table(&self, paint: impl Fn(bool, String) -> String) -> String {
        let rows = self.rows();
        let width = |column: usize| rows.iter().map(|(_, row)| row[column].chars().count()).max().unwrap_or(0);
        let (name, time, figures) = (width(0), width(1), width(2));
        let mut table = String::new();
        for (ok, [a, b, c, d]) in &rows {
            let line = format!("{a:<name$}  {b:>time$}  {c:<figures$}  {d}");
            let _ = writeln!(table, "{}", paint(*ok, line.trim_end().to_owned()));
        }
        let _ = writeln!(
            table,
            "\nAll of it: {:.1} s; guests run on {}; {}",
            self.whole.as_secs_f64(),
            self.accelerator,
            self.machine
        );
        table
    }

    /// Heading and rows of the table.
    fn rows(&self) -> Vec<(bool, [String; 4])> {
        let heading = ["Step", "Time", "Measured", "In the thesis"].map(str::to_owned);
        let row = |step: &Step| {
            let figures: Vec<String> = step.figures.iter().map(|(name, value)| figure(name, *value)).collect();
            let thesis = THESIS.iter().find(|(name, _)| *name == step.name).map_or("", |(_, text)| text);
            let time = format!("{:.2} s", step.seconds);
            let name = if step.ok { step.name.to_owned() } else { format!("{} FAILED", step.name) };
            (step.ok, [name, time, figures.join(", "), thesis.to_owned()])
        };
        std::iter::once((true, heading)).chain(self.steps.iter().map(row)).collect()
    }

    fn markdown(&self, transcript: &str) -> String {
        let mut text = "# The demo\n\n".to_owned();
        let _ = writeln!(text, "- machine: {}\n- guests run on: {}", self.machine, self.accelerator);
        let _ = writeln!(text, "- whole run: {:.1} s", self.whole.as_secs_f64());
        if let Some(failure) = &self.failure {
            let _ = writeln!(text, "- **failed**: {failure}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text.push('\n');
        for (index, (_, row)) in self.rows().into_iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if index == 0 {
                text.push_str("|---|---:|---|---|\n");
            }
        }
        text.push_str(
            "\nTimes are those of this run. A step's time is that of all its commands and of the waiting for what they \
             cause. `create_ms` is the time of the command, `first_ping_ms` that from typing the command to the guest's \
             first answer to a ping, `gap_ms` the longest time between two answers of the guest's service, which is \
             asked every 10 ms. `total_ms` is the time of the \
             command that moves a guest, `downtime_ms` for how long it stood still, as QEMU says; `longest_gap_ms` is the \
             longest time between two answers to a ping every 10 ms, `lost` how many of the numbers that the guest had \
             acknowledged (`acked`) are not on its disk. What the thesis shows was measured on other machines, with Ganeti, Xen and DRBD.\n",
        );
        text.push_str(transcript);
        text
    }
}

/// `create_ms` and 1234.5 as `create 1.23 s`.
fn figure(name: &str, value: f64) -> String {
    match if name == "ms" { Some("") } else { name.strip_suffix("_ms") } {
        Some(name) => {
            let time = if value >= 1000.0 { format!("{:.2} s", value / 1000.0) } else { format!("{value:.0} ms") };
            let name = name.replace('_', " ");
            format!("{name} {time}").trim_start().to_owned()
        }
        None => format!("{} {value}", name.replace('_', " ")),
    }
}

/// A time as a figure: milliseconds, with as many digits as it deserves.
pub(super) fn ms(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1000.0, 10.0)
}

fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_step_replaces_the_first() {
        let mut report = Report::new();
        report.step("verify", true, Duration::from_millis(1500), Figures::new());
        report.step("list", true, Duration::from_millis(20), Figures::from([("wall_ms", 12.34)]));
        report.step("verify", false, Duration::from_micros(2_500_400), Figures::new());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["steps"],
            serde_json::json!([
                {"name": "verify", "ok": false, "seconds": 2.5, "figures": {}},
                {"name": "list", "ok": true, "seconds": 0.02, "figures": {"wall_ms": 12.34}},
            ])
        );
        assert_eq!(json.as_object().unwrap().len(), 3, "{json}");
        let table = report.table(|ok, line| format!("{}{line}", if ok { "" } else { "!" }));
        assert!(table.lines().any(|line| line.starts_with("!verify FAILED  2.50 s")), "{table}");
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(figure("create_ms", 1234.5), "create 1.23 s");
        assert_eq!(figure("first_ping_ms", 999.4), "first ping 999 ms");
        assert_eq!(figure("ms", 12.0), "12 ms");
        assert_eq!(figure("answers", 250.0), "answers 250");
        assert_eq!(figure("lost_pings_10ms", 3.0), "lost pings 10ms 3");
    }
}
