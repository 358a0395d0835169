//! The description of a machine: what the caller decides, independent of how a hypervisor is told.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};

/// The most disks that a machine has, as in Ganeti.
pub const MAX_DISKS: usize = 16;
/// The most network interfaces that a machine has, as in Ganeti.
pub const MAX_NICS: usize = 8;

/// A machine to be started.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// The instance's name.
    pub instance: String,
    /// The id of this run: unique over all runs of all instances. Letters, digits, `-`, `_` and `.`.
    pub run: String,
    /// The instance's UUID, which the guest sees in its firmware; it stays over all runs.
    pub uuid: Option<String>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Where the guest's system comes from.
    pub boot: Boot,
    /// Disks, in the order of their slots.
    pub disks: Vec<DiskSpec>,
    /// Network interfaces, in the order of their slots.
    pub nics: Vec<NicSpec>,
    /// The CPU model; `None` is the best that the accelerator offers.
    pub cpu_type: Option<String>,
    /// The versioned machine type; `None` is the newest `pc` of the installed QEMU. See [`Running`](crate::Running).
    pub machine: Option<String>,
    /// ACPI tables and power button. Without, the guest can't be asked to shut down.
    pub acpi: bool,
    /// A serial console.
    pub serial: bool,
    /// What a reboot of the guest does.
    pub reboot: RebootBehavior,
    /// Further arguments for QEMU, as they are (Ganeti's `kvm_extra`).
    pub extra_args: Vec<String>,
}

/// Where the guest's system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// A kernel from the node's file system, readable for the user that QEMU runs as.
    Kernel {
        /// The kernel image.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        args: String,
    },
    /// The firmware tries these devices, by the ids of disks and network interfaces, in this order.
    Disk {
        /// Device ids, first choice first.
        order: Vec<String>,
    },
}

/// A disk: virtio-blk, format raw.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    /// Its id in the machine and in events: a letter, then letters, digits, `-`, `_` and `.`.
    pub id: String,
    /// Where its content is.
    pub source: DiskSource,
    /// The guest can't write to it.
    pub read_only: bool,
}

/// Where a disk's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A file or block device, opened by the daemon: QEMU itself needs no right to it.
    File {
        /// Its path.
        path: PathBuf,
        /// Past the node's page cache (`O_DIRECT`). Off only where a file system can't.
        direct: bool,
        /// How requests are submitted.
        aio: Aio,
    },
    /// An NBD server on a unix socket that the user that QEMU runs as may connect to.
    Nbd {
        /// The server's socket.
        socket: PathBuf,
        /// The export's name.
        export: String,
        /// How long a lost server is waited for before requests fail, in seconds; the guest's requests hang meanwhile.
        reconnect_delay_s: u32,
    },
}

/// How requests to a file are submitted (Ganeti's `disk_aio`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aio {
    /// A pool of threads.
    #[default]
    Threads,
    /// Linux AIO; needs `direct`.
    Native,
    /// io_uring.
    IoUring,
}

/// A network interface.
#[derive(Debug, Clone)]
pub struct NicSpec {
    /// Its id in the machine; the same alphabet as a disk's.
    pub id: String,
    /// Its hardware address, `aa:00:00:fa:3a:3f`.
    pub mac: String,
    /// The tap's descriptor. QEMU gets a copy; drop all others after the start, for a tap that isn't persistent
    /// vanishes with its last descriptor.
    pub tap: Arc<OwnedFd>,
    /// What the guest sees.
    pub model: NicModel,
}

/// The network card that a guest sees (Ganeti's `nic_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NicModel {
    /// virtio: `paravirtual`.
    #[default]
    Virtio,
    /// Intel 82540EM.
    E1000,
    /// Realtek 8139.
    Rtl8139,
}

/// What a reboot of the guest does (Ganeti's `reboot_behavior`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RebootBehavior {
    /// The machine is reset and boots again.
    #[default]
    Reboot,
    /// The run ends.
    Exit,
}

impl MachineSpec {
    /// A machine that boots as said, without disks and network, with ACPI and a serial console.
    pub fn new(
        instance: impl Into<String>,
        run: impl Into<String>,
        memory_mib: u64,
        vcpus: u32,
        boot: Boot,
    ) -> MachineSpec {
        MachineSpec {
            instance: instance.into(),
            run: run.into(),
            uuid: None,
            memory_mib,
            vcpus,
            boot,
            disks: Vec::new(),
            nics: Vec::new(),
            cpu_type: None,
            machine: None,
            acpi: true,
            serial: true,
            reboot: RebootBehavior::default(),
            extra_args: Vec::new(),
        }
    }

