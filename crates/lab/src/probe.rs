//! Looking at a guest from outside, as its users do: does it answer, since when, and has it lost anything?

mod pings;
mod runs;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::exec::Running;
use crate::{Error, Node};

pub use pings::{PingLoss, Pings};
pub use runs::{Change, RunWatch, Runs};

/// The port of the service in the guest that proves continuity.
pub const CONTINUITY_PORT: u16 = 7000;

/// How long an attempt to connect, and an answer, may take.
const CONNECT: Duration = Duration::from_millis(200);
const ANSWER: Duration = Duration::from_millis(1000);
/// Between an answer and the next question, and before another attempt to connect.
const PAUSE: Duration = Duration::from_millis(10);

/// One answer of the continuity service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// When it was received.
    pub at: Instant,
    /// The boot id of the guest's kernel.
    pub boot: String,
    /// The number that the guest had synced to its disk before it answered.
    pub counter: u64,
}

/// Asks a guest's continuity service without a pause, from a namespace of the lab, until it is finished or dropped.
#[derive(Debug)]
pub struct Continuity {
    shared: Arc<Shared>,
    guest: Ipv4Addr,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    answers: Vec<Answer>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Continuity {
    /// Begins to ask `guest`, from `observer`.
    pub fn start(observer: &Node, guest: Ipv4Addr) -> Result<Continuity, Error> {
        hurry_arp(observer)?;
        let namespace = observer.network()?;
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let address = SocketAddr::from((guest, CONTINUITY_PORT));
        let thread = thread::spawn(move || {
            // Without the namespace there are no answers, which is what whoever waits for them is told.
            let _ = namespace.run(|| {
                while !of_thread.lock().stop {
                    let _ = ask(address, &of_thread);
                    thread::sleep(PAUSE);
                }
            });
        });
        Ok(Continuity { shared, guest, thread: Some(thread) })
    }

    /// Waits for `count` more answers.
    pub fn wait(&self, count: usize, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        let mut seen = self.shared.lock();
        let wanted = seen.answers.len() + count;
        while seen.answers.len() < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout {
                    what: format!("answer of the guest at {}", self.guest),
                    node: "client".to_owned(),
                    after: timeout,
                    seen: format!("{} answers before", seen.answers.len()),
                });
            }
            seen = self.shared.news.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// How often the guest has booted since then, as far as it has answered.
    pub fn boots_since(&self, since: Instant) -> usize {
        boots_since(&self.shared.lock().answers, since).len()
    }

    /// Stops asking, and returns what was answered.
    pub fn finish(mut self) -> History {
        self.end();
        History(std::mem::take(&mut self.shared.lock().answers))
    }

