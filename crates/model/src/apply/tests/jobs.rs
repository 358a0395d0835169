//! The job queue.

use super::super::testing::run;
use super::*;
use crate::{Applied, ClusterChange, JobStatus, MAX_QUEUED_JOBS};

fn new_job(change: impl FnOnce(&mut NewJob)) -> Command {
    let Command::SubmitJob(mut job) = submit(1) else { unreachable!() };
    change(&mut job);
    Command::SubmitJob(job)
}

fn begun(step: &str) -> JobChange {
    JobChange::StepBegun { op: 0, step: step.into() }
}

fn done(step: &str, output: Value) -> JobChange {
    JobChange::StepDone { op: 0, step: step.into(), output }
}

fn committed(step: &str) -> JobChange {
    JobChange::Committed { op: 0, step: step.into() }
}

fn log(message: &str) -> JobChange {
    JobChange::Log { op: 0, message: message.into() }
}

fn success(op: usize) -> JobChange {
    ended(op, JobEnd::Success(json!(op)))
}

fn statuses(state: &State, job: u64) -> (JobStatus, Vec<JobStatus>) {
    let job = &state.jobs[&JobId(job)];
    (job.status, job.ops.iter().map(|op| op.status).collect())
}

#[test]
fn a_job_makes_sense_when_it_is_queued() {
    check_refused(vec![
        ("no opcodes", new_job(|job| job.ops.clear()), "A job needs at least one opcode"),
        ("priority", new_job(|job| job.priority = -21), "Priority -21 is not in range [-20, 19]"),
        ("priority", new_job(|job| job.priority = 20), "Priority 20 is not in range [-20, 19]"),
        ("a later job", new_job(|job| job.depends = vec![(JobId(99), vec![])]), "Job '99' not known"),
        ("job zero", new_job(|job| job.depends = vec![(JobId(0), vec![])]), "Job '0' not known"),
    ]);
    // it can't wait for itself
    let mut state = busy();
    assert!(run(&mut state, vec![new_job(|job| job.depends = vec![(JobId(7), vec![])])]).is_err());
    assert_eq!(run(&mut state, vec![submit(1)]), Ok(vec![Applied::Job(JobId(7))]));
}

#[test]
fn a_drained_or_full_queue_takes_no_jobs() {
    let drain = |drained| Command::ModifyCluster(ClusterChange { drained: Some(drained), ..ClusterChange::default() });
    let mut state = after(vec![drain(true)]);
    assert_eq!(run(&mut state, vec![submit(1)]).unwrap_err().to_string(), "Job queue is drained, refusing job");
    run(&mut state, vec![drain(false), submit(1)]).unwrap();

    let mut state = busy();
    run(&mut state, vec![submit(1); MAX_QUEUED_JOBS - 3]).unwrap();
    assert_eq!(
        run(&mut state, vec![submit(1)]).unwrap_err().to_string(),
        "Job queue is full (5000 unfinished jobs), wait for some to end"
    );
    // who ends makes room
    run(&mut state, vec![Command::CancelJob { job: JobId(1) }, submit(1)]).unwrap();
}

/// Jobs 1 to 6: queued, waiting, running, success, error, canceled.
#[test]
fn a_record_fits_what_was_recorded_before() {
    check_refused(vec![
        ("unknown", record(99, vec![]), "Job '99' not known"),
        ("no such opcode", record(3, vec![JobChange::Running { op: 2 }]), "Job 3 has no opcode 2"),
        ("ended well", record(4, vec![log("more")]), "Job 4 has ended already (success)"),
        ("failed", record(5, vec![JobChange::Running { op: 1 }]), "Job 5 has ended already (error)"),
        ("cancelled", record(6, vec![JobChange::Running { op: 0 }]), "Job 6 has ended already (canceled)"),
        ("an opcode that has ended", record(3, vec![success(0), log("more")]), "Opcode 0 of job 3 has ended already"),
        ("not begun", record(3, vec![done("other", Value::Null)]), "Step 'other' of job 3 was not begun"),
        ("backwards", record(3, vec![JobChange::Waiting { op: 0 }]), "Opcode 0 of job 3 is running already"),
        (
            "begun again",
            record(3, vec![done("half", Value::Null), begun("half")]),
            "Step 'half' of job 3 is done already",
        ),
        (
            "done again",
            record(3, vec![done("half", Value::Null), done("half", json!(2))]),
            "Step 'half' of job 3 is done already",
        ),
        ("committed twice", record(3, vec![committed("a"), committed("a")]), "Step 'a' of job 3 is done already"),
    ]);
}

