//! Digests of a replica's data, to compare it with others.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ring::digest::{SHA256, digest};
use tokio::task::spawn_blocking;

use crate::backing::{Backing, BackingError};
use crate::wire::{Content, Range};

/// SHA-256 of each `chunk` bytes.
pub(super) async fn digests(backing: &Backing, chunk: u64) -> Result<Vec<String>, BackingError> {
    let size = backing.size();
    let mut digests = Vec::new();
    let mut of_zeroes: BTreeMap<u64, String> = BTreeMap::new();
    let mut at = 0;
    while at < size {
        let len = chunk.min(size - at);
        digests.push(match backing.read(Range::new(at, len)).await? {
            Content::Data(data) => hashed(data).await?,
            Content::Zeroes => match of_zeroes.get(&len) {
                Some(known) => known.clone(),
                None => {
                    let known = hashed(vec![0; len as usize].into()).await?;
                    of_zeroes.insert(len, known.clone());
                    known
                }
            },
        });
        at += len;
    }
    Ok(digests)
}

async fn hashed(data: bytes::Bytes) -> Result<String, BackingError> {
    let hash = move || {
        digest(&SHA256, &data).as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
            // A string takes everything.
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    spawn_blocking(hash).await.map_err(|_| BackingError::Ending)
}
