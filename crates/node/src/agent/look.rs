//! What this node has, runs, and lacks.

use std::path::Path;

use jobs::agent::{DiskRef, Facts, LiveInstance, Problem, VerifyRequest};
use model::DiskTemplate;
use network::{Netlink, bridge};
use opcodes::Failure;
use storage::Template as _;

use super::{Agent, hypervisor_failed, run_number};

impl Agent {
    pub(super) async fn facts(&self, folder: &Path) -> Result<Facts, Failure> {
        let kvm = self.hypervisor("kvm")?;
        let info = kvm.node_info().await.map_err(hypervisor_failed)?;
        let space = storage::space(folder).map_err(super::storage_failed)?;
        let mirrors = storage::space(&self.config.replicas()).map_err(super::storage_failed)?;
        let mut instances = Vec::new();
        for driver in self.hypervisors.values() {
            instances.extend(driver.list().await.into_iter().filter_map(|running| {
                Some(LiveInstance {
                    run: run_number(&running.run)?,
                    instance: running.instance,
                    memory_mib: running.memory_mib,
                    vcpus: running.vcpus,
                    state: running.state.to_string(),
                })
            }));
        }
        Ok(Facts {
            memory_total_mib: info.memory_total_mib,
            memory_free_mib: info.memory_free_mib,
            memory_node_mib: info.memory_used_by_node_mib,
            disk_total_mib: space.total_mib,
            disk_free_mib: space.free_mib,
            mirror_free_mib: mirrors.free_mib,
            cpus: info.cpus,
            boot: self.config.boot.clone(),
            time: crate::member::now().0,
            version: crate::VERSION.into(),
            accelerator: format!("{} ({})", info.accelerator.kind, info.accelerator.why),
            instances,
        })
    }

    /// What this node's log once had and the cluster's has not; see [`crate::recovery`].
    fn surplus_files(&self) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(&self.config.state_dir).into_iter().flatten().flatten();
        let beyond = |name: &str| name.starts_with("log.") && name.ends_with(".beyond");
        let found = entries.filter(|entry| entry.file_name().to_str().is_some_and(beyond));
        found.map(|entry| entry.path()).collect()
    }

    pub(super) async fn verify(&self, request: &VerifyRequest) -> Result<Vec<Problem>, Failure> {
        let mut problems = Vec::new();
        let mut node = |code: &str, text: String, warning: bool| {
            problems.push(Problem { code: code.into(), kind: "node".into(), name: String::new(), text, warning });
        };
        for name in &request.hypervisors {
            match self.hypervisor(name) {
                Ok(driver) => {
                    for text in driver.verify().await {
                        node("ENODEHV", format!("hypervisor {name} verify failure: '{text}'"), false);
                    }
                }
                Err(failure) => node("ENODEHV", failure.text, false),
            }
        }
        let net = Netlink::open().map_err(|error| Failure::failed(crate::chain(&error)))?;
        let mut missing = Vec::new();
        for name in &request.bridges {
            if !bridge::exists(&net, name).await.unwrap_or(false) {
                missing.push(name.as_str());
            }
        }
        if !missing.is_empty() {
            node("ENODENET", format!("missing bridges: {}", missing.join(", ")), false);
        }
        for (name, address) in &request.peers {
            let connect = tokio::net::TcpStream::connect((*address, self.config.node_port));
            let why = match tokio::time::timeout(std::time::Duration::from_secs(2), connect).await {
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer within 2 s".into(),
            };
            node("ENODENET", format!("tcp communication with node '{name}': {why}"), false);
        }
        for path in self.surplus_files() {
            let text = format!(
                "'{}' has entries of this node's log that the cluster went on without, by 'master-failover --no-voting'; read it, \
                 and remove it with the copy of the log beside it",
                path.display()
            );
            node("ENODEFILECHECK", text, true);
        }
        let (mirrored, disks): (Vec<&DiskRef>, Vec<&DiskRef>) =
            request.disks.iter().partition(|disk| disk.template == DiskTemplate::Drbd);
        if !request.file_storage_dir.is_empty() {
            let known = disks.iter().map(|disk| Ok(self.disk(disk)?.0)).collect::<Result<Vec<_>, Failure>>()?;
            let folder = Path::new(&request.file_storage_dir);
            let orphans = storage::File.orphans(folder, &known).await.map_err(super::storage_failed)?;
            for orphan in orphans {
                node("ENODEORPHANLV", format!("volume {} is unknown", orphan.display()), true);
            }
        }
        let mut lacking = Vec::new();
        for disk in disks {
            let (spec, template) = self.disk(disk)?;
            match template.check(&spec).await {
                Ok(storage::Health::Good) => {}
                Ok(health) => lacking.push((disk, health.to_string())),
                Err(error) => lacking.push((disk, crate::chain(&error))),
            }
        }
        if !mirrored.is_empty() {
            let replicas = self.replicas(&[]).await?;
            for disk in mirrored {
                match replicas.iter().find(|replica| replica.disk == disk.disk.id) {
                    None => lacking.push((disk, "its replica is missing".into())),
                    Some(replica) => lacking.extend(replica.failed.clone().map(|why| (disk, why))),
                }
            }
        }
        for (disk, text) in lacking {
            problems.push(Problem {
                code: "EINSTANCEMISSINGDISK".into(),
                kind: "instance".into(),
                name: disk.instance.clone(),
                text: format!("disk/{}: {text}", disk.index),
                warning: false,
            });
        }
        Ok(problems)
    }
}
