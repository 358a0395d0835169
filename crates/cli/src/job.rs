//! `gnt-job`.

use clap::{Args, Parser, Subcommand};
use jiff::tz::TimeZone;
use model::{Job, JobId, JobStatus, Op, Timestamp};
use opcodes::format::{date_time_micros, tree_of};
use opcodes::wire::{Request, Resource, Tree};
use opcodes::{ErrorCode, Failure};
use serde_json::Value;

use crate::client::CallError;
use crate::error::Error;
use crate::options::{ListOptions, TableArgs};
use crate::session::Session;
use crate::{follow, listing, usage};

#[derive(Parser)]
pub(crate) struct Tool {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists the jobs
    #[command(after_help = "EXAMPLES\n  gnt-job list --running\n  gnt-job list -o +received_ts,end_ts 17 18")]
    List(ListArgs),
    /// Lists the columns that 'list' can show
    ListFields(ListFieldsArgs),
    /// Shows everything about jobs: their opcodes, parameters, results and logs
    #[command(visible_alias = "show")]
    Info(InfoArgs),
    /// Shows a job's log as it grows, until the job ends
    Watch(IdArgs),
    /// Waits until a job ends, and ends as it does
    Wait(IdArgs),
    /// Cancels jobs that have not begun
    Cancel(IdArgs),
    /// Takes finished jobs out of the queue
    Archive(IdArgs),
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only these jobs
    #[arg(value_name = "JOB")]
    ids: Vec<String>,
    /// Only jobs that have not begun
    #[arg(long)]
    pending: bool,
    /// Only jobs that run
    #[arg(long)]
    running: bool,
    /// Only jobs that failed
    #[arg(long)]
    error: bool,
    /// Only jobs that have ended
    #[arg(long)]
    finished: bool,
    #[command(flatten)]
    options: ListOptions,
}

#[derive(Args)]
pub(crate) struct ListFieldsArgs {
    /// Only these columns
    #[arg(value_name = "FIELD")]
    names: Vec<String>,
    #[command(flatten)]
    options: TableArgs,
}

#[derive(Args)]
pub(crate) struct InfoArgs {
    /// Number of the job
    #[arg(value_name = "JOB")]
    ids: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct IdArgs {
    /// Number of the job
    #[arg(value_name = "JOB")]
    ids: Vec<String>,
}

impl Command {
    pub(crate) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        match self {
            Command::List(args) => list(session, args).await,
            Command::ListFields(args) => listing::list_fields(session, Resource::Job, &args.names, &args.options),
            Command::Info(args) => info(session, args).await,
            Command::Watch(args) => {
                let [id] = usage::exactly("watch", args.ids)?;
                let id = number(&id)?;
                let heading = format!("Output from job {id} follows");
                session.say(format_args!("{heading}\n{}", "-".repeat(heading.len())))?;
                end(session, id, false).await
            }
            Command::Wait(args) => {
                let [id] = usage::exactly("wait", args.ids)?;
                let id = number(&id)?;
                end(session, id, true).await
            }
            Command::Cancel(args) => {
                change(session, "cancel", "canceled", args.ids, |id| Request::CancelJob { id }).await
            }
            Command::Archive(args) => {
                change(session, "archive", "archived", args.ids, |id| Request::ArchiveJob { id }).await
            }
        }
    }
}

/// Reads the number of a job.
fn number(text: &str) -> Result<JobId, Error> {
    match text.parse::<u64>() {
        Ok(id) if id > 0 => Ok(JobId(id)),
        _ => Err(Failure::refused(ErrorCode::WrongInput, format!("Invalid job ID '{text}'")).into()),
    }
}

impl ListArgs {
    /// Whether a job of this state is to be shown.
    fn shows(&self, status: &str) -> bool {
        let chosen = [
            (self.pending, &["queued", "waiting"][..]),
            (self.running, &["canceling", "running"]),
            (self.error, &["error"]),
            (self.finished, &["canceled", "success", "error"]),
        ];
        let mut wanted = chosen.iter().filter(|(on, _)| *on).peekable();
        wanted.peek().is_none() || wanted.any(|(_, words)| words.contains(&status))
    }
}

