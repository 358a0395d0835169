//! The log: the real state machine of the cluster, with the delays and doubts of a network before it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use mirror::engine::{DiskCommand, Outcome, View};
use model::{
    AdminState, Applied, Cluster, Command, Disk, DiskAccess, DiskId, DiskTemplate, Epoch, Instance, InstanceId, Life,
    Mirror, MirrorMode, NewNode, NodeId, NodeLife, Proposal, Provision, Rejection, ReplicaId, RunId, State, Timestamp,
    Uuid, Version,
};

pub const DISK: DiskId = DiskId(Uuid::from_u128(0xd15c));
pub const INSTANCE: InstanceId = InstanceId(Uuid::from_u128(0x1457));

pub struct Log {
    pub state: State,
    /// Migrations that were handed over, and cancelled (I9).
    pub handed_over: Vec<Uuid>,
    pub cancelled: Vec<Uuid>,
    /// For tests of the tests: no compare-and-set on the version.
    pub no_cas: bool,
}

pub fn boot_name(node: usize, boot: u64) -> String {
    format!("boot-{node}-{boot}")
}

pub fn rid(node: usize) -> ReplicaId {
    ReplicaId(Uuid::from_u128(0x4e70 + node as u128))
}

pub fn node_id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

pub fn index(node: NodeId) -> usize {
    node.0 as usize - 1
}

impl Log {
    /// A cluster of `nodes` nodes and one instance with one disk, which has a replica on each.
    pub fn new(nodes: usize, size: u64, mode: MirrorMode) -> Self {
        let mut log = Self { state: State::default(), handed_over: Vec::new(), cancelled: Vec::new(), no_cas: false };
        let group = Uuid::from_u128(9);
        let init = Command::Init {
            cluster: Box::new(cluster()),
            incarnation: Uuid::from_u128(0x11),
            group,
            node: new_node(0),
        };
        log.must(init);
        log.must(Command::TakeOffice { node: NodeId(1), term: 1 });
        for node in 1..nodes {
            let token = Uuid::from_u128(0x7000 + node as u128);
            let add = Command::AddToken {
                id: token,
                secret_sha256: String::new(),
                node: new_node(node),
                expires: Timestamp(9),
            };
            log.must(add);
            log.must(Command::AddNode { token });
        }
        for node in 0..nodes {
            let life = log.join(node, boot_name(node, 0), Vec::new());
            if mode == MirrorMode::Strict {
                log.must(Command::Arm { node: node_id(node), life });
            }
        }
        let replicas = (0..nodes).map(|node| (rid(node), node_id(node), boot_name(node, 0)));
        let disk = Disk {
            id: DISK,
            name: None,
            size_mib: size.div_ceil(1 << 20),
            access: DiskAccess::Rw,
            ctime: Timestamp(0),
            mirror: Some(Mirror::new(mode, replicas)),
        };
        log.must(Command::AddInstance(Box::new(instance(disk, nodes))));
        log
    }

    fn must(&mut self, command: Command) {
        self.apply(command).expect("the cluster is made");
    }

    pub fn apply(&mut self, command: Command) -> Result<Applied, Rejection> {
        let proposal = Proposal {
            incarnation: self.state.incarnation,
            office: self.state.office.map(|office| office.term).or(Some(0)),
            at: Timestamp(0),
            commands: vec![command.clone()],
        };
        let applied = self.state.apply(&proposal)?;
        match command {
            Command::Handover { migration } => self.handed_over.push(migration),
            Command::Cancel { migration } => self.cancelled.push(migration),
            _ => {}
        }
        Ok(applied[0].clone())
    }

    /// A node begins a life; the life that it has then.
    pub fn join(&mut self, node: usize, boot: String, runs: Vec<RunId>) -> Life {
        let previous = self.state.nodes[&node_id(node)].life;
        match self.apply(Command::JoinNode { node: node_id(node), boot, previous, runs }) {
            Ok(Applied::Life(life)) => life,
            other => panic!("a node could not join: {other:?}"),
        }
    }

    pub fn life(&self, node: usize) -> Life {
        self.state.nodes[&node_id(node)].life
    }

    pub fn boot(&self, node: usize) -> &str {
        &self.state.nodes[&node_id(node)].boot
    }

    pub fn instance(&self) -> &Instance {
        &self.state.instances[&INSTANCE]
    }

    pub fn mirror(&self) -> &Mirror {
        self.instance().disks[0].mirror.as_ref().expect("the disk is mirrored")
    }

    pub fn is_live(&self, owner: NodeLife) -> bool {
        self.state.nodes[&owner.node].life == owner.life
    }

    pub fn view(&self) -> View {
        View {
            inc: self.state.incarnation,
            mirror: self.mirror().clone(),
            lives: self.state.nodes.iter().map(|(id, node)| (*id, node.life)).collect::<BTreeMap<_, _>>(),
            migration: self.instance().migration.map(|migration| (migration.id, migration.run)),
        }
    }

    /// A primary's command.
    pub fn propose(&mut self, by: NodeLife, epoch: Epoch, mut ver: Version, command: &DiskCommand) -> Outcome {
        if self.no_cas {
            ver = self.mirror().ver;
        }
        let disk = DISK;
        let command = match command.clone() {
            DiskCommand::Outdate(replicas) => Command::Outdate { disk, by, epoch, ver, replicas },
            DiskCommand::Solo(replicas) => Command::Solo { disk, by, epoch, ver, replicas },
            DiskCommand::InSync(replica, life) => Command::InSync { disk, by, epoch, ver, replica, life },
        };
        match self.apply(command) {
            Ok(_) => Outcome::Accepted,
            Err(Rejection::Disk(rejection)) => Outcome::Rejected(rejection),
            Err(_) => Outcome::Refused,
        }
    }
}

fn new_node(node: usize) -> NewNode {
    let last = node as u8 + 1;
    NewNode {
        name: format!("node{last:02}"),
        uuid: Uuid::from_u128(0x40de + node as u128),
        primary_ip: Ipv4Addr::new(10, 0, 0, last),
        secondary_ip: Ipv4Addr::new(10, 1, 0, last),
        group: None,
        master_capable: true,
        vm_capable: true,
    }
}

fn cluster() -> Cluster {
    Cluster {
        name: "cluster01".into(),
        uuid: Uuid::from_u128(0xc1),
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        address: Ipv4Addr::new(10, 0, 0, 100),
        netmask: 32,
        netdev: "br0".into(),
        mac_prefix: "aa:00:00".into(),
        hypervisors: vec!["kvm".into()],
        hvparams: Default::default(),
        beparams: Default::default(),
        nicparams: Default::default(),
        ndparams: Default::default(),
        disk_templates: vec![DiskTemplate::Drbd],
        file_storage_dir: "/srv/ganeti/file-storage".into(),
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

fn instance(disk: Disk, nodes: usize) -> Instance {
    Instance {
        id: INSTANCE,
        name: "vm1".into(),
        provision: Provision::Ready,
        primary: node_id(0),
        secondaries: (1..nodes).map(node_id).collect(),
        want: AdminState::Up,
        owner: None,
        run: None,
        migration: None,
        hypervisor: "kvm".into(),
        os: String::new(),
        hvparams: Default::default(),
        beparams: Default::default(),
        osparams: Default::default(),
        disk_template: DiskTemplate::Drbd,
        disks: vec![disk],
        nics: Vec::new(),
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        tags: Default::default(),
    }
}
