//! Deliberate faults, for the tests of the tests: a simulation that does not find them proves nothing. They can be chosen only
//! with the feature `mutants`.

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "nothing can choose one"))]
pub enum Mutant {
    /// L3: a voter confirms a master whatever term it is in itself.
    ConfirmsAnyTerm,
    /// L6: a voter that was restarted does not count what it forgot.
    VoterForgets,
    /// L2: a request is granted at once.
    GrantWithoutRound,
    /// L2: a request joins the round that is in flight, which began before the request was sent.
    JoinsRoundInFlight,
    /// L5: leases are granted before the office entry is applied.
    GrantBeforeOffice,
    /// L6: what older masters granted is not asked for.
    NoFenceWait,
    /// L7: a life that is about to be declared dead still gets leases.
    GrantToCondemned,
    /// L7: nodes are declared dead without a round that shows that this master's network is good.
    CondemnUnproved,
    /// L4: a lease is counted from the moment at which the grant comes in.
    RenewedByAnswering,
    /// L8: a guest that was stopped goes on with any new lease.
    ContinuedWithoutAsking,
    /// L8: a guest that was stopped goes on after a while.
    ContinuedOnTimeout,
    /// L8: a run that is registered while there is no lease runs on.
    RunSlipsIn,
}

/// Which rule is left out, if one is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Broken {
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

impl Broken {
    /// Whether that rule is left out.
    pub fn is(self, mutant: Mutant) -> bool {
        #[cfg(feature = "mutants")]
        return self.mutant == Some(mutant);
        #[cfg(not(feature = "mutants"))]
        {
            let _ = mutant;
            false
        }
    }
}

#[cfg(feature = "mutants")]
impl From<Option<Mutant>> for Broken {
    fn from(mutant: Option<Mutant>) -> Self {
        Self { mutant }
    }
}
