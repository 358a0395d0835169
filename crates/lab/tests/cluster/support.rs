//! What the tests share.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab::probe::History;
use lab::{Api, Config, Guests, Lab, LabLock, Node, Output, Running};
use opcodes::disks::DiskReport;
use opcodes::wire::Request;

/// All these tests use one directory, so that each clears away what an interrupted one left.
const DIR: &str = "/var/tmp/cardume-cluster-test";

/// How long anything may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An instance with a disk and a system of its own; node, options and name are to follow.
pub const ADD: &str = "gnt-instance add -t file -s 1g -o busybox+default -B memory=128";

/// One with a mirrored disk; nodes, options and name are to follow.
pub const ADD_MIRRORED: &str = "gnt-instance add -t drbd -s 128m -o busybox+default -B memory=128";

/// Where `cardume-guest work` listens.
const WORK_PORT: u16 = 7001;

/// Where the daemons of a node look for the points at which they are to wait; each node has its own.
const FAULT_POINTS: &str = "/run/fault-points";

/// A lab for one test; no other one runs meanwhile.
pub struct Cluster {
    // Dropped in this order: the lab is down before another test may begin.
    lab: Lab,
    _lock: LabLock,
}

impl Deref for Cluster {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.lab
    }
}

fn binary() -> PathBuf {
    let beside = || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("cardume");
    let path = std::env::var_os("CARDUME_BIN").map_or_else(beside, PathBuf::from);
    assert!(path.exists(), "{} is missing; build it first: cargo build -p cardume", path.display());
    path
}

/// Nodes with daemons that are in no cluster yet.
pub fn up(nodes: u8, witness: bool) -> Cluster {
    let lock = lab::lock().unwrap_or_else(|error| panic!("the tests of a cluster can't run: {error}"));
    let guests = Guests::find().unwrap_or_else(|missing| panic!("the tests of a cluster can't run: {missing}"));
    let mut config = Config { dir: DIR.into(), nodes, witness, binary: binary(), ..Config::default() };
    config.daemon.extend(guests.daemon_options());
    // `env` becomes the daemon; nothing is held where no point is set.
    config.daemon.splice(0..0, ["env".to_owned(), format!("CARDUME_FAULT_POINTS={FAULT_POINTS}")]);
    let lab = Lab::up(config).expect("a lab");
    for status in lab.status().unwrap().iter().filter(|status| status.name != "client") {
        lab.wait_for_daemon(&status.name).expect("a daemon");
    }
    Cluster { lab, _lock: lock }
}

/// A cluster of that many nodes, with node01 as its master. Its leases are long: a machine that is busy with something
/// else is not to be taken for a node that dies.
pub fn formed(nodes: u8, witness: bool) -> Cluster {
    formed_with(nodes, witness, &["--lease=5000"])
}

/// One with leases as they are by default, for tests of failover.
pub fn formed_for_failover(nodes: u8, witness: bool) -> Cluster {
    formed_with(nodes, witness, &[])
}

fn formed_with(nodes: u8, witness: bool, options: &[&str]) -> Cluster {
    let cluster = up(nodes, witness);
    let parameters = Guests::find().unwrap().parameters();
    let usual = ["--enabled-hypervisors=kvm,fake", "--master-netdev=br0", "-H", &parameters];
    cluster.form(&[&usual, options].concat()).expect("a cluster");
    cluster
}

impl Cluster {
    pub fn at(&self, node: &str) -> Node {
        self.node(node).unwrap()
    }

    /// Types a line on a node.
    pub fn run(&self, node: &str, line: &str) -> Output {
        self.at(node).exec(["sh", "-c", line]).unwrap()
    }

