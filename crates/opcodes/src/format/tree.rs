//! Nested information, in the YAML-like form of Ganeti's `info` commands.

use serde_json::Value;

use super::text;
use crate::wire::Tree;

/// Writes nested information. What comes out is YAML; each level is indented by two more spaces, and the space after
/// `key:` stays also where nothing follows on the line.
pub fn tree(tree: &Tree) -> String {
    let mut out = String::new();
    write(&mut out, tree, 0, false);
    out
}

/// `level` is the depth at which the entries of a container stand; `after_key` says that `key: ` is already on the line,
/// so that a container begins on the next one.
fn write(out: &mut String, tree: &Tree, level: usize, after_key: bool) {
    match tree {
        Tree::Text(text) => {
            // A line break in a value would end the entry.
            out.push_str(&text.replace('\n', "\\n"));
            out.push('\n');
        }
        Tree::Map(entries) if entries.is_empty() => out.push('\n'),
        Tree::List(items) if items.is_empty() => out.push('\n'),
        Tree::Map(entries) => {
            let mut begin = Entries::new(out, after_key);
            for (key, entry) in entries {
                begin.next(out, level);
                out.push_str(key);
                out.push_str(": ");
                write(out, entry, level + 1, true);
            }
        }
        Tree::List(items) => {
            let mut begin = Entries::new(out, after_key);
            for item in items {
                begin.next(out, level);
                out.push_str("- ");
                write(out, item, level + 1, false);
            }
        }
    }
}

/// Begins the entries of a container: the first one may stand behind the `- ` of the list that it is in.
struct Entries {
    indent: bool,
}

impl Entries {
    fn new(out: &mut String, after_key: bool) -> Self {
        if after_key {
            out.push('\n');
        }
        Self { indent: after_key }
    }

    fn next(&mut self, out: &mut String, level: usize) {
        if self.indent {
            out.extend(std::iter::repeat_n("  ", level));
        }
        self.indent = true;
    }
}

/// Nested information from a JSON value; dictionaries are in the order of their keys.
pub fn tree_of(value: &Value) -> Tree {
    match value {
        Value::Array(items) => Tree::List(items.iter().map(tree_of).collect()),
        Value::Object(entries) => {
            let mut entries: Vec<_> = entries.iter().map(|(key, entry)| (key.clone(), tree_of(entry))).collect();
            entries.sort_by(|(left, _), (right, _)| left.cmp(right));
            Tree::Map(entries)
        }
        value => Tree::Text(text::value(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(key: &str, value: &str) -> (String, Tree) {
        (key.into(), Tree::text(value))
    }

    #[test]
    fn an_instance_looks_as_in_ganeti() {
        let instance = Tree::Map(vec![
            entry("Instance name", "inst2"),
            (
                "Nodes".into(),
                Tree::List(vec![
                    Tree::Map(vec![entry("primary", "node3"), entry("group", "default (UUID ef0f)")]),
                    Tree::Map(vec![("secondaries".into(), Tree::List(vec![]))]),
                ]),
            ),
            ("Operating system parameters".into(), Tree::Map(vec![])),
            (
                "NICs".into(),
                Tree::List(vec![Tree::Map(vec![
                    entry("nic/0", ""),
                    entry("MAC", "aa:00:00:f5:92:04"),
                    entry("vlan", ""),
                ])]),
            ),
            entry("Disk template", "file"),
            (
                "Disks".into(),
                Tree::List(vec![Tree::Map(vec![entry("disk/0", "file, size 64M"), entry("access mode", "rw")])]),
            ),
        ]);
        assert_eq!(
            tree(&Tree::List(vec![instance])),
            [
                "- Instance name: inst2",
                "  Nodes: ",
                "    - primary: node3",
                "      group: default (UUID ef0f)",
                "    - secondaries: ",
                "  Operating system parameters: ",
                "  NICs: ",
                "    - nic/0: ",
                "      MAC: aa:00:00:f5:92:04",
                "      vlan: ",
                "  Disk template: file",
                "  Disks: ",
                "    - disk/0: file, size 64M",
                "      access mode: rw",
                "",
            ]
            .join("\n")
        );
    }

    #[test]
    fn lists_within_lists_and_nothing_at_all() {
        let reason = json!({"reason": [["gnt:client", "remove", 1], ["gnt:opcode", true, null]], "depends": []});
        assert_eq!(
            tree(&tree_of(&reason)),
            "depends: \nreason: \n  - - gnt:client\n    - remove\n    - 1\n  - - gnt:opcode\n    - True\n    - None\n"
        );
        assert_eq!(tree(&Tree::List(vec![])), "\n");
        assert_eq!(tree(&Tree::text("two\nlines")), "two\\nlines\n");
    }
}
