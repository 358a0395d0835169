//! A small cluster for tests: node01 is the master, node02 a candidate, node03 a witness, node04 marked offline; vm1 runs on
//! node01, vm3 on node02; vm2 (stopped) and vm10 (being made) are node01's;
//! vm5 (stopped) is mirrored, from node01 to node02.

use std::net::Ipv4Addr;

use jobs::agent::{Facts, LiveInstance, SystemInfo};
use model::{
    AdminState, Applied, Cluster, Command, Disk, DiskAccess, DiskId, DiskTemplate, Instance, InstanceId, JobId, Life,
    Mirror, MirrorMode, NewJob, NewNode, Nic, NodeChange, NodeId, ParamValue, Params, Proposal, Provision, ReplicaId,
    State, Timestamp, Uuid,
};
use opcodes::Opcode;
use opcodes::op::TestDelay;

use super::{Asked, Live};

/// When everything in it was made: 2023-11-14 22:13:20 UTC.
pub const MADE: Timestamp = Timestamp(1_700_000_000_000_000);

fn run(state: &mut State, command: Command) -> Applied {
    let office = Some(state.office.map_or(0, |office| office.term));
    let proposal = Proposal { incarnation: state.incarnation, office, at: MADE, commands: vec![command] };
    state.apply(&proposal).unwrap().remove(0)
}

fn new_node(number: u8, candidate: bool) -> NewNode {
    NewNode {
        name: format!("node{number:02}"),
        uuid: Uuid::from_u128(u128::from(number)),
        primary_ip: Ipv4Addr::new(10, 0, 0, 4 + number),
        secondary_ip: Ipv4Addr::new(10, 1, 0, 4 + number),
        group: None,
        master_capable: candidate,
        vm_capable: candidate,
    }
}

fn memory(mib: i64) -> Params {
    ["maxmem", "minmem"].map(|name| (name.to_owned(), ParamValue::Int(mib))).into()
}

fn instance(number: u64, primary: u64, mib: i64, disk_mib: u64) -> Instance {
    let unique = |what: u128| Uuid::from_u128(what << 64 | u128::from(number));
    Instance {
        id: InstanceId(unique(1)),
        name: format!("vm{number}"),
        provision: Provision::Ready,
        primary: NodeId(primary),
        secondaries: Vec::new(),
        want: AdminState::Down,
        owner: None,
        run: None,
        migration: None,
        hypervisor: "kvm".into(),
        os: "busybox+default".into(),
        hvparams: Params::from([("kernel_path".into(), ParamValue::Text("/boot/vmlinuz-guest".into()))]),
        beparams: memory(mib),
        osparams: Params::new(),
        disk_template: if disk_mib == 0 { DiskTemplate::Diskless } else { DiskTemplate::File },
        disks: (disk_mib > 0)
            .then(|| Disk {
                id: DiskId(unique(2)),
                name: None,
                size_mib: disk_mib,
                access: DiskAccess::Rw,
                ctime: MADE,
                mirror: None,
            })
            .into_iter()
            .collect(),
        nics: vec![Nic {
            uuid: unique(3),
            name: None,
            mac: format!("aa:00:00:00:00:{number:02x}"),
            ip: None,
            params: Params::new(),
        }],
        ctime: MADE,
        mtime: MADE,
        serial_no: 1,
        tags: Default::default(),
    }
}

/// The replica of vm5's disk on a node.
pub fn replica(node: u8) -> ReplicaId {
    ReplicaId(Uuid::from_u128(0x5000 + u128::from(node)))
}

