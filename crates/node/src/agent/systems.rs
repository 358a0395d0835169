//! Operating systems on this node: which there are, and installing one.

use std::path::Path;

use images::{DiskEnv, Environment, NicEnv};
use jobs::agent::{InstanceSpec, SystemInfo};
use model::{DiskTemplate, ParamValue, RunId};
use network::{Netlink, bridge};
use opcodes::{ErrorCode, Failure};

use super::{Agent, storage_failed};

/// What a guest sees of its disks and interfaces: virtio, in Ganeti's word.
const FRONTEND: &str = "paravirtual";

impl Agent {
    pub(super) async fn systems(&self) -> Result<Vec<SystemInfo>, Failure> {
        let found = images::discover(&self.config.os_search_path);
        let systems = found.into_iter().map(|system| SystemInfo {
            name: system.name,
            path: system.path.display().to_string(),
            valid: system.valid,
            diagnosis: system.diagnosis,
            variants: system.variants,
            api_versions: system.api_versions,
            parameters: system.parameters,
        });
        Ok(systems.collect())
    }

    /// Refuses what could not be created here, before anything is made.
    pub(super) async fn check_instance(&self, spec: &InstanceSpec, install: bool) -> Result<(), Failure> {
        self.hypervisor(&spec.hypervisor)?;
        if install {
            let system = images::find(&self.config.os_search_path, &spec.os).map_err(|error| {
                Failure::refused(
                    ErrorCode::WrongInput,
                    format!(
                        "OS '{}' not in supported OS list for node {}: {}",
                        spec.os,
                        self.config.host_name,
                        crate::chain(&error)
                    ),
                )
            })?;
            images::verify(&system, &environment_of(spec, Vec::new())).await.map_err(|error| {
                Failure::refused(
                    ErrorCode::WrongInput,
                    format!(
                        "OS Parameters validation failed on node {}: {}",
                        self.config.host_name,
                        crate::chain(&error)
                    ),
                )
            })?;
        }
        let environment = |text: String| Failure::refused(ErrorCode::EnvironmentError, text);
        let net = Netlink::open().map_err(|error| environment(crate::chain(&error)))?;
        for nic in &spec.nics {
            let link = nic.params.get("link").and_then(ParamValue::as_text).unwrap_or_default();
            if !bridge::exists(&net, link).await.unwrap_or(false) {
                return Err(environment(format!(
                    "Error checking bridges on destination node '{}': Missing bridges {link}",
                    self.config.host_name
                )));
            }
        }
        for name in ["kernel_path", "initrd_path"] {
            let path = spec.hvparams.get(name).and_then(ParamValue::as_text).unwrap_or_default();
            if !path.is_empty() && !Path::new(path).is_file() {
                return Err(environment(format!(
                    "Hypervisor parameter validation failed on node {}: {name} '{path}' is not a file there",
                    self.config.host_name
                )));
            }
        }
        Ok(())
    }

    /// Runs the operating system's `create` script on the instance's disks. Mirrored ones are shown to it in `run`, and stay
    /// so.
    pub(super) async fn install(&self, spec: &InstanceSpec, run: Option<RunId>) -> Result<(), Failure> {
        let failed = |error: &dyn std::error::Error| Failure::failed(crate::chain(error));
        let system = images::find(&self.config.os_search_path, &spec.os).map_err(|error| failed(&error))?;
        let mut disks = Vec::new();
        for disk in &spec.disks {
            disks.push(DiskEnv {
                path: self.show(disk, run).await?,
                size_mib: disk.disk.size_mib,
                uuid: disk.disk.id.to_string(),
                name: disk.disk.name.clone(),
                access: disk.disk.access,
                frontend: FRONTEND.into(),
                backend: disk.template.name().into(),
            });
        }
        let environment = environment_of(spec, disks);
        let os = spec.os.replace('/', "_");
        let started = crate::member::now().seconds();
        let log = self.config.log_dir.join(format!("os/add-{os}-{}-{started}.log", spec.name));
        let lock = self.config.run_dir.join(format!("os/{}.lock", spec.id));
        images::create(&system, &environment, &log, &lock).await.map_err(|error| failed(&error))?;
        for disk in spec.disks.iter().filter(|disk| disk.template != DiskTemplate::Drbd) {
            let (at, template) = self.disk(disk)?;
            template.deactivate(&at).await.map_err(storage_failed)?;
        }
        Ok(())
    }
}

/// What the scripts of an operating system are told.
fn environment_of(spec: &InstanceSpec, disks: Vec<DiskEnv>) -> Environment {
    let nics = spec.nics.iter().map(|nic| {
        let param = |name: &str| nic.params.get(name).map(ToString::to_string).unwrap_or_default();
        NicEnv {
            mac: nic.mac.clone(),
            ip: nic.ip.clone(),
            mode: param("mode"),
            link: param("link"),
            vlan: Some(param("vlan")).filter(|vlan| !vlan.is_empty()),
            frontend: FRONTEND.into(),
            uuid: nic.uuid.clone(),
            name: nic.name.clone(),
        }
    });
    Environment {
        instance: spec.name.clone(),
        hypervisor: spec.hypervisor.clone(),
        primary: spec.primary.clone(),
        secondaries: spec.secondaries.clone(),
        nics: nics.collect(),
        disks,
        osparams: spec.osparams.clone(),
        debug_level: 0,
        reinstall: false,
    }
}
