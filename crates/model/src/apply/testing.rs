//! Small clusters for tests of this crate.

use std::net::Ipv4Addr;

use crate::cluster::Cluster;
use crate::command::{Applied, Command, Proposal, Rejection};
use crate::ids::{NodeId, Timestamp, Uuid};
use crate::instance::DiskTemplate;
use crate::node::{NewNode, NodeChange};
use crate::state::State;

pub fn new_node(number: u8) -> NewNode {
    NewNode {
        name: format!("node{number:02}"),
        uuid: Uuid::from_u128(u128::from(number)),
        primary_ip: Ipv4Addr::new(10, 0, 0, 4 + number),
        secondary_ip: Ipv4Addr::new(10, 1, 0, 4 + number),
        group: None,
        master_capable: true,
        vm_capable: true,
    }
}

pub fn new_cluster() -> Cluster {
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
        lease_ms: crate::LEASE_MS,
        ca_certificate: String::new(),
        ca_key: String::new(),
    }
}

/// Proposes in the state's own incarnation and office.
pub fn run(state: &mut State, commands: Vec<Command>) -> Result<Vec<Applied>, Rejection> {
    let proposal = Proposal {
        incarnation: state.incarnation,
        office: Some(state.office.map_or(0, |office| office.term)),
        at: Timestamp(state.last_job + 1),
        commands,
    };
    state.apply(&proposal)
}

/// A cluster of nodes given as letters: `c` candidate, `w` witness, `r` regular. The first is the master in term 1.
pub fn cluster_of(nodes: &str) -> State {
    let mut state = State::default();
    let init = Command::Init {
        cluster: Box::new(new_cluster()),
        incarnation: Uuid::from_u128(0x11),
        group: Uuid::from_u128(0x9),
        node: new_node(1),
    };
    run(&mut state, vec![init]).unwrap();
    run(&mut state, vec![Command::TakeOffice { node: NodeId(1), term: 1 }]).unwrap();
    for (index, kind) in nodes.chars().enumerate().skip(1) {
        let mut node = new_node(index as u8 + 1);
        node.master_capable = kind != 'w';
        node.vm_capable = kind != 'w';
        let token = Uuid::from_u128(0x1000 + index as u128);
        let add = Command::AddToken { id: token, secret_sha256: String::new(), node, expires: Timestamp(u64::MAX) };
        run(&mut state, vec![add, Command::AddNode { token }, Command::DropToken { id: token }]).unwrap();
    }
    for (index, _) in nodes.chars().enumerate().filter(|(_, kind)| *kind == 'r') {
        let node = NodeId(index as u64 + 1);
        let change = NodeChange { master_candidate: Some(false), ..NodeChange::default() };
        run(&mut state, vec![Command::ModifyNode { node, change }]).unwrap();
    }
    state
}
