//! Times and limits.

/// What can be set. The defaults are the protocol's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Without a frame from a replica for this long while something waits for it, its link is lost; milliseconds.
    pub t_peer_ms: u64,
    /// How long acknowledgements are held for a lost member before it is outdated, in strict mode; milliseconds.
    pub t_out_strict_ms: u64,
    /// The same in manual mode.
    pub t_out_manual_ms: u64,
    /// An I/O of the medium that takes longer fails the replica; milliseconds.
    pub t_disk_ms: u64,
    /// How often timeouts are looked at, and links are pinged; milliseconds.
    pub t_tick_ms: u64,
    /// Pause before a lost link is tried again; milliseconds.
    pub t_reconnect_ms: u64,
    /// Pause before a proposal is made again whose outcome is unknown; milliseconds.
    pub t_propose_ms: u64,
    /// In manual mode: whether a primary that lost its peer and can't reach the log goes on alone (protocol, 7.2).
    pub continue_alone: bool,
    /// Guest writes under way at once.
    pub max_writes: usize,
    /// How far the newest write's number may be ahead of the oldest one under way.
    pub max_span: u64,
    /// Bytes of guest writes under way at once; a single larger one is taken alone.
    pub max_write_bytes: u64,
    /// Copies under way at once while the guest is idle.
    pub max_copies: usize,
    /// Copies under way at once while the guest has requests under way.
    pub busy_copies: usize,
    /// Bytes of one copy; a multiple of the bitmap's block.
    pub copy_bytes: u64,
    /// Joins within [`Self::t_flap_ms`] after which a replica waits before its next one.
    pub flap_joins: usize,
    /// See there; milliseconds.
    pub t_flap_ms: u64,
    /// A rule to leave out.
    #[cfg(feature = "mutants")]
    pub mutant: Option<super::Mutant>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            t_peer_ms: 400,
            t_out_strict_ms: 1_000,
            t_out_manual_ms: 6_000,
            t_disk_ms: 30_000,
            t_tick_ms: 50,
            t_reconnect_ms: 100,
            t_propose_ms: 200,
            continue_alone: true,
            max_writes: 256,
            max_span: 1024,
            max_write_bytes: 64 << 20,
            max_copies: 16,
            busy_copies: 2,
            copy_bytes: 128 << 10,
            flap_joins: 3,
            t_flap_ms: 600_000,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}
