//! The named peer of live migration: QEMU alone, told what to do over its monitor, with the guest's disk in one file that
//! both nodes see.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::exec::Running;
use crate::{Lab, Node};

/// How long QEMU may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// The guest's tap on either node.
const TAP: &str = "bare0";
const MAC: &str = "aa:00:00:ba:4e:01";
/// Milliseconds; as for ours. With QEMU's own 300 and no limit to the bandwidth, all memory of a small guest would be sent
/// while it stands still.
const DOWNTIME_LIMIT: u32 = 100;
/// Where the destination listens for the guest's memory.
const PORT: u16 = 4444;

/// What of a command line makes the machine; the rest is how it is driven and what is behind its devices.
const MACHINE: [&str; 10] =
    ["-machine", "-accel", "-cpu", "-smp", "-m", "-rtc", "-boot", "-kernel", "-initrd", "-append"];

/// A guest that QEMU runs without anything of ours.
pub(super) struct Bare<'a> {
    lab: &'a Lab,
    machine: Vec<String>,
    /// With the disk and the monitors' sockets: outside the lab, where all its nodes look into the same folder.
    folder: PathBuf,
    at: String,
    // The sockets of one QEMU are not to be taken for those of the next.
    started: u32,
    qemu: Running,
    monitor: Monitor,
}

/// How a migration went.
pub(super) struct Moved {
    /// From starting QEMU at the destination to the end of the migration, the guest running there.
    pub wall: Duration,
    /// For how long the guest stood still, as the source says.
    pub downtime_ms: f64,
}

impl<'a> Bare<'a> {
    /// Boots a guest on a node: the machine of the guest that process `like` runs, with a copy of `disk`.
    pub fn boot(lab: &'a Lab, at: &str, like: i32, disk: &Path, folder: PathBuf) -> anyhow::Result<Bare<'a>> {
        let machine = machine_of(like)?;
        for node in ["node01", "node02"] {
            let script = format!("ip tuntap add dev {TAP} mode tap && ip link set {TAP} master br0 up");
            shell(&lab.node(node)?, &script)?;
        }
        shell(
            &lab.node(at)?,
            &format!(
                "mkdir -p {folder} && cp --sparse=always {disk} {folder}/disk",
                folder = folder.display(),
                disk = disk.display()
            ),
        )?;
        let (qemu, monitor) = start(&lab.node(at)?, &machine, &folder, 0, false)?;
        Ok(Bare { lab, machine, folder, at: at.to_owned(), started: 0, qemu, monitor })
    }

    /// Migrates it to the other node, as QEMU does it by itself.
    pub fn migrate(&mut self) -> anyhow::Result<Moved> {
        let to = if self.at == "node01" { "node02" } else { "node01" };
        let node = self.lab.node(to)?;
        let begun = Instant::now();
        self.started += 1;
        let (qemu, mut there) = start(&node, &self.machine, &self.folder, self.started, true)?;
        let address = format!("tcp:{}:{PORT}", crate::layout::replication(node.address));
        there.command("migrate-incoming", json!({"uri": address}))?;
        let here = &mut self.monitor;
        here.command("migrate-set-parameters", json!({"max-bandwidth": 0, "downtime-limit": DOWNTIME_LIMIT}))?;
        here.command("migrate", json!({"uri": address}))?;
        let info = here.until("query-migrate", |info| match info["status"].as_str() {
            Some("failed" | "cancelled") => bail!("the migration of QEMU alone failed: {info}"),
            status => Ok(status == Some("completed")),
        })?;
        there.until("query-status", |info| Ok(info["status"] == "running"))?;
        let wall = begun.elapsed();
        // Ends the source's process, too.
        self.qemu = qemu;
        self.monitor = there;
        self.at = to.to_owned();
        let downtime_ms = info["downtime"].as_f64().context("QEMU does not say how long its guest stood still")?;
        Ok(Moved { wall, downtime_ms })
    }
}

impl Drop for Bare<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The options that make the machine of a QEMU that runs.
fn machine_of(pid: i32) -> anyhow::Result<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).context("can't read QEMU's command line")?;
    let line: Vec<String> =
        line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let machine: Vec<String> =
        line.windows(2).filter(|pair| MACHINE.contains(&pair[0].as_str())).flatten().cloned().collect();
    ensure!(machine.iter().any(|word| word == "-kernel"), "process {pid} does not run a guest with a kernel of ours");
    Ok(machine)
}

fn shell(node: &Node, script: &str) -> anyhow::Result<()> {
    let output = node.exec(["sh", "-c", script])?;
    ensure!(output.status.success(), "'{script}' on {} failed: {}", node.name, output.stderr);
    Ok(())
}

fn start(
    node: &Node,
    machine: &[String],
    folder: &Path,
    number: u32,
    incoming: bool,
) -> anyhow::Result<(Running, Monitor)> {
    let socket = folder.join(format!("qmp{number}"));
    let disk = json!({
        "driver": "raw", "node-name": "disk0", "discard": "unmap", "cache": {"direct": true},
        "file": {"driver": "file", "filename": folder.join("disk"), "cache": {"direct": true}, "discard": "unmap"},
    });
    let mut line: Vec<String> =
        ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"].map(str::to_owned).into();
    line.extend(machine.iter().cloned());
    line.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", socket.display())]);
    line.extend(["-blockdev".to_owned(), disk.to_string()]);
    line.extend(["-device".to_owned(), "virtio-blk-pci,drive=disk0,addr=0x0c".to_owned()]);
    line.extend(["-netdev".to_owned(), format!("tap,id=nic0,ifname={TAP},script=no,downscript=no")]);
    line.extend(["-device".to_owned(), format!("virtio-net-pci,netdev=nic0,mac={MAC},addr=0x03,romfile=")]);
    // Its init wants the console that its kernel is told of.
    line.extend(["-serial", "null"].map(str::to_owned));
    if incoming {
        line.extend(["-incoming", "defer"].map(str::to_owned));
    }
    let qemu = node.command(line).spawn()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => return Ok((qemu, Monitor::greet(stream)?)),
            Err(_) if Instant::now() < deadline => thread::sleep(POLL),
            Err(error) => {
                let said = qemu.finish(Duration::ZERO).map_or_else(|error| error.to_string(), |output| output.stderr);
                bail!("QEMU alone did not start on {}: {error}; {said}", node.name);
            }
        }
    }
}

/// QEMU's monitor.
struct Monitor {
    from: BufReader<UnixStream>,
    to: UnixStream,
}

impl Monitor {
    fn greet(stream: UnixStream) -> anyhow::Result<Monitor> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Monitor { from: BufReader::new(stream.try_clone()?), to: stream };
        monitor.read()?;
        monitor.command("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        ensure!(self.from.read_line(&mut line)? > 0, "QEMU alone has ended");
        Ok(serde_json::from_str(&line)?)
    }

    fn command(&mut self, name: &str, arguments: Value) -> anyhow::Result<Value> {
        self.to.write_all(format!("{}\n", json!({"execute": name, "arguments": arguments})).as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses '{name}': {error}");
            }
            // What is no answer is an event.
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    /// Asks until the answer is as it is to be.
    fn until(&mut self, name: &str, holds: impl Fn(&Value) -> anyhow::Result<bool>) -> anyhow::Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.command(name, json!({}))?;
            if holds(&answer)? {
                return Ok(answer);
            }
            ensure!(Instant::now() < deadline, "'{name}': not within {PATIENCE:?}: {answer}");
            thread::sleep(POLL);
        }
    }
}
