//! `cardume-guest`: the one program of ours inside a lab guest.
//!
//! `serve` proves that a guest, its memory and its disk went on without a break; `powerd` turns the
//! ACPI power button into an orderly shutdown; `check` reads the disk's side of the proof; `work`
//! writes and reads without a pause. The protocol is in `README.md`.

mod journal;
mod power;
mod serve;
mod work;

use std::path::Path;
use std::process::ExitCode;

/// Where the continuity journal lies unless the caller names another file.
const DEFAULT_JOURNAL: &str = "/var/lib/cardume/counter";

/// TCP address that `serve` listens on unless the caller names another.
const DEFAULT_LISTEN: &str = "0.0.0.0:7000";

/// File and TCP address of `work` unless the caller names others.
const DEFAULT_WORK: &str = "/var/lib/cardume/work";
const DEFAULT_WORK_LISTEN: &str = "0.0.0.0:7001";

const USAGE: &str = "\
usage: cardume-guest serve [JOURNAL [ADDRESS:PORT]]   answer boot id and counter on TCP
       cardume-guest check [JOURNAL]                  read the journal back and say whether it is whole
       cardume-guest work [FILE [ADDRESS:PORT]]       write and read without a pause, tell on TCP
       cardume-guest powerd                           power off when the power button is pressed";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["serve"] => serve::run(Path::new(DEFAULT_JOURNAL), DEFAULT_LISTEN),
        ["serve", journal] => serve::run(Path::new(journal), DEFAULT_LISTEN),
        ["serve", journal, listen] => serve::run(Path::new(journal), listen),
        ["check"] => check(Path::new(DEFAULT_JOURNAL)),
        ["check", journal] => check(Path::new(journal)),
        ["work"] => work::run(Path::new(DEFAULT_WORK), DEFAULT_WORK_LISTEN),
        ["work", file] => work::run(Path::new(file), DEFAULT_WORK_LISTEN),
        ["work", file, listen] => work::run(Path::new(file), listen),
        ["powerd"] => power::run(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("cardume-guest: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what the journal holds; fails when an acknowledged record can be missing from it.
fn check(path: &Path) -> Result<(), String> {
    let summary = journal::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    println!("{summary}");
    if summary.holes.is_empty() { Ok(()) } else { Err("records are missing between older and newer ones".into()) }
}
