//! What is left when the guard is ended on purpose: protected guests go on, but not beyond their lease.
//!
//! A guard that is restarted by an operator or a package is back within a second, and its guests should not notice. One that
//! is not back when the lease ends must not leave guests running that another node takes over. A guard can't wait for either
//! itself: service managers start the next one only when it has ended.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ha::Now;
use nix::sys::signal::Signal;

use super::guests::LeftBehind;
use super::timer::Alarm;
use super::{LOCK, RUNS};
use crate::clock::boottime;
use crate::home;

/// How often it is looked whether the next guard is there.
const LOOK: Duration = Duration::from_millis(20);

/// Starts [`lookout`] in a process of its own, which outlives this one.
pub(super) fn start(command: &[OsString], until: Now) -> std::io::Result<u32> {
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).arg(until.as_millis().to_string()).arg(std::process::id().to_string());
    // A signal to the whole group of the guard is not for it.
    process.stdin(Stdio::null()).process_group(0).spawn().map(|child| child.id())
}

/// Waits for the end of the lease and stops the guests that the last guard watched, unless there is a new one by then. The
/// last one was process `guard`, which may not have ended yet.
///
/// # Errors
/// When the run directory or a timer can't be used.
pub async fn lookout(run_dir: &Path, until: Now, guard: i32) -> std::io::Result<()> {
    let alarm = Alarm::new()?;
    // Handles first: what has its number by then may be another process.
    let left = LeftBehind::read(&run_dir.join(RUNS), &crate::config::boot_id()?);
    let protected = left.runs.into_iter().filter(|watched| watched.protected);
    let guests: Vec<_> = protected.filter_map(|it| Some((it.run, it.process?.open().ok()??))).collect();
    let lock = run_dir.join(LOCK);
    loop {
        if home::holder(&lock)?.flatten().is_some_and(|holder| holder != guard) {
            return Ok(());
        }
        let now = boottime();
        if now >= until {
            // With the lock: no new guard lets go on what is stopped after that.
            let locked = home::try_lock(&lock)?;
            for (run, process) in &guests {
                if let Err(error) = process.signal(Signal::SIGSTOP) {
                    tracing::error!(%run, %error, "a guest does not take a signal");
                }
            }
            drop(locked);
            tracing::warn!(guests = guests.len(), "the lease has ended and there is no guard: guests are stopped");
            return Ok(());
        }
        alarm.at((now + LOOK).min(until)).await?;
    }
}
