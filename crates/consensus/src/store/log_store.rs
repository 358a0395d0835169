//! The store, as openraft wants to see it.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::RangeBounds;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{AsyncRuntime, OptionalSend};

use super::{Op, Store};
use crate::types::{Entry, LogId, Types, Vote};

/// [`Store`] on a runtime.
pub(crate) struct LogStore<Rt> {
    store: Store,
    runtime: PhantomData<fn() -> Rt>,
}

impl<Rt> LogStore<Rt> {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, runtime: PhantomData }
    }
}

impl<Rt: AsyncRuntime> RaftLogReader<Types<Rt>> for LogStore<Rt> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.store.entries(range)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.store.vote())
    }
}

impl<Rt: AsyncRuntime> RaftLogStorage<Types<Rt>> for LogStore<Rt> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types<Rt>>> {
        let memory = self.store.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        Self::new(self.store.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.store.write(Op::Vote(*vote)).await?;
        self.store.memory().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.store.memory().committed = committed;
        self.store.submit(Op::Committed(committed), Box::new(|_| {}));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.store.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types<Rt>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut memory = self.store.memory();
            for entry in &entries {
                memory.last = Some(entry.log_id);
                memory.pending.insert(entry.log_id.index, entry.clone());
            }
        }
        self.store.submit(Op::Append(entries), Box::new(move |result| flushed.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        {
            let mut memory = self.store.memory();
            memory.pending.split_off(&from);
            memory.last = memory.last.min(last);
        }
        self.store.write(Op::Truncate(from)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        {
            let mut memory = self.store.memory();
            memory.pending = memory.pending.split_off(&(upto.index + 1));
            memory.purged = memory.purged.max(Some(upto));
            memory.last = memory.last.max(Some(upto));
        }
        self.store.write(Op::Purge(upto)).await
    }
}