    /// Types a line that has to succeed, and returns what it writes.
    #[track_caller]
    pub fn ok(&self, node: &str, line: &str) -> String {
        let output = self.run(node, line);
        assert!(output.status.success(), "'{line}' on {node} failed:\n{}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Types a line that has to fail with this exit code and these words.
    #[track_caller]
    pub fn refused(&self, node: &str, line: &str, code: i32, words: &[&str]) {
        let output = self.run(node, line);
        assert_eq!(output.code(), code, "'{line}' on {node}:\n{}{}", output.stdout, output.stderr);
        for word in words {
            assert!(output.stderr.contains(word), "'{line}' on {node} does not say '{word}':\n{}", output.stderr);
        }
    }

    /// Columns of a table, a row each.
    #[track_caller]
    pub fn table(&self, on: &str, what: &str, columns: &str) -> Vec<Vec<String>> {
        let line = format!("gnt-{what} list --no-headers --separator='|' -o {columns}");
        self.ok(on, &line).lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
    }

    /// `status` of an instance; `None` when there is none of that name.
    #[track_caller]
    pub fn status_of(&self, on: &str, instance: &str) -> Option<String> {
        let rows = self.table(on, "instance", "name,status");
        rows.into_iter().find(|row| row[0] == instance).map(|mut row| row.remove(1))
    }

    /// Everything that an administrator has decided.
    #[track_caller]
    pub fn configuration(&self, on: &str) -> String {
        let instances = "gnt-instance list -o name,uuid,pnode,os,disk_template,admin_state,be/maxmem,serial_no";
        let nodes = "gnt-node list -o name,uuid,pip,role,vm_capable,pinst_list,serial_no";
        ["gnt-cluster info", nodes, instances].map(|line| self.ok(on, line)).join("\n")
    }

    /// Waits until a node's daemon answers and knows a master.
    pub fn wait_for_master(&self, on: &str) {
        self.wait_for_status(on, "a master", PATIENCE, |status| status.has_master).unwrap();
    }

    pub fn master(&self, seen_by: &str) -> String {
        self.wait_for_master(seen_by);
        self.ok(seen_by, "gnt-cluster getmaster").trim().to_owned()
    }

    /// What nodes say of mirrored disks; `None` while that can't be asked.
    pub fn disk_reports(&self, on: &str) -> Option<Vec<DiskReport>> {
        Api::of(&self.node(on).ok()?).ok()?.call(&Request::Disks { names: Vec::new() }).ok()
    }

    /// Whether both replicas of each mirrored disk hold everything.
    pub fn is_in_sync(&self, on: &str) -> bool {
        self.disk_reports(on).is_some_and(|disks| disks.iter().all(is_in_sync))
    }

    /// Waits until both replicas of each mirrored disk hold everything.
    #[track_caller]
    pub fn wait_for_sync(&self, on: &str) {
        let mut seen = None;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(disks) = self.disk_reports(on) {
                if disks.iter().all(is_in_sync) {
                    return;
                }
                seen = Some(disks);
            }
            assert!(Instant::now() < deadline, "not in sync within {PATIENCE:?}: {seen:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops an instance, whose replicas must be the same then, byte for byte.
    #[track_caller]
    pub fn stop_and_compare(&self, on: &str, instance: &str) {
        self.ok(on, &format!("gnt-instance shutdown {instance}"));
        self.wait_for_sync(on);
        let said = self.ok(on, &format!("cardume disk verify {instance}"));
        assert!(said.contains("identical"), "{said}");
    }

    /// Lets a node's daemon wait wherever it comes to this point.
    pub fn hold_at(&self, node: &str, point: &str) -> Hold {
        let root = PathBuf::from(format!("/proc/{}/root", self.at(node).pid().unwrap()));
        let folder = root.join(FAULT_POINTS.trim_start_matches('/'));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join(point);
        fs::write(&file, "").unwrap();
        Hold { file }
    }

    /// Types a line into a guest's console, and returns what it says from `begin` to the next prompt.
    pub fn in_console(&self, node: &str, instance: &str, line: &str, begin: &str) -> String {
        let mut console = self.at(node).command(["gnt-instance", "console", instance]).pty().unwrap();
        console.read_until("Connected to the console", PATIENCE).unwrap();
        console.write(b"\n").unwrap();
        let prompt = format!("root@{instance}:");
        console.read_until(&prompt, PATIENCE).unwrap();
        console.write(format!("{line}\n").as_bytes()).unwrap();
        console.read_until(begin, PATIENCE).unwrap();
        let said = console.read_until(&prompt, PATIENCE).unwrap();
        console.write(b"\x1d").unwrap();
        assert!(console.finish(PATIENCE).unwrap().0.success());
        said
    }

    /// Everything that a guest has acknowledged must be on its disk.
    #[track_caller]
    pub fn assert_on_disk(&self, node: &str, instance: &str, seen: &History) {
        // A console shows again what was on it last: that is not to be taken for the answer.
        let question = format!("cardume-guest check # after {}", seen.0.last().map_or(0, |answer| answer.counter));
        let said = self.in_console(node, instance, &question, &format!("{question}\r\n"));
        let missing = seen.missing(&said).unwrap_or_else(|| panic!("'cardume-guest check' says: {said}"));
        assert_eq!(missing, 0, "of {} acknowledged numbers; the disk has {said}", seen.0.len());
    }

    /// The nodes on which QEMU has a guest of this name.
    pub fn homes(&self, instance: &str) -> Vec<String> {
        let nodes = self.status().unwrap().into_iter().filter(|status| status.pid.is_some() && status.name != "client");
        nodes.map(|status| status.name).filter(|node| self.guests(node).iter().any(|name| name == instance)).collect()
    }

    pub fn wait_for_jobs(&self, on: &str) {
        eventually("all jobs have ended", || {
            // While the master changes the answer may be that it does.
            let jobs = self.run(on, "gnt-job list --no-headers --separator='|' -o status");
            jobs.status.success() && jobs.stdout.lines().all(|job| ["success", "error", "canceled"].contains(&job))
        });
    }

    /// Nothing is half done: no job is unfinished; each instance has its disk, and no disk is without its instance; each
    /// that is said to run has its one QEMU, and no QEMU is without its instance; `verify` finds nothing.
    #[track_caller]
    pub fn assert_whole(&self, on: &str) {
        self.wait_for_jobs(on);
        let instances = self.table(on, "instance", "name,pnode,status,disk_template");
        for node in self.status().unwrap().into_iter().map(|status| status.name).filter(|name| name != "client") {
            let node = node.as_str();
            let here = |row: &&Vec<String>| row[1] == node;
            let name = |row: &Vec<String>| row[0].clone();
            let with_disks: BTreeSet<_> =
                instances.iter().filter(here).filter(|row| row[3] == "file").map(name).collect();
            assert_eq!(self.disks(node), with_disks, "disks on {node}, with {instances:?}");
            let running: Vec<_> = instances.iter().filter(here).filter(|row| row[2] == "running").map(name).collect();
            assert_eq!(self.guests(node), running, "processes of QEMU on {node}, with {instances:?}");
        }
        let verify = self.run(on, "gnt-cluster verify");
        // That stands as long as too few nodes vote.
        let is_standing = |line: &str| line.contains("there is no automatic failover");
        let warns = verify.stdout.lines().any(|line| line.contains("WARNING") && !is_standing(line));
        assert!(verify.status.success() && !warns, "{}{}", verify.stdout, verify.stderr);
    }

    /// Names of the instances that have a file on a node.
    fn disks(&self, node: &str) -> BTreeSet<String> {
        let folders = fs::read_dir(self.at(node).disks_dir()).unwrap().map(|entry| entry.unwrap());
        folders.map(|folder| folder.file_name().into_string().unwrap()).collect()
    }

    /// Names of the guests that QEMU runs on a node, one for each process.
    pub fn guests(&self, node: &str) -> Vec<String> {
        let script = "for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/cmdline; done 2>/dev/null";
        let said = self.ok(node, script);
        // A QEMU's argument; the shell's own command line has no line that begins so.
        let mut names: Vec<String> = said
            .lines()
            .filter_map(|argument| argument.strip_prefix("guest=")?.split(',').next().map(str::to_owned))
            .collect();
        names.sort();
        names
    }
}

fn is_in_sync(disk: &DiskReport) -> bool {
    let state = |replica: &opcodes::disks::NodeReplica| Some(replica.report.as_ref()?.state.clone());
    disk.in_sync.len() == 2 && disk.replicas.iter().all(|it| state(it).as_deref() == Some("UpToDate"))
}

/// A point at which a daemon waits, until this is dropped.
pub struct Hold {
    file: PathBuf,
}

impl Hold {
    /// Waits until the daemon is there. False: the command, which was to bring it there, has ended before.
    #[track_caller]
    pub fn reached(&self, command: &mut Running) -> bool {
        let reached = self.file.with_file_name(format!("{}.reached", self.file.file_name().unwrap().display()));
        let mut there = false;
        eventually("the point is reached, or the command has ended", || {
            there = reached.exists();
            there || command.has_ended()
        });
        there
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // With the node goes its folder.
        let _ = fs::remove_file(&self.file);
    }
}

/// What the guest says of the work for its disk: how many writes, and `ok` or what is wrong.
pub fn work(cluster: &Cluster, guest: Ipv4Addr) -> Option<(u64, String)> {
    let ask = || {
        let to = SocketAddr::from((guest, WORK_PORT));
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"?\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok::<_, io::Error>(line)
    };
    let line = cluster.client().unwrap().network().unwrap().run(ask).unwrap().ok()?;
    let (writes, how) = line.trim().split_once(' ')?;
    Some((writes.parse().ok()?, how.to_owned()))
}

/// Waits until the guest has written more than `before`, and was never told a lie. Returns how much it has.
#[track_caller]
pub fn still_works(cluster: &Cluster, guest: Ipv4Addr, before: u64) -> u64 {
    let mut writes = 0;
    eventually("the guest writes", || match work(cluster, guest) {
        Some((now, how)) => {
            assert_eq!(how, "ok", "after {now} writes");
            writes = now;
            now > before
        }
        None => false,
    });
    writes
}

/// Waits for something that nothing announces.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
pub struct Random(u64);

impl Random {
    /// From the seed in `CARDUME_TEST_SEED`, or a fixed one.
    pub fn seeded() -> Random {
        let seed = std::env::var("CARDUME_TEST_SEED").map_or(1, |seed| seed.parse().expect("a number as the seed"));
        println!("CARDUME_TEST_SEED={seed}");
        Random(seed)
    }

    /// A whole number, less than `count`.
    pub fn below(&mut self, count: usize) -> usize {
        (self.next() * count as f64) as usize
    }

    /// From 0 to 1.
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A moment in each of `count` equal parts of `whole`.
    pub fn moments(&mut self, count: u32, whole: Duration) -> Vec<Duration> {
        (0..count).map(|part| whole.mul_f64((f64::from(part) + self.next()) / f64::from(count))).collect()
    }
}
