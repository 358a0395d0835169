//! `cardume lab demo`: the scenario of the thesis that Cardume comes from, step by step, on a lab. Each step runs the
//! commands as an administrator would type them, and then checks what must be true.

mod closing;
mod report;
mod scenario;
mod screen;
mod stage;
mod svg;
mod topology;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Uid;

use crate::{Config, Error, Guests, Lab};
use report::Report;
use scenario::Scenario;
use screen::Screen;

/// Options of `cardume lab demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leave the lab with its guests running, to look around in it: the steps that take things down are left out
    #[arg(long)]
    keep: bool,
    /// Folder for report.json, report.md and the daemons' logs
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    report_dir: PathBuf,
}

/// Runs the demo on a lab as `config` says. The exit code tells whether everything was as it must be.
pub(crate) fn run(mut config: Config, args: &DemoArgs) -> anyhow::Result<ExitCode> {
    if !Uid::effective().is_root() {
        return Err(Error::NotRoot.into());
    }
    let guests = Guests::find().map_err(anyhow::Error::msg)?;
    std::fs::create_dir_all(&args.report_dir).with_context(|| format!("can't create {}", args.report_dir.display()))?;
    config.daemon.extend(guests.daemon_options());
    let alone = Config { dir: beside(&config.dir), witness: false, ..config.clone() };
    let dir = config.dir.clone();
    take_down_on_interrupt([dir.clone(), alone.dir.clone()])?;

    let begun = Instant::now();
    let mut screen = Screen::new();
    let mut report = Report::new();
    screen.say(&format!("Bringing up a lab in {}: two nodes and a witness.", dir.display()));
    let lab = Lab::up(config)?;
    let mut outcome = Scenario::new(&lab, &guests, &mut screen, &mut report).play(args.keep);
    keep_logs(&lab, &args.report_dir, "");
    if args.keep {
        lab.keep()?;
    } else {
        lab.down()?;
    }
    if outcome.is_ok() {
        screen.say(&format!("\nBringing up another lab in {}: two nodes, no witness.", alone.dir.display()));
        let lab = Lab::up(alone)?;
        outcome = Scenario::new(&lab, &guests, &mut screen, &mut report).play_without_witness();
        keep_logs(&lab, &args.report_dir, "no-voting-");
        lab.down()?;
    }
    report.finish(begun.elapsed(), outcome.as_ref().err());
    report.write(&args.report_dir, screen.transcript())?;
    screen.table(&report);
    if let Err(error) = &outcome {
        screen.alarm(&format!("{error:#}"));
    }
    screen.say(&format!(
        "Report: {dir}/report.json and {dir}/report.md; the daemons' logs are beside them.",
        dir = args.report_dir.display()
    ));
    screen.say(&if args.keep { how_to_look_around(&dir) } else { "The labs are down.".to_owned() });
    Ok(if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The directory of the second lab.
fn beside(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push("-no-voting");
    dir.with_file_name(name)
}

/// Ctrl-C in the middle takes the labs down: their guests would go on using the machine.
fn take_down_on_interrupt(dirs: [PathBuf; 2]) -> anyhow::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // Before any other thread is started, so that none of them gets the signal.
    signals.thread_block().context("can't block signals")?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("\n{signal}: taking the lab down");
        for dir in dirs {
            match Lab::open(&dir).and_then(Lab::down) {
                Ok(()) | Err(Error::NoLab(_)) => {}
                Err(error) => eprintln!("cardume: {error}"),
            }
        }
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}

/// Copies what the daemons have written, as far as that is possible: they are what one asks for after a failure.
pub(crate) fn keep_logs(lab: &Lab, to: &Path, prefix: &str) {
    for status in lab.status().unwrap_or_default() {
        if let Ok(node) = lab.node(&status.name)
            && let log = node.daemon_log()
            && log.exists()
            && let Err(error) = std::fs::copy(&log, to.join(format!("{prefix}{}.log", status.name)))
        {
            eprintln!("cardume: the log of {} can't be kept: {error}", status.name);
        }
    }
}

fn how_to_look_around(dir: &Path) -> String {
    let program = std::env::current_exe().map_or_else(|_| "cardume".to_owned(), |path| path.display().to_string());
    let lab = format!("{program} lab --dir {}", dir.display());
    format!(
        "The lab runs on. To look around:\n  \
         {lab} status\n  \
         {lab} exec node01 -- gnt-instance list\n  \
         {lab} exec node01 -- gnt-instance console vm1      (^] leaves it)\n  \
         {lab} exec node01 -- bash\n  \
         {lab} kill node02                                  (and: start, cut, heal)\n\
         To end it:\n  \
         {lab} down"
    )
}
