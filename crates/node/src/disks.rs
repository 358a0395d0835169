//! How mirrored disks are, put together from what their nodes say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jobs::CallError;
use jobs::agent::{Call, Reply};
use model::{Disk, DiskId, Instance, Mirror, NodeId, State};
use opcodes::Failure;
use opcodes::disks::{DiskReport, NodeReplica, ReplicaReport};

use crate::office::Office;

/// How long a node may take to say how its replicas are, before the report goes on without it.
const LOOK: Duration = Duration::from_millis(1500);

/// What one node says, or why it says nothing.
type Said = Result<Vec<ReplicaReport>, String>;

/// The mirrored disks of these instances, or of all.
pub async fn reports(office: &Office, state: &State, names: &[String]) -> Result<Vec<DiskReport>, Failure> {
    let mut instances: Vec<&Instance> = if names.is_empty() {
        state.instances.values().collect()
    } else {
        let find = |name: &String| state.instance_by_name(name).ok_or_else(|| Failure::unknown("Instance", name));
        names.iter().map(find).collect::<Result<_, _>>()?
    };
    instances.sort_by(|one, other| one.name.cmp(&other.name));
    instances.dedup_by_key(|instance| instance.id);
    let mirrors: Vec<(&Instance, usize, &Disk, &Mirror)> = instances
        .into_iter()
        .flat_map(|instance| (0..).zip(&instance.disks).map(move |(index, disk)| (instance, index, disk)))
        .filter_map(|(instance, index, disk)| Some((instance, index, disk, disk.mirror.as_ref()?)))
        .collect();
    let disks: Vec<DiskId> = mirrors.iter().map(|(_, _, disk, _)| disk.id).collect();
    let nodes = mirrors.iter().flat_map(|(.., mirror)| mirror.replicas.values()).map(|replica| replica.node);
    let nodes: BTreeSet<NodeId> = nodes.collect();
    let asked = nodes.into_iter().map(|node| {
        let call = Call::Replicas { disks: disks.clone() };
        async move { (node, ask(office, state, node, call).await) }
    });
    let said: BTreeMap<NodeId, Said> = futures::future::join_all(asked).await.into_iter().collect();
    let report = |(instance, index, disk, mirror): (&Instance, usize, &Disk, &Mirror)| {
        report(state, &said, instance, index, disk, mirror)
    };
    Ok(mirrors.into_iter().map(report).collect())
}

async fn ask(office: &Office, state: &State, node: NodeId, call: Call) -> Said {
    if state.nodes.get(&node).is_some_and(|node| node.offline) {
        return Err("the node is marked offline".into());
    }
    if state.nodes.get(&node).is_some_and(|node| node.dead) {
        return Err("the node was declared dead".into());
    }
    match office.ask(node, call, LOOK).await {
        Ok(Reply::Replicas(replicas)) => Ok(replicas),
        Ok(_) => Err("the node gave an answer to something else".into()),
        Err(CallError::Failed(failure)) => Err(failure.text),
        Err(CallError::Deposed) => Err("this node is no longer the master".into()),
        Err(CallError::Unreachable(why)) => Err(format!("the node does not answer: {why}")),
    }
}

fn report(
    state: &State,
    said: &BTreeMap<NodeId, Said>,
    instance: &Instance,
    index: usize,
    disk: &Disk,
    mirror: &Mirror,
) -> DiskReport {
    let name = |node: NodeId| state.node_name(node);
    let primary = mirror.primary.map(|primary| primary.node);
    // The primary's first; of a disk that nobody serves, that of the node where it would be.
    let first = primary.unwrap_or(instance.primary);
    let mut replicas: Vec<_> = mirror.replicas.iter().collect();
    replicas.sort_by_key(|(_, replica)| (replica.node != first, replica.slot));
    let replicas = replicas.into_iter().map(|(rid, replica)| {
        let (report, why) = match said.get(&replica.node) {
            None => (None, None),
            Some(Err(why)) => (None, Some(why.clone())),
            Some(Ok(reports)) => match reports.iter().find(|it| it.disk == disk.id && it.replica == *rid) {
                Some(report) => (Some(report.clone()), None),
                None => (None, Some("the node has no such replica".into())),
            },
        };
        NodeReplica { node: name(replica.node), report, why }
    });
    let members = mirror.replicas.values().filter(|replica| replica.member.is_some());
    DiskReport {
        instance: instance.name.clone(),
        index,
        disk: disk.id,
        size_mib: disk.size_mib,
        mode: format!("{:?}", mirror.mode).to_lowercase(),
        epoch: mirror.epoch.to_string(),
        version: mirror.ver.to_string(),
        in_sync: members.map(|replica| name(replica.node)).collect(),
        primary: primary.map(name),
        replicas: replicas.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::testing;

    fn secondary(disk: DiskId, replica: model::ReplicaId) -> ReplicaReport {
        ReplicaReport {
            disk,
            replica,
            role: "Secondary".into(),
            state: "UpToDate".into(),
            peers: Vec::new(),
            serving: None,
            counters: Default::default(),
            pending: 0,
            waiting: 0,
            holding: false,
            suspended: false,
            failed: None,
            held: None,
        }
    }

    #[test]
    fn a_disk_is_reported_with_every_replica_and_why_one_says_nothing() {
        let mut state = testing::cluster();
        let id = state.instance_by_name("vm5").unwrap().id;
        let mirror = state.instances.get_mut(&id).unwrap().disks[0].mirror.as_mut().unwrap();
        mirror.primary = Some(model::NodeLife { node: NodeId(2), life: model::Life(1) });
        let instance = &state.instances[&id];
        let (disk, mirror) = (&instance.disks[0], instance.disks[0].mirror.as_ref().unwrap());
        let (own, _) = mirror.replica_on(NodeId(1)).unwrap();
        let gone = model::ReplicaId(model::Uuid::from_u128(99));

        let said = BTreeMap::from([
            (NodeId(1), Ok(vec![secondary(disk.id, own)])),
            (NodeId(2), Err("the node does not answer".to_owned())),
        ]);
        let found = report(&state, &said, instance, 0, disk, mirror);
        let shown: Vec<_> =
            found.replicas.iter().map(|it| (it.node.as_str(), it.report.is_some(), it.why.as_deref())).collect();
        assert_eq!(shown, [("node02", false, Some("the node does not answer")), ("node01", true, None)]);
        assert_eq!((found.primary.as_deref(), found.mode.as_str()), (Some("node02"), "strict"));
        assert_eq!(found.in_sync, ["node01", "node02"]);

        // What a node has of an earlier time is not this replica.
        let said = BTreeMap::from([(NodeId(1), Ok(vec![secondary(disk.id, gone)]))]);
        let found = report(&state, &said, instance, 0, disk, mirror);
        assert_eq!(found.replicas[1].why.as_deref(), Some("the node has no such replica"));
    }
}
