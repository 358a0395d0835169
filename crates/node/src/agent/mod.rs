//! Does on this node what the master asks.

mod arming;
mod copy;
mod disks;
mod ends;
mod guests;
mod look;
mod migration;
mod replicas;
mod systems;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hypervisor::{ConsoleStream, Fake, FakeConfig, Hypervisor, Qemu, QemuConfig};
use jobs::agent::{Call, DiskRef, Reply};
use mirror::keeper::{Keeper, KeeperError};
use model::RunId;
use opcodes::{ErrorCode, Failure};
use storage::DiskSpec;

use crate::address::AddressKeeper;
use crate::config::Config;
use crate::guard::GuardLink;
use crate::migration::Sends;
use arming::Arming;
use disks::Attached;
use guests::{Over, Turns};

/// What this node can do.
pub struct Agent {
    pub(crate) config: Arc<Config>,
    pub(crate) address: AddressKeeper,
    /// The connection to this node's guard, which has the lease.
    pub(crate) guard: Arc<GuardLink>,
    pub(crate) arming: Arc<Arming>,
    hypervisors: BTreeMap<&'static str, Arc<dyn Hypervisor>>,
    /// Mirrored disks, while this node is in a cluster.
    keeper: Mutex<Option<Arc<Keeper>>>,
    /// Guests whose memory is being sent to other nodes.
    pub(crate) sends: Sends,
    /// Disks that are shown as files.
    attached: tokio::sync::Mutex<Attached>,
    /// Runs that are not to be made any more.
    over: Over,
    /// Runs that are being made.
    making: Turns,
    /// Runs in which disks are copied.
    copying: Turns,
}

impl Agent {
    /// Gets to work: guests that an earlier daemon started are taken over.
    pub async fn start(config: Arc<Config>) -> Result<Arc<Self>, Failure> {
        // First of all: taking guests over may last, and the guard waits for a sign of life.
        let guard = GuardLink::start(&config.run_dir, ha::Times::default());
        let arming = Arc::new(Arming::new(&config.state_dir));
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
        Ok(Arc::new(Self {
            config,
            address: AddressKeeper::default(),
            guard,
            arming,
            hypervisors,
            keeper: Mutex::default(),
            sends: Sends::default(),
            attached: Default::default(),
            over: Over::default(),
            making: Turns::default(),
            copying: Turns::default(),
        }))
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
            Call::CreateDisk(disk) => self.create_disk(&disk).await.map(|()| Reply::Done),
            Call::RemoveDisk(disk) => self.remove_disk(&disk).await.map(|()| Reply::Done),
            Call::InstallSystem { spec, run } => self.install(&spec, run).await.map(|()| Reply::Done),
            Call::Start { spec, run, paused } => self.start_guest(&spec, run, paused).await.map(|()| Reply::Done),
            Call::Stop { hypervisor, instance, id, run, timeout, disks, release } => {
                self.over.note(id, run);
                let how = self.stop_guest(&hypervisor, &instance, run, timeout).await?;
                // They are the instance's, not the run's; a later run may be here by now.
                let later = self.hypervisor(&hypervisor)?.list().await.iter().any(|other| other.instance == instance);
                if !later {
                    self.remove_taps(&id.to_string()).await?;
                }
                self.records().forget(run);
                self.end_run(&disks, run, release).await?;
                Ok(Reply::Stopped(how))
            }
            Call::Reset { hypervisor, run, .. } => {
                self.hypervisor(&hypervisor)?.reset(&run_name(run)).await.map_err(hypervisor_failed)?;
                Ok(Reply::Done)
            }
            Call::AddressDown { address, netmask, netdev } => {
                self.address.down(address, netmask, &netdev).await.map(|()| Reply::Done)
            }
            Call::Delay { millis } => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                Ok(Reply::Done)
            }
            Call::GrowDisk { disk, size_mib } => self.grow_disk(&disk, size_mib).await.map(|()| Reply::Done),
            Call::AttachDisks { disks, run } => self.attach(&disks, run).await.map(Reply::Paths),
            Call::DetachDisks { disks, run, force } => self.detach(&disks, run, force).await.map(|()| Reply::Done),
            Call::CopyDisk { from, to, run } => self.copy_disk(&from, &to, run).await.map(|()| Reply::Done),
            Call::Replicas { disks } => self.replicas(&disks).await.map(Reply::Replicas),
            Call::DigestDisk(disk) => self.digest_disk(&disk).await.map(Reply::Digests),
            Call::Quiesce { migration, disks } => self.quiesce(migration, &disks).await.map(|()| Reply::Done),
            Call::LookAtRun { hypervisor, run } => self.look_at_run(&hypervisor, run).await.map(Reply::Run),
            Call::Receive { spec, run, migration, machine } => {
                self.receive(&spec, run, migration, machine).await.map(|()| Reply::Done)
            }
            Call::LookAtSending { hypervisor, run, migration, wait_ms } => {
                self.look_at_sending(&hypervisor, run, migration, wait_ms).await.map(Reply::Sending)
            }
            Call::TakeFrames { id, macs } => self.take_frames(id, &macs).await.map(|()| Reply::Done),
            Call::Continue { hypervisor, run, disks, paused, .. } => {
                self.go_on(&hypervisor, run, &disks, paused).await.map(|()| Reply::Done)
            }
            Call::Stay { hypervisor, run, migration, disks, .. } => {
                self.stay(&hypervisor, run, migration, &disks).await.map(|()| Reply::Done)
            }
            Call::Arm => self.arm().await.map(|()| Reply::Done),
            Call::Disarm => self.disarm().await.map(|()| Reply::Done),
            // With the connections and the state of the member.
            Call::Send { .. } | Call::CaughtUp { .. } | Call::Leave => {
                Err(Failure::failed("this is not for the agent"))
            }
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

    /// Gives it the mirrored disks of the cluster that the node has entered, or takes them. Who uses files that show such
    /// disks is cut off.
    pub async fn set_keeper(&self, keeper: Option<Arc<Keeper>>) {
        self.attached.lock().await.clear();
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = keeper;
    }

    fn keeper(&self) -> Result<Arc<Keeper>, Failure> {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).clone();
        keeper.ok_or_else(|| Failure::failed("this node has no mirrored disks now: it is in no cluster"))
    }

    pub(crate) fn hypervisor(&self, name: &str) -> Result<&Arc<dyn Hypervisor>, Failure> {
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
pub(crate) fn run_name(run: RunId) -> String {
    format!("run-{run}")
}

fn run_number(name: &str) -> Option<RunId> {
    name.strip_prefix("run-")?.parse().ok().map(RunId)
}

fn hypervisor_failed(error: hypervisor::Error) -> Failure {
    Failure::failed(crate::chain(&error))
}

fn mirror_failed(error: KeeperError) -> Failure {
    Failure::failed(crate::chain(&error))
}

fn storage_failed(error: storage::Error) -> Failure {
    Failure::failed(crate::chain(&error))
}
