//! What one run is.

/// What one run is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the random numbers begin.
    pub seed: u64,
    /// The nodes, a letter each: `c` candidate, `w` witness.
    pub kinds: &'static str,
    /// How many instances there are, with one mirrored disk each.
    pub disks: usize,
    /// How long faults go on, milliseconds.
    pub faults_ms: u64,
    /// Whether everything that happens is printed.
    pub trace: bool,
    /// A rule to leave out.
    #[cfg(feature = "mutants")]
    pub mutant: Option<ha::Mutant>,
}

impl Plan {
    /// Two nodes with a witness, or with an odd seed three nodes.
    pub fn new(seed: u64) -> Self {
        let (kinds, disks) = if seed.is_multiple_of(2) { ("ccw", 2) } else { ("ccc", 3) };
        Self {
            seed,
            kinds,
            disks,
            faults_ms: 12_000,
            trace: false,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}
