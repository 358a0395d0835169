//! What the guard asks of the kernel for itself: its memory stays, and it runs before others.
#![allow(unsafe_code)] // Neither MCL_ONFAULT nor sched_setscheduler has a safe wrapper in nix.

use nix::errno::Errno;

/// Above everything that is not realtime, below what the kernel itself runs so.
const PRIORITY: libc::c_int = 10;

/// Locks this process's memory as it comes into use, and gives this thread realtime priority; its children and other
/// threads do not inherit that. What is refused is said once in the log: the guard works without.
pub fn favour() {
    // Only what is touched: all of the program would be tens of MiB, of which the guard uses little.
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: the call takes an integer and no memory.
    if let Err(error) = Errno::result(unsafe { libc::mlockall(flags) }) {
        tracing::warn!(%error, "the guard's memory can't be locked: it may be late on a machine that swaps");
    }
    let param = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the pointer is to a value that outlives the call, which only reads it. Zero is this thread.
    if let Err(error) = Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const param) }) {
        tracing::warn!(%error, "the guard gets no realtime priority: it may be late on a busy machine");
    }
}
