//! Named points at which a test holds the daemon, to end something exactly there.
//!
//! Only a daemon that was started with [`VARIABLE`] has any. A point `P` holds whoever comes to it while the file `P` is in
//! that folder; `P.reached` is made as soon as somebody is held. Points are
//! - `master.CALL.before` and `master.CALL.after`: the master is about to ask a node, or has its answer;
//! - `master.COMMIT.before` and `master.COMMIT.after`, with the name of the first command of a proposal of a job;
//! - `node.CALL.before` and `node.CALL.after`: a node is about to do what it was asked, or is about to answer;
//! - `node.sending.begun` and `node.sending.complete`: the first of a guest's memory has left the source, and no more leaves
//!   it while it is held; the sending has ended, well or not, and nobody was told yet.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Environment variable that names the folder.
pub const VARIABLE: &str = "CARDUME_FAULT_POINTS";

/// How often the file is looked for while somebody is held.
const LOOK: Duration = Duration::from_millis(10);

/// Comes to a point.
pub async fn point(folder: Option<&PathBuf>, name: impl FnOnce() -> String) {
    if let Some(folder) = folder {
        hold(folder, &name()).await;
    }
}

async fn hold(folder: &Path, name: &str) {
    let asked = folder.join(name);
    if !asked.exists() {
        return;
    }
    if let Err(error) = std::fs::write(folder.join(format!("{name}.reached")), "") {
        tracing::error!(%error, name, "a fault point could not be reported");
    }
    tracing::info!(name, "held at a fault point");
    while asked.exists() {
        tokio::time::sleep(LOOK).await;
    }
}
