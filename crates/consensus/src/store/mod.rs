//! The durable part of a member: log, vote, snapshot and identity, in one redb file.
//!
//! All writes go through one queue ([`queue`]), in order, off the async workers; a write is reported done after its
//! fsync. What is not yet on disk is kept in memory and served from there, so that replication to the others and the own
//! fsync run side by side.

mod error;
mod log_store;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use model::{Incarnation, NodeId, State};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::error::StoreError;
pub(crate) use self::error::corrupt;
pub(crate) use self::log_store::LogStore;
pub(crate) use self::queue::Op;
use self::queue::Queue;
pub use self::queue::Task;
use crate::types::{Entry, LogId, StoredMembership, Vote};

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "raft.redb";

/// Layout of the file. A daemon refuses a file with a higher number.
const FORMAT: u64 = 1;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

mod key {
    pub const FORMAT: &str = "format";
    pub const OWNER: &str = "owner";
    pub const INCARNATION: &str = "incarnation";
    pub const HIGHEST_SEEN: &str = "highest_incarnation_seen";
    pub const VOTE: &str = "vote";
    pub const COMMITTED: &str = "committed";
    pub const PURGED: &str = "purged";
    pub const SNAPSHOT: &str = "snapshot";
}

/// Runs tasks one after the other, in the order in which they come, soon, and not on the caller's stack.
pub type Executor = Box<dyn Fn(Task) + Send + Sync>;

/// A snapshot as it is on disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SavedSnapshot {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) state: Arc<State>,
}

/// What is known without reading the file.
#[derive(Debug, Default)]
struct Memory {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    incarnation: Incarnation,
    highest_seen: u64,
    /// Appended, not yet known to be on disk.
    pending: BTreeMap<u64, Entry>,
}

struct Shared {
    path: PathBuf,
    me: NodeId,
    /// `None` once closed. Behind an `Arc` so that reads don't hold the lock.
    db: RwLock<Option<Arc<Database>>>,
    memory: Mutex<Memory>,
    queue: Queue,
    execute: Executor,
}

