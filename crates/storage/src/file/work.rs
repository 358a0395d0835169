//! The work on the files, blocking.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use model::Uuid;
use nix::libc::{O_DIRECT, O_NOFOLLOW};

use crate::error::{Error, Result, io};
use crate::{Attachment, DiskSpec, Health, MIB, space};

/// Between the disk's id and its place in a file's name.
const INFIX: &str = ".file.disk";
/// Ends the name of a file that is not yet a disk.
const UNFINISHED: &str = ".new";

pub(super) fn create(disk: &DiskSpec) -> Result<()> {
    let path = locate(disk)?;
    let folder = instance_folder(disk)?;
    if let Some(bytes) = length(&path)? {
        exactly(&path, bytes, disk.size_mib)?;
        // An earlier attempt may have been cut off before this.
        return sync_folder(&folder);
    }
    room(&path, disk.size_mib)?;
    make_folder(&folder)?;
    // A crash leaves the unfinished name or the whole disk; the next attempt begins the former anew.
    let unfinished = unfinished(&path);
    let made = (|| {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(&unfinished)?;
        file.set_len(disk.size_mib.saturating_mul(MIB))?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)
    })();
    if let Err(source) = made {
        // The reason is what counts; what can't be removed now is begun anew or found by `orphans`.
        let _ = fs::remove_file(&unfinished);
        return Err(io("create", &path)(source));
    }
    sync_folder(&folder)
}

pub(super) fn remove(disk: &DiskSpec) -> Result<()> {
    let path = locate(disk)?;
    let folder = instance_folder(disk)?;
    length(&path)?;
    for path in [unfinished(&path), path] {
        match fs::remove_file(&path) {
            Err(error) if !absent(&error) => return Err(io("remove", &path)(error)),
            _ => {}
        }
    }
    let remaining = match fs::remove_dir(&folder) {
        // Other disks of the instance, or files that are not ours.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => &folder,
        Err(error) if !absent(&error) => return Err(io("remove the folder", &folder)(error)),
        _ => &disk.folder,
    };
    // Also when nothing was left to remove: an earlier attempt may have been cut off before this.
    match sync_folder(remaining) {
        Err(Error::Io { source, .. }) if absent(&source) => Ok(()),
        result => result,
    }
}

pub(super) fn grow(disk: &DiskSpec, size_mib: u64) -> Result<()> {
    let path = locate(disk)?;
    let bytes = length(&path)?.ok_or_else(|| Error::Missing { path: path.clone() })?;
    let wanted = size_mib.saturating_mul(MIB);
    if bytes > wanted {
        return Err(Error::Shrink { path, bytes, wanted_mib: size_mib });
    }
    if bytes < wanted {
        room(&path, (wanted - bytes).div_ceil(MIB))?;
    }
    // Synced also when it has the size: an earlier attempt may have been cut off in between.
    let file = OpenOptions::new().write(true).custom_flags(O_NOFOLLOW).open(&path).map_err(io("open", &path))?;
    file.set_len(wanted).and_then(|()| file.sync_all()).map_err(io("grow", &path))
}

pub(super) fn activate(disk: &DiskSpec) -> Result<Attachment> {
    let path = locate(disk)?;
    let bytes = length(&path)?.ok_or_else(|| Error::Missing { path: path.clone() })?;
    // A larger one has been grown by a job that hasn't told the cluster yet. In a smaller one a guest would write into
    // the void.
    if bytes < disk.size_mib.saturating_mul(MIB) {
        return Err(Error::OtherSize { path, bytes, wanted_mib: disk.size_mib });
    }
    let direct = opens_direct(&path).map_err(io("open", &path))?;
    if !direct {
        tracing::warn!(path = %path.display(), "the file system has no O_DIRECT: {disk} goes through the page cache");
    }
    Ok(Attachment { path, direct })
}

/// Can the file be opened past the page cache? An error if it can't be opened at all.
fn opens_direct(path: &Path) -> io::Result<bool> {
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(O_NOFOLLOW | flags).open(path);
    match open(O_DIRECT) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::InvalidInput => open(0).map(|_| false),
        Err(error) => Err(error),
    }
}

