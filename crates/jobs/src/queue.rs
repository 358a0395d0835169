//! Which job is begun next. No I/O: asked with the replicated state, answers with decisions.

use std::collections::BTreeSet;

use model::{Job, JobId, JobStatus, State};

/// What is to be done about a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Run it.
    Start(JobId),
    /// End it: a job that it depends on ended otherwise than it demands.
    Refuse(JobId, String),
}

/// What to do now, given the jobs that this master runs already: by priority, then by number, at most
/// `max_running_jobs` at once.
///
/// A job that an earlier master ran is started too, before all others: it may have left half-done work, and gets its locks
/// back before anybody else can ask for them. Its record tells how far it had come.
pub fn decide(state: &State, running: &BTreeSet<JobId>) -> Vec<Decision> {
    let limit = state.cluster.as_ref().map_or(0, |cluster| cluster.max_running_jobs as usize);
    let mut room = limit.saturating_sub(running.len());
    let mut candidates: Vec<&Job> =
        state.jobs.values().filter(|job| !job.status.is_final() && !running.contains(&job.id)).collect();
    candidates.sort_by_key(|job| (job.status != JobStatus::Running, job.priority, job.id));
    let mut decisions = Vec::new();
    for job in candidates {
        match dependency(state, job) {
            Dependency::Met if room > 0 => {
                room -= 1;
                decisions.push(Decision::Start(job.id));
            }
            Dependency::Met | Dependency::Pending => {}
            Dependency::Failed(why) => decisions.push(Decision::Refuse(job.id, why)),
        }
    }
    decisions
}

enum Dependency {
    Met,
    Pending,
    Failed(String),
}

fn dependency(state: &State, job: &Job) -> Dependency {
    for (id, wanted) in &job.depends {
        // A job that was archived is taken to have ended well: its end is not known any more.
        let status = state.jobs.get(id).map_or(JobStatus::Success, |other| other.status);
        if !status.is_final() {
            return Dependency::Pending;
        }
        if !wanted.is_empty() && !wanted.contains(&status) {
            return Dependency::Failed(format!("job {id}, which it depends on, ended with status {}", status.word()));
        }
    }
    Dependency::Met
}
