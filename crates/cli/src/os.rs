//! `gnt-os`.

use clap::{Args, Parser, Subcommand};
use opcodes::wire::{Cell, Resource};
use serde_json::{Value, json};

use crate::error::Error;
use crate::session::Session;
use crate::{listing, usage};

#[derive(Parser)]
pub(crate) struct Tool {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists the operating systems that instances can be made with
    List(ListArgs),
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Leave the title out
    #[arg(long)]
    no_headers: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

impl Command {
    pub(crate) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let Command::List(args) = self;
        usage::none("list", &args.args)?;
        let fields = ["name", "variants", "valid", "hidden", "blacklisted"].map(str::to_owned);
        let table = listing::query(session, Resource::Os, fields.into(), None).await?;
        let names: Vec<String> = table.data.iter().flat_map(|row| usable(row)).collect();
        if args.json {
            session.json(&json!(names))?;
            return Ok(0);
        }
        if !args.no_headers {
            // Ganeti pads this one heading.
            let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
            session.say(format_args!("{:width$}", "Name"))?;
        }
        for name in names {
            session.say(name)?;
        }
        Ok(0)
    }
}

/// The names, `os+variant`, under which an instance can be made with an operating system.
fn usable(row: &[Cell]) -> Vec<String> {
    let is = |column: usize| row.get(column).is_some_and(|cell| cell.1 == Value::Bool(true));
    let Some(name) = listing::text(row.first()).filter(|_| is(2) && !is(3) && !is(4)) else { return Vec::new() };
    match row.get(1).and_then(|cell| cell.1.as_array()) {
        Some(variants) if !variants.is_empty() => {
            variants.iter().filter_map(Value::as_str).map(|variant| format!("{name}+{variant}")).collect()
        }
        _ => vec![name.to_owned()],
    }
}