#[test]
fn a_step_that_is_done_without_a_result_is_done_after_a_snapshot_too() {
    let state = after(vec![record(3, vec![done("half", Value::Null)])]);
    let copy: State = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    assert_eq!(copy, state);
    assert!(copy.jobs[&JobId(3)].ops[0].steps["half"].done.is_some());
}

#[test]
fn a_committed_step_keeps_what_its_batch_did() {
    let own = Command::Own { instance: VM2, node: NodeId(2) };
    let state = after(vec![own, submit(1), record(3, vec![committed("own")])]);
    let step = &state.jobs[&JobId(3)].ops[0].steps["own"];
    let output = step.done.as_ref().unwrap().output.clone();
    let did: Vec<Applied> = serde_json::from_value(output).unwrap();
    assert_eq!(did, [Applied::Run(RunId(2)), Applied::Job(JobId(7))]);
}

/// Each row: what is recorded of a job of two opcodes, the job's status, its opcodes'.
#[test]
fn the_status_of_a_job_follows_its_opcodes() {
    use JobStatus::{Canceled, Error, Queued, Running, Success, Waiting};
    let (waiting, running) = (|op| JobChange::Waiting { op }, |op| JobChange::Running { op });
    for (changes, job, ops) in [
        (vec![], Queued, [Queued, Queued]),
        (vec![waiting(0)], Waiting, [Waiting, Queued]),
        (vec![waiting(0), running(0)], Running, [Running, Queued]),
        (vec![running(0), running(0)], Running, [Running, Queued]),
        (vec![running(0), success(0)], Running, [Success, Queued]),
        (vec![success(0), waiting(1)], Waiting, [Success, Waiting]),
        (vec![success(0), success(1)], Success, [Success, Success]),
        (vec![running(0), ended(0, JobEnd::Error(json!("no")))], Error, [Error, Error]),
        (vec![success(0), ended(1, JobEnd::Error(json!("no")))], Error, [Success, Error]),
        (vec![ended(0, JobEnd::Canceled)], Canceled, [Canceled, Canceled]),
        (vec![success(0), ended(1, JobEnd::Canceled)], Canceled, [Success, Canceled]),
    ] {
        let state = after(vec![record(1, changes.clone())]);
        assert_eq!(statuses(&state, 1), (job, ops.to_vec()), "{changes:?}");
        assert_eq!(state.jobs[&JobId(1)].end.is_some(), job.is_final(), "{changes:?}");
    }
    let state = after(vec![record(1, vec![ended(0, JobEnd::Error(json!("no")))])]);
    assert_eq!(state.jobs[&JobId(1)].ops[1].result, "Preceding opcode failed");
}

#[test]
fn lines_of_a_log_are_numbered_through_the_whole_job() {
    let log = |op, message: &str| JobChange::Log { op, message: message.into() };
    let state = after(vec![record(1, vec![log(0, "a"), log(0, "b"), success(0), log(1, "c")])]);
    let lines: Vec<(u64, &str)> = state.jobs[&JobId(1)]
        .ops
        .iter()
        .flat_map(|op| &op.log)
        .map(|line| (line.serial, line.message.as_str()))
        .collect();
    assert_eq!(lines, [(1, "a"), (2, "b"), (3, "c")]);
}

#[test]
fn what_has_not_begun_can_be_cancelled() {
    let cancel = |job: u64| Command::CancelJob { job: JobId(job) };
    check_refused(vec![
        ("unknown", cancel(99), "Job '99' not known"),
        ("running", cancel(3), "Job 3 can't be cancelled any more (running)"),
        ("ended", cancel(4), "Job 4 has ended already (success)"),
        ("cancelled", cancel(6), "Job 6 has ended already (canceled)"),
    ]);
    for job in [1, 2] {
        let state = after(vec![cancel(job)]);
        assert_eq!(statuses(&state, job), (JobStatus::Canceled, vec![JobStatus::Canceled; 2]));
        assert_eq!(state.jobs[&JobId(job)].ops[0].result, "Job canceled by request");
    }
}

#[test]
fn what_has_ended_can_be_archived() {
    let archive = |job: u64| Command::ArchiveJob { job: JobId(job) };
    check_refused(vec![
        ("unknown", archive(99), "Job '99' not known"),
        ("queued", archive(1), "Job 1 has not ended yet (queued)"),
        ("waiting", archive(2), "Job 2 has not ended yet (waiting)"),
        ("running", archive(3), "Job 3 has not ended yet (running)"),
    ]);
    let state = after(vec![archive(4), archive(5), archive(6)]);
    assert_eq!(state.jobs.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 2, 3]);
    // a number is not given again
    assert!(after(vec![archive(6), submit(1)]).jobs.contains_key(&JobId(7)));
}
