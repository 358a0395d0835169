//! The replica as a guest of one run sees it.

use async_trait::async_trait;
use bytes::Bytes;
use model::RunId;
use tokio::sync::oneshot;

use super::Driver;
use super::actor::Message;
use crate::device::{Device, IoRefusal};
use crate::engine::{GuestError, GuestOp, GuestReply};
use crate::wire::{Content, Range};

pub(super) struct RunDevice {
    pub driver: Driver,
    pub run: RunId,
}

impl RunDevice {
    async fn ask(&self, op: GuestOp) -> Result<Option<Content>, IoRefusal> {
        let (reply, answer) = oneshot::channel();
        self.driver.tell(Message::Guest(self.run, op, reply));
        match answer.await {
            Ok(GuestReply::Done) => Ok(None),
            Ok(GuestReply::Read(content)) => Ok(Some(content)),
            Ok(GuestReply::Error(GuestError::RunOver)) => Err(IoRefusal::Closing),
            Ok(GuestReply::Error(GuestError::Medium)) => Err(IoRefusal::Medium),
            // The replica is gone, not the guest: it asks again when it is back (W1: never an error for a lost role).
            Err(_) => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Device for RunDevice {
    fn size(&self) -> u64 {
        self.driver.size()
    }

    /// The replica orders flushes by what it has acknowledged, wherever that came from.
    fn multi_conn(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, IoRefusal> {
        match self.ask(GuestOp::Read(Range::new(offset, u64::from(len)))).await? {
            Some(Content::Data(data)) => Ok(data),
            Some(Content::Zeroes) | None => Ok(Bytes::from(vec![0; len as usize])),
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoRefusal> {
        self.ask(GuestOp::Write { offset, data, fua }).await.map(drop)
    }

    async fn flush(&self) -> Result<(), IoRefusal> {
        self.ask(GuestOp::Flush).await.map(drop)
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoRefusal> {
        self.write_zeroes(offset, len, fua, true).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, fua: bool, _may_unmap: bool) -> Result<(), IoRefusal> {
        // Disks are sparse everywhere: a hole is as good as zeroes.
        self.ask(GuestOp::Zero { range: Range::new(offset, len), fua }).await.map(drop)
    }
}
