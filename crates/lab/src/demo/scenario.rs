//! The steps. Each is what an administrator does, and what must be true afterwards.

mod death;
mod moves;
mod no_voting;
mod partition;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::report::{Figures, Report, ms};
use super::screen::{Outcome, Screen};
use crate::probe::{Continuity, FirstPing};
use crate::{Api, Guests, Lab, Node};

/// How long a guest may take to boot, and whatever else is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many answers of a guest are waited for before and after something that it must not notice.
const ANSWERS: usize = 20;

/// The node on which guests are made, and that of their second replicas.
const NODES: &str = "node01:node02";

/// A guest of the scenario: the thesis' table 1.
struct Guest {
    name: &'static str,
    address: Ipv4Addr,
    memory: u32,
    disk: &'static str,
}

const VM1: Guest = Guest { name: "vm1", address: Ipv4Addr::new(10, 0, 0, 10), memory: 256, disk: "10g" };
const VM2: Guest = Guest { name: "vm2", address: Ipv4Addr::new(10, 0, 0, 11), memory: 128, disk: "4g" };
/// Not the thesis' 64 MB: Debian's kernel of today finds no room there to unpack itself.
const VM3: Guest = Guest { name: "vm3", address: Ipv4Addr::new(10, 0, 0, 12), memory: 80, disk: "2g" };
const VM3_MEMORY: &str =
    "vm3 has 80 MB, not the 64 MB of the thesis: it is about the least in which Debian's cloud kernel boots";

pub(super) struct Scenario<'a> {
    lab: &'a Lab,
    guests: &'a Guests,
    screen: &'a mut Screen,
    report: &'a mut Report,
}

type Step<'a> = fn(&mut Scenario<'a>) -> anyhow::Result<Figures>;

