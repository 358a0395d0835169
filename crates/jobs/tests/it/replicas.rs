//! The mirrored disks of a [machine](crate::machine): which replicas it has, what is attached and served, and that the
//! master asks for it in the right order.

use std::collections::BTreeMap;

use jobs::agent::{DiskRef, Reply};
use model::{Disk, DiskId, Instance, Mirror, NodeId, Provision, ReplicaId, RunId, State};
use opcodes::Failure;
use opcodes::disks::{DiskCounters, PeerReport, ReplicaReport, ResyncReport};

use crate::machine::Machine;

/// A replica that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredReplica {
    pub disk: DiskId,
    pub size_mib: u64,
    /// What was written to it; empty: it reads as zeroes.
    pub content: String,
}

/// What a machine has of mirrored disks.
#[derive(Clone, Debug, Default)]
pub struct Replicas {
    pub stored: BTreeMap<ReplicaId, StoredReplica>,
    /// Disks that are served here, and not brought to their end yet.
    pub served: BTreeMap<DiskId, RunId>,
    /// Those of them that are host attachments.
    pub attached: BTreeMap<DiskId, RunId>,
    /// What is here is in the middle of a resync.
    pub inconsistent: bool,
    /// How much of a replica elsewhere the primary here has filled, in percent.
    pub resync: BTreeMap<ReplicaId, u64>,
}

/// A mirrored disk of the state, with its instance.
pub fn find(state: &State, id: DiskId) -> Option<(&Instance, &Disk, &Mirror)> {
    state.instances.values().find_map(|instance| {
        let disk = instance.disks.iter().find(|disk| disk.id == id)?;
        Some((instance, disk, disk.mirror.as_ref()?))
    })
}

impl Machine {
    /// The replica that a disk's record gives to this node.
    fn here(&self, disk: &Disk) -> ReplicaId {
        let mirror = disk.mirror.as_ref().expect("a mirrored disk has a record of its replicas");
        mirror.replica_on(self.id).expect("a node is asked about a disk of which it has no replica").0
    }

    /// The content of this node's replica.
    pub fn replica(&mut self, disk: &Disk) -> Result<&mut StoredReplica, Failure> {
        let rid = self.here(disk);
        self.mirrored.stored.get_mut(&rid).ok_or_else(|| Failure::failed(format!("disk {} is not here", disk.id)))
    }

    pub fn create_replica(&mut self, disk: &DiskRef) -> Result<(), Failure> {
        let rid = self.here(&disk.disk);
        let new = StoredReplica { disk: disk.disk.id, size_mib: disk.disk.size_mib, content: String::new() };
        assert_eq!(self.mirrored.stored.entry(rid).or_insert(new).disk, disk.disk.id);
        Ok(())
    }

    pub fn remove_replica(&mut self, disk: &DiskRef, state: &State) {
        let rid = self.here(&disk.disk);
        assert!(!self.mirrored.served.contains_key(&disk.disk.id), "a disk is removed while it is served");
        if let Some((instance, _, mirror)) = find(state, disk.disk.id) {
            let going = matches!(instance.provision, Provision::Creating(_) | Provision::Removing(_));
            assert!(going || !mirror.replicas.contains_key(&rid), "a replica is removed that the cluster counts on");
        }
        self.mirrored.stored.remove(&rid);
    }

    /// Serves a disk to a run that was committed.
    pub fn serve(&mut self, disk: &Disk, run: RunId, state: &State) -> Result<(), Failure> {
        self.replica(disk)?;
        let (_, _, mirror) = find(state, disk.id).expect("a disk is served that the cluster does not know");
        assert_eq!(mirror.run, Some(run), "a disk is served to another run than the committed one");
        assert_eq!(mirror.primary.map(|owner| owner.node), Some(self.id), "a disk is served without the right");
        let owner = mirror.primary.unwrap();
        if state.nodes[&owner.node].life != owner.life {
            return Err(Failure::failed(format!("disk {} was this node's before it was started anew", disk.id)));
        }
        if self.mirrored.served.insert(disk.id, run) != Some(run) {
            self.mirrored.resync.clear();
        }
        Ok(())
    }

    pub fn attach(&mut self, disks: &[DiskRef], run: Option<RunId>, state: &State) -> Result<Reply, Failure> {
        for disk in disks {
            assert!(!self.runs(&disk.instance), "a disk is shown on the host while its guest runs");
            if let Some(run) = run {
                self.serve(&disk.disk, run, state)?;
                self.mirrored.attached.insert(disk.disk.id, run);
            } else {
                self.has_disks(std::slice::from_ref(disk))?;
            }
        }
        Ok(Reply::Paths(disks.iter().map(|disk| format!("/disks/{}/{}", disk.instance, disk.index)).collect()))
    }

    pub fn detach(&mut self, disks: &[DiskRef], run: Option<RunId>, force: bool) -> Result<(), Failure> {
        let Some(run) = run else { return Ok(()) };
        assert!(!self.guests.contains_key(&run), "the disks of a running guest are taken away as if nobody used them");
        for disk in disks {
            if self.busy && !force && self.mirrored.attached.contains_key(&disk.disk.id) {
                return Err(Failure::failed(format!("disk {} of '{}' is in use", disk.index, disk.instance)));
            }
            if self.mirrored.served.get(&disk.disk.id) == Some(&run) {
                self.mirrored.served.remove(&disk.disk.id);
                self.mirrored.attached.remove(&disk.disk.id);
            }
        }
        Ok(())
    }

