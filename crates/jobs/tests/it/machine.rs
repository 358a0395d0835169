//! A node, as far as its agent shows: disks and guests. It does what its calls promise, and refuses what must never be asked.

use std::collections::{BTreeMap, BTreeSet};

use jobs::agent::{Call, DiskRef, Facts, LiveInstance, Problem, Reply, Stopped};
use model::{DiskId, DiskTemplate, InstanceId, NodeId, RunId, State};
use opcodes::Failure;

use crate::migration::{Moving, Phase};
use crate::replicas::Replicas;

/// A disk that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredDisk {
    pub id: DiskId,
    /// What was written to it; empty: it reads as zeroes.
    pub content: String,
}

/// A guest that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    pub id: InstanceId,
    pub name: String,
    pub paused: bool,
    /// How often it was restarted in its process.
    pub resets: u32,
    pub phase: Phase,
    /// The run in which it was booted: what it has in memory.
    pub booted: RunId,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Machine {
    pub id: NodeId,
    /// By instance and index, as in a path.
    pub disks: BTreeMap<(String, usize), StoredDisk>,
    pub mirrored: Replicas,
    pub moving: Moving,
    /// It is switched off.
    pub down: bool,
    /// Somebody has open what is attached.
    pub busy: bool,
    pub guests: BTreeMap<RunId, Guest>,
    /// Runs that have ended.
    pub ended: BTreeSet<RunId>,
    pub memory_free_mib: u64,
    pub disk_free_mib: u64,
    pub mirror_free_mib: u64,
    /// Guests don't shut down by themselves.
    pub stubborn: bool,
    /// What a verification finds.
    pub problems: Vec<Problem>,
    /// Highest term of a master heard of.
    pub term: u64,
    /// It was told to leave.
    pub left: bool,
}

impl Machine {
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            disks: BTreeMap::new(),
            mirrored: Replicas::default(),
            moving: Moving::default(),
            down: false,
            busy: false,
            guests: BTreeMap::new(),
            ended: BTreeSet::new(),
            memory_free_mib: 4096,
            disk_free_mib: 100_000,
            mirror_free_mib: 100_000,
            stubborn: false,
            problems: Vec::new(),
            term: 0,
            left: false,
        }
    }

    pub fn has_disks(&self, disks: &[DiskRef]) -> Result<(), Failure> {
        let missing = |disk: &&DiskRef| {
            self.disks.get(&(disk.instance.clone(), disk.index)).is_none_or(|stored| stored.id != disk.disk.id)
        };
        match disks.iter().find(missing) {
            Some(disk) => Err(Failure::failed(format!("disk {} of '{}' does not exist", disk.index, disk.instance))),
            None => Ok(()),
        }
    }

    pub fn runs(&self, instance: &str) -> bool {
        self.guests.values().any(|guest| guest.name == instance)
    }

    /// Does what the master asks. `state` is what is committed: nothing may be done without the right to it.
    pub fn carry_out(&mut self, call: &Call, state: &State) -> Result<Reply, Failure> {
        match call {
            Call::Ping | Call::CaughtUp { .. } | Call::Delay { .. } => {}
            Call::Facts { .. } => return Ok(Reply::Facts(Box::new(self.facts()))),
            Call::Verify(_) => return Ok(Reply::Problems(self.problems.clone())),
            Call::Systems => return Ok(Reply::Systems(Vec::new())),
            Call::CheckInstance { spec, install } => {
                if *install && !spec.os.is_empty() && !spec.os.starts_with("busybox") {
                    return Err(Failure::failed(format!("OS '{}' not in supported OS list", spec.os)));
                }
            }
            Call::CreateDisk(disk) if disk.template == DiskTemplate::Drbd => self.create_replica(disk)?,
            Call::CreateDisk(disk) => {
                let place = (disk.instance.clone(), disk.index);
                let new = StoredDisk { id: disk.disk.id, content: String::new() };
                let stored = self.disks.entry(place).or_insert(new);
                if stored.id != disk.disk.id {
                    return Err(Failure::failed(format!("disk {} of '{}' exists already", disk.index, disk.instance)));
                }
            }
            Call::RemoveDisk(disk) => {
                assert!(!self.runs(&disk.instance), "a disk is removed under a running guest");
                if disk.template == DiskTemplate::Drbd {
                    self.remove_replica(disk, state);
                    return Ok(Reply::Done);
                }
                let place = (disk.instance.clone(), disk.index);
                if self.disks.get(&place).is_some_and(|stored| stored.id == disk.disk.id) {
                    self.disks.remove(&place);
                }
            }
            Call::GrowDisk { disk, size_mib } => self.grow(disk, *size_mib)?,
            Call::AttachDisks { disks, run } => return self.attach(disks, *run, state),
            Call::DetachDisks { disks, run, force } => self.detach(disks, *run, *force)?,
            Call::CopyDisk { from, to, run } => self.copy(from, to, *run)?,
            Call::Replicas { disks } => return Ok(Reply::Replicas(self.reports(disks, state))),
            Call::DigestDisk(disk) => return self.digests(disk),
            Call::InstallSystem { spec, run } => {
                assert!(!self.runs(&spec.name), "a system is installed under a running guest");
                self.attach(&spec.disks, *run, state)?;
                if let Some(disk) = spec.disks.first() {
                    *self.content(disk)? = format!("{} of {}", spec.os, spec.name);
                }
            }
            Call::Start { spec, run, paused } => {
                let instance = &state.instances[&spec.id];
                assert_eq!(instance.run, Some(*run), "a guest is started in another run than the committed one");
                assert_eq!(
                    instance.owner.map(|owner| owner.node),
                    Some(self.id),
                    "a guest is started without the right"
                );
                assert!(!self.ended.contains(run), "a run that has ended is started again");
                for disk in &spec.disks {
                    let attached = self.mirrored.attached.contains_key(&disk.disk.id);
                    assert!(!attached, "a guest is started on disks that the host has attached");
                    match disk.template {
                        DiskTemplate::Drbd => self.serve(&disk.disk, *run, state)?,
                        _ => self.has_disks(std::slice::from_ref(disk))?,
                    }
                }
                assert!(self.guests.contains_key(run) || !self.runs(&spec.name), "a second guest of one instance");
                let name = spec.name.clone();
                let guest = Guest { id: spec.id, name, paused: *paused, resets: 0, phase: Phase::Home, booted: *run };
                self.guests.entry(*run).or_insert(guest);
            }
            Call::Stop { run, id, timeout, disks, release, .. } => {
                let ran = self.guests.remove(run).is_some();
                // What was made for the instance is taken away with the run: that must not be another one's.
                assert!(self.guests.values().all(|guest| guest.id != *id), "an old run is ended under a new one");
                self.ended.insert(*run);
                self.forget_run(*id, *run, disks);
                self.end_run(disks, *run, *release, state);
                return Ok(Reply::Stopped(match ran {
                    false => Stopped::NotRunning,
                    true if *timeout == 0 || self.stubborn => Stopped::Forced,
                    true => Stopped::Clean,
                }));
            }
            Call::Reset { run, instance, .. } => match self.guests.get_mut(run) {
                Some(guest) => guest.resets += 1,
                None => return Err(Failure::failed(format!("instance '{instance}' is not running"))),
            },
            Call::Leave => self.left = true,
            other => return self.move_guest(other, state),
        }
        Ok(Reply::Done)
    }

    fn facts(&self) -> Facts {
        let live = |(run, guest): (&RunId, &Guest)| LiveInstance {
            instance: guest.name.clone(),
            run: *run,
            memory_mib: 128,
            vcpus: 1,
            state: if guest.paused { "paused".into() } else { "running".into() },
        };
        Facts {
            memory_free_mib: self.memory_free_mib,
            disk_free_mib: self.disk_free_mib,
            mirror_free_mib: self.mirror_free_mib,
            instances: self.guests.iter().map(live).collect(),
            ..Facts::default()
        }
    }
}

