//! The steps with mirrored disks: what moves on purpose, and a node that is away for a while.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use opcodes::disks::{DiskReport, ReplicaReport};
use opcodes::wire::Request;

use super::{ANSWERS, Figures, Guest, PATIENCE, Scenario, VM1, VM2, VM3, ms};
use crate::Api;
use crate::probe::Continuity;
use crate::travel::{Travel, qemu_downtime};

/// Between two looks at what nothing announces.
const POLL: Duration = Duration::from_millis(50);

impl Scenario<'_> {
    pub(super) fn disk_status(&mut self) -> anyhow::Result<Figures> {
        let status = self.on("node01", "cardume disk status")?.succeeded()?;
        self.all_up_to_date("node01")?;
        Ok(Figures::from([("wall_ms", ms(status.elapsed))]))
    }

    pub(super) fn migrate(&mut self) -> anyhow::Result<Figures> {
        let master = self.master("node01")?;
        let guest = Continuity::start(&self.lab.client()?, VM2.address)?;
        guest.wait(ANSWERS, PATIENCE)?;
        let travel = Travel::begin(self.lab, VM2.address)?;
        let migrate = self.on("node01", "gnt-instance migrate -f vm2")?.succeeded()?;
        let travel = travel.end()?;
        guest.wait(ANSWERS, PATIENCE)?;
        let history = guest.finish();
        if let Some(broken) = history.broken() {
            bail!(broken);
        }
        let downtime = qemu_downtime(&self.node(&master)?)?;
        // What is on its disk, beside what it had acknowledged.
        let (check, _) = self.in_console("node01", &VM2, "cardume-guest check", "check\n")?;
        let missing = history.missing(&check).context("cardume-guest does not say what is on the disk")?;
        ensure!(missing == 0, "{missing} of {} acknowledged numbers are not on the disk of vm2", history.0.len());
        let gap = travel.often.longest_gap;
        self.screen.note(&format!(
            "seen from the client: same boot id, counter unbroken, {} numbers acknowledged and on the disk",
            history.0.len()
        ));
        self.screen.note(&format!(
            "pings every 10 ms: {} lost, longest gap {:.0} ms; every 100 ms: {} lost",
            travel.often.lost,
            ms(gap),
            travel.seldom.lost
        ));
        let mut figures = Figures::from([
            ("total_ms", ms(migrate.elapsed)),
            ("lost_pings_10ms", travel.often.lost as f64),
            ("lost_pings_100ms", travel.seldom.lost as f64),
            ("longest_gap_ms", ms(gap)),
            ("acked", history.0.len() as f64),
            ("lost", missing as f64),
        ]);
        figures.extend(downtime.map(|downtime| ("downtime_ms", downtime)));
        Ok(figures)
    }

    pub(super) fn node_failover(&mut self) -> anyhow::Result<Figures> {
        let client = self.lab.client()?;
        let watch = |guest: &Guest| Continuity::start(&client, guest.address);
        let moved = [watch(&VM1)?, watch(&VM3)?];
        let stays = watch(&VM2)?;
        for guest in moved.iter().chain([&stays]) {
            guest.wait(ANSWERS, PATIENCE)?;
        }
        let begun = Instant::now();
        let failover = self.on("node01", "gnt-node failover -f node01")?.succeeded()?;
        for guest in moved.iter().chain([&stays]) {
            guest.wait(ANSWERS, PATIENCE)?;
        }
        let mut down = Duration::ZERO;
        let mut until = Duration::ZERO;
        for guest in moved {
            let history = guest.finish();
            if let Some(forgotten) = history.forgotten() {
                bail!(forgotten);
            }
            let boots = history.0.windows(2).filter(|pair| pair[0].boot != pair[1].boot);
            let again = boots.map(|pair| pair[1].at).next_back().context("a guest was moved without a boot")?;
            until = until.max(again.saturating_duration_since(begun));
            down = down.max(history.longest_gap().unwrap_or_default());
        }
        if let Some(broken) = stays.finish().broken() {
            bail!("vm2, which was not moved: {broken}");
        }
        self.screen.note(&format!("both answer again {:.1} s after the command was typed", until.as_secs_f64()));
        self.list_running("node01", ["node02", "node02", "node02"])?;
        Ok(Figures::from([
            ("total_ms", ms(failover.elapsed)),
            ("all_answer_ms", ms(until)),
            ("longest_gap_ms", ms(down)),
        ]))
    }

    pub(super) fn node_restart(&mut self) -> anyhow::Result<Figures> {
        let guest = Continuity::start(&self.lab.client()?, VM1.address)?;
        guest.wait(ANSWERS, PATIENCE)?;
        self.screen.note("node01 is switched off in good order");
        self.lab.stop("node01")?;
        // It writes meanwhile, and all of that has to get to node01 later.
        guest.wait(5 * ANSWERS, PATIENCE)?;
        self.on("node02", "cardume disk status vm1")?.succeeded()?;
        self.stage("node02", "Figure 22: node01 is switched off, node02 leads and runs everything")?;
        self.screen.note("node01 is switched on");
        let begun = Instant::now();
        self.lab.start("node01")?;
        self.all_up_to_date("node02")?;
        let back = begun.elapsed();
        self.on("node02", "gnt-node list")?.succeeded()?;
        self.on("node02", "cardume disk status")?.succeeded()?;
        guest.wait(ANSWERS, PATIENCE)?;
        let history = guest.finish();
        if let Some(broken) = history.broken() {
            bail!(broken);
        }
        let gap = history.longest_gap().unwrap_or_default();
        self.screen.note(&format!(
            "all disks are in sync {:.1} s after it was switched on; seen from the client: longest gap of vm1 {:.0} ms",
            back.as_secs_f64(),
            ms(gap)
        ));
        Ok(Figures::from([("in_sync_ms", ms(back)), ("guest_gap_ms", ms(gap))]))
    }

    /// Waits until both replicas of all three disks are up to date, and connected where the disk is in use.
    pub(super) fn all_up_to_date(&self, seen_by: &str) -> anyhow::Result<()> {
        let api = Api::of(&self.node(seen_by)?)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let disks = api.call::<Vec<DiskReport>>(&Request::Disks { names: Vec::new() });
            let is_connected = |report: &ReplicaReport| report.peers.iter().all(|peer| peer.connection == "Connected");
            let good = |disk: &DiskReport| {
                let reports: Vec<_> = disk.replicas.iter().filter_map(|replica| replica.report.as_ref()).collect();
                let up_to_date = reports.len() == 2 && reports.iter().all(|report| report.state == "UpToDate");
                // Replicas of a disk that nobody uses have nothing to tell each other.
                let connected = disk.primary.is_none() || reports.into_iter().all(is_connected);
                disk.in_sync.len() == 2 && up_to_date && connected
            };
            match disks {
                Ok(disks) if disks.len() == 3 && disks.iter().all(good) => return Ok(()),
                disks => ensure!(
                    Instant::now() < deadline,
                    "the disks are not up to date and connected on both nodes after {PATIENCE:?}: {disks:?}"
                ),
            }
            std::thread::sleep(POLL);
        }
    }
}
