//! A small cluster for tests: node01 to node03 may run guests, node03 is the master, node04 the witness; all have joined
//! and are armed.

use std::net::Ipv4Addr;

use model::{
    AdminState, Applied, Cluster, Command, Disk, DiskAccess, DiskId, DiskTemplate, Instance, InstanceId, Life, Mirror,
    MirrorMode, NewNode, NodeId, ParamValue, Proposal, Provision, ReplicaId, State, Timestamp, Uuid,
};

pub fn run(state: &mut State, command: Command) -> Applied {
    run_at(state, Timestamp(1), command)
}

pub fn run_at(state: &mut State, at: Timestamp, command: Command) -> Applied {
    let office = Some(state.office.map_or(0, |office| office.term));
    let proposal = Proposal { incarnation: state.incarnation, office, at, commands: vec![command] };
    state.apply(&proposal).unwrap().remove(0)
}

fn new_node(number: u8) -> NewNode {
    NewNode {
        name: format!("node{number:02}"),
        uuid: Uuid::from_u128(number.into()),
        primary_ip: Ipv4Addr::new(10, 0, 0, number),
        secondary_ip: Ipv4Addr::new(10, 1, 0, number),
        group: None,
        master_capable: number < 4,
        vm_capable: number < 4,
    }
}

pub fn cluster() -> State {
    let cluster = Cluster {
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
        disk_templates: DiskTemplate::ALL.into(),
        file_storage_dir: "/srv".into(),
        candidate_pool_size: 10,
        max_running_jobs: 20,
        tags: Default::default(),
        os: Default::default(),
        drained: false,
        ha: true,
        lease_ms: model::LEASE_MS,
        ca_certificate: String::new(),
        ca_key: String::new(),
    };
    let mut state = State::default();
    let (incarnation, group) = (Uuid::from_u128(0x11), Uuid::from_u128(0x9));
    run(&mut state, Command::Init { cluster: Box::new(cluster), incarnation, group, node: new_node(1) });
    run(&mut state, Command::TakeOffice { node: NodeId(1), term: 1 });
    for number in 2..=4 {
        let token = Uuid::from_u128(0x1000);
        let node = new_node(number);
        let (secret_sha256, expires) = (String::new(), Timestamp(u64::MAX));
        run(&mut state, Command::AddToken { id: token, secret_sha256, node, expires });
        run(&mut state, Command::AddNode { token });
        run(&mut state, Command::DropToken { id: token });
    }
    for number in 1..=4 {
        boot(&mut state, number, "first");
        let node = NodeId(number);
        let life = state.nodes[&node].life;
        run(&mut state, Command::Arm { node, life });
    }
    run(&mut state, Command::TakeOffice { node: NodeId(3), term: 2 });
    state
}

/// A node begins another life, without its guests.
pub fn boot(state: &mut State, number: u64, boot: &str) {
    let node = NodeId(number);
    let previous: Life = state.nodes[&node].life;
    run(state, Command::JoinNode { node, boot: boot.into(), previous, runs: Vec::new() });
}

pub fn vm(number: u64) -> InstanceId {
    InstanceId(Uuid::from_u128(number.into()))
}

pub fn disk(number: u64) -> DiskId {
    DiskId(Uuid::from_u128(number.into()))
}

fn rid(number: u64, node: u64) -> ReplicaId {
    ReplicaId(Uuid::from_u128(u128::from(number) << 8 | u128::from(node)))
}

/// An instance that runs on the first of these nodes and has replicas on all; with none, it is a file on node01.
pub fn add(state: &mut State, number: u64, mib: i64, priority: i64, nodes: &[u64]) {
    let on = NodeId(nodes.first().copied().unwrap_or(1));
    let replicas = nodes.iter().map(|node| (rid(number, *node), NodeId(*node), "first".to_owned()));
    let mirror = (!nodes.is_empty()).then(|| Mirror::new(MirrorMode::Manual, replicas));
    let template = if nodes.is_empty() { DiskTemplate::File } else { DiskTemplate::Drbd };
    let beparams = [("maxmem", mib), ("ha_priority", priority)];
    let instance = Instance {
        id: vm(number),
        name: format!("vm{number}"),
        provision: Provision::Ready,
        primary: on,
        secondaries: nodes.iter().skip(1).copied().map(NodeId).collect(),
        want: AdminState::Up,
        owner: None,
        run: None,
        migration: None,
        hypervisor: "fake".into(),
        os: "busybox".into(),
        hvparams: Default::default(),
        beparams: beparams.map(|(name, value)| (name.to_owned(), ParamValue::Int(value))).into(),
        osparams: Default::default(),
        disk_template: template,
        disks: vec![Disk {
            id: disk(number),
            name: None,
            size_mib: 1024,
            access: DiskAccess::Rw,
            ctime: Timestamp(0),
            mirror,
        }],
        nics: Vec::new(),
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        tags: Default::default(),
    };
    run(state, Command::AddInstance(Box::new(instance)));
    run(state, Command::Own { instance: vm(number), node: on });
}

/// The primary of an instance's disk goes on without the replica on a node.
pub fn outdate(state: &mut State, number: u64, node: u64) {
    let mirror = state.instances[&vm(number)].disks[0].mirror.as_ref().unwrap();
    let (by, epoch, ver) = (mirror.primary.unwrap(), mirror.epoch, mirror.ver);
    run(state, Command::Outdate { disk: disk(number), by, epoch, ver, replicas: vec![rid(number, node)] });
}
