//! Disks on this node: making, showing, growing, comparing them.

use jobs::agent::DiskRef;
use model::{DiskId, RunId};
use opcodes::Failure;
use opcodes::disks::ReplicaReport;

use super::Agent;

fn unbuilt() -> Failure {
    Failure::failed("not built yet")
}

impl Agent {
    /// A run is over: it is disconnected from its mirrored disks for good; with `release` they are brought to their end.
    pub(super) async fn end_run(&self, disks: &[DiskId], _run: RunId, _release: bool) -> Result<(), Failure> {
        if disks.is_empty() { Ok(()) } else { Err(unbuilt()) }
    }

    pub(super) async fn grow_disk(&self, _disk: &DiskRef, _size_mib: u64) -> Result<(), Failure> {
        Err(unbuilt())
    }

    pub(super) async fn attach(&self, _disks: &[DiskRef], _run: Option<RunId>) -> Result<Vec<String>, Failure> {
        Err(unbuilt())
    }

    pub(super) async fn detach(&self, _disks: &[DiskRef], _run: Option<RunId>, _force: bool) -> Result<(), Failure> {
        Err(unbuilt())
    }

    pub(super) async fn copy_disk(&self, _from: &DiskRef, _to: &DiskRef, _run: RunId) -> Result<(), Failure> {
        Err(unbuilt())
    }

    pub(super) async fn replicas(&self, _disks: &[DiskId]) -> Result<Vec<ReplicaReport>, Failure> {
        Err(unbuilt())
    }

    pub(super) async fn digest_disk(&self, _disk: &DiskRef) -> Result<Vec<String>, Failure> {
        Err(unbuilt())
    }
}