impl<'a> Scenario<'a> {
    pub fn new(lab: &'a Lab, guests: &'a Guests, screen: &'a mut Screen, report: &'a mut Report) -> Scenario<'a> {
        Scenario { lab, guests, screen, report }
    }

    /// Plays it to its end, or to the first step after which something is not as it must be.
    pub fn play(&mut self, keep: bool) -> anyhow::Result<()> {
        let steps: [(&'static str, &str, Step<'a>); 17] = [
            ("init", "make a cluster (figure 9)", Self::init),
            ("info", "look at its configuration (figure 9)", Self::info),
            ("verify", "check it (figure 10)", Self::verify),
            ("node-add", "add the second node, and a witness that only votes (section 5.1)", Self::node_add),
            ("verify", "check it again, with all nodes (figure 10)", Self::verify),
            ("instance-add", "make three instances (figure 11)", Self::instance_add),
            ("disk-status", "each disk on both nodes (figure 12)", Self::disk_status),
            ("list", "two run, vm3 was not started (figure 13)", Self::list_one_down),
            ("startup", "start vm3 (figure 14)", Self::startup),
            ("list", "all three run (figure 14)", Self::list_all_run),
            ("console", "look into vm1 (figure 15)", Self::console),
            ("daemon-restart", "kill the daemon under vm1; the guest only waits for its disk", Self::daemon_restart),
            (
                "migrate",
                "move vm2 to node02 while it runs; its users must not notice (figures 17 and 19)",
                Self::migrate,
            ),
            ("list", "vm2 runs on node02 (figure 18)", Self::list_one_moved),
            (
                "node-failover",
                "move all of node01 to node02, by stopping and starting (figure 20)",
                Self::node_failover,
            ),
            ("master-failover", "make node02 the master (figure 21)", Self::master_failover),
            ("getmaster", "who is the master now?", Self::getmaster),
        ];
        let life: [(&'static str, &str, Step<'a>); 7] = [
            ("redist-conf", "every node has the newest configuration", Self::redist_conf),
            ("node-restart", "switch node01 off and on; it comes back by itself (figure 22)", Self::node_restart),
            (
                "automatic-failover",
                "node02, the master with all instances, is killed; nobody types anything (figures 23 and 24)",
                Self::automatic_failover,
            ),
            ("rejoin", "node02 comes back, as a follower (figure 28)", Self::rejoin),
            ("partition", "node02, with vm1, is cut off but lives; its guest may not go on there", Self::partition),
            ("partition-master", "the same with node01, the master with all instances", Self::partition_master),
            ("replication-cut", "node01 loses only the replication network: nothing moves", Self::replication_cut),
        ];
        let end: [(&'static str, &str, Step<'a>); 3] = [
            ("shutdown", "stop the instances (section 5.4)", Self::shutdown),
            ("remove", "remove them with their disks", Self::remove),
            ("destroy", "take the cluster apart", Self::destroy),
        ];
        self.steps(&steps)?;
        self.steps(&life)?;
        if keep {
            self.report.note("the steps shutdown, remove and destroy were left out to keep the lab".to_owned());
            return Ok(());
        }
        self.steps(&end)
    }

    /// Plays what is done where two nodes have no witness, on a lab of its own.
    pub fn play_without_witness(&mut self) -> anyhow::Result<()> {
        let about = "two nodes without a witness: the master dies, and a human decides (figures 23 to 28)";
        self.steps(&[("no-voting", about, Self::no_voting)])
    }

    fn steps(&mut self, steps: &[(&'static str, &str, Step<'a>)]) -> anyhow::Result<()> {
        for (name, about, step) in steps {
            self.screen.heading(name, about);
            let begun = Instant::now();
            let outcome = step(self);
            let figures = outcome.as_ref().ok().cloned().unwrap_or_default();
            self.report.step(name, outcome.is_ok(), begun.elapsed(), figures);
            outcome.with_context(|| format!("step '{name}'"))?;
        }
        Ok(())
    }

    /// Draws how the cluster is now.
    fn stage(&mut self, seen_by: &str, title: &str) -> anyhow::Result<()> {
        self.report.stage(self.screen, self.lab, seen_by, title)
    }

    /// Draws what has just happened to the stage before, and the nodes do not know yet.
    fn right_after(&mut self, title: &str) -> anyhow::Result<()> {
        self.report.right_after(self.screen, self.lab, title)
    }

    fn on(&mut self, node: &str, line: &str) -> anyhow::Result<Outcome> {
        let node = self.node(node)?;
        self.screen.run(&node, line)
    }

    fn node(&self, name: &str) -> anyhow::Result<Node> {
        Ok(self.lab.node(name)?)
    }

    fn init(&mut self) -> anyhow::Result<Figures> {
        for node in self.lab.status()?.iter().filter(|node| node.name != "client") {
            self.lab.wait_for_daemon(&node.name)?;
        }
        let line = format!(
            "gnt-cluster init -s {} --enabled-hypervisors=kvm --master-netdev=br0 -H '{}' cluster01",
            self.node("node01")?.replication_address(),
            self.guests.parameters()
        );
        let init = self.on("node01", &line)?.succeeded()?;
        Ok(Figures::from([("ms", ms(init.elapsed))]))
    }

    fn info(&mut self) -> anyhow::Result<Figures> {
        let info = self.on("node01", "gnt-cluster info")?.succeeded()?;
        let info = info.says("Cluster name: cluster01")?.says("Master node: node01")?.says("kvm")?;
        Ok(Figures::from([("wall_ms", ms(info.elapsed))]))
    }

    fn verify(&mut self) -> anyhow::Result<Figures> {
        let verify = self.on("node01", "gnt-cluster verify")?.succeeded()?;
        let verify = verify.does_not_say("ERROR")?.does_not_say("WARNING")?;
        Ok(Figures::from([("wall_ms", ms(verify.elapsed))]))
    }

    fn node_add(&mut self) -> anyhow::Result<Figures> {
        let node02 = self.add_node("gnt-node add --master-capable=yes", "node02")?;
        let witness = self.add_node("gnt-node add --master-capable=no --vm-capable=no", "witness")?;
        self.lab.wait_for_voters("node01", 3)?;
        self.lab.wait_for_arming("node01")?;
        self.screen
            .note("three nodes vote now: the loss of any one of them leaves a majority, which may declare it dead");
        let list = self.on("node01", "gnt-node list")?.succeeded()?.says("node01")?;
        list.says("node02")?.says("witness")?;
        Ok(Figures::from([("node02_ms", ms(node02)), ("witness_ms", ms(witness))]))
    }

    /// Types `gnt-node add` on node01 and, when it asks for that, the line that it prints on the new node.
    fn add_node(&mut self, command: &str, name: &str) -> anyhow::Result<Duration> {
        let (master, new) = (self.node("node01")?, self.node(name)?);
        let line = format!("{command} -s {} {name}", new.replication_address());
        let mut adding = self.screen.type_in(&master, &line)?;
        adding.until("cardume join ")?;
        let rest = adding.until("\n")?;
        let join = format!("cardume join {}", rest.trim());
        adding.screen().run(&new, &join)?.succeeded()?;
        Ok(adding.finish()?.succeeded()?.elapsed)
    }

    fn instance_add(&mut self) -> anyhow::Result<Figures> {
        let refused =
            "gnt-instance add -t drbd --disk 0:size=10g -B memory=256 -o debootstrap+default -n node01:node02 vm3";
        let refused = self.on("node01", refused)?.ended_with(1)?;
        refused.says("error type: wrong_input")?.says("Directory for OS debootstrap not found in search path")?;

        let mut figures = Figures::new();
        let (create, ping, answers) = self.create(&VM1, NODES)?;
        figures.extend([("create_ms", create), ("first_ping_ms", ping), ("service_ms", answers)]);
        self.create(&VM2, NODES)?;

        self.screen.note(VM3_MEMORY);
        self.report.note(VM3_MEMORY.to_owned());
        let line = format!("{} --no-start vm3", add_line(&VM3, NODES));
        let vm3 = self.on("node01", &line)?.succeeded()?;
        figures.insert("no_start_ms", ms(vm3.elapsed));
        let accelerator = accelerator(&self.node("node01")?)?;
        self.report.set_accelerator(&accelerator);
        Ok(figures)
    }

    /// Makes an instance that is started at once, and waits until it answers. Returns, in milliseconds from the typing of
    /// the command: its end, the first answer to a ping, the first answer of the guest's service.
    fn create(&mut self, guest: &Guest, nodes: &str) -> anyhow::Result<(f64, f64, f64)> {
        let client = self.lab.client()?;
        let ping = FirstPing::start(&client, guest.address)?;
        let service = Continuity::start(&client, guest.address)?;
        let begun = Instant::now();
        let add = self.on("node01", &format!("{} {}", add_line(guest, nodes), guest.name))?.succeeded()?;
        let ping = ping.wait(PATIENCE)?.saturating_duration_since(begun);
        service.wait(1, PATIENCE)?;
        let first = service.finish().0.first().map_or(Duration::ZERO, |answer| answer.at - begun);
        self.screen.note(&format!("seen from the client: {} answers after {:.1} s", guest.name, first.as_secs_f64()));
        Ok((ms(add.elapsed), ms(ping), ms(first)))
    }

    fn list_one_down(&mut self) -> anyhow::Result<Figures> {
        let running = |guest, memory| (guest, "node01", "running", memory);
        self.list("node01", &[running(&VM1, "256M"), running(&VM2, "128M"), (&VM3, "node01", "ADMIN_down", "-")])
    }

    fn list_all_run(&mut self) -> anyhow::Result<Figures> {
        let figures = self.list_running("node01", ["node01", "node01", "node01"])?;
        self.stage("node01", "Figure 16: all instances run on node01")?;
        Ok(figures)
    }

    fn list_one_moved(&mut self) -> anyhow::Result<Figures> {
        let figures = self.list_running("node01", ["node01", "node02", "node01"])?;
        self.stage("node01", "Figure 19: vm2 has moved to node02 while it ran")?;
        Ok(figures)
    }

    /// All three run, on these nodes, as one of them lists them.
    fn list_running(&mut self, seen_by: &str, [vm1, vm2, vm3]: [&str; 3]) -> anyhow::Result<Figures> {
        let running = |guest, node, memory| (guest, node, "running", memory);
        self.list(seen_by, &[running(&VM1, vm1, "256M"), running(&VM2, vm2, "128M"), running(&VM3, vm3, "80M")])
    }

    fn list(&mut self, seen_by: &str, wanted: &[(&Guest, &str, &str, &str)]) -> anyhow::Result<Figures> {
        let list = self.on(seen_by, "gnt-instance list")?.succeeded()?;
        let rows: Vec<Vec<&str>> = list.text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let wanted: Vec<Vec<&str>> = wanted
            .iter()
            .map(|(guest, node, status, memory)| vec![guest.name, "kvm", "busybox+default", node, status, memory])
            .collect();
        ensure!(rows == wanted, "the list should be {wanted:?}");
        Ok(Figures::from([("wall_ms", ms(list.elapsed))]))
    }

    fn startup(&mut self) -> anyhow::Result<Figures> {
        let client = self.lab.client()?;
        let ping = FirstPing::start(&client, VM3.address)?;
        let begun = Instant::now();
        let startup = self.on("node01", "gnt-instance startup vm3")?.succeeded()?;
        let ping = ping.wait(PATIENCE)?.saturating_duration_since(begun);
        Ok(Figures::from([("ms", ms(startup.elapsed)), ("first_ping_ms", ms(ping))]))
    }

    fn console(&mut self) -> anyhow::Result<Figures> {
        let (table, took) = self.in_console("node01", &VM1, "df", "Filesystem")?;
        ensure!(table.lines().any(|line| line.trim_end().ends_with(" /")), "df shows no root file system");
        Ok(Figures::from([("ms", ms(took))]))
    }

    /// Types a command into a guest's console, and leaves that again. Returns what it says from `begin` on, and how long
    /// all that took.
    fn in_console(
        &mut self,
        node: &str,
        guest: &Guest,
        command: &str,
        begin: &str,
    ) -> anyhow::Result<(String, Duration)> {
        let node = self.node(node)?;
        let prompt = format!("root@{}:", guest.name);
        let mut console = self.screen.type_in(&node, &format!("gnt-instance console {}", guest.name))?;
        console.until(&format!("Connected to the console of {}", guest.name))?;
        console.keys(b"\n")?;
        console.until(&prompt)?;
        console.keys(format!("{command}\n").as_bytes())?;
        console.until(begin)?;
        let said = console.until(&prompt)?;
        console.until("# ")?;
        // ^]
        console.keys(b"\x1d")?;
        Ok((said, console.finish()?.succeeded()?.elapsed))
    }

    fn daemon_restart(&mut self) -> anyhow::Result<Figures> {
        let node = self.node("node01")?;
        let before = node.daemon_pid()?.context("node01 has no daemon")?;
        let guest = Continuity::start(&self.lab.client()?, VM1.address)?;
        guest.wait(ANSWERS, PATIENCE)?;
        // Only the daemon: QEMU and the lab's init, which starts another one, live on.
        let inside = daemon_pid_inside(&node)?;
        self.on("node01", &format!("kill -9 {inside}"))?.succeeded()?;
        let killed = Instant::now();
        self.lab.wait_for_status("node01", "a master that node01 knows", PATIENCE, |status| status.has_master)?;
        let back = killed.elapsed();
        let after = node.daemon_pid()?.context("node01 has no daemon")?;
        ensure!(after != before, "the daemon of node01 was not killed");
        self.screen.note("a new daemon has taken vm1 over");
        self.on("node01", "gnt-instance list -o name,pnode,status vm1")?.succeeded()?.says("running")?;
        guest.wait(ANSWERS, PATIENCE)?;
        let history = guest.finish();
        if let Some(broken) = history.broken() {
            bail!(broken);
        }
        let gap = history.longest_gap().unwrap_or_default();
        self.screen.note(&format!(
            "seen from the client: {} answers, same boot id, counter unbroken, longest gap {:.0} ms",
            history.0.len(),
            ms(gap)
        ));
        Ok(Figures::from([("gap_ms", ms(gap)), ("back_ms", ms(back)), ("answers", history.0.len() as f64)]))
    }

    fn master_failover(&mut self) -> anyhow::Result<Figures> {
        // While node01 was without a daemon the others may have chosen node02 already.
        if self.master("node01")? != "node01" {
            self.screen.note("node02 became master while node01 had no daemon: first back to node01");
            self.on("node01", "gnt-cluster master-failover")?.succeeded()?;
        }
        let guest = Continuity::start(&self.lab.client()?, VM1.address)?;
        guest.wait(ANSWERS, PATIENCE)?;
        let failover = self.on("node02", "gnt-cluster master-failover")?.succeeded()?;
        guest.wait(ANSWERS, PATIENCE)?;
        let history = guest.finish();
        if let Some(broken) = history.broken() {
            bail!(broken);
        }
        self.cluster_address_is_on("node02")?;
        let gap = history.longest_gap().unwrap_or_default();
        Ok(Figures::from([("ms", ms(failover.elapsed)), ("guest_gap_ms", ms(gap))]))
    }

    fn master(&self, seen_by: &str) -> anyhow::Result<String> {
        self.lab.wait_for_status(seen_by, "a master", PATIENCE, |status| status.has_master)?;
        Api::of(&self.node(seen_by)?)?.status()?.master.context("no master is known")
    }

    /// The cluster's address comes a moment after the office; never is it on two nodes.
    fn cluster_address_is_on(&self, wanted: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut holders = Vec::new();
            let there = self.lab.status()?.into_iter().filter(|node| node.pid.is_some()).map(|node| node.name);
            for node in there.filter(|name| name != "client") {
                let addresses = self.node(&node)?.exec(["ip", "-o", "-4", "address", "show", "dev", "br0"])?.stdout;
                if addresses.contains(" 10.0.0.20/") {
                    holders.push(node);
                }
            }
            ensure!(holders.len() <= 1, "{} have the cluster's address at the same time", holders.join(" and "));
            if holders == [wanted] {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the cluster's address did not come to {wanted}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn getmaster(&mut self) -> anyhow::Result<Figures> {
        let asked = self.on("node01", "gnt-cluster getmaster")?.succeeded()?;
        ensure!(asked.text.trim() == "node02", "node02 should be the master");
        Ok(Figures::from([("wall_ms", ms(asked.elapsed))]))
    }

    fn redist_conf(&mut self) -> anyhow::Result<Figures> {
        let redist = self.on("node02", "gnt-cluster redist-conf")?.succeeded()?;
        Ok(Figures::from([("wall_ms", ms(redist.elapsed))]))
    }

    fn shutdown(&mut self) -> anyhow::Result<Figures> {
        let one = self.on("node02", "gnt-instance shutdown vm1")?.succeeded()?.does_not_say("WARNING")?;
        let two = self.on("node02", "gnt-instance shutdown --force-multiple vm2 vm3")?;
        let two = two.succeeded()?.does_not_say("WARNING")?;
        let list = self.on("node02", "gnt-instance list")?.succeeded()?;
        ensure!(list.text.matches("ADMIN_down").count() == 3, "not all three are down");
        Ok(Figures::from([("vm1_ms", ms(one.elapsed)), ("vm2_vm3_ms", ms(two.elapsed))]))
    }

    fn remove(&mut self) -> anyhow::Result<Figures> {
        let mut figures = Figures::new();
        for (guest, figure) in [(VM1, "vm1_ms"), (VM2, "vm2_ms"), (VM3, "vm3_ms")] {
            let remove = self.on("node02", &format!("gnt-instance remove -f {}", guest.name))?.succeeded()?;
            figures.insert(figure, ms(remove.elapsed));
        }
        let list = self.on("node02", "gnt-instance list")?.succeeded()?;
        ensure!(list.text.lines().count() == 1, "there are still instances");
        Ok(figures)
    }

    fn destroy(&mut self) -> anyhow::Result<Figures> {
        self.on("node02", "gnt-node remove witness")?.succeeded()?;
        self.on("node02", "gnt-node remove node01")?.succeeded()?;
        let destroy = self.on("node02", "gnt-cluster destroy --yes-do-it")?.succeeded()?;
        self.on("node02", "gnt-cluster getmaster")?.ended_with(5)?;
        Ok(Figures::from([("ms", ms(destroy.elapsed))]))
    }
}

/// The command that makes a guest on a node, with its disk on another one too; only the name is to follow.
fn add_line(guest: &Guest, nodes: &str) -> String {
    format!(
        "gnt-instance add -t drbd --disk 0:size={} -B memory={} -o busybox+default -n {nodes} --net 0:ip={}",
        guest.disk, guest.memory, guest.address
    )
}

/// The number of a node's daemon as the node sees it, which is what is typed there.
fn daemon_pid_inside(node: &Node) -> anyhow::Result<i32> {
    let pid = node.daemon_pid()?.context("the node has no daemon")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("no NSpid")?;
    Ok(numbers.split_whitespace().last().context("no NSpid")?.parse()?)
}

/// What QEMU was started with.
fn accelerator(node: &Node) -> anyhow::Result<String> {
    // The brackets keep grep from finding itself.
    let script = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -x -A1 -e '-acce[l]' | tail -n 1";
    let said = node.exec(["sh", "-c", script])?.stdout;
    let name = said.trim().split(',').next().unwrap_or_default();
    ensure!(!name.is_empty(), "no guest of {} says what runs it", node.name);
    Ok(name.to_owned())
}
