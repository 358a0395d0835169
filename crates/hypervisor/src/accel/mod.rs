//! How guest code is run: by the hardware (KVM), or translated by QEMU (TCG).
//!
//! That `/dev/kvm` can be opened says nothing about how guests run with it: inside some virtual machines it is there,
//! answers every query, and then interprets each instruction, hundreds of times slower than TCG. So a guest of our own
//! is timed.

mod kvm;

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Instructions a second above which KVM is worth having. TCG does some hundred millions; hardware a thousand times
/// what the slow kind of KVM does (1.3 million). Anything between the two would do.
const USABLE: f64 = 50e6;
/// How long the timed guest may take altogether.
const LIMIT: Duration = Duration::from_secs(1);
/// The best of this many attempts counts: a busy machine may take the CPU away in the middle of one.
const ATTEMPTS: usize = 3;

/// The accelerator of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accelerator {
    /// Which one.
    pub kind: AcceleratorKind,
    /// Why this one, in a sentence for people.
    pub why: String,
}

/// What runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorKind {
    /// The hardware, through the kernel.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl fmt::Display for AcceleratorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AcceleratorKind::Kvm => "kvm",
            AcceleratorKind::Tcg => "tcg",
        })
    }
}

/// The accelerator that guests get on this machine: the first call probes (up to about a second, blocking), later
/// ones return what it found.
pub fn detect() -> &'static Accelerator {
    static FOUND: OnceLock<Accelerator> = OnceLock::new();
    FOUND.get_or_init(probe)
}

/// Probes. Blocks for a few seconds at most, whatever the kernel does.
pub fn probe() -> Accelerator {
    if !Path::new(kvm::DEVICE).exists() {
        return Accelerator { kind: AcceleratorKind::Tcg, why: format!("there is no {}", kvm::DEVICE) };
    }
    let mut best = 0.0_f64;
    for _ in 0..ATTEMPTS {
        match kvm::instructions_per_second(LIMIT) {
            Ok(speed) => best = best.max(speed),
            Err(error) => {
                return Accelerator {
                    kind: AcceleratorKind::Tcg,
                    why: format!("{} is there but {error}", kvm::DEVICE),
                };
            }
        }
        // An attempt that is nowhere near was not disturbed, it is slow.
        if !(USABLE / 10.0..=USABLE).contains(&best) {
            break;
        }
    }
    judge(best)
}

fn judge(speed: f64) -> Accelerator {
    let millions = speed / 1e6;
    if speed > USABLE {
        Accelerator {
            kind: AcceleratorKind::Kvm,
            why: format!("{} runs {millions:.0} million instructions a second", kvm::DEVICE),
        }
    } else {
        Accelerator {
            kind: AcceleratorKind::Tcg,
            why: format!("{} is there but runs {millions:.1} million instructions a second", kvm::DEVICE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fast_kvm_is_chosen() {
        let slow = judge(1.31e6);
        assert_eq!(slow.kind, AcceleratorKind::Tcg);
        assert_eq!(slow.why, "/dev/kvm is there but runs 1.3 million instructions a second");
        assert_eq!(judge(3e9).kind, AcceleratorKind::Kvm);
    }

    /// What it finds depends on the machine; that it returns does not.
    #[test]
    fn the_probe_returns_with_a_reason() {
        let found = probe();
        assert!(!found.why.is_empty());
        assert_eq!(detect(), detect());
    }
}
