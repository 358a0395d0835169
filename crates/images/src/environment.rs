//! What a script is told about its instance: environment variables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::{DiskAccess, Params};

use crate::definition::System;
use crate::error::{Error, Result};

/// Where scripts find programs; the daemon's own may have anything in it.
const PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";

/// What a script is told about its instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Environment {
    /// The instance's name.
    pub instance: String,
    /// Its hypervisor, `kvm`.
    pub hypervisor: String,
    /// Name of its primary node.
    pub primary: String,
    /// Names of the nodes that hold further replicas of its disks.
    pub secondaries: Vec<String>,
    /// Its disks, in order; they have to be active.
    pub disks: Vec<DiskEnv>,
    /// Its network interfaces, in order.
    pub nics: Vec<NicEnv>,
    /// The operating system's parameters that hold.
    pub osparams: Params,
    /// How much the script shall say; 0: the usual.
    pub debug_level: u32,
    /// The instance was there already, and gets its operating system anew.
    pub reinstall: bool,
}

/// A disk, as a script sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskEnv {
    /// A file or block device with its raw content.
    pub path: PathBuf,
    /// Size, MiB.
    pub size_mib: u64,
    /// Its identity.
    pub uuid: String,
    /// A name given by the administrator.
    pub name: Option<String>,
    /// Whether the guest may write; the script may in any case.
    pub access: DiskAccess,
    /// What the guest sees: `paravirtual`, `ide` … (hypervisor parameter `disk_type`).
    pub frontend: String,
    /// What `path` is: `file` or `block`.
    pub backend: String,
}

/// A network interface, as a script sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct NicEnv {
    /// Hardware address.
    pub mac: String,
    /// Address that the guest shall use.
    pub ip: Option<String>,
    /// `bridged`, `routed`, `openvswitch`.
    pub mode: String,
    /// What it is connected to: the bridge, or the routing table.
    pub link: String,
    /// Its VLAN, if it has one.
    pub vlan: Option<String>,
    /// Its identity.
    pub uuid: String,
    /// A name given by the administrator.
    pub name: Option<String>,
    /// What the guest sees: `paravirtual`, `e1000` … (hypervisor parameter `nic_type`).
    pub frontend: String,
}

impl Environment {
    /// The variables for the scripts of `system`; a script gets these and no others.
    ///
    /// # Errors
    /// [`Error::UnknownParameters`] if `osparams` has some that the system doesn't.
    pub fn variables(&self, system: &System) -> Result<BTreeMap<String, String>> {
        self.check_parameters(system)?;
        let mut all = BTreeMap::new();
        let mut set = |name: String, value: String| {
            all.insert(name, value);
        };
        for (name, value) in [
            ("PATH", PATH.to_owned()),
            ("OS_API_VERSION", system.api_version.to_string()),
            ("OS_NAME", system.name.clone()),
            ("OS_VARIANT", system.variant.clone()),
            ("DEBUG_LEVEL", self.debug_level.to_string()),
            ("INSTANCE_NAME", self.instance.clone()),
            ("INSTANCE_OS", system.full_name()),
            ("INSTANCE_PRIMARY_NODE", self.primary.clone()),
            ("INSTANCE_SECONDARY_NODES", self.secondaries.join(" ")),
            ("HYPERVISOR", self.hypervisor.clone()),
            ("DISK_COUNT", self.disks.len().to_string()),
            ("NIC_COUNT", self.nics.len().to_string()),
        ] {
            set(name.to_owned(), value);
        }
        if self.reinstall {
            set("INSTANCE_REINSTALL".to_owned(), "1".to_owned());
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let mut set = |name: &str, value: String| set(format!("DISK_{index}_{name}"), value);
            set("PATH", disk.path.display().to_string());
            set("SIZE", disk.size_mib.to_string());
            set("UUID", disk.uuid.clone());
            set("ACCESS", if disk.access == DiskAccess::Rw { "rw" } else { "ro" }.to_owned());
            set("FRONTEND_TYPE", disk.frontend.clone());
            set("BACKEND_TYPE", disk.backend.clone());
            if let Some(name) = &disk.name {
                set("NAME", name.clone());
            }
        }
        for (index, nic) in self.nics.iter().enumerate() {
            let mut set = |name: &str, value: String| set(format!("NIC_{index}_{name}"), value);
            set("MAC", nic.mac.clone());
            set("MODE", nic.mode.clone());
            set("LINK", nic.link.clone());
            set("UUID", nic.uuid.clone());
            set("FRONTEND_TYPE", nic.frontend.clone());
            if nic.mode == "bridged" {
                set("BRIDGE", nic.link.clone());
            }
            for (name, value) in [("IP", &nic.ip), ("VLAN", &nic.vlan), ("NAME", &nic.name)] {
                if let Some(value) = value {
                    set(name, value.clone());
                }
            }
        }
        for (name, value) in &self.osparams {
            set(format!("OSP_{}", name.to_uppercase().replace('-', "_")), value.to_string());
        }
        Ok(all)
    }

    /// A misspelt parameter would be a setting that is silently not made.
    fn check_parameters(&self, system: &System) -> Result<()> {
        let known = || system.parameters.iter().map(|(name, _)| name);
        let unknown: Vec<_> =
            self.osparams.keys().filter(|name| !known().any(|known| known == *name)).cloned().collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Error::UnknownParameters { name: system.name.clone(), unknown, known: known().cloned().collect() })
    }
}
