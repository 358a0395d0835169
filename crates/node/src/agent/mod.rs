//! Does on this node what the master asks.

mod guests;
mod look;
mod systems;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::{ConsoleStream, Fake, FakeConfig, Hypervisor, Qemu, QemuConfig};
use jobs::agent::{Call, DiskRef, Reply};
use model::RunId;
use opcodes::{ErrorCode, Failure};
use storage::DiskSpec;

use crate::address::AddressKeeper;
use crate::config::Config;

/// What this node can do.
pub struct Agent {
    pub(crate) config: Arc<Config>,
    pub(crate) address: AddressKeeper,
    hypervisors: BTreeMap<&'static str, Arc<dyn Hypervisor>>,
}

impl Agent {
    /// Gets to work: guests that an earlier daemon started are taken over.
    pub async fn start(config: Arc<Config>) -> Result<Arc<Self>, Failure> {
        let (uid, gid) = config.qemu_user;
        let qemu = Qemu::new(QemuConfig {
            binary: config.qemu.clone(),
            uid,
            gid,
            run_dir: config.run_dir.join("kvm"),
            log_dir: config.log_dir.join("instances"),
        });
        let facts = qemu.node_info().await.map_err(hypervisor_failed)?;
        tracing::info!(accelerator = %facts.accelerator.kind, why = facts.accelerator.why, "what runs guests here");
        let fake = Fake::new(FakeConfig {
            run_dir: config.run_dir.join("fake"),
            memory_mib: facts.memory_total_mib,
            memory_used_by_node_mib: facts.memory_used_by_node_mib,
            cpus: facts.cpus,
        });
        let drivers: [Arc<dyn Hypervisor>; 2] = [Arc::new(qemu), Arc::new(fake)];
        let hypervisors: BTreeMap<_, _> = drivers.into_iter().map(|driver| (driver.name(), driver)).collect();
        for (name, driver) in &hypervisors {
            let adopted = driver.adopt().await.map_err(hypervisor_failed)?;
            for running in &adopted.running {
                tracing::info!(hypervisor = name, instance = running.instance, run = running.run, "taken over");
            }
            for gone in &adopted.gone {
                tracing::info!(hypervisor = name, instance = gone.instance, run = gone.run, "has ended meanwhile");
            }
        }
        Ok(Arc::new(Self { config, address: AddressKeeper::default(), hypervisors }))
    }

    /// Does what the master asks. What has to do with the log is the member's.
    pub async fn carry_out(&self, call: Call) -> Result<Reply, Failure> {
        match call {
            Call::Ping => Ok(Reply::Done),
            Call::Facts { file_storage_dir } => {
                self.facts(Path::new(&file_storage_dir)).await.map(|facts| Reply::Facts(Box::new(facts)))
            }
            Call::Verify(request) => self.verify(&request).await.map(Reply::Problems),
            Call::Systems => self.systems().await.map(Reply::Systems),
            Call::CheckInstance { spec, install } => self.check_instance(&spec, install).await.map(|()| Reply::Done),
            Call::CreateDisk(disk) => {
                let (spec, template) = self.disk(&disk)?;
                template.create(&spec).await.map_err(storage_failed)?;
                Ok(Reply::Done)
            }
            Call::RemoveDisk(disk) => {
                let (spec, template) = self.disk(&disk)?;
                template.remove(&spec).await.map_err(storage_failed)?;
                Ok(Reply::Done)
            }
            Call::InstallSystem(spec) => self.install(&spec).await.map(|()| Reply::Done),
            Call::Start { spec, run, paused } => self.start_guest(&spec, run, paused).await.map(|()| Reply::Done),
            Call::Stop { hypervisor, instance, id, run, timeout } => {
                let how = self.stop_guest(&hypervisor, &instance, run, timeout).await?;
                self.remove_taps(&id.to_string()).await?;
                Ok(Reply::Stopped(how))
            }
            Call::Reset { hypervisor, run, .. } => {
                self.hypervisor(&hypervisor)?.reset(&run_name(run)).await.map_err(hypervisor_failed)?;
                Ok(Reply::Done)
            }
            Call::AddressUp { address, netmask, netdev } => {
                self.address.up(address, netmask, &netdev).await.map(|()| Reply::Done)
            }
            Call::AddressDown { address, netmask, netdev } => {
                self.address.down(address, netmask, &netdev).await.map(|()| Reply::Done)
            }
            Call::Delay { millis } => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                Ok(Reply::Done)
            }
            Call::CaughtUp { .. } | Call::Leave => Err(Failure::failed("this is not for the agent")),
        }
    }

    /// Opens a guest's console.
    pub async fn console(&self, hypervisor: &str, instance: &str, run: RunId) -> Result<ConsoleStream, Failure> {
        self.hypervisor(hypervisor)?.console(&run_name(run)).await.map_err(|error| match error {
            hypervisor::Error::NoSuchRun { .. } => Failure::refused(
                ErrorCode::WrongState,
                format!("Instance {instance} is not running, can't get console"),
            ),
            error => hypervisor_failed(error),
        })
    }

    /// The runs that this node's hypervisors have.
    pub async fn runs(&self) -> Vec<RunId> {
        let mut runs = Vec::new();
        for driver in self.hypervisors.values() {
            runs.extend(driver.list().await.iter().filter_map(|running| run_number(&running.run)));
        }
        runs
    }

    fn hypervisor(&self, name: &str) -> Result<&Arc<dyn Hypervisor>, Failure> {
        self.hypervisors
            .get(name)
            .ok_or_else(|| Failure::failed(format!("hypervisor '{name}' is not known to this node's version")))
    }

    fn disk(&self, disk: &DiskRef) -> Result<(DiskSpec, &'static dyn storage::Template), Failure> {
        let spec = DiskSpec {
            instance: disk.instance.clone(),
            index: disk.index,
            id: disk.disk.id,
            size_mib: disk.disk.size_mib,
            folder: disk.file_storage_dir.clone().into(),
        };
        let template = storage::template(disk.template).ok_or_else(|| {
            Failure::failed(format!("{spec} can't be made: template '{}' is not available", disk.template))
        })?;
        Ok((spec, template))
    }
}

/// A run's name for a hypervisor.
fn run_name(run: RunId) -> String {
    format!("run-{run}")
}

fn run_number(name: &str) -> Option<RunId> {
    name.strip_prefix("run-")?.parse().ok().map(RunId)
}

fn hypervisor_failed(error: hypervisor::Error) -> Failure {
    Failure::failed(crate::chain(&error))
}

fn storage_failed(error: storage::Error) -> Failure {
    Failure::failed(crate::chain(&error))
}
