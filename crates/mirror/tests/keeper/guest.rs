//! A guest that writes without pause and checks what it reads. Each of its workers has a part of the disk for itself and
//! does one thing after the other, so that it is always known what every sector has to hold.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mirror::device::{Device, IoRefusal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::lab::PATIENCE;

const SECTOR: usize = 512;
/// Workers of a guest.
const WORKERS: u64 = 4;
/// Sectors of each worker's part.
const PART: u64 = 4096;

/// A source of numbers whose start is printed.
pub struct Rng(u64);

impl Rng {
    /// From `MIRROR_SEED` if that is set, else from the clock.
    pub fn new(test: &str) -> Self {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("MIRROR_SEED").map_or(clock, |seed| seed.parse().unwrap());
        println!("{test}: MIRROR_SEED={seed}");
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}

pub struct Guest {
    device: watch::Sender<Option<Arc<dyn Device>>>,
    going: watch::Sender<bool>,
    done: watch::Sender<u64>,
    workers: JoinSet<()>,
    /// What each worker's part has to hold.
    parts: Vec<Arc<Mutex<Vec<u8>>>>,
}

impl Guest {
    /// A guest that runs, and whose disk is not there yet. All of its disk reads as zeroes.
    pub fn new(rng: &mut Rng) -> Self {
        let (device, going, done) = (watch::Sender::new(None), watch::Sender::new(true), watch::Sender::new(0));
        let parts: Vec<_> = (0..WORKERS).map(|_| Arc::new(Mutex::new(vec![0; PART as usize * SECTOR]))).collect();
        let mut guest = Self { device, going, done, workers: JoinSet::new(), parts };
        guest.go_on(rng);
        guest
    }

    fn go_on(&mut self, rng: &mut Rng) {
        self.going.send_replace(true);
        for (number, part) in self.parts.iter().enumerate() {
            let worker = Worker {
                number: number as u64,
                rng: Rng(rng.next() | 1),
                part: part.clone(),
                device: self.device.subscribe(),
                done: self.done.clone(),
            };
            self.workers.spawn(worker.work(self.going.subscribe()));
        }
    }

    /// Its disk is there: what was not answered is asked again.
    pub fn attach(&self, device: Arc<dyn Device>) {
        self.device.send_replace(Some(device));
    }

    pub fn detach(&self) {
        self.device.send_replace(None);
    }

    /// Waits until so many more operations have been answered.
    pub async fn gets_on(&self, operations: u64) {
        let target = *self.done.borrow() + operations;
        let mut done = self.done.subscribe();
        let reached = tokio::time::timeout(PATIENCE, done.wait_for(|done| *done >= target)).await;
        reached.unwrap_or_else(|_| panic!("the guest does not get on")).unwrap();
    }

    /// Pauses it: everything that it asked is answered.
    pub async fn pause(&mut self) {
        self.going.send_replace(false);
        let ended = async {
            while let Some(ended) = self.workers.join_next().await {
                ended.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("the guest's requests are not answered");
    }

    /// Lets it go on.
    pub fn resume(&mut self, rng: &mut Rng) {
        self.go_on(rng);
    }

    pub fn answered(&self) -> u64 {
        *self.done.borrow()
    }

    /// What the beginning of the disk has to hold, while the guest is paused.
    pub fn expected(&self) -> Vec<u8> {
        assert!(self.workers.is_empty());
        self.parts.iter().flat_map(|part| part.lock().unwrap().clone()).collect()
    }

    /// Reads everything and compares it, while the guest is paused.
    pub async fn verify(&self, device: &Arc<dyn Device>) {
        let expected = self.expected();
        for (number, piece) in expected.chunks(1 << 20).enumerate() {
            let read = device.read((number << 20) as u64, piece.len() as u32).await.unwrap();
            same(&read, piece, (number << 20) as u64);
        }
    }
}

/// Where the two differ first is of more use than what they hold.
pub fn same(found: &[u8], expected: &[u8], at: u64) {
    assert_eq!(found.len(), expected.len());
    if let Some(first) = found.iter().zip(expected).position(|(found, expected)| found != expected) {
        let (here, sector) = (at + first as u64, first / SECTOR * SECTOR);
        let stamp = |bytes: &[u8]| u64::from_le_bytes(bytes[sector..sector + 8].try_into().unwrap());
        panic!("byte {here}: version {} instead of {}", stamp(found), stamp(expected));
    }
}

enum Op {
    Read(u64, u32),
    Write(u64, Bytes, bool),
    Zero(u64, u64),
    Flush,
}

impl Op {
    async fn run(&self, device: &Arc<dyn Device>) -> Result<Bytes, IoRefusal> {
        match self {
            Op::Read(offset, len) => return device.read(*offset, *len).await,
            Op::Write(offset, data, fua) => device.write(*offset, data.clone(), *fua).await?,
            Op::Zero(offset, len) => device.write_zeroes(*offset, *len, false, true).await?,
            Op::Flush => device.flush().await?,
        }
        Ok(Bytes::new())
    }
}

struct Worker {
    number: u64,
    rng: Rng,
    part: Arc<Mutex<Vec<u8>>>,
    device: watch::Receiver<Option<Arc<dyn Device>>>,
    done: watch::Sender<u64>,
}

impl Worker {
    async fn work(mut self, going: watch::Receiver<bool>) {
        while *going.borrow() {
            let first = self.rng.below(PART - 64);
            let count = 1 + self.rng.below(64);
            let (from, len) = (first as usize * SECTOR, count as usize * SECTOR);
            let offset = (self.number * PART + first) * SECTOR as u64;
            match self.rng.below(20) {
                0 => {
                    self.ask(Op::Flush).await;
                }
                1 => {
                    self.ask(Op::Zero(offset, len as u64)).await;
                    self.part.lock().unwrap()[from..from + len].fill(0);
                }
                2..5 => {
                    let read = self.ask(Op::Read(offset, len as u32)).await;
                    same(&read, &self.part.lock().unwrap()[from..from + len], offset);
                }
                kind => {
                    let stamp = self.rng.next() | 1;
                    let data: Bytes = (0..count)
                        .flat_map(|sector| {
                            [stamp, offset + sector, !stamp, 7].map(u64::to_le_bytes).concat().repeat(16)
                        })
                        .collect::<Vec<u8>>()
                        .into();
                    self.ask(Op::Write(offset, data.clone(), kind == 5)).await;
                    self.part.lock().unwrap()[from..from + len].copy_from_slice(&data);
                }
            }
            self.done.send_modify(|done| *done += 1);
        }
    }

    /// Asks until there is an answer, as a hypervisor does that connects again when its disk is gone.
    async fn ask(&mut self, op: Op) -> Bytes {
        loop {
            let device = self.device.borrow_and_update().clone();
            let answer = async {
                match device {
                    Some(device) => op.run(&device).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                answer = answer => return answer.expect("a guest never sees an error because a replica went away"),
                changed = self.device.changed() => changed.expect("the guest is gone"),
            }
        }
    }
}
