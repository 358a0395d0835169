//! The part of a start that blocks: opens what QEMU needs and starts it.
//!
//! QEMU gets its sockets, logs, disks and taps as open descriptors, so its user needs no right to any path but those
//! of kernel, initial RAM disk and NBD sockets.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::QemuConfig;
use super::capabilities::{Capabilities, spawn_error};
use super::command::{Backing, Begin, Surroundings, arguments};
use super::rundir::{QMP, QMP2, Record, RunDir, SERIAL};
use super::spawn::{Identity, spawn};
use crate::accel::{Accelerator, AcceleratorKind};
use crate::error::{Error, Result};
use crate::machine::{DiskSource, DiskSpec, MachineSpec};
use crate::process::ProcessId;

/// Lines of QEMU's log that an error carries.
const LOG_LINES: usize = 10;
/// The length in bytes from which a log is put aside before the next start.
const LONG_LOG: u64 = 1024 * 1024;

/// A QEMU that was started: it may be gone already.
pub(super) struct Launched {
    pub pid: i32,
    /// `None` if it is gone.
    pub process: Option<ProcessId>,
    pub record: Record,
    pub log: StartLog,
}

/// QEMU's log since some moment.
#[derive(Debug, Clone)]
pub(super) struct StartLog {
    path: PathBuf,
    from: u64,
}

impl StartLog {
    /// What QEMU says from now on.
    pub fn from_now(path: PathBuf) -> StartLog {
        let from = path.metadata().map_or(0, |metadata| metadata.len());
        StartLog { path, from }
    }

    /// What QEMU said since then, its last lines.
    pub fn last_lines(&self) -> String {
        let text = tail(&self.path, self.from, 16 * 1024).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

/// Starts QEMU in a directory that was just made.
pub(super) fn launch(
    config: &QemuConfig,
    spec: &MachineSpec,
    begin: Begin,
    dir: &RunDir,
    capabilities: &Capabilities,
    accelerator: &Accelerator,
) -> Result<Launched> {
    let mut held = Vec::new();
    let mut hold = |fd: std::os::fd::OwnedFd| {
        let number = fd.as_raw_fd();
        held.push(fd);
        number
    };
    let qmp = hold(dir.listen(QMP)?.into());
    let qmp2 = hold(dir.listen(QMP2)?.into());
    let serial = if spec.serial {
        let path = console_log(config, &spec.instance);
        rotate(&path)?;
        let log = append(&path)?;
        Some((hold(dir.listen(SERIAL)?.into()), hold(log.into())))
    } else {
        None
    };
    let mut disks = Vec::new();
    for disk in &spec.disks {
        disks.push(match open_disk(&spec.instance, disk)? {
            None => Backing::Server,
            Some((file, true)) => Backing::Device(hold(file.into())),
            Some((file, false)) => Backing::File(hold(file.into())),
        });
    }
    let taps: Vec<RawFd> = spec.nics.iter().map(|nic| nic.tap.as_raw_fd()).collect();
    let inherit = held.iter().map(AsRawFd::as_raw_fd).chain(taps.iter().copied()).collect();
    let around = Surroundings {
        accelerator: accelerator.kind,
        machine: spec.machine.clone().unwrap_or_else(|| capabilities.machine.clone()),
        qmp,
        qmp2,
        serial,
        disks,
        taps,
    };
    let arguments = arguments(spec, begin, &around);
    let record = Record {
        instance: spec.instance.clone(),
        run: spec.run.clone(),
        memory_mib: spec.memory_mib,
        vcpus: spec.vcpus,
        machine: around.machine,
        serial: spec.serial,
        since: SystemTime::now(),
        arguments,
    };
    dir.write_record(&record)?;
    let path = qemu_log(config, &spec.instance);
    rotate(&path)?;
    let output = append(&path)?;
    let log = StartLog::from_now(path);
    let identity = identity(config, accelerator.kind)?;
    let pid = spawn(&config.binary, &record.arguments, output, inherit, identity)
        .map_err(|source| spawn_error(&config.binary, source))?;
    let process = ProcessId::of(pid).ok();
    if let Some(process) = &process {
        dir.write_process(process)?;
    }
    Ok(Launched { pid, process, record, log })
}

/// Where QEMU's own words about an instance are kept.
pub(super) fn qemu_log(config: &QemuConfig, instance: &str) -> PathBuf {
    config.log_dir.join(format!("{instance}.log"))
}

/// Where an instance's console output is kept.
pub(super) fn console_log(config: &QemuConfig, instance: &str) -> PathBuf {
    config.log_dir.join(format!("{instance}.console"))
}

/// A file's last bytes, at most `limit` of them and none before `from`. A file that isn't there is empty.
pub(super) fn tail(path: &Path, from: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(limit))))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes a directory of the driver's, if it isn't there.
pub(super) fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(Error::io(format!("create {}", path.display())))
}

/// Puts a log aside that has become long, in place of the one before.
fn rotate(path: &Path) -> Result<()> {
    if path.metadata().is_ok_and(|metadata| metadata.len() > LONG_LOG) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        std::fs::rename(path, &old).map_err(Error::io(format!("rename {}", path.display())))?;
    }
    Ok(())
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .map_err(Error::io(format!("write {}", path.display())))
}

/// Opens a disk's file, and says whether it is a block device.
fn open_disk(instance: &str, disk: &DiskSpec) -> Result<Option<(File, bool)>> {
    let DiskSource::File { path, direct, .. } = &disk.source else {
        return Ok(None);
    };
    let way = if *direct { " past the page cache (O_DIRECT)" } else { "" };
    let what = || format!("open {} of instance {instance}, {}{way}", disk.id, path.display());
    let file = OpenOptions::new()
        .read(true)
        .write(!disk.read_only)
        .custom_flags(if *direct { libc::O_DIRECT } else { 0 })
        .open(path)
        .map_err(Error::io(what()))?;
    let kind = file.metadata().map_err(Error::io(what()))?.file_type();
    Ok(Some((file, kind.is_block_device())))
}

/// Whom QEMU runs as: with KVM also in the group that may open the device.
fn identity(config: &QemuConfig, accelerator: AcceleratorKind) -> Result<Identity> {
    let groups = match accelerator {
        AcceleratorKind::Tcg => Vec::new(),
        AcceleratorKind::Kvm => {
            let device = std::fs::metadata("/dev/kvm").map_err(Error::io("look at /dev/kvm"))?;
            vec![device.gid()]
        }
    };
    Ok(Identity { uid: config.uid, gid: config.gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_put_aside_and_one_old_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("vm1.log"), dir.path().join("vm1.log.1"));
        rotate(&path).unwrap();
        std::fs::write(&path, "short").unwrap();
        rotate(&path).unwrap();
        assert!(path.exists() && !old.exists());
        for byte in [b'a', b'b'] {
            std::fs::write(&path, vec![byte; LONG_LOG as usize + 1]).unwrap();
            rotate(&path).unwrap();
            assert!(!path.exists());
            assert_eq!(std::fs::read(&old).unwrap()[0], byte);
        }
    }

    #[test]
    fn the_log_of_a_start_is_what_was_written_since() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm1.log");
        let lines: Vec<String> = (1..=20).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, lines.concat()).unwrap();
        let log = |from| StartLog { path: path.clone(), from }.last_lines();
        assert_eq!(log(0), lines[10..].concat().trim_end());
        assert_eq!(log(lines.concat().len() as u64), "");
        assert_eq!(tail(&path, 0, 8).unwrap(), b"line 20\n");
        assert_eq!(tail(&dir.path().join("none"), 0, 8).unwrap(), b"");
    }
}
