//! Copying the content of one disk of this node into another one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use mirror::device::Device;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use tokio::task::spawn_blocking;

/// Bytes that are copied at one time.
const PIECE: u64 = 1 << 20;
/// Bytes that are left out of a copy if they are zeroes.
const GRAIN: usize = 64 << 10;

/// One end of a copy.
pub(super) enum Side {
    /// A file, or what looks like one.
    File(PathBuf),
    /// A mirrored disk. Its file is not used: this process serves it, and must not wait for itself.
    Device(Arc<dyn Device>),
}

/// An open end.
enum Open {
    File(Arc<File>),
    Device(Arc<dyn Device>),
}

/// Copies the first `size` bytes, without zeroes: the target reads as zeroes. They are durable at the end.
pub(super) async fn copy(from: Side, to: Side, size: u64) -> io::Result<()> {
    let from = open(from, false).await?;
    let to = open(to, true).await?;
    let mut at = 0;
    while let Some(start) = from.next_data(at, size).await? {
        let len = PIECE.min(size - start);
        let data = from.read(start, len).await?;
        for (begin, end) in filled(&data) {
            to.write(start + begin as u64, data.slice(begin..end)).await?;
        }
        at = start + len;
    }
    to.sync().await
}

async fn open(side: Side, write: bool) -> io::Result<Open> {
    match side {
        Side::Device(device) => Ok(Open::Device(device)),
        Side::File(path) => blocking(move || File::options().read(true).write(write).open(path))
            .await
            .map(|file| Open::File(file.into())),
    }
}

impl Open {
    /// Where there is data next; `None` if there is none before `size`.
    async fn next_data(&self, at: u64, size: u64) -> io::Result<Option<u64>> {
        if at >= size {
            return Ok(None);
        }
        let Open::File(file) = self else { return Ok(Some(at)) };
        let file = Arc::clone(file);
        let found = blocking(move || match lseek64(&*file, at as i64, Whence::SeekData) {
            Ok(found) => Ok(Some(found as u64)),
            Err(Errno::ENXIO) => Ok(None),
            Err(error) => Err(error.into()),
        });
        // Blocks of a disk are no smaller.
        Ok(found.await?.map(|found| found - found % 512).filter(|found| *found < size))
    }

    async fn read(&self, at: u64, len: u64) -> io::Result<Bytes> {
        match self {
            Open::Device(device) => device.read(at, len as u32).await.map_err(Into::into),
            Open::File(file) => {
                let file = Arc::clone(file);
                blocking(move || {
                    let mut data = vec![0; len as usize];
                    file.read_exact_at(&mut data, at)?;
                    Ok(data.into())
                })
                .await
            }
        }
    }

    async fn write(&self, at: u64, data: Bytes) -> io::Result<()> {
        match self {
            Open::Device(device) => device.write(at, data, false).await.map_err(Into::into),
            Open::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.write_all_at(&data, at)).await
            }
        }
    }

    async fn sync(&self) -> io::Result<()> {
        match self {
            Open::Device(device) => device.flush().await.map_err(Into::into),
            Open::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.sync_all()).await
            }
        }
    }
}

/// The parts of a piece that are not zeroes, in whole grains.
fn filled(data: &[u8]) -> Vec<(usize, usize)> {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for (number, grain) in data.chunks(GRAIN).enumerate() {
        if grain.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (begin, end) = (number * GRAIN, number * GRAIN + grain.len());
        match parts.last_mut() {
            Some((_, last)) if *last == begin => *last = end,
            _ => parts.push((begin, end)),
        }
    }
    parts
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn grains_of_zeroes_are_left_out() {
        let mut data = vec![0; 4 * GRAIN + 100];
        assert!(filled(&data).is_empty());
        data[GRAIN] = 1;
        data[3 * GRAIN - 1] = 1;
        data[4 * GRAIN + 99] = 1;
        assert_eq!(filled(&data), [(GRAIN, 3 * GRAIN), (4 * GRAIN, 4 * GRAIN + 100)]);
    }

    #[tokio::test]
    async fn a_sparse_file_is_copied_sparsely() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let size = 64 << 20;
        for path in [&from, &to] {
            File::create(path).unwrap().set_len(size).unwrap();
        }
        let file = File::options().write(true).open(&from).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"middle", 33_000_001).unwrap();
        file.write_all_at(b"last", size - 4).unwrap();
        // Written, but zeroes.
        file.write_all_at(&vec![0; 8 << 20], 8 << 20).unwrap();
        copy(Side::File(from.clone()), Side::File(to.clone()), size).await.unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
    }
}