async fn list(session: &mut Session, args: ListArgs) -> Result<u8, Error> {
    for id in &args.ids {
        number(id)?;
    }
    let mut columns = listing::columns(Resource::Job, args.options.output.as_deref());
    columns.push("status".into());
    let mut table = listing::query(session, Resource::Job, columns, listing::names(args.ids.clone())).await?;
    // The last column is for choosing only.
    table.data.retain(|row| args.shows(listing::text(row.last()).unwrap_or_default()));
    table.fields.pop();
    for row in &mut table.data {
        row.truncate(table.fields.len());
    }
    listing::show(session, &table, &args.options)
}

/// Follows a job to its end.
async fn end(session: &mut Session, id: JobId, quiet: bool) -> Result<u8, Error> {
    let outcome = match follow::follow(session, id, quiet).await {
        Ok(job) => follow::result(&job),
        Err(error) if is_unknown(&error) => Err(Failure::failed(format!("Job {id} not found"))),
        Err(error) => return Err(error),
    };
    match outcome {
        Ok(_) => Ok(0),
        Err(failure) => {
            session.warn(format_args!("Job {id} failed: {failure}"));
            Ok(1)
        }
    }
}

fn is_unknown(error: &Error) -> bool {
    error.failure().is_some_and(|failure| failure.code == Some(ErrorCode::UnknownEntity))
}

