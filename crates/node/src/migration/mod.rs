//! The memory of a guest on its way to another node (protocol, H3): from QEMU over a unix socket to this daemon, over TLS to
//! the other one, over a unix socket to its QEMU, and back.

mod record;
mod sending;
#[cfg(test)]
mod tests;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use hypervisor::{Hypervisor, LiveState};
use jobs::agent::Sending;
use model::{InstanceId, NodeId, RunId, Uuid};
use opcodes::Failure;
use opcodes::op::MigrationMode;
use rpc::{Fault, FaultKind, Upgrade};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::agent::run_name;
use crate::member::Member;
pub use record::{Record, Records};
use sending::{Order, Way};
pub use sending::{Sends, judged};

/// Where memory comes in.
pub const PATH: &str = "/migrate";
/// Where the source says that its guest stands still: by any byte.
pub const FRAMES_PATH: &str = "/migrate/frames";

/// How long this node waits to hear that the migration was prepared.
const PREPARED: Duration = Duration::from_secs(10);
/// How long a migration may take. A guest that changes its memory faster than that is sent would never be done.
const MOST: Duration = Duration::from_secs(3600);
/// How long what is still in the tunnel may take once the destination has all memory.
const DRAIN: Duration = Duration::from_secs(5);

/// What the source says of the memory that it brings.
#[derive(Debug, Serialize, Deserialize)]
pub struct Arrival {
    hypervisor: String,
    /// The run at the destination.
    run: RunId,
}

/// What a guest's frames are to be directed to, once it stands still.
#[derive(Debug, Serialize, Deserialize)]
pub struct Frames {
    id: InstanceId,
    /// Its hardware addresses, in the order of its interfaces.
    macs: Vec<String>,
}

/// What is to be sent where.
pub struct Shipment {
    pub hypervisor: String,
    pub instance: String,
    pub run: RunId,
    pub migration: Uuid,
    pub to: NodeId,
    pub to_run: RunId,
    pub mode: MigrationMode,
}

impl Member {
    /// Begins to send a guest in the background, unless that was begun.
    pub(crate) async fn send(&self, shipment: Shipment) -> Result<Sending, Failure> {
        let Shipment { hypervisor, instance, run, migration, to, to_run, mode } = shipment;
        let known = self.agent.sends.find(run, migration).is_some();
        if known || self.agent.records().read(run, migration).is_some() {
            return self.agent.look_at_sending(&hypervisor, run, migration, 0).await;
        }
        // Also what was cancelled meanwhile is not begun by an order that comes late.
        let prepared = |state: &model::State| {
            let found = state.instances.values().find(|found| found.run == Some(run));
            found.is_some_and(|found| found.migration.as_ref().is_some_and(|it| it.id == migration && it.run == to_run))
        };
        let mut views = self.log.watch();
        let waiting = tokio::time::timeout(PREPARED, views.wait_for(|view| prepared(&view.state)));
        let known = matches!(waiting.await, Ok(Ok(_)));
        if !known {
            return Err(Failure::failed(format!(
                "the memory of {instance} is not sent: this node does not know of its migration"
            )));
        }
        let state = self.state();
        // The network for disks carries memory too.
        let address = state.nodes.get(&to).map(|node| (node.secondary_ip, self.config.node_port).into());
        let Some(address) = address else {
            return Err(Failure::failed(format!("the memory of {instance} can't be sent: node {to} is not known")));
        };
        let found = state.instances.values().find(|found| found.run == Some(run));
        let frames =
            found.map(|found| Frames { id: found.id, macs: found.nics.iter().map(|nic| nic.mac.clone()).collect() });
        let written = |error: serde_json::Error| Failure::failed(crate::chain(&error));
        let arrival = self.letter(Arrival { hypervisor: hypervisor.clone(), run: to_run });
        let arrival = serde_json::to_vec(&arrival).map_err(written)?.into();
        let frames = serde_json::to_vec(&self.letter(frames)).map_err(written)?.into();
        let way = Way { client: self.client.clone(), node: to.0, address, arrival, frames };
        let order = Order {
            driver: Arc::clone(self.agent.hypervisor(&hypervisor)?),
            records: self.agent.records(),
            instance,
            run,
            migration,
            mode,
            fault_points: self.config.fault_points.clone(),
        };
        let live = self.agent.runs().await;
        self.agent.sends.begin(order, way, &live)
    }

    /// The destination's end: lets the memory in, until it is all here or its sender is gone.
    pub(crate) async fn arrive(&self, arrival: Arrival, upgrade: Upgrade) -> Result<(), Fault> {
        let Arrival { hypervisor, run } = arrival;
        let driver = self.agent.hypervisor(&hypervisor).map_err(crate::member::to_fault)?;
        let name = run_name(run);
        let waits = driver.list().await.iter().any(|it| it.run == name && it.state == LiveState::Incoming);
        if !waits {
            return Err(Fault::new(FaultKind::Conflict, format!("no run {run} waits for its memory on this node")));
        }
        match upgrade.accept().await {
            Ok(stream) => take_in(driver.as_ref(), &name, stream).await,
            Err(error) => tracing::debug!(%error, %run, "the source of a migration has not waited"),
        }
        Ok(())
    }
}

impl Member {
    /// The destination's end of the other stream: lets the guest's frames come as soon as the source says that it stands
    /// still, which is before its last memory is here. The master orders it later, in any case.
    pub(crate) async fn await_frames(&self, frames: Option<Frames>, upgrade: Upgrade) -> Result<(), Fault> {
        let Some(Frames { id, macs }) = frames else { return Ok(()) };
        let Ok(mut stream) = upgrade.accept().await else { return Ok(()) };
        if matches!(stream.read(&mut [0]).await, Ok(1))
            && let Err(failure) = self.agent.take_frames(id, &macs).await
        {
            tracing::debug!(%failure, "a guest's frames could not be directed here early");
        }
        Ok(())
    }
}

/// Receives a run's memory from a stream.
async fn take_in<S>(driver: &dyn Hypervisor, run: &str, stream: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    let (end, ours) = match tunnel::ends() {
        Ok(ends) => ends,
        Err(error) => return tracing::error!(%error, run, "no socket for a guest's memory"),
    };
    let mut carrying = tunnel::Carrying::start(ours, stream, std::future::ready(()));
    match driver.accept(run, end, MOST).await {
        // QEMU's last word to the source is on its way yet.
        Ok(()) => carrying.ended(DRAIN).await,
        Err(error) => tracing::warn!(run, error = crate::chain(&error), "the guest's memory did not come"),
    }
}
