//! A [machine](crate::machine)'s part in live migrations, and what must hold of them whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use jobs::agent::{Call, LiveRun, Reply, RunState, Sending};
use model::{DiskId, Instance, InstanceId, NodeId, RunId, State, Uuid};
use opcodes::Failure;

use crate::machine::{Guest, Machine};
use crate::replicas::find;

/// Where a guest is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// At home; it runs unless it is paused.
    #[default]
    Home,
    /// A destination that waits for memory.
    Incoming,
    /// A destination that has it all.
    Arrived,
    /// A source that has sent all of it.
    Sent,
}

/// A transfer that was begun.
#[derive(Clone, Debug)]
struct Transfer {
    migration: Uuid,
    to: NodeId,
    to_run: RunId,
    /// How often it is looked at before it ends.
    looks: usize,
    end: Option<Sending>,
}

/// What a machine has of migrations.
#[derive(Clone, Debug, Default)]
pub struct Moving {
    transfers: BTreeMap<RunId, Transfer>,
    quiesced: BTreeMap<DiskId, Uuid>,
    /// Instances whose frames come here.
    frames: BTreeSet<InstanceId>,
    /// Each transfer is looked at so often before it ends.
    pub slow: usize,
    /// Why a transfer fails.
    pub fails: Option<String>,
    /// Guests that were sent here are lost at the end of the transfer.
    pub loses: bool,
}

fn pending(state: &State, id: InstanceId, migration: Uuid) -> bool {
    state.instances[&id].migration.is_some_and(|it| it.id == migration)
}

impl Machine {
    /// A call that has to do with migrations.
    pub fn move_guest(&mut self, call: &Call, state: &State) -> Result<Reply, Failure> {
        match call {
            Call::LookAtRun { run, .. } => {
                return Ok(Reply::Run(self.guests.get(run).map(|guest| LiveRun {
                    state: match guest.phase {
                        Phase::Home if guest.paused => RunState::Paused,
                        Phase::Home => RunState::Running,
                        Phase::Incoming => RunState::Incoming,
                        Phase::Arrived => RunState::Paused,
                        Phase::Sent => RunState::PostMigrate,
                    },
                    machine: "pc-fake-1.0".into(),
                })));
            }
            Call::Receive { spec, run, migration, machine } => {
                assert_eq!(machine, "pc-fake-1.0");
                assert!(pending(state, spec.id, *migration), "a migration is received that is decided");
                let migration = state.instances[&spec.id].migration.unwrap();
                assert_eq!((migration.run, migration.to.node), (*run, self.id), "received in another run or elsewhere");
                for disk in &spec.disks {
                    self.replica(&disk.disk)?;
                }
                if !self.guests.contains_key(run) && self.runs(&spec.name) {
                    return Err(Failure::failed(format!("instance '{}' is here already", spec.name)));
                }
                let name = spec.name.clone();
                let new =
                    Guest { id: spec.id, name, paused: true, resets: 0, phase: Phase::Incoming, booted: RunId(0) };
                self.guests.entry(*run).or_insert(new);
            }
            Call::Send { run, instance, migration, to, to_run, .. } => {
                if !self.guests.contains_key(run) {
                    return Err(Failure::failed(format!("instance '{instance}' is not running")));
                }
                let (looks, end) = (self.moving.slow, None);
                let new = Transfer { migration: *migration, to: *to, to_run: *to_run, looks, end };
                let transfer = self.moving.transfers.entry(*run).or_insert_with(|| new.clone());
                if transfer.migration != *migration {
                    *transfer = new;
                }
                return self.sending(*run, *migration);
            }
            Call::LookAtSending { run, migration, .. } => {
                let transfer = self.moving.transfers.get_mut(run);
                let Some(transfer) = transfer.filter(|transfer| transfer.migration == *migration) else {
                    return Err(Failure::failed("nothing was sent"));
                };
                transfer.looks = transfer.looks.saturating_sub(1);
                return self.sending(*run, *migration);
            }
            Call::Quiesce { migration, disks } => {
                for id in disks {
                    let (instance, ..) = find(state, *id).unwrap();
                    assert!(
                        pending(state, instance.id, *migration),
                        "disks are closed for a migration that is decided"
                    );
                    let guest = instance.run.and_then(|run| self.guests.get(&run));
                    let Some(guest) = guest else { return Err(Failure::failed("nobody serves them")) };
                    assert_eq!(guest.phase, Phase::Sent, "disks are closed under a guest that runs");
                    self.moving.quiesced.insert(*id, *migration);
                }
            }
            Call::TakeFrames { id, macs } => {
                assert_eq!(macs.len(), state.instances[id].nics.len());
                if !self.guests.values().any(|guest| guest.id == *id) {
                    return Err(Failure::failed("there is no interface for it"));
                }
                self.moving.frames.insert(*id);
            }
            Call::Continue { run, instance, disks, paused, .. } => {
                let owned = state.instance_by_name(instance).unwrap();
                self.check_right(owned, *run);
                for id in disks {
                    let disk = find(state, *id).unwrap().1.clone();
                    self.serve(&disk, *run, state)?;
                }
                let Some(guest) = self.guests.get_mut(run) else {
                    return Err(Failure::failed(format!("instance '{instance}' is not there")));
                };
                assert_ne!(guest.phase, Phase::Incoming, "a guest goes on of which not all is there");
                if guest.phase == Phase::Arrived {
                    (guest.phase, guest.paused) = (Phase::Home, *paused);
                }
            }
            Call::Stay { run, instance, migration, disks, .. } => {
                let owned = state.instance_by_name(instance).unwrap();
                assert!(!pending(state, owned.id, *migration), "a guest stays before that was decided");
                self.check_right(owned, *run);
                for id in disks {
                    if self.moving.quiesced.get(id) == Some(migration) {
                        self.moving.quiesced.remove(id);
                    }
                }
                assert!(disks.iter().all(|id| !self.moving.quiesced.contains_key(id)), "disks of a guest stay closed");
                if let Some(transfer) = self.moving.transfers.get_mut(run) {
                    transfer.end = Some(Sending::Failed { why: "it was cancelled".into() });
                }
                if let Some(guest) = self.guests.get_mut(run) {
                    guest.phase = Phase::Home;
                }
            }
            other => panic!("no operation asks for {other:?}"),
        }
        Ok(Reply::Done)
    }

