//! What the tests of the exports share: a disk in memory, and programs that are waited for.
#![allow(dead_code, reason = "each test program uses its part")]

use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use mirror::device::{Device, IoRefusal};
use tokio::sync::watch;

/// A disk in memory that counts what it is asked, and can hold its answers.
pub struct MemoryDisk {
    pub content: Mutex<Vec<u8>>,
    pub flushes: AtomicUsize,
    pub fua: AtomicUsize,
    pub trims: AtomicUsize,
    pub zeroes: AtomicUsize,
    /// Requests that have come and are not answered.
    pub waiting: watch::Sender<usize>,
    hold: watch::Sender<bool>,
    pub refusal: Mutex<Option<IoRefusal>>,
}

/// Counts a request while it waits, also when its future is dropped.
struct Waiting<'a>(&'a MemoryDisk);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

impl MemoryDisk {
    pub fn new(size: usize) -> Arc<Self> {
        Arc::new(Self {
            content: Mutex::new(vec![0; size]),
            flushes: AtomicUsize::new(0),
            fua: AtomicUsize::new(0),
            trims: AtomicUsize::new(0),
            zeroes: AtomicUsize::new(0),
            waiting: watch::Sender::new(0),
            hold: watch::Sender::new(false),
            refusal: Mutex::new(None),
        })
    }

    /// Holds the answers of writes and flushes, or gives them.
    pub fn hold(&self, hold: bool) {
        self.hold.send_replace(hold);
    }

    pub async fn until_waiting(&self, count: usize) {
        self.waiting.subscribe().wait_for(|waiting| *waiting == count).await.unwrap();
    }

    pub fn snapshot(&self) -> Vec<u8> {
        self.content.lock().unwrap().clone()
    }

    async fn answer(&self) -> Result<(), IoRefusal> {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _waiting = Waiting(self);
        self.hold.subscribe().wait_for(|hold| !hold).await.unwrap();
        match *self.refusal.lock().unwrap() {
            Some(refusal) => Err(refusal),
            None => Ok(()),
        }
    }

    fn put(&self, offset: u64, data: &[u8], fua: bool) {
        assert!(offset.is_multiple_of(512) && data.len().is_multiple_of(512) && !data.is_empty(), "not aligned");
        self.fua.fetch_add(usize::from(fua), Ordering::SeqCst);
        self.content.lock().unwrap()[offset as usize..offset as usize + data.len()].copy_from_slice(data);
    }
}

#[async_trait]
impl Device for MemoryDisk {
    fn size(&self) -> u64 {
        self.content.lock().unwrap().len() as u64
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, IoRefusal> {
        assert!(offset.is_multiple_of(512) && len.is_multiple_of(512) && len > 0, "not aligned");
        if let Some(refusal) = *self.refusal.lock().unwrap() {
            return Err(refusal);
        }
        let content = self.content.lock().unwrap();
        Ok(Bytes::copy_from_slice(&content[offset as usize..offset as usize + len as usize]))
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoRefusal> {
        self.answer().await?;
        self.put(offset, &data, fua);
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoRefusal> {
        self.answer().await?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoRefusal> {
        self.answer().await?;
        self.trims.fetch_add(1, Ordering::SeqCst);
        self.put(offset, &vec![0; len as usize], fua);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, fua: bool, _may_unmap: bool) -> Result<(), IoRefusal> {
        self.answer().await?;
        self.zeroes.fetch_add(1, Ordering::SeqCst);
        self.put(offset, &vec![0; len as usize], fua);
        Ok(())
    }
}

/// Runs a program without stopping the runtime, and wants it to succeed.
pub async fn run(program: &str, arguments: &[&str]) -> String {
    let output = outcome(program, arguments).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// Runs a program to its end.
pub async fn outcome(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let name = program.to_owned();
    tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap_or_else(|error| panic!("cannot run {name}, which this test needs: {error}"))
}

/// Bytes that look random and are always the same.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}
