//! Live migration on this node: the source's and the destination's part (protocol, section 10).

use jobs::agent::{InstanceSpec, LiveRun, Sending};
use model::{DiskId, InstanceId, RunId, Uuid};
use opcodes::Failure;

use super::Agent;

fn unbuilt() -> Failure {
    Failure::failed("not built yet")
}

impl Agent {
    pub(super) async fn look_at_run(&self, _hypervisor: &str, _run: RunId) -> Result<Option<LiveRun>, Failure> {
        Err(unbuilt())
    }

    pub(super) async fn receive(
        &self,
        _spec: &InstanceSpec,
        _run: RunId,
        _migration: Uuid,
        _machine: String,
    ) -> Result<(), Failure> {
        Err(unbuilt())
    }

    pub(super) async fn look_at_sending(
        &self,
        _hypervisor: &str,
        _run: RunId,
        _migration: Uuid,
        _wait_ms: u64,
    ) -> Result<Sending, Failure> {
        Err(unbuilt())
    }

    pub(super) async fn quiesce(&self, _migration: Uuid, _disks: &[DiskId]) -> Result<(), Failure> {
        Err(unbuilt())
    }

    pub(super) async fn take_frames(&self, _id: InstanceId, _macs: &[String]) -> Result<(), Failure> {
        Err(unbuilt())
    }

    pub(super) async fn go_on(
        &self,
        _hypervisor: &str,
        _run: RunId,
        _disks: &[DiskId],
        _paused: bool,
    ) -> Result<(), Failure> {
        Err(unbuilt())
    }

    pub(super) async fn stay(
        &self,
        _hypervisor: &str,
        _run: RunId,
        _migration: Uuid,
        _disks: &[DiskId],
    ) -> Result<(), Failure> {
        Err(unbuilt())
    }
}
