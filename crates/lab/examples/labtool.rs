//! The lab's commands as a program of their own: `labtool up`, `labtool exec node01 -- ip address`. The tests of
//! the lab use it in the place of the real binary.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    lab: lab::cli::LabArgs,
}

fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    match lab::entry(&args) {
        Some(code) => Ok(code),
        None => lab::cli::run(Args::parse_from(args).lab),
    }
}