/// The kind of a call and what it is about, for scripts and journals: `create_disk vm1/0`.
pub fn words(call: &Call) -> String {
    let instance = |disks: &[DiskRef]| disks.first().map(|disk| disk.instance.clone()).unwrap_or_default();
    match call {
        Call::Ping => "ping".into(),
        Call::Facts { .. } => "facts".into(),
        Call::Verify(_) => "verify".into(),
        Call::Systems => "systems".into(),
        Call::CheckInstance { spec, .. } => format!("check {}", spec.name),
        Call::CreateDisk(disk) => format!("create_disk {}/{}", disk.instance, disk.index),
        Call::RemoveDisk(disk) => format!("remove_disk {}/{}", disk.instance, disk.index),
        Call::GrowDisk { disk, size_mib } => format!("grow_disk {}/{} {size_mib}", disk.instance, disk.index),
        Call::AttachDisks { disks, .. } => format!("attach {}", instance(disks)),
        Call::DetachDisks { disks, .. } => format!("detach {}", instance(disks)),
        Call::CopyDisk { from, .. } => format!("copy {}/{}", from.instance, from.index),
        Call::Replicas { .. } => "replicas".into(),
        Call::DigestDisk(disk) => format!("digest {}/{}", disk.instance, disk.index),
        Call::InstallSystem { spec, .. } => format!("install {}", spec.name),
        Call::Start { spec, run, .. } => format!("start {} {run}", spec.name),
        Call::Stop { instance, run, .. } => format!("stop {instance} {run}"),
        Call::Reset { instance, run, .. } => format!("reset {instance} {run}"),
        Call::CaughtUp { .. } => "caught_up".into(),
        Call::Delay { millis } => format!("delay {millis}"),
        Call::Leave => "leave".into(),
        Call::LookAtRun { run, .. } => format!("look_at_run {run}"),
        Call::Receive { spec, run, .. } => format!("receive {} {run}", spec.name),
        Call::Send { instance, run, .. } => format!("send {instance} {run}"),
        Call::LookAtSending { run, .. } => format!("look_at_sending {run}"),
        Call::Quiesce { .. } => "quiesce".into(),
        Call::TakeFrames { .. } => "take_frames".into(),
        Call::Continue { instance, run, .. } => format!("continue {instance} {run}"),
        Call::Stay { instance, run, .. } => format!("stay {instance} {run}"),
        other => format!("{other:?}"),
    }
}