    fn check_right(&self, instance: &Instance, run: RunId) {
        assert_eq!(instance.run, Some(run), "a guest goes on in another run than the committed one");
        assert_eq!(instance.owner.map(|owner| owner.node), Some(self.id), "a guest goes on without the right");
    }

    fn sending(&self, run: RunId, migration: Uuid) -> Result<Reply, Failure> {
        let transfer = &self.moving.transfers[&run];
        assert_eq!(transfer.migration, migration);
        let active = Sending::Active { transferred: 1 << 20, remaining: 3 << 20, total: 4 << 20 };
        Ok(Reply::Sending(transfer.end.clone().unwrap_or(active)))
    }

    /// What a run leaves behind when it ends.
    pub fn forget_run(&mut self, id: InstanceId, run: RunId, disks: &[DiskId]) {
        self.moving.transfers.remove(&run);
        self.moving.frames.remove(&id);
        if self.mirrored.served.values().all(|served| *served != run) {
            return;
        }
        for disk in disks {
            self.moving.quiesced.remove(disk);
        }
    }

    /// Whether all of an instance's disks are closed for a migration.
    pub fn is_quiesced(&self, instance: &Instance, migration: Uuid) -> bool {
        instance.disks.iter().all(|disk| self.moving.quiesced.get(&disk.id) == Some(&migration))
    }
}

/// Memory arrives where it was sent.
pub fn deliver(machines: &mut BTreeMap<NodeId, Machine>) {
    let sources: Vec<NodeId> = machines.keys().copied().collect();
    for source in sources {
        let here = machines[&source].clone();
        for (run, transfer) in &here.moving.transfers {
            if transfer.end.is_some() || transfer.looks > 0 || here.down {
                continue;
            }
            let Some(guest) = here.guests.get(run) else { continue };
            let there = machines.get_mut(&transfer.to).filter(|there| !there.down);
            let waits = there.and_then(|there| {
                let loses = there.moving.loses;
                let waits = there.guests.get_mut(&transfer.to_run).filter(|it| it.phase == Phase::Incoming);
                waits.map(|it| (it, loses))
            });
            let end = match (&here.moving.fails, waits) {
                (None, Some((copy, loses))) => {
                    (copy.phase, copy.booted) = (Phase::Arrived, guest.booted);
                    if loses {
                        machines.get_mut(&transfer.to).unwrap().guests.remove(&transfer.to_run);
                    }
                    let paused = guest.paused;
                    Sending::Complete { total_ms: Some(600), downtime_ms: Some(12), bytes: 40 << 20, paused }
                }
                (Some(why), _) => Sending::Failed { why: why.clone() },
                (None, None) => Sending::Failed { why: "connection reset by peer".into() },
            };
            let here = machines.get_mut(&source).unwrap();
            if let (Sending::Complete { .. }, Some(guest)) = (&end, here.guests.get_mut(run)) {
                guest.phase = Phase::Sent;
            }
            here.moving.transfers.get_mut(run).unwrap().end = Some(end);
        }
    }
}

/// What must hold at every moment: of an instance at most one guest runs, and it has the right to.
pub fn check_running(machines: &BTreeMap<NodeId, Machine>, state: &State) {
    let mut running = BTreeSet::new();
    for machine in machines.values() {
        for (run, guest) in machine.guests.iter().filter(|(_, guest)| guest.phase == Phase::Home && !guest.paused) {
            assert!(running.insert(guest.id), "{} runs twice", guest.name);
            let Some(instance) = state.instances.get(&guest.id) else { continue };
            assert_eq!(instance.run, Some(*run), "{} runs in a run that is over", guest.name);
            assert_eq!(
                instance.owner.map(|owner| owner.node),
                Some(machine.id),
                "{} runs without the right",
                guest.name
            );
        }
    }
}
