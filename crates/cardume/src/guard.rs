//! `cardume guard`: this node's guard, which keeps the daemon running and stops guests when the node's lease runs out.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use node::guard::GuardConfig;

use crate::daemon::DaemonArgs;
use crate::log::{self, Aside};

/// Options of `cardume guard`: the daemon's, which it is started with.
#[derive(Args)]
pub struct GuardArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// How a guard that ends leaves protected guests: watched until that time since the machine's boot, milliseconds,
    /// unless there is a guard in another process than that.
    #[arg(long, num_args = 2, value_names = ["UNTIL", "GUARD"], hide = true)]
    lookout: Option<Vec<u64>>,
}

/// Runs the guard.
pub fn run(args: GuardArgs) -> anyhow::Result<ExitCode> {
    let writer = Aside::new();
    log::begin(args.daemon.log_format, writer.clone());
    node::guard::favour();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the guard's runtime")?;
    let outcome = runtime.block_on(watch(args));
    writer.flush();
    // A disk that hangs must not hold up the end.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn watch(args: GuardArgs) -> anyhow::Result<()> {
    let GuardArgs { daemon, lookout } = args;
    if let Some([until, guard]) = lookout.as_deref() {
        let guard = i32::try_from(*guard).context("that is no process")?;
        return node::guard::lookout(&daemon.run_dir, Duration::from_millis(*until), guard)
            .await
            .context("can't watch guests until their lease ends");
    }
    // Now: when the daemon is started anew the file may be another one, of a newer version, under the same name.
    let program = std::env::current_exe().context("can't find this program's file")?;
    let options: Vec<OsString> = std::env::args_os().skip(2).collect();
    let command = |word: &str, more: &[&str]| {
        let words = [OsString::from(&program), word.into()].into_iter();
        words.chain(options.iter().cloned()).chain(more.iter().map(OsString::from)).collect()
    };
    let config = GuardConfig {
        state_dir: daemon.state_dir,
        run_dir: daemon.run_dir,
        daemon: command("daemon", &[]),
        lookout: command("guard", &["--lookout"]),
        times: node::guard::Times::default(),
    };
    node::guard::run(config).await.context("can't run the guard")
}
