//! What a takeover is like, from the moment of the fault: for those who use the guest, and by the cluster's own records.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use model::{Evidence, Happening, Record};
use opcodes::wire::{Request, Why};

use crate::probe::{Continuity, FirstPing, History, RunWatch};
use crate::{Api, Lab};

/// How long anything may take that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many answers of a guest are waited for before the fault, and afterwards.
const ANSWERS: usize = 10;
/// Between two looks at what nothing announces.
const POLL: Duration = Duration::from_millis(50);

/// The moment of a fault, by both of the machine's clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// For what the lab sees.
    pub at: Instant,
    /// For what the cluster records: microseconds since 1970.
    wall: u64,
}

impl Fault {
    /// Right before it happens.
    pub fn now() -> Fault {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Fault { at: Instant::now(), wall: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX) }
    }

    /// How long after it something was recorded; `None`: it was before.
    pub fn until(self, record: &Record) -> Option<Duration> {
        record.at.0.checked_sub(self.wall).map(Duration::from_micros)
    }
}

/// What the cluster has recorded of a takeover, each as the time since the fault.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    /// The node's life was declared dead.
    pub declared: Duration,
    /// Why that was safe.
    pub evidence: Evidence,
    /// The guest runs on another node.
    pub started: Duration,
}

/// A guest that is watched while something happens to its node.
#[derive(Debug)]
pub(crate) struct Watched {
    name: String,
    address: Ipv4Addr,
    service: Continuity,
    /// From the fault on.
    ping: Option<FirstPing>,
}

/// What its users saw, each as the time since the fault.
#[derive(Debug)]
pub(crate) struct Users {
    /// The first answer to a ping.
    pub ping: Duration,
    /// The first answer of the guest's service.
    pub answer: Duration,
    /// All answers of the service, those before the fault too.
    pub history: History,
}

impl Watched {
    /// Begins to watch a guest. Returns once it answers.
    pub fn begin(lab: &Lab, name: &str, address: Ipv4Addr) -> anyhow::Result<Watched> {
        let service = Continuity::start(&lab.client()?, address)?;
        service.wait(ANSWERS, PATIENCE)?;
        Ok(Watched { name: name.to_owned(), address, service, ping: None })
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// To be called right after the fault: an answer to a ping is one of the new run from here on.
    pub fn fault_is_done(&mut self, lab: &Lab) -> anyhow::Result<()> {
        self.ping = Some(FirstPing::start(&lab.client()?, self.address)?);
        Ok(())
    }

    /// Waits until it answers again, anew booted, and tells what was seen.
    pub fn end(mut self, fault: Fault) -> anyhow::Result<Users> {
        let ping = self.ping.take().context("the guest is not pinged yet")?.wait(PATIENCE)?;
        let deadline = Instant::now() + PATIENCE;
        // An answer that was under way when the fault came is none of the new run.
        while self.service.boots_since(fault.at) == 0 {
            if Instant::now() > deadline {
                bail!("{} does not answer anew within {PATIENCE:?}", self.name);
            }
            self.service.wait(1, PATIENCE)?;
        }
        self.service.wait(ANSWERS, PATIENCE)?;
        let history = self.service.finish();
        if let Some(forgotten) = history.forgotten() {
            bail!("{}: {forgotten}", self.name);
        }
        let again = *history.boots_since(fault.at).first().context("the guest was not booted")?;
        Ok(Users { ping: ping.saturating_duration_since(fault.at), answer: again - fault.at, history })
    }
}

/// What the cluster has recorded of the takeover of `instance` from `node`, asked on another node; waits until it is there.
pub(crate) fn recorded(lab: &Lab, seen_by: &str, node: &str, instance: &str, fault: Fault) -> anyhow::Result<Recorded> {
    let api = Api::of(&lab.node(seen_by)?)?;
    // While a new master comes into office there is no answer.
    let records = |name: &str| -> Vec<(Duration, Happening)> {
        let events = api.call::<Why>(&Request::Why { name: name.to_owned() }).map_or_else(|_| vec![], |why| why.events);
        events.into_iter().filter_map(|it| Some((fault.until(&it.record)?, it.record.what))).collect()
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let dead = records(node).into_iter().find_map(|(at, what)| match what {
            Happening::NodeDead { evidence, .. } => Some((at, evidence)),
            _ => None,
        });
        let started = records(instance).into_iter().find_map(|(at, what)| match what {
            Happening::Started { .. } => Some(at),
            _ => None,
        });
        if let (Some((declared, evidence)), Some(started)) = (dead, started) {
            return Ok(Recorded { declared, evidence, started });
        }
        if Instant::now() > deadline {
            bail!("'cardume why' does not tell that {node} died and that {instance} was started elsewhere");
        }
        thread::sleep(POLL);
    }
}

/// Waits until a guest's process is there on a node, after the fault: its disks are served there then.
pub(crate) fn promoted(runs: &RunWatch, guest: &str, node: &str, fault: Fault) -> anyhow::Result<Duration> {
    let what = format!("{guest} starting on {node}");
    let at = runs.wait(&what, PATIENCE, |seen| seen.first(guest, node, true, fault.at))?;
    Ok(at - fault.at)
}
