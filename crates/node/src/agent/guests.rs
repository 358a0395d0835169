//! Starting and stopping guests on this node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypervisor::{Boot, LiveState, MachineSpec, NicSpec, RebootBehavior, Shutdown};
use jobs::agent::{InstanceSpec, NicRef, Stopped};
use model::{DiskAccess, InstanceId, ParamValue, Params, RunId};
use network::{Netlink, tap};
use opcodes::Failure;
use tokio::sync::OwnedMutexGuard;

use super::disks::Exporting;
use super::{Agent, hypervisor_failed, run_name};

/// The last run of each instance that was ordered to end here. Runs are numbered upward: neither that one nor one before it is
/// ever made again, whatever order comes late or is still being carried out.
#[derive(Default)]
pub(super) struct Over(Mutex<BTreeMap<InstanceId, RunId>>);

impl Over {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, RunId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, id: InstanceId, run: RunId) {
        let mut over = self.lock();
        let last = over.entry(id).or_insert(run);
        *last = run.max(*last);
    }

    /// Refuses a run that is over.
    pub(super) fn check(&self, spec: &InstanceSpec, run: RunId) -> Result<(), Failure> {
        match self.lock().get(&spec.id) {
            Some(last) if run <= *last => {
                Err(Failure::failed(format!("run {run} of instance '{}' was ordered to end already", spec.name)))
            }
            _ => Ok(()),
        }
    }
}

/// Who does something for a run, one after the other: a call goes on when its connection breaks, and is made again meanwhile.
#[derive(Default)]
pub(super) struct Turns(Mutex<BTreeMap<RunId, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for those who came before.
    pub(super) async fn take(&self, run: RunId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(run).or_default())
        };
        turn.lock_owned().await
    }
}

impl Agent {
    /// Starts a run. A second call for the same run finds it started.
    pub(super) async fn start_guest(&self, spec: &InstanceSpec, run: RunId, paused: bool) -> Result<(), Failure> {
        let driver = Arc::clone(self.hypervisor(&spec.hypervisor)?);
        let name = run_name(run);
        let _turn = self.making.take(run).await;
        let there = driver.list().await.into_iter().find(|running| running.run == name);
        if there.as_ref().is_some_and(|it| matches!(it.state, LiveState::Migrating | LiveState::PostMigrate)) {
            // An order that comes late: it was started, and whether it goes on here is its migration's to decide.
            return Ok(());
        }
        let process = match there {
            Some(there) => there.process,
            None => {
                self.over.check(spec, run)?;
                let machine = self.machine(spec, run, Exporting::Serving).await?;
                driver.start(&machine).await.map_err(hypervisor_failed)?.process
            }
        };
        self.unless_over(spec, run).await?;
        self.before_it_runs(run, process).await?;
        if !paused {
            driver.resume(&name).await.map_err(hypervisor_failed)?;
        }
        Ok(())
    }

    /// Ends what was just made of a run that was ordered to end while it was being made. It has not run yet.
    pub(super) async fn unless_over(&self, spec: &InstanceSpec, run: RunId) -> Result<(), Failure> {
        let Err(over) = self.over.check(spec, run) else { return Ok(()) };
        self.hypervisor(&spec.hypervisor)?.destroy(&run_name(run)).await.map_err(hypervisor_failed)?;
        Err(over)
    }

    /// Ends a run, by the guest's own means if it obeys in time. Done when the process is gone.
    pub(super) async fn stop_guest(
        &self,
        hypervisor: &str,
        instance: &str,
        run: RunId,
        timeout: u32,
    ) -> Result<Stopped, Failure> {
        let driver = self.hypervisor(hypervisor)?;
        let name = run_name(run);
        let running = driver.list().await.into_iter().find(|running| running.run == name);
        if running.is_none() {
            // It may be about to be there.
            driver.destroy(&name).await.map_err(hypervisor_failed)?;
            return Ok(Stopped::NotRunning);
        }
        if timeout > 0 {
            match driver.shutdown(&name, Duration::from_secs(u64::from(timeout))).await {
                Ok(Shutdown::Clean) => return Ok(Stopped::Clean),
                Ok(Shutdown::TimedOut) => tracing::info!(instance, timeout, "did not shut down in time"),
                Err(hypervisor::Error::NoSuchRun { .. }) => return Ok(Stopped::Clean),
                Err(error) => tracing::warn!(instance, error = crate::chain(&error), "could not be asked to shut down"),
            }
        }
        driver.destroy(&name).await.map_err(hypervisor_failed)?;
        Ok(Stopped::Forced)
    }

