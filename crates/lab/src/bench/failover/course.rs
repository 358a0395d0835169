//! One fault after another on one lab: each begins with the guest and the master where they are wanted, and everything
//! whole; and is over when it is so again.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use model::Happening;
use opcodes::disks::DiskReport;
use opcodes::wire::{NodeLease, Request, Why};

use super::Row;
use super::results::Figures;
use crate::probe::{Continuity, History, RunWatch};
use crate::takeover::{Fault, Recorded, Watched, promoted, recorded};
use crate::travel::Travel;
use crate::{Api, Cable, Cut, Lab};

/// How long anything may take that has to happen.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at what nothing announces.
const POLL: Duration = Duration::from_millis(50);
/// How many answers of a guest are waited for before and after something that it must not notice.
const ANSWERS: usize = 20;

const NAME: &str = "vm1";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
const NODES: [&str; 2] = ["node01", "node02"];

/// A guest that crashes a third time within ten minutes is moved: before that it is made anew.
const CRASHES: u32 = 2;

pub(super) struct Course<'a> {
    lab: &'a Lab,
    /// How often the guest's disk was looked at.
    checks: Cell<u32>,
}

impl<'a> Course<'a> {
    /// Makes the guest.
    pub fn begin(lab: &'a Lab) -> anyhow::Result<Course<'a>> {
        let course = Course { lab, checks: Cell::new(0) };
        course.make("node01")?;
        Ok(course)
    }

    /// One fault, from a whole cluster to a whole cluster.
    pub fn run(&mut self, row: Row, run: u32) -> anyhow::Result<Figures> {
        let master = self.whole()?;
        match row {
            Row::Node | Row::Cut => self.guest_to(&master, other(&master))?,
            Row::Master => self.guest_to(&master, &master)?,
            Row::Qemu if run > 1 && (run - 1).is_multiple_of(CRASHES) => {
                let at = self.home(&master)?;
                self.typed(&master, &format!("gnt-instance remove -f --shutdown-timeout=0 {NAME}"))?;
                self.make(&at)?;
            }
            Row::Qemu | Row::Daemon => {}
        }
        let master = self.whole()?;
        let at = self.home(&master)?;
        let figures = match row {
            Row::Node | Row::Master | Row::Cut => self.takeover(row, &at),
            Row::Qemu => self.crash(&master, &at),
            Row::Daemon => self.daemon(&at),
        }?;
        self.whole().context("afterwards")?;
        Ok(figures)
    }

    /// The guest's node dies, or is cut off.
    fn takeover(&self, row: Row, at: &str) -> anyhow::Result<Figures> {
        let to = other(at);
        let runs = RunWatch::start(self.lab)?;
        let mut guest = Watched::begin(self.lab, NAME, ADDRESS)?;
        let fault = Fault::now();
        match row {
            Row::Cut => self.lab.cut(at, Cable::Both, Cut::Both)?,
            _ => self.lab.kill(at)?,
        }
        guest.fault_is_done(self.lab)?;
        let users = guest.end(fault)?;
        let promoted = promoted(&runs, NAME, to, fault)?;
        let Recorded { declared, started, .. } = recorded(self.lab, to, at, NAME, fault)?;
        let mut figures =
            vec![("declared_ms", ms(declared)), ("promoted_ms", ms(promoted)), ("qemu_started_ms", ms(started))];
        figures.extend([("first_ping_ms", ms(users.ping)), ("first_answer_ms", ms(users.answer))]);
        if row == Row::Cut {
            let stopped = runs.so_far().first(NAME, at, false, fault.at).context("the guest was not stopped")?;
            figures.insert(0, ("stopped_ms", ms(stopped - fault.at)));
        }
        figures.extend(self.acknowledged(to, &users.history)?);
        let begun = Instant::now();
        match row {
            Row::Cut => self.lab.heal(at)?,
            _ => self.lab.start(at)?,
        }
        self.whole().context("after the return")?;
        figures.push(("whole_again_ms", ms(begun.elapsed())));
        let twice = runs.finish().twice;
        ensure!(twice.is_empty(), "{}", twice.join("; "));
        Ok(figures)
    }

    /// QEMU dies under the guest.
    fn crash(&self, master: &str, at: &str) -> anyhow::Result<Figures> {
        let runs = RunWatch::start(self.lab)?;
        let mut guest = Watched::begin(self.lab, NAME, ADDRESS)?;
        let fault = Fault::now();
        self.lab.node(at)?.kill_guest(NAME)?;
        guest.fault_is_done(self.lab)?;
        let users = guest.end(fault)?;
        let noticed = self.noticed(master, fault)?;
        let started = promoted(&runs, NAME, at, fault)?;
        let mut figures = vec![("noticed_ms", ms(noticed)), ("qemu_started_ms", ms(started))];
        figures.extend([("first_ping_ms", ms(users.ping)), ("first_answer_ms", ms(users.answer))]);
        figures.extend(self.acknowledged(at, &users.history)?);
        let twice = runs.finish().twice;
        ensure!(twice.is_empty(), "{}", twice.join("; "));
        Ok(figures)
    }

    /// How long after the fault the crash was recorded.
    fn noticed(&self, seen_by: &str, fault: Fault) -> anyhow::Result<Duration> {
        let why: Why = Api::of(&self.lab.node(seen_by)?)?.call(&Request::Why { name: NAME.to_owned() })?;
        let is_crash = |what: &Happening| matches!(what, Happening::Crashed { .. });
        let crashes = why.events.iter().filter(|event| is_crash(&event.record.what));
        crashes
            .filter_map(|event| fault.until(&event.record))
            .next()
            .context("'cardume why' does not tell of the crash")
    }

    /// The daemon dies under the guest, which runs on.
    fn daemon(&self, at: &str) -> anyhow::Result<Figures> {
        let node = self.lab.node(at)?;
        let guest = Continuity::start(&self.lab.client()?, ADDRESS)?;
        guest.wait(ANSWERS, PATIENCE)?;
        let travel = Travel::begin(self.lab, ADDRESS)?;
        let begun = Instant::now();
        node.kill_daemon()?;
        self.lab.wait_for_status(at, "a master that it knows", PATIENCE, |status| status.has_master)?;
        let back = begun.elapsed();
        guest.wait(5 * ANSWERS, PATIENCE)?;
        let travel = travel.end()?;
        let history = guest.finish();
        if let Some(broken) = history.broken() {
            bail!(broken);
        }
        let gap = history.longest_gap().unwrap_or_default();
        let mut figures = vec![("back_ms", ms(back)), ("gap_ms", ms(gap))];
        figures.extend([
            ("lost_pings_10ms", travel.often.lost as f64),
            ("lost_pings_100ms", travel.seldom.lost as f64),
            ("longest_ping_gap_ms", ms(travel.often.longest_gap)),
        ]);
        figures.extend(self.acknowledged(at, &history)?);
        Ok(figures)
    }

    /// How many numbers the guest has acknowledged, and how many of them are not on its disk: any is an error.
    fn acknowledged(&self, node: &str, history: &History) -> anyhow::Result<Figures> {
        let mut console = self.lab.node(node)?.command(["gnt-instance", "console", NAME]).pty()?;
        console.read_until("Connected to the console", PATIENCE)?;
        console.write(b"\n")?;
        console.read_until(&format!("root@{NAME}:"), PATIENCE)?;
        // What was said before is shown again: the end has to be one that was never said. It is not what is typed, either.
        self.checks.set(self.checks.get() + 1);
        let number = self.checks.get();
        console.write(format!("cardume-guest check; echo checked $(({number}))\n").as_bytes())?;
        let said = console.read_until(&format!("checked {number}\r\n"), PATIENCE)?;
        console.write(b"\x1d")?;
        console.finish(PATIENCE)?;
        let said = said.rfind("last=").map_or("", |at| &said[at..]);
        let missing = history.missing(said).with_context(|| format!("'cardume-guest check' says: {said}"))?;
        let acked = history.0.len();
        ensure!(missing == 0, "{missing} of {acked} acknowledged numbers are not on the disk: {said}");
        Ok(vec![("acked", acked as f64), ("lost", missing as f64)])
    }

    /// Waits until nothing is wrong: a master that all nodes know, both nodes armed, the disk up to date on both, the guest
    /// running and answering. Returns the master.
    fn whole(&self) -> anyhow::Result<String> {
        let mut master = String::new();
        self.until("the cluster is whole", || {
            for node in NODES {
                let status = Api::of(&self.lab.node(node)?)?.status()?;
                ensure!(status.has_master && status.voters.len() == 3, "{node}: {status:?}");
                master = status.master.context("no master is known")?;
            }
            let api = Api::of(&self.lab.node(&master)?)?;
            let leases: Vec<NodeLease> = api.call(&Request::HaStatus)?;
            let is_armed = |node: &str| leases.iter().any(|lease| lease.node == node && lease.armed && !lease.dead);
            ensure!(NODES.into_iter().all(is_armed), "{leases:?}");
            let disks: Vec<DiskReport> = api.call(&Request::Disks { names: vec![NAME.to_owned()] })?;
            let is_good = |disk: &DiskReport| {
                let state = |node: &str| {
                    let replica = disk.replicas.iter().find(|replica| replica.node == node)?;
                    Some(replica.report.as_ref()?.state.clone())
                };
                disk.in_sync.len() == 2 && NODES.into_iter().all(|node| state(node).as_deref() == Some("UpToDate"))
            };
            ensure!(!disks.is_empty() && disks.iter().all(is_good), "{disks:?}");
            let status = self.typed(&master, &format!("gnt-instance list --no-headers -o status {NAME}"))?;
            ensure!(status.trim() == "running", "{NAME}: {status}");
            Ok(())
        })?;
        Continuity::start(&self.lab.client()?, ADDRESS)?.wait(5, PATIENCE)?;
        Ok(master)
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = holds() {
            ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {error:#}");
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// The node on which the guest runs.
    fn home(&self, seen_by: &str) -> anyhow::Result<String> {
        let said = self.typed(seen_by, &format!("gnt-instance list --no-headers -o pnode {NAME}"))?;
        Ok(said.trim().to_owned())
    }

    fn guest_to(&self, master: &str, node: &str) -> anyhow::Result<()> {
        if self.home(master)? != node {
            self.typed(master, &format!("gnt-instance migrate -f {NAME}"))?;
        }
        Ok(())
    }

    /// Makes the guest on a node, with its disk on the other one too.
    fn make(&self, node: &str) -> anyhow::Result<()> {
        let [_, _, _, host] = ADDRESS.octets();
        let nodes = format!("{node}:{}", other(node));
        let line = format!(
            "gnt-instance add -t drbd -s 1g -o busybox+default -B memory=128 --net 0:ip=10.0.0.{host} -n {nodes} {NAME}"
        );
        self.typed(node, &line)?;
        Ok(())
    }

    /// Types a line on a node that has to succeed, and returns what it writes.
    fn typed(&self, node: &str, line: &str) -> anyhow::Result<String> {
        let output = self.lab.node(node)?.exec(line.split(' '))?;
        ensure!(output.status.success(), "'{line}' on {node} failed: {}{}", output.stdout, output.stderr);
        Ok(output.stdout)
    }
}

fn other(node: &str) -> &'static str {
    if node == NODES[0] { NODES[1] } else { NODES[0] }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