    /// The disks of a run that is over.
    pub fn end_run(&mut self, disks: &[DiskId], run: RunId, release: bool, state: &State) {
        for disk in disks {
            if self.mirrored.served.get(disk) != Some(&run) {
                continue;
            }
            assert!(!self.mirrored.attached.contains_key(disk), "a host attachment is ended as if it were a guest");
            let mirror = find(state, *disk).map(|(_, _, mirror)| mirror);
            assert!(
                release || mirror.is_none_or(|mirror| mirror.run != Some(run)),
                "a disk is left without its orderly end by the run that has it"
            );
            self.mirrored.served.remove(disk);
        }
    }

    pub fn grow(&mut self, disk: &DiskRef, size_mib: u64) -> Result<(), Failure> {
        if disk.disk.mirror.is_some() {
            let replica = self.replica(&disk.disk)?;
            replica.size_mib = replica.size_mib.max(size_mib);
            return Ok(());
        }
        self.has_disks(std::slice::from_ref(disk))
    }

    pub fn copy(&mut self, from: &DiskRef, to: &DiskRef, run: RunId) -> Result<(), Failure> {
        for disk in [from, to] {
            if disk.disk.mirror.is_some() {
                let attached = self.mirrored.attached.get(&disk.disk.id);
                assert_eq!(attached, Some(&run), "a disk is copied that is not attached");
            }
        }
        let content = self.content(from)?.clone();
        *self.content(to)? = content;
        Ok(())
    }

    /// What was written to a disk, however it is stored.
    pub fn content(&mut self, disk: &DiskRef) -> Result<&mut String, Failure> {
        if disk.disk.mirror.is_some() {
            return Ok(&mut self.replica(&disk.disk)?.content);
        }
        self.has_disks(std::slice::from_ref(disk))?;
        let place = (disk.instance.clone(), disk.index);
        Ok(&mut self.disks.get_mut(&place).unwrap().content)
    }

    pub fn digests(&mut self, disk: &DiskRef) -> Result<Reply, Failure> {
        assert!(!self.mirrored.served.contains_key(&disk.disk.id), "a disk is compared while it is served");
        let replica = self.replica(&disk.disk)?;
        let chunks = replica.size_mib.div_ceil(4);
        Ok(Reply::Digests(
            (0..chunks).map(|chunk| if chunk == 0 { replica.content.clone() } else { "0".into() }).collect(),
        ))
    }

    /// How its replicas are.
    pub fn reports(&self, disks: &[DiskId], state: &State) -> Vec<ReplicaReport> {
        let wanted = self.mirrored.stored.iter().filter(|(_, it)| disks.is_empty() || disks.contains(&it.disk));
        wanted.filter_map(|(rid, stored)| self.report(*rid, stored, state)).collect()
    }

    fn report(&self, rid: ReplicaId, stored: &StoredReplica, state: &State) -> Option<ReplicaReport> {
        let (_, _, mirror) = find(state, stored.disk)?;
        let own = mirror.replicas.get(&rid)?;
        let serving = self.mirrored.served.get(&stored.disk).copied();
        let word = |member: bool| if member { "UpToDate" } else { "Inconsistent" };
        let peer = |(rid, replica): (&ReplicaId, &model::MirrorReplica)| {
            let member = replica.member.is_some();
            let percent = self.mirrored.resync.get(rid).copied().unwrap_or(0).min(100);
            let total = stored.size_mib << 20;
            let done = total * percent / 100;
            let filling = serving.is_some() && !member;
            PeerReport {
                node: state.node_name(replica.node),
                connection: if filling { "SyncSource" } else { "Connected" }.into(),
                role: "Secondary".into(),
                state: word(member).into(),
                out_of_sync: if member { 0 } else { total - done },
                resync: filling.then_some(ResyncReport { total, done, rate: 1 << 20, eta_s: Some(100 - percent) }),
                refused: None,
            }
        };
        Some(ReplicaReport {
            disk: stored.disk,
            replica: rid,
            role: if serving.is_some() { "Primary" } else { "Secondary" }.into(),
            state: word(own.member.is_some()).into(),
            peers: mirror.replicas.iter().filter(|(other, _)| **other != rid).map(peer).collect(),
            serving,
            counters: DiskCounters::default(),
            pending: 0,
            waiting: 0,
            holding: false,
            suspended: false,
            failed: None,
            held: (!self.mirrored.inconsistent).then_some(if own.member.is_some() { mirror.ver } else { own.left }),
        })
    }
}

/// What is written at a disk's primary is on all members.
pub fn replicate(machines: &mut BTreeMap<NodeId, Machine>, state: &State) {
    for disk in state.instances.values().flat_map(|instance| &instance.disks) {
        let Some(mirror) = &disk.mirror else { continue };
        let Some(primary) = mirror.primary.map(|owner| owner.node) else { continue };
        let Some((source, _)) = mirror.replica_on(primary) else { continue };
        let stored = machines.get(&primary).and_then(|machine| machine.mirrored.stored.get(&source)).cloned();
        let Some(stored) = stored else { continue };
        for (rid, replica) in mirror.replicas.iter().filter(|(_, replica)| replica.member.is_some()) {
            let copy = machines.get_mut(&replica.node).and_then(|machine| machine.mirrored.stored.get_mut(rid));
            if let Some(copy) = copy {
                copy.content.clone_from(&stored.content);
            }
        }
    }
}