async fn change(
    session: &mut Session,
    command: &str,
    done: &str,
    ids: Vec<String>,
    request: impl Fn(JobId) -> Request,
) -> Result<u8, Error> {
    let ids = usage::some(command, ids)?.iter().map(|id| number(id)).collect::<Result<Vec<_>, _>>()?;
    let mut code = 0;
    for id in ids {
        match session.client.call::<()>(&request(id)).await {
            Ok(()) => session.say(format_args!("Job {id} has been {done}"))?,
            Err(CallError::Refused(failure)) if failure.kind != opcodes::FailureKind::NotACluster => {
                match failure.code {
                    Some(ErrorCode::UnknownEntity) => session.warn(format_args!("Job {id} not found in queue")),
                    _ => session.warn(&failure),
                }
                code = 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(code)
}

async fn info(session: &mut Session, args: InfoArgs) -> Result<u8, Error> {
    let ids = usage::some("info", args.ids)?.iter().map(|id| number(id)).collect::<Result<Vec<_>, _>>()?;
    let zone = session.zone();
    let mut shown = Vec::new();
    let mut as_json = Vec::new();
    let mut code = 0;
    for id in ids {
        match session.client.job(id, 0, None, 0).await {
            Ok(job) => {
                shown.push(describe(&job, &zone));
                as_json.push(follow::job_json(&job));
            }
            // Ganeti ends with success here; a script can't see from that whether there was a job.
            Err(error) if is_unknown_call(&error) => {
                shown.push(Tree::text(format_args!("Job ID {id} not found")));
                as_json.push(Value::Null);
                code = 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if args.json {
        session.json(&Value::Array(as_json))?;
    } else {
        listing::info(session, &Tree::List(shown), false)?;
    }
    Ok(code)
}

fn is_unknown_call(error: &CallError) -> bool {
    matches!(error, CallError::Refused(failure) if failure.code == Some(ErrorCode::UnknownEntity))
}

/// What `gnt-job info` shows; the blanks that align the times are part of the format.
fn describe(job: &Job, zone: &TimeZone) -> Tree {
    let time = |at: Timestamp| date_time_micros(at, zone);
    let since = |at: Option<Timestamp>, from: Option<Timestamp>| match (at, from) {
        (Some(at), Some(from)) => format!("{} (delta {:.6}s)", time(at), elapsed(from, at)),
        (Some(at), None) => time(at),
        (None, _) => "N/A".into(),
    };
    let total = job.end.map_or_else(|| "N/A".into(), |end| format!("{:.6} seconds", elapsed(job.received, end)));
    Tree::map([
        ("Job ID", Tree::text(job.id)),
        ("Status", Tree::text(job.status.word())),
        ("Received", Tree::text(format_args!("        {}", time(job.received)))),
        ("Processing start", Tree::text(since(job.start, Some(job.received)))),
        ("Processing end", Tree::text(format_args!("  {}", since(job.end, job.start)))),
        ("Total processing time", Tree::text(total)),
        ("Opcodes", Tree::List(job.ops.iter().map(|op| describe_op(op, zone)).collect())),
    ])
}

fn describe_op(op: &Op, zone: &TimeZone) -> Tree {
    let time = |at: Option<Timestamp>| at.map_or_else(|| "N/A".into(), |at| date_time_micros(at, zone));
    let id = op.input.get("OP_ID").and_then(Value::as_str).unwrap_or(&op.summary);
    let mut entries = vec![("Opcode", Tree::text(id)), ("Status", Tree::text(op.status.word()))];
    if op.status != JobStatus::Queued {
        entries.push(("Processing start", Tree::text(time(op.start))));
        entries.push(("Execution start", Tree::text(format_args!(" {}", time(op.exec)))));
        entries.push(("Processing end", Tree::text(format_args!("  {}", time(op.end)))));
    }
    entries.push(("Input fields", tree_of(&op.input)));
    entries.push(("Result", tree_of(&op.result)));
    let log = op.log.iter().map(|line| {
        Tree::map([
            ("Time", Tree::text(date_time_micros(line.at, zone))),
            ("Content", Tree::text(format_args!("[{}, message, {}]", line.serial, line.message))),
        ])
    });
    entries.push(("Execution log", Tree::List(log.collect())));
    Tree::map(entries)
}

/// Seconds between two times; zero if the clock was set back.
fn elapsed(from: Timestamp, to: Timestamp) -> f64 {
    to.0.saturating_sub(from.0) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{LogEntry, LogKind};
    use opcodes::format::tree;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[test]
    fn a_job_is_described_as_in_ganeti() {
        let at = |micros: u64| Timestamp(1_795_410_454_000_000 + micros);
        let job = Job {
            id: JobId(105),
            ops: vec![Op {
                input: json!({"OP_ID": "OP_INSTANCE_REMOVE", "instance_name": "fake2", "ignore_failures": false}),
                summary: "INSTANCE_REMOVE(fake2)".into(),
                status: JobStatus::Success,
                log: vec![LogEntry {
                    serial: 1,
                    at: at(700_000),
                    kind: LogKind::Message,
                    message: "* removing".into(),
                }],
                steps: BTreeMap::new(),
                result: Value::Null,
                start: Some(at(590_204)),
                exec: Some(at(600_000)),
                end: Some(at(1_796_842)),
            }],
            status: JobStatus::Success,
            priority: 0,
            depends: vec![],
            user: "root".into(),
            received: at(0),
            start: Some(at(590_204)),
            end: Some(at(1_796_856)),
            cancel: false,
            log_serial: 1,
        };
        assert_eq!(
            tree(&Tree::List(vec![describe(&job, &TimeZone::UTC)])),
            "\
- Job ID: 105
  Status: success
  Received:         2026-11-23 05:07:34.000000
  Processing start: 2026-11-23 05:07:34.590204 (delta 0.590204s)
  Processing end:   2026-11-23 05:07:35.796856 (delta 1.206652s)
  Total processing time: 1.796856 seconds
  Opcodes: 
    - Opcode: OP_INSTANCE_REMOVE
      Status: success
      Processing start: 2026-11-23 05:07:34.590204
      Execution start:  2026-11-23 05:07:34.600000
      Processing end:   2026-11-23 05:07:35.796842
      Input fields: 
        OP_ID: OP_INSTANCE_REMOVE
        ignore_failures: False
        instance_name: fake2
      Result: None
      Execution log: 
        - Time: 2026-11-23 05:07:34.700000
          Content: [1, message, * removing]
"
        );
    }
}
