//! Two nodes without a witness: the survivor can't know whether the other one is off, so a human has to say it. The order is
//! the thesis'.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::{ANSWERS, Figures, Guest, PATIENCE, Scenario, VM1, VM2, VM3, ms};
use crate::probe::{Continuity, RunWatch};
use crate::takeover::Fault;

impl Scenario<'_> {
    pub(super) fn no_voting(&mut self) -> anyhow::Result<Figures> {
        self.before_the_death()?;
        let runs = RunWatch::start(self.lab)?;
        let stays = Continuity::start(&self.lab.client()?, VM2.address)?;
        stays.wait(ANSWERS, PATIENCE)?;
        let dead: [&Guest; 2] = [&VM1, &VM3];
        let mut guests = self.watch(&dead)?;

        self.screen.note("node02, the master with vm1 and vm3, dies");
        let fault = Fault::now();
        self.lab.kill("node02")?;
        self.fault_is_done(&mut guests)?;
        self.right_after("Figure 24, without a witness: node02 is dead, and node01 may not decide anything by itself")?;
        let list = self.on("node01", "gnt-instance list")?.ended_with(1)?;
        list.says("node02")?.says("master-failover --no-voting")?;

        self.screen.note("a human has looked: node02 is off. He says so, and node01 goes on alone (figure 25)");
        let mut recover = self.screen.type_in(&self.node("node01")?, "gnt-cluster master-failover --no-voting")?;
        recover.until("y/[n]/?:")?;
        recover.keys(b"y\n")?;
        recover.until("nodes that are off, with commas in between:")?;
        recover.keys(b"node02\n")?;
        let recover = recover.finish()?.succeeded()?;
        self.screen.note("node01 is the master; the guests of node02 are known to be gone (figure 26)");
        let gone = |guest| (guest, "node02", "ERROR_nodedown", "?");
        self.list("node01", &[gone(&VM1), (&VM2, "node01", "running", "128M"), gone(&VM3)])?;

        self.screen.note("their disks are here as well: they are started here (figure 27)");
        let failover = self.on("node01", "gnt-node failover -f --ignore-consistency node02")?.succeeded()?;
        let (mut answer, mut histories) = (Duration::ZERO, Vec::new());
        for guest in guests {
            let users = guest.end(fault)?;
            answer = answer.max(users.answer);
            histories.push(users.history);
        }
        self.list_running("node01", ["node01", "node01", "node01"])?;
        self.screen.note(&format!(
            "the users of vm1 and vm3 had waited {:.1} s for all that typing; vm2 ran on",
            answer.as_secs_f64()
        ));

        self.screen.note("node02 is switched on again: it learns what has happened, and follows (figure 28)");
        let begun = Instant::now();
        self.lab.start("node02")?;
        self.lab.wait_for_status("node02", "a master that node02 knows", PATIENCE, |status| status.has_master)?;
        let joined = begun.elapsed();
        self.all_up_to_date("node01")?;
        let back = begun.elapsed();
        let master = self.on("node02", "gnt-cluster getmaster")?.succeeded()?;
        ensure!(master.text.trim() == "node01", "node02 should follow node01");
        self.on("node02", "cardume disk status")?.succeeded()?;
        self.stage("node01", "Figure 28, without a witness: node02 is back, and knows that node01 leads")?;
        stays.wait(ANSWERS, PATIENCE)?;
        if let Some(broken) = stays.finish().broken() {
            bail!("vm2, which was not touched: {broken}");
        }
        self.never_twice(runs)?;
        let lost = self.lost("node01", &dead, &histories)?;
        let acked: usize = histories.iter().map(|history| history.0.len()).sum();
        Ok(Figures::from([
            ("recovered_ms", ms(recover.elapsed)),
            ("failover_ms", ms(failover.elapsed)),
            ("joined_ms", ms(joined)),
            ("in_sync_ms", ms(back)),
            ("acked", acked as f64),
            ("lost", lost as f64),
        ]))
    }

    /// The thesis' figure 23: node02 is the master and has vm1 and vm3, node01 has vm2.
    fn before_the_death(&mut self) -> anyhow::Result<()> {
        self.init()?;
        self.add_node("gnt-node add --master-capable=yes", "node02")?;
        self.screen.note("two nodes, no witness: whichever is left alone can't know whether the other one is dead");
        self.on("node01", "gnt-cluster verify")?.says("witness")?;
        for (guest, nodes) in [(&VM1, "node02:node01"), (&VM2, "node01:node02"), (&VM3, "node02:node01")] {
            self.create(guest, nodes)?;
        }
        self.all_up_to_date("node01")?;
        self.on("node02", "gnt-cluster master-failover")?.succeeded()?;
        self.cluster_address_is_on("node02")?;
        self.list_running("node02", ["node02", "node01", "node02"])?;
        self.stage("node02", "Figure 23, without a witness: node02 is the master and has vm1 and vm3, node01 has vm2")
    }
}
