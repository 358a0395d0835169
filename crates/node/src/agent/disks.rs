//! Disks on this node: making, showing, growing, comparing them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::DiskSource;
use jobs::agent::{DIGEST_CHUNK, DiskRef};
use mirror::fuse::{self, Mount};
use mirror::keeper::{Keeper, NewReplica};
use model::{DiskId, DiskTemplate, Mirror, ReplicaId, RunId};
use opcodes::Failure;

use super::copy::{self, Side};
use super::{Agent, mirror_failed, storage_failed};

/// How long a disk may take until it serves the run that was committed for it: an election and members that do not answer
/// included.
const SERVE: Duration = Duration::from_secs(20);
/// How long the orderly end of a disk may take.
const RELEASE: Duration = Duration::from_secs(20);
/// How long somebody who is about to close a file that shows a disk is waited for.
const CLOSE: Duration = Duration::from_secs(5);
/// How long QEMU waits for a daemon that is away before the guest sees an error, in seconds: as good as for ever.
const RECONNECT: u32 = 86_400;

const MIB: u64 = 1 << 20;

/// Mirrored disks that are shown as files, each to one run.
pub(super) type Attached = BTreeMap<DiskId, (RunId, Mount)>;

/// How a guest comes to its mirrored disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exporting {
    /// As the primary's: the run was committed for this node.
    Serving,
    /// As the destination of a migration, whose writes wait (protocol, H2).
    Standby,
}

impl Agent {
    pub(super) async fn create_disk(&self, disk: &DiskRef) -> Result<(), Failure> {
        let Some(mirror) = mirror_of(disk)? else {
            let (spec, template) = self.disk(disk)?;
            return template.create(&spec).await.map_err(storage_failed);
        };
        let keeper = self.keeper()?;
        let (replica, born_in_sync) = own_replica(&keeper, disk, mirror)?;
        let new = NewReplica {
            disk: disk.disk.id,
            replica,
            size: disk.disk.size_mib * MIB,
            incarnation: keeper.state().incarnation,
            mode: mirror.mode,
            born_in_sync,
        };
        keeper.create(new).await.map_err(mirror_failed)
    }

    pub(super) async fn remove_disk(&self, disk: &DiskRef) -> Result<(), Failure> {
        let Some(mirror) = mirror_of(disk)? else {
            let (spec, template) = self.disk(disk)?;
            return template.remove(&spec).await.map_err(storage_failed);
        };
        self.hide(disk.disk.id).await;
        let keeper = self.keeper()?;
        let (replica, _) = own_replica(&keeper, disk, mirror)?;
        keeper.remove(disk.disk.id, replica).await.map_err(mirror_failed)
    }

    pub(super) async fn grow_disk(&self, disk: &DiskRef, size_mib: u64) -> Result<(), Failure> {
        if disk.template == DiskTemplate::Drbd {
            return self.keeper()?.grow(disk.disk.id, size_mib * MIB).await.map_err(mirror_failed);
        }
        let (spec, template) = self.disk(disk)?;
        template.grow(&spec, size_mib).await.map_err(storage_failed)
    }

    /// What a hypervisor opens to have the disk.
    pub(super) async fn source(&self, disk: &DiskRef, run: RunId, how: Exporting) -> Result<DiskSource, Failure> {
        if disk.template != DiskTemplate::Drbd {
            let (spec, template) = self.disk(disk)?;
            let attachment = template.activate(&spec).await.map_err(storage_failed)?;
            let aio = hypervisor::Aio::default();
            return Ok(DiskSource::File { path: attachment.path, direct: attachment.direct, aio });
        }
        let keeper = self.keeper()?;
        let export = match how {
            Exporting::Serving => keeper.serving(disk.disk.id, run, SERVE).await,
            Exporting::Standby => keeper.standby(disk.disk.id, run).await,
        };
        let export = export.map_err(mirror_failed)?;
        Ok(DiskSource::Nbd { socket: export.socket, export: export.name, reconnect_delay_s: RECONNECT })
    }

    pub(super) async fn attach(&self, disks: &[DiskRef], run: Option<RunId>) -> Result<Vec<String>, Failure> {
        let paths = disks.iter().map(|disk| self.show(disk, run));
        let paths = futures::future::try_join_all(paths).await?;
        Ok(paths.into_iter().map(|path| path.display().to_string()).collect())
    }

    /// Shows a disk as a file.
    pub(super) async fn show(&self, disk: &DiskRef, run: Option<RunId>) -> Result<PathBuf, Failure> {
        if disk.template != DiskTemplate::Drbd {
            let (spec, template) = self.disk(disk)?;
            return Ok(template.activate(&spec).await.map_err(storage_failed)?.path);
        }
        let (id, run) = (disk.disk.id, run.ok_or_else(|| no_run(disk))?);
        let keeper = self.keeper()?;
        keeper.serving(id, run, SERVE).await.map_err(mirror_failed)?;
        let mut attached = self.attached.lock().await;
        if let Some((_, mount)) = attached.get(&id).filter(|(shown, _)| *shown == run) {
            return Ok(mount.path());
        }
        // Of a run that is over.
        attached.remove(&id);
        let folder = self.attachment(id);
        let name = format!("disk{}", disk.index);
        let made = tokio::fs::create_dir_all(&folder).await;
        if let Err(error) = made.or_else(|error| already_there(error, &folder)) {
            return Err(Failure::failed(format!("can't make {}: {error}", folder.display())));
        }
        let device = keeper.device(id, run).map_err(mirror_failed)?;
        let mount = Mount::new(folder, name, device).await;
        let mount = mount.map_err(|error| Failure::failed(crate::chain(&error)))?;
        let path = mount.path();
        attached.insert(id, (run, mount));
        Ok(path)
    }

