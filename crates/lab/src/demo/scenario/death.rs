//! A node dies, and nobody types anything; then it comes back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use model::Evidence;

use super::{ANSWERS, Figures, Guest, PATIENCE, Scenario, VM1, VM2, VM3, ms};
use crate::probe::{Continuity, History, RunWatch};
use crate::takeover::{Fault, Recorded, Watched, promoted, recorded};

/// The thesis' three guests.
pub(super) const ALL: [&Guest; 3] = [&VM1, &VM2, &VM3];

/// A takeover of some guests: each figure is of the guest with which it took longest, from the fault on.
pub(super) struct TakenOver {
    pub declared: Duration,
    pub promoted: Duration,
    pub started: Duration,
    pub ping: Duration,
    pub answer: Duration,
    /// Numbers that the guests had acknowledged, before and after.
    pub acked: usize,
}

impl TakenOver {
    /// By the names of the demo's figures, all but `lost`.
    pub fn figures(&self) -> Figures {
        Figures::from([
            ("declared_ms", ms(self.declared)),
            ("promoted_ms", ms(self.promoted)),
            ("qemu_started_ms", ms(self.started)),
            ("first_ping_ms", ms(self.ping)),
            ("first_answer_ms", ms(self.answer)),
            ("acked", self.acked as f64),
        ])
    }
}

