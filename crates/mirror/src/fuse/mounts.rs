//! What is mounted where, and the clearing away of what is dead.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use super::{MountError, failed};

/// The name of the source of our mounts, by which they are known to be ours.
pub(super) const SOURCE: &str = "cardume";
/// The type of the file system.
pub(super) const KIND: &str = "fuse.cardume";

/// The mount point's path as the kernel tells it. The last part is not looked at, because a dead mount can't be.
pub(super) fn resolve(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let Some(name) = mountpoint.file_name() else {
        return Err(failed("mount on", mountpoint, io::Error::from(io::ErrorKind::InvalidInput)));
    };
    let parent = match mountpoint.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok(parent.canonicalize().map_err(|source| failed("find", parent, source))?.join(name))
}

/// Clears away what a dead daemon left mounted there. Anything that lives, or is not ours, is left alone.
pub(super) fn clear(mountpoint: &Path) -> Result<(), MountError> {
    // Several may be there, one on another.
    while let Some(kind) = mounted(mountpoint)? {
        let dead = match std::fs::metadata(mountpoint) {
            Ok(_) => false,
            Err(error) => error.raw_os_error() == Some(libc::ENOTCONN),
        };
        if kind != KIND || !dead {
            return Err(MountError::InUse { path: mountpoint.to_owned() });
        }
        umount2(mountpoint, MntFlags::MNT_DETACH)
            .map_err(|error| failed("clear a dead mount from", mountpoint, error.into()))?;
        tracing::info!("cleared away what a dead daemon left mounted on {}", mountpoint.display());
    }
    Ok(())
}

/// The type of what is mounted exactly there, the uppermost if there are several.
fn mounted(mountpoint: &Path) -> Result<Option<String>, MountError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(table).map_err(|source| failed("read", table, source))?;
    Ok(uppermost(&text, mountpoint))
}

fn uppermost(table: &[u8], mountpoint: &Path) -> Option<String> {
    let mut on_it = table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let path = unescape(fields.nth(4)?);
        // Optional fields end with a dash.
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (path.as_bytes() == mountpoint.as_os_str().as_bytes()).then(|| String::from_utf8_lossy(kind).into_owned())
    });
    // Later lines are mounted upon earlier ones.
    on_it.next_back()
}

/// The table writes blanks and the like as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten();
        let byte = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uppermost_mount_of_a_path_is_found() {
        let table = b"22 1 0:5 / / rw,noatime shared:1 - ext4 /dev/vda rw\n\
            30 22 0:40 / /run/with\\040blank rw - tmpfs tmpfs rw\n\
            31 30 0:41 / /run/with\\040blank rw shared:3 master:1 - fuse.cardume cardume rw,user_id=0\n\
            32 22 0:42 / /run/back\\134slash rw - fuse.other x rw\n";
        assert_eq!(uppermost(table, Path::new("/run/with blank")).as_deref(), Some(KIND));
        assert_eq!(uppermost(table, Path::new("/run/back\\slash")).as_deref(), Some("fuse.other"));
        assert_eq!(uppermost(table, Path::new("/run")), None);
        assert_eq!(uppermost(table, Path::new("/")).as_deref(), Some("ext4"));
    }
}