pub(super) fn check(disk: &DiskSpec) -> Result<Health> {
    let path = locate(disk)?;
    Ok(match length(&path) {
        Ok(Some(bytes)) if bytes == disk.size_mib.saturating_mul(MIB) => Health::Good,
        Ok(Some(bytes)) => Health::WrongSize { path, bytes, wanted_mib: disk.size_mib },
        Ok(None) => Health::Missing { path },
        Err(Error::NotADisk { path }) => Health::NotADisk { path },
        Err(error) => return Err(error),
    })
}

pub(super) fn orphans(folder: &Path, known: &[DiskSpec]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for instance in entries(folder)? {
        let Some(name) = instance.file_name().and_then(|name| name.to_str()) else { continue };
        for path in entries(&instance)? {
            let Some(id) = path.file_name().and_then(|name| name.to_str()).and_then(disk_of) else { continue };
            if !known.iter().any(|disk| disk.id.0 == id && disk.instance == name && disk.folder == folder) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Is there nothing of that name?
fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// What is in a folder; nothing if there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()
            .map_err(io("read the folder", folder)),
        Err(error) if absent(&error) => Ok(Vec::new()),
        Err(error) => Err(io("read the folder", folder)(error)),
    }
}

/// Whose disk a file is by its name, finished or not.
fn disk_of(name: &str) -> Option<Uuid> {
    let (id, place) = name.strip_suffix(UNFINISHED).unwrap_or(name).split_once(INFIX)?;
    place.parse::<usize>().ok()?;
    Uuid::parse_str(id).ok()
}

/// The folder of the disk's instance. Its name must not lead elsewhere.
fn instance_folder(disk: &DiskSpec) -> Result<PathBuf> {
    if !disk.folder.is_absolute() {
        return Err(Error::RelativeFolder { folder: disk.folder.clone() });
    }
    let name = Path::new(&disk.instance);
    let mut parts = name.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(only)), None) if only == disk.instance.as_str() && !disk.instance.contains('\0') => {
            Ok(disk.folder.join(name))
        }
        _ => Err(Error::BadInstanceName { instance: disk.instance.clone() }),
    }
}

/// Where the disk is, or is to be made. Its id says which it is; the place in its name is the one that it had when it
/// was made, and may have changed since.
fn locate(disk: &DiskSpec) -> Result<PathBuf> {
    let folder = instance_folder(disk)?;
    let usual = folder.join(format!("{}{INFIX}{}", disk.id, disk.index));
    if fs::symlink_metadata(&usual).is_ok() {
        return Ok(usual);
    }
    let moved = entries(&folder)?.into_iter().find(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        !name.ends_with(UNFINISHED) && disk_of(name) == Some(disk.id.0)
    });
    Ok(moved.unwrap_or(usual))
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    PathBuf::from(name)
}

/// The file's length in bytes; none if there is no file.
fn length(path: &Path) -> Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
        Ok(_) => Err(Error::NotADisk { path: path.to_owned() }),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(io("look at", path)(error)),
    }
}

fn exactly(path: &Path, bytes: u64, wanted_mib: u64) -> Result<()> {
    if bytes == wanted_mib.saturating_mul(MIB) {
        Ok(())
    } else {
        Err(Error::OtherSize { path: path.to_owned(), bytes, wanted_mib })
    }
}

/// Is there space for so much more? A sparse file takes none at first, but its guest will.
fn room(path: &Path, needed_mib: u64) -> Result<()> {
    let available_mib = space(path)?.free_mib;
    if needed_mib > available_mib {
        return Err(Error::NoSpace { path: path.to_owned(), needed_mib, available_mib });
    }
    Ok(())
}

/// Makes a folder and those above it, each durably.
fn make_folder(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o750).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let Some(parent) = path.parent() else { return Err(io("create the folder", path)(error)) };
            make_folder(parent)?;
            return make_folder(path);
        }
        // It may have been made just before a crash: synced all the same.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(io("create the folder", path)(error)),
    }
    path.parent().map_or(Ok(()), sync_folder)
}

fn sync_folder(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|folder| folder.sync_all()).map_err(io("sync the folder", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_direct_access_is_told_from_one_with_it() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        assert!(opens_direct(disk.path()).unwrap());
        // proc has none on any kernel.
        assert!(!opens_direct(Path::new("/proc/self/comm")).unwrap());
        assert!(opens_direct(Path::new("/proc/self/nosuch")).is_err());
    }
}