/// A member's store, open and locked: no other process can open it meanwhile.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.shared.path).field("me", &self.shared.me).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store of node `me` in the state directory `dir`, and makes it if there is none. `incarnation` is the one
    /// that the node was given when it joined; it counts only while the store has none.
    ///
    /// Blocks: reads and verifies the whole file (a few MB).
    ///
    /// # Errors
    /// [`StoreError`], with the file's name and what to do.
    pub fn open(dir: &Path, me: NodeId, incarnation: Option<Incarnation>) -> Result<Self, StoreError> {
        let path = dir.join(FILE_NAME);
        let db = open_file(dir, &path)?;
        let execute = queue::thread().map_err(|source| StoreError::io("start the writer of", &path, source))?;
        Self::with_database(path, db, execute, me, incarnation)
    }

    /// A store on another medium than a file: a simulated disk. `execute` does the writing.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn on_backend(
        backend: impl redb::StorageBackend,
        execute: Executor,
        me: NodeId,
        incarnation: Option<Incarnation>,
    ) -> Result<Self, StoreError> {
        let path = PathBuf::from(FILE_NAME);
        let db = Database::builder()
            .create_with_backend(backend)
            .map_err(|error| StoreError::database("open", &path, error))?;
        Self::with_database(path, db, execute, me, incarnation)
    }

    fn with_database(
        path: PathBuf,
        db: Database,
        execute: Executor,
        me: NodeId,
        incarnation: Option<Incarnation>,
    ) -> Result<Self, StoreError> {
        let store = Self {
            shared: Arc::new(Shared {
                path,
                me,
                db: RwLock::new(Some(Arc::new(db))),
                memory: Mutex::default(),
                queue: Queue::default(),
                execute,
            }),
        };
        store.claim(incarnation)?;
        store.load()?;
        Ok(store)
    }

    /// Makes the tables and writes the identity into a new file; checks it in one that is there.
    fn claim(&self, incarnation: Option<Incarnation>) -> Result<(), StoreError> {
        let (path, me) = (&self.shared.path, self.shared.me);
        let written = |source| StoreError::io("write", path, source);
        let read = |source| StoreError::read(path, source);
        self.transact(|txn| {
            txn.open_table(LOG).map_err(queue::io)?;
            txn.open_table(META).map(drop).map_err(queue::io)
        })
        .map_err(written)?;
        let format = self.get::<u64>(key::FORMAT).map_err(read)?;
        if let Some(found) = format.filter(|found| *found > FORMAT) {
            return Err(StoreError::Newer { path: path.clone(), found, known: FORMAT });
        }
        let owner = self.get::<NodeId>(key::OWNER).map_err(read)?;
        if let Some(owner) = owner.filter(|owner| *owner != me) {
            return Err(StoreError::Foreign { path: path.clone(), owner, me });
        }
        let known = self.get::<Incarnation>(key::INCARNATION).map_err(read)?.unwrap_or_default();
        self.transact(|txn| {
            queue::put(txn, key::FORMAT, &FORMAT)?;
            queue::put(txn, key::OWNER, &me)?;
            match incarnation {
                Some(given) if known.n == 0 => queue::put(txn, key::INCARNATION, &given),
                _ => Ok(()),
            }
        })
        .map_err(written)
    }

    fn transact(&self, write: impl FnOnce(&redb::WriteTransaction) -> io::Result<()>) -> io::Result<()> {
        let txn = self.database()?.begin_write().map_err(queue::io)?;
        write(&txn)?;
        txn.commit().map_err(queue::io)
    }

    fn load(&self) -> Result<(), StoreError> {
        let read = || -> io::Result<Memory> {
            let purged = self.get::<LogId>(key::PURGED)?;
            Ok(Memory {
                vote: self.get(key::VOTE)?,
                committed: self.get::<Option<LogId>>(key::COMMITTED)?.flatten(),
                last: self.last_entry()?.or(purged),
                purged,
                incarnation: self.get(key::INCARNATION)?.unwrap_or_default(),
                highest_seen: self.get(key::HIGHEST_SEEN)?.unwrap_or_default(),
                pending: BTreeMap::new(),
            })
        };
        let memory = read().map_err(|source| StoreError::read(&self.shared.path, source))?;
        *self.memory() = memory;
        Ok(())
    }

    fn last_entry(&self) -> io::Result<Option<LogId>> {
        let table = self.begin_read()?.open_table(LOG).map_err(queue::io)?;
        let Some((index, bytes)) = table.last().map_err(queue::io)? else {
            return Ok(None);
        };
        Ok(Some(self.decode_entry(index.value(), bytes.value())?.log_id))
    }

    fn decode_entry(&self, index: u64, bytes: &[u8]) -> io::Result<Entry> {
        serde_json::from_slice(bytes).map_err(|error| corrupt(&self.shared.path, &format!("log entry {index}"), &error))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A poisoned lock means that a thread died between two assignments; the values are still whole.
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn database(&self) -> io::Result<Arc<Database>> {
        let db = self.shared.db.read().unwrap_or_else(PoisonError::into_inner);
        db.clone().ok_or_else(|| io::Error::other(format!("{} is closed", self.shared.path.display())))
    }

    fn begin_read(&self) -> io::Result<redb::ReadTransaction> {
        self.database()?.begin_read().map_err(queue::io)
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> io::Result<Option<T>> {
        let table = self.begin_read()?.open_table(META).map_err(queue::io)?;
        let Some(bytes) = table.get(key).map_err(queue::io)? else {
            return Ok(None);
        };
        serde_json::from_slice(bytes.value()).map(Some).map_err(|error| corrupt(&self.shared.path, key, &error))
    }

    /// Whose store it is.
    pub fn owner(&self) -> NodeId {
        self.shared.me
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.memory().incarnation
    }

    /// Highest number of an incarnation in which this node was or of which it has heard.
    pub(crate) fn highest_incarnation(&self) -> u64 {
        let memory = self.memory();
        memory.highest_seen.max(memory.incarnation.n)
    }

    /// Durable when it returns.
    pub(crate) async fn set_incarnation(&self, incarnation: Incarnation) -> io::Result<()> {
        self.write(Op::Incarnation(incarnation)).await?;
        self.memory().incarnation = incarnation;
        Ok(())
    }

    /// Notes that somebody belongs to incarnation number `n`.
    pub(crate) async fn saw_incarnation(&self, n: u64) -> io::Result<()> {
        if n <= self.highest_incarnation() {
            return Ok(());
        }
        self.memory().highest_seen = n;
        self.write(Op::HighestSeen(n)).await
    }

    pub(crate) fn read_snapshot(&self) -> io::Result<Option<SavedSnapshot>> {
        self.get(key::SNAPSHOT)
    }

    pub(crate) async fn save_snapshot(&self, snapshot: SavedSnapshot) -> io::Result<()> {
        self.write(Op::Snapshot(Box::new(snapshot))).await
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        self.memory().vote
    }

    /// The entries in `range`, in order; those that are purged or were never appended are left out.
    pub(crate) fn entries(&self, range: impl std::ops::RangeBounds<u64>) -> io::Result<Vec<Entry>> {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        // First memory, then the file: what leaves memory in between is in the file by then.
        let (pending, last) = {
            let memory = self.memory();
            let pending: BTreeMap<u64, Entry> =
                memory.pending.range(bounds).map(|(index, entry)| (*index, entry.clone())).collect();
            (pending, memory.last.map_or(0, |id| id.index))
        };
        let mut found = BTreeMap::new();
        let table = self.begin_read()?.open_table(LOG).map_err(queue::io)?;
        for row in table.range(bounds).map_err(queue::io)? {
            let (index, bytes) = row.map_err(queue::io)?;
            let index = index.value();
            if index <= last && !pending.contains_key(&index) {
                found.insert(index, self.decode_entry(index, bytes.value())?);
            }
        }
        found.extend(pending);
        Ok(found.into_values().collect())
    }

    /// Puts a write at the end of the queue; the future ends when it is on disk.
    pub(crate) fn write(&self, op: Op) -> impl Future<Output = io::Result<()>> + Send + use<> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.submit(
            op,
            Box::new(move |result| {
                // Who asked may have gone.
                let _ = sender.send(result);
            }),
        );
        async move { receiver.await.unwrap_or_else(|_| Err(io::Error::other("the store was closed"))) }
    }

    /// Closes the file when all writes before this are done, and gives up its lock.
    pub(crate) async fn close(&self) {
        // The outcome says only whether an earlier write had failed.
        let _ = self.write(Op::Close).await;
    }
}

fn open_file(dir: &Path, path: &Path) -> Result<Database, StoreError> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let is_new = !path.exists();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        // It holds the key of the cluster's certificate authority.
        .mode(0o600)
        .open(path)
        .map_err(|source| StoreError::io("open", path, source))?;
    let backend = redb::backends::FileBackend::new(file).map_err(|error| StoreError::database("open", path, error))?;
    let db = Database::builder()
        .set_check_integrity_on_open(true)
        .set_cache_size(4 << 20)
        .create_with_backend(backend)
        .map_err(|error| StoreError::database("open", path, error))?;
    if is_new {
        std::fs::File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| StoreError::io("make durable", dir, source))?;
    }
    Ok(db)
}
