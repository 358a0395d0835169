//! Submitting jobs and following them to their end.

use std::time::Duration;

use model::{Job, JobId, JobStatus};
use opcodes::format::ctime;
use opcodes::wire::Submit;
use opcodes::{Failure, Opcode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::client::CallError;
use crate::error::Error;
use crate::options::JobOptions;
use crate::session::Session;

/// Seconds that one question about a job waits for news at the most.
const POLL: u32 = 20;

/// Pause between attempts to get back to the daemon.
const RETRY: Duration = Duration::from_millis(250);

/// Follows a job to its end; writes the lines of its log as they come, unless `quiet`.
///
/// The job goes on without us: if the daemon goes away (it restarts, or the master's role moves on), this tries to get
/// back to it for as long as the session's patience lasts.
///
/// # Errors
/// The daemon can't be asked any more. That the job failed is no error here; see [`result`].
pub(crate) async fn follow(session: &mut Session, id: JobId, quiet: bool) -> Result<Job, Error> {
    let mut after = 0;
    // A job that is new is queued, so the first answer comes when there is something to tell.
    let mut known = Some(JobStatus::Queued);
    let mut whole: Option<Job> = None;
    let mut said_idle = [false; 2];
    let mut lost_since: Option<Instant> = None;
    loop {
        let job = match session.client.job(id, after, known, POLL).await {
            Ok(job) => {
                lost_since = None;
                job
            }
            Err(error) if error.is_passing() => {
                let since = match lost_since {
                    Some(since) => since,
                    None => {
                        session.warn("Lost connection to the daemon, retrying...");
                        *lost_since.insert(Instant::now())
                    }
                };
                if since.elapsed() >= session.patience {
                    session
                        .warn(format_args!("Job {id} goes on without this command; 'gnt-job watch {id}' follows it"));
                    return Err(error.into());
                }
                sleep(RETRY).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let idle = known == Some(job.status) && job.log_serial <= after;
        if idle && !quiet {
            say_idle(session, &job, &mut said_idle);
        }
        known = Some(job.status);
        after = write_log(session, &job, after, quiet)?;
        let job = match whole.take() {
            Some(before) => merged(before, job),
            None => job,
        };
        if job.status.is_final() {
            return Ok(job);
        }
        whole = Some(job);
    }
}

/// Says once what a job waits for.
fn say_idle(session: &mut Session, job: &Job, said: &mut [bool; 2]) {
    let (index, text) = match job.status {
        JobStatus::Queued => (0, "is waiting in queue"),
        JobStatus::Waiting => (1, "is trying to acquire all necessary locks"),
        _ => return,
    };
    if !std::mem::replace(&mut said[index], true) {
        session.warn(format_args!("Job {} {text}", job.id));
    }
}

/// Writes the lines after `after`; gives the serial of the last one.
fn write_log(session: &mut Session, job: &Job, after: u64, quiet: bool) -> Result<u64, Error> {
    let mut lines: Vec<_> = job.ops.iter().flat_map(|op| &op.log).filter(|line| line.serial > after).collect();
    lines.sort_by_key(|line| line.serial);
    let last = lines.last().map_or(after, |line| line.serial);
    if !quiet && !lines.is_empty() {
        let zone = session.zone();
        for line in lines {
            session.say(format_args!("{} {}", ctime(line.at, &zone), line.message))?;
        }
    }
    Ok(last)
}

/// The job as it is now, with the whole log: each reply has only the new lines.
fn merged(before: Job, mut now: Job) -> Job {
    for (op, before) in now.ops.iter_mut().zip(before.ops) {
        let known = before.log.last().map_or(0, |line| line.serial);
        let new = std::mem::take(&mut op.log);
        op.log = before.log;
        op.log.extend(new.into_iter().filter(|line| line.serial > known));
    }
    now
}

/// The results of a job's opcodes.
///
/// # Errors
/// Why it failed.
pub(crate) fn result(job: &Job) -> Result<Vec<Value>, Failure> {
    match job.status {
        JobStatus::Success => Ok(job.ops.iter().map(|op| op.result.clone()).collect()),
        JobStatus::Canceled => Err(Failure::failed(format!("Job {} was canceled", job.id))),
        _ => {
            let failed = job.ops.iter().find(|op| op.status == JobStatus::Error);
            Err(failed.map_or_else(
                || Failure::failed(format!("Job {} ended as '{}'", job.id, job.status.word())),
                |op| Failure::from_result(&op.result),
            ))
        }
    }
}

/// Queues one opcode as a job.
async fn submit(session: &Session, op: Opcode, options: &JobOptions) -> Result<JobId, CallError> {
    session.client.submit(Submit { ops: vec![op], priority: options.priority(), depends: vec![] }).await
}

/// Queues one opcode and follows it. Gives its result, or `None` where the job was only to be submitted.
///
/// # Errors
/// As [`follow`]; and if the job fails, why.
pub(crate) async fn one(session: &mut Session, op: Opcode, options: &JobOptions) -> Result<Option<Value>, Error> {
    follow_one(session, op, options, false).await
}

/// As [`one`], without the lines of the job's log.
pub(crate) async fn quietly(session: &mut Session, op: Opcode, options: &JobOptions) -> Result<Option<Value>, Error> {
    follow_one(session, op, options, true).await
}

async fn follow_one(
    session: &mut Session,
    op: Opcode,
    options: &JobOptions,
    quiet: bool,
) -> Result<Option<Value>, Error> {
    let id = submit(session, op, options).await?;
    if options.submit {
        session.say(format_args!("JobID: {id}"))?;
        return Ok(None);
    }
    if options.print_jobid {
        session.say(id)?;
    }
    let job = follow(session, id, quiet).await?;
    Ok(Some(result(&job)?.pop().unwrap_or(Value::Null)))
}

/// Queues one job for each named object and follows them in turn. Gives how many failed.
///
/// # Errors
/// As [`follow`].
pub(crate) async fn each(
    session: &mut Session,
    work: Vec<(String, Opcode)>,
    options: &JobOptions,
    announce: bool,
) -> Result<usize, Error> {
    let mut jobs = Vec::with_capacity(work.len());
    let mut failed = 0;
    for (name, op) in work {
        match submit(session, op, options).await {
            Ok(id) => jobs.push((id, Some(name))),
            // What is queued already goes on, so it is followed also when a later one is refused.
            Err(CallError::Refused(failure)) => {
                session.warn(format_args!("Failed to submit job for {name}: {failure}"));
                failed += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if options.submit {
        for (id, _) in jobs {
            session.say(format_args!("JobID: {id}"))?;
        }
        return Ok(failed);
    }
    if options.print_jobid {
        for (id, _) in &jobs {
            session.say(id)?;
        }
    }
    if announce {
        announce_jobs(session, jobs.iter().map(|(id, _)| *id))?;
    }
    for (id, name) in jobs {
        if wait(session, id, name.as_deref()).await?.is_none() {
            failed += 1;
        }
    }
    Ok(failed)
}

/// The jobs in the result of an opcode that only submits others: `{"jobs": [[true, 75], …]}`. In place of a number stands
/// why a job was not taken.
///
/// # Errors
/// The result has no such list.
pub(crate) fn submitted(result: &Value) -> Result<Vec<Result<JobId, String>>, Error> {
    let jobs = result.get("jobs").and_then(Value::as_array);
    let jobs = jobs.ok_or_else(|| Error::message(format!("A list of jobs was expected, and not {result}")))?;
    let job = |job: &Value| match (job.get(0), job.get(1).and_then(Value::as_u64)) {
        (Some(Value::Bool(true)), Some(id)) => Ok(JobId(id)),
        _ => Err(job.get(1).map(opcodes::format::value).unwrap_or_default()),
    };
    Ok(jobs.iter().map(job).collect())
}

/// Queues one opcode that only submits jobs, and follows those in turn. Gives how many there were and how many of them
/// failed; `None` where the opcode was only to be submitted.
///
/// # Errors
/// As [`one`].
pub(crate) async fn submitting(
    session: &mut Session,
    op: Opcode,
    options: &JobOptions,
) -> Result<Option<(usize, usize)>, Error> {
    let Some(result) = one(session, op, options).await? else { return Ok(None) };
    let jobs = submitted(&result)?;
    announce_jobs(session, jobs.iter().flatten().copied())?;
    let (all, mut failed) = (jobs.len(), 0);
    for job in jobs {
        let done = match job {
            Ok(id) => wait(session, id, None).await?.is_some(),
            Err(why) => {
                session.warn(format_args!("Failed to submit job: {why}"));
                false
            }
        };
        failed += usize::from(!done);
    }
    Ok(Some((all, failed)))
}

/// Says which jobs were submitted.
pub(crate) fn announce_jobs(session: &mut Session, ids: impl Iterator<Item = JobId>) -> Result<(), Error> {
    let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
    if ids.is_empty() { Ok(()) } else { session.say(format_args!("Submitted jobs {}", ids.join(", "))) }
}

/// Follows one of several jobs, and says which. Gives its results; `None` if it failed, which was said.
///
/// # Errors
/// As [`follow`].
pub(crate) async fn wait(session: &mut Session, id: JobId, name: Option<&str>) -> Result<Option<Vec<Value>>, Error> {
    let of = name.map(|name| format!(" for {name}")).unwrap_or_default();
    session.say(format_args!("Waiting for job {id}{of} ..."))?;
    let job = follow(session, id, false).await?;
    match result(&job) {
        Ok(results) => Ok(Some(results)),
        Err(failure) => {
            session.warn(format_args!("Job {id}{of} has failed: {failure}"));
            Ok(None)
        }
    }
}

/// Says what an opcode changed: its result is a list of parameters and their new values. Gives whether there was any.
pub(crate) fn changed(session: &mut Session, kind: &str, name: &str, result: Option<&Value>) -> Result<bool, Error> {
    let changes = result.and_then(Value::as_array).filter(|changes| !changes.is_empty());
    let Some(changes) = changes else { return Ok(false) };
    session.say(format_args!("Modified {kind} {name}"))?;
    for change in changes {
        let part = |index| change.get(index).map(opcodes::format::value).unwrap_or_default();
        session.say(format_args!(" - {} -> {}", part(0), part(1)))?;
    }
    Ok(true)
}

/// A job as JSON, for scripts.
pub(crate) fn job_json(job: &Job) -> Value {
    let line =
        |line: &model::LogEntry| json!({"serial": line.serial, "time": seconds(line.at), "message": line.message});
    let op = |op: &model::Op| {
        json!({
            "input": op.input,
            "summary": op.summary,
            "status": op.status,
            "result": op.result,
            "start": op.start.map(seconds),
            "exec": op.exec.map(seconds),
            "end": op.end.map(seconds),
            "log": op.log.iter().map(line).collect::<Vec<_>>(),
        })
    };
    json!({
        "id": job.id,
        "status": job.status,
        "priority": job.priority,
        "user": job.user,
        "received": seconds(job.received),
        "start": job.start.map(seconds),
        "end": job.end.map(seconds),
        "ops": job.ops.iter().map(op).collect::<Vec<_>>(),
    })
}

fn seconds(at: model::Timestamp) -> Value {
    opcodes::wire::timestamp(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_that_an_opcode_submitted_are_found() {
        let jobs = submitted(&json!({"jobs": [[true, 75], [false, "the queue is full"]]})).unwrap();
        assert_eq!(jobs, [Ok(JobId(75)), Err("the queue is full".to_owned())]);
        assert!(submitted(&Value::Null).is_err());
    }
}
