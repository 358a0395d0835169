//! `cardume bench failover`: what nobody plans. A node dies, the master's node dies, a node is cut off, a guest crashes, a
//! daemon dies: how long until all is as it was, for those who use the guest.

mod course;
mod results;

use std::fs;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use serde_json::json;

use super::FailoverArgs;
use crate::demo::keep_logs;
use crate::{Config, Guests, Lab};
use course::Course;
use results::{PEERS, Results, Target};

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Row {
    /// The node with the guest dies; the master is another one
    Node,
    /// The node with the guest dies, and is the master
    Master,
    /// The node with the guest loses both its cables, but lives; the master is another one
    Cut,
    /// The guest's QEMU is killed
    Qemu,
    /// The daemon of the guest's node is killed
    Daemon,
}

impl Row {
    fn about(self) -> &'static str {
        match self {
            Row::Node => "kill of the guest's node, not the master",
            Row::Master => "kill of the guest's node, the master",
            Row::Cut => "cut of the guest's node",
            Row::Qemu => "kill of the guest's QEMU",
            Row::Daemon => "kill of the daemon under the guest",
        }
    }

    /// What was promised, of which figure.
    fn target(self) -> Target {
        let (figure, median, max) = match self {
            Row::Node | Row::Master | Row::Cut => ("qemu_started_ms", 3000.0, 5000.0),
            Row::Qemu => ("qemu_started_ms", 1000.0, 1000.0),
            Row::Daemon => ("gap_ms", 1000.0, 1000.0),
        };
        Target { figure, median, max }
    }
}

pub(super) fn run(args: &FailoverArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.runs > 0, "--runs: at least one is needed");
    let rows = if args.rows.is_empty() { Row::value_variants() } else { &args.rows };
    let guests = Guests::find().map_err(anyhow::Error::msg)?;
    let mut config = Config { dir: args.dir.clone(), ..Config::default() };
    config.daemon.extend(guests.daemon_options());
    let lab = Lab::up(config)?;
    say(&format!(
        "Measuring with two nodes and a witness, a guest of 128 MB with its disk on both, {} runs a row.",
        args.runs
    ));
    lab.form(&["--enabled-hypervisors=kvm", "--master-netdev=br0", "-H", &guests.parameters()])?;

    let mut course = Course::begin(&lab)?;
    let mut all: Vec<(Row, Results)> = Vec::new();
    // What was measured before something went wrong is worth being shown.
    let outcome = rows.iter().try_for_each(|row| {
        all.push((*row, Results::default()));
        let Some((_, results)) = all.last_mut() else { return Ok(()) };
        measure(&mut course, *row, args.runs, results).with_context(|| format!("'{}'", row.about()))
    });
    say(&format!("\n{}", results::table(&all)));
    if let Some(folder) = &args.logs {
        fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
        keep_logs(&lab, folder, "");
    }
    if let Some(path) = &args.json {
        let rows = all.iter().map(|(row, results)| {
            let figures = results.spreads().collect::<std::collections::BTreeMap<_, _>>();
            json!({"row": name(*row), "about": row.about(), "target": row.target(), "figures": figures})
        });
        let report = json!({
            "machine": crate::machine::describe(),
            "runs": args.runs,
            "complete": outcome.is_ok(),
            "rows": rows.collect::<Vec<_>>(),
            "peers": PEERS,
        });
        let text = serde_json::to_string_pretty(&report).context("can't write the results as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))?;
    }
    outcome?;
    lab.down()?;
    Ok(ExitCode::SUCCESS)
}

fn measure(course: &mut Course<'_>, row: Row, runs: u32, results: &mut Results) -> anyhow::Result<()> {
    for run in 1..=runs {
        let figures = course.run(row, run).with_context(|| format!("run {run} of {runs}"))?;
        say(&format!("{:<7} {run:>3}/{runs}: {}", name(row), results::brief(&figures)));
        results.add(figures);
    }
    Ok(())
}

/// What `--rows` calls it.
fn name(row: Row) -> String {
    row.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