/// The cluster.
pub fn cluster() -> State {
    let mut state = State::default();
    let cluster = Cluster {
        name: "cluster01".into(),
        uuid: Uuid::from_u128(0xc1),
        ctime: MADE,
        mtime: MADE,
        serial_no: 1,
        address: Ipv4Addr::new(10, 0, 0, 20),
        netmask: 32,
        netdev: "br0".into(),
        mac_prefix: "aa:00:00".into(),
        hypervisors: vec!["kvm".into()],
        hvparams: Default::default(),
        beparams: Default::default(),
        nicparams: Default::default(),
        ndparams: Default::default(),
        disk_templates: vec![DiskTemplate::File, DiskTemplate::Diskless],
        file_storage_dir: "/srv/ganeti/file-storage".into(),
        candidate_pool_size: 10,
        max_running_jobs: 20,
        tags: Default::default(),
        os: Default::default(),
        drained: false,
        ha: true,
        lease_ms: model::LEASE_MS,
        ca_certificate: "the certificate".into(),
        ca_key: "the key".into(),
    };
    let (incarnation, group) = (Uuid::from_u128(0x11), Uuid::from_u128(0x9));
    let node = new_node(1, true);
    run(&mut state, Command::Init { cluster: Box::new(cluster), incarnation, group, node });
    run(&mut state, Command::TakeOffice { node: NodeId(1), term: 7 });
    run(&mut state, Command::SetAddressOwner(Some(NodeId(1))));
    for number in 2..=4 {
        let id = Uuid::from_u128(0x1000 + u128::from(number));
        let node = new_node(number, number != 3);
        run(&mut state, Command::AddToken { id, secret_sha256: String::new(), node, expires: Timestamp(u64::MAX) });
        run(&mut state, Command::AddNode { token: id });
        run(&mut state, Command::DropToken { id });
    }
    for number in 1..=3 {
        let boot = format!("boot{number}");
        let node = NodeId(number);
        run(&mut state, Command::JoinNode { node, boot, previous: Life(0), runs: Vec::new() });
        let life = state.nodes[&node].life;
        run(&mut state, Command::Arm { node, life });
    }
    for (number, primary, mib, disk_mib) in [(1, 1, 256, 10240), (2, 1, 128, 4096), (3, 2, 64, 0), (10, 1, 64, 2048)] {
        run(&mut state, Command::AddInstance(Box::new(instance(number, primary, mib, disk_mib))));
    }
    for (name, node) in [("vm1", 1), ("vm3", 2)] {
        let instance = state.instance_by_name(name).unwrap().id;
        run(&mut state, Command::Own { instance, node: NodeId(node) });
        let change = Box::new(model::InstanceChange::want(AdminState::Up));
        run(&mut state, Command::ModifyInstance { instance, change });
    }
    let change = NodeChange { offline: Some(true), ..NodeChange::default() };
    run(&mut state, Command::ModifyNode { node: NodeId(4), change });
    for number in 1..=12u32 {
        let durations = if number == 12 { vec![0.0, 1.0] } else { vec![0.0] };
        let ops = durations.into_iter().map(|duration| {
            let op = Opcode::TestDelay(TestDelay { duration, ..TestDelay::default() });
            (serde_json::to_value(&op).unwrap(), op.summary())
        });
        let job = NewJob { ops: ops.collect(), priority: 0, depends: Vec::new(), user: "root".into() };
        run(&mut state, Command::SubmitJob(job));
    }
    let mut mirrored = instance(5, 1, 64, 4096);
    mirrored.disk_template = DiskTemplate::Drbd;
    mirrored.secondaries = vec![NodeId(2)];
    let replicas = [1, 2].map(|node| (replica(node), NodeId(u64::from(node)), format!("boot{node}")));
    mirrored.disks[0].mirror = Some(Mirror::new(MirrorMode::Strict, replicas));
    run(&mut state, Command::AddInstance(Box::new(mirrored)));
    let id = state.instance_by_name("vm10").unwrap().id;
    state.instances.get_mut(&id).unwrap().provision = Provision::Creating(JobId(12));
    state
}

/// What its nodes say when all is well.
pub fn live(state: &State) -> Live {
    let facts = |node: u64| {
        let runs = state.instances.values().filter(|instance| instance.primary == NodeId(node));
        let instances = runs.filter_map(|instance| {
            Some(LiveInstance {
                instance: instance.name.clone(),
                run: instance.run?,
                memory_mib: state.memory_mib(instance),
                vcpus: 1,
                state: "running".into(),
            })
        });
        Asked::Answer(Facts {
            memory_total_mib: 8000,
            memory_free_mib: 7000,
            memory_node_mib: 500,
            disk_total_mib: 100_000,
            disk_free_mib: 90_000,
            mirror_free_mib: 0,
            cpus: 4,
            boot: format!("boot{node}"),
            time: MADE.0,
            version: "0.1.0".into(),
            accelerator: "tcg".into(),
            instances: instances.collect(),
        })
    };
    let busybox = SystemInfo {
        name: "busybox".into(),
        path: "/usr/share/cardume/os/busybox".into(),
        valid: true,
        diagnosis: String::new(),
        variants: vec!["default".into(), "minimal".into()],
        api_versions: vec![20],
        parameters: Vec::new(),
    };
    Live {
        facts: [1, 2].map(|node| (NodeId(node), facts(node))).into(),
        systems: [1, 2].map(|node| (NodeId(node), Asked::Answer(vec![busybox.clone()]))).into(),
    }
}
