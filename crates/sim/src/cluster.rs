//! The cluster that is simulated: its nodes, its instances, and the names that they have.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use model::{
    AdminState, Cluster, Command, Disk, DiskAccess, DiskId, DiskTemplate, Instance, InstanceId, Life, Mirror,
    MirrorMode, NewNode, NodeId, Proposal, Provision, Rejection, ReplicaId, State, Timestamp, Uuid,
};

use crate::plan::Plan;

/// Name of a boot of a node.
pub fn boot_name(node: usize, boot: u64) -> String {
    format!("boot-{node}-{boot}")
}

/// Number of a node, which are counted from nought here.
pub fn node_id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

/// The contrary.
pub fn index(node: NodeId) -> usize {
    node.0.saturating_sub(1) as usize
}

/// The instance that has a disk; each has one.
pub fn instance_id(disk: usize) -> InstanceId {
    InstanceId(Uuid::from_u128(0x1457_0000 + disk as u128))
}

/// Identity of a disk.
pub fn disk_id(disk: usize) -> DiskId {
    DiskId(Uuid::from_u128(0xd15c_0000 + disk as u128))
}

/// Identity of a disk's replica on a node.
pub fn rid(disk: usize, node: usize) -> ReplicaId {
    ReplicaId(Uuid::from_u128(0x4e70_0000 + 16 * disk as u128 + node as u128))
}

/// The node of a replica.
pub fn node_of(replica: ReplicaId) -> usize {
    (replica.0.as_u128() % 16) as usize
}

/// Everybody votes.
pub fn voters(plan: &Plan) -> BTreeSet<NodeId> {
    (0..plan.kinds.len()).map(node_id).collect()
}

/// The nodes that have a replica of a disk: neighbours among those that run guests.
pub fn homes(plan: &Plan, disk: usize) -> [usize; 2] {
    let able: Vec<usize> = (0..plan.kinds.len()).filter(|node| !is_witness(plan, *node)).collect();
    [able[disk % able.len()], able[(disk + 1) % able.len()]]
}

/// Whether a node only votes.
pub fn is_witness(plan: &Plan, node: usize) -> bool {
    plan.kinds.as_bytes().get(node) == Some(&b'w')
}

/// The proposals that make the cluster, in term 1 of node 0: every node has joined, and is armed.
pub fn founding(plan: &Plan, size: u64) -> Result<State, Rejection> {
    let mut state = State::default();
    let mut run = |commands: Vec<Command>| {
        let proposal = Proposal {
            incarnation: state.incarnation,
            office: Some(state.office.map_or(0, |office| office.term)),
            at: Timestamp(0),
            commands,
        };
        state.apply(&proposal)
    };
    let (incarnation, group) = (Uuid::from_u128(0x11), Uuid::from_u128(0x9));
    run(vec![Command::Init { cluster: Box::new(cluster()), incarnation, group, node: new_node(plan, 0) }])?;
    run(vec![Command::TakeOffice { node: node_id(0), term: 1 }])?;
    for node in 1..plan.kinds.len() {
        let token = Uuid::from_u128(0x7000 + node as u128);
        let (node, expires) = (new_node(plan, node), Timestamp(9));
        let add = Command::AddToken { id: token, secret_sha256: String::new(), node, expires };
        run(vec![add, Command::AddNode { token }])?;
    }
    for node in 0..plan.kinds.len() {
        let (id, boot) = (node_id(node), boot_name(node, 0));
        run(vec![Command::JoinNode { node: id, boot, previous: Life(0), runs: Vec::new() }])?;
        if !is_witness(plan, node) {
            run(vec![Command::Arm { node: id, life: Life(node as u64 + 1) }])?;
        }
    }
    for disk in 0..plan.disks {
        run(vec![Command::AddInstance(Box::new(instance(plan, disk, size)))])?;
    }
    Ok(state)
}

fn new_node(plan: &Plan, node: usize) -> NewNode {
    let (last, able) = (node as u8 + 1, !is_witness(plan, node));
    NewNode {
        name: format!("node{last:02}"),
        uuid: Uuid::from_u128(0x40de + node as u128),
        primary_ip: Ipv4Addr::new(10, 0, 0, last),
        secondary_ip: Ipv4Addr::new(10, 1, 0, last),
        group: None,
        master_capable: able,
        vm_capable: able,
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

fn instance(plan: &Plan, disk: usize, size: u64) -> Instance {
    let homes = homes(plan, disk);
    let replicas = homes.map(|node| (rid(disk, node), node_id(node), boot_name(node, 0)));
    let mirrored = Disk {
        id: disk_id(disk),
        name: None,
        size_mib: size.div_ceil(1 << 20),
        access: DiskAccess::Rw,
        ctime: Timestamp(0),
        mirror: Some(Mirror::new(MirrorMode::Strict, replicas)),
    };
    Instance {
        id: instance_id(disk),
        name: format!("vm{}", disk + 1),
        provision: Provision::Ready,
        primary: node_id(homes[0]),
        secondaries: vec![node_id(homes[1])],
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
        disks: vec![mirrored],
        nics: Vec::new(),
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        tags: Default::default(),
    }
}
