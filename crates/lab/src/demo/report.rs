//! What a run of the demo leaves behind: `report.json` for programs, `report.md` and a table for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde::Serialize;

use super::closing;
use super::screen::Screen;
use super::stage::Stage;
use super::topology;
use crate::Lab;

/// Measured figures by name; those that end in `_ms` are milliseconds.
pub(super) type Figures = BTreeMap<&'static str, f64>;

/// Where the thesis shows a step, and how long it took there, as far as its figure tells.
const THESIS: [(&str, &str); 20] = [
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
    ("automatic-failover", "figures 23 and 24: not automatic"),
    ("rejoin", "figure 28: by hand"),
    ("partition", "not tested"),
    ("partition-master", "not tested"),
    ("replication-cut", "not tested"),
    ("no-voting", "figures 25 to 28: by hand"),
    ("node-add", "section 5.1"),
    ("shutdown", "section 5.4"),
];

/// The most characters on a line of what was measured in a step.
const MEASURED: usize = 76;

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    ok: bool,
    seconds: f64,
    figures: Figures,
}

/// How the cluster was at one moment, and the file with its drawing.
#[derive(Debug, Serialize)]
struct Shown {
    file: String,
    title: String,
    /// Seconds since the demo began.
    at_s: f64,
    stage: Stage,
    #[serde(skip)]
    drawing: String,
}

