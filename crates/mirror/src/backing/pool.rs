//! Threads for I/O: not more than so many at a time, none forgotten, none too slow.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::Limits;
use super::error::{BackingError, Failure};
use super::medium::Medium;
use super::meta::Meta;
use crate::wire::Range;

/// The files, and who may use them now.
#[derive(Debug)]
pub(super) struct Pool {
    pub medium: Medium,
    meta: Mutex<Meta>,
    meta_path: PathBuf,
    size: AtomicU64,
    slowest: Duration,
    /// One permit a thread; closed when the backing has failed.
    threads: Arc<Semaphore>,
    running: watch::Sender<usize>,
    failure: watch::Sender<Option<Failure>>,
}

/// Counts one I/O, from before it waits for a thread until it has ended.
struct Counted(Arc<Pool>);

impl Counted {
    fn new(pool: &Arc<Pool>) -> Self {
        pool.running.send_modify(|running| *running += 1);
        Self(pool.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

/// Fails the backing if it is dropped: by an I/O that panics, of which nobody knows what it did.
struct Unwinding<'a> {
    pool: &'a Pool,
    attempt: &'static str,
    part: Part,
}

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        self.pool.fail(self.attempt, self.part, "it panicked".to_owned());
    }
}

/// What an I/O works on, for messages.
#[derive(Clone, Copy)]
enum Part {
    Data,
    Meta,
}

impl Pool {
    pub fn new(medium: Medium, meta: Meta, size: u64, limits: Limits) -> Self {
        Self {
            medium,
            meta_path: meta.path.clone(),
            meta: Mutex::new(meta),
            size: AtomicU64::new(size),
            slowest: limits.slowest,
            threads: Arc::new(Semaphore::new(limits.concurrency.max(1))),
            running: watch::Sender::new(0),
            failure: watch::Sender::new(None),
        }
    }

    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Whether a range can be asked for.
    pub fn check(&self, range: Range) -> Result<(), BackingError> {
        let fits = range.offset.checked_add(range.len).is_some_and(|end| end <= self.size());
        if range.len == 0 || !fits { Err(self.wrong_range(range)) } else { Ok(()) }
    }

    pub fn wrong_range(&self, range: Range) -> BackingError {
        BackingError::Range { path: self.medium.path.clone(), offset: range.offset, len: range.len, size: self.size() }
    }

    /// Runs what changes nothing.
    pub async fn read<T, F>(self: &Arc<Self>, attempt: &'static str, io: F) -> Result<T, BackingError>
    where
        T: Send + 'static,
        F: FnOnce(&Pool) -> io::Result<T> + Send + 'static,
    {
        self.run(attempt, Part::Data, false, io).await
    }

    /// Runs what changes the medium; an error fails the backing.
    pub async fn change<T, F>(self: &Arc<Self>, attempt: &'static str, io: F) -> Result<T, BackingError>
    where
        T: Send + 'static,
        F: FnOnce(&Pool) -> io::Result<T> + Send + 'static,
    {
        self.run(attempt, Part::Data, true, io).await
    }

    /// Runs what changes the meta file, one at a time; an error fails the backing.
    pub async fn change_meta<F>(self: &Arc<Self>, attempt: &'static str, io: F) -> Result<(), BackingError>
    where
        F: FnOnce(&mut Meta) -> io::Result<()> + Send + 'static,
    {
        let locked = move |pool: &Pool| io(&mut pool.meta.lock().unwrap_or_else(PoisonError::into_inner));
        self.run(attempt, Part::Meta, true, locked).await
    }

    async fn run<T, F>(
        self: &Arc<Self>,
        attempt: &'static str,
        part: Part,
        fatal: bool,
        io: F,
    ) -> Result<T, BackingError>
    where
        T: Send + 'static,
        F: FnOnce(&Pool) -> io::Result<T> + Send + 'static,
    {
        let counted = Counted::new(self);
        let Ok(thread) = self.threads.clone().acquire_owned().await else {
            return Err(self.failed());
        };
        let mut task = tokio::task::spawn_blocking(move || {
            let pool = counted.0.clone();
            // Told here and not where the result is waited for, because that future may be gone.
            let unwinding = Unwinding { pool: &pool, attempt, part };
            let result = io(&pool);
            std::mem::forget(unwinding);
            if let Err(error) = &result
                && fatal
            {
                pool.fail(attempt, part, error.to_string());
            }
            drop(thread);
            drop(counted);
            result
        });
        let ended = tokio::select! {
            biased;
            ended = &mut task => ended,
            () = tokio::time::sleep(self.slowest) => {
                self.fail(attempt, part, format!("it takes longer than {} s", self.slowest.as_secs_f32()));
                // It is not over because it takes too long: what it writes can still appear on the medium.
                task.await
            }
        };
        match ended {
            Ok(Ok(value)) if !self.is_failed() => Ok(value),
            Ok(Ok(_)) => Err(self.failed()),
            Ok(Err(source)) => Err(BackingError::io(attempt, self.path(part), source)),
            Err(error) if error.is_panic() => Err(self.failed()),
            Err(_) => Err(BackingError::Ending),
        }
    }

    fn path(&self, part: Part) -> &Path {
        match part {
            Part::Data => &self.medium.path,
            Part::Meta => &self.meta_path,
        }
    }

    fn is_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// Nothing more is begun. The first failure is the one that is told.
    fn fail(&self, attempt: &'static str, part: Part, reason: String) {
        let path = self.path(part);
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                tracing::error!(%reason, "cannot {attempt} {}: the replica has failed", path.display());
                // Before anybody can learn of the failure: who waits for a thread then gets none any more.
                self.threads.close();
                *failure = Some(Failure { attempt, path: path.to_owned(), reason });
            }
            first
        });
    }

    fn failed(&self) -> BackingError {
        match self.failure.borrow().clone() {
            Some(failure) => BackingError::Failed { path: failure.path.clone(), failure },
            None => BackingError::Ending,
        }
    }

    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.failure.subscribe()
    }

    pub async fn drained(&self) {
        // The sender lives as long as `self`.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }
}

/// Runs what may block and has no backing yet, or no more.
pub(super) async fn blocking<T, F>(work: F) -> Result<T, BackingError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, BackingError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(BackingError::Ending),
        },
    }
}
