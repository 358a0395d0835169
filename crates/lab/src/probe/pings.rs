//! A row of pings at a fixed interval: how many are lost, and for how long there is no answer.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::exec::Running;
use crate::{Error, Node};

/// Pings a guest at a fixed interval until it is finished or dropped.
#[derive(Debug)]
pub struct Pings {
    replies: mpsc::Receiver<Reply>,
    seen: Vec<Reply>,
    /// Killed when this is dropped.
    _ping: Running,
    guest: Ipv4Addr,
}

#[derive(Debug, Clone, Copy)]
struct Reply {
    number: u64,
    /// When it came, in seconds of the observer's clock.
    at: f64,
}

/// What came of a row of pings, from the first that was answered to the last one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PingLoss {
    /// Pings sent.
    pub sent: u64,
    /// Pings that were never answered. One that is answered late is none.
    pub lost: u64,
    /// The longest time between two answers.
    pub longest_gap: Duration,
}

impl Pings {
    /// Begins to ping `guest`, from `observer`, a ping every `interval`.
    pub fn start(observer: &Node, guest: Ipv4Addr, interval: Duration) -> Result<Pings, Error> {
        let interval = interval.as_secs_f64().to_string();
        let mut ping = observer.command(["ping", "-n", "-D", "-i", &interval, &guest.to_string()]).spawn()?;
        let (to, replies) = mpsc::channel();
        if let Some(output) = ping.take_stdout() {
            thread::spawn(move || {
                for reply in BufReader::new(output).lines().map_while(Result::ok).filter_map(|line| parse(&line)) {
                    if to.send(reply).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Pings { replies, seen: Vec::new(), _ping: ping, guest })
    }

    /// Waits for `count` more answers.
    pub fn wait(&mut self, count: usize, timeout: Duration) -> Result<(), Error> {
        self.seen.extend(self.replies.try_iter());
        let deadline = Instant::now() + timeout;
        for _ in 0..count {
            match self.replies.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(reply) => self.seen.push(reply),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(Error::Timeout {
                        what: format!("answer of {} to a ping", self.guest),
                        node: "client".to_owned(),
                        after: timeout,
                        seen: format!("{} answers before", self.seen.len()),
                    });
                }
            }
        }
        Ok(())
    }

    /// Stops, and tells what came of it.
    pub fn finish(mut self) -> PingLoss {
        self.seen.extend(self.replies.try_iter());
        loss(&self.seen)
    }
}

/// `[1700000000.123456] 64 bytes from 10.0.0.10: icmp_seq=7 ttl=64 time=0.5 ms`
fn parse(line: &str) -> Option<Reply> {
    let (at, rest) = line.strip_prefix('[')?.split_once(']')?;
    if !rest.contains("bytes from") {
        return None;
    }
    let (_, number) = rest.split_once("icmp_seq=")?;
    let number = number.split_whitespace().next()?.parse().ok()?;
    Some(Reply { number, at: at.parse().ok()? })
}

fn loss(replies: &[Reply]) -> PingLoss {
    // The first answer to each: a bridge that learns may let a frame through twice. The number is one of 16 bits.
    let mut turns = 0;
    let mut before = 0;
    let mut answered = BTreeMap::new();
    for reply in replies {
        if before > reply.number + 0x8000 {
            turns += 0x1_0000;
        }
        before = reply.number;
        answered.entry(turns + reply.number).or_insert(reply.at);
    }
    let sent = match (answered.first_key_value(), answered.last_key_value()) {
        (Some((first, _)), Some((last, _))) => last - first + 1,
        _ => 0,
    };
    let mut times: Vec<f64> = answered.values().copied().collect();
    times.sort_by(f64::total_cmp);
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    PingLoss { sent, lost: sent - answered.len() as u64, longest_gap: Duration::from_secs_f64(longest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_gaps_are_counted() {
        let said = "PING 10.0.0.10 (10.0.0.10) 56(84) bytes of data.\n\
                    [100.000] 64 bytes from 10.0.0.10: icmp_seq=3 ttl=64 time=0.4 ms\n\
                    [100.010] 64 bytes from 10.0.0.10: icmp_seq=4 ttl=64 time=0.4 ms\n\
                    [100.010] 64 bytes from 10.0.0.10: icmp_seq=4 ttl=64 time=0.5 ms (DUP!)\n\
                    [100.075] 64 bytes from 10.0.0.10: icmp_seq=7 ttl=64 time=25.0 ms\n\
                    [100.076] 64 bytes from 10.0.0.10: icmp_seq=8 ttl=64 time=15.0 ms\n";
        let replies: Vec<Reply> = said.lines().filter_map(parse).collect();
        let loss = loss(&replies);
        assert_eq!((loss.sent, loss.lost, loss.longest_gap.as_millis()), (6, 2, 65));
    }

    #[test]
    fn numbers_begin_anew() {
        let replies: Vec<Reply> = [0xfffe, 0xffff, 0, 1, 3].map(|number| Reply { number, at: 0.0 }).into();
        let loss = loss(&replies);
        assert_eq!((loss.sent, loss.lost), (6, 1));
    }
}