/// The whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    accelerator: String,
    machine: String,
    steps: Vec<Step>,
    stages: Vec<Shown>,
    #[serde(skip)]
    begun: Instant,
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
            stages: Vec::new(),
            begun: Instant::now(),
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

    /// Draws how the cluster of `lab` is now, as the node `seen_by` says, and as the machine sees it. Where that node can't
    /// say anything, what was said at the stage before is shown, if that was one of the same nodes.
    pub fn stage(&mut self, screen: &mut Screen, lab: &Lab, seen_by: &str, title: &str) -> anyhow::Result<()> {
        let stage = Stage::gather(lab, seen_by, self.stages.last().map(|shown| &shown.stage))
            .with_context(|| format!("can't draw how the cluster is: {title}"))?;
        let file = self.show(stage, title);
        screen.figure(title, &file);
        Ok(())
    }

    /// Draws what has just happened to the stage before, which has to be one of right before that: the nodes are not asked,
    /// as they can't know yet.
    pub fn right_after(&mut self, screen: &mut Screen, lab: &Lab, title: &str) -> anyhow::Result<()> {
        let before = self.stages.last().with_context(|| format!("there is no stage before: {title}"))?;
        let stage = before.stage.right_after(lab).with_context(|| format!("can't draw how the cluster is: {title}"))?;
        let file = self.show(stage, title);
        screen.figure(title, &file);
        Ok(())
    }

    /// Keeps a stage with its drawing; returns the name of the file.
    fn show(&mut self, stage: Stage, title: &str) -> String {
        let file = format!("stage-{:02}.svg", self.stages.len() + 1);
        let at_s = round(self.begun.elapsed().as_secs_f64(), 10.0);
        let source = match &stage.said_by {
            Some(node) => format!("as {node} says"),
            None => "what the nodes said before, with what the machine sees now".to_owned(),
        };
        let subtitle = format!("{} UTC, {at_s:.1} s after the demo began; {source}", time_of_day(SystemTime::now()));
        let drawing = topology::draw(&stage, title, &subtitle);
        self.stages.push(Shown { file: file.clone(), title: title.to_owned(), at_s, stage, drawing });
        file
    }

    /// What was measured in a step; `None`: it was not done, or failed.
    pub fn figures_of(&self, step: &str) -> Option<&Figures> {
        self.steps.iter().find(|other| other.name == step && other.ok).map(|step| &step.figures)
    }

    /// Whether there was such a step.
    pub fn has(&self, step: &str) -> bool {
        self.steps.iter().any(|other| other.name == step)
    }

    /// The closing comparison, for people.
    pub fn closing(&self) -> String {
        closing::text(self)
    }

    /// How long it took altogether, and what ended it before its end.
    pub fn finish(&mut self, whole: Duration, failure: Option<&anyhow::Error>) {
        self.whole = whole;
        self.failure = failure.map(|error| format!("{error:#}"));
    }

    /// Writes `report.json`, `report.md` and the drawings that it shows into a folder.
    pub fn write(&self, folder: &Path, transcript: &str) -> anyhow::Result<()> {
        remove_drawings(folder)?;
        let mut json = serde_json::to_value(self).context("can't write the report as JSON")?;
        json["closing"] = serde_json::to_value(closing::rows(self)).context("can't write the report as JSON")?;
        let json = serde_json::to_string_pretty(&json).context("can't write the report as JSON")? + "\n";
        let texts = [("report.json", &json), ("report.md", &self.markdown(transcript))];
        let drawings = self.stages.iter().map(|shown| (&*shown.file, &shown.drawing));
        for (name, text) in texts.into_iter().chain(drawings) {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(())
    }

    /// The closing table. `paint` colours a line of which it is told whether it is good.
    pub fn table(&self, paint: impl Fn(bool, String) -> String) -> String {
        let rows: Vec<_> =
            self.rows().into_iter().map(|(ok, [a, b, c, d])| (ok, a, b, wrapped(&c, MEASURED), d)).collect();
        let widest =
            |cells: &mut dyn Iterator<Item = &String>| cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        let name = widest(&mut rows.iter().map(|row| &row.1));
        let time = widest(&mut rows.iter().map(|row| &row.2));
        let figures = widest(&mut rows.iter().flat_map(|row| &row.3));
        let mut table = String::new();
        for (ok, a, b, measured, d) in &rows {
            for (index, c) in measured.iter().enumerate() {
                let [a, b, d] = if index == 0 { [&**a, &**b, &**d] } else { [""; 3] };
                let line = format!("{a:<name$}  {b:>time$}  {c:<figures$}  {d}");
                let _ = writeln!(table, "{}", paint(*ok, line.trim_end().to_owned()));
            }
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
        let _ = write!(text, "\n{}", closing::markdown(self));
        text.push_str(
            "\nTimes are those of this run. A step's time is that of all its commands and of the waiting for what they \
             cause. `create_ms` is the time of the command, `first_ping_ms` that from typing the command to the guest's \
             first answer to a ping, `gap_ms` the longest time between two answers of the guest's service, which is \
             asked every 10 ms. `total_ms` is the time of the \
             command that moves a guest, `downtime_ms` for how long it stood still, as QEMU says; `longest_gap_ms` is the \
             longest time between two answers to a ping every 10 ms, `lost` how many of the numbers that the guest had \
             acknowledged (`acked`) are not on its disk. After a fault all times count from it: `declared_ms` until the node was \
             declared dead, `promoted_ms` until its disks were served on the other node, `qemu_started_ms` until the guest ran \
             there, `first_ping_ms` and `first_answer_ms` until it answered a ping and its service the client. What the thesis shows was measured on other machines, with Ganeti, Xen and DRBD.\n",
        );
        text.push_str(transcript);
        text
    }
}

/// Takes away what an earlier run drew.
fn remove_drawings(folder: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("can't look into {}", folder.display()))?;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("stage-") && name.ends_with(".svg") {
            std::fs::remove_file(&path).with_context(|| format!("can't remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Figures on lines that are not longer than that, if it can be helped.
fn wrapped(figures: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for figure in figures.split_inclusive(", ") {
        let line = lines.last().map_or(0, |line| line.chars().count());
        match lines.last_mut() {
            Some(last) if line == 0 || line + figure.trim_end().chars().count() <= width => last.push_str(figure),
            _ => lines.push(figure.to_owned()),
        }
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// `13:52:10`, of this day in UTC.
fn time_of_day(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// `create_ms` and 1234.5 as `create 1.23 s`.
pub(super) fn figure(name: &str, value: f64) -> String {
    if let Some(interval) = name.strip_prefix("lost_pings_").and_then(|name| name.strip_suffix("ms")) {
        return format!("{value} lost of pings every {interval} ms");
    }
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
        assert_eq!(json.as_object().unwrap().len(), 4, "{json}");
        let table = report.table(|ok, line| format!("{}{line}", if ok { "" } else { "!" }));
        assert!(table.lines().any(|line| line.starts_with("!verify FAILED  2.50 s")), "{table}");
    }

    #[test]
    fn drawings_are_files_beside_the_report() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("stage-07.svg"), "of an earlier run").unwrap();
        std::fs::write(folder.path().join("node01.log"), "not ours").unwrap();
        let mut report = Report::new();
        let stage = || Stage {
            cluster: "cluster01".to_owned(),
            address: None,
            holders: Vec::new(),
            nodes: Vec::new(),
            instances: Vec::new(),
            said_by: None,
        };
        let first = report.show(stage(), "nothing yet");
        assert_eq!((&*first, &*report.show(stage(), "still nothing")), ("stage-01.svg", "stage-02.svg"));
        report.step("migrate", true, Duration::from_secs(1), Figures::from([("total_ms", 300.0)]));
        report.write(folder.path(), &format!("![nothing yet]({first})")).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["node01.log", "report.json", "report.md", "stage-01.svg", "stage-02.svg"]);
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap()).unwrap();
        assert_eq!(json["stages"][1]["file"], "stage-02.svg");
        assert_eq!(json["closing"][0]["here"]["total_ms"], 300.0);
        let text = std::fs::read_to_string(folder.path().join("report.md")).unwrap();
        assert!(text.contains("![nothing yet](stage-01.svg)") && text.contains("38 s"), "{text}");
    }

    #[test]
    fn a_step_with_many_figures_takes_several_lines() {
        assert_eq!(wrapped("declared 1 s, promoted 2 s, acked 3", 28), ["declared 1 s, promoted 2 s,", "acked 3"]);
        assert_eq!(wrapped("a figure that is too long, b", 10), ["a figure that is too long,", "b"]);
        assert_eq!(wrapped("", 10), [""]);
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(figure("create_ms", 1234.5), "create 1.23 s");
        assert_eq!(figure("first_ping_ms", 999.4), "first ping 999 ms");
        assert_eq!(figure("ms", 12.0), "12 ms");
        assert_eq!(figure("answers", 250.0), "answers 250");
        assert_eq!(figure("lost_pings_10ms", 3.0), "3 lost of pings every 10 ms");
    }
}