impl Scenario<'_> {
    pub(super) fn automatic_failover(&mut self) -> anyhow::Result<Figures> {
        self.screen.note("what would happen, and how long it may take:");
        self.on("node01", "cardume ha plan node02")?.succeeded()?.says("node01")?;
        self.on("node01", "cardume ha bound")?.succeeded()?.says("vm1")?;
        let runs = RunWatch::start(self.lab)?;
        let mut guests = self.watch(&ALL)?;
        self.stage("node01", "Figure 23: node02 is the master, and runs everything")?;

        self.screen.note("node02's plug is pulled; from here on nobody types anything");
        let fault = Fault::now();
        self.lab.kill("node02")?;
        self.fault_is_done(&mut guests)?;
        self.right_after("Figure 24: node02 is dead, and nobody has decided anything yet")?;
        let (taken, histories) = self.taken_over(&runs, guests, "node02", "node01", fault)?;
        self.never_twice(runs)?;

        self.screen.note("now somebody looks, and asks why:");
        self.list_running("node01", ["node01", "node01", "node01"])?;
        let master = self.on("node01", "gnt-cluster getmaster")?.succeeded()?;
        ensure!(master.text.trim() == "node01", "node01 should be the master");
        self.cluster_address_is_on("node01")?;
        self.on("node01", "cardume why vm1")?.succeeded()?.says("node02")?;
        let lost = self.lost("node01", &ALL, &histories)?;
        self.stage("node01", "After that, without a human: node01 is the master, and runs everything")?;
        let mut figures = taken.figures();
        figures.insert("lost", lost as f64);
        Ok(figures)
    }

    pub(super) fn rejoin(&mut self) -> anyhow::Result<Figures> {
        let runs = RunWatch::start(self.lab)?;
        let guest = Continuity::start(&self.lab.client()?, VM1.address)?;
        guest.wait(ANSWERS, PATIENCE)?;
        self.screen.note("node02 is switched on again");
        let begun = Instant::now();
        self.lab.start("node02")?;
        self.lab.wait_for_status("node02", "a master that node02 knows", PATIENCE, |status| status.has_master)?;
        let joined = begun.elapsed();
        self.all_up_to_date("node01")?;
        let back = begun.elapsed();
        let master = self.on("node02", "gnt-cluster getmaster")?.succeeded()?;
        ensure!(master.text.trim() == "node01", "node02 should have come back as a follower of node01");
        self.on("node02", "cardume disk status")?.succeeded()?;
        self.list_running("node02", ["node01", "node01", "node01"])?;
        self.on("node02", "cardume why node02")?.succeeded()?.says("node02")?;
        guest.wait(ANSWERS, PATIENCE)?;
        let history = guest.finish();
        ensure!(history.broken().is_none(), "{}", history.broken().unwrap_or_default());
        self.never_twice(runs)?;
        let gap = history.longest_gap().unwrap_or_default();
        self.screen.note(&format!(
            "a member again after {:.1} s, its disks in sync after {:.1} s; nothing was started twice, vm1 ran on",
            joined.as_secs_f64(),
            back.as_secs_f64()
        ));
        self.stage("node01", "Figure 28: node02 is back, as a follower; nothing was typed")?;
        Ok(Figures::from([("joined_ms", ms(joined)), ("in_sync_ms", ms(back)), ("guest_gap_ms", ms(gap))]))
    }

    /// Watches guests; all of them answer when this returns.
    pub(super) fn watch(&self, guests: &[&Guest]) -> anyhow::Result<Vec<Watched>> {
        guests.iter().map(|guest| Watched::begin(self.lab, guest.name, guest.address)).collect()
    }

    pub(super) fn fault_is_done(&self, guests: &mut [Watched]) -> anyhow::Result<()> {
        guests.iter_mut().try_for_each(|guest| guest.fault_is_done(self.lab))
    }

    /// Waits until guests that were on one node run and answer on another, and shows what was seen.
    pub(super) fn taken_over(
        &mut self,
        runs: &RunWatch,
        guests: Vec<Watched>,
        from: &str,
        to: &str,
        fault: Fault,
    ) -> anyhow::Result<(TakenOver, Vec<History>)> {
        let zero = Duration::ZERO;
        let mut all = TakenOver { declared: zero, promoted: zero, started: zero, ping: zero, answer: zero, acked: 0 };
        let mut histories = Vec::new();
        for guest in guests {
            let name = guest.name().to_owned();
            let users = guest.end(fault)?;
            let promoted = promoted(runs, &name, to, fault)?;
            let Recorded { declared, evidence, started } = recorded(self.lab, to, from, &name, fault)?;
            if histories.is_empty() {
                self.screen.note(&format!("{from} was declared dead {}: {}", after(declared), said(&evidence)));
            }
            self.screen.note(&format!(
                "{name}: its disk is served on {to} {}, it runs {}, answers a ping {} and its users {}",
                after(promoted),
                after(started),
                after(users.ping),
                after(users.answer),
            ));
            all.declared = all.declared.max(declared);
            all.promoted = all.promoted.max(promoted);
            all.started = all.started.max(started);
            all.ping = all.ping.max(users.ping);
            all.answer = all.answer.max(users.answer);
            all.acked += users.history.0.len();
            histories.push(users.history);
        }
        Ok((all, histories))
    }

    /// No guest may ever have run on two nodes at the same time.
    pub(super) fn never_twice(&mut self, runs: RunWatch) -> anyhow::Result<()> {
        let seen = runs.finish();
        ensure!(seen.twice.is_empty(), "{}", seen.twice.join("; "));
        self.screen.note("at no time did a guest run on two nodes");
        Ok(())
    }

    /// Looks whether every number that guests have acknowledged is on their disks, and returns how many are not: none, or
    /// this fails.
    pub(super) fn lost(&mut self, seen_by: &str, guests: &[&Guest], histories: &[History]) -> anyhow::Result<usize> {
        for (guest, history) in guests.iter().zip(histories) {
            let (check, _) = self.in_console(seen_by, guest, "cardume-guest check", "check\n")?;
            let missing = history.missing(&check).context("cardume-guest does not say what is on the disk")?;
            let acked = history.0.len();
            ensure!(missing == 0, "{missing} of {acked} acknowledged numbers are not on the disk of {}", guest.name);
            self.screen.note(&format!("{}: all {acked} acknowledged numbers are on the disk", guest.name));
        }
        Ok(0)
    }
}

fn after(time: Duration) -> String {
    format!("after {:.2} s", time.as_secs_f64())
}

/// Evidence of a death, in words for who sees the demo.
fn said(evidence: &Evidence) -> String {
    match evidence {
        Evidence::LeaseEnded { silent_ms, wait_ms, .. } => {
            format!("no lease could have been granted to it for {silent_ms} ms, of which {wait_ms} are enough")
        }
        Evidence::NewBoot { .. } => "it has booted anew".to_owned(),
        Evidence::AssertedOff => "an operator said that it is off".to_owned(),
    }
}
