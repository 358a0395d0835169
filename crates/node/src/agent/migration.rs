//! Live migration on this node: the source's and the destination's part (protocol, section 10).

use std::time::Duration;

use futures::future::try_join_all;
use hypervisor::LiveState;
use jobs::agent::{InstanceSpec, LiveRun, RunState, Sending};
use model::{DiskId, InstanceId, RunId, State, Uuid};
use network::{Netlink, steer, tap};
use opcodes::Failure;
use tokio::time::Instant;

use super::disks::Exporting;
use super::{Agent, hypervisor_failed, mirror_failed, run_name};
use crate::migration::{Records, judged};

/// How long all disks of a guest may take to come to rest, or to serve the guest's new run. Who asks waits longer, so that
/// it hears the reason.
const DISKS: Duration = Duration::from_secs(20);
/// How often a run is looked at that a daemon before this one was sending.
const LOOK: Duration = Duration::from_millis(20);

/// What the state says of a run that a migration was to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is its instance's, and nothing is to move it.
    Stays,
    /// The migration is not decided.
    Undecided,
    /// Another migration is to move it.
    MovesOtherwise,
    /// It is no instance's any more.
    Over,
}

impl Standing {
    fn of(state: &State, run: RunId, migration: Uuid) -> Self {
        let Some(instance) = state.instances.values().find(|instance| instance.run == Some(run)) else {
            return Self::Over;
        };
        match instance.migration {
            None => Self::Stays,
            Some(pending) if pending.id == migration => Self::Undecided,
            Some(_) => Self::MovesOtherwise,
        }
    }
}

impl Agent {
    /// What was noted of runs that are being sent.
    pub(crate) fn records(&self) -> Records {
        Records(self.config.run_dir.join("migrations"))
    }

    async fn live_state(&self, hypervisor: &str, run: RunId) -> Result<Option<LiveState>, Failure> {
        let name = run_name(run);
        let found = self.hypervisor(hypervisor)?.list().await.into_iter().find(|running| running.run == name);
        Ok(found.map(|running| running.state))
    }

    /// Refuses what must not go on without a lease, or without a guard that watches it.
    async fn may_go_on(&self, hypervisor: &str, run: RunId) -> Result<(), Failure> {
        let name = run_name(run);
        let found = self.hypervisor(hypervisor)?.list().await.into_iter().find(|running| running.run == name);
        match found {
            Some(running) => self.before_it_runs(run, running.process).await,
            // It has ended: who lets it go on finds out.
            None => Ok(()),
        }
    }

    /// As what a run is known by everything that is committed by now.
    async fn standing(&self, run: RunId, migration: Uuid) -> Result<Standing, Failure> {
        let state = self.keeper()?.newest().await;
        let state = state.ok_or_else(|| {
            Failure::failed(format!("whether run {run} is to go on is not known: the replicated log can't be reached"))
        })?;
        Ok(Standing::of(&state, run, migration))
    }

    pub(super) async fn look_at_run(&self, hypervisor: &str, run: RunId) -> Result<Option<LiveRun>, Failure> {
        let name = run_name(run);
        let found = self.hypervisor(hypervisor)?.list().await.into_iter().find(|running| running.run == name);
        Ok(found.map(|running| LiveRun { state: run_state(running.state), machine: running.machine }))
    }

    /// Makes the destination. A second call for the same run finds it made.
    pub(super) async fn receive(
        &self,
        spec: &InstanceSpec,
        run: RunId,
        migration: Uuid,
        machine: String,
    ) -> Result<(), Failure> {
        let _turn = self.making.take(run).await;
        if self.live_state(&spec.hypervisor, run).await?.is_some() {
            return Ok(());
        }
        self.over.check(spec, run)?;
        let mut destination = self.machine(spec, run, Exporting::Standby).await?;
        destination.machine = Some(machine);
        if !destination.nics.is_empty() {
            let net = Netlink::open().map_err(network_failed)?;
            for index in (0u8..).take(destination.nics.len()) {
                steer::hold(&net, &tap::name(&spec.id.to_string(), index)).await.map_err(network_failed)?;
            }
        }
        tracing::info!(instance = spec.name, %run, %migration, "waits for the memory of a guest");
        let made = self.hypervisor(&spec.hypervisor)?.start_incoming(&destination).await.map_err(hypervisor_failed)?;
        self.unless_over(spec, run).await?;
        self.before_it_runs(run, made.process).await
    }

