//! A node lives but is cut off: its guests stop before others are started elsewhere, and after the cables are mended nobody
//! has to do anything.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use opcodes::disks::DiskReport;
use opcodes::wire::Request;

use super::death::ALL;
use super::{ANSWERS, Figures, Guest, PATIENCE, Scenario, VM1, ms};
use crate::probe::{Continuity, RunWatch, Runs};
use crate::takeover::Fault;
use crate::{Api, Cable, Cut, Part};

/// Between two looks at what nothing announces.
const POLL: Duration = Duration::from_millis(20);

impl Scenario<'_> {
    pub(super) fn partition(&mut self) -> anyhow::Result<Figures> {
        self.screen.note("vm1 goes to node02, which is not the master");
        self.on("node01", "gnt-instance migrate -f vm1")?.succeeded()?;
        self.all_up_to_date("node01")?;
        let figures = self.cut_off("node02", "node01", &[&VM1])?;
        self.list_running("node01", ["node01", "node01", "node01"])?;
        Ok(figures)
    }

    pub(super) fn partition_master(&mut self) -> anyhow::Result<Figures> {
        let figures = self.cut_off("node01", "node02", &ALL)?;
        self.list_running("node02", ["node02", "node02", "node02"])?;
        self.cluster_address_is_on("node02")?;
        Ok(figures)
    }

    /// Cuts all cables of a node with guests until they run elsewhere, and mends them.
    fn cut_off(&mut self, node: &str, to: &str, on_it: &[&Guest]) -> anyhow::Result<Figures> {
        let runs = RunWatch::start(self.lab)?;
        let mut guests = self.watch(on_it)?;
        self.stage(to, &format!("{node} before its cables are cut"))?;
        self.screen.note(&format!("both cables of {node} are unplugged; nobody types anything"));
        let fault = Fault::now();
        self.lab.cut(node, Cable::Both, Cut::Both)?;
        self.fault_is_done(&mut guests)?;
        self.right_after(&format!("{node} is cut off, but lives; nobody has decided anything yet"))?;
        let (taken, histories) = self.taken_over(&runs, guests, node, to, fault)?;
        let stopped = stopped(&runs.so_far(), on_it, node, to, fault.at)?;
        self.screen.note(&format!(
            "on {node} the last guest was stopped after {:.2} s, before any of them ran on {to}",
            stopped.as_secs_f64()
        ));
        self.on(node, "gnt-instance list")?.ended_with(1)?;
        self.stage(to, &format!("{node} is cut off: its guests are stopped there, and run on {to}"))?;
        self.on(to, &format!("cardume why {node}"))?.succeeded()?.says(node)?;

        self.screen.note(&format!("the cables of {node} are plugged in again; nobody types anything"));
        let begun = Instant::now();
        self.lab.heal(node)?;
        self.all_up_to_date(to)?;
        let healed = begun.elapsed();
        for guest in on_it {
            self.until_gone(node, guest)?;
        }
        self.never_twice(runs)?;
        self.screen.note(&format!("{node} is back and in sync {:.1} s after the cables were", healed.as_secs_f64()));
        let lost = self.lost(to, on_it, &histories)?;
        let mut figures = taken.figures();
        figures.extend([("stopped_ms", ms(stopped)), ("healed_ms", ms(healed)), ("lost", lost as f64)]);
        Ok(figures)
    }

    /// The replicas of node01 lose their peer for a while; the guests on node02 go on.
    pub(super) fn replication_cut(&mut self) -> anyhow::Result<Figures> {
        let runs = RunWatch::start(self.lab)?;
        let guest = Continuity::start(&self.lab.client()?, VM1.address)?;
        guest.wait(ANSWERS, PATIENCE)?;
        self.screen.note("node01's cable to the replication network is unplugged");
        let begun = Instant::now();
        self.lab.cut("node01", Cable::Replication, Cut::Both)?;
        // Its guest writes all the time: the peer has to go for that.
        self.until_in_sync_are("node02", VM1.name, &["node02"])?;
        let outdated = begun.elapsed();
        guest.wait(5 * ANSWERS, PATIENCE)?;
        self.on("node02", "cardume disk status vm1")?.succeeded()?.says("Outdated")?;
        self.list_running("node02", ["node02", "node02", "node02"])?;
        self.stage("node02", "node01 is cut off the replication network: nothing moves")?;
        self.screen.note("the cable is plugged in again");
        let begun = Instant::now();
        self.lab.heal("node01")?;
        self.all_up_to_date("node02")?;
        let back = begun.elapsed();
        self.on("node02", "cardume disk status vm1")?.succeeded()?;
        guest.wait(ANSWERS, PATIENCE)?;
        let history = guest.finish();
        ensure!(history.broken().is_none(), "{}", history.broken().unwrap_or_default());
        let gap = history.longest_gap().unwrap_or_default();
        let seen = runs.so_far();
        let moved = seen.changes.iter().find(|change| change.running && change.at >= begun);
        ensure!(moved.is_none(), "a guest was started: {moved:?}");
        self.never_twice(runs)?;
        self.screen.note(&format!(
            "vm1 ran on and waited {:.0} ms at the longest, for the word that its peer is out; in sync again after {:.1} s",
            ms(gap),
            back.as_secs_f64()
        ));
        Ok(Figures::from([("outdated_ms", ms(outdated)), ("guest_gap_ms", ms(gap)), ("in_sync_ms", ms(back))]))
    }

    /// Waits until a node has no process of a guest any more.
    fn until_gone(&self, node: &str, guest: &Guest) -> anyhow::Result<()> {
        let (node, part) = (self.node(node)?, Part::Guest(guest.name.to_owned()));
        let deadline = Instant::now() + PATIENCE;
        while node.pid_of(&part)?.is_some() {
            ensure!(Instant::now() < deadline, "{} is still on {}", guest.name, node.name);
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Waits until exactly these nodes hold all of an instance's first disk.
    fn until_in_sync_are(&self, seen_by: &str, instance: &str, nodes: &[&str]) -> anyhow::Result<()> {
        let api = Api::of(&self.node(seen_by)?)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let disks = api.call::<Vec<DiskReport>>(&Request::Disks { names: vec![instance.to_owned()] });
            match disks {
                Ok(disks) if disks.first().is_some_and(|disk| disk.in_sync == nodes) => return Ok(()),
                disks => ensure!(Instant::now() < deadline, "only {nodes:?} should be in sync: {disks:?}"),
            }
            thread::sleep(POLL);
        }
    }
}

/// When the last of the guests was stopped on the node that is cut off. It must have been before it ran elsewhere.
fn stopped(seen: &Runs, guests: &[&Guest], node: &str, to: &str, since: Instant) -> anyhow::Result<Duration> {
    let mut last = Duration::ZERO;
    for guest in guests {
        let name = guest.name;
        let stopped =
            seen.first(name, node, false, since).with_context(|| format!("{name} was not stopped on {node}"))?;
        let runs = seen.first(name, to, true, since).with_context(|| format!("{name} does not run on {to}"))?;
        ensure!(stopped < runs, "{name} ran on {to} before it was stopped on {node}");
        last = last.max(stopped - since);
    }
    Ok(last)
}
