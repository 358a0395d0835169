//! One guest with a mirrored disk, and all that is seen of it: what it acknowledges, where its processes are, and what the
//! cluster says about why.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lab::Api;
use lab::probe::{Continuity, RunWatch, Runs};
use model::Happening;
use opcodes::wire::{Request, Why, WhyEvent};

use crate::support::*;

/// Answers that are waited for before and after something.
const ANSWERS: usize = 10;

/// A moment, by both of the machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub at: Instant,
    /// Microseconds since 1970, as the cluster's records have it.
    wall: u64,
}

impl Moment {
    pub fn now() -> Moment {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        Moment { at: Instant::now(), wall }
    }
}

pub struct Vigil<'a> {
    cluster: &'a Cluster,
    name: &'static str,
    address: Ipv4Addr,
    guest: Continuity,
    pub runs: RunWatch,
}

impl<'a> Vigil<'a> {
    /// Makes `vm1`, with its disk on both nodes, on `home`.
    pub fn over_new_guest(cluster: &'a Cluster, home: &str) -> Vigil<'a> {
        let address = Ipv4Addr::new(10, 0, 0, 10);
        let nodes = format!("{home}:{}", other(home));
        cluster.ok(home, &format!("{ADD_MIRRORED} --net 0:ip={address} -n {nodes} vm1"));
        let runs = RunWatch::start(cluster).unwrap();
        let guest = Continuity::start(&cluster.client().unwrap(), address).unwrap();
        let vigil = Vigil { cluster, name: "vm1", address, guest, runs };
        vigil.answers();
        vigil
    }

    /// The guest answers now.
    #[track_caller]
    pub fn answers(&self) {
        self.guest.wait(ANSWERS, PATIENCE).unwrap();
    }

    /// The node on which its process runs now.
    pub fn home(&self) -> Option<String> {
        home(&self.runs.so_far(), self.name)
    }

    /// Waits until it has begun to run on `node` after that moment, and answers from there. Returns how long it took until
    /// it ran.
    #[track_caller]
    pub fn moved(&self, node: &str, since: Moment) -> Duration {
        let what = format!("{} running on {node}", self.name);
        let ran = self.runs.wait(&what, PATIENCE, |seen| seen.first(self.name, node, true, since.at)).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while self.guest.boots_since(since.at) == 0 {
            assert!(Instant::now() < deadline, "{} does not answer on {node}", self.name);
            self.guest.wait(1, PATIENCE).unwrap();
        }
        self.answers();
        println!("{} runs on {node} after {:?}", self.name, ran - since.at);
        ran - since.at
    }

    /// What the cluster says of a node or an instance since then, once that has what is wanted.
    #[track_caller]
    pub fn told(&self, on: &str, of: &str, since: Moment, wanted: impl Fn(&Happening) -> bool) -> WhyEvent {
        let mut seen = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let node = self.cluster.at(on);
            let why = Api::of(&node).map(|api| api.call::<Why>(&Request::Why { name: of.to_owned() }));
            if let Ok(Ok(why)) = why {
                seen = why.events;
                seen.retain(|event| event.record.at.0 >= since.wall);
                if let Some(found) = seen.iter().find(|event| wanted(&event.record.what)) {
                    return found.clone();
                }
            }
            assert!(Instant::now() < deadline, "'cardume why {of}' does not tell it: {seen:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `cardume why` has to tell that the node died, on which evidence, or that it was booted before anybody had to say so;
    /// and that the guest was taken over and started.
    #[track_caller]
    pub fn takeover_is_explained(&self, from: &str, to: &str, since: Moment) {
        let has_ended = |what: &Happening| matches!(what, Happening::NodeDead { .. } | Happening::NodeJoined { .. });
        let dead = self.told(to, from, since, has_ended);
        assert!(dead.text.contains(from), "{}", dead.text);
        let taken = self.told(to, self.name, since, |what| matches!(what, Happening::TakenOver { .. }));
        assert!(taken.text.contains(from) && taken.text.contains(to), "{}", taken.text);
        let started = self.told(to, self.name, since, |what| matches!(what, Happening::Started { .. }));
        assert!(started.text.contains(to), "{}", started.text);
        let said = self.cluster.ok(to, &format!("cardume why {}", self.name));
        assert!(said.contains(&taken.text) && said.contains(&started.text), "{said}");
        println!("{}\n{}\n{}", dead.text, taken.text, started.text);
    }

    /// It never ran twice, and everything that it acknowledged until now is on its disk.
    #[track_caller]
    pub fn is_sound(&mut self) {
        self.answers();
        assert_eq!(self.runs.so_far().twice, Vec::<String>::new());
        let again = Continuity::start(&self.cluster.client().unwrap(), self.address).unwrap();
        let history = std::mem::replace(&mut self.guest, again).finish();
        assert_eq!(history.forgotten(), None);
        let home = self.home().expect("it runs");
        self.cluster.assert_on_disk(&home, self.name, &history);
        self.answers();
    }
}

/// The node on which a guest runs, by what was seen last.
pub fn home(seen: &Runs, guest: &str) -> Option<String> {
    let mut last: Vec<(i32, &str, bool)> = Vec::new();
    for change in seen.changes.iter().filter(|change| change.guest == guest) {
        last.retain(|(pid, ..)| *pid != change.pid);
        last.push((change.pid, &change.node, change.running));
    }
    last.into_iter().find(|(.., running)| *running).map(|(_, node, _)| node.to_owned())
}

/// The other one of the two nodes that can run guests.
pub fn other(node: &str) -> &'static str {
    if node == "node01" { "node02" } else { "node01" }
}
