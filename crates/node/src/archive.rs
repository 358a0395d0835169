//! Which finished jobs are taken out of the queue. No clock, no I/O: asked with the state and the time.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use model::{JobId, State, Timestamp};

/// How long the end of a job can be looked up: as with Ganeti's watcher, six hours.
const KEPT: u64 = 6 * 3600 * 1_000_000;
/// How many finished jobs are kept at the most. One that made an instance takes some 10 kB of the state, which goes over
/// the network whole to a node that joins.
const MOST: usize = 2000;
/// How many are archived in one entry of the log.
const BATCH: usize = 500;

/// Jobs to archive now: those that ended more than [`KEPT`] ago, and the oldest beyond [`MOST`]. Not those whose end another
/// job still waits to know.
pub fn due(state: &State, now: Timestamp) -> Vec<JobId> {
    let unfinished = state.jobs.values().filter(|job| !job.status.is_final());
    let awaited: BTreeSet<JobId> = unfinished.flat_map(|job| job.depends.iter().map(|(id, _)| *id)).collect();
    let finished = state.jobs.values().filter(|job| job.status.is_final() && !awaited.contains(&job.id));
    let mut ended: Vec<(Timestamp, JobId)> = finished.map(|job| (job.end.unwrap_or(job.received), job.id)).collect();
    ended.sort_by_key(|entry| Reverse(*entry));
    let old = ended.iter().enumerate().filter(|(place, (end, _))| *place >= MOST || now.0.saturating_sub(end.0) > KEPT);
    let mut due: Vec<JobId> = old.map(|(_, (_, id))| *id).collect();
    // The oldest first.
    due.reverse();
    due.truncate(BATCH);
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Job, JobStatus};

    const NOW: Timestamp = Timestamp(1_000 * 3600 * 1_000_000);

    /// A queue of jobs: number, state, hours since it ended.
    fn queue(jobs: impl IntoIterator<Item = (u64, JobStatus, u64)>) -> State {
        let mut state = State::default();
        for (id, status, hours) in jobs {
            let at = Timestamp(NOW.0 - hours * 3600 * 1_000_000);
            let job = Job {
                id: JobId(id),
                ops: Vec::new(),
                status,
                priority: 0,
                depends: Vec::new(),
                user: "root".into(),
                received: at,
                start: None,
                end: status.is_final().then_some(at),
                cancel: false,
                log_serial: 0,
            };
            state.jobs.insert(job.id, job);
        }
        state
    }

    fn ids(numbers: impl IntoIterator<Item = u64>) -> Vec<JobId> {
        numbers.into_iter().map(JobId).collect()
    }

    #[test]
    fn jobs_that_ended_long_ago_go_and_others_stay() {
        use JobStatus::{Canceled, Error, Queued, Running, Success};
        let state = queue([
            (1, Success, 7),
            (2, Error, 8),
            (3, Canceled, 7),
            (4, Success, 6),
            (5, Running, 100),
            (6, Queued, 100),
            (7, Success, 0),
        ]);
        assert_eq!(due(&state, NOW), ids([2, 1, 3]));
    }

    #[test]
    fn the_end_of_a_job_stays_known_to_those_that_wait_for_it() {
        let mut state = queue([(1, JobStatus::Error, 9), (2, JobStatus::Error, 9), (3, JobStatus::Queued, 9)]);
        state.jobs.get_mut(&JobId(3)).unwrap().depends = vec![(JobId(1), vec![JobStatus::Success])];
        assert_eq!(due(&state, NOW), ids([2]));
    }

    #[test]
    fn no_more_than_so_many_are_kept_and_the_oldest_go_first() {
        let surplus = 3;
        let most = u64::try_from(MOST).unwrap();
        let mut state = queue((1..=most + surplus).map(|id| (id, JobStatus::Success, 0)));
        assert_eq!(due(&state, NOW), ids([1, 2, 3]));
        for id in due(&state, NOW) {
            state.jobs.remove(&id);
        }
        assert_eq!(due(&state, NOW), ids([]));
    }

    #[test]
    fn a_long_queue_goes_in_batches() {
        let state = queue((1..=3 * BATCH as u64).map(|id| (id, JobStatus::Success, 10)));
        assert_eq!(due(&state, NOW), ids(1..=BATCH as u64));
    }

    #[test]
    fn a_clock_that_was_set_back_archives_nothing() {
        let state = queue([(1, JobStatus::Success, 0)]);
        assert_eq!(due(&state, Timestamp(5)), ids([]));
    }
}
