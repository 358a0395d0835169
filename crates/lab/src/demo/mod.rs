//! `cardume lab demo`: the scenario of the thesis that Cardume comes from, step by step, on a lab. Each step runs the
//! commands as an administrator would type them, and then checks what must be true.

mod report;
mod scenario;
mod screen;

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
    let dir = config.dir.clone();
    take_down_on_interrupt(dir.clone())?;

    let begun = Instant::now();
    let mut screen = Screen::new();
    screen.say(&format!("Bringing up a lab in {}: two nodes and a witness.", dir.display()));
    let lab = Lab::up(config)?;
    let mut report = Report::new();
    let outcome = Scenario::new(&lab, &guests, &mut screen, &mut report).play(args.keep);
    report.finish(begun.elapsed(), outcome.as_ref().err());
    report.write(&args.report_dir, screen.transcript())?;
    keep_logs(&lab, &args.report_dir);
    screen.table(&report);
    if let Err(error) = &outcome {
        screen.alarm(&format!("{error:#}"));
    }
    screen.say(&format!(
        "Report: {dir}/report.json and {dir}/report.md; the daemons' logs are beside them.",
        dir = args.report_dir.display()
    ));
    if args.keep {
        lab.keep()?;
        screen.say(&how_to_look_around(&dir));
    } else {
        lab.down()?;
        screen.say("The lab is down.");
    }
    Ok(if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ctrl-C in the middle takes the lab down: its guests would go on using the machine.
fn take_down_on_interrupt(dir: PathBuf) -> anyhow::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // Before any other thread is started, so that none of them gets the signal.
    signals.thread_block().context("can't block signals")?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("\n{signal}: taking the lab down");
        if let Err(error) = Lab::open(&dir).and_then(Lab::down) {
            eprintln!("cardume: {error}");
        }
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}

/// Copies what the daemons have written, as far as that is possible: they are what one asks for after a failure.
fn keep_logs(lab: &Lab, to: &Path) {
    for status in lab.status().unwrap_or_default() {
        if let Ok(node) = lab.node(&status.name)
            && let log = node.daemon_log()
            && log.exists()
            && let Err(error) = std::fs::copy(&log, to.join(format!("{}.log", status.name)))
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
