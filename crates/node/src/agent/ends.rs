//! Guests that have ended, and guests that are to end because they are not this node's any more.

use std::collections::BTreeSet;

use hypervisor::{EventKind, StopReason};
use model::{RunId, State};
use opcodes::Failure;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::{Agent, hypervisor_failed, run_number};

impl Agent {
    /// Runs that end from now on, and how: one sentence without a full stop. Some may be missed.
    pub(crate) fn ends(&self) -> mpsc::UnboundedReceiver<(RunId, String)> {
        let (sender, ends) = mpsc::unbounded_channel();
        for driver in self.hypervisors.values() {
            let (mut events, sender) = (driver.events(), sender.clone());
            tokio::spawn(async move {
                loop {
                    let event = tokio::select! {
                        event = events.recv() => event,
                        () = sender.closed() => return,
                    };
                    let event = match event {
                        Ok(event) => event,
                        Err(RecvError::Lagged(_)) => continue,
                        Err(RecvError::Closed) => return,
                    };
                    if let (EventKind::Stopped(reason), Some(run)) = (&event.kind, run_number(&event.run))
                        && sender.send((run, in_words(reason))).is_err()
                    {
                        return;
                    }
                }
            });
        }
        ends
    }

    /// Ends what the hypervisors have besides `rightful` runs, without asking the guests: of all instances, or of the one of
    /// that name.
    pub(crate) async fn end_others(
        &self,
        state: &State,
        of: Option<&str>,
        rightful: &BTreeSet<RunId>,
    ) -> Result<(), Failure> {
        for driver in self.hypervisors.values() {
            for running in driver.list().await {
                let Some(run) = run_number(&running.run) else { continue };
                if rightful.contains(&run) || of.is_some_and(|name| name != running.instance) {
                    continue;
                }
                tracing::warn!(instance = running.instance, %run, "ended: it is not this node's any more");
                driver.destroy(&running.run).await.map_err(hypervisor_failed)?;
                self.records().forget(run);
                if let Some(instance) = state.instance_by_name(&running.instance) {
                    let later = driver.list().await.iter().any(|other| other.instance == running.instance);
                    if !later {
                        self.remove_taps(&instance.id.to_string()).await?;
                    }
                    let disks: Vec<_> =
                        instance.disks.iter().filter(|disk| disk.mirror.is_some()).map(|disk| disk.id).collect();
                    self.end_run(&disks, run, false).await?;
                }
            }
        }
        Ok(())
    }
}

fn in_words(reason: &StopReason) -> String {
    match reason {
        StopReason::GuestShutdown => "the guest powered itself off".into(),
        StopReason::GuestReset => "the guest rebooted, and is set to end then".into(),
        StopReason::Killed => "its process was ended from outside".into(),
        StopReason::Crashed { how } => how.clone(),
    }
}
