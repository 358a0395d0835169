//! A cluster in memory: the log applies at once, nodes are [machines](Machine), time passes when nothing else happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};

use model::{
    Applied, Cluster, Command, Disk, DiskId, DiskTemplate, Instance, Job, JobId, JobStatus, Life, NewJob, NewNode,
    NodeChange, NodeId, NodeLife, Proposal, Provision, Rejection, ReplicaId, State, Timestamp, Uuid,
};
use opcodes::{Failure, Opcode};
use tokio::sync::{Notify, oneshot, watch};

use crate::machine::Machine;
use crate::master::Office;
use crate::replicas;

/// What goes wrong with a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The node refuses, and does nothing.
    Refused,
    /// The node does it and then reports a failure all the same.
    Failed,
    /// The node does not get it.
    Unreachable,
    /// The node does it, but the answer is lost.
    AnswerLost,
    /// The node does not answer until the gate is opened.
    Gate,
}

/// How the master is stopped at a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stop {
    /// It is gone.
    Death,
    /// It stays in office, but what it asked for has no known outcome.
    Doubt,
}

pub struct Inner {
    pub state: Arc<State>,
    pub index: u64,
    pub machines: BTreeMap<NodeId, Machine>,
    /// Members of the log.
    pub members: BTreeSet<NodeId>,
    /// Microseconds.
    pub clock: u64,
    pub sleepers: Vec<(u64, oneshot::Sender<()>)>,
    pub uuids: u128,
    pub journal: Vec<String>,
    pub faults: Vec<(String, usize, Fault)>,
    /// Machines that use the next token that they can get.
    joining: bool,
    /// Points passed so far: a proposal or a call has two, before and after it takes effect.
    pub points: usize,
    pub stop: Option<(usize, Stop)>,
    pub halted: bool,
    /// A machine that goes down at a point, and whether it is back at once.
    pub crash: Option<(usize, NodeId, bool)>,
    /// Replicas are not filled by themselves.
    pub no_resync: bool,
}

impl Inner {
    /// Nothing is committed about a mirrored disk before the machines have done what it rests on. `next` is the state with
    /// the command.
    fn check_order(&self, command: &Command, next: &State) {
        let stored = |rid: &ReplicaId, node: NodeId| self.machines[&node].mirrored.stored.get(rid);
        match command {
            Command::AddInstance(new) => {
                for disk in &new.disks {
                    for (rid, replica) in disk.mirror.iter().flat_map(|mirror| &mirror.replicas) {
                        assert!(stored(rid, replica.node).is_some(), "a replica is announced before it was made");
                    }
                }
            }
            Command::AddReplica { replica, node, .. } => {
                assert!(stored(replica, *node).is_some(), "a replica is announced before it was made");
            }
            Command::Grow { disk, size_mib, .. } => {
                let Some((_, _, mirror)) = replicas::find(next, *disk) else { return };
                for (rid, replica) in &mirror.replicas {
                    let grown = stored(rid, replica.node).is_some_and(|stored| stored.size_mib >= *size_mib);
                    assert!(grown, "a disk grows before its replicas have");
                }
            }
            Command::Handover { migration } => {
                let moving = |it: &&Instance| it.migration.is_some_and(|other| other.id == *migration);
                let instance = self.state.instances.values().find(moving).unwrap();
                let source = &self.machines[&instance.owner.unwrap().node];
                assert!(source.is_quiesced(instance, *migration), "handed over before the source's disks were closed");
            }
            Command::RemoveReplica { disk, replica, .. } => {
                // Otherwise it may have writes that the others lack, after a loss of power.
                let (_, _, mirror) = replicas::find(&self.state, *disk).unwrap();
                let member = mirror.replicas.get(replica).is_some_and(|replica| replica.member.is_some());
                assert!(!member || mirror.primary.is_some(), "a replica in sync goes while nobody serves its disk");
            }
            Command::Disown { instance, run, .. } if !self.failures_ignored() => {
                // Of what is removed in the same entry, nobody misses anything.
                let owner = next.instances.get(instance).and(self.state.instances[instance].owner);
                let alive =
                    |owner: &NodeLife| self.state.nodes.get(&owner.node).is_some_and(|it| it.life == owner.life);
                if let Some(owner) = owner.filter(alive) {
                    let machine = &self.machines[&owner.node];
                    assert!(
                        !machine.guests.contains_key(run),
                        "the right to run is given back before the guest is gone"
                    );
                    let kept = |disk: &DiskId| replicas::find(next, *disk).is_some();
                    let served = machine.mirrored.served.iter().any(|(disk, served)| served == run && kept(disk));
                    assert!(!served, "a disk is disowned before it was released");
                }
            }
            _ => {}
        }
    }

