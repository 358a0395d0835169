//! A voter's part in leases (L3, L6). It needs no disk: after a restart the age of its process stands for what it forgot.

use std::time::Duration;

use crate::Now;
use crate::mutant::{Broken, Mutant};

/// What a voter remembers of the masters that it confirmed.
#[derive(Clone, Debug)]
pub struct Voter {
    /// Highest term that it confirmed, and when it last did.
    newest: Option<(u64, Now)>,
    /// When it last confirmed a lower term than that; at the latest when its process started, because what it did before
    /// that is forgotten.
    before: Now,
    broken: Broken,
}

impl Voter {
    /// A voter whose process has just started.
    pub fn new(started: Now) -> Self {
        Self { newest: None, before: started, broken: Broken::default() }
    }

    /// The same with a rule left out.
    #[cfg(feature = "mutants")]
    pub fn with(mut self, mutant: Option<Mutant>) -> Self {
        self.broken = mutant.into();
        if self.broken.is(Mutant::VoterForgets) {
            self.before = Now::ZERO;
        }
        self
    }

    /// Whether it confirms the master of `term`, its durable Raft term being `durable`: only if they are the same (L3).
    pub fn confirm(&mut self, term: u64, durable: u64, now: Now) -> bool {
        if term != durable && !self.broken.is(Mutant::ConfirmsAnyTerm) {
            return false;
        }
        match self.newest {
            // Its durable term grows, so no lower one is ever confirmed after a higher one.
            Some((newest, _)) if newest > term => return self.broken.is(Mutant::ConfirmsAnyTerm),
            Some((newest, last)) if newest < term => self.before = last,
            _ => {}
        }
        self.newest = Some((term, now));
        true
    }

    /// How long ago it last confirmed a master of a lower term than `term`; the age of its process if it does not remember
    /// one. `None`: its durable term is lower, it can't promise anything yet (L6).
    pub fn fence(&self, term: u64, durable: u64, now: Now) -> Option<Duration> {
        let last = match self.newest {
            Some((newest, last)) if newest < term => last,
            _ => self.before,
        };
        (durable >= term).then(|| now.saturating_sub(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Duration::from_millis(ms)
    }

    /// What happens, in order: its durable term, when, who is confirmed or asked after, and the answer.
    #[test]
    fn a_voter_confirms_only_the_term_that_it_is_in_and_remembers_when() {
        let mut voter = Voter::new(at(1000));
        for (durable, now, term, confirmed) in [
            (4, 1100, 4, true),
            // it has not heard of that leader yet
            (4, 1150, 5, false),
            (4, 1200, 4, true),
            // that one is deposed
            (5, 1250, 4, false),
            (5, 1300, 5, true),
            (7, 1500, 7, true),
        ] {
            assert_eq!(voter.confirm(term, durable, at(now)), confirmed, "term {term} in {durable} at {now}");
        }
        for (durable, term, age) in [
            // it could still confirm lower ones
            (7, 8, None),
            // the last lower one was 5
            (7, 7, Some(2000 - 1300)),
            (8, 8, Some(2000 - 1500)),
        ] {
            assert_eq!(voter.fence(term, durable, at(2000)), age.map(at), "term {term} in {durable}");
        }
    }

    #[test]
    fn what_its_process_forgot_may_have_been_just_before_it_started() {
        let mut voter = Voter::new(at(500));
        assert_eq!(voter.fence(3, 3, at(800)), Some(at(300)));
        assert!(voter.confirm(3, 3, at(900)));
        assert_eq!(voter.fence(3, 3, at(1000)), Some(at(500)), "its own confirmations do not count");
    }
}