    pub(super) async fn detach(&self, disks: &[DiskRef], run: Option<RunId>, force: bool) -> Result<(), Failure> {
        for disk in disks {
            if disk.template != DiskTemplate::Drbd {
                let (spec, template) = self.disk(disk)?;
                template.deactivate(&spec).await.map_err(storage_failed)?;
                continue;
            }
            let mut attached = self.attached.lock().await;
            // An order that comes late must not take the disk from a later run.
            if attached.get(&disk.disk.id).is_some_and(|(shown, _)| run.is_some_and(|run| run < *shown)) {
                continue;
            }
            if !force && let Some((_, mount)) = attached.get_mut(&disk.disk.id) {
                mount.unmount(CLOSE).await.map_err(|error| Failure::failed(crate::chain(&error)))?;
            }
            drop(attached);
            self.hide(disk.disk.id).await;
        }
        let mirrored = disks.iter().filter(|disk| disk.template == DiskTemplate::Drbd);
        let mirrored: Vec<DiskId> = mirrored.map(|disk| disk.disk.id).collect();
        match (mirrored.is_empty(), run) {
            (true, _) => Ok(()),
            (false, Some(run)) => {
                self.end_run(&mirrored, run, true).await?;
                // A copy that nobody waits for any more fails now; it may be writing to a file yet.
                drop(self.copying.take(run).await);
                Ok(())
            }
            (false, None) => disks.first().map_or(Ok(()), |disk| Err(no_run(disk))),
        }
    }

    /// A run is over: it is disconnected from its mirrored disks for good; with `release` they are brought to their end.
    pub(super) async fn end_run(&self, disks: &[DiskId], run: RunId, release: bool) -> Result<(), Failure> {
        if disks.is_empty() {
            return Ok(());
        }
        let keeper = self.keeper()?;
        let ends = disks.iter().map(|disk| async {
            keeper.end_run(*disk, run).await;
            // What was disowned meanwhile has come to its end before. An order that comes late must not end a later run.
            if release && keeper.is_primary(*disk, run) {
                keeper.release(*disk, RELEASE).await.map_err(mirror_failed)?;
            }
            Ok(())
        });
        futures::future::try_join_all(ends).await.map(drop)
    }

    /// Takes the file away that shows a disk, whoever has it open.
    async fn hide(&self, disk: DiskId) {
        self.attached.lock().await.remove(&disk);
        let folder = self.attachment(disk);
        // One that a daemon left that is gone.
        if let Err(error) = fuse::clear(&folder).await {
            tracing::warn!(error = crate::chain(&error), "what showed a disk as a file could not be taken away");
        }
        // Nothing is in it; it is used again, or of no harm.
        let _ = tokio::fs::remove_dir(&folder).await;
    }

    fn attachment(&self, disk: DiskId) -> PathBuf {
        self.config.run_dir.join("disks").join(disk.to_string())
    }

    pub(super) async fn copy_disk(&self, from: &DiskRef, to: &DiskRef, run: RunId) -> Result<(), Failure> {
        let _turn = self.copying.take(run).await;
        let (source, target) = tokio::try_join!(self.side(from, run), self.side(to, run))?;
        copy::copy(source, target, from.disk.size_mib * MIB).await.map_err(|error| {
            Failure::failed(format!("disk {} of instance {} can't be copied: {error}", from.index, from.instance))
        })
    }

    async fn side(&self, disk: &DiskRef, run: RunId) -> Result<Side, Failure> {
        if disk.template != DiskTemplate::Drbd {
            let (spec, template) = self.disk(disk)?;
            return Ok(Side::File(template.activate(&spec).await.map_err(storage_failed)?.path));
        }
        let keeper = self.keeper()?;
        keeper.serving(disk.disk.id, run, SERVE).await.map_err(mirror_failed)?;
        Ok(Side::Device(keeper.device(disk.disk.id, run).map_err(mirror_failed)?))
    }

    pub(super) async fn digest_disk(&self, disk: &DiskRef) -> Result<Vec<String>, Failure> {
        self.keeper()?.digests(disk.disk.id, DIGEST_CHUNK).await.map_err(mirror_failed)
    }
}

/// The record of a mirrored disk; `None` for others.
fn mirror_of(disk: &DiskRef) -> Result<Option<&Mirror>, Failure> {
    match (disk.template, &disk.disk.mirror) {
        (DiskTemplate::Drbd, Some(mirror)) => Ok(Some(mirror)),
        (DiskTemplate::Drbd, None) => Err(Failure::failed(format!(
            "disk {} of instance {} is to be mirrored, but has no replicas",
            disk.index, disk.instance
        ))),
        _ => Ok(None),
    }
}

/// This node's replica, and whether it is in sync by the record.
fn own_replica(keeper: &Arc<Keeper>, disk: &DiskRef, mirror: &Mirror) -> Result<(ReplicaId, bool), Failure> {
    let found = mirror.replica_on(keeper.node()).map(|(rid, replica)| (rid, replica.member.is_some()));
    found.ok_or_else(|| {
        Failure::failed(format!("disk {} of instance {} has no replica on this node", disk.index, disk.instance))
    })
}

fn no_run(disk: &DiskRef) -> Failure {
    Failure::failed(format!(
        "disk {} of instance {} is mirrored: it can be used only in a run that was committed",
        disk.index, disk.instance
    ))
}

/// A mount point that a dead daemon left can't be looked at, but it is there.
fn already_there(error: std::io::Error, folder: &std::path::Path) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            tracing::debug!(folder = %folder.display(), "left by an earlier daemon");
            Ok(())
        }
        _ => Err(error),
    }
}