    /// An administrator has said that what is left behind does not matter.
    fn failures_ignored(&self) -> bool {
        let running = self.state.jobs.values().filter(|job| !job.status.is_final());
        running.flat_map(|job| &job.ops).any(|op| op.input["ignore_failures"] == true)
    }

    /// All replicas are there, large enough, and those that are in sync are equal.
    fn check_replicas(&self, disk: &Disk) {
        let mirror = disk.mirror.as_ref().unwrap();
        let mut contents = BTreeSet::new();
        for (rid, replica) in &mirror.replicas {
            let stored = self.machines[&replica.node].mirrored.stored.get(rid);
            let stored = stored.unwrap_or_else(|| panic!("replica {rid} on {} is gone", replica.node));
            assert_eq!((stored.disk, stored.size_mib), (disk.id, disk.size_mib));
            if replica.member.is_some() {
                contents.insert(&stored.content);
            }
        }
        assert_eq!(contents.len(), 1, "replicas of disk {} differ: {contents:?}", disk.id);
    }

    /// Primaries fill the replicas that are not in sync, a part at a time. What they propose when one is full.
    fn fill(&mut self) -> Vec<Command> {
        let state = Arc::clone(&self.state);
        let mut full = Vec::new();
        for disk in state.instances.values().flat_map(|instance| &instance.disks) {
            let Some(mirror) = disk.mirror.as_ref().filter(|_| !self.no_resync) else { continue };
            let Some(by) = mirror.primary else { continue };
            for (rid, replica) in mirror.replicas.iter().filter(|(_, replica)| replica.member.is_none()) {
                let stored = &self.machines[&replica.node].mirrored.stored;
                let machine = &self.machines[&by.node].mirrored;
                let node = &state.nodes[&replica.node];
                let away = node.offline || node.dead || self.machines[&replica.node].down;
                if away || !stored.contains_key(rid) || machine.served.get(&disk.id) != mirror.run.as_ref() {
                    continue;
                }
                let source = mirror.replica_on(by.node).map(|(source, _)| machine.stored[&source].content.clone());
                let percent = self.machines.get_mut(&by.node).unwrap().mirrored.resync.entry(*rid).or_default();
                *percent += 40;
                if *percent < 100 {
                    continue;
                }
                let filled = self.machines.get_mut(&replica.node).unwrap().mirrored.stored.get_mut(rid).unwrap();
                filled.content = source.unwrap();
                let life = state.nodes[&replica.node].life;
                let (epoch, ver) = (mirror.epoch, mirror.ver);
                full.push(Command::InSync { disk: disk.id, by, epoch, ver, replica: *rid, life });
            }
        }
        full
    }
}

/// What outlives a master.
pub struct Lab {
    inner: Mutex<Inner>,
    pub states: watch::Sender<Arc<State>>,
    pub idle: Notify,
    pub gate: Notify,
}

fn new_node(number: u64) -> NewNode {
    NewNode {
        name: format!("node{number:02}"),
        uuid: Uuid::from_u128(0xa000 + u128::from(number)),
        primary_ip: Ipv4Addr::new(10, 0, 0, 4 + number as u8),
        secondary_ip: Ipv4Addr::new(10, 1, 0, 4 + number as u8),
        group: None,
        master_capable: number != 3,
        vm_capable: number != 3,
    }
}

fn new_cluster() -> Cluster {
    Cluster {
        name: "cluster01".into(),
        uuid: Uuid::from_u128(0xc1),
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        address: Ipv4Addr::new(10, 0, 0, 20),
        netmask: 32,
        netdev: "br0".into(),
        mac_prefix: "aa:00:00".into(),
        hypervisors: vec!["fake".into()],
        hvparams: Default::default(),
        beparams: Default::default(),
        nicparams: Default::default(),
        ndparams: Default::default(),
        disk_templates: DiskTemplate::ALL.to_vec(),
        file_storage_dir: "/srv/file-storage".into(),
        candidate_pool_size: 10,
        max_running_jobs: 20,
        tags: Default::default(),
        os: Default::default(),
        drained: false,
        ha: true,
        lease_ms: model::LEASE_MS,
        ca_certificate: String::new(),
        ca_key: String::new(),
    }
}

