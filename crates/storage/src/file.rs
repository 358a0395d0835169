//! Disks that are files: `<folder>/<instance>/<disk's id>.file.disk<place>`.

mod work;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use model::DiskTemplate;

use crate::error::{Error, Result};
use crate::{Attachment, DiskSpec, Health, Template};

/// Disks that are sparse files on one node.
#[derive(Clone, Copy, Debug)]
pub struct File;

/// Changes are made one at a time: work whose future was dropped goes on, and the step that repeats it must find it
/// either not begun or done.
static CHANGES: Mutex<()> = Mutex::new(());

/// Runs work on the file at `path` where it may block.
async fn blocking<T, F>(path: &Path, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Stopping { path: path.to_owned() }),
        },
    }
}

async fn change<F>(disk: &DiskSpec, work: F) -> Result<()>
where
    F: FnOnce(&DiskSpec) -> Result<()> + Send + 'static,
{
    let owned = disk.clone();
    blocking(&disk.folder, move || {
        let _one = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        work(&owned)
    })
    .await
}

#[async_trait]
impl Template for File {
    fn name(&self) -> &'static str {
        DiskTemplate::File.name()
    }

    fn mirrored(&self) -> bool {
        false
    }

    async fn create(&self, disk: &DiskSpec) -> Result<()> {
        change(disk, work::create).await
    }

    async fn remove(&self, disk: &DiskSpec) -> Result<()> {
        change(disk, work::remove).await
    }

    async fn grow(&self, disk: &DiskSpec, size_mib: u64) -> Result<()> {
        change(disk, move |disk| work::grow(disk, size_mib)).await
    }

    async fn activate(&self, disk: &DiskSpec) -> Result<Attachment> {
        let owned = disk.clone();
        blocking(&disk.folder, move || work::activate(&owned)).await
    }

    async fn deactivate(&self, _disk: &DiskSpec) -> Result<()> {
        Ok(())
    }

    async fn check(&self, disk: &DiskSpec) -> Result<Health> {
        let owned = disk.clone();
        blocking(&disk.folder, move || work::check(&owned)).await
    }

    async fn orphans(&self, folder: &Path, known: &[DiskSpec]) -> Result<Vec<PathBuf>> {
        let (owned, known) = (folder.to_owned(), known.to_vec());
        blocking(folder, move || work::orphans(&owned, &known)).await
    }
}
