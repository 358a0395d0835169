//! openraft's storage suite, and what an administrator sees of a store that can't be used.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft_rt_tokio::TokioRuntime;
use tempfile::TempDir;

use super::*;
use crate::machine::Machine;
use crate::types::Types;

struct Builder;

impl StoreBuilder<Types<TokioRuntime>, LogStore<TokioRuntime>, Machine<TokioRuntime>, TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(TempDir, LogStore<TokioRuntime>, Machine<TokioRuntime>), StorageError<Types<TokioRuntime>>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), NodeId(0), None).unwrap();
        let machine = Machine::restore(store.clone()).unwrap();
        Ok((dir, LogStore::new(store), machine))
    }
}

#[tokio::test]
async fn passes_the_storage_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}

#[test]
fn only_the_owner_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), NodeId(1), None).unwrap();
    let mode = std::fs::metadata(store.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_second_daemon_is_told_that_one_runs() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path(), NodeId(1), None).unwrap();
    let error = Store::open(dir.path(), NodeId(1), None).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("already running"), "{error}");
    drop(first);
    Store::open(dir.path(), NodeId(1), None).unwrap();
}

#[test]
fn the_store_of_another_node_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), NodeId(1), None).unwrap());
    let error = Store::open(dir.path(), NodeId(2), None).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { owner: NodeId(1), me: NodeId(2), .. }), "{error}");
}

#[tokio::test]
async fn a_newer_format_is_refused_kindly() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), NodeId(1), None).unwrap();
    store.transact(|txn| queue::put(txn, key::FORMAT, &(FORMAT + 1))).unwrap();
    store.close().await;
    let error = Store::open(dir.path(), NodeId(1), None).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("newer version"), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_its_name() {
    type Damage = fn(&mut std::fs::File);
    let damages: [(&str, Damage); 3] = [
        ("overwritten", |file| {
            file.set_len(0).unwrap();
            file.write_all(b"this is not a database").unwrap();
        }),
        ("header", |file| {
            file.write_all(&[0xff; 64]).unwrap();
        }),
        ("cut short", |file| {
            let half = file.metadata().unwrap().len() / 2;
            file.set_len(half).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), NodeId(1), None).unwrap();
        store.set_incarnation(Incarnation { n: 3, id: uuid::Uuid::from_u128(7) }).await.unwrap();
        store.close().await;
        drop(store);
        let path = dir.path().join(FILE_NAME);
        let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        damage(&mut file);
        let error = Store::open(dir.path(), NodeId(1), None).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(FILE_NAME), "{name}: {error}");
    }
}

#[test]
fn no_state_directory_is_named() {
    let error = Store::open(Path::new("/nonexistent/state"), NodeId(1), None).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(error.to_string().contains("/nonexistent/state"), "{error}");
}

/// A disk with no room: everything up to a limit is taken.
#[derive(Debug)]
struct FullDisk {
    inner: redb::backends::InMemoryBackend,
    limit: u64,
    full: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl redb::StorageBackend for FullDisk {
    fn len(&self) -> Result<u64, io::Error> {
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        if len > self.limit {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.inner.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        if self.full.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.inner.write(offset, data)
    }
}

#[tokio::test]
async fn a_full_disk_is_called_one_and_nothing_is_written_behind_it() {
    let full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let disk =
        FullDisk { inner: redb::backends::InMemoryBackend::new(), limit: u64::MAX, full: std::sync::Arc::clone(&full) };
    let store = Store::on_backend(disk, queue::thread().unwrap(), NodeId(1), None).unwrap();
    store.set_incarnation(Incarnation { n: 1, id: uuid::Uuid::nil() }).await.unwrap();
    full.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = store.set_incarnation(Incarnation { n: 2, id: uuid::Uuid::nil() }).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    full.store(false, std::sync::atomic::Ordering::Relaxed);
    store.set_incarnation(Incarnation { n: 3, id: uuid::Uuid::nil() }).await.unwrap_err();
    assert_eq!(store.incarnation().n, 1);
}
