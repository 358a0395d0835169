//! What a node looks at before it goes on alone (protocol, 11.1): who else is there, and what may be lost.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jobs::agent::{Call, Reply};
use model::{Disk, Instance, Mirror, NodeId, State};
use opcodes::disks::ReplicaReport;
use opcodes::wire::Recovery;
use opcodes::{ErrorCode, Failure};
use tokio::net::TcpStream;

use crate::member::Member;
use crate::requests;

/// How long another machine may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// Looks, and changes nothing.
///
/// # Errors
/// Where this node can't be the master at all, or is it already.
pub async fn look(member: &Arc<Member>) -> Result<Recovery, Failure> {
    let state = member.state();
    let own = state.nodes.get(&member.id).ok_or_else(|| Failure::unknown("Node", member.name()))?;
    if !own.may_be_master() {
        return Err(requests::no_candidate(&state));
    }
    if requests::is_master(member) {
        return Err(Failure::refused(
            ErrorCode::WrongInput,
            format!(
                "Node '{}' is the master already, and a majority follows it; there is nothing to recover",
                own.name
            ),
        ));
    }
    let others = state.nodes.iter().filter(|(id, _)| **id != member.id);
    let probes = others.clone().flat_map(|(_, node)| {
        let mut addresses = vec![(node.primary_ip, "primary")];
        if node.secondary_ip != node.primary_ip {
            addresses.push((node.secondary_ip, "secondary"));
        }
        addresses.into_iter().map(|(address, which)| probe(&node.name, address, which, member.config.node_port))
    });
    let answering = futures::future::join_all(probes).await.into_iter().flatten().collect();
    let replicas = match member.agent.carry_out(Call::Replicas { disks: Vec::new() }).await {
        Ok(Reply::Replicas(replicas)) => replicas,
        // Without a word about them nothing is promised of them.
        _ => Vec::new(),
    };
    Ok(Recovery {
        master: state.office.map(|office| state.node_name(office.node)),
        others: others.map(|(_, node)| node.name.clone()).collect(),
        answering,
        risks: risks(&state, member.id, &replicas),
        incarnation: None,
    })
}

/// Whether a machine is there at an address; says where. One that refuses the connection is up as well, and a guest may be
/// running on it, whatever became of its daemon.
async fn probe(name: &str, address: Ipv4Addr, which: &str, port: u16) -> Option<String> {
    let place = format!("{name} at its {which} address {address}");
    match tokio::time::timeout(ANSWER, TcpStream::connect(SocketAddr::from((address, port)))).await {
        Ok(Ok(_)) => Some(place),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Some(format!("{place} (the machine is up, its daemon is not)"))
        }
        Ok(Err(_)) | Err(_) => None,
    }
}

/// Whether this node may go on alone now, with these nodes asserted off.
///
/// # Errors
/// Somebody answers, or somebody is not named, or somebody is named who is no other node.
pub fn permit(state: &State, found: &Recovery, off: &[String]) -> Result<Vec<NodeId>, Failure> {
    let refused = |text: String| Err(Failure::refused(ErrorCode::WrongState, text));
    if !found.answering.is_empty() {
        return refused(format!(
            "Nothing was changed: other nodes of the cluster answer: {}. Two halves that go on apart would both write to \
             the instances' disks. Switch those machines off, or let them choose a master with this node",
            found.answering.join("; ")
        ));
    }
    if let Some(stranger) = off.iter().find(|name| !found.others.contains(name)) {
        return refused(format!(
            "Nothing was changed: '{stranger}' is not one of the other nodes, which are: {}",
            found.others.join(", ")
        ));
    }
    let missing: Vec<&str> = found.others.iter().filter(|name| !off.contains(name)).map(String::as_str).collect();
    if !missing.is_empty() {
        return refused(format!(
            "Nothing was changed: nobody asserts that {} is off. Make sure that it is, then name it as well: all other \
             nodes have to be named ({})",
            missing.join(", "),
            found.others.join(",")
        ));
    }
    Ok(off.iter().filter_map(|name| state.node_by_name(name).map(|(id, _)| id)).collect())
}

/// What may be lost, one sentence for each disk.
fn risks(state: &State, me: NodeId, replicas: &[ReplicaReport]) -> Vec<String> {
    let mut instances: Vec<&Instance> = state.instances.values().collect();
    instances.sort_by(|one, other| opcodes::format::natural_cmp(&one.name, &other.name));
    let of_instance = |instance: &Instance| -> Vec<String> {
        let disks = instance.disks.iter().enumerate();
        let mirrored = disks.filter_map(|(index, disk)| {
            let mirror = disk.mirror.as_ref()?;
            let text = risk(state, me, disk, mirror, replicas);
            Some(format!("Disk {index} of instance '{}' {text}.", instance.name))
        });
        let mut texts: Vec<String> = mirrored.collect();
        if texts.is_empty() && instance.primary != me {
            texts.push(format!(
                "Instance '{}' is not mirrored and waits until node '{}' is back.",
                instance.name,
                state.node_name(instance.primary)
            ));
        }
        texts
    };
    instances.into_iter().flat_map(of_instance).collect()
}

