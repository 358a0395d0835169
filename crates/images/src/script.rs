//! Runs one script, so that nothing of it outlives its end, its cancellation or, if it can be helped, the daemon.
#![allow(unsafe_code)] // What happens between fork and exec can only be said in unsafe code.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getppid};

/// How far a script's run is. Its process group is only signalled while its number can't have been given to another.
#[derive(Debug, Default)]
enum Phase {
    #[default]
    Waiting,
    Running(Pid),
    Over,
    Cancelled,
}

/// Lets one thread cancel the script that another runs.
#[derive(Debug, Default)]
pub(crate) struct Control(Mutex<Phase>);

impl Control {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the script with all its group, or keeps it from being started.
    pub(crate) fn cancel(&self) {
        let mut phase = self.phase();
        match *phase {
            Phase::Running(pid) => kill_group(pid),
            Phase::Over => return,
            Phase::Waiting | Phase::Cancelled => {}
        }
        *phase = Phase::Cancelled;
    }

    /// Whether nobody waits for the script any more.
    pub(crate) fn cancelled(&self) -> bool {
        matches!(*self.phase(), Phase::Cancelled)
    }
}

/// A script to be run.
#[derive(Debug)]
pub(crate) struct Script<'a> {
    /// Its file.
    pub path: &'a Path,
    /// Its arguments.
    pub arguments: &'a [&'a str],
    /// Its working folder.
    pub folder: &'a Path,
    /// All of its environment.
    pub variables: &'a BTreeMap<String, String>,
    /// Where its output and its errors go.
    pub output: File,
    /// An open file that the script and its children inherit.
    pub inherit: Option<&'a File>,
}

/// Runs a script until it ends, in a process group of its own, and kills what it leaves behind in that group.
///
/// The script gets SIGKILL when the calling *thread* ends: this must be one that does nothing else.
pub(crate) fn run(script: Script<'_>, control: &Control) -> io::Result<ExitStatus> {
    let mut command = Command::new(script.path);
    command
        .args(script.arguments)
        .env_clear()
        .envs(script.variables)
        .current_dir(script.folder)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(script.output.try_clone()?)
        .stderr(script.output);
    let inherit = script.inherit.map(|file| file.as_fd().try_clone_to_owned()).transpose()?;
    let parent = getpid();
    // SAFETY: only system calls, no allocation and no lock of ours: the child of a threaded process may do no more.
    unsafe {
        command.pre_exec(move || {
            if let Some(fd) = &inherit {
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            set_pdeathsig(Signal::SIGKILL)?;
            // The daemon may have died before it could be said what shall happen then.
            if getppid() != parent { Err(Errno::ECANCELED.into()) } else { Ok(()) }
        });
    }
    let (mut child, pid) = {
        let mut phase = control.phase();
        if matches!(*phase, Phase::Cancelled) {
            return Err(Errno::ECANCELED.into());
        }
        let child = command.spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        *phase = Phase::Running(pid);
        (child, pid)
    };
    // Its number stays its own until it is reaped, and it is reaped only while nobody may signal it.
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
    let mut phase = control.phase();
    kill_group(pid);
    let status = child.wait();
    *phase = Phase::Over;
    status
}

/// Kills a process group whose leader is not reaped yet.
fn kill_group(leader: Pid) {
    if let Err(error) = killpg(leader, Signal::SIGKILL) {
        tracing::warn!(pid = leader.as_raw(), %error, "can't kill the process group of an OS script");
    }
}
