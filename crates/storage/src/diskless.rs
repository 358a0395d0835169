//! Instances without disks.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use model::DiskTemplate;

use crate::error::{Error, Result};
use crate::{Attachment, DiskSpec, Health, Template};

/// No disks. What would need one says that there can be none.
#[derive(Clone, Copy, Debug)]
pub struct Diskless;

fn none<T>(disk: &DiskSpec) -> Result<T> {
    Err(Error::Diskless { instance: disk.instance.clone() })
}

#[async_trait]
impl Template for Diskless {
    fn name(&self) -> &'static str {
        DiskTemplate::Diskless.name()
    }

    fn mirrored(&self) -> bool {
        false
    }

    async fn create(&self, disk: &DiskSpec) -> Result<()> {
        none(disk)
    }

    async fn remove(&self, _disk: &DiskSpec) -> Result<()> {
        Ok(())
    }

    async fn grow(&self, disk: &DiskSpec, _size_mib: u64) -> Result<()> {
        none(disk)
    }

    async fn activate(&self, disk: &DiskSpec) -> Result<Attachment> {
        none(disk)
    }

    async fn deactivate(&self, _disk: &DiskSpec) -> Result<()> {
        Ok(())
    }

    async fn check(&self, disk: &DiskSpec) -> Result<Health> {
        none(disk)
    }

    async fn orphans(&self, _folder: &Path, _known: &[DiskSpec]) -> Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}
