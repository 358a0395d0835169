//! `gnt-node info`.

use model::State;
use opcodes::Failure;
use opcodes::wire::Tree;

use super::{entry, truth, under};
use crate::tables::{self, Instances};

/// What `gnt-node info` shows of the nodes that are named, in that order; of all without names.
///
/// # Errors
/// A name that no node has.
pub fn node_info(state: &State, names: &[String]) -> Result<Tree, Failure> {
    let names = (!names.is_empty()).then_some(names);
    let instances = Instances::new(state);
    let list = |names: &[&str]| Tree::List(names.iter().map(Tree::text).collect());
    let nodes = tables::select("Node", names, tables::nodes(state))?.into_iter().map(|(id, node)| {
        let mut entries = vec![
            entry("Node name", &node.name),
            entry("primary ip", node.primary_ip),
            entry("secondary ip", node.secondary_ip),
            entry("master candidate", truth(node.master_candidate)),
            entry("drained", truth(node.drained)),
            entry("offline", truth(node.offline)),
            entry("master_capable", truth(node.master_capable)),
            entry("vm_capable", truth(node.vm_capable)),
        ];
        if node.vm_capable {
            entries.push(under("primary for instances", list(instances.primary(id))));
            entries.push(under("secondary for instances", list(instances.secondary(id))));
        }
        Tree::Map(entries)
    });
    Ok(Tree::List(nodes.collect()))
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;
    use crate::tables::testing;
    use opcodes::format::tree;

    fn shown(names: &[&str]) -> Result<String, Failure> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        node_info(&testing::cluster(), &names).map(|info| tree(&info))
    }

    #[test]
    fn nodes_are_shown_as_in_ganeti() {
        let text = shown(&["node03", "node01"]).unwrap();
        yaml::check(&text);
        assert_eq!(
            text,
            [
                "- Node name: node03",
                "  primary ip: 10.0.0.7",
                "  secondary ip: 10.1.0.7",
                "  master candidate: False",
                "  drained: False",
                "  offline: False",
                "  master_capable: False",
                "  vm_capable: False",
                "- Node name: node01",
                "  primary ip: 10.0.0.5",
                "  secondary ip: 10.1.0.5",
                "  master candidate: True",
                "  drained: False",
                "  offline: False",
                "  master_capable: True",
                "  vm_capable: True",
                "  primary for instances: ",
                "    - vm1",
                "    - vm2",
                "    - vm5",
                "    - vm10",
                "  secondary for instances: ",
                "",
            ]
            .join("\n")
        );
    }

    #[test]
    fn without_names_all_are_shown_and_an_unknown_one_is_refused() {
        let names: Vec<_> =
            shown(&[]).unwrap().lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect();
        assert_eq!(names, [1, 2, 3, 4].map(|number| format!("- Node name: node0{number}")));
        assert_eq!(shown(&["node01", "node09"]), Err(Failure::unknown("Node", "node09")));
    }
}
