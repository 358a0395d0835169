//! What must hold in every history.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher as _};

use consensus::{Status, View};
use model::{JobId, State};

/// Everything that was seen, and everything that was wrong with it.
#[derive(Default)]
pub struct Oracle {
    /// The one history: what the state is after each index.
    states: BTreeMap<u64, u64>,
    /// Who led in each term.
    leaders: BTreeMap<u64, u64>,
    /// Confirmed to the client: whose job got which number, by the index of its entry.
    acked: Vec<(u64, JobId, String)>,
    /// Refused before it was appended: must never take effect.
    refused: BTreeSet<String>,
    pub violations: Vec<String>,
    pub events: DefaultHasher,
}

impl Oracle {
    /// A member has published a state.
    pub fn published(&mut self, node: u64, before: u64, view: &View) {
        (node, view.index, view.term).hash(&mut self.events);
        if view.index < before {
            self.violations.push(format!("node {node} went back from {before} to {}", view.index));
        }
        let digest = digest(&view.state);
        let known = *self.states.entry(view.index).or_insert(digest);
        if known != digest {
            self.violations.push(format!("node {node} differs at index {}", view.index));
        }
        let newest = self.acked.iter().rev().take(20);
        let lost: Vec<String> =
            newest.filter(|acked| acked.0 <= view.index).filter_map(|acked| missing(acked, &view.state)).collect();
        self.violations.extend(lost);
    }

    /// A member has changed its mind about the group.
    pub fn status(&mut self, status: &Status) {
        (status.id.0, status.term, status.leader.map(|id| id.0)).hash(&mut self.events);
        if status.is_leader {
            let known = *self.leaders.entry(status.term).or_insert(status.id.0);
            if known != status.id.0 {
                self.violations.push(format!("term {} has two leaders, {known} and {}", status.term, status.id));
            }
        }
        if let Some(failed) = &status.failed {
            self.violations.push(format!("node {} stopped: {failed}", status.id));
        }
    }

    pub fn acked(&mut self, index: u64, job: JobId, user: String) {
        (index, job.0, &user).hash(&mut self.events);
        self.acked.push((index, job, user));
    }

    pub fn refused(&mut self, user: String) {
        user.hash(&mut self.events);
        self.refused.insert(user);
    }

    /// How much has been confirmed so far.
    pub fn acked_so_far(&self) -> usize {
        self.acked.len()
    }

    /// A read behind a barrier shows all that was confirmed before the barrier began.
    pub fn read(&mut self, node: u64, confirmed: usize, state: &State) {
        let lost: Vec<String> = self.acked[..confirmed].iter().filter_map(|acked| missing(acked, state)).collect();
        self.violations.extend(lost.into_iter().map(|lost| format!("stale read at node {node}: {lost}")));
    }

    /// The state at the end.
    pub fn finish(&mut self, state: &State) {
        let lost: Vec<String> = self.acked.iter().filter_map(|acked| missing(acked, state)).collect();
        self.violations.extend(lost);
        let mut seen = BTreeSet::new();
        for job in state.jobs.values() {
            if self.refused.contains(&job.user) {
                self.violations.push(format!("refused, and took effect: {}", job.user));
            }
            if !seen.insert(&job.user) {
                self.violations.push(format!("proposed once, took effect twice: {}", job.user));
            }
        }
    }
}

fn missing((index, id, user): &(u64, JobId, String), state: &State) -> Option<String> {
    let there = state.jobs.get(id).is_some_and(|job| job.user == *user);
    (!there).then(|| format!("confirmed at index {index}, and lost: job {id} of {user}"))
}

fn digest(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    (state.incarnation, state.last_job, state.last_node).hash(&mut hasher);
    state.office.map(|office| (office.node, office.term)).hash(&mut hasher);
    for (id, job) in &state.jobs {
        (id.0, &job.user, job.status.word()).hash(&mut hasher);
    }
    hasher.finish()
}
