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
        return Some(
            "automatic failover is switched off; when a node dies its instances wait for it or for an operator, until \
             'cardume ha arm' switches it on"
                .to_owned(),
        );
    }
    let voting = state.nodes.values().filter(|node| node.may_vote()).count();
    if voting < 3 {
        return Some(format!(
            "there is no automatic failover, because {} and of two nodes none can tell a dead one from a cut cable; when the \
             master dies its instances wait until an operator types 'gnt-cluster master-failover --no-voting' and \
             'gnt-node failover --ignore-consistency' on the other node, while with a witness (a third machine that only \
             votes, 'gnt-node add --master-capable=no --vm-capable=no NAME') they would start there by themselves within \
             seconds",
            match voting {
                1 => "only one node may vote".to_owned(),
                voting => format!("only {voting} nodes may vote"),
            }
        ));
    }
    let unarmed = state.nodes.values().filter(|node| node.vm_capable && !node.offline && !node.armed);
    let unarmed: Vec<&str> = unarmed.map(|node| node.name.as_str()).collect();
    (!unarmed.is_empty()).then(|| {
        format!(
            "not armed for automatic failover is {}; instances with a replica there wait for an operator when their node \
             dies ('cardume ha status' says why it is not)",
            unarmed.join(", ")
        )
    })
}