    /// How far the sending is, when it has ended or after that time.
    pub(crate) async fn look_at_sending(
        &self,
        hypervisor: &str,
        run: RunId,
        migration: Uuid,
        wait_ms: u64,
    ) -> Result<Sending, Failure> {
        let within = Duration::from_millis(wait_ms);
        if let Some(entry) = self.sends.find(run, migration) {
            return Ok(entry.ended(within).await);
        }
        // A daemon before this one was at it. Its end was the end of the stream: QEMU finds out soon.
        let deadline = Instant::now() + within;
        loop {
            let state = self.live_state(hypervisor, run).await?;
            let sending = judged(state, self.records().read(run, migration));
            if !matches!(sending, Sending::Active { .. }) || Instant::now() >= deadline {
                return Ok(sending);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) async fn quiesce(&self, migration: Uuid, disks: &[DiskId]) -> Result<(), Failure> {
        if disks.is_empty() {
            return Ok(());
        }
        let keeper = self.keeper()?;
        let all = disks.iter().map(|disk| keeper.quiesce(*disk, migration, DISKS));
        try_join_all(all).await.map(drop).map_err(mirror_failed)
    }

    pub(crate) async fn take_frames(&self, id: InstanceId, macs: &[String]) -> Result<(), Failure> {
        let net = Netlink::open().map_err(network_failed)?;
        let instance = id.to_string();
        let here = tap::list(&net).await.map_err(network_failed)?;
        for (index, mac) in (0u8..).zip(macs) {
            let name = tap::name(&instance, index);
            // A hypervisor without a network has none.
            if !here.iter().any(|tap| tap.name == name) {
                continue;
            }
            let mac = hardware_address(mac).ok_or_else(|| {
                Failure::failed(format!("'{mac}' is no hardware address: its frames can't be directed"))
            })?;
            steer::take(&net, &name, mac).await.map_err(network_failed)?;
        }
        Ok(())
    }

    /// The guest goes on here: its disks are this node's now.
    pub(super) async fn go_on(
        &self,
        hypervisor: &str,
        run: RunId,
        disks: &[DiskId],
        paused: bool,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        if self.live_state(hypervisor, run).await? == Some(LiveState::PostMigrate) {
            // An order that comes late: by now it was sent on, and what becomes of it is another migration's to decide.
            return Err(Failure::failed(format!("run {run} was sent to another node; it must not go on here")));
        }
        if !disks.is_empty() {
            let keeper = self.keeper()?;
            let all = disks.iter().map(|disk| keeper.serving(*disk, run, DISKS));
            try_join_all(all).await.map_err(mirror_failed)?;
        }
        tracing::debug!(%run, elapsed = ?begun.elapsed(), "the disks serve the guest");
        let (driver, name) = (self.hypervisor(hypervisor)?, run_name(run));
        self.may_go_on(hypervisor, run).await?;
        if !paused {
            driver.resume(&name).await.map_err(hypervisor_failed)?;
        }
        tracing::debug!(%run, elapsed = ?begun.elapsed(), "the guest goes on");
        if let Err(error) = driver.announce(&name).await {
            // Switches learn from what it sends itself, too.
            tracing::warn!(%run, error = crate::chain(&error), "the guest's new place could not be announced");
        }
        Ok(())
    }

    /// The guest goes on where it was. A migration that has not begun does not begin any more.
    pub(super) async fn stay(
        &self,
        hypervisor: &str,
        run: RunId,
        migration: Uuid,
        disks: &[DiskId],
    ) -> Result<(), Failure> {
        let (driver, name) = (self.hypervisor(hypervisor)?, run_name(run));
        // An order that comes late is not for a migration that was begun since. A state that is late itself says nothing.
        if Standing::of(&self.keeper()?.state(), run, migration) == Standing::MovesOtherwise
            && self.standing(run, migration).await? == Standing::MovesOtherwise
        {
            return Ok(());
        }
        match self.sends.cancel(driver.as_ref(), run, migration).await {
            Ok(()) | Err(hypervisor::Error::NoSuchRun { .. }) => {}
            Err(error) => return Err(hypervisor_failed(error)),
        }
        if !disks.is_empty() {
            let keeper = self.keeper()?;
            let all = disks.iter().map(|disk| keeper.resume(*disk, migration));
            let resumed = try_join_all(all).await;
            // Without its guest, what is to be done with the disks is another's order.
            if self.live_state(hypervisor, run).await?.is_some() {
                resumed.map_err(mirror_failed)?;
            }
        }
        let goes_on = match self.live_state(hypervisor, run).await? {
            None => return Ok(()),
            Some(LiveState::PostMigrate) => self.records().read(run, migration).is_none_or(|record| !record.paused),
            Some(LiveState::Paused) => self.records().read(run, migration).is_some_and(|record| !record.paused),
            Some(_) => false,
        };
        if goes_on && self.standing(run, migration).await? == Standing::Stays {
            self.may_go_on(hypervisor, run).await?;
            match driver.resume(&name).await {
                Ok(()) | Err(hypervisor::Error::NoSuchRun { .. }) => {}
                Err(error) => return Err(hypervisor_failed(error)),
            }
        }
        // Its frames may have been turned to the destination already.
        if let Err(error) = driver.announce(&name).await {
            tracing::warn!(%run, error = crate::chain(&error), "the guest's place could not be announced");
        }
        Ok(())
    }
}

fn run_state(state: LiveState) -> RunState {
    match state {
        LiveState::Running => RunState::Running,
        LiveState::Paused | LiveState::IoError => RunState::Paused,
        LiveState::Migrating => RunState::Migrating,
        LiveState::PostMigrate => RunState::PostMigrate,
        LiveState::Incoming => RunState::Incoming,
        LiveState::Shutdown | LiveState::Crashed => RunState::Ending,
    }
}

/// `aa:00:00:fa:3a:3f`.
fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.ok()?.try_into().ok()
}

fn network_failed(error: network::Error) -> Failure {
    Failure::failed(crate::chain(&error))
}

#[cfg(test)]
mod tests {
    use model::{Life, Migration, NodeId, NodeLife, RunId, Uuid};