fn risk(state: &State, me: NodeId, disk: &Disk, mirror: &Mirror, replicas: &[ReplicaReport]) -> String {
    let others: Vec<String> = mirror
        .replicas
        .values()
        .filter(|it| it.node != me)
        .map(|it| format!("'{}'", state.node_name(it.node)))
        .collect();
    let others = others.join(", ");
    let Some((rid, replica)) = mirror.replica_on(me) else {
        return format!("has no replica on this node; its data is on {others} alone, and the instance waits for that");
    };
    let life = state.nodes.get(&me).map(|node| node.life);
    if mirror.primary.is_some_and(|primary| primary.node == me && Some(primary.life) == life) {
        return "is served by this node; nothing of it is lost".to_owned();
    }
    let report = replicas.iter().find(|it| it.disk == disk.id && it.replica == rid);
    match report {
        Some(ReplicaReport { failed: Some(why), .. }) => {
            format!("has a replica on this node that can't be used ({why}); its data is on {others} alone")
        }
        Some(report) if report.state == "Inconsistent" => format!(
            "has a replica on this node that was in the middle of a resync and is of no use; its data is on {others} alone"
        ),
        None => format!("has a replica on this node of which nothing is known now; count on nothing but {others}"),
        Some(_) if replica.member.is_none() => format!(
            "has been going on without this node's replica: everything that was written since is on {others} alone, and \
             is lost if this node's replica is used"
        ),
        Some(_) => format!(
            "was in sync here as far as this node knows; lost would be what {others} wrote after losing sight of this \
             node, before going off"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::testing;

    fn found(answering: &[&str]) -> Recovery {
        Recovery {
            master: Some("node01".into()),
            others: ["node01", "node03"].map(str::to_owned).to_vec(),
            answering: answering.iter().map(|name| (*name).to_owned()).collect(),
            risks: Vec::new(),
            incarnation: None,
        }
    }

    #[test]
    fn all_other_nodes_have_to_be_silent_and_asserted_off() {
        let state = testing::cluster();
        let permit = |found: &Recovery, off: &[&str]| {
            let off: Vec<String> = off.iter().map(|name| (*name).to_owned()).collect();
            permit(&state, found, &off)
        };
        assert_eq!(permit(&found(&[]), &["node03", "node01"]), Ok(vec![NodeId(3), NodeId(1)]));
        let refused = |found: &Recovery, off: &[&str]| permit(found, off).unwrap_err().text;
        let text = refused(&found(&[]), &["node03"]);
        assert!(text.contains("nobody asserts that node01 is off") && text.contains("node01,node03"), "{text}");
        let text = refused(&found(&[]), &["node01", "node03", "node02"]);
        assert!(text.contains("'node02' is not one of the other nodes"), "{text}");
        let text = refused(&found(&["node01 at its secondary address 10.1.0.5"]), &["node01", "node03"]);
        assert!(text.contains("node01 at its secondary address 10.1.0.5"), "{text}");
    }

    #[tokio::test]
    async fn a_machine_is_there_also_without_its_daemon() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let at = |port| probe("node01", Ipv4Addr::LOCALHOST, "primary", port);
        assert_eq!(at(port).await.unwrap(), "node01 at its primary address 127.0.0.1");
        drop(listener);
        let text = at(port).await.unwrap();
        assert!(text.ends_with("(the machine is up, its daemon is not)"), "{text}");
    }

    #[test]
    fn each_disk_has_its_sentence() {
        let state = testing::cluster();
        let vm5 = state.instance_by_name("vm5").unwrap();
        let mirror = vm5.disks[0].mirror.as_ref().unwrap();
        let rid = mirror.replica_on(NodeId(2)).unwrap().0;
        let report = |held: &str| ReplicaReport {
            disk: vm5.disks[0].id,
            replica: rid,
            role: "Secondary".into(),
            state: held.into(),
            peers: Vec::new(),
            serving: None,
            counters: Default::default(),
            pending: 0,
            waiting: 0,
            holding: false,
            suspended: false,
            failed: None,
            held: None,
        };
        let of_vm5 = |state: &State, me: u64, replicas: &[ReplicaReport]| {
            let risks = risks(state, NodeId(me), replicas);
            risks.into_iter().find(|text| text.contains("'vm5'")).unwrap()
        };
        let known = [report("UpToDate")];
        assert!(of_vm5(&state, 2, &known).contains("was in sync here as far as this node knows"));
        assert!(of_vm5(&state, 2, &[]).contains("of which nothing is known now"));
        assert!(of_vm5(&state, 2, &[report("Inconsistent")]).contains("in the middle of a resync"));
        assert!(
            of_vm5(&state, 4, &known).contains("has no replica on this node; its data is on 'node01', 'node02' alone")
        );

        let changed = |change: &dyn Fn(&mut Mirror)| {
            let mut state = state.clone();
            let id = state.instance_by_name("vm5").unwrap().id;
            change(state.instances.get_mut(&id).unwrap().disks[0].mirror.as_mut().unwrap());
            of_vm5(&state, 2, &known)
        };
        let behind = changed(&|mirror| mirror.replicas.get_mut(&rid).unwrap().member = None);
        assert!(behind.contains("everything that was written since is on 'node01' alone"), "{behind}");
        let life = state.nodes[&NodeId(2)].life;
        let served = changed(&|mirror| mirror.primary = Some(model::NodeLife { node: NodeId(2), life }));
        assert!(served.contains("is served by this node; nothing of it is lost"), "{served}");
        // What is not mirrored waits for its node.
        let lone = risks(&state, NodeId(2), &[]);
        assert!(
            lone.iter().any(|text| text == "Instance 'vm1' is not mirrored and waits until node 'node01' is back.")
        );
    }
}