    fn end(&mut self) {
        self.shared.lock().stop = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Continuity {
    fn drop(&mut self) {
        self.end();
    }
}

/// Asks over one connection until that breaks or it is to stop.
fn ask(guest: SocketAddr, shared: &Shared) -> io::Result<()> {
    let mut to = TcpStream::connect_timeout(&guest, CONNECT)?;
    to.set_nodelay(true)?;
    to.set_read_timeout(Some(ANSWER))?;
    let mut from = BufReader::new(to.try_clone()?);
    loop {
        to.write_all(b"?\n")?;
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let (boot, counter) = line.trim().split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        let counter = counter.parse().map_err(|_| io::ErrorKind::InvalidData)?;
        let answer = Answer { at: Instant::now(), boot: boot.to_owned(), counter };
        let mut seen = shared.lock();
        seen.answers.push(answer);
        shared.news.notify_all();
        if seen.stop {
            return Ok(());
        }
        drop(seen);
        thread::sleep(PAUSE);
    }
}

/// What a guest has answered, in the order of arrival.
#[derive(Debug, Clone)]
pub struct History(pub Vec<Answer>);

impl History {
    /// The longest time between two answers.
    pub fn longest_gap(&self) -> Option<Duration> {
        self.0.windows(2).map(|pair| pair[1].at - pair[0].at).max()
    }

    /// The first answers of new boots, at that time or later.
    pub fn boots_since(&self, since: Instant) -> Vec<Instant> {
        boots_since(&self.0, since)
    }

    /// What is wrong, if anything: the guest has booted meanwhile, or has forgotten what it had answered.
    pub fn broken(&self) -> Option<String> {
        let booted = self.0.windows(2).find(|pair| pair[0].boot != pair[1].boot);
        booted
            .map(|pair| format!("the guest has booted: boot id {} became {}", pair[0].boot, pair[1].boot))
            .or_else(|| self.forgotten())
    }

    /// What the guest has forgotten of what it had answered, if anything; it may have booted meanwhile.
    pub fn forgotten(&self) -> Option<String> {
        // One number is given to one client only, so the next one has to be higher.
        let back = self.0.windows(2).find(|pair| pair[1].counter <= pair[0].counter);
        back.map(|pair| {
            format!("the guest has lost what it had synced: {} came after {}", pair[1].counter, pair[0].counter)
        })
    }

    /// How many of the numbers that were answered are not on the guest's disk, by what `cardume-guest check` says of it.
    /// Numbers that are older than its journal is long are not counted.
    pub fn missing(&self, check: &str) -> Option<usize> {
        let value = |name: &str| check.split_whitespace().find_map(|word| word.strip_prefix(name));
        let last: u64 = value("last=")?.parse().ok()?;
        let holes = match value("holes=")? {
            "none" => Vec::new(),
            holes => holes.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?,
        };
        let is_missing = |answer: &&Answer| answer.counter > last || holes.contains(&answer.counter);
        Some(self.0.iter().filter(is_missing).count())
    }
}

fn boots_since(answers: &[Answer], since: Instant) -> Vec<Instant> {
    let boots = answers.windows(2).filter(|pair| pair[0].boot != pair[1].boot).map(|pair| pair[1].at);
    boots.filter(|at| *at >= since).collect()
}

/// Waits for a guest's first answer to a ping.
#[derive(Debug)]
pub struct FirstPing {
    first: mpsc::Receiver<Instant>,
    /// Killed when this is dropped.
    _ping: Running,
    address: Ipv4Addr,
}

impl FirstPing {
    /// Begins to ping `guest` twenty times a second, from `observer`.
    pub fn start(observer: &Node, guest: Ipv4Addr) -> Result<FirstPing, Error> {
        hurry_arp(observer)?;
        let mut ping = observer.command(["ping", "-n", "-i", "0.05", &guest.to_string()]).spawn()?;
        let (to, first) = mpsc::channel();
        if let Some(output) = ping.take_stdout() {
            thread::spawn(move || {
                let answered = |line: &String| line.contains("bytes from");
                if BufReader::new(output).lines().map_while(Result::ok).any(|line| answered(&line)) {
                    let _ = to.send(Instant::now());
                }
            });
        }
        Ok(FirstPing { first, _ping: ping, address: guest })
    }

    /// When the first answer came.
    pub fn wait(self, timeout: Duration) -> Result<Instant, Error> {
        self.first.recv_timeout(timeout).map_err(|_| Error::Timeout {
            what: format!("answer of {} to a ping", self.address),
            node: "client".to_owned(),
            after: timeout,
            seen: String::new(),
        })
    }
}

/// Makes the observer ask for a hardware address that nobody has answered for every 50 ms instead of every second:
/// else what is measured is when it happened to ask.
fn hurry_arp(observer: &Node) -> Result<(), Error> {
    let script = "for f in /proc/sys/net/ipv4/neigh/*/retrans_time_ms; do echo 50 >$f; done";
    let output = observer.exec(["sh", "-c", script])?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Program { command: script.to_owned(), message: output.stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(answers: &[(u64, &str, u64)]) -> History {
        let start = Instant::now();
        let answer = |(ms, boot, counter): &(u64, &str, u64)| Answer {
            at: start + Duration::from_millis(*ms),
            boot: (*boot).to_owned(),
            counter: *counter,
        };
        History(answers.iter().map(answer).collect())
    }

    #[test]
    fn a_history_without_a_boot_or_a_loss_is_whole() {
        let whole = history(&[(0, "a", 7), (10, "a", 8), (250, "a", 10), (260, "a", 11)]);
        assert_eq!(whole.broken(), None);
        assert_eq!(whole.longest_gap(), Some(Duration::from_millis(240)));
        assert_eq!(history(&[(0, "a", 1)]).longest_gap(), None);
    }

    #[test]
    fn boots_and_losses_are_noticed() {
        assert!(history(&[(0, "a", 7), (10, "b", 8)]).broken().unwrap().contains("booted"));
        assert!(history(&[(0, "a", 7), (10, "a", 7)]).broken().unwrap().contains("lost"));
        let booted = history(&[(0, "a", 7), (10, "b", 8), (20, "b", 9), (30, "c", 10)]);
        let start = booted.0[0].at;
        assert_eq!(booted.boots_since(start).len(), 2);
        assert_eq!(booted.boots_since(start + Duration::from_millis(11)), [booted.0[3].at]);
        assert_eq!(booted.forgotten(), None);
        assert!(history(&[(0, "a", 7), (10, "b", 6)]).forgotten().unwrap().contains("6 came after 7"));
    }

    #[test]
    fn what_is_not_on_disk_is_counted() {
        let seen = history(&[(0, "a", 7), (10, "a", 8), (20, "a", 9)]);
        let missing = |check| seen.missing(check);
        assert_eq!(missing("last=9 boot_id=a records=9 torn=0 holes=none"), Some(0));
        assert_eq!(missing("last=8 boot_id=a records=7 torn=1 holes=3,7"), Some(2));
        assert_eq!(missing("no such program"), None);
    }
}