    /// Removes the interfaces that were made for an instance.
    pub(super) async fn remove_taps(&self, instance: &str) -> Result<(), Failure> {
        let failed = |error: network::Error| Failure::failed(crate::chain(&error));
        let net = Netlink::open().map_err(failed)?;
        for found in tap::list(&net).await.map_err(failed)? {
            if found.instance.as_deref() == Some(instance) {
                tap::delete(&net, &found.name).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The machine of a run, with everything that it needs on this node: disks are exported, interfaces made.
    pub(super) async fn machine(
        &self,
        spec: &InstanceSpec,
        run: RunId,
        how: Exporting,
    ) -> Result<MachineSpec, Failure> {
        let memory = number(&spec.beparams, "maxmem");
        let vcpus = u32::try_from(number(&spec.beparams, "vcpus")).unwrap_or(1);
        let hv = &spec.hvparams;
        // The fake hypervisor needs no network.
        let nics: &[NicRef] = if spec.hypervisor == "fake" { &[] } else { &spec.nics };
        let mut machine = MachineSpec::new(&spec.name, run_name(run), memory, vcpus, boot(spec, nics.len()));
        machine.uuid = Some(spec.id.to_string());
        machine.cpu_type = text(hv, "cpu_type");
        machine.machine = text(hv, "machine_version");
        machine.acpi = flag(hv, "acpi", true);
        machine.serial = flag(hv, "serial_console", true);
        machine.reboot = match text(hv, "reboot_behavior").as_deref() {
            Some("exit") => RebootBehavior::Exit,
            _ => RebootBehavior::Reboot,
        };
        let sources = spec.disks.iter().map(|disk| self.source(disk, run, how));
        let sources = futures::future::try_join_all(sources).await?;
        machine.disks.extend(spec.disks.iter().zip(sources).map(|(disk, source)| hypervisor::DiskSpec {
            id: format!("disk{}", disk.index),
            source,
            read_only: disk.disk.access == DiskAccess::Ro,
        }));
        if !nics.is_empty() {
            let failed = |error: network::Error| Failure::failed(crate::chain(&error));
            let net = Netlink::open().map_err(failed)?;
            let id = spec.id.to_string();
            for (index, nic) in (0u8..).zip(nics) {
                let link = text(&nic.params, "link").unwrap_or_default();
                let name = tap::name(&id, index);
                let device = tap::create(&net, &name, &link, &id).await.map_err(failed)?;
                machine.nics.push(NicSpec {
                    id: format!("nic{index}"),
                    mac: nic.mac.clone(),
                    tap: Arc::new(device),
                    model: hypervisor::NicModel::default(),
                });
            }
        }
        Ok(machine)
    }
}

fn boot(spec: &InstanceSpec, nics: usize) -> Boot {
    let hv = &spec.hvparams;
    match text(hv, "kernel_path") {
        Some(kernel) => {
            let mut args = vec![format!("root={}", text(hv, "root_path").unwrap_or_default())];
            if flag(hv, "serial_console", true) {
                args.push("console=ttyS0".into());
            }
            args.extend(text(hv, "kernel_args"));
            Boot::Kernel {
                kernel: PathBuf::from(kernel),
                initrd: text(hv, "initrd_path").map(PathBuf::from),
                args: args.join(" "),
            }
        }
        None => {
            let disks = (0..spec.disks.len()).map(|index| format!("disk{index}"));
            let nics = (0..nics).map(|index| format!("nic{index}"));
            let order = match text(hv, "boot_order").as_deref() {
                Some("network") => nics.chain(disks).collect(),
                _ => disks.chain(nics).collect(),
            };
            Boot::Disk { order }
        }
    }
}

/// A parameter's text; `None` if it is empty or not set.
fn text(params: &Params, name: &str) -> Option<String> {
    params.get(name).and_then(ParamValue::as_text).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn flag(params: &Params, name: &str, default: bool) -> bool {
    params.get(name).and_then(ParamValue::as_bool).unwrap_or(default)
}

fn number(params: &Params, name: &str) -> u64 {
    params.get(name).and_then(ParamValue::as_int).and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm1() -> InstanceSpec {
        InstanceSpec {
            id: InstanceId(uuid::Uuid::nil()),
            name: "vm1".into(),
            primary: "node01".into(),
            secondaries: Vec::new(),
            hypervisor: "fake".into(),
            os: "none".into(),
            hvparams: Params::new(),
            beparams: Params::new(),
            osparams: Params::new(),
            disks: Vec::new(),
            nics: Vec::new(),
        }
    }

    #[test]
    fn what_was_ordered_to_end_is_not_made_by_an_order_that_comes_late() {
        let (spec, over) = (vm1(), Over::default());
        over.check(&spec, RunId(1)).unwrap();
        over.note(spec.id, RunId(5));
        over.note(spec.id, RunId(3));
        assert!(over.check(&spec, RunId(3)).is_err());
        assert!(over.check(&spec, RunId(5)).is_err());
        over.check(&spec, RunId(6)).unwrap();
        over.check(&InstanceSpec { id: InstanceId(uuid::Uuid::from_u128(2)), ..spec }, RunId(1)).unwrap();
    }

    #[tokio::test]
    async fn a_call_that_is_made_again_waits_for_the_one_before() {
        let turns = Turns::default();
        let first = turns.take(RunId(1)).await;
        let second = turns.take(RunId(1));
        let mut second = std::pin::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        drop(turns.take(RunId(2)).await);
        drop(first);
        drop(second.await);
        drop(turns.take(RunId(1)).await);
        assert_eq!(turns.0.lock().unwrap().len(), 1, "what is done is forgotten");
    }

    #[test]
    fn a_guest_boots_from_what_it_has() {
        let spec = vm1();
        let order = |nics| match boot(&spec, nics) {
            Boot::Disk { order } => order,
            other => panic!("{other:?}"),
        };
        assert_eq!(order(0), Vec::<String>::new());
        assert_eq!(order(2), ["nic0", "nic1"]);
    }
}
