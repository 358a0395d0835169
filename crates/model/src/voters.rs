//! Who votes: chosen for the administrator (protocol, 7.4).

use std::collections::BTreeSet;

use crate::ids::NodeId;
use crate::state::State;

/// The voters that the cluster should have, given those that it has and its master.
///
/// One until three nodes may vote (a witness counts), then three, then five; never two, because then the loss of either
/// stops the cluster. Who votes already goes on voting while it may: a node that is merely absent keeps its vote, or
/// absences would shrink the set until a minority could decide. `master` always votes.
pub fn voters(state: &State, current: &BTreeSet<NodeId>, master: NodeId) -> BTreeSet<NodeId> {
    let may: Vec<NodeId> = state.nodes.iter().filter(|(_, node)| node.may_vote()).map(|(id, _)| *id).collect();
    let wanted = match may.len() {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    };
    let mut chosen = BTreeSet::from([master]);
    // Keep those who vote, then witnesses (they do nothing else), then the rest by age.
    let by_preference = may
        .iter()
        .filter(|id| current.contains(id))
        .chain(may.iter().filter(|id| state.nodes[id].is_witness()))
        .chain(may.iter());
    for id in by_preference {
        if chosen.len() >= wanted {
            break;
        }
        chosen.insert(*id);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::testing;

    /// One row: the nodes in order of age (`c` candidate, `w` witness, `r` regular), who votes now, who should.
    #[test]
    fn voters_are_chosen_for_the_administrator() {
        for (nodes, current, wanted) in [
            ("c", vec![1], vec![1]),
            // two voters are worse than one
            ("cc", vec![1], vec![1]),
            // the witness makes three
            ("ccw", vec![1], vec![1, 2, 3]),
            ("ccc", vec![1], vec![1, 2, 3]),
            // four may vote: three do, the witness among them
            ("cccw", vec![1], vec![1, 2, 4]),
            // who votes already keeps it
            ("cccw", vec![1, 2, 3], vec![1, 2, 3]),
            ("cccccc", vec![1, 2, 3], vec![1, 2, 3, 4, 5]),
            // a regular node never votes
            ("crr", vec![1], vec![1]),
            // a voter that may no longer vote is replaced
            ("crcw", vec![1, 2, 3], vec![1, 3, 4]),
            // two are left: back to one
            ("cc", vec![1, 2, 3], vec![1]),
        ] {
            let state = testing::cluster_of(nodes);
            let current = current.into_iter().map(NodeId).collect();
            let wanted: BTreeSet<NodeId> = wanted.into_iter().map(NodeId).collect();
            assert_eq!(voters(&state, &current, NodeId(1)), wanted, "{nodes} {current:?}");
        }
    }

    /// Marking a node as away takes its vote; taking the mark away gives it back.
    #[test]
    fn a_node_that_is_back_in_service_votes_again() {
        let mut state = testing::cluster_of("ccw");
        let all: BTreeSet<NodeId> = [1, 2, 3].into_iter().map(NodeId).collect();
        let mark = |state: &mut State, offline: bool| {
            let change = crate::NodeChange { offline: Some(offline), ..Default::default() };
            testing::run(state, vec![crate::Command::ModifyNode { node: NodeId(2), change }]).unwrap();
        };
        mark(&mut state, true);
        assert_eq!(voters(&state, &all, NodeId(1)), BTreeSet::from([NodeId(1)]));
        mark(&mut state, false);
        assert_eq!(voters(&state, &BTreeSet::from([NodeId(1)]), NodeId(1)), all);
    }
}
