//! The one queue of writes. Writes that wait together share one transaction and one fsync.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use model::Incarnation;
use redb::{Durability, WriteTransaction};
use serde::Serialize;

use super::{Executor, LOG, META, SavedSnapshot, Shared, Store, key};
use crate::types::{Entry, LogId, Vote};

/// A piece of work for an [`Executor`].
pub type Task = Box<dyn FnOnce() + Send>;

/// Told what became of a write.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A change of the file.
pub(crate) enum Op {
    Append(Vec<Entry>),
    Vote(Vote),
    Committed(Option<LogId>),
    /// Removes the entries from this index on.
    Truncate(u64),
    /// Removes the entries up to this one.
    Purge(LogId),
    Snapshot(Box<SavedSnapshot>),
    Incarnation(Incarnation),
    HighestSeen(u64),
    /// What forced recovery writes, as a whole.
    Recover {
        entries: Vec<Entry>,
        vote: Vote,
        incarnation: Incarnation,
    },
    /// Everything goes but whose store it is and the highest incarnation that was seen; what is written next belongs to
    /// this incarnation.
    Discard(Incarnation),
    Close,
}

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<(Op, Done)>>,
    /// After a failed write nothing is written any more: what the kernel dropped from its cache can't be written again,
    /// so a later success would leave a hole (protocol, S7).
    failed: Mutex<Option<String>>,
}

/// An [`Executor`] with a thread of its own, which ends with the store.
pub(super) fn thread() -> io::Result<Executor> {
    let (sender, receiver) = std::sync::mpsc::channel::<Task>();
    std::thread::Builder::new().name("raft-store".into()).spawn(move || {
        for task in receiver {
            task();
        }
    })?;
    Ok(Box::new(move |task| {
        // The thread lives as long as the sender.
        let _ = sender.send(task);
    }))
}

impl Store {
    pub(super) fn submit(&self, op: Op, done: Done) {
        let first = {
            let mut waiting = self.shared.queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push_back((op, done));
            waiting.len() == 1
        };
        if first {
            let shared = Arc::clone(&self.shared);
            (self.shared.execute)(Box::new(move || drain(&shared)));
        }
    }
}

fn drain(shared: &Arc<Shared>) {
    let batch = std::mem::take(&mut *shared.queue.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    let (ops, done): (Vec<Op>, Vec<Done>) = batch.into_iter().unzip();
    let failed = shared.queue.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let result = match failed {
        Some(reason) => Err(io::Error::other(reason)),
        None => commit(shared, &ops),
    };
    match &result {
        Ok(()) => forget_pending(shared, &ops),
        Err(error) => {
            let mut failed = shared.queue.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| {
                tracing::error!(path = %shared.path.display(), %error, "can't write; consensus stops on this node");
                error.to_string()
            });
        }
    }
    if ops.iter().any(|op| matches!(op, Op::Close)) {
        shared.db.write().unwrap_or_else(PoisonError::into_inner).take();
    }
    for done in done {
        done(result.as_ref().map(|_| ()).map_err(|error| io::Error::new(error.kind(), error.to_string())));
    }
}

fn commit(shared: &Arc<Shared>, ops: &[Op]) -> io::Result<()> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("can't write {}: {error}", shared.path.display()));
    let db = Store { shared: Arc::clone(shared) }.database()?;
    let mut txn = db.begin_write().map_err(io).map_err(named)?;
    // Losing it costs nothing: the next leader says again what is committed.
    if ops.iter().all(|op| matches!(op, Op::Committed(_) | Op::Close)) {
        txn.set_durability(Durability::None).map_err(io)?;
    }
    for op in ops {
        op.write(&txn).map_err(named)?;
    }
    txn.commit().map_err(io).map_err(named)
}

/// What is on disk need not be in memory any more.
fn forget_pending(shared: &Arc<Shared>, ops: &[Op]) {
    let mut memory = shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
    for op in ops {
        let Op::Append(entries) = op else { continue };
        for entry in entries {
            // Truncated and replaced meanwhile: the newer one is not on disk yet.
            if memory.pending.get(&entry.log_id.index).is_some_and(|pending| pending.log_id == entry.log_id) {
                memory.pending.remove(&entry.log_id.index);
            }
        }
    }
}

impl Op {
    pub(crate) fn write(&self, txn: &WriteTransaction) -> io::Result<()> {
        match self {
            Op::Append(entries) => append(txn, entries),
            Op::Vote(vote) => put(txn, key::VOTE, vote),
            Op::Committed(committed) => put(txn, key::COMMITTED, committed),
            Op::Truncate(from) => txn.open_table(LOG).map_err(io)?.retain_in(*from.., |_, _| false).map_err(io),
            Op::Purge(upto) => {
                txn.open_table(LOG).map_err(io)?.retain_in(..=upto.index, |_, _| false).map_err(io)?;
                put(txn, key::PURGED, upto)
            }
            Op::Snapshot(snapshot) => put(txn, key::SNAPSHOT, snapshot),
            Op::Incarnation(incarnation) => put(txn, key::INCARNATION, incarnation),
            Op::HighestSeen(n) => put(txn, key::HIGHEST_SEEN, n),
            Op::Recover { entries, vote, incarnation } => {
                append(txn, entries)?;
                put(txn, key::VOTE, vote)?;
                put(txn, key::INCARNATION, incarnation)
            }
            Op::Discard(incarnation) => {
                txn.open_table(LOG).map_err(io)?.retain(|_, _| false).map_err(io)?;
                let mut meta = txn.open_table(META).map_err(io)?;
                for key in [key::VOTE, key::COMMITTED, key::PURGED, key::SNAPSHOT] {
                    meta.remove(key).map_err(io)?;
                }
                drop(meta);
                put(txn, key::INCARNATION, incarnation)
            }
            Op::Close => Ok(()),
        }
    }
}

fn append(txn: &WriteTransaction, entries: &[Entry]) -> io::Result<()> {
    let mut table = txn.open_table(LOG).map_err(io)?;
    for entry in entries {
        table.insert(entry.log_id.index, serde_json::to_vec(entry)?.as_slice()).map_err(io)?;
    }
    Ok(())
}

pub(super) fn put<T: Serialize + ?Sized>(txn: &WriteTransaction, key: &str, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    txn.open_table(META).map_err(io)?.insert(key, bytes.as_slice()).map_err(io)?;
    Ok(())
}

/// redb's errors as `io::Error`, with the kind kept: a full disk stays a full disk.
pub(super) fn io(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        redb::Error::Corrupted(reason) => io::Error::new(io::ErrorKind::InvalidData, reason),
        other => io::Error::other(other.to_string()),
    }
}