impl Lab {
    /// node01 and node02 are candidates, node03 a witness, node04 regular. Nobody is in office.
    pub fn new() -> Arc<Self> {
        let machines: BTreeMap<NodeId, Machine> = (1..=4).map(|id| (NodeId(id), Machine::new(NodeId(id)))).collect();
        let inner = Inner {
            state: Arc::default(),
            index: 0,
            members: machines.keys().copied().collect(),
            machines,
            clock: 1_000_000,
            sleepers: Vec::new(),
            uuids: 0,
            journal: Vec::new(),
            faults: Vec::new(),
            joining: false,
            points: 0,
            stop: None,
            halted: false,
            crash: None,
            no_resync: false,
        };
        let lab = Self {
            inner: Mutex::new(inner),
            states: watch::Sender::new(Arc::default()),
            idle: Notify::new(),
            gate: Notify::new(),
        };
        lab.apply(vec![Command::Init {
            cluster: Box::new(new_cluster()),
            incarnation: Uuid::from_u128(0x11),
            group: Uuid::from_u128(0x9),
            node: new_node(1),
        }])
        .unwrap();
        for number in 2..=4 {
            let token = Uuid::from_u128(0x7000);
            let node = new_node(number);
            let add = Command::AddToken { id: token, secret_sha256: String::new(), node, expires: Timestamp(u64::MAX) };
            lab.apply(vec![add, Command::AddNode { token }, Command::DropToken { id: token }]).unwrap();
        }
        let change = NodeChange { master_candidate: Some(false), ..NodeChange::default() };
        lab.apply(vec![Command::ModifyNode { node: NodeId(4), change }]).unwrap();
        for number in 1..=4 {
            let node = NodeId(number);
            lab.boot(node);
            lab.apply(vec![Command::Arm { node, life: lab.state().nodes[&node].life }]).unwrap();
        }
        Arc::new(lab)
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The newest state.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.inner().state)
    }

    /// Proposes in the name of whoever is in office.
    pub fn apply(&self, commands: Vec<Command>) -> Result<Vec<Applied>, Rejection> {
        let state = self.state();
        let office = state.office.map_or(0, |office| office.term);
        self.propose(office, commands)
    }

    /// Proposes in the name of the office of that term.
    pub fn propose(&self, office: u64, commands: Vec<Command>) -> Result<Vec<Applied>, Rejection> {
        let mut inner = self.inner();
        inner.clock += 1;
        let proposal = Proposal {
            incarnation: inner.state.incarnation,
            office: Some(office),
            at: Timestamp(inner.clock),
            commands,
        };
        let mut next = State::clone(&inner.state);
        let applied = next.apply(&proposal)?;
        for command in &proposal.commands {
            inner.check_order(command, &next);
        }
        inner.state = Arc::new(next);
        inner.index += 1;
        self.states.send_replace(Arc::clone(&inner.state));
        Ok(applied)
    }

    /// A node's kernel is booted: its guests are gone, its disks are not.
    pub fn boot(&self, node: NodeId) {
        let state = self.state();
        if let Some(machine) = self.inner().machines.get_mut(&node) {
            machine.ended.extend(machine.guests.keys().copied());
            machine.guests.clear();
            machine.mirrored.served.clear();
            machine.mirrored.attached.clear();
            machine.moving = crate::migration::Moving::default();
            machine.down = false;
        }
        let previous = state.nodes[&node].life;
        let boot = format!("boot{node}-{}", previous.0 + 1);
        self.apply(vec![Command::JoinNode { node, boot, previous, runs: Vec::new() }]).unwrap();
        assert_ne!(self.state().nodes[&node].life, Life(0));
    }

    /// A machine goes down at that point, counted from now; it is back at once, as another boot, or stays away.
    pub fn crash_at(&self, point: usize, node: u64, back: bool) {
        let mut inner = self.inner();
        inner.points = 0;
        inner.crash = Some((point, NodeId(node), back));
    }

    /// The machine that is to crash does, if this is the point.
    pub fn crash_if_due(&self) {
        let (node, back) = {
            let mut inner = self.inner();
            let Some((_, node, back)) = inner.crash.filter(|(point, ..)| *point == inner.points + 1) else { return };
            inner.crash = None;
            let machine = inner.machines.get_mut(&node).unwrap();
            machine.down = true;
            machine.ended.extend(std::mem::take(&mut machine.guests).into_keys());
            (node, back)
        };
        if back {
            self.boot(node);
        }
    }

    /// Queues a job of these opcodes.
    pub fn submit_job(&self, ops: &[Opcode], change: impl FnOnce(&mut NewJob)) -> JobId {
        let ops = ops.iter().map(|op| (serde_json::to_value(op).unwrap(), op.summary())).collect();
        let mut job = NewJob { ops, priority: 0, depends: Vec::new(), user: "root".into() };
        change(&mut job);
        match self.apply(vec![Command::SubmitJob(job)]).unwrap()[..] {
            [Applied::Job(id)] => id,
            ref other => panic!("{other:?}"),
        }
    }

    /// Queues a job of one opcode.
    pub fn submit(&self, op: Opcode) -> JobId {
        self.submit_job(&[op], |_| ())
    }

    /// Runs a job to its end, alone, under a new master on node01. Its result, or its error.
    pub fn run(self: &Arc<Self>, op: Opcode) -> Result<serde_json::Value, Failure> {
        let id = self.submit(op);
        self.take_office(1).settle();
        self.outcome(id)
    }

    /// How a job ended.
    pub fn outcome(&self, id: JobId) -> Result<serde_json::Value, Failure> {
        let job = self.job(id);
        let last = job.ops.iter().rfind(|op| op.result != "Preceding opcode failed").unwrap();
        match job.status {
            JobStatus::Success => Ok(last.result.clone()),
            JobStatus::Error => Err(Failure::from_result(&last.result)),
            status => panic!("job {id} has not ended: {status:?}"),
        }
    }

    pub fn job(&self, id: JobId) -> Job {
        self.state().jobs[&id].clone()
    }

    pub fn status(&self, id: JobId) -> JobStatus {
        self.job(id).status
    }

    /// What a job's opcodes have told.
    pub fn lines(&self, id: JobId) -> Vec<String> {
        self.job(id).ops.iter().flat_map(|op| &op.log).map(|line| line.message.clone()).collect()
    }

    pub fn instance(&self, name: &str) -> Option<Instance> {
        self.state().instance_by_name(name).cloned()
    }

    pub fn machine(&self, node: u64) -> Machine {
        self.inner().machines[&NodeId(node)].clone()
    }

    pub fn change_machine(&self, node: u64, change: impl FnOnce(&mut Machine)) {
        change(self.inner().machines.get_mut(&NodeId(node)).unwrap());
    }

    /// Changes the cluster's configuration where there is no command for it.
    pub fn change_cluster(&self, change: impl FnOnce(&mut Cluster)) {
        let mut inner = self.inner();
        let mut next = State::clone(&inner.state);
        change(next.cluster.as_mut().unwrap());
        inner.state = Arc::new(next);
        self.states.send_replace(Arc::clone(&inner.state));
    }

    /// What nodes have carried out so far, `node01 create_disk vm1/0`; the list begins anew.
    pub fn take_journal(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().journal)
    }

    /// The next `times` calls that begin with `prefix` go wrong.
    pub fn fault(&self, prefix: &str, times: usize, fault: Fault) {
        self.inner().faults.push((prefix.to_owned(), times, fault));
    }

    /// Answers what waits at a [`Fault::Gate`].
    pub fn open_gate(&self) {
        self.gate.notify_waiters();
    }

    /// A machine uses the join token as soon as there is one.
    pub fn machine_joins(&self) {
        self.inner().joining = true;
    }

    /// The master is stopped at that point, counted from now.
    pub fn stop_at(&self, point: usize, stop: Stop) {
        let mut inner = self.inner();
        inner.points = 0;
        inner.stop = Some((point, stop));
    }

    /// Points passed since the last [`Self::stop_at`].
    pub fn points(&self) -> usize {
        self.inner().points
    }

    /// A node takes office, in a new term, and runs jobs until it is dropped. It has started from a snapshot.
    pub fn take_office(self: &Arc<Self>, node: u64) -> Office {
        let term = self.state().office.map_or(0, |office| office.term) + 1;
        self.apply(vec![Command::TakeOffice { node: NodeId(node), term }]).unwrap();
        {
            let mut inner = self.inner();
            inner.halted = false;
            let bytes = serde_json::to_vec(&*inner.state).unwrap();
            let copy: Arc<State> = Arc::new(serde_json::from_slice(&bytes).unwrap());
            assert_eq!(copy, inner.state);
            inner.state = Arc::clone(&copy);
            self.states.send_replace(copy);
        }
        Office::new(self, term)
    }

    /// Every task waits: somebody outside does something, or time passes, or it is the end.
    pub fn nothing_happens(&self) {
        let mut inner = self.inner();
        if inner.halted {
            return;
        }
        let token = inner.state.tokens.keys().next().copied();
        if let (true, Some(token)) = (inner.joining, token) {
            let office = inner.state.office.unwrap().term;
            inner.joining = false;
            drop(inner);
            if let Ok(applied) = self.propose(office, vec![Command::AddNode { token }]) {
                let [Applied::Node(id)] = applied[..] else { panic!("{applied:?}") };
                self.inner().machines.insert(id, Machine::new(id));
            }
            return;
        }
        inner.sleepers.sort_by_key(|(until, _)| *until);
        while !inner.sleepers.is_empty() {
            let (until, sleeper) = inner.sleepers.remove(0);
            if !sleeper.is_closed() {
                inner.clock = inner.clock.max(until);
                let full = inner.fill();
                drop(inner);
                for mut command in full {
                    if let Command::InSync { disk, ver, .. } = &mut command {
                        *ver = replicas::find(&self.state(), *disk).unwrap().2.ver;
                    }
                    self.apply(vec![command]).unwrap();
                }
                sleeper.send(()).unwrap();
                return;
            }
        }
        self.idle.notify_one();
    }

    /// What must hold whenever no job is under way.
    pub fn check(self: &Arc<Self>) {
        let state = self.state();
        for job in state.jobs.values() {
            assert!(job.status.is_final(), "job {} is still {:?}", job.id, job.status);
        }
        let inner = self.inner();
        for instance in state.instances.values() {
            assert_eq!(instance.provision, Provision::Ready, "half an instance: {}", instance.name);
            let machine = &inner.machines[&instance.primary];
            for disk in instance.disks.iter().filter(|disk| disk.mirror.is_some()) {
                inner.check_replicas(disk);
            }
            for (index, disk) in instance.disks.iter().enumerate().filter(|(_, disk)| disk.mirror.is_none()) {
                let stored = machine.disks.get(&(instance.name.clone(), index));
                assert_eq!(stored.map(|stored| stored.id), Some(disk.id), "disk {index} of {}", instance.name);
            }
            let alive = |node: NodeId, life: Life| state.nodes.get(&node).is_some_and(|node| node.life == life);
            if let Some(owner) = instance.owner.filter(|owner| alive(owner.node, owner.life)) {
                let machine = &inner.machines[&owner.node];
                let guest = instance.run.and_then(|run| machine.guests.get(&run));
                let attached = |disk: &Disk| machine.mirrored.attached.get(&disk.id) == instance.run.as_ref();
                let attached = !instance.disks.is_empty() && instance.disks.iter().all(attached);
                assert!(guest.is_some() || attached, "{} is said to run, but does not", instance.name);
            }
        }
        for machine in inner.machines.values() {
            for (rid, stored) in &machine.mirrored.stored {
                let known = replicas::find(&state, stored.disk).and_then(|(_, _, mirror)| mirror.replicas.get(rid));
                assert_eq!(known.map(|it| it.node), Some(machine.id), "replica {rid} belongs to nobody");
            }
            for (disk, run) in &machine.mirrored.served {
                let known = replicas::find(&state, *disk).and_then(|(_, _, mirror)| mirror.run);
                assert_eq!(known, Some(*run), "disk {disk} is served to a run that is over");
            }
            for (name, index) in machine.disks.keys() {
                let known = state
                    .instance_by_name(name)
                    .filter(|found| found.disk_template == DiskTemplate::File)
                    .is_some_and(|found| found.primary == machine.id && *index < found.disks.len());
                assert!(known, "disk {index} of {name} belongs to nobody");
            }
            for (run, guest) in &machine.guests {
                let owner = state.instances.get(&guest.id).filter(|instance| instance.run == Some(*run));
                let owner = owner.and_then(|instance| instance.owner).map(|owner| owner.node);
                assert_eq!(owner, Some(machine.id), "a guest of {} runs without an owner", guest.name);
            }
        }
        assert!(state.tokens.is_empty() && state.joined.is_empty(), "a join token is left");
        assert_eq!(inner.members, state.nodes.keys().copied().collect(), "members of the log");
        let up = |id: &NodeId| !inner.machines[id].down && !state.nodes[id].dead;
        let names = state.nodes.iter().filter(|(id, _)| up(id)).map(|(_, node)| node.name.clone()).collect();
        drop(inner);

        // All locks are free.
        let probe = self.submit(Opcode::TestDelay(opcodes::op::TestDelay {
            on_nodes: names,
            on_master: true,
            ..Default::default()
        }));
        self.take_office(1).settle();
        assert_eq!(self.status(probe), JobStatus::Success);
    }
}
