//! What stands between the cluster and automatic failover: the warning that does not go away.

use model::State;

/// Why not every mirrored instance is taken over by itself when its node dies, and what would change that: one sentence
/// without a full stop. `None` where it is, and in a cluster of one node, which has nothing to fail over to.
pub fn standing_warning(state: &State) -> Option<String> {
    let cluster = state.cluster.as_ref()?;
    if state.nodes.values().filter(|node| node.vm_capable).count() < 2 {
        return None;
    }
    if !cluster.ha {
        return Some("it is switched off, until 'cardume ha arm' switches it on".to_owned());
    }
    let voting = state.nodes.values().filter(|node| node.may_vote()).count();
    if voting < 3 {
        let who = if voting == 1 { "one node votes".to_owned() } else { format!("{voting} nodes may vote") };
        return Some(format!(
            "only {who}, and of two none can tell a dead peer from a cut cable; with a witness, a small third machine that \
             only votes ('gnt-node add --master-capable=no --vm-capable=no NAME'), the instances of a dead node would start on \
             the other one by themselves within seconds, without it an operator has to type \
             'gnt-cluster master-failover --no-voting' and 'gnt-node failover --ignore-consistency'"
        ));
    }
    let unarmed = state.nodes.values().filter(|node| node.vm_capable && !node.offline && !node.armed);
    let unarmed: Vec<&str> = unarmed.map(|node| node.name.as_str()).collect();
    (!unarmed.is_empty()).then(|| {
        format!(
            "not armed is {}, so instances with a replica there wait for an operator when their node dies ('cardume ha status' \
             says why)",
            unarmed.join(", ")
        )
    })
}