    /// Refuses what no hypervisor could run, or what would mean something else in a path or in an option.
    pub(crate) fn check(&self) -> Result<()> {
        self.problem().map_or(Ok(()), |problem| Err(Error::BadSpec { instance: self.instance.clone(), problem }))
    }

    /// Refuses what can't be the destination of a migration, whoever runs it.
    pub(crate) fn check_incoming(&self) -> Result<()> {
        if self.machine.is_none() {
            let problem = "the destination of a migration must be told the source's machine type".into();
            return Err(Error::BadSpec { instance: self.instance.clone(), problem });
        }
        self.check()
    }

    fn problem(&self) -> Option<String> {
        if !is_name(&self.instance) {
            return Some(format!("{:?} is not a name", self.instance));
        }
        if !is_name(&self.run) {
            return Some(format!("{:?} is not a run id", self.run));
        }
        if self.memory_mib == 0 {
            return Some("it has no memory".into());
        }
        if self.vcpus == 0 {
            return Some("it has no CPU".into());
        }
        if self.disks.len() > MAX_DISKS {
            return Some(format!("it has more than {MAX_DISKS} disks"));
        }
        if self.nics.len() > MAX_NICS {
            return Some(format!("it has more than {MAX_NICS} network interfaces"));
        }
        let disks = self.disks.iter().map(|disk| &disk.id);
        let nics = self.nics.iter().map(|nic| &nic.id);
        let mut ids = BTreeSet::new();
        for id in disks.chain(nics) {
            if !is_name(id) || !id.starts_with(|c: char| c.is_ascii_alphabetic()) {
                return Some(format!("{id:?} is not a device id"));
            }
            if !ids.insert(id) {
                return Some(format!("two devices have the id {id}"));
            }
        }
        if let Some(nic) = self.nics.iter().find(|nic| !is_mac(&nic.mac)) {
            return Some(format!("{:?} is not a hardware address", nic.mac));
        }
        for word in [&self.uuid, &self.cpu_type, &self.machine].into_iter().flatten() {
            // Features follow a CPU model after commas, so commas are part of this alphabet.
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.,+=".contains(c);
            if word.is_empty() || !word.chars().all(known) {
                return Some(format!("{word:?} is not a UUID, CPU or machine type"));
            }
        }
        if let Boot::Disk { order } = &self.boot
            && let Some(id) = order.iter().find(|id| !ids.contains(id))
        {
            return Some(format!("it is to boot from {id}, which it doesn't have"));
        }
        None
    }
}

/// Whether it can be a directory's name and an option's value with no second meaning.
pub(crate) fn is_name(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.len() <= 255 && !name.starts_with(['.', '-']) && name.chars().all(known)
}

fn is_mac(mac: &str) -> bool {
    let octets: Vec<&str> = mac.split(':').collect();
    octets.len() == 6 && octets.iter().all(|octet| octet.len() == 2 && octet.chars().all(|c| c.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_directory_or_option_are_refused() {
        for bad in ["", ".", "..", "a/b", "../a", "a,b", "a b", "-x", "a\n"] {
            assert!(!is_name(bad), "{bad:?}");
        }
        for good in ["vm1", "vm1.example.com", "3f2a-9c_1"] {
            assert!(is_name(good), "{good:?}");
        }
    }

    #[test]
    fn a_machine_must_make_sense() {
        let good = MachineSpec::new("vm1", "r1", 128, 1, Boot::Disk { order: vec![] });
        assert!(good.check().is_ok());
        let boots_from_nothing = Boot::Disk { order: vec!["disk0".into()] };
        for (bad, says) in [
            (MachineSpec { memory_mib: 0, ..good.clone() }, "no memory"),
            (MachineSpec { vcpus: 0, ..good.clone() }, "no CPU"),
            (MachineSpec { run: "a/b".into(), ..good.clone() }, "not a run id"),
            (MachineSpec { boot: boots_from_nothing, ..good.clone() }, "to boot from disk0"),
            (MachineSpec { machine: Some("pc,x=\"".into()), ..good.clone() }, "machine type"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(says) && message.contains("vm1"), "{message}");
        }
    }
}
