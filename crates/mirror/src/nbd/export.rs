//! The exports of a server, and the count of their clients.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::wire::{MAX_NAME, transmission_flag};
use crate::device::Device;

/// How a device is exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// Clients may only read.
    pub read_only: bool,
}

/// Why an export can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// There is one of that name.
    #[error("there is an NBD export {name} already: remove it first")]
    Exists {
        /// The export's name.
        name: String,
    },
    /// The name is too long, or empty.
    #[error("an NBD export's name has 1 to {MAX_NAME} bytes, and this one has {len}")]
    Name {
        /// Its bytes.
        len: usize,
    },
    /// The device has an impossible geometry.
    #[error(
        "the disk for NBD export {name} has {size} bytes in blocks of {block}: a block is a power of two up to 64 KiB, and the size a multiple of it"
    )]
    Geometry {
        /// The export's name.
        name: String,
        /// Bytes.
        size: u64,
        /// Bytes.
        block: u32,
    },
}

/// Who uses an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Clients in transmission.
    pub connected: usize,
    /// Clients that are gone, but some of whose requests still run in the device.
    pub settling: usize,
}

/// The exports of one server, by name. Clones are the same table.
#[derive(Clone, Default)]
pub struct ExportTable {
    exports: Arc<Mutex<BTreeMap<String, Arc<Export>>>>,
}

impl fmt::Debug for ExportTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl ExportTable {
    /// A table without exports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers `device` under `name` to clients that come from now on.
    pub fn insert(
        &self,
        name: impl Into<String>,
        device: Arc<dyn Device>,
        options: ExportOptions,
    ) -> Result<(), ExportError> {
        let name = name.into();
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(ExportError::Name { len: name.len() });
        }
        let (size, block) = (device.size(), device.block_size());
        if !block.is_power_of_two() || block > 1 << 16 || !size.is_multiple_of(u64::from(block)) {
            return Err(ExportError::Geometry { name, size, block });
        }
        let mut exports = self.lock();
        if exports.contains_key(&name) {
            return Err(ExportError::Exists { name });
        }
        exports.insert(name.clone(), Arc::new(Export::new(name, device, options)));
        Ok(())
    }

    /// Takes the export out: no new client gets it from now on. What becomes of those that it has is said by what is
    /// done with the answer. `None` if there is no such export.
    pub fn remove(&self, name: &str) -> Option<Removed> {
        self.lock().remove(name).map(|export| Removed { export })
    }

    /// Who uses the export now; `None` if there is no such export.
    pub fn clients(&self, name: &str) -> Option<Clients> {
        self.find(name).map(|export| *export.clients.borrow())
    }

    /// Follows who uses the export; `None` if there is no such export.
    pub fn watch_clients(&self, name: &str) -> Option<watch::Receiver<Clients>> {
        self.find(name).map(|export| export.clients.subscribe())
    }

    /// The names of all exports, sorted.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Export>> {
        self.lock().get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Export>>> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An export that was taken out of its table. Dropping this ends its connections at once, without waiting for it.
#[must_use = "dropping this ends the connections at once"]
pub struct Removed {
    export: Arc<Export>,
}

impl fmt::Debug for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Removed").field(&self.export.name).finish()
    }
}

impl Removed {
    /// Takes no more requests, answers those that were taken, closes the connections, and waits for the end of all
    /// that. It can take as long as the device holds an answer: put a limit on it and go on with [`Removed::end`].
    pub async fn drain(&self) {
        self.export.end(Ending::Drain);
        self.export.gone().await;
    }

    /// Closes the connections without answering what was not answered yet, and waits until no request of theirs is
    /// left waiting at the device.
    pub async fn end(self) {
        self.export.end(Ending::AtOnce);
        self.export.gone().await;
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        self.export.end(Ending::AtOnce);
    }
}

/// How far the end of an export has come. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    No,
    Drain,
    AtOnce,
}

/// A device under a name.
pub(super) struct Export {
    pub name: String,
    pub device: Arc<dyn Device>,
    pub options: ExportOptions,
    ending: watch::Sender<Ending>,
    clients: watch::Sender<Clients>,
}

impl Export {
    fn new(name: String, device: Arc<dyn Device>, options: ExportOptions) -> Self {
        Self {
            name,
            device,
            options,
            ending: watch::Sender::new(Ending::No),
            clients: watch::Sender::new(Clients::default()),
        }
    }

    /// What a client is told about the export.
    pub fn flags(&self, structured: bool) -> u16 {
        use transmission_flag as flag;
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA;
        if self.options.read_only {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES;
        }
        if structured {
            // A reply is never more than one chunk.
            flags |= flag::SEND_DF;
        }
        if self.device.multi_conn() {
            flags |= flag::CAN_MULTI_CONN;
        }
        flags
    }

    fn end(&self, how: Ending) {
        self.ending.send_if_modified(|ending| {
            let later = how > *ending;
            if later {
                *ending = how;
            }
            later
        });
    }

    async fn gone(&self) {
        let mut clients = self.clients.subscribe();
        // The sender lives as long as `self`, so this can't fail.
        let _ = clients.wait_for(|clients| clients.connected == 0 && clients.settling == 0).await;
    }

    /// Waits until the export's end has come as far as `how`.
    pub async fn ending(&self, how: Ending) {
        let mut ending = self.ending.subscribe();
        let _ = ending.wait_for(|ending| *ending >= how).await;
    }

    /// Admits a client into transmission, when no request of a vanished one runs any more. `None` if the export was
    /// taken away meanwhile.
    pub async fn admit(self: Arc<Self>) -> Option<Admission> {
        let mut clients = self.clients.subscribe();
        loop {
            tokio::select! {
                biased;
                () = self.ending(Ending::Drain) => return None,
                _ = clients.wait_for(|clients| clients.settling == 0) => {}
            }
            let admitted = self.clients.send_if_modified(|clients| {
                let free = clients.settling == 0;
                clients.connected += usize::from(free);
                free
            });
            if admitted {
                let admission = Admission { export: self, settling: AtomicBool::new(false) };
                // Who ends the export either sees this client or is seen here.
                let ended = *admission.export.ending.borrow() != Ending::No;
                return (!ended).then_some(admission);
            }
        }
    }
}

/// One client's place in an export's count, held by its connection and by each of its requests.
pub(super) struct Admission {
    export: Arc<Export>,
    settling: AtomicBool,
}

impl Admission {
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// The client is gone; its requests may still run.
    pub fn settle(&self) {
        if !self.settling.swap(true, Ordering::Relaxed) {
            self.export.clients.send_modify(|clients| {
                clients.connected -= 1;
                clients.settling += 1;
            });
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let settling = *self.settling.get_mut();
        self.export.clients.send_modify(|clients| {
            if settling {
                clients.settling -= 1;
            } else {
                clients.connected -= 1;
            }
        });
    }
}