    use super::{Standing, hardware_address};
    use crate::tables::testing;

    #[test]
    fn a_guest_goes_on_at_its_source_only_when_nothing_is_to_move_it() {
        let mut state = testing::cluster();
        let id = state.instance_by_name("vm5").unwrap().id;
        let (run, first, second) = (RunId(70), Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(Standing::of(&state, run, first), Standing::Over);
        state.instances.get_mut(&id).unwrap().run = Some(run);
        assert_eq!(Standing::of(&state, run, first), Standing::Stays);
        let to = NodeLife { node: NodeId(2), life: Life(1) };
        state.instances.get_mut(&id).unwrap().migration = Some(Migration { id: second, to, run: RunId(71) });
        assert_eq!(Standing::of(&state, run, first), Standing::MovesOtherwise);
        assert_eq!(Standing::of(&state, run, second), Standing::Undecided);
    }

    #[test]
    fn hardware_addresses_are_read() {
        assert_eq!(hardware_address("aa:00:00:fA:3a:3f"), Some([0xaa, 0, 0, 0xfa, 0x3a, 0x3f]));
        for bad in ["", "aa:00:00:fa:3a", "aa:00:00:fa:3a:3f:00", "aa:00:00:fa:3a:3x", "aa:00:00:fa:3a:333"] {
            assert_eq!(hardware_address(bad), None, "{bad}");
        }
    }
}
