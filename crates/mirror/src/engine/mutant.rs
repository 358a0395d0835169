//! Deliberate faults, for the tests of the tests: a simulation that does not find them proves nothing. They exist only
//! with the feature `mutants`.

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// O3: writes are acknowledged before the member that lacks them is outdated.
    AckBeforeOutdate,
    /// 5.6: no empty Outdate after a restart of the daemon.
    NoEmptyOutdate,
    /// J5: a replica leaves `must_ack` although its InSync may still be accepted.
    DropBeforeVersionGrew,
    /// J4: InSync is proposed before the replica is in `must_ack`.
    InSyncBeforeMustAck,
    /// 5.1: a Hello is answered before the I/O of older links has ended.
    NoDrainAtHello,
    /// 5.1: frames of an older link are still read.
    OldLinkStillRead,
    /// O3: the link to an outdated member is kept.
    LinkKeptAfterOutdate,
    /// 5.6: windows are not reconciled.
    NoReconcile,
    /// J3: a copy does not lock its range.
    CopyWithoutLock,
    /// J4: no flush before InSync.
    NoFlushBeforeInSync,
    /// J4 as first written: nothing flushes what is answered while the replica flushes its copies.
    NoFlushAtFinish,
    /// O3: the bitmap of an outdated member is not seeded.
    WindowNotSeeded,
    /// S4: what is sent to a joining replica is not marked.
    JoiningNotMarked,
    /// S4: secondaries don't mark.
    MarksOnlyAtPrimary,
    /// 5.6: what a newly admitted guest sees is not flushed first.
    NoFlushAtPromotion,
    /// W1: requests of any run are admitted.
    AnyRun,
}
