//! How much space a folder's file system has.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use crate::MIB;
use crate::error::{Error, Result};

/// Space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it, MiB.
    pub total_mib: u64,
    /// What can still be written, MiB.
    pub free_mib: u64,
}

/// The space of the file system in which `folder` is, or would be: a folder that doesn't exist yet counts as its
/// nearest parent that does. Disks are sparse: what they may still grow to is not taken off.
///
/// # Errors
/// [`Error::Io`] if the file system doesn't say.
pub fn space(folder: &Path) -> Result<Space> {
    let mut at: PathBuf = folder.to_owned();
    loop {
        match statvfs(&at) {
            Ok(stat) => {
                let unit = stat.fragment_size();
                let mib = |blocks| u64::try_from(u128::from(unit) * u128::from(blocks) / u128::from(MIB));
                return Ok(Space {
                    total_mib: mib(stat.blocks()).unwrap_or(u64::MAX),
                    free_mib: mib(stat.blocks_available()).unwrap_or(u64::MAX),
                });
            }
            Err(Errno::ENOENT) if at.pop() => {
                // A relative path ends in the empty one, which is where we are.
                if at.as_os_str().is_empty() {
                    at.push(".");
                }
            }
            Err(errno) => {
                return Err(Error::Io {
                    action: "ask for the free space of",
                    path: folder.to_owned(),
                    source: io::Error::from(errno),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_counts_as_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let here = space(dir.path()).unwrap();
        let there = space(&dir.path().join("a/b/c")).unwrap();
        assert!(here.total_mib > 0 && here.free_mib <= here.total_mib);
        assert_eq!(here.total_mib, there.total_mib);
    }

    #[test]
    fn a_relative_folder_counts_from_here() {
        assert_eq!(space(Path::new("no/such")).unwrap().total_mib, space(Path::new(".")).unwrap().total_mib);
    }

    #[test]
    fn what_is_under_a_file_has_no_space() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = space(&file.path().join("x")).unwrap_err();
        assert!(error.to_string().starts_with("can't ask for the free space of /"), "{error}");
    }
}
