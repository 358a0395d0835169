//! A voter's answers about leases.

use std::sync::{Mutex, MutexGuard, PoisonError};

use consensus::Status;
use ha::Now;
use ha::message::{Confirm, Fence, Fenced};
use ha::voter::Voter;
use model::Incarnation;

/// This process as a voter.
///
/// Who gets a vote has confirmed nobody yet, though masters were confirmed by the voters before it; and of those a majority of
/// the new voters may know none. So it begins as one whose process has just started: with everything forgotten that may have
/// been until then.
#[derive(Debug)]
pub struct Voting(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    voter: Voter,
    votes: bool,
}

impl Voting {
    /// Of a process that has just started.
    pub fn new(now: Now) -> Self {
        Self(Mutex::new(Inner { voter: Voter::new(now), votes: false }))
    }

    /// Takes note of who votes, as soon as that is known.
    pub fn look(&self, status: &Status, now: Now) {
        drop(self.current(status, now));
    }

    /// Whether the master is confirmed. `own`: the incarnation of this node.
    pub fn confirm(&self, own: Incarnation, status: &Status, asked: &Confirm, now: Now) -> bool {
        let mut inner = self.current(status, now);
        inner.votes && asked.inc == own && inner.voter.confirm(asked.term, status.term, now)
    }

    /// How long ago a master of a lower term was confirmed; `None` if this node can't promise anything.
    pub fn fence(&self, own: Incarnation, status: &Status, asked: &Fence, now: Now) -> Option<Fenced> {
        let inner = self.current(status, now);
        let promises = inner.votes && asked.inc == own;
        let age = promises.then(|| inner.voter.fence(asked.term, status.term, now)).flatten()?;
        Some(Fenced { age_ms: age.as_millis() as u64 })
    }

    fn current(&self, status: &Status, now: Now) -> MutexGuard<'_, Inner> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let votes = status.voters.contains(&status.id);
        if votes && !inner.votes {
            inner.voter = Voter::new(now);
        }
        inner.votes = votes;
        inner
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use model::{NodeId, Uuid};

    use super::*;

    const INC: Incarnation = Incarnation { n: 1, id: Uuid::nil() };

    fn at(ms: u64) -> Now {
        Duration::from_millis(ms)
    }

    fn status(term: u64, voters: &[u64]) -> Status {
        let voters: BTreeSet<NodeId> = voters.iter().copied().map(NodeId).collect();
        Status { id: NodeId(1), term, voters, ..Status::default() }
    }

    fn confirm(term: u64) -> Confirm {
        Confirm { inc: INC, term, round: 1 }
    }

    #[test]
    fn only_a_voter_of_this_incarnation_confirms() {
        let voting = Voting::new(at(0));
        let (voter, learner) = (status(3, &[1, 2, 3]), status(3, &[2, 3]));
        assert!(voting.confirm(INC, &voter, &confirm(3), at(100)));
        assert!(!voting.confirm(INC, &voter, &confirm(2), at(100)), "deposed");
        assert!(!voting.confirm(Incarnation { n: 2, ..INC }, &voter, &confirm(3), at(100)), "another cluster's");
        assert!(!voting.confirm(INC, &learner, &confirm(3), at(100)));
        assert_eq!(voting.fence(INC, &learner, &Fence { inc: INC, term: 3 }, at(100)), None);
    }

    /// The voters before it may have confirmed an older master until the moment in which it became one of them.
    #[test]
    fn who_gets_a_vote_answers_for_the_time_before() {
        let voting = Voting::new(at(0));
        let fence = Fence { inc: INC, term: 4 };
        let age = |status: &Status, now| voting.fence(INC, status, &fence, at(now)).map(|fenced| fenced.age_ms);
        voting.look(&status(4, &[2, 3, 4]), at(5000));
        voting.look(&status(4, &[1, 4, 5]), at(9000));
        assert_eq!(age(&status(4, &[1, 4, 5]), 9200), Some(200));
        // Again after it had none.
        voting.look(&status(4, &[2, 4, 5]), at(10_000));
        assert_eq!(age(&status(4, &[1, 4, 5]), 11_000), Some(0));
    }
}
