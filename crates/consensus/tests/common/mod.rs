//! What both test binaries propose.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use consensus::NodeInfo;
use model::{Cluster, Command, DiskTemplate, NewJob, NewNode, Timestamp, Uuid};

pub fn info(node: u64) -> NodeInfo {
    NodeInfo { address: format!("node{node:02}:5081") }
}

pub fn new_node(node: u64) -> NewNode {
    let address = Ipv4Addr::new(10, 0, 0, 4 + node as u8);
    NewNode {
        name: format!("node{node:02}"),
        uuid: Uuid::from_u128(node.into()),
        primary_ip: address,
        secondary_ip: address,
        group: None,
        master_capable: true,
        vm_capable: true,
    }
}

/// Makes the cluster, with node 1.
pub fn init() -> Command {
    Command::Init {
        cluster: Box::new(Cluster {
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
            hvparams: BTreeMap::new(),
            beparams: BTreeMap::new(),
            nicparams: BTreeMap::new(),
            ndparams: BTreeMap::new(),
            disk_templates: vec![DiskTemplate::File],
            file_storage_dir: "/srv/ganeti/file-storage".into(),
            candidate_pool_size: 10,
            max_running_jobs: 20,
            tags: BTreeSet::new(),
            os: BTreeMap::new(),
            drained: false,
            ha: true,
            lease_ms: model::LEASE_MS,
            ca_certificate: String::new(),
            ca_key: String::new(),
        }),
        incarnation: Uuid::from_u128(0x11),
        group: Uuid::from_u128(0x9),
        node: new_node(1),
    }
}

/// Submits a job in the name of `user`.
pub fn job(user: &str) -> Command {
    Command::SubmitJob(NewJob {
        ops: vec![(serde_json::json!({"OP_ID": "OP_TEST_DELAY"}), "TEST_DELAY".into())],
        priority: 0,
        depends: vec![],
        user: user.into(),
    })
}
