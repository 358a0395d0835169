//! `cardume daemon`: this node's daemon, until a signal ends it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::log::{self, LogFormat};

/// Threads of the daemon. It waits most of the time; guests need the cores.
const THREADS: usize = 2;

/// Options of `cardume daemon`.
#[derive(Args)]
pub struct DaemonArgs {
    /// Folder for what must survive a reboot: identity, log, state.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cardume", env = "CARDUME_STATE_DIR")]
    pub state_dir: PathBuf,
    /// Folder for what must not: sockets and running guests.
    #[arg(long, value_name = "DIR", default_value = "/run/cardume", env = "CARDUME_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Folder for the logs of guests and of operating systems' scripts.
    #[arg(long, value_name = "DIR", default_value = "/var/log/cardume", env = "CARDUME_LOG_DIR")]
    log_dir: PathBuf,
    /// Folders with definitions of operating systems, separated by ':'; searched before the usual ones.
    #[arg(long, value_name = "DIRS", env = "CARDUME_OS_SEARCH_PATH")]
    os_search_path: Option<String>,
    /// QEMU's program.
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/qemu-system-x86_64", env = "CARDUME_QEMU")]
    qemu: PathBuf,
    /// How the log on standard error is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "CARDUME_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// Runs the daemon.
pub fn run(args: DaemonArgs) -> anyhow::Result<ExitCode> {
    log::begin(args.log_format, std::io::stderr);
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("can't start the daemon's threads")?;
    let code = runtime.block_on(serve(args));
    // A name that is being looked up, or a slow disk, must not hold up the end.
    runtime.shutdown_background();
    code
}

async fn serve(args: DaemonArgs) -> anyhow::Result<ExitCode> {
    let mut config = node::Config::new(args.state_dir).context("can't find out what this machine is called")?;
    let socket = args.run_dir.join("api.sock");
    config.run_dir = args.run_dir;
    config.log_dir = args.log_dir;
    config.qemu = args.qemu;
    if let Some(first) = args.os_search_path {
        let usual = std::mem::take(&mut config.os_search_path);
        config.os_search_path =
            first.split(':').filter(|dir| !dir.is_empty()).map(PathBuf::from).chain(usual).collect();
    }
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;

    let daemon = node::start(config).await.context("can't start the daemon")?;
    let api = api::serve_socket(daemon.handle(), &socket).await.context("can't open the API's socket")?;
    tracing::info!(version = node::VERSION, socket = %socket.display(), "ready");
    let code = tokio::select! {
        _ = terminate.recv() => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::SUCCESS,
        reason = daemon.failed() => {
            tracing::error!(reason, "this daemon can't go on");
            ExitCode::FAILURE
        }
    };
    tracing::info!("ending; guests go on running");
    drop(api);
    daemon.shutdown().await;
    Ok(code)
}

/// As many open files as the system allows: each connection and each guest takes some, and the usual 1,024 are few.
fn raise_file_limit() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most)
    {
        tracing::warn!(%error, "the limit of open files stays as it was");
    }
}
