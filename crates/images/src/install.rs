//! Runs the scripts of a definition for an instance.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::sync::oneshot;

use crate::definition::System;
use crate::environment::Environment;
use crate::error::{Error, Result, io};
use crate::lock;
use crate::script::{self, Control, Script};

/// So many lines of a log are quoted in an error.
const QUOTED_LINES: usize = 20;
/// They are looked for in so many bytes at its end.
const QUOTED_BYTES: u64 = 16 << 10;

/// Puts an operating system on an instance's disks: runs the definition's script `create`, as the user that the daemon
/// runs as, in its folder, with its output in `log_file` (made with its folders, appended to).
///
/// A second run with the same `lock_file` never overlaps with a first one. It ends it: what is left of a run whose
/// daemon died or whose future was dropped, or even one that somebody still waits for, is killed, and its end is waited
/// for. When this returns without an error, no process that the script started has a disk open any more, unless it
/// closed the descriptors that it inherited and left its process group.
///
/// Dropping the future kills the script with its process group.
///
/// # Errors
/// [`Error::UnknownParameters`]; [`Error::Busy`]; [`Error::Script`] if the script fails; [`Error::Io`].
pub async fn create(system: &System, environment: &Environment, log_file: &Path, lock_file: &Path) -> Result<()> {
    let variables = environment.variables(system)?;
    let folder = system.path.clone();
    let (log_file, lock_file) = (log_file.to_owned(), lock_file.to_owned());
    on_a_thread(folder.clone(), move |control| {
        let lock = lock::take(&lock_file, || control.cancelled())?.ok_or_else(|| cancelled(&folder))?;
        let log = open_log(&log_file)?;
        let begin = log.metadata().map_err(io("look at", &log_file))?.len();
        let path = folder.join("create");
        let script = Script {
            path: &path,
            arguments: &[],
            folder: &folder,
            variables: &variables,
            output: log,
            inherit: Some(&lock),
        };
        let status = script::run(script, control).map_err(io("run", &path))?;
        lock::clear(&lock, &lock_file)?;
        judge("create", status, || File::open(&log_file).map(|log| (log, begin)))
    })
    .await
}

/// Asks a definition whether it can work with the parameters that hold: runs its script `verify`. Definitions of
/// interface versions below 20 have none and agree.
///
/// Dropping the future kills the script with its process group.
///
/// # Errors
/// [`Error::UnknownParameters`]; [`Error::Script`] if the script refuses; [`Error::Io`].
pub async fn verify(system: &System, environment: &Environment) -> Result<()> {
    let variables = environment.variables(system)?;
    if !system.has_parameters() {
        return Ok(());
    }
    let folder = system.path.clone();
    on_a_thread(folder.clone(), move |control| {
        let path = folder.join("verify");
        let output: File =
            memfd_create(c"verify", MFdFlags::MFD_CLOEXEC).map_err(io("keep the output of", &path))?.into();
        let script = Script {
            path: &path,
            arguments: &["parameters"],
            folder: &folder,
            variables: &variables,
            output: output.try_clone().map_err(io("keep the output of", &path))?,
            inherit: None,
        };
        let status = script::run(script, control).map_err(io("run", &path))?;
        judge("verify", status, || Ok((output, 0)))
    })
    .await
}

/// What those who dropped the future would be told if they were still there.
fn cancelled(folder: &Path) -> Error {
    io("go on with", folder)(io::Error::from(io::ErrorKind::Interrupted))
}

/// Cancels a script's run when its future is dropped.
struct Cancel(Arc<Control>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Runs `work` on a thread that ends with it: a script dies with the thread that started it, and those of a pool end
/// when the pool thinks fit.
async fn on_a_thread<F>(folder: PathBuf, work: F) -> Result<()>
where
    F: FnOnce(&Control) -> Result<()> + Send + 'static,
{
    let control = Arc::new(Control::default());
    let cancel = Cancel(Arc::clone(&control));
    let (done, ended) = oneshot::channel::<()>();
    let thread = thread::Builder::new()
        .name("os-script".to_owned())
        .spawn(move || {
            let _done = done;
            work(&control)
        })
        .map_err(io("start a thread for the scripts of", folder))?;
    // Nothing is ever sent: the channel ends with the thread.
    let _ = ended.await;
    drop(cancel);
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn open_log(log_file: &Path) -> Result<File> {
    if let Some(folder) = log_file.parent() {
        fs::create_dir_all(folder).map_err(io("create the folder", folder))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(log_file).map_err(io("open the log", log_file))
}

fn judge(name: &'static str, status: ExitStatus, log: impl FnOnce() -> io::Result<(File, u64)>) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let reason = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with exit code {code}"),
        (None, Some(signal)) => format!("terminated by signal {signal}"),
        (None, None) => status.to_string(),
    };
    // That the script failed is said also when it can't be said why.
    let lines = log()
        .and_then(|(log, begin)| last_lines(log, begin))
        .unwrap_or_else(|error| vec![format!("(the log can't be read: {error})")]);
    Err(Error::Script { script: name, reason, lines })
}

/// The last lines that were written after `begin`.
fn last_lines(mut log: File, begin: u64) -> io::Result<Vec<String>> {
    let end = log.metadata()?.len();
    let from = begin.max(end.saturating_sub(QUOTED_BYTES));
    log.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    log.take(QUOTED_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<_> = text.lines().rev().take(QUOTED_LINES).map(str::to_owned).collect();
    lines.reverse();
    Ok(lines)
}
